"""Evaluation: bits per byte, letters, free answers, intervals and the score file, on small real models."""

import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_workshop import SEQUENCE_LEN, TEXT, Workshop, result_of, small_model

from nanochat.artifacts import sha256_file, write_json, write_manifest
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.eval.bpb import TextLoss, row_losses, text_loss_of
from nanochat.eval.categorical import answer_letters, unavailable
from nanochat.eval.generative import answer_freely
from nanochat.eval.intervals import wilson
from nanochat.eval.prompts import prompt_of
from nanochat.eval.results import score_file, score_of
from nanochat.model.gpt import GPT
from nanochat.stages import evaluate
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tasks.gsm8k import Gsm8k
from nanochat.tasks.multiple_choice import ArcEasy
from nanochat.tokenizer import Tokenizer, train_tokenizer
from nanochat.transcript import answer_parts, visible_text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(train_tokenizer([TEXT], 320))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    return small_model(tokenizer)


@pytest.fixture
def questions(tmp_path: Path) -> ArcEasy:
    rows = [
        {
            "question": "Which animal barks" + " very" * (number * 7 % 11) + "?",
            "choices": ["cat", "dog", "cow", "hen", "fly"][: 3 + number % 3],
            "letters": ["A", "B", "C", "D", "E"][: 3 + number % 3],
            "answer": "ABC"[number % 3],
        }
        for number in range(23)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ArcEasy("test", files=[path])


# --- bits per byte ---------------------------------------------------------------------------------------------------


def test_bpb_equals_the_sum_by_hand(model: GPT, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos, *tokenizer.encode("The dog barks."), tokenizer.bos, *tokenizer.encode("A cat")]
    nats, text_bytes = 0.0, 0
    for place in range(len(ids) - 1):
        logits = model(torch.tensor([ids[: place + 1]]))[0, -1].double()
        if ids[place + 1] != tokenizer.bos:
            nats -= float(logits.log_softmax(0)[ids[place + 1]])
            text_bytes += len(tokenizer.decode_bytes([ids[place + 1]]))
    found = sum(row_losses(model, np.array([ids]), tokenizer.token_bytes()), TextLoss())
    assert text_bytes == found.text_bytes == len("The dog barks.A cat") and found.tokens == len(ids) - 2
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bpb == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_bpb_of_a_uniform_model_is_known(tokenizer: Tokenizer) -> None:
    uniform = small_model(tokenizer)
    with torch.no_grad():
        uniform.head.weight.zero_()
    ids = np.array([[tokenizer.bos, *tokenizer.encode("The dog barks at the cat.")]])
    loss = sum(row_losses(uniform, ids, tokenizer.token_bytes()), TextLoss())
    assert loss.bpb == pytest.approx((ids.shape[1] - 1) * math.log2(tokenizer.vocab_size) / 25, rel=1e-5)


def test_bpb_does_not_depend_on_the_batches(model: GPT, tokenizer: Tokenizer) -> None:
    rows = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (12, 33))
    whole = sum(row_losses(model, rows, tokenizer.token_bytes()), TextLoss())
    parts = sum((loss for part in (rows[:5], rows[5:6], rows[6:]) for loss in row_losses(model, part, tokenizer.token_bytes())), TextLoss())
    assert parts.nats == pytest.approx(whole.nats, rel=1e-6) and parts.text_bytes == whole.text_bytes and parts.tokens == whole.tokens


