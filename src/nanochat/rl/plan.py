"""Steps, batch and rates of reinforcement learning. Pure arithmetic, asked by plans too: no torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nanochat.errors import UserError
from nanochat.train.scaling import Shape, TrainingPlan, plan_tune


def plan_rl(
    section: Mapping[str, Any], parent: Mapping[str, Any], shape: Shape, *, problems: int, row_tokens: int, ranks: int = 1, most_rows: int | None = None
) -> TrainingPlan:
    """Plan of chat_rl: rates of `parent` (as in plan_tune) x lr_fraction, a row of `row_tokens` at most for each answer.

    What is left of the problems when they are cut into steps is not asked.
    """
    examples, samples, micro_batch_rows = section["examples_per_step"], section["samples"], section["micro_batch_rows"]
    if examples % ranks:
        cure = f"try {max(1, round(examples / ranks)) * ranks}"
        raise UserError(f"chat_rl.examples_per_step={examples}: not a multiple of {ranks} ranks, which share the problems of a step; {cure}")
    answers = examples // ranks * samples
    if micro_batch_rows and answers % micro_batch_rows:
        most = max(divisor for divisor in range(1, min(answers, micro_batch_rows) + 1) if answers % divisor == 0)
        raise UserError(f"chat_rl.micro_batch_rows={micro_batch_rows}: not a divisor of the {answers} answers that a rank draws in a step; try {most}")
    steps = max(1, int(problems * section["epochs"]) // examples)
    batch = {"batch_tokens": examples * samples * row_tokens, "epochs": 1.0}
    shape = replace(shape, sequence_len=row_tokens)
    return plan_tune("chat_rl", {**section, **batch}, parent, shape, rows=steps * examples * samples, ranks=ranks, most_rows=most_rows)
