"""Leave out of a corpus what its filters say: other languages, lengths, copies, and what stands in the evaluations.

Two steps, since copies are found across chunks while chunks are written side by side. Without --judged the text of the whole corpus is
judged; with --judged one chunk is written without what was left out.

reads   --text: manifests of fetched text, one for each chunk of the config, in its order (one, with --judged)
        --evaluations: fetch manifests of the evaluation rows that the config names
        --judged: the manifest of the first step
writes  the judgement: CHUNK.kept.npy (a bit for each document), removed.json (how much each filter left out, with examples)
        a chunk: train-00000.parquet ... or validation.parquet, as fetch writes them
        beside them config.json, provenance.json and, last, manifest.json
resumes the judgement goes on behind the last chunk that was judged; a chunk starts again
by hand: nanochat prepare --config '{"chunks": [{"chunk": "fables.train", "split": "train"}], "deduplicate": "near"}'
         --text resources/fables/all/manifest.json --manifest out/manifest.json
         nanochat prepare --config '{"chunk": "fables.train", "split": "train"}' --text resources/fables/all/manifest.json
         --judged out/manifest.json --manifest out/fables.train/manifest.json
"""

import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.artifacts import Provenance, atomic_path, fingerprint, read_manifest, sha256_file, verified_file, write_json, write_manifest
from nanochat.config import PrepareChunkStage, PrepareStage, dump
from nanochat.data.documents import text_files
from nanochat.data.filters import KEPT, Filters, judge_group, known_languages
from nanochat.data.prepare import Copies, Judgement, Part, Verdict, evaluation_facts, write_kept
from nanochat.errors import UserError
from nanochat.runtime import log
from nanochat.stages.common import attempt_at, positive_int, read_stage_config, stage_parser
from nanochat.stages.workers import in_order, worth_starting

REMOVED = "removed.json"
STATE = "resume"
LOG_EVERY_S = 10.0


def main(arguments: list[str]) -> None:
    """Judge a corpus, or write one of its chunks."""
    parser = stage_parser(__doc__, "prepare")
    parser.add_argument("--config", required=True, help="the filters and chunks of a corpus, or chunk and split: JSON or a JSON file")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="MANIFEST", help="fetched text, one for each chunk")
    parser.add_argument("--evaluations", type=Path, nargs="*", default=[], metavar="MANIFEST", help="fetched rows of the evaluations")
    parser.add_argument("--judged", type=Path, metavar="MANIFEST", help="what the step before has found: write one chunk")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes that judge documents (default: 1)")
    parser.add_argument("--manifest", type=Path, required=True, metavar="OUT", help="manifest.json to write, last, beside the rest")
    flags = parser.parse_args(arguments)
    if flags.judged is None:
        config = read_stage_config(flags.config, PrepareStage)
        with attempt_at(flags.manifest, "prepare", config, workers=flags.workers) as story:
            judge_corpus(config, flags, story)
    else:
        chunk = read_stage_config(flags.config, PrepareChunkStage)
        with attempt_at(flags.manifest, "prepare", chunk):
            write_chunk(chunk, flags)


# --- the judgement ---------------------------------------------------------------------------------------------------


def judge_corpus(config: PrepareStage, flags: Namespace, story: Provenance) -> None:
    """Decide about every document of every chunk."""
    started = time.monotonic()
    inputs = named_inputs(config, flags)
    if config.languages and (unknown := sorted(set(config.languages) - set(known_languages()))):
        raise UserError(f"prepare.languages={unknown[0]!r}: not told apart by the model; choose among {', '.join(known_languages())}")
    parts = [Part(item.chunk, item.split, tuple(text_files(inputs[f"text.{item.chunk}"], item.split, verify=True))) for item in config.chunks]
    filters, copies = filters_of(config, inputs)
    state = flags.manifest.parent / STATE
    hashes = {name: sha256_file(path) for name, path in inputs.items()}
    judgement = Judgement(parts, filters, state, fingerprint({"stage": "prepare", "config": dump(config)}, hashes))
    judgement.judge(lambda tasks: _watched(in_order(judge_group, tasks, _workers(parts, flags.workers))), log)
    log("looking for copies")
    verdict = judgement.resolve(copies)
    refuse_what_leaves_nothing(config, verdict)
    evaluations = evaluation_facts(filters)
    names = _write(verdict, flags.manifest.parent, evaluations)
    size = int(verdict.sizes.sum())
    counts = {"documents": len(verdict.reasons), "bytes": size, "kept": verdict.counts().get(KEPT), "splits": _splits(verdict)}
    write_manifest(flags.manifest, stage="prepare", config=dump(config), inputs=inputs, outputs=[*names, REMOVED], counts=counts)
    shutil.rmtree(state)
    elapsed_s = time.monotonic() - started
    for sentence in told(verdict):
        log(sentence)
    log(f"{size / 1e6:.1f} MB judged in {elapsed_s:.1f} s, {size / 1e6 / elapsed_s:.1f} MB/s; what was left out: {REMOVED}")
    story.finish(elapsed_s=elapsed_s, text_bytes_per_s=size / elapsed_s)


def named_inputs(config: PrepareStage, flags: Namespace) -> dict[str, Path]:
    """{text.CHUNK or evaluation.SOURCE: manifest}, complete."""
    if len(flags.text) != len(config.chunks):
        raise UserError(f"--text: {len(flags.text)} manifests for {len(config.chunks)} chunks; give one for each, in the order of the config")
    if [item.split for item in config.chunks] != sorted(item.split for item in config.chunks):
        raise UserError("--config: a validation chunk stands before a training chunk; name the training chunks first, theirs are the copies that stay")
    inputs = {f"text.{item.chunk}": path for item, path in zip(config.chunks, flags.text, strict=True)}
    given = {read_manifest(path, stage="fetch")["config"]["source"]: path for path in flags.evaluations}
    for source in dict.fromkeys(label.partition("/")[0] for label in config.evaluations):
        if source not in given:
            raise UserError(f"--evaluations: no manifest of source {source}, which the config names; give resources/{source}/all/manifest.json")
        inputs[f"evaluation.{source}"] = given[source]
    return inputs


