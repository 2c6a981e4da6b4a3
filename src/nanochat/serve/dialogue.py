"""A conversation with a model: what is remembered, what still fits into the model, and its answer as it is made."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from nanochat.conversation import PARTS, render_prompt
from nanochat.engine import Engine, TextStream
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.transcript import answer_parts

Kind = Literal["text", "python", "python_output"]


@dataclass
class Sampling:
    """How tokens are chosen. `top_k` 0: among all."""

    temperature: float = 0.6
    top_k: int = 50
    max_new_tokens: int = 256
    seed: int = 0


class PartStream:
    """Tokens of an answer as pieces of its parts, in whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.kind: Kind = "text"
        self._opens = {tokenizer.special(before): kind for kind, (before, _, _) in PARTS.items() if before}
        self._specials = set(tokenizer.special_tokens.values())
        self._text = TextStream(tokenizer)

    def push(self, token: int) -> tuple[Kind, str]:
        """What `token` adds: the kind of part it belongs to and its text, "" if there is none to show yet."""
        if token not in self._specials:
            return self.kind, self._text.push(token)
        ended = self.finish()
        self.kind, self._text = self._opens.get(token, "text"), TextStream(self.tokenizer)  # type: ignore[assignment]
        return ended

    def finish(self) -> tuple[Kind, str]:
        """What is left of a character that was cut off."""
        return self.kind, self._text.finish()


@dataclass
class Dialogue:
    """One conversation. `is_chat` False: a base model, which goes on with each text by itself."""

    engine: Engine
    tokenizer: Tokenizer
    is_chat: bool
    sampling: Sampling = field(default_factory=Sampling)
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    dropped: int = 0  # messages that did not fit any more, of the last question

    def clear(self) -> None:
        """Forget everything."""
        self.messages = []

    def ask(self, text: str) -> Iterator[tuple[Kind, str]]:
        """Pieces of the answer to `text`, as they come. What was said is remembered, also if the caller stops half-way.

        Raises UserError if `text` alone does not fit into the model.
        """
        new_tokens = self.engine.answer_tokens(self.sampling.max_new_tokens)
        prompt = self._prompt(text, self.engine.context - new_tokens)
        return self._answer(prompt, text, new_tokens)

    def _answer(self, prompt: list[int], text: str, new_tokens: int) -> Iterator[tuple[Kind, str]]:
        stream, said, sampling = PartStream(self.tokenizer), list[int](), self.sampling
        self.turns += 1
        try:
            for (token,), _ in self.engine.generate(
                prompt, max_new_tokens=new_tokens, temperature=sampling.temperature, top_k=sampling.top_k, seed=sampling.seed + self.turns - 1
            ):
                if token is not None:
                    said.append(token)
                    yield stream.push(token)
            yield stream.finish()
        finally:
            if self.is_chat:
                self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer_parts(said, self.tokenizer)}]

    def _prompt(self, text: str, limit: int) -> list[int]:
        """Token ids of the question with as much of what was said before as fits; the oldest exchanges are dropped for good."""
        self.dropped = 0
        if not self.is_chat:
            ids = [self.tokenizer.bos, *self.tokenizer.encode(text)]
        else:
            ids = self._render(text)
            while len(ids) > limit and self.messages:
                del self.messages[:2]
                self.dropped += 2
                ids = self._render(text)
        if len(ids) > limit:
            raise UserError(f"this message is {len(ids)} tokens long and the model reads {limit} at most; shorten it")
        return ids

    def _render(self, text: str) -> list[int]:
        return render_prompt({"messages": [*self.messages, {"role": "user", "content": text}]}, self.tokenizer)
