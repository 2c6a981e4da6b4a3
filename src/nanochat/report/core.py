"""CORE: the mean of centred accuracies over 22 tasks of in-context learning; over fewer it is called by their number, never CORE."""

from collections.abc import Sequence
from typing import Any

from nanochat.report import figures, text
from nanochat.report.document import Beside, Block, Figure, Figures, Fold, Paragraph, Section, Table, cells
from nanochat.report.inputs import Inputs, Score
from nanochat.report.metrics import metric_names, name_of
from nanochat.report.published import BY_OTHERS, D20_CORE
from nanochat.report.scores import interval_words
from nanochat.report.text import ABSENT

MOST_BESIDE = 2  # models in a table that leaves room for a figure beside it
MOST_DRAWN = 3  # models in the figure; the table has all
ORIGIN = "d20, Dec 2025"
INTRODUCTION = (
    "Centred accuracy is (accuracy - guessing) / (1 - guessing): 0 is guessing, 1 is perfect, below 0 is worse than guessing. "
    "CORE is the mean over its 22 tasks. The column of others is of a model of 561M parameters and 11.2B tokens."
)


def core_section(inputs: Inputs) -> Section | None:
    """Every task of CORE, models side by side, then each with its shots, items and intervals; None where there is no CORE of a model shown."""
    scores = [score for score in inputs.scores if score.task == "core" and not score.outdated]
    if not scores:
        return None
    blocks: list[Block] = [Paragraph(INTRODUCTION)]
    blocks += [Paragraph(f"CORE of {_model(score)}: not available ({score.unavailable}).", "missing") for score in scores if score.value is None]
    known = [score for score in scores if score.value is not None and score.content.get("tasks")]
    for names, models in _lacking(known).items():
        blocks.append(Paragraph(f"{', '.join(models)}: over {22 - len(names)} of 22 tasks; not there: {', '.join(names)}.", "missing"))
    if known:
        shown: tuple[Block, ...] = (_side_by_side(known), Figures((_bars(known),)))
        blocks += [Beside(shown)] if len(known) <= MOST_BESIDE else shown
        details = [(f"{name_of(score)} of {_model(score)}, task by task", _details(score)) for score in known]
        blocks += [Fold(name, (table,)) for name, table in details]
    return Section("CORE", "core", tuple(blocks))


def _model(score: Score) -> str:
    return f"{score.phase.upper()}, run {score.run}"


def _lacking(scores: Sequence[Score]) -> dict[tuple[str, ...], list[str]]:
    """Missing tasks -> the models that miss them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for score in scores:
        if missing := score.content.get("missing"):
            found.setdefault(tuple(missing), []).append(f"{name_of(score)} of {_model(score)}")
    return found


def _of_task(score: Score, label: str) -> dict[str, Any] | None:
    return next((task for task in score.content["tasks"] if task["label"] == label), None)


def _labels(scores: Sequence[Score]) -> list[str]:
    """Tasks in the order in which they were evaluated; those that nobody evaluated last."""
    return list(dict.fromkeys([*(task["label"] for score in scores for task in score.content["tasks"]), *D20_CORE]))


def _side_by_side(scores: Sequence[Score]) -> Table:
    def centered(score: Score, label: str) -> str:
        task = _of_task(score, label)
        return ABSENT if task is None or task.get("centered") is None else text.score(task["centered"])

    whole = text.score(sum(D20_CORE.values()) / len(D20_CORE))
    names = metric_names(scores)
    rows = [
        cells(
            name,
            *(text.valued(score.value, score.interval) if of == name else ABSENT for score, of in zip(scores, names, strict=True)),
            whole if name.split(" (")[0] == "CORE" else ABSENT,
        )
        for name in dict.fromkeys(names)
    ]
    rows += [
        cells(f"`{label}`", *(centered(score, label) for score in scores), text.score(D20_CORE[label]) if label in D20_CORE else ABSENT)
        for label in _labels(scores)
    ]
    headers = ("Task", *(f"{score.run}, {score.phase.upper()}" for score in scores), f"{ORIGIN}, {BY_OTHERS}")
    return Table(headers, tuple(rows), "Centred accuracy of each task")


def _bars(scores: Sequence[Score]) -> Figure:
    drawn = scores[:MOST_DRAWN]
    data = []
    for label in _labels(drawn):
        for score in drawn:
            task = _of_task(score, label)
            if task is not None and task.get("centered") is not None:
                data.append(figures.Bar(label, f"{score.run}, {score.phase.upper()}", task["centered"]))
        if label in D20_CORE:
            data.append(figures.Bar(label, ORIGIN, D20_CORE[label], published=True))
    left_out = f" Of {len(scores)} models the first {MOST_DRAWN} are drawn." if len(scores) > MOST_DRAWN else ""
    return Figure(figures.bars("core", data, x_label="centred accuracy"), f"Centred accuracy of each task of CORE; pale: {BY_OTHERS}.{left_out}")


def _details(score: Score) -> Table:
    headers = ("Task", "Type", "Shots", "Items", "Accuracy", "95% interval", "Guessing", "Centred", "Seconds")
    rows = []
    for task in score.content["tasks"]:
        rows.append(
            cells(
                f"`{task['label']}`",
                str(task.get("type", ABSENT)).replace("_", " "),
                *(ABSENT if task.get(key) is None else text.count(task[key]) for key in ("shots", "n")),
                ABSENT if task.get("accuracy") is None else text.score(task["accuracy"]),
                interval_words(task.get("interval")),
                ABSENT if task.get("baseline") is None else f"{task['baseline']:.3g}",
                ABSENT if task.get("centered") is None else text.score(task["centered"]),
                ABSENT if task.get("seconds") is None else f"{task['seconds']:.1f}",
            )
        )
    return Table(headers, tuple(rows), f"{name_of(score)} of {_model(score)}", text_columns=2)
