"""Files of datasets on the Hugging Face Hub: revision locked at the first fetch, every file checked against the hash the Hub states.

huggingface_hub retries some failures itself but not a reset connection nor a 5xx answer, and it accepts a damaged body of
the right length; both are dealt with here.
"""

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from nanochat.artifacts import HASH_CHUNK_BYTES, read_json, sha256_file, sync_folder, write_json
from nanochat.errors import UserError
from nanochat.runtime import log

RETRY_WAITS_S = (2.0, 4.0, 8.0, 16.0)
Result = TypeVar("Result")


class DamagedError(Exception):
    """A file arrived with another hash than the Hub states for it."""


def locked_commit(repo: str, revision: str, lock_file: Path) -> str:
    """The commit that `revision` meant when this source was first fetched; delete `lock_file` to move on to a newer one."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_file.with_name(f".{lock_file.name}.lock")):
        if lock_file.is_file():
            locked = read_json(lock_file)
            if (locked["repo"], locked["revision"]) == (repo, revision):
                return str(locked["commit"])
        from huggingface_hub import HfApi

        commit = with_retries(f"{repo} at {revision}", lambda: HfApi().dataset_info(repo, revision=revision).sha)
        write_json(lock_file, {"repo": repo, "revision": revision, "commit": commit})
    log(f"{repo}: {revision} is {commit}, locked in {lock_file}")
    return str(commit)


def parquet_files(repo: str, commit: str, folder: str) -> list[str]:
    """Parquet files in a folder of the repository, sorted. Raises UserError if there is none."""
    from huggingface_hub import HfApi

    tree = with_retries(f"{repo}/{folder}", lambda: list(HfApi().list_repo_tree(repo, folder, revision=commit, repo_type="dataset")))
    files = sorted(entry.path for entry in tree if entry.path.endswith(".parquet"))
    if not files:
        raise UserError(f"{repo}: no parquet file in {folder} at {commit}; the dataset has moved, pin another revision")
    return files


def download(repo: str, commit: str, name: str, target: Path) -> None:
    """Fetch one file to `target` and compare its hash. A file that is already there with the right hash is kept."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, repo_type="dataset", revision=commit)
    etag = with_retries(f"{repo}/{name}", lambda: get_hf_file_metadata(url).etag) or ""
    if target.is_file() and file_etag(target, etag) == etag:
        return
    staging = target.with_name(f".{target.name}.hub")
    try:
        with_retries(f"{repo}/{name}", lambda: _attempt(repo, commit, name, target, etag, staging))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _attempt(repo: str, commit: str, name: str, target: Path, etag: str, staging: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    shutil.rmtree(staging, ignore_errors=True)  # what a damaged or killed attempt left must not be taken for a cache
    file = Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit, local_dir=staging, force_download=True))
    if (found := file_etag(file, etag)) != etag:
        raise DamagedError(f"hash {found} instead of {etag}")
    file.replace(target)
    sync_folder(target.parent)


def file_etag(path: Path, like: str) -> str:
    """Hash of a file in the form of `like`: sha256 (large files) or git's blob sha1 (small ones)."""
    if len(like) == 64:
        return sha256_file(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def with_retries(what: str, action: Callable[[], Result]) -> Result:
    """Result of `action`, tried again after network failures and damaged files; UserError where that is no use or did not help."""
    from huggingface_hub import errors

    for wait in (*RETRY_WAITS_S, None):
        try:
            return action()
        except errors.GatedRepoError:
            raise UserError(f"{what}: access is restricted; accept its terms on huggingface.co and log in with `hf auth login`") from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
            raise UserError(f"{what}: not on the Hub ({_first_line(error)}); check repo, revision and files") from None
        except errors.HFValidationError as error:
            raise UserError(f"{what}: {_first_line(error)}") from None
        except (_transport_error(), OSError, DamagedError) as error:
            with contextlib.suppress(AttributeError):
                if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                    raise  # a file of ours, not the network: the disk is full, or a permission is missing
            if wait is None:
                raise UserError(
                    f"{what}: failed after {len(RETRY_WAITS_S) + 1} attempts ({_first_line(error)}); check the network and run again, what is complete is kept"
                ) from None
            log(f"{what}: {_first_line(error)}; next attempt in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _transport_error() -> Any:
    """Base class of the errors of whichever HTTP client this huggingface_hub uses."""
    from huggingface_hub import errors

    return errors.HfHubHTTPError.__bases__[0]


def _first_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