def test_masked_targets_and_special_tokens_do_not_count(model: GPT, tokenizer: Tokenizer) -> None:
    ids = torch.tensor([[tokenizer.bos, *tokenizer.encode("The dog barks.")]])
    sizes = torch.from_numpy(tokenizer.token_bytes()).long()
    targets = ids[:, 1:].clone()
    targets[:, :2] = -1
    masked = text_loss_of(model, ids[:, :-1], targets, sizes)
    full = text_loss_of(model, ids[:, :-1], ids[:, 1:], sizes)
    assert masked.tokens == full.tokens - 2 and 0 < masked.nats < full.nats
    assert text_loss_of(model, ids, torch.full_like(ids, tokenizer.bos), sizes) == TextLoss()
    assert TextLoss().bpb is None


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # textbook values, 4 digits
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 10, 0.0179, 0.4042),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_known_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_wilson_interval_holds_the_proportion_and_narrows() -> None:
    for n in (1, 3, 50, 10_000):
        for correct in {0, 1, n // 2, n}:
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1
    assert wilson(500, 1000)[1] - wilson(500, 1000)[0] < wilson(5, 10)[1] - wilson(5, 10)[0]
    with pytest.raises(ValueError, match="no proportion"):
        wilson(1, 0)


# --- letters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["chat", "text"])
def test_batched_letters_equal_one_by_one(model: GPT, tokenizer: Tokenizer, questions: ArcEasy, form: Any) -> None:
    batched = answer_letters(model, tokenizer, questions, form=form, batch_rows=7)
    assert {row.answer for row in batched} != {"A"}
    for index, row in enumerate(batched):
        ids = prompt_of(questions, index, tokenizer, form=form, max_tokens=SEQUENCE_LEN).ids
        logits = model(torch.tensor([ids]))[0, -1]
        letters = questions.letters(index)
        slow = max(letters, key=lambda letter: float(logits[tokenizer.encode(letter)[0]]))
        assert row.answer == slow and row.index == index and row.is_right == (slow == questions.rows[index]["answer"])


def test_a_long_question_is_cut_at_its_beginning_and_counted(model: GPT, tokenizer: Tokenizer, questions: ArcEasy) -> None:
    prompt = prompt_of(questions, 3, tokenizer, form="chat", max_tokens=40)
    whole = prompt_of(questions, 3, tokenizer, form="chat", max_tokens=1000)
    assert prompt.is_cut and not whole.is_cut and len(prompt.ids) == 40
    assert prompt.ids[:2] == whole.ids[:2] and prompt.ids[2:] == whole.ids[-38:]
    answered = answer_letters(small_model(tokenizer), tokenizer, questions, form="chat", batch_rows=4)
    cut = sum(len(prompt_of(questions, i, tokenizer, form="chat", max_tokens=1000).ids) > SEQUENCE_LEN for i in range(len(questions)))
    assert score_of(answered, questions)["prompts_cut"] == cut > 0


def test_letters_that_are_not_single_tokens_are_reported(tokenizer: Tokenizer, questions: ArcEasy) -> None:
    assert unavailable(questions, tokenizer) is None
    questions.rows[0]["letters"] = ["A", "BB", "\u00c4"]
    assert unavailable(questions, tokenizer) == "letters BB, \u00c4 are not single tokens"


def test_base_models_are_asked_in_plain_text(tokenizer: Tokenizer, questions: ArcEasy) -> None:
    specials = set(tokenizer.special_tokens.values()) - {tokenizer.bos}
    text = prompt_of(questions, 0, tokenizer, form="text", max_tokens=1000)
    chat = prompt_of(questions, 0, tokenizer, form="chat", max_tokens=1000)
    assert not specials & set(text.ids) and specials & set(chat.ids)
    assert tokenizer.decode(text.ids).endswith("letter of the correct answer.\nAnswer=")


# --- free answers ----------------------------------------------------------------------------------------------------


def test_batched_answers_equal_single_ones(model: GPT, tokenizer: Tokenizer) -> None:
    task = Arithmetic("test", rows=9)
    settings: dict[str, Any] = {"form": "chat", "max_new_tokens": 12}
    batched = answer_freely(Engine(model, tokenizer), tokenizer, task, batch_rows=4, **settings)
    single = answer_freely(Engine(model, tokenizer), tokenizer, task, batch_rows=1, **settings)
    assert [row.answer for row in batched] == [row.answer for row in single] and len({row.answer for row in batched}) > 1


def test_answers_fit_into_the_model_however_many_tokens_are_asked_for(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "How many dogs? " * 40, "answer": "#### 2"}) + "\n")
    answered = answer_freely(Engine(model, tokenizer), tokenizer, Gsm8k("test", files=[path]), form="chat", max_new_tokens=5000, batch_rows=2)
    assert answered[0].is_cut and len(tokenizer.encode(answered[0].answer)) <= SEQUENCE_LEN


def test_parts_of_an_answer_are_the_inverse_of_rendering(tokenizer: Tokenizer) -> None:
    from nanochat.conversation import render_conversation

    parts = [
        {"type": "text", "text": "Zw\u00f6lf: "},
        {"type": "python", "text": "3*4"},
        {"type": "python_output", "text": "12"},
        {"type": "text", "text": "12"},
    ]
    conversation = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}]}
    ids, _ = render_conversation(conversation, tokenizer)
    answer = ids[ids.index(tokenizer.special("assistant_start")) + 1 :]
    assert answer_parts(answer, tokenizer) == parts
    assert visible_text(answer, tokenizer) == "Zw\u00f6lf: 12"
    assert answer_parts([*answer, *tokenizer.encode("more")], tokenizer) == parts, "what follows the end is not part of the answer"
    assert answer_parts([tokenizer.special("user_start"), *tokenizer.encode("a")], tokenizer) == [{"type": "text", "text": "a"}]
    assert answer_parts([tokenizer.special("python_start"), *tokenizer.encode("1+")], tokenizer) == [{"type": "python", "text": "1+"}]
    assert answer_parts([], tokenizer) == []


# --- score file ------------------------------------------------------------------------------------------------------


