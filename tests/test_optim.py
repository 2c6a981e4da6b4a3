"""Muon and AdamW against torch's own and against the singular value decomposition. Several ranks: test_shards.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.optim import muon_adamw, orthogonalize
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.orthogonalize import NEWTON_SCHULZ, ORTHOGONALIZERS

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48)]
EVERYTHING = {"variance_reduction": True, "row_equilibration": True, "cautious_weight_decay": True, "weight_decay": 0.1, "orthogonalizer": "polar_express"}


def weights(seed: int = 0, shapes: list[tuple[int, ...]] | None = None) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes or SHAPES]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def after(optimizer: Any, parameters: list[torch.nn.Parameter], steps: int = 5, first: int = 0) -> list[Tensor]:
    for step in range(first, first + steps):
        give_gradients(parameters, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def muon(parameters: list[torch.nn.Parameter], **options: Any) -> MuonAdamW:
    return MuonAdamW([{"kind": "muon", "params": parameters, "lr": 0.02, **options}])


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon_adamw, "work_dtype", lambda device: torch.float32)


# --- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_steps_are_those_of_torch(decay: float) -> None:
    """The first steps show a wrong bias correction most."""
    mine, reference = weights(), weights()
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": decay}
    optimizer, expected = MuonAdamW([{"kind": "adamw", "params": mine, **settings}]), torch.optim.AdamW(reference, **settings)
    for step in range(5):
        for a, b in zip(after(optimizer, mine, 1, step), after(expected, reference, 1, step), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_plain_muon_steps_are_those_of_torch(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon_adamw, "work_dtype", lambda device: torch.bfloat16)  # as torch does
    mine, reference, start = weights(), weights(), weights()
    optimizer = muon(mine, momentum=0.9, weight_decay=decay)
    expected = torch.optim.Muon(reference, lr=0.02, momentum=0.9, weight_decay=decay, ns_coefficients=NEWTON_SCHULZ[0], adjust_lr_fn="original")
    for a, b, first in zip(after(optimizer, mine), after(expected, reference), start, strict=True):
        assert (a - b).abs().max() < 0.02 * (b - first.detach()).abs().max()  # rounding of bf16


@pytest.mark.parametrize("orthogonalizer", ORTHOGONALIZERS)
@pytest.mark.parametrize("shape", [(24, 24), (64, 24), (24, 64)])
def test_the_update_has_the_singular_vectors_of_the_gradient_and_values_near_one(orthogonalizer: str, shape: tuple[int, int]) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    done = ORTHOGONALIZERS[orthogonalizer](matrix)
    inner = u.transpose(1, 2) @ done @ v.transpose(1, 2)  # diagonal, if the vectors are the same
    diagonal = torch.diagonal(inner, dim1=1, dim2=2)
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-3
    well_conditioned = values / values.sum(-1, keepdim=True) > 5e-3
    low, high = (0.6, 1.25) if orthogonalizer == "newton_schulz" else (0.85, 1.15)
    assert diagonal[well_conditioned].min() > low
    assert diagonal.max() < high


@pytest.mark.parametrize("orthogonalizer", ORTHOGONALIZERS)
@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (16, 24)])
def test_steps_on_the_gram_matrix_equal_steps_on_the_matrix(orthogonalizer: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ORTHOGONALIZERS[orthogonalizer](matrices)
    rough = ORTHOGONALIZERS[orthogonalizer](matrices.float())
    monkeypatch.setattr(orthogonalize, "GRAM_FROM", 1000)
    assert torch.allclose(found, ORTHOGONALIZERS[orthogonalizer](matrices), atol=1e-11)
    assert (rough - found).abs().max() < 1e-4


def test_orthogonalizing_an_all_zero_gradient_changes_nothing() -> None:
    parameters = weights()
    optimizer = muon(parameters, **{**EVERYTHING, "weight_decay": 0.0})
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, weights(), strict=True))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_fp32")
def test_variance_reduction_evens_out_rows_and_keeps_the_size_of_the_update() -> None:
    def updates(**options: Any) -> list[Tensor]:
        parameters = weights()
        optimizer = muon(parameters, **options)
        scale = torch.logspace(-2, 0, 16)[:, None]
        for step in range(3):
            give_gradients(parameters, step)
            for parameter in parameters:
                parameter.grad = parameter.grad * scale if parameter.shape[0] == 16 else parameter.grad
            before = [parameter.detach().clone() for parameter in parameters]
            optimizer.step()
        return [old - new.detach() for old, new in zip(before, parameters, strict=True)]

    for plain, even in zip(updates(), updates(variance_reduction=True), strict=True):
        assert even.norm().item() == pytest.approx(plain.norm().item(), rel=1e-4)
        axis = 1 if plain.shape[0] >= plain.shape[1] else 0

        def spread(update: Tensor, axis: int = axis) -> float:
            sizes = update.norm(dim=axis)
            return float(sizes.std() / sizes.mean())

        assert spread(even) < spread(plain)


@pytest.mark.usefixtures("in_fp32")
def test_row_equilibration_forgets_the_scale_of_rows_and_fixes_the_norm() -> None:
    scale = torch.logspace(-3, 3, 16)[:, None]

    def update(factor: Tensor, **options: Any) -> Tensor:
        parameter = torch.nn.Parameter(torch.zeros(16, 16))
        parameter.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * factor
        muon([parameter], momentum=0.0, **options).step()
        return parameter.detach() / 0.02

    even = update(torch.ones(1), row_equilibration=True)
    assert torch.allclose(even, update(scale, row_equilibration=True), atol=1e-3)
    assert not torch.allclose(update(torch.ones(1)), update(scale), atol=1e-1)
    assert even.norm().item() == pytest.approx(4.0, rel=1e-4)  # of an orthogonal 16 x 16 matrix


@pytest.mark.usefixtures("in_fp32")
def test_cautious_decay_touches_only_weights_that_the_step_shrinks_too() -> None:
    plain, cautious, none = (weights() for _ in range(3))
    for parameters, options in ((plain, {"weight_decay": 0.5}), (cautious, {"weight_decay": 0.5, "cautious_weight_decay": True}), (none, {})):
        after(muon(parameters, **options), parameters, 1)
    for full, some, without, start in zip(plain, cautious, none, weights(), strict=True):
        shrinks = (start - without).detach() * start.detach() > 0
        assert torch.allclose(some[shrinks], full[shrinks])
        assert torch.equal(some[~shrinks], without[~shrinks])
        assert shrinks.any()
        assert not shrinks.all()


def test_rates_and_momentum_may_change_between_steps() -> None:
    parameters = weights()
    optimizer = muon(parameters)
    before = after(optimizer, parameters, 1)
    optimizer.param_groups[0]["lr"] = 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, after(optimizer, parameters, 1, 1), strict=True))


def test_a_parameter_without_gradient_is_left_alone() -> None:
    parameters = weights()
    optimizer = muon(parameters)
    give_gradients(parameters, 0)
    parameters[1].grad = None
    optimizer.step()
    assert torch.equal(parameters[1], weights()[1])
    assert not torch.equal(parameters[0], weights()[0])


def test_state_lives_where_the_parameters_are() -> None:
    """A fused kernel on a GPU cannot read a step count in host memory; here the weights are not on the default device."""
    expected, parameters = weights(), weights()
    optimizer = both(parameters)
    for step in range(2):
        give_gradients(parameters, step)
        with torch.device("meta"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(after(both(expected), expected, 2), parameters, strict=True))


# --- state -----------------------------------------------------------------------------------------------------------


def both(parameters: list[torch.nn.Parameter], **options: Any) -> MuonAdamW:
    return MuonAdamW([{"kind": "muon", "params": parameters[:3], "lr": 0.02, **EVERYTHING}, {"kind": "adamw", "params": parameters[3:], "lr": 0.01, **options}])


def test_state_saved_and_loaded_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    whole, resumed = weights(), weights()
    expected = after(both(whole), whole, 6)
    first = both(resumed)
    after(first, resumed, 3)
    torch.save([first.state[parameter] for parameter in resumed], tmp_path / "state")
    second = both(resumed)
    second.state.update(zip(resumed, torch.load(tmp_path / "state", weights_only=True), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, after(second, resumed, 3, 3), strict=True))
    forgetful = weights()
    after(both(forgetful), forgetful, 3)
    assert not torch.equal(expected[0], after(both(forgetful), forgetful, 3, 3)[0])


def test_a_parameter_in_two_groups_is_refused() -> None:
    parameters = weights()
    with pytest.raises(ValueError, match="a parameter stands in two places"):
        MuonAdamW([{"kind": "muon", "params": parameters[:3], "lr": 0.02}, {"kind": "adamw", "params": parameters[2:], "lr": 0.01}])


def test_equal_steps_give_equal_bits() -> None:
    runs = [after(both(parameters), parameters) for parameters in (weights(), weights())]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error_that_changes_nothing(bad: float) -> None:
    parameters = weights()
    optimizer = both(parameters)
    give_gradients(parameters, 0)
    assert parameters[3].grad is not None
    parameters[3].grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match=r"parameter 0 of group 1 \(adamw, shape \(16, 48\)\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, weights(), strict=True))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"kind": "sgd", "lr": 1.0}, "kind='sgd'"),
        ({"kind": "muon", "lr": 1.0, "momentun": 0.9}, "momentun: unknown key"),
        ({"kind": "adamw"}, "lr: missing"),
        ({"kind": "muon", "lr": 1.0, "orthogonalizer": "qr"}, "orthogonalizer='qr'"),
        ({"kind": "muon", "lr": 1.0, "params": [torch.nn.Parameter(torch.zeros(3))]}, r"shape \(3,\) is not a matrix"),
    ],
)
def test_a_wrong_group_is_refused_with_its_key(group: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MuonAdamW([{"params": weights(), **group}])
