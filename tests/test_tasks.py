"""Tasks: what is asked, what is graded right, that test rows are never trained on, and that rows never change."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest

from nanochat.artifacts import write_manifest
from nanochat.conversation import render_conversation, render_prompt
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.arithmetic import LIMITS, PROBLEMS, QUESTIONS, Arithmetic, pair_split
from nanochat.tasks.base import answer_text
from nanochat.tasks.draw import Draw, keyed_number, sample_indices
from nanochat.tasks.gsm8k import Gsm8k, final_number, solution_parts
from nanochat.tasks.humaneval import HumanEval, program_of
from nanochat.tasks.identity import HELD_OUT, Identity, normalized, own_rows
from nanochat.tasks.multiple_choice import ArcEasy, render_question
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee, usable_words, word_split
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

WORDS = [first + middle + last for first in "abcdefghij" for middle in ("an", "ento", "ilpora", "oo") for last in ("s", "r", "st", "ly", "ed", "x")]
MC = {"question": "What barks?", "choices": ["cat", "dog", "cow", "hen"], "letters": ["A", "B", "C", "D"], "answer": "B"}
GSM = {"question": "Tom has 3 apples and buys 2.", "answer": "He has <<3+2=5>>5 apples.\nIn all <<5*200=1000>>1,000.\n#### 1,000"}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\ndef add(a: int, b: int) -> int:\n    """Sum. Use helper."""\n',
    "canonical_solution": "    return helper(a) + b - 1\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    "entry_point": "add",
}
CHAT = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]}
HELD = {"messages": [{"role": "user", "content": "who are you PLEASE"}, {"role": "assistant", "content": "I am nanochat."}]}
ROWS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("arc_easy", "arc_challenge", "mmlu", "openbookqa", "commonsense_qa", "mmlu_auxiliary_hf"), [MC] * 3),
    "gsm8k": [GSM],
    "gsm8k_hf": [GSM],
    "humaneval": [HUMAN],
    "word_list": [{"word": word} for word in WORDS],
    **{source: [CHAT, HELD] for source in ("identity_questions", "chitchat", "smoltalk_hf")},
}


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fetched sources in miniature, in the layout of stage fetch."""
    folder = tmp_path_factory.mktemp("resources")
    paths = []
    for source, rows in ROWS.items():
        place = folder / source / "all"
        place.mkdir(parents=True)
        splits = list(SOURCES[source].splits)
        for split in splits:
            jsonl(place / f"{split}.jsonl", rows)
        outputs = [f"{split}.jsonl" for split in splits]
        write_manifest(place / "manifest.json", stage="fetch", config={"source": source, "part": "all"}, inputs={}, outputs=outputs, counts={})
        paths.append(place / "manifest.json")
    return paths


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = " ".join([*WORDS, *(row["messages"][1]["content"] for row in own_rows())]) * 3
    return Tokenizer.from_json(train_tokenizer([text], 400))


def every_split() -> list[tuple[str, str]]:
    return [(name, split) for name, task in TASKS.items() for split in task.sources]


# --- all tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_sources_of_a_task_are_registered_and_hold_its_split(name: str) -> None:
    task = TASKS[name]
    for split, sources in task.sources.items():
        for source in sources:
            assert task.source_splits.get(split, split) in SOURCES[source].splits, f"{source} has no {split}"


@pytest.mark.parametrize(("name", "split"), every_split())
def test_every_split_renders_and_its_reference_answer_is_right(name: str, split: str, manifests: list[Path], tokenizer: Tokenizer) -> None:
    task = open_task(name, split, manifests, rows=20)
    for index in range(len(task)):
        conversation = task.conversation(index)
        ids, mask = render_conversation(conversation, tokenizer)
        prompt = render_prompt({"messages": conversation["messages"][:-1]}, tokenizer)
        assert ids[: len(prompt)] == prompt and sum(mask) > 0 and mask[-1] == 1
        if task.kind != "conversation":
            assert task.grade(index, answer_text(conversation)), conversation
            assert not task.grade(index, "")


