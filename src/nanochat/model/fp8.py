"""Matrix products in eight bits, for cards that have units for them (compute capability 8.9: Ada, Hopper and later).

Each tensor is scaled by one number so that its largest value is the format's largest: activations and weights in e4m3, gradients in
e5m2, which has more range. Sums are in fp32. Layers are those of blocks whose sizes fill a unit; all else stays in bf16.

Legend: N positions, I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor

LEAST_CAPABILITY = (8, 9)
LEAST_SIZE, MULTIPLE = 128, 16  # below the scaling costs more than it saves; the products need multiples of 16


def applies_to(rows: int, inputs: int, outputs: int) -> bool:
    """Whether a product of these sizes is computed in eight bits."""
    return min(inputs, outputs) >= LEAST_SIZE and inputs % MULTIPLE == outputs % MULTIPLE == rows % MULTIPLE == 0


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., I) times weight (O, I) transposed, in the dtype of x."""
    y: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], len(weight))


def scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in eight bits, and the fp32 number to multiply it with."""
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a (M, K) times b (K, N); the units want a by rows and b by columns."""
    left, right = a[0].contiguous(), b[0].t().contiguous().t()
    y: Tensor = torch._scaled_mm(left, right, scale_a=a[1], scale_b=b[1], out_dtype=dtype)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, w8 = scaled(x, torch.float8_e4m3fn), scaled(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(*x8, *w8)
        ctx.dtype = weight.dtype
        return product(x8, (w8[0].t(), w8[1]), x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = scaled(grads[0], torch.float8_e5m2)
        grad_x = product((g8, g_scale), (w8, w_scale), grads[0].dtype)
        return grad_x, product((g8.t(), g_scale), (x8, x_scale), grads[0].dtype).to(ctx.dtype)
