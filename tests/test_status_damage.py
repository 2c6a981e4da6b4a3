"""`nanochat status` and `nanochat runs` where files are missing, damaged, written at that moment, or very many."""

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
from report_files import attempt, training
from status_files import SOURCE, beat, started, status

from nanochat import cli
from nanochat.artifacts import exclusive, write_json, write_text
from nanochat.errors import UserError
from nanochat.history import unless_damaged
from nanochat.status import stages
from nanochat.status.holder import holder_of
from nanochat.status.look import look
from nanochat.status.slurm import Queue


def test_an_empty_or_missing_results_folder_is_no_error(tmp_path: Path) -> None:
    for verb in ("status", "runs"):
        done = status(tmp_path, verb=verb)
        assert (done.returncode, done.stdout) == (0, "results: nothing has run yet, there is no such folder (--results gives another)\n")
    (tmp_path / "results").mkdir()
    assert status(tmp_path).stdout == "results: nothing has run yet\n"
    write_text(tmp_path / "file", "")
    done = status(tmp_path, "--results", "file")
    assert (done.returncode, done.stderr) == (2, "nanochat: error: --results=file: a file; give the folder that holds the runs\n")


def test_a_manifest_that_cannot_be_read_is_not_said_to_be_made_again(tmp_path: Path) -> None:
    """Snakemake finds the file, takes the stage for done and lets the next one fail."""
    training(tmp_path, "d20", "base", {})
    manifest = tmp_path / "results/d20/base_train/manifest.json"
    manifest.write_text('{"stage', encoding="utf-8")
    assert "waiting" in (said := status(tmp_path).stdout) and "its manifest.json cannot be read; delete it, and it will be made again" in said
    manifest.unlink()
    assert "its manifest.json is gone, so it will be made again" in status(tmp_path).stdout


@pytest.mark.parametrize(
    "damage", [b"", b'{"phase": "tr', b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"attempts": [{"start": "now"}], "stage": 3}', b"[" * 100_000, b"1" * 5000]
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
        if (unread and file not in ("metrics.jsonl", "resume/a.json")) or (file in ("provenance.json", "manifest.json")):
            assert named and str(folder / file) in named[0], said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    damaged: list[str] = []
    assert unless_damaged(tmp_path.read_text, "nothing", damaged) == "nothing"
    assert damaged == [f"{tmp_path}: cannot be read (is a directory)"]
    assert unless_damaged((tmp_path / "vanished").read_text, "nothing", damaged) == "nothing"
    assert len(damaged) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.floats(0, 2e9) | st.text(max_size=8),
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
        changed |= {"device": "cuda"} if file == "attempt" else {}
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


def test_an_attempt_that_ends_between_two_looks_is_not_taken_for_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story and the lock are two files: here the attempt ends in order after its story was read and before its lock is looked at."""
    folder = started(tmp_path)
    assert look(tmp_path / "results").lines[0].state == "interrupted"  # nobody holds it, and the story stays "running"

    def end_then_look(*arguments: Any) -> Any:
        write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("stopped")]})
        return holder_of(*arguments)

    monkeypatch.setattr(stages, "holder_of", end_then_look)
    assert look(tmp_path / "results").lines[0].state == "stopped"


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
