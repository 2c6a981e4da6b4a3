"""Arithmetic: sums, differences, products and short word problems, each computed with Python. Generated, no source.

A model of minutes cannot add by heart, not even 3 + 4; it can learn to copy the numbers into an expression.

Every unordered pair of operands belongs to train or to test by its own hash, whatever the operation, wording and seed,
so no test problem is ever trained on, not even turned around. A second hash shares train out between what reinforcement learning
asks (split rl) and what it is measured on (split validation).

`long_arithmetic` asks the same of numbers of up to four digits, which a model that has copied three at most seldom gets right.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from nanochat.tasks.base import Conversation, Task, check_split, exchange, part
from nanochat.tasks.draw import Draw, keyed_number
from nanochat.tasks.gsm8k import NUMBER, number_of

TEST_SHARE = 10  # one pair in ten is a test pair
VALIDATION_SHARE = 10  # one pair of train in ten is never asked in reinforcement learning
DEFAULT_ROWS = {"train": 10_000, "rl": 10_000, "validation": 256, "test": 256}
LIMITS = {"+": (20, 999), "-": (20, 999), "*": (10, 99)}  # operation -> largest operand (of a small problem, of any)
LONG_LIMITS = {"+": (9_999, 9_999), "-": (9_999, 9_999), "*": (999, 999)}
SMALL_PERCENT = 30
WORD_PROBLEM_PERCENT = 30

QUESTIONS = {
    "+": ("What is {a} + {b}?", "How much is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} = ?", "Calculate {a} + {b}.", "Add {a} and {b}.", "{a}+{b}"),
    "-": ("What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b} = ?", "Calculate {a} - {b}.", "Subtract {b} from {a}.", "{a}-{b}"),
    "*": ("What is {a} * {b}?", "What is {a} times {b}?", "{a} x {b} = ?", "Calculate {a} * {b}.", "Multiply {a} by {b}.", "{a}*{b}"),
}  # fmt: skip
PROBLEMS = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in one box and {b} {things} in another. How many {things} are there?",
        "{name} found {a} {things} on Monday and {b} on Tuesday. How many {things} did {name} find?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "There were {a} {things} in a shop and {b} were sold. How many {things} are left?",
        "{name} needs {a} {things} and has {b}. How many more {things} does {name} need?",
    ),
    "*": (
        "{name} has {a} boxes with {b} {things} each. How many {things} does {name} have?",
        "A shop sells {a} bags. Each bag holds {b} {things}. How many {things} are that?",
        "{name} buys {b} {things} every day for {a} days. How many {things} is that?",
    ),
}
LAST = re.compile(rf"(?<![0-9A-Za-z_.,])({NUMBER})")
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Finn", "Grace", "Henry", "Ida", "Jack", "Laura", "Max", "Nina", "Oscar", "Paula", "Tom")
THINGS = ("apples", "books", "cards", "coins", "cookies", "eggs", "flowers", "marbles", "oranges", "pencils", "stamps", "stones", "toys")


def pair_split(a: int, b: int) -> str:
    """To which split a pair of operands belongs, in either order."""
    return "test" if keyed_number("arithmetic pair", min(a, b), max(a, b)) % TEST_SHARE == 0 else "train"


def belongs(split: str, a: int, b: int) -> bool:
    """Whether a pair of operands may be asked in `split`: train and test share none, nor do rl and validation, which share out train."""
    if split in ("train", "test"):
        return pair_split(a, b) == split
    is_held_back = keyed_number("arithmetic validation", min(a, b), max(a, b)) % VALIDATION_SHARE == 0
    return pair_split(a, b) == "train" and is_held_back == (split == "validation")


def result_of(operation: str, a: int, b: int) -> int:
    """The right answer."""
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


class Arithmetic(Task):
    """Sums, differences and products of whole numbers."""

    name = "arithmetic"
    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "generative"
    sources: ClassVar = {"train": (), "rl": (), "validation": (), "test": ()}
    limits: ClassVar = LIMITS

    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        """`files` are not read: the problems are generated."""
        check_split(self, split)
        self.split, self.seed, self.count = split, seed, rows or DEFAULT_ROWS[split]

    def __len__(self) -> int:
        return self.count

    def asked(self, index: int) -> tuple[str, int, int, str]:
        """(operation, a, b, question) of row `index`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = Draw(self.name, self.split, self.seed, index)
        operation = draw.choice("+-*")
        limit = self.limits[operation][0 if draw.chance(SMALL_PERCENT) else 1]
        is_story = draw.chance(WORD_PROBLEM_PERCENT)
        wording = draw.choice((PROBLEMS if is_story else QUESTIONS)[operation])
        name, things = draw.choice(NAMES), draw.choice(THINGS)
        while True:
            a, b = draw.between(2 if is_story else 0, limit), draw.between(2 if is_story else 0, limit)
            if operation == "-" and b > a:
                a, b = b, a
            if belongs(self.split, a, b):
                return operation, a, b, wording.format(a=a, b=b, name=name, things=things)

    def conversation(self, index: int) -> Conversation:
        operation, a, b, question = self.asked(index)
        result, expression = str(result_of(operation, a, b)), f"{a}{operation}{b}"
        return exchange(question, [part("text", f"{expression}="), part("python", expression), part("python_output", result), part("text", result)])

    def grade(self, index: int, answer: str) -> bool:
        """Right if the last number of the answer, in ASCII digits and compared as a number, is the result.

        A minus sign counts if no digit stands before it, so that "7-5=2" ends with 2 and "=-2" with minus two.
        """
        operation, a, b, _ = self.asked(index)
        numbers = LAST.findall(answer)
        return bool(numbers) and number_of(numbers[-1]) == result_of(operation, a, b)


class LongArithmetic(Arithmetic):
    """The same with longer numbers."""

    name = "long_arithmetic"
    limits: ClassVar = LONG_LIMITS
