"""One training over two nodes of a real SLURM, through the workflow: the rule starts it on both, and it ends with the bytes of one node."""

import re
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace

pytest.importorskip("cluster", reason="no SLURM of tests/slurm in this checkout")

from cluster import Cluster, edit_profile, for_a_miniature

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TRAINED = ("model.safetensors", "manifest.json")
STAGE = "results/tiny/base_train"


def prepared(finished: Workspace, folder: Path, nodes: int) -> Workspace:
    """The miniature with base training still to do, on two ranks, over so many nodes."""
    workspace = finished.copy(folder)
    for path in workspace.path(STAGE).glob("**/*"):
        if path.is_file():
            path.unlink()
    workspace.configure(lambda experiment: experiment["runs"]["tiny"]["base_train"].update(horizon={"steps": 40, "batch_tokens": 1024}, micro_batch_rows=1))
    edit_profile(workspace, for_a_miniature)
    edit_profile(workspace, lambda profile: give_gpus(profile["set-resources"]["base_train"], nodes))
    return workspace


def give_gpus(resources: dict[str, Any], nodes: int) -> None:
    """Two GPUs on one node, or one on each of two."""
    for key in ("gpu", "gpu_model"):
        resources.pop(key)
    resources |= {"nodes": nodes, "gres": f"gpu:a100:{2 // nodes}", "device": "cpu"}


def test_two_nodes_train_what_one_node_trains(cluster: Cluster, finished: Workspace, tmp_path):
    one, two = (prepared(finished, tmp_path / f"{nodes} nodes".replace(" ", "-"), nodes) for nodes in (1, 2))
    drivers = [cluster.drive(workspace, "base", "--configfile", "config.yaml") for workspace in (one, two)]
    for driver in drivers:
        driver.wait()
    job = cluster.job(drivers[1].jobs("base_train")[-1])
    assert job["NumNodes"] == "2" and job["NodeList"] == "a100-[01-02]"
    said = two.path("logs/base_train/tiny.history").read_text(encoding="utf-8")
    assert "node 0 of 2: starting 1 process" in said and "node 1 of 2: starting 1 process" in said
    assert re.search(r"2 nodes with 1 \+ 1 ranks have met at \S+:\d+", said) and "x 2 ranks" in said
    for name in TRAINED:
        assert two.path(f"{STAGE}/{name}").read_bytes() == one.path(f"{STAGE}/{name}").read_bytes(), name
