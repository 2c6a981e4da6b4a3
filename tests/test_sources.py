"""The registry: complete, honest about licences, light to import, and cut into parts without gaps."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.config import source_parts
from nanochat.data.fetch import check_rows, part_shards
from nanochat.data.readers_rows import HUB_ROWS, RANK_READERS, ROW_READERS
from nanochat.data.readers_text import TEXT_READERS
from nanochat.data.sources import SOURCES, WHEELS, Source, Split, user_source
from nanochat.errors import UserError

HEX = set("0123456789abcdef")


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
@given(st.integers(1, 7000), st.integers(1, 500), st.sampled_from(["fineweb_edu_100b", "climbmix_400b"]))
def test_chunks_cover_the_training_shards_once_and_never_the_pinned_one(shards, chunk_shards, name):
    source = SOURCES[name]
    parts = source_parts(source, "train", shards=shards, chunk_shards=chunk_shards)
    numbers = [n for part in parts for n in part_shards(source, part, chunk_shards=chunk_shards, shards=shards)]
    assert numbers == list(range(min(shards, source.shards)))
    assert part_shards(source, "validation", chunk_shards=chunk_shards, shards=shards) == [source.shards]


def test_the_pinned_shards_are_the_last_ones():
    assert SOURCES["fineweb_edu_100b"].place["validation_shard"] == 1822
    assert SOURCES["climbmix_400b"].place["validation_shard"] == 6542


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
