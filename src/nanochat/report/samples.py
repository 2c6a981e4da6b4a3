"""What models say: the same prompts to every phase, side by side, and graded answers to tasks."""

from collections.abc import Mapping

from nanochat.config import PHASES
from nanochat.report.document import Block, Fold, Paragraph, Samples, Section
from nanochat.report.inputs import Inputs, Score, Training
from nanochat.report.metrics import ordered, title

EXAMPLES = 3  # graded answers shown per task
MOST_OPEN = 1  # runs whose samples are not folded
INTRODUCTION = (
    "Greedy completions, so they are repeatable. BASE is given every prompt as text to go on from; the phases after it are asked the questions as in a chat "
    "and go on from the beginnings of sentences. A chat answer may be longer than the completion of a text."
)


def samples_section(inputs: Inputs) -> Section:
    """What each phase says to the same prompts; of several runs also the last phases of all, side by side."""
    known = {run: [training for training in inputs.of_run(run) if training.samples] for run in inputs.runs}
    known = {run: phases for run, phases in known.items() if phases}
    if not known:
        return Section("Samples", "samples", (Paragraph("Not available: no training stage has written `samples.json` yet.", "missing"),))
    blocks: list[Block] = [Paragraph(INTRODUCTION)]
    if len(known) > MOST_OPEN:
        blocks += side_by_side({f"{run}, {phases[-1].phase.upper()}": phases[-1] for run, phases in known.items()})
        blocks += [Fold(f"Every phase of run {run}", side_by_side({training.phase.upper(): training for training in phases})) for run, phases in known.items()]
    else:
        blocks += [block for phases in known.values() for block in side_by_side({training.phase.upper(): training for training in phases})]
    return Section("Samples", "samples", tuple(blocks))


def side_by_side(models: Mapping[str, Training]) -> tuple[Samples, ...]:
    """A block for each prompt with what each model (name -> training) made of it; prompts that most models were given stand first."""
    prompts: dict[str, list[tuple[str, str]]] = {}
    for name, training in models.items():
        for sample in training.samples:
            prompts.setdefault(sample["prompt"], []).append((name, sample["completion"]))
    return tuple(Samples(prompt, tuple(texts)) for prompt, texts in sorted(prompts.items(), key=lambda item: -len(item[1])))


def graded_answers(scores: Mapping[tuple[str, str], Score]) -> list[Block]:
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
