"""The real SLURM of tests/slurm, seen from its login node: commands, jobs, and the workflow that runs on it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from workspace import REPOSITORY, Workspace

SCRIPTS = REPOSITORY / "tests" / "slurm"
PROFILE = "profiles/slurm/profile.yaml"
CANNOT = 77  # exit code of the scripts on a machine that cannot have a cluster


@dataclass(frozen=True)
class Cluster:
    """A running cluster; everything of it lies in `folder`."""

    folder: Path
    drivers: "list[Driver]" = field(default_factory=list)  # all that were started

    def access(self) -> dict[str, str]:
        """What the environment of a user who has logged in to it has besides."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says on the login node."""
        done = subprocess.run(command, env={**os.environ, **self.access()}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, key by key; a controller that is busy is asked again."""
        for _ in range(5):
            said = dict(re.findall(r"(\w[\w:/]*)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", number, check=False)))
            if "JobState" in said:
                return said
            time.sleep(2)
        raise AssertionError(self.run("scontrol", "show", "job", number, check=False))

    def state(self, number: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.job(number)["JobState"]

    def mail(self) -> list[str]:
        """Messages that SLURM sent: subject and address."""
        file = self.folder / "log" / "mail.log"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def has_own_network(self) -> bool:
        """Whether jobs live in a network without internet."""
        return (self.folder / "network").read_text(encoding="utf-8").strip() == "own"

    def start(self) -> None:
        """Start what does not run."""
        self.run(str(SCRIPTS / "start.sh"), "--folder", str(self.folder))

    def stop(self) -> None:
        """Stop everything and delete the folder."""
        self.run(str(SCRIPTS / "stop.sh"), "--folder", str(self.folder), "--purge")

    def kill_daemon(self, name: str) -> None:
        """End a daemon as a power cut would."""
        os.kill(int((self.folder / "run" / f"{name}.pid").read_text(encoding="utf-8")), signal.SIGKILL)

    def drive(self, workspace: Workspace, *arguments: str, output: Path | None = None, wrapped: tuple[str, ...] = (), **environment: str) -> "Driver":
        """Type `snakemake --profile slurm ARGUMENTS` on the login node, in the background; `wrapped` by a command that changes the user."""
        command = [*wrapped, str(Path(sys.executable).with_name("snakemake")), "--profile", "slurm", *arguments]
        output = output or workspace.path("driver.txt")
        self.drivers.append(Driver(self, workspace, command, {**workspace.environment(), **self.access(), **environment}, output))
        return self.drivers[-1]


@dataclass
class Driver:
    """A snakemake that runs on the login node and submits jobs."""

    cluster: Cluster
    workspace: Workspace
    command: list[str]
    environment: dict[str, str]
    output: Path  # where its words go
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(self.command, cwd=self.workspace.folder, env=self.environment, stdout=file, stderr=file)

    def said(self) -> str:
        """All that it has said."""
        return self.output.read_text(encoding="utf-8")

    def again(self, *arguments: str, wrapped: tuple[str, ...] = (), **environment: str) -> "Driver":
        """Type the same command once more, with further arguments; what it says goes to a file of its own."""
        command = self.command[self.command.index("slurm") + 1 :]
        number = sum(driver.workspace == self.workspace for driver in self.cluster.drivers) + 1
        output = self.output.with_name(f"{self.workspace.folder.name} {number}.txt")
        return self.cluster.drive(self.workspace, *command, *arguments, output=output, wrapped=wrapped, **environment)

    def jobs(self, rule: str) -> list[str]:
        """SLURM's numbers of the jobs of a rule, in the order of submission."""
        return re.findall(rf"SLURM jobid (\d+) \(log: \S*/rule_{rule}/", self.said())

    def wait(self, seconds: float = 900.0) -> str:
        """Its end, which has to be a good one, and what it said."""
        code = self.end(seconds)
        assert code == 0, self.said()[-12000:]
        return self.said()

    def end(self, seconds: float = 900.0) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            queue = self.cluster.run("squeue", check=False)
            raise AssertionError(f"not ended after {seconds} s\n{queue}\n{self.said()[-12000:]}") from None

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 600.0) -> None:
        """Return once `condition` holds; fail after `seconds` or when snakemake ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"snakemake ended before {what}\n{self.said()[-12000:]}"
            assert time.monotonic() < deadline, f"waited in vain until {what}\n{self.cluster.run('squeue', check=False)}\n{self.said()[-6000:]}"
            time.sleep(0.2)


def edit_profile(workspace: Workspace, change: Callable[[dict[str, Any]], None]) -> None:
    """Change profiles/slurm as its user would: `change` edits the parsed content."""
    content = yaml.safe_load(workspace.path(PROFILE).read_text(encoding="utf-8"))
    change(content)
    workspace.path(PROFILE).write_text(yaml.safe_dump(content, width=10_000), encoding="utf-8")


def for_a_miniature(profile: dict[str, Any]) -> None:
    """What all tests change in the profile, since two cores pretend to be nodes with 8 GPUs and 128 CPUs each.

    The trainers compute on the CPU, on two GPUs in base training and on one elsewhere; threads and memory fit a
    miniature; and snakemake looks after its jobs every 5 seconds instead of every 20.
    """
    profile["slurm-init-seconds-before-status-checks"] = 5
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 2)
    profile["default-resources"]["mem_mb"] = 2000
    for rule, resources in profile["set-resources"].items():
        resources["mem_mb"] = 4000
        if "gpu" in resources:
            resources |= {"device": "cpu", "gpu": 2 if rule == "base_train" else 1}
