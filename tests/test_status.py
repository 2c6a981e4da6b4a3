"""`nanochat status` on files as stages leave them: states, SLURM, damaged files, a run that is written at that moment, speed."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_files import attempt, finished_run, training
from workspace import Workspace

from nanochat import cli
from nanochat.artifacts import exclusive, write_json, write_text
from nanochat.errors import UserError
from nanochat.history import unless_damaged
from nanochat.status import show
from nanochat.status.look import Line, Look, look
from nanochat.status.slurm import Queue

SOURCE = Path(__file__).parents[1] / "src"


def status(folder: Path, *flags: str, path: str | None = None, verb: str = "status") -> "subprocess.CompletedProcess[str]":
    """`nanochat status FLAGS` in `folder`, `path`: where squeue is looked for (default: nowhere)."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PATH": path if path is not None else "", "TZ": "UTC"}
    return subprocess.run(
        [sys.executable, "-m", "nanochat", verb, *flags], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def lines_of(folder: Path, *flags: str, path: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """(run, stage) -> line, as --json gives it."""
    done = status(folder, "--json", *flags, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    return {(line["run"], line["stage"]): line for line in json.loads(done.stdout)["stages"]}


def beat(folder: Path, age_s: float = 1.0, **changes: Any) -> None:
    """A heartbeat written `age_s` ago."""
    content = {"phase": "train", "step": 20, "steps": 40, "last_progress": time.time() - age_s, "tokens_per_s": 1000.0, "eta_s": 100.0}
    write_json(folder / "heartbeat.json", {**content, **changes})


def started(root: Path, state: str = "running", *, age_s: float = 1.0, owner: str | None = None, **facts: Any) -> Path:
    """results/tiny/base_train/ of an attempt that began an hour ago and was last seen `age_s` ago; `owner`: a host named in an owner file."""
    now = time.time()
    last = attempt(state, start=now - 3600, heartbeat=now - 600, **facts)
    training(root, "tiny", "base", {}, attempts=[attempt("failed", start=now - 9000, heartbeat=now - 8000), last], finished=False)
    folder = root / "results/tiny/base_train"
    beat(folder, age_s)
    if owner:
        write_json(folder / ".owner.json", {"host": owner, "pid": 1234, "job": facts.get("job")})
    return folder


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
    assert (line["state"], line["judged_by"], line["saved_step"], line["attempts"]) == ("stopped", "story", 20, 2)
    said = status(tmp_path).stdout.splitlines()
    assert said[0].startswith("tiny  base_train  stopped  step 20 of 40 (50.0%), 1,000 tokens/s, ended ")
    assert "state saved at step 20" in said[0] and "ETA" not in said[0]
    assert said[-1].startswith("to go on: tiny/base_train: ") and "run the same snakemake command again" in said[-1]


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


# --- what is missing, damaged or written just now ------------------------------------------------------------------


def test_an_empty_or_missing_results_folder_is_no_error(tmp_path: Path) -> None:
    for verb in ("status", "runs"):
        done = status(tmp_path, verb=verb)
        assert (done.returncode, done.stdout) == (0, "results: nothing has run yet, there is no such folder (--results gives another)\n")
    (tmp_path / "results").mkdir()
    assert status(tmp_path).stdout == "results: nothing has run yet\n"
    write_text(tmp_path / "file", "")
    done = status(tmp_path, "--results", "file")
    assert (done.returncode, done.stderr) == (2, "nanochat: error: --results=file: a file; give the folder that holds the runs\n")


@pytest.mark.parametrize(
    "damage", [b"", b'{"phase": "tr', b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"attempts": [{"start": "now"}], "stage": 3}', b"[" * 100_000]
)
@pytest.mark.parametrize("file", ["provenance.json", "heartbeat.json", "manifest.json", ".owner.json", "resume/a.json", "metrics.jsonl"])
def test_a_damaged_file_is_one_line_and_the_rest_is_shown(tmp_path: Path, file: str, damage: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    folder = started(tmp_path, owner=socket.gethostname())
    (folder / "resume").mkdir()
    (folder / file).write_bytes(damage)
    training(tmp_path, "whole", "base", {})
    for verb in ("status", "runs"):
        cli.main([verb, "--results", str(tmp_path / "results")])
        said = capsys.readouterr().out.splitlines()
        named = [line for line in said if line.startswith("damaged: ")]
        assert len(named) <= 1 and any(line.startswith("whole ") and " finished" in line for line in said)
        unread = damage in (b"", b'{"phase": "tr', b"\xff\xfe\x00")
        if (unread and file not in ("metrics.jsonl", "resume/a.json")) or (file in ("provenance.json", "manifest.json") and not damage.startswith(b"[[")):
            assert named and str(folder / file) in named[0], said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    damaged: list[str] = []
    assert unless_damaged(tmp_path.read_text, "nothing", damaged) == "nothing"
    assert damaged == [f"{tmp_path}: cannot be read (is a directory)"]
    assert unless_damaged((tmp_path / "vanished").read_text, "nothing", damaged) == "nothing"
    assert len(damaged) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "state", "start", "host", "job", "attempts"]), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {
    "provenance.json": ["stage", "attempts"],
    "attempt": ["start", "state", "heartbeat", "end", "wall_s", "world_size", "host", "job", "device", "device_name", "git", "tokens_per_s"],
    "heartbeat.json": ["phase", "step", "steps", "last_progress", "tokens_per_s", "eta_s", "ranks"],
    "manifest.json": ["stage", "counts", "config", "outputs"],
    ".owner.json": ["host", "pid", "job"],
    "metrics.jsonl": ["step", "loss", "tokens", "val_bpb"],
}


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_in_any_file_breaks_the_view(tmp_path: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    folder = started(tmp_path, data.draw(st.sampled_from(["running", "stopped", "finished"])))
    if data.draw(st.booleans()):
        training(tmp_path, "tiny", "base", {})
    for file in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3)):
        changed = data.draw(st.dictionaries(st.sampled_from(FIELDS[file]), ANYTHING, min_size=1, max_size=3))
        target = folder / ("provenance.json" if file == "attempt" else file)
        if file == "metrics.jsonl":
            target.write_text(json.dumps({"step": 21, "loss": 1.0, "tokens": 512, "val_bpb": 1.0, **changed}) + "\n")
            continue
        content = json.loads(target.read_text()) if target.is_file() else {}
        if file == "attempt" and isinstance(content, dict) and isinstance(content.get("attempts"), list) and content["attempts"]:
            content["attempts"][-1] = {**attempt(), **changed}
        elif isinstance(content, dict):
            content |= changed
        target.write_text(json.dumps(content) + "\n")
    for verb, *flags in (("status",), ("status", "--json"), ("runs",), ("runs", "--json")):
        cli.main([verb, "--results", str(tmp_path / "results"), *flags])
        said = capsys.readouterr().out
        assert "tiny" in said or verb == "runs"
        if flags:
            json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_run_that_is_written_at_that_moment_is_never_damaged(tmp_path: Path) -> None:
    folder = started(tmp_path)
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            while not stop.is_set():
                beat(folder)
                write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("running", start=time.time() - 60)]})
                text = json.dumps({"step": 30, "loss": 1.5, "tokens": 15360}) + "\n"
                log.write(text[: written % len(text)])  # cut anywhere
                log.flush()
                written += 1

    with exclusive(folder):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            looks = []
            while written < 50:
                looks.append(look(tmp_path / "results", queue=Queue()))
        finally:
            stop.set()
            writer.join()
    assert len(looks) > 20
    assert {seen.damaged for seen in looks} == {()}
    assert {seen.lines[0].state for seen in looks} == {"running"}


