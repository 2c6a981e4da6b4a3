"""What a training does for speed and memory on the device it has: compiled blocks, windowed attention, fp8, recomputation, rows ahead.

Whatever was asked for and cannot be had here is said once, with what it costs, or refused in one sentence.
"""

from collections.abc import Mapping
from typing import Any

import torch

from nanochat.errors import UserError
from nanochat.model import compiling, fp8, windows
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime, log
from nanochat.train.copies import Sender
from nanochat.train.prefetch import Prefetched
from nanochat.train.update import Batches, Model


def accelerated(model: GPT, runtime: Runtime, section: Mapping[str, Any], *, compile_: str) -> Model:
    """The model as its trainer calls it, set up for this device. `compile_`: auto, on or off."""
    model.recompute = section["recompute"] == "blocks"
    if section.get("fp8"):
        check_fp8(runtime)
        model.use_fp8()
    compiled = is_compiled(runtime.device, compile_, runtime)
    windowed = [window for window in model.config.windows if window is not None]
    model.windowed, name = windows.choose(runtime.device, runtime.dtype, compiled=compiled)
    if windowed and runtime.device.type != "cpu" and runtime.is_main:
        cost = "" if model.windowed else ": 27% slower than window_pattern: L on an A100; compile, or install flash-attn"
        log(f"attention over {min(windowed)} positions in {len(windowed)} of {model.config.depth} layers by {name}{cost}")
    if not compiled:
        return model
    if runtime.ranks_per_node > 1:
        compiling.share_workers(runtime.ranks_per_node)
    return compiling.CompiledGPT(model, log)


def is_compiled(device: torch.device, asked: str, runtime: Runtime) -> bool:
    """Whether blocks are compiled: `auto` means on a GPU. Asked for but not to be had is a UserError."""
    if asked == "off" or (asked == "auto" and device.type != "cuda"):
        return False
    problem = compiling.problem_of(device)
    if problem is None:
        return True
    if asked == "on":
        raise UserError(f"--compile=on: {problem}; install it or give --compile off")
    if runtime.is_main:
        log(f"not compiled, since {problem}: more memory and, by published runs, at least a sixth slower; install it, or give --compile off to accept that")
    return False


def check_fp8(runtime: Runtime) -> None:
    """Raise UserError on a device without eight-bit units."""
    name, capability = runtime.facts.get("device_name", "a CPU"), (0, 0)
    if runtime.device.type == "cuda":
        capability = torch.cuda.get_device_capability(runtime.device)
        name += f" (compute capability {capability[0]}.{capability[1]})"
    if capability < fp8.LEAST_CAPABILITY:
        raise UserError(f"fp8=true: {name} has no units for eight-bit products, which begin with compute capability 8.9; leave fp8 out")


def read_ahead(batches: Batches, runtime: Runtime, steps: int) -> Batches:
    """On a GPU, rows of the next step are read and copied while this one is computed; a CPU would only be taken from its work."""
    return Prefetched(batches, steps, Sender(runtime.device).send) if runtime.device.type == "cuda" else batches
