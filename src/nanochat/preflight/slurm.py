"""What SLURM says: partitions, nodes, accounts, limits and jobs, by its own commands, read and never changed.

Each command has a few seconds: a controller that is down makes them wait for minutes.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel")
COMMAND_SECONDS = 5.0
QUEUE_SECONDS = 10.0  # for the jobs of all users
RULE_COMMENT = "rule_"  # what snakemake's jobs say of themselves: rule_base_train_wildcards_d20
OUT = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "FUTURE", "MAINT", "NOT_RESPONDING", "UNKNOWN"}  # a node that takes no job


class SlurmError(Exception):
    """A command of SLURM that failed: the command and its first words."""


def ask(*command: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a command prints. Raises SlurmError if it is not there, fails, or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} not found") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {seconds:.0f} s") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {first_words(done.stderr or done.stdout)}")
    return done.stdout


def first_words(text: str) -> str:
    """The line that says most: the last one that is no empty and no follow-up line, without the program's name."""
    lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line).strip() for line in text.splitlines() if line.strip()]
    return (lines or ["failed without a word"])[0][:200]


def missing_commands() -> list[str]:
    """Commands of SLURM that are not in PATH."""
    return [command for command in COMMANDS if shutil.which(command) is None]


def minutes(text: str) -> float:
    """A time of SLURM (2-00:00:00, 12:00:00, 30:00, 45) in minutes; UNLIMITED, empty and the like: infinity."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        return float("inf")
    days, *fields = found.groups()
    values = [int(field) for field in fields if field is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, mins, secs = [*values, 0, 0][:3]
        return int(days) * 1440 + hours * 60 + mins + secs / 60
    if len(values) == 3:
        return values[0] * 60 + values[1] + values[2] / 60
    return values[0] + (values[1] / 60 if len(values) == 2 else 0)


def fields(line: str) -> dict[str, str]:
    """Key=value pairs of a line of `scontrol -o show`."""
    return {key: value.strip() for key, value in re.findall(r"(?:^| )([A-Za-z/:_]+)=(.*?)(?= [A-Za-z/:_]+=|$)", line.strip())}


def gpus_of(gres: str) -> dict[str, int]:
    """{type: count} of generic resources: "gpu:a100:8(S:0-1),shard:4" -> {"a100": 8}; "" is the type of cards without one."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)(?:gres/)?gpu(?::([\w.-]+?))?[:=](\d+)(?![\w.-])", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


@dataclass(frozen=True)
class Node:
    """What a node has."""

    name: str
    state: str
    cpus: int
    mem_mb: int
    gpus: Mapping[str, int]
    partitions: tuple[str, ...]

    @property
    def takes_jobs(self) -> bool:
        """Whether it is neither down nor drained; one that saves power (IDLE+POWERED_DOWN) takes jobs."""
        return not self.state.endswith("*") and not OUT & set(self.state.split("+"))


@dataclass(frozen=True)
class Partition:
    """What a partition allows."""

    name: str
    state: str
    max_minutes: float
    max_nodes: float
    max_mem_mb: float  # per node
    accounts: tuple[str, ...]  # allowed; empty: all
    denied_accounts: tuple[str, ...]
    qos: str  # of the partition itself


def partitions() -> dict[str, Partition]:
    """Every partition by name."""
    return {found["PartitionName"]: _partition(found) for found in map(fields, ask("scontrol", "-o", "show", "partition").splitlines()) if found}


def _partition(found: Mapping[str, str]) -> Partition:
    def number(key: str) -> float:
        return float(found[key]) if found.get(key, "").isdigit() else float("inf")

    return Partition(
        name=found["PartitionName"],
        state=found.get("State", ""),
        max_minutes=minutes(found.get("MaxTime", "")),
        max_nodes=number("MaxNodes"),
        max_mem_mb=number("MaxMemPerNode"),
        accounts=_names(found.get("AllowAccounts", "ALL")),
        denied_accounts=_names(found.get("DenyAccounts", "")),
        qos="" if (qos := found.get("QoS", "N/A")) == "N/A" else qos,
    )


def _names(text: str) -> tuple[str, ...]:
    return () if text in ("", "ALL", "(null)") else tuple(text.split(","))


