"""The real Snakefile: what it builds, its targets, its speed, its locks and its sentences for wrong experiments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workspace import REPOSITORY, Workspace

pytestmark = pytest.mark.workflow

FETCHED = ("wikipedia_summaries", "identity_questions", "gpt2_ranks", "cl100k_ranks")
TRAINED = ("config.json", "model.safetensors", "model.json", "manifest.json", "provenance.json", "metrics.jsonl", "heartbeat.json")


def test_the_miniature_leaves_every_promised_file(finished: Workspace) -> None:
    promised = [f"resources/{source}/all/manifest.json" for source in FETCHED]
    promised += [f"results/tokenizers/tiny/{name}.json" for name in ("tokenizer", "token_bytes", "manifest", "evaluation")]
    for split in ("train", "validation"):
        promised += [f"results/tokens/tiny.tiny/wikipedia_summaries.{split}/{name}" for name in ("tokens.bin", "manifest.json")]
    promised += [f"results/tiny/{stage}/{name}" for stage in ("base_train", "mid_train", "chat_sft") for name in TRAINED]
    promised += [f"results/tiny/scores/{phase}/bpb.json" for phase in ("base", "mid", "sft")]
    promised += ["results/tiny/scores/sft/arithmetic.json", "results/report/report.md", "results/report/report.html"]
    assert [name for name in promised if not finished.path(name).is_file()] == []
    assert list(finished.path("results").glob("*/*/resume")) == []


def test_each_score_names_its_task_and_has_a_value_or_a_reason(finished: Workspace) -> None:
    files = sorted(finished.path("results").glob("tiny/scores/*/*.json"))
    assert len(files) == 5
    for file in files:
        score = json.loads(file.read_text(encoding="utf-8"))
        assert (score["phase"], score["task"]) == (file.parent.name, file.stem)
        assert (score["score"] is None) == (score["unavailable"] is not None)


def test_every_job_leaves_a_log_a_history_and_a_benchmark(finished: Workspace) -> None:
    logs = {file.relative_to(finished.path("logs")).with_suffix("") for file in finished.path("logs").rglob("*.log")}
    histories = {file.relative_to(finished.path("logs")).with_suffix("") for file in finished.path("logs").rglob("*.history")}
    benchmarks = {file.relative_to(finished.path("benchmarks")).with_suffix("") for file in finished.path("benchmarks").rglob("*.tsv")}
    assert len(logs) == 17
    assert logs == histories == benchmarks


def test_a_finished_workflow_says_that_nothing_is_to_be_done(finished: Workspace) -> None:
    assert finished.plan() == set()
    assert "Nothing to be done" in finished.build()


def test_the_finished_model_answers(finished: Workspace) -> None:
    done = finished.nanochat("chat", "--run", "tiny", "-p", "Who are you?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an answer, however little the miniature has learnt"
    assert "run tiny, phase sft" in done.stderr and "Traceback" not in done.stderr
    other = finished.nanochat("chat", "--run", "tiny", "-i", "base", "-p", "Who are you?")
    assert done.stdout != other.stdout, "each phase answers by itself"


def test_the_cure_for_a_damaged_model_makes_it_again(workspace: Workspace) -> None:
    """Deleting the manifest alone would rebuild nothing: what follows from it is there."""
    weights = workspace.path("results/tiny/chat_sft/model.safetensors")
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    said = workspace.nanochat("chat", "--run", "tiny", "-p", "Who are you?").stderr
    cure = re.search(r"damaged .*; delete (\S+) and make it again: (snakemake --cores) all (\S+) \(with --configfile", said)
    assert cure, said
    workspace.path(cure[1]).unlink()
    assert workspace.plan() == set()
    assert workspace.plan(cure[3]) == {"chat_sft tiny"}
    workspace.build(cure[3])
    assert weights.read_bytes() == intact
    assert workspace.nanochat("chat", "--run", "tiny", "-p", "Who are you?").returncode == 0


def test_a_lost_optimizer_is_missed_by_nobody_but_a_warm_start(workspace: Workspace) -> None:
    for stage in ("base_train", "mid_train"):
        workspace.path(f"results/tiny/{stage}/optimizer.safetensors").unlink()
    assert workspace.nanochat("chat", "--run", "tiny", "-i", "base", "-p", "The").returncode == 0
    workspace.path("results/tiny/scores/mid/bpb.json").unlink()
    setting = put(*RUN, "chat_sft", "warm_start_optimizer", to=False)
    workspace.configure(setting)
    said = workspace.build("evaluate")
    assert "rule mid_train" not in said and "rule chat_sft" in said


def test_the_history_keeps_what_the_log_of_an_attempt_loses(workspace: Workspace) -> None:
    log, history = (workspace.path(f"logs/evaluate/tiny.base.bpb.{name}") for name in ("log", "history"))
    first = log.read_text(encoding="utf-8")
    workspace.path("results/tiny/scores/base/bpb.json").unlink()
    workspace.build()
    assert history.read_text(encoding="utf-8").startswith(first)
    assert history.read_text(encoding="utf-8").endswith(log.read_text(encoding="utf-8"))
    assert len(history.read_text(encoding="utf-8")) > len(first)


def test_a_second_snakemake_is_refused_while_the_first_one_runs(workspace: Workspace) -> None:
    workspace.path("results/tiny/chat_sft/model.safetensors").unlink()
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", "sft"]
    with workspace.path("first.txt").open("w", encoding="utf-8") as said:
        first = subprocess.Popen(command, cwd=workspace.folder, env=workspace.environment(), stdout=said, stderr=said)
        wait_for(lambda: any(workspace.path(".snakemake/locks").glob("*")))
        second = workspace.snakemake("--cores", "1")
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout + second.stderr
        assert first.wait(timeout=200) == 0
    assert workspace.plan("sft") == set()


def test_a_stage_that_was_told_to_stop_is_retried_and_goes_on(workspace: Workspace) -> None:
    """Exit code 75 means: run me again. The declared outputs are deleted in between, the resume state is not."""
    workspace.configure(put(*RUN, "base_train", "horizon", to={"steps": 200, "batch_tokens": 512}))
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", "--retries", "1", "base"]
    said = workspace.path("said.txt")
    folder = workspace.path("results/tiny/base_train")
    with said.open("w", encoding="utf-8") as file:
        job = subprocess.Popen(command, cwd=workspace.folder, env=workspace.environment(), stdout=file, stderr=file)
        wait_for(lambda: "step 2/200" in said.read_text(encoding="utf-8"))
        os.kill(json.loads((folder / ".owner.json").read_text(encoding="utf-8"))["pid"], signal.SIGUSR1)
        assert job.wait(timeout=400) == 0, said.read_text(encoding="utf-8")[-5000:]
    assert "exit status 75" in said.read_text(encoding="utf-8")
    story = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert [attempt["state"] for attempt in story["attempts"]][-2:] == ["stopped", "finished"]
    assert not (folder / "resume").exists()
    history = workspace.path("logs/base_train/tiny.history").read_text(encoding="utf-8")
    assert "SIGUSR1" in history
    assert "step 200/200" in history
    assert "SIGUSR1" not in workspace.path("logs/base_train/tiny.log").read_text(encoding="utf-8")


def test_a_log_is_complete_when_every_process_of_the_job_is_told_to_stop(tmp_path: Path) -> None:
    """A cluster signals all processes at once; the one that keeps the log must outlive the one that saves its state."""
    slow = "import signal, sys, time\n"
    slow += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print('saved', flush=True), sys.exit(75)))\n"
    slow += "print('started', flush=True)\ntime.sleep(60)"
    command = f'source "{REPOSITORY}/rules/shell.sh" /bin; "{sys.executable}" -c "$PROGRAM" 2>&1 | keep_log job.log'
    job = subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PROGRAM": slow}, start_new_session=True, stderr=subprocess.PIPE)
    log = tmp_path / "job.log"
    wait_for(lambda: log.exists() and "started" in log.read_text(encoding="utf-8"))
    os.killpg(job.pid, signal.SIGTERM)
    _, said = job.communicate(timeout=30)
    assert said.decode().splitlines() == ["--- job", "started", "saved"]
    assert log.read_text(encoding="utf-8") == (tmp_path / "job.history").read_text(encoding="utf-8") == "started\nsaved\n"


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("ranks 0", "1"),
        ("ranks 1", "1"),
        ("ranks 8", "8"),
        ("device 0 auto", "auto"),
        ("device 1 auto", "cuda"),
        ("device 8 auto", "cuda"),
        ("device 8 cpu", "cpu"),
        ("threads_per_rank 2 0", "2"),
        ("threads_per_rank 64 8", "8"),
        ("threads_per_rank 4 8", "1"),
        ("seconds_to_train 60", "3420"),
        ("seconds_to_train 1", "40"),
        ("in_seconds 0:08", "8"),
        ("in_seconds 12:34", "754"),
        ("in_seconds 1:02:03", "3723"),
        ("in_seconds 2-03:04:05", "183845"),
        ("in_seconds UNLIMITED", "999999999"),
    ],
)
def test_a_rule_turns_its_resources_into_flags(call: str, result: str) -> None:
    done = subprocess.run(["bash", "-c", f'source "{REPOSITORY}/rules/shell.sh" /bin; {call}'], capture_output=True, text=True, check=True, env=outside_slurm())
    assert done.stdout.strip() == result


@pytest.mark.parametrize(
    ("answer", "seconds", "warning"),
    [
        ("echo 40:00", "2220", ""),  # 40 minutes less 5% of an hour
        ("echo 1-00:00:00", "3420", ""),  # the rule's own budget is smaller
        ("echo UNLIMITED", "3420", ""),
        ("echo 0:20", "1", ""),
        ("echo INVALID", "3420", "squeue does not say how much time job 7 has left (INVALID)"),
        ("exit 1", "3420", "squeue does not say how much time job 7 has left (no answer)"),
    ],
)
def test_in_a_job_the_clock_of_slurm_counts_where_it_leaves_less(tmp_path: Path, answer: str, seconds: str, warning: str) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    squeue.chmod(0o755)
    command = f'source "{REPOSITORY}/rules/shell.sh" "{tmp_path}"; seconds_to_train 60'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env={**outside_slurm(), "SLURM_JOB_ID": "7"})
    assert done.stdout.strip() == seconds
    assert warning in done.stderr and bool(warning) == bool(done.stderr)


@pytest.mark.parametrize("given", ["", "1"])
def test_only_fetch_may_use_the_hub_and_only_where_the_user_may(given: str) -> None:
    command = f'source "{REPOSITORY}/rules/shell.sh" /bin; echo "$HF_HUB_OFFLINE"; HF_HUB_OFFLINE="$hub_offline" bash -c \'echo "$HF_HUB_OFFLINE"\''
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": given})
    assert done.stdout.splitlines() == ["1", given]
    rules = {file.stem: file.read_text(encoding="utf-8") for file in (REPOSITORY / "rules").glob("*.smk")}
    assert [name for name, text in rules.items() if 'HF_HUB_OFFLINE="$hub_offline"' in text] == ["fetch"]


def outside_slurm() -> dict[str, str]:
    """This environment, as it is outside of a SLURM job."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- targets, speed, lint ---------------------------------------------------------------------------------------------

