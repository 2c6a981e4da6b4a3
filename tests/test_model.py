"""The transformer against the slow way, every feature on and off, cached and whole."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import OFF, ON, config, shaken, some_ids
from torch import Tensor

from nanochat.model.attention import ATTENTION
from nanochat.model.cache import KVCache
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT, PARAMETER_GROUPS
from nanochat.recipes import RECIPES

VARIANTS = [
    pytest.param({"attention": name, **features}, id=f"{name}-{'-'.join(f'{k}={v}' for k, v in features.items()) or 'default'}")
    for name in ATTENTION
    for features in ({}, {"kv_heads": 2}, {"kv_heads": 1, "smear": False}, {"window_pattern": "SSL", "sequence_len": 400}, {"value_embeddings": "none"})
]


# --- shapes and counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "total", "flops"),
    [(4, 36_700_160, 1.45e8), (12, 185_597_952, 1.038e9), (20, 560_988_160, 3.491758e9), (26, 1_081_999_360, 6.90e9), (32, 1_879_048_192, 1.20796e10)],
)
def test_classic_sizes_and_flops_are_the_published_ones(depth: int, total: int, flops: float) -> None:
    shape = ModelConfig.from_depth(depth, vocab_size=65_536, sequence_len=2048, architecture=RECIPES["classic-2025-11"]["architecture"])
    assert shape.parameter_counts()["total"] == total
    assert shape.flops_per_token() == pytest.approx(flops, rel=3e-3)


@pytest.mark.parametrize(
    ("depth", "total_m", "scaling_m", "flops_full", "flops_windows"),
    [
        (4, 36.7, 11.5, 9.44e7, 8.02e7),
        (6, 73.5, 23.2, 1.96e8, 1.68e8),
        (8, 125.8, 41.9, 3.52e8, 2.96e8),
        (12, 286.3, 110.1, 8.87e8, 7.60e8),
        (16, 536.9, 234.9, 1.81e9, 1.59e9),
        (20, 896.5, 435.2, 3.24e9, 2.89e9),
        (24, 1384, 729.8, 5.29e9, 4.78e9),
        (32, 2819, 1678, 1.17e10, 1.08e10),
    ],
)
def test_modern_sizes_and_flops_are_the_published_ones(depth: int, total_m: float, scaling_m: float, flops_full: float, flops_windows: float) -> None:
    architecture = RECIPES["modern-2026-07"]["architecture"]
    full, windowed = (
        ModelConfig.from_depth(depth, vocab_size=32_768, sequence_len=2048, architecture={**architecture, "window_pattern": pattern})
        for pattern in ("L", "SSSL")
    )
    assert full.parameter_counts()["total"] == pytest.approx(total_m * 1e6, rel=2e-3)
    assert full.parameter_counts()["scaling"] == pytest.approx(scaling_m * 1e6, rel=5e-3)
    assert full.flops_per_token() == pytest.approx(flops_full, rel=5e-3)
    assert windowed.flops_per_token() == pytest.approx(flops_windows, rel=5e-3)


def test_published_d24_has_its_exact_number_of_parameters() -> None:
    shape = ModelConfig.from_depth(24, vocab_size=32_768, sequence_len=2048, architecture=RECIPES["modern-2026-07"]["architecture"])
    assert shape.parameter_counts()["total"] == 1_384_122_122


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("depth", [*range(1, 14), 20])
def test_counts_are_those_of_the_built_model(depth: int, recipe: str) -> None:
    shape = ModelConfig.from_depth(depth, vocab_size=1000, sequence_len=128, architecture=RECIPES[recipe]["architecture"])
    with torch.device("meta"):
        model = GPT(shape)
    counts = shape.parameter_counts()
    assert sum(parameter.numel() for parameter in model.parameters()) == counts["total"]
    groups = model.parameter_groups()
    for kind in ("matrix", "head", "embedding", "value_embedding"):
        assert sum(parameter.numel() for _, parameter in groups[kind]) == counts[kind]
    assert shape.width % shape.heads == 0
    assert shape.width >= depth * 64


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_shallow_and_odd_depths_run(depth: int) -> None:
    architecture = {**RECIPES["modern-2026-07"]["architecture"], "head_dim": 24, "aspect_ratio": 16}
    model = shaken(ModelConfig.from_depth(depth, vocab_size=70, sequence_len=16, architecture=architecture))
    total, count = model.loss(some_ids(2, 16), some_ids(2, 16, seed=1))
    total.backward()  # type: ignore[no-untyped-call]
    assert count == 32
    assert torch.isfinite(total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "width=32: not a multiple of heads=5; try 35"),
        ({"heads": 32, "kv_heads": 32}, "head_dim=1: odd, the rotary embedding needs pairs; try 2"),
        ({"kv_heads": 3}, "kv_heads=3: not a divisor of heads=4"),
        ({"depth": 0}, "depth=0: must be positive"),
        ({"window_pattern": "SX"}, "window_pattern='SX'"),
        ({"window_pattern": ""}, "window_pattern=''"),
        ({"softcap": -1.0}, "softcap=-1.0"),
        ({"init": "new"}, "init='new': choose one of classic, modern"),
        ({"value_embeddings": "all"}, "value_embeddings='all'"),
    ],
)
def test_impossible_shapes_are_refused_with_the_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        config(**changes)


def test_width_that_does_not_fit_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="width=200: not a multiple of head_dim=128; try 256"):
        ModelConfig.from_depth(4, vocab_size=70, sequence_len=16, architecture={**RECIPES["modern-2026-07"]["architecture"], "width": 200})


def test_config_round_trips_and_refuses_unknown_and_missing_keys() -> None:
    """A flag that was not saved made reloaded models worse in silence."""
    shape = config(window_pattern="SL", kv_heads=2)
    assert ModelConfig.from_dict(shape.to_dict()) == shape
    assert set(shape.to_dict()) == {field.name for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(ValueError, match=r"architecture\.smeer: unknown key"):
        ModelConfig.from_dict({**shape.to_dict(), "smeer": True})
    for key in shape.to_dict():
        with pytest.raises(ValueError, match=rf"architecture\.{key}: missing"):
            ModelConfig.from_dict({name: value for name, value in shape.to_dict().items() if name != key})


def test_windows_are_a_quarter_of_the_context_and_the_last_layer_is_full() -> None:
    assert config(window_pattern="SSSL", sequence_len=2048, depth=6).windows == [512, 512, 512, None, 512, None]
    assert config(window_pattern="S", sequence_len=600, depth=2).windows == [256, None]
    assert config(window_pattern="S", sequence_len=128, depth=2).windows == [None, None]


def test_unknown_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attention='fast': not a variant; choose one of full"):
        GPT(config(attention="fast"))


# --- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["classic", "modern"])
def test_every_parameter_has_its_declared_start(init: str) -> None:
    """Parameters that were never initialised once trained from garbage."""
    shape = config(init=init, width=128, kv_heads=2, vocab_size=640)
    classic = init == "classic"
    spread = {
        "embedding.weight": 1.0 if classic else 0.8,
        "head.weight": 0.0 if classic else 0.001,
        "query.weight": 128**-0.5,
        "key.weight": 128**-0.5 * (0.5**0.5 if classic else 1.0),
        "up.weight": 128**-0.5 * (1.0 if classic else 0.4),
        "output.weight": 0.0,
        "down.weight": 0.0,
        "gate.weight": 0.02 / 12**0.5,
        "smear_lambda": 0.0,
    }
    for name, parameter in GPT(shape).named_parameters():
        assert torch.isfinite(parameter).all(), name
        for ending, expected in spread.items():
            if name.endswith(ending) and not name.startswith(("value_embeddings", "smear_gate")):
                assert parameter.std(unbiased=False).item() == pytest.approx(expected, rel=0.15, abs=1e-9), name
    model = GPT(shape)
    ends = (model.residual_lambdas[0], model.residual_lambdas[-1], model.x0_lambdas[0], model.x0_lambdas[-1], model.backout_lambda[0])
    assert [round(value.item(), 6) for value in ends] == ([1, 1, 0, 0, 0] if classic else [1.15, 1.05, 0.2, 0.05, 0.2])


def test_weights_follow_the_generator_and_leave_global_randomness_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, same, other = (GPT(config(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    other.init_weights(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_model_built_on_meta_is_complete_once_filled() -> None:
    reference = GPT(config())
    with torch.device("meta"):
        model = GPT(config())
    model.to_empty(device="cpu")
    model.init_weights(torch.Generator().manual_seed(0))
    assert torch.equal(model(some_ids(1, 9)), reference(some_ids(1, 9)))


def test_every_parameter_is_in_one_group_and_gets_a_gradient() -> None:
    model = shaken(config())
    total, _ = model.loss(some_ids(2, 20), some_ids(2, 20, seed=1))
    total.backward()  # type: ignore[no-untyped-call]
    grouped = [name for group in model.parameter_groups().values() for name, _ in group]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert list(model.parameter_groups()) == list(PARAMETER_GROUPS)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# --- against the slow way --------------------------------------------------------------------------------------------


def slow_logits(model: GPT, ids: Tensor) -> Tensor:
    """One row of token ids, position by position and head by head, from the formulas."""
    c, p = model.config, dict(model.named_parameters())

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    def turned(x: Tensor, position: int) -> Tensor:
        half = c.head_dim // 2
        out = x.clone()
        for i in range(half):
            angle = torch.tensor(position * c.rope_base ** (-2 * i / c.head_dim), dtype=torch.float64)
            cos, sin = angle.cos().float(), angle.sin().float()  # as in the table
            out[i], out[i + half] = x[i] * cos + x[i + half] * sin, x[i + half] * cos - x[i] * sin
        return rms(out) * c.qk_scale if c.qk_norm else out * c.qk_scale

    x = rms(p["embedding.weight"][ids])
    if c.smear:
        before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        x = x + p["smear_lambda"] * torch.sigmoid(x[:, :24] @ p["smear_gate.weight"].T) * before
    x0, middle = x, x
    for layer in range(c.depth):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in p.items() if name.startswith(f"blocks.{layer}.")}
        if c.residual_lambdas:
            x = p["residual_lambdas"][layer] * x + p["x0_lambdas"][layer] * x0
        y = rms(x)
        q, k, v = (y @ w[f"attention.{name}.weight"].T for name in ("query", "key", "value"))
        if layer in c.value_embedding_layers:
            gate = 3 * torch.sigmoid(y[:, :12] @ w["attention.gate.weight"].T)
            v = v + gate.repeat_interleave(c.head_dim, dim=1) * p[f"value_embeddings.{layer}.weight"][ids]
        mixed = torch.zeros_like(x)
        for head in range(c.heads):
            own = slice(head * c.head_dim, (head + 1) * c.head_dim)
            kv_head = head // (c.heads // c.kv_heads)
            shared = slice(kv_head * c.head_dim, (kv_head + 1) * c.head_dim)
            for t in range(len(ids)):
                first = max(0, t + 1 - (c.windows[layer] or len(ids)))
                scores = torch.stack([turned(q[t, own], t) @ turned(k[s, shared], s) / math.sqrt(c.head_dim) for s in range(first, t + 1)])
                mixed[t, own] = torch.softmax(scores, 0) @ v[first : t + 1, shared]
        x = x + mixed @ w["attention.output.weight"].T
        x = x + F.relu(rms(x) @ w["mlp.up.weight"].T).square() @ w["mlp.down.weight"].T
        middle = x if layer == {1: -1, 2: 0}.get(c.depth, c.depth // 2) else middle
    if c.backout:
        x = x - p["backout_lambda"] * middle
    logits = (rms(x) @ p["head.weight"].T)[:, : c.vocab_size]
    return c.softcap * torch.tanh(logits / c.softcap) if c.softcap else logits


SINGLE = [
    OFF,
    ON,
    *({**OFF, key: value} for key, value in ON.items() if OFF[key] != value),
    *({**ON, key: value} for key, value in OFF.items() if ON[key] != value),
]


@pytest.mark.parametrize("features", SINGLE, ids=[str(number) for number in range(len(SINGLE))])
def test_logits_are_those_of_the_formulas_with_each_feature_on_and_off(features: dict[str, Any]) -> None:
    model = shaken(config(features, kv_heads=2, depth=2, rope_base=100.0), torch.float64)
    ids = some_ids(1, 7)
    assert torch.allclose(model(ids)[0], slow_logits(model, ids[0]), atol=1e-9)


def test_logits_are_those_of_the_formulas_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.model.config.WINDOW_MULTIPLE", 4)
    model = shaken(config(sequence_len=16, window_pattern="SL", depth=2), torch.float64)
    assert model.config.windows == [4, None]
    ids = some_ids(1, 9)
    assert torch.allclose(model(ids)[0], slow_logits(model, ids[0]), atol=1e-9)


@pytest.mark.parametrize(("feature", "neutral"), [("residual_lambdas", (1.0, 0.0)), ("smear", (0.0,)), ("backout", (0.0,))])
def test_a_feature_at_its_neutral_value_is_the_plain_model(feature: str, neutral: tuple[float, ...]) -> None:
    plain, with_feature = shaken(config(OFF)), GPT(config({**OFF, feature: True}))
    with_feature.load_state_dict(plain.state_dict(), strict=False)
    names = {"residual_lambdas": ("residual_lambdas", "x0_lambdas"), "smear": ("smear_lambda",), "backout": ("backout_lambda",)}[feature]
    with torch.no_grad():
        for name, value in zip(names, neutral, strict=True):
            getattr(with_feature, name).fill_(value)
    assert torch.equal(plain(some_ids(2, 20)), with_feature(some_ids(2, 20)))
    with torch.no_grad():
        getattr(with_feature, names[-1]).fill_(0.5)
    assert not torch.allclose(plain(some_ids(2, 20)), with_feature(some_ids(2, 20)), atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_parameter_has_a_part_in_the_loss(depth: int) -> None:
    """Of one that has none the gradient is a rounding error, which Adam makes a step of full size."""
    model, ids = shaken(config(depth=depth), torch.float64), some_ids(2, 24)
    model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or parameter.grad.norm() < 1e-6]
    assert idle == []
    assert torch.allclose(model(ids[:1])[0], slow_logits(model, ids[0]), atol=1e-9)


# --- causality and the cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_no_position_sees_a_later_one(variant: dict[str, Any], training: bool) -> None:
    model = shaken(config(**variant))
    length = min(model.config.sequence_len, 300)
    ids, changed = some_ids(1, length), some_ids(1, length)
    cut = length // 2
    changed[0, cut:] = (changed[0, cut:] + 1) % 70
    with torch.set_grad_enabled(training):
        before, after = model(ids)[0], model(changed)[0]
    assert torch.allclose(before[:cut], after[:cut], atol=1e-6)
    assert not torch.allclose(before[cut:], after[cut:], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_cached_logits_are_those_of_the_whole_row(variant: dict[str, Any]) -> None:
    model = shaken(config(**variant))
    length = min(model.config.sequence_len, 330)
    ids = some_ids(2, length)
    cache = KVCache(model.config, 2, capacity=3)
    cuts = [0, 1, 5, 6, length - 3, length - 2, length - 1, length]
    pieces = [model(ids[:, start:end], cache) for start, end in itertools.pairwise(cuts)]
    assert torch.allclose(torch.cat(pieces, 1), model(ids), atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_rows_of_different_lengths_share_a_cache(variant: dict[str, Any]) -> None:
    model = shaken(config(**variant))
    lengths, tail = [3, min(model.config.sequence_len - 5, 290), 1, 17], 4
    rows = [some_ids(1, length + tail, seed=seed) for seed, length in enumerate(lengths)]
    padded = torch.zeros(4, max(lengths), dtype=torch.long)
    for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        padded[row, :length] = ids[0, :length]
    cache = KVCache(model.config, 4)
    model(padded, cache)
    cache.truncate(lengths)
    cache, order = cache.select([2, 0, 3, 1]), [2, 0, 3, 1]
    for step in range(tail):
        column = torch.stack([rows[row][0, lengths[row] + step] for row in order])[:, None]
        logits = model(column, cache)
        for place, row in enumerate(order):
            assert torch.allclose(logits[place, 0], model(rows[row])[0, lengths[row] + step], atol=2e-5)


@pytest.mark.parametrize("variant", [*VARIANTS, {"depth": 1}, {"depth": 2}])
@torch.inference_mode()
def test_positions_that_are_asked_for_have_the_states_that_they_have_among_all(variant: dict[str, Any]) -> None:
    model = shaken(config(**variant))
    length = min(model.config.sequence_len - 8, 300)
    ids, more = some_ids(2, length), some_ids(2, 6, seed=1)
    at = torch.tensor([[0, length - 1, 7], [length // 2, 3, 3]])
    states = model.hidden(ids)
    assert torch.allclose(model.hidden(ids, at=at), torch.stack([row[places] for row, places in zip(states, at, strict=True)]), atol=1e-5)
    whole, asked = KVCache(model.config, 2), KVCache(model.config, 2)
    model.hidden(ids, whole)
    model.hidden(ids, asked, at)
    for cache in (whole, asked):
        cache.truncate([length, length - 9])
    states, at = model.hidden(more, whole), torch.tensor([[5], [2]])
    assert torch.allclose(model.hidden(more, asked, at)[:, 0], torch.stack([states[0, 5], states[1, 2]]), atol=1e-5)
    assert whole.lengths == asked.lengths


def test_positions_beyond_the_context_are_refused() -> None:
    model = GPT(config())
    with pytest.raises(ValueError, match="T=49: longer than sequence_len=48"):
        model(some_ids(1, 49))
    cache = KVCache(model.config, 1)
    model(some_ids(1, 40), cache)
    with pytest.raises(ValueError, match="position 49: beyond sequence_len=48"):
        model(some_ids(1, 9), cache)
    with pytest.raises(ValueError, match="rows=2: the cache holds 1"):
        model(some_ids(2, 1), cache)


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_leaves_the_device_of_the_weights(variant: dict[str, Any]) -> None:
    """On "meta", which like a GPU takes the plain operations and refuses to mix with tensors in host memory; bf16 as there."""
    shape = config(**variant)
    with torch.device("meta"):
        model = GPT(shape, dtype=torch.bfloat16)
    ids = torch.empty(2, 40, dtype=torch.long, device="meta")
    total, counted = model.loss(ids, ids)
    (total / 5).backward()
    assert {total.dtype, *(parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None)} == {torch.float32}
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters()) and counted.is_meta
    with torch.no_grad():
        cache = KVCache(shape, 2, device="meta", dtype=torch.bfloat16)
        model.hidden(ids[:, :16], cache)
        cache.truncate([10, 16])
        assert model(ids[:, :1], cache).is_meta and model.loss(ids, ids, reduction="none").is_meta
    model.cos = torch.zeros(model.cos.shape)  # a table that stayed behind is noticed
    with pytest.raises(RuntimeError, match="meta"):
        model(ids)
