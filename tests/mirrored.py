"""What mirrors have written, read back with the libraries' own formats, for tests. (step, name) -> value; a pair that stands there twice is a failure."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(find_spec(kind) is None, reason=f"{kind} is not installed here: pip install 'nanochat[{kind}]'"))
    for kind in ("tensorboard", "wandb", "trackio")
]
Found = dict[tuple[int, str], float]
BLOCK, HEADER, FILE_HEADER = 32_768, 7, 7  # bytes, of LevelDB's log format, in which wandb writes


def logged(folder: Path) -> Found:
    """metrics.jsonl itself."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return once((row["step"], key, value) for row in rows for key, value in row.items() if key != "step" and isinstance(value, int | float))


def mirrored(kind: str, folder: Path) -> Found:
    """The mirror beside it."""
    return once({"tensorboard": of_tensorboard, "wandb": of_wandb, "trackio": of_trackio}[kind](folder / kind))


def once(values: "Iterator[tuple[int, str, float]]") -> Found:
    """As a dict; nothing may stand there twice."""
    found: Found = {}
    for step, name, value in values:
        assert (step, name) not in found, f"{name} of step {step} was logged twice"
        found[step, name] = value
    return found


def of_tensorboard(folder: Path) -> Iterator[tuple[int, str, float]]:
    """All event files, as a board reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    for name in board.Tags()["scalars"]:
        yield from ((event.step, name, event.value) for event in board.Scalars(name))


def of_wandb(folder: Path) -> Iterator[tuple[int, str, float]]:
    """The history records of the offline run; there must be one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("offline-run-*/run-*.wandb")
    for content in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            yield from ((items["_step"], name, value) for name, value in items.items() if not name.startswith("_"))


def records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB; pieces with checksum, size and type (1 whole, 2 first, 3 middle, 4 last)."""
    assert content[:4] == b":W&B"
    place, whole = FILE_HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):
            yield whole
            whole = b""


def of_trackio(folder: Path) -> Iterator[tuple[int, str, float]]:
    """The one project's table; there must be one run."""
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = list(database.execute("SELECT run_id, step, metrics FROM metrics"))
    assert len({run for run, _, _ in rows}) == 1
    for _, step, metrics in rows:
        yield from ((step, name, value) for name, value in json.loads(metrics).items())
