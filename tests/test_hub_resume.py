"""A download goes on where it was, whatever ended it, and is never mixed with another content. `nanochat fetch` itself, and the log of the hub."""

import json
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import Client, fetch, parquet, part_folder, refusal, start_fetch
from hub_server import Fault, Hub, hub_server

from nanochat.data import hub as hub_module
from nanochat.data.download import RemoteFile
from nanochat.errors import UserError

PART = {"source": "corpus", "part": "train-000", "chunk_shards": 1}
SHARD = "shard_00000.parquet"
TEXT = random.Random(5).randbytes(400_000).hex()
CONTENT = parquet([{"text": TEXT[n * 1000 : (n + 1) * 1000]} for n in range(800)])
HALF = round(len(CONTENT) / 2)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server("owner/corpus", {f"shard_{n:05d}.parquet": CONTENT for n in range(6)}) as server:
        yield server


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Iterator[Client]:
    client = Client(hub, tmp_path / "home")
    yield client
    client.close()


def ranges(hub: Hub) -> list[str | None]:
    """What was asked of the storage."""
    return [request.range for request in hub.requests if request.path.startswith("/storage/")]


def partial(folder: Path, name: str = "train-00000.parquet") -> Path:
    return folder / f".{name}.partial"


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def stalled_fetch(hub: Hub, tmp_path: Path, **more: str) -> "subprocess.Popen[str]":
    """A fetch that has half of its shard on the disk and waits for the rest."""
    hub.faults = {f"GET {SHARD}": [Fault("stall", 0.5)]}
    process = start_fetch(hub, tmp_path, PART, **more)
    file = partial(part_folder(tmp_path, PART))
    eventually(lambda: file.is_file() and file.stat().st_size == HALF)
    return process


def assert_complete(hub: Hub, tmp_path: Path) -> None:
    """The shard is whole, its manifest is there, and nothing else is."""
    folder = part_folder(tmp_path, PART)
    assert (folder / "train-00000.parquet").read_bytes() == CONTENT
    assert json.loads((folder / "manifest.json").read_text())["counts"]["rows"] == {"train": 800}
    assert not [path.name for path in folder.iterdir() if "partial" in path.name]


# --- what ends a download --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_fetch_that_is_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path, number: int, code: int) -> None:
    process = stalled_fetch(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code, said
    hub.requests.clear()
    code, said = fetch(hub, tmp_path, PART)
    assert code == 0, said
    assert ranges(hub) == [f"bytes={HALF}-"], "the first half is not downloaded again"
    assert_complete(hub, tmp_path)


def test_a_fetch_that_gave_up_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {f"GET {SHARD}": [Fault("cut", 0.5), *[Fault("status", status=502)] * 9]}
    told = refusal(fetch(hub, tmp_path, PART))
    assert f"failed after 5 attempts (HTTP 502 from 127.0.0.1); check the network and run again, it will go on after {HALF:,} bytes" in told
    hub.faults = {}
    hub.requests.clear()
    assert fetch(hub, tmp_path, PART)[0] == 0
    assert ranges(hub) == [f"bytes={HALF}-"]
    assert_complete(hub, tmp_path)


def test_a_full_disk_is_one_sentence_and_what_is_there_is_kept(hub: Hub, tmp_path: Path) -> None:
    told = refusal(fetch(hub, tmp_path, PART, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF))))
    assert "train-00000.parquet: could not be written" in told and "free some space and run again" in told
    hub.requests.clear()
    assert fetch(hub, tmp_path, PART)[0] == 0
    assert ranges(hub) == [f"bytes={HALF}-"]
    assert_complete(hub, tmp_path)


def test_a_download_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "describe", lambda repo, commit, name, sleep: RemoteFile(f"{repo}/{name}", "http://localhost:9", "0" * 64, 10**16, repo))
    with pytest.raises(UserError, match=r"^a/b/x: 10,000,000,000\.0 MB to download, [0-9,.]+ MB are free in .*; free some space and run again$"):
        hub_module.download("a/b", "c" * 40, "x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_two_fetches_of_one_part_do_not_meet(hub: Hub, tmp_path: Path) -> None:
    first = stalled_fetch(hub, tmp_path)
    assert "in use by" in refusal(fetch(hub, tmp_path, PART))
    hub.released.set()
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 0, said
    assert ranges(hub) == [None]
    assert_complete(hub, tmp_path)


def test_the_first_failure_ends_the_other_downloads_and_keeps_what_they_have(hub: Hub, tmp_path: Path) -> None:
    del hub.files["shard_00001.parquet"]
    part = {"source": "corpus", "part": "train-000", "chunk_shards": 3}
    assert "shard_00001.parquet: not on the Hub" in refusal(fetch(hub, tmp_path, part))
    assert ranges(hub) == [], "what is missing is seen before anything is downloaded"
    hub.files["shard_00001.parquet"] = CONTENT
    hub.faults = {f"GET {SHARD}": [Fault("stall", 0.5)] * 9, "GET shard_00001.parquet": [Fault("status", status=404)]}
    started = time.monotonic()
    assert "shard_00001.parquet: not on the Hub" in refusal(fetch(hub, tmp_path, part, HF_HUB_DOWNLOAD_TIMEOUT="2"))
    assert time.monotonic() - started < 15, "the stalled one did not hold it up"
    hub.faults = {}
    assert fetch(hub, tmp_path, part)[0] == 0


# --- what an earlier attempt left ------------------------------------------------------------------------------------


def leave(client: Client, hub: Hub, target: Path) -> None:
    """Half of the shard, as a download that gave up leaves it."""
    hub.faults = {f"GET {SHARD}": [Fault("cut", 0.5), *[Fault("silent")] * 9]}
    assert "failed after 5 attempts" in client.download(hub, SHARD, target)["error"]
    assert partial(target.parent, target.name).stat().st_size == HALF
    hub.faults = {}
    hub.requests.clear()


def test_another_content_behind_the_same_name_is_not_mixed(hub: Hub, client: Client, tmp_path: Path) -> None:
    leave(client, hub, tmp_path / "shard")
    hub.files[SHARD] = CONTENT[::-1]
    outcome = client.download(hub, SHARD, tmp_path / "shard")
    assert outcome["error"] == ""
    assert "what was here of it is of another revision or content; starting again" in outcome["said"]
    assert ranges(hub) == [None]
    assert (tmp_path / "shard").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("stamp", [None, "", "[]", '{"etag": "0"}'], ids=["missing", "empty", "list", "other"])
def test_half_a_file_without_a_stamp_of_its_own_is_not_trusted(hub: Hub, client: Client, tmp_path: Path, stamp: str | None) -> None:
    leave(client, hub, tmp_path / "shard")
    path = tmp_path / ".shard.partial.json"
    path.unlink()
    if stamp is not None:
        path.write_text(stamp)
    assert client.download(hub, SHARD, tmp_path / "shard")["error"] == ""
    assert ranges(hub) == [None]
    assert (tmp_path / "shard").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["damaged", "longer", "zeros"])
