"""A plan as text: the table of `nanochat plan`, and the few lines that end a dry run of the workflow."""

from collections.abc import Iterable, Sequence
from typing import Any

from nanochat.hardware import GIB
from nanochat.plan.summary import Plan, Planned, fetches
from nanochat.train.memory import NOT_COUNTED

GROUPED = ("fetch", "prepare", "tokenize", "evaluate")  # stages of many similar jobs
HEADINGS = ("run", "stage", "jobs", "hours", "GPUs", "GPU-hours", "price", "restarts", "disk")


def full(plan: Plan) -> str:
    """Everything, a line or two for each job; similar ones of many together."""
    if not plan.jobs:
        return "\n".join(["Nothing to be done: everything that was asked for is up to date.", *(f"warning: {sentence}" for sentence in plan.warnings)])
    groups = list(_groups(plan.jobs))
    rows = [HEADINGS, *(_row(group) for group in groups)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [_line(rows[0], widths)]
    for group, row in zip(groups, rows[1:], strict=True):
        lines += [_line(row, widths), *(f"    {line}" for line in _details(group))]
    if any(item.estimate.memory_bytes for item in plan.jobs):
        lines += ["", f"Memory of GPUs is that of uncompiled blocks in bf16; {NOT_COUNTED}"]
    if downloads := list(_downloads(plan)):
        lines += ["", "To fetch first", *(f"    {line}" for line in downloads)]
    if plan.up_to_date:
        lines += ["", "Up to date", *(f"    {name}" for name in _shortened(plan.up_to_date))]
    return "\n".join([*lines, "", totals(plan)])


def totals(plan: Plan) -> str:
    """The lines at the end: hours, GPU-hours, price, what is fetched, what would be refused."""
    sums, lines = plan.totals, ["Plan"]
    hours = f"    {_hours(sums.hours)} in all"
    if _hours(sums.chain_hours) != _hours(sums.hours):
        hours += f", {_hours(sums.chain_hours)} at least when jobs run side by side"
    lines.append(hours + (f"; {sums.unknown} of {len(plan.jobs)} jobs not estimated" if sums.unknown else ""))
    if on_gpus := [item.gpu_hours for item in plan.jobs if item.estimate.gpus]:
        known = f"{sums.gpu_hours:,.1f} GPU-hours, {_money(sums.price)}{_price_note(plan.jobs)}"
        lines.append(f"    {known if on_gpus != [None] * len(on_gpus) else 'GPU-hours and price not available'}")
    if kept := [item.job.name for item in plan.jobs if item.taken_back]:
        rest = f", and {sums.gpu_hours - sums.taken_back_gpu_hours:,.1f} GPU-hours remain" if sums.taken_back_gpu_hours else ""
        rest += f", {_money((sums.price or 0.0) - sums.taken_back_price)}" if sums.taken_back_price else ""
        lines.append(f"    finished before and taken back without training, if what is made again before comes out as it was: {', '.join(kept)}{rest}")
    if sums.fetch_parts:
        unknown = f"{' and' * bool(sums.fetch_bytes)} {sums.fetch_unknown} of unknown size" if sums.fetch_unknown else ""
        lines.append("    to fetch: " + (_size(sums.fetch_bytes) if sums.fetch_bytes else "") + unknown)
    if sums.disk_bytes:
        beside = f", {_size(sums.resume_bytes)} more while it trains" if sums.resume_bytes else ""
        lines.append(f"    on disk: {_size(sums.disk_bytes)}{beside}")
    lines += [f"    {item.job.name}: does not fit into one job, {_count(item.restarts, 'restart')}" for item in plan.jobs if item.restarts]
    lines += [f"    warning: {sentence}" for sentence in plan.warnings]
    return "\n".join([*lines, *(f"    refused: {sentence}" for sentence in plan.problems)])


def _downloads(plan: Plan) -> Iterable[str]:
    """What is fetched, the parts of one repository together."""
    places: dict[str, list[dict[str, Any]]] = {}
    for entry in fetches(plan.jobs):
        if entry["bytes"] != 0:
            places.setdefault(entry["what"].split()[0], []).append(entry)
    for place, entries in places.items():
        sizes = [entry["bytes"] for entry in entries]
        sources = dict.fromkeys(source for entry in entries for source in entry["sources"])
        parts = f" in {len(entries)} parts" if len(entries) > 1 else ""
        yield f"{place}: {_size(None if None in sizes else sum(sizes))}{parts} ({', '.join(sources)})"


def _groups(jobs: Sequence[Planned]) -> Iterable[list[Planned]]:
    """Jobs of one run, stage and reason together where a stage has many."""
    groups: dict[tuple[object, ...], list[Planned]] = {}
    for item in jobs:
        name, many = item.run, item.job.stage in GROUPED
        if item.job.stage == "evaluate":
            name = f"{item.run} {item.job.wildcards['phase']}"
        key = (item.job.stage, "" if item.job.stage == "fetch" else name, item.reason.split("; ")[0]) if many else (item.job.number,)
        groups.setdefault(key, []).append(item)
    return groups.values()


def _row(group: Sequence[Planned]) -> tuple[str, ...]:
    first, stage = group[0], group[0].job.stage
    name = "" if stage in ("fetch", "report") else f"{first.run} {first.job.wildcards['phase']}" if stage == "evaluate" else first.run
    hours = [item.hours for item in group]
    spent, prices = [item.gpu_hours or 0.0 for item in group], [item.price for item in group if item.price is not None]
    disk = [item.estimate.disk_bytes for item in group]
    gpus = first.estimate.gpus
    return (
        name,
        stage,
        str(len(group)),
        "-" if stage == "fetch" else "?" if None in hours else _hours(sum(hour or 0.0 for hour in hours)),
        str(gpus) if gpus else "-",
        f"{sum(spent):,.1f}" if gpus and None not in hours else "-",
        _money(sum(prices)) if prices else "-",
        str(first.restarts) if first.restarts else "-",
        _size(sum(size or 0 for size in disk)) if any(disk) else "-",
    )


def _details(group: Sequence[Planned]) -> Iterable[str]:
    first = group[0]
    yield first.reason if len(group) == 1 else first.reason.split("; ")[0]
    if training := first.estimate.training:
        about = "about " if training.approximate else ""
        yield (
            f"{training.work.params / 1e6:,.1f}M parameters, {about}{training.work.tokens / 1e6:,.1f}M tokens "
            f"in {training.work.steps:,} steps, {training.work.flops:.2e} FLOPs"
        )
        passes = f"{_count(training.plan.micro_batch_rows, 'row')} at a time, {_count(training.plan.accumulation, 'pass')} per step"
        if first.estimate.memory_bytes and first.facts.card:
            yield f"about {first.estimate.memory_bytes / GIB:.0f} of {first.facts.card.memory_gib} GiB of each {first.facts.card_name} ({passes})"
        elif not first.facts.gpus:
            yield f"about {training.memory.total / GIB:.1f} GiB of memory ({passes})"
    if first.estimate.rate and first.estimate.rate != "assumed":
        yield f"speed: {first.estimate.rate}"
    if first.estimate.why_unknown and first.job.stage != "fetch":
        yield f"hours not available: {first.estimate.why_unknown}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()


def _shortened(names: Sequence[str]) -> list[str]:
    """Names by stage, many of one stage as a count."""
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(name.split()[0], []).append(name)
    return [name for stage, members in stages.items() for name in (members if len(members) <= 3 else [f"{stage}: {len(members)} jobs"])]


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{max(1, round(hours * 60))} min" if hours > 0 else "0 min"


def _money(price: float | None) -> str:
    return "price not available" if price is None else f"${price:,.2f}" if price < 100 else f"${price:,.0f}"


def _price_note(jobs: Sequence[Planned]) -> str:
    sources = sorted(
        {f"${item.facts.price:.2f} per card and hour, {item.facts.price_source}" for item in jobs if item.estimate.gpus and item.facts.price is not None}
    )
    return f" ({'; '.join(sources)})" if sources else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{('es' if what.endswith('s') else 's') * (number != 1)}"


def _size(size: int | None) -> str:
    if size is None:
        return "size not known"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{max(1, round(size / 1e3))} kB"
