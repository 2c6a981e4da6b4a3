"""What is finished is not trained again, whoever deleted its files meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import flip_a_byte
from training_lab import Lab, final_bytes, logged_steps, run
from workspace import Workspace

DECLARED = ("model.safetensors", "model.json", "optimizer.safetensors", "manifest.json")  # what snakemake deletes of a stage


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished base model."""
    out = tmp_path_factory.mktemp("trained")
    run(lab.base(out))
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """The finished model to be damaged, its kept files sharing their bytes with the outputs as they do after training."""
    out = tmp_path / "out"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("kept"))
    (out / "kept").mkdir()
    for name in DECLARED:
        os.link(out / name, out / "kept" / name)
    return out


def lose(out: Path) -> None:
    """Delete the declared outputs."""
    for name in DECLARED:
        (out / name).unlink()


def test_kept_files_take_no_room(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "kept").iterdir()) == sorted(DECLARED)
    assert all((trained / name).samefile(trained / "kept" / name) for name in DECLARED)


@pytest.mark.parametrize("ranks", [1, 2])
def test_deleted_outputs_are_taken_back_and_nothing_is_trained(lab: Lab, out: Path, ranks: int) -> None:
    before, metrics = final_bytes(out), (out / "metrics.jsonl").read_bytes()
    started = time.time()
    lose(out)
    said = run([*lab.base(out), "--ranks", str(ranks)])
    assert "taken back from" in said and "step 1/" not in said
    assert final_bytes(out) == before and (out / "metrics.jsonl").read_bytes() == metrics
    assert (out / "optimizer.safetensors").samefile(out / "kept" / "optimizer.safetensors")
    assert min((out / name).stat().st_mtime for name in DECLARED) > started - 1  # not older than what it was made from


def test_other_work_is_trained_and_what_was_kept_for_the_old_one_goes(lab: Lab, out: Path) -> None:
    before = final_bytes(out)
    lose(out)
    said = run(lab.base(out, seed=5))
    assert "taken back" not in said and "step 1/" in said
    assert final_bytes(out)["model.safetensors"] != before["model.safetensors"]
    assert (out / "model.safetensors").samefile(out / "kept" / "model.safetensors")


def test_a_damaged_kept_file_is_said_aloud_and_the_stage_trains(lab: Lab, out: Path) -> None:
    before = final_bytes(out)
    flip_a_byte(out / "kept" / "model.safetensors")
    lose(out)
    said = run(lab.base(out))
    assert "kept/model.safetensors: damaged" in said and "training again" in said
    assert final_bytes(out) == before


def test_without_its_folder_the_stage_trains(lab: Lab, out: Path) -> None:
    before = final_bytes(out)
    shutil.rmtree(out)
    assert "step 1/" in run(lab.base(out))
    assert final_bytes(out) == before


@pytest.mark.workflow
def test_a_trainer_that_ends_after_its_snakemake_was_killed_has_not_trained_for_nothing(workspace: Workspace) -> None:
    """The next snakemake takes the outputs for incomplete and deletes them; the stage takes them back."""
    workspace.configure(lambda content: content["runs"]["tiny"]["base_train"]["horizon"].update(steps=60))
    folder = workspace.path("results/tiny/base_train")
    (folder / "metrics.jsonl").unlink()  # of the model that the fixture made
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", "base"]
    with workspace.path("driver.txt").open("w") as output:
        driver = subprocess.Popen(command, cwd=workspace.folder, env=workspace.environment(), stdout=output, stderr=output, start_new_session=True)
    while not (0 < logged_steps(folder) < 60):
        assert driver.poll() is None, workspace.path("driver.txt").read_text()
        time.sleep(0.01)
    assert not (folder / "manifest.json").exists()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    deadline = time.time() + 120
    while not (folder / "kept" / "manifest.json").exists():
        assert time.time() < deadline, "the trainer did not go on without its driver"
        time.sleep(0.1)
    finished = (folder / "model.safetensors").read_bytes()
    metrics = (folder / "metrics.jsonl").read_bytes()
    assert workspace.snakemake("--unlock").returncode == 0
    said = workspace.build("base")
    assert "rule base_train" in said  # snakemake did run the stage again
    assert "taken back from" in said and "step 1/60" not in said
    assert (folder / "model.safetensors").read_bytes() == finished and (folder / "metrics.jsonl").read_bytes() == metrics
    assert workspace.plan("base") == set()
