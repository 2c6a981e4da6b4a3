"""One dial: from depth to horizon, batch, learning rates, weight decay. Pure arithmetic, seen before anything is built.

Measured rules of nanochat (July 2026), all relative to depth 12, the size they were tuned at:
    horizon       D = tokens_per_param x counted parameters ("scaling" counts block matrices and lm_head)
    batch         B = 2^round(log2(2^19 (D / D12)^0.383))                                      Power Lines exponent
    rates         x sqrt(B / 2^19), and x sqrt(768 / width) for AdamW matrices
    weight decay  x sqrt(B / 2^19) x D12 / D                                                   T_epoch rule
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.errors import UserError
from nanochat.train.memory import divided, fast_rows
from nanochat.train.schedule import WeightDecaySchedule

REFERENCE_DEPTH = 12
REFERENCE_BATCH = 1 << 19
REFERENCE_WIDTH = 768
BATCH_EXPONENT = 0.383
# assumption: below depth 8 the T_epoch rule leaves the range it was fitted in (0.94 at depth 6, 1.89 at depth 4), so it is held here
MAX_WEIGHT_DECAY = 0.6
MIN_STEPS = 100  # assumption: an automatic batch is halved until a run has at least so many updates
MAX_WARMUP_SHARE = 0.2  # assumption: a warm-up in absolute steps must not eat a tiny run
# published for the modern recipe beside the residual scalars: what the x0 and smear scalars use, relative to scalar_lr
X0_LR_FACTOR, X0_BETAS = 100.0, (0.96, 0.95)
SMEAR_LR_FACTOR = 40.0
RESIDUAL_WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that the loop needs to know. Rates are peaks; multipliers come from schedule.py."""

    steps: int
    batch_tokens: int
    sequence_len: int
    ranks: int
    micro_batch_rows: int
    groups: dict[str, dict[str, Any]]  # parameter group -> kind, lr, betas or momentum, weight_decay, ...
    warmup_steps: int
    warmdown_fraction: float
    final_lr_fraction: float
    weight_decay_schedule: WeightDecaySchedule
    momentum_start: float
    momentum_peak: float
    momentum_final: float
    momentum_warmup_steps: int
    grad_clip: float

    @property
    def rows_per_step(self) -> int:
        """Rows that all ranks together see in one update."""
        return self.batch_tokens // self.sequence_len

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and update."""
        return self.rows_per_step // (self.micro_batch_rows * self.ranks)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch_tokens

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what depends on the machine (ranks, micro-batches)."""
        return {key: value for key, value in asdict(self).items() if key not in ("ranks", "micro_batch_rows")}


@dataclass(frozen=True)
class Shape:
    """What the rules need to know of a model: its size, and the size of the same architecture at depth 12."""

    depth: int
    width: int
    vocab_size: int
    sequence_len: int
    params: Mapping[str, int]  # "all" and "scaling"
    reference_params: Mapping[str, int]


# --- rules -----------------------------------------------------------------------------------------------------------


def batch_rule(tokens: float, reference_tokens: float) -> int:
    """The best batch for a horizon, as a power of two: 2^round(log2(2^19 (D / D12)^0.383))."""
    return int(2 ** round(math.log2(REFERENCE_BATCH * (tokens / reference_tokens) ** BATCH_EXPONENT)))


def batch_lr_factor(batch_tokens: int) -> float:
    """Rates grow with the square root of the batch."""
    return math.sqrt(batch_tokens / REFERENCE_BATCH)


def width_lr_factor(width: int) -> float:
    """AdamW rates of embeddings and head shrink with the square root of the width."""
    return math.sqrt(REFERENCE_WIDTH / width)


def weight_decay_rule(weight_decay: float, *, batch_tokens: int, tokens: float, reference_tokens: float) -> float:
    """T_epoch rule, not clamped: the decay of a whole run stays what it was at depth 12."""
    return weight_decay * batch_lr_factor(batch_tokens) * reference_tokens / tokens


