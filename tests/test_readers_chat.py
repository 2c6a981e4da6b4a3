"""Conversations of the user's own: what becomes of a row, and that they can be mixed, checked and fetched like any other."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nanochat import config
from nanochat.artifacts import read_manifest
from nanochat.data.readers_chat import conversations
from nanochat.errors import UserError
from nanochat.plan.texts import mixture_tokens
from nanochat.preflight.needs import data_needs
from nanochat.stages import fetch
from nanochat.tasks import open_task

ROOT = Path(__file__).parents[1]
ASKED, SAID = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(tmp_path: Path, rows: list, columns: dict[str, str], suffix: str = ".jsonl") -> tuple[list, Counter]:
    file, seen = tmp_path / f"chat{suffix}", Counter()
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
        file.write_bytes(gzip.compress(lines) if suffix.endswith(".gz") else lines)
    return list(conversations([file], columns, seen)), seen


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_messages_and_pairs_become_conversations(tmp_path, suffix):
    rows = [{"chat": [ASKED, SAID], "id": 1}, {"chat": [SYSTEM, ASKED, SAID, ASKED], "id": 2}, {"chat": None, "id": 3}]
    found, seen = read(tmp_path, rows, {"messages": "chat"}, suffix)
    assert found == [{"messages": [ASKED, SAID]}, {"messages": [SYSTEM, ASKED, SAID]}]
    assert seen == {"read": 3, "left out": 1}
    rows = [{"q": "Where is it?", "a": "Here."}, {"q": "Why?", "a": None}, {"q": " ", "a": "So."}]
    assert read(tmp_path, rows, {"prompt": "q", "answer": "a"}, suffix) == ([{"messages": [ASKED, SAID]}], {"read": 3, "left out": 2})
    rows = [{"chat": [{"from": "human", "value": "Where is it?"}, {"from": "gpt", "value": "Here."}]}]
    assert read(tmp_path, rows, {"messages": "chat"}, suffix)[0] == [{"messages": [ASKED, SAID]}]


@pytest.mark.parametrize("messages", [[], [ASKED], [SAID, ASKED], [ASKED, ASKED, SAID], [ASKED, SYSTEM], [SYSTEM], [ASKED, {"role": "tool", "content": "x"}]])
def test_what_is_no_conversation_in_turns_is_left_out(tmp_path, messages):
    assert read(tmp_path, [{"chat": messages}], {"messages": "chat"}) == ([], {"read": 1, "left out": 1})


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"text": "x"}, {"messages": "chat"}, "chat.jsonl: line 2: has no key 'chat'; its keys are 'text'; set columns:"),
        ({"chat": "x"}, {"messages": "chat"}, "line 2: 'chat' is a str; set columns.messages:"),
        ({"chat": ["x"]}, {"messages": "chat"}, "line 2: a message of 'chat' has no role and content"),
        ({"chat": [{"role": "user"}]}, {"messages": "chat"}, "line 2: a message of 'chat' has no role and content"),
        ({"chat": [{"role": "user", "content": ["x"]}]}, {"messages": "chat"}, "line 2: a message is a list; give text"),
        ("{", {"messages": "chat"}, "line 2: not valid JSON"),
        ("[]", {"messages": "chat"}, "line 2: is no object"),
        ({"q": 3, "a": "x"}, {"prompt": "q", "answer": "a"}, "line 2: a message is a int; give text"),
    ],
)
def test_another_type_is_refused_with_its_place(tmp_path, row, columns, message):
    good = {"chat": [ASKED, SAID], "q": "x", "a": "y"}
    with pytest.raises(UserError) as refused:
        read(tmp_path, [good, row], columns)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_other_files_and_columns_are_refused(tmp_path):
    (tmp_path / "chat.txt").write_text("hello")
    with pytest.raises(UserError, match=r"chat\.txt: conversations are read from \.parquet and \.jsonl files"):
        list(conversations([tmp_path / "chat.txt"], {"messages": "chat"}, Counter()))
    with pytest.raises(UserError, match=r"chat\.parquet: has no column 'chat'; set columns: to some of text"):
        read(tmp_path, [{"text": "x"}], {"messages": "chat"}, ".parquet")
    (tmp_path / "chat.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"chat\.parquet: not readable as parquet"):
        list(conversations([tmp_path / "chat.parquet"], {"messages": "chat"}, Counter()))


# --- from the experiment to a task -----------------------------------------------------------------------------------


def experiment(**source: object) -> dict:
    content = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
    content["sources"] = {"support": {"kind": "local", "path": "/data/support", "columns": {"messages": "chat"}, **source}}
    content["runs"]["tiny"]["chat_sft"]["mixture"].append({"task": "conversations", "source": "support", "rows": 100})
    return content


def test_a_mixture_of_ones_own_conversations_is_fetched_planned_and_opened(tmp_path, capsys):
    rows = [{"chat": [ASKED, SAID]}] * 5 + [{"chat": [ASKED]}]
    (tmp_path / "support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = config.validate(experiment(path=str(tmp_path / "support.jsonl"), licence="ours"))
    assert ("support", "all", "train") in {(need.source, need.part, need.split) for need in data_needs(checked)}
    item = checked.runs["tiny"].chat_sft.mixture[-1:]
    assert 0 < mixture_tokens(item, 512, 2048) < mixture_tokens([item[0].model_copy(update={"rows": None})], 512, 2048)
    manifest = tmp_path / "out" / "manifest.json"
    fetch.main(["--config", json.dumps(config.fetch_config(checked, "support", "all")), "--manifest", str(manifest)])
    assert "support: of 6 rows 1 left out: no answer" in capsys.readouterr().err
    found = read_manifest(manifest, stage="fetch")
    assert (found["counts"]["rows"], found["counts"]["rows_left_out"], found["config"]["is_text"]) == ({"train": 5}, 1, False)
    task = open_task("conversations", "train", [manifest], source="support", rows=3)
    assert [task.conversation(index) for index in range(len(task))] == [{"messages": [ASKED, SAID]}] * 3
    (tmp_path / "support.jsonl").write_text('{"chat": []}\n')
    with pytest.raises(UserError, match=r"sources\.support: none of 1 rows is a conversation of user and assistant in turns; check columns:"):
        fetch.main(["--config", json.dumps(config.fetch_config(checked, "support", "all")), "--manifest", str(manifest)])
    assert not manifest.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["corpora"]["tiny"].update(sources=["support"]), "corpora.tiny.sources='support': holds conversations, no running text"),
        (lambda content: content["runs"]["tiny"]["chat_sft"]["mixture"][-1].pop("source"), "source=None: task conversations reads a source of your own"),
        (lambda content: content["runs"]["tiny"]["chat_sft"]["mixture"][-1].update(source="chitchat"), "source='chitchat': task conversations reads"),
        (lambda content: content["runs"]["tiny"]["chat_sft"]["mixture"][-1].update(split="test"), "task conversations has no split 'test'"),
        (lambda content: content["runs"]["tiny"]["evaluate"].update(conversations={}), "conversations that nobody grades"),
        (lambda content: content["sources"]["support"].update(column="body"), "column=body is of text, columns are of conversations"),
        (lambda content: content["sources"]["support"].update(columns={"prompt": "q"}), "give messages, or prompt and answer"),
        (lambda content: content["sources"]["support"].update(columns={"messages": "m", "answer": "a"}), "give messages, or prompt and answer"),
        (lambda content: content["sources"]["support"].pop("columns"), "define one under sources: with columns:"),
        (
            lambda content: content["sources"].update(x={"kind": "hf", "repo": "a/b", "files": ["x.jsonl"], "split": "test"}),
            "leave out files, or config and split",
        ),
        (lambda content: content["sources"].update(x={"kind": "hf"}), "kind hf needs repo: owner/name"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_runs(change, message):
    content = experiment()
    assert config.validate(experiment())
    change(content)
    with pytest.raises(UserError) as refused:
        config.validate(content)
    assert message in str(refused.value)
