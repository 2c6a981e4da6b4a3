"""What a process runs on: device, dtype, ranks, seed, log lines, signals.

The only module that reads environment variables (torchrun's and SLURM's). Nothing is probed at import;
torch is imported when a Runtime is started, so that stages without it (fetch, report) start at once.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nanochat.errors import UserError

if TYPE_CHECKING:
    import torch

# a rank may wait long for one with a slow disk, when a run ends or is asked to stop; that a run is stuck is noticed by its supervisor, much sooner
COLLECTIVE_MAY_WAIT = timedelta(hours=2)


def log(message: str) -> None:
    """One line on stderr, flushed: a log file that grows is how people see that a run is alive. Rank 0 only.

    A stderr that has gone, such as a closed terminal, ends no work.
    """
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def process_age_s() -> float:
    """Seconds since this process was started, imports included."""
    with contextlib.suppress(OSError, AttributeError):  # Linux; psutil rounds the machine's start to a second
        started_ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    import psutil

    return time.time() - float(psutil.Process().create_time())


def slurm_job_id() -> str | None:
    """The SLURM job that this process belongs to, or None."""
    return os.environ.get("SLURM_JOB_ID")


OPENMP_SPINS = "10000"  # of libgomp, whose default is hundreds of thousands


def let_threads_sleep() -> None:
    """Let OpenMP threads that wait go to sleep soon, unless the user has set how; call it before torch is loaded.

    A spinning thread takes its core from whoever works there, and a small model waits often. reports/log.md has the
    speeds, alone and beside a busy process, of threads that spin for long, shortly and not at all.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPINS)


@contextlib.contextmanager
def own_matplotlib() -> Iterator[None]:
    """While figures are drawn, matplotlib's settings and its list of fonts lie in a folder that is deleted afterwards; enter it before matplotlib is loaded.

    So neither a matplotlibrc of the user nor a home folder that is full or cannot be written changes a report, and nothing is left there.
    """
    with tempfile.TemporaryDirectory(prefix="nanochat-matplotlib-") as folder:
        os.environ.setdefault("MPLCONFIGDIR", folder)
        try:
            yield
        finally:
            if os.environ.get("MPLCONFIGDIR") == folder:
                del os.environ["MPLCONFIGDIR"]


def under_torchrun() -> bool:
    """Whether torchrun, or a supervisor of our own, started this process as one of its ranks."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def environment(*left_out: str, **more: str) -> dict[str, str]:
    """The environment of this process without some variables and with more in it, for a process that it starts."""
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, **more}


def stop_signals() -> list[int]:
    """What asks a process to save and stop. A closed terminal (SIGHUP) too, unless nohup has made the process deaf to it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *hangup]


@dataclass(frozen=True)
class Group:
    """What the ranks of one machine need to find the others."""

    first_rank: int  # of this machine
    world_size: int
    nodes: int
    address: str  # of rank 0
    port: int


class Handed(NamedTuple):
    """What a supervisor hands to a rank: open files for its progress and for its stacks, and its place among the ranks of this machine."""

    board: int
    stacks: int
    ranks: int
    local_rank: int


HANDED = "NANOCHAT_SUPERVISED"  # BOARD:STACKS, two file descriptors


