"""nanochat bench: its figures against independent counts, known delays, and one sentence for bad input."""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.bench import command
from nanochat.bench.data import measure_data, sample_documents
from nanochat.bench.infer import measure_generation
from nanochat.bench.measure import Taken, products, summary
from nanochat.bench.setup import Request, Setup, build
from nanochat.bench.show import lines
from nanochat.bench.train import measure_training, speeds
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.train.update import Rows

TINY = ["architecture.width=64", "architecture.head_dim=32"]


def tiny(**changes: Any) -> Setup:
    return build(Request(**{"recipe": "compact-2026-11", "depth": 2, "overrides": TINY, "sequence_len": 32, "vocab_size": 300, "device": "cpu", **changes}))


class Slow:
    """Batches that take their time."""

    def __init__(self, batches: Any, seconds: float) -> None:
        self.batches, self.seconds = batches, seconds

    def rows(self, step: int, positions: Any) -> tuple[Rows, Rows]:
        time.sleep(self.seconds)
        found: tuple[Rows, Rows] = self.batches.rows(step, positions)
        return found


def with_batches(setup: Setup, batches: Any) -> Setup:
    return Setup(**{**vars(setup), "batches": batches})


def test_the_age_of_a_process_is_counted_from_its_start() -> None:
    program = "import time; began = time.time(); from nanochat.runtime import process_age_s; print(began - time.time() + process_age_s(), began)"
    asked = time.time()
    age_s, began = map(float, subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.split())
    assert 0 <= age_s <= began - asked + 0.02  # the kernel's clock ticks a hundred times a second


class TooLarge(Slow):
    """Batches for which the machine has not the memory."""

    def rows(self, step: int, positions: Any) -> tuple[Rows, Rows]:
        ids, targets = super().rows(step, positions)
        return np.lib.stride_tricks.as_strided(ids, (1 << 40, ids.shape[1]), (0, ids.strides[1])), targets


def test_steps_that_do_not_fit_are_one_sentence() -> None:
    setup = tiny()
    with pytest.raises(UserError, match=r"^out of memory with 8 x 32 tokens at a time; give --override micro_batch_rows=4, or take recompute: blocks"):
        measure_training(with_batches(setup, TooLarge(setup.batches, 0.0)), steps=1, started_s=time.time(), sizes=(64,))


# --- train -----------------------------------------------------------------------------------------------------------


def test_training_figures_fit_together_and_the_model_really_learns() -> None:
    setup = tiny()
    before = setup.model.head.weight.detach().clone()
    began, started = time.perf_counter(), time.time()
    found = measure_training(setup, steps=4, started_s=started, sizes=(64,))
    elapsed_s = time.perf_counter() - began
    rates = found["tokens_per_s"]
    assert found["batch_tokens"] == 8 * 32 == found["micro_batches"] * found["micro_batch_rows"] * 32
    assert rates["worst"] <= rates["median"] <= rates["best"]
    assert 4 * found["batch_tokens"] / rates["median"] < elapsed_s < 60
    assert found["batch_tokens"] / found["step_s"] == pytest.approx(rates["median"], rel=0.5)  # the median of an even number is between two steps
    # by hand: per layer 4 C^2 of attention and 8 C^2 of the MLP, a head of 320 rows (300, padded); 2 layers of attention over T; 6 and 12 FLOPs each
    # a gate of 12 x 2 heads in the last layer
    products_of_weights = 2 * 12 * 64 * 64 + 320 * 64 + 12 * 2
    assert found["model_flops_per_token"] == 6 * products_of_weights + 12 * 64 * 2 * 32
    assert found["achieved_flops_per_s"] == pytest.approx(rates["median"] * found["model_flops_per_token"])
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=1e-6)
    assert set(found["shares"]) == {"forward", "backward", "optimizer", "data", "rest"}
    assert all(share > 0 for share in found["shares"].values())
    assert 0 < found["first_step"]["update_s"] <= found["first_step"]["since_process_start_s"] < elapsed_s
    assert found["peak_memory"]["process_bytes"] > 50e6
    assert not torch.equal(before, setup.model.head.weight)
    assert len(lines(found)) == 10
    assert not found["compiled"] and "not counted" not in "".join(lines(found))
    # by hand: weights, gradients and one moment or two of all parameters are held, and a process with torch
    parameters = found["setup"]["parameters"]
    assert 300 << 20 < found["estimated_memory_bytes"] - 4 * 4 * parameters < 400 << 20
    json.dumps(found)


