"""Stage prepare: what each filter leaves out, what it keeps, and that the same text comes out however it is run."""

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.artifacts import read_json, read_manifest, write_manifest
from nanochat.data import prepare as library
from nanochat.data.near import SignatureFile, bands_of, near_copies, signatures
from nanochat.data.ngrams import RunIndex, Words
from nanochat.errors import UserError
from nanochat.report.data import data_section
from nanochat.report.document import Document
from nanochat.report.graph import build
from nanochat.report.inputs import read_inputs
from nanochat.report.render import markdown
from nanochat.stages import prepare, workers

ENGLISH = (
    "the of and to in is was that for on with as his they at be this from have or by one had not but what all were when we there can an your which their said"
)
WORDS = ENGLISH.split() + [f"{a}{b}{c}" for a in ("stone", "river", "light", "wind") for b in ("ward", "field", "ness") for c in ("", "s", "ly")]
QUESTION = "Which of these four properties of a mineral is best observed by looking at it closely under a bright lamp?"
CHOICE = "its colour and its lustre in the light of day, seen from near by"
GERMAN = "Der alte Mann ging am Abend langsam durch den Wald nach Hause und dachte dabei an seine Kinder, die schon lange fortgezogen waren."


def text(seed: int, words: int = 120) -> str:
    """A document that shares nothing but common words with those of other seeds."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return " ".join(chosen).capitalize() + "."


def fetched(folder: Path, source: str, splits: Mapping[str, Iterable[str]]) -> Path:
    """Text as stage fetch leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"train": "train-00000.parquet", "validation": "validation.parquet"}
    for split, texts in splits.items():
        pq.write_table(pa.table({"text": pa.array(list(texts), pa.string())}), folder / names[split], row_group_size=16)
    config = {"source": source, "part": "all"}
    write_manifest(folder / "manifest.json", stage="fetch", config=config, inputs={}, outputs=[names[split] for split in splits], counts={})
    return folder / "manifest.json"


