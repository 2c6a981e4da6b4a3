"""The classic recipe and its optimizer against code of others, and bits per byte against a sum by hand.

The same weights in transformers' NanoChat give the same logits and the same gradients.
Everything that loads transformers stands in one test: its import takes 3 seconds of every process that it is spread over.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_cases import config, shaken, some_ids
from torch import Tensor, nn

from nanochat.eval.bpb import TextLoss, row_losses
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.optim import muon_adamw
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.orthogonalize import NEWTON_SCHULZ
from nanochat.recipes import RECIPES
from nanochat.runtime import Runtime
from nanochat.stages.training import validation_hook
from nanochat.train.batches import next_token_pairs

CLASSIC = {key: value for key, value in RECIPES["classic-2025-11"]["architecture"].items() if key not in ("aspect_ratio", "head_dim", "kv_heads", "mlp_ratio")}
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    **{f"attention.{ours}.weight": f"self_attn.{theirs}_proj.weight" for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))},
    "mlp.up.weight": "mlp.fc1.weight",
    "mlp.down.weight": "mlp.fc2.weight",
}


def reference_name(name: str) -> str:
    """What transformers calls a parameter of ours."""
    if not name.startswith("blocks."):
        return NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{NAMES[rest]}"


def reference_of(model: GPT) -> nn.Module:
    """The same model in transformers, with copies of the same weights."""
    from transformers import NanoChatConfig, NanoChatForCausalLM

    shape = model.config
    sizes = {"hidden_size": shape.width, "intermediate_size": shape.mlp_ratio * shape.width, "num_hidden_layers": shape.depth}
    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "rms_norm_eps": torch.finfo(torch.float32).eps}
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base}, "max_position_embeddings": shape.sequence_len}
    rest = {"vocab_size": shape.padded_vocab_size, "final_logit_softcapping": shape.softcap, "pad_token_id": None}
    reference = NanoChatForCausalLM(NanoChatConfig(**sizes, **heads, **rotary, **rest))
    reference.load_state_dict({reference_name(name): weight.detach().clone() for name, weight in model.named_parameters()}, strict=True)
    return reference


def grown(shape: ModelConfig) -> GPT:
    """A model whose logits reach into the cap and whose heads attend to few positions: near zero every convention looks the same."""
    model = shaken(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_({"query": 3.0, "key": 3.0}.get(name.split(".")[-2], 1.0))
        model.head.weight.mul_(8.0)
    return model


def largest(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float(((one - other).abs().max() / other.abs().max()).detach())


def test_logits_and_gradients_are_those_of_transformers() -> None:
    for shape in (
        config(CLASSIC),
        config(CLASSIC, kv_heads=2),  # grouped queries
        config(CLASSIC, kv_heads=1, depth=1, rope_base=100_000.0),
        config(CLASSIC, vocab_size=256, width=128, heads=1, kv_heads=1, depth=2, sequence_len=300),  # heads of 128 channels, as published
    ):
        model = grown(shape)
        reference = reference_of(model)
        for length in sorted({1, 2, 17, shape.sequence_len - 1, shape.sequence_len}):
            ids, targets = some_ids(2, length, shape.vocab_size), some_ids(2, length, shape.vocab_size, seed=1)
            with torch.no_grad():
                logits, expected = model(ids), reference(ids).logits[..., : shape.vocab_size]
            assert largest(logits, expected) < 1e-5, (shape, length)
            assert logits.abs().max() > 10, "far into the cap of 15"
        # with gradients other kernels compute the same: forward, loss and backward by hand against torch's own autograd
        summed, counted = model.loss(ids, targets)
        summed.backward()
        expected = reference(ids).logits[..., : shape.vocab_size]
        F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        assert int(counted) == targets.numel()
        gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
        for name, parameter in model.named_parameters():
            theirs = gradients[reference_name(name)]
            assert parameter.grad is not None and theirs is not None
            assert largest(parameter.grad, theirs) < 1e-5, (shape, name)

        # each convention is seen: without it the logits are others
        with torch.no_grad():
            expected = reference(ids).logits[..., : shape.vocab_size]
            changes = {"qk_norm": False, "rope_base": 3 * shape.rope_base, "softcap": 0.0, "mlp_ratio": shape.mlp_ratio}
            for key, value in changes.items():
                other = GPT(dataclasses.replace(shape, **{key: value}), blank=True)
                other.load_state_dict(model.state_dict())
                assert (largest(other(ids), expected) < 1e-5) == (key == "mlp_ratio"), (shape, key)
            model.head.weight.copy_(model.embedding.weight)  # tied, it would be another model
            assert largest(model(ids), expected) > 0.1


def test_bits_per_byte_of_known_probabilities_are_the_sum_by_hand() -> None:
    """The model says the same of every position: token 0 with probability 1/2, 1 with 1/4, 2 with 1/8, 3 and the special token 4 with 1/16 each."""
    shape = config({**CLASSIC, "softcap": 0.0}, vocab_size=5, sequence_len=8, width=4, heads=2, kv_heads=2, depth=1)
    model = GPT(shape)  # outputs of the blocks start at 0: what comes out is the embedding
    bits, token_bytes = [1, 2, 3, 4, 4], np.array([1, 1, 2, 3, 0], dtype=np.int32)
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)  # of root mean square 1
        model.head.weight.zero_()
        model.head.weight[:5, 0] = -math.log(2) * torch.tensor(bits, dtype=torch.float32)
    rows = np.array([[4, 0, 1, 2, 3, 4, 0, 0, 2], [4, 3, 4, 4, 0, 1, 1, 0, 4]])
    # targets       0 1 2 3 . 0 0 2 and 3 . . 0 1 1 0 . (a dot: special, without bytes)
    wanted_bits = (1 + 2 + 3 + 4 + 1 + 1 + 3) + (4 + 1 + 2 + 2 + 1)
    wanted_bytes = (1 + 1 + 2 + 3 + 1 + 1 + 2) + (3 + 1 + 1 + 1 + 1)
    found = sum(row_losses(model, rows, token_bytes), TextLoss())
    assert (found.text_bytes, found.tokens) == (wanted_bytes, 12)
    assert found.bpb == pytest.approx(wanted_bits / wanted_bytes, rel=1e-6)
    while_training = validation_hook(model, Runtime(torch.device("cpu"), torch.float32), lambda places: next_token_pairs(rows[list(places)]), 2, token_bytes)()
    assert while_training is not None
    assert while_training.bpb == pytest.approx(wanted_bits / wanted_bytes, rel=1e-6)
    assert while_training.loss == pytest.approx(wanted_bits * math.log(2) / 12, rel=1e-6)


SHAPES = [(24, 24), (96, 24), (24, 96), (24, 24), (1, 24), (130, 64)]
STEPS = 12


def stepped(make: Callable[[list[nn.Parameter]], Any]) -> list[list[Tensor]]:
    """Weights after each of several steps, with gradients of changing size and a rate and decay that change as schedules change them."""
    generator = torch.Generator().manual_seed(3)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer, found = make(parameters), []
    for step in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 1)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 0.02 * (1 + step % 4), 0.3 * (STEPS - step) / STEPS
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in parameters])
    return found


def assert_equal_steps(ours: list[list[Tensor]], theirs: list[list[Tensor]], tolerance: float) -> None:
    """Every step of every matrix, as a share of what that step has changed."""
    for step, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        for shape, a, b, before in zip(SHAPES, mine, reference, theirs[step - 1] if step else reference, strict=True):
            moved = (b - before).abs().max() if step else b.abs().max()
            assert (a - b).abs().max() < tolerance * moved, (step, shape)


def test_muon_without_extras_is_torchs_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own rounds to bf16 within; made to leave that out it computes the same to the rounding of fp32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)
    monkeypatch.setattr(muon_adamw, "work_dtype", lambda device: torch.float32)
    settings = {"lr": 0.02, "momentum": 0.9}
    theirs = stepped(lambda parameters: torch.optim.Muon(parameters, **settings, ns_coefficients=NEWTON_SCHULZ[0], adjust_lr_fn="original"))
    assert_equal_steps(stepped(lambda parameters: MuonAdamW([{"kind": "muon", "params": parameters, **settings}])), theirs, 1e-4)


@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999)])
def test_adamw_is_torchs_at_every_step(betas: tuple[float, float]) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "betas": betas, "eps": 1e-10}
    theirs = stepped(lambda parameters: torch.optim.AdamW(parameters, **settings, foreach=False))
    assert_equal_steps(stepped(lambda parameters: MuonAdamW([{"kind": "adamw", "params": parameters, **settings}])), theirs, 2e-5)
