"""One experiment as files: fetch (-> prepare) -> tokenizer -> tokenize -> base_train -> mid_train -> chat_sft (-> chat_rl) -> evaluate -> report.

    snakemake --cores all                                       the experiment of ./config.yaml, every run and its report
    snakemake --cores all --configfile configs/laptop.yaml      another experiment
    snakemake --profile slurm -n                                on a cluster; -n says what would run, and why
    snakemake --cores all base                                  stop after a stage (targets: see below)

Parsed again by every job of a cluster, so nothing here imports torch, hashes a file or touches the network.
"""

from snakemake.utils import min_version

min_version("9.19")

include: "rules/common.smk"
include: "rules/machine.smk"
include: "rules/start.smk"

refuse_files_of_others()
name_user()
EXPERIMENT = read_experiment(config)
PLANNER = plan_on_this_machine()
shell.prefix(shell_prefix())

wildcard_constraints:
    source=one_of(every_source()),
    part=r"all|validation|train-\d+",
    tokenizer=one_of(EXPERIMENT.tokenizers),
    corpus=one_of(EXPERIMENT.corpora),
    chunk=one_of(chunk.name for corpus in EXPERIMENT.corpora for chunk in chunks(corpus)),
    run=one_of(EXPERIMENT.runs),
    phase=one_of(STAGE_OF_PHASE),
    task=one_of(task for run in EXPERIMENT.runs.values() for task in run.evaluate),
    text=one_of(experiments.overlap_texts(EXPERIMENT)),


localrules:
    all,
    fetch,
    tokenizer,
    tokens,
    base,
    mid,
    sft,
    rl,
    evaluate,
    report,


report: "reports/workflow.rst"


onstart:
    if workflow.is_main_process:
        hold_folder()
        outlive_the_terminal()
    if workflow.is_main_process and not workflow.touch:
        refuse_the_hopeless()
        check_machine()
        train_last()


rule all:
    """The weights of every phase of every run, their scores, and the report."""
    input:
        weights=every_weights("base", "mid", "sft", "rl"),
        scores=every_score(EXPERIMENT.runs),
        report="results/report/report.html",
        preflight=PREFLIGHT,


rule fetch:
    """Everything that comes from the internet, so that the rest needs none."""
    input:
        every_fetched(EXPERIMENT.runs),


rule tokenizer:
    """The tokenizers."""
    input:
        [tokenizer_manifest(name) for name in EXPERIMENT.tokenizers],


rule tokens:
    """The packed token shards of every run."""
    input:
        every_tokens(EXPERIMENT.runs),


rule base:
    """The pretrained models."""
    input:
        PREFLIGHT,
        every_weights("base"),


rule mid:
    """The models after mid-training, of the runs that have it."""
    input:
        PREFLIGHT,
        every_weights("mid"),


rule sft:
    """The chat models, of the runs that have them."""
    input:
        PREFLIGHT,
        every_weights("sft"),


rule rl:
    """The chat models after reinforcement learning, of the runs that have it."""
    input:
        PREFLIGHT,
        every_weights("rl"),


rule evaluate:
    """Every score of every run."""
    input:
        PREFLIGHT,
        every_score(EXPERIMENT.runs),


rule report:
    """The report."""
    input:
        PREFLIGHT,
        "results/report/report.html",


include: "rules/fetch.smk"
include: "rules/prepare.smk"
include: "rules/tokenizer.smk"
include: "rules/tokenize.smk"
include: "rules/preflight.smk"
include: "rules/base_train.smk"
include: "rules/mid_train.smk"
include: "rules/chat_sft.smk"
include: "rules/chat_rl.smk"
include: "rules/evaluate.smk"
include: "rules/contamination.smk"
include: "rules/report.smk"

refuse_unknown_rules()