def rows(folder: Path, source: str, **splits: list[dict[str, Any]]) -> Path:
    """Evaluation rows as stage fetch leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    write_manifest(folder / "manifest.json", stage="fetch", config={"source": source}, inputs={}, outputs=[f"{split}.jsonl" for split in splits], counts={})
    return folder / "manifest.json"


def chunks_of(names: Iterable[str]) -> list[dict[str, str]]:
    """Chunks as the config names them; their splits stand at the ends of their names."""
    return [{"chunk": name, "split": name.rpartition(".")[2]} for name in names]


def judge(tmp_path: Path, manifests: Mapping[str, Path], *, out: str = "out", workers: int = 1, **config: Any) -> dict[str, Any]:
    """Run the first step over {chunk: manifest}; what it says was left out."""
    chunks = chunks_of(manifests)
    flags = ["--text", *map(str, manifests.values()), "--workers", str(workers)]
    prepare.main(["--config", json.dumps({"chunks": chunks, **config}), *flags, "--manifest", str(tmp_path / out / "manifest.json")])
    report: dict[str, Any] = read_json(tmp_path / out / "removed.json")
    return report


def kept(tmp_path: Path, manifests: Mapping[str, Path], chunk: str, out: str = "out") -> list[str]:
    """Run the second step for one chunk; the documents that it writes."""
    split, folder = chunk.rpartition(".")[2], tmp_path / out / chunk
    flags = ["--text", str(manifests[chunk]), "--judged", str(tmp_path / out / "manifest.json"), "--manifest", str(folder / "manifest.json")]
    prepare.main(["--config", json.dumps({"chunk": chunk, "split": split}), *flags])
    manifest = read_manifest(folder / "manifest.json", stage="prepare")
    texts = [document for name in sorted(manifest["outputs"]) for document in pq.read_table(folder / name)["text"].to_pylist()]
    assert manifest["counts"]["rows"] == {split: len(texts)}
    assert manifest["counts"]["split_bytes"] == {split: sum(len(document.encode()) for document in texts)}
    return texts


def corpus(tmp_path: Path, train: Iterable[str], validation: Iterable[str] = (text(1), text(2))) -> dict[str, Path]:
    """{chunk: manifest} of a source with two splits."""
    manifest = fetched(tmp_path / "mine", "mine", {"train": train, "validation": validation})
    return {"mine.train": manifest, "mine.validation": manifest}


# --- one filter at a time --------------------------------------------------------------------------------------------


def test_documents_of_other_languages_and_lengths_are_left_out_and_counted(tmp_path: Path) -> None:
    fine, short, long = text(3), "Too short.", text(4, 900)
    manifests = corpus(tmp_path, [fine, GERMAN, short, long])
    report = judge(tmp_path, manifests, languages=["en"], min_chars=50, max_chars=2_000)
    train = report["splits"]["train"]
    assert {reason: count["documents"] for reason, count in train.items()} == {"kept": 1, "language": 1, "too_short": 1, "too_long": 1}
    assert train["language"]["bytes"] == len(GERMAN.encode())
    assert re.fullmatch(r"de, certainty 0\.\d\d|de, certainty 1\.00", report["examples"]["language"][0]["why"])
    assert report["examples"]["too_long"][0]["document"] == 3
    assert kept(tmp_path, manifests, "mine.train") == [fine]
    assert kept(tmp_path, manifests, "mine.validation") == [text(1), text(2)]


def test_exact_copies_are_found_across_sources_and_the_first_one_stays(tmp_path: Path) -> None:
    near = text(5) + " And a word."
    manifests = {
        "a.train": fetched(tmp_path / "a", "a", {"train": [text(5), text(6)]}),
        "b.train": fetched(tmp_path / "b", "b", {"train": [text(6), text(7), text(5), near]}),
        "b.validation": fetched(tmp_path / "c", "c", {"validation": [text(7), text(8)]}),
    }
    report = judge(tmp_path, manifests, deduplicate="exact")
    assert kept(tmp_path, manifests, "a.train") == [text(5), text(6)]
    assert kept(tmp_path, manifests, "b.train") == [text(7), near]
    assert kept(tmp_path, manifests, "b.validation") == [text(8)]
    assert report["splits"]["train"]["exact_copy"]["documents"] == 2
    assert report["examples"]["exact_copy"][0]["why"] == "copy of document 1 of a.train"


def altered(document: str, share: float, seed: int = 0) -> str:
    """The document with a share of its words at its end replaced, so that the runs in common are known."""
    words = document.split()
    same = round(len(words) * (1 - share))
    return " ".join([*words[:same], *(f"other{seed}word{place}" for place in range(len(words) - same))])


def jaccard(left: str, right: str) -> float:
    """The share of five-word runs in common, counted out."""
    runs = [{tuple(words[place : place + 5]) for place in range(len(words) - 4)} for words in (re.findall(r"\w+", side.lower()) for side in (left, right))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_near_copies_are_left_out_above_the_limit_and_kept_well_below(tmp_path: Path) -> None:
    originals = [text(seed, 300) for seed in range(10, 40)]
    close, far = [altered(document, 0.03) for document in originals], [altered(document, 0.3) for document in originals]
    assert min(map(jaccard, originals, close)) > 0.9 and max(map(jaccard, originals, far)) < 0.65
    manifests = corpus(tmp_path, [*originals, *close, *far])
    report = judge(tmp_path, manifests, deduplicate="near", near_similarity=0.8)
    assert kept(tmp_path, manifests, "mine.train") == [*originals, *far]
    assert report["splits"]["train"]["near_copy"]["documents"] == 30
    assert report["examples"]["near_copy"][0]["original"] == originals[0][:200]
    assert len(report["examples"]["near_copy"]) == 5


def test_case_spacing_and_punctuation_make_no_other_text(tmp_path: Path) -> None:
    manifests = corpus(tmp_path, [text(3), text(3).upper().replace(" ", "  ").replace(".", " !"), "", "...", "?!"])
    judge(tmp_path, manifests, deduplicate="near")
    assert kept(tmp_path, manifests, "mine.train") == [text(3), "", "...", "?!"], "texts without words are no copies of each other"


def test_the_estimate_of_signatures_is_the_share_of_runs_in_common() -> None:
    base = text(3, 1_000)
    variants = [altered(base, share) for share in (0.02, 0.1, 0.2, 0.4, 0.6)]
    found, has_words = signatures(Words.of([base, *variants, "two words", "two WORDS.", ""]), 1_024)
    estimates = (found[0] == found[1:6]).mean(axis=1)
    assert np.abs(estimates - [jaccard(base, variant) for variant in variants]).max() < 0.06  # four standard errors
    assert has_words.tolist() == [True] * 8 + [False]
    assert (found[6] == found[7]).all() and not (found[6] == found[0]).any()


@pytest.mark.parametrize(("permutations", "similarity"), [(128, 0.8), (128, 0.5), (16, 0.9), (256, 0.7), (64, 1.0)])
def test_bands_find_what_is_as_alike_as_the_limit(permutations: int, similarity: float) -> None:
    bands, size = bands_of(permutations, similarity)
    assert bands * size <= permutations
    assert 1 - (1 - similarity**size) ** bands >= 0.95 or (bands, size) == (permutations, 1)


def test_near_copies_equal_comparing_every_pair(tmp_path: Path) -> None:
    """Of a later text an earlier one that is kept is found, whenever one is clearly above the limit."""
    generator = np.random.default_rng(0)
    content = generator.integers(0, 1 << 32, (400, 64), dtype=np.uint32)
    for number in range(200, 400):  # copies of earlier ones, from equal to unlike
        source, changed = int(generator.integers(0, number)), int(generator.integers(0, 40))
        content[number] = content[source]
        content[number, generator.permutation(64)[:changed]] = generator.integers(0, 1 << 32, changed, dtype=np.uint32)
    file = SignatureFile(tmp_path / "s", 400, 64)
    file.create()
    file.write(0, content)
    copy_of = near_copies(file, np.ones(400, dtype=bool), 0.75)
    for number in range(400):
        alike = (content[:number] == content[number]).mean(axis=1)
        if copy_of[number] >= 0:
            assert alike[copy_of[number]] >= 0.75
        else:
            assert not (alike[copy_of[:number] < 0] >= 0.95).any()
    assert 50 < (copy_of >= 0).sum() < 200


# --- evaluations -----------------------------------------------------------------------------------------------------


def evaluation(tmp_path: Path) -> Path:
    """Two rows, one of them with texts that are long enough to be looked for."""
    long = {"question": QUESTION, "choices": ["all of the fourteen amendments and their clauses", CHOICE], "letters": ["A", "B"], "answer": "A"}
    return rows(tmp_path / "quiz", "quiz", test=[long, {"question": "What is the sun?", "choices": ["a star"]}], train=[{"question": text(9)}])


def test_training_text_that_holds_an_evaluation_row_is_left_out_with_the_words_and_the_row(tmp_path: Path) -> None:
    words = QUESTION.split()
    copied = f"{text(20)} {' '.join(words[2:16]).upper().replace(' ', ', ')} {text(21)}"
    harmless = f"{text(22)} {' '.join(words[2:14])} {text(23)} What is the sun? a star. {text(9)} all of the fourteen amendments and their clauses"
    choice = f"{text(24)} Its colour and its lustre, in the light of day, seen from near by, were {text(25)}"
    manifests = corpus(tmp_path, [copied, harmless, choice], [QUESTION, text(1)])
    report = run_decontaminated(tmp_path, manifests)
    assert kept(tmp_path, manifests, "mine.train") == [harmless], "twelve words are not thirteen; short texts and other splits are not looked for"
    assert kept(tmp_path, manifests, "mine.validation") == [QUESTION, text(1)], "validation text teaches nothing"
    found = {example["document"]: example for example in report["examples"]["contaminated"]}
    assert found[0]["words"] == " ".join(re.findall(r"\w+", " ".join(words[2:15]).lower())) and found[0]["evaluation"] == "quiz/test"
    assert found[2]["words"] == "its colour and its lustre in the light of day seen from near"
    assert report["evaluations"] == {"quiz/test": {"texts": 8, "too_short": 6}}


def run_decontaminated(tmp_path: Path, manifests: Mapping[str, Path], **more: Any) -> dict[str, Any]:
    """Judge against the test split of the quiz."""
    chunks = chunks_of(manifests)
    config = {"chunks": chunks, "decontaminate": True, "evaluations": ["quiz/test"], **more}
    flags = ["--text", *map(str, manifests.values()), "--evaluations", str(evaluation(tmp_path)), "--manifest", str(tmp_path / "out" / "manifest.json")]
    prepare.main(["--config", json.dumps(config), *flags])
    report: dict[str, Any] = read_json(tmp_path / "out" / "removed.json")
    return report


def test_validation_text_that_is_a_near_copy_of_training_text_is_left_out_and_copies_within_stay(tmp_path: Path) -> None:
    copy, twin = altered(text(5, 300), 0.02), altered(text(6, 300), 0.02)
    manifests = corpus(tmp_path, [text(5, 300), altered(text(5, 300), 0.02, seed=1)], [copy, text(6, 300), twin])
    report = run_decontaminated(tmp_path, manifests)
    assert kept(tmp_path, manifests, "mine.validation") == [text(6, 300), twin]
    assert len(kept(tmp_path, manifests, "mine.train")) == 2, "training text is deduplicated only where that is asked for"
    assert report["examples"]["near_training_text"][0]["original"] == text(5, 300)[:200]


def test_a_run_of_words_is_found_as_the_slow_way_finds_it() -> None:
    generator = random.Random(0)
    passages = [(number, " ".join(generator.choices("abcd", k=generator.randint(1, 12)))) for number in range(60)]
    texts = [" ".join(generator.choices("abcd", k=generator.randint(0, 40))) for _ in range(200)]
    index = RunIndex(passages, longest=6, shortest=4)
    known: dict[str, set[int]] = {}
    for owner, passage in passages:
        words = passage.split()
        size = min(len(words), 6)
        for place in range(len(words) - size + 1 if size >= 4 else 0):
            known.setdefault(" ".join(words[place : place + size]), set()).add(owner)
    found = {match.text: match for match in index.matches(Words.of(texts))}
    for number, document in enumerate(texts):
        words = document.split()
        runs = [" ".join(words[place : place + size]) for place in range(len(words)) for size in (4, 5, 6) if place + size <= len(words)]
        first = next((run for run in runs if run in known), None)
        assert (found[number].words if number in found else None) == first
        assert first is None or found[number].owner in known[first]
    assert 20 < len(found) < 200


# --- the stage -------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder but those that tell of the attempt."""
    told = ("provenance.json", ".lock", ".owner.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in told}


def test_the_outputs_depend_neither_on_workers_nor_on_a_killed_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [text(seed) for seed in range(3, 60)]
    manifests = corpus(tmp_path, [*documents, *(altered(document, 0.02) for document in documents[:9])])
    options: dict[str, Any] = {"deduplicate": "near", "min_chars": 20}
    judge(tmp_path, manifests, **options)
    kept(tmp_path, manifests, "mine.train")
    monkeypatch.setattr(workers, "WORKER_FILE_BYTES", 1)
    judge(tmp_path, manifests, out="parallel", workers=2, **options)
    kept(tmp_path, manifests, "mine.train", out="parallel")
    assert everything(tmp_path / "parallel") == everything(tmp_path / "out")

    monkeypatch.undo()
    judged: list[str] = []

    def killed(self: library.Judgement, part: library.Part, found: Any) -> None:
        if part.split == "validation" and not judged:
            judged.append(part.name)
            raise KeyboardInterrupt
        save(self, part, found)

    save = library.Judgement._save
    monkeypatch.setattr(library.Judgement, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        judge(tmp_path, manifests, out="killed", **options)
    assert (tmp_path / "killed" / "resume" / "mine.train.npz").is_file() and not (tmp_path / "killed" / "manifest.json").exists()
    judge_group = prepare.judge_group
    monkeypatch.setattr(prepare, "judge_group", lambda *task: judge_group(*task) if task[3] == "validation" else pytest.fail("judged twice"))
    judge(tmp_path, manifests, out="killed", **options)
    kept(tmp_path, manifests, "mine.train", out="killed")
    assert everything(tmp_path / "killed") == everything(tmp_path / "out")


def test_state_of_another_request_is_thrown_away(tmp_path: Path) -> None:
    manifests = corpus(tmp_path, [text(3), text(3), text(4)])
    state = tmp_path / "out" / "resume"
    state.mkdir(parents=True)
    (state / "stamp").write_text("another", encoding="utf-8")
    (state / "mine.train.npz").write_bytes(b"no archive")
    assert judge(tmp_path, manifests, deduplicate="exact")["splits"]["train"]["kept"]["documents"] == 2
    assert not state.exists()


def test_a_chunk_of_which_nothing_is_left_is_a_file_without_rows(tmp_path: Path) -> None:
    manifests = {
        "a.train": fetched(tmp_path / "a", "a", {"train": [text(5)]}),
        "b.train": fetched(tmp_path / "b", "b", {"train": [text(5)]}),
        "b.validation": fetched(tmp_path / "c", "c", {"validation": [text(8)]}),
    }
    judge(tmp_path, manifests, deduplicate="exact")
    assert kept(tmp_path, manifests, "b.train") == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"min_chars": 100_000}, r"prepare: leaves no train text \(3 too short\); loosen the filters"),
        ({"languages": ["xx"]}, r"prepare\.languages='xx': not told apart by the model; choose among .*\bde\b"),
        ({"decontaminate": True, "evaluations": ["quiz/test"]}, "--evaluations: no manifest of source quiz"),
        ({}, "asks for nothing"),
        ({"min_chars": 9, "max_chars": 3}, "below min_chars"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        manifests = corpus(tmp_path, [text(3), text(4), text(5)])
        chunks = chunks_of(manifests)
        flags = ["--text", *map(str, manifests.values()), "--manifest", str(tmp_path / "out" / "manifest.json")]
        prepare.main(["--config", json.dumps({"chunks": chunks, **config}), *flags])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_chunks_keep_the_order_of_the_corpus_and_validation_first_is_refused(tmp_path: Path) -> None:
    manifests = {
        "z.train": fetched(tmp_path / "z", "z", {"train": [text(5)]}),
        "a.train": fetched(tmp_path / "a", "a", {"train": [text(5), text(6)]}),
        "z.validation": fetched(tmp_path / "v", "z", {"validation": [text(8)]}),
    }
    judge(tmp_path, manifests, deduplicate="exact")
    assert [kept(tmp_path, manifests, chunk) for chunk in manifests] == [[text(5)], [text(6)], [text(8)]]
    with pytest.raises(UserError, match="a validation chunk stands before a training chunk"):
        judge(tmp_path, dict(reversed(manifests.items())), deduplicate="exact")


def test_text_that_changed_after_the_judgement_is_refused(tmp_path: Path) -> None:
    manifests = corpus(tmp_path, [text(3), text(3)])
    judge(tmp_path, manifests, deduplicate="exact")
    manifests = corpus(tmp_path, [text(4), text(3)])
    with pytest.raises(UserError, match=r"chunk mine\.train was judged with other text"):
        kept(tmp_path, manifests, "mine.train")


def test_the_report_shows_what_was_left_out_and_where_prepared_text_came_from(tmp_path: Path) -> None:
    manifests = corpus(tmp_path / "resources" / "mine", [text(3), text(3), text(4)])
    judge(tmp_path, manifests, out="text/small", deduplicate="exact")
    for chunk in manifests:
        kept(tmp_path, manifests, chunk, out="text/small")
    none: tuple[Any, ...] = ()
    folder = tmp_path / "text" / "small"
    prepared = [folder / "manifest.json", *(folder / chunk / "manifest.json" for chunk in manifests)]
    source = [manifests["mine.train"]]
    inputs = read_inputs(run_manifests=none, scores=none, tokenizers=none, tokens=none, sources=source, text=prepared, runs=none)
    words = markdown(Document("Report", "", (data_section(inputs),)))
    assert re.search(r"\| small +\| train +\| exact copy +\| +1 +\|", words), words
    graph = build(inputs)
    assert [(node.title, node.subtitle) for node in graph.nodes if node.column == 1] == [("small", "2 chunks")]
    assert len(graph.edges) == 1 and not graph.unexplained
