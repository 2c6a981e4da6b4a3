"""After `snakemake fetch` nothing needs the network: the speedrun in miniature, fetched from a hub, then made where there is no route to anywhere.

The kernel counts what is sent without a route, so an attempt that fails in silence is seen too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from mini_hub import mini_hub
from mini_hub_content import EXPORT, repositories
from workspace import REPOSITORY, Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

NO_NETWORK = ("unshare", "--map-user=12345", "--map-group=12345", "--net")  # as in a container: the machine knows no such user
COUNTED = '"$@"; code=$?; cat /proc/net/snmp /proc/net/snmp6 >"$0"; exit "$code"'
ROWS = {  # what the registry promises, and of SmolTalk what the hub has
    "smoltalk_hf": {"train": 600, "test": 64},
    "mmlu_auxiliary_hf": {"train": 99_842},
    "mmlu_hf": {"test": 14_042, "validation": 1531, "dev": 285},
    "gsm8k_hf": {"train": 7473, "test": 1319},
    "arc_easy_hf": {"train": 2251, "validation": 570, "test": 2376},
    "arc_challenge_hf": {"train": 1119, "validation": 299, "test": 1172},
    "humaneval_hf": {"test": 164},
}


def miniature() -> dict[str, Any]:
    """configs/speedrun.yaml with its sources and mixtures and smaller numbers; one phase is scored, on tasks whose files no mixture reads."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "speedrun.yaml").read_text(encoding="utf-8"))
    content["corpora"]["fineweb_edu"].update(shards=2, sequence_len=512)
    content["tokenizers"]["fineweb_edu_64k"].update(vocab_size=1024, max_chars=300_000)
    run = content["runs"].pop("d20")
    content["runs"]["d1"] = run
    run["base_train"] = {"depth": 1, "horizon": {"steps": 2, "batch_tokens": 1024}, "validation_rows": 4}
    for stage in ("mid_train", "chat_sft"):
        for item in [*run[stage]["mixture"], *run[stage]["validation"]]:
            item["rows"] = 4
        run[stage].update(batch_tokens=1024, micro_batch_rows=1, validation_rows=4)
    run["evaluate"] = {task: run["evaluate"][task] for task in ("bpb", "arc_easy", "mmlu", "gsm8k", "humaneval")}
    for settings in run["evaluate"].values():
        settings.update(limit=2, batch_rows=2, max_new_tokens=8, phases=["sft"])
    return content


def environment(workspace: Workspace, home: Path, **more: str) -> dict[str, str]:
    """Of a user who has no name, whose home is empty and who has set nothing."""
    foreign = re.compile("(HF_|XDG_|USER$|LOGNAME$|LNAME$|USERNAME$|MPLCONFIGDIR$|TORCH|TIKTOKEN|.*_proxy$)", re.IGNORECASE)
    plain = {name: value for name, value in workspace.environment().items() if not foreign.match(name)}
    home.mkdir()
    # snakemake's SLURM plugin asks scontrol at each start, which looks for its controller in the DNS where it finds no file
    return {**plain, "HOME": str(home), "SLURM_CONF": os.devnull, **more}


