"""Asking what is not known yet: rows whose answers a store holds are not asked again, the others are shared among the ranks.

A row is known by its content, so a larger sample, another seed or another split asks only for rows that are new.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nanochat.artifacts import canonical_json, sha256_bytes
from nanochat.eval.results import NotAvailableError
from nanochat.eval.store import AnswerStore
from nanochat.runtime import Runtime
from nanochat.tasks.base import RowTask, Task

Row = TypeVar("Row")
KEY_DIGITS = 16  # of a sha256


def key_of(task: Task, index: int) -> str:
    """The content of a row, in 16 digits: everything that its question and its grade depend on."""
    content = task.rows[index] if isinstance(task, RowTask) else task.conversation(index)
    return key_of_content(canonical_json(content).encode("utf-8", "surrogatepass"))


def key_of_content(content: bytes) -> str:
    """The name of a row in a store."""
    return sha256_bytes(content)[:KEY_DIGITS]


def answers_of(
    keys: Sequence[str],
    store: AnswerStore,
    ask: Callable[[list[int], Callable[[int, dict[str, Any]], None]], object],
    runtime: Runtime,
    on_answer: Callable[[int], object] = lambda done: None,
) -> tuple[list[Mapping[str, Any]], int]:
    """What the store holds for each key in the end, and how many rows it held before.

    `ask(indices, keep)` answers rows and hands each to keep(index, value) as soon as it is known. Of several ranks only the first gets
    the answers; the others get none. Raises NotAvailableError, on every rank, if asking does on any.
    """
    reused = sum(key in store.known for key in keys)
    missing = _missing(keys, store.known)
    done = 0

    def keep(index: int, value: dict[str, Any]) -> None:
        nonlocal done
        store.add(keys[index], value)
        done += 1
        on_answer(reused + done)

    runtime.barrier()  # nobody adds before all have looked, or their shares would overlap
    why = None
    try:
        ask(missing[runtime.rank :: runtime.world_size], keep)
    except NotAvailableError as error:
        why = str(error)
    store.close()
    if runtime.any_rank(why is not None):
        raise NotAvailableError(why or "another rank could not answer")
    if not runtime.is_main:
        return [], reused
    if runtime.world_size > 1:
        store.reread()
        ask(_missing(keys, store.known), keep)  # nothing, unless the file system has lost or hidden what another rank wrote
        store.close()
    return [store.known[key] for key in keys], reused


def _missing(keys: Iterable[str], known: Mapping[str, Any]) -> list[int]:
    """The first index of each key that is not known."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in known:
            first.setdefault(key, index)
    return list(first.values())
