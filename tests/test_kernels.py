"""The chunked loss and the hand-written gradients, against autograd on plain operations."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import config, shaken, some_ids
from torch import Tensor

from nanochat.model import kernels, layers
from nanochat.model import loss as loss_module
from nanochat.model.gpt import GPT


@pytest.fixture
def plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "applies_to", lambda x: False)


# --- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [15.0, 0.0, 200.0])
@pytest.mark.parametrize("chunk", [64 * 64, 1 << 20])
def test_loss_and_gradients_are_those_of_cross_entropy_on_all_logits(softcap: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
    model = shaken(config(softcap=softcap), torch.float64)
    ids, targets = some_ids(4, 40), some_ids(4, 40, seed=1)
    targets[0, :10] = -1
    targets[2] = -1
    total, count = model.loss(ids, targets)
    (total / count).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    expected.backward()  # type: ignore[no-untyped-call]
    assert count == 110
    assert float((total / count).detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, atol=1e-11), name
    per_token = model.loss(ids, targets, reduction="none")
    assert per_token.shape == targets.shape
    assert torch.allclose(per_token.sum(), total)
    assert not per_token[targets == -1].any()
    with torch.no_grad():
        assert torch.allclose(model.loss(ids, targets)[0], total)


def test_a_batch_without_targets_has_zero_loss_and_zero_gradients() -> None:
    """A mean over no tokens is NaN; the sum is 0."""
    model = shaken(config())
    total, count = model.loss(some_ids(2, 8), torch.full((2, 8), -1))
    total.backward()  # type: ignore[no-untyped-call]
    assert (float(total.detach()), int(count)) == (0.0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_masked_targets_do_not_matter() -> None:
    model = shaken(config())
    ids, targets = some_ids(1, 12), some_ids(1, 12, seed=1)
    masked = targets.clone()
    masked[0, 3] = -1
    with torch.no_grad():
        difference = model.loss(ids, targets, reduction="none") - model.loss(ids, masked, reduction="none")
    assert difference.nonzero().tolist() == [[0, 3]]


# --- hand-written gradients ------------------------------------------------------------------------------------------


def leaves(*shapes: tuple[int, ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        yield torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_hand_written_gradients_pass_gradcheck(kv_heads: int, qk_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROWS", 4)
    monkeypatch.setattr(kernels, "QUERIES", 3)
    x, up, down, query, key, value = leaves((2, 5, 8), (12, 8), (8, 12), (8, 8), (4 * kv_heads, 8), (4 * kv_heads, 8))
    q, k, v = leaves((2, 5, 2, 4), (2, 5, kv_heads, 4), (2, 5, kv_heads, 4))
    cos, sin = (table.double() for table in layers.rotary_table(5, 4, 10.0))
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True)  # along random directions: a second instead of ten
    assert check(kernels.norm, x)
    assert check(kernels.residual_mlp, (x, up, down))
    assert check(lambda *w: kernels.projections(w[0], w[1:], cos, sin, head_dim=4, qk_norm=qk_norm), (x, query, key, value))  # type: ignore[arg-type]
    for window in (None, 2, 4):
        assert check(lambda *args, w=window: kernels.causal_attention(*args, scale=0.7, window=w), (q, k, v))


def test_chunked_loss_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "chunk_rows", lambda *_: 4)
    hidden, weight = leaves((9, 5), (8, 5))
    targets = torch.tensor([0, 3, -1, 5, 5, 1, -1, 2, 4])
    for softcap in (0.0, 2.0, 100.0):
        assert torch.autograd.gradcheck(lambda h, w, cap=softcap: loss_module.summed_cross_entropy(h, w, targets, vocab_size=6, softcap=cap), (hidden, weight))


@pytest.mark.parametrize("variant", [{}, {"kv_heads": 2}, {"window_pattern": "SSL", "sequence_len": 400}, {"qk_norm": False, "depth": 2}])
def test_training_on_a_cpu_has_the_gradients_of_the_plain_operations(variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(config(**variant), torch.float64)
    length = min(model.config.sequence_len, 300)
    ids, targets = some_ids(2, length), some_ids(2, length, seed=1)

    def gradients() -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        total, count = model.loss(ids, targets)
        (total / count).backward()
        return float(total.detach()), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    total, found = gradients()
    monkeypatch.setattr(kernels, "applies_to", lambda x: False)
    plain_total, plain = gradients()
    assert total == pytest.approx(plain_total, rel=1e-12)
    assert all(torch.allclose(found[name], plain[name], atol=1e-11, rtol=1e-7) for name in plain)


def test_bf16_activations_stay_near_fp32_and_weights_keep_fp32_gradients() -> None:
    model = shaken(config(), amount=0.05)
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    exact, count = model.loss(ids, targets)
    model.dtype = torch.bfloat16
    rough, _ = model.loss(ids, targets)
    rough.backward()  # type: ignore[no-untyped-call]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().item() < 0.05 * count
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert model(ids).dtype == torch.float32


def test_repeated_runs_give_the_same_bits() -> None:
    def run() -> list[Tensor]:
        model = GPT(config(vocab_size=700, sequence_len=128, width=64))
        total, _ = model.loss(some_ids(8, 128, 7), some_ids(8, 128, 700, seed=1))  # ids repeat: their gradients are summed
        total.backward()  # type: ignore[no-untyped-call]
        return [total.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.usefixtures("plain_operations")
def test_plain_operations_also_learn() -> None:
    model = shaken(config())
    total, _ = model.loss(some_ids(1, 8), some_ids(1, 8, seed=1))
    total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())
