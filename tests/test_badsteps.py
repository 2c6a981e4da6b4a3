"""Steps that look wrong: recognised, told with their rows, and passed over without a trace in weights and optimizer."""

import dataclasses
import json
import math
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nanochat import config
from nanochat.artifacts import write_json, write_manifest
from nanochat.config import OnBadStep
from nanochat.data.rows import RowOrder, TokenRows
from nanochat.errors import Stopped, UserError
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.recipes import RECIPES
from nanochat.runtime import Runtime, StopRequest
from nanochat.train.badsteps import MOST_IN_A_ROW, goes_on, spike
from nanochat.train.batches import TextBatches
from nanochat.train.counters import Counters, Validation
from nanochat.train.loop import Settings, Trainer
from nanochat.train.scaling import TrainingPlan, plan_base_train
from nanochat.train.sizes import shape_of
from nanochat.train.state import own_state, own_weights
from nanochat.train.update import build_optimizer

T, V, ROWS, STEPS, HISTORY = 16, 61, 4, 30, 10
CPU = Runtime(torch.device("cpu"), torch.float32)
ODD_STEP, SEED, CORPUS = 21, 5, 120  # the step, from 1, that has an odd row; the seed of the order; rows
ODD = int(RowOrder(CORPUS, SEED).at((ODD_STEP - 1) * ROWS + 2))
LATER = int(RowOrder(CORPUS, SEED).at((ODD_STEP + 4) * ROWS))  # of step 26
POISON = 60  # a token that this row alone may hold
SHAPE = ModelConfig.from_depth(1, vocab_size=V, sequence_len=T, architecture={**RECIPES["compact-2026-11"]["architecture"], "width": 32, "head_dim": 16})


def corpus(folder: Path, odd: str) -> Path:
    """Rows that count upwards from somewhere, but for one, in token rows as stage tokenize leaves them."""
    rows = (np.arange(T + 1) + np.random.default_rng(0).integers(0, V - 1, (CORPUS, 1))) % (V - 1)
    if odd in ("noise", "both"):
        rows[ODD] = np.random.default_rng(1).integers(0, V - 1, T + 1)
    if odd in ("poison", "both"):
        rows[ODD if odd == "poison" else LATER, 3] = POISON
    folder.mkdir()
    rows.astype(np.uint16).tofile(folder / "tokens.bin")
    write_json(folder / "tokenizer.json", {})
    inputs = dict.fromkeys(("text", "tokenizer"), folder / "tokenizer.json")
    counts = {"rows": len(rows), "row_tokens": T + 1, "dtype": "uint16", "vocab_size": V}
    write_manifest(folder / "manifest.json", stage="tokenize", config={"split": "train"}, inputs=inputs, outputs=["tokens.bin"], counts=counts)
    return folder / "manifest.json"


def plan_of(ranks: int = 1) -> TrainingPlan:
    horizon = {"steps": STEPS, "batch_tokens": ROWS * T}
    resolved = config.resolve_base_train(config.BaseTrainStage(recipe="compact-2026-11", depth=1, horizon=horizon, micro_batch_rows=1), "compact-2026-11")
    return plan_base_train(resolved, shape_of(SHAPE, SHAPE), ranks=ranks)


class Watched(Trainer):
    """A trainer whose whole state is looked at after every step."""

    states: list[dict[str, Tensor]]

    def _between_updates(self) -> None:
        tensors = {**own_weights(self.model, self.optimizer), **own_state(self.model, self.optimizer)}
        self.states.append({name: tensor.clone() for name, tensor in tensors.items()})
        super()._between_updates()


