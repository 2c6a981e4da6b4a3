"""torch.compile around the model in training: which parts of a machine it needs, and the model with it.

The compiler (inductor) fuses what stands between matrix products. It writes Triton on a GPU and C++ on a CPU, so it needs a compiler of
the machine. Shapes are static: another number of rows at a time is compiled again. Fused operations round differently, so a run that
was compiled has other bits than one that was not.
"""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as aot
from torch import Tensor, nn

from nanochat.model.gpt import GPT
from nanochat.model.windows import FlexWindows


def problem_of(device: torch.device) -> str | None:
    """What the compiler lacks here; None: nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        return None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "there is no C compiler (cc, gcc or clang), which triton needs"
    if device.type == "cpu":
        return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "there is no C++ compiler (g++, clang++ or c++)"
    return f"it is not used on {device.type}"


def share_workers(ranks: int) -> None:
    """Let so many ranks of one machine have as many of inductor's worker processes together as one rank would have; before anything is compiled."""
    import torch._inductor.config as inductor  # 1.1 s

    inductor.compile_threads = max(1, (inductor.compile_threads or 1) // ranks)


class CompiledGPT:
    """What a trainer needs of a model, its blocks compiled; goes on without, and says so, if the compiler fails. `backend`: of torch.compile."""

    def __init__(self, model: GPT, say: Callable[[str], None], backend: str | Callable[..., Any] = "inductor") -> None:
        self.model, self.say = model, say
        self._hidden: Callable[[Tensor], Tensor] = torch.compile(
            model.hidden, dynamic=False, fullgraph=True, backend=backend
        )  # the loss is products in chunks already
        # the backward pass is compiled with the forward one, where a failure can be done without, and not in the first backward pass
        aot.force_non_lazy_backward_lowering = True

    @property
    def is_compiled(self) -> bool:
        """Whether the compiler has not failed so far."""
        return self._hidden != self.model.hidden

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(summed cross entropy in nats, number of targets other than -1)."""
        if isinstance(self.model.windowed, FlexWindows):  # before the compiler looks, once per length
            self.model.windowed.prepare(self.model.config.windows, ids.shape[1], ids.device)
        try:
            hidden = self._hidden(ids)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])  # which backend, and why
            self.say(f"not compiled, the compiler failed ({reason}): more memory and slower; --compile off does without it from the start")
            if isinstance(self.model.windowed, FlexWindows):
                self.model.windowed = None
            self._hidden = self.model.hidden
            hidden = self._hidden(ids)
        return self.model.loss_of(hidden, targets)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """(name, parameter) pairs by group."""
        return self.model.parameter_groups()
