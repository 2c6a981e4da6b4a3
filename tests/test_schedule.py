"""Schedules as columns of numbers, computed by hand."""

import itertools
import math

import pytest

from nanochat.train.schedule import lr_multiplier, momentum_at, warmdown_progress, weight_decay_multiplier


def column(function, steps, **keywords):
    return [round(function(step, total_steps=steps, **keywords), 6) for step in range(steps)]


def test_rate_rises_holds_and_falls_in_straight_lines():
    assert column(lr_multiplier, 10, warmup_steps=4, warmdown_fraction=0.4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_rate_ends_near_its_final_fraction():
    assert column(lr_multiplier, 5, warmdown_fraction=0.8, final_fraction=0.2) == [1, 1, 0.8, 0.6, 0.4]


def test_rate_is_constant_without_warmup_and_warmdown():
    assert column(lr_multiplier, 4) == [1, 1, 1, 1]


def test_overlapping_warmup_and_warmdown_take_the_lower_one():
    assert column(lr_multiplier, 4, warmup_steps=4, warmdown_fraction=1.0) == [0.25, 0.5, 0.5, 0.25]


def test_one_step_run_has_a_rate_above_zero():
    assert lr_multiplier(0, total_steps=1, warmdown_fraction=1.0) == 1.0


def test_published_classic_schedule_has_its_known_corners():
    """21,400 updates, warmdown over the last 20%: 4,280 updates from 17,120 on."""
    at = {step: lr_multiplier(step, total_steps=21_400, warmdown_fraction=0.2) for step in (0, 17_120, 19_260, 21_399)}
    assert at == {0: 1.0, 17_120: 1.0, 19_260: 0.5, 21_399: pytest.approx(1 / 4280)}


def test_warmdown_progress_counts_from_its_first_step_to_the_end():
    assert column(warmdown_progress, 5, warmdown_fraction=0.4) == [0, 0, 0, 0, 0.5]


def test_momentum_warms_up_then_down_with_the_rate():
    assert column(momentum_at, 10, start=0.85, peak=0.97, final=0.9, warmup_steps=4, warmdown_fraction=0.2) == [
        0.85, 0.88, 0.91, 0.94, 0.97, 0.97, 0.97, 0.97, 0.97, 0.935,
    ]  # fmt: skip


def test_momentum_stays_at_its_peak_when_nothing_moves_it():
    assert column(momentum_at, 3, start=0.85, peak=0.95, final=0.95) == [0.95, 0.95, 0.95]


def test_momentum_of_a_run_shorter_than_its_warmup_never_jumps():
    values = column(momentum_at, 20, start=0.85, peak=0.97, final=0.9, warmup_steps=400, warmdown_fraction=0.65)
    assert values[0] == 0.85 and all(abs(b - a) < 0.01 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.853553, 0.5, 0.146447])],
)
def test_weight_decay_schedules(schedule, expected):
    assert column(weight_decay_multiplier, 4, schedule=schedule) == expected
    assert math.isclose(weight_decay_multiplier(0, total_steps=7, schedule=schedule), 1.0)
