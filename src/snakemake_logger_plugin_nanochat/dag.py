"""Snakemake's jobs as the plan sees them: the one place that knows how Snakemake keeps them."""

import ast
from collections.abc import Iterable
from typing import Any

from nanochat.plan.jobs import Job, Reason

# rules of hundreds of jobs, whose resources do not differ enough to be computed for each (1 ms and more)
ALIKE = ("fetch_part", "fetch_local", "prepare", "tokenize")


def is_planned(dag: Any) -> bool:
    """Whether Snakemake came to the end of its planning, where jobs get their numbers, and did not fail before."""
    try:
        return all(dag.jobid(job) >= 0 for job in dag.jobs)
    except KeyError:
        return False


def jobs_to_run(dag: Any) -> list[Job]:
    """Every job that would run and makes files, by number."""
    shared: dict[str, dict[str, int]] = {}
    return sorted((_job(dag, job, shared) for job in dag.needrun_jobs(exclude_finished=False) if job.output), key=lambda job: job.number)


def names_up_to_date(dag: Any) -> list[str]:
    """Names of the jobs whose results are there and current."""
    return [Job(0, job.rule.name, dict(job.wildcards_dict)).name for job in dag.jobs if job.output and not dag.needrun(job)]


def jobs_not_remembered(dag: Any) -> list[Job]:
    """Jobs whose results are there and taken for current, though Snakemake does not remember what they were made with."""
    return [_job(dag, job, {}) for job in dag.jobs if job.output and not dag.needrun(job) and dag.reason(job).no_metadata]


def retries(workflow: Any) -> int:
    """How often a failed job is started again."""
    return int(workflow.execution_settings.retries) if workflow.execution_settings is not None else 0


def _job(dag: Any, job: Any, shared: dict[str, dict[str, int]]) -> Job:
    name = job.rule.name
    if (resources := shared.get(name)) is None:
        resources = {key: value for key, value in job.resources.items() if isinstance(value, int)}
        if name in ALIKE:
            shared[name] = resources
    return Job(
        number=dag.jobid(job),
        rule=name,
        wildcards=dict(job.wildcards_dict),
        outputs=[str(file) for file in job.output],
        identity=job.params.get("identity") or job.params.get("config"),
        resources=resources,
        reason=_reason(dag.reason(job)),
        needs=[dag.jobid(need) for need in dag.dependencies[job] if dag.needrun(need)],
    )


def _reason(reason: Any) -> Reason:
    changed = reason.params_changed
    return Reason(
        missing=_names(reason.missing_output),
        incomplete=_names(reason.incomplete_output),
        updated=_names(reason.updated_input),
        upstream=_names(reason.updated_input_run),
        inputs_changed=bool(reason.input_changed),
        forced=bool(reason.forced),
        params_before=_values(getattr(changed, "only_old", ())),
        other=str(reason),
    )


def _names(files: Iterable[Any]) -> list[str]:
    return sorted(str(file) for file in files)


def _values(representations: Iterable[Any]) -> list[str]:
    """The texts among parameters that Snakemake keeps as representations."""
    found = []
    for representation in representations:
        try:
            value = ast.literal_eval(str(representation))
        except (ValueError, SyntaxError):
            value = representation
        found.append(str(value))
    return sorted(found)
