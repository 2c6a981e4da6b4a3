"""What takes time on a cluster: time limits that a training goes through, and an outage of SLURM itself."""

import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from cluster import Cluster, Driver
from trainings import history, prepare, states, train, wait_for_saved_state, weights
from workspace import Workspace

Limited = Future[Driver]

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_training_goes_through_three_time_limits(cluster: Cluster, limited: Limited, undisturbed: Workspace) -> None:
    """Jobs of one minute: each stops in time, and the last one ends with the bytes of one long job."""
    driver = limited.result()
    jobs, ends = driver.jobs("base_train"), states(driver.workspace)
    assert len(jobs) == len(ends) >= 4
    assert ends == ["stopped"] * (len(ends) - 1) + ["finished"]
    assert [cluster.state(job) for job in jobs] == ["FAILED"] * (len(jobs) - 1) + ["COMPLETED"]
    assert history(driver.workspace).count("stopped (time limit)") == len(jobs) - 1
    assert weights(driver.workspace) == weights(undisturbed)


def test_an_outage_of_slurm_is_waited_for(cluster: Cluster, limited: Limited, finished: Workspace, undisturbed: Workspace, tmp_path: Path) -> None:
    """Accounting is down from the beginning, and the controller until snakemake has looked for its job in vain."""
    limited.exception()  # it has ended: an outage is for everybody
    workspace = prepare(finished, tmp_path / "workspace")
    try:
        cluster.kill_daemon("slurmdbd")
        driver = train(cluster, workspace)
        wait_for_saved_state(driver)
        cluster.kill_daemon("slurmctld")
        driver.wait_until(lambda: "Falling back to 'sacct'" in driver.said(), "snakemake has noticed")
        time.sleep(5)  # five looks in one second are all that the executor has patience for by itself
    finally:
        cluster.start()
    said = driver.wait()
    (job,) = driver.jobs("base_train")
    assert cluster.state(job) == "COMPLETED" and cluster.job(job)["Restarts"] == "0"
    assert "Error" not in said
    assert weights(workspace) == weights(undisturbed)
