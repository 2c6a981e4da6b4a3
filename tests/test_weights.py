"""Weights as files: the reloaded model is the saved one, and a wrong file is refused with its name."""

import json
from pathlib import Path

import pytest
import torch
from model_cases import config, shaken, some_ids
from safetensors.torch import load_file, save_file

from nanochat.artifacts import sha256_file, write_json, write_manifest
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.model.weights import load_model, load_weights, save_weights
from nanochat.optim.muon_adamw import MuonAdamW


def finished_stage(folder: Path, model: GPT) -> Path:
    """What a training stage leaves."""
    folder.mkdir(exist_ok=True)
    save_weights(model, folder / "model.safetensors")
    write_json(folder / "model.json", {"architecture": model.config.to_dict(), "phase": "base", "step": 3, "tokenizer_sha256": "0", "training": {}})
    write_manifest(folder / "manifest.json", stage="base_train", config={}, inputs={}, outputs=["model.safetensors", "model.json"], counts={})
    return folder / "manifest.json"


@pytest.mark.parametrize("features", [{}, {"window_pattern": "SSL", "sequence_len": 300}, {"kv_heads": 2, "smear": False, "value_embeddings": "none"}])
def test_a_trained_model_saved_and_loaded_has_the_same_logits(tmp_path: Path, features: dict[str, object]) -> None:
    model = shaken(config(**features))
    ids = some_ids(2, min(model.config.sequence_len, 290))
    groups = model.parameter_groups()
    muon = {"kind": "muon", "lr": 0.02, "params": [parameter for _, parameter in groups.pop("matrix")]}
    optimizer = MuonAdamW([muon, {"kind": "adamw", "lr": 0.01, "params": [parameter for group in groups.values() for _, parameter in group]}])
    for _ in range(2):
        total, count = model.loss(ids, ids.roll(-1, 1))
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    manifest = finished_stage(tmp_path, model)
    loaded, description = load_model(manifest)
    assert description["step"] == 3
    assert loaded.config == model.config
    assert torch.equal(loaded(ids), model(ids))
    with torch.no_grad():
        assert torch.equal(loaded.loss(ids, ids)[0], model.loss(ids, ids)[0])
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_weights_are_as_readable_as_any_file_of_their_owner(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights(GPT(config()), tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(shaken(config()), tmp_path / name)
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    save_weights(GPT(config()), tmp_path / "c")
    assert sha256_file(tmp_path / "a") != sha256_file(tmp_path / "c")


def test_for_inference_weights_have_the_dtype_of_activations(tmp_path: Path) -> None:
    model = shaken(config(), amount=0.05)
    loaded, _ = load_model(finished_stage(tmp_path, model), dtype=torch.bfloat16, inference=True)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded(some_ids(1, 20)) - model(some_ids(1, 20))).abs().max() < 0.5


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    manifest = finished_stage(tmp_path, shaken(config()))
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_model(manifest)


@pytest.mark.parametrize("edit", ["missing", "unknown"])
def test_a_description_must_name_exactly_the_known_keys(tmp_path: Path, edit: str) -> None:
    model = shaken(config())
    finished_stage(tmp_path, model)
    description = json.loads((tmp_path / "model.json").read_text())
    if edit == "missing":
        del description["architecture"]["smear"]
    else:
        description["architecture"]["smeer"] = True
    write_json(tmp_path / "model.json", description)
    write_manifest(tmp_path / "manifest.json", stage="base_train", config={}, inputs={}, outputs=["model.safetensors", "model.json"], counts={})
    with pytest.raises(UserError, match=rf"model\.json: architecture\.smee?e?r?.*{edit}"):
        load_model(tmp_path / "manifest.json")


def test_weights_of_another_shape_are_refused_with_the_parameter(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(shaken(config()), path)
    with pytest.raises(UserError, match=r"parameter .* is unknown to the model"):
        load_weights(GPT(config(depth=2)), path)
    with pytest.raises(UserError, match=r"parameter .* is missing"):
        load_weights(GPT(config(depth=5)), path)
    with pytest.raises(UserError, match=r"parameter .* is \(.*\), the model needs \("):
        load_weights(GPT(config(width=40)), path)
    tensors = load_file(path)
    del tensors["smear_lambda"]
    save_file(tensors, path)
    with pytest.raises(UserError, match="parameter smear_lambda is missing"):
        load_weights(GPT(config()), path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(GPT(config()), path)
