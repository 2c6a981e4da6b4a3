"""A user's own text as an input of the workflow: what is added, removed or changed is noticed, what is only moved about is not."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from workspace import REPOSITORY, Workspace

pytestmark = pytest.mark.workflow

Change = Callable[[Path], object]

STALE = {"fetch letters all", "tokenizer tiny", "tokenize tiny tiny letters.train", "tokenize tiny tiny letters.validation"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The miniature on text of its own, built up to its tokens. Never change it: take a copy."""
    workspace = Workspace.make(tmp_path_factory.mktemp("own") / "workspace", REPOSITORY / "tests" / "tiny.yaml")
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    (workspace.path("letters") / "deep").mkdir(parents=True)
    for number in range(4):
        (workspace.path("letters") / f"{number}.txt").write_text(f"Letter {number}. {text}", encoding="utf-8")
    (workspace.path("letters") / "deep" / "{braces}.txt").write_text(f"A letter in a file of an odd name. {text}", encoding="utf-8")
    large = "".join(f'{{"text": "Letter {number} of many, {number * number} words."}}\n' for number in range(30_000))
    assert len(large) > 1_000_000, "too large for a checksum"
    (workspace.path("letters") / "large.jsonl").write_text(large, encoding="utf-8")
    (workspace.path("letters") / "notes.md").write_text("no text", encoding="utf-8")

    def use(content: dict[str, Any]) -> None:
        content["sources"] = {"letters": {"kind": "local", "path": "letters"}}
        content["corpora"]["tiny"]["sources"] = ["letters"]
        content["tokenizers"]["tiny"]["vocab_size"] = 300

    workspace.configure(use)
    workspace.build("tokens")
    return workspace


@pytest.fixture
def own(built: Workspace, tmp_path: Path) -> Workspace:
    """A copy of it, to be changed."""
    return built.copy(tmp_path / "workspace")


@dataclass(frozen=True)
class Pair:
    """Two changes of the folder, one after the other: the second one must rerun the fetch and what follows."""

    name: str
    harmless: Change
    harmful: Change


def touch_small(folder: Path) -> None:
    """Give every file that has a checksum the time of now."""
    for file in folder.glob("*.txt"):
        os.utime(file)


def replace(name: str, old: str, new: str, *, time_s: float | None = None) -> Change:
    """Change the text of a file, and date it back if `time_s` is given."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        if time_s is not None:
            os.utime(folder / name, (time_s, time_s))

    return change


def link_folder(folder: Path) -> None:
    """A folder elsewhere becomes a part of this one."""
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "new.txt").write_text("A letter from elsewhere.", encoding="utf-8")
    (folder / "link").symlink_to("../elsewhere")


PAIRS = [
    Pair("small files touched | same size, new text", touch_small, replace("1.txt", "Letter", "Lettre")),
    Pair("file of another kind | file added", lambda folder: (folder / "more.md").write_text("x"), lambda folder: (folder / "new.txt").write_text("New.")),
    Pair("hidden file | file removed", lambda folder: (folder / ".new.txt").write_text("New."), lambda folder: (folder / "2.txt").unlink()),
    Pair("nothing | other text with an old date", lambda folder: None, replace("1.txt", "Letter", "Some letter", time_s=1_000_000_000)),
    Pair("link to the folder itself | linked folder", lambda folder: (folder / "loop").symlink_to("."), link_folder),
    Pair("folder moved and back | file renamed", lambda folder: folder.rename("x").rename(folder), lambda folder: (folder / "1.txt").rename(folder / "5.txt")),
    Pair("file rewritten | large file changed", lambda folder: replace("1.txt", "Letter", "Letter")(folder), replace("large.jsonl", "many", "some")),
    Pair("nothing | file of an odd name changed", lambda folder: None, replace("deep/{braces}.txt", "odd", "very odd")),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name.replace(" ", "_"))
def test_changed_text_is_fetched_again_and_untouched_text_is_not(own: Workspace, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.folder)
    pair.harmless(own.path("letters"))
    assert own.plan("tokens") == set()
    pair.harmful(own.path("letters"))
    assert own.plan("tokens") == STALE


def test_added_text_is_really_used_and_then_nothing_is_to_be_done(own: Workspace) -> None:
    before = own.path("results/tokens/tiny.tiny/letters.train/manifest.json").read_bytes()
    (own.path("letters") / "new.txt").write_text("A new letter that nobody has read. " * 9, encoding="utf-8")
    own.build("tokens")
    assert own.path("results/tokens/tiny.tiny/letters.train/manifest.json").read_bytes() != before
    assert own.plan("tokens") == set()


def test_a_large_file_with_a_new_date_costs_a_fetch_and_no_more(own: Workspace) -> None:
    """What docs/how-to/own-text.md advises: fetch alone first, and text that came out the same reruns nothing."""
    os.utime(own.path("letters/large.jsonl"))
    assert own.plan("tokens") == STALE
    own.build("fetch")
    assert own.plan("tokens") == set()


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda folder: [shutil.rmtree(folder), folder.mkdir()]], ids=["gone", "empty"])
def test_fetched_text_is_used_aloud_while_its_folder_is_away(own: Workspace, lose: Change) -> None:
    shutil.copytree(own.path("letters"), own.path("copy"))
    lose(own.path("letters"))
    done = own.snakemake("--dry-run", "tokens")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("nanochat: warning: sources.letters.path=letters: ") == 1
    assert "Nothing to be done" in done.stdout + done.stderr
    assert own.plan("--forcerun", "tokenize", "--", "tokens") == STALE - {"fetch letters all", "tokenizer tiny"}
    shutil.rmtree(own.path("letters"), ignore_errors=True)
    own.path("copy").rename(own.path("letters"))  # with the time of now
    (own.path("letters") / "3.txt").unlink()
    assert own.plan("tokens") == STALE


def test_a_folder_that_never_was_is_one_sentence_of_the_stage(own: Workspace) -> None:
    shutil.rmtree(own.path("letters"))
    own.path("resources/letters/all/manifest.json").unlink()
    assert own.plan("tokens") == STALE
    done = own.snakemake("--cores", "1", "tokens")
    assert done.returncode != 0
    assert "nanochat: error: sources.letters.path=letters: no such file or folder; give one that exists on this machine" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_thousands_of_files_are_planned_in_seconds(own: Workspace) -> None:
    def plan_s() -> float:
        started = time.perf_counter()
        assert own.plan("tokens")
        return time.perf_counter() - started

    (own.path("letters") / "new.txt").write_text("New.")
    few = min(plan_s() for _ in range(2))
    for number in range(3_000):
        (own.path("letters") / "deep" / f"{number}.txt").write_text(f"Letter {number}.", encoding="utf-8")
    assert min(plan_s() for _ in range(2)) < 2 * few + 1.0  # twice for a busy machine; 3,000 files take 0.5 s on an idle one
