"""The text of rows of tokens, as `nanochat data show` prints it: what a training has read at a step that looked wrong.

A folder of a training names its tokens, its tokenizer and, while it is not finished, its packed conversations; a folder of tokens names its tokenizer.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.artifacts import read_json, read_manifest, sha256_file
from nanochat.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from nanochat.tokenizer import Tokenizer

CONVERSATIONS = ("mid_train", "chat_sft")
PACKED, PACKED_ROWS = "resume/packed.json", "resume/rows.bin"  # as stages/tuning.py writes them
COUNTED = 1 << 31  # in a packed row: the loss counts this token


@dataclass(frozen=True)
class Document:
    """One document, or one conversation, of a row; or the piece of a longer one that stands there."""

    tokens: int  # <|bos|> included
    learnt: int  # of them, those that the loss counts
    text: str
    file: str | None = None  # of the chunk's text, where it was found


@dataclass(frozen=True)
class Row:
    """One row of tokens."""

    row: int  # as it was asked for
    origin: str  # where it lies, and where its text came from
    documents: tuple[Document, ...]

    def lines(self) -> list[str]:
        """For people."""
        said = [f"=== row {self.row}: {self.origin}"]
        for number, document in enumerate(self.documents, start=1):
            origin = f", of {document.file}" if document.file else ""
            said += [f"--- {number} of {len(self.documents)}: {document.tokens} tokens, {document.learnt} of them learnt{origin}", document.text]
        return said

    def to_json(self) -> str:
        """For programs: one line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def rows(folder: Path, wanted: Sequence[int]) -> list[Row]:
    """These rows of what a stage's folder holds or was trained on. Raises UserError for a folder that names none, and for rows that it does not have."""
    said = _command_of(folder)
    if said.stage == "tokenize":
        manifest = folder / "manifest.json"
        return _text_rows([manifest], read_manifest(manifest)["config"]["split"], said.path("tokenizer"), wanted)
    if said.stage == "base_train":
        _require_unchanged(folder, {"tokenizer": said.path("tokenizer"), **{f"tokens.{path.absolute().parent.name}": path for path in said.paths("tokens")}})
        return _text_rows(said.paths("tokens"), "train", said.path("tokenizer"), wanted)
    if said.stage in CONVERSATIONS:
        _require_unchanged(folder, {"tokenizer": said.path("tokenizer")})
        return _conversation_rows(folder, said.path("tokenizer"), wanted)
    if said.stage == "chat_rl":
        raise UserError(f"{folder}: learnt from answers that were drawn while it trained and that nobody kept; there are no rows to show")
    raise UserError(f"{folder}: made by stage {said.stage!r}, which reads no rows; give the folder of a training or of tokens")


# --- what the folder names -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Command:
    """How the last attempt at a stage was started."""

    stage: str
    flags: dict[str, Any]
    file: Path

    def paths(self, flag: str) -> list[Path]:
        """The manifests that a flag has named."""
        if not self.flags[flag]:
            raise UserError(f"{self.file}: its last command names no --{flag}; run the stage again")
        found: list[Path] = self.flags[flag]
        for path in found:
            if not path.is_file():
                raise UserError(f"{path}: no such file, though the training has read it; run this in the folder that the training was started in")
        return found

    def path(self, flag: str) -> Path:
        """The one manifest that a flag has named."""
        return self.paths(flag)[0]


def _command_of(folder: Path) -> _Command:
    file = folder / "provenance.json"
    if not file.is_file():
        raise UserError(f"{folder}: holds no provenance.json; give the folder of a training, such as results/RUN/base_train, or of tokens")
    story = read_json(file)
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("tokens", "tokenizer", "text"):
        parser.add_argument(f"--{flag}", type=Path, nargs="+")
    try:
        flags, _ = parser.parse_known_args(story["attempts"][-1]["command"])
        return _Command(story["stage"], vars(flags), file)
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{file}: does not say how the stage was started; run the stage again") from None


