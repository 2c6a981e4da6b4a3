"""One section per training stage, runs side by side: size, horizon, speed, validation, wall time with every attempt, curves."""

from collections.abc import Callable, Sequence
from typing import Any

from nanochat.artifacts import canonical_json
from nanochat.history import Cost, cost_of, wall_seconds
from nanochat.report import figures, text
from nanochat.report.axes import AXES, series
from nanochat.report.document import Block, Bullets, Cell, Figure, Figures, Fold, Paragraph, Section, Table, cells
from nanochat.report.inputs import Inputs, Training
from nanochat.report.summary import money_cell

TITLES = {
    "base": ("Pretraining (BASE)", "base_train"),
    "mid": ("Midtraining (MID)", "mid_train"),
    "sft": ("Supervised fine-tuning (SFT)", "chat_sft"),
    "rl": ("Reinforcement learning (RL)", "chat_rl"),
}
# counts of a training manifest that have a name of their own; any other count is shown under its key
COUNTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", text.count),
    "scaling_parameters": ("of them in blocks and head", text.count),
    "steps": ("steps", text.count),
    "batch_tokens": ("tokens per step", text.count),
    "tokens": ("tokens", text.count),
    "counted_tokens": ("tokens with loss", text.count),
    "epochs": ("passes over the data", text.count),
    "flops_per_token": ("FLOPs per token", text.large),
    "flops": ("FLOPs", text.large),
    "first_loss": ("first loss, nats per token", text.score),
    "final_loss": ("final loss, nats per token", text.score),
    "final_val_loss": ("final validation loss, nats per token", text.score),
    "min_val_bpb": ("minimum validation bits per byte", text.score),
    "final_val_bpb": ("final validation bits per byte", text.score),
}
LOGGED: dict[str, Callable[[Sequence[float]], float]] = {"min_val_bpb": min, "final_val_bpb": lambda values: values[-1]}  # also of an unfinished stage

MEASURED: dict[str, tuple[str, Callable[[Sequence[float]], str]]] = {
    "seconds per step, median": ("step_s", lambda values: text.duration(_median(values))),
    "of them fetching rows, median": ("data_share", lambda values: text.percent(_median(values))),
    "peak memory of rank 0": ("peak_rss_bytes", lambda values: text.size(max(values))),
    "peak memory of its GPU, reserved": ("peak_cuda_reserved_bytes", lambda values: text.size(max(values))),
}


def training_section(inputs: Inputs, phase: str, price: float) -> Section | None:
    """The section of one phase; None where no run was to build it."""
    trainings = [training for run in inputs.runs if (training := inputs.training(run, phase))]
    if not trainings:
        return None
    title, stage = TITLES[phase]
    blocks: list[Block] = [
        Paragraph(f"Run {training.run}: {_state(training)}; build it with `snakemake --cores all {phase}`.", "missing")
        for training in trainings
        if not training.finished
    ]
    trainings = [training for training in trainings if training.finished or training.attempts or training.metrics]
    if not trainings:
        return Section(title, phase, tuple(blocks))
    if phase != "base":
        blocks.append(Paragraph("Validation is on held-out conversations here, so it cannot be compared with that of pretraining, which is on held-out text."))
    blocks.append(Table(("", *(training.run for training in trainings)), _rows(trainings, price)))
    drawn = curve_figures(trainings, phase)
    blocks += [Figures(tuple(drawn))] if drawn else [Paragraph("Curves: not available, since fewer than two steps are logged.", "missing")]
    blocks += [Fold(f"Hyper-parameters of {stage}", (_hyper_parameters(trainings),)), Fold("Attempts", (_attempts(trainings),))]
    return Section(title, phase, tuple(blocks))


def _state(training: Training) -> str:
    if not training.attempts and not training.metrics:
        return "not built yet"
    state = training.attempts[-1].get("state", "unknown") if training.attempts else "unknown"
    steps = training.series("loss")[0]
    return f"not finished, last attempt {state}" + (f", last logged step {steps[-1]:.0f}" if steps else "")


def _rows(trainings: Sequence[Training], price: float) -> tuple[tuple[Cell, ...], ...]:
    keys = [key for key in COUNTS if key in LOGGED or any(key in training.counts for training in trainings)]
    keys += sorted({key for training in trainings for key, value in training.counts.items() if key not in COUNTS and isinstance(value, int | float)})
    rows = [cells(COUNTS[key][0] if key in COUNTS else key.replace("_", " "), *(_count_cell(training, key) for training in trainings)) for key in keys]
    rows.append(cells("tokens per second, median", *(_speed(training) for training in trainings)))
    rows.append(cells("utilisation", *(_utilisation(training) for training in trainings)))
    rows += [cells(name, *(_measured(training, key, words) for training in trainings)) for name, (key, words) in MEASURED.items() if any_logged(trainings, key)]
    costs = [cost_of(training.attempts, price) for training in trainings]
    rows.append(cells("wall time, all attempts", *(_wall_time(cost) for cost in costs)))
    rows.append(cells("cost", *(money_cell(cost) for cost in costs)))
    return tuple(rows)


