"""The CORE bundle in miniature: all 22 tasks, in the layout of the real one."""

import io
import json
import zipfile
from collections.abc import Mapping

import yaml

from nanochat.data.core import CORE_TASKS

SCHEMA, WRITTEN = ("winograd", "winogrande"), ("jeopardy", "lambada_openai", "squad", "coqa")
ROWS = {
    "multiple_choice": {"query": "The sky is", "choices": ["blue", "green"], "gold": 0},
    "schema": {"context_options": ["The cup fell because it", "The table fell because it"], "continuation": "was light.", "gold": 1},
    "language_modeling": {"context": "Question: 1 + 1?", "continuation": "2", "more": "é"},
}


def kind_of(label: str) -> str:
    """The icl_task_type of a task."""
    return "schema" if label in SCHEMA else "language_modeling" if label in WRITTEN or label.startswith("bigbench") else "multiple_choice"


def uri_of(label: str) -> str:
    """Its rows; hellaswag has two tasks of the same."""
    return f"group/{label.removesuffix('_zeroshot')}.jsonl"


def core_files(root: str = "eval_bundle/") -> dict[str, bytes]:
    """Members of the archive."""
    tasks = [{"label": label, "dataset_uri": uri_of(label), "num_fewshot": [0], "icl_task_type": kind_of(label)} for label in CORE_TASKS]
    files = {f"{root}core.yaml": yaml.safe_dump({"icl_tasks": tasks}).encode()}
    files[f"{root}eval_meta_data.csv"] = ("Eval Task,Random baseline\n" + "".join(f"{label},25.0\n" for label in CORE_TASKS)).encode()
    for label in CORE_TASKS:
        files[f"{root}eval_data/{uri_of(label)}"] = (json.dumps(ROWS[kind_of(label)], ensure_ascii=False) + "\n").encode() * 2
    return files


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Files as a zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()
