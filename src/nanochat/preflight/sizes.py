"""How much disk an experiment takes, part by part, so that what is there already can be left out. The figures are those of the plan."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_json
from nanochat.config import (
    STAGE_OF_PHASE,
    Experiment,
    base_train_config,
    corpus_chunks,
    fetch_config,
    identity,
    prepare_chunk_config,
    tokenize_config,
    tune_config,
)
from nanochat.data.sources import WHEELS
from nanochat.errors import UserError
from nanochat.plan.texts import shards_of, text_bytes
from nanochat.plan.work import PACKED_SHARE, Works, token_file_bytes
from nanochat.preflight.needs import data_needs

ROWS_BYTES = {  # of what is kept of a part that is no shard, by its kind
    "wheel": 10_000_000,  # the largest today is 8.7 MB
    "hf": 200_000_000,  # assumption: one dataset of task rows, as parquet and as jsonl
    "url": 30_000_000,  # words as JSON lines; the CORE bundle takes 0.7 GB, and no experiment asks for it yet
    "local": 0,  # files of the user's own, whose size the experiment does not say
}


@dataclass(frozen=True)
class Space:
    """Disk that something takes until the end. `marker`: a file that is there once it is taken."""

    what: str
    bytes: int
    marker: str
    made_from: Mapping[str, Any] = field(default_factory=dict)  # config.json of a stage -> what it has to say; another one is made again

    def is_there(self, folder: Path) -> bool:
        """Whether it has been written below `folder` as the experiment now asks for it."""
        return (folder / self.marker).is_file() and all(_says(folder / file, config) for file, config in self.made_from.items())

    def left(self, folder: Path) -> int:
        """Bytes that are still to be written below `folder`."""
        return 0 if self.is_there(folder) else self.bytes


@dataclass(frozen=True)
class SavedStates(Space):
    """The states that a run saves while its stages train, one after another. Those that lie there are written over, but for one that is put aside."""

    stages: Mapping[str, int] = field(default_factory=dict)  # folder -> bytes of its states, in their order

    def left(self, folder: Path) -> int:
        """Of the stage that needs most besides what its states take already."""
        if self.is_there(folder):
            return 0
        needs, changed = [0], False
        for place, size in self.stages.items():
            changed = changed or not _says(folder / place / "config.json", self.made_from[f"{place}/config.json"])
            needs.append(size - _given_up(folder / place / "resume", changed=changed))
        return max(needs)


def _given_up(resume: Path, *, changed: bool) -> int:
    """Bytes of saved states that make room for others: those of this config, and of another config all but the newest, which replaces what is in old/."""
    slots = [sum(file.stat().st_size for file in resume.glob(f"{name}.*safetensors")) for name in ("a", "b")]
    if not changed or not any(slots):
        return sum(slots)
    return sum(slots) - max(slots) + sum(file.stat().st_size for file in resume.glob("old/*.safetensors"))


def _says(file: Path, config: Any) -> bool:
    """Whether a stage left this configuration beside its results; one that cannot be read says nothing against it."""
    try:
        return not file.is_file() or identity(read_json(file)) == config
    except (UserError, AttributeError):
        return True


def space_needed(experiment: Experiment) -> list[Space]:
    """Disk for everything that an experiment makes: fetched data, tokens, weights, and the resume states of the runs while they train.

    Raises UserError for a run that cannot be planned.
    """
    return [*_fetched(experiment), *_prepared(experiment), *_tokens(experiment), *_models(experiment)]


def _fetched(experiment: Experiment) -> Iterator[Space]:
    parts = list(dict.fromkeys((need.source, need.part) for need in data_needs(experiment)))
    for name, part in parts:
        source = experiment.source(name)
        kept = shards_of(part, fetch_config(experiment, name, part)) * source.shard_bytes if source.shards else ROWS_BYTES[source.kind]
        yield Space("fetched data", kept, f"resources/{name}/{part}/manifest.json")
    wheels = {experiment.source(name).place["package"] for name, _ in parts if experiment.source(name).kind == "wheel"}
    for wheel in (WHEELS[package] for package in sorted(wheels)):
        yield Space("fetched data", wheel.size, f"resources/wheels/{wheel.filename}")


def _prepared(experiment: Experiment) -> Iterator[Space]:
    used = dict.fromkeys(name for run in experiment.runs.values() for name in (run.corpus, experiment.tokenizers[run.tokenizer].corpus))
    for corpus in (name for name in used if experiment.corpora[name].prepare is not None):
        for chunk in corpus_chunks(experiment, corpus):
            text = text_bytes(experiment.source(chunk.source), chunk.part, fetch_config(experiment, chunk.source, chunk.part), split=chunk.split)
            place = f"results/text/{corpus}/{chunk.name}"
            made_from = {f"{place}/config.json": prepare_chunk_config(chunk)}
            yield Space("prepared text", round((text or 0) * PACKED_SHARE), f"{place}/manifest.json", made_from)


def _tokens(experiment: Experiment) -> Iterator[Space]:
    for corpus, tokenizer in dict.fromkeys((run.corpus, run.tokenizer) for run in experiment.runs.values()):
        for chunk in corpus_chunks(experiment, corpus):
            source = experiment.source(chunk.source)
            text = text_bytes(source, chunk.part, fetch_config(experiment, chunk.source, chunk.part), split=chunk.split)
            size = token_file_bytes(ROWS_BYTES[source.kind] if text is None else text, experiment.tokenizers[tokenizer].vocab_size)
            place = f"results/tokens/{corpus}.{tokenizer}/{chunk.name}"
            yield Space("tokens", size, f"{place}/manifest.json", {f"{place}/config.json": tokenize_config(experiment, corpus, chunk)})


def _models(experiment: Experiment) -> Iterator[Space]:
    works = Works(experiment)
    for name, run in experiment.runs.items():
        stages = [STAGE_OF_PHASE[phase] for phase in run.phases]
        trainings = {stage: works.training(stage, name, 1, None) for stage in stages}
        made_from: dict[str, Any] = {}  # its own stage and all before it
        for stage, training in trainings.items():
            made_from |= {
                f"results/{name}/{stage}/config.json": identity(
                    base_train_config(run, experiment.corpora[run.corpus].weights) if stage == "base_train" else tune_config(run, stage)
                )
            }
            yield Space("models", training.kept_bytes, f"results/{name}/{stage}/manifest.json", dict(made_from))
        resume = {f"results/{name}/{stage}": training.resume_bytes for stage, training in trainings.items()}
        yield SavedStates("resume states", max(resume.values()), f"results/{name}/{stages[-1]}/manifest.json", made_from, resume)
