"""A fetch from another program's idea of the Hub: olah, which serves git repositories of this machine as a mirror.

Left out where there is no olah-cli in PATH. It wants an environment of its own: `python -m venv olah && olah/bin/pip install olah==0.5.4`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_client import fetch, parquet, part_folder, refusal

SHARDS = {f"sample/10BT/{number:03d}.parquet": parquet([{"text": f"Document {number} of {row}."} for row in range(40)]) for number in range(4)}
CONFIG = "[basic]\nhost = '127.0.0.1'\nport = {port}\nrepos-path = '{folder}/cache'\nmirrors-path = ['{folder}/mirrors']\n[accessibility]\noffline = true\n"


def git(folder: Path, *arguments: str) -> str:
    """A git command in a repository; what it says."""
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Any]:
    """A running olah that mirrors owner/corpus, with its `endpoint` and the `commit`."""
    program = shutil.which("olah-cli")
    if program is None:
        pytest.skip("needs olah-cli in PATH")
    repository = tmp_path / "mirrors/datasets/owner/corpus"
    for name, content in SHARDS.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "data")):
        git(repository, *command)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "olah.toml").write_text(CONFIG.format(port=port, folder=tmp_path))
    log = (tmp_path / "olah.log").open("wb")
    server = subprocess.Popen([program, "-c", "olah.toml", "--log-path", "logs"], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        limit = time.monotonic() + 60
        while not answers(port):
            assert server.poll() is None and time.monotonic() < limit, (tmp_path / "olah.log").read_text()
            time.sleep(0.05)
        yield SimpleNamespace(endpoint=f"http://127.0.0.1:{port}", commit=git(repository, "rev-parse", "HEAD"))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


def test_shards_come_from_a_mirror_as_they_are_and_a_branch_that_it_does_not_know_is_told(mirror: Any, tmp_path: Path) -> None:
    part = {"source": "listed", "part": "train-000", "chunk_shards": 2}
    assert fetch(mirror, tmp_path, part)[0] == 0
    came = {file.name: file.read_bytes() for file in part_folder(tmp_path, part).glob("*.parquet")}
    assert came == {f"train-{number:05d}.parquet": SHARDS[f"sample/10BT/{number:03d}.parquet"] for number in (0, 1)}
    locked = json.loads((tmp_path / "sources.lock.json").read_text())["hub"]["owner/corpus"]["main"]
    assert locked == {"commit": mirror.commit, "files": {"sample/10BT": sorted(SHARDS)}}
    told = refusal(fetch(mirror, tmp_path, {"source": "questions"}))  # of the branch refs/convert/parquet
    assert told.startswith("owner/corpus at refs/convert/parquet: not on the Hub ") and "the mirror of HF_ENDPOINT may not know it" in told
