"""The memory model against the peak of real training steps, the rows that it chooses, and runs that go on when memory is short."""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from test_training import CPU, FixedRows
from test_training import one_thread as one_thread
from torch import Tensor

from nanochat import config
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.recipes import RECIPES
from nanochat.stages import training
from nanochat.train.fitting import is_shortage
from nanochat.train.host_memory import available_bytes
from nanochat.train.loop import Settings, Trainer
from nanochat.train.memory import CPU_MICRO_BATCH_TOKENS, USABLE, Setting, divided, most_rows, training_memory
from nanochat.train.scaling import Shape, TrainingPlan, plan_base_train
from nanochat.train.update import build_optimizer, make_update

MMAP_THRESHOLD = -3  # of mallopt: from this size on memory goes back to the system at once, so that the peak is what lived


def in_a_child(work: Callable[[], Any]) -> Any:
    """What `work` returns, as plain data, in a process of its own that has torch already."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            torch.set_num_threads(1)
            answer = {"returned": work()}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(content)
    assert "returned" in answer, answer
    return answer["returned"]


def of_process(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) << 10


# --- the model of memory ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    recipe: str
    depth: int
    width: int
    vocab_size: int
    sequence_len: int
    rows: int
    passes: int = 2
    recompute: bool = False

    @property
    def shape(self) -> ModelConfig:
        architecture = {**RECIPES[self.recipe]["architecture"], "width": self.width, "head_dim": 32}
        return ModelConfig.from_depth(self.depth, vocab_size=self.vocab_size, sequence_len=self.sequence_len, architecture=architecture)

    @property
    def plan(self) -> TrainingPlan:
        horizon = {"steps": 2, "batch_tokens": self.rows * self.passes * self.sequence_len}
        section = config.BaseTrainStage(recipe=self.recipe, depth=self.depth, micro_batch_rows=self.rows, horizon=horizon)
        shape = Shape(self.depth, self.width, self.vocab_size, self.sequence_len, {"all": 1, "scaling": 1}, {"all": 1, "scaling": 1})
        return plan_base_train(config.resolve_base_train(section, self.recipe), shape)

    @property
    def batches(self) -> FixedRows:
        ids = torch.arange(self.rows * self.passes * (self.sequence_len + 1)).remainder(self.vocab_size).view(-1, self.sequence_len + 1).numpy()
        return FixedRows(ids[:, :-1], ids[:, 1:])

    def train(self) -> None:
        """Two real updates."""
        model = GPT(self.shape)
        model.recompute = self.recompute
        optimizer = build_optimizer(model, self.plan, CPU)
        for step in range(2):
            make_update(model, optimizer, self.plan, self.batches, CPU, step)

    def peak(self) -> int:
        """How much the peak of this process grows while it trains."""
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
        before = of_process("VmRSS")
        self.train()
        return of_process("VmHWM") - before


CASES = (
    Case("compact-2026-11", 4, 64, 512, 256, 8),
    Case("compact-2026-11", 6, 64, 512, 128, 16, passes=1),
    Case("classic-2025-11", 1, 64, 32_768, 64, 4),
    Case("modern-2026-07", 2, 64, 16_384, 128, 8),
    Case("classic-2025-11", 2, 64, 1_024, 1_024, 2),
    Case("modern-2026-07", 2, 320, 512, 64, 2),
    Case("compact-2026-11", 6, 64, 512, 128, 16, passes=1, recompute=True),
)


def test_the_peak_of_real_training_is_met_within_fifteen_percent() -> None:
    """Each shape in a child of a process that has multiplied nothing: buffers of matrix products count too."""
    done = warm.run([sys.executable, __file__], timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    for case, measured in zip(CASES, json.loads(done.stdout), strict=True):
        setting = Setting.of("cpu", accumulates=case.passes > 1, recompute="blocks" if case.recompute else "none")
        estimate = training_memory(case.shape, case.rows, setting)
        assert estimate.total - estimate.context == pytest.approx(measured, rel=0.15), case


def test_what_the_ranks_share_and_what_is_computed_again_is_not_held() -> None:
    shape = Case("modern-2026-07", 8, 512, 32_768, 1_024, 8).shape
    whole, shared = (training_memory(shape, 8, Setting.of("cuda", shards=shards)) for shards in (1, 8))
    assert 8 * shared.optimizer == whole.optimizer and whole.total - shared.total == whole.optimizer - shared.optimizer
    again = training_memory(shape, 8, Setting.of("cuda", recompute="blocks"))
    assert again.activations < whole.activations / 4 and again.weights == whole.weights


@pytest.mark.parametrize("recompute", ["none", "blocks"])
@pytest.mark.parametrize("memory_gib", [24, 80])
def test_the_most_rows_fit_and_one_more_does_not(memory_gib: int, recompute: Any) -> None:
    shape, setting = Case("modern-2026-07", 12, 768, 32_768, 2_048, 1).shape, Setting.of("cuda", recompute=recompute)
    rows = most_rows(shape, memory_gib << 30, setting)
    fit, more = (training_memory(shape, count, setting).total for count in (rows, rows + 1))
    assert fit <= USABLE["cuda"] * (memory_gib << 30) < more


def test_a_cpu_takes_what_is_fast_and_less_where_memory_is_short() -> None:
    shape, setting = Case("compact-2026-11", 8, 512, 8_192, 256, 1).shape, Setting.of("cpu")
    fast = CPU_MICRO_BATCH_TOKENS // 256
    assert most_rows(shape, 64 << 30, setting) == most_rows(shape, None, setting) == fast
    assert 1 < most_rows(shape, 2 << 30, setting) < fast
    assert most_rows(shape, 1 << 20, setting) == 1, "the plan warns, and the run says what does not fit"
    assert [divided(12, most) for most in (1, 5, 7, 100)] == [1, 4, 6, 12]


def test_memory_of_a_job_is_what_its_group_may_still_take(tmp_path: Path) -> None:
    """SLURM gives a job a group; the machine has more."""
    (own := tmp_path / "cgroup").write_text("0::/job_7/step_0\n")
    (tmp_path / "job_7" / "step_0").mkdir(parents=True)
    free = available_bytes(tmp_path, own)
    assert free > 1 << 28
    (tmp_path / "job_7" / "step_0" / "memory.max").write_text("max\n")
    for name, size in (("memory.max", 5 << 20), ("memory.current", 1 << 20)):
        (tmp_path / "job_7" / name).write_text(f"{size}\n")
    (tmp_path / "job_7" / "memory.stat").write_text(f"anon 4096\nfile {3 << 19}\ninactive_file {1 << 18}\nactive_file {1 << 18}\nshmem {1 << 20}\n")
    assert available_bytes(tmp_path, own) == (4 << 20) + (1 << 19), "what is cached of files is given back, what lies in memory as a file is not"


# --- short of memory -------------------------------------------------------------------------------------------------

SHORT = Case("compact-2026-11", 2, 64, 512, 256, 16, passes=1)


def leave_only(room: int) -> list[Tensor]:
    """Let this process have `room` more bytes; what it could have used without asking the system is taken by what comes back."""
    taken: list[Tensor] = []
    resource.setrlimit(resource.RLIMIT_AS, (of_process("VmSize"), resource.RLIM_INFINITY))
    for size in (1 << 22, 1 << 18, 1 << 14):
        with contextlib.suppress(RuntimeError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8))
    resource.setrlimit(resource.RLIMIT_AS, (of_process("VmSize") + room, resource.RLIM_INFINITY))
    return taken


def fail_once(optimizer: MuonAdamW) -> None:
    """The first time that gradients are to be summed there is no memory for it, for real."""
    prepare, done = optimizer.prepare_reduce, []

    def prepare_without_room() -> None:
        if done:
            return prepare()
        ballast = leave_only(0)
        done.append(len(ballast))
        try:
            return prepare()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    optimizer.prepare_reduce = prepare_without_room  # type: ignore[method-assign]


def run(folder: Path, plan: TrainingPlan, *, room: int | None = None, rank: int = 0, stop_after: int | None = None, sums_fail: bool = False) -> dict[str, Any]:
    """Train with `room` bytes to spare: from there on the allocator fails, for real. What was seen and said."""
    runtime = dataclasses.replace(CPU, rank=rank, world_size=plan.ranks)
    if plan.ranks > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=plan.ranks)
        runtime.barrier()
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
    model, said = GPT(SHORT.shape), []
    batches = SHORT.batches
    settings = Settings("test", 0, 0, 1e9, 1)
    loop = Trainer(model, build_optimizer(model, plan, runtime), plan, batches, runtime, folder=folder, fingerprint="f", settings=settings)
    loop.progress.say = said.append  # type: ignore[method-assign]
    if sums_fail:
        fail_once(loop.optimizer)
    if room is not None:
        ballast = leave_only(room)
        assert ballast is not None
    try:
        counters = loop.run()
    except UserError as error:
        return {"error": str(error), "said": said}
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if stop_after:
        loop.save(in_background=False)
    return {"loss": counters.final_loss, "rows": loop.plan.micro_batch_rows, "seen": [len(positions) for _, positions in batches.seen], "said": said}


def test_a_run_short_of_memory_goes_on_with_fewer_rows_and_learns_the_same(tmp_path: Path) -> None:
    short = in_a_child(lambda: run(tmp_path, SHORT.plan, room=40 << 20, stop_after=2))
    fewer = short["rows"]
    assert fewer in (1, 2, 4, 8) and set(short["seen"][-16 // fewer :]) == {fewer}
    assert "step 1: out of memory with 16 rows at a time; done again, and the rest of the run, with 8 rows x 2 passes" in short["said"]
    longer = dataclasses.replace(SHORT.plan, steps=3)
    resumed = in_a_child(lambda: run(tmp_path, longer))
    assert resumed["rows"] == fewer and resumed["seen"] == [fewer] * (16 // fewer), "kept, though there is room again"
    (tmp_path / "planned").mkdir()
    planned = in_a_child(lambda: run(tmp_path / "planned", dataclasses.replace(longer, micro_batch_rows=fewer)))
    assert planned["loss"] == resumed["loss"], "the bits of a run that was planned so"


@pytest.mark.parametrize("short_of", [{"room": 24 << 20}, {"sums_fail": True}], ids=["in the passes", "for the sums"])
def test_ranks_go_down_together_when_one_is_short(tmp_path: Path, short_of: dict[str, Any]) -> None:
    plan = dataclasses.replace(SHORT.plan, ranks=2, micro_batch_rows=8)
    reading, writing = os.pipe()
    if not (other := os.fork()):
        os.close(reading)
        torch.set_num_threads(1)
        os.write(writing, json.dumps(run(tmp_path, plan, rank=1)).encode())
        os._exit(0)
    os.close(writing)
    short = in_a_child(lambda: run(tmp_path, plan, **short_of))
    with os.fdopen(reading) as pipe:
        roomy = json.loads(pipe.read())
    os.waitpid(other, 0)
    assert short["rows"] == roomy["rows"] < 8 and short["seen"] == roomy["seen"] != [8, 8]
    assert short["loss"] == pytest.approx(roomy["loss"], rel=1e-9)


def test_a_rank_alone_that_is_short_while_it_takes_norms_does_the_update_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, real, asked = run(tmp_path, dataclasses.replace(SHORT.plan, steps=2, micro_batch_rows=8)), torch._foreach_norm, []

    def short(tensors: Any) -> Any:
        if asked.append(1) or len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tensors)

    monkeypatch.setattr(torch, "_foreach_norm", short)
    found = run(tmp_path, dataclasses.replace(SHORT.plan, steps=2))
    assert "step 1: out of memory with 16 rows at a time" in found["said"][0] and found["rows"] == 8
    assert found["loss"] == whole["loss"]


def test_one_row_that_does_not_fit_ends_the_run_with_the_cure(tmp_path: Path) -> None:
    ended = in_a_child(lambda: run(tmp_path, dataclasses.replace(SHORT.plan, micro_batch_rows=2), room=1 << 20))
    assert [line for line in ended["said"] if "with 1 row x 16 passes" in line]
    assert ended["error"].startswith("step 1: out of memory with one row of 256 tokens at a time; take recompute: blocks, ")


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_a_gpu_is_short_of_memory_beside_the_allocator_too(error: Exception, is_short: bool) -> None:
    assert is_shortage(error) == is_short


@pytest.mark.parametrize(("free_gb", "said"), [(0.1, True), (50.0, False)])
def test_what_memory_will_hardly_hold_is_said_before_the_first_step(
    free_gb: float, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "available_bytes", lambda: int(free_gb * 1e9))
    model = ModelConfig.from_depth(2, vocab_size=512, sequence_len=64, architecture=RECIPES["compact-2026-11"]["architecture"])
    assert training.rows_that_fit(model, CPU, {"recompute": "none"}) >= 1
    assert ("with one row at a time and 0.1 GB are free, so this will hardly work; take recompute: blocks" in capsys.readouterr().err) == said


if __name__ == "__main__":
    print(json.dumps([in_a_child(case.peak) for case in CASES]))
