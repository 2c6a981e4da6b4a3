"""Training on a CPU: the model's steps as autograd functions whose gradients are written by hand.

A CPU spends as long on moving a tensor through memory as on multiplying it, so each function works on blocks of rows that
stay in cache, keeps only what its gradient needs, and writes into memory that it owns. `layers` and `attention` hold the
same steps as plain operations, for every other device (where a compiler fuses them) and for inference; tests compare the two.

Legend: N rows (positions), C width, F hidden width, B rows of tokens, T positions, H heads, D channels of a head.
"""

from typing import Any

import torch
from torch import Tensor

QUERIES = 128  # positions per block of attention
ROWS = 512  # positions per block: 512 x 1024 fp32 is 2 MB, the second-level cache of a server core


def applies_to(x: Tensor) -> bool:
    """Whether these functions are the right ones for `x`: training on a CPU, in fp32 or fp64."""
    return torch.is_grad_enabled() and is_plain_cpu(x)


def is_plain_cpu(x: Tensor) -> bool:
    """Whether `x` is a CPU's fp32 or fp64, and no compiler is at work."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


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


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """Softmax attention of q (B, T, H, D) over the last `window` positions of k, v (B, T, Hkv, D); result (B, T, H, D).

    Skips what no query of a block sees, which halves the work of a full causal product, and keeps the softmax for backward.
    """
    y: Tensor = _CausalAttention.apply(q, k, v, scale, window)  # type: ignore[no-untyped-call]
    return y


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean square + epsilon) over the last dimension, kept."""
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return scale.mul_(scale).div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()


