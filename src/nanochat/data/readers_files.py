"""Files at an address in the form that stages read: the CORE bundle, lists of messages, lists of words.

Each reader writes into the folder of the part and returns the names of its files with their rows by split. What is not what it should be
is refused before its hash is locked.
"""

import csv
import io
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanochat.artifacts import atomic_path
from nanochat.data.core import CORE_BASELINES, CORE_TASKS, CORE_YAML, TEXTS, Kind, row_fault
from nanochat.data.json_lines import json_lines
from nanochat.data.readers_bigbench import read_bigbench
from nanochat.errors import UserError

Files = tuple[list[str], dict[str, int]]  # names of the files, and {split: rows}

MAX_UNPACKED_BYTES = 4_000_000_000  # of a zip; the bundle has about half of one
MAX_MEMBER_BYTES = 1_000_000_000
MAX_SMALL_BYTES = 10_000_000  # core.yaml and the csv
CURE = "run again; if it stays so, its publisher has changed it, or your network answers in its place"
LABEL = re.compile("[A-Za-z0-9_]{1,64}")


def read_core_bundle(file: Path, folder: Path) -> Files:
    """core.yaml and eval_meta_data.csv as they are, and {label}.jsonl of each task with the rows as they are.

    Nothing is unpacked under a name of the archive's own, so none can lead out of the folder; two tasks may share the rows of one file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _checked(archive, file)
            (root,) = _roots(members, file)
            tasks = _core_tasks(_small(archive, members, f"{root}{CORE_YAML}", file), file)
            _check_baselines(_small(archive, members, f"{root}{CORE_BASELINES}", file), tasks, file)
            for name in (CORE_YAML, CORE_BASELINES):
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(archive.read(f"{root}{name}"))
            rows = {label: _write_task(archive, members, root, label, uri, kind, folder, file) for label, (uri, kind) in tasks.items()}
            return [CORE_YAML, CORE_BASELINES, *(f"{label}.jsonl" for label in rows)], rows
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:  # RuntimeError: encrypted
        raise UserError(f"{file.name}: not a readable zip ({error}); {CURE}") from None


def _checked(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """Members by name, if they are not too large. zipfile reads no more of a member than it states, and checks its CRC."""
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    if odd := [name for name, info in members.items() if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
        raise UserError(f"{file.name}: {odd[0]!r:.80} is packed in an unusual way; {CURE}")
    unpacked, largest = sum(info.file_size for info in members.values()), max((info.file_size for info in members.values()), default=0)
    if unpacked > MAX_UNPACKED_BYTES or largest > MAX_MEMBER_BYTES:
        raise UserError(f"{file.name}: unpacks to {unpacked:,} bytes, the largest file to {largest:,}, which is too much for the CORE bundle; {CURE}")
    return members


def _roots(members: Mapping[str, Any], file: Path) -> list[str]:
    """The folder in the archive that holds core.yaml, with its slash."""
    roots = [name.removesuffix(CORE_YAML) for name in members if name == CORE_YAML or re.fullmatch(rf"[^/]+/{re.escape(CORE_YAML)}", name)]
    if len(roots) != 1:
        raise UserError(f"{file.name}: holds {len(roots)} files {CORE_YAML}, one is needed; {CURE}")
    return roots


def _small(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, file: Path) -> str:
    """The text of a small member."""
    if name not in members or members[name].file_size > MAX_SMALL_BYTES:
        raise UserError(f"{file.name}: {name} is missing or larger than {MAX_SMALL_BYTES:,} bytes; {CURE}")
    try:
        return archive.read(name).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name}: {name} is no text ({error.reason} at byte {error.start}); {CURE}") from None


def _core_tasks(text: str, file: Path) -> dict[str, tuple[str, Kind]]:
    """{label: (file below eval_data/, kind of its rows)} as core.yaml lists them."""
    import yaml

    try:
        tasks = yaml.safe_load(text)["icl_tasks"]
        found = {task["label"]: (task["dataset_uri"], task["icl_task_type"]) for task in tasks}
        if odd := [kind for _, kind in found.values() if kind not in TEXTS]:
            raise KeyError(odd[0])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{file.name}: {CORE_YAML} lists no tasks with label, dataset_uri and icl_task_type ({error!r:.160}); {CURE}") from None
    if odd := [label for label in found if not isinstance(label, str) or not LABEL.fullmatch(label)]:
        raise UserError(f"{file.name}: {CORE_YAML} has the label {odd[0]!r:.80}, which is no name of a task; {CURE}")
    if unknown := [label for label in found if label not in CORE_TASKS]:
        raise UserError(f"{file.name}: {CORE_YAML} lists {unknown[0]}, which is none of the {len(CORE_TASKS)} tasks of CORE; {CURE}")
    return found


def _check_baselines(text: str, tasks: Mapping[str, Any], file: Path) -> None:
    """Every task has a score of guessing, in percent."""
    found = {row.get("Eval Task"): row.get("Random baseline") for row in csv.DictReader(io.StringIO(text))}
    for label in tasks:
        try:
            float(found.get(label) or "")
        except ValueError:
            raise UserError(f"{file.name}: {CORE_BASELINES} has no number under Random baseline for {label}; {CURE}") from None


def _write_task(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], root: str, label: str, uri: str, kind: Kind, folder: Path, file: Path) -> int:
    name, rows = f"{root}eval_data/{uri}", 0
    if name not in members:
        raise UserError(f"{file.name}: {name}, the rows of task {label}, is missing; {CURE}")
    with archive.open(name) as lines:
        for number, row in json_lines(lines, f"{file.name}: {name}", CURE):
            if fault := row_fault(kind, row):
                raise UserError(f"{file.name}: {name}: line {number} {fault}; {CURE}")
            rows += 1
    if not rows:
        raise UserError(f"{file.name}: {name}, the rows of task {label}, is empty; {CURE}")
    with atomic_path(folder / f"{label}.jsonl") as temporary, archive.open(name) as content, temporary.open("wb") as out:
        shutil.copyfileobj(content, out)
    return rows


def read_message_lists(file: Path, folder: Path) -> Files:
    """JSON lines that are lists of messages [{role, content}], user and assistant in turns, as {"messages": [...]}; the assistant has the last word."""
    return ["train.jsonl"], {"train": _write_lines(folder / "train.jsonl", _conversations(file), file)}


def _conversations(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, row in json_lines(lines, file.name, CURE):
            if not _in_turns(row):
                raise UserError(f"{file.name}: line {number} is no list of messages of user and assistant in turns; {CURE}")
            yield {"messages": [{"role": message["role"], "content": message["content"]} for message in row[: len(row) // 2 * 2]]}


def _in_turns(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) >= 2
        and all(
            isinstance(message, dict) and message.get("role") == ("user", "assistant")[index % 2] and isinstance(message.get("content"), str)
            for index, message in enumerate(row)
        )
    )


def read_word_lines(file: Path, folder: Path) -> Files:
    """A word a line, of the letters a to z, as {"word"}."""
    return ["train.jsonl"], {"train": _write_lines(folder / "train.jsonl", _words(file), file)}


def _words(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not (word := line.strip()):
                continue
            if not re.fullmatch(b"[a-z]+", word):
                raise UserError(f"{file.name}: line {number} is {word[:40]!r}, not a word of the letters a to z; {CURE}")
            yield {"word": word.decode()}


def read_ranks(file: Path, folder: Path) -> Files:
    """Ranks for tiktoken, as they are."""
    with atomic_path(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
    return [file.name], {"ranks": file.read_bytes().count(b"\n")}


def _write_lines(path: Path, rows: Iterator[dict[str, Any]], file: Path) -> int:
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise UserError(f"{file.name}: is empty; {CURE}")
    return count


FILE_READERS: Mapping[str, Callable[[Path, Path], Files]] = {
    "core_bundle": read_core_bundle,
    "bigbench": read_bigbench,
    "message_lists": read_message_lists,
    "word_lines": read_word_lines,
    "ranks": read_ranks,
}
