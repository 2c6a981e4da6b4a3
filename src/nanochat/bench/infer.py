"""`nanochat bench infer`: how fast the engine reads a prompt and writes an answer over its KV cache, for one row and for several at once."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from nanochat.bench.measure import peak_memory, summary, take
from nanochat.bench.setup import Setup
from nanochat.engine import Engine, Generation
from nanochat.errors import UserError


class NumbersOnly:
    """What the engine needs of a tokenizer, for ids that stand for nothing. Marks lie outside of the vocabulary: no row ends before its time."""

    def __init__(self, vocab_size: int) -> None:
        self.bos = vocab_size

    def special(self, name: str) -> int:
        """An id that no model says."""
        return self.bos + 1 + len(name)

    def encode(self, text: str) -> list[int]:
        """Never asked for: nothing calls the calculator."""
        raise NotImplementedError(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The ids as they are."""
        return " ".join(map(str, ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The ids as they are."""
        return self.decode(ids).encode()


def measure_generation(
    setup: Setup, *, batches: Iterable[int], prompt_tokens: int, new_tokens: int, rounds: int, temperature: float, top_k: int
) -> dict[str, Any]:
    """Figures of each number of rows; the rows are read and written together."""
    context = setup.config.sequence_len
    if not 2 <= new_tokens <= context // 2:
        raise UserError(f"--new-tokens={new_tokens}: give 2 at least, and at most half of --sequence-len {context}")
    if prompt_tokens + new_tokens > context:
        raise UserError(f"--prompt-tokens={prompt_tokens}: with --new-tokens {new_tokens} beyond --sequence-len {context}; give at most {context - new_tokens}")
    engine, device = Engine(setup.model, NumbersOnly(setup.config.vocab_size)), setup.runtime.device
    draws = np.random.default_rng(0)

    def measure(rows: int) -> dict[str, Any]:
        prompts = draws.integers(setup.config.vocab_size, size=(rows, prompt_tokens)).tolist()
        reading, beginning, writing, begun = [], [], [], list[Generation]()

        def begin() -> None:
            generation = Generation(engine, prompts, samples=1, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, seed=0)
            begun.append(generation)
            next(generation)

        for _ in range(rounds + 1):
            reading.append(take(lambda: engine.prefill(prompts, room=new_tokens), device).wall_s)
            beginning.append(take(begin, device).wall_s)
            writing.append(take(lambda: list(begun.pop()), device).wall_s)
        return {  # the first round was for warming up
            "rows": rows,
            "prefill_tokens_per_s": summary([rows * prompt_tokens / seconds for seconds in reading[1:]]),
            "first_token_s": statistics.median(beginning[1:]),
            "decode_tokens_per_s": summary([rows * (new_tokens - 1) / seconds for seconds in writing[1:]]),
        }

    asked = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "temperature": temperature, "top_k": top_k}
    found = [measure(rows) for rows in batches]
    return {"benchmark": "infer", "setup": setup.describe(), **asked, "batches": found, "peak_memory": peak_memory(device)}
