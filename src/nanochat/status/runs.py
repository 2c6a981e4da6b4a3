"""What the past cost: every attempt at every stage of every run, finished or not, with its time, GPU-hours and price.

reads   below --results: provenance, manifests, heartbeats, locks, scores. No experiment file
writes  nothing

One row per attempt; evaluations are one row per phase, from the seconds that their scores state. An attempt that was killed counts up to its
last sign of life, one that runs counts up to now. Failed and interrupted attempts are in the totals, and shown apart below them. A stage that was
made again after it had finished begins a new story: what was before is forgotten. The price is the usual one of the card per hour and GPU, or --price.

by hand: nanochat runs
         nanochat runs --run d20 --price 2.49
         nanochat runs --json
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.hardware import accelerator, price_of
from nanochat.history import cost_of, is_number, is_time, json_beside, seen_alive, unless_damaged
from nanochat.names import PHASES
from nanochat.report import text
from nanochat.status.console import parser, positive, printing
from nanochat.status.look import ask_slurm
from nanochat.status.show import aligned
from nanochat.status.stages import TRAINING, StageFiles, judge, read_stages, run_folders

LOST = ("failed", "interrupted")  # what was paid for beyond the last saved state is lost; a stopped attempt has saved everything
HEADINGS = ("run", "stage", "n", "start", "time", "state", "host", "device", "GPU-hours", "price", "tokens/s", "commit", "job")
NUMBERS = (2, 4, 8, 9, 10)
Attempt = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One attempt, or the evaluations of one phase. `cost` fields without a GPU are None."""

    run: str
    stage: str
    n: int  # which attempt; of evaluations, how many
    state: str
    start: float  # Unix time
    duration_s: float
    host: str | None
    device: str | None
    gpus: int
    gpu_hours: float | None
    price: float | None  # US dollars
    tokens_per_s: float | None
    commit: str | None
    dirty: bool
    job: str | None


def main(arguments: list[str]) -> None:
    """Read, add up, print."""
    flags = parser("runs", __doc__)
    flags.add_argument("--run", help="only this run (default: every run)")
    flags.add_argument("--price", type=positive, default=0.0, metavar="DOLLARS", help="of one GPU for one hour (default: the usual price of each card)")
    given = flags.parse_args(arguments)
    damaged: list[str] = []
    entries = history(given.results, given.price, damaged)
    names = [folder.name for folder in run_folders(given.results, damaged)]
    if given.run is not None and given.run not in names:
        raise UserError(f"--run={given.run}: no such run below {given.results}; " + (f"choose one of {', '.join(names)}" if names else "nothing has run yet"))
    entries = [entry for entry in entries if given.run in (None, entry.run)]
    damaged = list(dict.fromkeys(damaged))
    with printing():
        if given.json:
            print(json.dumps(as_json(entries, damaged), indent=1, ensure_ascii=False, allow_nan=False))
        else:
            print("\n".join(as_text(entries, damaged, given.results, given.price)))


def history(results: Path, price: float, damaged: list[str]) -> list[Entry]:
    """Every attempt below `results`, run by run in the order of their stages."""
    files = [each for each in read_stages(results, damaged) if each.stage in TRAINING]
    queue, now = ask_slurm(results, [each for each in files if each.holder.held is None]), time.time()
    entries = [entry for each in files for entry in _attempts(each, judge(each, queue, now).state, now, price)]
    entries += [entry for run in run_folders(results, damaged) for entry in _evaluations(run, price, damaged)]
    return sorted(entries, key=lambda entry: entry.run)  # a stable sort: stages stay in order


def _attempts(files: StageFiles, state: str, now: float, price: float) -> list[Entry]:
    """The attempts at one stage. The last one may still run, or be dead and not know it."""
    entries = []
    for number, attempt in enumerate(files.attempts, 1):
        shown = attempt["state"]
        if shown == "running":
            alive = state in ("running", "stalled") and number == len(files.attempts)
            attempt, shown = seen_alive(attempt, now if alive else files.last_progress), state if alive else "interrupted"
            if state == "finished":
                shown = "finished"  # killed after its last file was written
        entries.append(_entry(files.run, files.stage, number, shown, [attempt], price))
    return entries


def _evaluations(run: Path, price: float, damaged: list[str]) -> list[Entry]:
    """The scores of each phase of a run, added up."""
    entries = []
    for phase in PHASES:
        made = [attempt for path in sorted(run.glob(f"scores/{phase}/*.json")) if (attempt := _evaluation(path, damaged))]
        if made:
            entries.append(_entry(run.name, f"evaluate {phase}", len(made), "finished", made, price))
    return entries


def _evaluation(path: Path, damaged: list[str]) -> Attempt | None:
    """What a score says of its own making, as an attempt."""
    content = unless_damaged(lambda: json_beside(path.parent, path.name, None), None, damaged)
    story = content.get("provenance") if isinstance(content, dict) else None
    if not isinstance(story, dict) or not is_time(story.get("start")) or not is_number(content.get("seconds")):
        if content is not None:
            damaged.append(f"{path}: says neither when it was made nor how long that took; it is not counted")
        return None
    ranks = story["world_size"] if is_number(story.get("world_size")) else 1
    return {**story, "wall_s": content["seconds"], "state": "finished", "world_size": ranks, "heartbeat": None, "tokens_per_s": None}


