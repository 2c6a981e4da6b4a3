"""Requests to the Hub and to other addresses: whose token goes where, what an answer means, and how often to try again.

huggingface_hub supplies its HTTP client (proxies, certificates, HF_HUB_OFFLINE), the token and the addresses.
Retries are our own: it raises at once on a reset connection and on a 5xx answer to a download, waits without end on a server that
accepts a question about a repository and says nothing, and sleeps as long as any Retry-After tells it.
"""

import contextlib
import importlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from nanochat import __version__
from nanochat.errors import UserError
from nanochat.runtime import log

RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)  # each 25% more or less, so that many jobs do not come back at once
RETRY_AFTER_CAP_S = 300.0  # the window of the Hub's own rate limits
REDIRECTS = 10
SAID_CHARS = 200  # of what a server or a library says
KEPT = "check the network and run again, what is complete is kept"
HUB = "https://huggingface.co"
TRY_AGAIN = (408, 425, 429)  # and 5xx

Result = TypeVar("Result")


class TransientError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Patience:
    """Counts the failures in a row of one piece of work, and waits between them."""

    def __init__(self, what: str, *, sleep: Callable[[float], object] = time.sleep, say: Callable[[str], object] = log) -> None:
        self.what, self.sleep, self.say = what, sleep, say
        self.failures = 0

    def wait(self, error: TransientError, cure: str = KEPT) -> None:
        """Wait before the next attempt. Raises UserError if there have been enough."""
        self.failures += 1
        if self.failures > len(RETRY_WAITS_S):
            raise UserError(f"{self.what}: failed after {self.failures} attempts ({error}); {cure}") from None
        pause_s = max(RETRY_WAITS_S[self.failures - 1] * random.uniform(0.75, 1.25), error.retry_after_s)
        self.say(f"{self.what}: {error}; next attempt in {pause_s:.0f} s")
        self.sleep(pause_s)


def with_retries(what: str, action: Callable[[], Result], sleep: Callable[[float], object] = time.sleep) -> Result:
    """Result of `action`, tried again after each TransientError; UserError when that did not help."""
    patience = Patience(what, sleep=sleep)
    while True:
        try:
            return action()
        except TransientError as error:
            patience.wait(error)


# --- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The end of a chain of redirects, its body not yet read, with what the first answers said of the file."""

    response: Any
    etag: str  # "" where none was stated
    size: int | None


@contextlib.contextmanager
def answered(method: str, url: str, what: str, headers: Mapping[str, str] | None = None, *, of_hub: bool = True) -> Iterator[Answer]:
    """One request, redirects followed. A HEAD ends where the Hub states a file's hash; the storage behind it need not be asked.

    Failures of the network while the caller reads the body become TransientError too. `of_hub`: only the Hub is sent the token, and
    only of the Hub it is the first server that states hash and size, not the last one.
    """
    with _translated(what):
        sent = {**(hub_headers() if of_hub else {"User-Agent": f"nanochat/{__version__}"}), "Accept-Encoding": "identity", **(headers or {})}
        linked: dict[str, str] = {}
        at_hub = True
        for _ in range(REDIRECTS + 1):
            with client().stream(method, url, headers=sent, timeout=stall_s(), follow_redirects=False) as response:
                if at_hub and of_hub:
                    linked = {name: value for name, value in response.headers.items() if name.lower().startswith("x-linked-")} | linked
                if not response.has_redirect_location or (method == "HEAD" and "x-linked-etag" in linked):
                    yield Answer(response, *_stated(response.headers if at_hub or not of_hub else {}, linked))
                    return
                url, same_origin = _redirected(url, response.headers["Location"], what)
            if not same_origin:  # the token is for the Hub, not for the storage it sends us to
                at_hub, sent = False, {name: value for name, value in sent.items() if name.lower() != "authorization"}
    raise UserError(f"{what}: redirected more than {REDIRECTS} times, lastly to {_host(url)}; check {'HF_ENDPOINT and ' if of_hub else ''}the proxy")


def _redirected(url: str, location: str, what: str) -> tuple[str, bool]:
    """(where a redirect leads, whether that is the same host and port)."""
    try:
        target = urljoin(url, location)
        return target, _origin(target) == _origin(url)
    except ValueError:
        raise UserError(f"{what}: {_host(url)} redirects to what is no address; check HF_ENDPOINT and the proxy") from None


def ask_json(url: str, what: str, repo: str) -> tuple[Any, str | None]:
    """(the JSON at `url`, the address of its next page if there is one)."""
    with answered("GET", url, what) as answer:
        check(answer.response, what, repo)
        try:
            content = json.loads(answer.response.read())
        except ValueError:
            raise TransientError(f"{_host(url)} answered something else than JSON") from None
        return content, answer.response.links.get("next", {}).get("url")


def _stated(headers: Mapping[str, str], linked: Mapping[str, str]) -> tuple[str, int | None]:
    """Hash and size of a file, as the Hub states them: of a large file in X-Linked-*, of a small one in the answer's own headers."""
    etag = linked.get("x-linked-etag") or headers.get("ETag") or ""
    own_size = headers.get("Content-Length") if "Content-Encoding" not in headers else None  # else of what is compressed
    size = linked.get("x-linked-size", own_size)
    return etag.strip().removeprefix("W/").strip('"'), int(size) if size and size.isdecimal() else None


