"""Files at an address outside the Hub: the same line, the same faults, and a hash that is locked at the first fetch."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from core_bundle import core_files, zipped
from hub_client import WAITS, Client, fetch, part_folder, refusal
from hub_server import TOKEN, Fault, Hub, hub_server

NAME = "words.bin"
CONTENT = random.Random(3).randbytes(200_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
CHAT = json.dumps([{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]).encode() + b"\n"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server("owner/corpus", {}) as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"), HF_TOKEN=TOKEN)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def fresh(hub: Hub) -> None:
    hub.files, hub.faults, hub.version = {NAME: CONTENT}, {}, '"v1"'
    hub.requests.clear()
    hub.released.clear()


def download(hub: Hub, client: Client, target: Path, **known: object) -> dict:
    return client.call("download_url", url=f"{hub.endpoint}/files/{NAME}", target=target, **known)


def ranges(hub: Hub) -> list[str | None]:
    return [request.range for request in hub.requests if request.method == "GET"]


KNOWN = {"a known hash": {"sha256": SHA, "size": len(CONTENT)}, "a hash alone": {"sha256": SHA}, "no hash": {}}
PASSING = {
    **{f"{kind} at {at}": [Fault(kind, at)] for kind in ("cut", "reset", "short") for at in (0.0, 0.5)},
    **{f"status {status}": [Fault("status", status=status)] for status in (429, 503)},
    **{kind: [Fault(kind)] for kind in ("long", "overflow", "chunked", "silent", "stall")},
    **{f"cut, then {kind}": [Fault("cut"), Fault(kind)] for kind in ("whole", "elsewhere", "unsaid", "silent")},
}


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("fault", PASSING)
def test_after_a_fault_the_right_bytes_come(hub: Hub, client: Client, tmp_path: Path, fault: str, known: str) -> None:
    hub.faults = {f"GET {NAME}": list(PASSING[fault]), f"HEAD {NAME}": [Fault("status")]}
    assert download(hub, client, tmp_path / "file", **KNOWN[known])["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not any(hub.faults.values()), "every fault was met"
    assert not any(request.authorized for request in hub.requests), "the token is for the Hub alone"


@pytest.mark.parametrize("known", KNOWN)
def test_a_redirect_to_another_host_is_followed(hub: Hub, client: Client, tmp_path: Path, known: str) -> None:
    there = Fault("redirect", to=f"{hub.storage}/files/{NAME}")
    hub.faults = {f"HEAD {NAME}": [there], f"GET {NAME}": [there, Fault("cut"), there]}
    assert download(hub, client, tmp_path / "file", **KNOWN[known])["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ranges(hub) == [None, None, "bytes=100000-", "bytes=100000-"]
    assert not any(request.authorized for request in hub.requests)


@pytest.mark.parametrize("kind", ["damage", "foreign"])
def test_wrong_content_is_seen_where_the_hash_is_known(hub: Hub, client: Client, tmp_path: Path, kind: str) -> None:
    hub.faults = {f"GET {NAME}": [Fault(kind)]}
    assert download(hub, client, tmp_path / "file", sha256=SHA)["error"] == ""
    assert (tmp_path / "file").read_bytes() == CONTENT
    (tmp_path / "file").unlink()
    hub.faults = {f"GET {NAME}": [Fault(kind)] * 9}
    told = download(hub, client, tmp_path / "file", sha256=SHA)["error"]
    assert "arrived 2 times with a wrong hash" in told and told.endswith("; it is another one now")
    assert not (tmp_path / "file").exists()


def test_another_size_is_told_before_anything_is_downloaded(hub: Hub, client: Client, tmp_path: Path) -> None:
    told = download(hub, client, tmp_path / "file", sha256=SHA, size=7)["error"]
    assert told == f"{hub.endpoint}/files/{NAME}: has 200,000 bytes now instead of 7; it is another one now"
    assert ranges(hub) == []


def leave(hub: Hub, client: Client, target: Path) -> None:
    """Half of the file, as a download that gave up leaves it."""
    hub.faults = {f"GET {NAME}": [Fault("cut"), *[Fault("silent")] * 9]}
    assert f"failed after {WAITS + 1} attempts" in download(hub, client, target)["error"]
    hub.faults = {}
    hub.requests.clear()


def test_a_download_without_a_hash_goes_on_while_the_version_is_the_same(hub: Hub, client: Client, tmp_path: Path) -> None:
    leave(hub, client, tmp_path / "file")
    assert download(hub, client, tmp_path / "file")["error"] == ""
    assert ranges(hub) == ["bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("version", ['"v2"', ""], ids=["another one", "none"])
def test_two_versions_are_never_mixed(hub: Hub, client: Client, tmp_path: Path, version: str) -> None:
    leave(hub, client, tmp_path / "file")
    hub.files, hub.version = {NAME: CONTENT[::-1]}, version
    assert download(hub, client, tmp_path / "file")["error"] == ""
    assert ranges(hub) == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_a_version_that_changes_meanwhile_begins_again_and_ends_if_it_goes_on(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.faults = {f"HEAD {NAME}": [Fault("none", headers={"ETag": '"v0"'})]}
    outcome = download(hub, client, tmp_path / "file")
    assert outcome["error"] == "" and "its content has changed there; starting again" in outcome["said"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    hub.faults = {f"HEAD {NAME}": [Fault("none", headers={"ETag": f'"{n}"'}) for n in range(9)]}
    assert "changes there while it is downloaded; run again later" in download(hub, client, tmp_path / "other")["error"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"HEAD": [Fault("status", status=404)]}, "not given (HTTP 404 from localhost)"),
        ({"HEAD": [Fault("status", status=403)]}, "not given (HTTP 403 from localhost)"),
        ({"GET": [Fault("status", status=502)] * 9}, f"failed after {WAITS + 1} attempts (HTTP 502"),
        ({"HEAD": [Fault("none", headers={"Content-Length": ""})]}, "states neither hash nor size"),
        ({"HEAD": [Fault("redirect", to="/loop/1")]}, "redirected more than 10 times, lastly to localhost; check the proxy"),
    ],
)
def test_what_does_not_come_is_one_sentence(hub: Hub, client: Client, tmp_path: Path, faults: dict, message: str) -> None:
    hub.faults = {f"{method} {NAME}": list(each) for method, each in faults.items()}
    told = download(hub, client, tmp_path / "file")["error"]
    assert told.startswith(f"{hub.endpoint}/files/{NAME}: ") and message in told and "\n" not in told


# --- nanochat fetch --------------------------------------------------------------------------------------------------


def test_the_first_fetch_locks_the_hash_and_every_later_one_compares(hub: Hub, tmp_path: Path) -> None:
    part, lock = {"source": "identity_conversations"}, tmp_path / "sources.lock.json"
    folder, url = part_folder(tmp_path, part), f"{hub.endpoint}/files/identity_conversations.jsonl"
    hub.files = {"identity_conversations.jsonl": CHAT * 40}
    hub.faults = {"GET identity_conversations.jsonl": [Fault("cut", 0.5)]}
    code, said = fetch(hub, tmp_path, part)
    assert code == 0, said
    digest = hashlib.sha256(CHAT * 40).hexdigest()
    assert "taken on trust, since nobody states its hash" in said
    assert json.loads(lock.read_text())["url"] == {url: {"sha256": digest, "bytes": len(CHAT) * 40}}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["counts"]["rows"], manifest["config"]["sha256"], list(manifest["outputs"])) == ({"train": 40}, digest, ["train.jsonl"])
    assert not (folder / ".raw").exists()
    before = (folder / "manifest.json").read_bytes(), lock.read_bytes()

    code, said = fetch(hub, tmp_path, part)
    assert code == 0 and "taken on trust" not in said
    assert before == ((folder / "manifest.json").read_bytes(), lock.read_bytes()), "again: the same bytes"

    hub.files = {"identity_conversations.jsonl": CHAT.replace(b"am", b"AM") * 40}  # of the same length
    told = refusal(fetch(hub, tmp_path, part))
    assert "arrived 2 times with a wrong hash" in told and f"delete {url} from {lock}" in told
    assert lock.read_bytes() == before[1]
    content = json.loads(lock.read_text())
    del content["url"][url]  # on purpose
    lock.write_text(json.dumps(content))
    assert fetch(hub, tmp_path, part)[0] == 0
    assert json.loads(lock.read_text())["url"][url]["sha256"] != digest


def test_what_is_not_what_it_should_be_is_not_locked(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"words_alpha.txt": b"<html>please log in</html>"}
    assert "words_alpha.txt: line 1 is b'<html>" in refusal(fetch(hub, tmp_path, {"source": "words_alpha"}))
    assert not (tmp_path / "sources.lock.json").exists()
    hub.files = {"words_alpha.txt": b"apple\r\npear\r\n"}
    assert fetch(hub, tmp_path, {"source": "words_alpha"})[0] == 0
    assert (tmp_path / "words_alpha" / "all" / "train.jsonl").read_text() == '{"word": "apple"}\n{"word": "pear"}\n'


def test_ranks_that_are_not_the_published_ones_are_refused_without_a_lock(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"r50k_base.tiktoken": b"IQ== 0\n" * 9}
    told = refusal(fetch(hub, tmp_path, {"source": "r50k_base"}))
    assert "instead of 306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930; a proxy alters it" in told
    assert not (tmp_path / "sources.lock.json").exists()


def test_the_core_bundle_is_fetched_whole_or_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"eval_bundle.zip": zipped(core_files())}
    code, said = fetch(hub, tmp_path, {"source": "core_bundle"})
    assert code == 0, said
    folder = tmp_path / "core_bundle" / "all"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["counts"]["rows"]) == 22 and set(manifest["counts"]["rows"].values()) == {2}
    assert {path.name for path in folder.iterdir()} >= set(manifest["outputs"]) >= {"core.yaml", "eval_meta_data.csv", "boolq.jsonl"}
    files = core_files()
    files["eval_bundle/core.yaml"] = files["eval_bundle/core.yaml"].replace(b"label: winograd\n", b"label: winograd_273\n")
    files["eval_bundle/eval_meta_data.csv"] += b"winograd_273,50\n"
    hub.files = {"eval_bundle.zip": zipped(files)}
    (tmp_path / "sources.lock.json").unlink()
    assert "core.yaml lists winograd_273, which is none of the 22 tasks of CORE" in refusal(fetch(hub, tmp_path, {"source": "core_bundle"}))
    assert not (folder / "manifest.json").exists()
    assert not (tmp_path / "sources.lock.json").exists()
