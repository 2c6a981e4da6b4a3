"""A job as the workflow hands it over, and why it runs, in words: the workflow's own reason, refined by what changed in the configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_json
from nanochat.config import identity
from nanochat.errors import UserError
from nanochat.kept import FOLDER as KEPT
from nanochat.plan.planner import STAGE_OF_RULE

SHOWN_CHANGES = 4
SHOWN_FILES = 2


@dataclass(frozen=True)
class Reason:
    """Why the workflow runs a job, as it states it."""

    missing: Sequence[str] = ()  # outputs
    incomplete: Sequence[str] = ()
    updated: Sequence[str] = ()  # inputs that are newer
    upstream: Sequence[str] = ()  # inputs that another job of this run makes
    inputs_changed: bool = False  # another set of files
    forced: bool = False
    params_before: Sequence[str] = ()  # representations of the values that only the last run had
    other: str = ""  # the workflow's own words


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    number: int
    rule: str
    wildcards: Mapping[str, str]
    outputs: Sequence[str] = ()
    identity: str | None = None  # JSON of what decides its results, as the rule passes it
    resources: Mapping[str, Any] = field(default_factory=dict)
    reason: Reason = Reason()
    needs: Sequence[int] = ()  # jobs of this run that come before it

    @property
    def stage(self) -> str:
        """The stage that its rule calls."""
        return STAGE_OF_RULE.get(self.rule, self.rule)

    @property
    def name(self) -> str:
        """Stage and wildcards: evaluate d20 base bpb."""
        return " ".join([self.stage, *self.wildcards.values()])


def explain(job: Job, root: Path = Path()) -> str:
    """Why a job runs, most telling first."""
    reason, parts = job.reason, []
    if reason.forced:
        parts.append("asked for by name")
    if changes := changed_keys(job, root):
        rest = len(changes) - SHOWN_CHANGES
        parts.append(", ".join(changes[:SHOWN_CHANGES]) + (f" and {rest} more" if rest > 0 else ""))
    new = bool(reason.missing) and not any((root / file).exists() for file in job.outputs)
    if reason.missing:
        parts.append(_never(job, root) if new else _missing(job, root))
        if has_kept_copy(job, root):
            parts.append("a finished copy is kept and taken back in seconds if it is the same work")
    if reason.incomplete:
        parts.append("its last attempt left it incomplete")
    if reason.upstream and not new:
        parts.append(_upstream(reason.upstream))
    if reason.updated:
        parts.append(f"{_files(reason.updated)} changed")
    if reason.inputs_changed:
        parts.append("reads other files than before")
    return "; ".join(dict.fromkeys(parts)) or reason.other or "the workflow gives no reason"


def has_kept_copy(job: Job, root: Path = Path()) -> bool:
    """Whether a finished result of this configuration is kept, which its stage takes back if its inputs are the same too."""
    folder = (root / job.outputs[0]).parent
    return (folder / KEPT / "manifest.json").is_file() and (now := _parsed(job.identity)) is not None and now == _beside(folder)


def _never(job: Job, root: Path) -> str:
    """Why nothing of a job's results is there."""
    folder = (root / job.outputs[0]).parent
    if (folder / "resume").is_dir():
        return "not finished" + _progress(folder)
    if (folder / "provenance.json").is_file() or job.reason.params_before:
        return "its results are missing"
    return {"fetch": "not fetched yet", "evaluate": "not scored yet"}.get(job.stage, "never run")


def _missing(job: Job, root: Path) -> str:
    """What is missing of a job's results."""
    names = {Path(file).name for file in job.outputs if not (root / file).exists()} or {Path(file).name for file in job.reason.missing}
    return "checkpoint missing" if "model.safetensors" in names else f"{', '.join(sorted(names))} missing"


def _progress(folder: Path) -> str:
    """How far an interrupted stage came, by its own sign of life."""
    try:
        beat = read_json(folder / "heartbeat.json")
        return f", saved state near step {beat['step']:,} of {beat['steps']:,}: it goes on from there if nothing else has changed"
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return ", a saved state is there"


def _files(names: Sequence[str]) -> str:
    shown = sorted(names)[:SHOWN_FILES]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more files" if len(names) > len(shown) else "")


def _upstream(files: Sequence[str]) -> str:
    """results/d20/mid_train/manifest.json -> mid_train runs before it"""
    stages = []
    for file in sorted(files):
        parts = Path(file).parts
        if parts[0] == "resources":
            stages.append("fetch")
        elif parts[0] == "results" and len(parts) > 2:
            stages.append({"text": "prepare", "tokenizers": "tokenizer", "tokens": "tokenize"}.get(parts[1], "evaluate" if parts[2] == "scores" else parts[2]))
    order = ("fetch", "prepare", "tokenizer", "tokenize", "base_train", "mid_train", "chat_sft", "chat_rl", "evaluate")
    found = sorted(set(stages), key=lambda stage: order.index(stage) if stage in order else len(order))
    return f"{', '.join(found)} run{'s' * (len(found) == 1)} before it" if found else f"{_files(files)} is made before it"


# --- configuration, key by key ---------------------------------------------------------------------------------------


def changed_keys(job: Job, root: Path) -> list[str]:
    """What changed in a stage's configuration: "depth changed 12 -> 20"; nothing where the last one is not known."""
    now = _parsed(job.identity)
    before = _before(job, root)
    if now is None or before is None:
        return []
    old, new = flat(before), flat(now)
    changes = []
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key) != new.get(key):
            changes.append(f"{key} changed {_value(old, key)} -> {_value(new, key)}")
    return changes


def unnoticed(job: Job, root: Path = Path()) -> str | None:
    """A sentence on results that are taken for current, though the experiment now says something else; None where they are as it says."""
    if not (changes := changed_keys(job, root)):
        return None
    shown = ", ".join(changes[:SHOWN_CHANGES]) + (" and more" if len(changes) > SHOWN_CHANGES else "")
    cure = f"delete {Path(job.outputs[0]).parent} to make it again"
    return f"{job.name}: {shown}, which snakemake does not notice without .snakemake/metadata, its memory of what results were made with; {cure}"


def _before(job: Job, root: Path) -> dict[str, Any] | None:
    """The configuration of the last run: as the workflow remembers it, else as the stage left it beside its results."""
    for text in job.reason.params_before:
        if (content := _parsed(text)) is not None:
            return content
    if not job.outputs or job.stage == "evaluate":
        return None
    return _beside((root / job.outputs[0]).parent)


def _beside(folder: Path) -> dict[str, Any] | None:
    """The configuration that a stage left beside its results, without housekeeping."""
    try:
        content = read_json(folder / "config.json")
    except (UserError, OSError):
        return None
    return identity(content) if isinstance(content, dict) else None


def _parsed(text: str | None) -> dict[str, Any] | None:
    try:
        content = json.loads(text or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _value(values: Mapping[str, Any], key: str) -> str:
    """A value in few characters; the default where the key is absent."""
    if key not in values:
        return "default"
    text = values[key] if isinstance(values[key], str) else json.dumps(values[key], ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
