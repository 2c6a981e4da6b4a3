"""`snakemake fetch` from a hub: killed in mid-download, it goes on where it was. The real Snakefile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_client import environment
from hub_server import COMMIT, TOKEN, Fault, hub_server
from workspace import REPOSITORY, Workspace

LINES = b"".join(b'{"text": "A text of its own with number %d, long enough to be one."}\n' % n for n in range(20_000))
MANIFEST = "resources/poems/all/manifest.json"


@pytest.mark.workflow
@pytest.mark.slow
def test_a_fetch_of_the_workflow_goes_on_where_it_was_and_keeps_the_token_to_itself(tmp_path: Path) -> None:
    experiment = yaml.safe_load((REPOSITORY / "tests" / "tiny.yaml").read_text())
    experiment["sources"] = {"poems": {"kind": "hf", "repo": "owner/poems", "files": ["lines.jsonl"], "column": "text", "licence": "CC0"}}
    experiment["corpora"]["tiny"]["sources"] = ["poems"]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    workspace = Workspace.make(tmp_path / "workspace", tmp_path / "experiment.yaml")
    half = workspace.path("resources/poems/all/.raw/.lines.jsonl.partial")
    with hub_server("owner/poems", {"lines.jsonl": LINES}) as hub:
        hub.gated, hub.faults = True, {"GET lines.jsonl": [Fault("stall", 0.5)]}
        variables = {**environment(hub, tmp_path / "home", HF_TOKEN=TOKEN, HF_HUB_DOWNLOAD_TIMEOUT="3"), "PYTHONPATH": str(workspace.path("src"))}
        command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1", MANIFEST]

        def begin() -> "subprocess.Popen[bytes]":
            with workspace.path("said.txt").open("ab") as log:
                return subprocess.Popen(command, cwd=workspace.folder, env=variables, stdout=log, stderr=log, start_new_session=True)

        first = begin()
        limit = time.monotonic() + 60
        while not (half.is_file() and half.stat().st_size >= len(LINES) // 2):
            assert time.monotonic() < limit and first.poll() is None, workspace.path("said.txt").read_text()
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(60)
        subprocess.run([*command, "--unlock"], cwd=workspace.folder, env=variables, capture_output=True, check=True)
        there = half.stat().st_size
        hub.requests.clear()
        assert begin().wait(60) == 0, workspace.path("said.txt").read_text()
    said = workspace.path("said.txt").read_text()
    assert [request.range for request in hub.requests if request.method == "GET"] == [f"bytes={there}-"]
    assert workspace.path(MANIFEST).is_file()
    lock = workspace.path("sources.lock.json")
    assert json.loads(lock.read_text())["hub"] == {"owner/poems": {"main": {"commit": COMMIT}}}
    lock.unlink()  # it is no input of a rule
    assert workspace.plan(MANIFEST) == set()
    workspace.configure(lambda content: content["sources"]["poems"].update(revision="d" * 40))
    assert workspace.plan(MANIFEST) == {"fetch poems all"}
    assert TOKEN not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