def client() -> Any:
    """The HTTP client of huggingface_hub, which knows proxies and certificates."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        return get_session()
    except (ValueError, ImportError) as error:  # an address without scheme; a SOCKS proxy without its library
        raise UserError(f"proxy not usable ({first_line(error)}); correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY") from None


def hub_headers() -> dict[str, str]:
    """Who asks, with the token if there is one: of HF_TOKEN or of `hf auth login`.

    Not huggingface_hub's build_hf_headers: to complete its User-Agent that asks the Hub a question of its own, outside of our retries.
    """
    from huggingface_hub import __version__ as hub_version
    from huggingface_hub import constants, get_token

    headers = {"User-Agent": f"nanochat/{__version__}; hf_hub/{hub_version}"}
    if (token := get_token()) and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        if not token.isascii():
            raise UserError("HF_TOKEN: holds characters that no token has; copy it again from https://huggingface.co/settings/tokens")
        headers["Authorization"] = f"Bearer {token}"
    return headers


def stall_s() -> float:
    """After so long without a byte a connection counts as dead: HF_HUB_DOWNLOAD_TIMEOUT, 10 seconds unless it is set."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of the HTTP library as ours."""
    from huggingface_hub import errors

    # httpx, or its successor under another name: the one that this huggingface_hub uses
    http = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{what}: not here, and HF_HUB_OFFLINE forbids to fetch it; unset it where there is internet, or copy resources/ from a machine that has it"
        ) from None
    except (http.InvalidURL, http.UnsupportedProtocol) as error:
        raise UserError(f"{what}: no usable address ({first_line(error)}); check HF_ENDPOINT and the proxy") from None
    except http.TimeoutException:
        raise TransientError(f"no byte for {stall_s():g} s") from None
    except http.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UserError(
                f"{what}: the certificate is not trusted ({first_line(error)}); if a proxy of your network is behind it, set SSL_CERT_FILE to its certificates"
            ) from None
        raise TransientError(first_line(error)) from None


# --- answers ---------------------------------------------------------------------------------------------------------


def check(response: Any, what: str, repo: str) -> None:
    """Raise what a refusal means: TransientError where another attempt may succeed, else UserError."""
    status = response.status_code
    if status < 400:
        return
    reason = f"HTTP {status} from {_host(str(response.url))}"
    if status in TRY_AGAIN or status >= 500:
        raise TransientError(reason, retry_after_s(response.headers))
    raise UserError(f"{what}: {_refusal(response, repo, reason)}")


def _refusal(response: Any, repo: str, reason: str) -> str:
    """Why the Hub, or an address (no repo), does not give this, and the cure."""
    from huggingface_hub import constants

    if not repo:
        return f"not given ({reason}); run again later, and if it stays so the file has moved: look for a newer version of nanochat"
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = _first_sentence(response.headers.get("X-Error-Message", "")) or reason
    has_token = "authorization" in response.request.headers
    if code == "GatedRepo":
        page = f"{constants.ENDPOINT}/datasets/{repo}"
        if has_token:
            return f"access is restricted and this token's account has none; accept the terms on {page} and run again"
        return f"access is restricted; accept the terms on {page}, then set HF_TOKEN or log in with `hf auth login`"
    if code == "RevisionNotFound":
        return "not on the Hub (no such revision); check repo and revision, or delete its entry in sources.lock.json to lock a newer one"
    if code == "EntryNotFound":
        return "not on the Hub (no such file or folder at this revision); check repo, revision and files"
    if code == "RepoNotFound":
        mirror = "" if constants.ENDPOINT == HUB else "; the mirror of HF_ENDPOINT may not know it, or not this branch"
        return f"not on the Hub (no such repository, or a private one); check repo, and HF_TOKEN if it is private{mirror}"
    if status == 404:
        return f"not on the Hub ({said}); check repo, revision and files"
    if status == 401 and has_token:
        return f"the token is refused ({said}); renew HF_TOKEN or the login at https://huggingface.co/settings/tokens"
    if status in (401, 403) and _origin(str(response.url)) != _origin(constants.ENDPOINT):
        return f"the storage behind the Hub refuses it ({reason}); run again, and if that does not help check the proxy and the clock of this machine"
    if status in (401, 403):
        return f"access is refused ({said}); set HF_TOKEN to a token that may read it"
    return f"refused ({said}); check repo, revision and files"


def retry_after_s(headers: Any) -> float:
    """How long the server asks to wait: Retry-After in seconds or as a date, else the Hub's RateLimit. 0 where it does not say, never above the cap."""
    stated = headers.get("Retry-After", "").strip()
    seconds = 0.0
    if re.fullmatch(r"[0-9]{1,9}", stated):
        seconds = float(stated)
    elif stated:
        with contextlib.suppress(ValueError, OverflowError):
            seconds = parsedate_to_datetime(stated).timestamp() - _server_time(headers)
    elif limit := re.search(r"\br=0;\s*t=([0-9]{1,9})", headers.get("RateLimit", "")):  # "api";r=0;t=55
        seconds = float(limit.group(1))
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_S)


def _server_time(headers: Any) -> float:
    """The server's clock, so that a wrong one of ours does not matter."""
    with contextlib.suppress(ValueError, OverflowError):
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    return time.time()


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host(url: str) -> str:
    """The host alone: addresses of the storage carry signatures."""
    return urlsplit(url).hostname or "nowhere"


def first_line(error: BaseException) -> str:
    """What an exception says, its first sentence."""
    return _first_sentence(str(error)) or type(error).__name__


def _first_sentence(text: str) -> str:
    return re.split(r"\. |\.$", " ".join(text.split()))[0][:SAID_CHARS]
