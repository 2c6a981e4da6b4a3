"""Tensors that say they are on a GPU, where there is none: computed on the CPU with real values, by the rules of a GPU.

Whatever asks the device takes the path of a GPU. Operations that meet tensors of both devices fail as they would there, and what makes a GPU wait
is counted. It cannot tell whether a kernel of CUDA is right or fast. For a process of its own, which imports this before torch.
"""

import ctypes
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar


def installed(folder: Path) -> None:
    """Build what autograd needs and load it, before torch looks for CUDA."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations is not None and "torch" not in sys.modules
    torch_folder, library = Path(spec.submodule_search_locations[0]), folder / "pretend_gpu.so"
    source = Path(__file__).with_suffix(".cpp")
    includes, libraries = f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"
    subprocess.run(["g++", "-std=c++20", "-O0", "-shared", "-fPIC", includes, source, "-o", library, libraries, "-lc10", "-ltorch_cpu"], check=True)
    ctypes.CDLL(str(torch_folder / "lib" / "libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).install()


installed(Path(sys.argv[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # take indices of the CPU too
WRITES = {aten.index_put_.default, aten._index_put_impl_.default, aten.scatter_.src, aten.scatter_add_.default, aten.index_copy_.default}

torch._disable_dynamo = lambda function, recursive=True: function  # torch wraps our dispatchers with it, which imports torch.compile: 2 s
torch.cuda._lazy_init = lambda: None
torch.cuda.get_device_capability = lambda device=None: (8, 0)
torch.__future__.set_overwrite_module_params_on_conversion(True)


class OnGPU(Tensor):
    """A tensor on the GPU; `value` is what it holds."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "OnGPU":
        with torch.inference_mode(False):
            found = Tensor._make_wrapper_subclass(
                cls, value.size(), strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype, device=GPU
            )
        found.value = value
        return found

    def tolist(self) -> Any:
        """The values, for which the GPU is waited for."""
        Told.waits["tolist"] += 1
        return self.value.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class Told:
    """What was asked of the GPU, until `forget`."""

    operations: ClassVar[Counter[str]] = Counter()
    waits: ClassVar[Counter[str]] = Counter()  # of the CPU for the GPU
    uploads = 0  # values of the CPU, which a GPU waits for unless they are pinned
    sorted_writes = 0  # to indices, made deterministic by sorting them
    copied_writes = 0  # of these, into a tensor that is copied for it as a whole, and back

    @classmethod
    def forget(cls) -> None:
        cls.operations, cls.waits = Counter(), Counter()
        cls.uploads = cls.sorted_writes = cls.copied_writes = 0


def dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation."""
    if func is aten._pin_memory.default:
        return args[0].clone()
    if func is aten.is_pinned.default:
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on, off = ([tensor for tensor in tensors if isinstance(tensor, OnGPU) == wanted] for wanted in (True, False))
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    is_copy = func is aten.copy_.default or (target is not None and tensors)
    if on and any(tensor.ndim for tensor in off) and not is_copy and func not in INDEXING:
        raise RuntimeError(f"{func}: a tensor of shape {tuple(next(t for t in off if t.ndim).shape)} is on the CPU, others are on the GPU")
    if off and str(func).startswith("c10d."):
        raise RuntimeError(f"{func}: a tensor of the CPU, which NCCL cannot send")
    to_gpu = isinstance(args[0], OnGPU) if func is aten.copy_.default else bool(on) if target is None else target.type == "cuda"
    note(func, args, bool(on), bool(off), is_copy, to_gpu)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    result = func(*tree_map(value_of, args), **tree_map(value_of, kwargs))
    if not to_gpu:
        return result
    result = tree_map(lambda leaf: OnGPU(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on and target is None else result


def value_of(leaf: Any) -> Any:
    """What a CPU computes with."""
    return leaf.value if isinstance(leaf, OnGPU) else leaf


def note(func: Any, args: Any, on: bool, off: bool, is_copy: bool, to_gpu: bool) -> None:
    """Count an operation of the GPU."""
    if not on and not to_gpu:
        return
    Told.operations[str(func)] += 1
    by_mask = func is aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])
    if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default) or by_mask:
        Told.waits[str(func)] += 1
    if is_copy and on and not to_gpu:
        Told.waits["copy"] += 1
    if off and to_gpu and (is_copy or func in INDEXING):
        Told.uploads += 1
    if func in WRITES and torch.are_deterministic_algorithms_enabled():
        Told.sorted_writes += 1
        Told.copied_writes += not args[0].is_contiguous()


class PretendGPU(TorchDispatchMode):
    """Inside, device="cuda" is such a GPU."""

    def __enter__(self) -> "PretendGPU":
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes a tensor of the CPU and copies it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})