def nodes() -> list[Node]:
    """Every node."""
    return [_node(found) for found in map(fields, ask("scontrol", "-o", "show", "node").splitlines()) if "NodeName" in found]


def _node(found: Mapping[str, str]) -> Node:
    return Node(
        name=found["NodeName"],
        state=found.get("State", "UNKNOWN"),
        cpus=int(found.get("CPUTot", "0")),
        mem_mb=int(found.get("RealMemory", "0")),
        gpus=gpus_of(found.get("Gres", "")),
        partitions=_names(found.get("Partitions", "")),
    )


# --- accounts and limits -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Limits of one job; infinity where there is none."""

    name: str
    minutes: float
    gpus: float
    cpus: float
    nodes: float
    jobs: float  # submitted at a time, by one user


@dataclass(frozen=True)
class Association:
    """An account that a user may charge, in which partition ("": any), under which limits and QOS."""

    account: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str
    limits: Limits


def _limits(name: str, wall: str, tres: str, submitted: str) -> Limits:
    counts = {key: float(value) for key, value in re.findall(r"([\w/:]+)=(\d+)", tres)}
    gpus = [value for key, value in counts.items() if key.startswith("gres/gpu")]
    infinite = float("inf")
    return Limits(name, minutes(wall), min(gpus, default=infinite), counts.get("cpu", infinite), counts.get("node", infinite), float(submitted or "inf"))


def associations(user: str) -> list[Association]:
    """Accounts of a user on this cluster, by the accounting database."""
    cluster = next((line.split("=")[1].strip() for line in ask("scontrol", "show", "config").splitlines() if line.startswith("ClusterName")), "")
    where = [f"user={user}", *([f"cluster={cluster}"] if cluster else [])]
    text = ask("sacctmgr", "-nP", "show", "assoc", "where", *where, "format=account,partition,qos,defaultqos,maxwall,maxtres,maxsubmit")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 6]
    return [
        Association(account, partition, tuple(filter(None, qos.split(","))), default, _limits(f"account {account}", wall, tres, submitted))
        for account, partition, qos, default, wall, tres, submitted in rows
    ]


def qos_limits() -> dict[str, Limits]:
    """Limits of every QOS; of those per job and per user the lower one."""
    text = ask("sacctmgr", "-nP", "show", "qos", "format=name,maxwall,maxtres,maxtrespu,grptres,maxsubmitpu")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 5]
    return {name: _lowest(name, wall, (job, user, group), submitted) for name, wall, job, user, group, submitted in rows}


def _lowest(name: str, wall: str, tres: tuple[str, ...], submitted: str) -> Limits:
    found = [_limits(name, wall, text, submitted) for text in tres]
    return Limits(
        name,
        minutes=found[0].minutes,
        gpus=min(each.gpus for each in found),
        cpus=min(each.cpus for each in found),
        nodes=min(each.nodes for each in found),
        jobs=found[0].jobs,
    )


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeftJob:
    """A job of snakemake's that is in the queue."""

    id: str
    state: str
    elapsed: str
    rule: str  # with its wildcards: base_train d20
    folder: str
    user: str = ""  # whose it is, if it is somebody else's

    @property
    def sentence(self) -> str:
        """Which job, what it does and how to stop it."""
        where = f", {self.state} for {self.elapsed}" if self.state == "RUNNING" else f", {self.state}"
        who, whom = (f" of {self.user}", f", by {self.user}") if self.user else ("", "")
        return f"job {self.id}{who} ({self.rule}{where}; to stop it: scancel {self.id}{whom})"


def jobs_of(folder: Path) -> list[LeftJob]:
    """Jobs in the queue that snakemake submitted from `folder`, whoever typed it; where SLURM hides the jobs of others (PrivateData), mine alone."""
    found, me = [], str(os.getuid())
    for line in ask("squeue", "-h", "-o", "%i|%T|%M|%U|%u|%k|%Z", seconds=QUEUE_SECONDS).splitlines():
        number, state, elapsed, owner, user, comment, place = (line.split("|", 6) + [""] * 7)[:7]
        if comment.startswith(RULE_COMMENT) and Path(place).resolve() == folder.resolve():
            rule = comment.removeprefix(RULE_COMMENT).replace("_wildcards_", " ")
            found.append(LeftJob(number, state, elapsed, rule, place, "" if owner == me else user))
    return found
