"""Generation: several prompts and several samples at once over a KV cache, with the calculator as a tool.

A row stops at <|assistant_end|> or <|bos|> (neither is emitted), after its number of new tokens, or at the end of the
context. Its randomness is its own, so a row's tokens depend neither on the rows beside it nor on the batch.
"""

import codecs
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nanochat.calculator import calculate
from nanochat.model.cache import KVCache
from nanochat.model.decode import Decoder
from nanochat.model.gpt import GPT


class Vocabulary(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def bos(self) -> int: ...
    def special(self, name: str) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


class Column(NamedTuple):
    """The next token of every row."""

    tokens: list[int | None]  # None: the row has ended
    forced: list[bool]  # put there by the tool, not sampled


@dataclass
class Row:
    """State of one sequence."""

    length: int  # prompt and new tokens
    draws: random.Random
    new: int = 0
    forced: deque[int] = field(default_factory=deque)
    expression: list[int] | None = None  # tokens since <|python_start|>
    ended: Literal["stop", "length", "context"] | None = None
    stop: int | None = None  # the token that it stopped at


class Generation(Iterator[Column]):
    """One column of tokens at a time; rows are prompt by prompt, sample by sample."""

    def __init__(
        self,
        engine: "Engine",
        prompts: list[list[int]],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        seed: int = 0,
        draws: Sequence[random.Random] | None = None,
    ) -> None:
        """`draws`: a source of randomness for each row; absent: sample n of every prompt draws from that of `seed` and n."""
        if not prompts or not all(prompts) or samples < 1:
            raise ValueError(f"prompts={len(prompts)}, samples={samples}: each prompt needs a token and one sample at least; start it with <|bos|>")
        if temperature < 0 or (top_k or 0) < 0 or max_new_tokens < 1:
            raise ValueError(f"temperature={temperature}, top_k={top_k}, max_new_tokens={max_new_tokens}: must not be negative; generate one token at least")
        self._engine, self._max_new_tokens, self._temperature, self._top_k = engine, max_new_tokens, temperature, top_k
        fitted = [engine.fit(prompt, max_new_tokens) for prompt in prompts]
        self.dropped = [dropped for _, dropped in fitted]  # per prompt: tokens that did not fit into the context
        draws = draws or [random.Random(f"{seed}/{sample}") for _ in prompts for sample in range(samples)]
        self.rows = [Row(len(kept), draws[prompt * samples + sample]) for prompt, (kept, _) in enumerate(fitted) for sample in range(samples)]
        self._active = list(range(len(self.rows)))  # rows of the cache, in order
        self._cache, logits = engine.prefill([kept for kept, _ in fitted], room=max_new_tokens, samples=samples)
        if samples > 1:
            copies = [prompt for prompt in range(len(prompts)) for _ in range(samples)]
            self._cache, logits = self._cache.select(copies), logits[copies]
        self._logits = logits

    @property
    def is_finite(self) -> bool:
        """Whether the logits of the next column are numbers; a greedy choice among NaN would look like an answer."""
        return bool(torch.isfinite(self._logits).all())

    def __next__(self) -> Column:
        if not self._active:
            raise StopIteration
        column = Column([None] * len(self.rows), [False] * len(self.rows))
        picked = sample_tokens(self._logits, [self.rows[row].draws for row in self._active], temperature=self._temperature, top_k=self._top_k)
        for row, token in zip(self._active, picked, strict=True):
            self._take(row, token, column)
        kept = [place for place, row in enumerate(self._active) if self.rows[row].ended is None]
        if kept and len(kept) < len(self._active):
            self._cache = self._cache.select(kept)
        self._active = [self._active[place] for place in kept]
        if self._active:
            self._logits = self._engine.extend([column.tokens[row] or 0 for row in self._active], self._cache)
        elif all(token is None for token in column.tokens):
            raise StopIteration
        return column

    def _take(self, row: int, sampled: int, column: Column) -> None:
        """Append one token to a row: the sampled one, unless the tool has an answer to write."""
        state, engine = self.rows[row], self._engine
        is_forced = bool(state.forced)
        token = state.forced.popleft() if is_forced else sampled
        if not is_forced and token in engine.stops:
            state.ended, state.stop = "stop", token
            return
        column.tokens[row], column.forced[row] = token, is_forced
        state.new, state.length = state.new + 1, state.length + 1
        if not is_forced:
            engine.use_tool(state, token)
        if state.new >= self._max_new_tokens:
            state.ended = "length"
        elif state.length >= engine.context:
            state.ended = "context"


class Engine:
    """A model with its tokenizer, ready to generate."""

    def __init__(self, model: GPT, tokenizer: Vocabulary) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._decoder: Decoder | None = None  # of the weights as they were at the last prompt
        self.context = model.config.sequence_len
        self.stops = {tokenizer.bos, tokenizer.special("assistant_end")}
        self._python_start, self._python_end = tokenizer.special("python_start"), tokenizer.special("python_end")
        self._output_start, self._output_end = tokenizer.special("output_start"), tokenizer.special("output_end")

    def generate(
        self, prompt: list[int], *, samples: int = 1, max_new_tokens: int = 256, temperature: float = 0.0, top_k: int | None = None, seed: int = 0
    ) -> Generation:
        """Continue one prompt `samples` times, column by column. Temperature 0 is greedy; top_k None or 0 means all tokens."""
        return Generation(self, [prompt], samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)

    def generate_batch(
        self, prompts: list[list[int]], *, max_new_tokens: int = 256, temperature: float = 0.0, top_k: int | None = None, seed: int = 0
    ) -> list[list[int]]:
        """New tokens for each prompt, in order; the prompts may differ in length."""
        if not prompts:
            return []
        answers: list[list[int]] = [[] for _ in prompts]
        for column in Generation(self, prompts, samples=1, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed):
            for answer, token in zip(answers, column.tokens, strict=True):
                if token is not None:
                    answer.append(token)
        return answers

    def answer_tokens(self, max_new_tokens: int) -> int:
        """How long an answer may be: `max_new_tokens`, but at most half of the context, so that the other half is the prompt's."""
        return min(max_new_tokens, self.context // 2)

    def fit(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], int]:
        """The part of a prompt that fits beside the answer, and how many tokens were dropped; a leading <|bos|> and the most recent tokens are kept."""
        room = self.context - self.answer_tokens(max_new_tokens)
        if len(prompt) <= room:
            return list(prompt), 0
        head = prompt[:1] if prompt[0] == self.tokenizer.bos and room > 1 else []
        return head + prompt[len(prompt) - (room - len(head)) :], len(prompt) - room

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], *, room: int, samples: int = 1) -> tuple[KVCache, Tensor]:
        """A cache that holds the prompts, with room for so many tokens more, and the logits (rows, V) of the next ones; `samples`: how often each goes on."""
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.tensor([prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts], device=self._device)
        cache = KVCache(self.model.config, len(prompts), capacity=max(lengths) + min(room, 256), device=self._device, dtype=self.model.dtype)
        hidden = self.model.hidden(ids, cache)
        cache.truncate(lengths)
        if not isinstance(self.model, GPT) or not Decoder.applies_to(self.model):
            self._decoder = None
        elif self._decoder is None or not self._decoder.suits(len(prompts) * samples):
            self._decoder = None  # its copies go before others come
            self._decoder = Decoder(self.model, len(prompts) * samples)
        return cache, self.model.logits(hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1])

    @torch.inference_mode()
    def extend(self, tokens: list[int], cache: KVCache) -> Tensor:
        """Add one token to every row of the cache; logits (rows, V) of the next ones."""
        ids = torch.tensor(tokens, device=self._device)
        if self._decoder:
            return self._decoder.logits(ids, cache)
        return self.model.logits(self.model.hidden(ids[:, None], cache)[:, 0])

    def use_tool(self, row: Row, token: int) -> None:
        """Follow a sampled token: an expression between the python marks that has a value gets it written behind."""
        if token == self._python_start:
            row.expression = []
        elif row.expression is None:
            return
        elif token == self._python_end:
            result = calculate(self.tokenizer.decode(row.expression))
            row.expression = None
            if result is not None:
                row.forced.extend([self._output_start, *self.tokenizer.encode(result), self._output_end])
        else:
            row.expression.append(token)

    @property
    def _device(self) -> torch.device:
        return self.model.head.weight.device


def sample_tokens(logits: Tensor, draws: list[random.Random], *, temperature: float, top_k: int | None) -> list[int]:
    """A token for each row of logits (rows, V), with one uniform number from that row's own source."""
    if temperature == 0:
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    ids = None  # all, in order
    if top_k and top_k < logits.shape[-1]:
        logits, ids = logits.topk(top_k, dim=-1)
    # fp64: the last entries of a long fp32 sum are coarser than the rarest probabilities
    cumulative = torch.softmax(logits.cpu().double() / temperature, dim=-1).cumsum(dim=-1)
    uniform = torch.tensor([[draw.random()] for draw in draws], dtype=torch.float64)
    places = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    picked = places if ids is None else ids.cpu().gather(1, places)
    return [int(token) for token in picked[:, 0].tolist()]


class TextStream:
    """Turns tokens into text as they come; the bytes of an unfinished UTF-8 character are held back."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that is complete with this token; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """What was held back, with U+FFFD in place of a character that never ended."""
        return self._decoder.decode(b"", final=True)
