"""The paths of a GPU, on a CPU: every tensor where it has to be, values as on a CPU, few waits, nothing without a fixed order of sums."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="the rules of a GPU are pretended for a torch without CUDA"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]
# of torch.use_deterministic_algorithms' list, what has no deterministic kernel in CUDA; nll_loss without 2d has one
UNORDERED = ("nll_loss2d", "cumsum", "put.", "put_.", "histc", "bincount", "median", "prod", "_embedding_bag", "_ctc_loss", "index_reduce")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of all scenarios; 10 s of CPU, of which the program and its library take half."""
    folder = tmp_path_factory.mktemp("gpu")
    program = Path(__file__).with_name("gpu_lab.py")
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-W", "ignore", program, folder], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def answer(lab: Path, name: str) -> Any:
    found = json.loads((lab / f"{name}.json").read_text())
    assert "error" not in found, found["error"]
    return found


def test_updates_on_a_gpu_are_those_of_a_cpu_and_wait_three_times(lab: Path) -> None:
    """For the number of targets, the loss and the norm. Muon works in bf16 on a GPU, so the second update is near, not equal."""
    found = answer(lab, "trained")
    (first, second), (same, near) = found["losses"]
    assert first == pytest.approx(same, rel=1e-12) and second == pytest.approx(near, rel=1e-3) and second < first
    assert found["waits"] == {"aten._local_scalar_dense.default": 3} and found["norms"] >= 20
    assert found["copied_writes"] == 0, "logits are padded, so a view of those of the vocabulary has gaps"


def test_recomputed_blocks_and_eight_bits_on_a_gpu(lab: Path) -> None:
    found = answer(lab, "recomputed")
    assert found["kept"] == found["again"] and found["kept"][2] == ["torch.float32"]
    assert found["fp8"][0] == pytest.approx(found["kept"][0], rel=0.02) and found["fp8"] != found["kept"]


def test_validation_beside_a_compiled_training_does_without_flex_attention(lab: Path) -> None:
    on_gpu, on_cpu = answer(lab, "validated")
    assert on_gpu == pytest.approx(on_cpu, rel=1e-12)


def test_answers_on_a_gpu_are_those_of_a_cpu(lab: Path) -> None:
    found = answer(lab, "answered")
    on_gpu, on_cpu = found["answers"]
    assert on_gpu == on_cpu and on_gpu[0] != on_gpu[1]
    for key in ("scores", "letters"):
        flat = [[value for row in part for value in (row if isinstance(row, list) else [row])] for part in found[key]]
        assert flat[0] == pytest.approx(flat[1], rel=1e-12)


def test_a_token_costs_two_uploads_and_no_sorting(lab: Path) -> None:
    """Ids and lengths of the rows; three batches of prompts send five tensors each, whatever the depth."""
    told = answer(lab, "answered")["told"]
    assert told["sorted_writes"] == 0
    assert told["uploads"] <= 3 * (5 + 2 * 5)


def test_reinforcement_learning_on_a_gpu(lab: Path) -> None:
    loss, device = answer(lab, "rewarded")
    assert loss != 0 and device == "cuda:0"


def test_state_saved_on_a_gpu_goes_on_with_the_same_bits(lab: Path) -> None:
    went_on, came_back = answer(lab, "resumed")
    assert went_on == came_back


def test_ranks_send_what_is_on_the_gpu(lab: Path) -> None:
    found = answer(lab, "exchanged")
    assert found["answer"] == [[3, 4], ["abc", "abc"]]
    assert found["sent"] == ["_allgather_base_", "_reduce_scatter_base_", "allreduce_", "broadcast_", "reduce_"]


def test_what_stayed_on_the_cpu_is_noticed(lab: Path) -> None:
    """Or none of these tests could fail."""
    found = answer(lab, "refused")
    assert len(found) == 2 and all("is on the CPU, others are on the GPU" in sentence for sentence in found)


def test_a_start_on_a_gpu_joins_with_it_and_keeps_every_sum_in_order(lab: Path) -> None:
    """With warn_only flash attention would add up gradients in any order; a workspace of another size would do so in cuBLAS."""
    found = answer(lab, "started")
    assert found == {
        "current": "cuda:1", "backend": "nccl", "device_id": "cuda:1", "after": "cuda:1",
        "dtype": "torch.bfloat16", "mode": 2, "workspace": ":4096:8", "fills": False,
    }  # fmt: skip


def test_no_operation_is_asked_for_that_a_gpu_refuses_for_want_of_an_order(lab: Path) -> None:
    operations = [name.removeprefix("aten.") for name in answer(lab, "operations")]
    assert len(operations) > 80 and "embedding_dense_backward.default" in operations
    assert [name for name in operations if name.startswith(UNORDERED)] == []
