"""Fixtures that several test files share."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Driver, edit_profile
from faults import FAULTS
from filelock import FileLock
from trainings import STEPS, prepare, train, train_here
from workspace import REPOSITORY, Workspace
from xdist.scheduler import LoadScopeScheduling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that no worker is left alone with it at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("workflow")}
    items.sort(key=lambda item: (item.get_closest_marker("slurm") is None, item.path not in slow_files))


class OneWorkerForEachFile(LoadScopeScheduling):
    """A file's tests share their fixtures on one worker, and those of the cluster stay on one: they stop its daemons."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.split("::", 1)[0])
        return "cluster" if file.name.startswith("test_slurm_") else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """In the order above; --dist loadgroup would do without a class, but xdist 3.8 splits groups under pytest 9."""
    config.option.loadscopereorder = False
    return OneWorkerForEachFile(config, log)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small products are slower on several threads. For `pytest.mark.usefixtures` of a file."""
    import torch  # most files do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
            workspace.path("build.txt").write_text(workspace.build(cold=True), encoding="utf-8")
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
        cluster.start()
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
def limited(cluster: Cluster, finished: Workspace, undisturbed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Future[Driver]"]:
    """A training in jobs of one minute; in the background, since most of its minutes are waiting.

    No job comes further than a third of the way, however fast this machine is: after so many updates an attempt makes no more
    and waits for its clock. On a machine where a start takes more than half of the 40 seconds of a job there are more jobs than four.
    """
    workspace = prepare(finished, tmp_path_factory.mktemp("limited") / "workspace")
    most = STEPS // 3 - 5
    workspace.replace(
        "src/nanochat/train/loop.py",
        "self._between_updates()\n",
        f"self._between_updates()\n                while self.counters.step - start == {most} and not self.stop:\n                    time.sleep(0.1)\n",
    )
    edit_profile(workspace, lambda profile: profile.update({"retries": 40, "slurm-init-seconds-before-status-checks": 10}))

    driver = train(cluster, workspace, runtime=1, slurm_extra="'--exclude=a100-01'")  # a node that other tests switch off

    def rest() -> Driver:
        driver.wait(1500)
        return driver

    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(rest)
        driver.process.kill()  # where no test waits for it


@pytest.fixture(scope="session")
def trainings(cluster: Cluster, finished: Workspace, limited: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Driver]"]]:
    """One disturbed training for each fault, all at the same time, beside those of test_slurm_drivers.py and test_slurm_time.py."""
    folder = tmp_path_factory.mktemp("trainings")
    drivers = []

    def disturb(name: str) -> Driver:
        fault, resources = FAULTS[name]
        driver = train(cluster, prepare(finished, folder / name), **resources)
        drivers.append(driver)
        try:
            fault(driver)
            driver.wait()
        finally:
            driver.process.kill()
        return driver

    with ThreadPoolExecutor(len(FAULTS)) as threads:
        yield {name: threads.submit(disturb, name) for name in FAULTS}
        for driver in drivers:
            driver.process.kill()  # where no test waits for it
