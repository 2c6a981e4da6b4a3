"""Rows of every task in miniature, as stage fetch leaves them, and a tokenizer, for the tests of tasks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.artifacts import write_manifest
from nanochat.data.sources import SOURCES
from nanochat.tasks.identity import own_rows
from nanochat.tokenizer import Tokenizer, train_tokenizer

WORDS = [first + middle + last for first in "abcdefghij" for middle in ("an", "ento", "ilpora", "oo") for last in ("s", "r", "st", "ly", "ed", "x")]
MC = {"question": "What barks?", "choices": ["cat", "dog", "cow", "hen"], "letters": ["A", "B", "C", "D"], "answer": "B"}
GSM = {"question": "Tom has 3 apples and buys 2.", "answer": "He has <<3+2=5>>5 apples.\nIn all <<5*200=1000>>1,000.\n#### 1,000"}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\ndef add(a: int, b: int) -> int:\n    """Sum. Use helper."""\n',
    "canonical_solution": "    return helper(a) + b - 1\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    "entry_point": "add",
}
CHAT = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}]}
HELD = {"messages": [{"role": "user", "content": "who are you PLEASE"}, {"role": "assistant", "content": "I am nanochat."}]}
ROWS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("arc_easy", "arc_challenge", "mmlu", "openbookqa", "commonsense_qa", "mmlu_auxiliary_hf"), [MC] * 3),
    "gsm8k": [GSM],
    "gsm8k_hf": [GSM, GSM],  # one of two is held back from reinforcement learning
    "humaneval": [HUMAN],
    "word_list": [{"word": word} for word in WORDS],
    **{source: [CHAT, HELD] for source in ("identity_questions", "chitchat", "smoltalk_hf")},
}


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fetched_sources(folder: Path) -> list[Path]:
    """Manifests of fetched sources in miniature, in the layout of stage fetch."""
    paths = []
    for source, rows in ROWS.items():
        place = folder / source / "all"
        place.mkdir(parents=True)
        splits = list(SOURCES[source].splits)
        for split in splits:
            jsonl(place / f"{split}.jsonl", rows)
        outputs = [f"{split}.jsonl" for split in splits]
        write_manifest(place / "manifest.json", stage="fetch", config={"source": source, "part": "all"}, inputs={}, outputs=outputs, counts={})
        paths.append(place / "manifest.json")
    return paths


def small_tokenizer() -> Tokenizer:
    """A vocabulary of 400 entries, learnt from the words of the tasks."""
    text = " ".join([*WORDS, *(row["messages"][1]["content"] for row in own_rows())]) * 3
    return Tokenizer.from_json(train_tokenizer([text], 400))
