"""Killed in any way and started again, a training stage ends with the same bytes. Everything runs through the real command line."""

import dataclasses
import fcntl
import functools
import json
import os
import pty
import random
import resource
import shutil
import signal
import termios
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from chaos import torment
from mirrored import logged, mirrored
from training_lab import Lab, dying_after, final_bytes, logged_steps, metrics, run, run_until, start

from nanochat.artifacts import canonical_json, read_manifest, sha256_bytes, write_json
from nanochat.train.resume import ResumeFolder
from nanochat.train.tensorfile import TensorFiles


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def base(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that was never interrupted, and was trained by a process that shares nothing with the others."""
    out = tmp_path_factory.mktemp("base")
    run(lab.base(out), cold=True)
    return out


@pytest.fixture(scope="module")
def mid(lab: Lab, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mid")
    run(lab.tune("mid_train", out, base / "manifest.json"), cold=True)
    return out


@pytest.fixture(scope="module")
def sft(lab: Lab, mid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    run(lab.tune("chat_sft", out, mid / "manifest.json"), cold=True)
    return out


# --- slots -----------------------------------------------------------------------------------------------------------


def slots(folder: Path, steps: int, fingerprint: str = "f") -> ResumeFolder:
    """A folder in which steps 1..n were saved."""
    saved = ResumeFolder(folder, fingerprint)
    for step in range(1, steps + 1):
        saved.save({"step": step}, {"weight": torch.full((100,), float(step))})
    return saved


def newest(folder: Path, fingerprint: str = "f") -> tuple[int | None, list[str]]:
    """(step that a new process would go on from, what it says)."""
    said: list[str] = []
    found = ResumeFolder(folder, fingerprint, said.append).newest()
    return (None if found is None else found.counters["step"]), said


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_newest_of_two_slots_is_used(tmp_path):
    slots(tmp_path, 5)
    assert newest(tmp_path) == (5, [])
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["a.json", "a.safetensors", "b.json", "b.safetensors"]


@pytest.mark.parametrize("damage", [flip_a_byte, lambda path: os.truncate(path, 50), Path.unlink], ids=["flipped byte", "truncated", "missing"])
@pytest.mark.parametrize("file", ["safetensors", "json"])
def test_damaged_slot_is_said_aloud_and_the_previous_one_is_used(tmp_path, damage, file):
    """Silence is for a missing json alone: that is a save which a kill cut short."""
    saved = slots(tmp_path, 4)
    damaged = tmp_path / "resume" / f"{saved.last_saved}.{file}"
    damage(damaged)
    step, said = newest(tmp_path)
    assert step == 3
    if (file, damage) == ("json", Path.unlink):
        assert said == []
    else:
        assert len(said) == 1 and str(damaged) in said[0] and "damaged" in said[0] and "discarded" in said[0]


def test_damage_to_both_slots_starts_again_aloud(tmp_path):
    slots(tmp_path, 2)
    for name in "ab":
        flip_a_byte(tmp_path / "resume" / f"{name}.safetensors")
    step, said = newest(tmp_path)
    assert step is None and "starting from the beginning" in said[-1]


BEFORE = {"stage": "base_train", "config": {"depth": 2, "optimizer": {"matrix_lr": 0.02}, "seed": 0}, "inputs": {"tokens.a": "1" * 64, "tokens.b": "2" * 64}}
AFTER = {"stage": "base_train", "config": {"depth": 2, "optimizer": {"matrix_lr": 0.03}, "wide": True}, "inputs": {"tokens.a": "3" * 64, "tokenizer": "4" * 64}}


def start_of(folder: Path, work: dict[str, Any]) -> tuple[ResumeFolder, int | None, list[str]]:
    """A new process for this work: its folder, the step that it goes on from, and what it says."""
    said: list[str] = []
    resume = ResumeFolder(folder, json.dumps(work), said.append, work)
    found = resume.newest()
    return resume, (None if found is None else found.step), [line.removeprefix(f"{folder}/resume") for line in said]


def test_state_of_other_work_is_put_aside_with_what_has_changed_and_taken_up_when_it_is_put_back(tmp_path):
    first, *_ = start_of(tmp_path, BEFORE)
    for step in (1, 2, 3):
        first.save({"step": step}, {"weight": torch.full((10,), float(step))})
    other, step, said = start_of(tmp_path, AFTER)
    assert step is None
    assert said[:-1] == [
        ": optimizer.matrix_lr was 0.02, is 0.03",
        ": seed was 0, is gone",
        ": wide was not there, is true",
        ": input tokenizer was not there",
        ": input tokens.a is another: sha256 of its manifest was 111111111111, is 333333333333",
        ": input tokens.b is gone",
    ]
    assert said[-1].startswith(": the state of step 3 was saved for another config or other inputs, put aside into") and "put back what has changed" in said[-1]
    other.save({"step": 7}, {"weight": torch.full((10,), 7.0)})
    assert start_of(tmp_path, AFTER)[1:] == (7, [])
    again, step, said = start_of(tmp_path, BEFORE)
    assert step == 3 and "/old: the state of step 3 belongs to this config and these inputs, taken up again" in said
    assert TensorFiles([again.folder / f"{again.last_saved}.safetensors"]).whole("weight").tolist() == [3.0] * 10
    assert start_of(tmp_path, AFTER)[1] == 7, "changed to and fro"


def test_one_state_is_kept_aside_at_most(tmp_path):
    for number in range(3):
        resume, step, said = start_of(tmp_path, {**BEFORE, "config": {"seed": number}})
        assert step is None
        for step in (1, 2):
            resume.save({"step": 10 * number + step}, {"weight": torch.zeros(10)})
    assert "/old: the state of step 2 of still other work was kept here, deleted" in said
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 + 1
    assert start_of(tmp_path, {**BEFORE, "config": {"seed": 1}})[1] == 12


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_a_kill_while_state_is_put_aside_or_taken_up_loses_none(tmp_path, cut):
    """Every rename and deletion in turn is the last thing that a process does."""
    first, *_ = start_of(tmp_path, BEFORE)
    for step in (1, 2):
        first.save({"step": step}, {"weight": torch.full((10,), float(step))})
    for work, expected in ((AFTER, None), (BEFORE, 2), (AFTER, 5)):
        with dying_after(cut):
            start_of(tmp_path, work)
        resume, step, _ = start_of(tmp_path, work)
        assert step == expected
        if expected is None:
            resume.save({"step": 5}, {"weight": torch.full((10,), 5.0)})


def test_state_that_was_saved_before_changes_could_be_told_is_still_used(tmp_path):
    slots(tmp_path, 2)
    for path in (tmp_path / "resume").glob("*.json"):
        content = json.loads(path.read_text())
        del content["work"], content["seal"]
        write_json(path, {**content, "seal": sha256_bytes(canonical_json(content).encode())})
    assert newest(tmp_path) == (2, [])
    step, said = newest(tmp_path, fingerprint="other")
    assert step is None and "what has changed is not known" in said[0] and "put aside" in said[-1]


def test_next_save_never_overwrites_the_slot_it_came_from(tmp_path):
    saved = slots(tmp_path, 3)
    again = ResumeFolder(tmp_path, "f")
    again.newest()
    again.save({"step": 4}, {"weight": torch.zeros(1)})
    assert again.last_saved != saved.last_saved
    assert newest(tmp_path)[0] == 4


# --- stages ----------------------------------------------------------------------------------------------------------


def test_uninterrupted_run_leaves_complete_outputs_and_no_resume_state(base):
    manifest = read_manifest(base / "manifest.json", stage="base_train")
    assert set(manifest["outputs"]) == {"model.safetensors", "model.json", "optimizer.safetensors"}
    assert manifest["counts"]["steps"] == 24 and manifest["counts"]["tokens"] == 24 * 512
    assert manifest["counts"]["final_val_bpb"] == metrics(base)[-1]["val_bpb"] < 6
    assert manifest["counts"]["final_loss"] < manifest["counts"]["first_loss"] - 0.5
    assert not (base / "resume").exists() and len(metrics(base)) == 24 + 3
    assert {path.name for path in base.iterdir()} >= {"config.json", "provenance.json", "heartbeat.json", "samples.json"}


@pytest.mark.parametrize(("stage", "kills"), [("base_train", 3), ("mid_train", 2), ("chat_sft", 2)])
def test_run_killed_at_random_moments_equals_the_uninterrupted_one(stage, kills, lab, base, mid, sft, tmp_path):
    """`make chaos` does it two hundred times."""
    whole = {"base_train": base, "mid_train": mid, "chat_sft": sft}[stage]
    commands = {
        "base_train": lab.base,
        "mid_train": lambda out: lab.tune(stage, out, base / "manifest.json"),
        "chat_sft": lambda out: lab.tune(stage, out, mid / "manifest.json"),
    }
    done = torment(commands[stage], whole, tmp_path, kills=kills, draws=random.Random(stage), manners=("anywhere", "write"))
    assert done.kills.total() == kills and done.finished >= 2
    states = [attempt["state"] for attempt in json.loads((tmp_path / str(done.finished - 1) / "provenance.json").read_text())["attempts"]]
    assert set(states[:-1]) <= {"interrupted"} and states[-1] in ("finished", "running")  # running: killed when all but its story was written


def test_a_killed_mixture_goes_on_with_the_same_rows_and_says_how_often_it_sees_each_source(lab, tmp_path):
    few, many = tmp_path / "few.train", tmp_path / "many.train"
    for folder in (few, many):
        shutil.copytree(lab.tokens[0].parent, folder)
    mixed = dataclasses.replace(lab, tokens=[few / "manifest.json", many / "manifest.json", lab.tokens[1]])
    weights = {"few": 1, "many": 3}
    said = run(mixed.base(tmp_path / "whole", weights=weights))
    rows = read_manifest(few / "manifest.json")["counts"]["rows"]
    epochs = read_manifest(tmp_path / "whole" / "manifest.json")["counts"]["source_epochs"]
    assert sum(epochs.values()) * rows == pytest.approx(24 * 8, abs=0.1) and epochs["many"] > 2 * epochs["few"]
    assert f"source many: 75.0% of the training, {epochs['many']:.2f} epochs" in said
    code, _ = run_until(mixed.base(tmp_path / "killed", weights=weights), tmp_path / "killed", 9)
    assert code == -signal.SIGKILL
    assert "resumed at step" in run(mixed.base(tmp_path / "killed", weights=weights))
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "whole")


def test_asked_to_stop_it_saves_and_exits_75_and_goes_on(lab, base, tmp_path):
    command = lab.base(tmp_path)
    for number, step in ((signal.SIGTERM, 3), (signal.SIGUSR1, 9), (signal.SIGHUP, 14)):
        code, said = run_until(command, tmp_path, step, number)
        assert code == 75 and f"stopped ({number.name}) at step" in said and "Traceback" not in said
    assert "resumed at step" in run(command)
    assert final_bytes(tmp_path) == final_bytes(base)


def test_a_closed_terminal_saves_the_state(lab, base, tmp_path):
    """The terminal takes stderr with it: what cannot be said any more must not stop the saving."""
    command = lab.base(tmp_path, save_every_s=1000.0)
    leader, follower = pty.openpty()

    def in_the_terminal():
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    process = start(command, preexec_fn=in_the_terminal, stdout=follower, stderr=follower)
    os.close(follower)
    while process.poll() is None and logged_steps(tmp_path) < 3:
        time.sleep(0.002)
    assert process.poll() is None
    os.close(leader)
    process.wait(timeout=60)
    assert len(list((tmp_path / "resume").glob("?.json"))) == 1 and not (tmp_path / "manifest.json").exists()
    assert "resumed at step" in run(command)
    assert final_bytes(tmp_path) == final_bytes(base)


def test_under_nohup_a_closed_terminal_stops_nothing(lab, base, tmp_path):
    process = start(lab.base(tmp_path), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    while process.poll() is None and logged_steps(tmp_path) < 3:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert final_bytes(tmp_path) == final_bytes(base)


def test_used_up_time_exits_75(lab, tmp_path):
    long = lab.base(tmp_path, horizon={"steps": 100_000, "batch_tokens": 512}, save_every_s=1000.0)
    assert "stopped (time limit) at step" in run([*long, "--max-seconds", "4"], 75)
    assert logged_steps(tmp_path) > 0


def test_attempts_without_time_make_an_update_each(lab, tmp_path):
    """Jobs so short that the start takes all of their time would otherwise be submitted for ever."""
    for step in (1, 2):
        assert f"stopped (time limit) at step {step} of 24" in run([*lab.base(tmp_path, save_every_s=1000.0), "--max-seconds", "0.001"], 75)
    assert logged_steps(tmp_path) == 2


@pytest.fixture(scope="module")
def killed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after some updates, with both slots written."""
    out = tmp_path_factory.mktemp("killed")
    run_until(lab.base(out), out, 6)
    return out


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(killed, tmp_path / "run")


def test_flipped_byte_goes_back_one_slot_and_ends_with_the_same_bytes(lab, base, copy):
    step = {path: json.loads(path.read_text())["counters"]["step"] for path in (copy / "resume").glob("*.json")}
    flip_a_byte(max(step, key=step.get).with_suffix(".safetensors"))
    said = run(lab.base(copy))
    assert "damaged (sha256 differs), discarded" in said
    assert final_bytes(copy) == final_bytes(base)


def test_housekeeping_discards_nothing_and_a_finished_stage_stays_finished(lab, base, copy):
    """When state is saved, samples are drawn and text is validated changes no weight and not the manifest."""
    said = run(lab.base(copy, save_every_s=1000.0, sample_every=9, validate_every=7, log_every=1, tensorboard=True))
    assert "resumed at step" in said and "discarded" not in said and "sample: " in said
    assert final_bytes(copy) == final_bytes(base)
    assert [line["step"] for line in metrics(copy) if "val_bpb" in line and line["step"] > 10] == [14, 21, 24]
    assert json.loads((copy / "config.json").read_text())["sample_every"] == 9
    assert mirrored("tensorboard", copy).keys() == logged(copy).keys()
    assert "nothing to do" in run(lab.base(copy, save_every_s=5.0, validate_every=2, wandb={}, trackio={"project": "p"}))
    assert "nothing to do" not in run(lab.base(copy, validation_rows=4, horizon={"steps": 2, "batch_tokens": 512}))


def test_changed_config_puts_the_state_aside_and_says_what_has_changed(lab, copy):
    said = run(lab.base(copy, horizon={"steps": 3, "batch_tokens": 512}))
    assert "resume: horizon.steps was 24, is 3" in said and "saved for another config or other inputs, put aside into" in said and "resumed" not in said
    assert [line["step"] for line in metrics(copy) if "loss" in line] == [1, 2, 3] and not (copy / "resume").exists()


def test_a_config_that_is_put_back_goes_on_with_the_same_bytes(lab, base, copy):
    other = lab.base(copy, optimizer={"matrix_lr": 0.03}, horizon={"steps": 100_000, "batch_tokens": 512})
    (copy / "metrics.jsonl").unlink()  # whose updates are those of the run before
    code, said = run_until(other, copy, 3)
    assert code == -signal.SIGKILL and "optimizer.matrix_lr was 0.04, is 0.03" in said
    said = run(lab.base(copy))
    assert "taken up again" in said and "resumed at step" in said and "optimizer.matrix_lr was 0.03, is 0.04" in said
    assert final_bytes(copy) == final_bytes(base)


@pytest.fixture
def own_tokens(lab, tmp_path):
    """Lab with token rows of its own, to be damaged."""
    tokens = [shutil.copytree(path.parent, tmp_path / path.parent.name) / "manifest.json" for path in lab.tokens]
    return dataclasses.replace(lab, tokens=tokens)


@pytest.mark.parametrize("split", [0, 1], ids=["train", "validation"])
def test_flipped_token_is_refused_at_the_start_and_when_going_on(lab, base, own_tokens, tmp_path, split):
    out, rows = tmp_path / "out", own_tokens.tokens[split].parent / "tokens.bin"
    intact = rows.read_bytes()
    run_until(own_tokens.base(out), out, 3)
    flip_a_byte(rows)
    for _ in range(2):
        said = run(own_tokens.base(out), 2)
        error = [line for line in said.splitlines() if "error" in line]
        assert len(error) == 1 and f"{rows}: damaged" in error[0] and "snakemake" in error[0] and "Traceback" not in said
    rows.write_bytes(intact)
    assert "resumed at step" in run(own_tokens.base(out))
    assert final_bytes(out) == final_bytes(base)


def test_full_disk_is_one_sentence_and_the_previous_slot_is_used_next(lab, base, copy):
    state = max(path.stat().st_size for path in (copy / "resume").glob("?.safetensors"))
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (state // 2, state // 2))
    said = run(lab.base(copy), 2, preexec_fn=limit)
    error = [line for line in said.splitlines() if "error" in line]
    assert len(error) == 1 and "resume" in error[0] and "free some space" in error[0] and "Traceback" not in said
    assert "resumed at step" in run(lab.base(copy))
    assert final_bytes(copy) == final_bytes(base)


def test_full_disk_at_the_end_is_one_sentence_too(lab, tmp_path):
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))  # a quarter of the weights
    said = run(lab.base(tmp_path, horizon={"steps": 2, "batch_tokens": 512}, save_every_s=1000.0), 2, preexec_fn=limit)
    assert "model.safetensors: could not be written (File too large)" in said and "Traceback" not in said
    assert not (tmp_path / "manifest.json").exists()


