"""Out of memory in an update: fewer rows at a time and more passes, the global batch as it was, and the update done again.

Memory is short in a forward or backward pass, or for the buffers in which gradients are summed, before any weight was changed, so an update can be
repeated from its start. All ranks learn of it together, before they exchange anything. While weights are changed nothing can be repeated: the run ends.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from nanochat.errors import UserError
from nanochat.runtime import Runtime
from nanochat.train.memory import divided
from nanochat.train.scaling import TrainingPlan

# of a CPU's allocator; of CUDA, as when a kernel is loaded; of Triton likewise; of cuBLAS, when its handle or workspace is made
SHORTAGES = ("DefaultCPUAllocator", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
CURE = "take recompute: blocks, a device with more memory, a smaller sequence_len or a smaller model"


class OutOfMemoryError(Exception):
    """An update did not fit into the memory of some rank; nothing was changed."""


@dataclass
class Shortage:
    """Whether this rank ran out of memory."""

    met: bool = False

    def agree(self, runtime: Runtime) -> None:
        """Raise OutOfMemoryError on every rank if any has met a shortage; all ranks call it at the same moment."""
        if runtime.any_rank(self.met):
            raise OutOfMemoryError


def is_shortage(error: BaseException) -> bool:
    """Whether memory was short: CUDA's allocator in torch has a class for that; a CPU's, and CUDA beside it, say so in the text of a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and any(text in str(error) for text in SHORTAGES))


@contextlib.contextmanager
def noticed(may_be: bool = True) -> Iterator[Shortage]:
    """Note a shortage inside instead of failing, until `agree` is called, unless it may not be. What was held for it is let go."""
    shortage = Shortage()
    try:
        yield shortage
    except (RuntimeError, MemoryError) as error:
        if not may_be or not is_shortage(error):
            raise
        shortage.met = True


@contextlib.contextmanager
def unrepeatable() -> Iterator[None]:
    """Where weights are changed: a shortage ends the run, since an update that is done twice is another one."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise UserError(f"out of memory while weights were updated, which smaller micro-batches do not help; {CURE}, and start again") from None


def with_fewer_rows(plan: TrainingPlan, step: int, say: Callable[[str], None]) -> TrainingPlan:
    """The plan with half the rows at a time (or the largest divisor below), said aloud. Raises UserError at one row."""
    rows, length = plan.micro_batch_rows, plan.sequence_len
    if rows == 1:
        raise UserError(f"step {step + 1}: out of memory with one row of {length} tokens at a time; {CURE}, and start again")
    fewer = replace(plan, micro_batch_rows=divided(rows, rows // 2))
    count = f"{fewer.micro_batch_rows} row{'s' * (fewer.micro_batch_rows > 1)}"
    say(f"step {step + 1}: out of memory with {rows} rows at a time; done again, and the rest of the run, with {count} x {fewer.accumulation} passes")
    return fewer


def kept_rows(plan: TrainingPlan, rows: int) -> TrainingPlan:
    """The plan with no more than `rows` at a time, to which an earlier attempt came down."""
    return replace(plan, micro_batch_rows=divided(plan.rows_per_step // plan.ranks, min(rows, plan.micro_batch_rows)))


def let_go(runtime: Runtime) -> None:
    """Give memory of what has failed back to the device."""
    gc.collect()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
