"""Rows of one task of CORE as mere texts: to look whether they stand in a training text. They are asked by eval/core."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from nanochat.data.core import CORE, CORE_SOURCES, CORE_TASKS, core_sources, row_fault
from nanochat.errors import UserError
from nanochat.tasks.base import Conversation, RowTask


class CoreRows(RowTask):
    """The rows of the task whose label is `split`."""

    name = CORE
    kind = "conversation"
    sources: ClassVar = dict.fromkeys(CORE_TASKS, tuple(CORE_SOURCES))

    def fault(self, row: dict[str, Any]) -> str | None:
        return row_fault(CORE_TASKS[self.split].kind, row)

    def conversation(self, index: int) -> Conversation:
        raise TypeError(f"row {index} of {self.split}: CORE's rows are no conversations")


def open_core_rows(label: str, source: str | None, manifests: Sequence[Path]) -> CoreRows:
    """The rows of task `label`, from the first of these fetched sources that has them. Raises UserError if none has."""
    from nanochat.artifacts import read_manifest, verified_file

    for path in manifests:
        manifest = read_manifest(path, stage="fetch")
        if manifest["config"]["source"] in core_sources(source) and f"{label}.jsonl" in manifest["outputs"]:
            return CoreRows(label, files=[verified_file(path, f"{label}.jsonl")])
    raise UserError(f"task {CORE}, {label}: is in none of the manifests given; pass that of {' or '.join(core_sources(source))}")
