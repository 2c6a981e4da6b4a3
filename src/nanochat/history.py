"""The story of results: manifests, attempts, heartbeats, the end of a log, and what the attempts cost.

Read without torch and without an experiment file. A damaged file is a UserError that names it; one that does not exist, or vanishes
while it is read, is an empty answer.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nanochat.artifacts import read_json
from nanochat.errors import UserError
from nanochat.hardware import price_of

Found = TypeVar("Found")
ATTEMPT_TIMES = ("heartbeat", "end")
ATTEMPT_NUMBERS = ("wall_s", "world_size", "tokens_per_s")
LARGEST, LATEST = 1e15, 1e11
TAILS_BYTES = (1 << 16, 1 << 22)  # of metrics.jsonl: 4 MiB are some 15,000 updates, far more than lie between two validations


# --- files -----------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether this is a number that a stage may have written; JSON's true, NaN and what no counter reaches are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def is_time(value: Any) -> bool:
    """Whether this is a Unix time, up to the year 5138."""
    return is_number(value) and 0 <= value < LATEST


def unless_damaged(read: Callable[[], Found], default: Found, damaged: list[str]) -> Found:
    """What `read` returns; for a file that is damaged or may not be read, `default`, with one sentence added to `damaged`."""
    try:
        return read()
    except UserError as error:
        damaged.append(str(error))
    except FileNotFoundError:
        return default  # it has just vanished
    except OSError as error:
        damaged.append(f"{error.filename}: cannot be read ({(error.strerror or 'no reason given').lower()})")
    return default


def json_beside(folder: Path, name: str, default: Any) -> Any:
    """Content of a JSON file in `folder`, `default` where there is none."""
    file = folder / name
    try:
        return read_json(file) if file.is_file() else default
    except UserError:
        if file.is_file():
            raise
        return default


def manifest_of(path: Path, stage: str) -> dict[str, Any] | None:
    """A manifest without looking at the outputs that it lists; None where the stage has not finished."""
    manifest = json_beside(path.parent, path.name, None)
    if manifest is None and not path.is_file():
        return None
    if not isinstance(manifest, dict) or "stage" not in manifest or not isinstance(manifest.get("counts", {}), dict):
        raise UserError(f"{path}: not a manifest; give the manifest.json that a stage wrote")
    if manifest["stage"] != stage:
        raise UserError(f"{path}: made by stage {manifest['stage']!r}, {stage!r} is needed; give that stage's manifest.json")
    return manifest


def attempts_of(folder: Path) -> tuple[dict[str, Any], ...]:
    """The attempts that provenance.json tells of, oldest first."""
    story = json_beside(folder, "provenance.json", {})
    attempts = story.get("attempts", []) if isinstance(story, dict) else None
    if not isinstance(attempts, list) or not all(map(_is_attempt, attempts)):
        raise UserError(f"{folder / 'provenance.json'}: not a list of attempts as stages write it; delete it, only the past is lost")
    return tuple(attempts)


def _is_attempt(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), str) or not is_time(value.get("start")):
        return False
    known = {key: value[key] for key in (*ATTEMPT_TIMES, *ATTEMPT_NUMBERS) if value.get(key) is not None}
    return all(is_time(number) if key in ATTEMPT_TIMES else is_number(number) for key, number in known.items())


@dataclass(frozen=True)
class Beat:
    """heartbeat.json: the last sign of life of a training stage. `content` holds it as it was written, further fields included."""

    phase: str
    step: int
    steps: int
    last_progress: float  # Unix time
    tokens_per_s: float
    eta_s: float | None  # seconds from last_progress to the last update
    content: dict[str, Any]


def beat_of(folder: Path) -> Beat | None:
    """The heartbeat in a stage's folder."""
    content = json_beside(folder, "heartbeat.json", None)
    if content is None:
        return None
    numbers = {key: content.get(key) or 0 for key in ("step", "steps", "tokens_per_s", "eta_s")} if isinstance(content, dict) else {}
    if not numbers or not is_time(content.get("last_progress")) or not all(map(is_number, numbers.values())):
        raise UserError(f"{folder / 'heartbeat.json'}: not a heartbeat as stages write it; delete it, the next one replaces it")
    eta_s = None if content.get("eta_s") is None else float(numbers["eta_s"])
    progress, speed = float(content["last_progress"]), float(numbers["tokens_per_s"])
    return Beat(str(content.get("phase", "")), int(numbers["step"]), int(numbers["steps"]), progress, speed, eta_s, content)


def saved_step(folder: Path) -> int | None:
    """The update that a stopped stage goes on from: the newest of its resume states."""
    slots = [json_beside(folder / "resume", f"{slot}.json", None) for slot in ("a", "b")]
    counters = [slot.get("counters") for slot in slots if isinstance(slot, dict)]
    steps = [int(counter["step"]) for counter in counters if isinstance(counter, dict) and is_number(counter.get("step"))]
    return max(steps, default=None)


def last_logged(path: Path, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Key -> the last line of metrics.jsonl that holds it. Lines that are cut short are passed over, only the end of a long file is read."""
    found: dict[str, dict[str, Any]] = {}
    for size in TAILS_BYTES:
        for line in reversed(_tail(path, size).split(b"\n")):
            missing = [key for key in keys if key not in found and f'"{key}"'.encode() in line]
            if missing and (content := _whole_line(line)) is not None:
                found |= {key: content for key in missing if is_number(content.get(key))}
        if len(found) == len(keys) or not path.is_file() or path.stat().st_size <= size:
            break
    return found


def _tail(path: Path, size_bytes: int) -> bytes:
    """The end of a file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size_bytes))
            return file.read(size_bytes)
    except FileNotFoundError:
        return b""


def _whole_line(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


# --- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Wall time, GPU-hours and money of some attempts; failed and interrupted ones were paid for too. Without a GPU the last two are None."""

    wall_s: float
    gpu_hours: float | None
    money: float | None
    attempts: int
    unfinished: int  # attempts that did not end with state "finished"


def wall_seconds(attempt: Mapping[str, Any]) -> float:
    """Duration of an attempt; one that was killed lasted until its last sign of life."""
    return float(attempt.get("wall_s") or max(0.0, (attempt.get("heartbeat") or attempt["start"]) - attempt["start"]))


def ended(attempt: Mapping[str, Any]) -> float:
    """Unix time of the end of an attempt, or of its last sign of life."""
    return float(attempt.get("end") or attempt["start"] + wall_seconds(attempt))


def seen_alive(attempt: Mapping[str, Any], at: float | None) -> dict[str, Any]:
    """An attempt that is not closed, with a later sign of life than it has written down itself (which it does only when it saves)."""
    known = max(attempt["start"], attempt.get("heartbeat") or 0.0)
    return {**attempt, "heartbeat": max(known, at or 0.0)} if attempt["state"] == "running" else dict(attempt)


def cost_of(attempts: Iterable[Mapping[str, Any]], configured_price: float = 0.0) -> Cost:
    """Sum over attempts."""
    wall, hours, paid, number, unfinished = 0.0, 0.0, 0.0, 0, 0
    on_gpu = False
    for attempt in attempts:
        seconds = wall_seconds(attempt)
        wall += seconds
        number += 1
        unfinished += attempt.get("state") != "finished"
        if attempt.get("device") == "cuda":
            on_gpu = True
            used = seconds / 3600 * int(attempt.get("world_size") or 1)
            hours += used
            paid += used * price_of(str(attempt.get("device_name", "")), configured_price)
    return Cost(wall, hours if on_gpu else None, paid if on_gpu else None, number, unfinished)
