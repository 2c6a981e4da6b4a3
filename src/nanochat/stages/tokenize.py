"""Turn fetched text into packed rows of token ids, ready to be memory-mapped by the trainer.

reads   --text: manifest of one part of a source as it was fetched, or of one prepared chunk; the config's split says which of its files
        --tokenizer: manifest of stage tokenizer
writes  tokens.bin: rows of sequence_len + 1 ids (uint16 up to 65,536 entries, else uint32), each beginning with <|bos|>;
        config.json, provenance.json, and manifest.json last, all in one folder
resumes nothing: it starts again (about 14 MB of text per second and worker)

The output does not depend on --workers. Documents are packed best-fit, up to 67 million tokens (a 250 MB shard) at a time;
what is lost is the incomplete last row of each such portion, counted as cropped_tokens.

by hand: nanochat tokenize --config '{"sequence_len": 512, "split": "train"}' --text resources/wikipedia_summaries/all/manifest.json
         --tokenizer results/tokenizers/quickstart/manifest.json --workers 2 --manifest out/manifest.json
"""

import functools
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nanochat.artifacts import atomic_path, write_manifest
from nanochat.config import TokenizeStage, dump
from nanochat.data.documents import read_row_group, row_groups, text_files
from nanochat.data.packing import fill_rows, pack_documents
from nanochat.data.rows import DTYPES, TOKENS_FILE, token_dtype
from nanochat.errors import UserError
from nanochat.runtime import log
from nanochat.stages.common import attempt_at, positive_int, read_stage_config, stage_parser
from nanochat.stages.workers import in_order, worth_starting
from nanochat.tokenizer import Tokenizer

BUFFER_TOKENS = 1 << 26  # packed together: more choice than 1,000 documents give, in about 0.5 GB of memory
BLOCK_TOKENS = 1 << 22  # written at a time
LOG_EVERY_S = 10.0


def main(arguments: list[str]) -> None:
    """Encode, pack, write."""
    flags = _flags(arguments)
    config = read_stage_config(flags.config, TokenizeStage)
    with attempt_at(flags.manifest, "tokenize", config, workers=flags.workers) as story:
        files = text_files(flags.text, config.split, verify=True)
        if not files:
            raise UserError(f"--text={flags.text}: lists no {config.split} text; give the manifest of a part that has some")
        tokenizer = Tokenizer.load(flags.tokenizer)
        row_tokens, dtype = config.sequence_len + 1, token_dtype(tokenizer.vocab_size)

        started = time.monotonic()
        counts: Counter[str] = Counter()
        with atomic_path(flags.manifest.parent / TOKENS_FILE) as temporary, temporary.open("wb") as output:
            encoded = _encode(files, flags.tokenizer, dtype, flags.workers)
            for portion in _portions(_watched(encoded, counts, started), BUFFER_TOKENS):
                counts.update(_write_rows(output, *portion, bos=tokenizer.bos, row_tokens=row_tokens))
        elapsed_s = time.monotonic() - started
        if counts["rows"] == 0:
            log(f"warning: {counts['tokens']} tokens do not fill one row of {row_tokens}; this chunk has no rows")
        write_manifest(
            flags.manifest,
            stage="tokenize",
            config=dump(config),
            inputs={"text": flags.text, "tokenizer": flags.tokenizer},
            outputs=[TOKENS_FILE],
            counts={**_complete(counts), "row_tokens": row_tokens, "dtype": dtype, "vocab_size": tokenizer.vocab_size},
        )
        log(f"{counts['rows']:,} rows, {counts['cropped_tokens']:,} of {counts['tokens']:,} tokens cropped, {elapsed_s:.1f} s")
        story.finish(elapsed_s=elapsed_s, text_bytes_per_s=counts["text_bytes"] / elapsed_s)


