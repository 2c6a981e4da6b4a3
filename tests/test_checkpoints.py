"""Models kept on the way: which, how many, and that they are those of their steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import config
from nanochat.artifacts import write_json
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.model.weights import load_model
from nanochat.plan.work import Works
from nanochat.recipes import RECIPES
from nanochat.stages.checkpoints import Checkpoints
from nanochat.train.counters import Counters, Validation

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> GPT:
    architecture = {**RECIPES["compact-2026-11"]["architecture"], "width": 32, "head_dim": 16}
    return GPT(ModelConfig.from_depth(1, vocab_size=64, sequence_len=8, architecture=architecture))


def train(folder: Path, model: GPT, keep: dict[str, Any], bpb: list[float], *, depth: int = 1, first: int = 1) -> list[str]:
    """Every weight is the number of the step; validated after each. Names of what is kept in the end."""
    write_json(folder / "tokens.json", {})
    identity: dict[str, Any] = {"stage": "base_train", "config": {"depth": depth}, "inputs": {"tokens": folder / "tokens.json"}}
    full = config.schema.Keep(**keep).model_dump()
    checkpoints = Checkpoints(folder, full, model, identity, {"phase": "base"})
    counters = Counters(step=first - 1)
    for value in bpb:
        counters.step += 1
        counters.add_validation(Validation(value, value))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(counters.step)
        checkpoints.look(counters)
        with torch.no_grad():
            next(model.parameters()).fill_(-1.0)  # the next update comes while the thread writes
    checkpoints.close()
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_the_newest_and_the_best_stay_and_can_be_loaded(tmp_path: Path, model: GPT) -> None:
    bpb = [3.0, 2.0, 2.5, 1.5, 1.75, 1.75, 1.6]
    assert train(tmp_path, model, {"every": 2, "last": 2, "best": True}, bpb) == ["best-000004", "step-000004", "step-000006"]
    for name, step in (("best-000004", 4), ("step-000004", 4), ("step-000006", 6)):
        loaded, description = load_model(tmp_path / "checkpoints" / name / "manifest.json")
        assert all((parameter == step).all() for parameter in loaded.parameters()), name
        assert (description["step"], description["phase"]) == (step, "base")
    counts = json.loads((tmp_path / "checkpoints/best-000004/manifest.json").read_text())["counts"]
    assert counts == {"steps": 4, "final_val_bpb": 1.5}


@pytest.mark.parametrize(("keep", "left"), [({}, []), ({"every": 3, "last": 1}, ["step-000003"]), ({"best": True}, ["best-000002"]), ({"every": 9}, [])])
def test_nothing_but_what_is_asked_for_is_kept(tmp_path: Path, model: GPT, keep: dict[str, Any], left: list[str]) -> None:
    assert train(tmp_path, model, keep, [3.0, 2.0, 2.5, 2.0000001, 2.5]) == left


def test_what_was_kept_stays_when_training_goes_on_and_goes_for_another_config(tmp_path: Path, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    keep = {"every": 1, "last": 3}
    train(tmp_path, model, keep, [1.0] * 3)
    (tmp_path / "checkpoints/step-000003/manifest.json").unlink()  # killed before it was written
    assert train(tmp_path, model, keep, [1.0], first=3) == ["step-000001", "step-000002", "step-000003"]
    assert train(tmp_path, model, keep, [1.0], depth=2) == ["step-000001"]
    assert capsys.readouterr().err.count("kept by another training, or not whole; deleted") == 4


def test_a_plan_counts_the_disk_of_what_is_kept_and_it_reruns_nothing() -> None:
    content = config.read_yaml(ROOT / "configs" / "speedrun.yaml")
    plain = config.validate(content)
    content["runs"]["d20"]["base_train"]["keep"] = {"every": 1000, "last": 2, "best": True}
    keeping = config.validate(content)
    sizes = [Works(experiment).training("base_train", "d20", 1, None).kept_bytes for experiment in (plain, keeping)]
    assert sizes[1] - sizes[0] == 5 * 4 * 560_988_160
    subtrees = [config.base_train_config(experiment.runs["d20"]) for experiment in (plain, keeping)]
    assert subtrees[0] != subtrees[1] and config.identity(subtrees[0]) == config.identity(subtrees[1])
