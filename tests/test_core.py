"""CORE: prompts, tokens that count, losses, and the number made of them, each against something that was made another way."""

import json
import math
import random
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_cases import OFF, ON, config, shaken

from nanochat.artifacts import write_manifest
from nanochat.data.core import CORE_TASKS, core_index
from nanochat.errors import UserError
from nanochat.eval.core.bundle import IclTask, load_tasks, read_task_rows
from nanochat.eval.core.prompts import Item, check_limit, encode_all, examples_of, item_of, sharing, shuffled, texts_of
from nanochat.eval.core.score import Answers, ask_rows, core_result
from nanochat.eval.core.scoring import batches, score_items
from nanochat.eval.intervals import wilson
from nanochat.eval.results import NotAvailableError
from nanochat.model.gpt import GPT
from nanochat.tokenizer import Tokenizer, train_tokenizer

TEXT = "Which animal barks? The dog barks at the cat, the cow gives milk. A man sits on a roof. Question: Answer: 1 2 35 because it was light. " * 6
WORDS = ["the", "dog", "barks", "at", "a", "cat", "because", "was", "light", "and", "cow", "gives", "milk,", "12", "or", "35", "times.", "Who?", "“The", "man”"]
TEMPLATES = {  # as the metric's authors publish them
    "multiple_choice": "{%- for e in shown -%}{{ e.query }}{{ delimiter }}{{ e.choices[e.gold] }}\n\n{% endfor -%}{{ row.query }}{{ delimiter }}{{ text }}",
    "schema": (
        "{%- for e in shown -%}{{ e.context_options[e.gold] }}{{ delimiter }}{{ e.continuation }}\n\n{% endfor -%}"
        "{{ text }}{{ delimiter }}{{ row.continuation }}"
    ),
    "language_modeling": (
        "{%- for e in shown -%}{{ e.context | trim }}{{ delimiter }}{{ e.continuation }}\n\n{% endfor -%}"
        "{{ row.context | trim }}{{ delimiter }}{% if text %}{{ row.continuation }}{% endif %}"
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(train_tokenizer([TEXT], 320))


def words(draws: random.Random, least: int, most: int) -> str:
    return " ".join(draws.choice(WORDS) for _ in range(draws.randint(least, most)))


def rows_of(kind: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    draws = random.Random(seed)
    if kind == "multiple_choice":
        return [
            {"query": words(draws, 2, 9), "choices": [words(draws, 1, 5) for _ in range(draws.randint(2, 5))], "gold": draws.randint(0, 1)}
            for _ in range(count)
        ]
    if kind == "schema":
        ends = [f"The {words(draws, 1, 4)}" for _ in range(2 * count)]
        return [{"context_options": ends[2 * n : 2 * n + 2], "continuation": words(draws, 1, 5), "gold": n % 2} for n in range(count)]
    return [{"context": f" {words(draws, 3, 12)}\n", "continuation": words(draws, 1, 3)} for _ in range(count)]


def task_of(kind: str, *, count: int = 14, shots: int = 2, delimiter: str = " ", rows: list[dict[str, Any]] | None = None) -> IclTask:
    labels = {"multiple_choice": "arc_easy", "schema": "winograd", "language_modeling": "squad"}
    return IclTask(labels[kind], kind, shots, delimiter, 25.0, rows or rows_of(kind, count), "0" * 64)  # type: ignore[arg-type]


def model_of(tokenizer: Tokenizer, features: dict[str, Any] = ON, **changes: Any) -> GPT:
    return shaken(config(features, **{"vocab_size": tokenizer.vocab_size, "sequence_len": 160, **changes})).requires_grad_(False)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize(("shots", "delimiter"), [(0, " "), (3, " "), (3, "\nAnswer: ")])
def test_prompts_are_those_of_the_published_templates(kind: str, shots: int, delimiter: str) -> None:
    task, template = task_of(kind, shots=shots, delimiter=delimiter), jinja2.Environment(keep_trailing_newline=True).from_string(TEMPLATES[kind])
    rows = shuffled(task.rows, None)
    for index, row in enumerate(rows):
        shown = examples_of(rows, index, shots)
        texts = row.get("choices") or row.get("context_options") or [False, True]
        expected = [template.render(row=row, shown=shown, delimiter=delimiter, text=text) for text in texts]
        if kind == "language_modeling":
            expected[0] = expected[0].strip()
        assert texts_of(task, row, shown) == expected


def test_a_prompt_as_it_is_read() -> None:
    rows = [{"query": f"Q{n}", "choices": [f"a{n}", f"b{n}"], "gold": n % 2} for n in range(3)]
    task = task_of("multiple_choice", rows=rows, delimiter="\nAnswer: ")
    assert texts_of(task, rows[0], [rows[1], rows[2]]) == [
        "Q1\nAnswer: b1\n\nQ2\nAnswer: a2\n\nQ0\nAnswer: a0",
        "Q1\nAnswer: b1\n\nQ2\nAnswer: a2\n\nQ0\nAnswer: b0",
    ]


def test_rows_are_shuffled_before_they_are_cut_and_examples_are_other_rows_of_what_is_left() -> None:
    rows = [{"row": number} for number in range(30)]
    mixed = list(range(30))
    random.Random(1337).shuffle(mixed)
    assert [row["row"] for row in shuffled(rows, None)] == mixed and [row["row"] for row in shuffled(rows, 12)] == mixed[:12]
    asked = shuffled(rows, 12)
    for index in range(12):
        others = [row["row"] for place, row in enumerate(asked) if place != index]
        assert [row["row"] for row in examples_of(asked, index, 10)] == random.Random(1234 + index).sample(others, 10)
    assert rows[0] == {"row": 0}, "the caller's rows stay as they are"


def test_texts_are_encoded_as_if_each_were_alone(tokenizer: Tokenizer) -> None:
    draws = random.Random(3)
    for _ in range(200):
        head = words(draws, 0, 30) + draws.choice(["", " ", "\n\n", ".\n", "12", "é", "  "])
        texts = [head + draws.choice(["", " ", "'s ", "\n"]) + words(draws, 0, 4) for _ in range(draws.randint(1, 4))]
        assert encode_all(texts, tokenizer) == [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]


def counted(tokenizer: Tokenizer, item: Item) -> list[str]:
    return [tokenizer.decode(ids[start:]) for ids, start in zip(item.sequences, item.starts, strict=True)]


def test_what_counts_is_what_differs_what_follows_and_the_answer(tokenizer: Tokenizer) -> None:
    choice = task_of("multiple_choice", shots=0, rows=[{"query": "The dog", "choices": ["barks at the cat", "barks at a man"], "gold": 0}])
    item = item_of(choice, choice.rows, 0, tokenizer, max_tokens=100)
    assert counted(tokenizer, item) == [" the cat", " a man"] and item.sequences[0][: item.shared] == [tokenizer.bos, *tokenizer.encode("The dog barks at")]
    schema = task_of("schema", shots=0, rows=[{"context_options": ["The dog", "A cat"], "continuation": "gives milk.", "gold": 0}])
    item = item_of(schema, schema.rows, 0, tokenizer, max_tokens=100)
    assert counted(tokenizer, item) == [" gives milk.", " gives milk."] and item.shared == 1
    written = task_of("language_modeling", shots=0, delimiter="\nAnswer: ", rows=[{"context": " Who barks? \n", "continuation": "the dog"}])
    item = item_of(written, written.rows, 0, tokenizer, max_tokens=100)
    assert counted(tokenizer, item) == [" the dog"] and tokenizer.decode(item.sequences[0][1:]) == "Who barks?\nAnswer: the dog"


def test_a_choice_that_begins_another_has_a_token_that_counts(tokenizer: Tokenizer) -> None:
    task = task_of("multiple_choice", shots=0, rows=[{"query": "The", "choices": ["dog", "dog barks", "dog"], "gold": 1}])
    item = item_of(task, task.rows, 0, tokenizer, max_tokens=100)
    last = tokenizer.decode(tokenizer.encode(" dog")[-1:])
    assert counted(tokenizer, item) == [last, f"{last} barks", last]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_is_too_long_loses_its_beginning_and_nothing_that_counts(kind: str, tokenizer: Tokenizer) -> None:
    task = task_of(kind, count=14, shots=10)
    seen = 0
    for index in range(14):
        whole, cut = (item_of(task, task.rows, index, tokenizer, max_tokens=limit) for limit in (10_000, 64))
        assert not whole.is_cut and counted(tokenizer, whole) == counted(tokenizer, cut)
        assert all(
            len(ids) <= 64 and ids[0] == tokenizer.bos and full[-len(ids) + 1 :] == ids[1:] for ids, full in zip(cut.sequences, whole.sequences, strict=True)
        )
        seen += cut.is_cut
    assert seen == 14


# --- losses ----------------------------------------------------------------------------------------------------------


def one_by_one(model: GPT, item: Item, padding: int) -> tuple[list[float], bool]:
    """One row in a forward pass, all logits of it: mean losses of its texts, and whether all that counts is the likeliest."""
    longest = max(map(len, item.sequences))
    ids = torch.tensor([[*text, *[padding] * (longest - len(text))] for text in item.sequences])
    logits = model(ids)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    means = [float(row[start - 1 : len(text) - 1].mean()) for row, text, start in zip(losses, item.sequences, item.starts, strict=True)]
    start, end = item.starts[0], len(item.sequences[0])
    return means, bool((logits[0, start - 1 : end - 1].argmax(-1) == ids[0, start:end]).all())


@pytest.mark.parametrize(
    ("features", "context"),
    [(ON, 160), (ON, 64), (OFF, 160), ({**ON, "window_pattern": "SSL", "kv_heads": 2}, 96)],
    ids=["on", "cut", "off", "windows"],
)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_batches_with_a_shared_beginning_score_as_one_row_in_a_pass(kind: str, features: dict[str, Any], context: int, tokenizer: Tokenizer) -> None:
    model, task = model_of(tokenizer, features, sequence_len=context), task_of(kind)
    items = [item_of(task, task.rows, index, tokenizer, max_tokens=context) for index in range(len(task.rows))]
    if kind == "language_modeling":  # rows that the model gets right: what it says itself to the context
        for index in range(0, len(items), 2):
            ids, start = items[index].sequences[0], items[index].starts[0]
            said = [*ids[:start], int(model(torch.tensor([ids[:start]]))[0, -1].argmax())]
            items[index] = Item(index, [said], [start], start, None, False)
    expected = {item.index: one_by_one(model, item, tokenizer.bos) for item in items}
    for rows, tokens in ((1, None), (16, 100), (1000, None)):
        found = {one.index: one for batch in batches(items, rows=rows, context=context, tokens=tokens) for one in score_items(model, batch)}
        assert sorted(found) == list(range(len(items)))
        for item in items:
            means, is_greedy = expected[item.index]
            if item.gold is None:
                assert found[item.index].is_greedy == is_greedy == found[item.index].is_right
            else:
                assert found[item.index].losses == pytest.approx(means, abs=1e-4)
                assert found[item.index].choice == means.index(min(means))
                assert found[item.index].is_right == (means.index(min(means)) == item.gold)
    if kind == "language_modeling":
        assert {is_greedy for _, is_greedy in expected.values()} == {True, False}


def test_the_shared_beginning_is_read_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = model_of(tokenizer), task_of("multiple_choice")
    items = [item_of(task, task.rows, index, tokenizer, max_tokens=160) for index in range(8)]
    read, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, cache=None, at=None: (read.append(ids.numel()), hidden(ids, cache, at))[1])
    for batch in batches(items, rows=1, context=160):
        score_items(model, batch)
    alone = sum(len(text) for item in items for text in item.sequences)
    least = sum(item.shared + sum(len(text) - item.shared - 1 for text in item.sequences) for item in items)
    assert least <= sum(read) < 0.6 * alone


def test_questions_about_the_same_story_read_it_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(3)
    stories = [words(draws, 12, 14) for _ in range(3)]
    rows = [{"context": f"{stories[number % 3]} {words(draws, 1, 4)}", "continuation": words(draws, 1, 3)} for number in range(12)]
    model, task = model_of(tokenizer), task_of("language_modeling", shots=0, rows=rows)
    read, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, cache=None, at=None: (read.append(ids.numel()), hidden(ids, cache, at))[1])
    answers: dict[int, dict[str, Any]] = {}
    ask_rows(model, tokenizer, task, rows, list(range(12)), answers.__setitem__, batch_rows=8)
    items = [item_of(task, rows, index, tokenizer, max_tokens=160) for index in range(12)]
    assert sum(read) < 0.6 * sum(len(item.sequences[0]) for item in items)
    shared = sharing(items)
    assert len({item.head for item in shared}) == 3 and sorted(item.index for item in shared) == list(range(12))
    for index in range(0, 12, 2):  # every second one is what the model says itself
        ids, start = items[index].sequences[0], items[index].starts[0]
        items[index] = Item(index, [[*ids[:start], int(model(torch.tensor([ids[:start]]))[0, -1].argmax())]], [start], start, None, False)
    for rows_in_a_pass in (1, 2, 8):
        batched = [one for batch in batches(sharing(items), rows=rows_in_a_pass, context=160) for one in score_items(model, batch)]
        assert {one.index: one.is_greedy for one in batched} == {item.index: one_by_one(model, item, tokenizer.bos)[1] for item in items}


# --- the number ------------------------------------------------------------------------------------------------------


def answers_of(label: str, rights: list[bool], baseline: float, cut: int = 0) -> Answers:
    task = IclTask(label, CORE_TASKS[label].kind, CORE_TASKS[label].shots, " ", baseline, [{}] * len(rights), "")
    return Answers(task, [{"right": right, "cut": place < cut} for place, right in enumerate(rights)], 1.5)


def test_core_by_hand() -> None:
    """(0.75 - 0.25) / 0.75 = 2/3; (0.5 - 0) / 1 = 1/2; (0.31 - 0.62) / 0.38 < 0."""
    found = core_result(
        [
            answers_of("arc_easy", [True] * 3 + [False], 25.0, cut=1),
            answers_of("squad", [True, False], 0.0),
            answers_of("boolq", [True] * 31 + [False] * 69, 62.0),
        ]
    )
    assert [task["centered"] for task in found["tasks"]] == pytest.approx([2 / 3, 1 / 2, (0.31 - 0.62) / (1 - 0.62)])
    assert found["score"] == pytest.approx((2 / 3 + 1 / 2 - 0.31 / 0.38) / 3)
    assert (found["name"], found["n"], found["prompts_cut"], found["interval_method"]) == ("CORE-3", 106, 1, "wilson, squared and added")
    assert found["missing"] == [label for label in CORE_TASKS if label not in ("arc_easy", "squad", "boolq")] and len(found["missing"]) == 19
    keys = {"label", "type", "shots", "n", "accuracy", "interval", "baseline", "centered", "seconds"}
    assert all(set(task) == keys for task in found["tasks"])
    assert found["tasks"][2] | {"interval": 0} == {
        "label": "boolq", "type": "multiple_choice", "shots": 10, "n": 100, "accuracy": 0.31, "interval": 0, "baseline": 0.62,
        "centered": pytest.approx(-0.31 / 0.38), "seconds": 1.5,
    }  # fmt: skip


def test_only_all_22_tasks_are_core() -> None:
    every = [answers_of(label, [True, False], task.baseline) for label, task in CORE_TASKS.items()]
    whole, without = core_result(every), core_result(every[:-1])
    assert (whole["name"], whole["missing"]) == ("CORE", [])
    assert (without["name"], without["missing"]) == ("CORE-21", ["bigbench_language_identification"])
    assert whole["score"] == pytest.approx(sum((0.5 - 0.01 * task.baseline) / (1 - 0.01 * task.baseline) for task in CORE_TASKS.values()) / 22)
    assert len(CORE_TASKS) == 22 and {task.kind for task in CORE_TASKS.values()} == set(TEMPLATES)


def test_the_interval_is_near_that_of_rows_drawn_anew() -> None:
    rights = [np.arange(400) < 300, np.arange(100) < 30]
    draws, means = np.random.default_rng(1), []
    for _ in range(4000):
        accuracies = [row[draws.integers(0, len(row), len(row))].mean() for row in rights]
        means.append(((accuracies[0] - 0.25) / 0.75 + accuracies[1]) / 2)
    found = core_result([answers_of(label, rows.tolist(), baseline) for label, rows, baseline in zip(("piqa", "squad"), rights, (25.0, 0.0), strict=True)])
    assert found["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.005)


def test_tasks_that_are_all_wrong_are_no_certainty() -> None:
    """Rows drawn anew from wrong ones are wrong each time: an interval of no width."""
    found = core_result([answers_of(label, [False] * 20, 0.0) for label in ("squad", "coqa")])
    assert found["score"] == 0 and found["interval"] == [0.0, pytest.approx(wilson(0, 20)[1] / math.sqrt(2))]


# --- asking ----------------------------------------------------------------------------------------------------------


def test_every_row_is_answered_once_and_as_if_it_were_alone(tokenizer: Tokenizer) -> None:
    model, task = model_of(tokenizer), task_of("multiple_choice", count=40)

    def ask(places: list[int], batch_rows: int) -> dict[int, tuple[int, bool]]:
        found: dict[int, tuple[int, bool]] = {}

        def keep(index: int, value: dict[str, Any]) -> None:
            assert index not in found
            found[index] = (value["choice"], value["right"])  # losses differ in their last digits, as batches do

        ask_rows(model, tokenizer, task, task.rows, places, keep, batch_rows=batch_rows)
        return found

    alone = ask(list(range(40)), 1)
    assert sorted(alone) == list(range(40)) and {is_right for _, is_right in alone.values()} == {True, False}
    assert alone == ask(list(range(40)), 16) == ask(list(range(0, 40, 2)), 16) | ask(list(range(1, 40, 2)), 16)


def test_a_model_that_says_nan_has_no_score(tokenizer: Tokenizer) -> None:
    for kind in TEMPLATES:
        model, task = model_of(tokenizer), task_of(kind)
        model.blocks[1].mlp.up.weight.data[:] = math.nan
        with pytest.raises(NotAvailableError, match=f"{task.label}: .* not (a )?finite number"):
            ask_rows(model, tokenizer, task, task.rows, [0, 1], lambda *_: None, batch_rows=8)


# --- what is refused -------------------------------------------------------------------------------------------------


def fetched(folder: Path, files: dict[str, str], source: str = "core_wheels") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    config = {"source": source, "part": "all"}
    write_manifest(folder / "manifest.json", stage="fetch", config=config, inputs={}, outputs=list(files), counts={})
    return folder / "manifest.json"


def source_files(*labels: str) -> dict[str, str]:
    rows = {label: "".join(json.dumps(row) + "\n" for row in rows_of(CORE_TASKS[label].kind, 12)) for label in labels}
    return {**core_index(labels), **{f"{label}.jsonl": text for label, text in rows.items()}}


def test_tasks_are_read_from_several_sources_in_the_order_of_the_metric(tmp_path: Path) -> None:
    one, other = fetched(tmp_path / "a", source_files("boolq", "squad")), fetched(tmp_path / "b", source_files("jeopardy", "winograd"))
    tasks = load_tasks([one, other])
    assert [task.label for task in tasks] == ["jeopardy", "winograd", "squad", "boolq"]
    assert (tasks[3].shots, tasks[3].delimiter, tasks[3].baseline, len(tasks[3].rows)) == (10, "\nAnswer: ", 62.0, 12)
    assert [task.label for task in load_tasks([one, other], ["squad"])] == ["squad"]
    with pytest.raises(UserError, match="task squad is in another source too"):
        load_tasks([one, fetched(tmp_path / "c", source_files("squad"))])
    with pytest.raises(UserError, match="tasks='sqaud': no task of CORE; choose among hellaswag_zeroshot, "):
        load_tasks([one], ["sqaud"])
    with pytest.raises(UserError, match="tasks='winogrande': in none of the sources given"):
        load_tasks([one], ["squad", "winogrande"])
    with pytest.raises(UserError, match="--data: none given; task core needs"):
        load_tasks([])


BROKEN = {
    "no JSON": ("squad", "{", "line 2: not valid JSON"),
    "no object": ("squad", "[1]", "line 2: is no object"),
    "a missing key": ("squad", '{"context": "a"}', "line 2: has no continuation"),
    "a number for a text": ("squad", '{"context": 3, "continuation": "a"}', "line 2: has 3 under context, which is no text"),
    "an empty answer": ("squad", '{"context": "a", "continuation": " "}', "line 2: has an empty continuation"),
    "one choice": ("boolq", '{"query": "a", "choices": ["b"], "gold": 0}', "line 2: has ['b'] under choices, where two texts or more belong"),
    "gold beyond the choices": ("boolq", '{"query": "a", "choices": ["b", "c"], "gold": 2}', "line 2: has gold=2, which is none of 0 to 1"),
    "gold as a word": ("winograd", '{"context_options": ["b", "c"], "continuation": "d", "gold": "0"}', "line 2: has gold='0', which is none of 0 to 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_refused_with_its_file_and_line(name: str, tmp_path: Path) -> None:
    label, line, said = BROKEN[name]
    files = source_files(label)
    first = files[f"{label}.jsonl"].splitlines()[0]
    with pytest.raises(UserError) as refused:
        load_tasks([fetched(tmp_path, files | {f"{label}.jsonl": f"{first}\n{line}\n"})])
    assert f"{label}.jsonl: {said}" in str(refused.value) and str(refused.value).endswith("; delete the folder of its source and fetch it again")


def test_a_bundle_with_other_tasks_or_without_baselines_is_refused(tmp_path: Path) -> None:
    files = source_files("squad")
    with pytest.raises(UserError, match="has a task 'sqaud', which is none of CORE's"):
        load_tasks([fetched(tmp_path / "a", files | {"core.yaml": files["core.yaml"].replace("label: squad", "label: sqaud")})])
    with pytest.raises(UserError, match="has no Random baseline for task squad"):
        load_tasks([fetched(tmp_path / "b", files | {"eval_meta_data.csv": "Eval Task,Random baseline\n"})])
    with pytest.raises(UserError, match="line 2: Random baseline of squad is 'half', no number"):
        load_tasks([fetched(tmp_path / "c", files | {"eval_meta_data.csv": "Eval Task,Random baseline\nsquad,half\n"})])
    with pytest.raises(UserError, match="lists no tasks"):
        load_tasks([fetched(tmp_path / "d", files | {"core.yaml": "tasks: []\n"})])
    with pytest.raises(UserError, match=r"holds no core.yaml, so no tasks of CORE; give the manifest of core_bundle or core_wheels"):
        load_tasks([fetched(tmp_path / "e", {"test.jsonl": "{}\n"}, "arc_easy")])
    with pytest.raises(UserError, match="holds no row"):
        read_task_rows(fetched(tmp_path / "f", {"squad.jsonl": "\n"}).parent / "squad.jsonl", "language_modeling")


def test_a_limit_leaves_rows_for_the_examples() -> None:
    task = task_of("multiple_choice", count=12, shots=10)
    check_limit(task, 11)
    check_limit(task, None)
    with pytest.raises(UserError, match="limit=10: task arc_easy shows 10 other rows as examples before each; give 11 rows or more"):
        check_limit(task, 10)
    with pytest.raises(UserError, match="12 rows: task arc_easy shows 12 other rows"):
        check_limit(task_of("multiple_choice", count=12, shots=12), 100)