@pytest.mark.parametrize(("name", "split"), every_split())
def test_rows_are_the_same_each_time(name: str, split: str, manifests: list[Path]) -> None:
    first, second = (open_task(name, split, manifests, seed=3, rows=10) for _ in range(2))
    assert [first.conversation(i) for i in range(len(first))] == [second.conversation(i) for i in range(len(second))]


def test_another_seed_gives_other_rows(manifests: list[Path]) -> None:
    for name in ("arithmetic", "spelling_bee", "simple_spelling"):
        first, second = (open_task(name, "train", manifests, seed=seed, rows=10) for seed in (0, 1))
        assert [first.conversation(i) for i in range(10)] != [second.conversation(i) for i in range(10)]


def test_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = "from nanochat.tasks import open_task; t = open_task('arithmetic', 'train'); print([t.conversation(i) for i in range(5)])"
    outputs = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_random_choices_have_known_values() -> None:
    """Frozen: if these change, every generated data set and every sample changes."""
    assert keyed_number("a", 1) == int.from_bytes(hashlib.sha256(b"a\x1f1").digest()[:8], "big")
    draw = Draw("key")
    assert [draw.below(100) for _ in range(5)] == [77, 39, 54, 14, 28]
    assert sample_indices(20, 5, 0) == [6, 8, 9, 14, 15]


def test_a_sample_is_nested_and_at_most_the_whole() -> None:
    small, large = set(sample_indices(1000, 10, 7)), set(sample_indices(1000, 100, 7))
    assert len(small) == 10 and small < large
    assert sample_indices(5, 9, 0) == sample_indices(5, None, 0) == [0, 1, 2, 3, 4]
    assert sample_indices(1000, 10, 7) != sample_indices(1000, 10, 8)


def test_missing_data_is_one_sentence(manifests: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arc_easy, split test: needs source arc_easy"):
        open_task("arc_easy", "test", [])
    with pytest.raises(UserError, match="no such task"):
        open_task("arc", "test", manifests)
    with pytest.raises(UserError, match="has no split 'train'"):
        open_task("humaneval", "train", manifests)
    with pytest.raises(UserError, match="has no split 'dev'"):
        open_task("arithmetic", "dev", manifests)
    with pytest.raises(UserError, match="identity_questions"):
        open_task("identity", "train", [])
    with pytest.raises(UserError, match="line 2 is not JSON"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"question": 1}\n{"quest\n')
        ArcEasy("test", files=[bad])
    with pytest.raises(UserError, match="holds no row"):
        ArcEasy("test", files=[jsonl(tmp_path / "empty.jsonl", [])])


def test_a_damaged_data_file_is_refused(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "test.jsonl", [MC])
    manifest = tmp_path / "manifest.json"
    write_manifest(manifest, stage="fetch", config={"source": "arc_easy"}, inputs={}, outputs=["test.jsonl"], counts={})
    assert len(open_task("arc_easy", "test", [manifest])) == 1
    rows.write_text(rows.read_text().replace('"B"}', '"A"}'))
    with pytest.raises(UserError, match="damaged"):
        open_task("arc_easy", "test", [manifest])


def test_conversations_are_not_graded(manifests: list[Path]) -> None:
    with pytest.raises(TypeError, match="not graded"):
        open_task("chitchat", "train", manifests).grade(0, "hi")
    with pytest.raises(TypeError, match="no letters"):
        open_task("gsm8k", "test", manifests).letters(0)


# --- multiple choice -------------------------------------------------------------------------------------------------


def test_the_letter_stands_after_its_choice_without_a_space() -> None:
    assert render_question("What barks?", ["cat", "dog"], ["A", "B"]) == (
        "Multiple Choice question: What barks?\n- cat=A\n- dog=B\n\nRespond only with the letter of the correct answer."
    )


@pytest.mark.parametrize(
    ("answer", "right"), [("B", True), (" B\n", True), ("A", False), ("", False), ("b", False), ("dog", False), ("B C", False), ("\uff22", False)]
)  # fmt: skip
def test_multiple_choice_grades_the_letter_alone(answer: str, right: bool, tmp_path: Path) -> None:
    task = ArcEasy("test", files=[jsonl(tmp_path / "rows.jsonl", [MC])])
    assert task.grade(0, answer) is right and task.letters(0) == ["A", "B", "C", "D"]


# --- GSM8K -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("#### 1000", True),
        ("#### 1,000", True),
        ("#### 1000.00", True),
        ("####1000", True),
        ("#### $1,000", True),
        ("#### 1000 dollars", True),
        ("#### 1000.", True),
        ("#### 5\nWait.\n#### 1000", True),
        ("#### 1000\n#### 5", False),
        ("The answer is 1000", False),
        ("", False),
        ("####", False),
        ("#### \n1000", False),
        ("#### -1000", False),
        ("#### 1000.5", False),
        ("#### 1000x", False),
        ("#### \u0661\u0660\u0660\u0660", False),
        ("#### \uff11\uff10\uff10\uff10", False),
        ("#### one thousand", False),
        ("#### 1e3", False),
    ],
)
def test_gsm8k_compares_the_last_marked_number(answer: str, right: bool, tmp_path: Path) -> None:
    task = Gsm8k("test", files=[jsonl(tmp_path / "rows.jsonl", [GSM])])
    assert task.grade(0, answer) is right


