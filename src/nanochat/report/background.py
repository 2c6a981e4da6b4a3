"""Where the results come from: machines, software, time and money, and the graph of manifests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.hardware import price_of
from nanochat.history import cost_of, ended
from nanochat.report import figures, graph, text
from nanochat.report.document import Block, Bullets, Cell, Facts, Figure, Figures, Fold, Heading, Paragraph, Section, Table, cells
from nanochat.report.inputs import PHASE_OF_STAGE as TRAINING_STAGES
from nanochat.report.inputs import Artifact, Inputs, Training
from nanochat.report.summary import money_cell, total_cost
from nanochat.report.text import ABSENT


def header(inputs: Inputs, price: float) -> Facts | None:
    """What was made and what made it, in a few lines: models, code, machines, software, when, at what price. None before anything has started."""
    attempts: list[tuple[Artifact, dict[str, Any]]] = [(training, attempt) for training in inputs.trainings for attempt in training.attempts]
    if not attempts:
        return None
    starts, ends = zip(*((attempt["start"], ended(attempt)) for _, attempt in attempts), strict=True)
    total = total_cost(inputs, price)
    paid = money_cell(total)
    models = [words for run in inputs.runs if (words := _model(inputs, run))]
    rows = (
        ("Model", Cell("; ".join(models)) if models else text.unavailable("no stage has finished")),
        ("Code", _values(attempts, _git)),
        ("Machine", _values(attempts, lambda attempt: f"{attempt.get('host', 'unknown')}, {_device(attempt) or 'device not recorded'}")),
        ("Software", _values(attempts, _main_packages)),
        ("Trained", Cell(f"{text.moment(min(starts))} to {text.moment(max(ends))} UTC", f"{text.duration(total.wall_s)} in {text.attempts(total)}")),
        ("Cost", Cell(paid.text, paid.note)),
    )
    return Facts(rows)


def _model(inputs: Inputs, run: str) -> str | None:
    """What a run's model is, in a few words; None before a stage has finished."""
    finished = [training for training in inputs.of_run(run) if training.finished]
    if not finished:
        return None
    counts, depth = finished[0].counts, (finished[0].model.get("architecture") or {}).get("depth")
    words = [f"depth {depth}"] if depth else []
    words += [f"{text.large(counts['parameters'])} parameters"] if counts.get("parameters") else []
    words += [f"{text.large(counts['tokens'])} tokens of pretraining"] if counts.get("tokens") and finished[0].phase == "base" else []
    return f"{run}: {', '.join(words)}" if words else None


def _main_packages(attempt: Mapping[str, Any]) -> str | None:
    packages = attempt.get("packages") or {}
    return ", ".join(f"{name} {packages[key]}" for key, name in (("python", "Python"), ("torch", "torch"), ("nanochat", "nanochat")) if key in packages) or None


CHARS_PER_TOKEN = 4  # the usual rule of thumb for code


def environment_section(inputs: Inputs, price: float) -> Section:
    """git, hardware, software, size of the code, time and cost per stage."""
    attempts: list[tuple[Artifact, dict[str, Any]]] = [(training, attempt) for training in inputs.trainings for attempt in training.attempts] or [
        (item, attempt) for item in (*inputs.tokens, *inputs.tokenizers, *inputs.sources) for attempt in item.attempts
    ]
    blocks: list[Block] = []
    if attempts:
        rows = [(name, _distinct(attempts, read)) for name, read in ENVIRONMENT]
        blocks.append(Facts((*rows, ("code", _code_size()), ("price per GPU and hour", _price(attempts, price)))))
    else:
        blocks.append(Paragraph("Not available: no stage has started, so no machine is recorded.", "missing"))
    blocks += [Heading("Time and cost"), _time_table(inputs, price)]
    if drawn := _time_figure(inputs):
        blocks.append(Figures((drawn,)))
    return Section("Environment, time and cost", "environment", tuple(blocks))


