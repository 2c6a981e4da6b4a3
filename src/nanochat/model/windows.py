"""Attention over the last `window` positions on a GPU, without the T x T mask that SDPA would read: it skips the blocks outside.

Legend: B rows, T positions, H heads, D channels of a head.
"""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Windowed = Callable[..., Tensor]  # (q (B, T, H, D), k, v, *, window, scale) -> (B, T, H, D)


class FlexWindows:
    """flex_attention of torch, for compiled models alone: uncompiled it holds all scores. Block masks are made once per length."""

    def __init__(self) -> None:
        self.masks: dict[tuple[int, int], Any] = {}  # by window and T

    def prepare(self, windows: Iterable[int | None], T: int, device: torch.device) -> None:
        """Have the mask of each window that hides something of T positions."""
        from torch.nn.attention.flex_attention import create_block_mask  # imports torch.compile, 1.4 s

        for window in {window for window in windows if window is not None and window < T} - {window for window, length in self.masks if length == T}:
            self.masks[window, T] = create_block_mask(visible(window), None, None, T, T, device=device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        """Attend; `prepare` was called for this T."""
        from torch.nn.attention.flex_attention import flex_attention

        mask, grouped = self.masks[window, q.shape[1]], q.shape[2] != k.shape[2]
        y = flex_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, scale=scale, enable_gqa=grouped)
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)


def usable(windowed: Windowed | None) -> Windowed | None:
    """What may be called here: flex_attention by a compiler alone, so that validation beside a compiled training takes SDPA with a mask."""
    return None if isinstance(windowed, FlexWindows) and not torch.compiler.is_compiling() else windowed


def visible(window: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Which keys a query sees: itself and the window - 1 before it."""

    def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    return sees


def flash_windows(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """The same by the package flash-attn, which takes bf16 and grouped queries."""
    from flash_attn import flash_attn_func

    # deterministic: else gradients of queries are added up in any order
    y: Tensor = flash_attn_func(q, k, v, softmax_scale=scale, causal=True, window_size=(window - 1, 0), deterministic=True)
    return y


def choose(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> tuple[Windowed | None, str]:
    """(how windows are computed here, its name); None: SDPA with a mask. The kernels of a CPU know windows by themselves."""
    if device.type == "cuda" and compiled:
        return FlexWindows(), "flex_attention"
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and importlib.util.find_spec("flash_attn"):
        return flash_windows, "flash-attn"
    return None, "the CPU's own kernel" if device.type == "cpu" else "SDPA with a mask"
