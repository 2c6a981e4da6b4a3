"""What lies in resources/ and no experiment needs. Nothing that is in use, that an unfinished stage reads, or that lies behind a link is taken away."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from nanochat.artifacts import exclusive, lock_beside
from nanochat.data.parts import DATA_SUFFIXES, MANIFEST, strays
from nanochat.errors import UserError
from nanochat.inventory.parts import (
    RESOURCES,
    WHEEL_FOLDER,
    Experiments,
    Part,
    in_use,
    is_whole,
    parts_here,
    size_on_disk,
    stated_files,
    wheel_names,
)
from nanochat.inventory.workflow import require_nobody_works
from nanochat.status.stages import TRAINING, StageFiles, read_stages


@dataclass(frozen=True)
class Garbage:
    """Something that can go: `folder` is the part whose lock has to be held for that, None for a wheel."""

    path: Path
    why: str
    bytes: int
    folder: Path | None = None


@dataclass
class Found:
    """What can go, and what was left out and why."""

    garbage: list[Garbage] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)  # unfinished runs of no experiment that was read: what they will need is not known

    @property
    def bytes(self) -> int:
        """What would be gained."""
        return sum(item.bytes for item in self.garbage)


def find(experiments: Experiments, root: Path = Path()) -> Found:
    """Look at everything below resources/. Deletes nothing."""
    found, unfinished = Found(), [stage for stage in read_stages(root / "results", []) if stage.manifest is None or stage.holder.held]
    runs = {run for experiment in experiments.files.values() for run in experiment.runs}
    found.strangers = sorted({stage.run for stage in unfinished if stage.stage in TRAINING and stage.run not in runs})
    read = _read_by(unfinished)
    for part in parts_here(root):
        _judge(part, experiments, read, found, root)
    _judge_wheels(experiments, found, root)
    return found


def _read_by(stages: list[StageFiles]) -> dict[str, str]:
    """Manifests of parts that unfinished stages were told to read, by their recorded command lines, with the stage."""
    read: dict[str, str] = {}
    for stage in stages:
        command = stage.last.get("command")
        for word in command if isinstance(command, list) else ():
            if isinstance(word, str) and word.startswith(f"{RESOURCES}/"):
                read.setdefault(word, f"{stage.run}/{stage.stage}")
    return read


def _judge(part: Part, experiments: Experiments, read: Mapping[str, str], found: Found, root: Path) -> None:
    folder = root / part.name
    needed = part in experiments.users
    items = [Garbage(folder, "no experiment needs it", size_on_disk(folder), folder)] if not needed else list(_leftovers(part, root))
    if not items:
        return
    if who := in_use(folder):
        found.kept.append(f"{part.name}: in use by {who}")
    elif not needed and part.manifest in read:
        found.kept.append(f"{part.name}: no experiment needs it, but {read[part.manifest]} reads it and is not finished")
    elif link := _link_above(folder, root):
        found.kept.append(f"{part.name}: behind the link {link}, which others may use too; clean up where it leads")
    else:
        found.garbage += items


def _leftovers(part: Part, root: Path) -> Iterator[Garbage]:
    """What a fetch has left beside the files of a part that is whole. Beside one that is not, it is what the next fetch goes on with."""
    folder = root / part.name
    if not is_whole(part, root):
        return
    try:
        stated = stated_files(part, root)
    except UserError:
        return  # damaged: for `verify` to say, and to mend
    for path in strays(folder, stated):
        why = "left by a fetch that was changed or killed" if path.suffix not in DATA_SUFFIXES else "not of this part"
        yield Garbage(path, why, size_on_disk(path), folder)


def _link_above(path: Path, root: Path) -> Path | None:
    """The first link on the way from the checkout to a path."""
    steps = path.relative_to(root).parts
    return next((here for n in range(1, len(steps) + 1) if (here := root.joinpath(*steps[:n])).is_symlink()), None)


def _judge_wheels(experiments: Experiments, found: Found, root: Path) -> None:
    wheels = root / RESOURCES / WHEEL_FOLDER
    needed = wheel_names(experiments.sources[part.source] for part in experiments.users)
    items = []
    for path in sorted(wheels.iterdir()) if wheels.is_dir() else ():
        if path.suffix == ".whl" and path.name not in needed:
            items.append(Garbage(path, "no experiment needs it", size_on_disk(path)))
        elif path.is_dir() and ".whl.download-" in path.name and path.name.startswith("."):
            items.append(Garbage(path, "left by a download that was killed", size_on_disk(path)))
    if items and (link := _link_above(wheels, root)):
        found.kept.append(f"{RESOURCES}/{WHEEL_FOLDER}: behind the link {link}, which others may use too; clean up where it leads")
    elif items:
        found.garbage += items


# --- deleting --------------------------------------------------------------------------------------------------------


def delete(found: Found, root: Path = Path()) -> list[Garbage]:
    """Delete the garbage, each under its lock; returns what was left after all, since somebody has begun to use it. Raises UserError where it is not safe."""
    require_nobody_works("--delete", root)
    if found.strangers:
        raise UserError(
            f"--delete: results/{found.strangers[0]} is not finished and of no experiment that was read, so what it still needs is not known; "
            "give its experiment with --configfile, or delete its results"
        )
    left = []
    for item in found.garbage:
        try:
            _delete_part(item) if item.folder else _delete_wheel(item.path)
        except (UserError, Timeout):
            left.append(item)
    return left


def _delete_part(item: Garbage) -> None:
    assert item.folder is not None
    with exclusive(item.folder):
        if item.path == item.folder:
            (item.folder / MANIFEST).unlink(missing_ok=True)  # first: what is left by a kill in this moment does not pass for a whole part
            shutil.rmtree(item.folder)
        else:
            _remove(item.path)
    if item.path == item.folder and not any(item.folder.parent.iterdir()):
        item.folder.parent.rmdir()


def _delete_wheel(path: Path) -> None:
    name = path.name.partition(".download-")[0].removeprefix(".")
    with lock_beside(path.with_name(name), timeout=0):
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
