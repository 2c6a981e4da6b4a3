"""Resume state: two slots written in turn, so that a kill or a full disk in the middle of a save never costs both.

resume/a.safetensors, a.json (and b): tensors of model and optimizer; counters, their sha256, the work that they belong to (stage, config, sha256
of each input) and its fingerprint. The json is written last: a slot without it does not exist. Several ranks write a file of tensors each,
a.1-of-3.safetensors and so on; any number of ranks reads them.

State of other work, left behind when a config or an input was changed, is said aloud key by key and put aside into resume/old/, one state at most.
When the old values are put back it is taken up again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat import progress
from nanochat.artifacts import canonical_json, sha256_bytes, sha256_file, sync_folder, write_json
from nanochat.runtime import log
from nanochat.train.badsteps import goes_on
from nanochat.train.tensorfile import write_tensors

SLOTS = ("a", "b")
FOLDER = "resume"
OLD = "old"
ABSENT = object()
SENTENCES = 20  # about what has changed; another recipe changes every key


@dataclass(frozen=True)
class Slot:
    """A saved state as its json describes it."""

    place: Path  # of its json, without .json
    sha256: tuple[str, ...]  # of each file of tensors
    counters: dict[str, Any]
    fingerprint: str
    work: dict[str, Any]  # stage, config, inputs; empty in a slot that was written before they were

    @property
    def name(self) -> str:
        """a or b."""
        return self.place.name

    @property
    def tensors(self) -> list[Path]:
        """Its files of tensors, one for each rank that saved it."""
        return tensor_files(self.place, len(self.sha256))

    @property
    def step(self) -> int:
        """After how many updates it was saved."""
        return int(self.counters["step"])

    def damaged(self) -> Path | None:
        """The first file of tensors that is not as it was saved."""
        stated = zip(self.tensors, self.sha256, strict=True)
        return next((file for file, digest in stated if not file.is_file() or sha256_file(file) != digest), None)

    def delete(self) -> None:
        """Delete all files, the json first."""
        for file in (json_file(self.place), *self.tensors):
            file.unlink(missing_ok=True)


def json_file(place: Path) -> Path:
    """What describes a slot, and is written last."""
    return place.with_name(f"{place.name}.json")


def tensor_files(place: Path, ranks: int) -> list[Path]:
    """Files of a slot's tensors: one for each rank that saves it."""
    if ranks == 1:
        return [place.with_name(f"{place.name}.safetensors")]
    return [place.with_name(f"{place.name}.{rank + 1}-of-{ranks}.safetensors") for rank in range(ranks)]


