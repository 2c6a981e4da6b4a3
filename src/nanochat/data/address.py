"""One file at an address outside the Hub. Its hash is pinned in the registry, or known since the first fetch (see lockfile.py)."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nanochat.data.download import RemoteFile, fetch_files
from nanochat.data.network import answered, check, with_retries
from nanochat.errors import UserError


def download_url(url: str, target: Path, *, sha256: str = "", size: int | None = None, wrong: str = "") -> Path:
    """Fetch what stands at `url`, which has to have this sha256 and size where they are known; `wrong` says what to do where it has not."""
    fetch_files([partial(describe_url, url, sha256, size, wrong)], [target], label=target.name, then=lambda file, say: None)
    return target


def describe_url(url: str, sha256: str, size: int | None, wrong: str, sleep: Callable[[float], object] = time.sleep) -> RemoteFile:
    """What the server states of it: size and version. Raises UserError where that alone shows another content, before a byte is downloaded."""

    def ask() -> tuple[str, int | None]:
        with answered("HEAD", url, url, of_hub=False) as answer:
            check(answer.response, url, "")
            return answer.etag, answer.size

    version, stated = with_retries(url, ask, sleep)
    if size is not None and stated not in (None, size):
        raise UserError(f"{url}: has {stated:,} bytes now instead of {size:,}; {wrong}")
    if not sha256 and stated is None:
        raise UserError(f"{url}: the server states neither hash nor size, so half a file would look like a whole one; try another network")
    return RemoteFile(url, url, sha256, stated if size is None else size, version="" if sha256 else version, wrong=wrong)
