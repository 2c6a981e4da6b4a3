"""Every key of an experiment file: its meaning and its bounds. Names that refer to other sections are checked in checks.py."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanochat.data.sources import EXPORT, SOURCES, Source, user_source
from nanochat.names import PHASES, STAGE_OF_PHASE

SPECIAL_TOKENS = 9  # <|bos|>, and start and end of user, assistant, python, output
MIN_VOCAB = 256 + SPECIAL_TOKENS
MAX_VOCAB = 1 << 32  # token shards hold uint16 up to 65,536 and uint32 above
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NOT_A_SOURCE = ("wheels",)  # folders of resources/ that hold something else
# Housekeeping: keys that decide when something is shown, measured or saved, or how much memory it takes, and that no weight and (but for
# rounding) no score depends on. They are handed to the stage and are no part of what it is: a change of them reruns and discards nothing.
# micro_batch_rows is none of them: its rounding goes into the weights and grows. Nor is validation_rows: it decides what is held out.
HOUSEKEEPING = ("validate_every", "sample_every", "save_every_s", "keep", "batch_rows", "recompute", "log_every", "tensorboard", "wandb", "trackio")
# Keys that came later: they are part of what a stage is only where they are not neutral, so that what was made before them stays what it is.
LATER = ("on_bad_step", "fp8")
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(gt=0, le=1e9)]
Rate = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section: unknown keys and numbers that are not finite are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class ChatColumns(Section):
    """Which columns or keys of a user's own data hold conversations: `messages`, or `prompt` and `answer`."""

    messages: str | None = None  # a list of {role, content} or of {from, value}
    prompt: str | None = None  # what the user says
    answer: str | None = None  # what the assistant says to that

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (bool(self.messages), bool(self.prompt), bool(self.answer)) not in ((True, False, False), (False, True, True)):
            raise ValueError("give messages, or prompt and answer")
        return self


class UserSource(Section):
    """A source of the user's own: a folder of .parquet, .jsonl or .txt files, or a dataset on the Hub. Text for a corpus, or conversations."""

    kind: Literal["local", "hf"]
    path: str | None = None  # local: a folder or a file
    repo: str | None = None  # hf: owner/name
    revision: str = "main"  # hf: branch or commit
    files: list[str] = []  # hf: parquet, jsonl or txt files of the repository, in order; empty: all of config and split, as the Hub exports it to parquet
    config: Annotated[str, Field(pattern="^[^/]+$")] = "default"  # hf, without files: which of the dataset's configurations
    split: Annotated[str, Field(pattern="^[^/]+$")] = "train"  # hf, without files: which of its splits
    column: str = "text"  # which column or key holds the text
    columns: ChatColumns | None = None  # of conversations: the source is none of text, but of task `conversations` in a mixture
    licence: str = "not stated"

    @model_validator(mode="after")
    def _has_its_place(self) -> Self:
        if self.kind == "local" and not self.path:
            raise ValueError("kind local needs path: a folder or file")
        if self.kind == "hf" and not self.repo:
            raise ValueError("kind hf needs repo: owner/name")
        if self.files and (self.config, self.split) != ("default", "train"):
            raise ValueError(f"files says what to read, config={self.config} and split={self.split} do too; leave out files, or config and split")
        if self.columns and self.column != "text":
            raise ValueError(f"column={self.column} is of text, columns are of conversations; keep one of them")
        return self

    def source(self, name: str) -> Source:
        """This source as the registry would describe it."""
        place: dict[str, Any] = {"columns": self.columns.model_dump(exclude_none=True)} if self.columns else {"column": self.column}
        if self.kind == "local":
            return user_source(name, kind="local", licence=self.licence, path=self.path, **place)
        place |= {"repo": self.repo, "revision": self.revision, "files": self.files}
        if not self.files:
            place |= {"folder": f"{self.config}/{self.split}", "revision": EXPORT if self.revision == "main" else self.revision}
        return user_source(name, kind="hf", licence=self.licence, **place)


