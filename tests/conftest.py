"""Fixtures that several test files share."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
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
