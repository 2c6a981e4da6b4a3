"""Cross entropy of the head's logits without ever holding all of them: V is large, so B x T x V is most of the memory.

Legend: N positions, C width, V vocabulary, P padded vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20  # logits held at once on a CPU, so that they stay in its cache
CHUNK_ELEMENTS_GPU = 1 << 28


def chunk_rows(rows: int, vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are held at once."""
    budget = CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS_GPU
    return min(rows, max(64, budget // vocab_size))


def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float) -> Tensor:
    """Cross entropy per position (N,), 0 where the target is -1. For scoring: with gradients it keeps all logits."""
    size, pieces = chunk_rows(len(targets), weight.shape[0], hidden.device), []
    weight = weight.to(hidden.dtype)
    for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        logits = F.linear(rows, weight)[:, :vocab_size].float()
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        pieces.append(F.cross_entropy(logits, wanted, ignore_index=-1, reduction="none"))
    return torch.cat(pieces)


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float) -> Tensor:
    """Sum of the cross entropies of targets other than -1, for training."""
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return token_cross_entropy(hidden, weight, targets, vocab_size=vocab_size, softcap=softcap).sum()
    loss: Tensor = _SummedCrossEntropy.apply(hidden, weight, targets, vocab_size, softcap)  # type: ignore[no-untyped-call]
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> Tensor:
        size = chunk_rows(len(targets), weight.shape[0], hidden.device)
        cast = weight.to(hidden.dtype)
        precision = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=precision)
        total = torch.zeros((), device=hidden.device, dtype=precision)
        for start in range(0, len(targets), size):
            rows, wanted = hidden[start : start + size], targets[start : start + size]
            loss, gradient = _loss_and_gradient(torch.mm(rows, cast.t()), wanted, vocab_size, softcap, precision)
            total += loss
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, cast, out=grad_hidden[start : start + size])
            if grad_weight.dtype == gradient.dtype:
                grad_weight.addmm_(gradient.t(), rows)
            else:
                grad_weight += torch.mm(gradient.t(), rows)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, vocab_size: int, softcap: float, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Summed loss of raw logits (n, P), and its gradient with respect to them; reuses the memory of `logits`."""
    logits = logits.to(precision)
    gradient = torch.zeros_like(logits) if vocab_size < logits.shape[1] else torch.empty_like(logits)
    z, g = logits[:, :vocab_size], gradient[:, :vocab_size]  # z becomes tanh(logits / cap), g the softmax
    counted = targets >= 0
    index = targets.clamp(min=0)[:, None]
    if softcap:
        z.div_(softcap).tanh_()
        torch.mul(z, softcap, out=g)
    else:
        g.copy_(z)
    peak = g.amax(dim=1, keepdim=True)
    wanted = g.gather(1, index) - peak
    g.sub_(peak).exp_()
    sums = g.sum(dim=1, keepdim=True)
    loss = ((sums.log() - wanted)[:, 0] * counted).sum()
    g.mul_(counted[:, None] / sums)
    g.scatter_add_(1, index, -counted[:, None].to(precision))
    if softcap:
        g.addcmul_(g, z.square_(), value=-1)  # derivative of the cap: 1 - tanh^2
    return loss, gradient
