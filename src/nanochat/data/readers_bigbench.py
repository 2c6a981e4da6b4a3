"""Six tasks of CORE out of BIG-bench's package on PyPI, in the form of the published bundle. It is read as an archive: none of its code is run."""

import json
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanochat.artifacts import write_text
from nanochat.data.core import core_index
from nanochat.errors import UserError

Row = dict[str, Any]
ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks"
MAX_FILE_BYTES = 100_000_000  # the largest has 7 MB
BIGBENCH_FILES: Mapping[str, tuple[str, ...]] = {  # label -> its files
    "bigbench_qa_wikidata": ("qa_wikidata/task.json",),
    "bigbench_dyck_languages": ("dyck_languages/task.json",),
    "bigbench_cs_algorithms": ("cs_algorithms/lcs/task.json", "cs_algorithms/valid_parentheses/task.json"),
    "bigbench_operators": ("operators/task.json",),
    "bigbench_repeat_copy_logic": ("repeat_copy_logic/task.json",),
    "bigbench_language_identification": ("language_identification/task.json",),
}


def asked(task: Mapping[str, Any], example: Mapping[str, Any]) -> str:
    """What stands before the answer: the instruction, the input with its mark, the mark of the answer."""
    before, after = task.get("example_input_prefix", "\nQ: "), task.get("example_output_prefix", "\nA: ")  # BIG-bench's own defaults
    return f"{task.get('task_prefix', '').strip()}{before}{example['input']}{after}".strip()


def right_answer(example: Mapping[str, Any]) -> str:
    """The answer, or the first of several."""
    if "target_scores" in example:
        return next(str(answer) for answer, score in example["target_scores"].items() if score == 1)
    target = example["target"]
    return str(target if isinstance(target, str) else target[0])


def written(task: Mapping[str, Any], example: Mapping[str, Any]) -> Row:
    """A row of kind language_modeling."""
    return {"context": asked(task, example), "continuation": right_answer(example)}


def chosen(task: Mapping[str, Any], example: Mapping[str, Any]) -> Row:
    """A row of kind multiple_choice."""
    answers = list(example["target_scores"])
    return {"query": asked(task, example), "choices": answers, "gold": answers.index(right_answer(example))}


ROW_OF: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Row]] = {
    label: chosen if label == "bigbench_language_identification" else written for label in BIGBENCH_FILES
}


def read_bigbench(file: Path, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Write {label}.jsonl of each task, core.yaml and eval_meta_data.csv; their names, and rows by task."""
    tasks = _task_files(file)
    names, counts = [], {}
    for label, parts in BIGBENCH_FILES.items():
        try:
            rows = [ROW_OF[label](tasks[part], example) for part in parts for example in tasks[part]["examples"]]
        except (KeyError, TypeError, IndexError, StopIteration) as error:
            raise UserError(f"{file.name}: {label} is not in BIG-bench's form ({error!r:.80}); delete the file and fetch it again") from None
        names.append(f"{label}.jsonl")
        counts[label] = len(rows)
        write_text(folder / names[-1], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name, text in core_index(BIGBENCH_FILES).items():
        names.append(name)
        write_text(folder / name, text)
    return names, counts


def _task_files(file: Path) -> dict[str, Any]:
    """The files of BIGBENCH_FILES, by name, parsed. The archive is read from its beginning until all are found: 20 seconds."""
    wanted = {f"{ROOT}/{name}": name for names in BIGBENCH_FILES.values() for name in names}
    found: dict[str, Any] = {}
    try:
        with tarfile.open(file, "r|gz") as archive:
            for member in archive:
                if (name := wanted.get(member.name)) is None or not member.isfile():
                    continue
                content = archive.extractfile(member)
                if content is None or member.size > MAX_FILE_BYTES:
                    raise UserError(f"{file.name}: {member.name} has {member.size:,} bytes, which is too much; delete the file and fetch it again")
                found[name] = json.load(content)
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file.name}: not BIG-bench's package ({error!s:.120}); delete the file and fetch it again") from None
    if missing := [name for name in wanted.values() if name not in found]:
        raise UserError(f"{file.name}: has no {missing[0]}, so it is not BIG-bench's package of version 1.0.0; delete the file and fetch it again")
    return found