def handed_over() -> Handed | None:
    """What the supervisor of this rank has handed to it; None without a supervisor."""
    if HANDED not in os.environ:
        return None
    board, stacks = map(int, os.environ[HANDED].split(":"))
    return Handed(board, stacks, int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


def own_rank() -> int:
    """The rank of this process among all; 0 where there is but one."""
    return int(os.environ.get("RANK", "0"))


def rank_environment(handed: Handed, group: Group) -> dict[str, str]:
    """The environment of one rank: torchrun's variables, what its supervisor hands over, and output that nobody holds back."""
    ranks = {"RANK": group.first_rank + handed.local_rank, "LOCAL_RANK": handed.local_rank, "LOCAL_WORLD_SIZE": handed.ranks}
    numbers = {**ranks, "WORLD_SIZE": group.world_size, "GROUP_WORLD_SIZE": group.nodes, "MASTER_PORT": group.port}
    own = {"MASTER_ADDR": group.address, HANDED: f"{handed.board}:{handed.stacks}", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **{name: str(number) for name, number in numbers.items()}, **own}


@dataclass
class StopRequest:
    """Becomes true when the process is asked to stop: SIGTERM, SIGINT, SIGUSR1, SIGHUP, or its time budget is used up.

    `by_signal` leaves the budget out: an attempt that has made no update yet must make one, or a slow start in short jobs would train for ever.
    """

    deadline: float | None = None  # time.monotonic() value
    reason: str | None = None

    @classmethod
    def install(cls, max_seconds: float | None = None) -> "StopRequest":
        """Catch the signals from now on; a second SIGINT interrupts at once. `max_seconds` counts from now."""
        request = cls(None if max_seconds is None else time.monotonic() + max_seconds)

        def on_signal(number: int, _frame: Any) -> None:
            if number == signal.SIGINT and request.reason is not None:
                raise KeyboardInterrupt
            request.reason = signal.Signals(number).name

        for number in stop_signals():
            signal.signal(number, on_signal)
        return request

    @property
    def by_signal(self) -> bool:
        """Whether somebody has asked, the budget aside."""
        return self.reason is not None

    def __bool__(self) -> bool:
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "time limit"
        return self.reason is not None


@dataclass(frozen=True)
class Runtime:
    """Device and ranks of this process. `dtype` is what activations and matrix products use; weights are fp32."""

    device: "torch.device"
    dtype: "torch.dtype"
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ranks_per_node(self) -> int:
        """How many ranks share a machine, and its memory and processors."""
        return -(-self.world_size // int(self.facts.get("nodes", 1)))

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    @classmethod
    def start(cls, *, seed: int = 0, device: str = "auto", threads: int | None = None) -> "Runtime":
        """Seed every generator, choose deterministic kernels, join the process group of several ranks.

        `device`: auto (cuda, else mps, else cpu), cpu, cuda or mps; asking for an absent one is a UserError.
        """
        import torch

        if threads:
            if threads > (cores := os.cpu_count() or threads):
                log(f"threads={threads}: there are {cores} CPU cores here, and more threads than cores slow each other down; give at most {cores}")
            torch.set_num_threads(threads)
        chosen = _choose_device(device)
        rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
        if chosen.type == "cuda":
            if local_rank >= (present := torch.cuda.device_count()):
                here = os.environ.get("LOCAL_WORLD_SIZE", world_size)
                raise UserError(f"--ranks={here}: this job sees {present} GPUs and each rank needs one; give --ranks {present} or ask for more GPUs")
            chosen = torch.device("cuda", local_rank)
            torch.cuda.set_device(chosen)
            # cuBLAS needs a fixed workspace for bit-equal results; it reads this when its handle is made
            if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        random.seed(seed)
        torch.manual_seed(seed)
        if chosen.type == "cuda":
            # not warn_only: with it torch's flash attention adds up its gradients in any order, and says so once
            torch.use_deterministic_algorithms(True)
        else:  # the same for eager code, without the 1.1 s that importing torch.compile takes at the start of every stage
            torch.set_deterministic_debug_mode("warn")
        # comes with determinism and writes to every empty tensor: 1 to 2% of a step on a CPU
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("high" if chosen.type == "cuda" else "highest")
        if world_size > 1 and not torch.distributed.is_initialized():
            on_gpu = chosen.type == "cuda"  # NCCL connects at once where it is told the GPU, and a barrier need not guess it
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=COLLECTIVE_MAY_WAIT, device_id=chosen if on_gpu else None)
        bf16 = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen) >= (8, 0)
        dtype = torch.bfloat16 if bf16 else torch.float32
        return cls(chosen, dtype, rank, local_rank, world_size, seed, _device_facts(chosen, world_size))

    def all_reduce(self, value: "torch.Tensor", op: Literal["sum", "max"] = "sum") -> "torch.Tensor":
        """Combine `value` over ranks in place and return it; the identity on one rank."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(value, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
        return value

    def highest(self, *values: int) -> list[int]:
        """The highest of each value on any rank; every rank must ask at the same moment."""
        if self.world_size == 1:
            return list(map(int, values))
        import torch

        found: list[int] = self.all_reduce(torch.tensor(list(map(int, values)), device=self.device), "max").tolist()
        return found

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; every rank must ask at the same moment."""
        return bool(self.highest(flag)[0])

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """What each rank brings, all of one length; every rank must bring it at the same moment."""
        if self.world_size == 1:
            return [content]
        import torch
        import torch.distributed as dist

        mine = torch.tensor(list(content), dtype=torch.uint8, device=self.device)
        every = mine.new_empty(len(content) * self.world_size)
        dist.all_gather_single(every, mine)
        return [bytes(part) for part in every.view(self.world_size, -1).tolist()]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def stop(self) -> None:
        """Leave the process group."""
        import torch.distributed as dist

        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _choose_device(name: str) -> "torch.device":
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available.get(name, False):
        raise UserError(f"device={name}: not available here; choose one of {[kind for kind, present in available.items() if present]}")
    return torch.device(name)


def _device_facts(device: "torch.device", world_size: int) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"device": device.type, "world_size": world_size, "threads": torch.get_num_threads()}
    if (nodes := int(os.environ.get("GROUP_WORLD_SIZE", "1"))) > 1:
        facts["nodes"] = nodes
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device_name": properties.name, "device_memory_bytes": properties.total_memory}
    return facts