def _git(attempt: Mapping[str, Any]) -> str | None:
    git = attempt.get("git") or {}
    if "commit" not in git:
        return f"{text.MISSING}: {git['unavailable']}" if "unavailable" in git else None
    message = f" ({git['message']})" if git.get("message") else ""
    return f"{git['commit'][:12]} on {git['branch']}{message}" + (", with uncommitted changes" if git["dirty"] else "")


def _lock(attempt: Mapping[str, Any]) -> str | None:
    lock = attempt.get("lock") or {}
    if "packages" not in lock:
        return f"{text.MISSING}: {lock['unavailable']}" if "unavailable" in lock else None
    return f"{lock['packages']} packages, sha256 {lock['sha256'][:12]}"


def _packages(attempt: Mapping[str, Any]) -> str | None:
    packages = attempt.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if name != "python") or None


def _device(attempt: Mapping[str, Any]) -> str | None:
    if "device" not in attempt:
        return None
    if attempt["device"] != "cuda":
        return str(attempt["device"]) + (f", {text.counted(attempt['threads'], 'thread')}" if "threads" in attempt else "")
    memory = f" ({text.size(attempt['device_memory_bytes'])})" if "device_memory_bytes" in attempt else ""
    return f"{attempt.get('world_size', 1)} x {attempt.get('device_name', 'GPU')}{memory}"


ENVIRONMENT: tuple[tuple[str, Callable[[Mapping[str, Any]], str | None]], ...] = (
    ("git", _git),
    ("host", lambda attempt: attempt.get("host")),
    ("platform", lambda attempt: attempt.get("platform")),
    ("CPU cores", lambda attempt: text.count(attempt["cpu_count"]) if attempt.get("cpu_count") else None),
    ("memory", lambda attempt: text.size(attempt["memory_bytes"]) if attempt.get("memory_bytes") else None),
    ("device", _device),
    ("Python", lambda attempt: (attempt.get("packages") or {}).get("python")),
    ("packages", _packages),
    ("lock of packages", _lock),
)


def _distinct(attempts: list[tuple[Artifact, dict[str, Any]]], read: Callable[[Mapping[str, Any]], str | None]) -> Cell:
    """The value that every attempt agrees on, or every value with the stages it holds for."""
    values: dict[str, list[str]] = {}
    for item, attempt in attempts:
        if (value := read(attempt)) is not None:
            values.setdefault(value, []).append(f"{item.run}/{item.stage}" if isinstance(item, Training) else item.stage)
    if not values:
        return text.unavailable("not recorded")
    if len(values) == 1:
        return Cell(next(iter(values)))
    return Cell("; ".join(f"{value} ({text.listed(list(dict.fromkeys(stages)), 4)})" for value, stages in values.items()))


def _values(attempts: list[tuple[Artifact, dict[str, Any]]], read: Callable[[Mapping[str, Any]], str | None]) -> Cell:
    """Every value, without where it holds."""
    values = list(dict.fromkeys(value for _, attempt in attempts if (value := read(attempt)) is not None))
    return Cell("; ".join(values)) if values else text.unavailable("not recorded")


def _price(attempts: list[tuple[Artifact, dict[str, Any]]], configured: float) -> Cell:
    devices = list(dict.fromkeys(str(attempt.get("device_name", "GPU")) for _, attempt in attempts if attempt.get("device") == "cuda"))
    if not devices:
        return text.unavailable("no GPU was used")
    origin = "from `report.gpu_hour_price`" if configured else "usual price; set `report.gpu_hour_price` for yours"
    return Cell(", ".join(f"{name} {text.money(price_of(name, configured))}" for name in devices), origin)


