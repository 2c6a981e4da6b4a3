"""How much an experiment trains on and how much disk it takes: pure arithmetic over the experiment, before anything is built."""

from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.config import STAGE_OF_PHASE, Experiment, Run, corpus_chunks, resolve_base_train
from nanochat.data.sources import WHEELS, Source
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.preflight.needs import data_needs
from nanochat.train.scaling import REFERENCE_DEPTH, Shape, plan_base_train

SHARD_BYTES = 100_000_000  # of a parquet shard of 250 million characters, compressed
SHARD_CHARS = 250_000_000
HUB_ROWS_BYTES = 200_000_000  # assumption: of one dataset of task rows, as parquet and as jsonl
WHEEL_SOURCE_BYTES = 10_000_000  # of what is read out of a wheel for one source; the largest today is 8.7 MB
CHARS_PER_TOKEN = 4.0  # assumption on the safe side: 4.6 to 4.8 are usual of English at 65,536 entries
WEIGHT_BYTES = 4  # fp32
SLOTS = 2  # resume states that exist side by side


@dataclass(frozen=True)
class Space:
    """Disk that something takes until the end. `marker`: a file that is there once it is taken."""

    what: str
    bytes: int
    marker: str


def model_config(run: Run, experiment: Experiment, *, depth: int | None = None) -> ModelConfig:
    """Shape of a run's model; `depth`: of the same architecture at another depth, which the scaling rules refer to."""
    architecture = resolve_base_train(run.base_train, run.recipe)["architecture"]
    if depth is not None:
        architecture = {key: value for key, value in architecture.items() if key not in ("width", "kv_heads")} | {"kv_heads": 0}
    try:
        return ModelConfig.from_depth(
            depth or run.base_train.depth,
            vocab_size=experiment.tokenizers[run.tokenizer].vocab_size,
            sequence_len=experiment.corpora[run.corpus].sequence_len,
            architecture=architecture,
        )
    except ValueError as error:
        raise UserError(f"base_train.architecture: {error}") from None


def training_tokens(run: Run, experiment: Experiment) -> int:
    """Tokens that base_train will see. Raises UserError for a run that cannot be planned."""
    own, reference = model_config(run, experiment), model_config(run, experiment, depth=REFERENCE_DEPTH)
    counted = [{"all": config.parameter_counts()["total"], "scaling": config.parameter_counts()["scaling"]} for config in (own, reference)]
    shape = Shape(own.depth, own.width, own.vocab_size, own.sequence_len, *counted)
    return plan_base_train(resolve_base_train(run.base_train, run.recipe), shape).tokens


def state_bytes(config: ModelConfig) -> tuple[int, int]:
    """(weights, optimizer) of a model: fp32; Muon keeps one buffer of a matrix, AdamW two of all the rest."""
    counts = config.parameter_counts()
    return WEIGHT_BYTES * counts["total"], WEIGHT_BYTES * (2 * counts["total"] - counts["matrix"])


def space_needed(experiment: Experiment) -> list[Space]:
    """Disk for everything that an experiment makes: fetched data, tokens, weights, and the resume states of the runs while they train."""
    return [*_fetched(experiment), *_tokens(experiment), *_models(experiment)]


def _source_bytes(source: Source) -> int:
    """Of one part that is no shard; nothing for files of the user's own, whose size the experiment does not say."""
    return {"wheel": WHEEL_SOURCE_BYTES, "hf": HUB_ROWS_BYTES, "local": 0}[source.kind]


def _fetched(experiment: Experiment) -> Iterator[Space]:
    parts = list(dict.fromkeys((need.source, need.part) for need in data_needs(experiment)))
    for name, part in parts:
        source = experiment.source(name)
        size = SHARD_BYTES * _shards(experiment, name, part) if source.shards else _source_bytes(source)
        yield Space("fetched data", size, f"resources/{name}/{part}/manifest.json")
    wheels = {experiment.source(name).place["package"] for name, _ in parts if experiment.source(name).kind == "wheel"}
    for wheel in (WHEELS[package] for package in sorted(wheels)):
        yield Space("fetched data", wheel.size, f"resources/wheels/{wheel.filename}")


def _shards(experiment: Experiment, source: str, part: str) -> int:
    """Shards in a part, at most."""
    return 1 if part == "validation" else max(corpus.chunk_shards for corpus in experiment.corpora.values() if source in corpus.sources)


def _tokens(experiment: Experiment) -> Iterator[Space]:
    for corpus, tokenizer in dict.fromkeys((run.corpus, run.tokenizer) for run in experiment.runs.values()):
        width = 2 if experiment.tokenizers[tokenizer].vocab_size <= 1 << 16 else 4  # bytes of a token id
        for chunk in corpus_chunks(experiment, corpus):
            source = experiment.source(chunk.source)
            chars = SHARD_CHARS * _shards(experiment, chunk.source, chunk.part) if source.shards else _source_bytes(source)
            yield Space("tokens", int(chars / CHARS_PER_TOKEN * width), f"results/tokens/{corpus}.{tokenizer}/{chunk.name}/manifest.json")


def _models(experiment: Experiment) -> Iterator[Space]:
    for name, run in experiment.runs.items():
        weights, optimizer = state_bytes(model_config(run, experiment))
        last = f"results/{name}/{STAGE_OF_PHASE[run.phases[-1]]}/manifest.json"
        yield Space("resume states", SLOTS * (weights + optimizer), last)
        for phase in run.phases:
            kept = optimizer if phase != "sft" else 0  # the last phase hands no momentum on
            yield Space("models", weights + kept, f"results/{name}/{STAGE_OF_PHASE[phase]}/manifest.json")
