"""Schedules as columns of numbers, computed by hand."""

import itertools
import math

import pytest
import torch

from nanochat.model.config import ModelConfig
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.recipes import RECIPES
from nanochat.train.scaling import TrainingPlan, plan_base_train, plan_tune
from nanochat.train.schedule import lr_multiplier, momentum_at, warmdown_progress, weight_decay_multiplier
from nanochat.train.sizes import shape_of
from nanochat.train.update import set_rates


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


# --- what an optimizer is given ----------------------------------------------------------------------------------------

SECTION = {"epochs": 1.0, "lr_fraction": 0.5, "batch_tokens": None, "micro_batch_rows": 1}
STRAIGHT = {"warmup_fraction": 0.2, "warmdown_fraction": 0.5, "final_lr_fraction": 0.1}


def base_plan(steps: int, **schedule) -> TrainingPlan:
    """Plan of a classic base training, its momentum warm after four updates."""
    recipe = RECIPES["classic-2025-11"]
    optimizer = {**recipe["optimizer"], "momentum_warmup_steps": 4, "momentum_final": 0.9, "matrix_weight_decay": 0.1, "head_weight_decay": 0.01}
    horizon = {**recipe["horizon"], "steps": steps, "batch_tokens": 64}
    sections = {"optimizer": optimizer, "horizon": horizon, "schedule": {**recipe["schedule"], **schedule}, "micro_batch_rows": 1}
    return plan_base_train(sections, small_shape())


def small_shape():
    config = ModelConfig.from_depth(1, vocab_size=64, sequence_len=32, architecture={**RECIPES["classic-2025-11"]["architecture"], "head_dim": 64})
    return shape_of(config, config)


def given(plan: TrainingPlan, group: str, key: str) -> list[float]:
    """What group `group` of a real optimizer has under `key` at each update."""
    groups = [{"name": name, "params": [torch.nn.Parameter(torch.zeros(2, 2))], **plan.groups[name]} for name in ("matrix", "head", "embedding")]
    optimizer, found = MuonAdamW(groups), []
    for step in range(plan.steps):
        set_rates(optimizer, plan, step)
        found.append(round(next(entry[key] for entry in optimizer.param_groups if entry["name"] == group), 7))
    return found


def test_base_training_gives_every_group_its_rate_decay_and_momentum():
    plan = base_plan(10, warmdown_fraction=0.4, weight_decay_schedule="linear")
    falling = [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert given(plan, "matrix", "lr") == pytest.approx([0.02 * share for share in falling])
    width_factor = (768 / 64) ** 0.5
    assert given(plan, "head", "lr") == pytest.approx([0.004 * width_factor * share for share in falling], rel=1e-4)
    assert given(plan, "embedding", "lr") == pytest.approx([0.2 * width_factor * share for share in falling], rel=1e-4)
    assert given(plan, "matrix", "weight_decay") == [0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01]
    assert given(plan, "head", "weight_decay") == [0.01] * 10, "of AdamW it is constant"
    assert given(plan, "matrix", "momentum") == [0.85, 0.875, 0.9, 0.925, 0.95, 0.95, 0.95, 0.9375, 0.925, 0.9125]


def test_a_warmup_in_steps_takes_a_fifth_of_a_short_run_at_most():
    assert given(base_plan(10, warmup_steps=40, warmdown_fraction=0.0), "matrix", "lr") == [0.01, *[0.02] * 9]


def test_tuning_scales_the_parents_rates_and_has_its_own_warmup_and_warmdown():
    """20 packed rows, two of them a step: 10 updates, of which two warm up and five fall to a tenth."""
    parent = base_plan(1000, weight_decay_schedule="cosine").to_dict()
    plan = plan_tune("mid_train", {**SECTION, **STRAIGHT}, parent, small_shape(), rows=20)
    shares = [0.5, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28]
    assert given(plan, "matrix", "lr") == pytest.approx([0.01 * share for share in shares])
    assert given(plan, "head", "lr") == pytest.approx([0.002 * (768 / 64) ** 0.5 * share for share in shares], rel=1e-4)
    assert given(plan, "matrix", "weight_decay") == given(plan, "head", "weight_decay") == [0.0] * 10
    assert given(plan, "matrix", "momentum") == [0.85, 0.875, 0.9, 0.925, *[0.95] * 6], "warm as the parent's was, and never down"


@pytest.mark.parametrize(("rows", "epochs", "steps"), [(20, 1.0, 10), (21, 1.0, 11), (20, 1.5, 15), (1, 1.0, 1), (5, 0.5, 2)])
def test_tuning_sees_every_row_as_often_as_asked_or_more(rows, epochs, steps):
    section = {**SECTION, "epochs": epochs, "warmup_fraction": 0.0, "warmdown_fraction": 1.0, "final_lr_fraction": 0.0}
    plan = plan_tune("chat_sft", section, base_plan(1000).to_dict(), small_shape(), rows=rows)
    assert plan.steps == steps and plan.steps * plan.rows_per_step >= rows * epochs
    assert given(plan, "matrix", "lr") == pytest.approx([0.01 * (steps - step) / steps for step in range(steps)], rel=1e-4)
