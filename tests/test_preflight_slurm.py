"""The preflight against a real SLURM: what is wrong is said in one sentence before anything is submitted, and a job left behind is waited for."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import warm
from cluster import edit_profile
from workspace import REPOSITORY, Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SCRIPTS = REPOSITORY / "tests" / "slurm"
PORT = 27_000
CANNOT = 77  # exit code of the scripts on a machine that cannot have a cluster


@dataclass(frozen=True)
class Login:
    """A user who has logged in to the cluster whose files lie in `folder`."""

    folder: Path
    port: int

    def environment(self, workspace: Workspace) -> dict[str, str]:
        """The environment in which the cluster's commands are found."""
        return {**workspace.environment(), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def run(self, workspace: Workspace, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a workspace, on the login node."""
        return subprocess.run(command, cwd=workspace.folder, env=self.environment(workspace), capture_output=True, text=True, timeout=300)

    def preflight(self, workspace: Workspace, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the verb with the profile, for the miniature."""
        command = [sys.executable, "-m", "nanochat", "preflight", "--profile", "slurm", "--configfile", "config.yaml", *arguments]
        environment = self.environment(workspace)
        done: subprocess.CompletedProcess[str] = warm.run(command, modules=warm.SNAKEMAKE, cwd=workspace.folder, env=environment, timeout=300)
        return done

    def snakemake(self, workspace: Workspace, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Type `snakemake --profile slurm`, for the miniature."""
        return self.run(workspace, str(Path(sys.executable).with_name("snakemake")), *arguments, "--profile", "slurm", "--configfile", "config.yaml")

    def queue(self, workspace: Workspace) -> list[str]:
        """Comments of my jobs in the queue."""
        return self.run(workspace, "squeue", "-h", "--me", "-o", "%k").stdout.split()

    def start(self) -> None:
        """Start what does not run."""
        done = subprocess.run([SCRIPTS / "start.sh", "--folder", self.folder, "--port", str(self.port)], capture_output=True, text=True, timeout=200)
        if done.returncode == CANNOT:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    def end(self, daemon: str) -> None:
        """Stop one daemon and wait for its end."""
        pid = int((self.folder / "run" / f"{daemon}.pid").read_text(encoding="utf-8"))
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}/exe").exists())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Login]:
    """A cluster of this file's own, since its tests stop daemons."""
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    login = Login(tmp_path_factory.mktemp("slurm"), PORT + 100 * number)
    login.start()
    yield login
    subprocess.run([SCRIPTS / "stop.sh", "--folder", login.folder, "--purge"], check=True, timeout=100)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def for_a_miniature(profile: dict[str, Any]) -> None:
    """Two cores pretend to be two nodes: trainers without GPUs, few threads, frequent looks at the queue."""
    profile |= {"slurm-init-seconds-before-status-checks": 5, "latency-wait": 10, "set-threads": dict.fromkeys(profile["set-threads"], 2)}
    for resources in profile["set-resources"].values():
        resources["mem_mb"] = 4000
        for key in ("gpu", "gpu_model"):
            resources.pop(key, None)


def base(**resources: Any) -> Callable[[dict[str, Any]], None]:
    """Set resources of base_train."""
    return lambda profile: profile["set-resources"]["base_train"].update(resources)


def default(**resources: Any) -> Callable[[dict[str, Any]], None]:
    """Set resources of every rule that does not say otherwise."""
    return lambda profile: profile["default-resources"].update(resources)


def lines(done: "subprocess.CompletedProcess[str]", state: str) -> list[str]:
    """The sentences of one state."""
    return [line[12:] for line in done.stdout.splitlines() if line.startswith(state)]


# --- by hand --------------------------------------------------------------------------------------------------------------


def test_a_cluster_that_has_all_is_good(cluster: Login, workspace: Workspace) -> None:
    start = time.monotonic()
    done = cluster.preflight(workspace)
    assert time.monotonic() - start < 20
    assert done.returncode == 0, done.stdout + done.stderr
    said = lines(done, "ok ")
    for words in (
        "slurm: 2 nodes",
        "partition gpu-a100: up, 2 of 2 nodes",
        "account nanochat: may be charged",
        "submission: SLURM would take",
        "jobs left behind: none",
    ):
        assert any(words in line for line in said), (words, said)
    assert any("8 a100 GPUs" in line for line in said)
    assert any("no mail_user is set" in line for line in lines(done, "warning"))


WRONG = {
    "account": (default(slurm_account="wrong"), "account wrong: is not one of yours (nanochat, root); set slurm_account in the profile"),
    "partition": (
        base(slurm_partition="gpu-h100"),
        "partition gpu-h100: does not exist; here are cpu, gpu-a100, gpu-urgent; set slurm_partition in the profile",
    ),
    "card": (base(gpu_model="h100"), "jobs base_train: gpu:h100:8 is on no node of partition gpu-a100, which has gpu:a100:8; "),
    "cards": (base(gpu=9), "jobs base_train: gpu:a100:9 is on no node of partition gpu-a100, which has gpu:a100:8; "),
    "gres": (base(gpu=0, gres="gpu:v100:2"), "jobs base_train: gpu:v100:2 is on no node of partition gpu-a100, which has gpu:a100:8; "),
    "nodes": (base(nodes=3, gpu=24), "jobs base_train: 3 nodes are more than the 2 of partition gpu-a100; "),
    "memory": (base(mem_mb=2_000_000), "jobs base_train: 2000000 MB are more than the 1000000 MB of a node of partition gpu-a100; "),
    "cpus": (base(cpus_per_task=500), "jobs base_train: 500 CPUs are more than the 128 of a node of partition gpu-a100; "),
    "run time": (base(runtime="13h"), "jobs base_train: run time of 13 h is above the 12 h of partition gpu-a100; set runtime: 720 or less in the profile"),
    "absent qos": (base(qos="absent"), "limits of jobs base_train: QOS absent is not one of yours (normal, small); set qos in the profile"),
    "limits of the qos": (base(qos="small", runtime="3h"), "run time in minutes: 180 asked, QOS small allows 120; GPUs: 8 asked, QOS small allows 2; "),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_one_sentence_with_its_cure(cluster: Login, workspace: Workspace, wrong: str) -> None:
    change, sentence = WRONG[wrong]
    edit_profile(workspace, change)
    done = cluster.preflight(workspace)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sum(sentence in line for line in lines(done, "problem")) == 1, done.stdout
    assert len(lines(done, "problem")) == 1, done.stdout


def test_all_problems_are_listed(cluster: Login, workspace: Workspace) -> None:
    for name in ("account", "card"):
        edit_profile(workspace, WRONG[name][0])
    workspace.path("resources/identity_questions/all/train.jsonl").unlink()
    said = lines(cluster.preflight(workspace), "problem")
    assert [line.split(":")[0] for line in said] == ["data identity_questions", "jobs base_train", "account wrong"]


def test_without_its_database_a_wrong_account_is_found_all_the_same(cluster: Login, workspace: Workspace) -> None:
    cluster.end("slurmdbd")
    try:
        good = cluster.preflight(workspace)
        edit_profile(workspace, default(slurm_account="wrong"))
        wrong = cluster.preflight(workspace)
    finally:
        cluster.start()
    assert good.returncode == 0
    assert any(line.startswith("account nanochat: the accounting database does not answer") for line in lines(good, "not checked"))
    assert wrong.returncode == 2 and any("Invalid account" in line for line in lines(wrong, "problem"))


def test_a_controller_that_is_down_is_said_in_time(cluster: Login, workspace: Workspace) -> None:
    cluster.end("slurmctld")
    try:
        start = time.monotonic()
        done = cluster.preflight(workspace)
        seconds = time.monotonic() - start
    finally:
        cluster.start()
    assert done.returncode == 2 and seconds < 20
    assert [line.split(" (")[0] for line in lines(done, "problem")] == ["slurm: the controller does not answer"]


def test_a_machine_without_slurm_says_so(finished: Workspace, tmp_path: Path) -> None:
    environment = {**finished.environment(), "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "nanochat", "preflight", "--profile", "slurm", "--configfile", "config.yaml"]
    done = subprocess.run(command, cwd=finished.folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert lines(done, "problem")[0].startswith("slurm: sbatch not found: this machine has no SLURM, or its commands are not in PATH; ")


def test_nodes_that_take_no_jobs_are_named(cluster: Login, workspace: Workspace) -> None:
    try:
        cluster.run(workspace, "scontrol", "update", "nodename=a100-01,a100-02", "state=drain", "reason=test")
        done = cluster.preflight(workspace)
    finally:
        cluster.run(workspace, "scontrol", "update", "nodename=a100-01,a100-02", "state=resume")
    assert done.returncode == 2
    assert any("partition gpu-a100: none of its 2 nodes takes jobs; see why: sinfo -R -p gpu-a100" in line for line in lines(done, "problem"))


def test_a_job_on_a_node_tells_what_it_sees(cluster: Login, workspace: Workspace) -> None:
    """The nodes of this cluster have no real GPU, which is just what such a job has to find out."""
    done = cluster.preflight(workspace, "--gpu-job")
    said = done.stdout
    assert re.search(r"^ok +node \S+: folder: can be written", said, flags=re.MULTILINE), said
    assert re.search(r"^ok +node \S+: torch: ", said, flags=re.MULTILINE)
    assert re.search(r"^problem +node \S+: gpus: torch sees \d of the 8 asked for", said, flags=re.MULTILINE)
    assert done.returncode == 2
    wait_for(lambda: cluster.queue(workspace) == [])
    assert list(workspace.folder.glob(".preflight-*")) == []


# --- with the workflow ------------------------------------------------------------------------------------------------------


def test_nothing_is_submitted_when_a_check_finds_a_problem(cluster: Login, workspace: Workspace) -> None:
    workspace.path("results/tiny/chat_sft/model.safetensors").unlink()
    edit_profile(workspace, for_a_miniature)
    edit_profile(workspace, default(slurm_account="wrong"))
    done = cluster.snakemake(workspace)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in said and "jobid" not in said.lower()
    assert "nanochat: error: account wrong: is not one of yours (nanochat, root); set slurm_account in the profile\n" in said
    assert cluster.queue(workspace) == []
    assert not list(workspace.path(".snakemake/locks").glob("*"))


def test_a_machine_without_slurm_is_told_before_anything_starts(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "workspace")
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_sft"].update(batch_tokens=1024))  # a row for each of eight GPUs
    commands = tmp_path / "commands"
    commands.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            is_slurm = program.name in ("sbatch", "squeue", "sinfo", "scontrol", "scancel", "sacct", "sacctmgr", "srun")
            if not is_slurm and not os.path.lexists(commands / program.name):
                (commands / program.name).symlink_to(program)
    command = [Path(sys.executable).with_name("snakemake"), "--profile", "slurm", "--configfile", "config.yaml"]
    environment = {**workspace.environment(), "PATH": str(commands)}
    done = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said, said
    assert "nanochat: error: slurm: sbatch not found: this machine has no SLURM" in said, said


def left_behind(cluster: Login, workspace: Workspace, seconds: int) -> None:
    """A job of a killed snakemake that trains chat_sft, for so long, and snakemake's memory as such a death leaves it."""
    made, kept = workspace.path("results/tiny/chat_sft"), workspace.path("made")
    made.rename(kept)
    for record in workspace.path(".snakemake/metadata").rglob("*"):
        if record.is_file() and '"rule":"chat_sft"' in record.read_text(encoding="utf-8").replace(" ", ""):
            record.unlink()
    comment = "rule_chat_sft_wildcards_tiny"
    job = f"sleep {seconds}; mv {kept} {made}; touch {made}/*"
    done = cluster.run(workspace, "sbatch", "--parsable", f"--comment={comment}", "--partition=gpu-a100", "--output=/dev/null", "--wrap", job)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: cluster.queue(workspace) == [comment])


def test_a_job_left_behind_is_waited_for_and_what_it_made_is_kept(cluster: Login, workspace: Workspace) -> None:
    edit_profile(workspace, for_a_miniature)
    left_behind(cluster, workspace, 25)
    warned = cluster.preflight(workspace)
    assert any(re.search(r"jobs left behind: job \d+ \(chat_sft tiny, RUNNING for \S+; to stop it: scancel \d+\)", line) for line in lines(warned, "warning"))
    done = cluster.snakemake(workspace)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert re.search(r"nanochat: an earlier snakemake has left 1 in the queue, waiting for it to end: job \d+ \(chat_sft tiny, ", said)
    assert said.index("no such job is left") < said.index("Nothing to be done")
    assert "rule chat_sft:" not in said
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_sft"].update(lr_fraction=0.5))
    assert "chat_sft tiny" in workspace.plan(), "what was kept is compared with later changes"


def test_what_a_job_left_behind_made_from_another_config_is_made_again(cluster: Login, workspace: Workspace) -> None:
    edit_profile(workspace, for_a_miniature)
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_sft"].update(lr_fraction=0.5))
    left_behind(cluster, workspace, 15)
    done = cluster.snakemake(workspace, "results/tiny/chat_sft/manifest.json")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert said.index("no such job is left") < said.index("rule chat_sft:")
    assert said.count("rule chat_sft:") == 1
    assert '"lr_fraction": 0.5' in workspace.path("results/tiny/chat_sft/config.json").read_text(encoding="utf-8")
