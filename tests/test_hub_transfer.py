"""How a download is shown: a line every ten seconds in a log, a bar on a terminal, nothing for little."""

import io
import sys
import threading

import pytest

from nanochat.data import transfer
from nanochat.data.transfer import CancelledError, Transfer, in_threads

MB = 1_000_000


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transfer.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(transfer, "log", lines.append)
    return lines


def test_in_a_log_a_line_every_ten_seconds_has_bytes_rate_and_eta(clock: Clock, lines: list[str]) -> None:
    shown = Transfer("corpus train-000")
    shown.expect(1200 * MB, 100 * MB)
    with shown.shown():
        for _ in range(40):  # 4 MB each half second
            clock.now += 0.5
            shown.add(4 * MB)
    assert lines == [
        "corpus train-000: 180.0 of 1,200.0 MB (15%), 8.0 MB/s, ETA 0:02:08",
        "corpus train-000: 260.0 of 1,200.0 MB (22%), 8.0 MB/s, ETA 0:01:58",
    ]


def test_the_rate_is_that_of_the_last_minute(clock: Clock, lines: list[str]) -> None:
    shown = Transfer("x")
    shown.expect(10_000 * MB, 0)
    with shown.shown():
        for second in range(200):
            clock.now += 1
            shown.add((50 if second < 100 else 2) * MB)
    assert ", 50.0 MB/s, " in lines[5]
    assert ", 2.0 MB/s, " in lines[-1]


def test_bytes_that_were_thrown_away_are_taken_off(clock: Clock, lines: list[str]) -> None:
    shown = Transfer("x")
    shown.expect(100 * MB, 0)
    with shown.shown():
        shown.add(60 * MB)
        shown.add(-60 * MB)
        clock.now += 10
        shown.add(0)
    assert lines == ["x: 0.0 of 100.0 MB (0%), 0.0 MB/s, no ETA"]


def test_a_short_download_says_nothing(clock: Clock, lines: list[str]) -> None:
    shown = Transfer("x")
    shown.expect(100 * MB, 0)
    with shown.shown():
        clock.now += 9.9
        shown.add(100 * MB)
    assert lines == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("size", "has_bar"), [(300 * MB, True), (3 * MB, False)])
def test_on_a_terminal_a_bar_shows_it_unless_it_is_little(monkeypatch: pytest.MonkeyPatch, size: int, has_bar: bool) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = Transfer("corpus train-000")
    shown.expect(size, size // 2)
    with shown.shown():
        shown.add(size // 2)
        shown.say("cut off; next attempt in 1 s")
    written = sys.stderr.getvalue()
    assert "cut off; next attempt in 1 s\n" in written
    assert ("corpus train-000" in written) == has_bar
    assert ("300M/300M" in written and "B/s" in written) == has_bar


def test_a_stopped_transfer_ends_whoever_adds_or_waits() -> None:
    shown = Transfer("x")
    shown.add(1)
    shown.sleep(0)
    shown.stopped.set()
    for action in (lambda: shown.add(1), lambda: shown.sleep(60)):
        with pytest.raises(CancelledError):
            action()


def test_threads_give_results_in_order_and_the_first_failure_stops_the_others() -> None:
    stopped, begun = threading.Event(), []
    assert in_threads([lambda n=n: n * n for n in range(20)], stopped) == [n * n for n in range(20)]
    assert not stopped.is_set()

    def work(n: int) -> None:
        begun.append(n)
        if n == 1:
            raise ValueError("first")
        if not stopped.wait(30):
            raise AssertionError("nobody stopped it")
        raise CancelledError

    with pytest.raises(ValueError, match=r"^first$"):
        in_threads([lambda n=n: work(n) for n in range(20)], stopped)
    assert len(begun) <= transfer.THREADS + 1
