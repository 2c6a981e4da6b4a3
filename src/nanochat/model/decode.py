"""One more token for every row of a cache, on a CPU: the operations of the model, as few of them as there can be.

For a single position a CPU spends more time on calling operations than on computing them. So here the three projections are one product,
factors are plain numbers, and attention is two products; `gpt` and `attention` hold the same steps for everything else, and tests compare the
two. Each weight lies as it is multiplied fastest by one or two rows, or by more of them: see `arranged`.

Legend: B rows, C width, H heads, D channels of a head, K visible positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import FullAttention
from nanochat.model.cache import KVCache
from nanochat.model.gpt import GPT, Block
from nanochat.model.kernels import is_plain_cpu
from nanochat.model.layers import Embedding

ROWS_IN_BLOCKS = 3  # measured: two rows are still faster without
COLUMNS = 32  # of a block; measured: 16 to 128 differ by less than a tenth
LEAST_COLUMNS = 8  # assumption: no model has so odd a width, and its blocks would be too narrow to be worth anything


class Decoder:
    """A model as it is now, for about so many rows at a time; make another one when it no longer `suits`. Call it without gradients.

    It holds a second copy of the weights of blocks and of the head, and works for any number of rows, only slower for others.
    """

    def __init__(self, model: GPT, rows: int) -> None:
        self._model, config = model, model.config
        self._versions, self._in_blocks = _versions(model), rows >= ROWS_IN_BLOCKS
        self._head = arranged(model.head.weight, in_blocks=self._in_blocks)
        self._layers = [_Layer(block, in_blocks=self._in_blocks) for block in model.blocks if isinstance(block, Block)]
        self._half, self._epsilon = config.head_dim // 2, torch.tensor(torch.finfo(model.dtype).eps, dtype=model.dtype)
        self._cos = torch.cat([model.cos, model.cos], dim=-1).to(model.dtype)  # (T, 1, D)
        self._sin = torch.cat([model.sin, -model.sin], dim=-1).to(model.dtype)
        self._residual = model.residual_lambdas.tolist() if config.residual_lambdas else None
        self._first = model.x0_lambdas.tolist() if config.residual_lambdas else None
        self._value_embeddings = {int(layer): embedding.weight for layer, embedding in model.value_embeddings.items() if isinstance(embedding, Embedding)}
        self._smear = float(model.smear_lambda) if config.smear else None
        self._backout = float(model.backout_lambda) if config.backout else None

    @staticmethod
    def applies_to(model: GPT) -> bool:
        """Whether this is the right way for `model`: on a CPU in full precision, with attention that it knows."""
        weight = model.head.weight
        return weight.dtype == model.dtype and is_plain_cpu(weight) and all(type(block.attention) is FullAttention for block in model.blocks)

    def suits(self, rows: int) -> bool:
        """Whether it is made for so many rows, and no weight was changed since, as training does."""
        return self._in_blocks == (rows >= ROWS_IN_BLOCKS) and self._versions == _versions(self._model)

    def logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after ids (B,), which continue the rows of the cache and are added to it."""
        logits, cap = product(self.hidden(ids, cache), self._head)[:, : self._model.config.vocab_size], self._model.config.softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    def hidden(self, ids: Tensor, cache: KVCache) -> Tensor:
        """As `GPT.hidden` for one token a row: ids (B,) continue the rows of the cache and are added to it; (B, C)."""
        model = self._model
        previous = cache.begin(ids[:, None])
        step = _Step(cache, self._cos, self._sin)
        x = self._norm(F.embedding(ids, model.embedding.weight))
        if self._smear is not None:
            before = self._norm(F.embedding(previous.clamp(min=0), model.embedding.weight)) * (previous >= 0)[:, None]
            gate = torch.sigmoid(torch.mm(x[:, : model.smear_gate.inputs], model.smear_gate.weight.t()))
            x = torch.addcmul(x, gate, before, value=self._smear)
        x0, middle = x, x
        for number, layer in enumerate(self._layers):
            if self._residual is not None and self._first is not None:
                x = torch.mul(x, self._residual[number]).add_(x0, alpha=self._first[number])
            value_embedding = F.embedding(ids, self._value_embeddings[number]) if number in self._value_embeddings else None
            x = self._block(layer, number, x, step, value_embedding)
            if number == model.config.middle_layer:
                middle = x
        if self._backout is not None:
            x = torch.sub(x, middle, alpha=self._backout)
        cache.advance(1)
        return self._norm(x)

    def _block(self, layer: "_Layer", number: int, x: Tensor, step: "_Step", value_embedding: Tensor | None) -> Tensor:
        B, heads, kv_heads = len(x), layer.heads, layer.kv_heads
        y = self._norm(x)
        mixed = product(y, layer.projections).view(B, heads + 2 * kv_heads, -1)
        turned, values = mixed[:, : heads + kv_heads], mixed[:, heads + kv_heads :]
        turned = torch.mul(turned, step.cos).addcmul_(turned.roll(self._half, -1), step.sin)
        if layer.qk_norm:
            turned = self._norm(turned)
        if value_embedding is not None and layer.gate is not None:
            strength = torch.sigmoid(torch.mm(y[:, : layer.gate_inputs], layer.gate))  # (B, Hkv)
            values = torch.addcmul(values, strength[..., None], value_embedding.view(B, kv_heads, -1), value=3)
        step.cache.append(number, turned[:, heads:], values)
        first, hidden = step.seen(layer.window)
        keys, kept = step.cache.visible(number, first)  # (B * Hkv, K, D)
        queries = turned[:, :heads].reshape(B * kv_heads, heads // kv_heads, -1)
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(layer.scale)
        if hidden is not None:
            scores.view(B, kv_heads, heads // kv_heads, -1).masked_fill_(hidden, float("-inf"))
        attended = torch.bmm(torch.softmax(scores, dim=-1), kept)
        x = added_product(x, attended.view(B, -1), layer.output)
        wide = product(self._norm(x), layer.up).relu_()
        return added_product(x, wide.mul_(wide), layer.down)

    def _norm(self, x: Tensor) -> Tensor:
        """RMS norm over the last dimension, in four operations."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._epsilon, size, size, value=1 / x.shape[-1]).rsqrt_()


def arranged(weight: Tensor, *, in_blocks: bool) -> Tensor:
    """A weight (outputs, inputs) to multiply rows by, from the right; reports/log.md has what was measured.

    One or two rows read a weight through, and fastest along its longer side: (inputs, outputs), lying one way or the other. For more of
    them MKL's product of a few rows is no faster than its batched one, which is spared the repacking: (blocks, inputs, COLUMNS).
    """
    weight = weight.detach()
    outputs, inputs = weight.shape
    columns = math.gcd(outputs, COLUMNS)
    if not in_blocks or columns < LEAST_COLUMNS:
        return weight.t().contiguous() if outputs >= inputs else weight.t()
    return weight.view(outputs // columns, columns, inputs).transpose(1, 2).contiguous()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, inputs) times a weight that is `arranged`: (B, outputs), contiguous."""
    if weight.ndim == 2:
        return torch.mm(x, weight)
    return torch.bmm(x.expand(len(weight), -1, -1), weight).transpose(0, 1).reshape(len(x), -1)


def added_product(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`base` (B, outputs) plus the product."""
    return torch.addmm(base, x, weight) if weight.ndim == 2 else product(x, weight).add_(base)


def _versions(model: GPT) -> list[tuple[int, int]]:
    """Of every weight: where it lies, and torch's count of the changes made to it in place."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


class _Layer:
    """Weights of a block, ready to be multiplied from the right."""

    def __init__(self, block: Block, *, in_blocks: bool) -> None:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, FullAttention)
        self.heads, self.kv_heads, self.qk_norm, self.window, self.scale = (
            *(attention.heads, attention.kv_heads, attention.qk_norm),
            *(attention.window, attention.scale),
        )
        projections = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        self.projections, self.output, self.up, self.down = (
            arranged(weight, in_blocks=in_blocks) for weight in (projections, attention.output.weight, mlp.up.weight, mlp.down.weight)
        )
        self.gate = None if attention.gate is None else attention.gate.weight.detach().t()
        self.gate_inputs = 0 if attention.gate is None else attention.gate.inputs


class _Step:
    """What all layers share for one token: where each row is, and what it sees."""

    def __init__(self, cache: KVCache, cos: Tensor, sin: Tensor) -> None:
        self.cache, lengths = cache, cache.lengths
        self.end = max(lengths) + 1
        if cache.is_uniform:
            self.positions = None
            self.cos, self.sin = cos[lengths[0]], sin[lengths[0]]
        else:
            self.positions = torch.tensor(lengths)
            self.cos, self.sin = cos[self.positions], sin[self.positions]
        self._seen: dict[int | None, tuple[int, Tensor | None]] = {}

    def seen(self, window: int | None) -> tuple[int, Tensor | None]:
        """The first position that a row sees, and which from there on a row does not see (B, 1, 1, K); None: every row sees all of them."""
        if window not in self._seen:
            self._seen[window] = self._look(window)
        return self._seen[window]

    def _look(self, window: int | None) -> tuple[int, Tensor | None]:
        first = 0 if window is None else max(0, min(self.cache.lengths) + 1 - window)
        if self.positions is None:
            return first, None
        distance = self.positions[:, None, None, None] - torch.arange(first, self.end)
        return first, (distance < 0) | (distance >= (window or math.inf))
