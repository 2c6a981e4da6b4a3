"""Training on a CPU: the model's steps as autograd functions whose gradients are written by hand.

A CPU spends as long on moving a tensor through memory as on multiplying it, so each function works on blocks of rows that
stay in cache, keeps only what its gradient needs, and writes into memory that it owns. `layers` and `attention` hold the
same steps as plain operations, for every other device (where a compiler fuses them) and for inference; tests compare the two.

Legend: N rows (positions), C width, F hidden width, B rows of tokens, T positions, H heads, D channels of a head.
"""

from typing import Any

import torch
from torch import Tensor

ROWS = 512  # positions per block: 512 x 1024 fp32 is 2 MB, the second-level cache of a server core


def applies_to(x: Tensor) -> bool:
    """Whether these functions are the right ones for `x`: training on a CPU, in fp32 or fp64."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension."""
    y: Tensor = _Norm.apply(x)  # type: ignore[no-untyped-call]
    return y


def residual_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x + relu(norm(x) up')^2 down', for x (..., C), up (F, C), down (C, F)."""
    y: Tensor = _ResidualMLP.apply(x, up, down)  # type: ignore[no-untyped-call]
    return y


def projections(x: Tensor, weights: tuple[Tensor, Tensor, Tensor], cos: Tensor, sin: Tensor, *, head_dim: int, qk_norm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, T, H, D) of x (B, T, C): one product, rotary embedding, norm of queries and keys.

    Channels of queries and keys come in another order than from the plain operations, so that a rotation is one complex
    product; q . k, all that attention reads, is the same.
    """
    q, k, v = _Projections.apply(x, *weights, cos, sin, head_dim, qk_norm)  # type: ignore[no-untyped-call]
    return q, k, v


def _inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean square + epsilon) over the last dimension, kept."""
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return scale.square_().div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()


def _norm_gradient(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient at the input of y = x * scale(x), in new memory."""
    share = torch.linalg.vecdot(grad, y)[..., None].div_(-y.shape[-1])
    return torch.addcmul(grad, y, share).mul_(scale)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _inverse_rms(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _norm_gradient(grads[0], *ctx.saved_tensors)


class _ResidualMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scale, hidden, out = _inverse_rms(flat), flat.new_empty(len(flat), len(up)), torch.empty_like(flat)
        square = flat.new_empty(min(ROWS, len(flat)), len(up))
        for start in range(0, len(flat), ROWS):
            block = slice(start, start + ROWS)
            h = hidden[block]
            torch.mm(flat[block] * scale[block], up.t(), out=h)
            torch.mul(h.relu_(), h, out=square[: len(h)])
            torch.addmm(flat[block], square[: len(h)], down.t(), out=out[block])
        ctx.save_for_backward(flat, scale, hidden, up, down)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat, scale, hidden, up, down = ctx.saved_tensors
        grad = grads[0].reshape(flat.shape)
        grad_x, grad_up, grad_down = torch.empty_like(flat), torch.zeros_like(up), torch.zeros_like(down)
        work = flat.new_empty(min(ROWS, len(flat)), len(up))
        for start in range(0, len(flat), ROWS):
            block = slice(start, start + ROWS)
            g, h, y = grad[block], hidden[block], flat[block] * scale[block]
            grad_hidden = work[: len(h)]
            torch.mul(h, h, out=grad_hidden)
            grad_down.addmm_(g.t(), grad_hidden)
            torch.addmm(grad_hidden, g, down, beta=0, alpha=2, out=grad_hidden).mul_(h)  # the square's factor 2; h is 0 where relu was
            grad_up.addmm_(grad_hidden.t(), y)
            torch.add(_norm_gradient(torch.mm(grad_hidden, up), y, scale[block]), g, out=grad_x[block])
        return grad_x.view(grads[0].shape), grad_up, grad_down


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, head_dim: int, qk_norm: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, C = x.shape
        weight = torch.cat([_interleaved(query, head_dim), _interleaved(key, head_dim), value])
        mixed = torch.mm(x.reshape(-1, C), weight.t()).view(B, T, -1, head_dim)
        heads, kv_heads = len(query) // head_dim, len(key) // head_dim
        turned = mixed[:, :, : heads + kv_heads]
        _as_complex(turned).mul_(torch.complex(cos, -sin))  # by minus the angle
        scale = None
        if qk_norm:
            scale = _inverse_rms(turned)
            turned.mul_(scale)
        ctx.save_for_backward(x, weight, cos, sin, mixed, scale)
        ctx.sizes = heads, kv_heads
        q, k, v = torch.split(mixed, [heads, kv_heads, kv_heads], dim=2)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, mixed, scale = ctx.saved_tensors
        heads, kv_heads = ctx.sizes
        grad = torch.cat(grads, dim=2)
        turned = grad[:, :, : heads + kv_heads]
        if scale is not None:
            turned.copy_(_norm_gradient(turned, mixed[:, :, : heads + kv_heads], scale))
        _as_complex(turned).mul_(torch.complex(cos, sin))
        flat, head_dim = grad.view(-1, len(weight)), grad.shape[-1]
        grad_weight = torch.mm(flat.t(), x.reshape(len(flat), -1))
        grad_query, grad_key, grad_value = torch.split(grad_weight, [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        grad_x = torch.mm(flat, weight).view(x.shape)
        return grad_x, _deinterleaved(grad_query, head_dim), _deinterleaved(grad_key, head_dim), grad_value, None, None, None, None


def _as_complex(x: Tensor) -> Tensor:
    """Neighbouring channels (..., D) as complex numbers (..., D / 2), sharing memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (outputs) reordered so that the pairs (i, i + D/2) of each head become neighbours (2i, 2i + 1)."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _deinterleaved(weight: Tensor, head_dim: int) -> Tensor:
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
