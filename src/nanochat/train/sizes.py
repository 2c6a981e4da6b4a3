"""From hyper-parameters to a model's shape. Pure arithmetic, free of torch."""

from collections.abc import Mapping
from typing import Any

from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.train.scaling import REFERENCE_DEPTH, Shape


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
