"""Rows for the trainer that are drawn from the model as it is at that step: problems, answers, rewards, advantages; and the measure on held-out problems.

Problem i of a step is the same whatever the number of ranks; each rank draws the answers to its own share of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nanochat import progress
from nanochat.data.rows import RowOrder
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.rl.answers import Answer, Sampling, draw_answers
from nanochat.rl.objective import Weighed, advantages, as_rows
from nanochat.rl.problems import Problem
from nanochat.runtime import Runtime
from nanochat.tasks.draw import pass_at
from nanochat.tokenizer import Tokenizer
from nanochat.train.fitting import is_shortage, let_go
from nanochat.train.update import Rows


@dataclass
class Asker:
    """Draws answers with as many at a time as memory holds."""

    engine: Engine
    runtime: Runtime
    rows_at_once: int
    say: Callable[[str], None]

    def ask(self, problems: Sequence[Problem], keys: Sequence[str], sampling: Sampling) -> list[list[Answer]]:
        """Answers to every problem; where memory runs out they are drawn again, half as many at a time from now on."""
        prompts = [problem.prompt for problem in problems]
        while True:
            try:
                return draw_answers(self.engine, prompts, keys, sampling, rows_at_once=self.rows_at_once, beat=progress.beat)
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
            if self.rows_at_once == 1:
                raise UserError("out of memory with one answer at a time; take a device with more memory, a lower max_new_tokens or a smaller model")
            self.rows_at_once //= 2
            let_go(self.runtime)
            self.say(f"out of memory; from now on {self.rows_at_once} answers at a time, which changes none of them")


class Rollouts:
    """Answers as rows: position p of a step is sample p % samples of its problem p // samples. The answers of a step are drawn when it is first asked for."""

    def __init__(self, asker: Asker, tokenizer: Tokenizer, problems: Sequence[Problem], sampling: Sampling, *, examples_per_step: int, seed: int) -> None:
        self.asker, self.tokenizer, self.problems, self.sampling = asker, tokenizer, problems, sampling
        self.examples_per_step, self.seed = examples_per_step, seed
        self.order = RowOrder(len(problems), seed)
        self.step = -1
        self.facts: dict[str, float] = {}  # of the step, of all ranks
        self.weighed: list[Weighed] = []  # of the step, of this rank

    def rows(self, step: int, positions: Sequence[int]) -> tuple[Rows, Rows]:
        """Inputs, each with its weight in front, and targets of the answers at these positions (see `objective`)."""
        if step != self.step:
            self._draw(step)
        first = self.asker.runtime.rank * len(self.weighed)
        return as_rows([self.weighed[position - first] for position in positions], padding=self.tokenizer.bos)

    def _draw(self, step: int) -> None:
        """Ask this rank's problems of a step, and grade the answers."""
        mine = self.examples_per_step // self.asker.runtime.world_size
        first = step * self.examples_per_step + self.asker.runtime.rank * mine
        problems = [self.problems[self.order.at(counter)] for counter in range(first, first + mine)]
        keys = [f"{self.seed}/{step}/{counter}" for counter in range(first, first + mine)]
        groups = self.asker.ask(problems, keys, self.sampling)
        rewards = [[problem.reward(answer.ids, self.tokenizer) for answer in group] for problem, group in zip(problems, groups, strict=True)]
        self.weighed = [
            Weighed(problem.prompt, answer, weight)
            for problem, group, rewarded in zip(problems, groups, rewards, strict=True)
            for answer, weight in zip(group, advantages(rewarded), strict=True)
        ]
        self.facts = self._facts(rewards)
        self.step = step

    def _facts(self, rewards: list[list[int]]) -> dict[str, float]:
        """What metrics.jsonl says of the step's answers."""
        tokens, cut = sum(len(one.answer.ids) for one in self.weighed), sum(one.answer.is_cut for one in self.weighed)
        degenerate = sum(len(set(group)) == 1 for group in rewards)
        sums = summed([sum(map(sum, rewards)), tokens, cut, degenerate], self.asker.runtime)
        drawn = self.examples_per_step * self.sampling.samples
        reward, length, cut_off = (value / drawn for value in sums[:3])
        return {"reward": reward, "sequence_tokens": length, "cut_off": cut_off, "degenerate_groups": sums[3] / self.examples_per_step}


def measure(asker: Asker, tokenizer: Tokenizer, problems: Sequence[Problem], sampling: Sampling, *, seed: int) -> dict[str, float]:
    """pass@1 to pass@samples on held-out problems, and the tokens of an answer. The random numbers are the same each time, whatever the step."""
    runtime = asker.runtime
    mine = range(runtime.rank, len(problems), runtime.world_size)
    groups = asker.ask([problems[place] for place in mine], [f"{seed}/validation/{place}" for place in mine], sampling) if mine else []
    right = [sum(problems[place].reward(answer.ids, tokenizer) for answer in group) for place, group in zip(mine, groups, strict=True)]
    ks = range(1, sampling.samples + 1)
    local = [math.fsum(pass_at(k, sampling.samples, correct) for correct in right) for k in ks]
    *sums, tokens = summed([*local, sum(len(answer.ids) for group in groups for answer in group)], runtime)
    found = {f"pass@{k}": value / len(problems) for k, value in zip(ks, sums, strict=True)}
    return {**found, "validation_sequence_tokens": tokens / len(problems) / sampling.samples}


def summed(values: Sequence[float], runtime: Runtime) -> list[float]:
    """Sums over ranks."""
    device = "cuda" if runtime.device.type == "cuda" else "cpu"
    found: list[float] = runtime.all_reduce(torch.tensor(values, dtype=torch.float64, device=device)).tolist()
    return found
