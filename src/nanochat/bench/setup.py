"""A real model, plan, optimizer and batches of random ids, built as stage base_train builds them, from a recipe and overrides."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nanochat.config import MAX_VOCAB, MIN_VOCAB, BaseTrainStage, parse_section, resolve_base_train
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.report.text import size
from nanochat.runtime import Runtime
from nanochat.train.batches import next_token_pairs
from nanochat.train.host_memory import available_bytes
from nanochat.train.memory import Setting, most_rows, training_memory
from nanochat.train.scaling import TrainingPlan, plan_base_train
from nanochat.train.sizes import model_configs, shape_of
from nanochat.train.update import Batches, Rows

ROWS_PER_STEP = {"cpu": 8, "mps": 8, "cuda": 64}  # where --batch-tokens is not given
HORIZON = 1000  # updates of the plan: so many that no benchmark ends the schedule
FLAGS = {
    "depth": "--depth",
    "recipe": "--recipe",
    "horizon.steps": "--steps",
    "horizon.batch_tokens": "--batch-tokens",
    "horizon.tokens": "--steps",
    "horizon.tokens_per_param": "--steps",
}
MOST_TOKENS = 65_536  # of a row, as in an experiment


@dataclass(frozen=True)
class Request:
    """What is to be measured, as the flags say it."""

    recipe: str
    depth: int
    overrides: Sequence[str]
    sequence_len: int
    vocab_size: int
    batch_tokens: int | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Setup:
    """What a benchmark runs."""

    request: Request
    resolved: dict[str, Any]
    runtime: Runtime
    config: ModelConfig
    plan: TrainingPlan
    model: GPT
    batches: Batches
    build_s: float

    def estimated_bytes(self) -> int:
        """Memory of a training process by the model that plans go by."""
        setting = Setting.of(self.runtime.device.type, accumulates=self.plan.accumulation > 1, recompute=self.resolved["recompute"])  # type: ignore[arg-type]
        return training_memory(self.config, self.plan.micro_batch_rows, setting).total

    def describe(self) -> dict[str, Any]:
        """Model and machine, for the reader of the figures."""
        config, runtime = self.config, self.runtime
        return {
            "recipe": self.request.recipe,
            "overrides": list(self.request.overrides),
            **{key: getattr(config, key) for key in ("depth", "width", "heads", "kv_heads", "sequence_len", "vocab_size")},
            "parameters": config.parameter_counts()["total"],
            "flops_per_token": config.flops_per_token(),
            "device": runtime.device.type,
            "device_name": runtime.facts.get("device_name"),
            "threads": runtime.facts["threads"],
            "dtype": str(runtime.dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }


class RandomBatches:
    """Rows of random ids: the same for the same step, every target counted."""

    def __init__(self, vocab_size: int, sequence_len: int) -> None:
        self.vocab_size, self.sequence_len = vocab_size, sequence_len

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs and targets at these positions of a step."""
        draws = np.random.default_rng([step, positions[0]])
        return next_token_pairs(draws.integers(self.vocab_size, size=(len(positions), self.sequence_len + 1)))


def build(request: Request) -> Setup:
    """Everything in place on the device. Raises UserError for what cannot be built."""
    started = time.perf_counter()
    config, reference = shapes(request)  # what is wrong with the request is said before a device is looked for
    runtime = Runtime.start(device=request.device, threads=request.threads)
    batch_tokens = request.batch_tokens or ROWS_PER_STEP[runtime.device.type] * request.sequence_len
    resolved = resolve(request, batch_tokens)
    setting = Setting.of(runtime.device.type, recompute=resolved["recompute"])  # type: ignore[arg-type]
    plan = plan_base_train(resolved, shape_of(config, reference), most_rows=most_rows(config, runtime.facts.get("device_memory_bytes"), setting))
    refuse_beyond_memory(runtime, 4 * config.parameter_counts()["total"], "weights alone")
    model = GPT(config, dtype=runtime.dtype, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    batches = RandomBatches(config.vocab_size, config.sequence_len)
    return Setup(request, resolved, runtime, config, plan, model, batches, time.perf_counter() - started)


def refuse_beyond_memory(runtime: Runtime, needed_bytes: int, what: str) -> None:
    """Raise UserError for more than a CPU's memory has: the system would kill the process, or one beside it, without a word."""
    if runtime.device.type == "cpu" and needed_bytes > (free := available_bytes()):
        raise UserError(f"{what} of this model take about {size(needed_bytes)} of memory and {size(free)} are free; give a smaller --depth or width")


def resolve(request: Request, batch_tokens: int) -> dict[str, Any]:
    """Every hyper-parameter: the recipe with the overrides on top."""
    content: dict[str, Any] = {"recipe": request.recipe, "depth": request.depth, "horizon": {"steps": HORIZON, "batch_tokens": batch_tokens}}
    for override in request.overrides:
        _place(content, override)
    return resolve_base_train(section := parse_section(BaseTrainStage, content, "--override"), section.recipe)


def shapes(request: Request) -> tuple[ModelConfig, ModelConfig]:
    """The model's shape and that of the same architecture at depth 12."""
    if not MIN_VOCAB <= request.vocab_size <= MAX_VOCAB:
        raise UserError(f"--vocab-size={request.vocab_size}: give a number from {MIN_VOCAB} to {MAX_VOCAB}")
    if not 16 <= request.sequence_len <= MOST_TOKENS:
        raise UserError(f"--sequence-len={request.sequence_len}: give a number from 16 to {MOST_TOKENS}")
    if request.batch_tokens and request.batch_tokens % request.sequence_len:
        nearest = max(1, round(request.batch_tokens / request.sequence_len)) * request.sequence_len
        raise UserError(f"--batch-tokens={request.batch_tokens}: not a multiple of --sequence-len {request.sequence_len}; try {nearest}")
    return model_configs(resolve(request, request.batch_tokens or request.sequence_len), request.depth, request.vocab_size, request.sequence_len)


def _place(content: dict[str, Any], override: str) -> None:
    """Put KEY=VALUE, such as architecture.width=256, into the section."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--override={override!r}: not KEY=VALUE; write for example architecture.width=256")
    if key in FLAGS:
        raise UserError(f"--override={override!r}: has a flag of its own; give {FLAGS[key]}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"--override={override!r}: {parent} is no section; docs/reference/config.md has the keys of base_train")
    place[last] = value