def cut_off(workspace: Workspace, home: Path, *command: str) -> tuple["subprocess.CompletedProcess[str]", int]:
    """Run a command where not even the loopback is up; how it ended, and how often it tried to reach anything."""
    counters = home.with_suffix(".counters")
    done = subprocess.run(
        [*NO_NETWORK, "bash", "-c", COUNTED, str(counters), *command],
        cwd=workspace.folder,
        env=environment(workspace, home, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    return done, attempts(counters.read_text(encoding="utf-8"))


def attempts(counters: str) -> int:
    """Packets without a route: of IPv4 (a line of names above a line of numbers) and of IPv6 (a name and a number a line)."""
    names, numbers = (line.split()[1:] for line in counters.splitlines() if line.startswith("Ip:"))
    newer = re.search(r"^Ip6OutNoRoutes\s+(\d+)$", counters, flags=re.MULTILINE)
    return int(numbers[names.index("OutNoRoutes")]) + (int(newer[1]) if newer else 0)


def tool(name: str) -> str:
    """A command of the installation."""
    return str(Path(sys.executable).with_name(name))


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    if shutil.which("unshare") is None or subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode:
        pytest.skip("needs a network namespace of its own: `unshare --net --map-user` is not possible here")
    with mini_hub(repositories()) as server:
        yield server


@pytest.fixture(scope="module")
def fetched(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace after `snakemake fetch`, from a hub that is gone."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(miniature()), encoding="utf-8")
    workspace = Workspace.make(folder / "workspace", folder / "experiment.yaml")
    variables = environment(workspace, folder / "home", HF_ENDPOINT=hub.endpoint)
    done = warm.snakemake(("--cores", "2", "fetch"), workspace.folder, variables, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    tried = f"exec 3<>/dev/tcp/127.0.0.1/{hub.server_address[1]}"
    assert subprocess.run(["bash", "-c", tried]).returncode == 0, "the hub is up"
    cut, count = cut_off(workspace, folder / "cut", "bash", "-c", tried)
    assert cut.returncode != 0 and "Network is unreachable" in cut.stderr and count == 1, "and cannot be reached from where the rest is made"
    hub.shutdown()
    hub.server_close()
    assert not list((folder / "home").rglob("*hugging*")), "data lie in the workspace alone"
    return workspace


def test_a_fetch_asks_for_the_files_of_the_experiment_and_for_no_others(fetched: Workspace, hub: Any) -> None:
    assert sorted(hub.downloads) == sorted(
        [f"karpathy/fineweb-edu-100b-shuffle/shard_{number:05d}.parquet" for number in (0, 1, 1822)]
        + [f"HuggingFaceTB/smol-smoltalk/default/{file}.parquet" for file in ("train/0000", "train/0001", "test/0000")]
        + [f"cais/mmlu/{split}/0000.parquet" for split in ("auxiliary_train/train", "all/test", "all/validation", "all/dev")]
        + [f"openai/gsm8k/main/{split}/0000.parquet" for split in ("train", "test")]
        + [f"allenai/ai2_arc/ARC-{name}/{split}/0000.parquet" for name in ("Easy", "Challenge") for split in ("train", "validation", "test")]
        + ["openai/openai_humaneval/openai_humaneval/test/0000.parquet"]
    )
    for source, rows in ROWS.items():
        manifest = json.loads(fetched.path(f"resources/{source}/all/manifest.json").read_text(encoding="utf-8"))
        assert manifest["counts"]["rows"] == rows
        assert manifest["config"]["revision"] == hub.commits[manifest["config"]["repo"]][EXPORT]


def test_without_one_of_its_data_sets_nothing_trains(fetched: Workspace, tmp_path: Path) -> None:
    """The one that is read last: by an evaluation of the last phase."""
    workspace = fetched.copy(tmp_path / "workspace")
    shutil.rmtree(workspace.path("resources/humaneval_hf"))
    checked, _ = cut_off(workspace, tmp_path / "first", tool("nanochat"), "preflight")
    assert checked.returncode == 2
    assert [line for line in checked.stdout.splitlines() if line.startswith("problem")] == [
        "problem     data humaneval_hf: not fetched; fetch it: snakemake --cores 4 fetch"
    ]
    made, count = cut_off(workspace, tmp_path / "second", tool("snakemake"), "--cores", "2")
    assert made.returncode != 0 and count == 0
    assert "openai/openai_humaneval/openai_humaneval/test: not here, and HF_HUB_OFFLINE forbids to fetch it; " in made.stderr
    assert "rule base_train" not in made.stdout + made.stderr and not workspace.path("results/d1").exists()


def test_after_a_fetch_everything_is_made_and_answers_without_a_network(fetched: Workspace, tmp_path: Path) -> None:
    made, count = cut_off(fetched, tmp_path / "home", tool("snakemake"), "--cores", "2")
    assert made.returncode == 0, f"{made.stdout[-4000:]}\n{made.stderr[-8000:]}"
    evaluated = fetched.experiment()["runs"]["d1"]["evaluate"]
    scores = [json.loads(file.read_text(encoding="utf-8")) for file in fetched.path("results/d1/scores").glob("*/*.json")]
    assert {score["task"] for score in scores} == set(evaluated)
    assert [score for score in scores if score["score"] is None] == []
    assert fetched.path("results/report/report.html").is_file()
    answer, more = cut_off(fetched, tmp_path / "other", tool("nanochat"), "chat", "--run", "d1", "-p", "Who are you?")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
    assert (count, more) == (0, 0), "nothing was sent anywhere"
    assert [path for path in tmp_path.rglob("*") if path.parent != tmp_path and not path.is_dir()] == [], "nor kept in the home folder"
