"""Files at an address: what they become, and what is refused before it is believed."""

import json
import zipfile
from pathlib import Path

import pytest
import yaml
from core_bundle import ROWS, core_files, kind_of, uri_of, zipped

from nanochat.data import readers_files
from nanochat.data.core import CORE_TASKS
from nanochat.data.readers_files import read_core_bundle, read_message_lists, read_ranks, read_word_lines
from nanochat.errors import UserError

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "nanochat"}]


def bundle(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "eval_bundle.zip"
    path.write_bytes(zipped(files))
    return path


def rows_of(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("root", ["eval_bundle/", ""])
def test_the_core_bundle_becomes_one_file_a_task_and_two_as_they_are(tmp_path, root):
    files = core_files(root) | {"__MACOSX/eval_bundle/._core.yaml": b"?", f"{root}openai-community-gpt2.csv": b"reference"}
    names, rows = read_core_bundle(bundle(tmp_path, files), tmp_path / "out")
    assert len(CORE_TASKS) == 22
    assert rows == dict.fromkeys(CORE_TASKS, 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert set(names) == {"core.yaml", "eval_meta_data.csv", *(f"{label}.jsonl" for label in CORE_TASKS)}
    for name in ("core.yaml", "eval_meta_data.csv"):
        assert (tmp_path / "out" / name).read_bytes() == files[f"{root}{name}"]
    for label in CORE_TASKS:
        assert rows_of(tmp_path / "out" / f"{label}.jsonl") == [ROWS[kind_of(label)]] * 2


def change_yaml(files: dict[str, bytes], **values: object) -> None:
    content = yaml.safe_load(files["eval_bundle/core.yaml"])
    content["icl_tasks"][0] |= values
    files["eval_bundle/core.yaml"] = yaml.safe_dump(content).encode()


ROWS_NAME = f"eval_bundle/eval_data/{uri_of('boolq')}"
BROKEN = {
    "no core.yaml": (lambda files: files.pop("eval_bundle/core.yaml"), "holds 0 files core.yaml"),
    "two of them": (lambda files: files.update({"core.yaml": b""}), "holds 2 files core.yaml"),
    "no yaml": (lambda files: files.update({"eval_bundle/core.yaml": b"a: ]"}), "core.yaml lists no tasks"),
    "other yaml": (lambda files: files.update({"eval_bundle/core.yaml": b"icl_tasks: [3]"}), "core.yaml lists no tasks"),
    "no text": (lambda files: files.update({"eval_bundle/core.yaml": b"\xff"}), "core.yaml is no text"),
    "a new kind": (lambda files: change_yaml(files, icl_task_type="essay"), "core.yaml lists no tasks"),
    "a label that leads out": (lambda files: change_yaml(files, label="../../escaped"), "has the label '../../escaped', which is no name of a task"),
    "an absolute label": (lambda files: change_yaml(files, label="/tmp/escaped"), "has the label '/tmp/escaped'"),
    "rows that lead out": (lambda files: change_yaml(files, dataset_uri="../../../etc/passwd"), "is missing"),
    "no baselines": (lambda files: files.pop("eval_bundle/eval_meta_data.csv"), "eval_meta_data.csv is missing"),
    "other baselines": (lambda files: files.update({"eval_bundle/eval_meta_data.csv": b"Eval Task,Random baseline\nboolq,x\n"}), "no number under Random"),
    "no rows": (lambda files: files.pop(ROWS_NAME), "the rows of task boolq, is missing"),
    "empty rows": (lambda files: files.update({ROWS_NAME: b"\n"}), "the rows of task boolq, is empty"),
    "half a row": (lambda files: files.update({ROWS_NAME: files[ROWS_NAME][:-20]}), "line 2: not valid JSON"),
    "another row": (lambda files: files.update({ROWS_NAME: b'{"query": "x", "gold": 0}\n'}), "line 1 has no choices"),
    "a list": (lambda files: files.update({ROWS_NAME: b"[]\n"}), "line 1 is no object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bundle_that_is_not_what_it_should_be_is_refused_in_one_sentence(name, tmp_path):
    change, message = BROKEN[name]
    files = core_files()
    change(files)
    with pytest.raises(UserError) as refused:
        read_core_bundle(bundle(tmp_path, files), tmp_path / "out" / "deep")
    assert str(refused.value).startswith("eval_bundle.zip: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} <= {"eval_bundle.zip", "out"}, "nothing was written elsewhere"


def test_members_that_lead_out_are_left_alone(tmp_path):
    files = core_files() | {"../escaped.txt": b"x", "/tmp/escaped-by-a-bundle.txt": b"x", "eval_bundle/../../escaped.txt": b"x"}
    read_core_bundle(bundle(tmp_path, files), tmp_path / "out" / "deep")
    assert {path.name for path in tmp_path.iterdir()} == {"eval_bundle.zip", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"deep"}
    assert not Path("/tmp/escaped-by-a-bundle.txt").exists()


@pytest.mark.parametrize("limit", ["MAX_UNPACKED_BYTES", "MAX_MEMBER_BYTES", "MAX_SMALL_BYTES"])
def test_a_bundle_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(readers_files, limit, 1000)
    with pytest.raises(UserError, match=r"too much for the CORE bundle|larger than 1,000 bytes"):
        read_core_bundle(bundle(tmp_path, core_files()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["html", "cut", "damaged", "understated"])
def test_what_is_no_whole_zip_is_refused(kind, tmp_path):
    path = bundle(tmp_path, core_files())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(ROWS_NAME)
    if kind == "understated":  # its size in the directory is a lie: zipfile reads no more, and the check sum is not that of what it read
        entry = data.rindex(ROWS_NAME.encode()) - 46
        data = data[: entry + 24] + (10).to_bytes(4, "little") + data[entry + 28 :]
    middle = info.header_offset + 30 + len(ROWS_NAME) + 5
    path.write_bytes({"html": b"<html>log in</html>", "cut": data[:-30], "damaged": data[:middle] + b"??" + data[middle + 2 :]}.get(kind, data))
    with pytest.raises(UserError, match=r"eval_bundle.zip: .*(not a readable zip|line 1: not valid JSON).*; run again; if it stays so"):
        read_core_bundle(path, tmp_path / "out")


def test_lists_of_messages_become_conversations(tmp_path):
    file = tmp_path / "identity_conversations.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ([*CHAT, *CHAT], [*CHAT, CHAT[0]])) + "\n\n")
    assert read_message_lists(file, tmp_path / "out") == (["train.jsonl"], {"train": 2})
    assert rows_of(tmp_path / "out" / "train.jsonl") == [{"messages": [*CHAT, *CHAT]}, {"messages": CHAT}]


@pytest.mark.parametrize(
    "line", ["{}", "[", "[]", json.dumps(CHAT[:1]), json.dumps(CHAT[::-1]), '[{"role": "user", "content": "x"}, {"role": "assistant"}]', "[1, 2]"]
)
def test_other_lines_are_no_conversations(line, tmp_path):
    file = tmp_path / "identity_conversations.jsonl"
    file.write_text(json.dumps(CHAT) + "\n" + line + "\n")
    with pytest.raises(UserError, match=r"^identity_conversations.jsonl: line 2(: not valid JSON| is no list of messages)"):
        read_message_lists(file, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_words_are_read_with_any_line_ends_and_nothing_else_is_a_word(tmp_path):
    file = tmp_path / "words_alpha.txt"
    file.write_bytes(b"a\r\naa\r\nzebra\n\n")
    assert read_word_lines(file, tmp_path / "out") == (["train.jsonl"], {"train": 3})
    assert rows_of(tmp_path / "out" / "train.jsonl") == [{"word": "a"}, {"word": "aa"}, {"word": "zebra"}]
    file.write_bytes(b"a\n<html>\n")
    with pytest.raises(UserError, match=r"words_alpha.txt: line 2 is b'<html>', not a word"):
        read_word_lines(file, tmp_path / "out")
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"words_alpha.txt: is empty"):
        read_word_lines(file, tmp_path / "out")


def test_ranks_stay_as_they_are(tmp_path):
    file = tmp_path / "r50k_base.tiktoken"
    file.write_bytes(b"IQ== 0\nIg== 1\n")
    assert read_ranks(file, tmp_path / "out") == (["r50k_base.tiktoken"], {"ranks": 2})
    assert (tmp_path / "out" / "r50k_base.tiktoken").read_bytes() == file.read_bytes()
