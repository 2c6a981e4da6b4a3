"""Files of datasets on the Hugging Face Hub: what a revision means, which files there are, and which hash the Hub states of each.

How the bytes come is the business of download.py, how often to ask that of network.py, what was asked once that of lockfile.py.
"""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlsplit

from nanochat.data.download import RemoteFile, Result, Then, fetch_files, is_hash
from nanochat.data.network import answered, ask_json, check, first_line, with_retries
from nanochat.errors import UserError

# --- names and revisions ---------------------------------------------------------------------------------------------


def commit_of(repo: str, revision: str) -> str:
    """The commit that `revision` means now."""
    what = f"{repo} at {revision}"
    content, _ = with_retries(what, lambda: ask_json(_api(repo, "revision", revision), what, repo))
    commit = content.get("sha") if isinstance(content, dict) else None
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        raise UserError(f"{what}: the answer names no commit; check HF_ENDPOINT and the proxy")
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
    """Fetch files into one folder and return what `then` makes of each; see fetch_files."""
    return fetch_files([partial(describe, repo, commit, name) for name in targets], list(targets.values()), label=label, then=then)


def describe(repo: str, commit: str, name: str, sleep: Callable[[float], object] = time.sleep) -> RemoteFile:
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
    return RemoteFile(what, url, etag, size, repo=repo, commit=commit)