def horizon_tokens(horizon: Mapping[str, Any], shape: Shape) -> tuple[float, float]:
    """(tokens of this run, tokens of the same recipe at depth 12), before rounding to steps; fixed steps count as the ratio's horizon."""
    ratio, counted = horizon["tokens_per_param"], horizon["counted_params"]
    own = horizon["tokens"] if horizon.get("tokens") and not horizon.get("steps") else ratio * shape.params[counted]
    return float(own), float(ratio * shape.reference_params[counted])


def automatic_batch(tokens: float, reference_tokens: float, sequence_len: int) -> int:
    """batch_rule, kept small enough for MIN_STEPS updates, as a whole number of rows (rounded to nearest)."""
    batch = batch_rule(tokens, reference_tokens)
    while batch > 2 * sequence_len and tokens / batch < MIN_STEPS:
        batch //= 2
    return max(1, round(batch / sequence_len)) * sequence_len


def check_batch(key: str, batch_tokens: int, *, sequence_len: int, ranks: int, micro_batch_rows: int | None) -> None:
    """Raise UserError with the nearest batch that works if `batch_tokens` does not divide into equal micro-batches."""
    unit = sequence_len * ranks * (micro_batch_rows or 1)
    if batch_tokens % unit:
        factors = f"{sequence_len} sequence_len x {ranks} ranks" + (f" x {micro_batch_rows} micro_batch_rows" if micro_batch_rows else "")
        cure = f"{key}={max(1, round(batch_tokens / unit)) * unit}"
        rows, left = divmod(batch_tokens, sequence_len * ranks)
        if micro_batch_rows and rows and not left:
            most = max(divisor for divisor in range(1, min(rows, micro_batch_rows) + 1) if rows % divisor == 0)
            cure = f"{key.split('.')[0]}.micro_batch_rows={most}, or {cure}"
        raise UserError(f"{key}={batch_tokens}: not a multiple of {unit} ({factors}); try {cure}")


# --- plans -----------------------------------------------------------------------------------------------------------


def optimizer_groups(optimizer: Mapping[str, Any], *, lr_factor: float, width: int, weight_decay: float) -> dict[str, dict[str, Any]]:
    """Settings of every parameter group. `lr_factor` (from the batch) applies to all but the smear scalars."""
    adamw_factor = lr_factor * width_lr_factor(width)

    def adamw(lr: float, betas: Any, decay: float) -> dict[str, Any]:
        return {"kind": "adamw", "lr": lr, "betas": [float(beta) for beta in betas], "eps": optimizer["epsilon"], "weight_decay": decay}

    o = optimizer
    muon_keys = ("orthogonalizer", "variance_reduction", "cautious_weight_decay", "row_equilibration")
    return {
        "matrix": {
            "kind": "muon",
            "lr": o["matrix_lr"] * lr_factor,
            "momentum": o["momentum_start"],
            "weight_decay": weight_decay,
            **{key: o[key] for key in muon_keys},
        },
        "head": adamw(o["head_lr"] * adamw_factor, o["head_betas"], o["head_weight_decay"]),
        "embedding": adamw(o["embedding_lr"] * adamw_factor, o["embedding_betas"], o["embedding_weight_decay"]),
        "value_embedding": adamw(o["value_embedding_lr"] * adamw_factor, o["embedding_betas"], o["head_weight_decay"]),
        "residual_scalar": adamw(o["scalar_lr"] * lr_factor, o["scalar_betas"], RESIDUAL_WEIGHT_DECAY),
        "x0_scalar": adamw(o["scalar_lr"] * X0_LR_FACTOR * lr_factor, X0_BETAS, 0.0),
        "smear_scalar": adamw(o["scalar_lr"] * SMEAR_LR_FACTOR, o["scalar_betas"], 0.0),
    }


