"""A checkout of its own for tests of the workflow: the real Snakefile and code, a small experiment, the plan as a set."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm
import yaml

from nanochat.plan.planner import STAGE_OF_RULE

REPOSITORY = Path(__file__).parent.parent
CHECKOUT = ("Snakefile", "README.md", "rules", "profiles", "slurm", "configs", "envs", "reports", "src")
TARGETS = ("all", "fetch", "tokenizer", "tokens", "base", "mid", "sft", "rl", "evaluate", "report")  # rules that only name what others make


@dataclass(frozen=True)
class Workspace:
    """A folder that holds everything that the workflow reads and writes."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, experiment: Path) -> "Workspace":
        """A checkout with `experiment` as its config.yaml; downloaded wheels are shared with the repository."""
        for name in CHECKOUT:
            source = REPOSITORY / name
            if source.is_symlink():
                (folder / name).symlink_to(source.readlink())
            elif source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.pyc.*", "*.egg-info"))  # the former are being written
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / name)
        shutil.copy2(experiment, folder / "config.yaml")
        wheels = REPOSITORY / "resources" / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        (folder / "resources").mkdir()
        (folder / "resources" / "wheels").symlink_to(wheels)
        return cls(folder)

    def copy(self, folder: Path, *, keep_times: bool = True) -> "Workspace":
        """An independent copy, snakemake's memory included; `cp -r` without times for `keep_times=False`."""
        shutil.copytree(self.folder, folder, symlinks=True, copy_function=shutil.copy2 if keep_times else shutil.copy)
        return Workspace(folder)

    def path(self, name: str) -> Path:
        """A file or folder below the workspace."""
        return self.folder / name

    def environment(self) -> dict[str, str]:
        """The environment in which the workspace's own code runs."""
        return {**os.environ, "PYTHONPATH": str(self.path("src")), "COLUMNS": "200"}

    def snakemake(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `snakemake ARGUMENTS` in the workspace."""
        return warm.snakemake(arguments, self.folder, self.environment(), timeout=500)

    def nanochat(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `nanochat ARGUMENTS` in the workspace."""
        modules = warm.SNAKEMAKE if arguments[0] in ("plan", "preflight", "status") else warm.TORCH
        command = [sys.executable, "-m", "nanochat", *arguments]
        done: subprocess.CompletedProcess[str] = warm.run(command, modules=modules, cwd=self.folder, env=self.environment(), timeout=500)
        return done

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the workspace, its output captured."""
        return subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=500)

    def build(self, *arguments: str, cold: bool = False) -> str:
        """Run the workflow to its end and return what it said. `cold`: each job starts the program that is installed and imports everything itself."""
        done = self.snakemake("--cores", "2", *arguments) if cold else self._with_warm_jobs(*arguments)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-12000:]}"
        return done.stdout + done.stderr

    def fails(self, *arguments: str) -> str:
        """Run the workflow, which must not reach its end, and return what it said."""
        done = self._with_warm_jobs(*arguments)
        assert done.returncode != 0, f"{done.stdout[-4000:]}\n{done.stderr[-12000:]}"
        return done.stdout + done.stderr

    def _with_warm_jobs(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return warm.snakemake(("--cores", "2", *arguments), self.folder, warm.with_warm_jobs(self.environment()), timeout=500)

    def plan(self, *arguments: str) -> set[str]:
        """What a dry run would do: stage and wildcards, as in "evaluate tiny base bpb"; checked against its own count."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        if "Nothing to be done" in done.stdout + done.stderr:
            assert "Job stats" not in done.stdout
            return set()
        jobs: list[tuple[str, list[str]]] = []
        for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", done.stdout, flags=re.MULTILINE):
            wildcards = re.search(r"^    wildcards: (.*)$", block, flags=re.MULTILINE)
            values = [pair.partition("=")[2] for pair in wildcards[1].split(", ")] if wildcards else []
            jobs.append((rule, values))
        total = re.search(r"^total +(\d+)$", done.stdout, flags=re.MULTILINE)
        assert total, done.stdout
        assert len(jobs) == int(total[1]), done.stdout
        return {" ".join([STAGE_OF_RULE.get(rule, rule), *values]) for rule, values in jobs if rule not in TARGETS}

    def experiment(self) -> dict[str, Any]:
        """The content of config.yaml."""
        content: dict[str, Any] = yaml.safe_load(self.path("config.yaml").read_text(encoding="utf-8"))
        return content

    def configure(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change config.yaml in place: `change` edits its parsed content."""
        content = self.experiment()
        change(content)
        self.path("config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def append(self, name: str, text: str) -> None:
        """Add text at the end of a file."""
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write(text)

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        text = self.path(name).read_text(encoding="utf-8")
        assert old in text, f"{name}: no {old!r}"
        self.path(name).write_text(text.replace(old, new), encoding="utf-8")
