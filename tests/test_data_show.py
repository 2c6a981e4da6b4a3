"""`nanochat data show`: the documents of token rows, and the conversations of packed ones, with where they came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from training_lab import PARAGRAPHS, Lab, chat, fetched, fetched_rows

from nanochat.artifacts import Provenance, write_json, write_manifest
from nanochat.data.rows import TokenRows
from nanochat.errors import UserError
from nanochat.inventory import command, show
from nanochat.stages import tokenize
from nanochat.tokenizer import Tokenizer
from nanochat.train.conversations import pack_mixture, render_mixture


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Tokens in two training chunks of unequal size, the second a copy of the first's rows."""
    lab = Lab.make(tmp_path_factory.mktemp("lab"))
    copied = shutil.copytree(lab.tokens[0].parent, lab.tokens[0].parent.with_name("more_rows")) / "manifest.json"
    lab.tokens.insert(1, copied)
    return lab


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, stage: str, arguments: list[str]) -> Path:
    """A stage's folder as its start leaves it."""
    monkeypatch.setattr("sys.argv", ["nanochat", *arguments])
    Provenance(folder, stage)
    return folder


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_rows_of_a_training_are_its_documents_with_chunk_and_source(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = started(monkeypatch, tmp_path / "run" / "base_train", "base_train", lab.base(tmp_path / "run" / "base_train"))
    text = lab.tokenizer.parent.parent / "text"
    started(monkeypatch, lab.tokens[0].parent, "tokenize", ["tokenize", "--text", str(text / "manifest.json"), "--tokenizer", str(lab.tokenizer)])
    count = len(TokenRows(lab.tokens[:1], "train"))
    first, again = show.rows(out, [5, count + 5])
    assert first.documents == tuple(replace(document, file="train-00000.parquet") for document in again.documents)  # the copy names no text
    assert (first.row, again.row) == (5, count + 5)
    assert first.origin == f"row 5 of {lab.tokens[0].parent}, text of {text}: train-00000.parquet"
    assert again.origin.startswith(f"row 5 of {lab.tokens[1].parent}")
    assert sum(document.tokens for document in first.documents) == 65 and sum(document.learnt for document in first.documents) == 64
    training = [squeezed(paragraph) for paragraph in PARAGRAPHS[20:]]
    for document in first.documents:
        assert any(squeezed(document.text) in paragraph for paragraph in training), document


def test_rows_of_a_chunk_of_tokens_are_counted_within_it(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = started(monkeypatch, lab.tokens[-1].parent, "tokenize", ["tokenize", "--tokenizer", str(lab.tokenizer)])
    command.main(["show", str(folder), "0", "3", "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in found] == [0, 3] and found[1]["origin"] == f"row 3 of {folder}"
    command.main(["show", str(folder), "3"])
    said = capsys.readouterr().out
    assert said.startswith(f"=== row 3: row 3 of {folder}\n--- 1 of {len(found[1]['documents'])}: ")
    assert all(document["text"] in said for document in found[1]["documents"])


def test_each_document_of_a_chunk_of_several_shards_is_said_with_its_shard(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards have texts of their own, in several row groups; documents longer than a row are cut in the middle of characters."""
    texts = {f"train-{shard:05d}.parquet": [f"{name} {n} " + "\u20ac" * n for n in range(1, 90)] for shard, name in enumerate(["apple", "pear"])}
    text, chunk = fetched(tmp_path / "text", texts), tmp_path / "tokens" / "fruit" / "manifest.json"
    for file in texts:
        pq.write_table(pq.read_table(text.parent / file), text.parent / file, row_group_size=8)
    outputs = [text.parent / file for file in texts]
    write_manifest(text, stage="fetch", config={"source": "fruit"}, inputs={}, outputs=[file.name for file in outputs], counts={})
    arguments = ["--config", '{"sequence_len": 64, "split": "train"}', "--text", str(text), "--tokenizer", str(lab.tokenizer), "--manifest", str(chunk)]
    monkeypatch.setattr("sys.argv", ["nanochat", "tokenize", *arguments])
    tokenize.main(arguments)
    count = len(TokenRows([chunk], "train"))
    documents = [document for row in show.rows(chunk.parent, range(count)) for document in row.documents]
    for fruit, file in (("apple", "train-00000.parquet"), ("pear", "train-00001.parquet")):
        named = [document for document in documents if fruit in document.text]
        assert len(named) > 50 and {document.file for document in named} == {file}
    cut = [document for document in documents if document.text.endswith("\ufffd")]
    assert cut and all(document.file for document in cut if document.text.strip("\ufffd"))
    assert ", of train-0000" in "\n".join(show.rows(chunk.parent, [0])[0].lines())
    write_json(text, {"made": "again"})
    assert all(document.file is None for document in show.rows(chunk.parent, [0])[0].documents), "other text by now"


def test_packed_conversations_are_shown_with_what_is_learnt_while_they_are_there(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = started(monkeypatch, tmp_path / "run" / "chat_sft", "chat_sft", lab.tune("chat_sft", tmp_path / "run" / "chat_sft", tmp_path / "parent.json"))
    with pytest.raises(UserError, match="are deleted when it is finished"):
        show.rows(out, [0])
    tokenizer = Tokenizer.load(lab.tokenizer)
    chats = fetched_rows(tmp_path / "chitchat", "chitchat", [chat(f"Question {n}?", f"Answer {n}." * (1 + n % 3)) for n in range(30)])
    rendered = render_mixture([{"task": "chitchat", "split": "train"}], [chats], tokenizer, seed=0)
    settings = {"epochs": [1.0], "row_tokens": 65, "loss_on": "assistant", "padding": tokenizer.bos, "validation_rows": 2, "seed": 0}
    (out / "resume").mkdir()
    packed = pack_mixture(rendered, None, **settings, files=(out / "resume" / "rows.bin", out / "resume" / "validation.bin"))
    write_json(out / "resume" / "packed.json", {"counts": packed.counts})
    documents = [document for row in show.rows(out, range(packed.rows)) for document in row.documents]
    assert len(documents) == packed.counts["conversations_packed"]
    assert sum(document.learnt for document in documents) == packed.counts["supervised_tokens"]
    for document in documents:
        number = int(document.text.split("Question ")[1].split("?")[0])
        answer = f"Answer {number}." * (1 + number % 3)
        assert document.text == f"<|user_start|>Question {number}?<|user_end|><|assistant_start|>{answer}<|assistant_end|>"
        assert document.learnt == len(tokenizer.encode(answer)) + 1


def test_what_cannot_be_shown_is_one_sentence(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds no provenance\.json; give the folder of a training"):
        show.rows(tmp_path, [0])
    out = started(monkeypatch, tmp_path / "base_train", "base_train", lab.base(tmp_path / "base_train"))
    with pytest.raises(UserError, match=r"row 999999: there are [\d,]+ rows; give numbers from 0 to"):
        show.rows(out, [0, 999999])
    with pytest.raises(UserError, match="row -1: there are"):
        show.rows(out, [-1])
    with pytest.raises(UserError, match="'1-3' is not the number of a row; name them one by one"):
        command.main(["show", str(out), "1-3"])
    write_json(out / "manifest.json", {"inputs": {"tokenizer": "0" * 64}})
    with pytest.raises(UserError, match=r"made again since .* was trained on it"):
        show.rows(out, [0])
    other = started(monkeypatch, tmp_path / "tokenizer", "tokenizer", ["tokenizer"])
    with pytest.raises(UserError, match="made by stage 'tokenizer', which reads no rows"):
        show.rows(other, [0])
    moved = lab.base(tmp_path / "moved")
    moved[moved.index("--tokenizer") + 1] = "elsewhere/manifest.json"
    with pytest.raises(UserError, match=r"elsewhere/manifest\.json: no such file"):
        show.rows(started(monkeypatch, tmp_path / "moved", "base_train", moved), [0])
