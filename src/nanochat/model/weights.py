"""Weights as files: safetensors with the parameter names of GPT, beside a model.json that rebuilds the shape."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat.artifacts import atomic_path, read_json, verified_file
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def save_weights(model: GPT, path: Path) -> None:
    """Write every parameter to `path`, atomically; equal weights give equal bytes."""
    tensors = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in sorted(model.state_dict().items())}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # it hides a full disk behind a type of its own
            if not (number := re.search(r"os error (\d+)", str(error))):
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # the library makes it unreadable for everybody else who shares the results


def load_weights(model: GPT, path: Path) -> None:
    """Fill `model` from a file of `save_weights`. A missing, unknown or misshapen parameter is a UserError."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); run the stage that makes it again") from None
    wanted = model.state_dict()
    for name in sorted(set(wanted) ^ set(tensors)):
        raise UserError(f"{path}: parameter {name} is {'missing' if name in wanted else 'unknown to the model'}; it belongs to another architecture")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{path}: parameter {name} is {tuple(tensor.shape)}, the model needs {tuple(wanted[name].shape)}; it belongs to another architecture"
            )
    model.load_state_dict(tensors, strict=True)


def load_model(
    manifest_path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, inference: bool = False
) -> tuple[GPT, dict[str, Any]]:
    """The model of a finished training stage, and its model.json. Files are checked against the manifest's sha256.

    `dtype`: of activations; with `inference` the weights get it too and need no gradients.
    """
    description = read_json(verified_file(manifest_path, DESCRIPTION))
    weights = verified_file(manifest_path, WEIGHTS)
    try:
        config = ModelConfig.from_dict(description["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{manifest_path.parent / DESCRIPTION}: {error}; run the stage that makes it again") from None
    with torch.device(device):
        model = GPT(config, dtype=dtype, blank=True)
    model.reset_tables()
    load_weights(model, weights)
    if inference:
        model.requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model, description
