"""Runs beside each other, models on the same questions, and ours beside what others published."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from nanochat.config import PHASES
from nanochat.eval.chatcore import CHATCORE
from nanochat.eval.chatcore import chatcore as chatcore_of
from nanochat.eval.paired import LOWER_IS_BETTER, Paired, compare_scores, second_is_better
from nanochat.history import cost_of
from nanochat.report import figures, text
from nanochat.report.document import Block, Bullets, Cell, Figure, Figures, Fold, Heading, Paragraph, Section, Table, cells
from nanochat.report.inputs import Inputs, Score
from nanochat.report.metrics import chatcore, is_sampled, metric_rows, name_of, ordered, title
from nanochat.report.published import BY_OTHERS, D20, GPT2, Published
from nanochat.report.summary import last_phases, metric_name, money_cell, of_phase, score_cell, texts_differ
from nanochat.report.text import ABSENT

MOST_DRAWN = 8  # runs in the bars; the table has all
MOST_COMPARED = 20  # rows of a table that is not folded
PAIRED = (
    "Both models were asked the same rows. The difference is between their scores on these, with its 95% interval; p is the chance of so uneven a change "
    "if both were equally good: McNemar's exact test where answers are right or wrong, flipped signs for bits per byte and CORE. Of many comparisons one in "
    "twenty falls below 0.05 by luck alone. Small print says what was not the same for both."
)


def comparison_section(inputs: Inputs, price: float) -> Section | None:
    """Several runs side by side, paired tests, published models; None where there is nothing to compare."""
    blocks: list[Block] = []
    if len(inputs.runs) > 1:
        blocks += _runs(inputs, price)
    blocks += _paired_tests(inputs)
    blocks += _beside_published(inputs)
    return Section("Comparison", "comparison", tuple(blocks)) if blocks else None


# --- runs ------------------------------------------------------------------------------------------------------------


def _runs(inputs: Inputs, price: float) -> list[Block]:
    """The last phase of each run; CORE is that of the phase in which it was evaluated last."""
    last = last_phases(inputs)
    scores = {(run, task): score for run, phase in last.items() if phase for task, score in of_phase(inputs.run_scores(run), phase).items()}
    for run in inputs.runs:
        of_core = [score for phase in PHASES if (score := inputs.run_scores(run).get((phase, "core")))]
        scores |= {(run, "core"): of_core[-1]} if of_core else {}
    rows = [cells("last scored phase", *((last[run] or ABSENT).upper() for run in inputs.runs))]
    for name, found in metric_rows(scores):
        rows.append(cells(metric_name(name), *(_last_cell(found.get(run), last[run]) for run in inputs.runs)))
    for name in CHATCORE:
        means = [chatcore(name, {task: score for (of, task), score in scores.items() if of == run}) for run in inputs.runs]
        rows.append(cells(name, *(text.valued(mean.value, mean.interval) for mean in means)))
    costs = [cost_of([attempt for training in inputs.of_run(run) for attempt in training.attempts], price) for run in inputs.runs]
    rows.append(cells("training time", *(text.duration(cost.wall_s) if cost.attempts else text.unavailable("no attempt is recorded") for cost in costs)))
    rows.append(cells("cost", *(money_cell(cost) for cost in costs)))
    blocks: list[Block] = [Heading("Runs compared"), Table(("Metric", *inputs.runs), tuple(rows))]
    if texts_differ(inputs):
        blocks.append(Paragraph("The runs are validated on different texts: their bits per byte do not compare."))
    if drawn := _bars_of_runs(scores, inputs.runs):
        blocks.append(Figures((drawn,)))
    return blocks


def _last_cell(score: Score | None, last: str | None) -> Cell:
    """A score of the last phase; of another phase, as CORE of BASE, it says so."""
    cell = score_cell(score)
    return cell if score is None or score.phase == last else Cell(cell.text, f"{score.phase.upper()}, {cell.note}".rstrip(", "))


def _bars_of_runs(scores: Mapping[tuple[str, str], Score], runs: Sequence[str]) -> Figure | None:
    shown = runs[:MOST_DRAWN]
    data = [
        figures.Bar(name, run, score.value, score.interval, score.baseline or None)
        for name, found in metric_rows(scores)
        for run in shown
        if (score := found.get(run)) and score.value is not None and score.task not in LOWER_IS_BETTER
    ]
    left_out = f" Of {len(runs)} runs the first {MOST_DRAWN} are drawn." if len(runs) > MOST_DRAWN else ""
    core = ", CORE of the last in which it was asked" if any(task == "core" for _, task in scores) else ""
    caption = f"Last phase of each run{core}. Line: 95% interval; upright tick: level of guessing.{left_out}"
    return Figure(figures.bars("runs", data, x_label="score", series=shown), caption) if data else None


# --- the same questions ----------------------------------------------------------------------------------------------


Groups = dict[str, list[tuple[Score, Score]]]  # caption of a table -> which scores it compares


def _groups(inputs: Inputs) -> Groups:
    """Each run against the first in every phase that both have, then each phase of a run against the one before it."""
    groups: Groups = {}
    first, *others = [inputs.run_scores(run) for run in inputs.runs]
    for phase in PHASES:
        for other in others:
            ours, theirs = of_phase(first, phase), of_phase(other, phase)
            pairs = [(ours[task], theirs[task]) for task in ordered(ours.keys() & theirs.keys())]
            groups.setdefault(f"{phase.upper()}: runs against {inputs.runs[0]}", []).extend(pairs)
    for scores in (first, *others):
        for task in ordered({task for _, task in scores}):
            phases = [phase for phase in PHASES if (phase, task) in scores]
            pairs = [(scores[before, task], scores[after, task]) for before, after in pairwise(phases)]
            groups.setdefault("Phases against the phase before", []).extend(pairs)
    return groups


def _paired_tests(inputs: Inputs) -> list[Block]:
    tables: list[Block] = []
    without: dict[str, list[str]] = {}
    for caption, scores in (_groups(inputs) if inputs.runs else {}).items():
        rows = []
        for first, second in scores:
            if first.value is None or second.value is None:
                continue  # the summary says why
            test = compare_scores((first.path, first.content), (second.path, second.content))
            if isinstance(test, str):
                models = [f"{score.run} {score.phase.upper()}" for score in (first, second)]
                without.setdefault(test, []).append(f"{title(first.task)} of {' and '.join(models)}")
            else:
                rows.append(_pair_row(first, second, test))
        if rows:
            table = Table(("Task", "From", "To", "Questions", "Difference", "95% interval", "p"), tuple(rows), caption, text_columns=3)
            tables.append(Fold(f"{caption}: {len(rows)} comparisons", (table,)) if len(rows) > MOST_COMPARED else table)
    said = [Bullets(tuple(f"Not compared: {text.listed(names, 3)}: {why}." for why, names in without.items()), "missing")] if without else []
    return [Heading("On the same questions"), *([Paragraph(PAIRED)] if tables else []), *tables, *said] if tables or said else []


def _pair_row(first: Score, second: Score, test: Paired) -> tuple[Cell, ...]:
    p = "< 0.0001" if test.p < 0.0001 else f"{test.p:.4f}"
    interval = f"{test.interval[0]:+.4f} to {test.interval[1]:+.4f}"
    note = ("better" if second_is_better(first.task, test.difference) else "worse") if test.is_significant else ""
    task = Cell(test.name or title(first.task), "; ".join(test.remarks))
    models = (f"{score.run}, {score.phase.upper()}" for score in (first, second))
    return cells(task, *models, text.count(test.n), f"{test.difference:+.4f}", interval, Cell(p, note))


# --- what others published -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A line of the table: ours or one of theirs."""

    name: str
    phase: str
    scores: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    origin: str = "this report"

    @property
    def published(self) -> bool:
        """Whether it is not ours."""
        return self.origin != "this report"


