"""Where the results come from: machines, software, time and money, and the graph of manifests."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.hardware import price_of
from nanochat.history import cost_of
from nanochat.report import figures, graph, text
from nanochat.report.document import Block, Bullets, Cell, Facts, Figure, Figures, Fold, Heading, Paragraph, Section, Table, cells
from nanochat.report.inputs import PHASE_OF_STAGE as TRAINING_STAGES
from nanochat.report.inputs import Artifact, Inputs, Training
from nanochat.report.summary import money_cell, total_cost, total_seconds


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
    return f"{git['commit'][:12]} on {git['branch']}" + (" with uncommitted changes" if git["dirty"] else "")


def _packages(attempt: Mapping[str, Any]) -> str | None:
    packages = attempt.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if name != "python") or None


def _device(attempt: Mapping[str, Any]) -> str | None:
    if "device" not in attempt:
        return None
    if attempt["device"] != "cuda":
        return f"{attempt['device']}, {attempt.get('threads', '?')} threads"
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


def _price(attempts: list[tuple[Artifact, dict[str, Any]]], configured: float) -> Cell:
    devices = list(dict.fromkeys(str(attempt.get("device_name", "GPU")) for _, attempt in attempts if attempt.get("device") == "cuda"))
    if not devices:
        return text.unavailable("no GPU was used, so no GPU price applies")
    origin = "from `report.gpu_hour_price`" if configured else "usual price; set `report.gpu_hour_price` for yours"
    return Cell(", ".join(f"{name} {text.money(price_of(name, configured))}" for name in devices), origin)


def _code_size() -> Cell:
    """Lines and characters of this package."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    contents = [file.read_text(encoding="utf-8") for file in files]
    characters, lines = sum(map(len, contents)), sum(content.count("\n") for content in contents)
    return Cell(f"{lines:,} lines in {len(files)} files", f"{characters:,} characters")


def _time_table(inputs: Inputs, price: float) -> Table:
    """Every stage of which a story is recorded; evaluations state their seconds in their scores."""
    stories: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in (*inputs.sources, *inputs.tokenizers, *inputs.tokens):
        stories.setdefault(("all", item.stage), []).extend(item.attempts)
    rows = [_time_row(run, stage, attempts, price) for (run, stage), attempts in stories.items() if attempts]
    rows += [_time_row(training.run, training.stage, training.attempts, price) for training in inputs.trainings]
    evaluation = [score.content["seconds"] for score in inputs.scores if score.content.get("seconds") is not None]
    if evaluation:
        rows.append(cells("all", "evaluate", text.count(len(evaluation)), "-", text.duration(sum(evaluation)), Cell("-", "not counted")))
    prepared = cost_of([attempt for attempts in stories.values() for attempt in attempts])
    total = total_cost(inputs, price)
    number, unfinished = total.attempts + prepared.attempts + len(evaluation), total.unfinished + prepared.unfinished
    rows.append(cells("total", "", text.count(number), text.count(unfinished), text.duration(total_seconds(inputs)), money_cell(total)))
    return Table(
        ("Run", "Stage", "Attempts", "Not finished", "Time", "Cost"), tuple(rows), "Stages one after the other, every attempt included", text_columns=2
    )


def _time_row(run: str, stage: str, attempts: Sequence[Mapping[str, Any]], price: float) -> tuple[Cell, ...]:
    cost = cost_of(attempts, price)
    wall = Cell(text.duration(cost.wall_s)) if cost.attempts else text.unavailable("no attempt is recorded")
    return cells(run, stage, text.count(cost.attempts), text.count(cost.unfinished), wall, money_cell(cost) if stage in TRAINING_STAGES else "-")


def _time_figure(inputs: Inputs) -> Figure | None:
    data = [figures.Bar(training.run, training.stage, cost_of(training.attempts).wall_s / 60) for training in inputs.trainings if training.attempts]
    if not data:
        return None
    return Figure(figures.bars("wall-time", data, x_label="minutes", format_value="{:.3g}"), "Wall time per training stage, every attempt included.")


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
    rows = tuple(
        cells(names[node.key], node.subtitle, text.listed([names[start] for start, end in built.edges if end == node.key], 4) or "-") for node in built.nodes
    )
    blocks.append(Fold("Provenance as a table", (Table(("Made", "Identity", "From"), rows, text_columns=3),)))
    if built.unexplained:
        blocks.append(Bullets(built.unexplained, "missing"))
    return Section("Provenance", "provenance", tuple(blocks))
