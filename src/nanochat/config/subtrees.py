"""The one subtree that each stage receives, and the files that follow from an experiment (chunks, parts, scores).

Subtrees are dumped without defaults, so that a new field with a neutral default reruns nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from nanochat.config.schema import (
    HOUSEKEEPING,
    LATER,
    MAX_VOCAB,
    MIN_VOCAB,
    BaseTrain,
    ChatRl,
    Experiment,
    MixtureItem,
    PositiveInt,
    Prepare,
    Run,
    Section,
    Seed,
    TaskSettings,
    TrainCommon,
    Tune,
    UserSource,
    Weight,
)
from nanochat.data.core import CORE, core_sources
from nanochat.data.sources import SOURCES, Source
from nanochat.errors import UserError
from nanochat.recipes import RECIPES
from nanochat.tasks import TASKS

MIXED_STAGES = ("mid_train", "chat_sft")  # which train on a mixture of conversations


class BaseTrainStage(BaseTrain):
    """The subtree that stage base_train receives."""

    recipe: str
    seed: Seed = 0
    weights: dict[str, Weight] = Field(default={})  # of the sources of the corpus


class TuneStage(Tune):
    """The subtree that stages mid_train and chat_sft receive; rates, batch and shape come from the checkpoint."""

    seed: Seed = 0


class ChatRlStage(ChatRl):
    """The subtree that stage chat_rl receives; rates and shape come from the checkpoint."""

    seed: Seed = 0


class EvaluateStage(TaskSettings):
    """The subtree that stage evaluate receives."""

    task: str


class FetchStage(Section):
    """The subtree that stage fetch receives: one part of one source."""

    source: str
    part: str = "all"  # all, or a chunk of a sharded source: train-000, validation
    chunk_shards: PositiveInt | None = None
    shards: PositiveInt | None = None
    user: UserSource | None = None  # set for a source of the user's own


class PrepareChunkStage(Section):
    """The subtree that stage prepare receives to write one chunk of what is left."""

    chunk: str
    split: Literal["train", "validation"]


class PrepareStage(Prepare):
    """The subtree that stage prepare receives to judge the text of a whole corpus."""

    chunks: Annotated[list[PrepareChunkStage], Field(min_length=1)]  # training first; a list, since keys of a mapping are sorted on the command line
    evaluations: tuple[str, ...] = ()  # source/split of the rows that no training text may hold


class EvaluatedRows(Section):
    """The rows of one task as they are evaluated."""

    task: str
    split: str = "test"
    source: str | None = None


class ContaminationStage(Section):
    """The subtree that stage contamination receives."""

    evaluations: Annotated[list[EvaluatedRows], Field(min_length=1)]
    run_words: PositiveInt = 13
    mixture: list[MixtureItem] = Field(default=[])  # of a tuning stage, in place of the text of a corpus
    seed: Seed = 0  # of the mixture's samples


class TokenizerStage(Section):
    """The subtree that stage tokenizer receives."""

    vocab_size: Annotated[int, Field(ge=MIN_VOCAB, le=MAX_VOCAB, strict=True)]
    max_chars: PositiveInt = 2_000_000_000
    document_chars: PositiveInt = 10_000


class TokenizeStage(Section):
    """The subtree that stage tokenize receives: one chunk of one corpus."""

    sequence_len: PositiveInt
    split: Literal["train", "validation"]


def resolve_base_train(section: BaseTrain, recipe: str) -> dict[str, Any]:
    """Every hyper-parameter of base_train: the recipe with the run's overrides on top."""
    if recipe not in RECIPES:
        raise UserError(f"recipe={recipe!r}: not defined; choose one of {', '.join(sorted(RECIPES))}")
    resolved: dict[str, Any] = section.model_dump(exclude={"architecture", "optimizer", "schedule", "horizon", "recipe"}, mode="json")
    for part in ("architecture", "optimizer", "schedule", "horizon"):
        overrides = getattr(section, part).model_dump(exclude_none=True, mode="json")
        resolved[part] = {**RECIPES[recipe][part], **overrides}
    if not resolved.get("weights"):  # a key that was not there before weights were: saved states and finished stages stay what they are
        resolved.pop("weights", None)
    return {**resolved, "recipe": recipe}


