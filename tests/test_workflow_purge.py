"""What a cluster does to a working folder: old files purged, results moved, dates turned round. Nothing of it trains a finished model again."""

import os
import re
import shutil
from pathlib import Path

import pytest
from test_workflow_staleness import BASE, MID, REPORT, SFT, TOKENS, setting
from workspace import Workspace

pytestmark = pytest.mark.workflow

MODELS = [f"results/tiny/{stage}/model.safetensors" for stage in ("base_train", "mid_train", "chat_sft")]


def purge(workspace: Workspace) -> None:
    """Delete what nobody has read for weeks: fetched files, vocabulary, tokens; the downloads are there again in a moment."""
    for folder in (*workspace.path("resources").iterdir(), workspace.path("results/tokens"), workspace.path("results/tokenizers")):
        if folder.name != "wheels":
            shutil.rmtree(folder)


def trained(said: str) -> set[str]:
    """Stages whose trainers made updates, by what a build said."""
    return set(re.findall(r"^[\d:]+ (\w+): [\d,]+ parameters", said, flags=re.MULTILINE))


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {name: workspace.path(name).read_bytes() for name in MODELS}


def test_purged_inputs_are_not_missed_until_something_new_needs_them(workspace: Workspace) -> None:
    purge(workspace)
    assert workspace.plan() == set()
    setting("runs", "tiny", "evaluate", "arithmetic", "limit", to=5)(workspace)
    assert "evaluate tiny sft arithmetic" in workspace.plan()


def test_what_a_purge_took_is_made_again_and_finished_models_are_taken_back(workspace: Workspace) -> None:
    before = contents(workspace)
    purge(workspace)
    setting("runs", "tiny", "chat_sft", "lr_fraction", to=0.5)(workspace)
    plan = workspace.plan()
    assert plan > TOKENS | BASE | MID | SFT | REPORT  # snakemake sees new inputs and runs everything again
    said = workspace.build()
    assert trained(said) == {"chat_sft"}  # the stage whose rate was changed
    assert said.count("taken back from") == 2
    after = contents(workspace)
    assert [after[name] == before[name] for name in MODELS] == [True, True, False]
    assert workspace.plan() == set()


def test_results_moved_to_a_new_clone_train_nothing_and_with_snakemakes_memory_changes_are_noticed(workspace: Workspace, tmp_path: Path) -> None:
    clone = Workspace.make(tmp_path / "clone", workspace.path("config.yaml"))
    shutil.copytree(workspace.path("results"), clone.path("results"))
    for folder in workspace.path("resources").iterdir():
        if folder.name != "wheels":
            shutil.copytree(folder, clone.path("resources") / folder.name)
    assert clone.plan() == set()
    setting("runs", "tiny", "mid_train", "lr_fraction", to=0.5)(clone)
    warning = "nanochat: warning: mid_train tiny: lr_fraction changed default -> 0.5, which snakemake does not notice without .snakemake/metadata"
    for arguments in (["--dry-run"], ["--cores", "2"]):
        done = clone.snakemake(*arguments)
        assert warning in done.stderr and "Nothing to be done" in done.stdout + done.stderr
        assert done.stderr.count("nanochat: warning") == 1
    setting("runs", "tiny", "mid_train", "lr_fraction", to=1.0)(clone)
    assert "warning" not in clone.snakemake("--dry-run").stderr
    shutil.copytree(workspace.path(".snakemake/metadata"), clone.path(".snakemake/metadata"), dirs_exist_ok=True)
    assert clone.plan() == set()
    setting("runs", "tiny", "mid_train", "lr_fraction", to=0.5)(clone)
    assert clone.plan() == MID | SFT | REPORT


def turn_dates_round(workspace: Workspace) -> None:
    """Make results older than what they were made from, as a copy that went backwards does. Into the past: --touch refuses the future."""
    files = [path for top in ("resources", "results") for path in workspace.path(top).rglob("*") if path.is_file() and not path.is_symlink()]
    times = {path: path.stat().st_mtime for path in files}
    oldest = min(times.values())
    for path, time in times.items():
        os.utime(path, (2 * oldest - time, 2 * oldest - time))


def test_dates_that_were_turned_round_train_nothing(workspace: Workspace) -> None:
    """Small inputs are known by their checksum."""
    before = contents(workspace)
    turn_dates_round(workspace)
    said = workspace.build()
    assert trained(said) == set()
    assert contents(workspace) == before
    assert workspace.plan() == set()


def test_touch_accepts_results_whose_dates_are_wrong(workspace: Workspace) -> None:
    """Without its memory snakemake has only the dates; --touch sets them and runs nothing."""
    before = contents(workspace)
    turn_dates_round(workspace)
    shutil.rmtree(workspace.path(".snakemake"))
    assert workspace.plan() >= BASE | MID | SFT | REPORT
    assert "base_train" in workspace.build("--touch")
    assert workspace.plan() == set()
    assert contents(workspace) == before
    setting("runs", "tiny", "mid_train", "lr_fraction", to=0.5)(workspace)
    assert workspace.plan() == MID | SFT | REPORT
