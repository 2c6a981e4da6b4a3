"""`nanochat data` beside the real workflow: after a repair, and after data were carried elsewhere, nothing is to be done."""

import base64
import shutil
from pathlib import Path

import pytest
from data_files import flip
from workspace import Workspace

from nanochat.errors import UserError
from nanochat.inventory import command

pytestmark = pytest.mark.workflow

WIKIPEDIA = "resources/wikipedia_summaries/all"


def test_a_repair_trains_nothing_and_carried_data_are_not_fetched_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PYTHONPATH", workspace.environment()["PYTHONPATH"])
    archive = tmp_path / "data.tar"
    command.main(["pack", str(archive)])
    before = workspace.path(f"{WIKIPEDIA}/manifest.json").read_bytes()
    flip(workspace.path(f"{WIKIPEDIA}/validation.parquet"))
    with pytest.raises(UserError, match="1 file not as fetched"):
        command.main(["verify"])
    command.main(["verify", "--repair"])
    assert f"{WIKIPEDIA}: fetched again, the same as before: nothing that was made from it is made again" in capsys.readouterr().out
    assert workspace.path(f"{WIKIPEDIA}/manifest.json").read_bytes() == before
    assert workspace.plan() == set()

    # another checkout, with the data alone: nothing to fetch, though snakemake has no record of them
    clone = Workspace.make(tmp_path / "clone", workspace.path("config.yaml"))
    monkeypatch.chdir(clone.folder)
    command.main(["unpack", str(archive)])
    marks = clone.path(".snakemake/incomplete")  # as a fetch leaves them that was interrupted, for want of internet perhaps
    marks.mkdir(parents=True)
    (marks / base64.b64encode(f"{WIKIPEDIA}/manifest.json".encode()).decode()).write_text('{"external_jobid": null}')
    assert clone.plan("fetch") == {"fetch wikipedia_summaries all"}
    command.main(["unpack", str(archive)])
    assert clone.plan("fetch") == set()

    # the same data into the checkout that lost them: its models stay finished
    for folder in workspace.path("resources").iterdir():
        if folder.name != "wheels":
            shutil.rmtree(folder)
    monkeypatch.chdir(workspace.folder)
    command.main(["unpack", str(archive)])
    assert workspace.plan() == set()
