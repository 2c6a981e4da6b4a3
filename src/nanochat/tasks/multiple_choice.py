"""Tasks with lettered choices: ARC, MMLU, OpenBookQA, CommonsenseQA. Rows: {"question", "choices", "letters", "answer"}."""

from typing import Any, ClassVar, Literal

from nanochat.tasks.base import Conversation, RowTask, exchange, text_fault

INSTRUCTION = "Respond only with the letter of the correct answer."


def render_question(question: str, choices: list[str], letters: list[str]) -> str:
    """The user's message. The letter follows its choice, without a space, because it is answered without one: "A" and
    " A" are different tokens, and small models bind a letter better when it stands after what it names."""
    lines = "".join(f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True))
    return f"Multiple Choice question: {question}\n{lines}\n{INSTRUCTION}"


class MultipleChoice(RowTask):
    """Answer with one letter."""

    kind: ClassVar[Literal["categorical", "generative", "conversation"]] = "categorical"
    baseline = 0.25

    def fault(self, row: dict[str, Any]) -> str | None:
        if fault := text_fault(row, "question", "answer"):
            return fault
        for key in ("choices", "letters"):
            if not isinstance(texts := row.get(key), list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
                return f"has {texts!r:.60} under {key}, where two texts or more belong"
        if len(row["choices"]) != len(row["letters"]):
            return f"has {len(row['choices'])} choices and {len(row['letters'])} letters"
        return None if row["answer"] in row["letters"] else f"has the answer {row['answer']!r:.60}, which is none of its letters {row['letters']}"

    def conversation(self, index: int) -> Conversation:
        row = self.rows[index]
        return exchange(render_question(row["question"], row["choices"], row["letters"]), row["answer"])

    def letters(self, index: int) -> list[str]:
        return list(self.rows[index]["letters"])

    def grade(self, index: int, answer: str) -> bool:
        """Right if the answer is the letter and nothing else but surrounding white space."""
        return bool(answer.strip() == self.rows[index]["answer"])


class ArcEasy(MultipleChoice):
    """ARC, easy set: science questions of grade school."""

    name = "arc_easy"
    sources: ClassVar = dict.fromkeys(("train", "validation", "test"), ("arc_easy", "arc_easy_hf"))


class ArcChallenge(MultipleChoice):
    """ARC, challenge set: those that word statistics get wrong."""

    name = "arc_challenge"
    sources: ClassVar = dict.fromkeys(("train", "validation", "test"), ("arc_challenge", "arc_challenge_hf"))


class Mmlu(MultipleChoice):
    """MMLU: 57 subjects, four choices. Training rows come from other datasets and overlap with ARC and OpenBookQA."""

    name = "mmlu"
    sources: ClassVar = {"train": ("mmlu_auxiliary_hf",), "dev": ("mmlu", "mmlu_hf"), "validation": ("mmlu", "mmlu_hf"), "test": ("mmlu", "mmlu_hf")}

    def subject(self, index: int) -> str | None:
        """One of the 57; auxiliary rows have none."""
        return self.rows[index].get("subject") or None


class OpenBookQa(MultipleChoice):
    """OpenBookQA: elementary science facts applied."""

    name = "openbookqa"
    sources: ClassVar = {"train": ("openbookqa",)}


class CommonsenseQa(MultipleChoice):
    """CommonsenseQA: everyday knowledge, five choices."""

    name = "commonsense_qa"
    baseline = 0.2
    sources: ClassVar = {"train": ("commonsense_qa",)}