def _require_unchanged(folder: Path, inputs: dict[str, Path]) -> None:
    """Refuse inputs that were made again since the training has read them: their rows may be others."""
    recorded: dict[str, str] = {}
    if (folder / "manifest.json").is_file():
        recorded = read_json(folder / "manifest.json")["inputs"]
    elif slots := sorted((folder / "resume").glob("?.json"), key=lambda file: file.stat().st_mtime):
        recorded = read_json(slots[-1]).get("work", {}).get("inputs", {})
    for name, path in inputs.items():
        if name in recorded and recorded[name] != sha256_file(path):
            raise UserError(f"{path}: made again since {folder} was trained on it, so its rows may be others; there is nothing to show")


# --- rows as text ----------------------------------------------------------------------------------------------------


def _text_rows(manifests: Sequence[Path], split: str, tokenizer_manifest: Path, wanted: Sequence[int]) -> list[Row]:
    import numpy as np

    from nanochat.data.rows import TokenRows
    from nanochat.tokenizer import Tokenizer

    source, tokenizer = TokenRows(manifests, split), Tokenizer.load(tokenizer_manifest)
    _require_rows(wanted, len(source))
    folders = {path.absolute().parent.name: path.parent for path in manifests}
    starts = np.cumsum([0, *(count for _, count in source.chunks)])
    found = []
    for row in wanted:
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        folder, ids = folders[source.chunks[chunk][0]], source.rows([row])[0]
        documents = _documents(ids, np.arange(len(ids)) > 0, tokenizer)  # nothing comes before the first
        place, files = int(row - starts[chunk]), _text_of(folder, split)
        text = f", text of {files[0].parent}: {', '.join(file.name for file in files)}" if files else ""
        found.append(Row(row, f"row {place} of {folder}{text}", _with_files(documents, files, (place + 0.5) / source.chunks[chunk][1])))
    return found


def _text_of(chunk: Path, split: str) -> list[Path]:
    """The files that a chunk of tokens was made from; none where they are gone, or others by now."""
    from nanochat.data.documents import text_files

    try:
        manifest = _command_of(chunk).path("text")
        _require_unchanged(chunk, {"text": manifest})
        return text_files(manifest, split)
    except UserError:
        return []


def _with_files(documents: tuple[Document, ...], files: Sequence[Path], at: float) -> tuple[Document, ...]:
    """The documents, each with the file that it came from; `at`: where in the chunk their row lies, 0 to 1."""
    from nanochat.inventory.shards import files_of

    if not files:
        return documents
    names = files_of([document.text for document in documents], files, at)
    return tuple(replace(document, file=name) for document, name in zip(documents, names, strict=True))


def _conversation_rows(folder: Path, tokenizer_manifest: Path, wanted: Sequence[int]) -> list[Row]:
    import numpy as np

    from nanochat.tokenizer import Tokenizer

    if not (folder / PACKED).is_file() or not (folder / PACKED_ROWS).is_file():
        raise UserError(f"{folder}: its packed conversations are deleted when it is finished; they are there while it trains, or is stopped")
    count, tokenizer = int(read_json(folder / PACKED)["counts"]["rows"]), Tokenizer.load(tokenizer_manifest)
    _require_rows(wanted, count)
    packed = np.memmap(folder / PACKED_ROWS, dtype=np.uint32, mode="r").reshape(count, -1)
    found = []
    for row in wanted:
        marked = np.asarray(packed[row])
        documents = _documents((marked & (COUNTED - 1)).astype(np.int64), marked >= COUNTED, tokenizer)
        conversations = tuple(document for document in documents if document.tokens > 1)  # a lone <|bos|> is padding
        found.append(Row(row, f"packed conversations of {folder}", conversations))
    return found


def _require_rows(wanted: Sequence[int], count: int) -> None:
    for row in wanted:
        if not 0 <= row < count:
            raise UserError(f"row {row}: there are {count:,} rows; give numbers from 0 to {count - 1}")


def _documents(ids: "np.ndarray", learnt: "np.ndarray", tokenizer: "Tokenizer") -> tuple[Document, ...]:
    """What stands between one <|bos|> and the next; every row begins with one."""
    starts = [place for place, token in enumerate(ids.tolist()) if token == tokenizer.bos]
    pieces = [(ids[start:end], learnt[start:end]) for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return tuple(Document(len(tokens), int(marks.sum()), tokenizer.decode(tokens[1:].tolist())) for tokens, marks in pieces)
