"""One section per training stage, runs side by side: size, horizon, speed, validation, wall time with every attempt, curves."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from nanochat.artifacts import build_command, canonical_json
from nanochat.history import Cost, cost_of, ended, wall_seconds
from nanochat.report import figures, text
from nanochat.report.axes import AXES, series
from nanochat.report.document import Beside, Block, Bullets, Cell, Choice, Figure, Figures, Fold, Paragraph, Section, Table, cells
from nanochat.report.inputs import Artifact, Inputs, Training
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
    "rows": ("rows of training data", text.count),
    "validation_rows": ("rows of validation", text.count),
    "conversations": ("conversations to train on", text.count),
    "conversations_packed": ("of them in rows, repeated ones counted again", text.count),
    "conversations_too_long": ("left out, too long for a row", text.count),
    "conversations_held_out": ("conversations held out for validation", text.count),
    "supervised_tokens": ("tokens with loss in all rows", text.count),
    "padding_fraction": ("share of padding in rows", text.percent),
    "problems": ("problems to train on", text.count),
    "problems_too_long": ("left out, too long for a row", text.count),
    "validation_problems": ("problems held out for validation", text.count),
    "final_validation_sequence_tokens": ("tokens of an answer on validation, final", text.count),
    "skipped_steps": ("steps skipped, without anything to learn from", text.count),
}
LOSSES = frozenset({"first_loss", "final_loss", "final_val_loss"})  # nats per token, but of a policy gradient, whose size says nothing
PASS_AT_K = re.compile(r"final_pass@\d+")  # pass@1 has a row of its own, the curves tell the others
MOST_BESIDE = 3  # runs in a table that leaves room for curves beside it
MOST_BAD_STEPS = 20
LOGGED: dict[str, Callable[[Sequence[float]], float]] = {"min_val_bpb": min, "final_val_bpb": lambda values: values[-1]}  # also of an unfinished stage

_CONVERSATIONS = "Validation is on held-out conversations here, so it cannot be compared with that of pretraining, which is on held-out text."
VALIDATION = {
    "mid": _CONVERSATIONS,
    "sft": _CONVERSATIONS,
    "rl": "Validation is on held-out problems of the training set: pass@k is the share of which at least one of k answers is right.",
}
MEASURED: dict[str, tuple[str, Callable[[Sequence[float]], str]]] = {
    "mean reward, of the first and the last tenth of the steps": ("reward", lambda values: _first_and_last(values)),
    "tokens of an answer, median": ("sequence_tokens", lambda values: text.count(round(_median(values)))),
    "pass@1 on validation, first and last": ("pass@1", lambda values: f"{values[0]:.3f}, {values[-1]:.3f}"),
    "seconds per step, median": ("step_s", lambda values: text.duration(_median(values))),
    "of them fetching rows, median": ("data_share", lambda values: text.percent(_median(values))),
    "peak host memory of rank 0": ("peak_rss_bytes", lambda values: text.size(max(values))),
    "peak memory of its GPU, reserved": ("peak_cuda_reserved_bytes", lambda values: text.size(max(values))),
}


def training_section(inputs: Inputs, phase: str, price: float) -> Section | None:
    """The section of one phase; None where no run was to build it."""
    trainings = [training for run in inputs.runs if (training := inputs.training(run, phase))]
    if not trainings:
        return None
    title, stage = TITLES[phase]
    blocks: list[Block] = [
        Paragraph(f"Run {training.run}: {_state(training)}; build it with `{build_command(training.path)}`.", "missing")
        for training in trainings
        if not training.finished
    ]
    trainings = [training for training in trainings if training.finished or training.attempts or training.metrics]
    if not trainings:
        return Section(title, phase, tuple(blocks))
    if phase in VALIDATION:
        blocks.append(Paragraph(VALIDATION[phase]))
    blocks += [Paragraph(said, "missing") for training in trainings if (said := _learnt_nothing(training))]
    table = Table(("Quantity", *(training.run for training in trainings)), _rows(trainings, price, inputs.tokens))
    drawn = curves(trainings, phase) or Paragraph("Curves: not available, since fewer than two steps are logged.", "missing")
    blocks += [*bad_steps(trainings), *([Beside((table, drawn))] if len(trainings) <= MOST_BESIDE else [drawn, table])]
    blocks += [Fold(f"Hyper-parameters of {stage}", (_hyper_parameters(trainings),)), Fold("Attempts", (_attempts(trainings),))]
    return Section(title, phase, tuple(blocks))


def _state(training: Training) -> str:
    if not training.attempts and not training.metrics:
        return "not built yet"
    state = training.attempts[-1].get("state", "unknown") if training.attempts else "unknown"
    if state == "finished":
        return "its last attempt finished, but its manifest is not there"
    steps = training.series("loss")[0]
    return f"not finished, last attempt {state}" + (f", last logged step {steps[-1]:.0f}" if steps else "")


def _learnt_nothing(training: Training) -> str:
    """A sentence if steps of reinforcement learning, or all of them, had nothing to learn from."""
    skipped, steps = training.skipped
    if not skipped:
        return ""
    why = "the answers to each problem were all rewarded alike, so that none was better than another"
    if skipped < steps:
        return f"Run {training.run}: {skipped:,} of {steps:,} steps were skipped, since {why}."
    rewards = training.series("reward")[1]
    mean = f" (mean reward {sum(rewards) / len(rewards):.3f})" if rewards else ""
    cure = "Begin with a model that solves some of the problems and not all, take other problems, or draw more answers to each."
    return f"Run {training.run}: nothing was learnt, and the weights are those it began with: all {steps:,} steps were skipped, since {why}{mean}. {cure}"


def _rows(trainings: Sequence[Training], price: float, tokens: Sequence[Artifact] = ()) -> tuple[tuple[Cell, ...], ...]:
    validated = trainings[0].phase != "rl" or any_logged(trainings, "val_bpb")
    known = {key for training in trainings for key, value in training.counts.items() if isinstance(value, int | float) and (value or key != "skipped_steps")}
    keys = [key for key in COUNTS if (key in LOGGED and validated) or key in known]
    keys = [key for key in keys if trainings[0].phase != "rl" or key not in LOSSES]
    keys += sorted(key for key in known - COUNTS.keys() if not PASS_AT_K.fullmatch(key))
    rows = [cells(COUNTS[key][0] if key in COUNTS else key.replace("_", " "), *(_count_cell(training, key) for training in trainings)) for key in keys]
    if trainings[0].phase == "base":
        rows.insert(keys.index("min_val_bpb"), cells("training bits per byte, smoothed", *(_training_bpb(training, tokens) for training in trainings)))
    rows.append(cells("tokens per parameter", *(_per_parameter(training) for training in trainings)))
    rows.append(cells("ranks (processes)", *(_ranks(training) for training in trainings)))
    rows.append(cells("tokens per second, median", *(_speed(training) for training in trainings)))
    rows.append(cells("utilisation", *(_utilisation(training) for training in trainings)))
    rows += [cells(name, *(_measured(training, key, words) for training in trainings)) for name, (key, words) in MEASURED.items() if any_logged(trainings, key)]
    costs = [cost_of(training.attempts, price) for training in trainings]
    rows.append(cells("last attempt ended, UTC", *(_ended(training) for training in trainings)))
    rows.append(cells("wall time, all attempts", *(_wall_time(cost) for cost in costs)))
    rows.append(cells("cost", *(money_cell(cost) for cost in costs)))
    return tuple(rows)


def _ended(training: Training) -> Cell:
    return Cell(text.moment(ended(training.attempts[-1]))) if training.attempts else text.unavailable("no attempt is recorded")


def _wall_time(cost: Cost) -> Cell:
    if not cost.attempts:
        return text.unavailable("no attempt is recorded")
    return Cell(text.duration(cost.wall_s), text.attempts(cost))


def _count_cell(training: Training, key: str) -> Cell:
    value = training.counts.get(key)
    if value is None and key in LOGGED and (logged := training.series("val_bpb")[1]):
        value = LOGGED[key](logged)
    so_far = "" if training.finished else "so far"
    if value is None:
        return text.unavailable("not recorded" if training.finished else "the stage has not finished")
    return Cell(COUNTS[key][1](value) if key in COUNTS else text.count(value), so_far)


def _training_bpb(training: Training, tokens: Sequence[Artifact]) -> Cell:
    """The smoothed loss of the last step in the unit of validation. Batches do not count their bytes, so that it takes those of the mean token."""
    losses = training.series("smoothed_loss")[1]
    if not training.finished:
        return text.unavailable("the stage has not finished")
    if not losses:
        return text.unavailable("not logged")
    read = [item for item in tokens if item.sha256 in training.inputs.values() and item.config.get("split") == "train"]
    read = [item for item in read if item.counts.get("text_bytes") and item.counts.get("tokens")]
    if not read:
        return text.unavailable("bytes per token of its training text are not among the files of this report")
    epochs = training.counts.get("source_epochs") or {}  # of a mixture by weight: how often each source is seen
    weights = [epochs.get(item.path.parent.name.split(".")[0], 1.0) for item in read]
    text_bytes, seen = (sum(weight * item.counts[key] for weight, item in zip(weights, read, strict=True)) for key in ("text_bytes", "tokens"))
    bytes_per_token = text_bytes / seen
    return Cell(text.score(losses[-1] / math.log(2) / bytes_per_token), f"estimate, at {bytes_per_token:.2f} bytes per token")


def _per_parameter(training: Training) -> Cell:
    tokens, parameters = training.counts.get("tokens"), training.counts.get("parameters")
    return (
        Cell(f"{tokens / parameters:.3g}") if tokens and parameters else text.unavailable("not recorded" if training.finished else "the stage has not finished")
    )


def _ranks(training: Training) -> Cell:
    """How many processes trained together; several numbers where attempts differed."""
    numbers = dict.fromkeys(attempt.get("world_size", 1) for attempt in training.attempts)
    return Cell(", ".join(map(text.count, numbers))) if numbers else text.unavailable("no attempt is recorded")


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _first_and_last(values: Sequence[float]) -> str:
    tenth = max(1, len(values) // 10)
    return f"{sum(values[:tenth]) / tenth:.3f}, {sum(values[-tenth:]) / tenth:.3f}"


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


CURVES = {
    "loss": "training loss, nats per token",
    "val_bpb": "validation, bits per byte",
    "reward": "mean reward of the sampled answers",
}
PREFERRED = "tokens"  # the axis that is shown first


def curves(trainings: Sequence[Training], phase: str) -> Choice | None:
    """Everything that can be drawn, over each axis that all runs know; the reader chooses the axis. None where fewer than two steps are logged."""
    options = [(AXES[axis].label, Figures(drawn)) for axis in AXES if (drawn := tuple(_figures(trainings, phase, axis)))]
    if not options:
        return None
    labels = [label for label, _ in options]
    chosen = labels.index(AXES[PREFERRED].label) if AXES[PREFERRED].label in labels else 0
    return Choice(f"axis-{phase}", "Curves over", tuple(options), chosen)


def _figures(trainings: Sequence[Training], phase: str, axis: str) -> Iterator[Figure]:
    unit = AXES[axis].label
    for key, label in CURVES.items():
        lines = _lines(trainings, key, axis)
        if phase == "rl" and key == "loss":  # of a policy gradient: its size says nothing
            continue
        if any(len(line.x) > 1 for line in lines):
            svg = figures.curves(f"{phase}-{key}-{axis}", lines, x_label=unit, y_label=label)
            yield Figure(svg, f"{label[0].upper()}{label[1:]}, over {unit}, {phase.upper()}.")
    lines = _pass_at_k(trainings, axis)
    if any(len(line.x) > 1 for line in lines):
        svg = figures.curves(f"{phase}-pass-at-k-{axis}", lines, x_label=unit, y_label="validation, pass@k")
        yield Figure(svg, f"Share of held-out problems that one of k answers solves, over {unit}, {phase.upper()}.")


def _lines(trainings: Sequence[Training], key: str, axis: str) -> list[figures.Curve]:
    """A curve for each run that has logged `key`; none unless every one of them knows the axis."""
    lines = [figures.Curve(training.run, *series(training.metrics, key, axis)) for training in trainings if training.series(key)[0]]
    return lines if all(line.x for line in lines) else []


def _pass_at_k(trainings: Sequence[Training], axis: str) -> list[figures.Curve]:
    """Of one run every k; of several the smallest and the largest that all of them know."""
    known = [{key for row in training.metrics for key in row if re.fullmatch(r"pass@\d+", key)} for training in trainings]
    ks = sorted(set.intersection(*known) if known else (), key=lambda key: int(key.split("@")[1]))
    if len(trainings) == 1:
        return [figures.Curve(key, *found) for key in ks if (found := series(trainings[0].metrics, key, axis))[0]]
    return [replace(line, name=f"{line.name}, {key}") for key in dict.fromkeys((*ks[:1], *ks[-1:])) for line in _lines(trainings, key, axis)]


def bad_steps(trainings: Sequence[Training]) -> list[Block]:
    """Steps whose loss or gradient was not finite or far above the others, and what was done about them."""
    found = {(training.run, row["step"], row["bad_step"]): row for training in trainings for row in training.metrics if "bad_step" in row and "step" in row}
    if not found:
        return []
    rows = [
        cells(run, text.count(step), str(kind).replace("_", " "), str(row.get("action", "-")), str(row.get("why", "-")))
        for (run, step, kind), row in found.items()
    ]
    shown = rows[:MOST_BAD_STEPS]
    caption = f"The first {len(shown)} of {len(rows)} bad steps" if len(rows) > len(shown) else "Bad steps"
    said = Paragraph(
        f"{len(rows)} bad step{'s' * (len(rows) != 1)}: the rows that each held stand in metrics.jsonl, `nanochat data show` shows their text.", "missing"
    )
    return [said, Table(("Run", "Step", "Kind", "What was done", "Why"), tuple(shown), caption, text_columns=5)]


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
            text.moment(attempt["start"]),
            text.duration(wall_seconds(attempt)),
        )
        for training in trainings
        for attempt in training.attempts
    ]
    if not rows:
        return Bullets(("Not available: no attempt is recorded.",), "missing")
    return Table(("Run", "State", "Host", "Device", "Ranks", "Started, UTC", "Wall time"), tuple(rows), text_columns=4)
