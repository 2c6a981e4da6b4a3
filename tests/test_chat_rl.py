"""Stage chat_rl through the real command line: it learns, and killed in any way and started again it ends with the same bytes."""

import shutil
import signal
from pathlib import Path

import pytest
from training_lab import Lab, final_bytes, guesses, metrics, run, run_until

from nanochat.artifacts import read_json, read_manifest

STEPS = 8


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guesses(tmp_path_factory.mktemp("data") / "gsm8k")


@pytest.fixture(scope="module")
def parent(lab: Lab, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    run(lab.base(folder / "base", save_every_s=1000.0))
    run(lab.guesser(folder / "sft", folder / "base" / "manifest.json", data))
    return folder / "sft" / "manifest.json"


@pytest.fixture(scope="module")
def whole(lab: Lab, data: Path, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    (out / "said.txt").write_text(run(lab.reinforce(out, parent, data)))
    return out


def test_a_training_tells_of_its_answers_and_of_problems_that_it_never_asked(whole: Path) -> None:
    lines, counts = metrics(whole), read_manifest(whole / "manifest.json")["counts"]
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(0 <= line[key] <= 1 for line in steps for key in ("reward", "degenerate_groups", "cut_off")) and steps[0]["sequence_tokens"] > 1
    assert any(0 < line["reward"] < 1 and line["loss"] for line in steps if "loss" in line)
    measured = [line for line in lines if "pass@1" in line]
    assert [line["step"] for line in measured] == [0, 4, 8]
    assert all(line["pass@1"] <= line["pass@2"] <= line["pass@4"] for line in measured)
    assert (counts["problems"], counts["validation_problems"], counts["epochs"]) == (48, 6, round(32 / 48, 4))
    assert counts["final_pass@4"] == measured[-1]["pass@4"] and counts["steps"] == STEPS
    assert read_json(whole / "model.json")["phase"] == "rl" and len(read_json(whole / "samples.json")) > 3
    said = (whole / "said.txt").read_text()
    assert "48 problems, 6 held out, 4 answers to each" in said and "step 4: pass@1 0." in said and "step 1/8 (12.5%) reward 0." in said
    assert not (whole / "resume").exists()


@pytest.mark.parametrize(("number", "step"), [(signal.SIGKILL, 2), (signal.SIGTERM, 4)], ids=["SIGKILL", "SIGTERM"])
def test_a_training_that_was_ended_goes_on_to_the_same_bytes(lab, data, parent, whole, tmp_path, number, step):
    code, said = run_until(lab.reinforce(tmp_path, parent, data), tmp_path, step, number)
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL), said
    again = run(lab.reinforce(tmp_path, parent, data))
    assert "resumed at step" in again
    assert final_bytes(tmp_path) == final_bytes(whole)
    timed = ("elapsed_s", "step_s", "tokens_per_s", "data_share", "peak_rss_bytes")
    one, other = ([{key: value for key, value in line.items() if key not in timed} for line in metrics(out)] for out in (whole, tmp_path))
    assert one == other
    assert "nothing to do" in run(lab.reinforce(tmp_path, parent, data))


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(lab, data, parent, whole, tmp_path):
    run([*lab.reinforce(tmp_path, parent, data), "--ranks", "2"])
    one, two = (metrics(out) for out in (whole, tmp_path))
    for key in ("reward", "sequence_tokens", "degenerate_groups", "pass@1", "pass@4"):
        assert [line[key] for line in two if key in line] == pytest.approx([line[key] for line in one if key in line]), key
    one_loss, two_loss = ([line["loss"] for line in lines if "loss" in line] for lines in (one, two))
    assert len(one_loss) > 3 and two_loss[:2] == pytest.approx(one_loss[:2], rel=1e-6) and two_loss == pytest.approx(one_loss, rel=1e-3)


def test_what_cannot_be_is_one_sentence(lab, data, parent, tmp_path):
    said = run([*lab.reinforce(tmp_path, parent, data), "--ranks", "3"], 2)
    assert "chat_rl.examples_per_step=4: not a multiple of 3 ranks" in said and said.count("examples_per_step") == 1 and "Traceback" not in said
    said = run(lab.reinforce(tmp_path, parent, data, tasks=[{"task": "arithmetic", "rows": 1}], validation_rows=1), 0)
    assert "1 problems, 1 held out" in said, "fewer problems than a step asks are asked several times"
    other = tmp_path / "other"
    shutil.copytree(parent.parent, other)
    (other / "model.safetensors").write_bytes(b"x")
    said = run(lab.reinforce(tmp_path / "out", other / "manifest.json", data), 2)
    assert "model.safetensors" in said and "Traceback" not in said
