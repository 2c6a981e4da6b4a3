"""Answers drawn from a model: many at a time, each with randomness of its own, with what the tool wrote told apart.

Which token an answer continues with depends on the model, its prompt and its own random numbers, so neither the number of answers made at a
time nor the number of ranks changes what is drawn.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.engine import Engine, Generation


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. top_k 0: from all tokens."""

    samples: int
    max_new_tokens: int
    temperature: float
    top_k: int


@dataclass(frozen=True)
class Answer:
    """New tokens of one answer. Where it ended by itself the last one is its end mark, which was drawn like the others."""

    ids: list[int]
    drawn: list[bool]  # False: written by the tool
    is_cut: bool  # by its number of tokens, or by the end of the context


def draw_answers(
    engine: Engine, prompts: Sequence[list[int]], keys: Sequence[str], sampling: Sampling, *, rows_at_once: int, beat: Callable[[], None] = lambda: None
) -> list[list[Answer]]:
    """`sampling.samples` answers to every prompt. `keys`: of its randomness, one for each prompt; `beat` is called for every column of tokens."""
    found: list[list[Answer]] = [[] for _ in prompts]
    group, piece = max(1, rows_at_once // sampling.samples), min(rows_at_once, sampling.samples)
    for start in range(0, len(prompts), group):
        asked = range(start, min(start + group, len(prompts)))
        for first in range(0, sampling.samples, piece):
            samples = range(first, min(first + piece, sampling.samples))
            draws = [random.Random(f"{keys[prompt]}/{sample}") for prompt in asked for sample in samples]
            for place, answer in enumerate(_drawn(engine, [prompts[prompt] for prompt in asked], draws, len(samples), sampling, beat)):
                found[asked[place // len(samples)]].append(answer)
    return found


def _drawn(engine: Engine, prompts: list[list[int]], draws: list[random.Random], samples: int, sampling: Sampling, beat: Callable[[], None]) -> list[Answer]:
    """Answers to these prompts at once, prompt by prompt and sample by sample."""
    options = {"max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_k": sampling.top_k or None}
    generation = Generation(engine, prompts, samples=samples, draws=draws, **options)  # type: ignore[arg-type]
    ids: list[list[int]] = [[] for _ in draws]
    drawn: list[list[bool]] = [[] for _ in draws]
    for column in generation:
        beat()
        for row, (token, forced) in enumerate(zip(column.tokens, column.forced, strict=True)):
            if token is not None:
                ids[row].append(token)
                drawn[row].append(not forced)
    for row, state in enumerate(generation.rows):
        if state.stop is not None:
            ids[row].append(state.stop)
            drawn[row].append(True)
    return [Answer(ids[row], drawn[row], state.stop is None) for row, state in enumerate(generation.rows)]
