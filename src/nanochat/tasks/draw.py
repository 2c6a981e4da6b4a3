"""Random choices that are the same on every machine, in every Python version and in any order of asking.

The random module promises stable streams for random() only, and its shuffles depend on internals. Here each number
is a sha256 of a key and a counter, so row 7 can be made without rows 0 to 6.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def keyed_number(*key: object) -> int:
    """A number below 2^64 that depends on `key` alone (its parts are written as text)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()[:8], "big")


def pass_at(k: int, n: int, correct: int) -> float:
    """Chance that one of k answers is right, without bias, from n answers of which `correct` are: 1 - C(n - correct, k) / C(n, k)."""
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"k={k}, n={n}, correct={correct}: k of n answers are drawn, at most n are right")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


class Draw:
    """A stream of random choices for one key, such as (task, split, seed, row)."""

    def __init__(self, *key: object) -> None:
        self.key = key
        self.count = 0

    def below(self, limit: int) -> int:
        """A number of 0..limit-1. The bias of the remainder is below limit / 2^64."""
        self.count += 1
        return keyed_number(*self.key, self.count) % limit

    def between(self, low: int, high: int) -> int:
        """A number of low..high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent


def sample_indices(count: int, rows: int | None, seed: int) -> list[int]:
    """At most `rows` of the indices 0..count-1, chosen by `seed`, ascending. A larger sample contains every smaller one."""
    if rows is None or rows >= count:
        return list(range(count))
    return sorted(sorted(range(count), key=lambda index: keyed_number("sample", seed, index))[:rows])
