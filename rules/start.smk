"""Before the first job: what cannot end well is refused, jobs that were left behind are waited for, training is put last. Functions only."""

import atexit
import contextlib
import getpass
import json
import os
import signal
import sys
from functools import cache
from pathlib import Path

import psutil

from nanochat import config as experiments
from nanochat.artifacts import exclusive, read_json
from nanochat.errors import UserError
from nanochat.plan.work import TRAINING
from nanochat.preflight.needs import data_needs, open_needs
from nanochat.preflight.shared import DRIVER, not_writable
from snakemake_logger_plugin_nanochat import plan_of_run

PREFLIGHT = "results/preflight.json"
HELD = contextlib.ExitStack()  # as long as this process lives


def refuse_files_of_others() -> None:
    """End the program where somebody else's files would stop it in the middle. A dry run writes nothing but snakemake's own notes."""
    if workflow.is_main_process and (problem := not_writable(Path(), dry_run=workflow.output_settings.dryrun)):
        end_with([problem])


def on_slurm() -> bool:
    """Whether jobs are submitted to a cluster."""
    return workflow.executor_plugin is not None and workflow.executor_plugin.name == "slurm"


def name_user() -> None:
    """Give a user whom the machine does not know, as in a container, a name: snakemake ends without one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.update(USER=f"uid_{os.getuid()}")


def hold_folder() -> None:
    """Say who works here, for a second snakemake that comes upon the lock of this one.

    That lock is no lock for two who start in the same moment; ours is, and on a cluster only one may go on. It ends without touching
    the locks, which are the other's. On one machine two may work on files that have nothing to do with each other.
    """
    try:
        HELD.enter_context(exclusive(DRIVER))
        atexit.register(HELD.close)
    except UserError as error:
        if on_slurm():
            print(f"nanochat: error: another snakemake has just been started in this folder ({error})", file=sys.stderr, flush=True)
            os._exit(2)


def outlive_the_terminal() -> None:
    """A closed terminal: on a cluster the jobs go on without this process, which removes its lock; elsewhere it is an interrupt."""
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, leave_jobs if on_slurm() else interrupt)


def leave_jobs(_number, _frame) -> None:
    """End at once and leave everything as a new snakemake needs it: it waits for the jobs and keeps what they make."""
    hang_up_children()
    with contextlib.suppress(OSError):  # the terminal has gone
        tell("the terminal was closed: jobs in the queue go on; the same command waits for them and keeps what they make")
    workflow.persistence.unlock()
    HELD.close()
    os._exit(128 + signal.SIGHUP)


def interrupt(_number, _frame) -> None:
    """What Ctrl-C does; the stages have the signal from the terminal, or from here."""
    hang_up_children()
    raise KeyboardInterrupt


def hang_up_children() -> None:
    """Hand the signal on to what this process has started."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.send_signal(signal.SIGHUP)


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
    if not training:
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
    if not on_slurm():
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