def test_half_a_file_that_was_damaged_on_the_disk_is_found_by_its_hash(hub: Hub, client: Client, tmp_path: Path, kind: str) -> None:
    leave(client, hub, tmp_path / "shard")
    left = partial(tmp_path, "shard")
    data = left.read_bytes()
    left.write_bytes({"damaged": b"?" + data[1:], "longer": CONTENT + b"more", "zeros": bytes(len(data))}[kind])
    assert client.download(hub, SHARD, tmp_path / "shard")["error"] == ""
    assert ranges(hub) == ([None] if kind == "longer" else [f"bytes={HALF}-", None])
    assert (tmp_path / "shard").read_bytes() == CONTENT


def test_a_whole_file_that_has_no_name_yet_is_not_downloaded_again(hub: Hub, client: Client, tmp_path: Path) -> None:
    leave(client, hub, tmp_path / "shard")
    partial(tmp_path, "shard").write_bytes(CONTENT)
    assert client.download(hub, SHARD, tmp_path / "shard")["error"] == ""
    assert ranges(hub) == []
    assert (tmp_path / "shard").read_bytes() == CONTENT
    assert not list(tmp_path.glob(".shard*"))


def test_a_complete_file_is_kept_and_a_damaged_one_replaced(hub: Hub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(CONTENT)
    assert client.download(hub, SHARD, tmp_path / "shard")["error"] == ""
    assert ranges(hub) == []
    (tmp_path / "shard").write_bytes(CONTENT[:-1] + b"?")
    assert client.download(hub, SHARD, tmp_path / "shard")["error"] == ""
    assert ranges(hub) == [None]
    assert (tmp_path / "shard").read_bytes() == CONTENT


# --- addresses -------------------------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    """Whether this machine can listen on ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback")
def test_a_hub_with_an_ipv6_address_alone_and_storage_at_the_same_address(tmp_path: Path) -> None:
    with hub_server("owner/corpus", {SHARD: CONTENT}, ipv6=True) as server:
        client = Client(server, tmp_path / "home")
        server.faults = {f"GET {SHARD}": [Fault("cut", 0.5)]}
        outcome = client.download(server, SHARD, tmp_path / "shard")
        client.close()
    assert outcome["error"] == ""
    assert (tmp_path / "shard").read_bytes() == CONTENT
    assert {request.host.rpartition(":")[0] for request in server.requests} == {"[::1]"}


def test_a_proxy_is_asked_for_everything(hub: Hub, tmp_path: Path) -> None:
    client = Client(hub, tmp_path / "home", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.storage, NO_PROXY="")
    outcome = client.download(hub, SHARD, tmp_path / "shard")
    client.close()
    assert outcome["error"] == ""
    assert (tmp_path / "shard").read_bytes() == CONTENT
    assert "hub.invalid" in {request.host for request in hub.requests}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to fetch it; unset it where there is internet, or copy resources/"),
        ({"HF_ENDPOINT": "hub.invalid"}, "no usable address"),
        ({"HF_ENDPOINT": "http://hub.invalid"}, "failed after 5 attempts"),
        ({"HTTP_PROXY": "nonsense://x", "NO_PROXY": ""}, "correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, "failed after 5 attempts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_work_is_one_sentence(hub: Hub, tmp_path: Path, setting: dict[str, str], expected: str) -> None:
    assert expected in refusal(fetch(hub, tmp_path, PART, **setting))
    assert not hub.requests


def test_a_listing_in_pages_is_read_whole_and_stays_with_the_hub_that_was_asked(hub: Hub, client: Client) -> None:
    hub.page_entries = 2
    hub.files = {f"main/train/{n:04d}.parquet": b"" for n in range(5)} | {"main/train/notes.txt": b""}
    assert client.call("parquet_files", repo=hub.repo, commit="c" * 40, folder="main/train")["result"] == [f"main/train/{n:04d}.parquet" for n in range(5)]
    assert len(hub.requests) == 3
