"""What counts as stuck and what as slow, on ranks made of numbers; and the record that ranks and supervisor share."""

import os
import tempfile
import time

import pytest

from nanochat.launch.watch import Pace, Watch, behind, describe
from nanochat.progress import PHASES, Board, Limits, Place, Reporter

LIMITS = Limits(startup_s=100, step_s=10, pause_s=1000)


def at(phase: str, beats: int = 1, **other: float) -> Place:
    return Place(beats=beats, phase_index=PHASES.index(phase), **other)  # type: ignore[arg-type]


def quiet(watch: Watch, places: dict[int, Place], seconds: float) -> bool:
    """Whether the run counts as stuck after so many seconds in which nothing changes."""
    watch.look(places, 0.0)
    for _ in range(round(seconds)):
        watch.look(places, 1.0)
    return watch.is_stuck(places)


@pytest.mark.parametrize(("phase", "limit"), [("boot", 100), ("data", 100), ("first step", 100), ("step", 10), ("validate", 1000), ("write", 1000)])
def test_each_phase_has_its_limit(phase, limit):
    places = {0: at(phase)}
    assert not quiet(Watch(LIMITS), places, limit)
    assert quiet(Watch(LIMITS), places, limit + 1)


@pytest.mark.parametrize("limits", [Limits(0, 0, 0)])
@pytest.mark.parametrize("phase", ["boot", "step", "save"])
def test_a_limit_of_zero_is_none(limits, phase):
    assert not quiet(Watch(limits), {0: at(phase)}, 100_000)


def test_a_step_may_take_ten_times_the_recent_median():
    pace = Pace()
    for step in range(10):
        pace.look(at("step", step=step, update_s=30.0 * step), 30.0)
    places = {0: at("step", step=9)}
    assert not quiet(Watch(LIMITS, pace), places, 300)
    assert quiet(Watch(LIMITS, pace), places, 301)


def test_ranks_that_wait_for_a_saving_one_are_not_stuck():
    waiting = {0: at("save"), 1: at("step")}
    assert not quiet(Watch(LIMITS), waiting, 900)
    assert quiet(Watch(LIMITS), {0: at("step"), 1: at("step")}, 11)


def test_progress_of_any_rank_counts():
    """Rank 1 waits for an hour while rank 0 hashes file after file; then rank 0 stands still as well."""
    watch = Watch(LIMITS)
    for beats in range(3600):
        places = {0: at("data", beats), 1: at("data")}
        watch.look(places, 1.0)
        assert not watch.is_stuck(places)
    assert quiet(watch, places, 101)


def test_the_rank_that_others_wait_for_is_named():
    assert behind({0: at("step", step=5, pieces=2), 1: at("step", step=5), 2: at("step", step=5, pieces=2)}) == [1]
    assert behind({0: at("save", step=5), 1: at("step", step=5, pieces=1)}) == [0]
    assert behind({0: at("data"), 1: at("import")}) == [1]
    assert behind({0: at("step", step=5), 1: at("step", step=5)}) == []
    assert describe({0: at("step", step=5, pieces=2), 1: at("step", step=5)}) == "rank 1 of 2 is behind: in phase step after 5 steps"


def test_a_long_silence_is_said_before_it_ends_the_run():
    watch, places = Watch(LIMITS), {0: at("save", step=3)}
    said = []
    watch.look(places, 0.0)
    for _ in range(200):
        watch.look(places, 1.0)
        said += filter(None, [watch.waiting(places)])
    assert [line.split(",")[0] for line in said] == ["no progress for 60 s", "no progress for 120 s", "no progress for 180 s"]
    assert "phase save after 3 steps" in said[0] and "0:16:40" in said[0]


# --- slow ------------------------------------------------------------------------------------------------------------


def pace_of(seconds_of_steps: list[float], expected: float | None = None) -> list[tuple[int, str]]:
    """(step, what is said) of a run of 1000 tokens a step, looked at ten times a second."""
    pace, said, step, spent, elapsed = Pace(expected), [], 0, 0.0, 0.0
    sentence = pace.look(at("first step", batch_tokens=1000), 0.0)
    ends = [sum(seconds_of_steps[: n + 1]) for n in range(len(seconds_of_steps))]
    while step < len(ends):
        elapsed += 0.1
        while step < len(ends) and ends[step] <= elapsed:
            spent += seconds_of_steps[step]
            step += 1
        place = at("step" if step else "first step", step=step, update_s=spent, batch_tokens=1000)
        sentence = pace.look(place, 0.1)
        if sentence:
            said.append((step, sentence))
    return said


def test_a_steady_run_is_not_called_slow():
    assert pace_of([5.0] + [0.05] * 4000) == []
    assert pace_of([20.0] * 60) == []
    assert pace_of([1.0, 1.4, 0.8, 2.0] * 50) == []


def test_one_long_pause_is_not_called_slow():
    assert pace_of([0.5] * 100 + [30.0] + [0.5] * 100) == []


def test_steps_that_become_a_hundred_times_slower_are_said_once_with_the_ratio_and_again_when_it_is_over():
    said = pace_of([0.05] * 200 + [5.0] * 20 + [0.05] * 800)
    assert len(said) == 2, said
    assert "100.0 times slower than in its first minutes (0.05 s a step)" in said[0][1] and said[0][0] <= 200 + 5
    assert "no longer slow: 0.05 s a step" in said[1][1]


def test_a_run_that_stays_slow_is_said_every_ten_minutes():
    assert len(pace_of([1.0] * 200 + [10.0] * 130)) == 3


def test_a_run_slower_than_expected_is_said_within_minutes():
    step, sentence = pace_of([10.0] * 30, expected=1000.0)[0]
    assert step <= 5 and "10.0 times slower than the 1,000 tokens/s that were expected" in sentence
    assert pace_of([1.0] * 100, expected=900.0) == []


def test_a_first_step_without_end_is_said_before_it_ends():
    step, sentence = pace_of([3000.0], expected=1000.0)[0]
    assert step == 0 and "step 1 has taken 60 s so far, at least 60" in sentence and "expected" in sentence


# --- the shared record -----------------------------------------------------------------------------------------------


def test_the_record_of_each_rank_is_read_as_it_was_written():
    with tempfile.TemporaryFile() as file:
        mine, theirs = Board(file.fileno(), 3, create=True), Board(os.dup(file.fileno()), 3)
        place = at("validate", 7, step=2**40, pieces=3, batch_tokens=524_288, update_s=1.5)
        theirs.write(1, place)
        assert [mine.read(rank) for rank in range(3)] == [Place(), place, Place()]
        assert not theirs.is_open
        mine.open()
        assert theirs.is_open


def test_a_sign_of_progress_costs_less_than_a_tenth_of_a_millisecond():
    with tempfile.TemporaryFile() as file:
        reporter = Reporter(Board(file.fileno(), 1, create=True))
        rounds = []
        for _ in range(5):  # the fastest: processor time alone knows nothing of waiting, but of caches that others have emptied
            started = time.process_time()
            for step in range(400):
                reporter.bump(reporter.place._replace(step=step))
            rounds.append((time.process_time() - started) / 400)
        assert min(rounds) < 1e-4
        assert reporter.place.beats == 2000
