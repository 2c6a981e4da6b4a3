"""Small real training runs for tests: English text, a tokenizer and token rows made by the real stages, and stages in subprocesses."""

import contextlib
import json
import os
import pydoc_data.topics
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm

from nanochat.artifacts import write_manifest
from nanochat.stages import tokenize, tokenizer

SEQUENCE_LEN = 64
ARCHITECTURE = {"width": 64, "head_dim": 32}
# Python's own documentation: real English that every interpreter carries
PARAGRAPHS = [paragraph for _, topic in sorted(pydoc_data.topics.topics.items()) for paragraph in re.split(r"\n{2,}", topic) if len(paragraph) > 60][:700]


def fetched(folder: Path, files: dict[str, list[str]]) -> Path:
    """Text as stage fetch leaves it."""
    folder.mkdir(parents=True)
    for name, texts in files.items():
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / name)
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": "python_topics"}, inputs={}, outputs=list(files), counts={})
    return folder / "manifest.json"


def fetched_rows(folder: Path, source: str, rows: list[dict[str, Any]], split: str = "train") -> Path:
    """Task rows as stage fetch leaves them."""
    folder.mkdir(parents=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": source}, inputs={}, outputs=[f"{split}.jsonl"], counts={})
    return folder / "manifest.json"


def guesses(folder: Path) -> Path:
    """Problems whose answer is 0, 1 or 2, as stage fetch leaves those of GSM8K; 48 of 60 are asked in reinforcement learning."""
    words = ("one", "two", "red", "blue", "tree", "house", "river", "stone", "bread", "water")
    rows = [{"question": f"Say {words[number % 10]} {number}!", "answer": f"#### {number % 3}"} for number in range(60)]
    return fetched_rows(folder, "gsm8k_hf", rows)


def chat(question: str, answer: str) -> dict[str, Any]:
    """One exchange."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@dataclass
class Lab:
    """Manifests of a tokenizer and of token rows, and commands for the stages that train on them."""

    tokenizer: Path
    tokens: list[Path]
    chats: Path

    @classmethod
    def make(cls, folder: Path) -> "Lab":
        """Tokenizer of 420 entries and rows of 64 tokens, by the real stages."""
        text = fetched(folder / "text", {"train-00000.parquet": PARAGRAPHS[20:], "validation.parquet": PARAGRAPHS[:20]})
        vocabulary = folder / "tokenizer" / "manifest.json"
        places = {"tokenizer": "tokenizer.json", "token-bytes": "token_bytes.json", "evaluation": "evaluation.json", "manifest": "manifest.json"}
        outputs = [part for flag, name in places.items() for part in (f"--{flag}", str(vocabulary.parent / name))]
        tokenizer.main(["--config", '{"vocab_size": 420}', "--text", str(text), *outputs])
        chunks = []
        for split in ("train", "validation"):
            chunks.append(folder / f"{split}_rows" / "manifest.json")
            config = json.dumps({"sequence_len": SEQUENCE_LEN, "split": split})
            tokenize.main(["--config", config, "--text", str(text), "--tokenizer", str(vocabulary), "--workers", "1", "--manifest", str(chunks[-1])])
        words = [word for word in " ".join(PARAGRAPHS).split() if word.isalpha()]
        chats = [chat(f"Say {words[n]}!", f"{words[n]}, and {words[n + 1]}.") for n in range(0, 120, 2)]
        return cls(vocabulary, chunks, fetched_rows(folder / "chitchat", "chitchat", chats))

    def base(self, out: Path, **overrides: Any) -> list[str]:
        """Command of base_train: 2 layers of width 64, 24 steps of 8 rows, state saved after every step."""
        config = {
            "recipe": "compact-2026-11",
            "depth": 2,
            "architecture": ARCHITECTURE,
            "horizon": {"steps": 24, "batch_tokens": 8 * SEQUENCE_LEN},
            "micro_batch_rows": 4,
            "validate_every": 10,
            "validation_rows": 8,
            "save_every_s": 0.001,
            **overrides,
        }
        return ["base_train", "--config", json.dumps(config), "--tokens", *map(str, self.tokens), *self._places(out)]

    def tune(self, stage: str, out: Path, parent: Path, data: list[Path] | None = None, **overrides: Any) -> list[str]:
        """Command of mid_train or chat_sft: sums and words to repeat, state saved after every step."""
        mixture = [{"task": "arithmetic", "rows": 120}, {"task": "chitchat", "rows": 40, "epochs": 1.5}]
        config = {"mixture": mixture, "micro_batch_rows": 4, "validate_every": 5, "validation_rows": 4, "save_every_s": 0.001, "lr_fraction": 0.5, **overrides}
        return [stage, "--config", json.dumps(config), "--model", str(parent), "--data", *map(str, data or [self.chats]), *self._places(out)]

    def guesser(self, out: Path, parent: Path, data: Path) -> list[str]:
        """Command of chat_sft: a model that learns how an answer to `guesses` looks, and guesses which it is."""
        tuned = {"mixture": [{"task": "gsm8k", "epochs": 12}], "lr_fraction": 1.0, "save_every_s": 1000.0, "validate_every": 0}
        return self.tune("chat_sft", out, parent, [data], **tuned)

    def reinforce(self, out: Path, parent: Path, data: Path, **overrides: Any) -> list[str]:
        """Command of chat_rl: eight steps of four problems with four answers each, state saved after every step."""
        config = {"tasks": [{"task": "gsm8k"}], "examples_per_step": 4, "samples": 4, "epochs": 32 / 48, "max_new_tokens": 8, "lr_fraction": 0.02}
        config |= {"micro_batch_rows": 4, "validate_every": 4, "validation_rows": 6, "validation_samples": 4, "save_every_s": 0.001, **overrides}
        return ["chat_rl", "--config", json.dumps(config), "--model", str(parent), "--data", str(data), *self._places(out)]

    def _places(self, out: Path) -> list[str]:
        files = ["--weights", str(out / "model.safetensors"), "--manifest", str(out / "manifest.json")]
        return ["--tokenizer", str(self.tokenizer), *files, "--device", "cpu", "--threads", "1"]


def start(command: list[str], *, cold: bool = False, **keywords: Any) -> "subprocess.Popen[str]":
    """A stage in a process of its own; `cold`: one that imports torch itself, with a seed of hashes of its own."""
    full = [sys.executable, "-m", "nanochat", *command]
    popen = subprocess.Popen if cold else warm.Popen
    return popen(full, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **keywords})


def run(command: list[str], code: int = 0, **keywords: Any) -> str:
    """Run a stage to its end, expect its exit code, return what it said."""
    process = start(command, **keywords)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def run_until(command: list[str], out: Path, step: int, number: int = signal.SIGKILL) -> tuple[int, str]:
    """Run a stage, send signal `number` once update `step` is logged; (exit code, what it said)."""
    process = start(command)
    while process.poll() is None and logged_steps(out) < step:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def logged_steps(out: Path) -> int:
    """How many updates metrics.jsonl tells of."""
    file = out / "metrics.jsonl"
    return sum('"loss"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_bytes(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on interruptions."""
    return {name: (out / name).read_bytes() for name in ("model.safetensors", "model.json", "manifest.json")}


@contextlib.contextmanager
def dying_after(changes: int) -> Iterator[None]:
    """What is done inside ends after so many renames and deletions of files, as a kill would end it."""
    left = [changes]

    def dies(call: Any) -> Any:
        def instead(*arguments: Any, **keywords: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*arguments, **keywords)

        return instead

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "replace", dies(Path.replace))
        patch.setattr(Path, "unlink", dies(Path.unlink))
        yield
