"""Results first: key figures, what is missing, the table of phases, comparison of runs, bars, samples, scores in detail."""

from collections.abc import Mapping
from typing import Any

from nanochat.config import PHASES
from nanochat.history import Cost, cost_of
from nanochat.report import figures, text
from nanochat.report.document import Block, Bullets, Cell, Figure, Figures, Fold, Heading, Paragraph, Samples, Section, Table, Tiles, cells
from nanochat.report.inputs import Inputs, Score
from nanochat.report.metrics import CHATCORE, LOWER_IS_BETTER, chatcore, is_sampled, limits, ordered, title

COLUMNS = tuple(phase.upper() for phase in PHASES)
ABSENT = "-"
EXAMPLES = 3  # graded answers shown per task


def summary_section(inputs: Inputs, price: float) -> Section:
    """Key figures, missing parts, and the summary table of every run."""
    blocks: list[Block] = [_tiles(inputs, price)]
    if inputs.missing:
        blocks += [Paragraph("This report is incomplete.", "missing"), Bullets(tuple(item.sentence() for item in inputs.missing), "missing")]
    for run in inputs.runs:
        scores = inputs.run_scores(run)
        if len(inputs.runs) > 1:
            blocks.append(Heading(f"Run {run}"))
        blocks += (
            [phase_table(scores), *_remarks(scores)] if scores else [Paragraph(f"Scores: not available, nothing of run {run} has been evaluated.", "missing")]
        )
        if drawn := bar_figure(run, scores):
            blocks.append(Figures((drawn,)))
    if len(inputs.runs) > 1:
        blocks += _comparison(inputs, price)
    if inputs.scores:
        blocks.append(READING_AID)
    return Section("Summary", "summary", tuple(blocks))


def phase_table(scores: Mapping[tuple[str, str], Score]) -> Table:
    """| Metric | BASE | MID | SFT | RL | with "-" where a phase has no such score."""
    tasks = ordered({task for _, task in scores})
    rows = [cells(_metric_name(task), *(score_cell(scores.get((phase, task))) for phase in PHASES)) for task in tasks]
    for name in CHATCORE:
        values = [chatcore(name, of_phase(scores, phase)).value for phase in PHASES]
        rows.append(cells(name, *(ABSENT if value is None else text.score(value) for value in values)))
    return Table(("Metric", *COLUMNS), tuple(rows))


def of_phase(scores: Mapping[tuple[str, str], Score], phase: str) -> dict[str, Score]:
    """Task -> score of one phase."""
    return {task: score for (of, task), score in scores.items() if of == phase}


def score_cell(score: Score | None) -> Cell:
    """A score with its interval; "-" where there is none or where it could not be computed."""
    if score is None or score.value is None:
        return Cell(ABSENT)
    return Cell(text.score(score.value), f"{score.interval[0]:.3f}-{score.interval[1]:.3f}" if score.interval else "")


def _metric_name(task: str) -> str:
    return f"{title(task)} (lower is better)" if task in LOWER_IS_BETTER else title(task)


READING_AID = Bullets(
    (
        "Small print behind a score: its 95% Wilson interval. `-`: no such score in this phase.",
        "A base model is asked in plain text, the phases after it as in a chat.",
        *(
            f"{name}: mean of (score - guessing) / (1 - guessing) over {', '.join(title(task) for task in tasks)}; only where each of them has a score."
            for name, tasks in CHATCORE.items()
        ),
    )
)