def test_a_slow_reader_is_seen_in_speed_and_share() -> None:
    setup = tiny()
    plain = measure_training(setup, steps=3, started_s=time.time(), sizes=(64,))
    slow = measure_training(with_batches(setup, Slow(setup.batches, 0.15)), steps=3, started_s=time.time(), sizes=(64,))
    assert slow["tokens_per_s"]["best"] < plain["tokens_per_s"]["best"]
    assert slow["step_s"] >= 0.15
    assert slow["tokens_per_s"]["best"] <= slow["batch_tokens"] / 0.15
    assert slow["shares"]["data"] > max(0.05, plain["shares"]["data"])


def test_shares_leave_the_model_and_its_bits_as_they_were() -> None:
    def weights(steps: int) -> torch.Tensor:
        setup = tiny()
        measure_training(setup, steps=steps, started_s=time.time(), sizes=(64,))
        assert not any(parameter._post_accumulate_grad_hooks for parameter in setup.model.parameters())
        return setup.model.head.weight.detach()

    assert torch.equal(weights(2), weights(2))


def test_utilisation_is_the_steps_rate_over_that_of_the_fastest_product_of_its_round() -> None:
    """By hand: products of 2 x 64^3 FLOPs each, repeated up to 2 x 1024^3; a step of so many FLOPs in half of their speed."""
    setup = tiny()
    rivals = products((64, 128), torch.device("cpu"), torch.float32)
    assert [rival.flops for rival in rivals] == [2 * 1024**3] * 2
    flops = setup.plan.batch_tokens * setup.config.flops_per_token()
    second = 2 * 1024**3 / 1e9  # a product at 1 GFLOP/s
    step = flops / 0.5e9
    multiplied = [[Taken(second, second), Taken(second / 2, second / 2)], [Taken(2 * second, 2 * second), Taken(second, second)]]
    found = speeds(setup, [Taken(step, step / 2), Taken(step / 2, step / 4)], rivals, multiplied)
    assert found["utilisation"]["value"] == pytest.approx(0.5)  # 0.5 of 1, then 1 of 2
    assert found["utilisation"]["by_cpu_seconds"] == pytest.approx(1.0)
    assert found["utilisation"]["best_step_of_best_product"] == pytest.approx(0.5)
    assert found["utilisation"]["of_flops_per_s"] == pytest.approx(1.5e9)


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA A100-SXM4-80GB", 312e12), ("Some new card", None)])
def test_a_known_card_has_a_peak_and_an_unknown_one_a_reason(name: str, peak: float | None) -> None:
    setup = tiny()
    setup.runtime.facts["device_name"] = name
    found = speeds(setup, [Taken(1.0, 1.0)], [], [])
    if peak is None:
        assert found["utilisation"]["value"] is None
        assert name in found["utilisation"]["unavailable"]
    else:
        assert found["utilisation"]["value"] == pytest.approx(256 * setup.config.flops_per_token() / peak)


def test_a_summary_is_that_of_the_middle() -> None:
    assert summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "best": 5.0, "worst": 1.0, "middle_half": [2.0, 4.0], "measurements": 5}
    assert summary([7.0])["middle_half"] == [7.0, 7.0]


