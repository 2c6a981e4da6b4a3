"""Files that can be trusted: atomic writes, manifests (identity), provenance (story), locks.

A stage writes each output under a temporary name, syncs it and renames it, and writes `manifest.json` last.
The manifest is deterministic (same inputs and config: same bytes); everything that differs between two
identical runs (host, time, cost) goes to `provenance.json`.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nanochat.errors import UserError

HASH_CHUNK_BYTES = 1 << 22


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> str:
    """Hex sha256 of a file's bytes, read in pieces of 4 MiB; `on_bytes` is given the size of each and may raise to give up."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """Identity of a piece of work: sha256 over its resolved config and the sha256 of its inputs."""
    return sha256_bytes(canonical_json({"config": config, "inputs": inputs}).encode())


# --- atomic writes ---------------------------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success sync it and rename it to `path`, on failure remove it.

    The temporary name is fixed per target, so a file left by a killed process is overwritten by the next one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and str(error.filename) in (str(None), str(temporary)):
            error.filename = str(path)  # a full disk is reported with the file that was to be written
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, atomically. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it") from None
    except (ValueError, RecursionError) as error:  # of the parser; also bytes that are no text, brackets or digits without end
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the stage that makes it again") from None


def lock_beside(path: Path, timeout: float = -1) -> FileLock:
    """Lock of a file that several processes write or delete: `.NAME.lock` beside it. `timeout` in seconds, -1: wait for ever."""
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)


# --- manifests -------------------------------------------------------------------------------------------------------


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "sha256"}} of files in `folder`."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in sorted(names)}


