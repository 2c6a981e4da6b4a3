"""Layers without hidden state: weights are fp32, and each product casts its weight to the dtype of the activations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model import fp8, kernels


class Linear(nn.Module):
    """Matrix product without bias; the weight is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.fp8 = False  # whether products of training are in eight bits
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        if self.fp8 and torch.is_grad_enabled() and fp8.applies_to(x.numel() // self.inputs, self.inputs, self.outputs):
            return fp8.linear(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """A row per token id."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., width), in the weight's dtype."""
        return F.embedding(ids, self.weight)


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without parameters."""
    if kernels.applies_to(x):
        return kernels.norm(x)
    if not torch.is_grad_enabled() and kernels.is_plain_cpu(x):
        return x * kernels.inverse_rms(x)  # torch's own is a dozen small operations on a CPU: a third of the time of a token
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turn the pairs (i, i + D/2) of x (B, T, H, D) by minus their angle."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)


def rotated_norm(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, then RMS norm of each head."""
    return norm(rotate(x, cos, sin))


def rotary_table(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (length, 1, D / 2) of position x frequency, on the CPU; computed in fp64, since angles grow large."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float64) / head_dim)
    angles = torch.arange(length, device="cpu", dtype=torch.float64)[:, None, None] * frequencies
    return angles.cos().float(), angles.sin().float()
