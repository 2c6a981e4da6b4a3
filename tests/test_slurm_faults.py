"""What breaks on a cluster, broken on a real SLURM while a model is trained; each ends with the bytes of an undisturbed training.

The trainings run side by side (fixture `trainings`), since most of their time is waiting; each test then looks at one of them.
"""

import re
from concurrent.futures import Future

import pytest
from cluster import Cluster, Driver
from trainings import history, states, weights
from workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

Trainings = dict[str, "Future[Driver]"]


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
