"""One update, exactly: accumulation, masks, skipped and broken steps, and that training learns."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat import config
from nanochat.artifacts import write_bytes, write_manifest
from nanochat.errors import Stopped, UserError
from nanochat.hardware import peak_flops
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.recipes import RECIPES
from nanochat.runtime import Runtime, StopRequest
from nanochat.stages.training import Session, Work, verify_files
from nanochat.train.counters import Validation
from nanochat.train.loop import Settings, Trainer
from nanochat.train.metrics import MetricsFile
from nanochat.train.scaling import Shape, plan_base_train
from nanochat.train.update import build_optimizer, make_update, positions_of, set_rates

T, V, ROWS = 16, 61, 8
RECIPE = "compact-2026-11"
CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small only suffer from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FixedRows:
    """The same rows at every step."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets, self.seen = inputs, targets, []

    def rows(self, step, positions):
        self.seen.append((step, list(positions)))
        return self.inputs[list(positions)].copy(), self.targets[list(positions)].copy()


def make_model(dtype=torch.float64):
    architecture = {**RECIPES[RECIPE]["architecture"], "width": 32, "head_dim": 16}
    model = GPT(ModelConfig.from_depth(2, vocab_size=V, sequence_len=T, architecture=architecture), dtype=dtype)
    with torch.no_grad():  # outputs start at zero; give every gradient a path
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def make_plan(*, micro_batch_rows=4, steps=4, **optimizer):
    overrides = {"horizon": {"steps": steps, "batch_tokens": ROWS * T}, "micro_batch_rows": micro_batch_rows, "optimizer": optimizer}
    resolved = config.resolve_base_train(config.BaseTrainStage(recipe=RECIPE, depth=2, **overrides), RECIPE)
    counts = {"all": 10_000, "scaling": 5_000}
    return plan_base_train(resolved, Shape(2, 32, V, T, counts, counts))


def random_rows(seed=0):
    rows = np.random.default_rng(seed).integers(0, V, (ROWS, T + 1))
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def trained(plan, inputs, targets, *, updates=2, dtype=torch.float64):
    """Weights and losses after a few updates."""
    model = make_model(dtype)
    optimizer = build_optimizer(model, plan, CPU)
    losses = [make_update(model, optimizer, plan, FixedRows(inputs, targets), CPU, step).loss for step in range(updates)]
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}, losses


def largest_difference(one, other):
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 4])
def test_eight_micro_batches_of_one_row_are_one_of_eight(micro_batch_rows):
    inputs, targets = random_rows()
    targets[0, 3:] = -1  # rows with different numbers of targets: a mean of means would differ
    targets[5] = -1
    whole, losses = trained(make_plan(micro_batch_rows=8), inputs, targets)
    pieces, same = trained(make_plan(micro_batch_rows=micro_batch_rows), inputs, targets)
    assert losses == pytest.approx(same, rel=1e-9)
    assert largest_difference(whole, pieces) < 1e-7
    start = {name: parameter.detach() for name, parameter in make_model().named_parameters()}
    assert largest_difference(whole, start) > 1e-3


def test_reported_loss_is_the_mean_over_counted_targets():
    inputs, targets = random_rows()
    targets[:, ::2] = -1
    _, losses = trained(make_plan(), inputs, targets, updates=1)
    with torch.no_grad():
        logits = make_model()(torch.from_numpy(inputs))
    flat = torch.from_numpy(targets).flatten()
    assert losses[0] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), flat, ignore_index=-1)), rel=1e-5)


def test_masked_targets_do_not_matter_and_counted_ones_do():
    inputs, targets = random_rows()
    mask = np.random.default_rng(5).random(targets.shape) < 0.5
    plan = make_plan()
    reference, _ = trained(plan, inputs, np.where(mask, -1, targets))
    changed_masked = np.where(mask, (targets + 1) % V, targets)
    again, _ = trained(plan, inputs, np.where(mask, -1, changed_masked))
    changed_counted = np.where(mask, targets, (targets + 1) % V)
    different, _ = trained(plan, inputs, np.where(mask, -1, changed_counted))
    assert largest_difference(reference, again) == 0
    assert largest_difference(reference, different) > 1e-3


def test_fully_masked_micro_batch_is_harmless():
    inputs, targets = random_rows()
    targets[4:] = -1  # the second micro-batch of four rows
    weights, losses = trained(make_plan(micro_batch_rows=4), inputs, targets)
    whole, same = trained(make_plan(micro_batch_rows=8), inputs, targets)
    assert np.isfinite(losses).all() and losses == pytest.approx(same, rel=1e-9)
    assert largest_difference(weights, whole) < 1e-7