def _remarks(scores: Mapping[tuple[str, str], Score]) -> list[Block]:
    """What the table of a run cannot say: the level of guessing, samples of rows, and why a number is not there."""
    remarks = []
    baselines = {title(score.task): score.baseline for score in scores.values() if score.baseline}
    if baselines:
        remarks.append("Level of guessing: " + ", ".join(f"{name} {value:.3g}" for name, value in sorted(baselines.items())) + "; 0 elsewhere.")
    sampled = sorted({sentence for score in scores.values() if (sentence := limits(score))})
    if sampled:
        remarks.append("Not all rows were used. " + "; ".join(sampled) + ".")
    for name in CHATCORE:
        lacking: dict[str, list[str]] = {}
        for phase in PHASES:
            if of_phase(scores, phase) and (why := chatcore(name, of_phase(scores, phase)).why):
                lacking.setdefault(why, []).append(phase.upper())
        if lacking:
            remarks.append(f"{name} not available. " + "; ".join(f"{', '.join(phases)}: {why}" for why, phases in lacking.items()) + ".")
    failed = [f"{title(score.task)} of {score.phase.upper()}: not available ({score.unavailable})" for score in scores.values() if score.value is None]
    return [Bullets(tuple(items), tone) for items, tone in ((remarks, "plain"), (failed, "missing")) if items]


def bar_figure(run: str, scores: Mapping[tuple[str, str], Score]) -> Figure | None:
    """Per-task bars of every phase with intervals and the level of guessing."""
    tasks = [task for task in ordered({task for _, task in scores}) if task not in LOWER_IS_BETTER]
    data = [
        figures.Bar(title(task), phase.upper(), score.value, score.interval, score.baseline or None)
        for task in tasks
        for phase in PHASES
        if (score := scores.get((phase, task))) and score.value is not None
    ]
    if not data:
        return None
    return Figure(figures.bars(f"scores-{run}", data, x_label="score"), f"Scores of run {run}. Line: 95% interval; upright tick: level of guessing.")


def _tiles(inputs: Inputs, price: float) -> Tiles:
    total = total_cost(inputs, price)
    tiles: list[tuple[str, Cell]] = [("Runs", Cell(text.count(len(inputs.runs)), text.listed(inputs.runs, 3)))]
    best = _best_bpb(inputs)
    tiles.append(("Best validation bits per byte", best or text.unavailable("no stage has validated yet")))
    last = [(run, phase) for run in inputs.runs for phase in reversed(PHASES) if of_phase(inputs.run_scores(run), phase)]
    for run, phase in last[:1]:
        value = chatcore("ChatCORE-5", of_phase(inputs.run_scores(run), phase))
        tiles.append(("ChatCORE-5", text.unavailable(value.why) if value.value is None else Cell(text.score(value.value), f"{phase.upper()}, run {run}")))
    note = f"{text.duration(total.wall_s)} of it training, {total.attempts} attempts, {total.unfinished} not finished" if total.attempts else "no training yet"
    tiles.append(("Total time", Cell(text.duration(total_seconds(inputs)), note)))
    tiles.append(("Cost", money_cell(total)))
    return Tiles(tuple(tiles))


def _best_bpb(inputs: Inputs) -> Cell | None:
    values = [(min(series), training) for training in inputs.trainings if training.phase == "base" and (series := training.series("val_bpb")[1])]
    if not values:
        return None
    if _texts_differ(inputs):
        return text.unavailable("the runs are validated on different texts, whose bits do not compare")
    value, training = min(values, key=lambda pair: pair[0])
    return Cell(text.score(value), f"{training.phase.upper()}, run {training.run}")


def _texts_differ(inputs: Inputs) -> bool:
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
        return text.unavailable("no GPU was used, so no GPU price applies" if cost.attempts else "no attempt is recorded")
    return Cell(text.money(cost.money), f"{cost.gpu_hours:.3g} GPU-hours")


def _comparison(inputs: Inputs, price: float) -> list[Block]:
    """Runs side by side: the last phase of each."""
    last = {run: next((phase for phase in reversed(PHASES) if of_phase(inputs.run_scores(run), phase)), None) for run in inputs.runs}
    scores = {run: of_phase(inputs.run_scores(run), phase) if phase else {} for run, phase in last.items()}
    tasks = ordered({task for of_run in scores.values() for task in of_run})
    rows = [cells("last scored phase", *((last[run] or ABSENT).upper() for run in inputs.runs))]
    rows += [cells(_metric_name(task), *(score_cell(scores[run].get(task)) for run in inputs.runs)) for task in tasks]
    for name in CHATCORE:
        values = [chatcore(name, scores[run]).value for run in inputs.runs]
        rows.append(cells(name, *(ABSENT if value is None else text.score(value) for value in values)))
    costs = [cost_of([attempt for training in inputs.of_run(run) for attempt in training.attempts], price) for run in inputs.runs]
    rows.append(cells("training time", *(text.duration(cost.wall_s) if cost.attempts else text.unavailable("no attempt is recorded") for cost in costs)))
    rows.append(cells("cost", *(money_cell(cost) for cost in costs)))
    blocks: list[Block] = [Heading("Runs compared"), Table(("Metric", *inputs.runs), tuple(rows))]
    if _texts_differ(inputs):
        blocks.append(Paragraph("The runs are validated on different texts: their bits per byte do not compare."))
    return blocks


