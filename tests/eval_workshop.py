"""A tokenizer, a small model and validation rows on disk, as the stages write them, for the tests of evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat.artifacts import write_json, write_manifest
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.model.weights import save_weights
from nanochat.recipes import RECIPES
from nanochat.stages import evaluate
from nanochat.tokenizer import Tokenizer, train_tokenizer

SEQUENCE_LEN = 96
TEXT = "The dog barks at the cat. One and one is two. Which animal says miau? A cat = A, a dog = B, a cow = C, a hen = D. " * 4


def small_model(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> GPT:
    architecture = {**RECIPES["compact-2026-11"]["architecture"], "head_dim": 32, "aspect_ratio": 32, **changes}
    config = ModelConfig.from_depth(2, vocab_size=tokenizer.vocab_size, sequence_len=SEQUENCE_LEN, architecture=architecture)
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # outputs start at zero: make every layer count
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False).eval()


class Workshop:
    """A tokenizer, a model and validation rows on disk, as the stages write them."""

    def __init__(self, folder: Path, *, phase: str = "sft", text: str = TEXT, seed: int = 0) -> None:
        self.folder = folder
        content = train_tokenizer([text], 320)
        self.tokenizer_manifest = folder / "tokenizer" / "manifest.json"
        write_json(folder / "tokenizer" / "tokenizer.json", content)
        write_manifest(self.tokenizer_manifest, stage="tokenizer", config={}, inputs={}, outputs=["tokenizer.json"], counts={})
        self.tokenizer = Tokenizer.load(self.tokenizer_manifest)
        model = small_model(self.tokenizer, seed)
        (folder / "model").mkdir()
        save_weights(model, folder / "model" / "model.safetensors")
        description = {"architecture": model.config.to_dict(), "phase": phase, "step": 1, "tokenizer_sha256": self.tokenizer.sha256, "training": {}}
        write_json(folder / "model" / "model.json", description)
        self.model_manifest = folder / "model" / "manifest.json"
        outputs = ["model.safetensors", "model.json"]
        write_manifest(self.model_manifest, stage="chat_sft", config={}, inputs={}, outputs=outputs, counts={})
        self.tokens_manifest = folder / "tokens" / "manifest.json"
        self.tokens_manifest.parent.mkdir()
        rows = np.random.default_rng(0).integers(0, 256, (10, SEQUENCE_LEN + 1)).astype(np.uint16)
        rows[:, 0] = self.tokenizer.bos
        rows.tofile(folder / "tokens" / "tokens.bin")
        counts = {"rows": 10, "row_tokens": SEQUENCE_LEN + 1, "dtype": "uint16", "vocab_size": 320}
        write_manifest(
            self.tokens_manifest,
            stage="tokenize",
            config={"sequence_len": SEQUENCE_LEN, "split": "validation"},
            inputs={"tokenizer": self.tokenizer_manifest},
            outputs=["tokens.bin"],
            counts=counts,
        )

    def flags(self, config: dict[str, Any], *more: object) -> list[str]:
        score = self.folder / "scores" / f"{config['task']}.json"
        given = ["--config", json.dumps(config), "--model", self.model_manifest, "--tokenizer", self.tokenizer_manifest, "--score", score]
        return [str(flag) for flag in [*given, "--device", "cpu", "--threads", 1, *more]]

    def score(self, config: dict[str, Any], *more: object) -> dict[str, Any]:
        evaluate.main(self.flags(config, *more))
        content: dict[str, Any] = json.loads((self.folder / "scores" / f"{config['task']}.json").read_text())
        return content


def result_of(content: dict[str, Any]) -> dict[str, Any]:
    """A score file without its story: what is the same each time."""
    return {key: value for key, value in content.items() if key not in ("seconds", "provenance")}