COMPARABLE = ("core", *CHATCORE["ChatCORE-6"])


def _ours(inputs: Inputs) -> list[Model]:
    """Phases of each run with the scores whose metric is that of the published ones: of several runs the base and the last phase."""
    last = last_phases(inputs)
    found = []
    for run in inputs.runs:
        for phase in PHASES:
            if len(inputs.runs) > 1 and phase not in ("base", last[run]):
                continue
            scores = {
                task: score
                for task, score in of_phase(inputs.run_scores(run), phase).items()
                if task in COMPARABLE and score.value is not None and (task != "core" or name_of(score) == "CORE") and (phase != "base" or task == "core")
            }
            values = {task: score.value for task, score in scores.items() if score.value is not None}
            notes = {task: f"sample of {score.content.get('n', 0):,}" for task, score in scores.items() if is_sampled(score.content)}
            if values:
                found.append(Model(run, phase, values, notes))
    return found


def _theirs(published: Iterable[Published]) -> list[Model]:
    return [Model(item.name, item.phase, item.scores, origin=item.origin) for item in published]


def _beside_published(inputs: Inputs) -> list[Block]:
    """A table and bars beside GPT-2 and the published d20 runs; nothing where no metric of ours is the same."""
    ours = _ours(inputs)
    if not ours:
        return []
    theirs = _theirs((*GPT2, *D20))
    tasks = [task for task in COMPARABLE if any(task in model.scores for model in ours)]
    names = [name for name, members in CHATCORE.items() if set(members) & set(tasks)]
    rows = [_model_row(model, tasks, names) for model in [*ours, *(model for model in theirs if set(tasks) & model.scores.keys())]]
    sizes = "Theirs were trained on far more text: GPT-2 has 124M to 1.5B parameters, the d20 561M and 11.2B tokens."
    said = f"Only metrics that are the same are shown. What is marked so was {BY_OTHERS}: repeated here, not measured, over all rows of a task. {sizes}"
    headers = ("Model", "Phase", *(title(task) for task in tasks), *names)
    origins = {model.name: model.origin for model in theirs if set(tasks) & model.scores.keys()}
    sources = Bullets(tuple(f"{name}: {origin}" for name, origin in origins.items()))
    blocks: list[Block] = [
        Heading("Beside published models"),
        Paragraph(said),
        Table(headers, tuple(rows), text_columns=2),
        Fold("Where they were published", (sources,)),
    ]
    return [*blocks, *([Figures(drawn)] if (drawn := tuple(_published_bars(ours, theirs, tasks))) else [])]


