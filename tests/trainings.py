"""Trainings of the miniature's base model on the SLURM of the tests: long enough to disturb them, their bytes compared."""

import contextlib
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import psutil
from cluster import Cluster, Driver, edit_profile, for_a_miniature
from workspace import Workspace

STEPS = 300
STAGE = "results/tiny/base_train"


def prepare(finished: Workspace, folder: Path, steps: int = STEPS) -> Workspace:
    """The miniature with its tokens made and base training still to do, its state saved every second."""
    workspace = finished.copy(folder)
    for file in ("model.safetensors", "manifest.json"):
        workspace.path(f"{STAGE}/{file}").unlink()
    training = {"horizon": {"steps": steps, "batch_tokens": 512}, "validate_every": 0, "save_every_s": 1}
    workspace.configure(lambda experiment: experiment["runs"]["tiny"]["base_train"].update(training))
    edit_profile(workspace, for_a_miniature)
    edit_profile(workspace, lambda profile: profile["set-resources"]["base_train"].update(gpu=1))
    edit_profile(workspace, lambda profile: profile["set-threads"].update(base_train=1))  # more would wait for each other, 7 trainings on 2 cores
    return workspace


def train_here(workspace: Workspace) -> None:
    """Base training without SLURM, with as many threads as a job has."""
    workspace.build("base", "--set-threads", "base_train=1")


def train(cluster: Cluster, workspace: Workspace, *, output: Path | None = None, wrapped: tuple[str, ...] = (), **resources: Any) -> Driver:
    """Base training under snakemake, with these resources instead of the profile's."""
    edit_profile(workspace, lambda profile: profile["set-resources"]["base_train"].update(resources))
    return cluster.drive(workspace, "base", "--configfile", "config.yaml", output=output, wrapped=wrapped)


def wait_for_saved_state(driver: Driver) -> str:
    """Wait until the training has saved its state; the number of its job."""
    resume = driver.workspace.path(f"{STAGE}/resume")
    driver.wait_until(lambda: any(resume.glob("*.json")), "training has saved its state")
    return driver.jobs("base_train")[-1]


def weights(workspace: Workspace) -> str:
    """sha256 of the trained weights."""
    return hashlib.sha256(workspace.path(f"{STAGE}/model.safetensors").read_bytes()).hexdigest()


def history(workspace: Workspace) -> str:
    """What all attempts have logged."""
    return workspace.path("logs/base_train/tiny.history").read_text(encoding="utf-8")


def saved_step(workspace: Workspace) -> int:
    """The step of the newest saved state; 0 while it is being replaced."""
    steps = []
    for slot in workspace.path(f"{STAGE}/resume").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            steps.append(json.loads(slot.read_text(encoding="utf-8"))["counters"]["step"])
    return max(steps, default=0)


def states(workspace: Workspace) -> list[str]:
    """How the attempts ended, without those of the finished miniature; one that was killed is still `running`."""
    attempts = json.loads(workspace.path(f"{STAGE}/provenance.json").read_text(encoding="utf-8"))["attempts"]
    return [attempt["state"] for attempt in attempts if attempt["job"]]


# --- processes of a job -------------------------------------------------------------------------------------------------


def members(job: str) -> list[psutil.Process]:
    """Everything that a job has started."""
    return [process for process in psutil.process_iter(["cmdline", "environ"]) if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job]


def trainers(job: str) -> list[psutil.Process]:
    """The supervisor and the ranks of a job."""
    return [process for process in members(job) if "nanochat" in " ".join((process.info["cmdline"] or [])[1:3]).split("/")[-1].split()]


def freeze(job: str) -> None:
    """Let the trainers of a job stand still, so that it outlives what a test does meanwhile, however slow this machine is."""
    found = trainers(job)
    assert found
    for process in found:
        process.send_signal(signal.SIGSTOP)


def thaw(job: str) -> None:
    """Let them go on."""
    for process in trainers(job):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
