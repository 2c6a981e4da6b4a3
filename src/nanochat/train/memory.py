"""How much memory training takes, by what holds it, and how many rows at a time fit. Pure arithmetic, free of torch.

The most is held at one of four moments of an update: while the loss is taken, while the backward pass is in the last block or in the
first one, or while the optimizer works. tests/test_memory.py compares the figures for a CPU with the peak of real training steps;
docs/explanation/estimates.md says where each figure comes from.

Legend: N tokens of a micro-batch, C width, KV channels of all keys, F hidden width of the MLP, P padded vocabulary, T positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import ModelConfig

Device = Literal["cpu", "cuda", "mps"]
Recompute = Literal["none", "blocks"]

GIB = 1 << 30
NOT_COUNTED = "compiled blocks keep less, fp8 keeps less and works with more: neither is counted"
LOGITS_AT_ONCE = 1 << 28  # of a GPU, as model/loss.py holds them; two buffers in fp32
LOGITS_AT_ONCE_CPU = 1 << 20
LEAST_ROWS_OF_LOGITS = 64
QUERIES = 128  # positions per block of attention on a CPU, as in model/kernels.py
# CUDA, its libraries, NCCL and what the allocator cannot use (assumption); on a CPU python and torch themselves (measured)
CONTEXT_BYTES: Mapping[Device, int] = {"cuda": 2 * GIB, "mps": 2 * GIB, "cpu": 300 << 20}
# of the memory: the rest is for what fragments. glibc's heap was up to half as large again as what lived in it
USABLE: Mapping[Device, float] = {"cuda": 0.85, "mps": 0.6, "cpu": 0.6}
PRODUCT_BYTES = 38 << 20  # MKL's copies of blocks of matrices, for one thread; measured
CPU_MICRO_BATCH_TOKENS = 4096  # larger ones leave the caches of a laptop core without being faster


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the moment of an update that needs most, by what holds them. `activations` is what the backward pass needs."""

    weights: int  # fp32, and what matrix products read of them in bf16
    gradients: int
    optimizer: int
    activations: int
    logits: int
    work: int  # what an operation writes before it is done
    context: int  # of the process, whatever it trains

    @property
    def total(self) -> int:
        """All together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Setting:
    """What of the machine decides how much is held."""

    device: Device = "cuda"
    number_bytes: int = 2  # of an activation: bf16; a CPU takes fp32
    accumulates: bool = True  # whether gradients of an earlier micro-batch are there while the next one is computed
    recompute: Recompute = "none"
    shards: int = 1  # ranks that share the optimizer's state

    @classmethod
    def of(cls, device: Device, *, accumulates: bool = True, recompute: Recompute = "none", shards: int = 1) -> "Setting":
        """The setting of a kind of device: bf16 on a GPU, fp32 on a CPU."""
        return cls(device, 4 if device != "cuda" else 2, accumulates, recompute, shards)


def optimizer_bytes(config: ModelConfig) -> int:
    """State of the optimizer in fp32: one moment per parameter of a matrix in a block (Muon), two of any other (AdamW)."""
    counts = config.parameter_counts()
    return 4 * counts["matrix"] + 8 * (counts["total"] - counts["matrix"])


def training_memory(config: ModelConfig, micro_batch_rows: int, setting: Setting | None = None) -> Memory:
    """Memory of one rank that trains with so many rows per forward pass; absent setting: a GPU in bf16."""
    setting = setting or Setting()
    counts, on_cpu = config.parameter_counts(), setting.device == "cpu"
    tokens, width, table = micro_batch_rows * config.sequence_len, config.width, 4 * counts["head"]
    stem, layers = stem_bytes(config, setting) * tokens, [layer_bytes(config, layer, setting) * tokens for layer in range(config.depth)]
    one, kept = max(layers), stem + sum(layers)
    if setting.recompute == "blocks":
        kept = stem + config.depth * setting.number_bytes * width * tokens
    again = one if setting.recompute == "blocks" else 0
    gradients, earlier = 4 * counts["total"], 4 * counts["total"] if setting.accumulates else 0
    at_once = min(tokens, max(LEAST_ROWS_OF_LOGITS, (LOGITS_AT_ONCE_CPU if on_cpu else LOGITS_AT_ONCE) // config.padded_vocab_size))
    if on_cpu and not again:
        kept += config.depth * 4 * width * (width + 2 * config.kv_width)  # weights of queries, keys and values, reordered
    logits = 4 * config.padded_vocab_size * 2 * at_once + (2 if on_cpu else 1) * table
    block = block_work(config, tokens, setting)
    moments: list[tuple[int, int, int, int]] = [  # gradients, activations, logits, work
        (earlier, kept, logits, setting.number_bytes * width * tokens),
        (earlier or table, kept + again, 0, block),
        (gradients, stem + one, 0, block + table),
        (gradients, 0, 0, update_work(config, setting)),
    ]
    weights = 4 * counts["total"] + (0 if setting.number_bytes == 4 else 2 * counts["scaling"])
    gradients, activations, logits, work = max(moments, key=sum)
    context = CONTEXT_BYTES[setting.device]
    return Memory(weights, gradients, optimizer_bytes(config) // setting.shards, activations, logits, work + PRODUCT_BYTES * on_cpu, context)


def most_rows(config: ModelConfig, memory_bytes: int | None, setting: Setting | None = None) -> int:
    """The most rows at a time that `memory_bytes` hold, at least 1. None: not known. A CPU takes no more than are fast there."""
    setting = setting or Setting()
    fast = fast_rows(config.sequence_len)
    if memory_bytes is None:
        return fast
    room = USABLE[setting.device] * memory_bytes

    def fits(rows: int) -> bool:
        return training_memory(config, rows, setting).total <= room

    if setting.device == "cpu":
        return next((rows for rows in range(fast, 1, -1) if fits(rows)), 1)
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fast_rows(sequence_len: int) -> int:
    """Rows at a time that are fast on a CPU."""
    return max(1, CPU_MICRO_BATCH_TOKENS // sequence_len)


def divided(rows_per_rank: int, most: int) -> int:
    """The largest divisor of `rows_per_rank` that is not above `most`: equal micro-batches."""
    return max(divisor for divisor in range(1, max(1, min(most, rows_per_rank)) + 1) if rows_per_rank % divisor == 0)


def stem_bytes(config: ModelConfig, setting: Setting) -> int:
    """Per token, what is kept for backward outside the blocks: normed embedding, smear and backout, normed output; ids and targets."""
    of_width = 2 + 2 * config.smear + config.backout
    return setting.number_bytes * config.width * of_width + 16


def layer_bytes(config: ModelConfig, layer: int, setting: Setting) -> int:
    """Per token, what one block keeps for the backward pass."""
    number, C, KV, F = setting.number_bytes, config.width, config.kv_width, config.mlp_ratio * config.width
    values = KV * (layer in config.value_embedding_layers)  # the embedding beside the gated sum, which stands for the values
    mixed = C * config.residual_lambdas
    if setting.device != "cpu":  # norms keep their input in fp32
        return 2 * C * (4 + number) + 4 * (C + KV) * config.qk_norm + number * (2 * C + 2 * KV + 2 * F + values + mixed)
    kept_twice = KV * (layer in config.value_embedding_layers)  # values before the sum stay with queries and keys, of which they are a part
    return number * (mixed + C + C + 2 * KV + values + kept_twice + C + C + F) + number * softmax_elements(config, layer)


def softmax_elements(config: ModelConfig, layer: int) -> int:
    """Per token, the weights that attention on a CPU keeps: of all positions that the queries of a block see between them."""
    T, window = config.sequence_len, config.windows[layer]
    starts = range(0, T, QUERIES)
    seen = sum((min(T, start + QUERIES) - start) * (min(T, start + QUERIES) - (max(0, start - window + 1) if window else 0)) for start in starts)
    return config.heads * seen // T


def block_work(config: ModelConfig, tokens: int, setting: Setting) -> int:
    """What the backward pass of a block writes: gradients of its input, of queries, keys and values, and of a weight."""
    C, KV = config.width, config.kv_width
    return setting.number_bytes * tokens * (3 * C + KV) + 8 * config.mlp_ratio * C * C


def update_work(config: ModelConfig, setting: Setting) -> int:
    """What Muon needs for the largest stack of equal matrices: gradients, updates, two iterates and two products of them."""
    C, KV, depth = config.width, config.kv_width, config.depth
    number = 4 if setting.device == "cpu" else 2
    stacks: dict[tuple[int, int], int] = {}
    for rows, columns in [(C, C), (KV, C), (KV, C), (C, C), (config.mlp_ratio * C, C), (C, config.mlp_ratio * C)]:
        stacks[rows, columns] = stacks.get((rows, columns), 0) + depth
    return max(count * (rows * columns * (8 + 2 * number) + 2 * number * min(rows, columns) ** 2) for (rows, columns), count in stacks.items())
