"""Generated tasks: spelling, arithmetic and identity; what is asked, what is right, and that no test row is trained on."""

import itertools
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from task_rows import WORDS, fetched_sources, jsonl, small_tokenizer

from nanochat.tasks import open_task
from nanochat.tasks.arithmetic import LIMITS, PROBLEMS, QUESTIONS, Arithmetic, pair_split
from nanochat.tasks.base import answer_text
from nanochat.tasks.common_words import COMMON_WORDS
from nanochat.tasks.identity import HELD_OUT, Identity, normalized, own_rows
from nanochat.tasks.spelling import ALPHABET, MAX_LETTERS, MIN_LETTERS, SimpleSpelling, SpellingBee, usable_words, word_split
from nanochat.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fetched_sources(tmp_path_factory.mktemp("resources"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


# --- spelling --------------------------------------------------------------------------------------------------------


def bee(tmp_path: Path, word: str) -> tuple[SpellingBee, int]:
    """A task, and a row that asks for how often some letter that is in `word` occurs in it."""
    task = SpellingBee(word_split(word), files=[jsonl(tmp_path / "words.jsonl", [{"word": word}])], rows=40)
    return task, next(index for index in range(40) if task.asked(index)[1] in word)


def test_each_word_is_for_training_or_for_the_test_never_both() -> None:
    train, test = usable_words(WORDS, "train"), usable_words(WORDS, "test")
    assert not set(train) & set(test) and sorted(train + test) == sorted({word for word in WORDS if 3 <= len(word) <= 9})
    assert 0.03 < len(test) / len(WORDS) < 0.2


@pytest.mark.parametrize("task", [SimpleSpelling, SpellingBee])
def test_no_word_of_the_test_is_trained_on_whatever_the_seeds(task: type[SimpleSpelling] | type[SpellingBee], tmp_path: Path) -> None:
    """A defect of 2025: Random(-n) equals Random(n), so that every test row had been trained on."""
    files = [jsonl(tmp_path / "words.jsonl", [{"word": word} for word in WORDS])]
    asked = {}
    for split in ("train", "test"):
        asked[split] = {
            answer_text(row.conversation(index)).split(":", 1)[0]
            for seed in (-1, 0, 1, 42)
            for row in [task(split, files=files, seed=seed, rows=400)]
            for index in range(len(row))
        }
    assert not asked["train"] & asked["test"] and asked["test"]


@pytest.mark.parametrize("task", [SimpleSpelling, SpellingBee])
def test_all_words_and_letters_that_can_be_asked_are_divided_between_train_and_test(task: type[SimpleSpelling] | type[SpellingBee], tmp_path: Path) -> None:
    """Not a sample: everything that the generator can draw from, for every word of three letters, every common word and some more."""
    given = {"".join(letters) for letters in itertools.product(ALPHABET, repeat=3)} | set(COMMON_WORDS) | set(WORDS)
    files = [jsonl(tmp_path / "words.jsonl", [{"word": word} for word in sorted(given)])]
    train, test = (task(split, files=files, rows=300) for split in ("train", "test"))
    drawn = {split.split: {*split.words, *split.common, *split.short} for split in (train, test)}
    usable = {word for word in given if MIN_LETTERS <= len(word) <= MAX_LETTERS}
    assert drawn["train"].isdisjoint(drawn["test"]) and drawn["train"] | drawn["test"] == usable
    assert {word_split(word) for word in drawn["test"]} == {"test"} and 0.08 < len(drawn["test"]) / len(usable) < 0.12
    if task is SpellingBee:  # a question is a word and a letter
        asked = {name: {(word, letter) for word in words for letter in ALPHABET} for name, words in drawn.items()}
        assert asked["train"].isdisjoint(asked["test"])
    for split in (train, test):
        assert {split.word(split.draw(index)) for index in range(300)} <= drawn[split.split], "nothing else is drawn"


def test_words_that_cannot_be_asked_are_left_out() -> None:
    assert set(usable_words(["ab", "abcdefghij", "it's", "Anna", "caf\u00e9", "fine", "fine", "x1y"], "train") + usable_words(["fine"], "test")) == {"fine"}


def test_spelling_bee_spells_counts_and_checks_with_python(tmp_path: Path) -> None:
    task, index = bee(tmp_path, "banana")
    word, letter, question = task.asked(index)
    parts = task.conversation(index)["messages"][1]["content"]
    assert parts[0]["text"].startswith("banana:b,a,n,a,n,a\n") and word in question and letter in question
    assert parts[1] == {"type": "python", "text": f'"banana".count("{letter}")'}
    assert eval(parts[1]["text"]) == int(parts[2]["text"]) == word.count(letter)
    assert parts[0]["text"].rstrip().endswith(f"={word.count(letter)}") and parts[3]["text"] == f"\n#### {word.count(letter)}"


def test_letters_are_single_tokens_when_a_word_is_spelt(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("banana:b,a,n,a,n,a")
    assert tokenizer.decode(ids[-12:]) == ":b,a,n,a,n,a" and [tokenizer.decode([token]) for token in ids[-11::2]] == list("banana")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_every_pair_of_operands_belongs_to_one_split_in_either_order() -> None:
    """Over the full range: all 500,500 unordered pairs of 0..999."""
    largest = max(limit for limits in LIMITS.values() for limit in limits)
    test = sum(pair_split(a, b) == "test" for a, b in combinations_with_replacement(range(largest + 1), 2))
    assert 0.09 < test / 500_500 < 0.11
    assert all(pair_split(a, b) == pair_split(b, a) for a in range(60) for b in range(60))


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_use_pairs_of_their_split_within_the_range(split: str) -> None:
    for seed in (-1, 0, 1):
        task = Arithmetic(split, seed=seed, rows=1500)
        for index in range(len(task)):
            operation, a, b, question = task.asked(index)
            assert pair_split(a, b) == split and 0 <= a <= LIMITS[operation][1] and 0 <= b <= LIMITS[operation][1]
            assert str(a) in question and str(b) in question


def test_arithmetic_computes_small_and_large_problems_with_python() -> None:
    task = Arithmetic("train", rows=500)
    kinds = set()
    for index in range(len(task)):
        operation, a, b, _ = task.asked(index)
        content = task.conversation(index)["messages"][1]["content"]
        is_large = max(a, b) > LIMITS[operation][0]
        kinds.add((operation, is_large))
        assert [each["type"] for each in content] == ["text", "python", "python_output", "text"]
        assert eval(content[1]["text"]) == int(content[2]["text"]) == int(content[3]["text"])
    assert len(kinds) == 6
    assert all({"+", "-", "*"} == set(wordings) for wordings in (QUESTIONS, PROBLEMS))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("{n}", True),
        ("{a}{op}{b}={n}", True),
        ("It is {n}.", True),
        ("{n}.00", True),
        ("**{n}**", True),
        ("{n} apples", True),
        ("5, no, {n}", True),
        ("{n}, no, 5000000", False),
        ("", False),
        ("unknown", False),
        ("-{n}", False),
        ("{n}1", False),
        ("{n}x", False),
        ("{a}{op}{b}", False),
    ],
)
def test_arithmetic_grades_the_last_number(answer: str, right: bool) -> None:
    task = Arithmetic("test", rows=60)
    checked = 0
    for index in range(len(task)):
        operation, a, b, _ = task.asked(index)
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
        if result > 1 and b not in (0, 1, result):
            assert task.grade(index, answer.format(n=result, a=a, b=b, op=operation)) is right, (operation, a, b)
            checked += 1
    assert checked > 20


def test_arithmetic_reads_commas_and_negative_numbers() -> None:
    task = Arithmetic("test", rows=400)
    index = next(i for i in range(400) if task.asked(i)[0] == "*" and task.asked(i)[1] * task.asked(i)[2] >= 1000)
    _, a, b, _ = task.asked(index)
    assert task.grade(index, f"{a * b:,}") and not task.grade(index, f"={-a * b}") and not task.grade(index, "\u0661")


# --- identity --------------------------------------------------------------------------------------------------------


def test_wordings_of_the_identity_test_are_never_trained_on(manifests: list[Path]) -> None:
    train, test = open_task("identity", "train", manifests), open_task("identity", "test")
    questions = [{normalized(task.conversation(i)["messages"][0]["content"]) for i in range(len(task))} for task in (train, test)]
    assert not questions[0] & questions[1] and questions[1] == HELD_OUT and len(questions[1]) == len(test)


def test_own_identity_questions_are_many_and_every_answer_names_nanochat() -> None:
    rows = own_rows()
    assert len({row["messages"][0]["content"] for row in rows}) >= 60
    task = Identity("test")
    assert all(task.grade(0, row["messages"][1]["content"]) for row in rows)