def _model_row(model: Model, tasks: Sequence[str], names: Sequence[str]) -> tuple[Cell, ...]:
    values = [Cell(text.score(model.scores[task]), model.notes.get(task, "")) if task in model.scores else Cell(ABSENT) for task in tasks]
    means = [chatcore_of(name, {task: (value, None) for task, value in model.scores.items()}).value for name in names]
    sampled = ("sample" if set(CHATCORE[name]) & model.notes.keys() else "" for name in names)
    shown = [Cell(ABSENT) if mean is None else Cell(text.score(mean), note) for mean, note in zip(means, sampled, strict=True)]
    name = Cell(model.name, BY_OTHERS if model.published else "")
    return cells(name, model.phase.upper() or ABSENT, *values, *shown)


def _published_bars(ours: Sequence[Model], theirs: Sequence[Model], tasks: Sequence[str]) -> Iterable[Figure]:
    shown = list(dict.fromkeys(model.name for model in ours))[:MOST_DRAWN]
    ours = [model for model in ours if model.name in shown]
    if "core" in tasks:
        models = [model for model in (*ours, *theirs) if "core" in model.scores]
        data = [figures.Bar(_named(model), "published" if model.published else "ours", model.scores["core"], published=model.published) for model in models]
        yield Figure(figures.bars("published-core", data, x_label="CORE"), f"CORE; pale: {BY_OTHERS}.")
    phase = {model.name: model.phase for model in ours if model.phase != "base"}
    beside = [model for model in theirs if model.phase == "sft"]
    last = [model for model in ours if phase.get(model.name) == model.phase]
    data = [
        figures.Bar(title(task), _named(model), model.scores[task], published=model.published)
        for task in tasks
        if task != "core"
        for model in (*last, *beside)
        if task in model.scores
    ]
    if data:
        yield Figure(
            figures.bars("published-chat", data, x_label="score"), f"Tasks of ChatCORE, after supervised fine-tuning where not said; pale: {BY_OTHERS}."
        )


def _named(model: Model) -> str:
    return f"{model.name} {model.phase.upper()}".strip()