def trainer(folder: Path, manifest: Path, policy: dict[str, Any], *, stop: StopRequest | None = None, runtime: Runtime = CPU) -> Watched:
    """A training on such a corpus."""
    plan = plan_of(runtime.world_size)
    model = GPT(SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.embedding.weight[POISON] = math.nan  # whoever reads it gets a loss that is none
    batches = TextBatches(TokenRows([manifest], "train"), rows_per_step=ROWS, seed=SEED)
    settings = Settings("test", validate_every=0, sample_every=0, save_every_s=1e9, flops_per_token=1000, on_bad_step=OnBadStep(**policy))
    work = {"stage": "base_train", "config": {"on_bad_step": policy} if policy else {}, "inputs": {}}
    optimizer = build_optimizer(model, plan, runtime)
    arguments = (model, optimizer, plan, batches, runtime)
    made = Watched(*arguments, folder=folder, fingerprint="f", work=work, settings=settings, stop=stop, row_ids=batches.row_ids)
    made.states = []
    return made


def bad_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "bad_step" in line]


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name].nan_to_num(99.0), other[name].nan_to_num(99.0))]


def same(one: Counters, other: Counters) -> bool:
    return dataclasses.replace(one, elapsed_s=0.0) == dataclasses.replace(other, elapsed_s=0.0)


# --- what a spike is -------------------------------------------------------------------------------------------------


def test_a_spike_stands_so_many_deviations_above_the_recent_mean() -> None:
    recent = [2.0, 4.0] * 5  # mean 3, deviation 1
    policy = OnBadStep(sigma=6.0, history=10)
    assert spike(9.0, recent, policy) is None
    assert spike(9.01, recent, policy) == "loss 9.0100 is a spike, 6.0 standard deviations above the mean of the last 10 losses, 3.0000"
    assert spike(-9.0, recent, policy) is None, "a fall is good news"
    assert spike(9.01, recent[1:], policy) is None, "nine losses are no history of ten"
    assert spike(5.1, recent, OnBadStep(sigma=2.0, history=10)) is not None


def test_losses_that_hardly_differ_make_no_spike_of_the_next() -> None:
    policy = OnBadStep(history=10)
    assert spike(2.001, [2.0] * 10, policy) is None and spike(2.1, [2.0] * 10, policy) is not None


# --- what is done about it -------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_its_rows_and_the_state_goes_on_when_it_may_be_skipped(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "tokens", "poison")
    stopping = trainer(tmp_path / "out", manifest, {})
    stopping.settings = dataclasses.replace(stopping.settings, save_every_s=0.0)
    with pytest.raises(UserError, match=rf"step {ODD_STEP}: loss is nan; nothing was updated and the state of step {ODD_STEP - 1} is kept") as error:
        stopping.run()
    assert f"nanochat data show {tmp_path / 'out'} {ODD}" in str(error.value) and "set on_bad_step.non_finite: skip" in str(error.value)
    [line] = bad_lines(tmp_path / "out")
    assert (line["step"], line["bad_step"], line["action"], line["rows"][0], line["micro_batch_losses"][0]) == (ODD_STEP, "non_finite", "stopped", ODD, "nan")
    assert len(line["rows"]) == ROWS and all(math.isfinite(loss) for loss in line["micro_batch_losses"][1:])

    skip = {"non_finite": "skip"}
    going_on = trainer(tmp_path / "out", manifest, skip)
    counters = going_on.run()
    assert len(going_on.states) == STEPS - ODD_STEP + 1, "from the saved state, not from the beginning"
    whole = trainer(tmp_path / "whole", manifest, skip)
    assert same(whole.run(), counters) and not differing(whole.states[-1], going_on.states[-1])
    assert (counters.step, counters.passed_over, counters.non_finite_steps, counters.spikes) == (STEPS, 1, 1, 0)
    beat = json.loads((tmp_path / "out" / "heartbeat.json").read_text())
    assert (beat["bad_steps"], beat["bad_steps_skipped"]) == (1, 1) == tuple(counters.bad_steps.values())
    assert not differing(whole.states[ODD_STEP - 2], whole.states[ODD_STEP - 1]), "neither weights nor optimizer know of the step"
    assert differing(whole.states[ODD_STEP - 1], whole.states[ODD_STEP])
    assert [(line["step"], line["action"]) for line in bad_lines(tmp_path / "whole")] == [(ODD_STEP, "skipped")]


