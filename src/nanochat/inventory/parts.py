"""Fetched parts, downloaded wheels, and the experiments that need them. Light: of the data itself only names and sizes are looked at."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nanochat import config
from nanochat.artifacts import read_json, read_manifest
from nanochat.config import Experiment
from nanochat.data.parts import MANIFEST
from nanochat.data.sources import SOURCES, WHEELS, Source
from nanochat.errors import UserError
from nanochat.preflight.needs import data_needs
from nanochat.status.holder import holder_of

RESOURCES = "resources"
WHEEL_FOLDER = "wheels"  # below resources/; no source
DEFAULT = Path("config.yaml")
SUFFIXES = (".yaml", ".yml")  # of experiments
HAS_RUNS = re.compile(rb"^[\"']?runs[\"']?\s*:", re.MULTILINE)
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a data file: no folder, not hidden
PART = re.compile(r"all|validation|train-\d+")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Part(NamedTuple):
    """One part of a source: all of it, or some of its shards."""

    source: str
    part: str

    @property
    def name(self) -> str:
        """How messages call it: its folder."""
        return f"{RESOURCES}/{self.source}/{self.part}"

    @property
    def manifest(self) -> str:
        """The file that the workflow makes of it."""
        return f"{self.name}/{MANIFEST}"


class Stated(NamedTuple):
    """What a manifest says of one file."""

    bytes: int
    sha256: str


class User(NamedTuple):
    """A run that needs something."""

    experiment: str  # its file
    run: str


# --- experiments -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiments:
    """Experiment files by their path, read and valid."""

    files: dict[Path, Experiment] = field(default_factory=dict)

    @cached_property
    def users(self) -> dict[Part, list[User]]:
        """Every part that a run needs, with the runs that do, in the order of files and runs."""
        users: dict[Part, list[User]] = {}
        for file, experiment in self.files.items():
            for run in experiment.runs:
                for part in dict.fromkeys(Part(need.source, need.part) for need in data_needs(experiment, [run])):
                    users.setdefault(part, []).append(User(str(file), run))
        return users

    @property
    def parts(self) -> list[Part]:
        """Every part that a run needs, sorted."""
        return sorted(self.users)

    @property
    def sources(self) -> dict[str, Source]:
        """Every source that can be named: those of the registry and the experiments' own."""
        own = {name: experiment.source(name) for experiment in self.files.values() for name in experiment.sources}
        return {**SOURCES, **own}

    @property
    def flag(self) -> str:
        """What names these experiments on a command line, with a space before it; nothing where the default is meant."""
        return "" if list(self.files) == [DEFAULT] else " --configfile " + " ".join(map(str, self.files))

    def of(self, part: Part) -> list[Path]:
        """The files whose runs need a part."""
        return list(dict.fromkeys(Path(user.experiment) for user in self.users.get(part, [])))

    def fetch_config(self, part: Part, file: Path) -> dict[str, Any]:
        """What the workflow would hand to stage fetch for this part, in one of the experiments."""
        return config.fetch_config(self.files[file], part.source, part.part)

    def named(self, names: Sequence[str]) -> list[str]:
        """The names of sources, each once. Raises UserError for one that does not exist."""
        for name in names:
            if name not in self.sources:
                raise UserError(f"{name!r}: no such source; choose one of {', '.join(sorted(self.sources))}")
        return list(dict.fromkeys(names))


def read_experiments(given: Iterable[Path] | None, root: Path = Path()) -> Experiments:
    """These experiments; without any, that of config.yaml."""
    given = list(given or [])
    if odd := next((file for file in given if file.suffix not in SUFFIXES and not (root / file).exists()), None):
        raise UserError(f"{odd}: no such experiment file; names of sources stand before --configfile")
    return Experiments({file: config.load(root / file) for file in given or [DEFAULT]})


