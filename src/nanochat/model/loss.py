"""Cross entropy of the head's logits without ever holding all of them: V is large, so B x T x V is most of the memory.

Legend: N positions, C width, V vocabulary, P padded vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 21  # logits held at once on a CPU: fewer copies of the head for its products weigh more than the cache, reports/log.md
CHUNK_ELEMENTS_GPU = 1 << 28
SAFE_EXPONENT = 60.0  # logits from 0 up to here need no shift by their maximum: e^60 times any vocabulary fits into fp32


def chunk_rows(rows: int, vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are held at once."""
    budget = CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS_GPU
    return min(rows, max(64, budget // vocab_size))


def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, softcap: float) -> Tensor:
    """Cross entropy per position (N,), 0 where the target is -1. For scoring: with gradients it keeps all logits."""
    size, pieces = chunk_rows(len(targets), weight.shape[0], hidden.device), []
    weight, precision = weight.to(hidden.dtype), torch.promote_types(hidden.dtype, torch.float32)
    for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        logits = F.linear(rows, weight)[:, :vocab_size].to(precision)
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
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=precision)
        total = torch.zeros((), device=hidden.device, dtype=precision)
        scratch = [torch.empty(size, weight.shape[0], device=hidden.device, dtype=precision) for _ in range(2)]
        for start in range(0, len(targets), size):
            rows, wanted = hidden[start : start + size], targets[start : start + size]
            logits, gradient = (buffer[: len(rows)] for buffer in scratch)
            if hidden.dtype == precision:
                torch.mm(rows, cast.t(), out=logits)
            else:
                logits.copy_(torch.mm(rows, cast.t()))
            loss, factor = _loss_and_gradient(logits, gradient, wanted, vocab_size, softcap)
            total += loss
            # the factor of each row is applied to the narrow side of both products
            gradient, factor = gradient.to(hidden.dtype), factor.to(hidden.dtype)
            torch.mul(torch.mm(gradient, cast), factor, out=grad_hidden[start : start + size])
            if hidden.dtype == precision:
                grad_weight.addmm_(gradient.t(), rows * factor)
            else:
                grad_weight += torch.mm(gradient.t(), rows * factor)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # the factor stays in its own precision: rounded to bf16 it would scale the model's gradient by up to 0.4% beside the head's
        return grad_hidden * grads[0], grad_weight * grads[0], None, None, None


def _loss_and_gradient(logits: Tensor, gradient: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> tuple[Tensor, Tensor]:
    """Summed loss of raw logits (n, P), which are overwritten, and per row a factor (n, 1).

    Afterwards `gradient` (n, P) times the factor is the gradient of the loss with respect to the logits.
    """
    gradient[:, vocab_size:] = 0
    z, g = logits[:, :vocab_size], gradient[:, :vocab_size]
    counted = (targets >= 0)[:, None]
    index = targets.clamp(min=0)[:, None]
    if softcap:  # tanh(x) = 2 sigmoid(2x) - 1, and the constant changes neither loss nor gradient; a CPU computes a sigmoid in half of the time
        torch.mul(z.mul_(2 / softcap).sigmoid_(), 2 * softcap, out=g)
    else:
        g.copy_(z)
    wanted = g.gather(1, index)
    if 0 < 2 * softcap <= SAFE_EXPONENT:
        peak = torch.zeros_like(wanted)
    else:
        peak = g.amax(dim=1, keepdim=True)
        g.sub_(peak)
    sums = g.exp_().sum(dim=1, keepdim=True)
    loss = ((sums.log() + peak - wanted) * counted).sum()
    # softmax minus one-hot, times the sum; flat: a GPU would copy all of a view whose rows are apart, twice, to add in order
    starts = torch.arange(len(index), device=index.device)[:, None] * gradient.shape[1]
    gradient.view(-1).scatter_add_(0, (starts + index).flatten(), -sums.flatten())
    if not softcap:
        return loss, counted / sums
    torch.ops.aten.sigmoid_backward.grad_input(g, z, grad_input=g)  # derivative of the cap: 1 - tanh^2 = 4 s (1 - s), in one pass
    return loss, 4 * counted / sums
