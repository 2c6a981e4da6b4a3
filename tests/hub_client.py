"""Processes that download: `nanochat fetch` with sources for tests, and one that fetches files as it is told.

Processes, since huggingface_hub reads HF_ENDPOINT when it is imported.
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hub_server import COMMIT, Hub

WAITS = 4  # attempts without progress are one more
STALL_S = 0.3
PROGRAM = f"""
import contextlib, io, json, sys, traceback
from pathlib import Path
from huggingface_hub import constants
from nanochat.data import address, hub, network
from nanochat.data.lockfile import Lock
from nanochat.errors import UserError
network.RETRY_WAITS_S = (0.01,) * {WAITS}
constants.HF_HUB_DOWNLOAD_TIMEOUT = {STALL_S}
FUNCTIONS = {{
    "download": hub.download,
    "parquet_files": hub.parquet_files,
    "locked_commit": lambda repo, revision, lock_file: Lock(lock_file).commit(repo, revision, lambda: hub.commit_of(repo, revision)),
    "download_url": lambda url, target, **known: str(address.download_url(url, target, **known, wrong="it is another one now")),
}}
for line in sys.stdin:
    order, said, error, result = json.loads(line), io.StringIO(), "", None
    with contextlib.redirect_stderr(said):
        try:
            arguments = {{name: Path(value) if name in ("target", "lock_file") else value for name, value in order["arguments"].items()}}
            result = FUNCTIONS[order["function"]](**arguments)
        except UserError as refusal:
            error = str(refusal)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps({{"error": error, "said": said.getvalue(), "result": result}}), flush=True)
"""

FETCH = f"""
import dataclasses, os, sys
from nanochat.data import network, sources
network.RETRY_WAITS_S = (0.05,) * {WAITS}
sources.SOURCES["corpus"] = sources._shards("corpus", "owner/corpus", 6, "ODC-By 1.0", "a corpus in shards")
sources.SOURCES["questions"] = sources._hub_rows("questions", "owner/corpus", "main", {{"train": 3, "test": 1}}, "MIT", "questions", reader="gsm8k")
sources.SOURCES["listed"] = sources._listed("listed", "owner/corpus", "sample/10BT", 3, "003.parquet", "ODC-By 1.0", "a corpus in listed files")
for name, source in sources.SOURCES.items():
    if source.kind == "url":  # the real ones, from the test's own server
        url = os.environ["HF_ENDPOINT"] + "/files/" + source.place["url"].rpartition("/")[2]
        sources.SOURCES[name] = dataclasses.replace(source, place={{**source.place, "url": url}})
from nanochat.cli import main
main(["fetch", *sys.argv[1:]])
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, compression="none")
    return file.getvalue()


def part_folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    """Where a fetch puts its part."""
    return tmp_path / config["source"] / config.get("part", "all")


def start_fetch(hub: Hub, tmp_path: Path, config: dict[str, Any], before: Callable[[], object] = lambda: None, **more: str) -> "subprocess.Popen[str]":
    """One `nanochat fetch`, begun; `before` runs in the new process."""
    arguments = ["--config", json.dumps(config), "--manifest", str(part_folder(tmp_path, config) / "manifest.json")]
    command = [sys.executable, "-c", FETCH, *arguments, "--lock", str(tmp_path / "sources.lock.json")]

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what is in its background deaf to it
        before()

    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(hub, tmp_path / "home", **more), preexec_fn=begin)


def fetch(hub: Hub, tmp_path: Path, config: dict[str, Any], before: Callable[[], object] = lambda: None, **more: str) -> tuple[int, str]:
    """One `nanochat fetch`: its exit code and what it said."""
    process = start_fetch(hub, tmp_path, config, before, **more)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def refusal(outcome: tuple[int, str]) -> str:
    """The one sentence with which a fetch ended."""
    code, said = outcome
    assert code == 2, said
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("nanochat: error: ")]
    assert said.splitlines()[-1] == line
    return line.removeprefix("nanochat: error: ")


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Of a process that knows this hub alone."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and not name.lower().endswith("_proxy")}
    return {**plain, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost,::1", **more}


class Client:
    """The process, and what it answers: {"error": a sentence or "", "said": its log, "result"}."""

    def __init__(self, hub: Hub, home: Path, **more: str) -> None:
        command = [sys.executable, "-c", PROGRAM]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(hub, home, **more))

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """The outcome of one of FUNCTIONS."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"function": function, "arguments": arguments}, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def download(self, hub: Hub, name: str, target: Path, *, repo: str | None = None) -> dict[str, Any]:
        """The outcome of one download."""
        return self.call("download", repo=repo or hub.repo, commit=COMMIT, name=name, target=target)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
