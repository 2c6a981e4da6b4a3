"""Weights and optimizer state as named tensors: what resume state and a warm start of the optimizer are made of.

Names are "model.{parameter}" and "optimizer.{parameter}.{key}". With several ranks each has its share: of what is cut it names its piece,
flattened, "{name}@{start}". Put together (tensorfile.TensorFiles) the shares of any number of ranks serve any other number.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.shares import EVERYBODY, Piece
from nanochat.runtime import Runtime
from nanochat.train.tensorfile import TensorFiles, piece_name
from nanochat.train.update import Model


def named_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Every parameter by name."""
    return dict(pair for pairs in model.parameter_groups().values() for pair in pairs)


def _is_whole(piece: Piece, parameter: Tensor) -> bool:
    return piece.stop - piece.start == parameter.numel()


def _saved_here(model: Model, optimizer: MuonAdamW) -> Iterator[tuple[str, nn.Parameter, Piece]]:
    """Name, parameter and piece of what this rank saves: what it updates, so that all ranks together save each element once."""
    for name, parameter in named_parameters(model).items():
        piece = optimizer.own_piece(parameter)
        if piece is not None and (piece.rank != EVERYBODY or optimizer.rank == 0):
            yield name, parameter, piece


def own_weights(model: Model, optimizer: MuonAdamW) -> dict[str, Tensor]:
    """The share of the weights that this rank saves."""
    tensors = {}
    for name, parameter, piece in _saved_here(model, optimizer):
        weight = parameter.detach()
        if _is_whole(piece, parameter):
            tensors[f"model.{name}"] = weight
        else:
            tensors[piece_name(f"model.{name}", piece.start)] = weight.view(-1)[piece.start : piece.stop]
    return tensors


def own_state(model: Model, optimizer: MuonAdamW) -> dict[str, Tensor]:
    """The share of the optimizer's state that this rank saves; whole numbers as 0-dimensional int64."""
    tensors = {}
    for name, parameter, piece in _saved_here(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            entry = f"optimizer.{name}.{key}"
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
            tensors[entry if _is_whole(piece, parameter) or tensor.ndim == 0 else piece_name(entry, piece.start)] = tensor
    return tensors


@torch.no_grad()
def restore_model(model: Model, files: TensorFiles) -> None:
    """Set every weight from what `own_weights` of all ranks of an equal model gave."""
    for name, parameter in named_parameters(model).items():
        parameter.copy_(files.whole(f"model.{name}").view_as(parameter))


def restore_optimizer(model: Model, optimizer: MuonAdamW, files: TensorFiles) -> int:
    """Set this rank's share of the state from what `own_state` of all ranks gave; returns for how many parameters there was one."""
    keys: dict[str, list[str]] = {}
    for entry in files.names:
        if entry.startswith("optimizer."):
            name, key = entry.removeprefix("optimizer.").rsplit(".", 1)
            keys.setdefault(name, []).append(key)
    found = 0
    for name, parameter in named_parameters(model).items():
        if name not in keys:
            continue
        found += 1
        if (piece := optimizer.own_piece(parameter)) is not None:
            optimizer.state[parameter] = {key: _entry(files, f"optimizer.{name}.{key}", parameter, piece) for key in keys[name]}
    return found


def _entry(files: TensorFiles, entry: str, parameter: Tensor, piece: Piece) -> Any:
    """One value of a parameter's state: of the shape of the parameter and then cut as it is, or of another and then taken as it is."""
    if files.shape(entry) not in (None, parameter.shape):
        tensor = files.whole(entry)
        return int(tensor) if tensor.ndim == 0 and tensor.dtype == torch.int64 else tensor.to(parameter.device, copy=True)
    if _is_whole(piece, parameter):  # copied: memory mapped from a file would keep the room of a slot that was freed
        return files.whole(entry).view(parameter.shape).to(parameter.device, copy=True)
    return files.piece(entry, piece.start, piece.stop).to(parameter.device)


def gathered(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], runtime: Runtime) -> dict[str, Tensor]:
    """The state of all ranks put together, on rank 0 and in host memory; empty elsewhere. All ranks call it; one rank gets what it gave."""
    if runtime.world_size == 1:
        return tensors
    described: list[Any] = [None] * runtime.world_size
    dist.all_gather_object(described, {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items())})
    found: dict[str, Tensor] = {}
    for rank, names in enumerate(described):
        for name, (shape, dtype) in names.items():
            mine = tensors[name].to(runtime.device) if rank == runtime.rank else torch.empty(shape, dtype=dtype, device=runtime.device)
            dist.broadcast(mine, src=rank)  # one after the other: never more than one besides the state itself
            if runtime.is_main:
                found[name] = mine.cpu()
    return joined(found, parameters)


def joined(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Pieces of state put together in the shape of their parameters."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    whole = {}
    for name, tensor in tensors.items():
        base, _, start = name.partition("@")
        if start:
            pieces.setdefault(base, []).append((int(start), tensor))
        else:
            whole[base] = tensor
    for base, parts in pieces.items():
        name = base.removeprefix("optimizer.").rsplit(".", 1)[0]
        whole[base] = torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])]).view(parameters[name].shape)
    return whole
