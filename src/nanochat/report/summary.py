"""Results first: key figures, what is missing, and the table of phases with its bars."""

from collections.abc import Mapping

from nanochat.artifacts import OTHER_EXPERIMENT
from nanochat.config import PHASES
from nanochat.eval.chatcore import CHATCORE
from nanochat.eval.paired import LOWER_IS_BETTER
from nanochat.history import Cost, cost_of
from nanochat.report import figures, text
from nanochat.report.document import Beside, Block, Bullets, Cell, Figure, Figures, Fold, Heading, Paragraph, Section, Table, Tiles, cells
from nanochat.report.inputs import Inputs, Score
from nanochat.report.metrics import chatcore, is_sampled, metric_rows, name_of, title
from nanochat.report.text import ABSENT

COLUMNS = tuple(phase.upper() for phase in PHASES)
INCOMPLETE = f"This report is incomplete. The commands are to be typed {OTHER_EXPERIMENT}."
OUTDATED = "earlier model"  # beside a score that is not of the model shown
RL_LEARNT_NOTHING = "RL learnt nothing: all its steps were skipped (see its section), so that its scores are those of the phase before."
MOST_OPEN = 2  # runs whose tables are not folded
LOWER_IS_BETTER_NAMES = frozenset(map(title, LOWER_IS_BETTER))


def summary_section(inputs: Inputs, price: float) -> Section:
    """Key figures, missing parts, and the summary table of every run; of several runs each table is folded, since their comparison stands behind."""
    blocks: list[Block] = [_tiles(inputs, price)]
    if inputs.missing:
        blocks += [Paragraph(INCOMPLETE, "missing"), Bullets(tuple(item.sentence() for item in inputs.missing), "missing")]
    for run in inputs.runs:
        shown = _of_run(run, inputs.run_scores(run, outdated=True))
        if (rl := inputs.training(run, "rl")) and rl.skipped[0] and rl.skipped[0] == rl.skipped[1]:
            shown = (*shown, Paragraph(RL_LEARNT_NOTHING, "missing"))
        blocks += (
            [Fold(f"Phases of run {run}", shown)] if len(inputs.runs) > MOST_OPEN else [*([Heading(f"Run {run}")] if len(inputs.runs) > 1 else []), *shown]
        )
    if inputs.scores:
        blocks.append(READING_AID)
    return Section("Summary", "summary", tuple(blocks))


def _of_run(run: str, scores: Mapping[tuple[str, str], Score]) -> tuple[Block, ...]:
    if not scores:
        return (Paragraph(f"Scores: not available, nothing of run {run} has been evaluated.", "missing"),)
    current = {place: score for place, score in scores.items() if not score.outdated}
    drawn = bar_figure(run, current)
    table = phase_table(scores)
    return (Beside((table, Figures((drawn,)))) if drawn else table, *_remarks(scores, current))


def phase_table(scores: Mapping[tuple[str, str], Score]) -> Table:
    """| Metric | BASE | MID | SFT | RL | with "-" where a phase has no such score."""
    rows = [cells(metric_name(name), *(score_cell(found.get(phase)) for phase in PHASES)) for name, found in metric_rows(scores)]
    for name in CHATCORE:
        means = [chatcore(name, of_phase(scores, phase)) for phase in PHASES]
        rows.append(cells(name, *(text.valued(mean.value, mean.interval) for mean in means)))
    return Table(("Metric", *COLUMNS), tuple(rows))


def of_phase(scores: Mapping[tuple[str, str], Score], phase: str) -> dict[str, Score]:
    """Task -> score of one phase."""
    return {task: score for (of, task), score in scores.items() if of == phase}


def last_phases(inputs: Inputs) -> dict[str, str | None]:
    """Run -> its last phase that has a score of the model shown."""
    return {run: next((phase for phase in reversed(PHASES) if of_phase(inputs.run_scores(run), phase)), None) for run in inputs.runs}


def score_cell(score: Score | None) -> Cell:
    """A score with its interval, or the remark that it is not of the model shown; "-" where there is none or where it could not be computed."""
    if score is None:
        return Cell(ABSENT)
    shown = text.valued(score.value, score.interval)
    return Cell(shown.text, OUTDATED) if score.outdated else shown


def metric_name(name: str) -> str:
    """A metric as a row of a table."""
    plain, _, note = name.partition(" (")
    if plain not in LOWER_IS_BETTER_NAMES:
        return name
    return f"{plain} ({note[:-1]}; lower is better)" if note else f"{plain} (lower is better)"


READING_AID = Bullets(
    (
        "BASE: after pretraining; MID: after midtraining; SFT: after supervised fine-tuning; RL: after reinforcement learning.",
        "Small print beside a score: its 95% interval. `-`: no such score in this phase.",
        "Bits per byte are of held-out text of pretraining, in every phase; training on chats usually raises them.",
        "A base model is asked in plain text, the phases after it as in a chat.",
        *(
            f"{name}: mean of (score - guessing) / (1 - guessing) over {', '.join(title(task) for task in tasks)}; only where each of them has a score."
            for name, tasks in CHATCORE.items()
        ),
    )
)


