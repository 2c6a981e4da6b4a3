"""Losses of the texts of many items at once. What the texts of an item, or items that begin alike, have in common is read once, over a KV cache.

Legend: B items, R texts, T positions, C width, N tokens that count, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.eval.core.prompts import Item
from nanochat.model.cache import KVCache
from nanochat.model.gpt import GPT
from nanochat.model.loss import chunk_rows, token_cross_entropy

SHARE_FROM = 8  # tokens in common from which on reading them once is less work than two passes
CPU_BATCH_TOKENS = 2048  # more of them leave the cache of a core: 16 texts of lambada take 13 ms each, 64 take 25


class NotFiniteError(Exception):
    """The model gave a number that is none."""


@dataclass(frozen=True)
class Scored:
    """What the model says to an item: mean loss of each text (kinds with choices), or whether it would have written it itself."""

    index: int
    losses: list[float]
    is_greedy: bool | None
    gold: int | None
    is_cut: bool

    @property
    def choice(self) -> int:
        """The text with the lowest mean loss, the first of equals."""
        return self.losses.index(min(self.losses))

    @property
    def is_right(self) -> bool:
        """Whether that is the right one; of a single text, whether each of its tokens was the likeliest."""
        return bool(self.is_greedy) if self.gold is None else self.choice == self.gold

    def to_dict(self) -> dict[str, Any]:
        """As it is kept."""
        said: dict[str, Any] = {"greedy": self.is_greedy} if self.gold is None else {"losses": self.losses, "choice": self.choice, "gold": self.gold}
        return {**said, "right": self.is_right, "cut": self.is_cut}


def batches(items: Sequence[Item], *, rows: int, context: int, tokens: int | None = None) -> Iterator[list[Item]]:
    """Items of similar length, at most `rows` texts and about `tokens` tokens in a batch (one item at least), that fit into the context side by side."""
    batch: list[Item] = []
    heads: set[tuple[int, ...]] = set()
    size = widest = longest = 0
    for item in sorted(items, key=lambda item: (item.shared, max(map(len, item.sequences)), item.index), reverse=True):
        texts, shared = len(item.sequences), item.shared
        tail, head = max(map(len, item.sequences)) - shared, max(longest, shared)
        together = heads | {item.head}
        read = len(together) * head + (size + texts) * max(widest, tail)
        is_wide = tokens is not None and read > tokens and len(together) > 1  # what follows one beginning is read text by text
        if batch and (size + texts > rows or is_wide or head + max(widest, tail) > context):
            yield batch
            batch, together, size, widest, head = [], {item.head}, 0, 0, shared
        batch.append(item)
        heads = together
        size, widest, longest = size + texts, max(widest, tail), head
    if batch:
        yield batch


@torch.inference_mode()
def score_items(model: GPT, items: Sequence[Item]) -> list[Scored]:
    """What the model says to each item of a batch."""
    is_shared = len({item.head for item in items}) < sum(len(item.sequences) for item in items)
    hidden = _branched(model, items) if is_shared and min(item.shared for item in items) >= SHARE_FROM else _straight(model, items)  # (N, C)
    device = hidden.device
    targets = torch.tensor([token for item in items for ids, start in zip(item.sequences, item.starts, strict=True) for token in ids[start:]], device=device)
    counts = [len(ids) - start for item in items for ids, start in zip(item.sequences, item.starts, strict=True)]
    if items[0].gold is None:
        right = torch.split(_greedy(model, hidden, targets), counts)
        return [Scored(item.index, [], bool(tokens.all()), None, item.is_cut) for item, tokens in zip(items, right, strict=True)]
    shape = model.config
    losses = token_cross_entropy(hidden, model.head.weight, targets, vocab_size=shape.vocab_size, softcap=shape.softcap).cpu().double()
    means = iter([float(tokens.mean()) for tokens in torch.split(losses, counts)])
    scored = [Scored(item.index, [next(means) for _ in item.sequences], None, item.gold, item.is_cut) for item in items]
    if bad := next((one for one in scored if not all(map(math.isfinite, one.losses))), None):
        raise NotFiniteError(f"the loss of row {bad.index} is not a finite number")
    return scored


def _greedy(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Of each token that counts, whether it is the likeliest there (N,)."""
    size, pieces = chunk_rows(len(targets), model.head.weight.shape[0], hidden.device), []
    for rows, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        largest, tokens = model.logits(rows).max(dim=-1)
        if not torch.isfinite(largest).all():
            raise NotFiniteError("the logits are not finite numbers")
        pieces.append(tokens == wanted)
    return torch.cat(pieces).cpu()


def _straight(model: GPT, items: Sequence[Item]) -> Tensor:
    """Hidden states (N, C) before each token that counts; each text is read as a whole."""
    texts = [(ids, start) for item in items for ids, start in zip(item.sequences, item.starts, strict=True)]
    device = model.head.weight.device
    counts = [len(ids) - start for ids, start in texts]
    at = torch.tensor([[min(start - 1 + place, len(ids) - 2) for place in range(max(counts))] for ids, start in texts], device=device)
    hidden = model.hidden(_padded([ids[:-1] for ids, _ in texts], device), at=at)  # (R, M, C)
    return torch.cat([state[:count] for state, count in zip(hidden, counts, strict=True)])


def _branched(model: GPT, items: Sequence[Item]) -> Tensor:
    """As _straight; each common beginning is read once and kept in the cache, the rest of each text follows it."""
    device = model.head.weight.device
    places = {head: place for place, head in enumerate(dict.fromkeys(item.head for item in items))}
    shared = [len(head) for head in places]
    tails = [ids[item.shared : -1] for item in items for ids in item.sequences]
    owner = [places[item.head] for item in items for _ in item.sequences]
    starts = [start - item.shared for item in items for start in item.starts]
    cache = KVCache(model.config, len(places), capacity=max(shared) + max(map(len, tails)), device=device, dtype=model.dtype)
    ends = model.hidden(_padded(list(places), device), cache, torch.tensor(shared, device=device)[:, None] - 1)[:, 0]  # (B, C)
    cache.truncate(shared)
    states = [ends[place][None] for place in owner]  # of each text, from the last of its beginning on
    is_alone = len(places) == 1 and device.type == "cpu"  # each text is written behind the one beginning in turn, which is not copied and nothing is padded
    for rows in [[row] for row in range(len(tails))] if is_alone else [range(len(tails))]:
        if any(tails[row] for row in rows):
            after = model.hidden(_padded([tails[row] for row in rows], device), cache if is_alone else cache.select([owner[row] for row in rows]))  # (R, T, C)
            cache.truncate(shared)
            for row, state in zip(rows, after, strict=True):
                states[row] = torch.cat([states[row], state[: len(tails[row])]])
    return torch.cat([state[start:] for state, start in zip(states, starts, strict=True)])


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids (R, T), on the right filled up with what a causal model does not see."""
    longest = max(1, *map(len, texts))
    return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts], device=device)
