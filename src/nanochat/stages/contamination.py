"""How much of each evaluation stands in what a model is trained on: items that share a run of words with a corpus or with a mixture.

reads   --text: manifests of the training text of a corpus, fetched or prepared; or, for the `mixture` of --config,
        --data: fetch manifests of its sources, whose conversations are read as mid_train and chat_sft read them
        --evaluations: fetch manifests of the tasks' sources (generated tasks need none)
writes  --table: one JSON file with a row for each task: items, items_with_overlap, share, items_too_short (of too few words to be told), examples
resumes rows/ beside the table: what was counted for the same text and the same items is not counted again; a text is read if there is something new

An item counts if a run of `run_words` words (default 13) of its question, its answer or one of its choices stands in the text, however
it is spaced, capitalised or punctuated; a question of 8 words and more that is shorter counts as a whole, as in appendix C of arXiv:2005.14165.

by hand: nanochat contamination --config '{"evaluations": [{"task": "gsm8k"}]}' --text resources/SOURCE/all/manifest.json
         --evaluations resources/gsm8k/all/manifest.json --table table.json
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.artifacts import canonical_json, read_json, sha256_bytes, sha256_file, write_json
from nanochat.config import ContaminationStage, EvaluatedRows
from nanochat.config.checks import SCORED
from nanochat.data.core import CORE
from nanochat.data.documents import row_groups, text_files
from nanochat.data.filters import shortest_run, strings_of
from nanochat.data.overlap import Items, Passage, found_in, found_in_texts, tables_of
from nanochat.errors import UserError
from nanochat.runtime import log
from nanochat.stages.common import positive_int, read_stage_config, stage_parser
from nanochat.stages.workers import in_order, worth_starting
from nanochat.tasks import open_task
from nanochat.tasks.base import RowTask, Task
from nanochat.tasks.core import open_core_rows

EXAMPLES = 3
KEPT = "rows"  # folder of the rows that were counted, beside the tables; it may be deleted at any time
COUNTING = 1  # changes when other rows would be counted
LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Evaluation:
    """The items of one task, and the file that keeps what was counted of them in this text."""

    asked: EvaluatedRows
    items: int
    passages: list[Passage]
    kept: Path


def main(arguments: list[str]) -> None:
    """Read the items, read the text once for those that are new, write the table."""
    flags = _flags(arguments)
    config = read_stage_config(flags.config, ContaminationStage)
    if bool(flags.text) == bool(config.mixture):
        raise UserError("--text: give the training chunks of a corpus, or a mixture in --config, one of the two")
    inputs = {f"{name}.{number}": sha256_file(path) for name in ("text", "data") for number, path in enumerate(getattr(flags, name))}
    evaluations = [_opened(asked, config, inputs, flags) for asked in config.evaluations]
    rows = {evaluation.kept: row for evaluation in evaluations if (row := _kept_row(evaluation.kept))}
    new = [evaluation for evaluation in evaluations if evaluation.kept not in rows]
    if rows:
        log(f"{len(rows)} of {len(evaluations)} evaluations were counted before")
    if new:
        for evaluation, row in zip(new, _counted(new, config, flags), strict=True):
            write_json(evaluation.kept, row)
            rows[evaluation.kept] = row
    write_json(flags.table, {"rows": [rows[evaluation.kept] for evaluation in evaluations], "run_words": config.run_words, "inputs": inputs})


def _flags(arguments: list[str]) -> Namespace:
    parser = stage_parser(__doc__, "contamination")
    parser.add_argument("--config", required=True, help="evaluations, run_words, mixture and its seed: JSON or a JSON file")
    parser.add_argument("--text", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched or prepared training text")
    parser.add_argument("--data", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched sources of the mixture")
    parser.add_argument("--evaluations", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched sources of the tasks")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes that read text (default: 1)")
    parser.add_argument("--table", type=Path, required=True, metavar="OUT", help="JSON file to write")
    return parser.parse_args(arguments)


def _opened(asked: EvaluatedRows, config: ContaminationStage, inputs: dict[str, str], flags: Namespace) -> Evaluation:
    name = asked.task
    known = [task for task in SCORED if task != "bpb"]  # whose rows are of the corpus itself
    if name not in known:
        raise UserError(f"evaluations: task={name!r}: no task with items of its own that are graded; choose among {', '.join(known)}")
    is_core = name == CORE
    task = open_core_rows(asked.split, asked.source, flags.evaluations) if is_core else open_task(name, asked.split, flags.evaluations, source=asked.source)
    found = list(passages(task, config.run_words))
    what = sha256_bytes(canonical_json([[passage.item, passage.text, passage.least] for passage in found]).encode("utf-8", "surrogatepass"))
    told = {"task": name, "split": asked.split, "items": len(task), "passages": what, "counting": COUNTING}
    identity = {**config.model_dump(mode="json", exclude={"evaluations"}), **told, "inputs": inputs}
    return Evaluation(asked, len(task), found, flags.table.parent / KEPT / f"{sha256_bytes(canonical_json(identity).encode())}.json")


def passages(task: Task, run_words: int) -> Iterator[Passage]:
    """The texts of every item: the fields of a row, or question and answer of a generated one."""
    for index in range(len(task)):
        content = task.rows[index] if isinstance(task, RowTask) else [message["content"] for message in task.conversation(index)["messages"]]
        for text, is_choice in strings_of(content):
            yield Passage(index, text, shortest_run(run_words, is_choice))


def _kept_row(file: Path) -> dict[str, Any] | None:
    try:
        row = read_json(file) if file.is_file() else None
    except UserError:
        log(f"{file}: damaged, counted again")
        return None
    return row if isinstance(row, dict) else None


def _counted(evaluations: Sequence[Evaluation], config: ContaminationStage, flags: Namespace) -> Iterator[dict[str, Any]]:
    """The row of each of these evaluations, after the text was read once for all of them."""
    firsts = np.cumsum([0, *(evaluation.items for evaluation in evaluations)])
    texts = [Passage(first + each.item, each.text, each.least) for first, one in zip(firsts.tolist(), evaluations, strict=False) for each in one.passages]
    items = Items(texts, longest=config.run_words)
    found = look_in_mixture(items, config, flags.data) if config.mixture else look(items, flags)
    held = items.held(found)
    for evaluation, first in zip(evaluations, firsts.tolist(), strict=False):
        asked, n = evaluation.asked, evaluation.items
        mine, told = (numbers[(numbers >= first) & (numbers < first + n)] for numbers in (held, items.told))
        examples = [{"index": int(number - first), "words": items.example(int(number), found)} for number in mine[:EXAMPLES]]
        log(f"{asked.task}: {len(mine):,} of {n:,} items share {config.run_words} words with the text")
        row = {"task": asked.task, "split": asked.split, "items": n, "items_with_overlap": len(mine), "share": len(mine) / n}
        yield {**row, "items_too_short": n - len(told), "examples": examples}


def look_in_mixture(items: Items, config: ContaminationStage, data: Sequence[Path]) -> dict[int, np.ndarray]:
    """{length: places} of the runs that stand in the conversations of the mixture."""

    def texts() -> Iterator[str]:
        for item in config.mixture:
            task = open_task(item.task, item.split, data, source=item.source, seed=config.seed, rows=item.rows)
            log(f"mixture: {len(task):,} conversations of {item.task}")
            for index in range(len(task)):
                for message in task.conversation(index)["messages"]:
                    content = message["content"]
                    yield content if isinstance(content, str) else "".join(part["text"] for part in content)

    return found_in_texts(texts(), tables_of(items.known))


def look(items: Items, flags: Namespace) -> dict[int, np.ndarray]:
    """{length: places} of the runs that stand in the training text."""
    files = [file for manifest in flags.text for file in text_files(manifest, "train", verify=True)]
    if not files:
        raise UserError(f"--text={flags.text[0]}: holds no training text; give the training chunks of the corpus")
    size = sum(file.stat().st_size for file in files)
    seen = {length: np.zeros(len(numbers), dtype=bool) for length, numbers in items.known.items()}
    started = said = time.monotonic()
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
    log(f"{size / 1e6:.1f} MB of files read in {time.monotonic() - started:.1f} s")
    return {length: np.flatnonzero(hits) for length, hits in seen.items() if hits.any()}
