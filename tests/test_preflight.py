"""The preflight's checks, each with what it accepts and what it finds; those of a cluster stand in test_preflight_slurm.py."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from workspace import REPOSITORY, Workspace

from nanochat import config
from nanochat.artifacts import write_json, write_manifest, write_text
from nanochat.data.sources import SOURCES
from nanochat.errors import UserError
from nanochat.preflight import environment, gpu_job
from nanochat.preflight.checks import Check, problems
from nanochat.preflight.collect import disk_checks
from nanochat.preflight.data import check_data, check_tokens
from nanochat.preflight.needs import Need, data_needs
from nanochat.preflight.requests import Request, read_profile, request_of, runtime_minutes, whole
from nanochat.preflight.sizes import SavedStates, Space, space_needed
from nanochat.preflight.slurm import Node, fields, gpus_of, minutes

# --- data -----------------------------------------------------------------------------------------------------------------


def fetched(folder: Path, source: str, rows: dict[str, int], *, part: str = "all", suffix: str = "jsonl") -> dict[tuple[str, str], Path]:
    """A fetched part as stage fetch leaves it, with one file a split."""
    place = folder / source / part
    place.mkdir(parents=True, exist_ok=True)
    names = [f"{split}.{suffix}" for split in rows]
    for name in names:
        (place / name).write_text("content\n", encoding="utf-8")
    write_manifest(place / "manifest.json", stage="fetch", config={"source": source, "part": part}, inputs={}, outputs=names, counts={"rows": rows})
    return {(source, part): place / "manifest.json"}


ARC = {"train": 2251, "validation": 570, "test": 2376}


def arc(folder: Path, splits: tuple[str, ...] = ("train", "test"), **changes: Any) -> Check:
    """The check of a source whose rows the registry knows."""
    manifests = fetched(folder, "arc_easy", {**ARC, **changes})
    (check,) = check_data([Need("arc_easy", "all", split) for split in splits], SOURCES, manifests)
    return check


def test_data_that_is_as_promised_is_good(tmp_path: Path) -> None:
    check = arc(tmp_path)
    assert check == Check("data arc_easy", "ok", "2,251 rows train, 2,376 rows test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": 2250}, "2,250 rows in split train, the registry promises 2,251"),
        ({"test": 0}, "no rows in split test"),
        ({"validation": 0}, None),  # nobody asks for it
    ],
)
def test_rows_that_a_stage_asks_for_are_counted(tmp_path: Path, changes: dict[str, int], words: str | None) -> None:
    check = arc(tmp_path, **changes)
    assert (check.state == "ok") is (words is None)
    assert words is None or (words in check.detail and "snakemake --cores 4 fetch" in check.cure)


def test_a_split_that_was_never_fetched_is_named(tmp_path: Path) -> None:
    check = arc(tmp_path, ("dev",))
    assert check.state == "problem" and "has no split dev, only test, train, validation" in check.detail


@pytest.mark.parametrize("damage", ["lost", "cut", "another source", "no manifest", "not json"])
def test_files_that_are_not_as_their_manifest_says_are_found(tmp_path: Path, damage: str) -> None:
    arc(tmp_path)
    folder = tmp_path / "arc_easy" / "all"
    if damage == "lost":
        (folder / "test.jsonl").unlink()
    elif damage == "cut":
        (folder / "test.jsonl").write_text("con", encoding="utf-8")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        (folder / "manifest.json").write_text(text.replace('"arc_easy"', '"openbookqa"') if damage == "another source" else "{", encoding="utf-8")
    (check,) = check_data([Need("arc_easy", "all", "test")], SOURCES, {("arc_easy", "all"): folder / "manifest.json"})
    said = {"lost": "missing", "cut": "3 bytes", "another source": "is of openbookqa", "no manifest": "not fetched", "not json": "not valid JSON"}[damage]
    assert check.state == "problem" and said in check.detail
    assert "delete" not in check.detail, "the cure is said once"


def test_parts_of_a_sharded_source_are_one_line(tmp_path: Path) -> None:
    needs = [Need("climbmix_400b", f"train-{number:03d}", "train") for number in range(5)]
    manifests = {}
    for need in needs[:2]:
        manifests |= fetched(tmp_path, need.source, {"train": 100}, part=need.part, suffix="parquet")
    (some,) = check_data(needs, SOURCES, manifests)
    assert some.state == "problem" and some.detail == "3 of 5 parts not fetched (train-002, train-003, train-004)"
    (later,) = check_data(needs, SOURCES, manifests, fetched_later=True)
    assert later.state == "not checked"
    (whole_one,) = check_data(needs[:2], SOURCES, manifests)
    assert whole_one.state == "ok" and whole_one.detail == "2 parts, 200 rows train"


def test_needs_name_each_split_that_a_task_reads() -> None:
    experiment = config.load(REPOSITORY / "config.yaml")
    needs = data_needs(experiment)
    assert {need.split for need in needs if need.source == "arc_easy"} == {"train", "test"}
    assert {need.split for need in needs if need.source == "wikipedia_summaries"} == {"train", "validation"}
    assert {need.source for need in needs} >= {"gpt2_ranks", "cl100k_ranks", "word_list", "gsm8k", "humaneval"}
    assert [Need.parse(need.text) for need in needs] == needs


@pytest.mark.parametrize(("rows", "state"), [(6_250, "ok"), (3_125, "warning"), (0, "problem")])
def test_tokens_seen_twice_are_a_warning(tmp_path: Path, rows: int, state: str) -> None:
    """config.yaml trains on 819,200 tokens in rows of 256."""
    experiment = config.load(REPOSITORY / "config.yaml")
    before = check_tokens(experiment, tmp_path)
    assert [check.state for check in before] == ["not checked"] and "0.8 million needed" in before[0].detail
    for source, share in (("wikipedia_summaries", rows // 2), ("presidential_messages", rows - rows // 2)):
        folder = tmp_path / "tokens" / "quickstart.quickstart" / f"{source}.train"
        folder.mkdir(parents=True)
        (folder / "tokens.bin").touch()
        write_manifest(folder / "manifest.json", stage="tokenize", config={"split": "train"}, inputs={}, outputs=["tokens.bin"], counts={"rows": share})
    (check,) = check_tokens(experiment, tmp_path)
    assert check.state == state
    assert state != "warning" or "each is seen 1.02 times" in check.detail


def test_a_source_of_a_mixture_that_is_seen_twice_is_a_warning_that_names_it(tmp_path: Path) -> None:
    content = config.read_yaml(REPOSITORY / "config.yaml")
    (corpus,) = content["corpora"].values()
    first, second = corpus["sources"]
    corpus["sources"] = {first: 9, second: 1}
    for rows, state in ((6_250, "ok"), (100, "warning"), (0, "problem")):
        for source, share in ((first, 6_250), (second, rows)):
            folder = tmp_path / "tokens" / "quickstart.quickstart" / f"{source}.train"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "tokens.bin").touch()
            write_manifest(folder / "manifest.json", stage="tokenize", config={"split": "train"}, inputs={}, outputs=["tokens.bin"], counts={"rows": share})
        (check,) = check_tokens(config.validate(content), tmp_path)
        assert check.state == state and second in check.detail
        assert state != "warning" or f"{second} is seen 3.20 times" in check.detail  # 81,920 tokens of 100 rows of 256


# --- sizes ----------------------------------------------------------------------------------------------------------------


def test_estimated_space_is_what_the_miniature_really_took(finished: Workspace) -> None:
    needed = space_needed(config.load(finished.path("config.yaml")))
    assert environment.missing_bytes(needed, finished.folder) == {}
    assert {item.what for item in needed} == set(environment.missing_bytes(needed, finished.path("nowhere")))

    def taken(pattern: str) -> int:
        return sum(file.stat().st_size for file in finished.path("results").glob(pattern))

    sizes = {what: sum(item.bytes for item in needed if item.what == what) for what in ("tokens", "models")}
    assert taken("tokens/*/*/tokens.bin") == pytest.approx(sizes["tokens"], rel=0.3)
    assert taken("tiny/*/*.safetensors") == pytest.approx(sizes["models"], rel=0.1)


def test_what_will_be_made_again_is_counted_again(workspace: Workspace) -> None:
    def left(*keys: str, **values: Any) -> dict[str, int]:
        def change(content: dict[str, Any]) -> None:
            for key in keys:
                content = content[key]
            content.update(values)

        workspace.configure(change)
        return environment.missing_bytes(space_needed(config.load(workspace.path("config.yaml"))), workspace.folder)

    assert left() == {}
    last = left("runs", "tiny", "chat_sft", lr_fraction=0.5)
    assert left("runs", "tiny", "base_train", save_every_s=1) == last, "housekeeping makes nothing again"
    deeper = left("runs", "tiny", "base_train", depth=2)
    assert set(last) == set(deeper) == {"models", "resume states"} and deeper["models"] > 3 * last["models"]
    assert set(left("corpora", "tiny", sequence_len=64)) == {"tokens", "models", "resume states"}


def test_saved_states_make_room_but_for_one_that_is_put_aside(tmp_path: Path) -> None:
    """By hand: two states of 100 bytes, then two of 30; a state that lies there takes no more room when it is written over."""
    wanted = {f"results/tiny/{stage}/config.json": {"depth": 2} for stage in ("base_train", "chat_sft")}
    states = SavedStates("resume states", 200, "results/tiny/chat_sft/manifest.json", wanted, {"results/tiny/base_train": 200, "results/tiny/chat_sft": 60})
    assert states.left(tmp_path) == 200
    base = tmp_path / "results/tiny/base_train"
    write_json(base / "config.json", {"depth": 2})
    write_text(base / "resume/a.safetensors", "x" * 100)
    for rank in (1, 2):
        write_text(base / f"resume/b.{rank}-of-2.safetensors", "x" * 45)
    assert states.left(tmp_path) == 60, "base_train writes 10 more, chat_sft all of its own"
    write_json(base / "config.json", {"depth": 3})
    assert states.left(tmp_path) == 200 - 90, "the larger one stays until it is finished"
    write_text(base / "resume/old/a.safetensors", "x" * 60)
    assert states.left(tmp_path) == 60, "and what was kept before goes: 50 of base_train are less than those of chat_sft"
    write_json(base / "config.json", {"depth": 2})
    (base / "resume/a.safetensors").unlink()
    assert states.left(tmp_path) == 200 - 90, "what lies in old/ takes no more room, and makes none"
    write_text(tmp_path / "results/tiny/chat_sft/manifest.json", "{}")
    assert states.left(tmp_path) == 0


def test_the_disk_that_is_checked_is_the_disk_of_the_plan(empty_workspace: Workspace) -> None:
    """Beside what is fetched, of which the plan counts the downloads alone."""
    planned = json.loads(empty_workspace.nanochat("plan", "--json", "--profile", "slurm").stdout)
    sizes = space_needed(config.load(REPOSITORY / "configs/speedrun.yaml"))
    for what, stages in (("tokens", ("tokenize",)), ("models", ("base_train", "mid_train", "chat_sft"))):
        assert sum(item.bytes for item in sizes if item.what == what) == sum(job["disk_bytes"] for job in planned["jobs"] if job["stage"] in stages)


def test_linked_folders_are_checked_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    needed = [Space("fetched data", 10**8, "resources/a/all/manifest.json"), Space("models", 10**18, "results/d20/base_train/manifest.json")]
    monkeypatch.chdir(tmp_path)
    (together, _) = disk_checks(needed)
    assert together.name == "disk" and "fetched data 0.1 GB, models 1,000,000,000.0 GB" in together.detail
    Path("results").symlink_to(memory)
    data, _, models, quota = disk_checks(needed)
    assert (data.name, models.name, quota.name) == ("disk of resources", "disk of results", "quota of results")
    assert "models" not in data.detail and "fetched" not in models.detail and (data.state, models.state) == ("ok", "problem")


def test_too_little_space_is_a_problem(tmp_path: Path) -> None:
    assert environment.check_space({"models": 1000}, tmp_path / "not" / "there").state == "ok"
    check = environment.check_space({"models": 1 << 60}, tmp_path)
    assert check.state == "problem" and check.cure.startswith("free ")
    free = shutil.disk_usage(tmp_path).free
    assert environment.check_space({"models": int(free * 1.1)}, tmp_path).state == "warning", "the estimate is on the safe side"


# --- installation ---------------------------------------------------------------------------------------------------------


def test_this_installation_is_good() -> None:
    assert environment.check_python().state == "ok"
    wanted = environment.requirements()
    assert {requirement.name for requirement in wanted} >= {"torch", "snakemake", "pydantic"}
    assert [check.state for check in environment.check_packages(wanted, REPOSITORY / "envs" / "lock.txt")] == ["ok"]


def test_packages_that_are_missing_old_or_moved_are_named(tmp_path: Path) -> None:
    (check,) = environment.check_packages([Requirement("torch>=99"), Requirement("no-such-package-here"), Requirement("pydantic")])
    assert check.state == "problem" and "torch" in check.detail and ">=99 is needed" in check.detail and "no-such-package-here is missing" in check.detail
    (tmp_path / "lock.txt").write_text("# a comment\npydantic==1.0\n", encoding="utf-8")
    (check,) = environment.check_packages([Requirement("pydantic")], tmp_path / "lock.txt")
    assert check.state == "warning" and "(locked: 1.0)" in check.detail


@pytest.mark.parametrize(("stamped", "state"), [(100.5, "ok"), (98.0, "ok"), (110.0, "warning"), (90.0, "warning"), (4000.0, "problem"), (-4000.0, "problem")])
def test_a_file_system_with_another_clock_is_found(stamped: float, state: str) -> None:
    check = environment.check_clock(100.0, stamped, 101.0)
    assert check.state == state
    assert state == "ok" or (("ahead of" if stamped > 101 else "behind") in check.detail)


def test_a_locale_without_utf_8_is_found() -> None:
    assert environment.check_locale("UTF-8").state == "ok"
    program = "from nanochat.preflight.environment import check_locale; print(check_locale().line)"
    # the C locale with Python's rescue switched off: what a job on an old system sees
    bare = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    said = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True, check=True).stdout
    assert said.startswith("problem     locale: text is encoded as ") and "export LC_ALL=C.UTF-8" in said


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert [check.state for check in environment.check_writable(tmp_path / "results")] == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []
    (check,) = environment.check_writable(Path("/proc/results"))
    assert check.state == "problem" and "/proc cannot be written" in check.detail
    assert "chmod u+w" in check.sentence


def test_a_full_disk_is_not_cured_by_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(environment.tempfile, "NamedTemporaryFile", full)
    (check,) = environment.check_writable(tmp_path)
    assert check.state == "problem" and "cannot be written (no space left on device); free space or files there (df -h, df -i, quota)" in check.sentence


LUSTRE = """\
 /scratch  1468006400 1572864000 2097152000       -  412345  1000000 1500000       -
