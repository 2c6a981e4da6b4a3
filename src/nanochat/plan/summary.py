"""The plan of one call of the workflow: every job with what it takes, totals, what is fetched, what is up to date, what would be refused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.hardware import GIB
from nanochat.plan.estimate import START_UP_S, jobs_needed
from nanochat.plan.jobs import Job, explain, has_kept_copy
from nanochat.plan.machine import Facts
from nanochat.plan.planner import Estimate, Planner
from nanochat.plan.work import TRAINING

STAGES = ("fetch", "preflight", "prepare", "tokenizer", "tokenize", "base_train", "mid_train", "chat_sft", "chat_rl", "evaluate", "report")
HERE = ("fetch", "preflight")  # where snakemake itself runs: no scheduler limits them


@dataclass(frozen=True)
class Planned:
    """One job that would run."""

    job: Job
    reason: str
    estimate: Estimate
    facts: Facts
    restarts: int = 0
    problem: str | None = None  # why a real run would be refused
    warning: str | None = None
    taken_back: bool = False  # a finished copy is kept, and all that it was made from comes out the same: nothing is trained

    @property
    def run(self) -> str:
        """Run, or what else its wildcards name: a source, a corpus with its tokenizer."""
        return self.estimate.run or ".".join(list(self.job.wildcards.values())[:2])

    @property
    def hours(self) -> float | None:
        """Expected hours, every restart's own start included."""
        return None if self.estimate.seconds is None else (self.estimate.seconds + self.restarts * START_UP_S) / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Card-hours; None where the hours are not known."""
        return 0.0 if not self.estimate.gpus else None if self.hours is None else self.hours * self.estimate.gpus

    @property
    def price(self) -> float | None:
        """US dollars."""
        return None if self.gpu_hours is None or self.facts.price is None else self.gpu_hours * self.facts.price

    def to_dict(self) -> dict[str, Any]:
        """As plain data; a value that is not known is null, `unavailable` says why."""
        estimate, training = self.estimate, self.estimate.training
        runtime = self.job.resources.get("runtime")
        return {
            "run": self.run,
            "stage": self.job.stage,
            "rule": self.job.rule,
            "wildcards": dict(self.job.wildcards),
            "reason": self.reason,
            "parameters": training.work.params if training else None,
            "tokens": training.work.tokens if training else None,
            "tokens_are_estimated": training.approximate if training else None,
            "steps": training.work.steps if training else None,
            "flops": training.work.flops if training else None,
            "micro_batch_rows": training.plan.micro_batch_rows if training else None,
            "gpus": estimate.gpus,
            "gpu": self.facts.card_name if estimate.gpus else None,
            "memory_bytes": estimate.memory_bytes,
            "memory_by": vars(training.memory) if training and estimate.memory_bytes else None,
            "gpu_memory_bytes": self.facts.memory_bytes if estimate.gpus else None,
            "hours": self.hours,
            "seconds_by": dict(estimate.parts),
            "rate": estimate.rate,
            "unavailable": estimate.why_unknown,
            "runtime_min": runtime if self.facts.runtime_limit else None,
            "runtime_limit_min": self.facts.runtime_limit,
            "restarts": self.restarts,
            "gpu_hours": self.gpu_hours,
            "price": self.price,
            "price_per_gpu_hour": self.facts.price if estimate.gpus else None,
            "price_source": self.facts.price_source if estimate.gpus else None,
            "disk_bytes": estimate.disk_bytes,
            "resume_bytes": estimate.resume_bytes,
            "fetches": estimate.fetches,
            "fetch_bytes": estimate.fetch_bytes,
            "taken_back": self.taken_back,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Totals:
    """Sums over all jobs; what could not be estimated is counted in `unknown`."""

    hours: float  # one job after another, fetching left out
    chain_hours: float  # the longest chain of jobs that wait for one another
    gpu_hours: float
    price: float | None
    taken_back_gpu_hours: float  # of these, as much as stages would take that find their finished copy
    taken_back_price: float
    disk_bytes: int
    resume_bytes: int  # the most that one stage needs besides, while it runs
    fetch_bytes: int
    fetch_unknown: int  # parts to fetch whose size is not known
    fetch_parts: int
    unknown: int


@dataclass(frozen=True)
class Plan:
    """Everything that one call would do."""

    jobs: Sequence[Planned]
    up_to_date: Sequence[str]
    totals: Totals
    problems: Sequence[str]  # a real run would be refused with these
    warnings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "jobs": [job.to_dict() for job in self.jobs],
            "totals": vars(self.totals),
            "to_fetch": fetches(self.jobs),
            "up_to_date": list(self.up_to_date),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


def make_plan(
    planner: Planner, jobs: Iterable[Job], up_to_date: Iterable[str] = (), *, unnoticed: Iterable[str] = (), retries: int = 0, root: Path = Path()
) -> Plan:
    """The plan of these jobs. `unnoticed`: what is stale and not among them; `retries`: how often the profile starts a job again."""
    planned = _with_kept_copies([_planned(planner, job, retries, root) for job in jobs], root)
    planned.sort(key=lambda item: (STAGES.index(item.job.stage) if item.job.stage in STAGES else len(STAGES), item.job.number))
    problems = list(dict.fromkeys(item.problem for item in planned if item.problem))
    return Plan(planned, sorted(up_to_date), _totals(planned), problems, list(dict.fromkeys([*_warnings(planned), *unnoticed])))


def _planned(planner: Planner, job: Job, retries: int, root: Path) -> Planned:
    facts, reason = planner.facts(job.rule), explain(job, root)
    estimate = planner.estimate(job.rule, job.wildcards)
    problem, warning, restarts = estimate.problem or _too_long(job, facts), None, 0
    try:
        restarts, is_computed = _restarts(planner, job, estimate, facts)
    except (UserError, ValueError) as error:
        warning = f"{job.name}: {error}"
    else:
        if restarts > max(0, retries):
            too_few = f"profile: retries={retries}: {job.name} does not fit into one job and takes {restarts} restarts; set retries: {restarts} or more"
            problem, warning = (problem or too_few, None) if is_computed else (problem, too_few)  # whoever sets a run time may know better
    return Planned(job, reason, estimate, facts, restarts, problem, warning)


def _with_kept_copies(planned: Sequence[Planned], root: Path) -> list[Planned]:
    """Mark the stages that will find their own finished copy, since nothing that they are made from is other than it was."""
    jobs = {item.job.number: item.job for item in planned}
    found: dict[int, bool] = {}

    def same(number: int) -> bool:
        if number not in found:
            job = jobs[number]
            is_known = not (job.reason.params_before or job.reason.inputs_changed or job.reason.updated)
            is_known = is_known and (job.stage not in TRAINING or has_kept_copy(job, root))
            found[number] = is_known and all(same(need) for need in job.needs if need in jobs)
        return found[number]

    return [replace(item, taken_back=item.job.stage in TRAINING and same(item.job.number)) for item in planned]


def _restarts(planner: Planner, job: Job, estimate: Estimate, facts: Facts) -> tuple[int, bool]:
    """(how often a training stage is started again with the run time that its jobs ask for, whether that is sure enough to insist on)."""
    runtime = job.resources.get("runtime")
    if estimate.seconds is None or facts.runtime_limit is None or job.stage not in TRAINING or not isinstance(runtime, int):
        return 0, True
    if runtime != planner.runtime(job.rule, job.wildcards):
        return jobs_needed(estimate.seconds, runtime, start_up_s=planner.machine(job.rule).start_up_s) - 1, False
    return planner.attempts(job.rule, estimate.seconds).restarts, bool(facts.gpus or planner.measured(job.rule))  # an unknown CPU may be faster


def _too_long(job: Job, facts: Facts) -> str | None:
    runtime = job.resources.get("runtime")
    if job.stage in HERE or facts.runtime_limit is None or not isinstance(runtime, int) or runtime <= facts.runtime_limit:
        return None
    cure = "ask for less, raise runtime_limit, or leave runtime out to have it computed"
    return f"profile: {job.rule}.runtime={runtime}: above runtime_limit {facts.runtime_limit} (minutes); {cure}"


def _warnings(planned: Sequence[Planned]) -> Iterable[str]:
    yield from (item.warning for item in planned if item.warning)
    for item in planned:
        need, card = item.estimate.memory_bytes, item.facts.memory_bytes
        if item.estimate.training and need and card and need > card:
            rows = item.estimate.training.plan.micro_batch_rows
            cure = f"lower micro_batch_rows (now {rows})" if rows > 1 else "take a card with more memory or a smaller model"
            yield f"{item.job.name}: about {need / GIB:.0f} GiB of a GPU's {card / GIB:.0f} GiB; {cure}"
    for item in {item.job.rule: item for item in planned if _cannot_end(item)}.values():
        cure = "raise runtime_limit" + (", or lower chunk_shards of the corpus" if item.job.stage == "tokenize" else "")
        yield f"{item.job.name}: about {(item.estimate.seconds or 0) / 60:.0f} minutes in one job, above runtime_limit {item.facts.runtime_limit}; {cure}"
    for why in dict.fromkeys(item.facts.unknown for item in planned if item.facts.unknown):
        rules = dict.fromkeys(item.job.rule for item in planned if item.facts.unknown == why)
        yield f"{', '.join(rules)}: hours, price and memory are not available: {why}"


def _cannot_end(item: Planned) -> bool:
    """Whether a stage that cannot be cut into several jobs is longer than one may be."""
    limit, seconds = item.facts.runtime_limit, item.estimate.seconds
    return item.job.stage not in TRAINING and limit is not None and seconds is not None and seconds > limit * 60


def fetches(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """What has to be fetched, each download once: what, for which sources, bytes (null: not known)."""
    found: dict[str, dict[str, Any]] = {}
    for item in planned:
        if (what := item.estimate.fetches) is not None:
            entry = found.setdefault(what, {"what": what, "sources": [], "bytes": item.estimate.fetch_bytes})
            entry["sources"].append(item.job.wildcards["source"])
    return list(found.values())


def _totals(planned: Sequence[Planned]) -> Totals:
    timed = [item for item in planned if item.job.stage != "fetch"]
    downloads, prices = fetches(planned), [item.price for item in planned if item.estimate.gpus]
    known = [price for price in prices if price is not None]
    fetched = sum(entry["bytes"] or 0 for entry in downloads)
    return Totals(
        hours=sum(item.hours or 0.0 for item in timed),
        chain_hours=_chain({item.job.number: item for item in planned}),
        gpu_hours=sum(item.gpu_hours or 0.0 for item in planned),
        price=sum(known) if known else None,
        taken_back_gpu_hours=sum(item.gpu_hours or 0.0 for item in planned if item.taken_back),
        taken_back_price=sum(item.price or 0.0 for item in planned if item.taken_back),
        disk_bytes=fetched + sum(item.estimate.disk_bytes or 0 for item in planned),
        resume_bytes=max((item.estimate.resume_bytes for item in planned), default=0),
        fetch_bytes=fetched,
        fetch_unknown=sum(entry["bytes"] is None for entry in downloads),
        fetch_parts=sum(entry["bytes"] != 0 for entry in downloads),
        unknown=sum(item.hours is None for item in timed),
    )


def _chain(jobs: Mapping[int, Planned]) -> float:
    """Hours of the longest chain of jobs."""
    longest: dict[int, float] = {}

    def until(number: int) -> float:
        if number not in longest:
            before = max((until(need) for need in jobs[number].job.needs if need in jobs), default=0.0)
            longest[number] = before + (jobs[number].hours or 0.0)
        return longest[number]

    return max((until(number) for number in jobs), default=0.0)
