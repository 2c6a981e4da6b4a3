"""Every grader on hand-made answers, the tricky ones first: separators, trailing text, nothing, foreign digits, two answers, signs, decimals."""

from pathlib import Path

import pytest
from task_rows import GSM, HUMAN, MC, jsonl

from nanochat import sandbox
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.base import Task
from nanochat.tasks.gsm8k import Gsm8k
from nanochat.tasks.humaneval import HumanEval
from nanochat.tasks.multiple_choice import ArcChallenge, ArcEasy, CommonsenseQa, Mmlu, MultipleChoice, OpenBookQa
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee, word_split

ARABIC, FULL_WIDTH = "\u0661\u0660\u0660\u0660", "\uff11\uff10\uff10\uff10"  # 1000 in other digits

# --- letters ---------------------------------------------------------------------------------------------------------

LETTERS = [
    *(("B", True), (" B", True), ("B\n", True), ("\tB \r\n", True)),
    *(("A", False), ("b", False), ("", False), (" ", False), ("B.", False), ("(B)", False), ("BB", False), ("A B", False), ("B\nA", False)),
    *(("dog", False), ("B=dog", False), ("The answer is B", False), ("**B**", False), ("2", False), ("\u0412", False), ("\uff22", False)),
    *(("\u24b7", False), ("B\u0301", False), ("\u200bB", False), ("E", False)),
]


@pytest.mark.parametrize("kind", [ArcEasy, ArcChallenge, Mmlu, OpenBookQa, CommonsenseQa])
def test_multiple_choice_takes_the_letter_and_nothing_else(kind: type[MultipleChoice], tmp_path: Path) -> None:
    split = "test" if "test" in kind.sources else "train"
    task = kind(split, files=[jsonl(tmp_path / "rows.jsonl", [MC])])
    assert len(LETTERS) >= 20
    for answer, right in LETTERS:
        assert task.grade(0, answer) is right, answer


# --- GSM8K: the reference is 1,000 -----------------------------------------------------------------------------------

GSM8K = [  # answer, by the text after the mark (the score), by value
    *(("#### 1000", True, True), ("#### 1,000", True, True), ("3+2=5\n#### 1,000\n", True, True), ("#### 1000 dollars", True, True)),
    *(("#### 1000.00", False, True), ("#### 1000.", False, True), ("####1000", False, True), ("####\t1000", False, True)),
    *(("#### $1,000", False, True), ("#### 1000%", True, True), ("#### 1000\n", True, True), ("#### 01000", False, True)),
    ("#### 5\nWait.\n#### 1000", False, True),  # the score takes the first mark, the value the last
    ("#### 1000\n#### 5", True, False),
    *(("The answer is 1000", False, True), ("It costs $1,000.00.", False, True), ("First 5, then 1000", False, True), ("1000, not 5", False, False)),
    *(("", False, False), ("####", False, False), ("#### \n1000", False, False), ("1000 is it ####", False, False), ("no number", False, False)),
    *(("#### -1000", False, False), ("#### 1000.5", False, False), ("#### 100", False, False), ("#### 10000", False, False), ("#### 1 000", False, False)),
    ("#### 1000x", True, False),
    *((f"#### {ARABIC}", False, False), (f"#### {FULL_WIDTH}", False, False), (f"so {ARABIC}", False, False), ("#### one thousand", False, False)),
    *(("#### 1e3", False, False), ("1e3", False, False), ("#### 1000/1", True, True), ("#### = 1000", False, False), ("#### **1000**", False, False)),
]


@pytest.mark.parametrize(("answer", "by_text", "by_value"), GSM8K)
def test_gsm8k_is_graded_by_text_and_by_value(answer: str, by_text: bool, by_value: bool, tmp_path: Path) -> None:
    task = Gsm8k("test", files=[jsonl(tmp_path / "rows.jsonl", [GSM])])
    assert task.grade(0, answer) is by_text
    assert task.other_grades(0, answer) == {"robust": by_value}


NEGATIVE = [("#### -3.50", True, True), ("#### -3.5", False, True), ("-$3.50", False, True), ("#### 3.50", False, False), ("5 - 3.5", False, False)]


