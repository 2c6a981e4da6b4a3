"""A one-minute job that tells what a compute node sees: scratch, Python, torch, CUDA, GPUs, NCCL. On request only: it waits in the queue."""

import json
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from nanochat.preflight import slurm
from nanochat.preflight.checks import Check, not_checked, ok, problem, warning
from nanochat.preflight.environment import gigabytes
from nanochat.preflight.requests import Request
from nanochat.preflight.slurm import SlurmError

JOB_MINUTES = 5  # of the limit; the job itself takes half a minute where torch lies on a slow file system
POLL_SECONDS = 2.0


def look_around(folder: Path) -> dict[str, Any]:
    """What this machine sees, as plain data; runs on the compute node. A library that cannot be asked is told by its error."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "python": platform.python_version()}
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
            file.write(b"written")
        facts["writable"], facts["free_bytes"] = True, shutil.disk_usage(folder).free
    except OSError as error:
        facts["writable"], facts["writable_error"] = False, str(error)
    try:
        facts["torch_installed"] = metadata.version("torch")
        facts |= _ask_torch()
    except (ImportError, OSError, RuntimeError) as error:
        facts["torch_error"] = str(error)
    return facts


def _ask_torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    if facts["gpus"]:
        torch.ones(1, device="cuda").sum().item()  # a driver that is too old fails here and not in an hour
        facts["names"] = sorted({torch.cuda.get_device_name(number) for number in range(facts["gpus"])})
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return facts


def run_gpu_job(request: Request, folder: Path, *, wait_seconds: float) -> list[Check]:
    """Submit the job as `request` would be, wait for it, and return what it found. A job that does not start in time is cancelled."""
    place = Path(tempfile.mkdtemp(prefix=".preflight-", dir=folder))
    try:
        return _run(request, folder, place, wait_seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(request: Request, folder: Path, place: Path, wait_seconds: float) -> list[Check]:
    found, said = place / "found.json", place / "said.txt"
    program = f"{sys.executable} -m nanochat preflight --on-node {found}"
    flags = [flag for flag in request.submission if not flag.startswith("--time=")]
    try:
        number = slurm.ask("sbatch", "--parsable", "--job-name=preflight", f"--output={said}", *flags, f"--time={JOB_MINUTES}", "--wrap", program)
        job = number.strip().split(";")[0]
        state = _wait(job, found, wait_seconds)
    except SlurmError as error:
        return [problem("gpu job", f"could not be submitted ({error})", "mend what the lines above say")]
    deadline = time.monotonic() + 10
    while not found.is_file() and time.monotonic() < deadline:  # a shared file system shows it later
        time.sleep(0.2)
    if not found.is_file():
        if state == "PENDING":
            return [not_checked("gpu job", f"job {job} did not start within {wait_seconds:.0f} s and was cancelled; try with --gpu-job-wait SECONDS")]
        words = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if said.is_file() else []
        return [
            problem(
                "gpu job",
                f"job {job} ended without a result: {' '.join(words) or state}",
                "this folder and the environment must be on a file system that the nodes see",
            )
        ]
    return judge(json.loads(found.read_text(encoding="utf-8")), request)


def _wait(job: str, found: Path, wait_seconds: float) -> str:
    """Until the job is over; its last state. One that has not started in time is cancelled."""
    deadline, state = time.monotonic() + wait_seconds, "PENDING"
    while not found.is_file():
        try:
            now = slurm.ask("squeue", "-h", "-j", job, "-o", "%T").strip()
        except SlurmError:  # the queue has forgotten it
            now = ""
        if now in ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
            return now or "ended"
        state = now
        if state == "PENDING" and time.monotonic() > deadline:
            subprocess.run(["scancel", job], capture_output=True, check=False)
            return state
        time.sleep(POLL_SECONDS)
    return state


def judge(facts: Mapping[str, Any], request: Request) -> list[Check]:
    """What a node has told, as checks."""
    host = f"node {facts['host']}"
    checks = [ok(f"{host}: python", facts["python"])]
    if facts["python"] != platform.python_version():
        checks = [warning(f"{host}: python", f"{facts['python']}, here it is {platform.python_version()}", "load the same module in both places")]
    if facts["writable"]:
        checks.append(ok(f"{host}: folder", f"can be written, {gigabytes(facts['free_bytes'])} free"))
    else:
        checks.append(problem(f"{host}: folder", f"cannot be written ({facts['writable_error']})", "run in a folder on the nodes' file system"))
    if "torch_error" in facts:
        return [
            *checks,
            problem(f"{host}: torch", f"cannot be used ({facts['torch_error'][:200]})", "run: make .venv/installed, where the nodes see it"),
        ]
    checks.append(ok(f"{host}: torch", f"{facts['torch']}, CUDA {facts['cuda'] or 'none'}"))
    if facts["gpus"] < request.gpus:
        why = "this torch is built without CUDA" if facts["cuda"] is None else "see nvidia-smi on the node"
        cure = "install the CUDA build of the same version of torch" if facts["cuda"] is None else "ask the administrators"
        checks.append(problem(f"{host}: gpus", f"torch sees {facts['gpus']} of the {request.gpus} asked for ({why})", cure))
    else:
        checks.append(ok(f"{host}: gpus", f"{facts['gpus']} x {', '.join(facts.get('names', []))}"))
    if "nccl" in facts:
        checks.append(ok(f"{host}: nccl", facts["nccl"]))
    else:
        checks.append(not_checked(f"{host}: nccl", "torch has none without GPUs"))
    return checks
