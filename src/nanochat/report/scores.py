"""Every score in detail: intervals, rows, settings, parts as the subjects of MMLU, further measures as pass@8, and graded answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.config import PHASES
from nanochat.report import text
from nanochat.report.document import Block, Bullets, Cell, Fold, Heading, Paragraph, Section, Table, cells
from nanochat.report.inputs import Inputs, Score
from nanochat.report.metrics import is_sampled, name_of, ordered, title
from nanochat.report.samples import graded_answers
from nanochat.report.text import ABSENT

Scores = Mapping[tuple[str, str], Score]
HEADERS = ("Task", "Phase", "Score", "95% interval", "Correct", "Guessing", "Split", "Rows", "Version", "Seconds")
MEASURES = {"robust": "numbers compared as values"}
OVERLAP = (
    "Items of the evaluations of which a run of words, 13 where not set otherwise, occurs in the training text too. A score on such items may be remembered "
    "rather than worked out; common phrases are counted as well, so a small share proves nothing."
)


def scores_section(inputs: Inputs) -> Section:
    """Every score with its rows, interval, baseline, version and settings; of several runs each folded."""
    blocks: list[Block] = []
    for run in inputs.runs:
        scores = inputs.run_scores(run)  # those of earlier models stand in the summary alone
        if not scores:
            continue
        shown = (_details(run, scores), *_measures(scores), *_parts(scores), *graded_answers(scores))
        blocks += [Fold(f"Run {run}", shown)] if len(inputs.runs) > 1 else shown
    nothing = [Paragraph("Not available: no model shown has been evaluated.", "missing")]
    return Section("Scores in detail", "scores", (*(blocks or nothing), *_contamination(inputs)))


def interval_words(interval: Sequence[float] | None, digits: int = 4) -> str:
    """0.1234 - 0.2345"""
    return f"{interval[0]:.{digits}f} - {interval[1]:.{digits}f}" if interval else ABSENT


def _details(run: str, scores: Scores) -> Table:
    rows = [_detail(scores[phase, task]) for task in ordered({task for _, task in scores}) for phase in PHASES if (phase, task) in scores]
    return Table(HEADERS, tuple(rows), f"Run {run}", text_columns=2)


def _detail(score: Score) -> tuple[Cell, ...]:
    content = score.content
    known = score.value is not None
    return cells(
        name_of(score),
        score.phase.upper(),
        text.score(score.value) if score.value is not None else text.unavailable(score.unavailable or ""),
        Cell(interval_words(score.interval), "bootstrap" if content.get("interval_method") == "bootstrap" else ""),
        text.count(content["correct"]) if known and content.get("correct") is not None else ABSENT,
        f"{score.baseline:.3g}" if score.baseline is not None else ABSENT,
        str((content.get("settings") or {}).get("split", ABSENT)),
        Cell(text.count(content["n"]) if known and content.get("n") is not None else ABSENT, _rows_note(content)),
        str(content.get("version", ABSENT)),
        f"{content['seconds']:.1f}" if content.get("seconds") is not None else ABSENT,
    )


def _rows_note(content: Mapping[str, Any]) -> str:
    notes = ["sample"] if is_sampled(content) else []
    return ", ".join([*notes, *([f"{content['prompts_cut']} cut"] if content.get("prompts_cut") else [])])


def _measured(found: Mapping[str, Any] | None) -> Cell:
    """A part or a further measure."""
    return text.valued(found.get("score"), found.get("interval")) if found else Cell(ABSENT)


def _measures(scores: Scores) -> list[Block]:
    """pass@k and other ways to judge the same answers, phases side by side."""
    rows = []
    for task in ordered({task for _, task in scores}):
        of_task = {phase: scores[phase, task].content.get("metrics") or {} for phase in PHASES if (phase, task) in scores}
        for measure in dict.fromkeys(measure for measures in of_task.values() for measure in measures):
            given = [of_task[phase].get(measure) or {} for phase in PHASES if phase in of_task]
            n = next((each["n"] for each in given if each.get("n") is not None), None)
            shown = (_measured((of_task.get(phase) or {}).get(measure)) for phase in PHASES)
            rows.append(cells(title(task), Cell(measure, MEASURES.get(measure, "")), *shown, ABSENT if n is None else text.count(n)))
    if not rows:
        return []
    return [Table(("Task", "Measure", *(phase.upper() for phase in PHASES), "Rows"), tuple(rows), "Other measures of the same answers", text_columns=2)]


def _parts(scores: Scores) -> list[Block]:
    """Each task that has parts, as MMLU its subjects, folded; phases side by side."""
    blocks: list[Block] = []
    for task in ordered({task for _, task in scores}):
        of_task = {phase: {str(part["name"]): part for part in scores[phase, task].content.get("parts") or []} for phase in PHASES if (phase, task) in scores}
        names = sorted({name for parts in of_task.values() for name in parts})
        if not names:
            continue
        phases = [phase for phase in PHASES if of_task.get(phase)]
        rows = []
        for name in names:
            n = next(of_task[phase][name].get("n") for phase in phases if name in of_task[phase])
            shown = (_measured(of_task[phase].get(name)) for phase in phases)
            rows.append(cells(name.replace("_", " "), *shown, ABSENT if n is None else text.count(n)))
        table = Table(("Part", *(phase.upper() for phase in phases), "Rows"), tuple(rows), f"{title(task)} by part, with 95% intervals")
        blocks.append(Fold(f"{title(task)} in {len(names)} parts", (table,)))
    return blocks


def _contamination(inputs: Inputs) -> list[Block]:
    """How much of each evaluation stands in each corpus and each mixture."""
    if not inputs.contamination:
        return []
    rows = [
        cells(
            name,
            title(str(row["task"])),
            str(row.get("split", ABSENT)),
            Cell(text.count(row["items"]), f"{row['items_too_short']:,} too short" if row.get("items_too_short") else ""),
            text.count(row["items_with_overlap"]),
            text.percent(row["items_with_overlap"] / row["items"]) if row["items"] else ABSENT,
        )
        for name, found in inputs.contamination.items()
        for row in sorted(found, key=lambda row: -(row["items_with_overlap"] / row["items"] if row["items"] else 0.0))
    ]
    table = Table(("Text", "Task", "Split", "Items", "with overlap", "Share"), tuple(rows), text_columns=3)
    return [Heading("Evaluations in the training text"), Bullets((OVERLAP,)), table]