def every_experiment(given: Iterable[Path] | None, root: Path = Path()) -> Experiments:
    """config.yaml, all of configs/, other experiments beside config.yaml, and these: whatever this checkout may still be asked to run."""
    files = [DEFAULT] if (root / DEFAULT).is_file() else []
    files += sorted(file.relative_to(root) for file in (root / "configs").rglob("*") if file.suffix in SUFFIXES)
    files += sorted(file.relative_to(root) for file in root.iterdir() if file.name != DEFAULT.name and _is_experiment(file))
    own = [file for file in given or [] if file.resolve() not in {(root / known).resolve() for known in files}]
    if not [*files, *own]:
        raise UserError(f"no experiment here, neither {DEFAULT} nor configs/*.yaml; change to the project's folder, or give one with --configfile")
    return read_experiments([*files, *own], root)


def _is_experiment(file: Path) -> bool:
    """Whether a file means to be an experiment, be it a valid one or not: other tools have YAML in the same folder."""
    return file.suffix in SUFFIXES and file.is_file() and HAS_RUNS.search(file.read_bytes()) is not None


# --- what lies there -------------------------------------------------------------------------------------------------


def parts_here(root: Path = Path()) -> list[Part]:
    """Every part that a fetch has made or begun, sorted."""
    return sorted(Part(folder.parent.name, folder.name) for folder in _part_folders(root / RESOURCES) if _is_of_fetch(folder))


def _part_folders(resources: Path) -> Iterator[Path]:
    for source in resources.iterdir() if resources.is_dir() else ():
        if source.is_dir() and not source.name.startswith(".") and source.name != WHEEL_FOLDER:
            yield from (folder for folder in source.iterdir() if folder.is_dir() and PART.fullmatch(folder.name))


def _is_of_fetch(folder: Path) -> bool:
    """Whether stage fetch has worked in a folder. A manifest that cannot be read counts: it is for `verify` to say so."""
    if (folder / MANIFEST).is_file():
        return True
    try:
        story = read_json(folder / "provenance.json")
    except UserError:
        return False
    return isinstance(story, dict) and story.get("stage") == "fetch"


def stated_files(part: Part, root: Path = Path()) -> dict[str, Stated]:
    """The files that the manifest of a part lists. Raises UserError if it is missing, damaged or of something else."""
    return files_of_manifest(part, read_json(root / part.manifest))


def files_of_manifest(part: Part, manifest: Any) -> dict[str, Stated]:
    """The files that a manifest lists, if it is one of this part. Raises UserError if it is not."""
    try:
        found = manifest["stage"], manifest["config"]["source"], manifest["config"]["part"]
        files = {name: Stated(stated["bytes"], stated["sha256"]) for name, stated in manifest["outputs"].items()}
        sound = all(FILE.fullmatch(name) and isinstance(file.bytes, int) and SHA256.fullmatch(file.sha256) for name, file in files.items())
    except (KeyError, TypeError, AttributeError):
        found, sound = ("", "", ""), False
    if found != ("fetch", *part) or not sound:
        raise UserError(f"{part.manifest}: not the manifest of this part; fetch it again: nanochat data verify --repair")
    return files


def is_whole(part: Part, root: Path = Path()) -> bool:
    """Whether a part has a manifest: the files count from then on."""
    return (root / part.manifest).is_file()


def fault_of(part: Part, root: Path = Path()) -> str | None:
    """What is seen to be wrong with a part without reading its data; None: nothing."""
    try:
        stated_files(part, root)
        read_manifest(root / part.manifest, stage="fetch")
    except UserError as error:
        return str(error).partition("; ")[0]
    return None


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what links lead to is not counted."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def in_use(folder: Path) -> str | None:
    """Who works in a folder at this moment, in words; None: nobody."""
    holder = holder_of(folder, [])
    return holder.named if holder.held else None


def wheel_names(sources: Iterable[Source]) -> set[str]:
    """File names of the wheels that these sources come from."""
    return {WHEELS[source.place["package"]].filename for source in sources if source.kind == "wheel"}