@pytest.mark.parametrize(("answer", "by_text", "by_value"), NEGATIVE)
def test_gsm8k_knows_signs_and_decimals(answer: str, by_text: bool, by_value: bool, tmp_path: Path) -> None:
    task = Gsm8k("test", files=[jsonl(tmp_path / "rows.jsonl", [{"question": "?", "answer": "#### -3.50"}])])
    assert (task.grade(0, answer), task.other_grades(0, answer)["robust"]) == (by_text, by_value)


# --- arithmetic ------------------------------------------------------------------------------------------------------

SUMS = [
    *(("{n}", True), ("{a}+{b}={n}", True), ("It is {n}.", True), ("{n}.00", True), ("**{n}**", True), ("{n} apples", True), ("5, no, {n}", True)),
    *((" {n}\n", True), ("${n}", True), ("{n}%", True), ("#### {n}", True), ("={n}!", True), ("0{n}", True)),
    *(("{n}, no, 5000000", False), ("", False), ("unknown", False), ("-{n}", False), ("{n}1", False), ("{n}x", False), ("{a}+{b}", False)),
    *(("{n}.5", False), ("{n}e1", False), ("{arabic}", False), ("x{n}", False), ("{n}/7", False), ("\n", False)),
]


def a_sum() -> tuple[Arithmetic, int, int, int]:
    """A task and a row of it that adds two numbers which differ from their sum."""
    task = Arithmetic("test", rows=60)
    for index in range(len(task)):
        operation, a, b, _ = task.asked(index)
        if operation == "+" and a > 1 and b > 1:
            return task, index, a, b
    raise AssertionError("no sum among 60 problems")


@pytest.mark.parametrize(("answer", "right"), SUMS)
def test_arithmetic_takes_the_last_number_by_value(answer: str, right: bool) -> None:
    task, index, a, b = a_sum()
    arabic = "".join(chr(0x660 + int(digit)) for digit in str(a + b))
    assert task.grade(index, answer.format(n=a + b, a=a, b=b, arabic=arabic)) is right


def test_arithmetic_separates_thousands_or_not() -> None:
    task = Arithmetic("test", rows=200)
    index = next(index for index in range(200) if task.asked(index)[0] == "*" and task.asked(index)[1] * task.asked(index)[2] >= 1000)
    result = task.asked(index)[1] * task.asked(index)[2]
    assert task.grade(index, f"{result:,}") and task.grade(index, str(result)) and not task.grade(index, f"{result:,}".replace(",", " "))


# --- spelling --------------------------------------------------------------------------------------------------------

SPELT = [
    *(("banana:b,a,n,a,n,a", True), ("b,a,n,a,n,a", True), ("B, A, N, A, N, A.", True), ("Sure!\nbanana: b, a, n, a, n, a\n", True)),
    *(("b ,a ,n ,a ,n ,a", True), ("it is: b,a,n,a,n,a", True), ("\tb,a,n,a,n,a  ", True), ("BANANA:B,A,N,A,N,A", True)),
    *(("banana", False), ("", False), ("b,a,n,a,n", False), ("b,a,n,a,n,a,a", False), ("b,a,n,a,n,a\nc,o,w", False), ("b-a-n-a-n-a", False)),
    *(("b a n a n a", False), ("b,\u0430,n,\u0430,n,\u0430", False), ("b,a,n,a,n,a,", False), (",b,a,n,a,n,a", False), ("b,a,n,a,n,a!", False)),
    *(("b,a,n,a,n,a:", False), ("b,,a,n,a,n,a", False), ("\uff42,\uff41,\uff4e,\uff41,\uff4e,\uff41", False), ("ba,na,na", False), (":", False)),
]


@pytest.mark.parametrize(("answer", "right"), SPELT)
def test_simple_spelling_takes_the_letters_of_the_last_line(answer: str, right: bool, tmp_path: Path) -> None:
    task = SimpleSpelling(word_split("banana"), files=[jsonl(tmp_path / "words.jsonl", [{"word": "banana"}])], rows=1)
    assert task.grade(0, answer) is right


COUNTED = [
    *(("#### {n}", True), ("####{n}.", True), ("#### {n}.0", True), ("#### 9\n#### {n}", True), ("#### {n} times", True), ("#### {n}%", True)),
    *(("####   {n}", True), ("a=1\n#### {n}\n", True), ("#### ${n}", True), ("#### 0{n}", True), ("#### {n},", True)),
    *(("{n}", False), ("", False), ("#### {n}\n#### 9", False), ("#### -{n}", False), ("#### \u0663", False), ("#### three", False)),
    *(("#### {n}x", False), ("####", False), ("#### \n{n}", False), ("### {n}", False), ("#### {n}9", False), ("The count is {n}.", False)),
]


