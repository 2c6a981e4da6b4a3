"""Train a byte-level BPE tokenizer on fetched text and measure it against GPT-2's and GPT-4's vocabularies.

reads   --text: fetch manifests of text (their training split; the validation split is only measured)
        --references: fetch manifests of gpt2_ranks and cl100k_ranks
writes  tokenizer.json, token_bytes.json (bytes of text per token id), evaluation.json (tokens per text, ours and theirs),
        config.json, provenance.json, and manifest.json last, all in one folder
resumes nothing: it starts again (2 GB of text take about two minutes)

by hand: nanochat tokenizer --config '{"vocab_size": 4096}' --text resources/wikipedia_summaries/all/manifest.json
         --references resources/gpt2_ranks/all/manifest.json resources/cl100k_ranks/all/manifest.json
         --tokenizer out/tokenizer.json --token-bytes out/token_bytes.json --evaluation out/evaluation.json --manifest out/manifest.json
"""

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from nanochat.artifacts import write_json, write_manifest
from nanochat.compression import compare, load_references
from nanochat.config import TokenizerStage, dump
from nanochat.data.documents import documents, interleaved, text_files, verified_text
from nanochat.data.sample_texts import SAMPLE_TEXTS
from nanochat.errors import UserError
from nanochat.runtime import log
from nanochat.stages.common import attempt_at, read_stage_config, stage_parser
from nanochat.tokenizer import Tokenizer, train_tokenizer, training_texts

SAMPLE_DOCUMENTS = 1_024  # of each split of each source, for the comparison
SAMPLE_CHARS = 2_000_000  # of each split, over all sources
OUTPUTS = ("tokenizer", "token_bytes", "evaluation")


def main(arguments: list[str]) -> None:
    """Train, measure, write."""
    flags = _flags(arguments)
    config = read_stage_config(flags.config, TokenizerStage)
    with attempt_at(flags.manifest, "tokenizer", config) as story:
        training, validation = ([path for path in flags.text if text_files(path, split)] for split in ("train", "validation"))
        if not training:
            raise UserError(f"--text: no training text in {', '.join(map(str, flags.text))}; give the manifest of a part that has some")

        log(f"training a vocabulary of {config.vocab_size} on up to {config.max_chars:,} characters")
        started, seen = time.monotonic(), _Counter()
        texts = training_texts(interleaved(verified_text(path, "train") for path in training), max_chars=config.max_chars, document_chars=config.document_chars)
        content = train_tokenizer(seen.watch(texts), config.vocab_size)
        train_s = time.monotonic() - started
        log(f"trained in {train_s:.1f} s on {seen.chars:,} characters")

        tokenizer = Tokenizer.from_json(content)
        texts_to_compare = {**SAMPLE_TEXTS, **_samples("train", training), **_samples("validation", validation)}
        evaluation = compare(tokenizer, load_references(flags.references), texts_to_compare)
        for row in evaluation["rows"]:
            log(f"{row['text']}: bytes per token {row['bytes_per_token']}")
        write_json(flags.tokenizer, content)
        write_json(flags.token_bytes, tokenizer.token_bytes().tolist())
        write_json(flags.evaluation, evaluation)
        write_manifest(
            flags.manifest,
            stage="tokenizer",
            config=dump(config),
            inputs=_inputs(flags),
            outputs=[getattr(flags, name).name for name in OUTPUTS],
            counts={"vocab_size": tokenizer.vocab_size, "special_tokens": len(tokenizer.special_tokens), "text_chars": seen.chars},
        )
        story.finish(train_s=train_s, text_chars=seen.chars)


def _flags(arguments: list[str]) -> Namespace:
    parser = stage_parser(__doc__, "tokenizer")
    parser.add_argument("--config", required=True, help="vocab_size, max_chars, document_chars: JSON or a JSON file")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="MANIFEST", help="fetched text")
    parser.add_argument("--references", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched reference vocabularies")
    for name in (*OUTPUTS, "manifest"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, metavar="OUT", help=f"{name}.json to write")
    flags = parser.parse_args(arguments)
    for name in OUTPUTS:
        if (file := getattr(flags, name)).parent != flags.manifest.parent or file.name != f"{name}.json":
            raise UserError(f"--{name.replace('_', '-')}={file}: must be {name}.json beside the manifest; give {flags.manifest.parent / name}.json")
    return flags


def _inputs(flags: Namespace) -> dict[str, Path]:
    named = [("text", flags.text), ("references", flags.references)]
    return {f"{name}.{index}": path for name, paths in named for index, path in enumerate(paths)}


class _Counter:
    """Counts the characters that pass by."""

    def __init__(self) -> None:
        self.chars = 0

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.chars += len(text)
            yield text


def _samples(split: str, manifests: list[Path]) -> dict[str, str]:
    """{corpus_{split}: the first documents of each source, joined}; nothing where a corpus has no such split."""
    share = SAMPLE_CHARS // max(1, len(manifests))
    texts = ["\n".join(islice(documents(verified_text(path, split)), SAMPLE_DOCUMENTS))[:share] for path in manifests]
    joined = "\n".join(text for text in texts if text)
    return {f"corpus_{split}": joined} if joined else {}
