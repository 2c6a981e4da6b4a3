"""The lock file: asked once, the first to write decides, damage is told, and it is the same bytes in whatever order it came about."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.data.lockfile import Lock
from nanochat.errors import UserError

FIRST, SECOND = "a" * 40, "b" * 40
SHA = "0" * 64


def refuse() -> str:
    raise AssertionError("asked again")


def lock_at(path: Path, *orders: str) -> bytes:
    """The bytes of a lock that was filled in this order."""
    for order in orders:
        if order == "url":
            Lock(path).keep_content("https://x/y", SHA, 5)
        else:
            Lock(path).commit(order, "main", lambda: FIRST)
            Lock(path).files(order, "main", "data", lambda: ["data/1", "data/2"])
    return path.read_bytes()


def test_a_revision_is_asked_for_once_and_every_later_fetch_takes_that_commit(tmp_path, capsys):
    lock = Lock(tmp_path / "sources.lock.json")
    assert lock.commit("o/r", "main", lambda: FIRST) == FIRST
    assert "o/r: main is aaaa" in capsys.readouterr().err
    assert Lock(lock.path).commit("o/r", "main", refuse) == FIRST
    assert Lock(lock.path).commit("o/r", "other", lambda: SECOND) == SECOND
    assert Lock(lock.path).files("o/r", "main", "data", lambda: ["data/1"]) == ["data/1"]
    assert Lock(lock.path).files("o/r", "main", "data", refuse) == ["data/1"]
    assert json.loads(lock.path.read_text())["hub"]["o/r"] == {"main": {"commit": FIRST, "files": {"data": ["data/1"]}}, "other": {"commit": SECOND}}


def test_a_commit_needs_no_lock_and_no_file(tmp_path):
    assert Lock(tmp_path / "sources.lock.json").commit("o/r", SECOND, refuse) == SECOND
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_entry_is_asked_for_anew_with_its_list(tmp_path):
    path = tmp_path / "sources.lock.json"
    lock_at(path, "o/r", "o/s")
    content = json.loads(path.read_text())
    del content["hub"]["o/r"]["main"]["commit"]  # the list that stays behind is of the old commit
    path.write_text(json.dumps(content))
    assert Lock(path).commit("o/r", "main", lambda: SECOND) == SECOND
    assert Lock(path).files("o/r", "main", "data", lambda: ["data/9"]) == ["data/9"]
    assert Lock(path).commit("o/s", "main", refuse) == FIRST


def test_the_first_of_two_that_asked_at_once_decides(tmp_path):
    path = tmp_path / "sources.lock.json"

    def slow() -> str:
        assert Lock(path).commit("o/r", "main", lambda: FIRST) == FIRST  # the other one, meanwhile
        return SECOND

    assert Lock(path).commit("o/r", "main", slow) == FIRST
    Lock(path).keep_content("https://x/y", SHA, 5)
    Lock(path).keep_content("https://x/y", SHA, 5)
    with pytest.raises(UserError, match=r"^https://x/y: gave two fetches different contents, 1{64} and 0{64}; run again$"):
        Lock(path).keep_content("https://x/y", "1" * 64, 5)
    assert Lock(path).content("https://x/y") == (SHA, 5)


def test_many_processes_lose_no_entry(tmp_path):
    code = (
        "import sys; from pathlib import Path; from nanochat.data.lockfile import Lock\n"
        "for n in range(20): Lock(Path(sys.argv[1])).commit(f'o/{sys.argv[2]}-{n}', 'main', lambda: 'a' * 40)"
    )
    path = tmp_path / "sources.lock.json"
    children = [subprocess.Popen([sys.executable, "-c", code, path, str(n)], stderr=subprocess.DEVNULL) for n in range(3)]
    assert [child.wait(60) for child in children] == [0] * 3
    assert len(json.loads(path.read_text())["hub"]) == 60


def test_the_order_of_the_fetches_does_not_show(tmp_path):
    one, other = lock_at(tmp_path / "1" / "l.json", "o/r", "o/s", "url"), lock_at(tmp_path / "2" / "l.json", "url", "o/s", "o/r")
    assert one == other
    assert one != lock_at(tmp_path / "3" / "l.json", "o/r", "url")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<<<<<<< HEAD\n{}", "not valid JSON .*; repair it .a merge may have left its marks., or delete it to lock everything anew"),
        ("[]", "is no lock of sources; repair it"),
        ('{"format": 1, "hub": []}', "is no lock of sources; repair it"),
        ('{"format": 2, "hub": {}, "url": {}}', "format=2, this nanochat reads 1; use the version"),
        ('{"format": 1, "hub": {"o/r": {"main": {"commit": "main"}}}, "url": {}}', "hub.o/r.main holds no commit of 40 hexadecimal digits"),
        ('{"format": 1, "hub": {"o/r": 3}, "url": {}}', "hub.o/r. holds no commit"),
        ('{"format": 1, "hub": {"o/r": {"main": {"files": {"x": "y"}}}}, "url": {}}', "hub.o/r.main holds no commit .* or no lists of files"),
        ('{"format": 1, "hub": {}, "url": {"https://x": {"sha256": "0", "bytes": 1}}}', "url.https://x holds no sha256 and bytes"),
    ],
)
def test_a_damaged_lock_is_told_and_left_as_it_is(content, message, tmp_path):
    path = tmp_path / "sources.lock.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"sources.lock.json: {message}"):
        Lock(path).commit("o/r", "main", lambda: FIRST)
    assert path.read_text() == content
