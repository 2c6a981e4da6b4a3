"""An archive into resources/: every hash compared while it is written, each part whole or not there, nothing replaced without a word.

A part is written under its lock, its manifest last. What is there already and the same is kept, so that an interrupted call goes on.
"""

import contextlib
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.artifacts import atomic_path, exclusive, lock_beside, read_json, sha256_bytes, write_json
from nanochat.data.lockfile import Lock
from nanochat.data.parts import COMPANIONS, MANIFEST, strays
from nanochat.data.transfer import Transfer
from nanochat.errors import UserError
from nanochat.inventory.archive import SOURCE_LOCK, Damaged, Index, Member, part_of, pieces_of, read_index, reader
from nanochat.inventory.pack import SPARE_BYTES
from nanochat.inventory.parts import Part, Stated, files_of_manifest, in_use
from nanochat.inventory.verify import what_is_wrong
from nanochat.inventory.workflow import INCOMPLETE, METADATA, forget, require_checkout, require_nobody_works
from nanochat.runtime import slurm_job_id


@dataclass(frozen=True)
class Unpacked:
    """What became of the parts of an archive."""

    written: list[Part]
    kept: list[Part]
    remarks: list[str]


def unpack(archive: Path, *, replace: bool = False, root: Path = Path()) -> Unpacked:
    """Write what is not here. Raises UserError, before anything is written, where other content stands in its place; `replace` takes its place."""
    require_checkout(root)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; give an archive that nanochat data pack has made")
    done: list[Part] = []
    try:
        with reader(archive) as tar:
            index = read_index(tar, archive)
            todo = _Todo(index, root)
            if index.members and index.members[0].name == SOURCE_LOCK:
                todo.look_at_lock(_content(tar, archive, index.members[0]))
            todo.look()
            if todo.conflicts:
                if not replace:
                    raise UserError("\n".join([*todo.conflicts, f"nothing was unpacked; --replace takes what {archive} holds instead"]))
                require_nobody_works("--replace", root)
            todo.require_room(archive)
            _write(tar, archive, todo, done)
    except Damaged as error:
        whole = f"; {len(done)} parts came whole and are kept" if done else ""
        raise UserError(f"{archive}: damaged or cut off ({str(error)[:120]}); copy it again, then run again{whole}") from None
    return Unpacked(done, sorted(todo.kept), [*todo.conflicts, *todo.remarks, *_forgotten(todo, root)])


def _forgotten(todo: "_Todo", root: Path) -> list[str]:
    """Let snakemake forget interrupted fetches of these parts, and what it knows of those that were replaced."""
    parts = list(todo.index.parts) if any(_files(root / INCOMPLETE)) else sorted(part for part in todo.replaced if (root / METADATA).is_dir())
    remark = forget([part.manifest for part in parts], root) if parts else None
    return [remark] if remark else []


