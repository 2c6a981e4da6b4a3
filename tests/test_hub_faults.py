"""Whatever a hub, a proxy or a line does to a download: the right bytes, or one sentence. Generated: faults x positions x kinds of file."""

import hashlib
import random
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hub_client import WAITS, Client
from hub_server import TOKEN, Fault, Hub, hub_server

from nanochat.data import network

BIG, SMALL, EMPTY = "shard.parquet", "notes/lines.jsonl", "empty.txt"
NAMES = {BIG: "large", SMALL: "small"}
CONTENT = {BIG: random.Random(1).randbytes(300_000), SMALL: b"".join(b'{"line": %d}\n' % n for n in range(500)), EMPTY: b""}
ALWAYS = 40  # more than any client asks


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server("owner/corpus", {}) as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture(autouse=True)
def fresh(hub: Hub) -> None:
    hub.files, hub.faults, hub.gated, hub.branches = dict(CONTENT), {}, False, {"main": "c" * 40}
    hub.requests.clear()
    hub.released.clear()


def sentence(text: str, what: str) -> str:
    """The text, if it is one sentence that names what failed and a cure."""
    assert text.startswith(what), text
    assert "\n" not in text and "Traceback" not in text, text
    assert "; " in text and ". " not in text and ".)" not in text and not text.endswith("."), text
    return text


