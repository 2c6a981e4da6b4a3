"""Weights and optimizer state as named tensors: what resume state and a warm start of the optimizer are made of."""

from typing import Any

import torch
from torch import Tensor, nn

from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.train.update import Model


def named_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Every parameter by name."""
    return dict(pair for pairs in model.parameter_groups().values() for pair in pairs)


def model_tensors(model: Model) -> dict[str, Tensor]:
    """Weights as "model.{parameter}"."""
    return {f"model.{name}": parameter.detach() for name, parameter in named_parameters(model).items()}


def optimizer_tensors(model: Model, optimizer: MuonAdamW) -> dict[str, Tensor]:
    """Optimizer state as "optimizer.{parameter}.{key}"; whole numbers as 0-dimensional int64."""
    tensors = {}
    for name, parameter in named_parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
    return tensors


@torch.no_grad()
def restore_model(model: Model, tensors: dict[str, Tensor]) -> None:
    """Set every weight from `model_tensors` of an equal model."""
    for name, parameter in named_parameters(model).items():
        parameter.copy_(tensors[f"model.{name}"])


def restore_optimizer(model: Model, optimizer: MuonAdamW, tensors: dict[str, Tensor]) -> int:
    """Set the optimizer's state from `optimizer_tensors`; returns for how many parameters there was one."""
    parameters = named_parameters(model)
    states: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, entry = key.removeprefix("optimizer.").rsplit(".", 1)
            states.setdefault(name, {})[entry] = int(tensor) if tensor.ndim == 0 and tensor.dtype == torch.int64 else tensor
    found = 0
    for name, state in states.items():
        if name in parameters:
            parameter = parameters[name]
            optimizer.state[parameter] = {key: value.to(parameter.device) if isinstance(value, Tensor) else value for key, value in state.items()}
            found += 1
    return found