def test_step_without_any_target_changes_nothing_and_is_counted(tmp_path):
    inputs, targets = random_rows()
    plan = make_plan(steps=2)
    model = make_model(torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    counters = trainer(tmp_path, plan, model, FixedRows(inputs, np.full_like(targets, -1))).run()
    assert (counters.step, counters.skipped_steps, counters.final_loss) == (2, 2, None)
    assert largest_difference(before, dict(model.named_parameters())) == 0


def test_gradients_are_clipped_only_when_asked():
    inputs, targets = random_rows()
    free, _ = trained(make_plan(grad_clip=0.0), inputs, targets, updates=1)
    clipped, _ = trained(make_plan(grad_clip=1e-6), inputs, targets, updates=1)
    loose, _ = trained(make_plan(grad_clip=1e6), inputs, targets, updates=1)
    assert largest_difference(free, loose) == 0
    assert largest_difference(free, clipped) > 0


def test_ranks_share_a_step_without_overlap():
    plan = dataclasses.replace(make_plan(micro_batch_rows=2), ranks=2)
    mine = [position for rank in range(2) for micro in positions_of(plan, rank) for position in micro]
    assert mine == list(range(ROWS)) and plan.accumulation == 2


def test_rates_reach_every_group():
    model, plan = make_model(torch.float32), make_plan(steps=40)
    optimizer = build_optimizer(model, plan, CPU)
    multiplier = set_rates(optimizer, plan, 39)
    assert 0 < multiplier < 0.2
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(plan.groups[group["name"]]["lr"] * multiplier)
    everything = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert everything == {id(parameter) for parameter in model.parameters()}


def test_comparing_tokens_with_their_sha256_ends_when_asked_to(tmp_path):
    """Tens of gigabytes take minutes: a stop signal does not wait for them."""
    manifests = []
    for name in ("one", "two"):
        write_bytes(tmp_path / name / "tokens.bin", bytes(9 << 20))
        write_manifest(tmp_path / name / "manifest.json", stage="tokenize", config={}, inputs={}, outputs=["tokens.bin"], counts={})
        manifests.append(tmp_path / name / "manifest.json")
    work = Work("base_train", tmp_path / "out" / "model.safetensors", tmp_path / "out" / "manifest.json", {}, {}, {})
    stop = StopRequest()
    session = Session(work, dataclasses.replace(CPU, facts={"threads": 2}), stop, None, 0.0)
    verify_files(session, manifests, "tokens.bin")
    stop.reason = "SIGTERM"
    with pytest.raises(Stopped, match=r"stopped \(SIGTERM\) before training went on"):
        verify_files(session, manifests, "tokens.bin")


# --- the loop --------------------------------------------------------------------------------------------------------


def trainer(folder: Path, plan, model, rows, *, stop=None, validate=lambda: None, **settings) -> Trainer:
    defaults = {"name": "test", "validate_every": 0, "sample_every": 0, "save_every_s": 1e9, "flops_per_token": 1000}
    optimizer = build_optimizer(model, plan, CPU)
    return Trainer(
        *(model, optimizer, plan, rows, CPU), folder=folder, fingerprint="f", settings=Settings(**{**defaults, **settings}), stop=stop, validate=validate
    )


def test_batch_is_learnt_by_heart(tmp_path):
    counters = trainer(tmp_path, make_plan(steps=100), make_model(torch.float32), FixedRows(*random_rows())).run()
    assert counters.first_loss > 3.5
    assert counters.final_loss < 0.1


def test_loss_that_is_not_finite_stops_with_a_sentence_and_keeps_the_state(tmp_path):
    model, plan = make_model(torch.float32), make_plan(steps=4)
    rows = FixedRows(*random_rows())

    def poison():
        with torch.no_grad():
            model.head.weight[0, 0] = float("nan")

    broken = trainer(tmp_path, plan, model, rows, validate=poison, validate_every=2, save_every_s=0.0)
    with pytest.raises(UserError, match=r"step 3: loss is nan; nothing was updated and the state of step 2 is kept in .*resume"):
        broken.run()


def test_metrics_and_heartbeat_say_what_happened(tmp_path):
    bpb = iter([2.0, 1.5, 1.75])
    run = trainer(
        *(tmp_path, make_plan(steps=5), make_model(torch.float32), FixedRows(*random_rows())), validate=lambda: Validation(next(bpb), 3.0), validate_every=2
    )
    counters = run.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    updates, validations = ([line for line in lines if key in line] for key in ("loss", "val_bpb"))
    assert [line["step"] for line in updates] == [1, 2, 3, 4, 5]
    assert [(line["step"], line["val_bpb"]) for line in validations] == [(2, 2.0), (4, 1.5), (5, 1.75)]
    assert updates[-1]["tokens"] == 5 * ROWS * T and updates[-1]["flops"] == 5 * ROWS * T * 1000
    assert {"smoothed_loss", "lr_multiplier", "grad_norm", "elapsed_s", "tokens_per_s"} <= set(updates[0])
    assert updates[0]["smoothed_loss"] == pytest.approx(updates[0]["loss"])
    assert (counters.val_bpb, counters.min_val_bpb) == (1.75, 1.5)
    heartbeat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (heartbeat["phase"], heartbeat["step"], heartbeat["steps"]) == ("write", 5, 5)


def test_lines_after_the_resumed_step_are_taken_back(tmp_path):
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2, 3):
        file.write(step=step, loss=1.0)
    file.close()
    with (tmp_path / "metrics.jsonl").open("a") as end:
        end.write('{"step": 4, "lo')  # killed in the middle of a line
    again = MetricsFile(tmp_path, 2)
    again.write(step=3, loss=0.5)
    again.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 0.5},
    ]


def test_stopped_trainer_goes_on_where_it_was(tmp_path):
    plan, rows = make_plan(steps=6), random_rows()
    whole = make_model(torch.float32)
    trainer(tmp_path / "whole", plan, whole, FixedRows(*rows)).run()

    stop = StopRequest()
    half = make_model(torch.float32)

    def ask_to_stop():
        stop.reason = "SIGTERM"

    with pytest.raises(Stopped, match=r"stopped \(SIGTERM\) at step 3 of 6, state saved"):
        trainer(tmp_path / "half", plan, half, FixedRows(*rows), stop=stop, validate=ask_to_stop, validate_every=3).run()
    resumed = make_model(torch.float32)
    later = FixedRows(*rows)
    counters = trainer(tmp_path / "half", plan, resumed, later).run()
    assert later.seen[0][0] == 3 and counters.step == 6
    assert largest_difference(dict(whole.named_parameters()), dict(resumed.named_parameters())) == 0


def test_peak_speed_is_known_or_not_given():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("a100") == 312e12 and peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA GeForce RTX 4090") is None and peak_flops(None) is None and peak_flops("NVIDIA RTX A4000") is None
