"""The transformer: token ids in, logits or loss out. Everything optional is a field of ModelConfig.

Legend: B rows, T positions, C width, V vocabulary. Weights are fp32; activations have the dtype given to GPT.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model import kernels
from nanochat.model.attention import ATTENTION, Context
from nanochat.model.cache import KVCache
from nanochat.model.config import SMEAR_CHANNELS, ModelConfig
from nanochat.model.layers import Embedding, Linear, norm, rotary_table
from nanochat.model.loss import summed_cross_entropy, token_cross_entropy
from nanochat.model.recompute import recomputed
from nanochat.model.windows import Windowed, usable


class MLP(nn.Module):
    """Two products around a squared ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.mlp_ratio * config.width)
        self.down = Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        y: Tensor = self.down(F.relu(self.up(x)).square())
        return y


class Block(nn.Module):
    """Attention and MLP, each on a normalised input and added to the residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = ATTENTION[config.attention](config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context, value_embedding: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, M, C), at the positions that the context asks for."""
        x = context.picked(x) + self.attention(norm(x), context, value_embedding)
        if kernels.applies_to(x):
            return kernels.residual_mlp(x, self.mlp.up.weight, self.mlp.down.weight)
        y: Tensor = x + self.mlp(norm(x))
        return y


class GPT(nn.Module):
    """A causal language model. Initialised on construction, from `generator` (absent: one seeded with 0), but not on "meta" nor when it is `blank`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None, blank: bool = False) -> None:
        super().__init__()
        if config.attention not in ATTENTION:
            raise ValueError(f"attention={config.attention!r}: not a variant; choose one of {', '.join(ATTENTION)}")
        self.config = config
        self.dtype = dtype  # of activations
        self.recompute = False  # of each block keep the input alone for the backward pass, and compute the rest of it again there
        self.windowed: Windowed | None = None  # attention over a window on a GPU; None: SDPA with a mask
        self.embedding = Embedding(config.padded_vocab_size, config.width)
        self.value_embeddings = nn.ModuleDict({str(layer): Embedding(config.padded_vocab_size, config.kv_width) for layer in config.value_embedding_layers})
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.head = Linear(config.width, config.padded_vocab_size)
        if config.residual_lambdas:
            self.residual_lambdas = nn.Parameter(torch.empty(config.depth))
            self.x0_lambdas = nn.Parameter(torch.empty(config.depth))
        if config.smear:
            self.smear_gate = Linear(min(SMEAR_CHANNELS, config.width), 1)
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        self.reset_tables()
        if not blank and not self.head.weight.is_meta:
            self.init_weights(generator or torch.Generator().manual_seed(0))

    def reset_tables(self) -> None:
        """Compute the rotary tables on the weights' device, from values of the CPU; they are not saved."""
        device = self.head.weight.device
        cos, sin = rotary_table(self.config.sequence_len, self.config.head_dim, self.config.rope_base)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Set every parameter, drawing from a CPU generator: the same weights on every device."""
        initialise(self, generator)
        self.reset_tables()

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) in fp32 for ids (B, T). With a cache, ids continue its rows and are added to it."""
        return self.logits(self.hidden(ids, cache))

    def hidden(self, ids: Tensor, cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        """Normalised output of the last block (B, T, C).

        `at` (B, M), without gradients: at these positions of ids alone (B, M, C); of the others the last block computes keys and values, no more.
        """
        context, previous = self._context(ids, cache)
        x = norm(self.embedding(ids).to(self.dtype))
        if self.config.smear:
            x = self._smear(x, previous)
        x0, middle = x, x
        if self.recompute:  # a block that is computed again must find its mask
            for window in set(self.config.windows):
                context.mask(window, ids.shape[1], ids.device)
        for layer in range(self.config.depth):
            if at is not None and layer == self.config.depth - 1:
                assert not torch.is_grad_enabled()
                context = replace(context, at=at, masks={})
                middle = context.picked(middle)
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = recomputed(partial(self._layer, layer, ids, context), x, x0)
            else:
                x = self._layer(layer, ids, context, x, x0)
            if layer == self.config.middle_layer:
                middle = x
        if self.config.backout:
            x = x - self.backout_lambda.to(x.dtype) * middle
        if cache is not None:
            cache.advance(ids.shape[1])
        return norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) in fp32 (fp64 for an fp64 model); the cap is computed in it too."""
        logits = self.head(hidden)[..., : self.config.vocab_size]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        cap = self.config.softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    @overload
    def loss(self, ids: Tensor, targets: Tensor, *, reduction: Literal["sum"] = "sum") -> tuple[Tensor, Tensor]: ...

    @overload
    def loss(self, ids: Tensor, targets: Tensor, *, reduction: Literal["none"]) -> Tensor: ...

    def loss(self, ids: Tensor, targets: Tensor, *, reduction: Literal["sum", "none"] = "sum") -> tuple[Tensor, Tensor] | Tensor:
        """Cross entropy in nats, fp32; targets (B, T) of -1 count nothing.

        sum: (sum over targets, number of targets), logits held for some rows at a time only. none: per position (B, T).
        """
        hidden = self.hidden(ids)
        if reduction == "sum":
            return self.loss_of(hidden, targets)
        flat, vocab_size, cap = targets.flatten(), self.config.vocab_size, self.config.softcap
        return token_cross_entropy(hidden.flatten(0, 1), self.head.weight, flat, vocab_size=vocab_size, softcap=cap).view(targets.shape)

    def loss_of(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss, and number of targets, of what `hidden` returned."""
        flat = targets.flatten()
        total = summed_cross_entropy(hidden.flatten(0, 1), self.head.weight, flat, vocab_size=self.config.vocab_size, softcap=self.config.softcap)
        return total, (flat >= 0).sum()

    def _context(self, ids: Tensor, cache: KVCache | None) -> tuple[Context, Tensor | None]:
        T = ids.shape[1]
        if cache is None:
            if self.config.sequence_len < T:
                raise ValueError(f"T={T}: longer than sequence_len={self.config.sequence_len}; cut the rows")
            return Context(self.cos[:T].to(self.dtype), self.sin[:T].to(self.dtype), windowed=usable(self.windowed)), None
        previous = cache.begin(ids)
        positions = cache.positions(T)
        return Context(self.cos[positions].to(self.dtype), self.sin[positions].to(self.dtype), cache), previous

    def _layer(self, layer: int, ids: Tensor, context: Context, x: Tensor, x0: Tensor) -> Tensor:
        """x (B, T, C) -> (B, M, C); x0: input of the first block."""
        if self.config.residual_lambdas:
            x = self.residual_lambdas[layer].to(x.dtype) * x + self.x0_lambdas[layer].to(x.dtype) * x0
        key = str(layer)
        y: Tensor = self.blocks[layer](x, context, self.value_embeddings[key](ids).to(self.dtype) if key in self.value_embeddings else None)
        return y

    def _smear(self, x: Tensor, previous: Tensor | None) -> Tensor:
        """Add to each embedding (B, T, C) a gated share of the one before; `previous` (B,): ids before the first, -1: none."""
        if previous is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
        else:
            first = norm(self.embedding(previous.clamp(min=0)).to(x.dtype)) * (previous >= 0)[:, None].to(x.dtype)
            before = torch.cat([first[:, None], x[:, :-1]], dim=1)
        gate = torch.sigmoid(self.smear_gate(x[..., : self.smear_gate.inputs]))  # (B, T, 1)
        return x + self.smear_lambda.to(x.dtype) * gate * before

    def use_fp8(self) -> None:
        """Compute the products of blocks in eight bits where their sizes allow it, in training."""
        for module in self.blocks.modules():
            if isinstance(module, Linear):
                module.fp8 = True

    # --- for the optimizer -------------------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """(name, parameter) pairs by the kind of update they need; every parameter once."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in PARAMETER_GROUPS}
        for name, parameter in self.named_parameters():
            groups[next(group for group, prefixes in PARAMETER_GROUPS.items() if name.startswith(prefixes))].append((name, parameter))
        return groups


