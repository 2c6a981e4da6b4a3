"""What the rules need to know: the experiment, which file follows from which, and each stage's config. Functions only."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from snakemake.utils import update_config

from nanochat import config as experiments
from nanochat.artifacts import canonical_json, read_json
from nanochat.config import STAGE_OF_PHASE
from nanochat.data.readers_local import listing, local_files
from nanochat.errors import UserError
from nanochat.preflight.needs import REFERENCES, data_needs, open_needs

PREFLIGHT = "results/preflight.json"
TRAINING_RULES = ("base_train", "mid_train", "chat_sft")
WEEK = 7 * 24 * 60  # minutes; a `runtime` that stops nobody: profiles of machines with a time limit set their own


def shell_prefix() -> str:
    """What opens every shell command: strict mode, the right `nanochat`, and `keep_log`."""
    return " ".join(shlex.quote(str(part)) for part in ("source", Path(workflow.basedir, "rules/shell.sh"), Path(sys.executable).parent)) + "; "


def read_experiment(given):
    """The validated experiment: what --configfile and --config gave, on top of config.yaml where no file was given.

    A wrong key ends the program with one sentence that names it. Not the directive `configfile:`, which would merge
    config.yaml into the file that was asked for.
    """
    files = [str(file) for file in workflow.config_settings.configfiles]
    try:
        for file in files:  # read by snakemake already, but without a word about keys that stand twice
            if not file.endswith(".json"):
                experiments.read_yaml(Path(file))
        if files:
            return experiments.validate(dict(given), ", ".join(files))
        if not given:
            return experiments.load(Path("config.yaml"))
        content = experiments.read_yaml(Path("config.yaml"))
        update_config(content, given)
        return experiments.validate(content, "config.yaml with --config")
    except UserError as error:
        print(f"nanochat: error: {error}", file=sys.stderr)
        sys.exit(2)


def one_of(names: Iterable[str]) -> str:
    """A wildcard constraint: one of these names and nothing else."""
    return "|".join(re.escape(name) for name in sorted(set(names))) or "(?!)"


def unique(items: Iterable) -> list:
    """Items in order, each once."""
    return list(dict.fromkeys(items))


# --- files that follow from the experiment ---------------------------------------------------------------------------


def fetched(source: str, part: str = "all") -> str:
    """Manifest of one fetched part of a source."""
    return f"resources/{source}/{part}/manifest.json"


def local_sources() -> list[str]:
    """Sources that are files of the user's own on this machine."""
    return [name for name, source in EXPERIMENT.sources.items() if source.kind == "local"]


@cache  # asked several times while the jobs are planned
def local_text(source: str) -> list[Path]:
    """The files of a local source.

    Where they cannot be listed (a disk that is not mounted, a folder that was moved) and were fetched before, a path that
    does not exist: snakemake then goes on with what is there. Never fetched: nothing, so that the stage says what is wrong.
    """
    place = EXPERIMENT.sources[source].path
    try:
        return local_files(place, source)
    except (UserError, OSError) as error:
        if not Path(fetched(source)).is_file():
            return []
        print(f"nanochat: warning: {error}; the text that was fetched from it before is used", file=sys.stderr)
        return [Path(place).expanduser() / "*"]


def local_inputs(source: str) -> list[str]:
    """The files of a local source as inputs; without those that snakemake would take for a pattern, which `listing` holds too."""
    return [str(file) for file in local_text(source) if "{" not in str(file)]


def chunks(corpus: str, split: str | None = None) -> list:
    """Chunks of a corpus, of one split or of both."""
    return [chunk for chunk in experiments.corpus_chunks(EXPERIMENT, corpus) if split in (None, chunk.split)]


def corpus_text(corpus: str, split: str | None = None) -> list[str]:
    """Fetched manifests that hold the text of a corpus."""
    return unique(fetched(chunk.source, chunk.part) for chunk in chunks(corpus, split))


def tokenizer_manifest(name: str) -> str:
    """Manifest of a tokenizer."""
    return f"results/tokenizers/{name}/manifest.json"


def tokens_of(run, file: str = "manifest.json", split: str | None = None) -> list[str]:
    """A file of every token chunk that a run reads."""
    return [f"results/tokens/{run.corpus}.{run.tokenizer}/{chunk.name}/{file}" for chunk in chunks(run.corpus, split)]


