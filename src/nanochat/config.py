"""The experiment file as a schema: every key, its meaning, its bounds. Parsed in milliseconds, without torch.

The Snakefile and the plan import this module and nothing else of the package's upper layers. `load` validates a whole
experiment; `*_config` functions cut out the one subtree that a stage receives, dumped without defaults, so that a new
field with a neutral default reruns nothing.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat.data.sources import SOURCES, Source, user_source
from nanochat.errors import UserError
from nanochat.recipes import RECIPES
from nanochat.tasks import TASKS

SPECIAL_TOKENS = 9  # <|bos|>, and start and end of user, assistant, python, output
MIN_VOCAB = 256 + SPECIAL_TOKENS
MAX_VOCAB = 1 << 32  # token shards hold uint16 up to 65,536 and uint32 above
PHASES = ("base", "mid", "sft", "rl")
STAGE_OF_PHASE = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UserSource(Section):
    """A source of the user's own: a folder of .parquet, .jsonl or .txt files, or a dataset on the Hub."""

    kind: Literal["local", "hf"]
    path: str | None = None  # local: a folder or a file
    repo: str | None = None  # hf: owner/name
    revision: str = "main"  # hf: branch or commit
    files: list[str] = []  # hf: parquet or jsonl files of the repository, in order
    column: str = "text"  # which column or key holds the text
    licence: str = "not stated"

    @model_validator(mode="after")
    def _has_its_place(self) -> Self:
        if self.kind == "local" and not self.path:
            raise ValueError("kind local needs path: a folder or file")
        if self.kind == "hf" and not (self.repo and self.files):
            raise ValueError("kind hf needs repo: owner/name and files: [...]")
        return self


class Corpus(Section):
    """Text for a tokenizer and for pretraining."""

    sources: Annotated[list[str], Field(min_length=1)]
    sequence_len: Annotated[int, Field(ge=16, le=65_536, strict=True)]  # tokens per row; rows are cut once, by tokenize
    shards: PositiveInt | None = None  # sources that come in shards: how many training shards (default: all)
    chunk_shards: PositiveInt = 16  # shards per chunk, the unit of fetching and tokenizing
    accept_unclear_licences: bool = False


class Tokenizer(Section):
    """A byte-level BPE vocabulary."""

    corpus: str
    vocab_size: Annotated[int, Field(ge=MIN_VOCAB, le=MAX_VOCAB, strict=True)]  # special tokens included
    max_chars: PositiveInt = 2_000_000_000  # text seen by the trainer
    document_chars: PositiveInt = 10_000  # at most this much of one document


class Architecture(Section):
    """Shape of the transformer; a key that is absent follows the recipe."""

    width: PositiveInt | None = None  # absent: depth x aspect_ratio, rounded up to a multiple of head_dim
    aspect_ratio: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    kv_heads: Annotated[int, Field(ge=0)] | None = None  # 0: as many as heads
    mlp_ratio: PositiveInt | None = None
    rope_base: Annotated[float, Field(gt=0)] | None = None
    qk_norm: bool | None = None
    qk_scale: Annotated[float, Field(gt=0)] | None = None
    value_embeddings: Literal["none", "alternate"] | None = None
    residual_lambdas: bool | None = None
    smear: bool | None = None
    backout: bool | None = None
    softcap: Rate | None = None  # 0: none
    window_pattern: Annotated[str, Field(pattern="^[SL]+$")] | None = None  # S: a quarter of the context, L: all of it
    attention: Literal["full"] | None = None
    init: Literal["classic", "modern"] | None = None


class Optimizer(Section):
    """Muon for matrices, AdamW for the rest; a key that is absent follows the recipe."""

    matrix_lr: Rate | None = None
    head_lr: Rate | None = None
    embedding_lr: Rate | None = None
    value_embedding_lr: Rate | None = None
    scalar_lr: Rate | None = None
    head_betas: tuple[Beta, Beta] | None = None
    embedding_betas: tuple[Beta, Beta] | None = None
    scalar_betas: tuple[Beta, Beta] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    head_weight_decay: Rate | None = None
    embedding_weight_decay: Rate | None = None
    matrix_weight_decay: Rate | None = None
    scale_weight_decay: bool | None = None  # follow batch and horizon (T_epoch rule), clamped for small models
    orthogonalizer: Literal["newton_schulz", "polar_express"] | None = None
    variance_reduction: bool | None = None
    cautious_weight_decay: bool | None = None
    row_equilibration: bool | None = None
    momentum_start: Beta | None = None
    momentum_peak: Beta | None = None
    momentum_final: Beta | None = None
    momentum_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    grad_clip: Rate | None = None  # 0: none