class Prepare(Section):
    """What is left out of the text of a corpus before anything is made from it. Each filter is off unless it is asked for."""

    languages: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] = []  # keep documents in these languages alone: en, de, ... (ISO 639)
    language_certainty: Fraction = 0.5  # least probability of the language, judged by the first 1,000 characters
    min_chars: Count = 0  # leave shorter documents out
    max_chars: PositiveInt | None = None  # leave longer documents out
    deduplicate: Literal["exact", "near"] | None = None  # keep the first of equal documents; near: of those with nearly the same words too
    near_similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8  # share of five-word runs in common from which on documents are near copies
    near_permutations: Annotated[int, Field(ge=16, le=1024, strict=True)] = 128  # numbers per document that this share is estimated from
    decontaminate: bool = False  # leave training text out that holds words of evaluation rows, and validation text that is a near copy of training text
    decontaminate_against: list[str] = []  # tasks; absent: all that the runs on this corpus evaluate, so that a new one prepares and trains again
    run_words: Annotated[int, Field(ge=5, le=64, strict=True)] = 13  # so many words in a row of an evaluation row are too many

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not (self.languages or self.min_chars or self.max_chars or self.deduplicate or self.decontaminate):
            raise ValueError("asks for nothing; give languages, min_chars, max_chars, deduplicate or decontaminate, or leave prepare out")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars={self.max_chars}: below min_chars={self.min_chars}, nothing would be left; raise it")
        if self.decontaminate_against and not self.decontaminate:
            raise ValueError(f"decontaminate_against={self.decontaminate_against}: given, but decontaminate is off; set decontaminate: true")
        return self


class Corpus(Section):
    """Text for a tokenizer and for pretraining."""

    sources: Annotated[list[str], Field(min_length=1)]  # or a mapping of each to its weight, see below
    weights: dict[str, Weight] = {}  # share of the training that each source has, in any unit; absent: every row is visited once an epoch
    sequence_len: Annotated[int, Field(ge=16, le=65_536, strict=True)]  # tokens per row; rows are cut once, by tokenize
    shards: PositiveInt | None = None  # sources that come in shards (an error if none does): how many training shards (default: all)
    chunk_shards: PositiveInt = 16  # shards per chunk, the unit of fetching and tokenizing
    accept_unclear_licences: bool = False
    prepare: Prepare | None = None  # filters and deduplication; absent: the text is used as it was fetched

    @model_validator(mode="before")
    @classmethod
    def _weights_in_place(cls, content: Any) -> Any:
        """`sources: {a: 3, b: 1}` is short for `sources: [a, b]` and `weights: {a: 3, b: 1}`."""
        if not isinstance(content, dict) or not isinstance(sources := content.get("sources"), dict):
            return content
        if content.get("weights"):
            raise ValueError("weights stand beside sources and in it; keep one of them")
        return {**content, "sources": list(sources), "weights": sources}

    @model_validator(mode="after")
    def _weights_are_of_sources(self) -> Self:
        if self.weights and (odd := set(self.weights) ^ set(self.sources)):
            what = "no source has this name" if min(odd) in self.weights else "this source has none"
            raise ValueError(f"weights: {min(odd)!r}: {what}; give one for each source, or none")
        return self


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
    kv_heads: Count | None = None  # 0: as many as heads
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
    momentum_warmup_steps: Count | None = None
    grad_clip: Rate | None = None  # 0: none


class Schedule(Section):
    """Learning rate over the run; a key that is absent follows the recipe."""

    warmup_steps: Count | None = None
    warmdown_fraction: Fraction | None = None
    final_lr_fraction: Fraction | None = None
    weight_decay_schedule: Literal["constant", "linear", "cosine"] | None = None


