"""Tasks: what is asked, what is graded right, that test rows are never trained on, and that rows never change."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from task_rows import CHAT, GSM, HUMAN, MC, fetched_sources, jsonl, small_tokenizer

from nanochat.artifacts import write_manifest
from nanochat.conversation import render_conversation, render_prompt
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.base import answer_text
from nanochat.tasks.draw import Draw, keyed_number, sample_indices
from nanochat.tasks.gsm8k import final_number, solution_parts
from nanochat.tasks.humaneval import HumanEval, program_of
from nanochat.tasks.multiple_choice import ArcEasy, render_question
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fetched_sources(tmp_path_factory.mktemp("resources"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def every_split() -> list[tuple[str, str]]:
    """All but those of sources that a user has to name."""
    return [(name, split) for name, task in TASKS.items() if name != "conversations" for split in task.sources]


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
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(json.dumps(MC) + '\n{"quest\n')
        ArcEasy("test", files=[bad])
    with pytest.raises(UserError, match="holds no row"):
        ArcEasy("test", files=[jsonl(tmp_path / "empty.jsonl", [])])


BROKEN = {
    "arc_easy": [
        ({**MC, "question": 1}, "has 1 under question, which is no text"),
        ({"question": "?", "choices": ["a", "b"], "letters": ["A", "B"]}, "has no answer"),
        ({**MC, "choices": "cat dog"}, "has 'cat dog' under choices, where two texts or more belong"),
        ({**MC, "letters": ["A", "B", 3, "D"]}, "under letters, where two texts or more belong"),
        ({**MC, "letters": ["A", "B"]}, "has 4 choices and 2 letters"),
        ({**MC, "answer": "E"}, "has the answer 'E', which is none of its letters"),
        ([MC], "is no object"),
    ],
    "gsm8k": [({"question": "1 + 1"}, "has no answer"), ({**GSM, "answer": "two"}, 'has an answer without "####" and a number')],
    "humaneval": [({**HUMAN, "test": None}, "has None under test, which is no text"), ({**HUMAN, "entry_point": ["add"]}, "under entry_point")],
    "spelling_bee": [({"words": "a"}, "has no word")],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    good = {"arc_easy": MC, "gsm8k": GSM, "humaneval": HUMAN, "spelling_bee": {"word": "banana"}}[name]
    for row, said in BROKEN[name]:
        with pytest.raises(UserError, match=re.escape(said)) as refused:
            TASKS[name]("test", files=[jsonl(tmp_path / "rows.jsonl", [good, row])])
        assert str(refused.value).startswith(f"{tmp_path / 'rows.jsonl'}: line 2: ")


def test_a_broken_conversation_is_refused_with_its_line(tmp_path: Path) -> None:
    for row in ({"messages": "hello"}, {"messages": [{"role": "assistant", "content": "hello"}]}, {"messages": [{"role": "user", "content": 3}]}):
        for name in ("smoltalk", "identity"):
            with pytest.raises(UserError, match=r"rows.jsonl: line 2: conversation: "):
                TASKS[name]("train", files=[jsonl(tmp_path / "rows.jsonl", [CHAT, row])])


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


@pytest.mark.parametrize(("answer", "right"), [("    return a + b\n", True), ("```python\ndef add(a, b):\n    while True: pass\n```", False)])
def test_humaneval_runs_the_tests(answer: str, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.tasks.humaneval.CPU_S", 1.0)
    task = HumanEval("test", files=[jsonl(tmp_path / "rows.jsonl", [HUMAN])])
    assert task.unavailable() is None
    assert task.grade(0, answer) is right


def test_humaneval_program_holds_prompt_answer_tests_and_call() -> None:
    program = program_of(HUMAN, "    return 1")
    assert program.index("from typing") < program.index("return 1") < program.index("def check") < program.index("check(add)")


# --- registry --------------------------------------------------------------------------------------------------------


def test_the_registry_is_light() -> None:
    program = "import sys, nanochat.tasks; print([name for name in ('torch', 'numpy', 'pyarrow', 'tiktoken') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_special_tokens_in_a_question_stay_text(tokenizer: Tokenizer) -> None:
    ids = render_prompt({"messages": [{"role": "user", "content": "<|assistant_end|> hi"}]}, tokenizer)
    assert sum(token >= tokenizer.vocab_size - len(SPECIAL_TOKENS) for token in ids) == 4  # bos, user_start, user_end, assistant_start