class Schedule(Section):
    """Learning rate over the run; a key that is absent follows the recipe."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmdown_fraction: Fraction | None = None
    final_lr_fraction: Fraction | None = None
    weight_decay_schedule: Literal["constant", "linear", "cosine"] | None = None


class Horizon(Section):
    """How long to train and in which batches; a key that is absent follows the recipe."""

    steps: PositiveInt | None = None  # the first that is given wins: steps, tokens, tokens_per_param
    tokens: PositiveInt | None = None
    tokens_per_param: Annotated[float, Field(gt=0)] | None = None
    counted_params: Literal["all", "scaling"] | None = None  # scaling: block matrices and lm_head
    batch_tokens: Annotated[int, Field(ge=0)] | None = None  # 0: from the scaling rule
    scale_lr_with_batch: bool | None = None


class TrainCommon(Section):
    """Keys that every training stage has. Counts are in optimizer steps."""

    micro_batch_rows: PositiveInt | None = None  # rows per forward pass; absent: chosen from the shape
    validate_every: Annotated[int, Field(ge=0)] = 250  # 0: only at the end
    validation_rows: PositiveInt = 256
    sample_every: Annotated[int, Field(ge=0)] = 0  # 0: only at the end
    save_every_s: Annotated[float, Field(gt=0)] = 600.0  # resume state, in seconds of wall time


class BaseTrain(TrainCommon):
    """Pretraining. `depth` is the one dial: width, heads, batch, rates and horizon follow from it."""

    depth: Annotated[int, Field(ge=1, le=256, strict=True)]
    architecture: Architecture = Architecture()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    horizon: Horizon = Horizon()


class MixtureItem(Section):
    """One ingredient of a conversation mixture."""

    task: str
    split: str = "train"
    source: str | None = None  # absent: the task's first choice
    rows: PositiveInt | None = None  # use a seeded sample of this many (for a generator: make this many)
    epochs: Annotated[float, Field(gt=0)] = 1.0  # how often each row is seen


class Tune(TrainCommon):
    """Training on conversations: mid_train (loss on every token) and chat_sft (loss on the assistant's)."""

    mixture: Annotated[list[MixtureItem], Field(min_length=1)]
    validation: list[MixtureItem] = []  # absent: a held-out share of the mixture
    epochs: Annotated[float, Field(gt=0)] = 1.0  # passes over the whole mixture
    lr_fraction: Annotated[float, Field(gt=0)] = 1.0  # of the base rates, at the start
    warmup_fraction: Fraction = 0.0
    warmdown_fraction: Fraction = 0.5
    final_lr_fraction: Fraction = 0.0
    batch_tokens: PositiveInt | None = None  # absent: as in base_train
    warm_start_optimizer: bool = True  # take the parent's momentum buffers


class TaskSettings(Section):
    """How one task is evaluated."""

    split: str = "test"
    source: str | None = None
    limit: PositiveInt | None = None  # a seeded sample of this many rows
    phases: list[Literal["base", "mid", "sft", "rl"]] | None = None  # absent: every phase the run has
    max_new_tokens: PositiveInt = 256
    batch_rows: PositiveInt = 16
    seed: int = 0


class Run(Section):
    """One model, from pretraining to its scores."""

    corpus: str
    tokenizer: str
    recipe: str
    seed: int = 0
    base_train: BaseTrain
    mid_train: Tune | None = None
    chat_sft: Tune | None = None
    evaluate: dict[str, TaskSettings] = {}

    @property
    def phases(self) -> list[str]:
        """Phases that this run builds, in order."""
        return [phase for phase in PHASES if phase == "base" or getattr(self, STAGE_OF_PHASE[phase], None) is not None]


class Report(Section):
    """What the report shows."""

    title: str = "nanochat report"
    runs: list[str] = []  # absent: every run
    gpu_hour_price: Rate = 0.0  # money per GPU and hour; 0: known cards by their usual price


class Experiment(Section):
    """The whole file."""

    sources: dict[Name, UserSource] = {}
    corpora: dict[Name, Corpus]
    tokenizers: dict[Name, Tokenizer]
    runs: Annotated[dict[Name, Run], Field(min_length=1)]
    report: Report = Report()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for problem in _dangling_names(self):
            raise ValueError(problem)
        return self

    def source(self, name: str) -> Source:
        """A source by name, the user's own included."""
        return user_source(name, **self.sources[name].model_dump()) if name in self.sources else SOURCES[name]


# --- loading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Experiment:
    """Read and validate an experiment file. Raises UserError with the path of every wrong key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(content, str(path))


def validate(content: Any, origin: str = "config") -> Experiment:
    """Validate the parsed content of an experiment file; `origin` names it in errors."""
    if not isinstance(content, dict):
        raise UserError(f"{origin}: empty or not a mapping; it needs corpora:, tokenizers: and runs:")
    return parse_section(Experiment, content, origin)


SectionType = TypeVar("SectionType", bound=BaseModel)


def parse_section(section: type[SectionType], content: Any, origin: str) -> SectionType:
    """Validate `content` as `section`. Raises UserError: one line per wrong key, with its path and value."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{origin}: {_explain(problem)}" for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if place else message
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key; check its spelling against docs/reference or config.yaml"
    return f"{place}={problem['input']!r}: {message}"


def _dangling_names(experiment: Experiment) -> list[str]:
    problems: list[str] = []

    def check(place: str, name: str, known: Any) -> None:
        if name not in known:
            problems.append(f"{place}={name!r}: not defined; choose one of {', '.join(sorted(known)) or 'none, since none is defined'}")

    sources = {*SOURCES, *experiment.sources}
    for name in experiment.sources:
        if name in SOURCES:
            problems.append(f"sources.{name}: this name belongs to a built-in source; choose another")
    for name, corpus in experiment.corpora.items():
        for source in corpus.sources:
            check(f"corpora.{name}.sources", source, sources)
            if source in SOURCES and not SOURCES[source].is_text:
                problems.append(f"corpora.{name}.sources={source!r}: holds no running text; choose a text source")
            if source in SOURCES and SOURCES[source].licence_unclear and not corpus.accept_unclear_licences:
                problems.append(
                    f"corpora.{name}.sources={source!r}: licence unclear ({SOURCES[source].licence}); set corpora.{name}.accept_unclear_licences: true to use it"
                )
        if len(set(corpus.sources)) < len(corpus.sources):
            problems.append(f"corpora.{name}.sources={corpus.sources}: names a source twice; name each once")
    for name, tokenizer in experiment.tokenizers.items():
        check(f"tokenizers.{name}.corpus", tokenizer.corpus, experiment.corpora)
    for name, run in experiment.runs.items():
        check(f"runs.{name}.corpus", run.corpus, experiment.corpora)
        check(f"runs.{name}.tokenizer", run.tokenizer, experiment.tokenizers)
        check(f"runs.{name}.recipe", run.recipe, RECIPES)
        problems += _task_problems(name, run, sources)
        if not problems:
            problems += _batch_problems(f"runs.{name}", run, experiment.corpora[run.corpus].sequence_len)
    for name in experiment.report.runs:
        check("report.runs", name, experiment.runs)
    return problems


def _task_problems(name: str, run: Run, sources: set[str]) -> list[str]:
    uses = [(f"runs.{name}.evaluate.{task}", task, settings.split, settings.source) for task, settings in run.evaluate.items() if task != "bpb"]
    for stage in ("mid_train", "chat_sft"):
        if (tune := getattr(run, stage)) is not None:
            uses += [(f"runs.{name}.{stage}.mixture", item.task, item.split, item.source) for item in [*tune.mixture, *tune.validation]]
    problems = []
    for place, task, split, source in uses:
        if task not in TASKS:
            problems.append(f"{place}={task!r}: no such task; choose one of {', '.join(sorted([*TASKS, 'bpb']))}")
        elif split not in TASKS[task].sources:
            problems.append(f"{place}: task {task} has no split {split!r}; choose one of {', '.join(TASKS[task].sources)}")
        elif source is not None and source not in sources:
            problems.append(f"{place}.source={source!r}: no such source; choose one of {', '.join(TASKS[task].sources[split])}")
    return problems


def _batch_problems(place: str, run: Run, sequence_len: int) -> list[str]:
    problems = []
    batches = [
        (
            "base_train",
            "base_train.horizon.batch_tokens",
            resolve_base_train(run.base_train, run.recipe)["horizon"]["batch_tokens"],
            run.base_train.micro_batch_rows,
        )
    ]
    for stage in ("mid_train", "chat_sft"):
        if (tune := getattr(run, stage)) is not None:
            batches.append((stage, f"{stage}.batch_tokens", tune.batch_tokens or 0, tune.micro_batch_rows))
    for stage, key, batch_tokens, rows in batches:
        step = sequence_len * (rows or 1)
        if batch_tokens and batch_tokens % step:
            near = max(step, round(batch_tokens / step) * step)
            of = f"sequence_len {sequence_len}" + (f" x micro_batch_rows {rows}" if rows else "")
            problems.append(f"{place}.{key}={batch_tokens}: not a multiple of {step} ({of}); try {near}")
    return problems


# --- what a stage receives -------------------------------------------------------------------------------------------


class BaseTrainStage(BaseTrain):
    """The subtree that stage base_train receives."""

    recipe: str
    seed: int = 0


class TuneStage(Tune):
    """The subtree that stages mid_train and chat_sft receive; rates, batch and shape come from the checkpoint."""

    seed: int = 0


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
    resolved: dict[str, Any] = section.model_dump(exclude={"architecture", "optimizer", "schedule", "horizon", "recipe"}, mode="json")
    for part in ("architecture", "optimizer", "schedule", "horizon"):
        overrides = getattr(section, part).model_dump(exclude_none=True, mode="json")
        resolved[part] = {**RECIPES[recipe][part], **overrides}
    return {**resolved, "recipe": recipe}


def dump(section: BaseModel) -> dict[str, Any]:
    """A section as plain data, without keys that have their default value."""
    return section.model_dump(mode="json", exclude_defaults=True)


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
        stage |= {"part": part, "chunk_shards": users[0].chunk_shards, "shards": max((c.shards or experiment.source(source).shards or 0) for c in users)}
    return dump(FetchStage(**stage))


def tokenizer_config(experiment: Experiment, name: str) -> dict[str, Any]:
    """Subtree of stage tokenizer."""
    return dump(TokenizerStage(**experiment.tokenizers[name].model_dump(exclude={"corpus"})))


def tokenize_config(experiment: Experiment, corpus: str, chunk: Chunk) -> dict[str, Any]:
    """Subtree of stage tokenize for one chunk."""
    return dump(TokenizeStage(sequence_len=experiment.corpora[corpus].sequence_len, split=chunk.split))


def base_train_config(run: Run) -> dict[str, Any]:
    """Subtree of stage base_train."""
    return dump(BaseTrainStage(**run.base_train.model_dump(), recipe=run.recipe, seed=run.seed))


def tune_config(run: Run, stage: str) -> dict[str, Any]:
    """Subtree of stage mid_train or chat_sft."""
    return dump(TuneStage(**getattr(run, stage).model_dump(), seed=run.seed))


def evaluate_config(run: Run, task: str) -> dict[str, Any]:
    """Subtree of stage evaluate for one task; the same for every phase."""
    return dump(EvaluateStage(**run.evaluate[task].model_dump(exclude={"phases"}), task=task))


def task_sources(task: str, split: str, source: str | None) -> list[str]:
    """Sources to fetch for one split of a task: the one asked for, else the first of its choices; none for generators."""
    if task == "bpb":
        return []
    choices = TASKS[task].sources[split]
    return [source] if source else list(choices[:1])


def evaluated(run: Run) -> list[tuple[str, str]]:
    """(phase, task) pairs that this run evaluates, in order."""
    return [(phase, task) for phase in run.phases for task, settings in run.evaluate.items() if phase in (settings.phases or run.phases)]