def write_manifest(
    path: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    outputs: list[str],
    counts: Mapping[str, Any],
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """Write the identity of a finished piece of work; call it after every output is in place.

    `inputs`: name -> manifest file that was read. `outputs`: names of files in the manifest's folder; those that are `optional` too may be
    lost without making the result useless to who does not ask for them.
    The result holds no path outside the folder, no time and no host.
    """
    manifest = {
        "stage": stage,
        "config": config,
        "inputs": {name: sha256_file(file) for name, file in inputs.items()},
        "outputs": {name: stated | ({"optional": True} if name in optional else {}) for name, stated in describe_files(path.parent, outputs).items()},
        "counts": counts,
    }
    write_json(path, manifest)
    return manifest


CHECKPOINTS = "checkpoints"  # folder beside the results of a training: models kept on the way
OTHER_EXPERIMENT = "with --configfile EXPERIMENT if that is not config.yaml"


def build_command(target: Path | str) -> str:
    """The command that makes a file of the workflow. It names the file, since a target such as `sft` means other models in another experiment."""
    return f"snakemake --cores all {target}"


def cure_of(manifest_path: Path) -> str:
    """What to do about a result that is not whole. Deleting is not enough: snakemake makes a lost file again only where something asks for it."""
    if manifest_path.absolute().parent.parent.name == CHECKPOINTS:
        return f"delete {manifest_path.parent} and take another: a model that was kept on the way is not made again without training from the beginning"
    return f"delete {manifest_path} and make it again: {build_command(manifest_path)} ({OTHER_EXPERIMENT})"


def read_manifest(path: Path, *, stage: str | None = None, files: Collection[str] | None = None) -> dict[str, Any]:
    """Read a manifest and check that its files are present with the sizes it states (content: `verified_file`).

    `files`: the names that the caller needs; by default all that are not optional.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a manifest in it, such as {path / 'manifest.json'}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "stage" not in manifest or "outputs" not in manifest:
        raise UserError(f"{path}: not a manifest; give the manifest.json that a stage wrote")
    if stage is not None and manifest["stage"] != stage:
        raise UserError(f"{path}: made by stage {manifest['stage']!r}, {stage!r} is needed; give that stage's manifest.json")
    for name, stated in manifest["outputs"].items():
        if stated.get("optional", False) if files is None else name not in files:
            continue
        file = path.parent / name
        if not file.is_file():
            raise UserError(f"{file}: missing, though its manifest lists it; {cure_of(path)}")
        if (size := file.stat().st_size) != stated["bytes"]:
            raise UserError(f"{file}: {size} bytes, its manifest says {stated['bytes']}; {cure_of(path)}")
    return manifest


def verified_file(manifest_path: Path, name: str, on_bytes: Callable[[int], object] = lambda count: None) -> Path:
    """Path of output `name` beside a manifest, after comparing its sha256. Raises UserError on a mismatch."""
    manifest_path = Path(manifest_path)
    stated = read_manifest(manifest_path, files=[name])["outputs"].get(name)
    if stated is None:
        raise UserError(f"{manifest_path}: lists no file {name!r}; run the stage that makes it again")
    file = manifest_path.parent / name
    if sha256_file(file, on_bytes) != stated["sha256"]:
        raise UserError(f"{file}: damaged (sha256 differs from its manifest); {cure_of(manifest_path)}")
    return file


# --- provenance ------------------------------------------------------------------------------------------------------

PACKAGES = ("nanochat", "torch", "numpy", "snakemake", "tiktoken", "rustbpe", "pyarrow", "datasets", "huggingface_hub", "pandas")


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter to a result, without importing them."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_state(folder: Path) -> dict[str, Any]:
    """{"commit", "message" (its first line), "branch", "dirty"} of the checkout that holds `folder`, or {"unavailable": why}."""

    def git(*arguments: str) -> str:
        # git refuses a checkout of another owner (a container, a shared folder); its code is running already
        done = subprocess.run(["git", "-c", "safe.directory=*", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[0] if done.stderr.strip() else "git failed")
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "message": git("log", "-1", "--format=%s"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"unavailable": str(error)}


def lock_state(lock: Path = Path(__file__).parents[2] / "envs" / "lock.txt") -> dict[str, Any]:
    """{"packages": how many the lock names, "sha256"} of the lock in the checkout of this code, or {"unavailable": why}."""
    if not lock.is_file():
        return {"unavailable": "the code was installed without envs/lock.txt"}
    lines = lock.read_text(encoding="utf-8").splitlines()
    return {"packages": sum("==" in line.split("#")[0] for line in lines), "sha256": sha256_file(lock)}


def total_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Provenance:
    """The story of one result: one entry per attempt at it, kept across crashes in `provenance.json`.

    Every attempt is written at its start (state "running") and completed by `finish`; an attempt that never
    finished is marked "interrupted" by the next one, so that time and money of failed attempts stay counted.
    A story ends with the attempt that finished: what starts after it makes another result and begins a new one.
    """

    def __init__(self, folder: Path, stage: str, **facts: Any) -> None:
        self.path = Path(folder) / "provenance.json"
        self.started = time.time()
        story: dict[str, Any] = {}
        if self.path.is_file():
            with contextlib.suppress(UserError):
                story = read_json(self.path)
        attempts = [a if a["state"] != "running" else {**a, "state": "interrupted"} for a in story.get("attempts", [])]
        if attempts and attempts[-1]["state"] == "finished":
            attempts = []
        self.attempt: dict[str, Any] = {
            "start": self.started,
            "heartbeat": self.started,
            "state": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": sys.argv,
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "memory_bytes": total_memory_bytes(),
            "git": git_state(Path(__file__).parent),
            "packages": package_versions(),
            "lock": lock_state(),
            **facts,
        }
        self.story = {"stage": stage, "attempts": [*attempts, self.attempt]}
        self._write()

    def beat(self, **facts: Any) -> None:
        """Record that the attempt is alive now, with further facts; call it when resume state is saved."""
        self.attempt.update(facts, heartbeat=time.time())
        self._write()

    def finish(self, state: str = "finished", **facts: Any) -> None:
        """Close the attempt: `state` is finished, stopped or failed; `facts` are added (steps, tokens, gpu_hours...)."""
        now = time.time()
        self.attempt.update(facts, state=state, heartbeat=now, end=now, wall_s=now - self.started)
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.story)


# --- locks -----------------------------------------------------------------------------------------------------------

LOCK, OWNER = ".lock", ".owner.json"
LOOK_S = 0.5  # `nanochat status` holds a lock for microseconds when it looks whether it is held: no reason to refuse a writer


def _named(owner_file: Path) -> str:
    """The owner of a folder in words."""
    try:
        owner = read_json(owner_file)
        job = f" (job {owner['job']})" if owner["job"] else ""
        return f"process {owner['pid']} of user {owner['uid']} on {owner['host']}{job}"
    except (UserError, KeyError, TypeError):  # it has just come or gone
        return "another process"


@contextlib.contextmanager
def exclusive(folder: Path, job_id: str | None = None) -> Iterator[None]:
    """Hold `folder` for one writer. A second one is refused with the owner's host, pid, user and job (UserError).

    The operating system frees the lock when its holder dies, so a kill leaves nothing to clean up.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner_file = folder / OWNER
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOOK_S, poll_interval=0.02)
    except Timeout:
        raise UserError(f"{folder}: in use by {_named(owner_file)}; wait for it to end or stop it, then run again") from None
    try:
        write_text(owner_file, canonical_json({"host": socket.gethostname(), "pid": os.getpid(), "uid": os.getuid(), "job": job_id}))
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()
