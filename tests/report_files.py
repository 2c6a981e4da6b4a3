"""The files of a run as its stages leave them, made by hand with known numbers, for the tests of the report."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nanochat.artifacts import sha256_file, write_json, write_manifest, write_text
from nanochat.config import Report
from nanochat.report import figures, render
from nanochat.report.build import build_document
from nanochat.report.inputs import Inputs, read_inputs
from nanochat.report.published import D20_CORE

PHASES = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft"}
STAGES = {**PHASES, "rl": "chat_rl"}
SCORES = {"arc_easy": (0.40, 0.25), "arc_challenge": (0.30, 0.25), "mmlu": (0.31, 0.25), "gsm8k": (0.05, 0.0), "humaneval": (0.10, 0.0)}

EVALUATION = {
    "vocab_size": {"ours": 512, "gpt2": 50_257},
    "token_bytes": {"min": 1, "max": 9, "mean": 3.25, "std": 1.5},
    "rows": [
        {
            "text": "news",
            "bytes": 1819,
            "tokens": {"ours": 500, "gpt2": 404},
            "bytes_per_token": {"ours": 3.638, "gpt2": 4.5025},
            "relative_difference_percent": {"gpt2": -23.76},
        }
    ],
}


def attempt(state: str = "finished", wall_s: float = 3600.0, **facts: Any) -> dict[str, Any]:
    """One entry of provenance.json on the CPU."""
    base = {"start": 1000.0, "heartbeat": 1000.0 + wall_s, "host": "node7", "device": "cpu", "threads": 2, "world_size": 1, "cpu_count": 2}
    known = {"git": {"commit": "0123456789abcdef", "branch": "main", "dirty": False}, "packages": {"python": "3.12.1", "torch": "2.9.0"}, "platform": "Linux"}
    return {**base, **known, "state": state, **({"wall_s": wall_s} if state == "finished" else {}), **facts}


def manifest(folder: Path, stage: str, *, inputs: dict[str, Path] | None = None, output: str = "out.bin", config: Any = None, counts: Any = None) -> Path:
    """A real manifest with one real output."""
    write_text(folder / output, f"{stage} of {folder}")
    write_manifest(folder / "manifest.json", stage=stage, config=config or {}, inputs=inputs or {}, outputs=[output], counts=counts or {})
    return folder / "manifest.json"


def training(root: Path, run: str, phase: str, inputs: dict[str, Path], *, attempts: list[dict[str, Any]] | None = None, finished: bool = True) -> Path:
    """results/{run}/{stage}/ with everything that a training stage leaves."""
    folder = root / "results" / run / STAGES[phase]
    steps = [{"step": step, "loss": 5.0 / step, "tokens": 512 * step, "tokens_per_s": 1000.0} for step in range(1, 41)]
    checks = [{"step": step, "val_bpb": 2.0 + 1 / (step + 1), "val_loss": 3.0} for step in (0, 20, 40)]
    lines = "".join(json.dumps(row) + "\n" for row in [*steps, *checks])
    write_text(folder / "metrics.jsonl", lines if finished else lines[: len(lines) // 2])
    write_json(folder / "provenance.json", {"stage": STAGES[phase], "attempts": attempts or [attempt()]})
    if finished:
        write_json(folder / "samples.json", [{"prompt": "The capital of France is", "completion": f"<b>{phase}</b> | `Paris`"}])
        write_json(folder / "model.json", {"architecture": {"depth": 4}, "phase": phase, "training": {"optimizer": {"matrix_lr": 0.02}}})
        counts = {"parameters": 12_345_678, "steps": 40, "tokens": 20_480}
        return manifest(folder, STAGES[phase], inputs=inputs, output="model.safetensors", config={"depth": 4, "seed": 1}, counts=counts)
    return folder / "manifest.json"


def score(root: Path, run: str, phase: str, task: str, model: Path, **changes: Any) -> Path:
    """A score file as stage evaluate writes it."""
    value, baseline = SCORES.get(task, (0.5, 0.0))
    path = root / "results" / run / "scores" / phase / f"{task}.json"
    content = {"task": task, "version": "1", "phase": phase, "score": value, "n": 200, "correct": round(200 * value), "interval": [value - 0.03, value + 0.04]}
    content |= {"baseline": baseline, "unavailable": None, "seed": 0, "limit": None, "settings": {"split": "test"}, "seconds": 12.5}
    content["examples"] = [{"question": "2 < 3?", "answer": "No.", "reference": "Yes.", "right": False}]
    weights = model.parent / "model.safetensors"
    write_json(path, {**content, "model_sha256": sha256_file(weights) if weights.is_file() else None, **changes})
    return path


def finished_run(root: Path, run: str = "tiny") -> dict[str, list[Path]]:
    """Every file of a finished run, as the flags of stage report."""
    source = manifest(root / "resources/wikipedia_summaries/all", "fetch", counts={"rows": {"train": 9533, "validation": 500}, "licence": "CC BY-SA 3.0"})
    tokenizer = manifest(root / "results/tokenizers/tiny", "tokenizer", inputs={"text": source}, counts={"vocab_size": 512})
    write_json(tokenizer.parent / "evaluation.json", EVALUATION)
    counts = {"rows": 100, "documents": 90, "text_bytes": 60_000, "tokens": 20_000, "kept_tokens": 15_000, "cropped_tokens": 5_000}
    tokens = manifest(root / "results/tokens/tiny.tiny/a.train", "tokenize", inputs={"text": source}, config={"split": "train"}, counts=counts)
    base = training(root, run, "base", {"tokens": tokens, "tokenizer": tokenizer})
    mid = training(root, run, "mid", {"model": base, "tokenizer": tokenizer})
    sft = training(root, run, "sft", {"model": mid}, attempts=[attempt("interrupted", 1800.0), attempt(wall_s=600.0)])
    scores = [score(root, run, "sft", task, sft) for task in SCORES]
    scores.append(score(root, run, "base", "bpb", base, score=1.7312, interval=None, baseline=None, correct=None))
    return {"run_manifests": [base, mid, sft], "scores": scores, "tokenizers": [tokenizer], "tokens": [tokens], "sources": [source]}


def core_score(root: Path, run: str, model: Path, **changes: Any) -> Path:
    """core.json over the first `tasks` of the 22 tasks; task number k has the centred accuracy k / 100."""
    labels = list(D20_CORE)
    known = labels[: changes.pop("tasks", 22)]
    tasks = [
        {"label": label, "type": "multiple_choice", "shots": 10, "n": 500, "accuracy": 0.25 + 0.0075 * k, "interval": [0.2, 0.5], "baseline": 0.25}
        | {"centered": k / 100, "seconds": 1.5}
        for k, label in enumerate(known)
    ]
    content: dict[str, Any] = {
        "name": "CORE" if len(known) == 22 else f"CORE-{len(known)}",
        "tasks": tasks,
        "missing": labels[len(known) :],
        "interval_method": "bootstrap",
    }
    mean = sum(task["centered"] for task in tasks) / len(tasks) if tasks else None
    content |= {"score": mean, "interval": [0.08, 0.12], "correct": None, "baseline": 0.0, "n": 500 * len(tasks)}
    return score(root, run, "base", "core", model, **{**content, **changes})


def answered(path: Path, right: Sequence[bool]) -> Path:
    """A score file with the answers to single rows beside it."""
    lines = "".join(json.dumps({"index": index, "right": is_right, "answer": "A"}) + "\n" for index, is_right in enumerate(right))
    write_text(path.with_suffix(".items.jsonl"), lines)
    content = {**json.loads(path.read_text(encoding="utf-8")), "items": path.with_suffix(".items.jsonl").name}
    write_json(path, {**content, "score": sum(right) / len(right), "n": len(right), "correct": sum(right)})
    return path


def together(*files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files of several runs as those of one report."""
    return {key: [*dict.fromkeys(path for of_run in files for path in of_run[key])] for key in files[0]}


def inputs_of(files: dict[str, list[Path]], runs: tuple[str, ...] = ()) -> Inputs:
    """The files, read."""
    return read_inputs(**files, runs=runs)


def pages(files: dict[str, list[Path]], config: Report | None = None) -> tuple[str, str]:
    """(markdown, html) of the files."""
    document = build_document(inputs_of(files), config or Report())
    return render.markdown(document), render.html(document)


@contextmanager
def drawn_once() -> Iterator[None]:
    """Figures of the same numbers are drawn once: a test that looks at words need not wait for them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curves", "bars"):
            patch.setattr(figures, name, _remembering(getattr(figures, name)))
        yield


def _remembering(draw: Callable[..., str]) -> Callable[..., str]:
    remembered = cache(draw)
    return lambda name, data, **settings: remembered(name, tuple(data), **settings)