def _remarks(scores: Mapping[tuple[str, str], Score], current: Mapping[tuple[str, str], Score]) -> list[Block]:
    """What the table of a run cannot say: the level of guessing, samples of rows, and why a number is not there or not of this model."""
    remarks = []
    if len(current) < len(scores):
        remarks.append(f"{OUTDATED}: the score is of an earlier state of this phase, and counts in no mean, figure or comparison.")
    baselines = {title(score.task): score.baseline for score in scores.values() if score.baseline}
    if baselines:
        remarks.append("Level of guessing: " + ", ".join(f"{name} {value:.3g}" for name, value in sorted(baselines.items())) + "; 0 elsewhere.")
    sampled: dict[int, list[str]] = {}
    for score in current.values():
        if is_sampled(score.content):
            sampled.setdefault(int(score.content.get("n", score.content["limit"])), []).append(name_of(score))
    if sampled:
        words = (f"{n:,} of {', '.join(sorted(set(names)))}" for n, names in sorted(sampled.items(), reverse=True))
        remarks.append(f"Not all rows were used, but samples: {'; '.join(words)}.")
    for name in CHATCORE:
        lacking: dict[str, list[str]] = {}
        for phase in PHASES:
            if of_phase(scores, phase) and (why := chatcore(name, of_phase(scores, phase)).why):
                lacking.setdefault(why, []).append(phase.upper())
        if lacking:
            remarks.append(f"{name} not available. " + "; ".join(f"{', '.join(phases)}: {why}" for why, phases in lacking.items()) + ".")
    failed = [f"{name_of(score)} of {score.phase.upper()}: not available ({score.unavailable})" for score in current.values() if score.value is None]
    return [Bullets(tuple(items), tone) for items, tone in ((remarks, "plain"), (failed, "missing")) if items]


def bar_figure(run: str, scores: Mapping[tuple[str, str], Score]) -> Figure | None:
    """Per-task bars of every phase with intervals and the level of guessing."""
    data = [
        figures.Bar(name, phase.upper(), score.value, score.interval, score.baseline or None)
        for name, found in metric_rows(scores)
        for phase in PHASES
        if (score := found.get(phase)) and score.value is not None and score.task not in LOWER_IS_BETTER
    ]
    if not data:
        return None
    drawn = figures.bars(f"scores-{run}", data, x_label="score", series=COLUMNS)
    return Figure(drawn, f"Scores of run {run}. Line: 95% interval; upright tick: level of guessing.")


def _tiles(inputs: Inputs, price: float) -> Tiles:
    total = total_cost(inputs, price)
    tiles: list[tuple[str, Cell]] = [("Runs", Cell(text.count(len(inputs.runs)), text.listed(inputs.runs, 3)))]
    best = _best_bpb(inputs)
    tiles.append(("Best validation in training, bits per byte", best or text.unavailable("no stage has validated yet")))
    if inputs.scores:
        tiles.append(("ChatCORE-5" if len(inputs.runs) == 1 else "Best ChatCORE-5", _best_chatcore(inputs)))
    note = f"{text.duration(total.wall_s)} of it training, {text.attempts(total)}" if total.attempts else "no training yet"
    tiles.append(("Total time", Cell(text.duration(total_seconds(inputs)), note)))
    tiles.append(("Cost", money_cell(total)))
    return Tiles(tuple(tiles))


def _best_chatcore(inputs: Inputs) -> Cell:
    """The best of the last scored phases of all runs."""
    found = [(chatcore("ChatCORE-5", of_phase(inputs.run_scores(run), phase)), run, phase) for run, phase in last_phases(inputs).items() if phase]
    known = [(mean.value, run, phase) for mean, run, phase in found if mean.value is not None]
    if not known:
        return text.unavailable(found[0][0].why if found else "every score is of an earlier model")
    value, run, phase = max(known, key=lambda best: best[0])
    scores = of_phase(inputs.run_scores(run), phase)
    sampled = ", of samples" if any(is_sampled(scores[task].content) for task in CHATCORE["ChatCORE-5"]) else ""
    return Cell(text.score(value), f"{phase.upper()}, run {run}{sampled}")


def _best_bpb(inputs: Inputs) -> Cell | None:
    values = [(min(series), training) for training in inputs.trainings if training.phase == "base" and (series := training.series("val_bpb")[1])]
    if not values:
        return None
    if texts_differ(inputs):
        return text.unavailable("the runs are validated on different texts, whose bits do not compare")
    value, training = min(values, key=lambda pair: pair[0])
    return Cell(text.score(value), f"BASE, run {training.run}" + ("" if training.finished else ", not finished"))


def texts_differ(inputs: Inputs) -> bool:
    """Whether the runs were validated on chunks of different names: bits per byte of different texts do not compare."""
    chunks = {frozenset(name for name in training.inputs if name.endswith(".validation")) for training in inputs.trainings if training.phase == "base"}
    return len(chunks - {frozenset()}) > 1


def total_cost(inputs: Inputs, price: float) -> Cost:
    """Time and money of every training attempt."""
    return cost_of([attempt for training in inputs.trainings for attempt in training.attempts], price)


def total_seconds(inputs: Inputs) -> float:
    """Time of every stage, one after the other: fetching, tokenizing, training and evaluation, every attempt included."""
    items = (*inputs.sources, *inputs.tokenizers, *inputs.tokens, *inputs.trainings)
    return cost_of([attempt for item in items for attempt in item.attempts]).wall_s + sum(score.content.get("seconds") or 0.0 for score in inputs.scores)


def money_cell(cost: Cost) -> Cell:
    """The money of some attempts, or that none is known."""
    if cost.money is None or cost.gpu_hours is None:
        return text.unavailable("no GPU was used" if cost.attempts else "no attempt is recorded")
    return Cell(text.money(cost.money), f"{cost.gpu_hours:.3g} GPU-hours")
