"""Answers kept on disk as they come: a killed evaluation goes on where it was, and one that asks the same again asks nothing.

One file for each identity (weights, tokenizer, task, version, settings) and rank: `{sha16}.{rank}.jsonl`. The first line says whose answers
they are, each further one is an answer with its checksum. The folder is no output of any rule and may be deleted at any time.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.artifacts import canonical_json, sha256_bytes

FLUSH_ITEMS, FLUSH_S = 50, 10.0  # at most so much is lost in a power cut; a kill loses nothing that was added
NAME_DIGITS = 16  # of a sha256


class AnswerStore:
    """Answers of one identity. `known`: every whole line of any rank, as the store was opened and with what was added since."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int = 0) -> None:
        self.identity = dict(identity)
        name = sha256_bytes(canonical_json(self.identity).encode())[:NAME_DIGITS]
        self.path = Path(folder) / f"{name}.{rank}.jsonl"
        self.damaged = 0  # lines that are no answers: a torn end, a flipped byte; they are asked again
        self.known: dict[str, dict[str, Any]] = {}
        self._file = -1
        self._waiting, self._flushed = 0, time.monotonic()
        self.reread()

    def reread(self) -> None:
        """Learn what other ranks have added."""
        self.damaged = 0
        for file in sorted(self.path.parent.glob(f"{self.path.name.split('.')[0]}.*.jsonl")):
            for key, value in self._read(file).items():
                self.known.setdefault(key, value)

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep one answer. It reaches the operating system at once, and the disk with the next flush."""
        if self._file < 0:
            self._file = self._open()
        self._write({"key": key, "value": value, "crc": _crc(key, value)})
        self.known[key] = value
        self._waiting += 1
        if self._waiting >= FLUSH_ITEMS or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Have everything that was added on the disk."""
        if self._waiting:
            os.fsync(self._file)
        self._waiting, self._flushed = 0, time.monotonic()

    def close(self) -> None:
        """Flush, and let go of the file. What is added later opens it again."""
        self.flush()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete the answers of all ranks."""
        self.close()
        for file in self.path.parent.glob(f"{self.path.name.split('.')[0]}.*.jsonl"):
            file.unlink(missing_ok=True)
        self.known.clear()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        whole = os.pread(handle, os.fstat(handle).st_size, 0)
        os.ftruncate(handle, whole.rfind(b"\n") + 1)  # a torn line would spoil the one after it
        self._file = handle
        if b"\n" not in whole:
            self._write({"identity": self.identity})
        return handle

    def _write(self, line: dict[str, Any]) -> None:
        data = (canonical_json(line) + "\n").encode("utf-8", "surrogatepass")
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            error.filename = str(self.path)
            raise

    def _read(self, file: Path) -> dict[str, dict[str, Any]]:
        """The answers of one file; nothing if it belongs to another identity whose name begins alike."""
        first, *lines = file.read_bytes().split(b"\n")
        if not lines or _parsed(first).get("identity") != self.identity:
            return {}
        answers = {}
        for line in lines[:-1]:  # behind the last newline there is nothing, or a torn line
            content = _parsed(line)
            key, value = content.get("key"), content.get("value")
            if isinstance(key, str) and isinstance(value, dict) and content.get("crc") == _crc(key, value):
                answers[key] = value
            else:
                self.damaged += 1
        self.damaged += bool(lines[-1])
        return answers


def _crc(key: str, value: dict[str, Any]) -> int:
    return zlib.crc32(canonical_json([key, value]).encode("utf-8", "surrogatepass"))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
