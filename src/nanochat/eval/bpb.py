"""Bits per byte: the loss of a model on text, in a unit that does not depend on the vocabulary.

bpb = nats over all targets that stand for text / (ln 2 x bytes of that text); special tokens have 0 bytes and do not count.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.model.gpt import GPT


@dataclass(frozen=True)
class TextLoss:
    """Sums over targets; sums of several ranks or batches can be added."""

    nats: float = 0.0
    text_bytes: int = 0
    tokens: int = 0

    def __add__(self, other: "TextLoss") -> "TextLoss":
        return TextLoss(self.nats + other.nats, self.text_bytes + other.text_bytes, self.tokens + other.tokens)

    @property
    def bpb(self) -> float | None:
        """Bits per byte; None if there was no text."""
        return self.nats / (math.log(2) * self.text_bytes) if self.text_bytes else None


@torch.no_grad()
def text_loss_of(model: GPT, ids: Tensor, targets: Tensor, token_bytes: Tensor) -> TextLoss:
    """Sums of one batch: ids and targets (B, T) on the model's device, token_bytes (V,) too. Targets of -1 do not count."""
    nats, bytes_of, counted = _by_target(model, ids, targets, token_bytes)
    # added up in fp64 on the CPU: not every accelerator has it
    return TextLoss(float(nats[counted].cpu().double().sum()), int(bytes_of.sum()), int(counted.sum()))


@torch.no_grad()
def row_losses(model: GPT, batch: np.ndarray, token_bytes: np.ndarray) -> list[TextLoss]:
    """Sums of each of some rows (n, T + 1): inputs are row[:-1], targets row[1:]. `token_bytes` (V,) as the tokenizer gives it."""
    device = model.head.weight.device
    tokens = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64)).to(device)
    sizes = torch.from_numpy(np.asarray(token_bytes, dtype=np.int64)).to(device)
    nats, bytes_of, counted = _by_target(model, tokens[:, :-1], tokens[:, 1:], sizes)
    sums = torch.where(counted, nats, 0.0).cpu().double().sum(dim=1)
    return [TextLoss(*row) for row in zip(sums.tolist(), bytes_of.sum(dim=1).tolist(), counted.sum(dim=1).tolist(), strict=True)]


def _by_target(model: GPT, ids: Tensor, targets: Tensor, token_bytes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each target (B, T): nats, bytes of text, whether it stands for text and counts."""
    bytes_of = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)
    counted = bytes_of > 0
    return model.loss(ids, torch.where(counted, targets, -1), reduction="none"), bytes_of, counted