def tuning_data(run, stage: str) -> list[str]:
    """Fetched manifests that the mixture of mid_train or chat_sft reads."""
    tune = getattr(run, stage)
    sources = (source for item in [*tune.mixture, *tune.validation] for source in experiments.task_sources(item.task, item.split, item.source))
    return [fetched(source) for source in unique(sources)]


def task_data(run, task: str) -> list[str]:
    """Fetched manifests that one evaluation reads."""
    settings = run.evaluate[task]
    return [fetched(source) for source in experiments.task_sources(task, settings.split, settings.source)]


def model(run: str, phase: str, file: str) -> str:
    """A file of one phase of a run."""
    return f"results/{run}/{STAGE_OF_PHASE[phase]}/{file}"


def parent_phase(run: str, phase: str) -> str:
    """The phase whose weights `phase` starts from: the one before it in this run."""
    phases = EXPERIMENT.runs[run].phases
    return phases[phases.index(phase) - 1]


# --- everything of a kind --------------------------------------------------------------------------------------------


def every_source() -> list[str]:
    """Names of the sources that this experiment uses."""
    return [Path(file).parts[1] for file in every_fetched(EXPERIMENT.runs)]


def every_fetched(runs: Iterable[str]) -> list[str]:
    """Manifests of all that these runs fetch."""
    files = [fetched(source) for source in REFERENCES]
    for run in (EXPERIMENT.runs[name] for name in runs):
        files += corpus_text(run.corpus) + corpus_text(EXPERIMENT.tokenizers[run.tokenizer].corpus)
        files += [file for phase in run.phases[1:] for file in tuning_data(run, STAGE_OF_PHASE[phase])]
        files += [file for task in run.evaluate for file in task_data(run, task)]
    return unique(files)


def every_tokens(runs: Iterable[str]) -> list[str]:
    """Manifests of the token chunks of these runs."""
    return unique(file for name in runs for file in tokens_of(EXPERIMENT.runs[name]))


def every_weights(*phases: str) -> list[str]:
    """Weights of these phases, of the runs that have them."""
    return [model(name, phase, "model.safetensors") for name, run in EXPERIMENT.runs.items() for phase in run.phases if phase in phases]


def every_score(runs: Iterable[str]) -> list[str]:
    """Score files of these runs."""
    return [f"results/{name}/scores/{phase}/{task}.json" for name in runs for phase, task in experiments.evaluated(EXPERIMENT.runs[name])]


def reported_runs() -> list[str]:
    """The runs that the report shows."""
    return EXPERIMENT.report.runs or list(EXPERIMENT.runs)


def validation_tokens(wildcards, file: str) -> list[str]:
    """A file of every validation chunk, for bits per byte; nothing for the other tasks."""
    return tokens_of(EXPERIMENT.runs[wildcards.run], file, "validation") if wildcards.task == "bpb" else []


# --- before the first job ---------------------------------------------------------------------------------------------


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
    training = [job for job in planned if job.rule.name in TRAINING_RULES]
    first = [job for job in planned if job.rule.name in ("fetch_part", "fetch_local", "preflight")]
    if not training or workflow.touch:
        return
    fetching = {str(file) for job in first for file in job.output}
    missing = {need.manifest for need in open_needs(EXPERIMENT, Path()) if not Path(need.manifest).is_file()} - fetching
    first_type = f"type this first: snakemake --cores 4 --force {PREFLIGHT}"
    if missing or (PREFLIGHT not in fetching and not Path(PREFLIGHT).is_file()):  # a file was asked for by its name
        refuse(f"{training[0].output[0]} would be trained before the data of all stages are there and checked; {first_type}")
    if first and not hasattr(dag, "_n_until_ready"):
        refuse(f"this version of snakemake cannot let training wait for the data; {first_type}")
    for before in first:
        for job in training:
            if job not in dag.depending[before]:
                dag.depending[before][job] = set()
                dag._n_until_ready[job] += 1  # `dag.finish` counts down for each job in `depending`; at 0 a job is ready
                dag.ready_jobs.discard(job)


def refuse(message: str) -> None:
    """End before anything has started, with one sentence."""
    print(f"nanochat: error: {message}", file=sys.stderr)
    sys.exit(2)


def check_machine() -> None:
    """On a cluster, before the first job: wait for jobs that a killed snakemake left behind, then check all that can be checked.

    A problem ends the program with one sentence each and nothing submitted. After a wait snakemake begins anew, in this very process,
    since its plan was made before the jobs ended.
    """
    if workflow.local_exec:
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
        refuse(unread)
    if problems(found):
        refuse("nothing was submitted; `nanochat preflight --profile slurm` repeats the checks")


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
