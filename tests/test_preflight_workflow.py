"""The preflight in the real Snakefile: nothing trains before the data of all stages are there and checked, and it never retrains what is finished."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from workspace import REPOSITORY, Workspace

from nanochat import config
from nanochat.preflight.needs import data_needs

pytestmark = pytest.mark.workflow

FILE = "results/preflight.json"
EVALUATIONS = {f"evaluate tiny {phase} arc_easy" for phase in ("base", "mid", "sft")}
NEW_TASK = {"fetch arc_easy all", "preflight", "report"} | EVALUATIONS
SFT = {"chat_sft tiny", "evaluate tiny sft bpb", "evaluate tiny sft arithmetic", "evaluate tiny sft identity", "report"}


def add_task(workspace: Workspace) -> None:
    """A task whose data nobody has fetched."""
    workspace.configure(lambda content: content["runs"]["tiny"]["evaluate"].update(arc_easy={"limit": 4}))


def tune_on_more(workspace: Workspace) -> None:
    """A mixture for fine-tuning whose data nobody has fetched."""
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_sft"].update(mixture=[{"task": "identity", "rows": 48}, {"task": "chitchat", "rows": 8}]))


def order(said: str) -> list[str]:
    """Rules in the order in which snakemake started and finished them: start:fetch_part, end:fetch_part, ..."""
    found: list[str] = []
    names: dict[str, str] = {}
    rule = ""
    for line in said.splitlines():
        if begun := re.match(r"(?:local)?rule (\w+):$", line):
            rule = begun[1]
            found.append(f"start:{rule}")
        elif number := re.match(r"    jobid: (\d+)$", line):
            names[number[1]] = rule
        elif ended := re.match(r"Finished jobid: (\d+)", line):
            found.append(f"end:{names[ended[1]]}")
    return found


def last(events: list[str], event: str) -> int:
    return max(place for place, found in enumerate(events) if found == event)


# --- first run ----------------------------------------------------------------------------------------------------------


def test_nothing_trains_before_everything_is_fetched_and_checked(finished: Workspace) -> None:
    events = order(finished.path("build.txt").read_text(encoding="utf-8"))
    assert events.count("end:fetch_part") == 4
    assert last(events, "end:fetch_part") < events.index("start:preflight") < events.index("end:preflight") < events.index("start:base_train")
    checks = json.loads(finished.path(FILE).read_text(encoding="utf-8"))
    assert checks["state"] == "ok"
    assert {check["name"] for check in checks["checks"]} >= {"data identity_questions", "data gpt2_ranks", "python", "packages", "locale", "clock"}


def test_every_target_that_trains_waits_for_the_data_of_all_stages(empty_workspace: Workspace) -> None:
    assert {job for job in empty_workspace.plan("base") if job.startswith("fetch ")} == empty_workspace.plan("fetch")


def test_data_that_a_later_stage_would_die_of_stop_the_first_one(workspace: Workspace) -> None:
    """One row is missing in what only fine-tuning and its evaluation read; pretraining, which does not need it, must not begin."""
    shutil.rmtree(workspace.path("results/tiny"))
    workspace.replace("resources/identity_questions/all/manifest.json", '"train": 937', '"train": 936')
    said = workspace.fails("base")
    assert "data identity_questions: 936 rows in split train, the registry promises 937" in said
    assert "rule preflight" in said and "rule base_train" not in said
    assert not workspace.path(FILE).exists()
    shutil.rmtree(workspace.path("resources/identity_questions"))  # the cure that the sentence names
    events = order(workspace.build("base"))
    assert events.index("end:fetch_part") < events.index("start:preflight") < events.index("end:preflight") < events.index("start:base_train")


# --- something is added later --------------------------------------------------------------------------------------------


def test_a_new_task_is_fetched_and_checked_and_retrains_nothing(workspace: Workspace) -> None:
    add_task(workspace)
    assert workspace.plan() == NEW_TASK


def test_a_stage_that_is_added_waits_for_its_data_and_reruns_no_other(workspace: Workspace) -> None:
    before = workspace.path("results/tiny/base_train/manifest.json").stat().st_mtime_ns
    for folder in ("chat_sft", "scores/sft"):
        shutil.rmtree(workspace.path(f"results/tiny/{folder}"))
    tune_on_more(workspace)
    assert workspace.plan() == {"fetch chitchat all", "preflight"} | SFT
    events = order(workspace.build())
    assert events.index("end:fetch_part") < events.index("start:preflight") < events.index("end:preflight") < events.index("start:chat_sft")
    assert workspace.path("results/tiny/base_train/manifest.json").stat().st_mtime_ns == before
    assert workspace.plan() == set()


def test_a_changed_stage_is_noticed_beside_a_new_task_and_waits_for_its_data(workspace: Workspace) -> None:
    add_task(workspace)
    workspace.configure(lambda content: content["runs"]["tiny"]["chat_sft"].update(lr_fraction=0.5))
    assert workspace.plan() == NEW_TASK | SFT
    workspace.replace("src/nanochat/data/sources.py", '"test": 2376}', '"test": 2375}')  # the registry and the data disagree
    said = workspace.fails("--keep-going")
    assert "arc_easy: 2376 rows in split test, the registry promises 2375" in said
    assert "rule evaluate_task" not in said and "rule chat_sft" not in said


def test_a_file_asked_for_by_name_is_refused_until_the_data_are_checked(workspace: Workspace) -> None:
    add_task(workspace)
    weights = workspace.path("results/tiny/chat_sft/model.safetensors")
    weights.unlink()
    said = workspace.fails("results/tiny/chat_sft/model.safetensors")
    sentence = re.search(r"^nanochat: error: .* type this first: snakemake --cores 4 (--force \S+)$", said, flags=re.MULTILINE)
    assert sentence and "Traceback" not in said and "rule chat_sft:" not in said
    workspace.build(*sentence[1].split())
    workspace.build("results/tiny/chat_sft/model.safetensors")
    assert weights.exists()


def test_a_snakemake_that_cannot_let_jobs_wait_is_refused(workspace: Workspace) -> None:
    workspace.replace("rules/start.smk", 'hasattr(dag, "_n_until_ready")', 'hasattr(dag, "_under_another_name")')
    tune_on_more(workspace)
    said = workspace.fails()
    assert re.search(
        r"^nanochat: error: this version of snakemake cannot let training wait .*: snakemake --cores 4 --force results/preflight.json$",
        said,
        flags=re.MULTILINE,
    )
    assert "rule fetch_part:" not in said and "Traceback" not in said


# --- the file is lost, or a check fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [None, add_task, tune_on_more], ids=["nothing", "new_task", "stage_with_new_data"])
def test_a_lost_preflight_is_made_again_and_retrains_nothing(workspace: Workspace, change: Any) -> None:
    expected = {None: {"preflight"}, add_task: NEW_TASK, tune_on_more: {"fetch chitchat all", "preflight"} | SFT}[change]
    workspace.path(FILE).unlink()
    if change:
        change(workspace)
    assert workspace.plan() == expected
    if not change:
        workspace.build()
        assert json.loads(workspace.path(FILE).read_text(encoding="utf-8"))["state"] == "ok"
        assert workspace.plan() == set()


def test_a_check_that_failed_retrains_nothing_afterwards(workspace: Workspace) -> None:
    """Snakemake deletes the file of the failed preflight; the finished models stay finished."""
    manifest = "resources/identity_questions/all/manifest.json"
    workspace.replace(manifest, '"train": 937', '"train": 936')
    workspace.fails()
    assert not workspace.path(FILE).exists()
    workspace.replace(manifest, '"train": 936', '"train": 937')
    add_task(workspace)
    assert workspace.plan() == NEW_TASK


def test_a_lost_preflight_stops_no_change_from_being_noticed(workspace: Workspace) -> None:
    workspace.path(FILE).unlink()
    workspace.configure(lambda content: content["runs"]["tiny"].update(seed=1))
    assert workspace.plan() >= {"preflight", "base_train tiny", "mid_train tiny", "chat_sft tiny"}


def test_data_purged_after_their_last_use_are_not_missed(workspace: Workspace) -> None:
    """Text is not fetched again for a new task: what was made from it would be made again."""
    for source in ("wikipedia_summaries", "gpt2_ranks"):
        shutil.rmtree(workspace.path(f"resources/{source}"))
    assert workspace.plan() == set()
    add_task(workspace)
    assert workspace.plan("evaluate") == NEW_TASK - {"report"}  # the report names every source and asks for all of them
    told = workspace.nanochat("preflight").stdout
    assert re.search(r"^ok +data no longer there: gpt2_ranks, wikipedia_summaries; all that is made from them is finished$", told, flags=re.MULTILINE), told
    workspace.configure(lambda content: content["runs"]["tiny"]["base_train"].update(depth=2))
    assert workspace.plan("base") == {"fetch arc_easy all", "preflight", "base_train tiny"}
    shutil.rmtree(workspace.path("results/tokens"))
    assert "fetch wikipedia_summaries all" in workspace.plan("base")


@pytest.mark.parametrize("experiment", ["tiny.yaml", *sorted(path.name for path in REPOSITORY.glob("configs/*.yaml"))])
def test_the_preflight_knows_all_that_is_fetched(empty_workspace: Workspace, experiment: str) -> None:
    file = REPOSITORY / ("tests" if experiment == "tiny.yaml" else "configs") / experiment
    needs = {f"fetch {need.source} {need.part}" for need in data_needs(config.load(file))}
    assert empty_workspace.plan("fetch", "--configfile", str(file)) == needs


# --- other times, other places -------------------------------------------------------------------------------------------


def test_a_touched_preflight_and_touched_manifests_rerun_nothing(workspace: Workspace) -> None:
    for file in [workspace.path(FILE), *workspace.path("resources").rglob("manifest.json")]:
        os.utime(file)
    assert workspace.plan() == set()
    workspace.replace("resources/gpt2_ranks/all/manifest.json", '"kind": "wheel"', '"kind":  "wheel"')
    assert "preflight" in workspace.plan()


@pytest.mark.parametrize("lost", [(), (FILE,)], ids=["nothing", "preflight"])
def test_results_copied_with_new_times_retrain_nothing(finished: Workspace, tmp_path: Path, lost: tuple[str, ...]) -> None:
    copied = finished.copy(tmp_path / "copied", keep_times=False)
    for name in lost:
        copied.path(name).unlink()
    assert copied.plan() == ({"preflight"} if lost else set())
    add_task(copied)
    assert copied.plan() == NEW_TASK


def test_results_copied_without_what_snakemake_remembers_retrain_nothing(workspace: Workspace) -> None:
    shutil.rmtree(workspace.path(".snakemake"))
    assert workspace.plan() == set()
    workspace.path(FILE).unlink()
    assert workspace.plan() == {"preflight"}
    add_task(workspace)
    assert workspace.plan() == NEW_TASK


def test_a_dry_run_of_a_new_experiment_writes_nothing(empty_workspace: Workspace) -> None:
    assert "preflight" in empty_workspace.plan()
    assert not empty_workspace.path("results").exists()
