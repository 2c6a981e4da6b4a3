"""`nanochat status` on files as stages leave them: states, other hosts, SLURM, flags."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
from report_files import attempt, finished_run, training
from status_files import beat, lines_of, started, status
from workspace import Workspace

from nanochat.artifacts import exclusive, write_json, write_text
from nanochat.status import show
from nanochat.status.look import Line, Look, look


@pytest.mark.workflow
def test_a_finished_experiment_is_shown_from_its_own_files(finished: Workspace) -> None:
    seen = look(finished.path("results"))
    by_stage = {line.stage: line for line in seen.lines}
    assert list(by_stage) == ["tokenizer", "tokenize", "base_train", "mid_train", "chat_sft"]
    assert {line.state for line in seen.lines} == {"finished"}
    base = json.loads(finished.path("results/tiny/base_train/manifest.json").read_text())["counts"]
    line = by_stage["base_train"]
    assert (line.step, line.steps, line.loss, line.val_bpb) == (6, 6, base["final_loss"], base["final_val_bpb"])
    assert line.tokens_per_s and line.log and Path(line.log).is_file()
    assert by_stage["tokenize"].chunks == {"finished": 2}
    assert seen.scores == {"tiny": len(list(finished.path("results/tiny/scores").rglob("*.json")))}
    assert (seen.damaged, seen.go_on) == ((), None)


def test_attempts_that_ended_are_shown_with_what_goes_on(tmp_path: Path) -> None:
    folder = started(tmp_path, "stopped")
    write_json(folder / "resume/a.json", {"counters": {"step": 18}})
    write_json(folder / "resume/b.json", {"counters": {"step": 20}})
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["state"], line["judged_by"], line["saved_step"], line["attempts"]) == ("stopped", "provenance", 20, 2)
    said = status(tmp_path).stdout.splitlines()
    assert said[0].startswith("tiny  base_train  stopped  step 20 of 40 (50.0%), 1,000 tokens/s, ended ")
    assert "state saved at step 20" in said[0] and "ETA" not in said[0]
    assert said[-1].startswith("to go on: tiny/base_train: ") and "run the same snakemake command again" in said[-1]


def test_reinforcement_learning_shows_reward_and_pass_at_1(tmp_path: Path) -> None:
    folder = started(tmp_path, "stopped").rename(tmp_path / "results/tiny/chat_rl")
    lines = [{"step": 0, "pass@1": 0.25}, {"step": 1, "loss": 0.1, "tokens": 90, "reward": 0.5}, {"step": 2, "reward": 1.0}]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    line = lines_of(tmp_path)["tiny", "chat_rl"]
    assert (line["reward"], line["pass_at_1"], line["val_bpb"]) == (1.0, 0.25, None)
    assert "loss 0.1000, reward 1.000, validation pass@1 0.250" in status(tmp_path).stdout


def test_bad_steps_are_shown_while_it_trains_and_when_it_is_finished(tmp_path: Path) -> None:
    folder = started(tmp_path, "stopped")
    assert lines_of(tmp_path)["tiny", "base_train"]["bad_steps"] is None
    beat(folder, bad_steps=3, bad_steps_skipped=2)
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["bad_steps"], line["bad_steps_skipped"]) == (3, 2)
    seen = look(tmp_path / "results")
    assert ", 3 bad steps, 2 of them skipped" in show.lines(seen)[0]
    manifest = training(tmp_path, "tiny", "base", {})
    content = json.loads(manifest.read_text())
    write_json(manifest, {**content, "counts": {**content["counts"], "bad_steps": 1}})
    [seen_line] = look(tmp_path / "results").lines
    assert seen_line.state == "finished" and show.bad_steps(seen_line) == ["1 bad step"]


def test_a_failed_stage_says_the_last_words_of_its_log(tmp_path: Path) -> None:
    started(tmp_path, "failed")
    write_text(tmp_path / "logs/base_train/tiny.log", "12:00:00 step 3\nnanochat: error: step 4: \x1b[31mnan; lower the rates\nRuleException\n")
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert line["why"] == "error: step 4: [31mnan; lower the rates"
    os.utime(tmp_path / "logs/base_train/tiny.log", (1.0, 1.0))  # of another attempt
    assert lines_of(tmp_path)["tiny", "base_train"]["why"] is None


def test_a_running_record_without_a_holder_is_interrupted_and_with_one_is_running(tmp_path: Path) -> None:
    folder = started(tmp_path)
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["state"], line["judged_by"], line["eta_s"]) == ("interrupted", "lock", None)
    with exclusive(folder, "77"):
        line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["state"], line["judged_by"], line["job"], line["host"]) == ("running", "lock", "77", socket.gethostname())
    assert (line["phase"], line["step"], line["steps"]) == ("train", 20, 40)
    assert 90 < line["eta_s"] < 100  # less what has passed since the beat


def test_a_held_lock_without_progress_is_stalled_unless_steps_are_that_slow(tmp_path: Path) -> None:
    folder = started(tmp_path, age_s=700)
    now = time.time()
    with exclusive(folder):
        os.utime(folder / ".owner.json", (now - 3600, now - 3600))
        write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("running", start=now - 3600, heartbeat=now - 3000)]})
        line = look(tmp_path / "results").lines[0]
        assert line.state == "stalled" and line.why and line.why.startswith("no progress for 11m4") and f"process {os.getpid()} on " in line.why
        assert look(tmp_path / "results", stalled_after_s=800).lines[0].state == "running"
        beat(folder, 700, tokens_per_s=5.0)  # 512 tokens a step: 102 s each
        assert look(tmp_path / "results").lines[0].state == "running"
        beat(folder, 1100, tokens_per_s=5.0)
        assert look(tmp_path / "results").lines[0].state == "stalled"


def test_a_beat_of_an_earlier_attempt_is_not_where_this_one_stands(tmp_path: Path) -> None:
    folder = started(tmp_path, age_s=8000)
    with exclusive(folder):
        line = look(tmp_path / "results").lines[0]
    assert (line.state, line.phase, line.step) == ("running", "start-up", None)


def test_unknown_fields_of_a_heartbeat_are_handed_on(tmp_path: Path) -> None:
    beat(started(tmp_path), ranks={"1": {"step": 19}})
    assert lines_of(tmp_path)["tiny", "base_train"]["heartbeat"]["ranks"] == {"1": {"step": 19}}


def test_a_folder_without_a_story_and_a_lost_manifest_wait(tmp_path: Path) -> None:
    (tmp_path / "results/new/base_train").mkdir(parents=True)
    training(tmp_path, "old", "base", {})
    (tmp_path / "results/old/base_train/manifest.json").unlink()
    lines = lines_of(tmp_path)
    assert (lines["new", "base_train"]["state"], lines["new", "base_train"]["why"]) == ("waiting", "not started yet")
    assert lines["old", "base_train"]["state"] == "waiting" and "manifest.json is gone" in lines["old", "base_train"]["why"]


def test_chunks_of_a_corpus_are_one_line_in_the_state_that_matters_most(tmp_path: Path) -> None:
    root = tmp_path / "results/tokens/web.small"
    for name, state in (("a", "running"), ("b", "failed")):
        write_json(root / name / "provenance.json", {"stage": "tokenize", "attempts": [attempt(state)]})
    finished_run(tmp_path)
    with exclusive(root / "a"):
        lines = lines_of(tmp_path)
    assert lines["web.small", "tokenize"]["chunks"] == {"failed": 1, "running": 1}
    assert lines["web.small", "tokenize"]["state"] == "failed"
    assert lines["tiny.tiny", "tokenize"]["state"] == "finished"


# --- other hosts and SLURM -------------------------------------------------------------------------------------------


def test_a_lock_of_another_host_is_judged_by_the_heartbeat_and_the_line_says_so(tmp_path: Path) -> None:
    folder = started(tmp_path, owner="node7")
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["state"], line["judged_by"], line["why"]) == ("running", "heartbeat", "the lock of node7 cannot be seen from here")
    write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("running", start=1.0, heartbeat=1.0)]})
    beat(folder, 4000)
    line = lines_of(tmp_path)["tiny", "base_train"]
    assert (line["state"], line["judged_by"]) == ("interrupted", "heartbeat")
    assert line["why"] == "no progress for 1h06m; the lock of node7 cannot be seen from here"


def commands(folder: Path, **scripts: str) -> str:
    """A folder with commands of these names, as a PATH."""
    for name, script in scripts.items():
        write_text(folder / name, f"#!/bin/sh\necho {name} \"$@\" >> '{folder}/asked'\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/bin:/usr/bin"


@pytest.mark.parametrize(
    ("squeue", "sacct", "state", "job_state", "words"),
    [
        ("echo '4242|RUNNING|c|/x|None'", "exit 1", "running", "RUNNING", None),
        ("echo '4242|PENDING|c|/x|Priority'", "exit 1", "waiting", "PENDING", "job 4242 PENDING (Priority)"),
        ("true", "echo '4242|CANCELLED by 0'", "interrupted", "CANCELLED by 0", "job 4242 CANCELLED by 0"),
        ("true", "echo '4242|NODE_FAIL'", "interrupted", "NODE_FAIL", "job 4242 NODE_FAIL"),
        ("true", "echo 'accounting storage is disabled' >&2; exit 1", "running", None, "the lock of node7 cannot be seen from here"),
    ],
)
def test_slurm_decides_about_a_job_on_another_host(tmp_path: Path, squeue: str, sacct: str, state: str, job_state: str | None, words: str | None) -> None:
    started(tmp_path, owner="node7", job="4242")
    path = commands(tmp_path / "bin", squeue=squeue, sacct=sacct)
    line = lines_of(tmp_path, path=path)["tiny", "base_train"]
    assert (line["state"], line["job"], line["job_state"], line["why"]) == (state, "4242", job_state, words)
    assert status(tmp_path, path=path).stdout.splitlines()[0].count("job 4242") == 1
    if job_state is None:
        said = status(tmp_path, path=path).stdout
        assert "state of SLURM jobs: not available (not in the queue, and sacct failed (accounting storage is disabled))" in said


def test_a_job_that_runs_without_a_sign_of_life_is_stalled(tmp_path: Path) -> None:
    folder = started(tmp_path, owner="node7", job="4242")
    write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("running", start=1.0, heartbeat=1.0, job="4242")]})
    beat(folder, 4000)
    line = lines_of(tmp_path, path=commands(tmp_path / "bin", squeue="echo '4242|RUNNING|c|/x|None'"))["tiny", "base_train"]
    assert (line["state"], line["why"]) == ("stalled", "no progress for 1h06m, and job 4242 RUNNING")


def test_a_job_that_snakemake_has_queued_again_is_waited_for(tmp_path: Path) -> None:
    """The next attempt has another number: it is known by its rule, its run and the folder that snakemake was called in."""
    started(tmp_path, "stopped", job="4242")
    rows = [f"4243|PENDING|rule_base_train_wildcards_tiny|{tmp_path}|Resources", f"4244|PENDING|rule_chat_sft_wildcards_tiny|{tmp_path}|Dependency"]
    rows += ["4245|PENDING|rule_mid_train_wildcards_tiny|/elsewhere|None"]
    path = commands(tmp_path / "bin", squeue="\n".join(f"echo '{row}'" for row in rows), sacct="echo '4242|COMPLETED'")
    lines = lines_of(tmp_path, path=path)
    assert {stage: (line["state"], line["why"]) for (_, stage), line in lines.items()} == {
        "base_train": ("waiting", "job 4243 PENDING (Resources)"),
        "chat_sft": ("waiting", "job 4244 PENDING (Dependency)"),
    }


def test_slurm_is_asked_only_where_there_are_job_ids(tmp_path: Path) -> None:
    path = commands(tmp_path / "bin", squeue="true", sacct="true")
    started(tmp_path, "stopped", job="--help")
    status(tmp_path, path=path)
    assert not (tmp_path / "bin/asked").exists()
    started(tmp_path, "stopped", job="4242_7")
    status(tmp_path, path=path)
    asked = (tmp_path / "bin/asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["squeue", "sacct"] and "--jobs=4242_7" in asked[1]


def test_a_slurm_that_is_missing_or_hangs_costs_seconds_and_is_named(tmp_path: Path) -> None:
    started(tmp_path, "stopped", job="4242")
    assert "not available (squeue not found on this machine)" in status(tmp_path).stdout
    began = time.monotonic()
    said = status(tmp_path, path=commands(tmp_path / "bin", squeue="sleep 300")).stdout
    assert "not available (squeue gave no answer within 4 s)" in said and "tiny  base_train  stopped" in said
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--every", "0"), "argument --every: 0 is not a number above 0"),
        (("--stalled-after", "soon"), "argument --stalled-after: 'soon' is not a number"),
        (("--every", "3"), "--every=3: only --watch looks more than once; add --watch"),
        (("--result", "x"), "unrecognized arguments: --result x"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    done = status(tmp_path, *flags)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (9.6, "10 s"), (125, "2m05s"), (7300, "2h01m"), (86_400 * 9.2, "9 days")])
def test_ages_in_words(seconds: float, words: str) -> None:
    assert show.age(seconds) == words


def test_many_ended_stages_are_named_in_short() -> None:
    ended = tuple(Line(f"r{n}", "base_train", "failed" if n == 5 else "stopped", "provenance") for n in range(6))
    assert Look(Path("results"), 0.0, ended).go_on == (
        "r0/base_train, r1/base_train, r2/base_train, r3/base_train and 2 more: unless a snakemake is at it, see the log of what failed, "
        "then run the same snakemake command again; it goes on from the last saved state"
    )
    assert Look(Path("results"), 0.0, (Line("r", "base_train", "running", "lock"),)).go_on is None
