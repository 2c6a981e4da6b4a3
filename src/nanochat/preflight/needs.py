"""Which split of which fetched part the stages of an experiment will read. Light: the Snakefile asks too."""

from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.config import STAGE_OF_PHASE, Experiment, Run, corpus_chunks, task_sources
from nanochat.tasks import TASKS

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


def data_needs(experiment: Experiment) -> list[Need]:
    """Everything that any stage of any run reads from resources/, sorted."""
    needs = {Need(source, "all", RANKS) for source in REFERENCES}
    for run in experiment.runs.values():
        for corpus in (run.corpus, experiment.tokenizers[run.tokenizer].corpus):
            needs |= {Need(chunk.source, chunk.part, chunk.split) for chunk in corpus_chunks(experiment, corpus)}
        needs |= {
            Need(name, "all", TASKS[task].source_splits.get(split, split)) for task, split, source in _tasks(run) for name in task_sources(task, split, source)
        }
    return sorted(needs)


def _tasks(run: Run) -> Iterator[tuple[str, str, str | None]]:
    """(task, split, source) of every mixture and evaluation of a run."""
    for phase in run.phases[1:]:
        tune = getattr(run, STAGE_OF_PHASE[phase])
        yield from ((item.task, item.split, item.source) for item in [*tune.mixture, *tune.validation])
    yield from ((task, settings.split, settings.source) for task, settings in run.evaluate.items())
