"""Fixtures that several test files share."""

import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import CANNOT, SCRIPTS, Cluster, Driver, edit_profile
from filelock import FileLock
from trainings import prepare, speed, train, train_here
from workspace import REPOSITORY, Workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The miniature experiment, built once for all tests (and all workers). Never change it: take a copy."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    workspace = Workspace(base / "finished")
    with FileLock(base / "finished.lock"):
        if not workspace.path("results/report/report.html").exists():
            shutil.rmtree(workspace.folder, ignore_errors=True)
            Workspace.make(workspace.folder, REPOSITORY / "tests" / "tiny.yaml")
            workspace.path("build.txt").write_text(workspace.build(), encoding="utf-8")
    return workspace


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished miniature, to be changed."""
    return finished.copy(tmp_path / "workspace")


@pytest.fixture
def empty_workspace(tmp_path: Path) -> Workspace:
    """The miniature experiment with nothing built, for dry runs."""
    return Workspace.make(tmp_path / "workspace", REPOSITORY / "tests" / "tiny.yaml")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real SLURM on this machine, one for all workers: the first that needs it starts it, the last that leaves stops it."""
    name = f"nanochat-slurm-{zlib.crc32(str(REPOSITORY).encode()):08x}"  # short: sockets have names of 107 characters at most
    cluster = Cluster(Path(tempfile.gettempdir(), name))
    users = cluster.folder.with_name(f"{name}.users")
    me = users / str(os.getpid())
    with FileLock(f"{users}.lock"):
        users.mkdir(exist_ok=True)
        if not living(users):
            cluster.stop()  # what a killed test session left behind
        done = subprocess.run([SCRIPTS / "start.sh", "--folder", cluster.folder], capture_output=True, text=True)
        if done.returncode == CANNOT:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stdout + done.stderr
        me.touch()
    yield cluster
    for driver in cluster.drivers:
        driver.process.kill()  # of a test that failed or was interrupted
        driver.process.wait()
    with FileLock(f"{users}.lock"):
        me.unlink()
        if not living(users):
            cluster.stop()
            shutil.rmtree(users)


def living(users: Path) -> list[Path]:
    """The users of a cluster whose process still runs."""
    return [user for user in users.iterdir() if Path("/proc", user.name).exists()]


@pytest.fixture(scope="session")
def undisturbed(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A base training without SLURM that nothing happened to."""
    workspace = prepare(finished, tmp_path_factory.mktemp("undisturbed") / "workspace")
    train_here(workspace)
    return workspace


@pytest.fixture(scope="session")
def limited(
    cluster: Cluster, finished: Workspace, undisturbed: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[tuple[Driver, Workspace]]]:
    """A training in jobs of one minute, and the same one in one go; in the background, since most of its four minutes are waiting.

    A slow start takes 15 seconds of each job, and 20 are kept to end in order, so that none trains for more than 19; the
    updates alone take 50, and what is between them takes a third more.
    """
    folder = tmp_path_factory.mktemp("limited")
    steps = round(50 * speed(undisturbed))
    workspace, uninterrupted = (prepare(finished, folder / name, steps) for name in ("limits", "uninterrupted"))
    settings = {"precommand": "sleep 15", "retries": 40, "slurm-init-seconds-before-status-checks": 7}
    edit_profile(workspace, lambda profile: profile.update(settings))

    driver = train(cluster, workspace, runtime=1, slurm_extra="'--exclude=a100-01'")  # a node that other tests switch off

    def rest() -> tuple[Driver, Workspace]:
        train_here(uninterrupted)
        driver.wait(1500)
        return driver, uninterrupted

    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(rest)
        driver.process.kill()  # where no test waits for it
