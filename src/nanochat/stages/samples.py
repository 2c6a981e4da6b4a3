"""What a model says to a few fixed prompts, greedily: the quickest look at what it has learnt."""

from collections.abc import Callable, Iterable, Mapping

import torch

from nanochat.conversation import render_prompt
from nanochat.engine import Engine
from nanochat.model.gpt import GPT
from nanochat.tokenizer import Tokenizer

TEXT_PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)
CHAT_PROMPTS = ("Hello!", "Who are you?", "What is the capital of France?", "Why is the sky blue?", 'Spell the word "apple".', "What is 7 + 5?")
TEXT_TOKENS, CHAT_TOKENS = 16, 48


class Sampler:
    """Completes prompts greedily: groups of (text -> token ids, how many tokens at most). All phases are given the same prompts."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *groups: tuple[Mapping[str, list[int]], int]) -> None:
        self.model, self.tokenizer = model, tokenizer
        fitting = [({text: ids for text, ids in prompts.items() if len(ids) + most <= model.config.sequence_len}, most) for prompts, most in groups]
        self.groups = [(prompts, most) for prompts, most in fitting if prompts]

    @classmethod
    def text(cls, model: GPT, tokenizer: Tokenizer) -> "Sampler":
        """For a base model: every prompt, the questions of a chat too, is text to go on from."""
        return cls(model, tokenizer, (_as_text((*TEXT_PROMPTS, *CHAT_PROMPTS), tokenizer), TEXT_TOKENS))

    @classmethod
    def chat(cls, model: GPT, tokenizer: Tokenizer) -> "Sampler":
        """For a chat model: questions are asked as in a chat, the beginnings of sentences are text to go on from, as for a base model."""
        asked = {text: render_prompt({"messages": [{"role": "user", "content": text}]}, tokenizer) for text in CHAT_PROMPTS}
        return cls(model, tokenizer, (asked, CHAT_TOKENS), (_as_text(TEXT_PROMPTS, tokenizer), TEXT_TOKENS))

    @torch.no_grad()
    def show(self, say: Callable[[str], None]) -> list[dict[str, str]]:
        """Complete every prompt, say the results aloud, and return them."""
        engine = Engine(self.model, self.tokenizer)
        found = []
        for prompts, most in self.groups:
            answers = engine.generate_batch(list(prompts.values()), max_new_tokens=most, temperature=0.0)
            found += [{"prompt": prompt, "completion": self.tokenizer.decode(ids)} for prompt, ids in zip(prompts, answers, strict=True)]
        for sample in found:
            say(f"sample: {sample['prompt']!r} -> {sample['completion']!r}")
        return found


def _as_text(prompts: Iterable[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    return {prompt: [tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts}
