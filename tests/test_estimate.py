"""The cost model against published runs, and its arithmetic."""

import math

import pytest

from nanochat.hardware import accelerator
from nanochat.model.config import ModelConfig
from nanochat.plan.estimate import START_UP_S, Machine, TrainingWork, attempts, training_duration
from nanochat.recipes import RECIPES

VOCAB, CONTEXT = 65_536, 2_048


def model(recipe: str, depth: int, **changes: object) -> ModelConfig:
    return ModelConfig.from_depth(depth, vocab_size=VOCAB, sequence_len=CONTEXT, architecture={**RECIPES[recipe]["architecture"], **changes})


def machine(card: str, gpus: int = 8) -> Machine:
    return Machine(accelerator(card), gpus=gpus)


def base(config: ModelConfig, tokens: float, *, validated: bool = True) -> TrainingWork:
    """Pretraining as it was published: 10.5M tokens of validation every 250 steps of 524,288 tokens."""
    return TrainingWork(
        tokens=int(tokens),
        flops_per_token=config.flops_per_token(),
        width=config.width,
        validations=int(tokens / 524_288 / 250) * validated,
        validation_tokens=20 * 524_288,
    )


# what, model, tokens, card, published hours
RUNS = [
    ("d20, first recipe, three runs", ("classic-2025-11", 20), 11.22e9, "a100", 7.16),
    ("d20, first recipe", ("classic-2025-11", 20), 11.22e9, "h100", 3.03),
    ("d32, first recipe", ("classic-2025-11", 32), 37.6e9, "h100", 31.0),
]


@pytest.mark.parametrize(("_name", "shape", "tokens", "card", "hours"), RUNS, ids=[f"{run[0]} on 8 {run[3]}" for run in RUNS])
def test_published_runs_are_met_within_fifteen_percent(_name: str, shape: tuple[str, int], tokens: float, card: str, hours: float) -> None:
    estimate = training_duration(base(model(*shape), tokens), machine(card)).total / 3600
    assert estimate == pytest.approx(hours, rel=0.15)


def test_depth_24_on_h100_by_its_published_flops() -> None:
    work = TrainingWork(tokens=16_704 * 524_288, flops_per_token=round(4.33e19 / (16_704 * 524_288)), width=1_536)
    assert training_duration(work, machine("h100")).training / 3600 == pytest.approx(3.04, rel=0.15)


@pytest.mark.parametrize(("pattern", "tokens_per_s"), [("L", 309e3), ("SSSL", 315e3)], ids=["full context", "windowed kernel"])
def test_depth_24_tokens_per_second_on_a100(pattern: str, tokens_per_s: float) -> None:
    config = model("modern-2026-07", 24, window_pattern=pattern)
    assert machine("a100").flops(config.width) / config.flops_per_token() == pytest.approx(tokens_per_s, rel=0.15)


def test_a_measured_rate_wins() -> None:
    work = TrainingWork(tokens=1_000_000, flops_per_token=6_000, width=64)
    assert training_duration(work, Machine(None, cores=2, measured_flops=6e9)).training == pytest.approx(1.0)


def test_more_gpus_are_faster_and_a_second_node_costs_something() -> None:
    work = base(model("classic-2025-11", 20), 1e9)
    one, two = (training_duration(work, machine("a100", gpus)).training for gpus in (4, 8))
    assert one == pytest.approx(2 * two)
    across = training_duration(work, Machine(accelerator("a100"), gpus=16, nodes=2)).training
    assert two / 2 < across < two


@pytest.mark.parametrize(("hours", "limit_h"), [(1.0, 12), (7.1, 12), (31.0, 12), (31.0, 2), (100.0, 1)])
def test_jobs_are_enough_for_the_work(hours: float, limit_h: int) -> None:
    cut = attempts(hours * 3600, limit_h * 60)
    assert cut.runtime_min <= limit_h * 60
    useful = cut.jobs * (cut.runtime_min * 60 * 0.95 - START_UP_S) if cut.restarts else cut.runtime_min * 60
    assert useful >= hours * 3600 - START_UP_S
    assert cut.jobs <= math.ceil(1.3 * hours / limit_h) + 1


def test_without_a_limit_one_job_is_enough_and_a_limit_below_start_up_is_refused() -> None:
    assert attempts(100 * 3600, None).jobs == 1
    with pytest.raises(ValueError, match="raise the limit"):
        attempts(7200, 1)
