"""What a model says to a few fixed prompts, greedily: the quickest look at what it has learnt."""

from collections.abc import Callable, Mapping

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
    """Completes `prompts` (text -> token ids) with at most `max_new_tokens` each."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, prompts: Mapping[str, list[int]], max_new_tokens: int = TEXT_TOKENS) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.prompts = {text: ids for text, ids in prompts.items() if len(ids) + max_new_tokens <= model.config.sequence_len}

    @classmethod
    def chat(cls, model: GPT, tokenizer: Tokenizer) -> "Sampler":
        """Asks a few questions."""
        prompts = {text: render_prompt({"messages": [{"role": "user", "content": text}]}, tokenizer) for text in CHAT_PROMPTS}
        return cls(model, tokenizer, prompts, CHAT_TOKENS)

    @torch.no_grad()
    def show(self, say: Callable[[str], None]) -> list[dict[str, str]]:
        """Complete every prompt, say the results aloud, and return them."""
        engine = Engine(self.model, self.tokenizer)
        answers = engine.generate_batch(list(self.prompts.values()), max_new_tokens=self.max_new_tokens, temperature=0.0)
        found = [{"prompt": prompt, "completion": self.tokenizer.decode(ids)} for prompt, ids in zip(self.prompts, answers, strict=True)]
        for sample in found:
            say(f"sample: {sample['prompt']!r} -> {sample['completion']!r}")
        return found
