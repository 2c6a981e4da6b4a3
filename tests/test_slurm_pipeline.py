"""The literal `snakemake --profile slurm` on a real SLURM: where each rule runs, what it asks for, what its jobs see."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Driver, edit_profile, for_a_miniature
from workspace import REPOSITORY, Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

ON_CPUS = {"tokenizer_train", "tokenize", "report_write"}
ON_GPUS = {"base_train", "mid_train", "chat_sft", "evaluate_task"}
MAIL_TO = "student@example.edu"
MODULE = "#%Module\nsetenv NANOCHAT_TESTS_MODULE loaded\n"


@dataclass
class Pipeline:
    """The miniature, run to its end."""

    driver: Driver
    trainer: dict[str, str] = field(default_factory=dict)  # environment of the process that pretrains
    trainer_network: int = 0  # inode of its network namespace

    def watch_trainer(self) -> bool:
        """Look at the process that holds the folder of base_train, if there is one; whether it was seen."""
        try:
            owner = json.loads(self.driver.workspace.path("results/tiny/base_train/.owner.json").read_text(encoding="utf-8"))
            content = Path("/proc", str(owner["pid"]), "environ").read_text(encoding="utf-8")
            self.trainer_network = Path("/proc", str(owner["pid"]), "ns", "net").stat().st_ino
        except (OSError, ValueError):
            return False
        self.trainer = dict(pair.partition("=")[::2] for pair in content.split("\0") if pair)
        return True


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """The whole miniature from an empty folder, by a user without any configuration of their own."""
    folder = tmp_path_factory.mktemp("pipeline")
    workspace = Workspace.make(folder / "workspace", REPOSITORY / "tests" / "tiny.yaml")
    workspace.configure(lambda experiment: experiment["runs"]["tiny"].update(evaluate={"identity": {"limit": 4, "phases": ["sft"], "max_new_tokens": 8}}))
    workspace.path("config.yaml").rename(workspace.path("miniature.yaml"))
    for name in ("home", "modules"):
        (folder / name).mkdir()
    (folder / "modules" / "course-tools").write_text(MODULE, encoding="utf-8")

    def settings(profile: dict[str, Any]) -> None:
        for_a_miniature(profile)
        profile["precommand"] = f". /usr/share/modules/init/sh && module use {folder}/modules && module load course-tools"
        profile["set-resources"]["base_train"]["slurm_extra"] = f"'--mail-type=BEGIN,END,FAIL --mail-user={MAIL_TO}'"

    edit_profile(workspace, settings)
    run = Pipeline(cluster.drive(workspace, "--configfile", "miniature.yaml", HOME=str(folder / "home"), XDG_CONFIG_HOME=str(folder / "home")))
    run.driver.wait_until(run.watch_trainer, "base_train runs")
    run.driver.wait()
    yield run


def requests(said: str) -> dict[str, dict[str, str]]:
    """Rule -> resources that snakemake asked for, as it says them."""
    blocks = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", said, flags=re.MULTILINE)
    return {rule: dict(item.partition("=")[::2] for item in resources.split(", ")) for rule, resources in blocks}


def test_the_profile_is_found_and_runs_the_speedrun_unless_told_otherwise(cluster: Cluster, empty_workspace: Workspace) -> None:
    driver = cluster.drive(empty_workspace, "--dry-run", HOME=str(empty_workspace.folder), XDG_CONFIG_HOME=str(empty_workspace.folder))
    said = driver.wait()
    assert "results/d20/base_train/model.safetensors" in said
    assert "results/tiny" not in said


def test_the_miniature_is_built_to_the_report(pipeline: Pipeline) -> None:
    workspace = pipeline.driver.workspace
    assert workspace.path("results/report/report.html").is_file()
    assert json.loads(workspace.path("results/tiny/scores/sft/identity.json").read_text(encoding="utf-8"))["n"] == 4


def test_what_needs_the_internet_runs_on_the_login_node_and_the_rest_does_not(pipeline: Pipeline) -> None:
    said = pipeline.driver.said()
    here = set(re.findall(r"^localrule (\w+):", said, flags=re.MULTILINE))
    assert {rule for rule in ON_CPUS | ON_GPUS if pipeline.driver.jobs(rule)} == ON_CPUS | ON_GPUS
    assert not here & (ON_CPUS | ON_GPUS)
    assert "fetch_part" in here and not pipeline.driver.jobs("fetch_part")


@pytest.mark.parametrize("rule", sorted(ON_GPUS | ON_CPUS))
def test_a_job_arrives_with_what_its_rule_asked_for(pipeline: Pipeline, rule: str) -> None:
    asked = requests(pipeline.driver.said())[rule]
    job = pipeline.driver.cluster.job(pipeline.driver.jobs(rule)[0])
    assert job["Account"] == "nanochat"
    assert job["Requeue"] == "1"
    assert job["MinMemoryNode"] in (f"{asked['mem_mb']}M", f"{int(asked['mem_mb']) / 1000:g}G")
    hours, minutes, _ = re.sub(r"^(\d+)-(\d+)", lambda found: str(24 * int(found[1]) + int(found[2])), job["TimeLimit"]).split(":")
    assert 60 * int(hours) + int(minutes) == int(asked["runtime"])
    if rule in ON_GPUS:
        assert (job["Partition"], job["NumCPUs"], job["NumNodes"]) == ("gpu-a100", "2", "1")
        assert job["TresPerJob"] == f"gres:gpu:a100:{2 if rule == 'base_train' else 1}"
    else:
        assert job["Partition"] == "cpu" and "TresPerJob" not in job


def test_the_profile_as_it_stands_asks_for_a_whole_node_and_an_interrupt_cancels_it(cluster: Cluster, workspace: Workspace) -> None:
    workspace.configure(lambda content: content["runs"]["tiny"]["base_train"]["horizon"].update(batch_tokens=1024))  # a row for each of eight GPUs
    driver = cluster.drive(workspace, "base", "--configfile", "config.yaml")
    driver.wait_until(lambda: bool(driver.jobs("base_train")), "base_train is submitted")
    (number,) = driver.jobs("base_train")
    job = cluster.job(number)
    assert (job["TresPerJob"], job["NumCPUs"], job["Partition"]) == ("gres:gpu:a100:8", "64", "gpu-a100")
    driver.process.send_signal(signal.SIGINT)
    assert driver.end() != 0
    assert cluster.state(number) in ("CANCELLED", "COMPLETING")


def test_mail_goes_to_the_configured_address_and_else_to_the_user(pipeline: Pipeline) -> None:
    messages = pipeline.driver.cluster.mail()
    (base,), (sft,) = (pipeline.driver.jobs(rule) for rule in ("base_train", "chat_sft"))
    for job, address in ((base, MAIL_TO), (sft, "root")):
        mine = [message for message in messages if f"Job_id={job} " in message]
        assert len(mine) == 2 and all(message.endswith(address) for message in mine), messages
        assert "Began" in mine[0] and "Ended" in mine[1] and "COMPLETED" in mine[1]


def test_a_job_sees_its_module_its_gpus_and_no_hub(pipeline: Pipeline) -> None:
    assert pipeline.trainer["NANOCHAT_TESTS_MODULE"] == "loaded"
    assert pipeline.trainer["HF_HUB_OFFLINE"] == "1"
    assert len(pipeline.trainer["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert "NANOCHAT_TESTS_MODULE" not in os.environ


def test_jobs_need_no_network(pipeline: Pipeline) -> None:
    """The trainer lived where a connection to the login node and one to the internet fail; the login node can make the first."""
    cluster = pipeline.driver.cluster
    if not cluster.has_own_network():
        pytest.skip("network namespaces are not allowed on this machine, jobs share its network")
    assert pipeline.trainer_network == (cluster.folder / "run" / "network").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        call = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5); print('connected')"
        assert "connected" in cluster.run(sys.executable, "-c", call)
        on_node = ("srun", "--partition=cpu", "--account=nanochat", "--time=1", sys.executable, "-c")
        assert "Connection refused" in cluster.run(*on_node, call, check=False)
        assert "Network is unreachable" in cluster.run(*on_node, "import socket; socket.create_connection(('198.51.100.1', 443), 5)", check=False)


def test_every_job_leaves_its_logs(pipeline: Pipeline) -> None:
    workspace = pipeline.driver.workspace
    for rule in ON_CPUS | ON_GPUS:
        for job in pipeline.driver.jobs(rule):
            (log,) = workspace.path(f"logs/slurm/rule_{rule}").rglob(f"{job}.log")
            assert "1 of 1 steps (100%) done" in log.read_text(encoding="utf-8")
    assert "base_train: finished" in workspace.path("logs/base_train/tiny.log").read_text(encoding="utf-8")


# --- the clock of a job ------------------------------------------------------------------------------------------------


def test_the_time_that_a_job_has_left_is_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """A job of two minutes that has waited for 10 seconds trains for 20 + 10 seconds less than two minutes; a budget that is smaller stays."""
    script = f'sleep 10; source "{REPOSITORY}/rules/shell.sh" /bin; PATH="{cluster.folder}/bin:$PATH"; seconds_to_train 2; seconds_to_train 1'
    began = time.monotonic()
    two, one = cluster.run("srun", "--partition=cpu", "--account=nanochat", "--time=2", "bash", "-c", script).split()[-2:]
    passed = time.monotonic() - began
    assert 100 - passed - 1 <= int(two) <= 90
    assert one == "40"