def test_a_spike_is_said_and_changes_nothing_unless_it_is_to_be_skipped(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "tokens", "noise")
    never = trainer(tmp_path / "never", manifest, {})  # no history of a hundred losses in thirty steps
    assert never.run().spikes == 0 and not bad_lines(tmp_path / "never")

    told = trainer(tmp_path / "told", manifest, {"history": HISTORY, "sigma": 4.0})
    counters = told.run()
    assert not differing(never.states[-1], told.states[-1]) and (counters.spikes, counters.passed_over) == (1, 0)
    [line] = bad_lines(tmp_path / "told")
    assert (line["step"], line["bad_step"], line["action"], line["rows"][0]) == (ODD_STEP, "spike", "ignored", ODD)
    assert line["micro_batch_losses"] == sorted(line["micro_batch_losses"], reverse=True) and "is a spike" in line["why"]

    skipping = trainer(tmp_path / "skipping", manifest, {"history": HISTORY, "sigma": 4.0, "spike": "skip"})
    counters = skipping.run()
    assert (counters.spikes, counters.passed_over, counters.step) == (1, 1, STEPS)
    assert not differing(skipping.states[ODD_STEP - 2], skipping.states[ODD_STEP - 1])
    assert not differing(told.states[ODD_STEP - 2], skipping.states[ODD_STEP - 2]) and differing(told.states[ODD_STEP - 1], skipping.states[ODD_STEP - 1])

    with pytest.raises(UserError, match=rf"step {ODD_STEP}: loss .* is a spike, .*; nothing was updated and no earlier state was saved; set on_bad_step.spike"):
        trainer(tmp_path / "stopping", manifest, {"history": HISTORY, "sigma": 4.0, "spike": "stop"}).run()


@pytest.mark.parametrize("before", [3, 1, 0, -1])
def test_a_run_that_is_interrupted_around_a_skipped_step_ends_the_same(tmp_path: Path, before: int) -> None:
    """The losses that a spike is measured by are part of the saved state."""
    manifest, policy = corpus(tmp_path / "tokens", "noise"), {"history": HISTORY, "sigma": 4.0, "spike": "skip"}
    whole = trainer(tmp_path / "whole", manifest, policy)
    expected = whole.run()
    stop = StopRequest()
    first = trainer(tmp_path / "out", manifest, policy, stop=stop)
    first.settings = dataclasses.replace(first.settings, validate_every=ODD_STEP - before)
    first.validate = lambda: setattr(stop, "reason", "SIGTERM")
    with pytest.raises(Stopped):
        first.run()
    second = trainer(tmp_path / "out", manifest, policy)
    assert same(second.run(), expected) and not differing(whole.states[-1], second.states[-1])
    assert bad_lines(tmp_path / "out") == bad_lines(tmp_path / "whole")


def test_what_goes_wrong_again_and_again_stops_however_it_was_to_be_skipped(tmp_path: Path) -> None:
    broken = trainer(tmp_path / "out", corpus(tmp_path / "tokens", "noise"), {"non_finite": "skip"})
    with torch.no_grad():
        broken.model.head.weight[0, 0] = math.nan  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match=rf"step {MOST_IN_A_ROW}: loss is nan; {MOST_IN_A_ROW} steps in a row were skipped"):
        broken.run()


def test_a_validation_that_is_not_finite_stops_with_a_sentence(tmp_path: Path) -> None:
    """Such a loss cannot be saved either: JSON has no NaN."""
    broken = trainer(tmp_path / "out", corpus(tmp_path / "tokens", "noise"), {"non_finite": "skip"})
    broken.settings = dataclasses.replace(broken.settings, validate_every=3, save_every_s=0.0)
    broken.validate = lambda: Validation(math.nan, math.nan)
    with pytest.raises(UserError, match=r"step 3: validation loss is nan; the model itself is broken.*; the state of step 2 is kept"):
        broken.run()


