"""Spelling: words letter by letter, and how often a letter occurs in a word. Generated from a list of words.

Letters are separated by commas without spaces: the tokenizer's split pattern then gives ",p", which is too rare in text to
become a token, so every letter is one token, the plain byte (a space before it would make " p", another token for the same
letter). Most rows ask for common words, as people do; the others are drawn evenly from a long list, whose words are split
into pieces, and the pieces of the test words occur in hundreds of training words. Words of 3 to 9 letters are used; no list
of frequencies is at hand, and short words are the more frequent ones.

Each word belongs to train or to test by its own hash, whatever the seed, so no test word is ever trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from nanochat.errors import UserError
from nanochat.tasks.base import Conversation, Task, check_split, exchange, part, read_rows, text_fault
from nanochat.tasks.common_words import COMMON_WORDS
from nanochat.tasks.draw import Draw, keyed_number
from nanochat.tasks.gsm8k import final_number

MIN_LETTERS, MAX_LETTERS = 3, 9
COMMON_PERCENT = 70  # of the rows ask for a common word
SHORT_LETTERS, SHORT_PERCENT = 6, 60  # a third of the words, drawn in more than 60 of 100 of the other rows
TEST_SHARE = 10  # one word in ten is a test word
DEFAULT_ROWS = {"train": 20_000, "test": 256}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

# Most ask without quotation marks, as people do. The word is then another token (" water") than the pieces of its answer ("w", "ater").
SPELL_QUESTIONS = (
    'Spell the word "{word}".',
    'Spell "{word}".',
    'spell "{word}"',
    'How do you spell "{word}"?',
    'Please spell the word "{word}" letter by letter.',
    'What are the letters of "{word}"?',
    "Spell {word}",
    "spell {word}",
    "Spell {word}.",
    "Spell {word} for me.",
    "Spell the word {word}",
    "spell the word {word}",
    "Spell the word {word}.",
    "Spell the word {word}, please.",
    "How do you spell {word}?",
    "how do you spell {word}",
    "How do I spell {word}?",
    "How is {word} spelled?",
    "How is the word {word} spelled?",
    "Can you spell {word}?",
    "can you spell {word}",
    "Could you spell the word {word} for me?",
    "Please spell {word}.",
    "Please spell {word} letter by letter.",
    "What are the letters of {word}?",
    "What letters are in {word}?",
    "Which letters are in the word {word}?",
    "Tell me how to spell {word}.",
    "Tell me the letters of {word}.",
    "I want to know how {word} is spelled.",
    "Do you know how to spell {word}?",
    "What is the spelling of {word}?",
)
COUNT_QUESTIONS = (
    'How many "{letter}" are in "{word}"?',
    'How many times does "{letter}" occur in "{word}"?',
    'How many times does the letter "{letter}" appear in the word "{word}"?',
    'Count the letter "{letter}" in "{word}".',
    'How often does the letter "{letter}" occur in "{word}"?',
    'What is the number of "{letter}" in the word "{word}"?',
    'Tell me how many "{letter}" there are in "{word}".',
    'In the word "{word}", how many "{letter}" are there?',
    "How many {letter}'s are in {word}?",
    "how many {letter} in {word}",
)


def word_split(word: str) -> str:
    """To which split a word belongs."""
    return "test" if keyed_number("spelling word", word) % TEST_SHARE == 0 else "train"


def usable_words(words: Sequence[str], split: str) -> list[str]:
    """The words of `split` that are asked for: a-z only, short, each once, sorted."""
    fitting = {word for word in words if MIN_LETTERS <= len(word) <= MAX_LETTERS and word.isascii() and word.isalpha() and word.islower()}
    return sorted(word for word in fitting if word_split(word) == split)


def spelled(word: str) -> str:
    """apple -> apple:a,p,p,l,e"""
    return f"{word}:{','.join(word)}"


class WordTask(Task):
    """A generator over the words of one split; row `index` depends on seed, split and index alone."""

    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "generative"
    version: ClassVar[str] = "2"  # 2: seven words in ten are common ones, and most questions do not quote the word
    sources: ClassVar = {"train": ("word_list", "words_alpha"), "test": ("word_list", "words_alpha")}
    source_splits: ClassVar = {"train": "train", "test": "train"}  # one list; word_split divides it

    def __init__(self, split: str, *, files: Sequence[Path] = (), seed: int = 0, rows: int | None = None) -> None:
        check_split(self, split)
        if not files:
            raise UserError(f"task {self.name}: no list of words given; fetch word_list and pass its manifest")
        self.words = usable_words([row["word"] for row in read_rows(files, lambda row: text_fault(row, "word"))], split)
        if not self.words:
            raise UserError(f"{files[0]}: no word of {MIN_LETTERS} to {MAX_LETTERS} letters a-z for split {split}; fetch word_list again")
        self.common = sorted(set(self.words).intersection(COMMON_WORDS)) or self.words
        self.short = [word for word in self.words if len(word) <= SHORT_LETTERS] or self.words
        self.split, self.seed, self.count = split, seed, rows or DEFAULT_ROWS[split]

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int) -> Draw:
        """The random choices of row `index`."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Draw(self.name, self.split, self.seed, index)

    def word(self, draw: Draw) -> str:
        """A common word, or any; more often a short one."""
        if draw.chance(COMMON_PERCENT):
            return draw.choice(self.common)
        return draw.choice(self.short if draw.chance(SHORT_PERCENT) else self.words)


class SimpleSpelling(WordTask):
    """Spell a word."""

    name = "simple_spelling"

    def conversation(self, index: int) -> Conversation:
        draw = self.draw(index)
        word = self.word(draw)
        return exchange(draw.choice(SPELL_QUESTIONS).format(word=word), spelled(word))

    def grade(self, index: int, answer: str) -> bool:
        """Right if what follows the last colon of the answer's last line is the word's letters; case and spaces do not count."""
        word = self.word(self.draw(index))
        lines = answer.strip().splitlines() or [""]
        letters = lines[-1].rsplit(":", 1)[-1].strip().rstrip(".").lower()
        return [letter.strip() for letter in letters.split(",")] == list(word)


class SpellingBee(WordTask):
    """Count a letter in a word: spell it, count by hand, check with Python."""

    name = "spelling_bee"

    def asked(self, index: int) -> tuple[str, str, str]:
        """(word, letter, question) of row `index`; the letter is one of the word's in nine of ten rows."""
        draw = self.draw(index)
        word = self.word(draw)
        letter = draw.choice(word if draw.chance(90) else ALPHABET)
        return word, letter, draw.choice(COUNT_QUESTIONS).format(word=word, letter=letter)

    def conversation(self, index: int) -> Conversation:
        word, letter, question = self.asked(index)
        count = 0
        steps = []
        for each in word:
            count += each == letter
            steps.append(f"{each}={count}")
        tally = "\n".join(steps)
        return exchange(
            question,
            [
                part("text", f"{spelled(word)}\nCounting {letter}:\n{tally}\n"),
                # double quotes: the split pattern would take the 's of 'strawberry for a contraction
                part("python", f'"{word}".count("{letter}")'),
                part("python_output", str(count)),
                part("text", f"\n#### {count}"),
            ],
        )

    def grade(self, index: int, answer: str) -> bool:
        """Right if the number after the last "####" is the count."""
        word, letter, _ = self.asked(index)
        return final_number(answer) == word.count(letter)