def test_second_trainer_on_a_folder_is_refused(lab, tmp_path):
    long = lab.base(tmp_path, horizon={"steps": 100_000, "batch_tokens": 512})
    first = start(long)
    try:
        while logged_steps(tmp_path) < 1 and first.poll() is None:
            time.sleep(0.01)
        said = run(long, 2)
        [rank] = psutil.Process(first.pid).children()
        assert "in use by" in said and str(rank.pid) in said
    finally:
        first.kill()
        first.communicate()


def test_finished_stage_has_nothing_to_do_and_trains_again_for_another_config(lab, base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in run(lab.base(tmp_path / "run"))
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    said = run(lab.base(tmp_path / "run", horizon={"steps": 2, "batch_tokens": 512}))
    assert "nothing to do" not in said and read_manifest(tmp_path / "run" / "manifest.json")["counts"]["steps"] == 2


def test_lost_optimizer_stops_a_warm_start_alone_and_is_made_again(lab, base, tmp_path):
    parent = shutil.copytree(base, tmp_path / "base")
    (parent / "optimizer.safetensors").unlink()
    few = {"mixture": [{"task": "arithmetic", "rows": 40}]}
    said = run(lab.tune("mid_train", tmp_path / "warm", parent / "manifest.json", [], **few), 2)
    assert "optimizer.safetensors: missing" in said and "set warm_start_optimizer: false" in said and "Traceback" not in said
    run(lab.tune("mid_train", tmp_path / "cold", parent / "manifest.json", [], **few, warm_start_optimizer=False))
    assert "optimizer.safetensors: missing" in run(lab.base(parent))
    assert final_bytes(parent) == final_bytes(base) and (parent / "optimizer.safetensors").read_bytes() == (base / "optimizer.safetensors").read_bytes()


@pytest.mark.slow
def test_two_ranks_refuse_a_flipped_token_at_once(own_tokens, tmp_path):
    flip_a_byte(own_tokens.tokens[0].parent / "tokens.bin")
    said = run([*own_tokens.base(tmp_path / "out"), "--ranks", "2"], 2)
    assert said.count("damaged") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(lab, base, tmp_path):
    run([*lab.base(tmp_path, micro_batch_rows=4), "--ranks", "2"])
    one, two = ([line["loss"] for line in metrics(out) if "loss" in line] for out in (base, tmp_path))
    assert two[:4] == pytest.approx(one[:4], rel=1e-6)  # the same rows, the same update
    assert two == pytest.approx(one, rel=1e-3)  # rounding grows: another micro-batch on one rank differs by 6e-4
    assert metrics(tmp_path)[-1]["val_bpb"] == pytest.approx(metrics(base)[-1]["val_bpb"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_two_ranks_stop_together_and_keep_the_exit_code(lab, tmp_path, number):
    command = [*lab.base(tmp_path, horizon={"steps": 100_000, "batch_tokens": 512}, save_every_s=1000.0), "--ranks", "2"]
    code, said = run_until(command, tmp_path, 3, number)
    assert code == 75 and "state saved" in said and "Traceback" not in said
    assert (tmp_path / "resume" / "a.json").exists()
