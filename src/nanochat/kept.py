"""A finished result outlives whoever deletes its files: hard links beside it, taken back when the same work is asked for again.

Snakemake deletes the declared outputs of a job before it starts, and of one whose driver was killed it cannot know that it ended well:
the weights of hours would go. `kept/` is a folder that it does not know; its files share their bytes with the outputs, so they take no room.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from nanochat.artifacts import read_json, sync_folder, verified_file
from nanochat.errors import UserError

FOLDER = "kept"


def keep(manifest: Path) -> str | None:
    """Link every output that `manifest` lists, and the manifest last, into kept/. Returns why not, where the file system has no hard links."""
    folder = manifest.parent / FOLDER
    discard(manifest)
    folder.mkdir()
    try:
        for name in [*read_json(manifest)["outputs"], manifest.name]:
            os.link(manifest.parent / name, folder / name)
    except OSError as error:
        discard(manifest)
        return f"{folder}: no second link to the finished files ({error.strerror}); they are safe, but a job whose driver is killed would be run again"
    sync_folder(folder)
    return None


def discard(manifest: Path) -> None:
    """Forget what is kept beside `manifest`, so that it takes no room once the outputs are others."""
    shutil.rmtree(manifest.parent / FOLDER, ignore_errors=True)


def take_back(manifest: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str | None:
    """Put the kept result of this very work back beside `manifest`, the manifest last, after comparing every sha256.

    `inputs`: name -> sha256 of the manifest that was read. Returns None if done, "" if nothing is kept for this work, else what is wrong with it.
    Every rank may call it at once: one acts, the others find it done.
    """
    kept = manifest.parent / FOLDER / manifest.name
    if not kept.is_file():
        return ""
    with FileLock(manifest.parent / f".{FOLDER}.lock"):
        try:
            identity = read_json(kept)
            if any(identity.get(key) != value for key, value in (("stage", stage), ("config", dict(config)), ("inputs", dict(inputs)))):
                return ""
            for name in identity["outputs"]:
                verified_file(kept, name)
        except UserError as problem:
            return str(problem)
        for name in [*identity["outputs"], manifest.name]:
            _put(kept.parent / name, manifest.parent / name)
        sync_folder(manifest.parent)
    return None


def _put(source: Path, target: Path) -> None:
    """Link `source` as `target`, in one step and with the time of now: a file older than what it was made from would look stale."""
    temporary = target.with_name(f".{target.name}.partial")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    with contextlib.suppress(PermissionError):
        os.utime(temporary)
    temporary.replace(target)
