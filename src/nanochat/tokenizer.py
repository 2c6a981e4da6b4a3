"""Byte-level BPE: train with rustbpe, encode with tiktoken, keep as plain JSON.

tokenizer.json: {"format", "pattern", "ranks": [base64 of each token's bytes, in id order], "special_tokens": {name: id}}.
Ids 0..255 are the single bytes, merges follow in the order they were learnt, special tokens come last.
Special tokens never arise from text: `encode` treats "<|bos|>" typed by a user as nine ordinary characters.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rustbpe
import tiktoken

from nanochat.artifacts import sha256_bytes, verified_file
from nanochat.conversation import render_conversation, render_prompt
from nanochat.errors import UserError

__all__ = ["PATTERN", "SPECIAL_TOKENS", "Tokenizer", "render_conversation", "render_prompt", "train_tokenizer", "training_texts"]

FORMAT = "nanochat-bpe-1"
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# GPT-4's split pattern, but numbers in groups of at most two digits: vocabularies below 100k spend fewer entries on them
PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# The regex engines of rustbpe and tiktoken abort on a run of about a million blanks (backtracking limit), so longer
# texts are encoded in segments.
SEGMENT_CHARS = 100_000
# No match of PATTERN contains a letter or digit followed by a blank, and none looks behind: cutting there changes no id.
SAFE_CUT = re.compile(r"(?<=[^\W_])(?=[ \n])")
CUT_WINDOW_CHARS = 4_096
SPARE_MERGES = 16  # two merges may spell the same bytes; the later one is dropped and a spare takes its place


class Tokenizer:
    """Text to ids and back. Make one with `load` or `from_json`."""

    def __init__(self, pattern: str, tokens: list[bytes], special_tokens: dict[str, int], sha256: str) -> None:
        self.pattern = pattern
        self.special_tokens = special_tokens
        self.sha256 = sha256  # of tokenizer.json
        self.vocab_size = len(tokens) + len(special_tokens)
        self.bos = special_tokens["<|bos|>"]
        self._tokens = tokens
        self._encoding = tiktoken.Encoding(
            "nanochat",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens=special_tokens,
            explicit_n_vocab=self.vocab_size,
        )

    @classmethod
    def load(cls, manifest_path: Path) -> "Tokenizer":
        """The tokenizer whose manifest stage `tokenizer` wrote, after checking the file's sha256."""
        data = verified_file(manifest_path, "tokenizer.json").read_bytes()
        return cls._parse(json.loads(data), sha256_bytes(data))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tokenizer":
        """The tokenizer that `content` of a tokenizer.json describes."""
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"  # as artifacts.write_json writes it
        return cls._parse(content, sha256_bytes(text.encode()))

    @classmethod
    def _parse(cls, content: dict[str, Any], sha256: str) -> "Tokenizer":
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"tokenizer.json: format is not {FORMAT!r}; run stage tokenizer again")
        try:
            tokens = [base64.b64decode(rank, validate=True) for rank in content["ranks"]]
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"tokenizer.json: ranks are not base64 strings ({error}); run stage tokenizer again") from None
        if len(set(tokens)) < len(tokens) or set(tokens[:256]) != {bytes([value]) for value in range(256)} or b"" in tokens:
            raise UserError("tokenizer.json: ranks must be the 256 single bytes followed by different longer tokens; run stage tokenizer again")
        expected = {name: len(tokens) + index for index, name in enumerate(SPECIAL_TOKENS)}
        if content.get("special_tokens") != expected:
            raise UserError("tokenizer.json: special_tokens are not the nine known ones with the last ids; run stage tokenizer again")
        return cls(content["pattern"], tokens, expected, sha256)

    def special(self, name: str) -> int:
        """Id of a special token, by its name with or without the marks: "<|user_start|>" or "user_start"."""
        return self.special_tokens[name if name.startswith("<|") else f"<|{name}|>"]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens excluded. Lone surrogates, which no UTF-8 text holds, become U+FFFD."""
        if len(text) <= SEGMENT_CHARS:
            return self._encoding.encode_ordinary(text)
        return [token for segment in segments(text) for token in self._encoding.encode_ordinary(segment)]

    def encode_documents(self, texts: Iterable[str], dtype: Any = np.uint32) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts, end to end in one array of `dtype`, and the number of ids of each text (int64)."""
        ids = [self._encode_array(text) for text in texts]
        lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
        return (np.concatenate(ids, dtype=dtype) if ids else np.empty(0, dtype=dtype)), lengths

    def _encode_array(self, text: str) -> np.ndarray:
        """The ids of `encode`, as uint32: tiktoken hands them over without a Python list, whose making takes a tenth of the whole."""
        if len(text) > SEGMENT_CHARS:
            return np.concatenate([self._encode_array(segment) for segment in segments(text)])
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which only `encode_ordinary` replaces
            return np.array(self.encode(text), dtype=np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; a special token stands for its name."""
        return self._encoding.decode_bytes(list(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32: how many bytes of text each token stands for; 0 for special tokens."""
        return np.array([*(len(token) for token in self._tokens), *(0 for _ in self.special_tokens)], dtype=np.int32)


def segments(text: str) -> Iterator[str]:
    """Pieces of at most SEGMENT_CHARS of `text`, cut where the split pattern cuts too.

    Text without any word end in the 4,096 characters before a limit is cut at the limit: that may change the few
    tokens around it, never the decoded text.
    """
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        limit = start + SEGMENT_CHARS
        end = limit
        for found in SAFE_CUT.finditer(text, limit - CUT_WINDOW_CHARS, limit + 1):
            end = found.start() or end
        yield text[start:end]
        start = end
    yield text[start:]


# --- training --------------------------------------------------------------------------------------------------------


def training_texts(documents: Iterable[str], *, max_chars: int, document_chars: int) -> Iterator[str]:
    """The text that the trainer sees: the beginning of each document, until `max_chars` characters have been given."""
    left = max_chars
    for document in documents:
        if left <= 0:
            return
        text = document[: min(document_chars, left)]
        left -= len(text)
        yield from segments(text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """Learn a vocabulary of exactly `vocab_size` entries, special tokens included; the content of a tokenizer.json."""
    ranks_wanted = vocab_size - len(SPECIAL_TOKENS)
    if ranks_wanted < 256:
        raise UserError(f"vocab_size={vocab_size}: below {256 + len(SPECIAL_TOKENS)} (256 bytes and {len(SPECIAL_TOKENS)} special tokens); raise it")
    chars = 0

    def counted() -> Iterator[str]:
        nonlocal chars
        for text in texts:
            chars += len(text)
            yield text

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(counted(), ranks_wanted + SPARE_MERGES, pattern=PATTERN)
    if chars == 0:
        raise UserError("corpus: no text to train a tokenizer on; choose sources that hold text")
    ranked = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = list(dict.fromkeys(bytes(token) for token, _ in ranked))[:ranks_wanted]
    if len(tokens) < ranks_wanted:
        reachable = len(tokens) + len(SPECIAL_TOKENS)
        raise UserError(f"vocab_size={vocab_size}: {chars} characters of text yield only {reachable} entries; lower vocab_size or add text")
    return {
        "format": FORMAT,
        "pattern": PATTERN,
        "ranks": [base64.b64encode(token).decode("ascii") for token in tokens],
        "special_tokens": {name: ranks_wanted + index for index, name in enumerate(SPECIAL_TOKENS)},
    }
