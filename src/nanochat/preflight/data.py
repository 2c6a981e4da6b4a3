"""Fetched data against what the stages will ask for, and tokens against the tokens that training will see. Manifests only: no data file is read."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.artifacts import OTHER_EXPERIMENT, read_manifest
from nanochat.config import Experiment, Run, corpus_chunks
from nanochat.data.sources import Source
from nanochat.errors import UserError
from nanochat.plan.work import Works
from nanochat.preflight.checks import Check, not_checked, ok, problem, warning
from nanochat.preflight.needs import Need

NAMED = 3  # how many of many are named in a sentence
FETCH = f"fetch it: snakemake --cores 4 fetch ({OTHER_EXPERIMENT})"


def check_data(
    needs: Sequence[Need], sources: Mapping[str, Source], manifests: Mapping[tuple[str, str], Path], *, fetched_later: bool = False, fetch: str = FETCH
) -> list[Check]:
    """One check per source: each part present, whole by its manifest's sizes, with rows in each split that is needed.

    `manifests`: (source, part) -> file. `fetched_later`: what is missing will be fetched in this very call and is no problem.
    `fetch`: how to fetch, with the command.
    """
    by_source: dict[str, list[Need]] = defaultdict(list)
    for need in needs:
        by_source[need.source].append(need)
    return [_check_source(name, wanted, sources.get(name), manifests, fetched_later, fetch) for name, wanted in by_source.items()]


def _check_source(name: str, wanted: list[Need], source: Source | None, manifests: Mapping[tuple[str, str], Path], fetched_later: bool, fetch: str) -> Check:
    title, rows = f"data {name}", defaultdict[str, int](int)
    parts: dict[str, list[str]] = defaultdict(list)
    for need in wanted:
        parts[need.part].append(need.split)
    missing = [part for part in parts if not (path := manifests.get((name, part))) or not path.is_file()]
    faults = []
    for part in parts:
        if part in missing:
            continue
        try:
            manifest = read_manifest(manifests[name, part], stage="fetch")
            faults += [f"{part}: {fault}" if part != "all" else fault for fault in _faults(manifest, name, part, parts[part], source)]
            for split in parts[part]:
                rows[split] += manifest["counts"]["rows"].get(split, 0)
        except UserError as error:
            faults.append(str(error).partition("; ")[0])  # without its cure: one for all that is wrong stands below
        except (KeyError, TypeError, AttributeError) as error:
            faults.append(f"{manifests[name, part]}: not a manifest of stage fetch ({error!r})")
    if faults:
        return problem(title, "; ".join(faults[:NAMED]) + _more(faults), f"delete the folder of the part in resources/{name}/ and {fetch}")
    if missing:
        which = "not fetched" if list(parts) == ["all"] else f"{len(missing)} of {len(parts)} parts not fetched ({', '.join(missing[:NAMED])}{_more(missing)})"
        return not_checked(title, f"{which} yet, fetched before anything trains") if fetched_later else problem(title, which, fetch)
    shown = ", ".join(f"{count:,} rows {split}" for split, count in rows.items())
    return ok(title, shown if len(parts) == 1 else f"{len(parts)} parts, {shown}")


def _faults(manifest: dict[str, Any], name: str, part: str, splits: list[str], source: Source | None) -> list[str]:
    """What of a part is not as the stages and the registry expect."""
    found, counts = manifest["config"], manifest["counts"]["rows"]
    if (found["source"], found["part"]) != (name, part):
        return [f"its manifest is of {found['source']} {found['part']}"]
    faults = []
    for split in splits:
        expected = source.splits[split].rows if source and source.shards is None and split in source.splits else None
        if split not in counts:
            faults.append(f"has no split {split}, only {', '.join(counts) or 'none'}")
        elif not counts[split]:
            faults.append(f"no rows in split {split}")
        elif expected is not None and counts[split] != expected:
            faults.append(f"{counts[split]:,} rows in split {split}, the registry promises {expected:,}")
        elif not any(_holds(file, split) for file in manifest["outputs"]):
            faults.append(f"lists no file of split {split}")
    return faults


def _holds(file: str, split: str) -> bool:
    """Whether a file of a part belongs to a split: train-00000.parquet, test.jsonl; a vocabulary is one file."""
    return file.endswith(".tiktoken") if split == "ranks" else file == f"{split}.jsonl" or (file.startswith(split) and file.endswith(".parquet"))


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - NAMED} more" if len(items) > NAMED else ""


# --- tokens ----------------------------------------------------------------------------------------------------------


def check_tokens(experiment: Experiment, results: Path) -> list[Check]:
    """One check per run: the rows that pretraining will visit against the rows that there are, once they are tokenized."""
    works = Works(experiment)
    return [_check_run(name, run, works, results) for name, run in experiment.runs.items()]


def _check_run(name: str, run: Run, works: Works, results: Path) -> Check:
    experiment = works.experiment
    title, row_tokens = f"tokens of {name}", experiment.corpora[run.corpus].sequence_len
    try:
        needed = works.training("base_train", name, 1, None).plan.tokens
    except UserError as error:
        return problem(title, f"runs.{name}.{error}", "change the experiment")
    paths = [
        results / "tokens" / f"{run.corpus}.{run.tokenizer}" / chunk.name / "manifest.json"
        for chunk in corpus_chunks(experiment, run.corpus)
        if chunk.split == "train"
    ]
    if missing := [path for path in paths if not path.is_file()]:
        return not_checked(title, f"{needed / 1e6:,.1f} million needed; {len(missing)} of {len(paths)} chunks are not tokenized yet")
    try:
        rows = sum(read_manifest(path, stage="tokenize")["counts"]["rows"] for path in paths)
    except UserError as error:
        return problem(title, str(error))
    if not rows:
        return problem(title, "no rows to train on", f"give corpora.{run.corpus} more text, or a smaller sequence_len")
    if weights := experiment.corpora[run.corpus].weights:
        return _check_mixture(title, needed, weights, paths, row_tokens)
    epochs, there = needed / (rows * row_tokens), f"{needed / 1e6:,.1f} million needed, {rows * row_tokens / 1e6:,.1f} million there"
    if epochs > 1:
        return warning(
            title,
            f"{there}: each is seen {epochs:.2f} times",
            f"to see none twice, add text to corpora.{run.corpus} or shorten base_train.horizon",
        )
    return ok(title, there)


def _check_mixture(title: str, needed: int, weights: Mapping[str, float], paths: Sequence[Path], row_tokens: int) -> Check:
    """How often each source of a mixture is seen."""
    there = dict.fromkeys(weights, 0)
    for path in paths:
        there[path.parent.name.partition(".")[0]] += read_manifest(path, stage="tokenize")["counts"]["rows"] * row_tokens
    if empty := [name for name, tokens in there.items() if not tokens]:
        return problem(title, f"no rows of source {empty[0]}, which has a weight", "give it more text, or leave it out")
    seen = {name: needed * weight / sum(weights.values()) / there[name] for name, weight in weights.items()}
    words = f"{needed / 1e6:,.1f} million needed; " + ", ".join(f"{name} is seen {epochs:.2f} times" for name, epochs in seen.items())
    if max(seen.values()) > 1:
        most = max(seen, key=lambda name: seen[name])
        return warning(title, words, f"to see none twice, add text to {most}, lower its weight or shorten base_train.horizon")
    return ok(title, words)