class _Todo:
    """Which members are written, after a look at what is here."""

    def __init__(self, index: Index, root: Path) -> None:
        self.index, self.root = index, root
        self.kept, self.replaced = set[Part](), set[Part]()
        self.here = set[str]()  # names of members of no part that are here already
        self.conflicts, self.remarks = list[str](), list[str]()
        self.lock: Any = None  # what sources.lock.json is to become; None: it stays as it is

    def look_at_lock(self, content: bytes) -> None:
        """Complete the lock of sources that is here with the entries that come. Both may have what the other has not."""
        self.here.add(SOURCE_LOCK)
        try:
            comes = json.loads(content)
        except ValueError:
            raise Damaged(f"{SOURCE_LOCK} is not JSON") from None
        Lock(self.root / SOURCE_LOCK).check()
        is_here = read_json(self.root / SOURCE_LOCK) if (self.root / SOURCE_LOCK).exists() else {}
        merged, others = _merged(is_here, comes, ())
        self.conflicts += [f"{SOURCE_LOCK}: {'.'.join(place)} is here with another value" for place in others]
        self.lock = merged if merged != is_here else None

    def write_lock(self) -> None:
        """Once it is known that there is no conflict, or that the archive decides."""
        if self.lock is not None:
            with lock_beside(self.root / SOURCE_LOCK):
                write_json(self.root / SOURCE_LOCK, self.lock)

    def look(self) -> None:
        """Compare what is here with what comes; reads every file of the parts that are here."""
        parts = self.index.parts
        transfer = Transfer("compare with what is here")
        transfer.expect(sum(member.bytes for part in parts if self._same_manifest(part) for member in parts[part]), 0)
        with transfer.shown():
            for part in parts:
                self._look_at(part, transfer.add)
            for member in self.index.others:
                file = self.root / member.name
                if member.name not in self.here and file.exists():
                    if what_is_wrong(file, Stated(member.bytes, member.sha256), transfer.add):
                        self.conflicts.append(f"{member.name}: is here with other content")
                    else:
                        self.here.add(member.name)

    def _same_manifest(self, part: Part) -> bool:
        file = self.root / part.manifest
        return file.is_file() and sha256_bytes(file.read_bytes()) == self.index.parts[part][-1].sha256

    def _look_at(self, part: Part, on_bytes: Callable[[int], object]) -> None:
        if who := in_use(self.root / part.name):
            raise UserError(f"{part.name}: in use by {who}; wait for it to end or stop it, then run again")
        if not (self.root / part.manifest).exists():
            if any(file.name not in (".lock", ".owner.json") for file in _files(self.root / part.name)):
                self.remarks.append(f"{part.name}: was begun here and not finished; what was of use is kept")
        elif not self._same_manifest(part):
            self.replaced.add(part)
            self.conflicts.append(f"{part.name}: is here with other content (its manifest differs)")
        else:
            data = [member for member in self.index.parts[part] if Path(member.name).name not in COMPANIONS]
            damaged = ((member, what_is_wrong(self.root / member.name, Stated(member.bytes, member.sha256), on_bytes)) for member in data)
            if found := next(((member, what) for member, what in damaged if what), None):
                self.conflicts.append(f"{found[0].name}: is here and damaged ({found[1]})")
            else:
                self.kept.add(part)

    def wants(self, member: Member) -> bool:
        """Whether a member is to be written."""
        part = part_of(member.name)
        return member.name not in self.here if part is None else part not in self.kept

    def require_room(self, archive: Path) -> None:
        """Refuse what the disk cannot hold. What is here of an unpacking that was interrupted needs no room again."""
        missing = sum(member.bytes for member in self.index.members if self.wants(member) and not _has_size(self.root / member.name, member))
        free = shutil.disk_usage(self.root).free
        if missing and missing + SPARE_BYTES > free:
            raise UserError(f"{archive}: {missing / 1e6:,.1f} MB to be written, {free / 1e6:,.1f} MB are free here; free some space and run again")


def _merged(here: Any, comes: Any, place: tuple[str, ...]) -> tuple[Any, list[tuple[str, ...]]]:
    """Both JSON values in one, and the places where they contradict each other: there what comes is taken."""
    if not isinstance(here, dict) or not isinstance(comes, dict):
        return comes, [] if here == comes else [place]
    both = {key: _merged(here[key], comes[key], (*place, key)) for key in here.keys() & comes.keys()}
    return {**here, **comes, **{key: value for key, (value, _) in both.items()}}, [other for _, (_, others) in sorted(both.items()) for other in others]


def _files(folder: Path) -> Iterator[Path]:
    yield from folder.iterdir() if folder.is_dir() else ()