def left(folder: Path) -> list[str]:
    """Names of the files in a folder, those of a download that will go on left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# --- faults that pass ------------------------------------------------------------------------------------------------

POSITIONS = (0.0, 0.0001, 0.5, 0.999)
CUT = [Fault("cut", 0.5)]  # after it a client asks for the rest
PASSING: dict[str, list[Fault]] = {
    **{f"{kind} at {at}": [Fault(kind, at)] for kind in ("cut", "reset") for at in POSITIONS},
    **{f"short at {at}": [Fault("short", at)] for at in (0.0, 0.5, 0.999)},
    **{f"stall at {at}": [Fault("stall", at)] for at in (0.0, 0.5)},
    **{f"status {status}": [Fault("status", status=status)] for status in (408, 425, 429, 500, 502, 503, 504)},
    **{kind: [Fault(kind)] for kind in ("damage", "foreign", "long", "overflow", "gzip", "chunked", "silent")},
    **{f"cut, then {kind}": [*CUT, Fault(kind)] for kind in ("whole", "elsewhere", "unsaid", "gzip", "damage", "silent", "chunked", "overflow")},
    "cut, then 416": [*CUT, Fault("status", status=416)],
    "cut, cut, cut, reset, stall": [Fault("cut", 0.2), Fault("cut", 0.2), Fault("cut", 0.2), Fault("reset", 0.2), Fault("stall", 0.2)],
    "more cuts with progress than attempts": [Fault("cut", 0.2)] * (3 * WAITS),
    "two wrong contents": [Fault("damage"), Fault("foreign")],
    "503, damage, cut": [Fault("status"), Fault("damage"), Fault("cut", 0.9)],
}


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("fault", PASSING)
def test_after_a_fault_in_the_bytes_the_right_bytes_come(hub: Hub, client: Client, tmp_path: Path, fault: str, name: str) -> None:
    hub.faults = {f"GET {name}": list(PASSING[fault])}
    outcome = client.download(hub, name, tmp_path / "file")
    assert outcome["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT[name]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert hub.faults == {f"GET {name}": []}, "every fault was met"
    wrong = {"damage", "foreign"} & {fault.kind for fault in PASSING[fault]}
    assert ("arrived with hash" in outcome["said"]) == bool(wrong), "nothing was put together that had to be thrown away"


BEFORE = {
    **{f"status {status}": Fault("status", status=status) for status in (408, 429, 500, 502, 503, 504)},
    **{kind: Fault(kind, 0.0) for kind in ("silent", "reset")},
    "stall": Fault("stall"),
}


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("fault", BEFORE)
def test_after_a_fault_of_the_question_for_the_hash_the_right_bytes_come(hub: Hub, client: Client, tmp_path: Path, fault: str, name: str) -> None:
    hub.faults = {f"HEAD {name}": [BEFORE[fault]] * 2}
    assert client.download(hub, name, tmp_path / "file")["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT[name]
    assert hub.faults[f"HEAD {name}"] == []


@pytest.mark.parametrize("fault", [fault for fault in BEFORE if fault != "stall"])
def test_after_a_fault_of_the_redirect_to_the_storage_the_right_bytes_come(hub: Hub, client: Client, tmp_path: Path, fault: str) -> None:
    hub.faults = {f"LINK {BIG}": [BEFORE[fault]] * 2}
    assert client.download(hub, BIG, tmp_path / "file")["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT[BIG]


@pytest.mark.parametrize("fault", [fault for fault in BEFORE if fault != "stall"])
def test_after_a_fault_of_a_question_about_the_repository_it_is_answered(hub: Hub, client: Client, tmp_path: Path, fault: str) -> None:
    hub.faults = {"API": [BEFORE[fault]] * 2}
    assert client.call("locked_commit", repo=hub.repo, revision="main", lock_file=tmp_path / "sources.lock.json")["result"] == "c" * 40
    hub.faults = {"API": [BEFORE[fault]] * 2}
    hub.files = {f"part/{n}.parquet": b"" for n in range(3)}
    assert client.call("parquet_files", repo=hub.repo, commit="c" * 40, folder="part")["result"] == sorted(hub.files)


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
def test_what_has_come_is_not_asked_for_again(hub: Hub, client: Client, tmp_path: Path, kind: str, name: str) -> None:
    hub.faults = {f"GET {name}": [Fault(kind, 0.5)]}
    assert client.download(hub, name, tmp_path / "file")["error"] == ""
    half = round(len(CONTENT[name]) / 2)
    ranges = [request.range for request in hub.requests if request.method == "GET" and (name != BIG or request.path.startswith("/storage/"))]
    if kind == "reset":  # the receiver's system throws away what had come but was not yet read
        assert ranges[0] is None and len(ranges) == 2
    else:
        assert ranges == [None, f"bytes={half}-"]


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
def test_a_redirect_within_the_hub_is_followed_with_the_token(hub: Hub, tmp_path: Path, name: str) -> None:
    moved = Fault("redirect", to=f"/datasets/owner/corpus/resolve/{'c' * 40}/{name}?moved=1", headers={"X-Linked-Size": str(len(CONTENT[name]))})
    hub.gated, hub.faults = True, {f"HEAD {name}": [moved], f"{'LINK' if name == BIG else 'GET'} {name}": [moved]}
    client = Client(hub, tmp_path / "home", HF_TOKEN=TOKEN)
    outcome = client.download(hub, name, tmp_path / "file")
    client.close()
    assert outcome["error"] == "" and (tmp_path / "file").read_bytes() == CONTENT[name]


def test_an_empty_file_is_no_fault(hub: Hub, client: Client, tmp_path: Path) -> None:
    assert client.download(hub, EMPTY, tmp_path / "file")["error"] == ""
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("stated", [{"Content-Length": ""}, {"Content-Length": "10", "Content-Encoding": "gzip"}], ids=["no size", "compressed size"])
@pytest.mark.parametrize("fault", ["none", "cut", "chunked", "gzip", "stall", "damage"])
def test_a_file_of_unknown_size_is_whole_all_the_same(hub: Hub, client: Client, tmp_path: Path, fault: str, stated: dict[str, str]) -> None:
    hub.faults = {f"HEAD {SMALL}": [Fault("none", headers=stated)], f"GET {SMALL}": [Fault(fault)]}
    assert client.download(hub, SMALL, tmp_path / "file")["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT[SMALL]


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
def test_a_server_that_always_compresses_is_asked_for_the_whole(hub: Hub, client: Client, tmp_path: Path, name: str) -> None:
    hub.faults = {f"GET {name}": [Fault("cut", 0.01), *[Fault("gzip")] * ALWAYS]}  # a part of what is compressed cannot be read
    assert client.download(hub, name, tmp_path / "file")["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT[name]
    assert len(hub.faults[f"GET {name}"]) == ALWAYS - 2


def test_content_that_changes_in_mid_download_is_not_mixed(hub: Hub, client: Client, tmp_path: Path) -> None:
    new = random.Random(2).randbytes(400_000)
    link = Fault("none", headers={"X-Linked-Etag": f'"{hashlib.sha256(new).hexdigest()}"'})
    hub.faults = {f"GET {BIG}": [Fault("stall", 0.5, seconds=0.4)], f"LINK {BIG}": [Fault("none"), link]}
    hub.files[BIG] = CONTENT[BIG]
    outcome_before = client.download(hub, BIG, tmp_path / "file")
    assert outcome_before["error"] == ""  # the second redirect stated another hash, the third question the first one again
    assert "its content has changed on the Hub; starting again" in outcome_before["said"]
    assert (tmp_path / "file").read_bytes() == CONTENT[BIG]


def test_content_that_goes_on_changing_is_told_in_one_sentence(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.faults = {f"LINK {BIG}": [Fault("none", headers={"X-Linked-Etag": "0" * 64})] * ALWAYS}
    outcome = client.download(hub, BIG, tmp_path / "file")
    assert "changes on the Hub while it is downloaded; pin a commit" in sentence(outcome["error"], f"owner/corpus/{BIG}: ")
    assert len(hub.faults[f"LINK {BIG}"]) == ALWAYS - 3
    assert left(tmp_path) == []


# --- how long to wait ------------------------------------------------------------------------------------------------


def test_retry_after_is_honoured(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.faults = {f"GET {BIG}": [Fault("status", status=429, headers={"Retry-After": "1"})]}
    started = time.monotonic()
    outcome = client.download(hub, BIG, tmp_path / "file")
    assert outcome["error"] == "" and time.monotonic() - started > 1
    assert "HTTP 429 from 127.0.0.1; next attempt in 1 s" in outcome["said"]


NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CLOCK = {"Date": format_datetime(NOW, usegmt=True)}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "86400"}, network.RETRY_AFTER_CAP_S),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=30), usegmt=True), **CLOCK}, 30),
        ({"Retry-After": format_datetime(NOW - timedelta(seconds=30), usegmt=True), **CLOCK}, 0),
        ({"Retry-After": format_datetime(NOW + timedelta(days=3), usegmt=True), **CLOCK}, network.RETRY_AFTER_CAP_S),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),
        ({"RateLimit": '"resolvers";r=12;t=55'}, 0),
        ({}, 0),
    ],
)
def test_a_server_says_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert network.retry_after_s(headers | {"RateLimit": headers.get("RateLimit", "")}) == seconds


def test_waits_grow_and_no_two_jobs_wait_alike() -> None:
    waited: list[float] = []
    patience = network.Patience("file", sleep=waited.append, say=lambda _: None)
    for _ in network.RETRY_WAITS_S:
        patience.wait(network.TransientError("cut"))
    assert all(0.75 * wait <= pause <= 1.25 * wait for wait, pause in zip(network.RETRY_WAITS_S, waited, strict=True))
    assert waited != list(network.RETRY_WAITS_S)
    with pytest.raises(network.UserError, match=r"^file: failed after 8 attempts \(cut\); check the network"):
        patience.wait(network.TransientError("cut"))


# --- faults that stay ------------------------------------------------------------------------------------------------

STAYING: dict[str, tuple[str, Fault, str]] = {
    **{f"{kind} at 0": ("GET", Fault(kind, 0.0), "failed after 5 attempts") for kind in ("cut", "reset", "short", "silent")},
    **{f"status {status}": ("GET", Fault("status", status=status), rf"failed after 5 attempts \(HTTP {status} from ") for status in (429, 500, 503)},
    **{f"status {status} of HEAD": ("HEAD", Fault("status", status=status), rf"failed after 5 attempts \(HTTP {status} from ") for status in (429, 502, 504)},
    "damage": ("GET", Fault("damage"), "arrived 2 times with a wrong hash"),
    "foreign": ("GET", Fault("foreign"), "arrived 2 times with a wrong hash"),
    "short": ("GET", Fault("short", 0.5), "failed after 5 attempts"),  # each brings half of what is missing, the last byte never comes
    "stall": ("GET", Fault("stall", 0.0), r"failed after 5 attempts \(no byte for 0.3 s\)"),
    "stall of HEAD": ("HEAD", Fault("stall"), r"failed after 5 attempts \(no byte for 0.3 s\)"),
    "416": ("GET", Fault("status", status=416), r"failed after 5 attempts \(asked for bytes from 0 on, got HTTP 416"),
    "no hash": ("HEAD", Fault("none", headers={"X-Linked-Etag": "", "ETag": "W/abc"}), "the server states no hash for it"),
}


@pytest.mark.parametrize("fault", STAYING)
def test_a_fault_that_stays_is_told_in_one_sentence(hub: Hub, client: Client, tmp_path: Path, fault: str) -> None:
    where, what, expected = STAYING[fault]
    name = SMALL if fault == "no hash" else BIG
    hub.faults = {f"{where} {name}": [what] * ALWAYS}
    outcome = client.download(hub, name, tmp_path / "file")
    assert re.search(expected, sentence(outcome["error"], f"owner/corpus/{name}: ")), outcome
    assert left(tmp_path) == []
    assert len(hub.requests) < 50


AT_ONCE: dict[str, tuple[str, Fault, str]] = {
    **{f"status {status}": ("GET", Fault("status", status=status), f"(HTTP {status} from 127.0.0.1); check repo") for status in (400, 404, 410, 451)},
    **{f"status {status}": ("GET", Fault("status", status=status), "the storage behind the Hub refuses it") for status in (401, 403)},
    **{f"status {status} of HEAD": ("HEAD", Fault("status", status=status), f"(HTTP {status} from localhost); ") for status in (400, 401, 403, 404, 410)},
    **{f"status {status} of the redirect": ("LINK", Fault("status", status=status), f"(HTTP {status} from localhost); ") for status in (401, 403, 404)},
    "redirect loop": ("LINK", Fault("redirect", to="/loop/0"), "redirected more than 10 times, lastly to localhost"),
    "redirect loop of HEAD": ("HEAD", Fault("redirect", to="/loop/0"), "redirected more than 10 times"),
    "redirect to no address": ("LINK", Fault("redirect", to="http://[nowhere"), "redirects to what is no address"),
    "redirect to a file": ("LINK", Fault("redirect", to="file:///etc/hostname"), "no usable address"),
    "redirect to another scheme": ("HEAD", Fault("redirect", to="ftp://127.0.0.1/x"), "no usable address"),
}


@pytest.mark.parametrize("fault", AT_ONCE)
def test_what_no_attempt_can_cure_is_told_at_once(hub: Hub, client: Client, tmp_path: Path, fault: str) -> None:
    where, what, expected = AT_ONCE[fault]
    hub.faults = {f"{where} {BIG}": [what] * ALWAYS}
    outcome = client.download(hub, BIG, tmp_path / "file")
    assert expected in sentence(outcome["error"], f"owner/corpus/{BIG}: ")
    assert left(tmp_path) == []
    assert len(hub.faults[f"{where} {BIG}"]) == ALWAYS - 1, "asked once"
    assert "next attempt" not in outcome["said"]


def test_what_is_not_there_is_told_in_one_sentence(hub: Hub, client: Client, tmp_path: Path) -> None:
    file = client.download(hub, "absent.parquet", tmp_path / "file")["error"]
    assert "not on the Hub (no such file" in sentence(file, "owner/corpus/absent.parquet: ")
    repository = client.download(hub, BIG, tmp_path / "file", repo="owner/absent")["error"]
    assert "not on the Hub (no such repository, or a private one)" in sentence(repository, f"owner/absent/{BIG}: ")
    folder = client.call("parquet_files", repo=hub.repo, commit="c" * 40, folder="absent")["error"]
    assert "not on the Hub (no such file or folder" in sentence(folder, "owner/corpus/absent: ")
    name = client.download(hub, BIG, tmp_path / "file", repo="a/b/c")["error"]
    assert "give repo as owner/name" in sentence(name, f"a/b/c/{BIG}: ")


def test_the_hash_is_what_the_hub_states_and_not_what_its_storage_does(hub: Hub, client: Client, tmp_path: Path) -> None:
    storage = Fault("none", headers={"X-Linked-Etag": hashlib.sha256(CONTENT[BIG]).hexdigest(), "X-Linked-Size": str(len(CONTENT[BIG]))})
    hub.faults = {f"HEAD {BIG}": [Fault("redirect", to=f"{hub.storage}/storage/{BIG}"), storage]}
    assert "states no hash for it (ETag '')" in sentence(client.download(hub, BIG, tmp_path / "file")["error"], f"owner/corpus/{BIG}: ")
    assert hub.faults == {f"HEAD {BIG}": []}


def test_a_renamed_branch_is_told_unless_its_commit_is_locked(hub: Hub, client: Client, tmp_path: Path) -> None:
    lock = tmp_path / "sources.lock.json"
    assert client.call("locked_commit", repo=hub.repo, revision="main", lock_file=lock)["result"] == "c" * 40
    hub.branches = {"trunk": "c" * 40}
    assert client.call("locked_commit", repo=hub.repo, revision="main", lock_file=lock)["result"] == "c" * 40
    lock.unlink()
    told = client.call("locked_commit", repo=hub.repo, revision="main", lock_file=lock)["error"]
    assert "not on the Hub (no such revision)" in sentence(told, "owner/corpus at main: ")
    assert not lock.exists()


def test_a_gated_dataset_says_what_to_do_without_a_token(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.gated = True
    told = sentence(client.download(hub, BIG, tmp_path / "file")["error"], f"owner/corpus/{BIG}: access is restricted")
    assert f"accept the terms on {hub.endpoint}/datasets/owner/corpus, then set HF_TOKEN or log in with `hf auth login`" in told
    assert len(hub.requests) == 1


@pytest.mark.parametrize("name", NAMES, ids=NAMES.get)
def test_the_token_opens_a_gated_dataset_and_goes_nowhere_else(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.gated = True
    hub.faults = {f"GET {name}": [Fault("cut", 0.5)]}
    client = Client(hub, tmp_path / "home", HF_TOKEN=TOKEN)
    outcome = client.download(hub, name, tmp_path / "file")
    other = Client(hub, tmp_path / "home", HF_TOKEN="hf_other")
    refused = other.download(hub, name, tmp_path / "other")
    for process in (client, other):
        process.close()
    assert outcome["error"] == "" and (tmp_path / "file").read_bytes() == CONTENT[name]
    assert {request.authorized for request in hub.requests if not request.path.startswith("/storage/")} == {True}
    assert not any(request.authorized for request in hub.requests if request.path.startswith("/storage/"))
    assert any(request.path.startswith("/storage/") for request in hub.requests) == (name == BIG)
    assert TOKEN not in str(outcome)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert "access is restricted and this token's account has none" in sentence(refused["error"], f"owner/corpus/{name}: ")
    assert "hf_other" not in str(refused)


def test_a_token_with_foreign_characters_is_told_and_not_shown(hub: Hub, tmp_path: Path) -> None:
    client = Client(hub, tmp_path, HF_TOKEN="“hf_secret”")
    told = client.download(hub, BIG, tmp_path / "file")
    client.close()
    sentence(told["error"], "HF_TOKEN: holds characters that no token has")
    assert "hf_secret" not in str(told)
