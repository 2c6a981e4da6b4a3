"""Multiple choice: which of a row's letters does the model hold most likely as the first token of its answer?"""

from collections.abc import Callable, Iterable, Sequence

import torch

from nanochat.eval.prompts import Form, Prompt, prompt_of
from nanochat.eval.results import NOT_FINITE, Answered, NotAvailableError
from nanochat.model.gpt import GPT
from nanochat.tasks.base import Task
from nanochat.tokenizer import Tokenizer


def unavailable(task: Task, tokenizer: Tokenizer) -> str | None:
    """Why this tokenizer cannot be asked for letters, or None."""
    letters = sorted({letter for index in range(len(task)) for letter in task.letters(index)})
    split = [letter for letter in letters if len(tokenizer.encode(letter)) != 1]
    return f"letters {', '.join(split)} are not single tokens" if split else None


@torch.no_grad()
def last_logits(model: GPT, prompts: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """Logits (B, V) after the last token of each prompt; prompts are padded on the right, which a causal model does not see."""
    device = model.head.weight.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[padding] * (longest - len(prompt))] for prompt in prompts], device=device)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    hidden = model.hidden(ids)  # (B, T, C)
    return model.logits(hidden[torch.arange(len(prompts), device=device), last])


def answer_letters(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    form: Form,
    batch_rows: int,
    indices: Iterable[int] | None = None,
    on_answer: Callable[[Answered], object] = lambda answered: None,
) -> list[Answered]:
    """The model's letter for every row, or those of `indices`, in order; `on_answer` hears each when it is known.

    Batches hold rows of similar length. Raises NotAvailableError for logits that are no numbers.
    """
    asked = range(len(task)) if indices is None else sorted(indices)
    prompts = [prompt_of(task, index, tokenizer, form=form, max_tokens=model.config.sequence_len) for index in asked]
    by_length = sorted(prompts, key=lambda prompt: len(prompt.ids))
    answered: dict[int, Answered] = {}
    for start in range(0, len(by_length), batch_rows):
        batch = by_length[start : start + batch_rows]
        logits = last_logits(model, [prompt.ids for prompt in batch], tokenizer.bos).cpu()
        if not bool(torch.isfinite(logits).all()):
            raise NotAvailableError(NOT_FINITE)
        for prompt, row in zip(batch, logits, strict=True):
            answered[prompt.index] = _answered(task, tokenizer, prompt, row)
            on_answer(answered[prompt.index])
    return [answered[index] for index in asked]


def _answered(task: Task, tokenizer: Tokenizer, prompt: Prompt, logits: torch.Tensor) -> Answered:
    letters = task.letters(prompt.index)
    ids = [tokenizer.encode(letter)[0] for letter in letters]
    letter = letters[int(logits[ids].argmax())]
    return Answered(prompt.index, prompt.question, letter, task.grade(prompt.index, letter), prompt.is_cut)
