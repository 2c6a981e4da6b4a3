"""What takes time on a cluster: time limits that a training goes through, and an outage of SLURM itself."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from cluster import Cluster, Driver
from trainings import history, prepare, states, train, wait_for_saved_state, weights
from workspace import Workspace

Limited = Future[Driver]

PORT = 37_000  # of the daemons where namespaces are not allowed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A second cluster: an outage is for everybody, and trainings run on the first."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="nanochat-slurm-")), PORT)
    try:
        cluster.start()
        yield cluster
    finally:
        for driver in cluster.drivers:
            driver.process.kill()
        cluster.stop()


def test_an_outage_of_slurm_is_waited_for(own_cluster: Cluster, limited: object, finished: Workspace, undisturbed: Workspace, tmp_path: Path) -> None:
    """Accounting is down from the beginning, and the controller until snakemake has looked for its job in vain."""
    workspace = prepare(finished, tmp_path / "workspace")
    try:
        own_cluster.kill_daemon("slurmdbd")
        driver = train(own_cluster, workspace)
        wait_for_saved_state(driver)
        own_cluster.kill_daemon("slurmctld")
        driver.wait_until(lambda: "Falling back to 'sacct'" in driver.said(), "snakemake has noticed")
        time.sleep(5)  # five looks in one second are all that the executor has patience for by itself
    finally:
        own_cluster.start()
    said = driver.wait()
    (job,) = driver.jobs("base_train")
    assert own_cluster.state(job) == "COMPLETED" and own_cluster.job(job)["Restarts"] == "0"
    assert "Error" not in said
    assert weights(workspace) == weights(undisturbed)


def test_a_training_goes_through_three_time_limits(cluster: Cluster, limited: Limited, undisturbed: Workspace) -> None:
    """Jobs of one minute: each stops in time, and the last one ends with the bytes of one long job.

    Where the machine is so busy that a minute passes before the trainer has started, that job is one more.
    """
    driver = limited.result()
    jobs, ends = [cluster.state(job) for job in driver.jobs("base_train")], states(driver.workspace)
    assert len(jobs) >= len(ends) >= 4
    assert ends == ["stopped"] * (len(ends) - 1) + ["finished"]
    assert jobs[-1] == "COMPLETED" and [job for job in jobs[:-1] if job != "TIMEOUT"] == ["FAILED"] * (len(ends) - 1)
    assert history(driver.workspace).count("stopped (time limit)") == len(ends) - 1
    assert weights(driver.workspace) == weights(undisturbed)
