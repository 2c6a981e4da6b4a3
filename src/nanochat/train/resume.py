"""Resume state: two slots written in turn, so that a kill or a full disk in the middle of a save never costs both.

resume/a.safetensors, a.json (and b): tensors of model and optimizer; counters, their sha256, and the fingerprint of the
work (config and inputs). The json is written last: a slot without it does not exist.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat.artifacts import canonical_json, sha256_bytes, sha256_file, write_json
from nanochat.runtime import log
from nanochat.train.tensorfile import write_tensors

SLOTS = ("a", "b")
FOLDER = "resume"


@dataclass(frozen=True)
class Slot:
    """A saved state that can be trusted."""

    name: str
    tensors: Path
    sha256: str
    counters: dict[str, Any]


class ResumeFolder:
    """The two slots of one stage. `save` and `newest` are for rank 0."""

    def __init__(self, stage_folder: Path, fingerprint: str, say: Callable[[str], None] = log) -> None:
        self.folder = Path(stage_folder) / FOLDER
        self.fingerprint = fingerprint
        self.say = say
        self.last_saved: str | None = None

    def tensors_path(self, slot: str) -> Path:
        """File of a slot's tensors."""
        return self.folder / f"{slot}.safetensors"

    def _json_path(self, slot: str) -> Path:
        return self.folder / f"{slot}.json"

    def save(self, counters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the slot that was not written last. `counters` must hold `step`."""
        slot = SLOTS[1] if self.last_saved == SLOTS[0] else SLOTS[0]
        self._json_path(slot).unlink(missing_ok=True)  # first: from now on the slot does not exist, whatever happens
        self.tensors_path(slot).unlink(missing_ok=True)  # so that a save never needs room for three states
        digest = write_tensors(self.tensors_path(slot), tensors)
        content = {"fingerprint": self.fingerprint, "sha256": digest, "counters": dict(counters)}
        write_json(self._json_path(slot), {**content, "seal": sha256_bytes(canonical_json(content).encode())})
        self.last_saved = slot

    def newest(self) -> Slot | None:
        """The newest slot that is whole and belongs to this work; says aloud what it discards."""
        candidates = sorted(filter(None, map(self.described, SLOTS)), key=lambda found: -found.counters["step"])
        for place, slot in enumerate(candidates):
            if self._is_whole(slot):
                self.last_saved = slot.name
                return slot
            left = [other.counters["step"] for other in candidates[place + 1 :]]
            self.say(f"{slot.tensors}: damaged (sha256 differs), discarded; {f'going back to step {left[0]}' if left else 'starting from the beginning'}")
        return None

    def described(self, name: str) -> Slot | None:
        """A slot as its json describes it, the tensors not yet compared; None if there is none for this work."""
        path = self._json_path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            seal = content.pop("seal")
            slot = Slot(name, self.tensors_path(name), content["sha256"], content["counters"])
            whole = seal == sha256_bytes(canonical_json(content).encode())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            self.say(f"{path}: damaged (not what was written), discarded")
            return None
        if content["fingerprint"] != self.fingerprint:
            self.say(f"{path}: saved for another config or other inputs, discarded")
            path.unlink()
            slot.tensors.unlink(missing_ok=True)
            return None
        return slot

    def _is_whole(self, slot: Slot) -> bool:
        return slot.tensors.is_file() and sha256_file(slot.tensors) == slot.sha256
