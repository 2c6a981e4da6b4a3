"""Blocks that keep their inputs alone for the backward pass and are computed again there: far less memory, the same bits.

torch.utils.checkpoint leaves its inputs in cycles, which Python's collector would have to find; it is off while a model trains.
Compiled code uses it all the same: there the compiler decides what is kept, and nothing of it remains in Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Block = Callable[[Tensor, Tensor], Tensor]


def recomputed(block: Block, x: Tensor, x0: Tensor) -> Tensor:
    """block(x, x0), whose parameters get their gradients while it is computed again."""
    if torch.compiler.is_compiling():
        compiled: Tensor = checkpoint(block, x, x0, use_reentrant=False, preserve_rng_state=False)
        return compiled
    y: Tensor = _Recomputed.apply(block, x0, x)  # type: ignore[no-untyped-call]
    return y


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, x0: Tensor, x: Tensor) -> Tensor:  # gradients of x0 are added in this order, as without
        ctx.block = block
        ctx.save_for_backward(x, x0)
        with torch.enable_grad():  # or the kernels of a CPU would make room for others, with other bits
            return block(x.detach(), x0.detach()).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        x, x0 = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        with torch.enable_grad():
            # its gradient at y is what came in; handing that over as such would import sympy, 36 MB and a second
            product = (ctx.block(x, x0) * grads[0]).sum()
        product.backward()
        return None, x0.grad, x.grad
