"""HumanEval: complete a Python function; it is graded by running its tests in the sandbox. Rows: the original fields."""

import itertools
import re
from typing import Any, ClassVar, Literal

from nanochat.tasks.base import Conversation, RowTask, exchange, text_fault

FENCE = re.compile(r"```[ \t]*(?:python|py|Python)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
CPU_S = 5.0  # of a program's computing, so that a busy machine fails none


def code_of(answer: str, entry_point: str) -> str:
    """The first fenced block, to its end or to the end of a cut answer; without a fence, the whole answer.

    An answer without a fence that does not define the function itself is its body: it ends before the first line that is
    not indented, since a base model goes on with whatever may follow in a file.
    """
    if block := FENCE.search(answer):
        return block.group(1)
    if f"def {entry_point}(" in answer:
        return answer
    return "\n".join(itertools.takewhile(lambda line: not line.strip() or line[0] in " \t", answer.split("\n")))


def program_of(row: dict[str, str], answer: str) -> str:
    """The prompt (its imports, its helper functions, the open function), the answer's code, the tests, and the call of them.

    A body that goes on where the prompt ends completes its function; a function written anew replaces it, because the
    prompt alone, docstring as body, is a function already.
    """
    return "\n".join([row["prompt"].rstrip("\n"), code_of(answer, row["entry_point"]).strip("\n"), row["test"], f"check({row['entry_point']})"]) + "\n"


class HumanEval(RowTask):
    """Python functions from their docstrings."""

    name = "humaneval"
    version = "2"  # 2: a program is one process and has five seconds of computing, not of the clock
    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "generative"
    sources: ClassVar = {"test": ("humaneval", "humaneval_hf")}

    def fault(self, row: dict[str, Any]) -> str | None:
        return text_fault(row, "prompt", "canonical_solution", "test", "entry_point")

    def conversation(self, index: int) -> Conversation:
        row = self.rows[index]
        return exchange(row["prompt"], f"```python\n{row['prompt']}{row['canonical_solution']}\n```")

    def grade(self, index: int, answer: str) -> bool:
        return self.judge(index, answer)[0]

    def judge(self, index: int, answer: str) -> tuple[bool, dict[str, Any]]:
        """Right if the program runs to its end, tests included, in the sandbox."""
        from nanochat import sandbox

        execution = sandbox.run(program_of(self.rows[index], answer), cpu_s=CPU_S)
        return execution.passed, {"ended": execution.outcome, "held": list(execution.granted)}

    def unavailable(self) -> str | None:
        from nanochat import sandbox

        return sandbox.unavailable()