def _norm_gradient(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient at the input of y = x * scale(x), in new memory."""
    share = torch.linalg.vecdot(grad, y)[..., None].div_(-y.shape[-1])
    return torch.addcmul(grad, y, share).mul_(scale)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = inverse_rms(x)
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
        scale, hidden, out = inverse_rms(flat), flat.new_empty(len(flat), len(up)), torch.empty_like(flat)
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
        heads, kv_heads = len(query) // head_dim, len(key) // head_dim
        weight = torch.cat([_interleaved(query, head_dim), _interleaved(key, head_dim), value])
        mixed, turn = x.new_empty(B, T, heads + 2 * kv_heads, head_dim), torch.complex(cos, -sin)  # by minus the angle
        scale = x.new_empty(B, T, heads + kv_heads, 1) if qk_norm else None
        for rows in _row_blocks(B, T):
            torch.mm(x[rows].reshape(-1, C), weight.t(), out=mixed[rows].view(-1, len(weight)))
            turned = mixed[rows, :, : heads + kv_heads]
            _as_complex(turned).mul_(turn)
            if scale is not None:
                scale[rows] = inverse_rms(turned)
                turned.mul_(scale[rows])
        ctx.save_for_backward(x, weight, cos, sin, mixed, scale)
        ctx.sizes = heads, kv_heads
        q, k, v = torch.split(mixed, [heads, kv_heads, kv_heads], dim=2)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, mixed, scale = ctx.saved_tensors
        heads, kv_heads = ctx.sizes
        head_dim, turn = mixed.shape[-1], torch.complex(cos, sin)
        grad_x, grad_weight = x.new_empty(x.shape), torch.zeros_like(weight)
        for rows in _row_blocks(*x.shape[:2]):
            grad = torch.cat([part[rows] for part in grads], dim=2)
            turned = grad[:, :, : heads + kv_heads]
            if scale is not None:
                y = mixed[rows, :, : heads + kv_heads]
                share = torch.linalg.vecdot(turned, y)[..., None].div_(-head_dim)
                turned.addcmul_(y, share).mul_(scale[rows])
            _as_complex(turned).mul_(turn)
            flat = grad.view(-1, len(weight))
            grad_weight.addmm_(flat.t(), x[rows].reshape(len(flat), -1))
            torch.mm(flat, weight, out=grad_x[rows].view(len(flat), -1))
        grad_query, grad_key, grad_value = torch.split(grad_weight, [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        return grad_x, _deinterleaved(grad_query, head_dim), _deinterleaved(grad_key, head_dim), grad_value, None, None, None, None


def _row_blocks(B: int, T: int) -> list[slice]:
    """Whole rows, of about ROWS positions together."""
    size = max(1, ROWS // T)
    return [slice(start, start + size) for start in range(0, B, size)]


def _query_blocks(T: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first key, first query, end) of each block of queries."""
    starts = range(0, T, QUERIES)
    return [(max(0, start - window + 1) if window else 0, start, min(T, start + QUERIES)) for start in starts]


def _head_first(x: Tensor, kv_heads: int) -> Tensor:
    """x (T, H, D) -> (Hkv, G * T, D): the G query heads of a key head one below the other; a view where G is 1."""
    T, heads, D = x.shape
    if heads == kv_heads:
        return x.transpose(0, 1)
    return x.view(T, kv_heads, heads // kv_heads, D).permute(1, 2, 0, 3).reshape(kv_heads, -1, D)


def _position_first(x: Tensor, T: int) -> Tensor:
    """Inverse of `_head_first`: (Hkv, G * T, D) -> (T, H, D)."""
    return x.view(len(x), -1, T, x.shape[-1]).permute(2, 0, 1, 3).flatten(1, 2)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        (B, T, heads, _), kv_heads = q.shape, k.shape[2]
        out, weights = torch.empty(q.shape, dtype=q.dtype), []
        blocks, hidden = _query_blocks(T, window), _hidden(T, window, heads // kv_heads)
        scratch = _Scratch(q, blocks)
        for row in range(B):
            keys, values = k[row].transpose(0, 1), v[row].transpose(0, 1)
            for first, start, end in blocks:
                scores = scratch.product(_head_first(q[row, start:end], kv_heads), keys[:, first:end].transpose(1, 2), scale)
                from_key, mask = hidden[start]
                scores[:, :, from_key - first :].masked_fill_(mask, float("-inf"))
                weight = torch.softmax(scores, dim=-1)
                out[row, start:end] = _position_first(torch.bmm(weight, values[:, first:end]), end - start)
                weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.settings = scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        scale, blocks = ctx.settings
        B, T, kv_heads, D = k.shape
        grad_q = torch.empty(q.shape, dtype=q.dtype)
        grad_k, grad_v = (q.new_zeros(B, kv_heads, T, D) for _ in range(2))
        saved, scratch = iter(weights), _Scratch(q, blocks)
        for row in range(B):
            keys, values = k[row].transpose(0, 1), v[row].transpose(0, 1)
            for first, start, end in blocks:
                weight, queries, grad = next(saved), _head_first(q[row, start:end], kv_heads), _head_first(grads[0][row, start:end], kv_heads)
                grad_v[row, :, first:end].baddbmm_(weight.transpose(1, 2), grad)
                grad_weight = scratch.product(grad, values[:, first:end].transpose(1, 2))
                grad_scores = torch.ops.aten._softmax_backward_data.out(grad_weight, weight, -1, weight.dtype, grad_input=grad_weight)
                grad_q[row, start:end] = _position_first(torch.bmm(grad_scores, keys[:, first:end]), end - start).mul_(scale)
                grad_k[row, :, first:end].baddbmm_(grad_scores.transpose(1, 2), queries, alpha=scale)
        return grad_q, grad_k.transpose(1, 2), grad_v.transpose(1, 2), None, None


class _Scratch:
    """Memory for the scores of one block after the other, which so stay in cache."""

    def __init__(self, q: Tensor, blocks: list[tuple[int, int, int]]) -> None:
        self._memory = q.new_empty(max(q.shape[2] * (end - start) * (end - first) for first, start, end in blocks))

    def product(self, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        """factor * left @ right, for stacks of matrices; valid until the next call."""
        shape = len(left), left.shape[1], right.shape[2]
        out = self._memory[: shape[0] * shape[1] * shape[2]].view(shape)
        return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _hidden(T: int, window: int | None, groups: int) -> dict[int, tuple[int, Tensor]]:
    """For each block of queries, by its start: the first key that one of them does not see, and which keys from there on each does not see."""
    found = {}
    for first, start, end in _query_blocks(T, window):
        from_key = first if window else start  # without a window only keys of the block itself are hidden
        distance = torch.arange(start, end)[:, None] - torch.arange(from_key, end)
        found[start] = from_key, ((distance < 0) | (distance >= (window or T))).repeat(groups, 1)
    return found


def _as_complex(x: Tensor) -> Tensor:
    """Neighbouring channels (..., D) as complex numbers (..., D / 2), sharing memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (outputs) reordered so that the pairs (i, i + D/2) of each head become neighbours (2i, 2i + 1)."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _deinterleaved(weight: Tensor, head_dim: int) -> Tensor:
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
