"""The cost model against published runs, and its arithmetic."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.hardware import accelerator
from nanochat.model.config import ModelConfig
from nanochat.plan.estimate import START_UP_S, Machine, TrainingWork, attempts, training_duration
from nanochat.recipes import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "estimates.md"
VOCAB, CONTEXT, BATCH = 65_536, 2_048, 524_288


def model(recipe: str, depth: int, vocab_size: int = VOCAB, **changes: object) -> ModelConfig:
    architecture = {**RECIPES[recipe]["architecture"], **changes}
    return ModelConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=CONTEXT, architecture=architecture)


def machine(card: str, gpus: int = 8) -> Machine:
    return Machine(accelerator(card), gpus=gpus)


D20, D32 = model("classic-2025-11", 20), model("classic-2025-11", 32)
FULL, WINDOWED = model("modern-2026-07", 24, 32_768), model("modern-2026-07", 24, 32_768, window_pattern="SSSL")


def work(config: ModelConfig, tokens: float, *, every: int = 250, conversations: int = 0, batch: int = BATCH) -> TrainingWork:
    """Training as it was published: 10.5M tokens of validation every 250 steps of 524,288 tokens; `every` 0: training alone."""
    return TrainingWork(
        tokens=int(tokens),
        flops_per_token=config.flops_per_token(),
        width=config.width,
        steps=int(tokens / batch),
        params=config.parameter_counts()["total"],
        validations=int(tokens / batch / every) if every else 0,
        validation_tokens=20 * BATCH,
        conversations=conversations,
    )


def hours(config: ModelConfig, tokens: float, card: str, **options: int) -> float:
    return training_duration(work(config, tokens, **options), machine(card)).total / 3600


def training_hours(config: ModelConfig, tokens: float, card: str) -> float:
    return training_duration(work(config, tokens, every=0), machine(card)).training / 3600


def tokens_per_s(config: ModelConfig, card: str = "a100") -> float:
    return machine(card).published_flops(config.width) / config.flops_per_token()


@dataclass(frozen=True)
class Published:
    """One figure of a run that somebody else has made; 8 GPUs each."""

    what: str
    card: str
    value: float
    unit: str
    estimate: Callable[[], float]

    def row(self) -> str:
        """How the page shows it."""
        digits = "{:,.0f}" if self.value >= 100 else "{:.2f}"
        estimate = self.estimate()
        numbers = (f"{digits.format(self.value)} {self.unit}", f"{digits.format(estimate)} {self.unit}", f"{estimate / self.value - 1:+.0%}")
        return f"| {self.what} | {self.card} | {' | '.join(numbers)} |"


D24_TOKENS, D24_FLOPS = 16_704 * BATCH, 4.33e19
BY_FLOPS = TrainingWork(tokens=D24_TOKENS, flops_per_token=round(D24_FLOPS / D24_TOKENS), width=1_536)
RUNS = [
    Published("depth 20, first recipe, pretraining with its evaluations: 7h05", "A100", 7.08, "h", lambda: hours(D20, 11.22e9, "a100")),
    Published("same, second run: 7h11", "A100", 7.18, "h", lambda: hours(D20, 11.22e9, "a100")),
    Published("same, third run: 7h13", "A100", 7.22, "h", lambda: hours(D20, 11.22e9, "a100")),
    Published("same, another report", "A100", 6.60, "h", lambda: hours(D20, 11.22e9, "a100")),
    Published("same, speed of the whole run", "A100", 463_000, "tokens/s", lambda: tokens_per_s(D20)),
    Published("same, another report", "A100", 472_000, "tokens/s", lambda: tokens_per_s(D20)),
    Published("same, a log of its first steps", "A100", 530_000, "tokens/s", lambda: tokens_per_s(D20)),
    Published("same, pretraining with its evaluations: 3h02", "H100", 3.03, "h", lambda: hours(D20, 11.22e9, "h100")),
    Published("same, training alone: 172.6 min", "H100", 2.88, "h", lambda: training_hours(D20, 11.22e9, "h100")),
    Published(
        "same, mid-training: 809 steps, 849,000 conversations, 10m02",
        "H100",
        10.03,
        "min",
        lambda: 60 * hours(D20, 809 * BATCH, "h100", every=150, conversations=849_000),
    ),
    Published(
        "same, fine-tuning: 701 steps, 22,439 conversations, 2m26",
        "H100",
        2.43,
        "min",
        lambda: 60 * hours(D20, 701 * 16_384, "h100", every=0, conversations=22_439, batch=16_384),
    ),
    Published("depth 32, first recipe, 37.6B tokens", "H100", 31.0, "h", lambda: hours(D32, 37.6e9, "h100")),
    Published("same, another report", "H100", 33.0, "h", lambda: hours(D32, 37.6e9, "h100")),
    Published("depth 24, 8.76B tokens, 4.33e19 FLOPs, training alone", "H100", 3.04, "h", lambda: training_duration(BY_FLOPS, machine("h100")).training / 3600),
    Published("depth 24, modern recipe, full context", "A100", 309_000, "tokens/s", lambda: tokens_per_s(FULL)),
    Published("same, pattern SSSL with a windowed kernel", "A100", 315_000, "tokens/s", lambda: tokens_per_s(WINDOWED)),
    Published("same, full context, 5.84B tokens, training alone", "A100", 5.25, "h", lambda: training_hours(FULL, 5.838e9, "a100")),
    Published("same, pattern SSSL with a windowed kernel", "A100", 5.10, "h", lambda: training_hours(WINDOWED, 5.838e9, "a100")),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.what} on 8 {run.card}")
def test_published_runs_are_met_within_fifteen_percent(run: Published) -> None:
    assert run.estimate() == pytest.approx(run.value, rel=0.15)


def test_the_page_shows_every_published_run_with_its_error() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [run.row() for run in RUNS if run.row() not in page] == []
    assert len(re.findall(r"^\| .* \| [AH]100 \| ", page, re.MULTILINE)) == len(RUNS), "and no other"


def test_a_measured_rate_wins() -> None:
    job = TrainingWork(tokens=1_000_000, flops_per_token=6_000, width=64)
    published = training_duration(job, Machine(None, cores=2)).training
    assert training_duration(job, Machine(None, cores=2, measured=0.5)).training == pytest.approx(2 * published)


def test_a_small_batch_cannot_make_a_step_shorter_than_an_update() -> None:
    large, small = (work(D20, 100 * batch, every=0, batch=batch) for batch in (BATCH, 2048))
    one, two = (training_duration(job, machine("a100")).training / 100 for job in (large, small))
    assert two == pytest.approx(561e6 * 2e-10, rel=0.01)
    assert two > one / 256


def test_more_gpus_are_faster_and_a_second_node_costs_something() -> None:
    job = work(D20, 1e9)
    one, two = (training_duration(job, machine("a100", gpus)).training for gpus in (4, 8))
    assert one == pytest.approx(2 * two)
    across = training_duration(job, Machine(accelerator("a100"), gpus=16, nodes=2)).training
    assert two / 2 < across < two


@pytest.mark.parametrize(("took", "limit_h"), [(1.0, 12), (7.1, 12), (31.0, 12), (31.0, 2), (100.0, 1)])
def test_jobs_are_enough_for_the_work(took: float, limit_h: int) -> None:
    cut = attempts(took * 3600, limit_h * 60)
    assert cut.runtime_min <= limit_h * 60
    useful = cut.jobs * (cut.runtime_min * 60 * 0.95 - START_UP_S)
    assert useful >= took * 3600 - START_UP_S
    assert cut.jobs <= math.ceil(1.3 * took / limit_h) + 1


def test_without_a_limit_one_job_is_enough_and_a_limit_below_start_up_is_refused() -> None:
    assert attempts(100 * 3600, None).jobs == 1
    with pytest.raises(ValueError, match="ask for more"):
        attempts(7200, 1)
