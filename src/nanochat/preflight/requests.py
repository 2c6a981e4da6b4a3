"""What jobs ask of a cluster: from a profile, or from the jobs that snakemake is about to submit."""

import ast
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.config import read_yaml
from nanochat.errors import UserError
from nanochat.preflight.slurm import gpus_of

PROFILE_FILES = ("profile.yaml", "config.yaml")
PROFILE_FOLDERS = ("", "profiles")  # where a profile is looked for by its name
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv}
OTHERS = "the other rules"  # that a profile does not name


@dataclass(frozen=True)
class Request:
    """What one kind of job asks for; None: not said, or not known before the job is planned."""

    rule: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    gpus: int = 0  # of each node
    gpu_model: str | None = None
    cpus: int | None = None  # of each node
    mem_mb: int | None = None  # of each node
    runtime_min: int | None = None
    mail: Literal["none", "user", "address"] = "none"  # who is told of its end

    @property
    def submission(self) -> list[str]:
        """Flags of sbatch that ask for the same."""
        model = f"{self.gpu_model}:" if self.gpu_model else ""
        asked = {
            "--partition": self.partition,
            "--account": self.account,
            "--qos": self.qos,
            "--nodes": self.nodes,
            "--gres": f"gpu:{model}{self.gpus}" if self.gpus else None,
            "--cpus-per-task": self.cpus,
            "--mem": self.mem_mb,
            "--time": self.runtime_min,
        }
        return [f"{flag}={value}" for flag, value in asked.items() if value is not None]


def request_of(rule: str, resources: Mapping[str, Any], threads: Any = None) -> Request:
    """The request of a job with these resources of snakemake's, as its SLURM plugin understands them."""
    nodes = whole(resources.get("nodes")) or 1
    gres = gpus_of(str(resources.get("gres") or ""))
    model, gpus = next(iter(gres.items()), (None, 0))
    if not gres and (total := whole(resources.get("gpu"))):
        model, gpus = resources.get("gpu_model"), math.ceil(total / nodes)
    per_task = whole(resources.get("cpus_per_task")) or whole(threads)
    if gpus and (per_gpu := whole(resources.get("cpus_per_gpu"))):
        per_task = per_gpu * gpus
    extra = str(resources.get("slurm_extra") or "")
    named = {key: str(value).strip("'\"") if (value := resources.get(key)) else None for key in ("slurm_partition", "slurm_account", "qos")}
    return Request(
        rule=rule,
        partition=named["slurm_partition"],
        account=named["slurm_account"],
        qos=named["qos"],
        nodes=nodes,
        gpus=gpus,
        gpu_model=str(model) if model else None,
        cpus=per_task,
        mem_mb=whole(resources.get("mem_mb")),
        runtime_min=runtime_minutes(resources.get("runtime")),
        mail="address" if resources.get("mail_user") or "--mail-user" in extra else "user" if "--mail-type" in extra else "none",
    )


def whole(value: Any) -> int | None:
    """A whole number, or an expression over `attempt` as a first attempt would find it; None for anything else and for absent values."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return int(value)
    try:
        return int(_calculate(ast.parse(str(value).strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _calculate(node: ast.expr) -> float:
    """The value of numbers, `attempt` (1), + - * / //, min() and max(). Raises ValueError for anything else."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id="attempt"):
            return 1
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return float(OPERATORS[type(op)](_calculate(left), _calculate(right)))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[_, *_] as arguments, keywords=[]):
            return {"min": min, "max": max}[name](map(_calculate, arguments))
    raise ValueError("not a plain expression")


def runtime_minutes(value: Any) -> int | None:
    """Minutes of a run time: 120, "12h", "1d 2h", "90m"; None for an expression."""
    if (number := whole(value)) is not None or value is None:
        return number
    units = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])(?:[a-z]*)\s*", str(value))
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([dhms])(?:[a-z]*)\s*", "", str(value)).strip():
        return None
    return math.ceil(sum(float(amount) * units[unit] for amount, unit in parts))


# --- profiles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """The settings of a machine that matter before anything is submitted."""

    path: Path
    content: Mapping[str, Any]

    @property
    def executor(self) -> str:
        """How jobs are run: local or slurm."""
        return str(self.content.get("executor") or "local")

    @property
    def experiment(self) -> Path | None:
        """The experiment that the profile is made for."""
        named = self.content.get("configfile") or self.content.get("configfiles")
        first = named[0] if isinstance(named, list) and named else named
        return Path(str(first)) if first else None

    def requests(self) -> list[Request]:
        """What each rule asks for that the profile names, and what the others ask for by default.

        Run times are computed when jobs are planned: here a rule that the profile names asks for the longest that it may get.
        """
        default = _mapping(self.content.get("default-resources"))
        resources, threads = _mapping(self.content.get("set-resources")), _mapping(self.content.get("set-threads"))
        rules = [*sorted({*resources, *threads}), OTHERS]
        longest = {"runtime": default["runtime_limit"]} if "runtime_limit" in default else {}
        asked = {rule: {**default, **(longest if rule != OTHERS else {}), **_mapping(resources.get(rule))} for rule in rules}
        return [request_of(rule, asked[rule], threads.get(rule)) for rule in rules]


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping of a profile, which snakemake also takes as a list of key=value."""
    if isinstance(value, list):
        return {key: text for key, _, text in (str(item).partition("=") for item in value)}
    return dict(value) if isinstance(value, Mapping) else {}


def read_profile(name: str) -> Profile:
    """The profile `name`: a file, a folder with one, or a folder's name below profiles/. Raises UserError if there is none."""
    for place in (Path(folder, name) for folder in PROFILE_FOLDERS):
        for file in (place, *(place / candidate for candidate in PROFILE_FILES)):
            if file.is_file():
                content = read_yaml(file)
                if not isinstance(content, dict):
                    raise UserError(f"{file}: not a mapping; a profile names executor, default-resources, set-resources")
                return Profile(file, content)
    raise UserError(f"--profile={name}: no such profile; give a folder that holds profile.yaml, such as profiles/slurm")
