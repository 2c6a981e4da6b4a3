"""Free answers: greedy, with the calculator, in batches, then graded by the task."""

from collections.abc import Callable

from nanochat.engine import Engine
from nanochat.eval.prompts import Form, prompt_of
from nanochat.eval.results import Answered
from nanochat.tasks.base import Task
from nanochat.tokenizer import Tokenizer
from nanochat.transcript import visible_text


def answer_freely(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    *,
    form: Form,
    max_new_tokens: int,
    batch_rows: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """The model's answer to every row, in order. Prompt and answer share the context; at least half of it is the prompt's."""
    new_tokens = engine.answer_tokens(max_new_tokens)
    prompts = [prompt_of(task, index, tokenizer, form=form, max_tokens=engine.context - new_tokens) for index in range(len(task))]
    by_length = sorted(prompts, key=lambda prompt: len(prompt.ids))
    answered: dict[int, Answered] = {}
    for start in range(0, len(by_length), batch_rows):
        batch = by_length[start : start + batch_rows]
        answers = engine.generate_batch([prompt.ids for prompt in batch], max_new_tokens=new_tokens, temperature=0.0)
        for prompt, ids in zip(batch, answers, strict=True):
            answer = visible_text(ids, tokenizer)
            answered[prompt.index] = Answered(prompt.index, prompt.question, answer, task.grade(prompt.index, answer), prompt.is_cut)
        progress(len(answered))
    return [answered[index] for index in range(len(task))]