class ResumeFolder:
    """The two slots of one stage. Rank 0 frees one, every rank writes its share into it, rank 0 seals it; `newest` is for rank 0.

    `work`: stage, config and inputs, from which the fingerprint is made.
    """

    def __init__(self, stage_folder: Path, fingerprint: str, say: Callable[[str], None] = log, work: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(stage_folder) / FOLDER
        self.old = self.folder / OLD
        self.fingerprint, self.work = fingerprint, work or {}
        self.say = say
        self.last_saved: str | None = None

    @property
    def next_slot(self) -> str:
        """The slot that was not written last."""
        return SLOTS[1] if self.last_saved == SLOTS[0] else SLOTS[0]

    def free(self, slot: str) -> None:
        """From now on the slot does not exist, whatever happens; a save never needs room for three states."""
        json_file(self.folder / slot).unlink(missing_ok=True)  # first
        for file in [*self.folder.glob(f"{slot}.*safetensors"), *self.folder.glob(f".{slot}.*.partial")]:
            file.unlink(missing_ok=True)

    def write(self, slot: str, tensors: Mapping[str, Tensor], *, rank: int = 0, ranks: int = 1, on_piece: Callable[[], object] = progress.beat) -> str:
        """Write a rank's share into a slot that was freed; returns its sha256."""
        return write_tensors(tensor_files(self.folder / slot, ranks)[rank], tensors, on_piece)

    def seal(self, slot: str, counters: Mapping[str, Any], digests: Sequence[str]) -> None:
        """Make the slot exist, once all ranks have written: `digests` are theirs, in order. `counters` must hold `step`."""
        sha256 = digests[0] if len(digests) == 1 else list(digests)
        content = {"fingerprint": self.fingerprint, "work": self.work, "sha256": sha256, "counters": dict(counters)}
        write_json(json_file(self.folder / slot), {**content, "seal": sha256_bytes(canonical_json(content).encode())})

    def save(self, counters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """All of it at once, for one rank."""
        slot = self.next_slot
        self.free(slot)
        self.seal(slot, counters, [self.write(slot, tensors)])
        self.last_saved = slot

    def newest(self) -> Slot | None:
        """The newest slot that is whole and belongs to this work; says aloud what it discards or puts aside."""
        found = [slot for name in SLOTS if (slot := self.described(name))]
        own, others = ([slot for slot in found if self._is_own(slot) == wanted] for wanted in (True, False))
        if others:
            for sentence in differences(max(others, key=lambda slot: slot.step).work, self.work):
                self.say(f"{self.folder}: {sentence}")
        foreign = self._one_of(others)
        if not own and (kept := next((slot for name in SLOTS if (slot := self._read(self.old / name)) and self._is_own(slot)), None)):
            free = next(name for name in SLOTS if foreign is None or name != foreign.name)
            own = [move(kept, self.folder / free)]
            self.say(f"{self.old}: the state of step {kept.step} belongs to this config and these inputs, taken up again")
        if foreign is not None:
            self._put_aside(foreign)
        return self._newest_whole(own)

    def described(self, name: str) -> Slot | None:
        """A slot as its json describes it, whosever it is, the tensors not yet compared; None if there is none."""
        return self._read(self.folder / name)

    def _read(self, place: Path) -> Slot | None:
        path = json_file(place)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            seal = content.pop("seal")
            digests = (content["sha256"],) if isinstance(content["sha256"], str) else tuple(content["sha256"])
            slot = Slot(place, digests, content["counters"], content["fingerprint"], content.get("work") or {})
            whole = seal == sha256_bytes(canonical_json(content).encode())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            self.say(f"{path}: damaged (not what was written), discarded")
            return None
        return slot

    def _is_own(self, slot: Slot) -> bool:
        old, new = (work.get("config", {}).get("on_bad_step", {}) for work in (slot.work, self.work))
        return slot.fingerprint == self.fingerprint and goes_on(old, new, slot.counters)

    def _newest_whole(self, slots: Iterable[Slot]) -> Slot | None:
        candidates = sorted(slots, key=lambda found: -found.step)
        for place, slot in enumerate(candidates):
            if (damaged := slot.damaged()) is None:
                self.last_saved = slot.name
                return slot
            left = [other.step for other in candidates[place + 1 :]]
            self.say(f"{damaged}: damaged (sha256 differs), discarded; {f'going back to step {left[0]}' if left else 'starting from the beginning'}")
        return None

    # --- state of other work -----------------------------------------------------------------------------------------

    def _one_of(self, slots: Iterable[Slot]) -> Slot | None:
        """The newest of the slots, the others deleted: first, so that a kill in between leaves the newest to be found."""
        newest = None
        for slot in sorted(slots, key=lambda found: -found.step):
            # a kill may have come between two of its files: then some lie in old/, where its json comes last
            is_on_the_way = any((self.old / file.name).exists() for file in slot.tensors) and not json_file(self.old / slot.name).exists()
            if newest is None and (is_on_the_way or slot.damaged() is None):
                newest = slot
            else:
                slot.delete()
        return newest

    def _put_aside(self, slot: Slot) -> None:
        """Move a slot into old/, in place of what is there."""
        for name in SLOTS:  # never this one, half moved: its json is the last to come
            if kept := self._read(self.old / name):
                self.say(f"{self.old}: the state of step {kept.step} of still other work was kept here, deleted")
                kept.delete()
        move(slot, self.old / slot.name)
        was = f"the state of step {slot.step} was saved for another config or other inputs, put aside into {self.old} until this training is finished"
        self.say(f"{self.folder}: {was}; to go on with it, stop, put back what has changed and start again")


def move(slot: Slot, place: Path) -> Slot:
    """Move all files of a slot, the json last; done again it finishes what a kill has cut short."""
    place.parent.mkdir(exist_ok=True)
    moved = replace(slot, place=place)
    for old, new in zip(slot.tensors, moved.tensors, strict=True):
        if old.exists():
            old.replace(new)
    json_file(slot.place).replace(json_file(place))
    sync_folder(place.parent)
    return moved


# --- what has changed ------------------------------------------------------------------------------------------------


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One sentence for each key of the config, and for each input, that differs; the rest is counted."""
    if not old or not new:
        return ["what has changed is not known: the state was saved before this was written down"]
    was, now = flat(old.get("config", {})), flat(new.get("config", {}))
    said = [
        f"{key} was {shown(was[key]) if key in was else 'not there'}, is {shown(now[key]) if key in now else 'gone'}"
        for key in sorted(was | now)
        if was.get(key, ABSENT) != now.get(key, ABSENT)
    ]
    was, now = old.get("inputs", {}), new.get("inputs", {})
    for name in sorted(was | now):
        if name not in was or name not in now:
            said.append(f"input {name} {'was not there' if name not in was else 'is gone'}")
        elif was[name] != now[name]:
            said.append(f"input {name} is another: sha256 of its manifest was {was[name][:12]}, is {now[name][:12]}")
    return [*said[:SENTENCES], *([f"and {len(said) - SENTENCES} more differences"] if len(said) > SENTENCES else [])]


def flat(content: Any, path: str = "") -> dict[str, Any]:
    """Every value of nested mappings and lists of mappings by its dotted path."""
    parts = content.items() if isinstance(content, Mapping) else enumerate(content) if is_list_of_mappings(content) else None
    if parts is None:
        return {path: content}
    found: dict[str, Any] = {}
    for key, value in parts:
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def is_list_of_mappings(content: Any) -> bool:
    """Whether this is a list such as a mixture, whose items are compared one by one."""
    return isinstance(content, list) and bool(content) and all(isinstance(item, Mapping) for item in content)


def shown(value: Any) -> str:
    """A value as the experiment file would have it, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