def filters_of(config: PrepareStage, inputs: dict[str, Path]) -> tuple[Filters, Copies]:
    """What is asked of a document by itself, and which copies are left out."""
    rows = [(label, *label.split("/")) for label in config.evaluations]
    needs_signatures = config.deduplicate == "near" or config.decontaminate
    filters = Filters(
        languages=tuple(config.languages),
        language_certainty=config.language_certainty,
        min_chars=config.min_chars,
        max_chars=config.max_chars,
        permutations=config.near_permutations if needs_signatures else 0,
        run_words=config.run_words,
        evaluations=tuple((label, verified_file(inputs[f"evaluation.{source}"], f"{split}.jsonl")) for label, source, split in rows),
    )
    return filters, Copies(config.deduplicate, config.near_similarity, config.decontaminate)


def _workers(parts: list[Part], wanted: int) -> int:
    files = {file for part in parts for file in part.files}
    return worth_starting(wanted, sum(file.stat().st_size for file in files))


def _watched(judged: Any) -> Any:
    """Say now and then that the stage is alive."""
    started = said = time.monotonic()
    size = 0
    for group in judged:
        size += int(group.sizes.sum())
        if (now := time.monotonic()) - said > LOG_EVERY_S:
            said = now
            log(f"{size / 1e6:.0f} MB judged, {size / 1e6 / (now - started):.1f} MB/s")
        yield group


def refuse_what_leaves_nothing(config: PrepareStage, verdict: Verdict) -> None:
    """Raise UserError if a split has lost all its documents."""
    for split in dict.fromkeys(item.split for item in config.chunks):
        counts = verdict.counts(split)
        if KEPT not in counts:
            why = ", ".join(f"{count['documents']:,} {reason.replace('_', ' ')}" for reason, count in counts.items()) or "it has no documents"
            raise UserError(f"prepare: leaves no {split} text ({why}); loosen the filters, or give the corpus more text")


def _write(verdict: Verdict, folder: Path, evaluations: dict[str, dict[str, int]]) -> list[str]:
    names = []
    for part in verdict.parts:
        names.append(kept_file(part.name))
        with atomic_path(folder / names[-1]) as temporary, temporary.open("wb") as file:
            np.save(file, verdict.kept(part))
    for stray in folder.glob("*.kept.npy"):  # of chunks that the corpus no longer has
        if stray.name not in names:
            stray.unlink()
    write_json(folder / REMOVED, verdict.report(evaluations))
    return names


def kept_file(chunk: str) -> str:
    """Name of the file that says which documents of a chunk stay."""
    return f"{chunk}.kept.npy"


def _splits(verdict: Verdict) -> dict[str, Any]:
    return {split: verdict.counts(split) for split in dict.fromkeys(part.split for part in verdict.parts)}


def told(verdict: Verdict) -> list[str]:
    """What was left out, a sentence for each split and reason, and one example of each."""
    sentences = []
    for split, counts in _splits(verdict).items():
        total = sum(count["documents"] for count in counts.values())
        for reason, count in counts.items():
            share, size = count["documents"] / max(1, total), count["bytes"] / 1e6
            sentences.append(f"{split}: {count['documents']:,} documents {reason.replace('_', ' ')} ({share:.1%}, {size:.1f} MB)")
    first = {example["reason"]: example for example in reversed(verdict.examples)}
    for reason, example in first.items():
        words = f": {example['words']!r}" if "words" in example else ""
        sentences.append(f"for example {reason.replace('_', ' ')}: document {example['document']} of {example['chunk']}, {example['why']}{words}")
    return sentences


# --- a chunk ---------------------------------------------------------------------------------------------------------


def write_chunk(config: PrepareChunkStage, flags: Namespace) -> None:
    """Write the documents of one chunk that stay."""
    if len(flags.text) != 1:
        raise UserError(f"--text: {len(flags.text)} manifests for one chunk; give the one that it was judged with")
    text, folder = flags.text[0], flags.manifest.parent
    judged = read_manifest(flags.judged, stage="prepare", files=[])
    if judged["inputs"].get(f"text.{config.chunk}") != sha256_file(text):
        raise UserError(f"--judged={flags.judged}: chunk {config.chunk} was judged with other text than {text}; run the step before again")
    kept = np.load(verified_file(flags.judged, kept_file(config.chunk)))
    part = Part(config.chunk, config.split, tuple(text_files(text, config.split, verify=True)))
    names, counts = write_kept(part, kept, folder)
    for stray in folder.iterdir():
        if stray.name not in names and (stray.suffix == ".parquet" or stray.name.endswith(".parquet.partial")):
            stray.unlink()
    log(f"{config.chunk}: {counts['documents']:,} of {part.documents:,} documents, {counts['bytes'] / 1e6:.1f} MB")
    write_manifest(
        flags.manifest,
        stage="prepare",
        config=dump(config),
        inputs={"text": text, "judged": flags.judged},
        outputs=names,
        counts={
            "rows": {config.split: counts["documents"]},
            "bytes": counts["bytes"],
            "split_bytes": {config.split: counts["bytes"]},
            "documents_read": part.documents,
        },
    )
