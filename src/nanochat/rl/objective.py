"""What is maximised: the log probability of every token that was drawn, times how much better than its group the answer was.

    objective = sum over answers a, tokens t of a    A(a) log p(t | what stands before it) / tokens
    A(a)      = reward(a) - mean reward of the answers to the same problem

This is REINFORCE with the mean of the group as baseline, each token with the same weight. There is no reference model, no ratio and no clipping: each
batch is drawn from the very weights that it updates. Prompt, padding and what the tool wrote have no gradient, the mark that ends an answer has one.
A group whose answers are all right or all wrong has A = 0 throughout; it is left out, of the tokens too.

A row of inputs begins with a whole number that is no token: A times the number of samples, which is whole since rewards are 0 or 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.gpt import GPT
from nanochat.model.loss import chunk_rows
from nanochat.model.recompute import recomputed
from nanochat.rl.answers import Answer
from nanochat.train.update import Rows

STEP_OF_LENGTH = 16  # positions; rows end at a multiple of it, so that few shapes occur


@dataclass(frozen=True)
class Weighed:
    """An answer to a prompt, and its advantage times the number of samples."""

    prompt: list[int]
    answer: Answer
    weight: int


def advantages(rewards: Sequence[int]) -> list[int]:
    """Advantage of each answer of a group, times their number."""
    return [len(rewards) * reward - sum(rewards) for reward in rewards]


def as_rows(weighed: Sequence[Weighed], *, padding: int) -> tuple[Rows, Rows]:
    """Inputs (n, 1 + T), the weight first, and targets (n, T), -1 where nothing was drawn. Answers of weight 0 are left out; one row stands for none."""
    used = [one for one in weighed if one.weight] or weighed[:1]
    length = max(len(one.prompt) + len(one.answer.ids) - 1 for one in used)
    length = -(-length // STEP_OF_LENGTH) * STEP_OF_LENGTH
    ids = np.full((len(used), 1 + length), padding, dtype=np.int64)
    targets = np.full((len(used), length), -1, dtype=np.int64)
    for row, (prompt, answer, weight) in enumerate((one.prompt, one.answer, one.weight) for one in used):
        tokens = [*prompt, *answer.ids]
        ids[row, 0], ids[row, 1 : len(tokens)] = weight, tokens[:-1]
        if weight:
            targets[row, len(prompt) - 1 : len(tokens) - 1] = np.where(answer.drawn, answer.ids, -1)
    return ids, targets


class Policy:
    """A model whose loss is minus the objective, at the temperature that answers are drawn with."""

    def __init__(self, model: GPT, *, samples: int, temperature: float) -> None:
        self.model, self.samples, self.temperature = model, samples, temperature

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(minus the sum of the objective, number of targets other than -1) of rows as `as_rows` makes them."""
        counted = targets >= 0
        hidden = self.model.hidden(ids[:, 1:])[counted]  # (N, C)
        weights = (ids[:, :1].to(torch.promote_types(hidden.dtype, torch.float32)) / self.samples).expand_as(targets)[counted]
        wanted = targets[counted]
        if not len(wanted):  # gradients of 0, so that this rank has one of each weight to add to those of the others
            return 0 * (hidden.sum() + self.model.head.weight.sum()), counted.sum()
        pieces = (torch.split(part, chunk_rows(len(wanted), self.model.head.weight.shape[0], hidden.device)) for part in (wanted, hidden, weights))
        total = sum(recomputed(partial(self._weighted, targets), states, factors) for targets, states, factors in zip(*pieces, strict=True))
        return torch.as_tensor(total), counted.sum()

    def _weighted(self, wanted: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        logits = self.model.logits(hidden) / self.temperature
        return (F.cross_entropy(logits, wanted, reduction="none") * weights).sum()

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """(name, parameter) pairs by group."""
        return self.model.parameter_groups()