def test_who_looks_at_a_lock_keeps_no_writer_out(tmp_path: Path) -> None:
    """Looking takes the lock for microseconds: writers that start in them must not be refused."""
    folder = started(tmp_path)
    stop, looked = threading.Event(), 0

    def keep_looking() -> None:
        nonlocal looked
        while not stop.is_set():
            look(tmp_path / "results", queue=Queue())
            looked += 1

    watchers = [threading.Thread(target=keep_looking) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(200):
            with exclusive(folder):
                pass
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()
    assert looked > 20
    with exclusive(folder), pytest.raises(UserError, match="in use by"), exclusive(folder):
        pass


def test_fifty_runs_take_less_than_a_second(tmp_path: Path) -> None:
    """Processor time, which a busy machine does not stretch; half of the runs are in the middle of long training."""
    line = json.dumps({"step": 1, "loss": 2.5, "smoothed_loss": 2.5, "lr_multiplier": 1.0, "grad_norm": 0.1, "tokens": 524288, "tokens_per_s": 4e5})
    for number in range(50):
        for phase in ("base", "mid", "sft"):
            training(tmp_path, f"run{number:02d}", phase, {}, finished=number % 2 == 0)
        if number % 2:
            write_text(tmp_path / f"results/run{number:02d}/chat_sft/metrics.jsonl", '{"step": 0, "val_bpb": 1.5}\n' + (line + "\n") * 5000)
    for verb in ("status", "runs"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = status(tmp_path, verb=verb)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and sum(row.startswith("run") for row in done.stdout.splitlines()) >= 150
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert spent < 1.0, f"{verb}: {spent:.2f} s"


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    program = "import sys; from nanochat.cli import main; main(sys.argv[1:]); sys.exit(','.join(m for m in ('torch', 'numpy', 'rich') if m in sys.modules))"
    for verb in ("status", "runs"):
        done = subprocess.run(
            [sys.executable, "-c", program, verb], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True
        )
        assert done.stderr.strip() == "", done.stderr


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
    ended = tuple(Line(f"r{n}", "base_train", "failed" if n == 5 else "stopped", "story") for n in range(6))
    assert Look(Path("results"), 0.0, ended).go_on == (
        "r0/base_train, r1/base_train, r2/base_train, r3/base_train and 2 more: unless a snakemake is at it, see the log of what failed, "
        "then run the same snakemake command again; it goes on from the last saved state"
    )
    assert Look(Path("results"), 0.0, (Line("r", "base_train", "running", "lock"),)).go_on is None