READY = {"fetch", "preflight", "tokenizer", "tokenize"}  # what comes before training


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("fetch", {"fetch"}),
        ("tokenizer", {"fetch", "tokenizer"}),
        ("tokens", {"fetch", "tokenizer", "tokenize"}),
        ("base", {*READY, "base_train"}),
        ("mid", {*READY, "base_train", "mid_train"}),
        ("sft", {*READY, "base_train", "mid_train", "chat_sft"}),
        ("evaluate", {*READY, "base_train", "mid_train", "chat_sft", "evaluate"}),
        ("report", {*READY, "base_train", "mid_train", "chat_sft", "evaluate", "report"}),
    ],
)
def test_a_target_plans_its_stage_and_those_before_it(empty_workspace: Workspace, target: str, stages: set[str]) -> None:
    assert {job.split()[0] for job in empty_workspace.plan(target)} == stages


def test_fetching_plans_all_that_comes_from_the_internet(empty_workspace: Workspace) -> None:
    whole = {job for job in empty_workspace.plan() if job.startswith("fetch ")}
    assert empty_workspace.plan("fetch") == whole == {f"fetch {source} all" for source in FETCHED}


def test_lint_finds_nothing(empty_workspace: Workspace) -> None:
    done = empty_workspace.snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dry_run_of_the_quickstart_takes_seconds() -> None:
    def fastest(*arguments: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([Path(sys.executable).with_name("snakemake"), *arguments], cwd=REPOSITORY, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return min(times)

    # of which 1.2 s are snakemake's own imports on an idle machine; twice that again for a busy one
    assert fastest("--dry-run", "--quiet", "all") < max(3.0, 2.5 * fastest("--version"))


@pytest.mark.parametrize("experiment", sorted(path.name for path in REPOSITORY.glob("configs/*.yaml")))
def test_every_experiment_can_be_planned(empty_workspace: Workspace, experiment: str) -> None:
    stages = {job.split()[0] for job in empty_workspace.plan("--configfile", str(REPOSITORY / "configs" / experiment))}
    assert stages >= {"fetch", "tokenizer", "tokenize", "base_train", "chat_sft", "evaluate", "report"}


@pytest.mark.parametrize("profile", ["slurm", "profiles/gpu"])
def test_a_profile_brings_its_experiment_and_its_gpus(empty_workspace: Workspace, profile: str) -> None:
    done = empty_workspace.snakemake("--profile", profile, "--dry-run", "base")
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^rule base_train:\n(?:    .*\n)*?    resources: (.*)$", done.stdout, flags=re.MULTILINE)
    assert len(jobs) == 1
    assert "gpu=8" in jobs[0]
    assert "results/d20/base_train/model.safetensors" in done.stdout


def test_another_experiment_is_not_mixed_with_the_default_one(empty_workspace: Workspace) -> None:
    jobs = empty_workspace.plan("--configfile", str(REPOSITORY / "configs" / "laptop.yaml"))
    assert "base_train laptop" in jobs
    assert not any("tiny" in job for job in jobs)


def test_a_value_on_the_command_line_lies_on_top_of_the_file(empty_workspace: Workspace) -> None:
    done = empty_workspace.snakemake("--dry-run", "--config", "report={runs: [absent]}")
    assert done.returncode != 0
    assert "report.runs='absent'" in done.stderr


# --- wrong experiments ------------------------------------------------------------------------------------------------


def put(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets one value."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


RUN = ("runs", "tiny")
WRONG = [
    (put(*RUN, "base_train", "dept", to=4), "runs.tiny.base_train.dept"),
    (put(*RUN, "base_train", "depth", to=0), "runs.tiny.base_train.depth"),
    (put(*RUN, "base_train", "depth", to=-1), "runs.tiny.base_train.depth"),
    (put(*RUN, "base_train", "depth", to=2.5), "runs.tiny.base_train.depth"),
    (put(*RUN, "base_train", "depth", to="four"), "runs.tiny.base_train.depth"),
    (put("tokenizers", "tiny", "vocab_size", to=264), "tokenizers.tiny.vocab_size"),
    (put(*RUN, "corpus", to="absent"), "runs.tiny.corpus"),
    (put(*RUN, "tokenizer", to="absent"), "runs.tiny.tokenizer"),
    (put(*RUN, "recipe", to="absent"), "runs.tiny.recipe"),
    (put("corpora", "tiny", "sources", to=["absent"]), "corpora.tiny.sources"),
    (put("corpora", "tiny", "sources", to=["news_articles"]), "corpora.tiny.sources"),
    (put(*RUN, "evaluate", "absent", to={}), "runs.tiny.evaluate.absent"),
    (put(*RUN, "mid_train", "mixture", to=[{"task": "absent"}]), "runs.tiny.mid_train.mixture"),
    (put(*RUN, "base_train", "horizon", "batch_tokens", to=500), "runs.tiny.base_train.horizon.batch_tokens"),
    (put("runs", to={}), "runs"),
    (lambda content: content.pop("corpora"), "corpora"),
]


@pytest.mark.parametrize(("change", "key"), WRONG, ids=[f"{index}-{key}" for index, (_, key) in enumerate(WRONG)])
def test_a_wrong_experiment_ends_with_a_sentence_that_names_the_key(empty_workspace: Workspace, change: Callable[[dict[str, Any]], None], key: str) -> None:
    empty_workspace.configure(change)
    done = empty_workspace.snakemake("--dry-run")
    assert done.returncode != 0
    assert re.search(rf"^nanochat: error: config\.yaml: {re.escape(key)}\b", done.stderr, flags=re.MULTILINE), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_file_given_by_name_is_named(empty_workspace: Workspace) -> None:
    empty_workspace.configure(put(*RUN, "base_train", "depth", to=0))
    empty_workspace.path("config.yaml").rename(empty_workspace.path("mine.yaml"))
    done = empty_workspace.snakemake("--dry-run", "--configfile", "mine.yaml")
    assert done.returncode != 0
    assert "mine.yaml: runs.tiny.base_train.depth=0" in done.stderr


@pytest.mark.parametrize("text", ["", "- a list\n", "runs: [\n", "runs:\n\ttiny: 1\n"], ids=["empty", "list", "unclosed", "tab"])
def test_a_file_that_is_no_experiment_is_one_sentence(empty_workspace: Workspace, text: str) -> None:
    empty_workspace.path("config.yaml").write_text(text, encoding="utf-8")
    done = empty_workspace.snakemake("--dry-run")
    assert done.returncode != 0
    assert "nanochat: error: config.yaml: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_an_experiment_says_so(empty_workspace: Workspace) -> None:
    empty_workspace.path("config.yaml").unlink()
    done = empty_workspace.snakemake("--dry-run")
    assert done.returncode != 0
    assert "nanochat: error: config.yaml: no such experiment file" in done.stderr
