"""Every source with its licence, its size, how much of it is here, and which runs need it: as values, lines and a table."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.data.sources import WHEELS, Source
from nanochat.inventory.parts import RESOURCES, WHEEL_FOLDER, Experiments, Part, User, fault_of, in_use, is_whole, parts_here, size_on_disk
from nanochat.plan.texts import download
from nanochat.report import text
from nanochat.status.show import aligned

if TYPE_CHECKING:
    from rich.table import Table

NOWHERE = Path("/dev/null")  # a folder of wheels that holds none: a download is told with its whole size
HEADINGS = ("source", "kind", "download", "on disk", "state", "licence", "needed by")
NUMBERS = (2, 3)
NAMED = 3
COLOURS = {"whole": "green", "not fetched": "yellow", "damaged": "bold red", "part": "yellow"}


@dataclass(frozen=True)
class Entry:
    """One source. `parts` are those that runs need; of a source that no run needs, those that are here."""

    source: str
    kind: str
    licence: str
    licence_unclear: bool
    description: str
    download: str  # what is downloaded: several sources may come from one wheel
    download_bytes: int | None  # of the parts that are needed, else of all; None: not known before it is fetched
    disk_bytes: int
    parts: tuple[str, ...]
    whole: tuple[str, ...]  # of these, the parts that are here
    damaged: tuple[str, ...]  # one sentence each; only what shows without reading the data
    in_use: str | None  # who fetches it at this moment
    needed_by: tuple[User, ...]

    @property
    def state(self) -> str:
        """In two words."""
        if self.damaged:
            return "damaged"
        if self.in_use:
            return "being fetched"
        if not self.whole:
            return "not fetched"
        return "whole" if len(self.whole) == len(self.parts) else f"{len(self.whole)} of {len(self.parts)} parts"

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        return {**asdict(self), "needed_by": [user._asdict() for user in self.needed_by], "state": self.state}


def entries(experiments: Experiments, root: Path = Path()) -> list[Entry]:
    """Every source: those that runs need in the order of the runs, then what else the registry has, by name."""
    users, parts, here = defaultdict[str, dict[User, None]](dict), defaultdict[str, list[Part]](list), defaultdict[str, list[Part]](list)
    for part, needing in experiments.users.items():
        users[part.source].update(dict.fromkeys(needing))
        parts[part.source].append(part)
    for part in parts_here(root):
        here[part.source].append(part)
    unknown = {name: None for name in here if name not in experiments.sources}
    names = [*parts, *sorted(set(experiments.sources) - set(parts)), *unknown]
    return [_entry(name, experiments, parts[name], here[name], tuple(users[name]), root) for name in names]


def _entry(name: str, experiments: Experiments, needed: list[Part], here: list[Part], users: tuple[User, ...], root: Path) -> Entry:
    source = experiments.sources.get(name)
    parts = sorted(needed or here or ([Part(name, "all")] if source and source.shards is None else []))
    whole = [part for part in parts if is_whole(part, root)]
    what, size = _download(source, needed, experiments) if source else ("", None)
    return Entry(
        *(name, source.kind if source else "unknown", source.licence if source else "not known", bool(source and source.licence_unclear)),
        *(source.description if source else "of an experiment that is not read here", what, size),
        disk_bytes=sum(size_on_disk(root / part.name) for part in here),
        parts=tuple(part.part for part in parts),
        whole=tuple(part.part for part in whole),
        damaged=tuple(fault for part in whole if (fault := fault_of(part, root))),
        in_use=next((who for part in parts if (who := in_use(root / part.name))), None),
        needed_by=users,
    )


def _download(source: Source, needed: Sequence[Part], experiments: Experiments) -> tuple[str, int | None]:
    """What is downloaded for a source, and its bytes: of the parts that are needed, of the whole source where none is."""
    if source.shards is not None and not needed:
        one = download(source, "validation", {}, NOWHERE)[1]  # the pinned shard, beside those to train on
        return str(source.place["repo"]), None if one is None else (source.shards + 1) * one
    if not needed:
        return download(source, "all", {}, NOWHERE)
    sizes = [download(source, part.part, experiments.fetch_config(part, experiments.of(part)[0]), NOWHERE) for part in needed]
    name = sizes[0][0] if source.shards is None else str(source.place["repo"])
    return name, None if any(size is None for _, size in sizes) else sum(size or 0 for _, size in sizes)


def missing_bytes(experiments: Experiments, names: Collection[str], root: Path = Path()) -> int:
    """About how many bytes are to be downloaded of these sources, or of all; what is here of a part that is not whole is not counted."""
    missing: dict[str, int] = {}
    for part in experiments.parts:
        if (names and part.source not in names) or is_whole(part, root):
            continue
        source, config = experiments.sources[part.source], experiments.fetch_config(part, experiments.of(part)[0])
        what, size = download(source, part.part, config, root / RESOURCES / WHEEL_FOLDER)
        there = size_on_disk(root / part.name) if (root / part.name).is_dir() else 0
        missing[what] = max((size or 0) - (0 if source.kind == "wheel" else there), 0)  # a wheel of several sources counts once
    return sum(missing.values())


# --- as text ---------------------------------------------------------------------------------------------------------


def lines(shown: Sequence[Entry], *, several: bool) -> list[str]:
    """A line for each source; `several`: of more than one experiment, whose file stands before its run."""
    return aligned([HEADINGS, *(_cells(entry, several) for entry in shown)], NUMBERS)


def remarks(found: Sequence[Entry], shown: Sequence[Entry], *, wheels_bytes: int, fetch: str) -> list[str]:
    """What belongs to no source alone; `wheels_bytes`: of downloaded wheels, `fetch`: the command that fetches what is missing."""
    needed = [entry for entry in found if entry.needed_by]
    missing = [entry for entry in needed if len(entry.whole) < len(entry.parts)]
    here = text.size(sum(entry.disk_bytes for entry in found)) + " on disk" + (f" beside {text.size(wheels_bytes)} of wheels" if wheels_bytes else "")
    said = [f"{len(needed)} sources needed, {text.size(_once(needed))} to download in all, {here}"]
    if unknown := [entry.source for entry in needed if entry.download_bytes is None]:
        said.append(f"size not known before they are fetched, and not counted: {', '.join(unknown)}")
    said += [f"damaged: {sentence}; nanochat data verify --repair" for entry in shown for sentence in entry.damaged]
    if missing:
        said.append(f"to fetch what is missing ({_names(entry.source for entry in missing)}): {fetch}")
    if len(shown) < len(found):
        said.append(f"{len(found) - len(shown)} sources that no run needs are not shown: --all")
    return said


def _once(found: Iterable[Entry]) -> int:
    """Bytes to download, a wheel of several sources counted once."""
    wheels = {wheel.filename for wheel in WHEELS.values()}
    apart = {entry.download if entry.download in wheels else entry.source: entry.download_bytes or 0 for entry in found}
    return sum(apart.values())


def _cells(entry: Entry, several: bool) -> tuple[str, ...]:
    unclear = " (unclear: has to be accepted)" if entry.licence_unclear else ""
    size = "not known" if entry.download_bytes is None else "-" if entry.download_bytes == 0 else text.size(entry.download_bytes)
    runs = [f"{user.experiment}:{user.run}" if several else user.run for user in entry.needed_by]
    disk = text.size(entry.disk_bytes) if entry.disk_bytes else "-"
    return entry.source, entry.kind, size, disk, entry.state, f"{entry.licence}{unclear}", _names(runs) or "-"


def _names(names: Iterable[str]) -> str:
    given = list(names)
    return ", ".join(given[:NAMED]) + (f" and {len(given) - NAMED} more" if len(given) > NAMED else "")


def table(shown: Sequence[Entry], *, several: bool) -> "Table":
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, pad_edge=False)
    for n, name in enumerate(HEADINGS):
        view.add_column(name, justify="right" if n in NUMBERS else "left", overflow="fold", no_wrap=n < 5)
    for entry in shown:
        cells = _cells(entry, several)
        colour = COLOURS.get(entry.state, COLOURS["part"])
        view.add_row(*(Text(cell, colour if n == 4 else "dim" if not entry.needed_by else "") for n, cell in enumerate(cells)))
    return view
