"""A checkout with fetched data as stage fetch leaves it, small and real, for the tests of `nanochat data`."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from workspace import REPOSITORY

from nanochat.artifacts import write_bytes, write_json, write_manifest
from nanochat.config import load
from nanochat.inventory.parts import Part, read_experiments

MADE = tempfile.TemporaryDirectory()
FABLES = Part("fables", "all")  # of the registry; the miniature does not need it
WIKIPEDIA = Part("wikipedia_summaries", "all")


def checkout(folder: Path, *, fetch: bool = True) -> Path:
    """A folder with the miniature experiment and, unless `fetch` is False, all that it needs."""
    shutil.copytree(template(), folder, ignore=None if fetch else shutil.ignore_patterns("resources"))
    return folder


@cache
def template() -> Path:
    """Made once: each file that is written as the stages do it waits for the disk."""
    folder = Path(MADE.name)
    shutil.copy(REPOSITORY / "Snakefile", folder)
    shutil.copy(REPOSITORY / "tests/tiny.yaml", folder / "config.yaml")
    for part in read_experiments(None, folder).parts:
        fetched(folder, part)
    return folder


def fetched(root: Path, part: Part, *, names: Iterable[str] | None = None, config: dict[str, Any] | None = None) -> Path:
    """The folder of a part with its files, manifest, config and story. The content follows from the names alone."""
    folder = root / part.name
    splits = {"all": ["train.jsonl", "validation.jsonl"]}.get(part.part, [f"{part.part}.parquet"])
    files = list(names or (["train-00000.parquet", "validation.parquet"] if part == WIKIPEDIA else splits))
    for name in files:
        write_bytes(folder / name, f"{part.source} {part.part} {name}\n".encode() * 500)
    if config is None:
        experiments = read_experiments(None, root)
        config = experiments.fetch_config(part, next(iter(experiments.files))) if part in experiments.users else {"source": part.source}
    write_json(folder / "config.json", config)
    write_json(folder / "provenance.json", {"stage": "fetch", "attempts": [{"state": "finished", "start": 1.0}]})
    made_with = {"source": part.source, "part": part.part}
    counts = {"rows": {name.split(".")[0].split("-")[0]: 500 for name in files}}
    write_manifest(folder / "manifest.json", stage="fetch", config=made_with, inputs={}, outputs=files, counts=counts)
    return folder


def sharded(root: Path, parts: Iterable[str] = ("train-000", "train-001", "validation")) -> Path:
    """An experiment of its own, web.yaml, with a corpus in shards, of which these parts are fetched."""
    content = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
    content["corpora"]["tiny"] = {"sources": ["fineweb_edu_100b"], "shards": 4, "chunk_shards": 2, "sequence_len": 128}
    (root / "web.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    load(root / "web.yaml")
    for name in parts:
        part = Part("fineweb_edu_100b", name)
        config = read_experiments([Path("web.yaml")], root).fetch_config(part, Path("web.yaml"))
        fetched(root, part, names=[f"{name}.parquet"], config=config)
    return root


def flip(file: Path) -> None:
    """Change one byte in the middle of a file and leave its size."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, locks left out."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return {str(file.relative_to(folder)): file.read_bytes() for file in found if not file.name.endswith((".lock", ".owner.json"))}