def _entry(run: str, stage: str, n: int, state: str, attempts: Sequence[Attempt], price: float) -> Entry:
    cost, first = cost_of(attempts, price), attempts[0]
    git: Any = first.get("git") if isinstance(first.get("git"), dict) else {}
    on_gpu = first.get("device") == "cuda"
    return Entry(
        *(run, stage, n, state, min(attempt["start"] for attempt in attempts), cost.wall_s),
        host=_all(attempts, "host"),
        device=_all(attempts, "device_name" if on_gpu else "device"),
        gpus=int(first.get("world_size") or 1) if on_gpu else 0,
        gpu_hours=cost.gpu_hours,
        price=cost.money,
        tokens_per_s=first.get("tokens_per_s"),
        commit=str(git["commit"]) if git.get("commit") else None,
        dirty=bool(git.get("dirty")),
        job=_all(attempts, "job"),
    )


def _all(attempts: Iterable[Attempt], key: str) -> str | None:
    """What the attempts say of `key`: each value once."""
    return ", ".join(dict.fromkeys(str(attempt[key]) for attempt in attempts if attempt.get(key))) or None


# --- totals ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """A sum over entries; `lost_*` is the part of it that failed or was interrupted."""

    attempts: int
    duration_s: float
    gpu_hours: float | None
    price: float | None
    lost_attempts: int
    lost_duration_s: float
    lost_gpu_hours: float | None
    lost_price: float | None


def total(entries: Sequence[Entry]) -> Total:
    """Everything added up."""
    lost = [entry for entry in entries if entry.state in LOST]
    return Total(*_sum(entries), *_sum(lost))


def _sum(entries: Sequence[Entry]) -> tuple[int, float, float | None, float | None]:
    hours, prices = ([value for value in values if value is not None] for values in ([e.gpu_hours for e in entries], [e.price for e in entries]))
    number = sum(1 if entry.stage in TRAINING else entry.n for entry in entries)
    return number, sum(entry.duration_s for entry in entries), sum(hours) if hours else None, sum(prices) if prices else None


def as_json(entries: Sequence[Entry], damaged: Sequence[str]) -> dict[str, Any]:
    """The history as plain values."""
    return {
        "attempts": [asdict(entry) for entry in entries],
        "runs": {run: asdict(total(of_run)) for run, of_run in _by_run(entries).items()},
        "total": asdict(total(entries)),
        "damaged": list(damaged),
    }


def _by_run(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(entry.run, []).append(entry)
    return runs


# --- text ------------------------------------------------------------------------------------------------------------


def as_text(entries: Sequence[Entry], damaged: Sequence[str], results: Path, price: float) -> list[str]:
    """A table, the totals, and what the prices are."""
    ending = [f"damaged: {sentence}" for sentence in damaged]
    if not entries:
        return [f"{results}: nothing has run yet" + ("" if results.is_dir() else ", there is no such folder (--results gives another)"), *ending]
    runs = _by_run(entries)
    totals = [_total_words(run, total(of_run)) for run, of_run in runs.items()]
    if len(runs) > 1:
        totals.append(_total_words("all runs", total(entries)))
    return [*aligned([HEADINGS, *map(_row, entries)], NUMBERS), "", *totals, _prices(entries, price), *ending]


def _row(entry: Entry) -> tuple[str, ...]:
    device = f"{entry.gpus} x {entry.device}" if entry.gpus else entry.device
    return (
        *(entry.run, entry.stage, str(entry.n), time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.start)), text.duration(entry.duration_s)),
        *(entry.state, entry.host or "-", device or "-"),
        "-" if entry.gpu_hours is None else f"{entry.gpu_hours:.2f}",
        "-" if entry.price is None else text.money(entry.price),
        f"{entry.tokens_per_s:,.0f}" if entry.tokens_per_s else "-",
        entry.commit[:12] + ("+" if entry.dirty else "") if entry.commit else "-",
        entry.job or "-",
    )


def _total_words(name: str, of: Total) -> str:
    lost = f"; of it failed or interrupted: {_sum_words(of.lost_attempts, of.lost_duration_s, of.lost_gpu_hours, of.lost_price)}" if of.lost_attempts else ""
    return f"{name}: {_sum_words(of.attempts, of.duration_s, of.gpu_hours, of.price)}{lost}"


def _sum_words(attempts: int, duration_s: float, gpu_hours: float | None, price: float | None) -> str:
    said = [f"{attempts} attempt{'s' if attempts != 1 else ''}", text.duration(duration_s)]
    if gpu_hours is not None and price is not None:
        said += [f"{gpu_hours:.2f} GPU-hours", text.money(price)]
    return ", ".join(said)


def _prices(entries: Sequence[Entry], configured: float) -> str:
    """Where the money comes from."""
    cards = list(dict.fromkeys(entry.device or "" for entry in entries if entry.gpus))
    if not cards:
        return f"price: {text.MISSING} (no GPU was used)"
    if configured:
        return f"price per GPU and hour: {text.money(configured)}, as given"
    said = [f"{card or 'unnamed card'} {text.money(price_of(card))}" + ("" if accelerator(card) else " (assumed, this card is not known)") for card in cards]
    return f"price per GPU and hour: {', '.join(said)}; usual ones, --price gives yours"
