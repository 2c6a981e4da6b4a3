"""GSM8K: word problems of grade school whose solutions call a calculator. Rows: {"question", "answer"}.

Two ways of grading. The score is the strict one of published figures: the text after the first "#### ", commas aside, is the reference's
text. The robust one, reported beside it, compares values (18 is 18.00) and takes the last number of an answer that forgot its "####".
"""

import re
from decimal import Decimal
from typing import Any, ClassVar, Literal

from nanochat.tasks.base import Conversation, RowTask, exchange, part, text_fault
from nanochat.tasks.draw import sample_indices

VALIDATION_ROWS = 400  # of the 7,473 to train on
CALL = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
NUMBER = r"-?\$?(?:[0-9][0-9,]*+(?:\.[0-9]++)?+|\.[0-9]++)(?![A-Za-z_])"
FINAL = re.compile(rf"####[ \t]*\$?({NUMBER})")
LAST = re.compile(rf"(?<![0-9A-Za-z_.,])({NUMBER})")
MARK = "####"
MARKED_TEXT = re.compile(r"#### (-?[0-9.,]+)")


def number_of(text: str) -> Decimal:
    """The value of a number as NUMBER matches it: commas and dollar signs do not count."""
    return Decimal(text.replace(",", "").replace("$", ""))


def final_number(answer: str) -> Decimal | None:
    """The number after the last "####" that one follows, in ASCII digits, on the same line; None if there is none.

    Compared as a number: 1,000 is 1000 and 18 is 18.00. What stands after the number is not read.
    """
    found = FINAL.findall(answer)
    return number_of(found[-1]) if found else None


def marked_text(answer: str) -> str | None:
    """What stands after the first "#### ", without commas, as text; None if that is no digit, point or comma."""
    found = MARKED_TEXT.search(answer)
    return found[1].replace(",", "") if found else None


def robust_number(answer: str) -> Decimal | None:
    """The final number, or the last one of an answer without any "####"."""
    if MARK in answer:
        return final_number(answer)
    found = LAST.findall(answer)
    return number_of(found[-1]) if found else None


def solution_parts(solution: str) -> list[dict[str, str]]:
    """A solution with `<<expr=result>>` marks as text, tool calls and their outputs."""
    parts, start = [], 0
    for call in CALL.finditer(solution):
        if call.start() > start:
            parts.append(part("text", solution[start : call.start()]))
        parts += [part("python", call.group(1)), part("python_output", call.group(2))]
        start = call.end()
    if start < len(solution):
        parts.append(part("text", solution[start:]))
    return parts


class Gsm8k(RowTask):
    """Solve it step by step and end with "#### number"."""

    name = "gsm8k"
    version = "2"  # 2: the score is by the text after the mark, the comparison of values stands beside it
    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "generative"
    sources: ClassVar = {"train": ("gsm8k_hf",), "rl": ("gsm8k_hf",), "validation": ("gsm8k_hf",), "test": ("gsm8k", "gsm8k_hf")}
    source_splits: ClassVar = {"rl": "train", "validation": "train"}

    def fault(self, row: dict[str, Any]) -> str | None:
        if fault := text_fault(row, "question", "answer"):
            return fault
        return None if final_number(row["answer"]) is not None else f'has an answer without "{MARK}" and a number'

    def usable(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of train, a fixed sample is held back from reinforcement learning (split rl) to measure it on (split validation)."""
        if self.split not in ("rl", "validation"):
            return rows
        held_back = set(sample_indices(len(rows), min(VALIDATION_ROWS, -(-len(rows) // 5)), 0))
        return [row for index, row in enumerate(rows) if (index in held_back) == (self.split == "validation")]

    def conversation(self, index: int) -> Conversation:
        row = self.rows[index]
        return exchange(row["question"], solution_parts(row["answer"]))

    def grade(self, index: int, answer: str) -> bool:
        """Right if the marked texts are equal (see marked_text)."""
        given = marked_text(answer)
        return given is not None and given == marked_text(self.rows[index]["answer"])

    def other_grades(self, index: int, answer: str) -> dict[str, bool]:
        """By value (see robust_number)."""
        given = robust_number(answer)
        return {"robust": given is not None and given == final_number(self.rows[index]["answer"])}
