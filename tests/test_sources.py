"""The registry: complete, honest about licences, light to import, and cut into parts without gaps."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import config
from nanochat.config import source_parts, task_rows, task_sources
from nanochat.data.core import CORE, CORE_SOURCES
from nanochat.data.fetch import check_rows, part_shards, shard_files
from nanochat.data.readers_files import FILE_READERS
from nanochat.data.readers_rows import HUB_ROWS, RANK_READERS, ROW_READERS
from nanochat.data.readers_text import TEXT_READERS
from nanochat.data.sources import SOURCES, WHEELS, Source, Split, user_source
from nanochat.errors import UserError
from nanochat.preflight.needs import RANKS, REFERENCES, data_needs
from nanochat.tasks import TASKS

HEX = set("0123456789abcdef")
ROOT = Path(__file__).parents[1]
EXPERIMENTS = [ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
SHARDED = [source.name for source in SOURCES.values() if source.shards]
ASKED_FOR_BY_HAND = {  # nothing in the code asks for these; who wants them runs `nanochat fetch`
    "r50k_base": "the same bytes as gpt2_ranks, should its wheel vanish",
    "cl100k_base": "the same bytes as cl100k_ranks, should its wheel vanish",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.name)
def test_every_source_says_where_it_comes_from_and_under_which_licence(source):
    assert source.licence
    assert source.description
    assert source.splits
    if source.is_text:
        assert set(source.splits) == {"train", "validation"}
    if source.kind == "wheel":
        assert source.place["package"] in WHEELS
        readers = TEXT_READERS if source.is_text else {**ROW_READERS, **RANK_READERS}
        assert source.place["reader"] in readers
        assert all(split.rows for split in source.splits.values()), "rows of embedded data are known"
    elif source.kind == "url":
        assert source.place["url"].startswith("https://")
        assert source.place["reader"] in FILE_READERS
        assert set(source.place.get("sha256", "")) <= HEX
    else:
        assert source.kind == "hf"
        assert source.place["repo"].count("/") == 1
        assert (source.shards is not None) == source.is_text
        assert source.is_text or source.place["reader"] in HUB_ROWS


def test_wheels_are_pinned_by_hash_and_all_of_them_are_used():
    for wheel in WHEELS.values():
        assert len(wheel.sha256) == 64
        assert set(wheel.sha256) <= HEX
        assert wheel.filename.endswith(".whl")
    assert {source.place["package"] for source in SOURCES.values() if source.kind == "wheel"} == set(WHEELS)


def test_only_the_news_have_an_unclear_licence():
    assert [source.name for source in SOURCES.values() if source.licence_unclear] == ["news_articles"]


def test_the_registry_imports_nothing_heavy():
    code = "import sys, nanochat.data.sources; print([m for m in ('torch', 'numpy', 'pyarrow', 'huggingface_hub', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 7000), st.integers(1, 500), st.sampled_from(SHARDED))
def test_chunks_cover_the_training_shards_once_and_never_the_pinned_one(shards, chunk_shards, name):
    source = SOURCES[name]
    parts = source_parts(source, "train", shards=shards, chunk_shards=chunk_shards)
    numbers = [n for part in parts for n in part_shards(source, part, chunk_shards=chunk_shards, shards=shards)]
    assert numbers == list(range(min(shards, source.shards)))
    last = [source.shards] if "pattern" in source.place else []
    assert part_shards(source, "validation", chunk_shards=chunk_shards, shards=shards) == last
    listed = sorted([f"x/{number:03d}" for number in range(source.shards)] + [source.place.get("validation", "x")])
    files = shard_files(source, numbers, lambda: listed)
    (pinned,) = shard_files(source, last, lambda: listed)
    assert len({*files, pinned}) == len(numbers) + 1


def test_the_pinned_shards_are_the_last_ones():
    assert SOURCES["fineweb_edu_100b"].place["validation_shard"] == 1822
    assert SOURCES["climbmix_400b"].place["validation_shard"] == 6542
    assert SHARDED == ["fineweb_edu_100b", "climbmix_400b", "fineweb_edu_10bt", "fineweb_edu_100bt"]
    assert shard_files(SOURCES["climbmix_400b"], [6542], list) == ["shard_06542.parquet"]
    assert [SOURCES[name].place["validation"] for name in SHARDED[2:]] == ["sample/10BT/013_00000.parquet", "sample/100BT/013_00009.parquet"]


@pytest.mark.parametrize("part", ["all", "train", "train-x", "train-114", "test-000"])
def test_a_part_that_does_not_exist_is_refused(part):
    with pytest.raises(UserError, match=f"^part={part}: "):
        part_shards(SOURCES["fineweb_edu_100b"], part, chunk_shards=16, shards=None)


def test_a_part_that_just_exists_is_not_refused():
    assert part_shards(SOURCES["fineweb_edu_100b"], "train-113", chunk_shards=16, shards=None) == list(range(1808, 1822))


def test_other_rows_than_promised_are_refused():
    source = Source("rows", "wheel", "MIT", "", {"train": Split(3), "test": Split()})
    check_rows(source, {"train": 3, "test": 99})
    with pytest.raises(UserError, match="rows: 4 rows in split train, the registry promises 3"):
        check_rows(source, {"train": 4, "test": 99})


def test_a_source_of_the_users_own_is_text():
    source = user_source("mine", kind="local", licence="mine", path="texts", column="text")
    assert source.is_text
    assert source.place == {"path": "texts", "column": "text"}


# --- nothing is forgotten --------------------------------------------------------------------------------------------


def resolve(name: str, part: str, split: str) -> Source:
    """The source that provides a split of a part; AssertionError where the registry, or what reads the source, does not know of it."""
    assert name in SOURCES, f"{name} is not in the registry"
    source = SOURCES[name]
    assert split in source.splits, f"{name} has no split {split}"
    if source.shards is None:
        assert part == "all"
    else:
        part_shards(source, part, chunk_shards=16, shards=None)
    if source.kind == "hf" and not source.is_text:
        assert source.place["folders"][split].rpartition("/")[2] == split
    return source


def asked_by_tasks() -> set[tuple[str, str]]:
    """(source, split) that any task can read, in whatever way it is configured."""
    found = {
        (source, task.source_splits.get(split, split))
        for name, task in TASKS.items()
        for split, choices in task.sources.items()
        for choice in (None, *choices)
        for source in task_sources(name, split, choice)
    }
    return found | {row for choice in (None, *CORE_SOURCES) for row in task_rows(CORE, "test", choice)}


def test_every_source_that_a_task_can_ask_for_is_there_with_its_split():
    asked = asked_by_tasks()
    for source, split in asked:
        assert not resolve(source, "all", split).is_text, f"{source} holds running text, not rows"
    assert {  # the whole list of what a run of the known recipe reads, by repository, configuration and split
        ("smoltalk_hf", "train"), ("smoltalk_hf", "test"), ("mmlu_auxiliary_hf", "train"), ("mmlu_hf", "test"), ("gsm8k_hf", "train"),
        ("gsm8k_hf", "test"), ("arc_easy_hf", "train"), ("arc_easy_hf", "test"), ("arc_challenge_hf", "train"), ("arc_challenge_hf", "test"),
        ("humaneval_hf", "test"), ("identity_conversations", "train"), ("words_alpha", "train"),
    } <= asked  # fmt: skip


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_all_that_an_experiment_reads_can_be_fetched(path):
    experiment = config.load(path)
    needs = data_needs(experiment)
    for need in needs:
        source = resolve(need.source, need.part, need.split)
        stage = config.FetchStage(**config.fetch_config(experiment, need.source, need.part))
        assert (stage.source, stage.part) == (need.source, need.part)
        if source.shards is not None and need.split == "train":
            assert part_shards(source, need.part, chunk_shards=stage.chunk_shards, shards=stage.shards)
    assert {need.source for need in needs} >= set(REFERENCES)


def test_the_references_of_the_tokenizer_are_there():
    for name in REFERENCES:
        assert resolve(name, "all", RANKS).place["file"].endswith(".tiktoken")


def test_every_source_is_asked_for_by_something_or_can_be_chosen_as_a_corpus():
    asked = {source for source, _ in asked_by_tasks()} | set(REFERENCES)
    corpora = {source.name for source in SOURCES.values() if source.is_text}
    assert not asked & corpora
    assert set(SOURCES) - asked - corpora == set(ASKED_FOR_BY_HAND)


def test_a_forgotten_source_would_be_noticed(monkeypatch):
    monkeypatch.delitem(SOURCES, "gsm8k_hf")
    with pytest.raises(AssertionError, match="gsm8k_hf is not in the registry"):
        test_every_source_that_a_task_can_ask_for_is_there_with_its_split()
    with pytest.raises(AssertionError, match="humaneval_hf has no split train"):
        resolve("humaneval_hf", "all", "train")


def test_datasets_of_the_hub_are_the_published_ones():
    places = {name: (source.place["repo"], source.place.get("folders", source.place.get("folder"))) for name, source in SOURCES.items() if source.kind == "hf"}
    assert places["smoltalk_hf"] == ("HuggingFaceTB/smol-smoltalk", {"train": "default/train", "test": "default/test"})
    assert places["mmlu_auxiliary_hf"] == ("cais/mmlu", {"train": "auxiliary_train/train"})
    assert places["mmlu_hf"] == ("cais/mmlu", {split: f"all/{split}" for split in ("test", "validation", "dev")})
    assert places["gsm8k_hf"] == ("openai/gsm8k", {"train": "main/train", "test": "main/test"})
    assert places["humaneval_hf"] == ("openai/openai_humaneval", {"test": "openai_humaneval/test"})
    assert places["fineweb_edu_10bt"] == ("HuggingFaceFW/fineweb-edu", "sample/10BT")


def test_tiktoken_finds_the_ranks_under_the_names_that_the_docs_give():
    """Its cache calls a file by the sha1 of its address."""
    page = (ROOT / "docs" / "how-to" / "downloads.md").read_text(encoding="utf-8")
    for name in ("r50k_base", "cl100k_base"):
        address = SOURCES[name].place["url"]
        assert hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest() in page
    assert SOURCES["r50k_base"].place["sha256"] == SOURCES["gpt2_ranks"].place["content_sha256"]
    assert SOURCES["cl100k_base"].place["sha256"] == SOURCES["cl100k_ranks"].place["content_sha256"]
