"""`nanochat runs`: every attempt with its time and price, failed ones counted and shown apart."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_files import attempt, finished_run, score, training
from status_files import beat, started, status
from workspace import Workspace

from nanochat.artifacts import exclusive
from nanochat.history import cost_of
from nanochat.status.runs import history

A100 = {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB", "world_size": 8}


def runs(folder: Path, *flags: str) -> dict[str, Any]:
    """What --json gives."""
    done = status(folder, "--json", *flags, verb="runs")
    assert (done.returncode, done.stderr) == (0, "")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.workflow
def test_a_finished_experiment_tells_what_each_stage_and_evaluation_took(finished: Workspace) -> None:
    content = runs(finished.folder)
    rows = {entry["stage"]: entry for entry in content["attempts"]}
    assert list(rows) == ["base_train", "mid_train", "chat_sft", "evaluate base", "evaluate mid", "evaluate sft"]
    for stage in ("base_train", "mid_train", "chat_sft"):
        (story,) = json.loads(finished.path(f"results/tiny/{stage}/provenance.json").read_text())["attempts"]
        assert (rows[stage]["start"], rows[stage]["duration_s"], rows[stage]["host"]) == (story["start"], story["wall_s"], story["host"])
        assert (rows[stage]["state"], rows[stage]["device"], rows[stage]["gpus"], rows[stage]["price"]) == ("finished", "cpu", 0, None)
        assert rows[stage]["tokens_per_s"] == story["tokens_per_s"]
    scores = [json.loads(path.read_text()) for path in finished.path("results/tiny/scores/sft").glob("*.json")]
    assert (rows["evaluate sft"]["n"], rows["evaluate sft"]["duration_s"]) == (len(scores), pytest.approx(sum(each["seconds"] for each in scores)))
    assert content["total"]["duration_s"] == pytest.approx(sum(entry["duration_s"] for entry in content["attempts"]))
    assert content["damaged"] == []


def test_failed_attempts_are_in_the_total_and_apart(tmp_path: Path) -> None:
    attempts = [attempt("failed", 1800.0, **A100), attempt("interrupted", 900.0, **A100), attempt("stopped", 3600.0, **A100, job="4242"), attempt(**A100)]
    training(tmp_path, "d20", "base", {}, attempts=attempts)
    training(tmp_path, "small", "base", {})
    content = runs(tmp_path)
    assert [entry["price"] for entry in content["attempts"]][:4] == pytest.approx([8 * 0.5 * 1.79, 8 * 0.25 * 1.79, 8 * 1.79, 8 * 1.79])
    total = content["runs"]["d20"]
    assert (total["attempts"], total["lost_attempts"]) == (4, 2)
    assert (total["duration_s"], total["lost_duration_s"]) == (9900 / 1, 2700)
    assert (total["gpu_hours"], total["lost_gpu_hours"]) == pytest.approx((22.0, 6.0))
    assert (total["price"], total["lost_price"]) == pytest.approx((22.0 * 1.79, 6.0 * 1.79))
    assert content["runs"]["small"] == {"attempts": 1, "duration_s": 3600.0, "gpu_hours": None, "price": None, "lost_attempts": 0, "lost_duration_s": 0} | {
        "lost_gpu_hours": None,
        "lost_price": None,
    }
    assert (content["total"]["attempts"], content["total"]["gpu_hours"]) == (5, pytest.approx(22.0))
    said = status(tmp_path, verb="runs").stdout.splitlines()
    assert said[0].split() == ["run", "stage", "n", "start", "time", "state", "host", "device", "GPU-hours", "price", "tokens/s", "commit", "job"]
    assert " ".join(said[3].split()) == "d20 base_train 3 1970-01-01 00:16 1h00m stopped node7 8 x NVIDIA A100-SXM4-80GB 8.00 $14.32 - 0123456789ab 4242"
    assert "d20: 4 attempts, 2h45m, 22.00 GPU-hours, $39.38; of it failed or interrupted: 2 attempts, 45m00s, 6.00 GPU-hours, $10.74" in said
    assert "small: 1 attempt, 1h00m" in said
    assert "all runs: 5 attempts, 3h45m, 22.00 GPU-hours, $39.38; of it failed or interrupted: 2 attempts, 45m00s, 6.00 GPU-hours, $10.74" in said
    assert said[-1] == "price per GPU and hour: NVIDIA A100-SXM4-80GB $1.79; usual ones, --price gives yours"


def test_a_price_that_is_given_counts_and_an_unknown_card_is_said(tmp_path: Path) -> None:
    training(tmp_path, "d20", "base", {}, attempts=[attempt(device="cuda", device_name="Novel GPU", world_size=2)])
    assert runs(tmp_path)["total"]["price"] == pytest.approx(4.0)
    assert "Novel GPU $2.00 (assumed, this card is not known)" in status(tmp_path, verb="runs").stdout
    assert runs(tmp_path, "--price", "0.5")["total"]["price"] == pytest.approx(1.0)
    assert "price per GPU and hour: $0.50, as given" in status(tmp_path, "--price", "0.5", verb="runs").stdout
    done = status(tmp_path, "--price", "-1", verb="runs")
    assert done.returncode == 2 and "--price: -1 is not a number above 0" in done.stderr


def test_an_attempt_that_was_killed_lasts_until_its_last_sign_of_life(tmp_path: Path) -> None:
    """provenance.json knows of the last save (10 minutes ago), the heartbeat of the last step (a minute ago)."""
    folder = started(tmp_path, age_s=60)
    killed = runs(tmp_path)["attempts"][-1]
    assert (killed["state"], killed["n"]) == ("interrupted", 2) and killed["duration_s"] == pytest.approx(3540, abs=5)
    with exclusive(folder):
        alive = runs(tmp_path)["attempts"][-1]
    assert alive["state"] == "running" and alive["duration_s"] == pytest.approx(3600, abs=30)
    assert runs(tmp_path)["total"]["lost_attempts"] == 2


def test_a_beat_of_a_later_attempt_lengthens_no_earlier_one(tmp_path: Path) -> None:
    training(tmp_path, "d20", "base", {}, attempts=[attempt("interrupted", 100.0), {**attempt("failed", 50.0), "wall_s": 50.0}], finished=False)
    beat(tmp_path / "results/d20/base_train")
    assert [entry["duration_s"] for entry in runs(tmp_path)["attempts"]] == [100.0, 50.0]


def test_evaluations_are_one_row_per_phase_with_their_price(tmp_path: Path) -> None:
    base = training(tmp_path, "d20", "base", {})
    one_gpu = {**A100, "world_size": 1, "start": 5000.0, "host": "node8", "job": "9"}
    for task, seconds in (("arc_easy", 1200.0), ("mmlu", 2400.0)):
        score(tmp_path, "d20", "base", task, base, seconds=seconds, provenance={**one_gpu, "git": {"commit": "abc", "dirty": True}})
    score(tmp_path, "d20", "base", "gsm8k", base)  # of an earlier version: no provenance
    content = runs(tmp_path)
    row = content["attempts"][-1]
    assert (row["stage"], row["n"], row["duration_s"], row["gpu_hours"], row["host"], row["job"]) == ("evaluate base", 2, 3600.0, 1.0, "node8", "9")
    assert (row["price"], row["commit"], row["dirty"]) == (pytest.approx(1.79), "abc", True)
    assert content["total"]["attempts"] == 3
    assert len(content["damaged"]) == 1 and "gsm8k.json: says neither when it was made nor how long that took" in content["damaged"][0]


def test_junk_in_a_score_and_numbers_that_are_none_break_nothing(tmp_path: Path) -> None:
    base = training(tmp_path, "d20", "base", {}, attempts=[attempt(device="cuda", world_size=None, tokens_per_s=None)])
    junk = {"start": 5.0, "world_size": "eight", "heartbeat": "now", "tokens_per_s": "fast", "device": "cuda", "git": "none", "host": 3}
    score(tmp_path, "d20", "base", "mmlu", base, seconds=0, provenance=junk)
    score(tmp_path, "d20", "base", "gsm8k", base, seconds=1, provenance={**junk, "start": 1e17})
    content = runs(tmp_path)
    assert [(entry["gpus"], entry["gpu_hours"]) for entry in content["attempts"]] == [(1, 1.0), (1, 0.0)]
    assert len(content["damaged"]) == 1 and "gsm8k.json" in content["damaged"][0]
    assert status(tmp_path, verb="runs").returncode == 0


def test_one_run_of_several_and_one_that_is_not_there(tmp_path: Path) -> None:
    finished_run(tmp_path)
    training(tmp_path, "d20", "base", {})
    assert {entry["run"] for entry in runs(tmp_path)["attempts"]} == {"d20", "tiny"}
    assert {entry["run"] for entry in runs(tmp_path, "--run", "tiny")["attempts"]} == {"tiny"}
    done = status(tmp_path, "--run", "tinny", verb="runs")
    assert (done.returncode, done.stderr) == (2, "nanochat: error: --run=tinny: no such run below results; choose one of d20, tiny\n")


def test_history_and_report_add_up_alike(tmp_path: Path) -> None:
    attempts = [attempt("failed", 700.0, **A100), attempt("stopped", 500.0, **A100), attempt("finished", 1300.0, **A100)]
    training(tmp_path, "d20", "base", {}, attempts=attempts)
    entries, cost = history(tmp_path / "results", 2.5, []), cost_of(attempts, 2.5)
    assert sum(entry.price or 0 for entry in entries) == pytest.approx(cost.money)
    assert sum(entry.duration_s for entry in entries) == cost.wall_s


def test_a_history_into_a_closed_pipe_ends_in_silence(tmp_path: Path) -> None:
    for number in range(200):
        training(tmp_path, f"r{number}", "base", {}, attempts=[attempt("failed")] * 20)
    command = f"'{sys.executable}' -m nanochat runs | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout.count("\n")) == ("", 1) and done.stdout.startswith("run ")
