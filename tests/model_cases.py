"""Small models for tests: every feature on or off, with weights as training would leave them."""

from typing import Any

import torch
from torch import Tensor

from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT

OFF: dict[str, Any] = {
    "rope_base": 10_000.0, "qk_norm": False, "qk_scale": 1.0, "value_embeddings": "none", "residual_lambdas": False,
    "smear": False, "backout": False, "softcap": 0.0, "window_pattern": "L", "attention": "full", "init": "modern",
}  # fmt: skip
ON = {**OFF, "qk_norm": True, "qk_scale": 1.2, "value_embeddings": "alternate", "residual_lambdas": True, "smear": True, "backout": True, "softcap": 15.0}


def config(features: dict[str, Any] = ON, **changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 70, "sequence_len": 48, "depth": 3, "width": 32, "heads": 4, "kv_heads": 4, "mlp_ratio": 4}
    return ModelConfig(**{**sizes, **features, **changes})


def shaken(shape: ModelConfig, dtype: torch.dtype = torch.float32, amount: float = 0.2) -> GPT:
    """A model none of whose parameters has a special value, as training would leave it."""
    model = GPT(shape)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    model.dtype = dtype
    return model.to(dtype)


def some_ids(rows: int, length: int, vocab_size: int = 70, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
