"""The dial: the published table of depths, and what guards small and odd requests."""

import math

import pytest

from nanochat import config
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.recipes import RECIPES
from nanochat.train import scaling
from nanochat.train.memory import CPU_MICRO_BATCH_TOKENS
from nanochat.train.scaling import Shape, plan_base_train, plan_tune, weight_decay_rule

MODERN, CLASSIC, COMPACT = "modern-2026-07", "classic-2025-11", "compact-2026-11"
# depth, total parameters (millions), scaling parameters (millions), steps at ratio 8, at ratio 12, log2 of the batch, weight decay
TABLE = [
    (4, 36.7, 11.5, 352, 528, 18, 1.89),
    (6, 73.5, 23.2, 708, 1062, 18, 0.94),
    (8, 125.8, 41.9, 1280, 1920, 18, 0.52),
    (12, 286.3, 110.1, 1680, 2520, 19, 0.28),
    (16, 536.9, 234.9, 3584, 5376, 19, 0.131),
    (18, 701.9, 324.4, 2475, 3712, 20, 0.134),
    (20, 896.5, 435.2, 3320, 4980, 20, 0.100),
    (22, 1123, 569.5, 4345, 6517, 20, 0.077),
    (24, 1384, 729.8, 5568, 8352, 20, 0.060),
    (26, 1682, 918.4, 7007, 10510, 20, 0.047),
    (28, 2019, 1138, 8680, 13020, 20, 0.038),
    (32, 2819, 1678, 6400, 9600, 21, 0.037),
]


def shape_of(depth, recipe, *, vocab_size=32_768, sequence_len=2048, **architecture):
    keys = {**RECIPES[recipe]["architecture"], **architecture}
    own, reference = (
        ModelConfig.from_depth(d, vocab_size=vocab_size, sequence_len=sequence_len, architecture=a)
        for d, a in ((depth, keys), (12, {k: v for k, v in keys.items() if k != "width"}))
    )
    counts = [{"all": c.parameter_counts()["total"], "scaling": c.parameter_counts()["scaling"]} for c in (own, reference)]
    return Shape(depth, own.width, vocab_size, sequence_len, *counts)


def resolved(recipe, depth=12, **overrides):
    return config.resolve_base_train(config.BaseTrainStage(recipe=recipe, depth=depth, **overrides), recipe)


@pytest.mark.parametrize(("depth", "total", "scaled", "steps8", "steps12", "log_batch", "decay"), TABLE)
def test_published_table_is_reproduced(depth, total, scaled, steps8, steps12, log_batch, decay):
    shape = shape_of(depth, MODERN)
    assert shape.params["all"] / 1e6 == pytest.approx(total, rel=2e-3)
    assert shape.params["scaling"] / 1e6 == pytest.approx(scaled, rel=5e-3)
    for ratio, steps in ((8, steps8), (12, steps12)):
        plan = plan_base_train(resolved(MODERN, depth, horizon={"tokens_per_param": ratio}), shape)
        assert plan.batch_tokens == 1 << log_batch
        assert plan.steps == pytest.approx(steps, abs=1)
        reference = ratio * shape.reference_params["scaling"]
        assert weight_decay_rule(0.28, batch_tokens=plan.batch_tokens, tokens=plan.tokens, reference_tokens=reference) == pytest.approx(decay, rel=0.02)
        expected = min(decay, scaling.MAX_WEIGHT_DECAY)
        assert plan.groups["matrix"]["weight_decay"] == pytest.approx(expected, rel=0.02)


def test_weight_decay_of_small_models_is_held_and_that_of_larger_ones_is_not():
    decays = [plan_base_train(resolved(MODERN, depth), shape_of(depth, MODERN)).groups["matrix"]["weight_decay"] for depth in (4, 6, 8)]
    assert decays == [scaling.MAX_WEIGHT_DECAY, scaling.MAX_WEIGHT_DECAY, pytest.approx(0.52, rel=0.02)]


def test_classic_d20_is_the_published_run():
    shape = shape_of(20, CLASSIC, vocab_size=65_536)
    plan = plan_base_train(resolved(CLASSIC, 20), shape, ranks=8)
    assert shape.params["all"] == 560_988_160
    assert (plan.steps, plan.tokens) == (21_400, 11_219_763_200)
    assert plan.groups["embedding"]["lr"] == pytest.approx(0.2 * (1280 / 768) ** -0.5)
    assert (plan.groups["matrix"]["lr"], plan.groups["matrix"]["weight_decay"]) == (0.02, 0.0)


def test_rates_follow_batch_and_width():
    plan = plan_base_train(resolved(MODERN, 24), shape_of(24, MODERN))
    assert plan.groups["matrix"]["lr"] == pytest.approx(0.02 * math.sqrt(2))  # 2^20 tokens, twice the reference
    assert plan.groups["head"]["lr"] == pytest.approx(0.008 * math.sqrt(2) * (1536 / 768) ** -0.5)
    assert plan.groups["x0_scalar"]["lr"] == pytest.approx(0.5 * math.sqrt(2))
    assert plan.groups["smear_scalar"]["lr"] == pytest.approx(0.2)  # published without the factor of the batch


