"""What a GPU would be asked, on one that is not there (pretend_gpu.py): `python tests/gpu_lab.py OUT` runs every scenario and writes OUT/NAME.json.

Each scenario is a part of the program as its stages call it, wholly with tensors that say they are on a GPU.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretend_gpu import GPU, PretendGPU, Told  # before torch  # isort: skip
import torch
import torch.distributed as dist
from model_cases import ON, config, shaken, some_ids
from test_training import CPU, FixedRows, V, make_model, make_plan, random_rows

from nanochat.bench.infer import NumbersOnly
from nanochat.engine import Engine
from nanochat.eval.bpb import text_loss_of
from nanochat.eval.categorical import last_logits
from nanochat.eval.core.prompts import Item
from nanochat.eval.core.scoring import score_items
from nanochat.model.windows import FlexWindows
from nanochat.optim import shares
from nanochat.rl.objective import Policy
from nanochat.runtime import Runtime
from nanochat.train.measure import MeasuredOptimizer
from nanochat.train.state import own_state, own_weights, restore_model, restore_optimizer
from nanochat.train.tensorfile import TensorFiles, write_tensors
from nanochat.train.update import build_optimizer, make_update

OUT = Path(sys.argv[1])
ONE = Runtime(GPU, torch.float64)
PROMPTS = [[1, 2, 3], [4], [5, 6]]


def started() -> Any:
    """What a start on the second of two GPUs asks for."""
    asked: dict[str, Any] = {}
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
    torch.cuda.set_device = lambda device: asked.update(current=str(device))
    torch.cuda.get_device_properties = lambda device: type("Card", (), {"name": "NVIDIA A100-SXM4-80GB", "total_memory": 80 << 30})
    dist.init_process_group = lambda backend, **more: asked.update(backend=backend, device_id=str(more.get("device_id")), after=asked.get("current"))
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "CUBLAS_WORKSPACE_CONFIG": ":0:0"}
    runtime = Runtime.start(device="cuda")
    found = {"dtype": str(runtime.dtype), "mode": torch.get_deterministic_debug_mode(), "workspace": os.environ["CUBLAS_WORKSPACE_CONFIG"]}
    return {**asked, **found, "fills": torch.utils.deterministic.fill_uninitialized_memory}


def trained() -> Any:
    """Two updates, the second one measured, and the same on a CPU."""
    plan, rows = make_plan(), FixedRows(*random_rows())
    models = make_model().to("cuda"), make_model()
    optimizers = [build_optimizer(model, plan, runtime) for model, runtime in zip(models, (ONE, CPU), strict=True)]
    Told.forget()
    losses = [[make_update(models[0], optimizers[0], plan, rows, ONE, 0).loss]]
    waits = dict(Told.waits)
    losses[0].append(make_update(models[0], measured := MeasuredOptimizer(optimizers[0]), plan, rows, ONE, 1).loss)
    losses.append([make_update(models[1], optimizers[1], plan, rows, CPU, step).loss for step in range(2)])
    return {"losses": losses, "waits": waits, "copied_writes": Told.copied_writes, "norms": len(measured.norms())}


def recomputed() -> Any:
    """Loss and gradients in bf16 of a model with windows, its blocks kept or computed again, and in eight bits."""
    found = {}
    for name in ("kept", "again", "fp8"):
        model = shaken(config({**ON, "window_pattern": "SL"}, sequence_len=160, width=128, kv_heads=2, depth=2))
        model.dtype, model.recompute = torch.bfloat16, name == "again"
        if name == "fp8":
            model.use_fp8()
        model = model.to("cuda")
        loss, _ = model.loss(some_ids(2, 160).to("cuda"), some_ids(2, 160, seed=1).to("cuda"))
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found[name] = [float(loss), float(sum(gradient.float().abs().sum() for gradient in gradients)), sorted({str(g.dtype) for g in gradients})]
    return found


def validated() -> Any:
    """The loss that validation takes, with windows that a compiled training would leave to flex_attention, and of a CPU."""
    losses = []
    for device in ("cuda", "cpu"):
        model = shaken(config({**ON, "window_pattern": "SL"}, sequence_len=160), torch.float64).to(device)
        model.windowed = FlexWindows() if device == "cuda" else None
        ids, targets = (some_ids(2, 160, seed=seed).to(device) for seed in (0, 1))
        losses.append(text_loss_of(model, ids, targets, torch.arange(70, device=device)).nats)
    return losses


def answered() -> Any:
    """Answers to prompts of different lengths on both devices, greedy and drawn; letters; CORE."""
    options: list[dict[str, Any]] = [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0}]
    cpu = Engine(make_model(), NumbersOnly(V))
    gpu = Engine(make_model().to("cuda"), NumbersOnly(V))
    Told.forget()
    found = [[engine.generate_batch(PROMPTS, max_new_tokens=6, **chosen) for chosen in options] for engine in (gpu, cpu)]
    told = {"uploads": Told.uploads, "sorted_writes": Told.sorted_writes}
    beginning = list(range(1, 9))
    items = [Item(0, [[*beginning, 20, 21], [*beginning, 22]], [8, 8], 8, 0, False), Item(1, [[9, 8, 7, 30]], [3], 3, 0, False)]
    scores = [[one.losses for one in score_items(engine.model, items)] for engine in (gpu, cpu)]
    letters = [last_logits(engine.model, PROMPTS, 0).sum(dim=-1).tolist() for engine in (gpu, cpu)]
    return {"answers": found, "told": told, "scores": scores, "letters": letters}


def rewarded() -> Any:
    """The objective of reinforcement learning and its gradient."""
    model = make_model().to("cuda")
    ids, targets = torch.cat([torch.tensor([[3], [-1]]), some_ids(2, 16, V)], dim=1).to("cuda"), some_ids(2, 16, V, seed=3).to("cuda")
    targets[:, :4] = -1
    loss, _ = Policy(model, samples=4, temperature=1.0).loss(ids, targets)
    loss.backward()
    return float(loss), str(model.head.weight.grad.device)


def resumed() -> Any:
    """An update, and that of another model and optimizer that have read the saved state; sums of all weights after it."""
    plan, rows, losses = make_plan(), FixedRows(*random_rows()), []
    for turn in range(2):
        model = make_model().to("cuda")
        optimizer = build_optimizer(model, plan, ONE)
        if turn:
            restore_model(model, files := TensorFiles([OUT / "state.safetensors"]))
            restore_optimizer(model, optimizer, files)
        else:
            make_update(model, optimizer, plan, rows, ONE, 0)
            write_tensors(OUT / "state.safetensors", {**own_weights(model, optimizer), **own_state(model, optimizer)})
        update = make_update(model, optimizer, plan, rows, ONE, 1)
        losses.append([update.loss, update.grad_norm, *(float(parameter.detach().sum()) for parameter in model.parameters())])
    return losses


def exchanged() -> Any:
    """An update of one of two ranks, the other answering at once; what is sent must be on the GPU."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    two = dataclasses.replace(ONE, rank=1, world_size=2)
    shares.KEPT_WHOLE = 64  # elements, so that one group is cut and another is not
    model = make_model().to("cuda")
    optimizer = build_optimizer(model, dataclasses.replace(make_plan(), ranks=2, micro_batch_rows=2), two)
    loss, _ = model.loss(some_ids(1, 16, V).to("cuda"), some_ids(1, 16, V, seed=1).to("cuda"))
    loss.backward()
    Told.forget()
    with torch.no_grad():  # not `step`: what comes from the other rank has no values
        optimizer.start_reduce()
        optimizer.finish_reduce()
        optimizer.update()
    sent = {name.split(".")[1] for name in Told.operations if name.startswith("c10d.")}
    answer = two.highest(3, 4), [part.decode() for part in two.gather_bytes(b"abc")]
    dist.destroy_process_group()
    return {"sent": sorted(sent), "answer": answer}


def refused() -> Any:
    """What is said of a table and of targets that stayed on the CPU, and of a CPU's tensor that is to be sent."""
    found = []
    for leave in (lambda model: model.register_buffer("cos", model.cos.cpu()), lambda model: None):
        model = make_model().to("cuda")
        leave(model)
        try:
            model.loss(some_ids(1, 16, V).to("cuda"), some_ids(1, 16, V, seed=1))
        except RuntimeError as error:
            found.append(str(error))
    return found


def run(name: str, scenario: Callable[[], Any], operations: set[str]) -> None:
    """One scenario, its answer or its error written."""
    Told.forget()
    try:
        with PretendGPU():
            answer = scenario()
    except Exception:
        answer = {"error": traceback.format_exc()[-3000:]}
    operations |= set(Told.operations)
    (OUT / f"{name}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    asked: set[str] = set()
    for one in (trained, recomputed, validated, answered, rewarded, resumed, exchanged, refused, started):
        run(one.__name__, one, asked)
    (OUT / "operations.json").write_text(json.dumps(sorted(asked)))
