"""Named tensors as safetensors files, written in a stream: hashed on the way, one tensor at a time in host memory.

The library's own writer hides a full disk behind an error of its own; here it stays an OSError.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from nanochat import progress
from nanochat.artifacts import atomic_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's first part: its length, then JSON with dtype, shape and place of every tensor, padded to 8 bytes."""
    entries, offset = {}, 0
    for name, tensor in sorted(tensors.items()):
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(entries, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def tensor_bytes(tensor: Tensor) -> "Buffer":
    """The raw bytes of a tensor, wherever it is; not copied if it is on the CPU."""
    flat: Any = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], on_piece: Callable[[], object] = progress.beat) -> str:
    """Write `tensors` to `path`, atomically; returns the sha256. Equal tensors give equal bytes."""
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for piece in chain([header(tensors)], (tensor_bytes(tensor) for _, tensor in sorted(tensors.items()))):
            file.write(piece)
            digest.update(piece)
            on_piece()
    return digest.hexdigest()


def piece_name(name: str, start: int) -> str:
    """Name of a flattened piece of a tensor that begins at element `start`."""
    return f"{name}@{start}"


class TensorFiles:
    """Tensors of one or several safetensors files, read when they are asked for. A tensor may lie in pieces over the files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, dict[int | None, tuple[Any, str]]] = {}  # name -> start of a piece (None: whole) -> file, key
        for path in paths:
            file: Any = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                name, _, start = key.partition("@")
                self._places.setdefault(name, {})[int(start) if start else None] = (file, key)

    @property
    def names(self) -> list[str]:
        """Every tensor."""
        return list(self._places)

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a tensor that is whole; None for one in pieces."""
        if (place := self._places[name].get(None)) is None:
            return None
        file, key = place
        return torch.Size(file.get_slice(key).get_shape())

    def whole(self, name: str) -> Tensor:
        """A tensor; one in pieces comes flattened."""
        if (place := self._places[name].get(None)) is not None:
            file, key = place
            found: Tensor = file.get_tensor(key)
            return found
        return torch.cat([file.get_tensor(key) for _, (file, key) in self._pieces(name)])

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of a flattened tensor, without reading all of it."""
        if (shape := self.shape(name)) is not None:
            file, key = self._places[name][None]
            row = max(1, shape.numel() // shape[0])
            first = start // row
            rows: Tensor = file.get_slice(key)[first : -(-stop // row)]
            return rows.reshape(-1)[start - first * row : stop - first * row].clone()
        found = []
        for begin, (file, key) in self._pieces(name):
            values = file.get_slice(key)
            end = begin + values.get_shape()[0]
            if begin < stop and end > start:
                found.append(values[max(start, begin) - begin : min(stop, end) - begin])
        return torch.cat(found)

    def _pieces(self, name: str) -> list[tuple[int, tuple[Any, str]]]:
        return sorted((start, place) for start, place in self._places[name].items() if start is not None)
