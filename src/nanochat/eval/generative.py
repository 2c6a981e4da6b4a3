"""Free answers with the calculator, graded by the task: one greedy answer in batches, or several drawn ones for pass@k."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from nanochat.engine import Engine, Generation
from nanochat.eval.prompts import Form, prompt_of
from nanochat.eval.results import NOT_FINITE, Answered, NotAvailableError, Sampled
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
    indices: Iterable[int] | None = None,
    on_answer: Callable[[Answered], object] = lambda answered: None,
) -> list[Answered]:
    """The model's greedy answer to every row, or those of `indices`, in order; `on_answer` hears each as soon as it ends.

    Prompt and answer share the context; at least half of it is the prompt's. Raises NotAvailableError for logits that are no numbers.
    """
    new_tokens = engine.answer_tokens(max_new_tokens)
    asked = range(len(task)) if indices is None else sorted(indices)
    prompts = [prompt_of(task, index, tokenizer, form=form, max_tokens=engine.context - new_tokens) for index in asked]
    by_length = sorted(prompts, key=lambda prompt: len(prompt.ids))
    answered: dict[int, Answered] = {}
    for start in range(0, len(by_length), batch_rows):
        batch = by_length[start : start + batch_rows]
        generation = Generation(engine, [prompt.ids for prompt in batch], samples=1, max_new_tokens=new_tokens, temperature=0.0, top_k=None, seed=0)
        for place, ids in finished_rows(generation):
            prompt, answer = batch[place], visible_text(ids, tokenizer)
            is_right, judged = task.judge(prompt.index, answer)
            answered[prompt.index] = Answered(prompt.index, prompt.question, answer, is_right, prompt.is_cut, judged)
            on_answer(answered[prompt.index])
    return [answered[index] for index in asked]


def sample_freely(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    *,
    form: Form,
    max_new_tokens: int,
    samples: int,
    temperature: float,
    top_k: int | None,
    seed_of: Callable[[int], int],
    indices: Sequence[int],
    on_answer: Callable[[Sampled], object],
) -> None:
    """`samples` answers to each row, drawn side by side with the row's own seed, so that no other row changes them."""
    new_tokens = engine.answer_tokens(max_new_tokens)
    for index in indices:
        prompt = prompt_of(task, index, tokenizer, form=form, max_tokens=engine.context - new_tokens)
        generation = engine.generate(prompt.ids, samples=samples, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, seed=seed_of(index))
        texts = {place: visible_text(ids, tokenizer) for place, ids in finished_rows(generation)}
        grades = {text: task.judge(index, text) for text in sorted(set(texts.values()))}  # a program that was written twice runs once
        answers = [texts[place] for place in range(samples)]
        judged = [grades[text][1] for text in answers]
        on_answer(Sampled(index, answers, [grades[text][0] for text in answers], judged if any(judged) else []))


def finished_rows(generation: Generation) -> Iterator[tuple[int, list[int]]]:
    """(row, its new tokens) of each row as soon as it has ended. Raises NotAvailableError for logits that are no numbers."""
    tokens: list[list[int]] = [[] for _ in generation.rows]
    waiting = set(range(len(tokens)))
    goes_on = True
    while goes_on:
        if not generation.is_finite:
            raise NotAvailableError(NOT_FINITE)
        column = next(generation, None)
        goes_on = column is not None
        for row, token in enumerate(column.tokens if column else ()):
            if token is not None:
                tokens[row].append(token)
        for row in sorted(waiting):
            if generation.rows[row].ended is not None:
                waiting.remove(row)
                yield row, tokens[row]