def test_a_score_that_cannot_be_computed_is_null_with_its_reason() -> None:
    common: dict[str, Any] = {
        "task": "t", "version": "1", "phase": "sft", "baseline": 0.25, "seed": 0, "limit": None, "settings": {}, "model_sha256": "x", "seconds": 1.0
    }  # fmt: skip
    content = score_file({"score": 0.0, "n": 10}, **common, unavailable="no letters")
    assert content["score"] is None and content["interval"] is None and content["unavailable"] == "no letters"
    assert score_file({"score": 0.5, "n": 10}, **common)["score"] == 0.5


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_stage_scores_bits_per_byte(workshop: Workshop) -> None:
    content = workshop.score({"task": "bpb", "limit": 6, "batch_rows": 4}, "--tokens", workshop.tokens_manifest)
    assert content["task"] == "bpb" and content["phase"] == "sft" and content["n"] == 6 and content["score"] > 0
    assert content["interval"][0] < content["score"] < content["interval"][1] and content["interval_method"] == "bootstrap"
    assert content["unavailable"] is None and content["settings"]["split"] == "validation"
    assert content["model_sha256"] == sha256_file(workshop.folder / "model" / "model.safetensors")
    full = workshop.score({"task": "bpb"}, "--tokens", workshop.tokens_manifest)
    assert full["n"] == 10 and full["limit"] is None and full["score"] != content["score"]


def test_a_score_says_what_was_read_and_by_what_code_it_was_made(workshop: Workshop) -> None:
    content = workshop.score({"task": "bpb", "limit": 2}, "--tokens", workshop.tokens_manifest)
    read = {"model": workshop.model_manifest, "tokenizer": workshop.tokenizer_manifest, "tokens.0": workshop.tokens_manifest}
    assert content["inputs"] == {name: sha256_file(path) for name, path in read.items()}
    story = content["provenance"]
    here = subprocess.run(["git", "-C", Path(evaluate.__file__).parent, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert story["git"]["commit"] == here.stdout.strip() if here.returncode == 0 else "unavailable" in story["git"]
    assert story["packages"]["nanochat"] == metadata.version("nanochat") and story["packages"]["torch"] == torch.__version__
    assert story["host"] == socket.gethostname() and story["device"] == "cpu" and story["threads"] == 1
    assert abs(time.time() - story["start"]) < 600
    other = workshop.score({"task": "arithmetic", "limit": 1, "max_new_tokens": 2}, "--tokens", workshop.tokens_manifest)
    assert set(other["inputs"]) == {"model", "tokenizer"}, "tokens that were not read are not named"


def test_stage_scores_a_generated_task_repeatably(workshop: Workshop) -> None:
    config = {"task": "arithmetic", "limit": 5, "max_new_tokens": 6, "batch_rows": 2}
    first, second = workshop.score(config), workshop.score(config)
    assert first["n"] == 5 and 0 <= first["score"] <= 1 and first["interval"][0] <= first["score"] <= first["interval"][1]
    assert first["correct"] == round(first["score"] * 5) and len(first["examples"]) == 5
    assert set(first["examples"][0]) == {"question", "answer", "reference", "right"}
    assert result_of(first) == result_of(second)
    assert result_of(workshop.score({**config, "seed": 1})) != result_of(first)
    assert workshop.score({**config, "limit": 1, "max_new_tokens": 5000})["settings"]["max_new_tokens"] == SEQUENCE_LEN // 2  # what was used


def test_stage_scores_letters_and_identity(workshop: Workshop, questions: ArcEasy) -> None:
    data = workshop.folder / "arc"
    data.mkdir()
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions.rows))
    write_manifest(data / "manifest.json", stage="fetch", config={"source": "arc_easy"}, inputs={}, outputs=["test.jsonl"], counts={})
    content = workshop.score({"task": "arc_easy", "limit": 20}, "--data", data / "manifest.json", "--tokens")
    assert content["inputs"]["data.0"] == sha256_file(data / "manifest.json")
    assert content["n"] == 20 and content["baseline"] == 0.25 and content["prompts_cut"] > 0 and content["settings"]["form"] == "chat"
    assert workshop.score({"task": "identity", "limit": 3, "max_new_tokens": 4}, "--data", "--tokens")["score"] == 0.0


