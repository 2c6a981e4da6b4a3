"""What jobs ask for against what a SLURM cluster has and allows. Reads SLURM's own words; submits nothing."""

from collections.abc import Iterable, Sequence

from nanochat.preflight import slurm
from nanochat.preflight.checks import Check, not_checked, ok, problem, warning
from nanochat.preflight.requests import Request
from nanochat.preflight.slurm import Association, Limits, Node, Partition, SlurmError

PROFILE = "in the profile"
LOGIN = "run it on a login node of the cluster, or without --profile slurm"
ADMINISTRATORS = "try again in a minute, then ask the administrators"


def check_cluster(requests: Sequence[Request], user: str) -> list[Check]:
    """Every check of the cluster, the ones that need the accounting database last: it may be down while jobs run."""
    if missing := slurm.missing_commands():
        return [problem("slurm", f"{missing[0]} not found: this machine has no SLURM, or its commands are not in PATH", LOGIN)]
    try:
        partitions, nodes = slurm.partitions(), slurm.nodes()
    except SlurmError as error:
        return [problem("slurm", f"the controller does not answer ({error})", ADMINISTRATORS)]
    by_partition = check_partitions(requests, partitions, nodes)
    checks = [ok("slurm", f"{len(nodes)} nodes, {len(partitions)} partitions"), *by_partition]
    for group in kinds(requests):
        checks.append(check_request(group, partitions, nodes))
    checks += check_accounts(requests, partitions, user)
    checks += check_submission(requests, checks)
    return [*checks, check_mail(requests, user)]


def kinds(requests: Iterable[Request]) -> list[list[Request]]:
    """Requests that ask for the same, together."""
    groups: dict[tuple[str, ...], list[Request]] = {}
    for request in requests:
        groups.setdefault(tuple(request.submission), []).append(request)
    return list(groups.values())


def title(group: Sequence[Request]) -> str:
    """The rules of a group."""
    return f"jobs {', '.join(dict.fromkeys(request.rule for request in group))}"


# --- partitions and nodes ----------------------------------------------------------------------------------------------


def check_partitions(requests: Iterable[Request], partitions: dict[str, Partition], nodes: Sequence[Node]) -> list[Check]:
    """Each partition that is asked for: there, up, with nodes that take jobs."""
    checks = []
    for name in dict.fromkeys(request.partition for request in requests if request.partition):
        if name not in partitions:
            checks.append(problem(f"partition {name}", f"does not exist; here are {', '.join(sorted(partitions))}", f"set slurm_partition {PROFILE}"))
            continue
        own = [node for node in nodes if name in node.partitions]
        up = [node for node in own if node.takes_jobs]
        if (state := partitions[name].state) != "UP":
            checks.append(problem(f"partition {name}", f"is {state}: its jobs would wait", f"wait (sinfo -p {name}), or choose another {PROFILE}"))
        elif not up:
            checks.append(problem(f"partition {name}", f"none of its {len(own)} nodes takes jobs", f"see why: sinfo -R -p {name}"))
        else:
            checks.append(ok(f"partition {name}", f"up, {len(up)} of {len(own)} nodes take jobs"))
    return checks


def check_request(group: Sequence[Request], partitions: dict[str, Partition], nodes: Sequence[Node]) -> Check:
    """Cards, cores, memory and time of one kind of job against the partition and its nodes."""
    request, name = group[0], title(group)
    partition = partitions.get(request.partition or "")
    if partition is None:
        why = f"there is no partition {request.partition}" if request.partition else "the profile names no partition, the cluster's default is taken"
        return not_checked(name, why)
    own = [node for node in nodes if partition.name in node.partitions]
    if faults := [*time_faults(request, partition), *node_faults(request, partition, own)]:
        return problem(name, "; ".join(fault for fault, _ in faults), "; ".join(dict.fromkeys(cure for _, cure in faults)))
    fitting = [node for node in own if fits(request, node)]
    if (up := sum(node.takes_jobs for node in fitting)) < request.nodes:
        return warning(name, f"only {up} of the {len(fitting)} nodes that fit take jobs now, {request.nodes} needed: they will wait", "see why: sinfo -R")
    return ok(name, f"{describe(request)} fit {len(fitting)} nodes of {partition.name}{'' if request.nodes == 1 else f', {request.nodes} at a time'}")


Fault = tuple[str, str]  # what is wrong, what to do


