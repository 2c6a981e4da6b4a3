"""Causal attention variants by name. Positions, masks and the cache of one forward pass travel in a `Context`.

Legend: B rows, T new positions, M of them that are asked, K visible positions, H heads, D channels of a head, C width.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model import kernels
from nanochat.model.cache import KVCache
from nanochat.model.config import GATE_CHANNELS, ModelConfig
from nanochat.model.layers import Linear, rotate, rotated_norm
from nanochat.model.windows import Windowed


@dataclass
class Context:
    """What all layers of one forward pass share."""

    cos: Tensor  # (T, D / 2), or (B, T, 1, D / 2) below a cache with rows of different lengths
    sin: Tensor
    cache: KVCache | None = None
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    windowed: Windowed | None = None  # for windows that hide something, in training on a GPU
    at: Tensor | None = None  # (B, M): the positions whose output is asked for; None: all, M = T

    def picked(self, x: Tensor) -> Tensor:
        """What stands at the positions that are asked for: x (B, T, ...) -> (B, M, ...)."""
        return x if self.at is None else x[torch.arange(len(self.at), device=x.device)[:, None], self.at]

    def query_turns(self) -> tuple[Tensor, Tensor]:
        """cos and sin of the queries."""
        if self.at is None:
            return self.cos, self.sin
        rows = len(self.at)
        return self.picked(self.cos.expand(rows, -1, -1, -1)), self.picked(self.sin.expand(rows, -1, -1, -1))

    def mask(self, window: int | None, count: int, device: torch.device) -> Tensor | None:
        """Boolean mask (M, K) or (B, 1, M, K) of what a query sees; None: plain causal, or one query that sees everything."""
        if window not in self.masks:
            self.masks[window] = self._mask(window, count, device)
        return self.masks[window]

    def _mask(self, window: int | None, count: int, device: torch.device) -> Tensor | None:
        lengths = [0] if self.cache is None else self.cache.lengths
        uniform, end = len(set(lengths)) == 1, max(lengths) + count
        if self.at is None and (window is None or window >= end) and uniform and (count == 1 or end == count):
            return None
        if self.at is None and uniform:
            queries = torch.arange(lengths[0], end, device=device)[:, None]
        elif self.cache is None:
            assert self.at is not None
            queries = self.at[:, None, :, None]
        else:
            queries = self.picked(self.cache.positions(count))[:, None, :, None]
        distance = queries - torch.arange(end, device=device)
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


class FullAttention(nn.Module):
    """Softmax over every earlier position, or the last `window` of them, with grouped queries."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, config.heads, config.kv_heads, config.head_dim
        self.window, self.qk_norm = config.windows[layer], config.qk_norm
        self.scale = config.qk_scale**2 / math.sqrt(config.head_dim)  # the factor on q and on k, taken out of the softmax
        self.query = Linear(config.width, config.width)
        self.key = Linear(config.width, config.kv_width)
        self.value = Linear(config.width, config.kv_width)
        self.output = Linear(config.width, config.width)
        has_gate = layer in config.value_embedding_layers
        self.gate = Linear(min(GATE_CHANNELS, config.width), config.kv_heads) if has_gate else None

    def forward(self, x: Tensor, context: Context, value_embedding: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, M, C); `value_embedding` (B, T, Hkv * D) is added to the values through a gate."""
        B, T = x.shape[:2]
        q, k, v = self._project(x, context)
        if value_embedding is not None:
            assert self.gate is not None
            strength = 3 * torch.sigmoid(self.gate(x[..., : self.gate.inputs]))  # (B, T, Hkv), about 1.5 at the start
            v = v + strength[..., None] * value_embedding.view(B, T, self.kv_heads, self.head_dim)
        if context.cache is None and kernels.applies_to(x):
            return self._merge(kernels.causal_attention(q, k, v, scale=self.scale, window=self.window))
        if context.cache is None and context.windowed is not None and self.window is not None and self.window < T:
            return self._merge(context.windowed(q, k, v, window=self.window, scale=self.scale))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        mask = context.mask(self.window, T, x.device)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        causal = mask is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=self.kv_heads < self.heads)
        return self._merge(y.transpose(1, 2))

    def _merge(self, heads: Tensor) -> Tensor:
        """Heads (B, M, H, D) mixed into (B, M, C)."""
        out: Tensor = self.output(heads.flatten(2))
        return out

    def _project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, M, H, D) and keys (B, T, Hkv, D), and values."""
        B, T, _ = x.shape
        if context.cache is None and kernels.applies_to(x):
            weights = self.query.weight, self.key.weight, self.value.weight
            return kernels.projections(x, weights, context.cos, context.sin, head_dim=self.head_dim, qk_norm=self.qk_norm)
        q = self.query(context.picked(x)).view(B, -1, self.heads, self.head_dim)
        k = self.key(x).view(B, T, self.kv_heads, self.head_dim)
        v = self.value(x).view(B, T, self.kv_heads, self.head_dim)
        turn = rotated_norm if self.qk_norm else rotate
        return turn(q, *context.query_turns()), turn(k, context.cos, context.sin), v


ATTENTION = {"full": FullAttention}
