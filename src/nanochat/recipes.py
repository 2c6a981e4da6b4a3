"""Recipes: frozen, named sets of recommended hyper-parameters. To change one, add one.

A run names its recipe and overrides single keys. Every key of `config.BaseTrain` but the depth has a value here.
Sources: classic = karpathy's nanochat as published in November 2025; modern = the same project's published state of
July 2026; compact = modern, tuned for minutes on a CPU (reports/log.md has the figures); b: for runs of some hundred steps.
"""

from typing import Any

CLASSIC: dict[str, Any] = {
    "architecture": {
        "aspect_ratio": 64, "head_dim": 128, "kv_heads": 0, "mlp_ratio": 4, "rope_base": 10_000.0, "qk_norm": True, "qk_scale": 1.0,
        "value_embeddings": "none", "residual_lambdas": False, "smear": False, "backout": False, "softcap": 15.0,
        "window_pattern": "L", "attention": "full", "init": "classic",
    },
    "optimizer": {
        "matrix_lr": 0.02, "head_lr": 0.004, "embedding_lr": 0.2, "value_embedding_lr": 0.2, "scalar_lr": 0.005,
        "head_betas": [0.8, 0.95], "embedding_betas": [0.8, 0.95], "scalar_betas": [0.8, 0.95], "epsilon": 1e-10,
        "head_weight_decay": 0.0, "embedding_weight_decay": 0.0, "matrix_weight_decay": 0.0, "scale_weight_decay": False,
        "orthogonalizer": "newton_schulz", "variance_reduction": False, "cautious_weight_decay": False, "row_equilibration": False,
        "momentum_start": 0.85, "momentum_peak": 0.95, "momentum_final": 0.95, "momentum_warmup_steps": 300, "grad_clip": 1.0,
    },
    "schedule": {"warmup_steps": 0, "warmdown_fraction": 0.2, "final_lr_fraction": 0.0, "weight_decay_schedule": "constant"},
    "horizon": {"tokens_per_param": 20.0, "counted_params": "all", "batch_tokens": 524_288, "scale_lr_with_batch": False},
}  # fmt: skip

MODERN: dict[str, Any] = {
    "architecture": {
        "aspect_ratio": 64, "head_dim": 128, "kv_heads": 0, "mlp_ratio": 4, "rope_base": 100_000.0, "qk_norm": True, "qk_scale": 1.2,
        "value_embeddings": "alternate", "residual_lambdas": True, "smear": True, "backout": True, "softcap": 15.0,
        "window_pattern": "L",  # SDPA with a window mask is 28% slower than full attention on an A100
        "attention": "full", "init": "modern",
    },
    "optimizer": {
        "matrix_lr": 0.02, "head_lr": 0.008, "embedding_lr": 0.3, "value_embedding_lr": 0.15, "scalar_lr": 0.005,
        "head_betas": [0.8, 0.96], "embedding_betas": [0.8, 0.995], "scalar_betas": [0.8, 0.95], "epsilon": 1e-10,
        "head_weight_decay": 0.01, "embedding_weight_decay": 0.001, "matrix_weight_decay": 0.28, "scale_weight_decay": True,
        "orthogonalizer": "polar_express", "variance_reduction": True, "cautious_weight_decay": True, "row_equilibration": True,
        "momentum_start": 0.85, "momentum_peak": 0.97, "momentum_final": 0.90, "momentum_warmup_steps": 400, "grad_clip": 0.0,
    },
    "schedule": {"warmup_steps": 40, "warmdown_fraction": 0.65, "final_lr_fraction": 0.05, "weight_decay_schedule": "cosine"},
    "horizon": {"tokens_per_param": 12.0, "counted_params": "scaling", "batch_tokens": 0, "scale_lr_with_batch": True},
}  # fmt: skip

COMPACT: dict[str, Any] = {
    "architecture": {**MODERN["architecture"], "head_dim": 64},
    "optimizer": {**MODERN["optimizer"], "matrix_lr": 0.04, "matrix_weight_decay": 0.0, "scale_weight_decay": False, "momentum_warmup_steps": 100},
    "schedule": {**MODERN["schedule"], "warmup_steps": 10},
    "horizon": {"tokens_per_param": 12.0, "counted_params": "scaling", "batch_tokens": 2048, "scale_lr_with_batch": False},
}  # fmt: skip

COMPACT_B: dict[str, Any] = {
    **COMPACT,
    "optimizer": {**COMPACT["optimizer"], "matrix_lr": 0.06},
    "schedule": {**COMPACT["schedule"], "warmdown_fraction": 0.9},
}

RECIPES: dict[str, dict[str, Any]] = {
    "classic-2025-11": CLASSIC,
    "modern-2026-07": MODERN,
    "compact-2026-11": COMPACT,
    "compact-2026-11b": COMPACT_B,
}
