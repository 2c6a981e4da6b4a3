"""Files that can be trusted: atomic writes, manifests, provenance, locks."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import artifacts
from nanochat.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    artifacts.write_text(target, "old")
    with pytest.raises(RuntimeError), artifacts.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    artifacts.write_text(target, "old")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom nanochat.artifacts import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n    t.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert target.read_text() == "old"
    artifacts.write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    artifacts.write_bytes(target, b"old")
    code = "import sys; from pathlib import Path; from nanochat.artifacts import write_bytes; write_bytes(Path(sys.argv[1]), bytes(1 << 20))"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run([sys.executable, "-c", code, str(target)], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"File too large: '{target}'" in done.stderr
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def make_manifest(folder: Path) -> Path:
    (folder / "data.bin").write_bytes(b"12345")
    artifacts.write_manifest(folder / "manifest.json", stage="fetch", config={"b": 1, "a": 2}, inputs={}, outputs=["data.bin"], counts={"rows": 5})
    return folder / "manifest.json"


def test_a_manifest_built_twice_has_the_same_bytes(tmp_path: Path) -> None:
    first = make_manifest(tmp_path).read_bytes()
    assert make_manifest(tmp_path).read_bytes() == first


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert artifacts.verified_file(manifest, "data.bin").read_bytes() == b"12345"
    (tmp_path / "data.bin").write_bytes(b"12355")
    with pytest.raises(UserError, match="damaged"):
        artifacts.verified_file(manifest, "data.bin")


@pytest.mark.parametrize(("damage", "words"), [("shorten", "4 bytes, its manifest says 5"), ("remove", "missing, though its manifest lists it")])
def test_a_short_or_missing_output_is_refused(tmp_path: Path, damage: str, words: str) -> None:
    manifest = make_manifest(tmp_path)
    if damage == "shorten":
        (tmp_path / "data.bin").write_bytes(b"1234")
    else:
        (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match=words):
        artifacts.read_manifest(manifest)


def test_an_optional_file_may_be_lost_until_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "extra.bin").write_bytes(b"678")
    (tmp_path / "data.bin").write_bytes(b"12345")
    manifest = tmp_path / "manifest.json"
    artifacts.write_manifest(manifest, stage="fetch", config={}, inputs={}, outputs=["data.bin", "extra.bin"], optional=["extra.bin"], counts={})
    assert artifacts.verified_file(manifest, "extra.bin").read_bytes() == b"678"
    (tmp_path / "extra.bin").unlink()
    assert set(artifacts.read_manifest(manifest)["outputs"]) == {"data.bin", "extra.bin"}
    assert artifacts.verified_file(manifest, "data.bin").read_bytes() == b"12345"
    with pytest.raises(UserError, match=r"extra\.bin: missing, .* snakemake --cores all .*manifest.json"):
        artifacts.verified_file(manifest, "extra.bin")
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match=r"data\.bin: missing"):
        artifacts.read_manifest(manifest)


def test_a_manifest_of_another_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made by stage 'fetch', 'tokenizer' is needed"):
        artifacts.read_manifest(make_manifest(tmp_path), stage="tokenizer")


def test_not_a_number_never_reaches_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_every_attempt_stays_in_the_provenance(tmp_path: Path) -> None:
    artifacts.Provenance(tmp_path, "base_train")  # killed: never finished
    second = artifacts.Provenance(tmp_path, "base_train", device="cpu")
    second.finish(steps=3)
    attempts = json.loads((tmp_path / "provenance.json").read_text())["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["interrupted", "finished"]
    assert attempts[1]["steps"] == 3
    assert attempts[1]["packages"]["torch"]


def test_a_new_result_begins_a_new_story(tmp_path: Path) -> None:
    """Else the report adds the hours of every result that ever stood in this folder."""
    artifacts.Provenance(tmp_path, "base_train").finish("stopped")
    artifacts.Provenance(tmp_path, "base_train").finish(steps=3)
    artifacts.Provenance(tmp_path, "base_train").finish(steps=4)
    (attempt,) = json.loads((tmp_path / "provenance.json").read_text())["attempts"]
    assert attempt["steps"] == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which only root can")
def test_the_commit_of_a_checkout_that_is_somebody_elses_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted folder in a container, one that a group shares; git itself refuses it where nobody has written safe.directory into a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 12345, 12345)
    assert "dubious ownership" in subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stderr
    assert artifacts.git_state(tmp_path) | {"branch": ""} == {"commit": commit, "message": "first", "dirty": False, "branch": ""}


def test_lock_is_recorded_by_its_packages_and_hash_or_why_there_is_none(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    assert "unavailable" in artifacts.lock_state(lock)
    lock.write_text("# exact versions, a==1\nnumpy==2.4.6\ntorch==2.13.0  # CPU\n\n", encoding="utf-8")
    assert artifacts.lock_state(lock) == {"packages": 2, "sha256": artifacts.sha256_file(lock)}
    assert artifacts.lock_state()["packages"] > 50


def test_a_second_writer_is_refused_with_the_owner_and_a_dead_one_frees_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom nanochat.artifacts import exclusive\n"
        "with exclusive(Path(sys.argv[1]), '42'):\n    print('ready', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    with pytest.raises(UserError, match=f"in use by process {owner.pid} of user {os.getuid()} on .* \\(job 42\\); wait"), artifacts.exclusive(tmp_path):
        pass
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    time.sleep(0.05)
    with artifacts.exclusive(tmp_path):
        pass