def test_a_horizon_is_given_in_steps_tokens_or_tokens_per_parameter():
    def horizon(**given):
        plan = plan_base_train(resolved(COMPACT, 4, horizon={"batch_tokens": 4096, **given}), shape_of(4, COMPACT, sequence_len=256))
        return plan.steps

    assert horizon(steps=7) == 7
    assert horizon(tokens=1 << 20) == (1 << 20) // 4096
    counts = shape_of(4, COMPACT, sequence_len=256).params
    assert horizon(tokens_per_param=5) == 5 * counts["scaling"] // 4096
    assert horizon(tokens_per_param=5, counted_params="all") == 5 * counts["all"] // 4096


@pytest.mark.parametrize(("key", "least"), [("tokens", 4096), ("tokens_per_param", None)])
def test_less_than_one_batch_is_refused_and_one_batch_is_a_step(key, least):
    shape = shape_of(4, COMPACT, sequence_len=256)
    least = least or 4096 / shape.params["scaling"]
    plan = plan_base_train(resolved(COMPACT, 4, horizon={"batch_tokens": 4096, key: least}), shape)
    assert plan.steps == 1
    with pytest.raises(UserError, match=rf"base_train.horizon.{key}=.*less than one batch of 8192; give more"):
        plan_base_train(resolved(COMPACT, 4, horizon={"batch_tokens": 8192, key: least}), shape)


@pytest.mark.parametrize(("depth", "width", "sequence_len"), [(1, 128, 64), (2, 128, 96), (3, 256, 2048)])
def test_tiny_models_get_a_plan_that_trains(depth, width, sequence_len):
    plan = plan_base_train(resolved(MODERN, depth), shape_of(depth, MODERN, vocab_size=300, sequence_len=sequence_len, width=width))
    assert plan.steps >= scaling.MIN_STEPS and plan.batch_tokens % sequence_len == 0
    assert plan.warmup_steps <= 0.2 * plan.steps
    assert plan.groups["matrix"]["weight_decay"] <= scaling.MAX_WEIGHT_DECAY


def test_batch_that_does_not_divide_names_the_nearest_that_does():
    keys = {"horizon": {"batch_tokens": 1000}}
    with pytest.raises(UserError, match=r"base_train.horizon.batch_tokens=1000: not a multiple of 768 .*try base_train.horizon.batch_tokens=768"):
        plan_base_train(resolved(COMPACT, 4, **keys), shape_of(4, COMPACT, sequence_len=256), ranks=3)
    assert plan_base_train(resolved(COMPACT, 4, horizon={"batch_tokens": 768}), shape_of(4, COMPACT, sequence_len=256), ranks=3).accumulation == 1


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_every_row_of_a_step_is_in_one_micro_batch(ranks):
    plan = plan_base_train(resolved(MODERN, 12), shape_of(12, MODERN), ranks=ranks)
    assert plan.micro_batch_rows * plan.accumulation * plan.ranks == plan.rows_per_step == 256


def test_micro_batch_is_the_largest_divisor_that_fits_and_on_a_cpu_what_is_fast():
    shape = shape_of(12, MODERN)
    assert [plan_base_train(resolved(MODERN), shape, ranks=8, most_rows=most).micro_batch_rows for most in (1, 7, 8, 1000)] == [1, 4, 8, 32]
    assert plan_base_train(resolved(MODERN), shape).micro_batch_rows * 2048 == CPU_MICRO_BATCH_TOKENS
    assert plan_base_train(resolved(MODERN, micro_batch_rows=16), shape, ranks=8, most_rows=8).micro_batch_rows == 16, "who asks gets it"


def test_tuning_inherits_rates_and_batch_of_the_parent():
    shape = shape_of(12, MODERN)
    parent = plan_base_train(resolved(MODERN, 12), shape)
    section = config.TuneStage(mixture=[{"task": "identity"}], lr_fraction=0.1, epochs=2.0).model_dump()
    plan = plan_tune("chat_sft", section, parent.to_dict(), shape, rows=1000)
    assert plan.batch_tokens == parent.batch_tokens and plan.steps == math.ceil(2000 / plan.rows_per_step)
    assert plan.groups["head"]["lr"] == pytest.approx(0.1 * parent.groups["head"]["lr"])
    assert {group["weight_decay"] for group in plan.groups.values()} == {0.0}


def test_plan_holds_nothing_of_the_machine():
    shape = shape_of(12, MODERN)
    assert plan_base_train(resolved(MODERN), shape, ranks=8, most_rows=32).to_dict() == plan_base_train(resolved(MODERN), shape).to_dict()