def test_stage_says_what_protected_the_machine_when_the_programs_ran(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers can have been graded on another machine, here one without seccomp."""
    from task_rows import HUMAN

    from nanochat import sandbox

    data = workshop.folder / "humaneval"
    data.mkdir()
    (data / "test.jsonl").write_text(json.dumps(HUMAN) + "\n")
    write_manifest(data / "manifest.json", stage="fetch", config={"source": "humaneval"}, inputs={}, outputs=["test.jsonl"], counts={})
    config = {"task": "humaneval", "max_new_tokens": 8}
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "ONE_PROCESS", False)
        first = workshop.score(config, "--data", data / "manifest.json")
    assert first["score"] == 0.0 and first["programs"] == {"failed": 1} and "limits on time" in first["settings"]["protection"]["held"][0]
    again = workshop.score({**config, "samples": 2}, "--data", data / "manifest.json")
    assert again["settings"]["protection"] == first["settings"]["protection"] and again["sampled_programs"] == {"failed": 2}
    assert any("seccomp" in text for text in again["settings"]["protection"]["missing"])
    late = {**again, "prompts_cut": 4, "programs": {"cpu": 2, "failed": 9, "timeout": 1}}
    assert ", 4 of 1 prompts cut to the context, 3 programs were out of time, " in evaluate.summary(late)


def test_stage_reports_what_it_cannot_score(workshop: Workshop, questions: ArcEasy) -> None:
    data = workshop.folder / "arc"
    data.mkdir()
    (data / "test.jsonl").write_text(json.dumps({**questions.rows[0], "letters": ["AA", "B", "C"], "answer": "AA"}) + "\n")
    write_manifest(data / "manifest.json", stage="fetch", config={"source": "arc_easy"}, inputs={}, outputs=["test.jsonl"], counts={})
    content = workshop.score({"task": "arc_easy"}, "--data", data / "manifest.json")
    assert content["score"] is None and content["n"] == 0 and "AA are not single tokens" in content["unavailable"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_tokenizer(workshop: Workshop) -> None:
    (workshop.folder / "other").mkdir()
    workshop.tokenizer_manifest = Workshop(workshop.folder / "other", text=TEXT.replace("dog", "wolf")).tokenizer_manifest


def other_tokens(workshop: Workshop) -> None:
    manifest = json.loads(workshop.tokens_manifest.read_text())
    manifest["inputs"]["tokenizer"] = "0" * 64
    write_json(workshop.tokens_manifest, manifest)


@pytest.mark.parametrize(
    ("spoil", "config", "words"),
    [
        (lambda w: damage(w.folder / "model" / "model.safetensors"), {"task": "bpb"}, "damaged"),
        (lambda w: damage(w.folder / "tokens" / "tokens.bin"), {"task": "bpb"}, "damaged"),
        (other_tokenizer, {"task": "bpb"}, "not the tokenizer that"),
        (other_tokens, {"task": "bpb"}, "tokenized with another tokenizer"),
        (lambda w: (w.folder / "model" / "model.safetensors").unlink(), {"task": "bpb"}, "missing"),
        (lambda w: None, {"task": "chitchat"}, "nobody grades"),
        (lambda w: None, {"task": "arithmetik"}, "no such task; choose one of arc_challenge, arc_easy, arithmetic, bpb, commonsense_qa, core, "),
        (lambda w: None, {"task": "arc_easy"}, r"needs source arc_easy, .* fetch it, nanochat fetch --config '{\"source\": \"arc_easy\"}'"),
        (lambda w: None, {"task": "arc_easy", "source": "mmlu"}, "source='mmlu': not a source of task arc_easy, split test; choose one of arc_easy, "),
        (lambda w: None, {"task": "core", "source": "mmlu"}, "source='mmlu': not a source of task core; choose one of core_bundle, core_wheels"),
        (lambda w: None, {"task": "core"}, "--data: none given; .* nanochat fetch --config"),
        (lambda w: None, {"task": "arithmetic", "limt": 3}, "limt"),
    ],
)
def test_stage_refuses_what_does_not_belong_together(workshop: Workshop, spoil: Callable[[Workshop], None], config: dict[str, Any], words: str) -> None:
    spoil(workshop)
    with pytest.raises(UserError, match=words):
        workshop.score(config, "--tokens", workshop.tokens_manifest)
    assert not list((workshop.folder / "scores").glob("*")) if (workshop.folder / "scores").exists() else True


def test_data_that_is_not_there_is_named_with_the_command_that_fetches_it(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"--data=x/manifest.json: no such file; fetch it: nanochat fetch --config '{\"source\": \"gsm8k\"}' --manifest"):
        workshop.score({"task": "gsm8k"}, "--data", "x/manifest.json")
    with pytest.raises(UserError, match=r"--data=x/manifest.json: no such file; leave it out"):
        workshop.score({"task": "arithmetic"}, "--data", "x/manifest.json")


def test_stage_needs_validation_tokens_for_bits_per_byte(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="--tokens"):
        workshop.score({"task": "bpb"})


def run_cli(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "nanochat", *arguments], capture_output=True, text=True, timeout=120)


def test_command_line_exits_with_2_and_one_sentence(workshop: Workshop) -> None:
    damage(workshop.folder / "model" / "model.safetensors")
    done = run_cli(["evaluate", *workshop.flags({"task": "arithmetic"})])
    assert done.returncode == 2 and "Traceback" not in done.stderr and "damaged" in done.stderr