@pytest.mark.parametrize(
    ("old", "new", "counters", "wanted"),
    [
        ({}, {}, {}, True),
        ({}, {"non_finite": "skip"}, {}, True),
        ({"non_finite": "skip"}, {}, {"non_finite_steps": 1}, False),
        ({"non_finite": "skip"}, {"non_finite": "skip"}, {"non_finite_steps": 1}, True),
        ({}, {"spike": "skip"}, {"spikes": 0}, True),
        ({}, {"spike": "skip"}, {"spikes": 1}, False),
        ({}, {"spike": "skip"}, {}, False),  # spikes were not counted yet when it was saved
        ({}, {"sigma": 3.0}, {"spikes": 1}, True),
        ({}, {"spike": "skip", "sigma": 3.0}, {"spikes": 0}, False),
        ({"spike": "stop"}, {"spike": "skip"}, {"spikes": 0}, True),
        ({"spike": "skip"}, {"spike": "skip"}, {"spikes": 2}, True),
    ],
)
def test_a_state_goes_on_under_another_policy_if_that_would_have_made_the_same(old: dict, new: dict, counters: dict, wanted: bool) -> None:
    assert goes_on(old, new, counters) == wanted


def test_a_neutral_policy_is_no_part_of_what_a_stage_is() -> None:
    """What was made before there was one stays what it is."""
    plain = config.BaseTrainStage(recipe="compact-2026-11", depth=1)
    resolved = config.resolve_base_train(plain, "compact-2026-11")
    assert "on_bad_step" in resolved and "on_bad_step" not in config.identity(resolved)
    neutral = config.BaseTrainStage(recipe="compact-2026-11", depth=1, on_bad_step={"spike": "ignore", "sigma": 6})
    assert config.identity(config.dump(neutral)) == config.identity(config.dump(plain))
    other = config.BaseTrainStage(recipe="compact-2026-11", depth=1, on_bad_step={"spike": "skip"})
    assert config.identity(config.dump(other))["on_bad_step"] == {"spike": "skip"}
    tune = config.TuneStage(mixture=[{"task": "identity"}]).model_dump(mode="json")
    assert "on_bad_step" not in config.identity(tune)


# --- ranks -----------------------------------------------------------------------------------------------------------


def _rank(rank: int, port: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    policy = {"history": HISTORY, "sigma": 4.0, "spike": "skip", "non_finite": "skip"}
    runtime = Runtime(torch.device("cpu"), torch.float32, rank=rank, local_rank=rank, world_size=2)
    found = trainer(folder / "out", folder / "tokens" / "manifest.json", policy, runtime=runtime)
    counters = found.run()
    results.put((rank, dataclasses.asdict(counters), {name: weight.detach().numpy() for name, weight in found.model.named_parameters()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_ranks_pass_over_the_same_steps(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "tokens", "both")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, port, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    first, second = sorted((results.get(timeout=120) for _ in processes), key=lambda entry: entry[0])
    for process in processes:
        process.join(60)
    assert {**first[1], "elapsed_s": 0} == {**second[1], "elapsed_s": 0} and first[1]["passed_over"] == 2
    assert all(np.array_equal(first[2][name], second[2][name], equal_nan=True) for name in first[2])
    alone = trainer(tmp_path / "alone", manifest, {"history": HISTORY, "sigma": 4.0, "spike": "skip", "non_finite": "skip"})
    alone.run()
    for here, there in zip(bad_lines(tmp_path / "alone"), bad_lines(tmp_path / "out"), strict=True):
        assert (here["step"], here["bad_step"], here["rows"]) == (there["step"], there["bad_step"], there["rows"])
    assert [(line["bad_step"], line["step"], line["rows"][0]) for line in bad_lines(tmp_path / "out")] == [
        ("spike", ODD_STEP, ODD),
        ("non_finite", ODD_STEP + 5, LATER),
    ]
