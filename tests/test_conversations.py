"""From a mixture to rows: masks, packing without cuts, held-out conversations, and what a tuning stage refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from training_lab import Lab, chat, fetched_rows, run

from nanochat.artifacts import describe_files, read_manifest, write_json
from nanochat.conversation import render_conversation
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer
from nanochat.train.batches import ConversationBatches
from nanochat.train.conversations import PackedRows, held_out, pack_mixture, render_mixture, repeated

ROW = 65


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def tokenizer(lab: Lab) -> Tokenizer:
    return Tokenizer.load(lab.tokenizer)


def chats(folder: Path, rows: list[dict]) -> Path:
    return fetched_rows(folder, "chitchat", rows)


def rendered(folder: Path, rows: list[dict], tokenizer: Tokenizer, name: str = "data", **item):
    return render_mixture([{"task": "chitchat", "split": "train", **item}], [chats(folder / name, rows)], tokenizer, seed=0)


def packed(folder: Path, training, *, loss_on="assistant", validation=None, epochs=1.0, validation_rows=4, padding=0):
    files = (folder / "rows.bin", folder / "validation.bin")
    settings = {"epochs": [epochs], "row_tokens": ROW, "loss_on": loss_on, "padding": padding, "validation_rows": validation_rows, "seed": 0}
    result = pack_mixture(training, validation, files=files, **settings)
    return result, *(PackedRows(file, ROW) for file in files)


SOME = [chat(f"Say {n}.", f"{n}, of course.") for n in range(60)]


def test_loss_counts_the_assistant_and_nothing_else(tmp_path, tokenizer):
    training = rendered(tmp_path, SOME, tokenizer)
    _, rows, _ = packed(tmp_path, training, validation=rendered(tmp_path, SOME[:1], tokenizer, "validation"))
    inputs, targets = rows.pairs(range(len(rows)))
    learnt = sorted(tokenizer.decode(row[row >= 0]) for row in targets)
    expected = {conversation["messages"][1]["content"] + "<|assistant_end|>" for conversation in SOME}
    assert sorted(part + "<|assistant_end|>" for text in learnt for part in text.split("<|assistant_end|>") if part) == sorted(expected)
    counted = targets >= 0
    assert (inputs[:, 1:][counted[:, :-1]] == targets[:, :-1][counted[:, :-1]]).all()  # a target is the next input


def test_users_words_change_no_target_but_the_assistants_do(tmp_path, tokenizer):
    def targets_of(rows, name):
        _, found, _ = packed(tmp_path, rendered(tmp_path, rows, tokenizer, name), validation_rows=1)
        targets = found.pairs(range(len(found)))[1]
        return np.sort(targets[targets >= 0])

    one = [chat(f"Say {n}.", "Very well.") for n in range(10, 40)]
    asked = [chat(f"Sag {n}.", "Very well.") for n in range(10, 40)]
    answered = [chat(f"Say {n}.", "Very good.") for n in range(10, 40)]
    assert (tokenizer.encode("Say 10.") != tokenizer.encode("Sag 10.")) and np.array_equal(targets_of(one, "one"), targets_of(asked, "asked"))
    assert not np.array_equal(targets_of(one, "again"), targets_of(answered, "answered"))


def test_loss_on_all_counts_every_token_but_padding(tmp_path, tokenizer):
    result, rows, _ = packed(tmp_path, rendered(tmp_path, SOME, tokenizer), loss_on="all", padding=tokenizer.bos)
    _, targets = rows.pairs(range(len(rows)))
    whole = np.asarray(rows.file & np.uint32((1 << 31) - 1))
    assert result.counts["supervised_tokens"] == (targets >= 0).sum() > 0
    for row, marked in zip(whole, np.asarray(rows.file) >= np.uint32(1 << 31), strict=True):
        used = int(marked.sum())
        assert marked[:used].all() and not marked[used:].any() and (row[used:] == tokenizer.bos).all()


def test_no_conversation_is_cut_and_longer_ones_are_counted(tmp_path, tokenizer):
    fits = chat("x", "y" * 40)
    while len(render_conversation(fits, tokenizer)[0]) < ROW:
        fits["messages"][1]["content"] += "y"
    assert len(render_conversation(fits, tokenizer)[0]) == ROW
    longer = chat("x", fits["messages"][1]["content"] + "yz")
    result, rows, _ = packed(tmp_path, rendered(tmp_path, [fits, longer, *SOME[:3]], tokenizer), validation=rendered(tmp_path, SOME[:1], tokenizer, "v"))
    assert result.counts["conversations_too_long"] == 1 and result.counts["conversations_packed"] == 4
    _, targets = rows.pairs(range(len(rows)))
    assert fits["messages"][1]["content"] in {tokenizer.decode(row[row >= 0]).removesuffix("<|assistant_end|>") for row in targets}


def test_equal_conversations_are_held_out_together(tmp_path, tokenizer):
    training = rendered(tmp_path, [*SOME, *SOME, *SOME], tokenizer)
    chosen = held_out(training, seed=0, at_most=100)
    names = [training.marked(index).tobytes() for index in range(len(training))]
    assert len(chosen) == 3 * 8
    assert not {names[index] for index in chosen} & {name for index, name in enumerate(names) if index not in chosen}
    assert held_out(training, seed=1, at_most=100) != chosen and len(held_out(training, seed=0, at_most=2)) == 6


def test_epochs_repeat_and_a_fraction_draws():
    counts = np.bincount(repeated(range(400), [1.5] * 200 + [0.5] * 200, seed=3), minlength=400)
    assert set(counts[:200]) == {1, 2} and set(counts[200:]) == {0, 1}
    assert 60 < (counts[:200] == 2).sum() < 140 and 60 < counts[200:].sum() < 140
    assert repeated(range(50), [1.0] * 50, seed=3) != list(range(50)) and sorted(repeated(range(50), [1.0] * 50, seed=3)) == list(range(50))


def test_every_row_is_visited_once_an_epoch_in_an_order_of_the_seed(tmp_path, tokenizer):
    _, rows, _ = packed(tmp_path, rendered(tmp_path, SOME, tokenizer))
    count = len(rows)

    def visited(seed):
        batches = ConversationBatches(rows, rows_per_step=1, seed=seed)
        return [batches.rows(step, [0])[0].tobytes() for step in range(count)]

    assert sorted(visited(0)) == sorted(visited(1)) and visited(0) != visited(1) and len(set(visited(0))) == count


def test_mixture_without_a_token_to_learn_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"mixture: no token to learn from \(2 conversations, 2 of them longer than a row of 65 tokens\)"):
        packed(tmp_path, rendered(tmp_path, [chat("a", "b" * 300)] * 2, tokenizer))


# --- what the stages refuse ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    run(lab.base(out, horizon={"steps": 2, "batch_tokens": 512}))
    return out


def test_parent_of_another_tokenizer_is_refused(lab, base, tmp_path):
    other = shutil.copytree(lab.tokenizer.parent, tmp_path / "tokenizer") / "manifest.json"
    content = json.loads((other.parent / "tokenizer.json").read_text())
    content["ranks"][300], content["ranks"][301] = content["ranks"][301], content["ranks"][300]
    (other.parent / "tokenizer.json").write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    manifest = read_manifest(lab.tokenizer)
    write_json(other, {**manifest, "outputs": describe_files(other.parent, list(manifest["outputs"]))})
    said = run(Lab(other, lab.tokens, lab.chats).tune("chat_sft", tmp_path / "out", base / "manifest.json"), 2)
    assert "--tokenizer: not the one that" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_damaged_parent_is_refused(lab, base, tmp_path):
    parent = shutil.copytree(base, tmp_path / "parent")
    content = bytearray((parent / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (parent / "model.safetensors").write_bytes(content)
    said = run(lab.tune("mid_train", tmp_path / "out", parent / "manifest.json"), 2)
    assert "model.safetensors: damaged" in said and "Traceback" not in said


def test_missing_source_and_odd_batch_are_one_sentence(lab, base, tmp_path):
    said = run(lab.tune("chat_sft", tmp_path, base / "manifest.json", mixture=[{"task": "arc_easy"}]), 2)
    assert "needs source arc_easy" in said and "Traceback" not in said
    said = run(lab.tune("chat_sft", tmp_path, base / "manifest.json", batch_tokens=1000), 2)
    assert "chat_sft.batch_tokens=1000: not a multiple of 256" in said and "try chat_sft.batch_tokens=1024" in said


def test_optimizer_is_taken_up_or_its_absence_is_said(lab, base, tmp_path):
    warm = run(lab.tune("mid_train", tmp_path / "warm", base / "manifest.json"))
    assert "optimizer warm-started" in warm
    sft = run(lab.tune("chat_sft", tmp_path / "sft", tmp_path / "warm" / "manifest.json"))
    assert "optimizer warm-started" in sft
    again = run(lab.tune("chat_sft", tmp_path / "again", tmp_path / "sft" / "manifest.json"))
    assert "fresh optimizer used" in again
