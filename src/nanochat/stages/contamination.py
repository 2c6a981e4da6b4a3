"""How much of each evaluation stands in the training text of a corpus: items that share a run of words with it.

reads   --text: manifests of the training text, fetched or prepared
        --evaluations: fetch manifests of the tasks' sources (generated tasks need none)
writes  --table: one JSON file with a row for each task: items, items_with_overlap, share, items_too_short (of too few words to be told), examples
resumes nothing: it starts again

An item counts if a run of `run_words` words (default 13) of its question, its answer or one of its choices stands in the text, however
it is spaced, capitalised or punctuated; a question of 8 words and more that is shorter counts as a whole, as in appendix C of arXiv:2005.14165.

by hand: nanochat contamination --config '{"evaluations": [{"task": "gsm8k"}]}' --text resources/SOURCE/all/manifest.json
         --evaluations resources/gsm8k/all/manifest.json --table table.json
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanochat.artifacts import sha256_file, write_json
from nanochat.config import ContaminationStage
from nanochat.data.core import CORE
from nanochat.data.documents import row_groups, text_files
from nanochat.data.filters import shortest_run, strings_of
from nanochat.data.overlap import Items, Passage, found_in
from nanochat.errors import UserError
from nanochat.runtime import log
from nanochat.stages.common import positive_int, read_stage_config, stage_parser
from nanochat.stages.workers import in_order, worth_starting
from nanochat.tasks import TASKS, open_task
from nanochat.tasks.base import RowTask, Task
from nanochat.tasks.core import open_core_rows

EXAMPLES = 3
LOG_EVERY_S = 10.0


def main(arguments: list[str]) -> None:
    """Read the items, read the text once, write the table."""
    parser = stage_parser(__doc__, "contamination")
    parser.add_argument("--config", required=True, help="evaluations and run_words: JSON or a JSON file")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="MANIFEST", help="fetched or prepared training text")
    parser.add_argument("--evaluations", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched sources of the tasks")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes that read text (default: 1)")
    parser.add_argument("--table", type=Path, required=True, metavar="OUT", help="JSON file to write")
    flags = parser.parse_args(arguments)
    config = read_stage_config(flags.config, ContaminationStage)
    started = time.monotonic()
    tasks = [_opened(item.task, item.split, item.source, flags) for item in config.evaluations]
    first_items = np.cumsum([0, *map(len, tasks)])
    texts = [passage for task, first in zip(tasks, first_items, strict=False) for passage in passages(task, int(first), config.run_words)]
    items = Items(texts, longest=config.run_words)
    found, size = look(items, flags)
    held = items.held(found)
    rows = []
    for item, task, first in zip(config.evaluations, tasks, first_items, strict=False):
        mine, told = (numbers[(numbers >= first) & (numbers < first + len(task))] for numbers in (held, items.told))
        examples = [{"index": int(number - first), "words": items.example(int(number), found)} for number in mine[:EXAMPLES]]
        row = {"task": item.task, "split": item.split, "items": len(task), "items_with_overlap": len(mine), "share": len(mine) / len(task)}
        rows.append({**row, "items_too_short": len(task) - len(told), "examples": examples})
        log(f"{item.task}: {len(mine):,} of {len(task):,} items share {config.run_words} words with the text")
    inputs = {f"text.{number}": sha256_file(path) for number, path in enumerate(flags.text)}
    write_json(flags.table, {"rows": rows, "run_words": config.run_words, "text_file_bytes": size, "inputs": inputs})
    log(f"{size / 1e6:.1f} MB of files read in {time.monotonic() - started:.1f} s")


def _opened(name: str, split: str, source: str | None, flags: Namespace) -> Task:
    if name in TASKS and TASKS[name].kind == "conversation":
        raise UserError(f"evaluations: task {name} holds conversations that nobody grades; leave it out")
    if name == CORE:
        return open_core_rows(split, source, flags.evaluations)
    return open_task(name, split, flags.evaluations, source=source)


def passages(task: Task, first: int, run_words: int) -> Iterator[Passage]:
    """The texts of every item: the fields of a row, or question and answer of a generated one."""
    for index in range(len(task)):
        content = task.rows[index] if isinstance(task, RowTask) else [message["content"] for message in task.conversation(index)["messages"]]
        for text, is_choice in strings_of(content):
            yield Passage(first + index, text, shortest_run(run_words, is_choice))


def look(items: Items, flags: Namespace) -> tuple[dict[int, np.ndarray], int]:
    """{length: places} of the runs that stand in the training text, and the size of its files."""
    files = [file for manifest in flags.text for file in text_files(manifest, "train", verify=True)]
    if not files:
        raise UserError(f"--text={flags.text[0]}: holds no training text; give the training chunks of the corpus")
    size = sum(file.stat().st_size for file in files)
    seen = {length: np.zeros(len(numbers), dtype=bool) for length, numbers in items.known.items()}
    said = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nanochat-overlap-") as folder:
        numbers = Path(folder) / "runs.npz"
        items.save(numbers)
        groups = [(file, index, numbers) for file in files for index in range(row_groups(file))]
        for done, found in enumerate(in_order(found_in, groups, worth_starting(flags.workers, size)), 1):
            for length, places in found.items():
                seen[length][places] = True
            if time.monotonic() - said > LOG_EVERY_S:
                said = time.monotonic()
                log(f"{done} of {len(groups)} row groups read")
    return {length: np.flatnonzero(hits) for length, hits in seen.items() if hits.any()}, size
