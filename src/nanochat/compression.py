"""How many bytes a token stands for: our vocabulary beside GPT-2's and GPT-4's, on the same texts.

relative_difference_percent = (theirs - ours) / theirs x 100, in tokens: positive means that ours needs fewer tokens.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from nanochat.artifacts import read_manifest, verified_file
from nanochat.errors import UserError
from nanochat.tokenizer import Tokenizer, segments

SIGN = "relative_difference_percent = (theirs - ours) / theirs x 100, in tokens: positive means that ours needs fewer tokens"

# source -> (name in the tables, split pattern, special tokens), as published with the ranks
REFERENCES: dict[str, tuple[str, str, dict[str, int]]] = {
    "gpt2_ranks": (
        "gpt2",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        {"<|endoftext|>": 50256},
    ),
    "cl100k_ranks": (
        "cl100k",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276},
    ),
}


def reference_encoding(source: str, ranks_file: Path) -> tiktoken.Encoding:
    """The encoding of a reference source, from its file of "base64 rank" lines; needs no network and no cache."""
    name, pattern, special_tokens = REFERENCES[source]
    lines = (line.split() for line in ranks_file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)


def load_references(manifests: list[Path]) -> dict[str, tiktoken.Encoding]:
    """{name in the tables: encoding} of fetched reference sources."""
    encodings = {}
    for path in manifests:
        manifest = read_manifest(path, stage="fetch")
        source = manifest["config"]["source"]
        if source not in REFERENCES:
            raise UserError(f"--references: {path} is source {source!r}; give {' or '.join(REFERENCES)}")
        file = next(name for name in manifest["outputs"] if name.endswith(".tiktoken"))
        encodings[REFERENCES[source][0]] = reference_encoding(source, verified_file(path, file))
    return encodings


def compare(tokenizer: Tokenizer, references: Mapping[str, tiktoken.Encoding], texts: Mapping[str, str]) -> dict[str, Any]:
    """The content of evaluation.json: one row per text, and what the vocabularies are made of."""
    encoders = {"ours": tokenizer.encode, **{name: _in_segments(encoding) for name, encoding in references.items()}}
    rows = []
    for title, text in texts.items():
        size = len(text.encode())
        tokens = {name: len(encode(text)) for name, encode in encoders.items()}
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode(), f"{title}: decoding does not give the text back"
        row: dict[str, Any] = {"text": title, "bytes": size, "tokens": tokens}
        row["bytes_per_token"] = {name: round(size / count, 4) for name, count in tokens.items()}
        row["relative_difference_percent"] = {name: round((tokens[name] - tokens["ours"]) / tokens[name] * 100, 2) for name in references}
        rows.append(row)
    learnt = tokenizer.token_bytes()[: -len(tokenizer.special_tokens)]
    return {
        "sign": SIGN,
        "vocab_size": {"ours": tokenizer.vocab_size, **{name: encoding.n_vocab for name, encoding in references.items()}},
        "rows": rows,
        "token_bytes": {
            "min": int(learnt.min()),
            "max": int(learnt.max()),
            "mean": round(float(np.mean(learnt)), 4),
            "std": round(float(np.std(learnt)), 4),
        },
        "special_tokens": len(tokenizer.special_tokens),
    }


def _in_segments(encoding: tiktoken.Encoding) -> Any:
    # a run of a million blanks would abort the reference's regex engine as it would ours
    return lambda text: [token for segment in segments(text) for token in encoding.encode_ordinary(segment)]