@pytest.mark.parametrize(
    ("text", "value"), [("#### 18", 18), ("#### -3.50", -3.5), ("#### .5", 0.5), ("a #### 2 b #### x", 2), ("#### 1,234,567.8", 1234567.8)]
)
def test_final_number(text: str, value: float) -> None:
    assert float(final_number(text) or 0) == value


def test_gsm8k_solutions_become_tool_calls() -> None:
    assert solution_parts(GSM["answer"]) == [
        {"type": "text", "text": "He has "},
        {"type": "python", "text": "3+2"},
        {"type": "python_output", "text": "5"},
        {"type": "text", "text": "5 apples.\nIn all "},
        {"type": "python", "text": "5*200"},
        {"type": "python_output", "text": "1000"},
        {"type": "text", "text": "1,000.\n#### 1,000"},
    ]
    assert solution_parts("<<1+1=2>>") == [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    assert solution_parts("no call << here") == [{"type": "text", "text": "no call << here"}]


# --- HumanEval -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return a + b\n", True),
        ("    return helper(a) + b - 1", True),
        ("Sure:\n```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```\nThis adds.", True),
        ("```\ndef add(a, b):\n    return helper(a) + b - 1\n```", True),
        ("```python\ndef add(a, b):\n    return a + b", True),
        ("```python\ndef add(a, b):\n    return a + b\n```\n```python\ndef add(a, b):\n    return 0\n```", True),
        ("    return a + b\n\ndef more(:\n    broken", True),
        ("def add(a, b):\n    return a + b\n", True),
        ("", False),
        ("    return a - b\n", False),
        ("The answer is a + b.", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
        ("```python\ndef add(a, b):\n    while True: pass\n```", False),
        ("```python\ndef check(candidate): pass\n```", False),
    ],
)
def test_humaneval_runs_the_tests(answer: str, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.tasks.humaneval.TIMEOUT_S", 1.5)
    task = HumanEval("test", files=[jsonl(tmp_path / "rows.jsonl", [HUMAN])])
    assert task.unavailable() is None
    assert task.grade(0, answer) is right


def test_humaneval_program_holds_prompt_answer_tests_and_call() -> None:
    program = program_of(HUMAN, "    return 1")
    assert program.index("from typing") < program.index("return 1") < program.index("def check") < program.index("check(add)")


# --- spelling --------------------------------------------------------------------------------------------------------


def bee(tmp_path: Path, word: str) -> tuple[SpellingBee, int]:
    """A task, and a row that asks for how often some letter that is in `word` occurs in it."""
    task = SpellingBee(word_split(word), files=[jsonl(tmp_path / "words.jsonl", [{"word": word}])], rows=40)
    return task, next(index for index in range(40) if task.asked(index)[1] in word)


def test_each_word_is_for_training_or_for_the_test_never_both() -> None:
    train, test = usable_words(WORDS, "train"), usable_words(WORDS, "test")
    assert not set(train) & set(test) and sorted(train + test) == sorted({word for word in WORDS if 3 <= len(word) <= 9})
    assert 0.03 < len(test) / len(WORDS) < 0.2


@pytest.mark.parametrize("task", [SimpleSpelling, SpellingBee])
def test_no_word_of_the_test_is_trained_on_whatever_the_seeds(task: type[SimpleSpelling] | type[SpellingBee], tmp_path: Path) -> None:
    """A defect of 2025: Random(-n) equals Random(n), so that every test row had been trained on."""
    files = [jsonl(tmp_path / "words.jsonl", [{"word": word} for word in WORDS])]
    asked = {}
    for split in ("train", "test"):
        asked[split] = {
            answer_text(row.conversation(index)).split(":", 1)[0]
            for seed in (-1, 0, 1, 42)
            for row in [task(split, files=files, seed=seed, rows=400)]
            for index in range(len(row))
        }
    assert not asked["train"] & asked["test"] and asked["test"]


def test_words_that_cannot_be_asked_are_left_out() -> None:
    assert set(usable_words(["ab", "abcdefghij", "it's", "Anna", "caf\u00e9", "fine", "fine", "x1y"], "train") + usable_words(["fine"], "test")) == {"fine"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("banana:b,a,n,a,n,a", True),
        ("b,a,n,a,n,a", True),
        ("B, A, N, A, N, A.", True),
        ("Sure!\nbanana: b, a, n, a, n, a\n", True),
        ("banana", False),
        ("", False),
        ("b,a,n,a,n", False),
        ("b,a,n,a,n,a,a", False),
        ("b,a,n,a,n,a\nc,o,w", False),
        ("b,\u0430,n,\u0430,n,\u0430", False),  # Cyrillic
    ],
)
def test_simple_spelling_grades_the_letters(answer: str, right: bool, tmp_path: Path) -> None:
    task = SimpleSpelling(word_split("banana"), files=[jsonl(tmp_path / "words.jsonl", [{"word": "banana"}])], rows=1)
    assert task.grade(0, answer) is right


