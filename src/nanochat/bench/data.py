"""`nanochat bench data`: how fast text becomes tokens, tokens become rows, and rows become batches, on one core.

The text is Python's own documentation, which every installation holds: documents drawn from it at random, and a vocabulary learnt from it.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import torch

from nanochat.artifacts import write_json, write_manifest
from nanochat.bench.measure import in_turn, peak_memory, summary, take
from nanochat.bench.setup import Setup
from nanochat.data.documents import read_row_group, row_groups
from nanochat.data.packing import fill_rows, pack_documents
from nanochat.data.rows import TOKENS_FILE, TokenRows, token_dtype
from nanochat.errors import UserError
from nanochat.tokenizer import PATTERN, Tokenizer, train_tokenizer
from nanochat.train.batches import TextBatches
from nanochat.train.update import build_optimizer, make_update

GROUP_DOCUMENTS = 1024  # of a row group, as fetched shards have them
READINGS = 20  # of a step's rows, per measurement
BLOCK_ROWS = 2000


def sample_documents(size_bytes: int) -> list[str]:
    """Documents of together at least `size_bytes`, drawn from Python's documentation: runs of its paragraphs, as long as web pages are."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("pydoc_data: this Python comes without its documentation, which is the text to measure with; take another Python") from None
    paragraphs = [paragraph for topic in topics.values() for paragraph in topic.split("\n\n") if paragraph.strip()]
    draws, documents, size = np.random.default_rng(0), list[str](), 0
    while size < size_bytes:
        first, count = int(draws.integers(len(paragraphs))), 1 + int(draws.lognormal(1.5, 1.0))
        documents.append("\n\n".join(paragraphs[first : first + count]))
        size += len(documents[-1].encode())
    return documents


def measure_data(setup: Setup, *, megabytes: float, rounds: int) -> dict[str, Any]:
    """Figures of encoding, packing and reading; `setup` gives vocabulary, length of rows, and the step that reading is compared with."""
    texts = sample_documents(round(megabytes * 1e6))
    try:
        content = train_tokenizer(texts, setup.config.vocab_size)
    except UserError as problem:
        raise UserError(f"--vocab-size: {problem}") from None
    tokenizer, cpu = Tokenizer.from_json(content), torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="nanochat-bench-") as name:
        folder = Path(name)
        encoding = measure_encoding(folder, texts, tokenizer, content, rounds, cpu)
        packing, manifest = measure_packing(folder, texts, tokenizer, setup.config.sequence_len, rounds, cpu)
        reading = measure_reading(setup, manifest, rounds)
    return {
        "benchmark": "data",
        "setup": setup.describe(),
        "documents": len(texts),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "encoding": encoding,
        "packing": packing,
        "reading": reading,
        "peak_memory": peak_memory(cpu),
    }


def measure_encoding(folder: Path, texts: list[str], tokenizer: Tokenizer, content: dict[str, Any], rounds: int, cpu: torch.device) -> dict[str, Any]:
    """Row groups read, unpacked, encoded and counted, as a worker of stage tokenize does it, in turn with tiktoken's loop over the same documents."""
    file = folder / "text.parquet"
    pq.write_table(pa.table({"text": texts}), file, row_group_size=GROUP_DOCUMENTS, compression="zstd")
    itself = tiktoken_encoding(tokenizer, content)
    dtype = np.dtype(token_dtype(tokenizer.vocab_size))

    def loop() -> None:
        for text in texts:
            itself.encode_ordinary(text)

    def groups() -> None:
        for index in range(row_groups(file)):
            tokenizer.encode_documents(read_row_group(file, index), dtype)

    plain, ours = in_turn([loop, groups], rounds, cpu)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ratios = [one.cpu_s / other.cpu_s for one, other in zip(plain, ours, strict=True)]
    return {
        "megabytes_per_cpu_s": summary([megabytes / one.cpu_s for one in ours]),
        "tiktoken_megabytes_per_cpu_s": summary([megabytes / one.cpu_s for one in plain]),
        "of_tiktoken": summary(ratios),
    }


def tiktoken_encoding(tokenizer: Tokenizer, content: dict[str, Any]) -> tiktoken.Encoding:
    """The same vocabulary, without anything of ours around it."""
    count = len(content["ranks"])
    ranks = {tokenizer.decode_bytes([token]): token for token in range(count)}
    return tiktoken.Encoding("plain", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=content["special_tokens"])


def measure_packing(folder: Path, texts: list[str], tokenizer: Tokenizer, sequence_len: int, rounds: int, cpu: torch.device) -> tuple[dict[str, Any], Path]:
    """Plan and filled rows; also the manifest of the rows, written as stage tokenize writes them."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, lengths = tokenizer.encode_documents(texts, np.dtype(dtype))
    with_bos, row_tokens = lengths + 1, sequence_len + 1
    manifest = folder / "rows" / "manifest.json"
    manifest.parent.mkdir()

    def pack(write: Any = lambda block: None) -> int:
        plan = pack_documents(with_bos, row_tokens)
        for first in range(0, plan.rows, BLOCK_ROWS):
            write(fill_rows(plan, tokens, with_bos, tokenizer.bos, range(first, min(first + BLOCK_ROWS, plan.rows))))
        return plan.rows

    with (manifest.parent / TOKENS_FILE).open("wb") as output:
        rows = pack(lambda block: output.write(block.data))
    if not rows:
        raise UserError(f"--megabytes: {len(tokens)} tokens do not fill one row of --sequence-len {sequence_len}; give more text")
    (taken,) = in_turn([pack], rounds, cpu)
    tokenizer_file = folder / "tokenizer.json"
    write_json(tokenizer_file, {})
    counts = {"rows": rows, "row_tokens": row_tokens, "dtype": dtype, "vocab_size": tokenizer.vocab_size}
    config = {"sequence_len": sequence_len, "split": "train"}
    write_manifest(manifest, stage="tokenize", config=config, inputs={"tokenizer": tokenizer_file}, outputs=[TOKENS_FILE], counts=counts)
    rates = [rows / one.cpu_s for one in taken]
    return {"rows": rows, "rows_per_cpu_s": summary(rates), "tokens_per_cpu_s": statistics.median(rates) * row_tokens}, manifest


def measure_reading(setup: Setup, manifest: Path, rounds: int) -> dict[str, Any]:
    """A step's rows, in turn with the step that learns from them."""
    plan, runtime = setup.plan, setup.runtime
    batches = TextBatches(TokenRows([manifest], "train"), rows_per_step=plan.rows_per_step, seed=0)
    optimizer = build_optimizer(setup.model, plan, runtime)
    number = iter(range(1 << 30))

    def read() -> None:
        for step in range(READINGS):
            batches.rows(step, range(plan.rows_per_step))

    def update() -> None:
        make_update(setup.model, optimizer, plan, batches, runtime, next(number))

    take(update, runtime.device)
    reading, training = in_turn([read, update], rounds, runtime.device)
    shares = [one.wall_s / READINGS / other.wall_s for one, other in zip(reading, training, strict=True)]
    return {
        "rows_per_step": plan.rows_per_step,
        "read_s": statistics.median(one.wall_s for one in reading) / READINGS,
        "step_s": statistics.median(one.wall_s for one in training),
        "share_of_step": statistics.median(shares),
    }