def _flags(arguments: list[str]) -> Namespace:
    parser = stage_parser(__doc__, "tokenize")
    parser.add_argument("--config", required=True, help="sequence_len and split: JSON or a JSON file")
    parser.add_argument("--text", type=Path, required=True, metavar="MANIFEST", help="fetched text")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="MANIFEST", help="of stage tokenizer")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes that encode (default: 1)")
    parser.add_argument("--manifest", type=Path, required=True, metavar="OUT", help="manifest.json to write, beside tokens.bin")
    return parser.parse_args(arguments)


def _complete(counts: Counter[str]) -> dict[str, int | float]:
    names = ("documents", "empty_documents", "text_bytes", "tokens", "rows", "kept_tokens", "cropped_tokens", "added_bos", "cut_documents")
    return {**{name: counts[name] for name in names}, "cropped_fraction": counts["cropped_tokens"] / max(1, counts["tokens"])}


# --- encoding, in other processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """One row group: its documents' ids end to end, without BOS, and their numbers."""

    tokens: np.ndarray  # uint16 or uint32
    lengths: np.ndarray  # int64
    text_bytes: int
    empty_documents: int


def _encode(files: list[Path], tokenizer_manifest: Path, dtype: str, workers: int) -> Iterator[Encoded]:
    """Every row group, encoded, in order. At most two per worker wait to be taken, so memory is bounded."""
    tasks = [(file, index, tokenizer_manifest, dtype) for file in files for index in range(row_groups(file))]
    workers = worth_starting(min(workers, len(tasks)), sum(file.stat().st_size for file in files))
    yield from in_order(encode_row_group, tasks, workers)


def encode_row_group(file: Path, index: int, tokenizer_manifest: Path, dtype: str) -> Encoded:
    """Read and encode one row group; empty documents are passed over and counted."""
    texts = read_row_group(file, index)
    full = [text for text in texts if text]
    tokens, lengths = _tokenizer(tokenizer_manifest).encode_documents(full, DTYPES[dtype])
    return Encoded(tokens, lengths, sum(len(text.encode()) for text in full), len(texts) - len(full))


@functools.cache
def _tokenizer(manifest: Path) -> Tokenizer:
    return Tokenizer.load(manifest)


# --- packing and writing ---------------------------------------------------------------------------------------------


def _watched(encoded: Iterable[Encoded], counts: Counter[str], started: float) -> Iterator[Encoded]:
    """Count what passes by and say now and then that the stage is alive."""
    said = started
    for group in encoded:
        counts["documents"] += len(group.lengths)
        counts["empty_documents"] += group.empty_documents
        counts["text_bytes"] += group.text_bytes
        if (now := time.monotonic()) - said > LOG_EVERY_S:
            said = now
            log(f"{counts['text_bytes'] / 1e6:.0f} MB encoded, {counts['text_bytes'] / 1e6 / (now - started):.1f} MB/s")
        yield group


def _portions(encoded: Iterable[Encoded], buffer_tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, lengths) of as many row groups as make up `buffer_tokens`."""
    groups: list[Encoded] = []
    size = 0
    for group in encoded:
        groups.append(group)
        size += len(group.tokens)
        if size >= buffer_tokens:
            yield _joined(groups)
            groups, size = [], 0
    if size:
        yield _joined(groups)


def _joined(groups: list[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([group.tokens for group in groups]), np.concatenate([group.lengths for group in groups])


def _write_rows(output: BinaryIO, tokens: np.ndarray, lengths: np.ndarray, *, bos: int, row_tokens: int) -> dict[str, int]:
    """Pack one portion and append its rows; returns what to add to the counts."""
    with_bos = lengths + 1
    plan = pack_documents(with_bos, row_tokens)
    step = max(1, BLOCK_TOKENS // row_tokens)
    for first in range(0, plan.rows, step):
        block = fill_rows(plan, tokens, with_bos, bos, range(first, min(first + step, plan.rows)))
        output.write(block.data)
    kept = {"kept_tokens": plan.kept_tokens, "cropped_tokens": plan.cropped_tokens}
    return {"rows": plan.rows, "tokens": plan.tokens, **kept, "added_bos": plan.added_bos, "cut_documents": plan.cut_documents}