PARAMETER_GROUPS: dict[str, tuple[str, ...]] = {
    "matrix": ("blocks.",),
    "head": ("head.",),
    "embedding": ("embedding.",),
    "value_embedding": ("value_embeddings.",),
    "residual_scalar": ("residual_lambdas",),
    "x0_scalar": ("x0_lambdas",),
    "smear_scalar": ("smear_gate.", "smear_lambda", "backout_lambda"),
}


def initialise(model: GPT, generator: torch.Generator) -> None:
    """Set the weights of `model` as its config's `init` says.

    classic: matrices normal with std min(1, sqrt(fan_out / fan_in)) / sqrt(fan_in), embeddings N(0, 1), outputs and head 0.
    modern: uniform with std 1 / sqrt(fan_in) (0.4 of it into the MLP), embeddings N(0, 0.8), head N(0, 0.001), outputs 0.
    """
    classic, config = model.config.init == "classic", model.config
    uniform_bound = (3 / config.width) ** 0.5  # std 1 / sqrt(width)

    def normal(parameter: Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def uniform(parameter: Tensor, low: float, high: float) -> None:
        parameter.copy_(torch.rand(parameter.shape, generator=generator) * (high - low) + low)

    for name, parameter in model.named_parameters():
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind in ("output", "down") or (classic and kind == "head"):
            parameter.zero_()
        elif kind in ("gate", "smear_gate"):
            uniform(parameter, 0.0, 0.02)
        elif kind == "head":
            normal(parameter, 0.001)
        elif kind == "embedding":
            normal(parameter, 1.0 if classic else 0.8)
        elif kind == "residual_lambdas":
            parameter.copy_(torch.ones(config.depth) if classic else torch.linspace(1.15, 1.05, config.depth))
        elif kind == "x0_lambdas":
            parameter.copy_(torch.zeros(config.depth) if classic else torch.linspace(0.20, 0.05, config.depth))
        elif kind in ("smear_lambda", "backout_lambda"):
            parameter.fill_(0.2 if kind == "backout_lambda" and not classic else 0.0)
        elif name.startswith("value_embeddings."):
            uniform(parameter, -uniform_bound, uniform_bound)
        elif classic:
            outputs, inputs = parameter.shape
            normal(parameter, min(1.0, (outputs / inputs) ** 0.5) / inputs**0.5)
        else:
            bound = uniform_bound * (0.4 if kind == "up" else 1.0)
            uniform(parameter, -bound, bound)
