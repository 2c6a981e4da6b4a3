"""Shape of a model: every feature of the architecture is a field, so that the saved dict rebuilds the same model.

Free of torch: the plan computes sizes and FLOPs from here before anything is built.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

VOCAB_MULTIPLE = 64  # rows of embedding and head are padded to this: faster matrix products, even shards
WINDOW_MULTIPLE = 128
GATE_CHANNELS = 12  # of the block's input, read by the gate of a value embedding
SMEAR_CHANNELS = 24  # of the token embedding, read by the smear gate


@dataclass(frozen=True)
class ModelConfig:
    """All of a model but its weights. Raises ValueError for a shape that cannot be built."""

    vocab_size: int
    sequence_len: int  # longest context: rotary tables end here
    depth: int
    width: int
    heads: int
    kv_heads: int  # a divisor of heads
    mlp_ratio: int
    rope_base: float
    qk_norm: bool  # RMS norm of queries and keys, after the rotation
    qk_scale: float  # factor on queries and on keys
    value_embeddings: Literal["none", "alternate"]  # alternate: every second layer, the last one included
    residual_lambdas: bool  # x = a * x + b * x0 before each block, a and b learned per layer
    smear: bool  # add a gated share of the previous token's embedding
    backout: bool  # subtract a learned share of the output of `middle_layer` before the head
    softcap: float  # logits = c * tanh(logits / c); 0: none
    window_pattern: str  # per layer, repeated: S sees a quarter of the context, L all of it; the last layer is L
    attention: str  # a key of attention.ATTENTION
    init: Literal["classic", "modern"]

    def __post_init__(self) -> None:
        for key in ("vocab_size", "sequence_len", "depth", "width", "heads", "kv_heads", "mlp_ratio", "rope_base", "qk_scale"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)}: must be positive; give a larger value")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: not a multiple of heads={self.heads}; try {-(-self.width // self.heads) * self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: odd, the rotary embedding needs pairs; try {self.head_dim + 1}")
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise ValueError(f"kv_heads={self.kv_heads}: not a divisor of heads={self.heads}; choose one of {divisors}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(f"window_pattern={self.window_pattern!r}: made of S and L only, such as SSSL")
        if self.softcap < 0:
            raise ValueError(f"softcap={self.softcap}: must not be negative; 0 means none")
        for key, choices in (("value_embeddings", ("none", "alternate")), ("init", ("classic", "modern"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)!r}: choose one of {', '.join(choices)}")

    @classmethod
    def from_depth(cls, depth: int, *, vocab_size: int, sequence_len: int, architecture: Mapping[str, Any]) -> "ModelConfig":
        """Shape for a depth: width = depth x aspect_ratio, rounded up to whole heads. `architecture`: a recipe's keys."""
        rest = dict(architecture)
        aspect_ratio, head_dim, width = rest.pop("aspect_ratio"), rest.pop("head_dim"), rest.pop("width", None)
        if width is None:
            width = -(-depth * aspect_ratio // head_dim) * head_dim
        elif width % head_dim:
            raise ValueError(f"width={width}: not a multiple of head_dim={head_dim}; try {-(-width // head_dim) * head_dim}")
        heads = width // head_dim
        rest["kv_heads"] = rest["kv_heads"] or heads
        return cls.from_dict({"vocab_size": vocab_size, "sequence_len": sequence_len, "depth": depth, "width": width, "heads": heads, **rest})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ModelConfig":
        """Rebuild from `to_dict`. An unknown or a missing key is a ValueError: no default may change a saved model."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(content) - names):
            raise ValueError(f"architecture.{unknown[0]}: unknown key; this version knows {', '.join(sorted(names))}")
        if missing := sorted(names - set(content)):
            raise ValueError(f"architecture.{missing[0]}: missing; a saved model names every key")
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain data."""
        return asdict(self)

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Channels of all keys (or values) of a position."""
        return self.kv_heads * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of embedding and head."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def windows(self) -> list[int | None]:
        """Per layer: how many positions a query sees, itself included; None: all before it."""
        short = -(-self.sequence_len // (4 * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE
        pattern = [self.window_pattern[layer % len(self.window_pattern)] for layer in range(self.depth - 1)] + ["L"]
        return [short if kind == "S" and short < self.sequence_len else None for kind in pattern]

    @property
    def middle_layer(self) -> int:
        """The layer whose output `backout` takes from the last one's; never the last itself, of which any share is only a scale, or at a share above 1 a
        change of sign. -1, with one layer: the first block's input.
        """
        return min(self.depth // 2, self.depth - 2)

    @property
    def value_embedding_layers(self) -> list[int]:
        """Layers whose values get a token embedding added."""
        return [layer for layer in range(self.depth) if layer % 2 == (self.depth - 1) % 2] if self.value_embeddings == "alternate" else []

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters by kind; `scaling` (block matrices and head) is what the scaling rules count."""
        layers = len(self.value_embedding_layers)
        table = self.padded_vocab_size * self.width
        block = 2 * self.width**2 + 2 * self.width * self.kv_width + 2 * self.mlp_ratio * self.width**2
        counts = {
            "embedding": table,
            "value_embedding": layers * self.padded_vocab_size * self.kv_width,
            "matrix": self.depth * block + layers * min(GATE_CHANNELS, self.width) * self.kv_heads,
            "head": table,
            "scalar": 2 * self.depth * self.residual_lambdas + (min(SMEAR_CHANNELS, self.width) + 1) * self.smear + self.backout,
        }
        return {**counts, "scaling": counts["matrix"] + counts["head"], "total": sum(counts.values())}

    def flops_per_token(self) -> int:
        """Training FLOPs per token: 6 per parameter in matrix products, 12 per width and visible position (full T, not T/2)."""
        visible = sum(min(window or self.sequence_len, self.sequence_len) for window in self.windows)
        return 6 * self.parameter_counts()["scaling"] + 12 * self.width * visible