def test_spelling_bee_spells_counts_and_checks_with_python(tmp_path: Path) -> None:
    task, index = bee(tmp_path, "banana")
    word, letter, question = task.asked(index)
    parts = task.conversation(index)["messages"][1]["content"]
    assert parts[0]["text"].startswith("banana:b,a,n,a,n,a\n") and word in question and letter in question
    assert parts[1] == {"type": "python", "text": f'"banana".count("{letter}")'}
    assert eval(parts[1]["text"]) == int(parts[2]["text"]) == word.count(letter)
    assert parts[0]["text"].rstrip().endswith(f"={word.count(letter)}") and parts[3]["text"] == f"\n#### {word.count(letter)}"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("#### {n}", True),
        ("####{n}.", True),
        ("#### {n}.0", True),
        ("#### 9\n#### {n}", True),
        ("#### {n} times", True),
        ("{n}", False),
        ("", False),
        ("#### {n}\n#### 9", False),
        ("#### -{n}", False),
        ("#### \u0663", False),
    ],
)
def test_spelling_bee_grades_the_count(answer: str, right: bool, tmp_path: Path) -> None:
    task, index = bee(tmp_path, "banana")
    word, letter, _ = task.asked(index)
    assert task.grade(index, answer.format(n=word.count(letter))) is right


