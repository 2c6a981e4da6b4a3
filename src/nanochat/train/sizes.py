"""From hyper-parameters to a model's shape, and to the memory of the GPU that trains it. Pure arithmetic, free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.train.scaling import ACTIVATION_BYTES, REFERENCE_DEPTH, Shape

LOGITS_AT_ONCE = 1 << 28  # of a GPU, as model/loss.py holds them; two buffers in fp32
CONTEXT_BYTES = 2 << 30  # CUDA, its libraries, NCCL and what the allocator cannot use; assumption


def model_configs(resolved: Mapping[str, Any], depth: int, vocab_size: int, sequence_len: int) -> tuple[ModelConfig, ModelConfig]:
    """The model's shape, and that of the same architecture at depth 12, which the scaling rules refer to."""
    architecture = resolved["architecture"]
    try:
        own = ModelConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len, architecture=architecture)
    except ValueError as error:
        raise UserError(f"base_train.architecture: {error}") from None
    free = {key: value for key, value in architecture.items() if key not in ("width", "kv_heads")}
    return own, ModelConfig.from_depth(REFERENCE_DEPTH, vocab_size=vocab_size, sequence_len=sequence_len, architecture={**free, "kv_heads": 0})


def shape_of(config: ModelConfig, reference: ModelConfig) -> Shape:
    """What the scaling rules see of a model; `reference` is the same architecture at depth 12."""
    own, other = ({"all": counts["total"], "scaling": counts["scaling"]} for counts in (config.parameter_counts(), reference.parameter_counts()))
    return Shape(config.depth, config.width, config.vocab_size, config.sequence_len, own, other)


def optimizer_bytes(config: ModelConfig) -> int:
    """State of the optimizer in fp32: one moment per parameter of a matrix in a block (Muon), two of any other (AdamW)."""
    counts = config.parameter_counts()
    return 4 * counts["matrix"] + 8 * (counts["total"] - counts["matrix"])


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU in training, by what holds them. Every rank holds all of the weights and of the optimizer."""

    weights: int  # fp32, and what matrix products read of them in bf16
    gradients: int
    optimizer: int
    activations: int
    logits: int
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.context


def training_memory(config: ModelConfig, micro_batch_rows: int) -> Memory:
    """Memory of one GPU that trains with `micro_batch_rows` rows per forward pass, in bf16."""
    counts = config.parameter_counts()
    tokens = micro_batch_rows * config.sequence_len
    at_once = min(tokens, max(64, LOGITS_AT_ONCE // config.padded_vocab_size))
    return Memory(
        weights=4 * counts["total"] + 2 * counts["scaling"],
        gradients=4 * counts["total"],
        optimizer=optimizer_bytes(config),
        activations=tokens * ACTIVATION_BYTES * config.depth * config.width,
        logits=4 * config.padded_vocab_size * (2 * at_once + config.width),
    )