def time_faults(request: Request, partition: Partition) -> list[Fault]:
    """A run time above the partition's limit: such a job is refused or, on other clusters, waits for ever."""
    if request.runtime_min is None or request.runtime_min <= partition.max_minutes:
        return []
    cure = f"set runtime: {int(partition.max_minutes)} or less {PROFILE}, a stage goes on in the next job"
    return [(f"run time of {hours(request.runtime_min)} is above the {hours(partition.max_minutes)} of partition {partition.name}", cure)]


def node_faults(request: Request, partition: Partition, nodes: Sequence[Node]) -> list[Fault]:
    """What no node of the partition has. If each thing is there alone, their sum is what is too much."""
    where, faults = f"partition {partition.name}", []
    if request.gpus and max((gpus_on(node, request) for node in nodes), default=0) < request.gpus:
        offered = sorted({f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for node in nodes for kind, count in node.gpus.items()})
        asked = f"gpu:{request.gpu_model}:{request.gpus}" if request.gpu_model else f"gpu:{request.gpus}"
        faults.append((f"{asked} is on no node of {where}, which has {', '.join(offered) or 'no GPUs'}", f"set gres (or gpu and gpu_model) {PROFILE}"))
    if request.cpus and (most := max((node.cpus for node in nodes), default=0)) < request.cpus:
        faults.append((f"{request.cpus} CPUs are more than the {most} of a node of {where}", f"set set-threads or cpus_per_task {PROFILE}"))
    most_mb = min(partition.max_mem_mb, max((node.mem_mb for node in nodes), default=0))
    if request.mem_mb and most_mb < request.mem_mb:
        faults.append((f"{request.mem_mb} MB are more than the {most_mb:.0f} MB of a node of {where}", f"set mem_mb {PROFILE}"))
    most_nodes = min(partition.max_nodes, float(len(nodes)))
    if request.nodes > most_nodes:
        faults.append((f"{request.nodes} nodes are more than the {most_nodes:.0f} of {where}", f"set nodes {PROFILE}"))
    if not faults and sum(fits(request, node) for node in nodes) < request.nodes:
        faults.append((f"{request.nodes} nodes with {describe(request)} each: {where} has not so many", f"ask for less {PROFILE}"))
    return faults


def gpus_on(node: Node, request: Request) -> int:
    """Cards of the wanted type on a node; of any type if none is named."""
    return node.gpus.get(request.gpu_model, 0) if request.gpu_model else sum(node.gpus.values())


def fits(request: Request, node: Node) -> bool:
    """Whether an empty node could run the job."""
    return gpus_on(node, request) >= request.gpus and node.cpus >= (request.cpus or 0) and node.mem_mb >= (request.mem_mb or 0)


def describe(request: Request) -> str:
    """What is asked of each node, in words."""
    model = f" {request.gpu_model}" if request.gpu_model else ""
    cards = f"{request.gpus}{model} GPU{'s' if request.gpus > 1 else ''}" if request.gpus else ""
    rest = [f"{request.cpus} CPUs" if request.cpus else "", f"{request.mem_mb} MB" if request.mem_mb else ""]
    time = hours(request.runtime_min) if request.runtime_min is not None else ""
    return ", ".join(filter(None, [cards, *rest, time])) or "what the cluster gives by default"


def hours(minutes: float) -> str:
    """Minutes for people: 12 h, 90 min."""
    return f"{minutes / 60:g} h" if minutes >= 120 or minutes % 60 == 0 else f"{minutes:g} min"


# --- accounts and limits -----------------------------------------------------------------------------------------------


def check_accounts(requests: Sequence[Request], partitions: dict[str, Partition], user: str) -> list[Check]:
    """Whether the accounts may be charged by this user, and what they and the QOS allow at most."""
    asked = dict.fromkeys(request.account for request in requests)
    try:
        own, qos = slurm.associations(user), slurm.qos_limits()
    except SlurmError as error:
        return [not_checked(f"account {name}" if name else "account", f"the accounting database does not answer ({error})") for name in asked]
    if not own:
        return [not_checked("account", f"the accounting database names none for {user}; this cluster may not ask for one")]
    names = list(dict.fromkeys(each.account for each in own))
    checks = []
    for name in asked:
        if name is None:
            checks.append(ok("account", f"none in the profile, your default is taken; yours: {', '.join(names)}"))
        elif name not in names:
            checks.append(problem(f"account {name}", f"is not one of yours ({', '.join(names)})", f"set slurm_account {PROFILE}"))
        else:
            checks.append(ok(f"account {name}", f"may be charged by {user}"))
    for group in kinds(request for request in requests if request.account is None or request.account in names):
        checks += check_limits(group, partitions, own, qos)
    return checks


