"""Named tensors as one safetensors file, written in a stream: hashed on the way, one tensor at a time in host memory.

The library's own writer hides a full disk behind an error of its own; here it stays an OSError.
"""

import hashlib
import json
from collections.abc import Mapping
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` to `path`, atomically; returns the sha256. Equal tensors give equal bytes."""
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for piece in progress.each(chain([header(tensors)], (tensor_bytes(tensor) for _, tensor in sorted(tensors.items())))):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on `device`."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