def _code_size() -> Cell:
    """Lines and characters of this package."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    contents = [file.read_text(encoding="utf-8") for file in files]
    characters, lines = sum(map(len, contents)), sum(content.count("\n") for content in contents)
    return Cell(f"{lines:,} lines in {len(files)} files", f"{characters:,} characters, about {characters // CHARS_PER_TOKEN:,} tokens")


def _time_table(inputs: Inputs, price: float) -> Table:
    """Every stage of which a story is recorded; evaluations state their seconds in their scores."""
    stories: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in (*inputs.sources, *inputs.tokenizers, *inputs.tokens):
        stories.setdefault(("all", item.stage), []).extend(item.attempts)
    rows = [_time_row(run, stage, attempts, price) for (run, stage), attempts in stories.items() if attempts]
    for run in inputs.runs:
        rows += [_time_row(run, training.stage, training.attempts, price) for training in inputs.of_run(run) if training.attempts]
        rows += [_time_row(run, "evaluate", evaluated, price) for evaluated in [evaluations(inputs, run)] if evaluated]
    everything = [attempt for attempts in stories.values() for attempt in attempts]
    everything += [attempt for training in inputs.trainings for attempt in training.attempts]
    everything += [attempt for run in inputs.runs for attempt in evaluations(inputs, run)]
    rows.append(_time_row("total", "", everything, price))
    headers = ("Run", "Stage", "Attempts", "Not finished", "Time", "of it lost", "Cost")
    caption = "Stages one after the other, every attempt included. Lost: in attempts that did not finish; a later one may have gone on from their state."
    return Table(headers, tuple(rows), caption, text_columns=2)


def evaluations(inputs: Inputs, run: str) -> list[dict[str, Any]]:
    """The evaluations of a run as attempts: each states its seconds and where they were spent."""
    found = [score.content for score in inputs.scores if score.run == run and score.content.get("seconds") is not None]
    return [{**(content.get("provenance") or {}), "state": "finished", "start": 0.0, "wall_s": content["seconds"]} for content in found]


def _time_row(run: str, stage: str, attempts: Sequence[Mapping[str, Any]], price: float) -> tuple[Cell, ...]:
    cost, lost = cost_of(attempts, price), cost_of([attempt for attempt in attempts if attempt.get("state") != "finished"])
    wall = Cell(text.duration(cost.wall_s)) if cost.attempts else text.unavailable("no attempt is recorded")
    paid = money_cell(cost) if stage in (*TRAINING_STAGES, "evaluate", "") else Cell("-")
    return cells(run, stage, text.count(cost.attempts), text.count(cost.unfinished), wall, text.duration(lost.wall_s) if lost.wall_s else "-", paid)


def _time_figure(inputs: Inputs) -> Figure | None:
    seconds = {(training.run, training.stage): cost_of(training.attempts).wall_s for training in inputs.trainings if training.attempts}
    if not seconds:
        return None
    unit, size = next(((unit, size) for unit, size in (("hours", 3600.0), ("minutes", 60.0)) if max(seconds.values()) >= 2 * size), ("seconds", 1.0))
    data = [figures.Bar(run, stage, value / size) for (run, stage), value in seconds.items()]
    return Figure(figures.bars("wall-time", data, x_label=unit, format_value="{:.3g}"), "Wall time per training stage, every attempt included.")


# --- provenance ------------------------------------------------------------------------------------------------------


def provenance_section(inputs: Inputs) -> Section:
    """The graph of manifests, and what does not fit together."""
    built = graph.build(inputs)
    if not built.nodes:
        return Section("Provenance", "provenance", (Paragraph("Not available: no manifest was handed to this report.", "missing"),))
    blocks: list[Block] = [
        Paragraph("Each box is a group of finished files; each line is a manifest whose sha256 the next stage recorded when it read it."),
        Figures((Figure(graph.svg(built), f"From sources to scores: {len(built.nodes)} groups of files, {len(built.edges)} connections."),)),
    ]
    names = {node.key: f"{node.title} ({graph.COLUMNS[node.column]})" for node in built.nodes}
    columns = {node.key: node.column for node in built.nodes}
    rows = []
    for node in built.nodes:  # the model that it was made from stands first, before sources that may be too many to name
        parents = sorted((start for start, end in built.edges if end == node.key), key=lambda start: -columns[start])
        rows.append(cells(names[node.key], node.subtitle, text.listed([names[start] for start in parents], 4) or ABSENT))
    blocks.append(Fold("Provenance as a table", (Table(("Made", "Identity", "From"), tuple(rows), text_columns=3),)))
    if built.unexplained:
        blocks.append(Bullets(built.unexplained, "missing"))
    return Section("Provenance", "provenance", tuple(blocks))