def check_limits(group: Sequence[Request], partitions: dict[str, Partition], own: Sequence[Association], qos: dict[str, Limits]) -> list[Check]:
    """One kind of job against its account, its QOS and its partition's QOS. Silent where all is within the limits."""
    request, name = group[0], f"limits of {title(group)}"
    partition = partitions.get(request.partition or "")
    found = [each for each in own if request.account in (None, each.account) and each.partition in ("", request.partition)]
    if not found:
        return [problem(name, f"account {request.account} may not use partition {request.partition}", f"set slurm_account or slurm_partition {PROFILE}")]
    if partition and request.account and (request.account in partition.denied_accounts or request.account not in (partition.accounts or (request.account,))):
        allowed = f"only {', '.join(partition.accounts)}" if partition.accounts else "others"
        return [problem(name, f"partition {partition.name} is not open to account {request.account} ({allowed})", f"set slurm_partition {PROFILE}")]
    usable = {one for each in found for one in each.qos}
    if request.qos and request.qos not in usable:
        return [problem(name, f"QOS {request.qos} is not one of yours ({', '.join(sorted(usable)) or 'none'})", f"set qos {PROFILE}")]
    job_qos = request.qos or found[0].default_qos or (found[0].qos[0] if len(found[0].qos) == 1 else "")
    limits = [found[0].limits, *(qos[one] for one in dict.fromkeys(filter(None, (job_qos, partition.qos if partition else ""))) if one in qos)]
    faults = [fault for each in limits for fault in limit_faults(request, each, each.name if each is limits[0] else f"QOS {each.name}")]
    return [problem(name, "; ".join(faults), f"ask for less {PROFILE}, or name a qos that allows it ({', '.join(sorted(usable))})")] if faults else []


def limit_faults(request: Request, limits: Limits, whose: str) -> list[str]:
    """What of a job is above a limit. Such a job is refused, or waits for ever."""
    asked = (
        ("run time in minutes", request.runtime_min, limits.minutes),
        ("GPUs", request.gpus * request.nodes, limits.gpus),
        ("CPUs", (request.cpus or 0) * request.nodes, limits.cpus),
        ("nodes", request.nodes, limits.nodes),
        ("jobs at a time", 1, limits.jobs),
    )
    return [f"{what}: {wanted} asked, {whose} allows {most:.0f}" for what, wanted, most in asked if wanted is not None and wanted > most]


# --- the last word -----------------------------------------------------------------------------------------------------


def check_submission(requests: Sequence[Request], before: Sequence[Check]) -> list[Check]:
    """Ask SLURM itself, without submitting (sbatch --test-only), about each kind of job that no other check has found fault with."""
    named = " ".join(check.sentence for check in before if check.state == "problem")
    taken: list[str] = []
    refused: dict[str, list[Request]] = {}
    for group in kinds(requests):
        if any(request.rule in named for request in group) or any(name and f"{word} {name}:" in named for word, name in _names(group[0])):
            continue
        try:
            slurm.ask("sbatch", "--test-only", *group[0].submission, "--wrap", "true")
            taken += [request.rule for request in group]
        except SlurmError as error:
            refused.setdefault(str(error).removeprefix("sbatch: ").removeprefix("allocation failure: "), []).extend(group)
    checks = [ok("submission", f"SLURM would take jobs of {', '.join(dict.fromkeys(taken))}")] if taken else []
    for said, group in refused.items():
        cure = f"try: sbatch --test-only {' '.join(group[0].submission)} --wrap true"
        checks.append(problem("submission", f"SLURM refuses {title(group)} ({said})", cure))
    return checks


def _names(request: Request) -> tuple[tuple[str, str | None], ...]:
    return (("partition", request.partition), ("account", request.account))


def check_mail(requests: Sequence[Request], user: str) -> Check:
    """Who is told of the end of a job. Nobody dies of it."""
    told = {request.mail for request in requests}
    if "address" in told:
        return ok("mail", "SLURM writes to the address of the profile")
    if "user" in told:
        return warning(
            "mail", f"no mail_user is set, SLURM writes to {user} on this cluster", f"set --mail-user=NAME@HOST in slurm_extra {PROFILE} if nobody reads that"
        )
    return warning("mail", "no mail_user is set, SLURM tells nobody that a job ended or failed", f"set slurm_extra {PROFILE} if you want to know")