def test_letters_are_single_tokens_when_a_word_is_spelt(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("banana:b,a,n,a,n,a")
    assert tokenizer.decode(ids[-12:]) == ":b,a,n,a,n,a" and [tokenizer.decode([token]) for token in ids[-11::2]] == list("banana")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_every_pair_of_operands_belongs_to_one_split_in_either_order() -> None:
    """Over the full range: all 500,500 unordered pairs of 0..999."""
    largest = max(limit for limits in LIMITS.values() for limit in limits)
    test = sum(pair_split(a, b) == "test" for a, b in combinations_with_replacement(range(largest + 1), 2))
    assert 0.09 < test / 500_500 < 0.11
    assert all(pair_split(a, b) == pair_split(b, a) for a in range(60) for b in range(60))


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_use_pairs_of_their_split_within_the_range(split: str) -> None:
    for seed in (-1, 0, 1):
        task = Arithmetic(split, seed=seed, rows=1500)
        for index in range(len(task)):
            operation, a, b, question = task.asked(index)
            assert pair_split(a, b) == split and 0 <= a <= LIMITS[operation][1] and 0 <= b <= LIMITS[operation][1]
            assert str(a) in question and str(b) in question


def test_arithmetic_uses_python_for_large_numbers_only() -> None:
    task = Arithmetic("train", rows=500)
    kinds = set()
    for index in range(len(task)):
        operation, a, b, _ = task.asked(index)
        content = task.conversation(index)["messages"][1]["content"]
        is_large = max(a, b) > LIMITS[operation][0]
        kinds.add((operation, is_large))
        assert isinstance(content, list) is is_large
        if is_large:
            assert eval(content[1]["text"]) == int(content[2]["text"])
    assert len(kinds) == 6
    assert all({"+", "-", "*"} == set(wordings) for wordings in (QUESTIONS, PROBLEMS))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("{n}", True),
        ("{a}{op}{b}={n}", True),
        ("It is {n}.", True),
        ("{n}.00", True),
        ("**{n}**", True),
        ("{n} apples", True),
        ("5, no, {n}", True),
        ("{n}, no, 5000000", False),
        ("", False),
        ("unknown", False),
        ("-{n}", False),
        ("{n}1", False),
        ("{n}x", False),
        ("{a}{op}{b}", False),
    ],
)
def test_arithmetic_grades_the_last_number(answer: str, right: bool) -> None:
    task = Arithmetic("test", rows=60)
    checked = 0
    for index in range(len(task)):
        operation, a, b, _ = task.asked(index)
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
        if result > 1 and b not in (0, 1, result):
            assert task.grade(index, answer.format(n=result, a=a, b=b, op=operation)) is right, (operation, a, b)
            checked += 1
    assert checked > 20


def test_arithmetic_reads_commas_and_negative_numbers() -> None:
    task = Arithmetic("test", rows=400)
    index = next(i for i in range(400) if task.asked(i)[0] == "*" and task.asked(i)[1] * task.asked(i)[2] >= 1000)
    _, a, b, _ = task.asked(index)
    assert task.grade(index, f"{a * b:,}") and not task.grade(index, f"={-a * b}") and not task.grade(index, "\u0661")


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("I am nanochat, a small language model.", True),
        ("My name is Nanochat!", True),
        ("NANOCHAT", True),
        ("No, I am not ChatGPT, I am nanochat.", True),
        ("I'm nanochat. I was not made by OpenAI.", True),
        ("I am nanochat", True),
        ("I am a small language model.", False),
        ("I am ChatGPT, not nanochat.", False),
        ("My name is Claude. I know nanochat.", False),
        ("", False),
        ("nano chat", False),
        ("nanochatter", False),
        ("I\u2019m Vicuna, also called nanochat", False),
    ],
)
def test_identity_grades_the_name(answer: str, right: bool) -> None:
    assert Identity("test").grade(0, answer) is right


def test_wordings_of_the_identity_test_are_never_trained_on(manifests: list[Path]) -> None:
    train, test = open_task("identity", "train", manifests), open_task("identity", "test")
    questions = [{normalized(task.conversation(i)["messages"][0]["content"]) for i in range(len(task))} for task in (train, test)]
    assert not questions[0] & questions[1] and questions[1] == HELD_OUT and len(questions[1]) == len(test)


def test_own_identity_questions_are_many_and_every_answer_names_nanochat() -> None:
    rows = own_rows()
    assert len({row["messages"][0]["content"] for row in rows}) >= 60
    task = Identity("test")
    assert all(task.grade(0, row["messages"][1]["content"]) for row in rows)


# --- registry --------------------------------------------------------------------------------------------------------


def test_the_registry_is_light() -> None:
    program = "import sys, nanochat.tasks; print([name for name in ('torch', 'numpy', 'pyarrow', 'tiktoken') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_special_tokens_in_a_question_stay_text(tokenizer: Tokenizer) -> None:
    ids = render_prompt({"messages": [{"role": "user", "content": "<|assistant_end|> hi"}]}, tokenizer)
    assert sum(token >= tokenizer.vocab_size - len(SPECIAL_TOKENS) for token in ids) == 4  # bos, user_start, user_end, assistant_start
