"""What the folder of a fetched part holds. Light: whoever looks at parts asks too."""

from collections.abc import Iterable
from pathlib import Path

from nanochat.artifacts import LOCK, OWNER

MANIFEST = "manifest.json"
COMPANIONS = ("config.json", "provenance.json")  # written beside the data, of no manifest
KEPT_NAMES = (MANIFEST, *COMPANIONS, LOCK, OWNER)
DATA_SUFFIXES = (".parquet", ".jsonl", ".tiktoken")


def strays(folder: Path, names: Iterable[str]) -> list[Path]:
    """What an earlier or killed fetch has left beside these files: other shards, half files, raw files. Files of the user's own are none."""
    known = {*names, *KEPT_NAMES}
    return sorted(path for path in folder.iterdir() if path.name not in known and (path.suffix in DATA_SUFFIXES or path.name.startswith(".")))
