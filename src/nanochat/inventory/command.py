"""What the experiments read from resources/: list it, fetch it, verify it, carry it to a cluster without internet, clear away the rest.

    list      every source: size, licence, how much of it is here, which runs need it
    fetch     what the runs need, or some sources of it, by the workflow's own fetch
    verify    every fetched file against its hash; --repair fetches again exactly what is damaged
    pack      what the runs need into one archive: NAME.tar, or NAME.tar.zst to have it compressed
    unpack    an archive into resources/, every file compared with its hash
    gc        what no experiment needs; --delete deletes it
    show      the text of rows of tokens, as the log of a training names those of a bad step

reads   experiments, resources/ and, for gc and show, results/; never torch
writes  list and show: nothing. fetch, verify --repair, unpack and gc --delete: resources/. pack: the archive. Always a file or a part as a whole

by hand: nanochat data list --configfile configs/speedrun.yaml
         nanochat data verify --repair
         nanochat data pack /media/stick/data.tar --configfile configs/speedrun.yaml
         nanochat data unpack /media/stick/data.tar
         nanochat data show results/d20/base_train 123 456
"""

import json
import shlex
import shutil
import sys
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection
from pathlib import Path

from nanochat.errors import UserError
from nanochat.inventory import listing
from nanochat.inventory.parts import (
    RESOURCES,
    WHEEL_FOLDER,
    Experiments,
    Part,
    every_experiment,
    in_use,
    is_whole,
    parts_here,
    read_experiments,
    size_on_disk,
)
from nanochat.inventory.workflow import by_hand, fetch, require_checkout
from nanochat.preflight.environment import existing
from nanochat.report import text
from nanochat.status.console import Parser, printing

EVERY = "those of this folder and of configs/ are read too"


def main(arguments: list[str]) -> None:
    """Do one of them."""
    flags = _parser().parse_args(arguments)
    verbs: dict[str, Callable[[Namespace], None]] = {
        "list": _list,
        "fetch": _fetch,
        "verify": _verify,
        "pack": _pack,
        "unpack": _unpack,
        "gc": _gc,
        "show": _show,
    }
    with printing():
        verbs[flags.verb](flags)


def _parser() -> Parser:
    parser = Parser(prog="nanochat data", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, configfile: str = "default: config.yaml") -> Parser:
        sub = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
        if configfile:
            sub.add_argument("--configfile", type=Path, action="extend", nargs="+", metavar="FILE", help=f"experiments ({configfile})")
        return sub

    sources = {"nargs": "*", "metavar": "SOURCE"}
    shown = verb("list", "every source: size, licence, how much of it is here, which runs need it")
    shown.add_argument("--all", action="store_true", help="sources that no run needs too")
    shown.add_argument("--json", action="store_true", help="for programs: one JSON object, with every source")
    verb("fetch", "fetch what the runs need").add_argument("sources", help="only these sources (default: all that the runs need)", **sources)  # type: ignore[arg-type]
    checked = verb("verify", "compare every fetched file and wheel with its hash", EVERY)
    checked.add_argument("sources", help="only these sources (default: all that is here, and the wheels)", **sources)  # type: ignore[arg-type]
    checked.add_argument("--repair", action="store_true", help="remove what is damaged and fetch it again")
    packed = verb("pack", "what the runs need into one archive")
    packed.add_argument("archive", type=Path, metavar="ARCHIVE", help="file to write: NAME.tar, or NAME.tar.zst to have it compressed")
    packed.add_argument("--all", action="store_true", help="all that is fetched, and the wheels")
    unpacked = verb("unpack", "an archive into resources/ of this folder", "")
    unpacked.add_argument("archive", type=Path, metavar="ARCHIVE", help="file that nanochat data pack has written")
    unpacked.add_argument("--replace", action="store_true", help="take the archive's files where others, or damaged ones, are here")
    cleared = verb("gc", "say what no experiment needs", EVERY)
    cleared.add_argument("--delete", action="store_true", help="delete it")
    read = verb("show", "the text of rows of tokens that a training reads", "")
    read.add_argument("folder", type=Path, metavar="FOLDER", help="of a training, such as results/RUN/base_train, or of tokens")
    read.add_argument("rows", type=row_number, nargs="+", metavar="ROW", help="numbers of rows, counted from 0 over all training chunks in their order")
    read.add_argument("--json", action="store_true", help="for programs: one JSON object a row")
    return parser