"""
NFS = """\
Disk quotas for user ann (uid 1000):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
server:/export/home 9437184* 8388608 10485760 1764500000   21000       0       0
/dev/sdb1 1000 0 0 0 5 0 0
"""


def test_quotas_are_read_in_both_formats() -> None:
    assert environment.quota_rows(LUSTRE) == [("/scratch", 1468006400 * 1024, 1572864000 * 1024)]
    assert environment.quota_rows(NFS) == [("server:/export/home", 9437184 * 1024, 8388608 * 1024)]
    assert environment.quota_rows("Disk quotas for user root (uid 0): none\n") == []


@pytest.mark.parametrize(("need", "state"), [(10**9, "ok"), (110 * 10**9, "warning"), (10**12, "problem")])
def test_a_quota_is_compared_with_the_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: int, state: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.check_quota({"models": need}, tmp_path, "ann").state == "not checked"
    tool = tmp_path / "lfs"  # prints what Lustre's prints
    tool.write_text(f"#!/bin/sh\necho ' {tmp_path}  100000000 0 200000000 - 4 0 0 -'\n", encoding="utf-8")
    tool.chmod(0o755)
    check = environment.check_quota({"models": need}, tmp_path / "results", "ann")
    assert check.state == state and "102.4 GB used of 204.8 GB (lfs)" in check.detail


def test_the_file_system_of_a_folder_is_the_deepest_mount() -> None:
    table = "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs rw 0 0\nserver:/h2 /home2 nfs rw 0 0\n"
    assert environment.mount_of(Path("/home/ann/x"), table) == "server:/home"
    assert environment.mount_of(Path("/home2"), table) == "server:/h2"
    assert environment.mount_of(Path("/var"), table) == "/dev/sda1"


# --- what SLURM's words mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("45", 45), ("30:30", 30.5), ("12:00:00", 720), ("2-00:00:00", 2880), ("1-12", 2160), ("1-00:30", 1470), ("UNLIMITED", math.inf), ("", math.inf)],
)
def test_times_of_slurm_in_minutes(text: str, value: float) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gpu:a100:8(S:0-1)", {"a100": 8}),
        ("gpu:8", {"": 8}),
        ("gpu:a100:4,gpu:v100:2,shard:10", {"a100": 4, "v100": 2}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
        ("gpu:nvidia_a100_80gb_pcie:2", {"nvidia_a100_80gb_pcie": 2}),
        ("(null)", {}),
        ("", {}),
    ],
)
def test_cards_of_a_node(text: str, value: dict[str, int]) -> None:
    assert gpus_of(text) == value


def test_a_line_of_scontrol_in_fields() -> None:
    line = "NodeName=a100-01 Arch=x86_64  CPUTot=64 OS=Linux 6.1 #1 SMP Partitions=gpu-a100,cpu  CfgTRES=cpu=64,mem=9M Reason=bad disk [root@2026]"
    found = fields(line)
    assert (found["CPUTot"], found["OS"], found["Partitions"], found["CfgTRES"]) == ("64", "Linux 6.1 #1 SMP", "gpu-a100,cpu", "cpu=64,mem=9M")
    assert found["Reason"] == "bad disk [root@2026]"


@pytest.mark.parametrize(
    ("state", "takes"),
    [("IDLE", True), ("MIXED", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("IDLE+DRAIN", False), ("DOWN", False), ("IDLE*", False), ("ALLOCATED+DRAIN", False)],
)
def test_states_of_a_node(state: str, takes: bool) -> None:
    assert Node("n", state, 1, 1, {}, ()).takes_jobs is takes


# --- what a profile asks for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "result"), [(120, 120), ("12h", 720), ("1d 2h", 1560), ("90m", 90), ("2 hours", 120), ("attempt * 60", 60), ("a while", None), (None, None)]
)
def test_run_times_of_a_profile(value: Any, result: int | None) -> None:
    assert runtime_minutes(value) == result


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (8, 8),
        ("8", 8),
        ("attempt * 64000", 64000),
        ("min(attempt * 128000, 256000)", 128000),
        ("64000 if attempt > 1 else 3", None),
        ("__import__('os')", None),
    ],
)
def test_numbers_of_a_profile_are_read_for_a_first_attempt(value: Any, result: int | None) -> None:
    assert whole(value) == result


def test_the_profile_of_the_project_asks_for_what_it_says() -> None:
    profile = read_profile(str(REPOSITORY / "profiles" / "slurm"))
    assert profile.executor == "slurm" and profile.experiment == Path("configs/speedrun.yaml")
    requests = {request.rule: request for request in profile.requests()}
    base = requests["base_train"]
    assert (base.partition, base.account, base.gpus, base.gpu_model, base.nodes, base.runtime_min) == ("gpu-a100", "nanochat", 8, "a100", 1, 720)
    assert requests["tokenize"].partition == "cpu" and requests["tokenize"].gpus == 0
    with pytest.raises(UserError, match=r"--profile=absent: no such profile"):
        read_profile("absent")


@pytest.mark.parametrize(
    ("resources", "flags"),
    [
        ({"gres": "gpu:a100:4", "runtime": "2h"}, ["--nodes=1", "--gres=gpu:a100:4", "--time=120"]),
        ({"gpu": 16, "gpu_model": "h100", "nodes": 2}, ["--nodes=2", "--gres=gpu:h100:8"]),
        (
            {"slurm_account": "'class-1'", "slurm_partition": "cpu", "mem_mb": 100, "qos": "low"},
            ["--partition=cpu", "--account=class-1", "--qos=low", "--mem=100"],
        ),
    ],
)
def test_resources_become_the_flags_of_sbatch(resources: dict[str, Any], flags: list[str]) -> None:
    assert set(flags) <= set(request_of("base_train", resources, 4).submission)
    assert "--cpus-per-task=4" in request_of("base_train", resources, 4).submission


@pytest.mark.parametrize(
    ("extra", "mail"), [({}, "none"), ({"slurm_extra": "'--mail-type=END'"}, "user"), ({"slurm_extra": "'--mail-type=END --mail-user=a@b.c'"}, "address")]
)
def test_who_gets_mail(extra: dict[str, Any], mail: str) -> None:
    assert request_of("base_train", extra).mail == mail


# --- what a compute node tells --------------------------------------------------------------------------------------------


def test_a_look_around_this_machine_is_judged(tmp_path: Path) -> None:
    facts = gpu_job.look_around(tmp_path)
    assert list(tmp_path.iterdir()) == [] and facts["writable"] and facts["torch"].startswith(facts["torch_installed"].split("+")[0])
    few = gpu_job.judge(facts, Request("base_train", gpus=facts["gpus"]))
    assert problems(few) == []
    many = problems(gpu_job.judge(facts, Request("base_train", gpus=facts["gpus"] + 1)))
    assert len(many) == 1 and f"torch sees {facts['gpus']} of the {facts['gpus'] + 1} asked for" in many[0].detail
    unwritable = gpu_job.look_around(Path("/proc"))
    assert not unwritable["writable"]
    assert any("cannot be written" in check.detail for check in problems(gpu_job.judge(unwritable, Request("base_train"))))


# --- the verb -------------------------------------------------------------------------------------------------------------


def preflight(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the verb in a folder."""
    return subprocess.run([sys.executable, "-m", "nanochat", "preflight", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_everything_that_is_missing_is_listed_at_once_and_soon(tmp_path: Path) -> None:
    start = time.monotonic()
    done = preflight(tmp_path, "--configfile", str(REPOSITORY / "config.yaml"))
    assert time.monotonic() - start < 20
    assert done.returncode == 2
    missing = [line for line in done.stdout.splitlines() if line.startswith("problem     data ")]
    assert len(missing) == len({need.source for need in data_needs(config.load(REPOSITORY / "config.yaml"))})
    assert all("snakemake --cores 4 fetch" in line for line in missing)
    assert done.stderr.startswith(f"nanochat: error: preflight: {len(missing)} problems, each with its cure above")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_experiment_passes_as_lines_and_as_json(finished: Workspace) -> None:
    done = finished.nanochat("preflight")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {line[:11].strip() for line in done.stdout.splitlines()}
    assert states <= {"ok", "warning", "not checked"}
    told = json.loads(finished.nanochat("preflight", "--json").stdout)
    assert told["state"] == "ok"
    assert [check["name"] for check in told["checks"]] == [line[12:].split(": ")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpu-job",), "preflight: --gpu-job needs a cluster; give --profile slurm"),
        (("--profile", "absent"), "--profile=absent: no such profile"),
        (("--configfile", "absent.yaml"), "absent.yaml: no such experiment file"),
        (("--config", "{}"), "preflight: --config and --checks belong together"),
        (("--config", '{"needs": ["x"]}', "--checks", "o.json"), "--config: needs must be a list of source/part/split"),
    ],
)
def test_a_wrong_call_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "config.yaml").write_bytes((REPOSITORY / "config.yaml").read_bytes())
    done = preflight(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"nanochat: error: {sentence}") and len(done.stderr.splitlines()) == 1
