"""`nanochat chat` as a user meets it: a model made by the real stages, subprocesses, pipes, a terminal, Ctrl-C."""

import functools
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file
from training_lab import Lab, fetched_rows, metrics, run

from nanochat.artifacts import describe_files, sha256_file
from nanochat.errors import UserError
from nanochat.model.weights import load_model
from nanochat.serve.terminal import printable
from nanochat.stages import evaluate

CALL = [
    {"type": "text", "text": "12*7="},
    {"type": "python", "text": "12*7"},
    {"type": "python_output", "text": "84"},
    {"type": "text", "text": "84"},
]
LEARNT = [("Who are you?", "I am nanochat."), ("What is 12*7?", CALL), ("Umlaut?", "J\u00e4 \u2713 \u20ac")]
START = [sys.executable, "-m", "nanochat", "chat", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ with one run, phases base and sft, that has learnt three answers by heart."""
    folder = tmp_path_factory.mktemp("chat")
    lab, results = Lab.make(folder / "lab"), folder / "results"
    shutil.copytree(lab.tokenizer.parent, results / "tokenizers" / "lab")
    base, sft = results / "tiny" / "base_train", results / "tiny" / "chat_sft"
    run(lab.base(base, validate_every=20, validation_rows=8, save_every_s=600, keep={"every": 10, "last": 1}))
    rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} for question, answer in LEARNT]
    chats = fetched_rows(folder / "learnt", "chitchat", rows)
    mixture = [{"task": "chitchat", "epochs": 250}]
    run(lab.tune("chat_sft", sft, base / "manifest.json", [chats], mixture=mixture, lr_fraction=1.0, validate_every=0, save_every_s=600))
    return results


def chat(results: Path, *arguments: str, typed: str = "", code: int = 0, cold: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run chat in a pipe, expect its exit code and no traceback."""
    run_it = functools.partial(subprocess.run, input=typed, capture_output=True, text=True) if cold else functools.partial(warm.run, typed=typed)
    done: subprocess.CompletedProcess[str] = run_it([*START, "--results", str(results), *arguments], timeout=120, encoding="utf-8")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


# --- answers ---------------------------------------------------------------------------------------------------------


def test_one_shot_prints_the_answer_alone(results: Path) -> None:
    done = chat(results, "-p", "Who are you?", "-t", "0", cold=True)
    assert done.stdout == "I am nanochat.\n"
    assert "run tiny, phase sft" in done.stderr and "\x1b" not in done.stdout + done.stderr


def test_piped_questions_are_answered_in_turn_until_the_end_of_input(results: Path) -> None:
    """What Python computed is shown, and characters of several tokens come out whole."""
    done = chat(results, "-t", "0", typed="Who are you?\n\n/clear\nWhat is 12*7?\n/clear\nUmlaut?")
    assert done.stdout.splitlines() == ["I am nanochat.", "12*7= [python] 12*7 -> 84 84", "J\u00e4 \u2713 \u20ac"]


def test_same_seed_same_answers_and_another_seed_another(results: Path) -> None:
    def hot(seed: int) -> str:
        return chat(results, "-i", "base", "-p", "The", "-t", "1.5", "-k", "0", "--seed", str(seed), "--max-new-tokens", "20").stdout

    assert hot(1) == hot(1) != hot(2)


def test_a_base_model_goes_on_with_the_text_and_that_is_said_once(results: Path) -> None:
    done = chat(results, "-i", "base", "-t", "0", typed="The\nThe\n")
    first, second = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert first and second and done.stderr.count("goes on with your text") == 1
    assert chat(results, "-i", "base", "-p", "The", "-t", "0").stdout != chat(results, "-i", "sft", "-p", "The", "-t", "0").stdout


def test_a_model_kept_on_the_way_is_named_by_its_manifest(results: Path) -> None:
    [kept] = (results / "tiny" / "base_train" / "checkpoints").iterdir()
    assert kept.name == "step-000020"
    done = chat(results, "--model", str(kept / "manifest.json"), "-p", "The", "-t", "0")
    assert done.stdout.strip() and str(kept) in done.stderr
    assert "give one of them" in chat(results, "--model", str(kept / "manifest.json"), "-i", "sft", "-p", "The", code=2).stderr


def test_a_model_kept_on_the_way_is_scored_as_its_training_scored_it(results: Path, tmp_path: Path) -> None:
    [kept] = (results / "tiny" / "base_train" / "checkpoints").iterdir()
    tokens = results.parent / "lab" / "validation_rows" / "manifest.json"
    files = ["--tokenizer", str(results / "tokenizers" / "lab" / "manifest.json"), "--tokens", str(tokens), "--score", str(tmp_path / "score.json")]
    evaluate.main(["--config", '{"task": "bpb", "limit": 8}', "--model", str(kept / "manifest.json"), *files, "--device", "cpu"])
    score = json.loads((tmp_path / "score.json").read_text())
    validated = {line["step"]: line["val_bpb"] for line in metrics(kept.parent.parent) if "val_bpb" in line}
    assert score["score"] == pytest.approx(validated[20], rel=1e-5) and abs(validated[20] - validated[24]) > 1e-3
    assert score["model_sha256"] == sha256_file(kept / "model.safetensors")


def test_a_kept_model_that_cannot_be_read_is_one_sentence_with_a_cure_that_helps(results: Path, tmp_path: Path) -> None:
    [kept] = (results / "tiny" / "base_train" / "checkpoints").iterdir()
    with pytest.raises(UserError, match=re.escape(f"{kept}: a folder; give a manifest in it, such as {kept / 'manifest.json'}")):
        load_model(kept)
    damaged = shutil.copytree(kept, tmp_path / "checkpoints" / kept.name)
    (damaged / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=re.escape(f"; delete {damaged} and take another")):
        load_model(damaged / "manifest.json")


def test_a_long_conversation_drops_its_oldest_turns_and_says_so_once(results: Path) -> None:
    done = chat(results, "-t", "0", typed="Who are you?\n" * 8)
    assert len(done.stdout.splitlines()) >= 8 and done.stderr.count("oldest turns are forgotten") == 1
    assert done.stdout.startswith("I am nanochat.\n")


def test_a_message_that_cannot_fit_is_refused_and_the_conversation_goes_on(results: Path) -> None:
    done = chat(results, "-t", "0", typed="long " * 100 + "\nWho are you?\n")
    assert re.search(r"this message is \d+ tokens long and the model reads \d+ at most", done.stderr)
    assert done.stdout == "I am nanochat.\n"
    assert "shorten it" in chat(results, "-p", "long " * 100, code=2).stderr


def test_commands(results: Path) -> None:
    typed = "/help\n/temperature 0\n/temperature x\n/temperature -1\n/topk 1\n/topk\n/topk many\n/nonsense\nWho are you?\n/quit\nnever read\n"
    done = chat(results, typed=typed)
    assert done.stdout == "I am nanochat.\n"
    for words in (
        "/clear",
        "temperature 0.0",
        "not a number from 0 up; it stays 0.0",
        "topk 1",
        "/topk many: not a whole number",
        "/nonsense: no such command",
    ):
        assert words in done.stderr, words


def test_bytes_that_are_no_text_do_not_stop_the_conversation(results: Path) -> None:
    done = subprocess.run([*START, "--results", str(results), "-t", "0"], input=b"\xff\xfe\x00\nWho are you?\n", capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(results: Path) -> None:
    process = subprocess.Popen([*START, "--results", str(results), "-p", "Who are you?"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)


def test_a_model_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07c\rd\n\te\u00e4\x9b") == "a[2Jbcd\n\te\u00e4"


def test_a_model_cannot_reorder_what_is_shown_and_joined_characters_stay_joined() -> None:
    controls = [chr(code) for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
    assert printable(f"a{''.join(controls)}b") == "ab"
    family, persian, soft_hyphen = "\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "co\u00adop"
    for kept in (family, persian, soft_hyphen, "\u05e9\u05dc\u05d5\u05dd"):
        assert printable(kept) == kept


# --- what is not there -----------------------------------------------------------------------------------------------


def test_a_phase_that_is_not_trained_names_those_that_are(results: Path) -> None:
    said = chat(results, "-i", "mid", "-p", "hi", code=2).stderr
    assert "only base, sft" in said and "snakemake --cores all results/tiny/mid_train/model.safetensors (with --configfile" in said and said.count("\n") == 1
    assert "the workflow does not build it" in chat(results, "-i", "rl", code=2).stderr
    assert "invalid choice" in chat(results, "-i", "chat", code=2).stderr


def test_a_run_that_is_not_trained_names_those_that_are(results: Path) -> None:
    said = chat(results, "--run", "huge", code=2).stderr
    assert (
        "--run=huge" in said and "choose one of tiny" in said and "snakemake --cores all results/huge/base_train/model.safetensors (with --configfile" in said
    )


def test_nothing_trained_says_how_to_begin(tmp_path: Path) -> None:
    started = time.monotonic()
    for place in (tmp_path, tmp_path / "nowhere"):
        assert "make run" in chat(place, code=2, cold=True).stderr
    assert time.monotonic() - started < 20, "mistakes are told before torch is loaded"


def test_several_runs_must_be_told_apart(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    shutil.copytree(copy / "tiny", copy / "other")
    assert "choose one of other, tiny" in chat(copy, code=2).stderr
    assert chat(copy, "--run", "other", "-p", "Who are you?", "-t", "0").stdout == "I am nanochat.\n"


def test_an_unfinished_phase_does_not_count(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "tiny" / "chat_sft" / "manifest.json").unlink()
    assert "phase base" in chat(copy, "-p", "The", "--max-new-tokens", "2").stderr


def test_damaged_weights_and_a_missing_tokenizer_are_refused(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    weights = copy / "tiny" / "chat_sft" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert "damaged" in chat(copy, "-p", "hi", code=2).stderr
    shutil.rmtree(copy / "tokenizers" / "lab")
    said = chat(copy, "-p", "hi", code=2).stderr
    assert "found: none" in said and "snakemake --cores all tokenizer (with --configfile" in said


@pytest.mark.parametrize(
    "arguments",
    [["-t", "-1"], ["-t", "nan"], ["-k", "-1"], ["-k", "x"], ["--max-new-tokens", "0"], ["--seed", "-1"], ["--seed", "9" * 20], ["-p", " "], ["--colour"]],
)
def test_wrong_flags_are_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    said = chat(tmp_path, *arguments, code=2).stderr
    assert said.startswith("nanochat: error:") and said.count("\n") == 1


def test_help_names_every_command() -> None:
    done = subprocess.run([*START, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(word in done.stdout for word in ("/help", "/clear", "/temperature", "/topk", "/quit", "--run", "--max-new-tokens"))


# --- a terminal ------------------------------------------------------------------------------------------------------


class Screen:
    """chat in a pseudo-terminal: type, and read what appears."""

    def __init__(self, results: Path, *arguments: str) -> None:
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what a shell starts in the background
            attributes = termios.tcgetattr(0)
            attributes[3] |= termios.NOFLSH  # Ctrl-C must not throw away what was printed and not yet read here
            termios.tcsetattr(0, termios.TCSANOW, attributes)
            os.execv(sys.executable, [*START, "--results", str(results), *arguments])
        self.text, self.seen = "", 0

    def until(self, words: str, timeout: float = 60) -> None:
        """Read on until `words` appear after the words that were last waited for."""
        deadline = time.monotonic() + timeout
        while words not in self.text[self.seen :]:
            assert time.monotonic() < deadline, self.text
            if select.select([self.handle], [], [], 0.2)[0]:
                self.text += self.read()
        self.seen = self.text.index(words, self.seen) + len(words)

    def read(self) -> str:
        try:
            return os.read(self.handle, 4096).decode(errors="replace")
        except OSError:  # the other end has closed
            time.sleep(0.05)
            return ""

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def end(self) -> int:
        """Exit code, after everything has been read."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.handle)
                return os.waitstatus_to_exitcode(status)
            if select.select([self.handle], [], [], 0.05)[0]:
                self.text += self.read()
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {self.text}")


@pytest.mark.parametrize("leave", ["\x04", "\x03", "/quit\n"])
def test_a_terminal_gets_a_prompt_colours_and_leaves_politely(results: Path, leave: str) -> None:
    screen = Screen(results, "-t", "0")
    screen.until("\n> ")
    screen.type("What is 12*7?\n")
    screen.until("\n> ")
    assert "\x1b[2m[python] 12*7 -> 84\x1b[0m 84" in screen.text
    time.sleep(0.3)  # readline misses an interrupt in the instant between its prompt and its waiting
    screen.type(leave)
    assert screen.end() == 0 and "Traceback" not in screen.text


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(results: Path, tmp_path: Path) -> None:
    """With a head of zeros every token is as likely as the first, which greedy choice takes for ever."""
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    folder = copy / "tiny" / "base_train"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "head.weight": torch.zeros_like(tensors["head.weight"])}, folder / "model.safetensors")
    description = json.loads((folder / "model.json").read_text())
    description["architecture"]["sequence_len"] = 65_536
    (folder / "model.json").write_text(json.dumps(description))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["outputs"] |= describe_files(folder, ["model.json", "model.safetensors"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    screen = Screen(copy, "-i", "base", "-t", "0", "--max-new-tokens", "30000")
    screen.until("\n> ")
    screen.type("The\n")
    time.sleep(1)
    screen.type("\x03")
    screen.until("(stopped)")
    screen.until("\n> ")
    screen.type("\x04")
    assert screen.end() == 0 and "Traceback" not in screen.text
