"""`nanochat bench train`: the real training step, its speed, what share of the machine's arithmetic it reaches, and where the time goes.

On a CPU the measure is the rate of matrix products in the same process: before each step several square sizes are multiplied, and the step is
compared with the fastest of them in the same round. On a GPU it is the card's peak, where that is known.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.bench.measure import GEMM_SIZES, Product, Taken, in_turn, peak_memory, products, summary, synchronize, take
from nanochat.bench.setup import Setup, refuse_beyond_memory
from nanochat.errors import UserError
from nanochat.hardware import peak_flops
from nanochat.model.compiling import CompiledGPT
from nanochat.train.acceleration import accelerated
from nanochat.train.fitting import CURE, OutOfMemoryError
from nanochat.train.measure import TimedBatches
from nanochat.train.memory import divided
from nanochat.train.update import Model, build_optimizer, make_update

WARM_UP_STEPS = 2  # the first allocates the optimizer's state, the second meets memory that was used once
PARTS = ("forward", "backward", "optimizer")  # and data, which is read before them


class PhaseClock:
    """Seconds of each part of an update. A GPU is waited for at each border, so a step takes longer: speeds come from other steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = 0.0

    def begin(self) -> None:
        """A part begins."""
        synchronize(self.device)
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        """It ends; what follows at once is another part."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now


class TimedModel:
    """A model whose forward and backward passes are timed: the backward pass ends with the last parameter that gets its gradient."""

    def __init__(self, model: Model, clock: PhaseClock) -> None:
        self._model, self._clock = model, clock
        parameters = [parameter for pairs in model.parameter_groups().values() for _, parameter in pairs]
        self._waiting, self._expected = 0, len(parameters)
        self._hooks: list[Any] = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in parameters]  # type: ignore[no-untyped-call]

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As the model's own."""
        self._waiting = self._expected
        self._clock.begin()
        result = self._model.loss(ids, targets)
        self._clock.end("forward")
        return result

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """As the model's own."""
        return self._model.parameter_groups()

    def close(self) -> None:
        """Time nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, _parameter: Tensor) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            self._clock.end("backward")


def measure_training(setup: Setup, *, steps: int, started_s: float, sizes: Sequence[int] = GEMM_SIZES, compile_: str = "auto") -> dict[str, Any]:
    """Figures of `steps` updates. `started_s`: when the process began, in seconds of time.time(); `compile_`: auto, on or off, as of a training stage."""
    runtime, device = setup.runtime, setup.runtime.device
    refuse_beyond_memory(runtime, setup.estimated_bytes(), "training steps")
    model = accelerated(setup.model, runtime, setup.resolved, compile_=compile_)
    optimizer = build_optimizer(setup.model, setup.plan, runtime)
    number = iter(range(1 << 30))

    def update() -> None:
        try:
            make_update(model, optimizer, setup.plan, setup.batches, runtime, next(number))
        except OutOfMemoryError:
            rows = setup.plan.micro_batch_rows
            fewer = f"give --override micro_batch_rows={divided(rows, rows // 2)}, or " if rows > 1 else ""
            raise UserError(f"out of memory with {rows} x {setup.config.sequence_len} tokens at a time; {fewer}{CURE}") from None

    first = take(update, device)
    first_step_s, first_cpu_s = time.time() - started_s, time.process_time()  # which counts from the start of the process
    for _ in range(WARM_UP_STEPS - 1):
        update()
    rivals = products(sizes, device, runtime.dtype) if device.type == "cpu" else []
    *multiplied, taken = in_turn([*(rival.multiply for rival in rivals), update], steps, device)
    shares = phase_shares(setup, model, optimizer, [next(number) for _ in range(max(3, steps // 5))])
    return {
        "benchmark": "train",
        "setup": setup.describe(),
        "compiled": isinstance(model, CompiledGPT) and model.is_compiled,
        "fp8": setup.resolved["fp8"],
        "recompute": setup.resolved["recompute"],
        "steps": steps,
        "batch_tokens": setup.plan.batch_tokens,
        "micro_batches": setup.plan.accumulation,
        "micro_batch_rows": setup.plan.micro_batch_rows,
        **speeds(setup, taken, rivals, multiplied),
        "shares": shares,
        "first_step": {"since_process_start_s": first_step_s, "cpu_s": first_cpu_s, "build_s": setup.build_s, "update_s": first.wall_s},
        "peak_memory": peak_memory(device),
        "estimated_memory_bytes": setup.estimated_bytes(),
    }


def speeds(setup: Setup, taken: Sequence[Taken], rivals: Sequence[Product], multiplied: Sequence[Sequence[Taken]]) -> dict[str, Any]:
    """Rates of the steps `taken`, and their utilisation; `multiplied`: for each of the rivals how long it took in each round."""
    tokens, flops_per_token = setup.plan.batch_tokens, setup.config.flops_per_token()
    flops = tokens * flops_per_token
    rates = summary([tokens / one.wall_s for one in taken])
    found = {
        "tokens_per_s": rates,
        "step_s": statistics.median(one.wall_s for one in taken),
        "step_cpu_s": statistics.median(one.cpu_s for one in taken),
        "model_flops_per_token": flops_per_token,
        "achieved_flops_per_s": rates["median"] * flops_per_token,
    }
    if rivals:
        return found | {"utilisation": utilisation_of_products(flops, taken, rivals, multiplied)}
    name = setup.runtime.facts.get("device_name")
    if (peak := peak_flops(name)) is None:
        return found | {"utilisation": {"value": None, "unavailable": f"the peak of {name or setup.runtime.device.type} is not known"}}
    return found | {"utilisation": {"value": rates["median"] * flops_per_token / peak, "of": f"peak of {name}", "of_flops_per_s": peak}}


def utilisation_of_products(flops: float, taken: Sequence[Taken], rivals: Sequence[Product], multiplied: Sequence[Sequence[Taken]]) -> dict[str, Any]:
    """Each step's rate over that of the fastest product of the same round; also by CPU seconds, which a busy neighbour changes less."""
    best = [max(rival.flops / found[turn].wall_s for rival, found in zip(rivals, multiplied, strict=True)) for turn in range(len(taken))]
    best_cpu = [max(rival.flops / max(found[turn].cpu_s, 1e-9) for rival, found in zip(rivals, multiplied, strict=True)) for turn in range(len(taken))]
    ratios = [flops / one.wall_s / rate for one, rate in zip(taken, best, strict=True)]
    ratios_cpu = [flops / max(one.cpu_s, 1e-9) / rate for one, rate in zip(taken, best_cpu, strict=True)]
    return {
        "value": statistics.median(ratios),
        "middle_half": summary(ratios)["middle_half"],
        "best_step_of_best_product": flops / min(one.wall_s for one in taken) / max(best),
        "by_cpu_seconds": statistics.median(ratios_cpu),
        "of": f"matrix products in turn with the steps, the fastest of {', '.join(str(rival.size) for rival in rivals)} squared in each round",
        "of_flops_per_s": statistics.median(best),
    }


def phase_shares(setup: Setup, trained: Model, optimizer: Any, numbers: Sequence[int]) -> dict[str, float]:
    """Share of each part of an update, and of the rest: norms, clipping, the loss as a number."""
    clock = PhaseClock(setup.runtime.device)
    model, batches = TimedModel(trained, clock), TimedBatches(setup.batches)
    own_step = optimizer.step

    def timed_step(norm: float | None = None) -> None:
        clock.begin()
        own_step(norm)
        clock.end("optimizer")

    optimizer.step = timed_step
    try:
        whole = sum(
            take(lambda step=step: make_update(model, optimizer, setup.plan, batches, setup.runtime, step), clock.device).wall_s  # type: ignore[misc]
            for step in numbers
        )
    finally:
        optimizer.step = own_step
        model.close()
    shares = {part: seconds / whole for part, seconds in {**clock.seconds, "data": batches.seconds}.items()}
    return {**shares, "rest": max(0.0, 1 - sum(shares.values()))}
