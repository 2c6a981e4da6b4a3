"""What a process runs on: device, dtype, ranks, seed, log lines, signals.

The only module that reads environment variables (torchrun's and SLURM's). Nothing is probed at import;
torch is imported when a Runtime is started, so that stages without it (fetch, report) start at once.
"""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nanochat.errors import UserError

if TYPE_CHECKING:
    import torch


RANK_GRACE_S = {2: 5.0, 75: 60.0}  # after this exit code of one rank, how long the others get to end by themselves


def log(message: str) -> None:
    """One line on stderr, flushed: a log file that grows is how people see that a run is alive. Rank 0 only.

    A stderr that has gone, such as a closed terminal, ends no work.
    """
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


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


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def stop_signals() -> list[int]:
    """What asks a process to save and stop. A closed terminal (SIGHUP) too, unless nohup has made the process deaf to it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, *hangup]


def launch_ranks(ranks: int, arguments: Sequence[str]) -> None:
    """Run `nanochat ARGUMENTS` as `ranks` processes on this machine and exit with their code; returns at once for one rank or below torchrun.

    Unlike torchrun it keeps the exit codes of a stage (2, 75) and hands every signal on; the ranks die with this process.
    """
    if ranks <= 1 or under_torchrun():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "nanochat", *arguments]
    processes = [
        # a session of its own: Ctrl-C reaches it once, through this process, and not a second time from the terminal
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True, preexec_fn=_die_with_parent)
        for rank in range(ranks)
    ]

    def forward(number: int, _frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in stop_signals():
        signal.signal(number, forward)
    sys.exit(_wait_for_all(processes))


def _die_with_parent() -> None:
    """In a child, before exec: ask Linux to kill it when its parent dies, so that no rank trains on unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _wait_for_all(processes: "list[subprocess.Popen[bytes]]") -> int:
    """The exit code of the ranks: the first that is not 0. After it the others get a while to end, then they are killed."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        codes = [process.returncode for process in processes if process.returncode]
        if codes and not code:
            code = codes[0]
            deadline = time.monotonic() + RANK_GRACE_S.get(code, 0.0)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return code or next((process.returncode for process in processes if process.returncode), 0)


@dataclass
class StopRequest:
    """Becomes true when the process is asked to stop: SIGTERM, SIGINT, SIGUSR1, SIGHUP, or its time budget is used up."""

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
    def is_main(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    @classmethod
    def start(cls, *, seed: int = 0, device: str = "auto", threads: int | None = None) -> "Runtime":
        """Seed every generator, choose deterministic kernels, join the process group if torchrun started us.

        `device`: auto (cuda, else mps, else cpu), cpu, cuda or mps; asking for an absent one is a UserError.
        """
        import torch

        if threads:
            torch.set_num_threads(threads)
        chosen = _choose_device(device)
        rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
        if chosen.type == "cuda":
            if local_rank >= (present := torch.cuda.device_count()):
                raise UserError(f"--ranks={world_size}: this job sees {present} GPUs and each rank needs one; give --ranks {present} or ask for more GPUs")
            chosen = torch.device("cuda", local_rank)
            torch.cuda.set_device(chosen)
            # cuBLAS needs a fixed workspace for bit-equal results; it reads this when its handle is made
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        random.seed(seed)
        torch.manual_seed(seed)
        if chosen.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
        else:  # the same for eager code, without the 1.1 s that importing torch.compile takes at the start of every stage
            torch.set_deterministic_debug_mode("warn")
        torch.set_float32_matmul_precision("high" if chosen.type == "cuda" else "highest")
        if under_torchrun() and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        bf16 = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen) >= (8, 0)
        dtype = torch.bfloat16 if bf16 else torch.float32
        return cls(chosen, dtype, rank, local_rank, world_size, seed, _device_facts(chosen, world_size))

    def all_reduce(self, value: "torch.Tensor", op: Literal["sum", "max"] = "sum") -> "torch.Tensor":
        """Combine `value` over ranks in place and return it; the identity on one rank."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(value, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
        return value

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; every rank must ask at the same moment."""
        if self.world_size == 1:
            return flag
        import torch

        return bool(self.all_reduce(torch.tensor(int(flag), device=self.device), "max").item())

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
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device_name": properties.name, "device_memory_bytes": properties.total_memory}
    return facts