def _has_size(file: Path, member: Member) -> bool:
    return file.is_file() and file.stat().st_size == member.bytes


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(tar: tarfile.TarFile, archive: Path, todo: _Todo, done: list[Part]) -> None:
    """Every member that is not here, in the order of the archive, which must be the one of its index. The lock has been read."""
    todo.write_lock()
    transfer = Transfer(f"unpack {archive.name}")
    transfer.expect(sum(member.bytes for member in todo.index.members), 0)
    parts = todo.index.parts
    with transfer.shown():
        members = iter([member for member in todo.index.members if member.name != SOURCE_LOCK])
        for member in members:
            part = part_of(member.name)
            if part is None:
                _one(tar, archive, member, todo, transfer)
                continue
            of_part = [member, *(next(members) for _ in parts[part][1:])]  # they stand together
            with _held(part, todo):
                for each in of_part:
                    _one(tar, archive, each, todo, transfer)
            if part not in todo.kept:
                done.append(part)


@contextlib.contextmanager
def _held(part: Part, todo: _Todo) -> Iterator[None]:
    """A part for us alone, if it is to be written: without its manifest while this lasts, without strays at the end."""
    if part in todo.kept:
        yield
        return
    folder = todo.root / part.name
    with exclusive(folder, slurm_job_id()):
        (folder / MANIFEST).unlink(missing_ok=True)
        yield
        for stray in strays(folder, [Path(member.name).name for member in todo.index.parts[part]]):
            shutil.rmtree(stray) if stray.is_dir() and not stray.is_symlink() else stray.unlink()


def _one(tar: tarfile.TarFile, archive: Path, member: Member, todo: _Todo, transfer: Transfer) -> None:
    """The next member of the archive, which must be this one, to its place."""
    pieces = _pieces(tar, archive, member)
    target = todo.root / member.name
    if not todo.wants(member) or (_has_size(target, member) and what_is_wrong(target, Stated(member.bytes, member.sha256), lambda size: None) is None):
        for piece in pieces:
            transfer.add(len(piece))
    elif target.name == MANIFEST:
        _write_manifest(archive, member, b"".join(pieces), todo)
        transfer.add(member.bytes)
    else:
        _write_file(member, target, pieces, transfer.add)


def _pieces(tar: tarfile.TarFile, archive: Path, member: Member) -> Iterator[bytes]:
    """The content of the next member of the archive, which must be this one."""
    found = tar.next()
    if found is None:
        raise Damaged(f"it ends before {member.name}")
    if found.name != member.name or found.size != member.bytes or not found.isreg():
        raise UserError(f"{archive}: holds {found.name!r} where its index says {member.name!r}; copy it again, and do not trust it if that does not help")
    return pieces_of(tar, found, member.bytes)


def _content(tar: tarfile.TarFile, archive: Path, member: Member) -> bytes:
    """The next member, whole; a small one."""
    content = b"".join(_pieces(tar, archive, member))
    _require_hash(member, sha256_bytes(content))
    return content


def _write_file(member: Member, target: Path, pieces: Iterable[bytes], on_bytes: Callable[[int], object]) -> None:
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                on_bytes(len(piece))
        _require_hash(member, digest.hexdigest())


def _write_manifest(archive: Path, member: Member, content: bytes, todo: _Todo) -> None:
    """A manifest, once it is known that it is one of this part and lists the files that came with it."""
    _require_hash(member, sha256_bytes(content))
    part = part_of(member.name)
    assert part is not None
    try:
        stated = files_of_manifest(part, json.loads(content))
    except ValueError:
        raise UserError(f"{archive}: {member.name} is no manifest; pack the data again") from None
    came = {Path(each.name).name: Stated(each.bytes, each.sha256) for each in todo.index.parts[part][:-1]}
    if any(came.get(name) != file for name, file in stated.items()):
        raise UserError(f"{archive}: {part.name} is not what its manifest lists; pack the data again")
    _write_file(member, todo.root / member.name, [content], lambda size: None)


def _require_hash(member: Member, found: str) -> None:
    if found != member.sha256:
        raise Damaged(f"{member.name} has another sha256 than its index says")