def test_blocks_are_compiled_and_recomputed_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself takes a minute of a CPU: here it gives back what it was handed."""
    handed: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: handed.append(function) or (lambda ids: function(ids)))
    monkeypatch.setattr("nanochat.model.compiling.problem_of", lambda device: None)
    setup = tiny(overrides=[*TINY, "recompute=blocks"])
    found = measure_training(setup, steps=1, started_s=time.time(), sizes=(64,), compile_="on")
    assert handed == [setup.model.hidden] and found["compiled"] and setup.model.recompute
    assert any(line.startswith("blocks") and line.endswith("compiled, recompute: blocks") for line in lines(found))
    assert "neither is counted" in "".join(lines(found))


# --- infer -----------------------------------------------------------------------------------------------------------


def test_generation_figures_count_every_token_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column after the first is one call of the engine with all rows; a known delay in it bounds the speed."""
    widths: list[int] = []
    extend = Engine.extend

    def slow(self: Engine, tokens: list[int], cache: Any) -> torch.Tensor:
        widths.append(len(tokens))
        time.sleep(0.02)
        return extend(self, tokens, cache)

    monkeypatch.setattr(Engine, "extend", slow)
    found = measure_generation(tiny(), batches=[1, 3], prompt_tokens=16, new_tokens=5, rounds=2, temperature=0.6, top_k=10)
    assert widths == [1] * 4 * 3 + [3] * 4 * 3  # the last token is not read; a round to warm up and two
    for batch, rows in zip(found["batches"], (1, 3), strict=True):
        assert batch["rows"] == rows
        # 4 tokens after the first one, for which 3 calls are made after that of the first
        assert 0 < batch["decode_tokens_per_s"]["best"] <= rows * 4 / (3 * 0.02)
        assert batch["first_token_s"] > 0.02
        assert batch["prefill_tokens_per_s"]["median"] > rows * 16 / 5
    assert len(lines(found)) == 1 + 1 + 2 * 3 + 1


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_figures_are_of_the_text_that_was_measured() -> None:
    found = measure_data(tiny(vocab_size=400), megabytes=0.05, rounds=2)
    texts = sample_documents(50_000)
    assert found["text_bytes"] == sum(len(text.encode()) for text in texts) >= 50_000
    assert found["documents"] == len(texts)
    ratio = found["encoding"]["of_tiktoken"]
    assert 0.1 < ratio["worst"] <= ratio["best"] < 10
    assert found["packing"]["tokens_per_cpu_s"] == pytest.approx(33 * found["packing"]["rows_per_cpu_s"]["median"])
    assert 0.05e6 / 8 < found["packing"]["rows"] * 33 < 0.05e6
    assert 0.1 < found["reading"]["share_of_step"] / (found["reading"]["read_s"] / found["reading"]["step_s"]) < 10, "a median of ratios and a ratio of medians"
    assert len(lines(found)) == 7


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_command_prints_lines_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--depth", "1", "--sequence-len", "32", "--vocab-size", "300", "--device", "cpu", "--override", "architecture.width=64"]
    command.main(["infer", *flags, "--rows", "2", "--rounds", "1", "--new-tokens", "3"])
    assert "2 rows: written" in capsys.readouterr().out
    command.main(["infer", *flags, "--rows", "2", "--rounds", "1", "--new-tokens", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["setup"]["width"], found["setup"]["depth"], found["new_tokens"]) == (64, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--depth", "0"], "--depth: '0' is not a whole number above 0"),
        (["train", "--depth", "300"], "depth=300"),
        (["infer", "--depth", "250"], "weights alone of this model take about 3.1 TB of memory and "),
        (["train", "--recipe", "best"], "recipe='best': not defined"),
        (["train", "--override", "architecture.wdith=64"], "architecture.wdith: unknown key"),
        (["train", "--override", "architecture.width"], "not KEY=VALUE"),
        (["train", "--override", "horizon.steps=3"], "give --steps"),
        (["train", "--override", "depth.x=3"], "depth is no section"),
        (["train", "--override", "architecture.width=100"], "width=100: not a multiple of head_dim=64"),
        (["train", "--sequence-len", "500", "--batch-tokens", "4096"], "--batch-tokens=4096: not a multiple of --sequence-len 500; try 4000"),
        (["train", "--vocab-size", "100"], "--vocab-size=100: give a number from 265"),
        (["train", "--sequence-len", "4"], "--sequence-len=4: give a number from 16"),
        (["train", "--steps", "many"], "--steps: 'many' is not a whole number above 0"),
        (["train", "--compile", "maybe"], "--compile: invalid choice: 'maybe'"),
        (["train", "--override", "fp8=true"], "fp8=true: a CPU has no units for eight-bit products"),
        (["infer", "--new-tokens", "300", "--depth", "1"], "--new-tokens=300: give 2 at least, and at most half of --sequence-len 512"),
        (["infer", "--new-tokens", "200", "--prompt-tokens", "400", "--depth", "1"], "give at most 312"),
        (["infer", "--temperature", "-1"], "--temperature: '-1' is not a number from 0"),
        (["data", "--megabytes", "0"], "--megabytes: '0' is not a number above 0"),
        (["data", "--megabytes", "0.001", "--depth", "1"], "lower vocab_size"),
        (["sing"], "invalid choice: 'sing'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        command.main([*arguments, *([] if arguments == ["sing"] else ["--device", "cpu"])])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_an_absent_device_is_refused() -> None:
    with pytest.raises(UserError, match="device=cuda: not available here"):
        command.main(["train", "--device", "cuda"])
