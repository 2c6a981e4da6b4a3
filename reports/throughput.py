"""How fast text becomes tokens, rows and batches on this machine: the figures of log.md. Run it from the repository; wheels are fetched at need.

    PYTHONPATH=src python reports/throughput.py encode workers shards packing reading

encode    a row group at a time, as the stage's workers do it, against tiktoken's own loop over the same documents, in turn, on one core
workers   the whole stage with one worker and with two, and what each process spends
shards    the whole stage on 1, 4 and 16 shards
packing   plans and filled rows of real documents, and of lengths as the web has them
reading   a step's rows against the step, at depth 4
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.artifacts import read_manifest, write_json, write_manifest
from nanochat.data.documents import row_groups
from nanochat.data.packing import fill_rows, pack_documents
from nanochat.data.readers_text import TEXT_READERS
from nanochat.data.rows import TokenRows
from nanochat.data.sources import SOURCES, WHEELS
from nanochat.data.wheels import open_wheel
from nanochat.stages.tokenize import encode_row_group
from nanochat.tokenizer import Tokenizer, train_tokenizer

ROUNDS = 5
SHARD_BYTES = 4_000_000
VOCABULARY = 32_768
STAGE = """
import json, resource, sys
from nanochat.stages.tokenize import main
def spent(): return [sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
before = spent()
main(sys.argv[1:])
print(json.dumps([*(after - first for after, first in zip(spent(), before)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@dataclass(frozen=True)
class Run:
    """One run of stage tokenize, after its imports."""

    manifest: Path
    elapsed_s: float  # from the first row group to the last row on disk
    own_cpu_s: float  # of the process that packs and writes, and encodes where it is the only one
    workers_cpu_s: float
    memory_mb: float


class Bench:
    """Real text, a vocabulary learnt from it, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.texts = folder, list[str]()
        for name in ("wikipedia_summaries", "presidential_messages"):
            with open_wheel(WHEELS[SOURCES[name].place["package"]], Path("resources/wheels")) as archive:
                self.texts += [text for text in TEXT_READERS[name](archive) if text]
        np.random.default_rng(0).shuffle(self.texts)
        self.bytes = sum(len(text.encode()) for text in self.texts)
        self.vocabulary = folder / "tokenizer" / "manifest.json"
        self.vocabulary.parent.mkdir()
        write_json(self.vocabulary.parent / "tokenizer.json", train_tokenizer(self.texts, VOCABULARY))
        write_manifest(self.vocabulary, stage="tokenizer", config={}, inputs={}, outputs=["tokenizer.json"], counts={})
        print(f"{len(self.texts):,} documents, {self.bytes / 1e6:.1f} MB, vocabulary {VOCABULARY:,}, {sys.version.split()[0]}")

    def text(self, name: str, shards: Sequence[Sequence[str]]) -> Path:
        """Text as stage fetch leaves it."""
        folder = self.folder / name
        folder.mkdir()
        names = [f"train-{number:05d}.parquet" for number in range(len(shards))]
        for file, texts in zip(names, shards, strict=True):
            pq.write_table(pa.table({"text": texts}), folder / file, row_group_size=1024, compression="zstd")
        write_manifest(folder / "manifest.json", stage="fetch", config={"source": name}, inputs={}, outputs=names, counts={})
        return folder / "manifest.json"

    def tokenize(self, text: Path, *, workers: int = 1, sequence_len: int = 2048) -> Run:
        """The whole stage, in a process of its own."""
        manifest = self.folder / f"{text.parent.name}.{workers}.{sequence_len}" / "manifest.json"
        config = json.dumps({"sequence_len": sequence_len, "split": "train"})
        flags = ["--text", str(text), "--tokenizer", str(self.vocabulary), "--workers", str(workers), "--manifest", str(manifest)]
        own, others, memory = json.loads(run("-c", STAGE, "--config", config, *flags))
        story = json.loads((manifest.parent / "provenance.json").read_text(encoding="utf-8"))
        return Run(manifest, story["attempts"][-1]["elapsed_s"], own, others, memory / 1e3)


def run(*arguments: str) -> str:
    """Run Python; what it says is shown only if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def in_turn(actions: Sequence[Callable[[], object]], rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time) -> list[list[float]]:
    """Seconds of each action in each round; all take part in every round, so that a busy neighbour slows all of them."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, seconds in zip(actions, taken, strict=True):
            began = clock()
            action()
            seconds.append(clock() - began)
    return taken


def encode(bench: Bench) -> None:
    """CPU time on one core."""
    file = bench.text("whole", [bench.texts]).parent / "train-00000.parquet"
    tiktoken_itself = Tokenizer.load(bench.vocabulary)._encoding

    def loop() -> None:
        for text in bench.texts:
            tiktoken_itself.encode_ordinary(text)

    def ours() -> None:
        for index in range(row_groups(file)):
            encode_row_group(file, index, bench.vocabulary, "uint16")

    plain, whole = in_turn([loop, ours])
    ratios = [one / other for one, other in zip(plain, whole, strict=True)]
    for name, seconds in (("tiktoken's loop", plain), ("row groups", whole)):
        print(f"{name}: {bench.bytes / 1e6 / statistics.median(seconds):.2f} MB/s of CPU, best {bench.bytes / 1e6 / min(seconds):.2f}")
    print(f"row groups / loop: median {statistics.median(ratios):.3f}, rounds {' '.join(f'{ratio:.3f}' for ratio in ratios)}")


def workers(bench: Bench) -> None:
    """What the processes spend: the one that packs and writes must not be what the others wait for."""
    text, size = bench.text("thrice", [bench.texts] * 3), 3 * bench.bytes / 1e6
    runs = [(count, bench.tokenize(text, workers=count)) for _ in range(3) for count in (1, 2)]
    for count in (1, 2):
        found = [one for number, one in runs if number == count]
        own, others = (statistics.median(values) for values in zip(*((one.own_cpu_s, one.workers_cpu_s) for one in found), strict=True))
        each = f"{size / own:.1f} MB/s of CPU" if count == 1 else f"{size / others:.1f} MB/s of CPU each, the first process {size / own:.0f} MB/s of its own"
        print(f"{count} workers: {each}; wall, best of {len(found)}: {size / min(one.elapsed_s for one in found):.1f} MB/s")


def shards(bench: Bench) -> None:
    """Seconds of CPU for each shard, and memory."""
    order = np.random.default_rng(1)
    made = []
    for _ in range(16):
        texts, size = [], 0
        while size < SHARD_BYTES:
            texts.append(bench.texts[order.integers(len(bench.texts))])
            size += len(texts[-1].encode())
        made.append(texts)
    texts_of = {count: bench.text(f"shards{count}", made[:count]) for count in (1, 4, 16)}
    runs = [(count, bench.tokenize(text)) for _ in range(3) for count, text in texts_of.items()]
    for count in texts_of:
        found = [one for number, one in runs if number == count]
        spent = sorted(one.own_cpu_s / count for one in found)
        print(f"{count} shards: {spent[0]:.2f} s of CPU each (at most {spent[-1]:.2f}), {max(one.memory_mb for one in found):.0f} MB of memory")


def packing(bench: Bench) -> None:
    """Rows in a second of CPU, plan and filling together."""
    encoder = Tokenizer.load(bench.vocabulary)
    ids, lengths = encoder.encode_documents(bench.texts, np.uint16)
    web = np.maximum(2, np.random.default_rng(2).lognormal(6.4, 1.0, 60_000)).astype(np.int64)
    for name, sizes, tokens in (("real", lengths, ids), ("web lengths", web, np.zeros(int(web.sum()), np.uint16))):
        for row_tokens in (513, 2049):

            def fill(sizes: np.ndarray = sizes, tokens: np.ndarray = tokens, row_tokens: int = row_tokens) -> int:
                plan = pack_documents(sizes + 1, row_tokens)
                for first in range(0, plan.rows, 2000):
                    fill_rows(plan, tokens, sizes + 1, encoder.bos, range(first, min(first + 2000, plan.rows)))
                return plan.rows

            rows = fill()
            (taken,) = in_turn([fill], 3)
            print(f"{name}, T={row_tokens - 1}: {rows / min(taken):,.0f} rows/s, {rows * row_tokens / min(taken) / 1e6:.1f} million tokens/s")


def reading(bench: Bench) -> None:
    """Depth 4, width 256, two threads; steps as metrics.jsonl tells them."""
    from nanochat.train.batches import TextBatches

    train = bench.tokenize(bench.text("train", [bench.texts]), sequence_len=512).manifest
    held_out = bench.folder / "held_out" / "manifest.json"
    held_out.parent.mkdir()
    manifest = read_manifest(train)
    (held_out.parent / "tokens.bin").write_bytes((train.parent / "tokens.bin").read_bytes())
    write_json(held_out, {**manifest, "config": {**manifest["config"], "split": "validation"}})
    config = {"recipe": "compact-2026-11", "depth": 4, "horizon": {"steps": 12, "batch_tokens": 4096}, "validation_rows": 8, "validate_every": 0}
    out = bench.folder / "d4"
    places = ["--weights", str(out / "model.safetensors"), "--manifest", str(out / "manifest.json"), "--device", "cpu", "--threads", "2"]
    run("-m", "nanochat", "base_train", "--config", json.dumps(config), "--tokens", str(train), str(held_out), "--tokenizer", str(bench.vocabulary), *places)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = [line["elapsed_s"] for line in lines if "elapsed_s" in line]
    step = statistics.median(np.diff(clock))
    batches = TextBatches(TokenRows([train], "train"), rows_per_step=8, seed=0)
    read = statistics.median(in_turn([lambda: [batches.rows(number, range(8)) for number in range(100)]], clock=time.perf_counter)[0]) / 100
    print(f"a step of 4,096 tokens: {step:.3f} s; its rows: {read * 1e6:.0f} us, {read / step:.4%}")


PARTS = {part.__name__: part for part in (encode, workers, shards, packing, reading)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    chosen = parser.parse_args().parts
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for part in chosen:
            PARTS[part](bench)
