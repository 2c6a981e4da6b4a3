"""What breaks on a cluster, broken on a real SLURM while a model is trained; each ends with the bytes of an undisturbed training.

The trainings run side by side, since most of their time is waiting; each test then looks at one of them.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from cluster import Cluster, Driver
from trainings import freeze, history, members, prepare, saved_step, states, train, wait_for_saved_state, weights
from workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


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
Trainings = dict[str, "Future[Driver]"]


@pytest.fixture(scope="module")
def trainings(cluster: Cluster, finished: Workspace, limited: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """One disturbed training for each fault, all at the same time, and beside the one that test_slurm_time.py is about."""
    folder = tmp_path_factory.mktemp("trainings")

    def disturb(name: str) -> Driver:
        fault, resources = FAULTS[name]
        driver = train(cluster, prepare(finished, folder / name), **resources)
        try:
            fault(driver)
            driver.wait()
        finally:
            driver.process.kill()
        return driver

    with ThreadPoolExecutor(len(FAULTS)) as threads:
        yield {name: threads.submit(disturb, name) for name in FAULTS}


def test_a_cancelled_job_is_submitted_again_and_goes_on(trainings: Trainings, undisturbed: Workspace) -> None:
    driver = trainings["cancel"].result()
    first, second = driver.jobs("base_train")
    assert driver.cluster.state(first) == "CANCELLED" and driver.cluster.state(second) == "COMPLETED"
    assert f"SLURM-job '{first}' failed, SLURM status is: 'CANCELLED'" in driver.said()
    assert "resumed at step" in history(driver.workspace)
    assert states(driver.workspace)[-1] == "finished" and len(states(driver.workspace)) == 2
    assert weights(driver.workspace) == weights(undisturbed)


@pytest.mark.parametrize("fault", ["requeue", "preempt"])
def test_a_job_that_is_put_back_into_the_queue_goes_on(trainings: Trainings, undisturbed: Workspace, fault: str) -> None:
    driver = trainings[fault].result()
    (job,) = driver.jobs("base_train")
    assert driver.cluster.job(job)["Restarts"] == "1"
    assert "resumed at step" in history(driver.workspace)
    assert weights(driver.workspace) == weights(undisturbed)


def test_a_training_whose_node_loses_its_power_goes_on_on_another(trainings: Trainings, undisturbed: Workspace) -> None:
    driver = trainings["power"].result()
    (job,) = driver.jobs("base_train")
    assert (driver.cluster.job(job)["Restarts"], driver.cluster.job(job)["NodeList"]) == ("1", "a100-02")
    assert "resumed at step" in history(driver.workspace)
    assert weights(driver.workspace) == weights(undisturbed)


def test_a_job_that_was_killed_for_its_memory_gets_more(trainings: Trainings, undisturbed: Workspace) -> None:
    driver = trainings["memory"].result()
    first, second = driver.jobs("base_train")
    assert [driver.cluster.job(job)["MinMemoryNode"] for job in (first, second)] == ["350M", "700M"]
    log = driver.workspace.path(f"logs/slurm/rule_base_train/tiny/{first}.log").read_text(encoding="utf-8")
    assert "exceeded memory limit" in log
    assert weights(driver.workspace) == weights(undisturbed)


def test_a_job_that_slurm_ends_at_its_time_limit_is_submitted_again_and_goes_on(trainings: Trainings, undisturbed: Workspace) -> None:
    driver = trainings["time"].result()
    first, second = driver.jobs("base_train")
    assert (driver.cluster.state(first), driver.cluster.state(second)) == ("TIMEOUT", "COMPLETED")
    assert f"SLURM-job '{first}' failed, SLURM status is: 'TIMEOUT'" in driver.said()
    assert "resumed at step" in history(driver.workspace)
    assert weights(driver.workspace) == weights(undisturbed)


def test_mail_says_that_a_job_failed(cluster: Cluster, trainings: Trainings) -> None:
    first, second = trainings["cancel"].result().jobs("base_train")
    messages = "\n".join(cluster.mail())
    assert re.search(rf"Job_id={first} .* (Failed|Ended), .*CANCELLED", messages), messages
    assert re.search(rf"Job_id={second} .* Ended, .*COMPLETED", messages), messages