def _wall_time(cost: Cost) -> Cell:
    if not cost.attempts:
        return text.unavailable("no attempt is recorded")
    attempts = "1 attempt" if cost.attempts == 1 else f"{cost.attempts} attempts"
    return Cell(text.duration(cost.wall_s), attempts + (f", {cost.unfinished} not finished" if cost.unfinished else ""))


def _count_cell(training: Training, key: str) -> Cell:
    value = training.counts.get(key)
    if value is None and key in LOGGED and (logged := training.series("val_bpb")[1]):
        value = LOGGED[key](logged)
    if value is None:
        return text.unavailable("not recorded" if training.finished else "the stage has not finished")
    return Cell(COUNTS[key][1](value) if key in COUNTS else text.count(value))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _speed(training: Training) -> Cell:
    values = training.series("tokens_per_s")[1]
    return Cell(text.count(round(_median(values)))) if values else text.unavailable("no step is logged")


def any_logged(trainings: Sequence[Training], key: str) -> bool:
    """Whether a run has logged this; what none has logged, as logs of older versions, is no row."""
    return any(training.series(key)[0] for training in trainings)


def _measured(training: Training, key: str, words: Callable[[Sequence[float]], str]) -> Cell:
    values = training.series(key)[1]
    return Cell(words(values)) if values else text.unavailable("not logged")


def _utilisation(training: Training) -> Cell:
    values = training.series("utilisation")[1]
    unknown = "the peak speed of this device is not known" if training.metrics else "no step is logged"
    return Cell(text.percent(_median(values))) if values else text.unavailable(unknown)


def curve_figures(trainings: Sequence[Training], phase: str) -> list[Figure]:
    """Loss and validation bits per byte: of one run against tokens (steps where none are logged), of several against each axis that all of them know."""
    drawn = []
    for key, label in (("loss", "training loss, nats per token"), ("val_bpb", "validation, bits per byte")):
        lines = {AXES[axis].label: found for axis in AXES if (found := _lines(trainings, key, axis))}
        if not any(len(line.x) > 1 for found in lines.values() for line in found):
            continue
        if len(next(iter(lines.values()))) == 1:
            unit = AXES["tokens"].label if AXES["tokens"].label in lines else AXES["step"].label
            lines = {unit: lines[unit]}
            svg = figures.curves(f"{phase}-{key}", lines[unit], x_label=unit, y_label=label)
        else:
            svg = figures.panels(f"{phase}-{key}", lines, y_label=label)
        drawn.append(Figure(svg, f"{label[0].upper()}{label[1:]} against {text.listed(tuple(lines))}, {phase.upper()}."))
    return drawn


def _lines(trainings: Sequence[Training], key: str, axis: str) -> list[figures.Curve]:
    """A curve for each run that has logged `key`; none unless every one of them knows the axis."""
    lines = [figures.Curve(training.run, *series(training.metrics, key, axis)) for training in trainings if training.series(key)[0]]
    return lines if all(line.x for line in lines) else []


def _hyper_parameters(trainings: Sequence[Training]) -> Block:
    """Every resolved hyper-parameter as dotted keys, with the shape and, for base, the plan that followed from the depth (both in model.json)."""
    flat = []
    for training in trainings:
        shown = ("architecture", "training") if training.phase == "base" else ("architecture",)
        flat.append(flatten({**training.config, **{f"model.{key}": training.model[key] for key in shown if key in training.model}}))
    keys = list(dict.fromkeys(key for values in flat for key in values))
    if not keys:
        return Paragraph("Not available: the stage has not finished.", "missing")
    rows = tuple(cells(f"`{key}`", *(values.get(key, "-") for values in flat)) for key in keys)
    return Table(("Key", *(training.run for training in trainings)), rows)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}; lists stay on one line."""
    if isinstance(value, dict):
        return {key: words for name, inner in value.items() for key, words in flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value if isinstance(value, str) else canonical_json(value)}


def _attempts(trainings: Sequence[Training]) -> Block:
    rows = [
        cells(
            training.run,
            str(attempt.get("state", "unknown")),
            str(attempt.get("host", "-")),
            str(attempt.get("device_name", attempt.get("device", "-"))),
            text.count(attempt.get("world_size", 1)),
            text.duration(wall_seconds(attempt)),
        )
        for training in trainings
        for attempt in training.attempts
    ]
    if not rows:
        return Bullets(("Not available: no attempt is recorded.",), "missing")
    return Table(("Run", "State", "Host", "Device", "Ranks", "Wall time"), tuple(rows), text_columns=4)
