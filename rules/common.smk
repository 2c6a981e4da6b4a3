"""What the rules need to know: the experiment, which file follows from which, and each stage's config. Functions only."""

import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from snakemake.utils import update_config

from nanochat import config as experiments
from nanochat.artifacts import canonical_json
from nanochat.config import STAGE_OF_PHASE
from nanochat.data.readers_local import listing, local_files
from nanochat.errors import UserError
from nanochat.plan.machine import GPU_GRES
from nanochat.preflight.needs import REFERENCES, data_needs


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
        end_with(str(error).splitlines())


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


@cache  # asked for by every chunk of the corpus
def chunks(corpus: str, split: str | None = None) -> list:
    """Chunks of a corpus, of one split or of both."""
    return [chunk for chunk in experiments.corpus_chunks(EXPERIMENT, corpus) if split in (None, chunk.split)]


@cache
def chunks_by_name(corpus: str) -> dict:
    """Chunks of a corpus by the names of their folders."""
    return {chunk.name: chunk for chunk in chunks(corpus)}


def prepared_corpora() -> list[str]:
    """Corpora whose text is filtered before it is used."""
    return [name for name, corpus in EXPERIMENT.corpora.items() if corpus.prepare is not None]


def fetched_chunk(corpus: str, name: str) -> str:
    """Fetched manifest of the text of one chunk."""
    chunk = chunks_by_name(corpus)[name]
    return fetched(chunk.source, chunk.part)


def chunk_text(corpus: str, name: str) -> str:
    """Manifest of the text of one chunk: prepared where the corpus asks for it, else fetched."""
    return f"results/text/{corpus}/{name}/manifest.json" if corpus in prepared_corpora() else fetched_chunk(corpus, name)


def corpus_text(corpus: str, split: str | None = None) -> list[str]:
    """Manifests that hold the text of a corpus."""
    return unique(chunk_text(corpus, chunk.name) for chunk in chunks(corpus, split))


def prepared_text(runs: Iterable[str]) -> list[str]:
    """Manifests of everything that is prepared for these runs and their tokenizers."""
    read = unique(name for run in runs for name in (EXPERIMENT.runs[run].corpus, EXPERIMENT.tokenizers[EXPERIMENT.runs[run].tokenizer].corpus))
    return [file for name in read if name in prepared_corpora() for file in (f"results/text/{name}/manifest.json", *corpus_text(name))]


def tokenizer_manifest(name: str) -> str:
    """Manifest of a tokenizer."""
    return f"results/tokenizers/{name}/manifest.json"


def tokens_of(run, file: str = "manifest.json", split: str | None = None) -> list[str]:
    """A file of every token chunk that a run reads."""
    return [f"results/tokens/{run.corpus}.{run.tokenizer}/{chunk.name}/{file}" for chunk in chunks(run.corpus, split)]


def base_train_config(run: str) -> dict:
    """Subtree of stage base_train, the weights of its corpus included."""
    section = EXPERIMENT.runs[run]
    return experiments.base_train_config(section, EXPERIMENT.corpora[section.corpus].weights)


def tuning_data(run, stage: str) -> list[str]:
    """Fetched manifests that mid_train, chat_sft or chat_rl reads."""
    sources = (source for use in experiments.stage_tasks(run, stage) for source in experiments.task_sources(*use))
    return [fetched(source) for source in unique(sources)]


def task_data(run, task: str) -> list[str]:
    """Fetched manifests that one evaluation reads."""
    settings = run.evaluate[task]
    return [fetched(source) for source in experiments.task_sources(task, settings.split, settings.source)]


def overlap_tables() -> list[str]:
    """Tables of contamination that the report shows: of each corpus and mixture whose runs evaluate rows, if they are asked for."""
    texts = experiments.overlap_texts(EXPERIMENT) if EXPERIMENT.report.contamination else ()
    return [f"results/contamination/{text}.json" for text in texts if experiments.evaluated_rows(EXPERIMENT, text)]


def overlap_data(text: str) -> list[str]:
    """Fetched manifests of what the reported runs that are trained on a text evaluate."""
    return [fetched(source) for source in unique(source for rows in experiments.evaluated_rows(EXPERIMENT, text) for source in experiments.task_sources(*rows))]


def overlap_mixture(text: str) -> list[str]:
    """Fetched manifests of a text that is the mixture of a stage, RUN.STAGE; nothing for a corpus."""
    run, _, stage = text.partition(".")
    return tuning_data(EXPERIMENT.runs[run], stage) if stage else []


def model(run: str, phase: str, file: str) -> str:
    """A file of one phase of a run."""
    return f"results/{run}/{STAGE_OF_PHASE[phase]}/{file}"


def parent_phase(run: str, phase: str) -> str:
    """The phase whose weights `phase` starts from: the one before it in this run."""
    phases = EXPERIMENT.runs[run].phases
    if phase not in phases:
        raise WorkflowError(f"run {run} has no phase {phase}; choose among {', '.join(phases)}")
    return phases[phases.index(phase) - 1]


def gpus_of_each_node(resources) -> int:
    """GPUs of a training job on each of its nodes: `gpu` of one node, `gres` (as in gpu:a100:8) of several.

    SLURM starts no step of a job of several nodes whose GPUs were counted together (--gpus), and would share them out unevenly.
    """
    nodes, gpus, gres = resources.get("nodes", 1), resources.get("gpu", 0), re.fullmatch(GPU_GRES, str(resources.get("gres", "")))
    if nodes > 1 and gpus:
        raise ValueError(f"nodes={nodes}, gpu={gpus}: with several nodes give gres (as in gpu:a100:8, of each node) in place of gpu and gpu_model")
    return int(gres[2]) if gres else gpus


# --- everything of a kind --------------------------------------------------------------------------------------------


def every_source() -> list[str]:
    """Names of the sources that this experiment uses."""
    return [Path(file).parts[1] for file in every_fetched(EXPERIMENT.runs)]


def every_fetched(runs: Iterable[str]) -> list[str]:
    """Manifests of all that these runs fetch."""
    return unique(need.manifest for need in data_needs(EXPERIMENT, runs))


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
    return experiments.reported_runs(EXPERIMENT)


def validation_tokens(wildcards, file: str) -> list[str]:
    """A file of every validation chunk, for bits per byte; nothing for the other tasks."""
    return tokens_of(EXPERIMENT.runs[wildcards.run], file, "validation") if wildcards.task == "bpb" else []