def plan_base_train(resolved: Mapping[str, Any], shape: Shape, *, ranks: int = 1, most_rows: int | None = None) -> TrainingPlan:
    """Plan of base_train from its resolved hyper-parameters (`config.resolve_base_train`) and the model's shape.

    `most_rows`: how many rows at a time the machine holds (memory.most_rows); absent: what is fast on a CPU.
    """
    horizon, optimizer, schedule = resolved["horizon"], resolved["optimizer"], resolved["schedule"]
    tokens, reference_tokens = horizon_tokens(horizon, shape)
    batch = horizon["batch_tokens"] or automatic_batch(tokens, reference_tokens, shape.sequence_len)
    rows = resolved["micro_batch_rows"]
    check_batch("base_train.horizon.batch_tokens", batch, sequence_len=shape.sequence_len, ranks=ranks, micro_batch_rows=rows)
    steps = horizon.get("steps") or int(tokens // batch)
    if not steps:
        key = next(key for key in ("tokens", "tokens_per_param") if horizon.get(key))
        cure = "give more, a smaller horizon.batch_tokens, or horizon.steps"
        raise UserError(f"base_train.horizon.{key}={horizon[key]}: {int(tokens)} tokens are less than one batch of {batch}; {cure}")
    decay = optimizer["matrix_weight_decay"]
    if optimizer["scale_weight_decay"]:
        scaled = weight_decay_rule(decay, batch_tokens=batch, tokens=steps * batch, reference_tokens=reference_tokens)
        decay = min(scaled, max(MAX_WEIGHT_DECAY, decay))
    lr_factor = batch_lr_factor(batch) if horizon["scale_lr_with_batch"] else 1.0
    return TrainingPlan(
        steps=steps,
        batch_tokens=batch,
        sequence_len=shape.sequence_len,
        ranks=ranks,
        micro_batch_rows=rows or divided(batch // shape.sequence_len // ranks, most_rows or fast_rows(shape.sequence_len)),
        groups=optimizer_groups(optimizer, lr_factor=lr_factor, width=shape.width, weight_decay=decay),
        warmup_steps=min(schedule["warmup_steps"], int(MAX_WARMUP_SHARE * steps)),
        warmdown_fraction=schedule["warmdown_fraction"],
        final_lr_fraction=schedule["final_lr_fraction"],
        weight_decay_schedule=schedule["weight_decay_schedule"],
        momentum_start=optimizer["momentum_start"],
        momentum_peak=optimizer["momentum_peak"],
        momentum_final=optimizer["momentum_final"],
        momentum_warmup_steps=optimizer["momentum_warmup_steps"],
        grad_clip=optimizer["grad_clip"],
    )


def plan_tune(
    stage: str,
    section: Mapping[str, Any],
    parent: Mapping[str, Any],
    shape: Shape,
    *,
    rows: int,
    ranks: int = 1,
    most_rows: int | None = None,
) -> TrainingPlan:
    """Plan of mid_train or chat_sft: rates and batch of `parent` (base_train's plan as its model.json holds it) x lr_fraction.

    `rows`: packed rows of the mixture; the run sees each one at least `epochs` times. Weights do not decay.
    """
    batch = section["batch_tokens"] or parent["batch_tokens"]
    micro_batch_rows = section["micro_batch_rows"]
    check_batch(f"{stage}.batch_tokens", batch, sequence_len=shape.sequence_len, ranks=ranks, micro_batch_rows=micro_batch_rows)
    rows_per_step = batch // shape.sequence_len
    steps = max(1, math.ceil(rows * section["epochs"] / rows_per_step))
    groups = {name: {**group, "lr": group["lr"] * section["lr_fraction"], "weight_decay": 0.0} for name, group in parent["groups"].items()}
    return TrainingPlan(
        steps=steps,
        batch_tokens=batch,
        sequence_len=shape.sequence_len,
        ranks=ranks,
        micro_batch_rows=micro_batch_rows or divided(rows_per_step // ranks, most_rows or fast_rows(shape.sequence_len)),
        groups=groups,
        warmup_steps=round(section["warmup_fraction"] * steps),
        warmdown_fraction=section["warmdown_fraction"],
        final_lr_fraction=section["final_lr_fraction"],
        weight_decay_schedule="constant",
        momentum_start=parent["momentum_start"],
        momentum_peak=parent["momentum_peak"],
        momentum_final=parent["momentum_peak"],
        momentum_warmup_steps=parent["momentum_warmup_steps"],
        grad_clip=parent["grad_clip"],
    )
