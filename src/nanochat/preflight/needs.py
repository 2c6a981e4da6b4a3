"""Which split of which fetched part the stages of an experiment will read. Light: the Snakefile asks too."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.config import STAGE_OF_PHASE, Experiment, Run, corpus_chunks, evaluated, evaluation_rows, stage_tasks, task_rows

REFERENCES = ("gpt2_ranks", "cl100k_ranks")  # the tokenizers that ours is measured against
RANKS = "ranks"  # their only split


@dataclass(frozen=True, order=True)
class Need:
    """One split of one part of a source."""

    source: str
    part: str
    split: str

    @property
    def text(self) -> str:
        """source/part/split; no name holds a slash."""
        return f"{self.source}/{self.part}/{self.split}"

    @classmethod
    def parse(cls, text: str) -> "Need":
        """The need that `text` says. Raises ValueError if it has not three parts."""
        source, part, split = text.split("/")
        return cls(source, part, split)

    @property
    def manifest(self) -> str:
        """Where the workflow puts the part."""
        return f"resources/{self.source}/{self.part}/manifest.json"


def data_uses(experiment: Experiment, runs: Iterable[str] | None = None) -> dict[Need, set[str]]:
    """Everything that any stage of these runs (default: all) reads from resources/, with the files below results/ that are made from it."""
    uses: defaultdict[Need, set[str]] = defaultdict(set)
    for name, run in ((name, experiment.runs[name]) for name in (experiment.runs if runs is None else runs)):
        tokenizer = f"results/tokenizers/{run.tokenizer}/manifest.json"
        for source in REFERENCES:
            uses[Need(source, "all", RANKS)].add(tokenizer)
        for corpus in (run.corpus, experiment.tokenizers[run.tokenizer].corpus):
            for source, split in evaluation_rows(experiment, corpus):
                uses[Need(source, "all", split)].add(f"results/text/{corpus}/manifest.json")
        for chunk in corpus_chunks(experiment, experiment.tokenizers[run.tokenizer].corpus):
            uses[Need(chunk.source, chunk.part, chunk.split)].add(tokenizer)
        for chunk in corpus_chunks(experiment, run.corpus):
            uses[Need(chunk.source, chunk.part, chunk.split)].add(f"results/tokens/{run.corpus}.{run.tokenizer}/{chunk.name}/manifest.json")
        for task, split, wanted, made in _tasks(name, run):
            for found, rows in task_rows(task, split, wanted):
                uses[Need(found, "all", rows)].add(made)
    return dict(sorted(uses.items()))


def _tasks(name: str, run: Run) -> Iterator[tuple[str, str, str | None, str]]:
    """(task, split, source) of every mixture and evaluation of a run, and what is made from it."""
    for phase in run.phases[1:]:
        made = f"results/{name}/{STAGE_OF_PHASE[phase]}/manifest.json"
        yield from ((*use, made) for use in stage_tasks(run, STAGE_OF_PHASE[phase]))
    for phase, task in evaluated(run):
        yield task, run.evaluate[task].split, run.evaluate[task].source, f"results/{name}/scores/{phase}/{task}.json"


def data_needs(experiment: Experiment, runs: Iterable[str] | None = None) -> list[Need]:
    """Everything that any stage of these runs (default: all) reads from resources/, sorted."""
    return list(data_uses(experiment, runs))


def open_needs(experiment: Experiment, folder: Path) -> list[Need]:
    """Needs that are fetched, or that something unfinished in `folder` will read. What was deleted after its last use is not missed.

    A vocabulary or tokens that are gone count as finished too while every model and score of the experiment is there.
    """
    uses = data_uses(experiment)
    finals = {f"results/{name}/{STAGE_OF_PHASE[phase]}/manifest.json" for name, run in experiment.runs.items() for phase in run.phases}
    finals |= {f"results/{name}/scores/{phase}/{task}.json" for name, run in experiment.runs.items() for phase, task in evaluated(run)}
    finished = all((folder / file).is_file() for file in finals)
    return [need for need, made in uses.items() if (folder / need.manifest).is_file() or not (finished or all((folder / file).is_file() for file in made))]
