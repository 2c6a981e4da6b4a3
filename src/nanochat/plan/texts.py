"""How much text there is before it has been read: bytes to fetch, characters of a corpus, tokens of a mixture of conversations.

Figures are means: of conversations over up to 500 rows of each task, in GPT-2's tokens; of the Hub's corpora from their published sizes.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nanochat.config import MixtureItem, TaskSettings, task_rows
from nanochat.data.core import CORE
from nanochat.data.sources import SOURCES, WHEELS, Source
from nanochat.tasks import TASKS
from nanochat.tasks.arithmetic import DEFAULT_ROWS as ARITHMETIC_ROWS
from nanochat.tasks.spelling import DEFAULT_ROWS as SPELLING_ROWS

WHEEL_TEXT_BYTES = {  # of the text sources in wheels, both splits, as fetch counts them; the hashes of the wheels are pinned
    "wikipedia_summaries": 5_022_972,
    "presidential_messages": 12_185_705,
    "hellaswag_text": 14_035_000,
    "boolq_text": 4_675_749,
    "socialiqa_text": 4_321_922,
    "winogrande_text": 4_210_449,
    "piqa_text": 2_194_082,
    "fables": 1_918_726,
    "news_articles": 11_722_320,
}
SPLIT_SHARE = {"train": 0.98, "validation": 0.02}  # of a text that is split when it is fetched
GPT2_VOCAB = 50_257

# task -> tokens of a whole conversation
CONVERSATION_TOKENS = {
    "arc_easy": 79,
    "arc_challenge": 88,
    "mmlu": 320,  # assumption for the rows to train on, two thirds of which hold a passage to read
    "openbookqa": 65,
    "commonsense_qa": 67,
    "gsm8k": 145,
    "humaneval": 450,
    "spelling_bee": 70,
    "simple_spelling": 24,
    "arithmetic": 24,
    "long_arithmetic": 27,
    "identity": 26,
    "chitchat": 509,
    "conversations": 300,  # assumption: nobody knows the user's own before they are fetched
    "smoltalk": 800,  # what is left of the published 424M tokens of d20's mid-training when the others are taken off
}
# task -> tokens of the question alone, as a model is asked it
QUESTION_TOKENS = {"arc_easy": 76, "arc_challenge": 87, "mmlu": 90, "openbookqa": 62, "commonsense_qa": 64, "gsm8k": 59, "humaneval": 173}
OTHER_QUESTION_TOKENS = 15
# task of CORE -> (rows in the published bundle, tokens that are read for one, what its texts have in common once); assumptions: of those
# of BIG-bench, winograd and agi_eval_lsat_ar
CORE_READ = {
    "hellaswag_zeroshot": (10_042, 177),
    "jeopardy": (2_117, 338),
    "bigbench_qa_wikidata": (20_321, 150),
    "arc_easy": (2_376, 383),
    "arc_challenge": (1_172, 449),
    "copa": (100, 22),
    "commonsense_qa": (1_221, 272),
    "piqa": (1_838, 444),
    "openbook_qa": (500, 26),
    "lambada_openai": (5_153, 78),
    "hellaswag": (10_042, 989),
    "winograd": (273, 40),
    "winogrande": (1_267, 30),
    "bigbench_dyck_languages": (1_000, 700),
    "agi_eval_lsat_ar": (230, 1_100),
    "bigbench_cs_algorithms": (1_320, 800),
    "bigbench_operators": (210, 600),
    "bigbench_repeat_copy_logic": (32, 500),
    "squad": (10_570, 2_096),
    "coqa": (7_983, 530),
    "boolq": (3_270, 1_574),
    "bigbench_language_identification": (10_000, 1_000),
}
# rows of splits that the registry does not state
ROWS = {("smoltalk", "train"): 460_000, ("smoltalk", "test"): 24_000, ("identity", "train"): 459, ("identity", "test"): 32}
ROWS |= {("conversations", "train"): 10_000}  # assumption, unless the mixture says rows:
GENERATED = {"arithmetic": ARITHMETIC_ROWS, "long_arithmetic": ARITHMETIC_ROWS, "spelling_bee": SPELLING_ROWS, "simple_spelling": SPELLING_ROWS}
PACKED = 0.98  # share of a row of packed conversations that is not padding


def bytes_per_token(vocab_size: int) -> float:
    """Of English text; a line through vocabularies of 4,096 (3.5), 32,768 (4.5) and 65,536 (4.8)."""
    return max(1.0, 0.33 * math.log2(vocab_size) - 0.5)


def rows_of(task: str, split: str, *, source: str | None, rows: int | None) -> int | None:
    """Conversations of a task; None where it is not known before they are fetched."""
    if task in GENERATED:
        return rows or GENERATED[task].get(split)
    kind = TASKS[task]
    known = ROWS.get((task, split))
    if known is None:
        choices = [source] if source else list(kind.sources[split][:1])
        splits = SOURCES[choices[0]].splits if choices else {}
        found = splits.get(kind.source_splits.get(split, split))
        known = found.rows if found else None
    return known if rows is None else min(rows, known or rows)


def core_read(settings: TaskSettings) -> tuple[int, int]:
    """(rows, tokens read) of task core."""
    rows = tokens = 0
    for source, label in task_rows(CORE, settings.split, settings.source):
        if not settings.tasks or label in settings.tasks:
            published, each = CORE_READ[label]
            count = min(SOURCES[source].splits[label].rows or published, settings.limit or published)
            rows, tokens = rows + count, tokens + count * each
    return rows, tokens


def mixture_tokens(mixture: Iterable[MixtureItem], vocab_size: int, sequence_len: int) -> int:
    """Tokens of one pass over a mixture. Conversations longer than a row are left out: where the mean is, all of them."""
    scale = bytes_per_token(GPT2_VOCAB) / bytes_per_token(vocab_size)
    total = 0.0
    for item in mixture:
        rows, tokens = rows_of(item.task, item.split, source=item.source, rows=item.rows), CONVERSATION_TOKENS[item.task] * scale
        if tokens <= sequence_len:
            total += (rows or 0) * item.epochs * tokens
    return math.ceil(total)


def mixture_conversations(mixture: Iterable[MixtureItem]) -> int:
    """Conversations of a mixture, each counted once."""
    return sum(rows_of(item.task, item.split, source=item.source, rows=item.rows) or 0 for item in mixture)


# --- sources ---------------------------------------------------------------------------------------------------------


def shards_of(part: str, config: Mapping[str, Any]) -> int:
    """Shards that one part of a sharded source holds."""
    if part == "validation":
        return 1
    chunk = int(config["chunk_shards"])
    return min(chunk, int(config["shards"]) - int(part.removeprefix("train-")) * chunk)


def text_bytes(source: Source, part: str, config: Mapping[str, Any], *, split: str | None = None, manifest: Any = None) -> int | None:
    """Bytes of text in a part, or in one split of it: as its manifest says, else estimated; None: not known before it is fetched."""
    if manifest is not None and "split_bytes" in manifest["counts"]:
        sizes = manifest["counts"]["split_bytes"]
        return int(sizes.get(split, 0) if split else sum(sizes.values()))
    if source.shards is not None:
        return shards_of(part, config) * source.shard_chars
    whole = WHEEL_TEXT_BYTES.get(source.name)
    return None if whole is None else round(whole * (SPLIT_SHARE[split] if split else 1))


def download(source: Source, part: str, config: Mapping[str, Any], wheels: Path) -> tuple[str, int | None]:
    """(what is downloaded, its bytes) for one part of a source; None: its size is not known. A wheel that lies there already is none."""
    if source.kind == "wheel":
        wheel = WHEELS[source.place["package"]]
        return wheel.filename, 0 if (wheels / wheel.filename).is_file() else wheel.size
    if source.kind == "local":
        return "files of your own", 0
    if source.shards is not None:
        return f"{source.place['repo']} {part}", shards_of(part, config) * source.shard_bytes
    if source.kind == "url":
        return str(source.place["url"]), int(source.place["bytes"])
    return str(source.place["repo"]), None