def dump(section: BaseModel) -> dict[str, Any]:
    """A section as plain data, without keys that have their default value."""
    return section.model_dump(mode="json", exclude_defaults=True)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's subtree, as received or resolved, without housekeeping: what decides its results, so what reruns and what resumes."""
    defaults = {key: TrainCommon.model_fields[key].default for key in LATER}
    neutral = {key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for key, value in defaults.items()}
    return {key: value for key, value in config.items() if key not in HOUSEKEEPING and not (key in neutral and value == neutral[key])}


class Chunk(Section):
    """A unit of tokenizing: some shards of one source. `name` is its folder below results/tokens/{corpus}.{tokenizer}/."""

    name: str
    source: str
    part: str  # the part of the source to read: resources/{source}/{part}/manifest.json
    split: Literal["train", "validation"]


def source_parts(source: Source, split: str, *, shards: int | None, chunk_shards: int) -> list[str]:
    """Parts of a source that hold `split`: one for a source without shards, one per chunk for a sharded one."""
    if source.shards is None:
        return ["all"]
    if split == "validation":
        return ["validation"]
    count = min(shards or source.shards, source.shards)
    return [f"train-{index:03d}" for index in range(-(-count // chunk_shards))]


def corpus_chunks(experiment: Experiment, corpus: str) -> list[Chunk]:
    """Every chunk of a corpus, training first; names are stable when sources are added at the end."""
    section = experiment.corpora[corpus]
    chunks = []
    for split in ("train", "validation"):
        for name in section.sources:
            for part in source_parts(experiment.source(name), split, shards=section.shards, chunk_shards=section.chunk_shards):
                suffix = split if part == "all" else part
                chunks.append(Chunk(name=f"{name}.{suffix}", source=name, part=part, split=split))
    return chunks


def fetch_config(experiment: Experiment, source: str, part: str) -> dict[str, Any]:
    """Subtree of stage fetch for one part of a source. Corpora that share a sharded source must agree on its chunks."""
    user = experiment.sources.get(source)
    stage: dict[str, Any] = {"source": source, "user": user}
    if part != "all":
        users = [corpus for corpus in experiment.corpora.values() if source in corpus.sources]
        stage |= {"part": part, "chunk_shards": users[0].chunk_shards}
    if part.startswith("train-"):  # shards up to the end of this chunk, so that asking for more later fetches only the new ones
        wanted = max((c.shards or experiment.source(source).shards or 0) for c in users)
        stage["shards"] = min(wanted, (int(part.removeprefix("train-")) + 1) * users[0].chunk_shards)
    return dump(FetchStage(**stage))


def evaluation_rows(experiment: Experiment, corpus: str) -> list[tuple[str, str]]:
    """(source, its split) of the rows that the training text of a corpus may not hold, sorted; empty unless it is decontaminated."""
    prepare = experiment.corpora[corpus].prepare
    if prepare is None or not prepare.decontaminate:
        return []
    evaluated_here = [(task, settings) for run in experiment.runs.values() if run.corpus == corpus for task, settings in run.evaluate.items()]
    named = prepare.decontaminate_against
    wanted = [(task, settings.split, settings.source) for task, settings in evaluated_here if not named or task in named]
    for task in set(named) - {task for task, *_ in wanted}:
        splits = TASKS[task].sources if task in TASKS else {"test": ()}
        wanted.append((task, "test" if "test" in splits else "validation" if "validation" in splits else next(iter(splits)), None))
    return sorted({row for task, split, source in wanted for row in task_rows(task, split, source)})


def prepare_config(experiment: Experiment, corpus: str) -> dict[str, Any]:
    """Subtree of stage prepare for the judgement of a corpus."""
    section = experiment.corpora[corpus].prepare
    assert section is not None
    chunks = [PrepareChunkStage(**prepare_chunk_config(chunk)) for chunk in corpus_chunks(experiment, corpus)]
    evaluations = tuple(f"{source}/{split}" for source, split in evaluation_rows(experiment, corpus))
    return dump(PrepareStage(**section.model_dump(exclude={"decontaminate_against"}), chunks=chunks, evaluations=evaluations))


def prepare_chunk_config(chunk: Chunk) -> dict[str, Any]:
    """Subtree of stage prepare for one chunk."""
    return dump(PrepareChunkStage(chunk=chunk.name, split=chunk.split))


def tokenizer_config(experiment: Experiment, name: str) -> dict[str, Any]:
    """Subtree of stage tokenizer."""
    return dump(TokenizerStage(**experiment.tokenizers[name].model_dump(exclude={"corpus"})))


def tokenize_config(experiment: Experiment, corpus: str, chunk: Chunk) -> dict[str, Any]:
    """Subtree of stage tokenize for one chunk."""
    return dump(TokenizeStage(sequence_len=experiment.corpora[corpus].sequence_len, split=chunk.split))


def base_train_config(run: Run, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Subtree of stage base_train; `weights` are those of the corpus."""
    return dump(BaseTrainStage(**run.base_train.model_dump(), recipe=run.recipe, seed=run.seed, weights=dict(weights or {})))


def tune_config(run: Run, stage: str) -> dict[str, Any]:
    """Subtree of a stage after base_train: mid_train, chat_sft or chat_rl."""
    kind = ChatRlStage if stage == "chat_rl" else TuneStage
    return dump(kind(**getattr(run, stage).model_dump(), seed=run.seed))


def stage_tasks(run: Run, stage: str) -> list[tuple[str, str, str | None]]:
    """(task, split, source) of everything that a stage after base_train reads."""
    section = getattr(run, stage)
    if isinstance(section, ChatRl):
        return [(item.task, split, item.source) for item in section.tasks for split in ("rl", "validation")]
    return [(item.task, item.split, item.source) for item in [*section.mixture, *section.validation]]


def evaluate_config(run: Run, task: str) -> dict[str, Any]:
    """Subtree of stage evaluate for one task; the same for every phase."""
    return dump(EvaluateStage(**run.evaluate[task].model_dump(exclude={"phases"}), task=task))


def reported_runs(experiment: Experiment) -> list[str]:
    """The runs that the report shows."""
    return experiment.report.runs or list(experiment.runs)


def overlap_texts(experiment: Experiment) -> dict[str, list[str]]:
    """What the reported runs are trained on -> those runs: the name of a corpus, or RUN.STAGE for the mixture of a tuning stage."""
    texts: dict[str, list[str]] = {}
    for name in reported_runs(experiment):
        run = experiment.runs[name]
        for text in (run.corpus, *(f"{name}.{stage}" for stage in MIXED_STAGES if getattr(run, stage) is not None)):
            texts.setdefault(text, []).append(name)
    return texts


def contamination_config(experiment: Experiment, text: str) -> dict[str, Any]:
    """Subtree of stage contamination: what the reported runs evaluate that are trained on a text, one of `overlap_texts`."""
    rows = evaluated_rows(experiment, text)
    evaluations = [EvaluatedRows(task=task, split=split, source=source) for task, split, source in rows]
    run, _, stage = text.partition(".")
    mixed = {"mixture": getattr(experiment.runs[run], stage).mixture, "seed": experiment.runs[run].seed} if stage else {}
    return dump(ContaminationStage(evaluations=evaluations, **mixed))


def evaluated_rows(experiment: Experiment, text: str) -> list[tuple[str, str, str | None]]:
    """(task, split, source) that the reported runs trained on a text evaluate, each once; bpb is of the corpus itself. Of CORE the splits are its tasks."""
    runs = [experiment.runs[name] for name in overlap_texts(experiment).get(text, [])]
    found = [(task, rows.split, rows.source) for run in runs for task, rows in run.evaluate.items() if task in TASKS]
    for rows in [run.evaluate[CORE] for run in runs if CORE in run.evaluate]:
        found += [(CORE, label, rows.source) for _, label in task_rows(CORE, rows.split, rows.source) if not rows.tasks or label in rows.tasks]
    return list(dict.fromkeys(found))


def task_sources(task: str, split: str, source: str | None) -> list[str]:
    """Sources to fetch for one split of a task: the one asked for, else the first of its choices; none for generators."""
    if task == "bpb":
        return []
    if task == CORE:
        return core_sources(source)
    choices = TASKS[task].sources[split]
    return [source] if source else list(choices[:1])


def task_rows(task: str, split: str, source: str | None) -> list[tuple[str, str]]:
    """(source, its split) of all rows that one split of a task is made of; each task of CORE is a split of its source."""
    found = task_sources(task, split, source)
    if task == CORE:
        return [(name, label) for name in found for label in SOURCES[name].splits]
    return [(name, TASKS[task].source_splits.get(split, split)) for name in found]


def evaluated(run: Run) -> list[tuple[str, str]]:
    """(phase, task) pairs that this run evaluates, in order."""
    return [(phase, task) for phase in run.phases for task, settings in run.evaluate.items() if phase in (settings.phases or run.phases)]
