"""Clocks, rates and memory: what all benchmarks measure with. Speeds are work over seconds; a spread is the middle half of the measurements."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.train.measure import memory

GEMM_SIZES = (512, 1024, 2048)
GEMM_FLOPS = 2 * 1024**3  # at least so many per measurement, or a small product is all start-up


@dataclass(frozen=True)
class Taken:
    """Seconds of one action: on the wall, and of the CPU in all threads of this process."""

    wall_s: float
    cpu_s: float


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of a GPU; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def take(action: Callable[[], object], device: torch.device) -> Taken:
    """Do it once and say how long it took."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    synchronize(device)
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(actions: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[list[Taken]]:
    """Each action in each round: a busy neighbour slows all of them alike, so that ratios hold where seconds do not."""
    taken: list[list[Taken]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, found in zip(actions, taken, strict=True):
            found.append(take(action, device))
    return taken


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, best (largest), worst and the middle half of rates."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "best": max(values), "worst": min(values), "middle_half": [low, high], "measurements": len(values)}


# --- the rate of matrix products -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A square matrix product, to be measured in turn with what is made of such products."""

    size: int
    multiply: Callable[[], None]

    @property
    def flops(self) -> float:
        """Of one call."""
        return 2.0 * self.size**3 * self.repeats

    @property
    def repeats(self) -> int:
        """Products in one call."""
        return max(1, GEMM_FLOPS // (2 * self.size**3))


def products(sizes: Sequence[int], device: torch.device, dtype: torch.dtype) -> list[Product]:
    """One per size, warm."""

    def prepare(size: int) -> Product:
        left, right, out = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(3))

        def multiply() -> None:
            for _ in range(product.repeats):
                torch.mm(left, right, out=out)

        product = Product(size, multiply)
        multiply()
        return product

    return [prepare(size) for size in sizes]


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes at the highest: of the process, and of what it held on a GPU."""
    names = {"peak_rss_bytes": "process_bytes", "peak_cuda_allocated_bytes": "gpu_bytes", "peak_cuda_reserved_bytes": "gpu_reserved_bytes"}
    return {names[key]: held for key, held in memory(device).items()}