class Horizon(Section):
    """How long to train and in which batches; a key that is absent follows the recipe. Give one of steps, tokens and tokens_per_param."""

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    tokens_per_param: Annotated[float, Field(gt=0)] | None = None
    counted_params: Literal["all", "scaling"] | None = None  # scaling: block matrices and lm_head
    batch_tokens: Count | None = None  # 0: from the scaling rule
    scale_lr_with_batch: bool | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [f"{key}={value}" for key in ("steps", "tokens", "tokens_per_param") if (value := getattr(self, key)) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say how long to train, each for itself; keep one of them")
        return self


class Keep(Section):
    """Models that a training stage keeps on its way, in checkpoints/ beside its results. A change reruns nothing."""

    every: Count = 0  # steps between two; 0: none but the best
    last: PositiveInt = 2  # how many of them stay, the newest
    best: bool = False  # and the one with the lowest validation bits per byte


class OnBadStep(Section):
    """What to do about a step that looks wrong. Bad steps are always said aloud, with the rows that they held (`nanochat data show`)."""

    non_finite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is not finite; skip: no update, on to the next rows
    spike: Literal["ignore", "skip", "stop"] = "ignore"  # a loss far above the recent ones; ignore: update all the same
    sigma: Annotated[float, Field(gt=0)] = 6.0  # how far: so many standard deviations above the mean
    history: Annotated[int, Field(ge=10, le=10_000, strict=True)] = 100  # of so many losses before it; until there are so many nothing is a spike


class Wandb(Section):
    """Weights & Biases, offline: files that `wandb sync` sends when the user says so."""

    project: Annotated[str, Field(pattern=NAME, max_length=64)] = "nanochat"
    entity: str | None = None  # whose project it is; absent: that of whoever sends the files
    tags: list[str] = []


class Trackio(Section):
    """Trackio, on this machine alone: a database that `trackio show` opens."""

    project: Annotated[str, Field(pattern=NAME, max_length=64)] = "nanochat"


class TrainCommon(Section):
    """Keys that every training stage has. Counts are in optimizer steps."""

    micro_batch_rows: PositiveInt | None = None  # rows per forward pass; absent: as many as fit into memory and are fast
    recompute: Literal["none", "blocks"] = "none"  # blocks: keep their inputs alone for the backward pass; same results, a third slower, far less memory
    fp8: bool = False  # products of blocks in eight bits: another, less exact training, on cards from compute capability 8.9 on (no A100)
    validate_every: Count = 250  # 0: only at the end; a change of it reruns nothing
    validation_rows: PositiveInt = 256
    sample_every: Count = 0  # 0: only at the end; a change of it reruns nothing
    save_every_s: Annotated[float, Field(gt=0)] = 600.0  # resume state, in seconds of wall time; a change of it reruns nothing
    on_bad_step: OnBadStep = OnBadStep()  # saved state goes on after a change of it, as long as no step was met that it matters for
    keep: Keep = Keep()  # models on the way
    log_every: Count = 50  # norms of every parameter group and memory in metrics.jsonl; 0: never; a change of it reruns nothing
    tensorboard: bool = False  # copy metrics.jsonl into tensorboard/ beside it; a change of it reruns nothing
    wandb: Wandb | None = None  # copy it into wandb/, offline; {}: project nanochat; a change of it reruns nothing
    trackio: Trackio | None = None  # copy it into trackio/; {}: project nanochat; a change of it reruns nothing


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
    rows: Annotated[int, Field(gt=0, le=100_000_000, strict=True)] | None = None  # use a seeded sample of this many (for a generator: make this many)
    epochs: Epochs = 1.0  # how often each row is seen


class Tune(TrainCommon):
    """Training on conversations: mid_train (loss on every token) and chat_sft (loss on the assistant's)."""

    mixture: Annotated[list[MixtureItem], Field(min_length=1)]
    validation: list[MixtureItem] = []  # absent: a held-out share of the mixture
    epochs: Epochs = 1.0  # passes over the whole mixture
    lr_fraction: Annotated[float, Field(gt=0)] = 1.0  # of the base rates, at the start
    warmup_fraction: Fraction = 0.0
    warmdown_fraction: Fraction = 0.5
    final_lr_fraction: Fraction = 0.0
    batch_tokens: PositiveInt | None = None  # absent: as in base_train
    warm_start_optimizer: bool = True  # take the parent's momentum buffers


class RlTask(Section):
    """Problems that reinforcement learning asks: split `rl` of a task; it is measured on split `validation`."""

    task: str
    source: str | None = None  # absent: the task's first choice
    rows: Annotated[int, Field(gt=0, le=100_000_000, strict=True)] | None = None  # use a seeded sample of this many (for a generator: make this many)


class ChatRl(TrainCommon):
    """Reinforcement learning: several answers to each problem, and those that are right are made more probable than the others."""

    tasks: Annotated[list[RlTask], Field(min_length=1)]
    examples_per_step: PositiveInt = 16  # problems of one update, of all ranks together
    samples: Annotated[int, Field(ge=2, le=1024, strict=True)] = 16  # answers to each
    epochs: Epochs = 1.0  # passes over the problems
    max_new_tokens: PositiveInt = 256  # of an answer
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of the answers, and of the probabilities that are learnt
    top_k: Count = 50  # sample from so many of the likeliest tokens; 0: from all
    lr_fraction: Annotated[float, Field(gt=0)] = 0.05  # of the base rates, at the start
    warmup_fraction: Fraction = 0.0
    warmdown_fraction: Fraction = 1.0
    final_lr_fraction: Fraction = 0.0
    validation_samples: Annotated[int, Field(ge=1, le=1024, strict=True)] = 8  # answers to each of validation_rows problems: pass@1 to pass@n
    rollout_rows: PositiveInt = 128  # answers made at a time; halved where memory runs out

    @model_validator(mode="after")
    def _has_no_bits_per_byte(self) -> Self:
        if self.keep.best:
            raise ValueError("keep.best: the best is the one with the lowest bits per byte, which are not measured here; leave it out")
        if self.on_bad_step.spike != "ignore":
            raise ValueError(f"on_bad_step.spike={self.on_bad_step.spike}: a loss of answers that were drawn rises and falls by itself; leave it out")
        return self


class TaskSettings(Section):
    """How one task is evaluated."""

    split: str = "test"
    source: str | None = None
    limit: PositiveInt | None = None  # a seeded sample of this many rows
    phases: Annotated[list[Literal["base", "mid", "sft", "rl"]], Field(min_length=1)] | None = None  # absent: every phase the run has
    max_new_tokens: PositiveInt = 256
    batch_rows: PositiveInt = 16  # rows per forward pass; a change of it reruns nothing
    tasks: list[str] = []  # task core: these of its tasks alone; absent: all that the source has
    seed: Seed = 0
    samples: PositiveInt | None = None  # so many more answers to each row, drawn with chance, for pass@k; the score stays that of the greedy answer
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # of the samples
    top_k: PositiveInt | None = None  # of the samples: draw among so many tokens; absent: all


class Run(Section):
    """One model, from pretraining to its scores."""

    corpus: str
    tokenizer: str
    recipe: str
    seed: Seed = 0
    base_train: BaseTrain
    mid_train: Tune | None = None
    chat_sft: Tune | None = None
    chat_rl: ChatRl | None = None
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
    contamination: bool = False  # count the evaluation items that share 13 words with the training text or a mixture; reads all of it once more


class Experiment(Section):
    """The whole file."""

    sources: dict[Name, UserSource] = {}
    corpora: dict[Name, Corpus]
    tokenizers: dict[Name, Tokenizer]
    runs: Annotated[dict[Name, Run], Field(min_length=1)]
    report: Report = Report()

    def source(self, name: str) -> Source:
        """A source by name, the user's own included."""
        return self.sources[name].source(name) if name in self.sources else SOURCES[name]
