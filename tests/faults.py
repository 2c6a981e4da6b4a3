"""What breaks on a cluster while a model is trained, and how it is broken."""

import contextlib
from collections.abc import Callable
from typing import Any

import psutil
from cluster import Driver
from trainings import freeze, members, saved_step, wait_for_saved_state


def wait_for_restart(driver: Driver, job: str) -> None:
    """Wait until SLURM has put the job back into its queue, and spare it the two minutes that it waits there."""
    driver.wait_until(lambda: driver.cluster.job(job)["Restarts"] == "1", "the job was put back into the queue")

    def runs_again() -> bool:
        driver.cluster.run("scontrol", "update", f"jobid={job}", "starttime=now", check=False)
        return driver.cluster.state(job) in ("RUNNING", "COMPLETED")  # COMPLETING: the processes of before are still being ended

    driver.wait_until(runs_again, "the job runs again")


# --- the faults --------------------------------------------------------------------------------------------------------


def cancel(driver: Driver) -> None:
    """Somebody types scancel."""
    driver.cluster.run("scancel", wait_for_saved_state(driver))


def requeue(driver: Driver) -> None:
    """An administrator puts the job back into the queue."""
    job = wait_for_saved_state(driver)
    driver.cluster.run("scontrol", "requeue", job)
    wait_for_restart(driver, job)


def preempt(driver: Driver) -> None:
    """A job of a partition with priority needs memory of the same node, which only this training uses much of."""
    job = wait_for_saved_state(driver)
    node = driver.cluster.job(job)["NodeList"]
    urgent = ("--partition=gpu-urgent", "--account=nanochat", "--time=1", "--mem=300000", f"--nodelist={node}", "--output=/dev/null")
    driver.cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    wait_for_restart(driver, job)


def power_off(driver: Driver) -> None:
    """The node is drained, which the job outlives, and then loses its power: its daemon and all processes of the job are gone."""
    job = wait_for_saved_state(driver)
    node = driver.cluster.job(job)["NodeList"]
    assert node == "a100-01", "the others keep off this node"
    driver.cluster.run("scontrol", "update", f"nodename={node}", "state=DRAIN", "reason=maintenance")
    before = saved_step(driver.workspace)
    driver.wait_until(lambda: saved_step(driver.workspace) > before, "training goes on while its node is drained")
    try:
        driver.cluster.kill_daemon(f"slurmd.{node}")
        kill_processes(job)
        driver.cluster.run("scontrol", "update", f"nodename={node}", "state=DOWN", "reason=power")
        wait_for_restart(driver, job)
    finally:
        driver.cluster.run("scontrol", "update", f"nodename={node}", "state=RESUME")
        driver.cluster.start()


def kill_processes(job: str) -> None:
    """Kill what belongs to a job, the shepherds that SLURM gave it first."""
    shepherds = [process for process in psutil.process_iter(["cmdline"]) if f"[{job}." in " ".join(process.info["cmdline"] or [])]
    others = members(job)
    assert shepherds and others
    for process in (*shepherds, *others):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def time_out(driver: Driver) -> None:
    """An administrator shortens the job's time limit, of which its own clock knows nothing, while it trains on a machine that stands still."""
    job = wait_for_saved_state(driver)
    freeze(job)
    driver.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=1")
    driver.wait_until(lambda: driver.cluster.state(job) == "TIMEOUT", "SLURM has ended the job")


def no_fault(driver: Driver) -> None:
    """The first attempt was given 350 MB, of which a trainer needs more."""


FAULTS: dict[str, tuple[Callable[[Driver], None], dict[str, Any]]] = {
    "cancel": (cancel, {"slurm_extra": "'--exclude=a100-01 --mail-type=BEGIN,END,FAIL'"}),
    "requeue": (requeue, {"slurm_extra": "'--exclude=a100-01'"}),
    "preempt": (preempt, {"slurm_extra": "'--exclude=a100-01'", "mem_mb": 800_000}),
    "time": (time_out, {"slurm_extra": "'--exclude=a100-01'"}),
    "memory": (no_fault, {"slurm_extra": "'--exclude=a100-01'", "mem_mb": "attempt * 350"}),
    "power": (power_off, {}),
}