@pytest.mark.parametrize(("answer", "right"), COUNTED)
def test_spelling_bee_takes_the_number_after_the_last_mark(answer: str, right: bool, tmp_path: Path) -> None:
    task = SpellingBee(word_split("banana"), files=[jsonl(tmp_path / "words.jsonl", [{"word": "banana"}])], rows=30)
    index = next(index for index in range(30) if task.asked(index)[1] == "a")
    assert task.grade(index, answer.format(n=3)) is right


# --- identity --------------------------------------------------------------------------------------------------------

NAMED = [
    *(("I am nanochat.", True), ("My name is Nanochat!", True), ("NANOCHAT", True), ("I'm nanochat. I was not made by OpenAI.", True)),
    *(("No, I am not ChatGPT, I am nanochat.", True), ("**nanochat**", True), ("nanochat\n", True), ('"nanochat"', True), ("I am nanochat, 5 years", True)),
    *(("", False), ("I am a small language model.", False), ("I am ChatGPT, not nanochat.", False), ("My name is Claude. I know nanochat.", False)),
    *(("nano chat", False), ("nanochatter", False), ("nano-chat", False), ("I\u2019m Vicuna, also called nanochat", False), ("nan\u043echat", False)),
    *(("n a n o c h a t", False), ("I am Nano.", False), ("I am chat.", False), ("\uff4eanochat", False)),
]


@pytest.mark.parametrize(("answer", "right"), NAMED)
def test_identity_takes_its_own_name_alone(answer: str, right: bool) -> None:
    assert open_task("identity", "test").grade(0, answer) is right


# --- HumanEval: add(a, b) --------------------------------------------------------------------------------------------

PROGRAMS = [
    *(("    return a + b\n", True), ("    return helper(a) + b - 1", True), ("def add(a, b):\n    return a + b\n", True), ("\treturn a + b", False)),
    ("Sure:\n```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```\nThis adds.", True),
    *(("```\ndef add(a, b):\n    return helper(a) + b - 1\n```", True), ("```python\ndef add(a, b):\n    return a + b", True)),
    ("```python\ndef add(a, b):\n    return a + b\n```\n```python\ndef add(a, b):\n    return 0\n```", True),
    *(("    return a + b\n\ndef more(:\n    broken", True), ("```py\nadd = lambda a, b: a + b\n```", True), ("    # sum\n\n    return a + b\n\nprint(1", True)),
    ("import operator\ndef add(a, b):\n    return operator.add(a, b)", True),
    *(
        ("", False),
        ("    return a - b\n", False),
        ("The answer is a + b.", False),
        ("return a + b", False),
        ("    return '3'", False),
        ("    return a +", False),
    ),
    *(("```python\nimport sys\nsys.exit(0)\n```", False), ("```python\ndef check(candidate): pass\n```", False), ("    return \u0661 + b", False)),
    ("```python\ndef add(a, b):\n    return 0\n```\n```python\ndef add(a, b):\n    return a + b\n```", False),
    *(("```\n```", False), ("```python\ndef add(a, b):\n    raise SystemExit\n```", False)),
]


@pytest.mark.skipif(sandbox.unavailable() is not None, reason=str(sandbox.unavailable()))
def test_humaneval_runs_the_first_block_or_the_body(tmp_path: Path) -> None:
    task = HumanEval("test", files=[jsonl(tmp_path / "rows.jsonl", [HUMAN])])
    assert len(PROGRAMS) >= 20
    for answer, right in PROGRAMS:
        assert task.grade(0, answer) is right, answer


def test_every_graded_task_has_its_twenty_answers() -> None:
    tables = {Gsm8k: GSM8K, Arithmetic: SUMS, SimpleSpelling: SPELT, SpellingBee: COUNTED, HumanEval: PROGRAMS, TASKS["identity"]: NAMED}
    graded: list[type[Task]] = [task for task in TASKS.values() if task.kind != "conversation"]
    for task in graded:
        table = LETTERS if task.kind == "categorical" else next((rows for kind, rows in tables.items() if issubclass(task, kind)), [])
        assert len({row[0] for row in table}) >= 20, task.name
