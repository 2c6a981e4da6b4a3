"""Reading fetched or prepared text: the parquet files of one split of a part, a row group (1,024 documents) at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.artifacts import read_manifest, verified_file
from nanochat.errors import UserError

COLUMN = "text"
STAGES = ("fetch", "prepare")  # which make text


def text_files(manifest_path: Path, split: str, *, verify: bool = False) -> list[Path]:
    """The files of `split` that a manifest of fetched or prepared text lists, in order; train: train-00000.parquet ..., validation: validation.parquet.

    `verify`: compare their sha256 (UserError); cheap for who reads all of them, and parquet would not notice a flipped bit.
    """
    manifest = read_manifest(manifest_path)
    if manifest["stage"] not in STAGES:
        raise UserError(f"{manifest_path}: made by stage {manifest['stage']!r}, {' or '.join(map(repr, STAGES))} is needed; give that stage's manifest.json")
    names = manifest["outputs"]
    wanted = [name for name in sorted(names) if name.startswith(split) and name.endswith(".parquet")]
    return [verified_file(manifest_path, name) if verify else Path(manifest_path).parent / name for name in wanted]


def verified_text(manifest_path: Path, split: str) -> Iterator[Path]:
    """`text_files`, each compared with its sha256 (UserError) when its turn comes, for who may stop before the last."""
    for file in text_files(manifest_path, split):
        yield verified_file(manifest_path, file.name)


def row_groups(path: Path) -> int:
    """How many row groups a file has."""
    return int(_open(path).num_row_groups)


def group_rows(path: Path) -> list[int]:
    """How many documents each row group of a file has."""
    metadata = _open(path).metadata
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def read_row_group(path: Path, index: int) -> list[str]:
    """The documents of one row group; a null is an empty document."""
    file = _open(path)
    try:
        return [text or "" for text in file.read_row_group(index, columns=[COLUMN]).column(0).to_pylist()]
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: row group {index} cannot be read ({_first_line(error)}); delete the file's folder and fetch it again") from None


def _groups(paths: Iterable[Path]) -> Iterator[list[str]]:
    for path in paths:
        for index in range(row_groups(path)):
            yield read_row_group(path, index)


def documents(paths: Iterable[Path]) -> Iterator[str]:
    """Every document of `paths`, file by file."""
    for group in _groups(paths):
        yield from group


def interleaved(sources: Iterable[Iterable[Path]]) -> Iterator[str]:
    """Documents of several sources, a row group of each in turn, so that whoever stops early has seen them all."""
    waiting = [_groups(paths) for paths in sources]
    while waiting:
        for source in list(waiting):
            group = next(source, None)
            if group is None:
                waiting.remove(source)
            else:
                yield from group


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_first_line(error)}); delete its folder and fetch it again") from None
    if COLUMN not in file.schema_arrow.names:
        raise UserError(f"{path}: has no column {COLUMN!r} but {file.schema_arrow.names}; give a text source")
    return file


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
