"""Between planning and the first job: what cannot end well is refused, jobs that were left behind are waited for, training is put last. Functions only."""

import json
import os
import sys
from functools import cache
from pathlib import Path

from nanochat import config as experiments
from nanochat.artifacts import read_json
from nanochat.plan.work import TRAINING
from nanochat.preflight.needs import data_needs, open_needs
from snakemake_logger_plugin_nanochat import plan_of_run

PREFLIGHT = "results/preflight.json"


def refuse_the_hopeless() -> None:
    """End the program before anything is started or submitted if a job cannot do its work as it is asked."""
    try:
        plan = plan_of_run()
    except Exception as error:  # a plan that fails must not stop the work
        print(f"nanochat: warning: this run could not be planned ({type(error).__name__}: {error})", file=sys.stderr)
        return
    if plan is not None and plan.problems:
        end_with(plan.problems)


@cache  # asked several times while the jobs are planned
def preflight_needs() -> list:
    """What the preflight looks at. Not what was purged after its last use: fetched again, it would rerun what was made from it.

    While nothing is to be fetched it is everything, as at the first time: a purge alone makes no check again.
    """
    needs = open_needs(EXPERIMENT, Path())
    return needs if any(not Path(need.manifest).is_file() for need in needs) else data_needs(EXPERIMENT)


def train_last() -> None:
    """Let every training job of this call wait until all that this call fetches is there and the preflight has found it good.

    An order and no input, since snakemake 9 can only do one or the other wrong: an input that is made anew retrains a finished
    model, and an `ancient` one hides the other changes of the stage behind it. (CONTRIBUTING.md, Decisions)
    """
    dag = workflow.dag
    planned = list(dag.needrun_jobs())
    training = [job for job in planned if job.rule.name in TRAINING]
    first = [job for job in planned if job.rule.name in ("fetch_part", "fetch_local", "preflight")]
    if not training or workflow.touch:
        return
    fetching = {str(file) for job in first for file in job.output}
    missing = {need.manifest for need in open_needs(EXPERIMENT, Path()) if not Path(need.manifest).is_file()} - fetching
    first_type = f"type this first: snakemake --cores 4 --force {PREFLIGHT}"
    if missing or (PREFLIGHT not in fetching and not Path(PREFLIGHT).is_file()):  # a file was asked for by its name
        end_with([f"{training[0].output[0]} would be trained before the data of all stages are there and checked; {first_type}"])
    if first and not hasattr(dag, "_n_until_ready"):
        end_with([f"this version of snakemake cannot let training wait for the data; {first_type}"])
    for before in first:
        for job in training:
            if job not in dag.depending[before]:
                dag.depending[before][job] = set()
                dag._n_until_ready[job] += 1  # `dag.finish` counts down for each job in `depending`; at 0 a job is ready
                dag.ready_jobs.discard(job)


def check_machine() -> None:
    """On a cluster, before the first job: wait for jobs that a killed snakemake left behind, then check all that can be checked.

    A problem ends the program with one sentence each and nothing submitted. After a wait snakemake begins anew, in this very process,
    since its plan was made before the jobs ended.
    """
    if workflow.executor_plugin is None or workflow.executor_plugin.name != "slurm":
        return
    from nanochat.preflight.checks import problems  # not at the top: every job of a cluster parses this file, one process needs them
    from nanochat.preflight.collect import cluster_checks, experiment_checks
    from nanochat.preflight.leftover import wait_for_left_jobs
    from nanochat.preflight.requests import request_of
    from nanochat.preflight.slurm import SlurmError

    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    try:
        if jobs and (left := wait_for_left_jobs(Path.cwd(), tell)):
            tell("no such job is left: planning anew from what they have made")
            names = {job.rule for job in left}
            for job in jobs:
                if " ".join([job.rule.name, "_".join(job.wildcards)]).strip() in names:
                    adopt(job)
            workflow.persistence.unlock()
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        unread = ""
    except SlurmError as error:
        unread = f"the queue cannot be read ({error}): jobs of an earlier snakemake may be in it; try again in a minute"
    requests = [request_of(job.rule.name, dict(job.resources.items()), job.threads) for job in jobs]
    found = [*experiment_checks(EXPERIMENT, fetched_later=True), *(cluster_checks(requests) if requests else [])]
    for check in found:
        if check.state in ("problem", "warning"):
            print(f"nanochat: {'error' if check.state == 'problem' else 'warning'}: {check.sentence}", file=sys.stderr)
    if unread and not problems(found):
        end_with([unread])
    if problems(found):
        end_with(["nothing was submitted; `nanochat preflight --profile slurm` repeats the checks"])


def adopt(job) -> None:
    """Remember what a job of a killed snakemake has made, as snakemake would have done, so that later changes rerun it.

    If that was made from another config than this call's, or says of none what it was made from, it is marked incomplete and made again.
    """
    if not all(Path(file).exists() for file in job.output):
        return
    made_from = Path(job.output[0]).parent / "config.json"
    wanted = json.loads(getattr(job.params, "config", None) or "null")
    if wanted is not None and made_from.is_file() and experiments.identity(read_json(made_from)) == experiments.identity(wanted):
        workflow.async_run(workflow.persistence.finished(job))
    else:
        workflow.persistence.started(job)


def tell(message: str) -> None:
    """One line about what is going on."""
    print(f"nanochat: {message}", file=sys.stderr, flush=True)