def row_number(text: str) -> int:
    """The number of a row, as a flag."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not the number of a row; name them one by one, such as 81233 7001") from None


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _list(flags: Namespace) -> None:
    experiments = read_experiments(flags.configfile)
    found, several = listing.entries(experiments), len(experiments.files) > 1
    shown = [entry for entry in found if flags.all or entry.needed_by or entry.disk_bytes]
    wheels_bytes = size_on_disk(wheels.resolve()) if (wheels := Path(RESOURCES, WHEEL_FOLDER)).is_dir() else 0
    if flags.json:
        sources = [entry.to_json() for entry in found]
        _say([json.dumps({"experiments": [str(file) for file in experiments.files], "sources": sources, "wheels_bytes": wheels_bytes}, indent=1)])
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(listing.table(shown, several=several))
    else:
        _say(listing.lines(shown, several=several))
    if not flags.json:
        _say(listing.remarks(found, shown, wheels_bytes=wheels_bytes, fetch=f"nanochat data fetch{experiments.flag}"))


def _fetch(flags: Namespace) -> None:
    require_checkout()
    experiments = read_experiments(flags.configfile)
    names = experiments.named(flags.sources)
    for name in names:
        if not any(part.source == name for part in experiments.users):
            files, whole = ", ".join(map(str, experiments.files)), Part(name, "all")
            hand = shlex.join(by_hand(json.dumps({"source": name}), whole.manifest)) if experiments.sources[name].shards is None else ""
            cure = "give the experiment that does with --configfile" + (f", or fetch it by hand: {hand}" if hand else "")
            raise UserError(f"{name!r}: no run of {files} needs it; {cure}")
    missing, free = listing.missing_bytes(experiments, names), shutil.disk_usage(existing(Path(RESOURCES))).free
    if missing > free:  # each part looks for itself too; together they may be too much for the disk
        cure = "free some space, or fetch some of the sources: nanochat data fetch SOURCE"
        raise UserError(f"{RESOURCES}: about {text.size(missing)} to download, {text.size(free)} are free there; {cure}")
    for file in experiments.files:
        targets = [part.manifest for part in experiments.parts if part.source in names and file in experiments.of(part)]
        if targets or not names:
            fetch(targets or ["fetch"], file)


def _verify(flags: Namespace) -> None:
    from nanochat.inventory.verify import repair, verify  # not at the top: what reads files of the user's own is not needed to list

    if flags.repair:
        require_checkout()
    here, names = parts_here(), list(flags.sources)
    if not set(names) <= {part.source for part in here}:
        every_experiment(flags.configfile).named(names)  # refuses what does not exist; what does and is not here is none of the parts
    parts = [part for part in here if not names or part.source in names]
    damages, remarks = verify(parts, wheels=not names)
    _say([*(damage.sentence for damage in damages), *remarks, _verified(parts, len(damages))])
    if damages and flags.repair:
        _say(repair(damages, every_experiment(flags.configfile)))
    elif damages:
        cure = f"nanochat data verify --repair {' '.join(names)}".rstrip()
        raise UserError(f"{_count(len(damages), 'file')} not as fetched; {cure} mends that")


def _verified(parts: list[Part], wrong: int) -> str:
    whole = [part for part in parts if is_whole(part) and not in_use(Path(part.name))]
    if not whole:
        return "no part is fetched: nothing to compare"
    size = text.size(sum(size_on_disk(Path(part.name)) for part in whole))
    judged = f"{_count(wrong, 'file')} not as fetched" if wrong else "every file is as it was fetched"
    return f"{_of_sources(whole)}, {size}: {judged}"


def _count(number: int, noun: str) -> str:
    """1 part, 2 parts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _of_sources(parts: Collection[Part]) -> str:
    return f"{_count(len(parts), 'part')} of {_count(len({part.source for part in parts}), 'source')}"


def _pack(flags: Namespace) -> None:
    from nanochat.inventory.pack import pack

    if flags.all and flags.configfile:
        raise UserError("--all: packs all that is fetched, whoever needs it; leave out --configfile, or --all")
    experiments = Experiments() if flags.all else read_experiments(flags.configfile)
    index, size = pack(flags.archive, experiments, everything=flags.all)
    _say([f"{flags.archive}: {_of_sources(index.parts)}, {text.size(size)}"])
    _say([f"on the other machine, in the project's folder: nanochat data unpack {flags.archive.name}"])


def _unpack(flags: Namespace) -> None:
    from nanochat.inventory.unpack import unpack

    done = unpack(flags.archive, replace=flags.replace)
    _say([*done.remarks, *(f"{part.name}: unpacked" for part in done.written)])
    _say([f"{_count(len(done.written), 'part')} unpacked, {len(done.kept)} here already"])


def _gc(flags: Namespace) -> None:
    from nanochat.inventory import garbage

    experiments = every_experiment(flags.configfile)
    found = garbage.find(experiments)
    _say([f"{item.path}: {text.size(item.bytes)}, {item.why}" for item in found.garbage])
    _say([f"kept: {sentence}" for sentence in found.kept])
    read = f"read: {_count(len(experiments.files), 'experiment')} ({', '.join(map(str, experiments.files))})"
    if not flags.delete:
        _say([f"{text.size(found.bytes)} that no experiment needs" + (": --delete deletes it" if found.garbage else ""), read])
        return
    left = garbage.delete(found)
    _say([f"kept: {item.path}: in use since a moment ago" for item in left])
    _say([f"{len(found.garbage) - len(left)} deleted, {text.size(found.bytes - sum(item.bytes for item in left))}", read])


def _show(flags: Namespace) -> None:
    from nanochat.inventory import show

    for row in show.rows(flags.folder, flags.rows):
        _say([row.to_json()] if flags.json else row.lines())