def samples_section(inputs: Inputs) -> Section:
    """What each phase says to the same prompts."""
    blocks: list[Block] = []
    for run in inputs.runs:
        phases = [training for training in inputs.of_run(run) if training.samples]
        if not phases:
            continue
        if len(inputs.runs) > 1:
            blocks.append(Heading(f"Run {run}"))
        prompts = dict.fromkeys(sample["prompt"] for training in phases for sample in training.samples)
        for prompt in prompts:
            texts = [(training.phase.upper(), sample["completion"]) for training in phases for sample in training.samples if sample["prompt"] == prompt]
            blocks.append(Samples(prompt, tuple(texts)))
    return Section("Samples", "samples", tuple(blocks or [Paragraph("Not available: no training stage has written `samples.json` yet.", "missing")]))


def scores_section(inputs: Inputs) -> Section:
    """Every score with its rows, interval, baseline, version and settings."""
    headers = ("Task", "Phase", "Score", "95% interval", "Correct", "Guessing", "Split", "Rows", "Version", "Seconds")
    blocks: list[Block] = []
    for run in inputs.runs:
        scores = inputs.run_scores(run)
        rows = [_detail(scores[phase, task]) for task in ordered({task for _, task in scores}) for phase in PHASES if (phase, task) in scores]
        if rows:
            blocks += [Table(headers, tuple(rows), f"Run {run}", text_columns=2), *_examples(scores)]
    return Section("Scores in detail", "scores", tuple(blocks or [Paragraph("Not available: nothing has been evaluated.", "missing")]))


def _detail(score: Score) -> tuple[Cell, ...]:
    content = score.content
    known = score.value is not None
    return cells(
        title(score.task),
        score.phase.upper(),
        text.score(score.value) if score.value is not None else text.unavailable(score.unavailable or ""),
        f"{score.interval[0]:.4f} - {score.interval[1]:.4f}" if score.interval else ABSENT,
        text.count(content["correct"]) if known and content.get("correct") is not None else ABSENT,
        f"{score.baseline:.3g}" if score.baseline is not None else ABSENT,
        str((content.get("settings") or {}).get("split", ABSENT)),
        Cell(text.count(content["n"]) if known else ABSENT, _rows_note(content)),
        str(content.get("version", ABSENT)),
        f"{content['seconds']:.1f}" if content.get("seconds") is not None else ABSENT,
    )


def _rows_note(content: Mapping[str, Any]) -> str:
    notes = ["sample"] if is_sampled(content) else []
    return ", ".join([*notes, *([f"{content['prompts_cut']} cut"] if content.get("prompts_cut") else [])])


def _examples(scores: Mapping[tuple[str, str], Score]) -> list[Block]:
    """A few graded answers per task, of its last phase: what the numbers stand for."""
    blocks: list[Block] = []
    for task in ordered({task for _, task in scores}):
        score = next(scores[phase, task] for phase in reversed(PHASES) if (phase, task) in scores)
        samples = [
            Samples(
                example["question"],
                ((f"{score.phase.upper()}, {'right' if example['right'] else 'wrong'}", example["answer"]), ("reference", example["reference"])),
            )
            for example in score.content.get("examples", [])[:EXAMPLES]
        ]
        if samples:
            blocks.append(Fold(f"Answers to {title(task)}", tuple(samples)))
    return blocks
