"""Speed and memory on a GPU, as far as a CPU can tell: recomputed blocks, compiled blocks, windows, eight bits, rows read ahead."""

import contextlib
import dataclasses
import gc
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import OFF, ON, config, shaken, some_ids
from test_training import CPU, FixedRows, random_rows
from test_training import one_thread as one_thread
from torch import Tensor

from nanochat.errors import UserError
from nanochat.hardware import accelerator, peak_flops
from nanochat.model import fp8
from nanochat.model.compiling import CompiledGPT, problem_of, share_workers
from nanochat.model.gpt import GPT
from nanochat.model.windows import FlexWindows, choose, flash_windows
from nanochat.train.acceleration import accelerated, is_compiled
from nanochat.train.copies import Sender
from nanochat.train.prefetch import Prefetched
from nanochat.train.update import to_device

WINDOWED = {"window_pattern": "SL", "sequence_len": 160, "kv_heads": 2}


def gradients(model: Any, ids: Tensor, targets: Tensor, passes: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients summed over equal micro-batches."""
    weights = model.model if isinstance(model, CompiledGPT) else model
    weights.zero_grad()
    for _ in range(passes):
        total, _ = model.loss(ids, targets)
        total.backward()
    return total.detach(), {name: parameter.grad.clone() for name, parameter in weights.named_parameters()}


# --- recomputed blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [ON, OFF, {**ON, **WINDOWED}], ids=["on", "off", "windowed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["kernels of a CPU", "plain operations"])
def test_recomputed_blocks_have_the_same_bits(features: dict[str, Any], dtype: torch.dtype) -> None:
    model = shaken(config(features))
    model.dtype = dtype
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    loss, kept = gradients(model, ids, targets, passes=2)
    model.recompute = True
    same, again = gradients(model, ids, targets, passes=2)
    assert torch.equal(loss, same)
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


def test_recomputed_blocks_leave_nothing_to_the_collector() -> None:
    """It is off while a model trains: what waits for it would fill the memory."""
    model = shaken(config())
    model.recompute = True
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    gradients(model, ids, targets)
    gc.collect()
    gc.disable()
    try:
        gradients(model, ids, targets)
        assert gc.collect() == 0
    finally:
        gc.enable()


# --- compiled blocks and windows -------------------------------------------------------------------------------------


def test_blocks_compile_as_one_graph_with_the_same_result() -> None:
    """fullgraph: anything that the compiler cannot follow would be an error. One import of it, 1.4 s, for all of this."""
    model = shaken(config({**ON, **WINDOWED}, depth=2))
    ids, targets = some_ids(2, 160), some_ids(2, 160, seed=1)
    model.recompute = True
    loss, expected = gradients(model, ids, targets)
    said: list[str] = []
    found_loss, found = gradients(CompiledGPT(model, said.append, backend="aot_eager"), ids, targets)
    assert not said and torch.allclose(found_loss, loss, rtol=1e-6)
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)
    model.recompute, model.windowed = False, FlexWindows()
    with torch.no_grad():  # on a CPU flex_attention has no gradient
        compiled = CompiledGPT(model, said.append, backend="eager")
        windowed, _ = compiled.loss(ids, targets)
        made = dict(model.windowed.masks)
        compiled.loss(ids, targets)
        model.windowed = None
        assert not said and torch.allclose(windowed, model.loss(ids, targets)[0], rtol=1e-6)
        assert list(made) == [(128, 160)]


def test_a_backward_pass_that_cannot_be_compiled_is_done_without() -> None:
    from torch._dynamo.backends.common import aot_autograd

    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    model, said = shaken(config(depth=2)), list[str]()
    model.dtype = torch.bfloat16  # plain operations, as on a GPU
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    _, expected = gradients(model, ids, targets)
    compiled = CompiledGPT(model, said.append, backend=aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fails))
    _, found = gradients(compiled, ids, targets)
    assert not compiled.is_compiled and all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(said) == 1 and "no such instruction" in said[0]


def test_flex_attention_is_attention_with_a_mask() -> None:
    q, k, v = (torch.randn(2, 200, heads, 16, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    flex = FlexWindows()
    flex.prepare([None, 64, 64, 500], 200, q.device)
    assert list(flex.masks) == [(64, 200)], "once for each window that hides something"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it should be compiled
        found = flex(q, k, v, window=64, scale=0.3)
    distance = torch.arange(200)[:, None] - torch.arange(200)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    mask = (distance >= 0) & (distance < 64)
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)
    assert not torch.allclose(found, flex_full(q, k, v), atol=1e-2)


def flex_full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True)
    return y.transpose(1, 2)


def test_flash_attn_is_attention_with_a_mask_and_adds_up_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package needs a GPU: what stands for it takes its arguments by its names and computes what its documentation says."""
    orders = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False):  # type: ignore[no-untyped-def]
        orders.append(deterministic)
        behind = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        mask = (behind <= window_size[0]) & (behind >= (0 if causal else -window_size[1]))
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=softmax_scale, enable_gqa=True).transpose(1, 2)

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    q, k, v = (torch.randn(2, 160, heads, 16, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    flex = FlexWindows()
    flex.prepare([64], 160, q.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = flex(q, k, v, window=64, scale=0.3)
    assert torch.allclose(flash_windows(q, k, v, window=64, scale=0.3), expected, atol=1e-5)
    assert orders == [True]


def test_ranks_share_the_workers_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would start as many processes as the machine has cores, 32 at most."""
    import torch._inductor.config as inductor

    for workers, share in ((32, 4), (16, 2), (4, 1)):
        monkeypatch.setattr(inductor, "compile_threads", workers)
        share_workers(8)
        assert inductor.compile_threads == share


def test_what_a_device_gets() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose(cpu, torch.float32, compiled=False) == (None, "the CPU's own kernel")
    assert isinstance(choose(cuda, torch.bfloat16, compiled=True)[0], FlexWindows)
    assert choose(cuda, torch.float32, compiled=False) == (None, "SDPA with a mask")
    assert not is_compiled(cpu, "auto", CPU) and not is_compiled(cuda, "off", CPU)
    assert problem_of(torch.device("mps")) == "it is not used on mps"


def test_a_missing_compiler_is_said_with_its_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--compile=on: there is no C\+\+ compiler .* install it or give --compile off"):
        is_compiled(torch.device("cpu"), "on", CPU)
    assert not is_compiled(torch.device("cuda"), "auto", CPU)
    assert "not compiled, since " in capsys.readouterr().err


# --- eight bits ------------------------------------------------------------------------------------------------------


def test_products_in_eight_bits_are_near_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 128, generator=generator).requires_grad_(), (torch.randn(144, 128, generator=generator) * 0.1).requires_grad_()
    upstream = torch.randn(64, 144, generator=generator) * 1e-4  # gradients are small: without a scale they would be 0
    results = []
    for product in (fp8.linear, torch.nn.functional.linear):
        x.grad = weight.grad = None
        y = product(x, weight)
        y.backward(upstream)
        results.append([y.detach(), x.grad, weight.grad])
    for found, expected in zip(*results, strict=True):
        error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
        assert 0.001 < error < 0.1


def test_eight_bits_are_for_large_layers_in_training_alone() -> None:
    assert fp8.applies_to(512, 128, 512) and not fp8.applies_to(512, 64, 512) and not fp8.applies_to(100, 128, 512)
    layer = shaken(config(width=128, heads=4)).blocks[0].mlp.up  # type: ignore[union-attr]
    x = torch.randn(32, 128)
    before = layer(x)  # type: ignore[operator]
    layer.fp8 = True  # type: ignore[union-attr]
    assert not torch.equal(layer(x), before)  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(layer(x), before)  # type: ignore[operator]


def test_eight_bits_are_refused_where_there_are_none() -> None:
    section = {"recompute": "blocks", "fp8": True}
    with pytest.raises(UserError, match=r"fp8=true: a CPU has no units for eight-bit products, which begin with compute capability 8\.9; leave fp8 out"):
        accelerated(shaken(config()), CPU, section, compile_="auto")
    model = shaken(config())
    assert accelerated(model, CPU, {**section, "fp8": False}, compile_="auto") is model
    assert model.recompute and not any(getattr(module, "fp8", False) for module in model.modules())


# --- rows and speed --------------------------------------------------------------------------------------------------


class Counted(FixedRows):
    """Rows that tell of the step."""

    def rows(self, step: int, positions: Any) -> Any:
        inputs, targets = super().rows(step, positions)
        return inputs + 100 * step, targets


def test_rows_read_ahead_are_the_same_in_the_same_order() -> None:
    source, plain = Counted(*random_rows()), Counted(*random_rows())
    ahead = Prefetched(source, steps=4)
    asked = [(step, list(range(first, first + 4))) for step in range(3) for first in (0, 4)] + [(3, [start, start + 1]) for start in (0, 2, 4, 6)]
    for step, positions in asked:
        for found, expected in zip(ahead.rows(step, positions), plain.rows(step, positions), strict=True):
            assert np.array_equal(found, expected)
    assert max(step for step, _ in source.seen) == 3, "nothing beyond the end"
    assert [entry for entry in asked if entry not in source.seen] == []
    assert source.seen.count((1, [0, 1, 2, 3])) == 1, "read once, a step before"


class Streams:
    """Stands for torch.cuda where there is none: notes what is asked of it, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.inside: list[str] = []
        self.Stream = lambda device: Named("copies", self)
        self.Event = lambda: Named("event", self)

    def current_stream(self, device: torch.device) -> "Named":
        return Named("computing", self)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.inside.append(f"on {device}")
        yield
        self.inside.pop()

    @contextlib.contextmanager
    def stream(self, named: "Named") -> Iterator[None]:
        self.inside.append(named.name)
        yield
        self.inside.pop()


class Named:
    """A stream or an event of it."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def record(self, stream: "Named") -> None:
        self.streams.said.append(("recorded on", stream.name, "inside", *self.streams.inside))

    def wait_event(self, event: "Named") -> None:
        self.streams.said.append((self.name, "waits for", event.name))


def test_rows_read_ahead_are_copied_on_a_stream_of_their_own_and_waited_for_by_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, kept = Streams(), []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: kept.append(stream.name))
    source = Counted(*random_rows())
    ahead = Prefetched(source, steps=2, send=Sender(torch.device("cpu"), streams).send)
    inputs, targets = ahead.rows(0, [0, 1])
    plain = Counted(*random_rows()).rows(0, [0, 1])
    assert np.array_equal(inputs, plain[0]) and int((targets >= 0).sum()) == int((plain[1] >= 0).sum())
    ahead.rows(1, [0, 1])  # all copies of both steps are started by now
    # not on GPU 0, where a thread begins
    assert streams.said == [("recorded on", "copies", "inside", "on cpu", "copies")] * 4 and kept == []
    tensor = to_device(inputs, CPU)
    assert torch.equal(tensor, torch.from_numpy(plain[0])) and tensor is inputs.on_gpu.tensor
    assert streams.said[4:] == [("computing", "waits for", "event")] and kept == ["computing"]
    assert torch.equal(to_device(inputs[:1], CPU), torch.from_numpy(plain[0][:1])) and len(streams.said) == 5, "a part of rows has no copy"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_read_ahead_arrive_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    source, plain = Counted(*random_rows()), Counted(*random_rows())
    ahead = Prefetched(source, steps=4, send=Sender(device).send)
    for step in range(4):
        for found, expected in zip(ahead.rows(step, [0, 1, 2]), plain.rows(step, [0, 1, 2]), strict=True):
            assert torch.equal(to_device(found, dataclasses.replace(CPU, device=device)).cpu(), torch.from_numpy(expected))


def test_utilisation_is_of_the_right_peak_or_of_none() -> None:
    for name, peak in (("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100-PCIE-40GB", 312e12), ("NVIDIA A10", 125e12), ("NVIDIA A10G", 70e12)):
        assert peak_flops(name) == peak
    slice_of_a_card = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert peak_flops(slice_of_a_card) is None and accelerator(slice_of_a_card) is not None
    assert peak_flops("NVIDIA GB10") is None


def test_a_saved_model_knows_nothing_of_the_machine() -> None:
    model = GPT(config())
    names = set(model.state_dict())
    model.recompute, model.windowed = True, FlexWindows()
    model.use_fp8()
    assert set(model.state_dict()) == names
