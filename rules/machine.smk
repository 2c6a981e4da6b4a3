"""What the rules need to know of the machine: what the profile says of it, and how long each job takes there. Functions only."""

import os
import sys

from snakemake.resources import Resources

from nanochat.errors import UserError
from nanochat.plan.machine import MEASURED_KEY, read_facts
from nanochat.plan.planner import Planner
from nanochat.plan.work import TRAINING
from snakemake_logger_plugin_nanochat import watch


def plan_on_this_machine() -> Planner:
    """The planner of this experiment under this profile. A wrong value of the profile ends the program with one sentence."""
    planner = Planner(EXPERIMENT, facts_of, cores=cores_of, reads_results=workflow.is_main_process)
    if workflow.is_main_process:
        try:
            for name in (*TRAINING, "evaluate_task", "prepare_judge", "prepare", "tokenizer_train", "tokenize"):
                planner.facts(name)
        except UserError as error:
            end_with([str(error)])
        hand_down_rates(planner)
    watch(workflow, planner)
    return planner


def refuse_unknown_rules() -> None:
    """End the program where set-resources or set-threads name what makes nothing here. It would be ignored, and a trainer get no GPU."""
    settings, makers = workflow.resource_settings, [rule.name for rule in workflow.rules if rule.output]
    named = {"set-resources": settings._parsed_overwrite_resources, "set-threads": settings._parsed_overwrite_threads}
    wrong = [f"profile: {key}.{name}: no such rule" for key, rules in named.items() for name in rules if name not in makers]
    if wrong and workflow.is_main_process:
        end_with(f"{sentence}; the rules are {', '.join(makers)}" for sentence in wrong)


def resources_of(rule: str) -> dict:
    """What the profile says of a rule's jobs: name -> value as it stands there; set-resources above default-resources."""
    settings = workflow.resource_settings
    defaults = {name: value.raw for name, value in settings._parsed_default_resources.items() if name != "gpu"}  # which rules declare
    return defaults | {name: value.raw for name, value in settings._parsed_overwrite_resources.get(rule, {}).items()}


def facts_of(rule: str):
    """The machine of a rule's jobs."""
    return read_facts(rule, resources_of(rule), price_of_experiment=EXPERIMENT.report.gpu_hour_price)


def cores_of(rule: str) -> int:
    """Cores of one job: its threads, on this machine at most as many as there are."""
    settings = workflow.resource_settings
    threads = settings._parsed_overwrite_threads.get(rule) or workflow.get_rule(rule).resources["_cores"]
    wanted = threads.value if not threads.is_evaluable() else 1
    if settings.nodes is not None:  # jobs go to another machine
        return wanted
    given = settings.cores if settings.cores and not workflow.output_settings.dryrun else os.cpu_count()
    return max(1, min(wanted, given or 1, os.cpu_count() or 1))


def hand_down_rates(planner: Planner) -> None:
    """Add the measured speeds to what the profile says, which reaches every job: it then computes the run time that it was submitted with."""
    for name in TRAINING:
        if planner.facts(name).runtime_limit is not None and (measured := planner.measured(name)) is not None:
            given = workflow.resource_settings._parsed_overwrite_resources.setdefault(name, Resources())
            given[MEASURED_KEY] = round(measured * 1000)


def runtime_of(rule: str):
    """The resource `runtime` of a rule, in minutes. One that a profile sets in set-resources takes its place."""
    return lambda wildcards: PLANNER.runtime(rule, dict(wildcards.items()))


def pace_of(stage: str):
    """Flag that tells a trainer how fast it is expected to be; nothing where nobody knows. Takes `output`, so that it reruns nothing."""

    def flag(wildcards, output) -> str:
        speed = PLANNER.expected_tokens_per_s(stage, wildcards.run)
        return f"--expected-tokens-per-s {speed}" if speed else ""

    return flag


def end_with(sentences) -> None:
    """Say what is wrong and end with exit code 2."""
    for sentence in sentences:
        print(f"nanochat: error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)
