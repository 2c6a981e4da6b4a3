"""Files of datasets on the Hugging Face Hub: revision locked at the first fetch, every file checked against the hash the Hub states.

How the bytes come is the business of download.py, how often to ask that of network.py.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from filelock import FileLock

from nanochat.artifacts import read_json, write_json
from nanochat.data.download import ChangedError, HubFile, Partial, fetch_file, file_etag, is_hash
from nanochat.data.network import answered, ask_json, check, first_line, with_retries
from nanochat.data.transfer import Transfer, in_threads
from nanochat.errors import UserError
from nanochat.runtime import log

CHANGES = 3  # so often a file may change while it is downloaded
SPARE_BYTES = 50_000_000  # must stay free: for manifests and logs

Result = TypeVar("Result")
Then = Callable[[Path, Callable[[str], None]], Result]


# --- names and revisions ---------------------------------------------------------------------------------------------


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
        what = f"{repo} at {revision}"
        content, _ = with_retries(what, lambda: ask_json(_api(repo, "revision", revision), what, repo))
        commit = content.get("sha") if isinstance(content, dict) else None
        if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
            raise UserError(f"{what}: the answer names no commit; check HF_ENDPOINT and the proxy")
        write_json(lock_file, {"repo": repo, "revision": revision, "commit": commit})
    log(f"{repo}: {revision} is {commit}, locked in {lock_file}")
    return commit


def parquet_files(repo: str, commit: str, folder: str) -> list[str]:
    """Parquet files in a folder of the repository, sorted. Raises UserError if there is none."""
    what, first = f"{repo}/{folder}", _api(repo, "tree", commit, folder)
    url, seen, names = first, set[str](), list[str]()
    while url not in seen:
        seen.add(url)
        page, following = with_retries(what, partial(ask_json, url, what, repo))
        names += [entry["path"] for entry in page if isinstance(entry, dict) and str(entry.get("path")).endswith(".parquet")]
        if following:  # its query alone: a mirror may name the Hub that it mirrors, and the token is not for others
            url = f"{first}?{urlsplit(following).query}"
    if not names:
        raise UserError(f"{repo}: no parquet file in {folder} at {commit}; the dataset has moved, pin another revision")
    return sorted(names)


def _api(repo: str, kind: str, revision: str, folder: str = "") -> str:
    """Address of a question about a dataset."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: no name of a repository ({first_line(error)}); give it as owner/name") from None
    return f"{constants.ENDPOINT}/api/datasets/{repo}/{kind}/{quote(revision, safe='')}" + (f"/{quote(folder)}" if folder else "")


# --- files -----------------------------------------------------------------------------------------------------------


def download(repo: str, commit: str, name: str, target: Path) -> None:
    """Fetch one file to `target` and compare its hash. A file that is already there with the right hash is kept."""
    download_all(repo, commit, {name: target}, label=f"{repo}/{name}", then=lambda file, say: None)


def download_all(repo: str, commit: str, targets: Mapping[str, Path], *, label: str, then: Then[Result]) -> list[Result]:
    """Fetch files, a few at a time, and return what `then` makes of each: it is handed the file, and a log that does not break the bar.

    The space is looked at first. All go into one folder, which is the caller's alone: two processes that write there must exclude each
    other. `label` names the progress.
    """
    transfer = Transfer(label)
    looks = [partial(_look, repo, commit, name, target, transfer) for name, target in targets.items()]
    files = list(zip(in_threads(looks, transfer.stopped), targets.values(), strict=True))
    for file, target in files:
        if file is not None:
            there = Partial(target, file).size()
            transfer.expect(max(file.size or 0, there), there)
    if transfer.total > transfer.done:
        _require_room(label, transfer.total - transfer.done, files[0][1].parent)

    def one(file: HubFile | None, target: Path) -> Result:
        if file is not None:
            _fetch(file, target, transfer)
        return then(target, transfer.say)

    with transfer.shown():
        return in_threads([partial(one, file, target) for file, target in files], transfer.stopped)


def describe(repo: str, commit: str, name: str, sleep: Callable[[float], object] = time.sleep) -> HubFile:
    """What the Hub states of a file: its hash and its size."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    what = f"{repo}/{name}"
    try:
        url = hf_hub_url(repo, name, repo_type="dataset", revision=commit)
    except HFValidationError as error:
        raise UserError(f"{what}: no name of a file on the Hub ({first_line(error)}); give repo as owner/name") from None

    def ask() -> tuple[str, int | None]:
        with answered("HEAD", url, what) as answer:
            check(answer.response, what, repo)
            return answer.etag, answer.size

    etag, size = with_retries(what, ask, sleep)
    if not is_hash(etag):
        raise UserError(f"{what}: the server states no hash for it (ETag {etag[:80]!r}); use the Hub, or a mirror that passes its headers on")
    return HubFile(repo, commit, name, url, etag, size)


def _look(repo: str, commit: str, name: str, target: Path, transfer: Transfer) -> HubFile | None:
    """The file to fetch, or None if it is here."""
    file = describe(repo, commit, name, transfer.sleep)
    return None if target.is_file() and file_etag(target, file.etag) == file.etag else file


def _fetch(file: HubFile, target: Path, transfer: Transfer) -> None:
    for _ in range(CHANGES):
        try:
            fetch_file(file, target, transfer)
            return
        except ChangedError:
            transfer.say(f"{file.what}: its content has changed on the Hub; starting again")
            transfer.add(-Partial(target, file).size())
            file = describe(file.repo, file.commit, file.name, transfer.sleep)
    raise UserError(f"{file.what}: changes on the Hub while it is downloaded; pin a commit that stays, and run again")


def _require_room(label: str, missing: int, folder: Path) -> None:
    """Refuse a download that the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if missing + SPARE_BYTES > free:
        raise UserError(f"{label}: {missing / 1e6:,.1f} MB to download, {free / 1e6:,.1f} MB are free in {folder}; free some space and run again")
