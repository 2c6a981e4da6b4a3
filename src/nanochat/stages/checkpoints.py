"""Models that a training keeps on its way: every so many steps the newest few, and the best by validation.

writes  checkpoints/step-000500/ and checkpoints/best-000500/ beside the results, each with model.safetensors, model.json and manifest.json:
        all that chat (--model) and evaluate (--model) ask for.

They are copied in host memory and written by a thread, the manifest last; a folder without one is nothing. What was kept for another
configuration or for other inputs is deleted at the start. Never more than `last` + 1 and two of the best are on the disk. The model of the
last step is none of them: it is the result.
"""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat.artifacts import CHECKPOINTS, read_json, sha256_file, write_json, write_manifest
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.model.weights import DESCRIPTION, WEIGHTS
from nanochat.runtime import log
from nanochat.train.counters import Counters
from nanochat.train.tensorfile import write_tensors

STEP, BEST = "step", "best"


class Checkpoints:
    """The models of one training. For rank 0, which has all weights."""

    def __init__(self, folder: Path, keep: Mapping[str, Any], model: GPT, identity: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """`identity`: stage, config and inputs, as write_manifest takes them; `description`: what model.json says besides architecture and step."""
        self.folder, self.keep, self.model = folder / CHECKPOINTS, keep, model
        self.identity, self.description = identity, description
        self.thread = ThreadPoolExecutor(1, "keep")
        self.writing: Future[None] | None = None
        self._discard_others()

    def _discard_others(self) -> None:
        inputs = {name: sha256_file(path) for name, path in self.identity["inputs"].items()}
        wanted = {"stage": self.identity["stage"], "config": self.identity["config"], "inputs": inputs}
        for folder in self._found(STEP) + self._found(BEST):
            try:
                content = read_json(folder / "manifest.json")
                if all(content[key] == value for key, value in wanted.items()):
                    continue
            except (UserError, KeyError, TypeError):
                pass
            log(f"{folder}: kept by another training, or not whole; deleted")
            shutil.rmtree(folder)

    def _found(self, kind: str) -> list[Path]:
        """Folders of a kind, oldest first."""
        return sorted(self.folder.glob(f"{kind}-[0-9]*"), key=lambda folder: (len(folder.name), folder.name))

    def look(self, counters: Counters) -> None:
        """Keep the model of now, if it is one to be kept. Its weights may change as soon as this returns."""
        step, every = counters.step, self.keep["every"]
        kinds = [STEP] if every and step % every == 0 else []
        if self.keep["best"] and counters.val_step == step and counters.val_bpb == counters.min_val_bpb:
            kinds.append(BEST)
        if not kinds:
            return
        self._finish()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        counts = {"steps": step, "final_val_bpb": counters.val_bpb if counters.val_step == step else None}
        self.writing = self.thread.submit(self._write, kinds, copies, counts)

    def _write(self, kinds: list[str], tensors: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        for kind in kinds:
            folder = self.folder / f"{kind}-{counts['steps']:06d}"
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed after it
            write_tensors(folder / WEIGHTS, tensors, lambda: None)
            write_json(folder / DESCRIPTION, {"architecture": self.model.config.to_dict(), "step": counts["steps"], **self.description})
            write_manifest(folder / "manifest.json", **self.identity, outputs=[WEIGHTS, DESCRIPTION], counts=counts)
            others = [other for other in self._found(kind) if other != folder]
            for old in others[: len(others) + 1 - (self.keep["last"] if kind == STEP else 1)]:
                shutil.rmtree(old)

    def _finish(self) -> None:
        """Wait for the thread. What it met, such as a full disk, is raised here."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def close(self) -> None:
        """Wait until everything is written."""
        try:
            self._finish()
        finally:
            self.thread.shutdown()
