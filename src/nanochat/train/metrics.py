"""What people and tools see of a running stage: metrics.jsonl (the truth), heartbeat.json (alive?), a bar or log lines.

metrics.jsonl, one JSON object per line; `step` counts finished updates:
    {"step", "loss", "smoothed_loss", "lr_multiplier", "grad_norm", "tokens", "flops", "elapsed_s" (of all updates so far), "step_s",
     "data_share" (of step_s, spent on fetching rows), "tokens_per_s", "utilisation" (share of the peak speed, where it is known)}
    {"step", "val_bpb", "val_loss"}
Reinforcement learning says of an update besides "reward", "sequence_tokens", "cut_off" and "degenerate_groups" (nothing but these where no group had
anything to learn from), and of held-out problems {"step", "pass@1", ..., "validation_sequence_tokens"}.
The first and every log_every-th update say besides, of each parameter group G: "grad_norm/G", "update_norm/G", "weight_norm/G", "update_ratio/G"
(update / weights); and "peak_rss_bytes", on a GPU "peak_cuda_allocated_bytes" and "peak_cuda_reserved_bytes", of rank 0 in this attempt.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanochat.artifacts import write_json, write_text
from nanochat.mirror.process import Mirrors
from nanochat.runtime import log

LINE_EVERY_S = 10.0
FIRST_LINES = 3  # the first updates are said at once: people want to see that it runs
HEARTBEAT_EVERY_S = 5.0
SPEED_MEMORY = 0.9  # of the running mean of seconds per update


class MetricsFile:
    """metrics.jsonl, one flushed line at a time, and its mirrors. On resume, what was logged after the resumed step is taken back."""

    def __init__(self, folder: Path, resumed_step: int, mirrors: Mirrors | None = None) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        kept = [line for line in self._lines() if line["step"] <= resumed_step] if resumed_step else []
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.mirrors = mirrors
        if mirrors is not None:
            mirrors.start()

    def write(self, **values: Any) -> None:
        """Append one line."""
        try:
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
        except OSError as error:
            error.filename = str(self.path)
            raise
        if self.mirrors is not None:
            self.mirrors.listen()

    def close(self, *, finished: bool = True, beat: Callable[[], None] = lambda: None) -> None:
        """Close the file, and let the mirrors catch up; `beat` is called while they do. A disk that is full has been reported by `write`."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.mirrors is not None:
            self.mirrors.close(finished=finished, beat=beat)

    def _lines(self) -> list[dict[str, Any]]:
        """Whole lines of an earlier attempt; a line that a kill cut short is dropped."""
        found = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    content = json.loads(line)
                    if isinstance(content, dict) and "step" in content:
                        found.append(content)
        return found


class Heartbeat:
    """heartbeat.json: phase, step, steps, last_progress (Unix time), tokens_per_s, eta_s, and bad steps if there were any; rewritten every few seconds."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "heartbeat.json"
        self.written, self.phase = 0.0, ""

    def beat(
        self, phase: str, *, step: int = 0, steps: int = 0, tokens_per_s: float = 0.0, eta_s: float | None = None, bad_steps: Mapping[str, int] | None = None
    ) -> None:
        """Record a sign of life; written at once when the phase changes."""
        now = time.time()
        if phase == self.phase and now - self.written < HEARTBEAT_EVERY_S:
            return
        self.written, self.phase = now, phase
        content = {"phase": phase, "step": step, "steps": steps, "last_progress": now, "tokens_per_s": round(tokens_per_s, 1), "eta_s": eta_s}
        write_json(self.path, {**content, **(bad_steps or {})})


class Progress:
    """A bar on a terminal; elsewhere a line at once for the first updates, then one every ten seconds. Both with speed and ETA."""

    def __init__(self, name: str, *, steps: int, batch_tokens: int, quiet: bool = False) -> None:
        self.name, self.steps, self.batch_tokens, self.quiet = name, steps, batch_tokens, quiet
        self.start = 0
        self.seconds_per_step = 0.0
        self.last_line = 0.0
        self.bar: tqdm[Any] | None = None

    def begin(self, step: int) -> None:
        """Updates begin after `step`."""
        self.start = step
        if not self.quiet and sys.stderr.isatty():
            self.bar = tqdm(total=self.steps, initial=step, desc=self.name, unit="step", dynamic_ncols=True)

    @property
    def tokens_per_s(self) -> float:
        """Recent speed over all ranks."""
        return self.batch_tokens / self.seconds_per_step if self.seconds_per_step else 0.0

    def eta_s(self, step: int) -> float:
        """Seconds until the last update, at the recent speed."""
        return round((self.steps - step) * self.seconds_per_step, 1)

    def update(self, step: int, seconds: float, what: str) -> None:
        """Update number `step` is done, in `seconds`; `what` tells of it."""
        done = step - self.start
        # the first update also warms up kernels and allocators: the second one replaces its time
        self.seconds_per_step = seconds if done <= 2 else SPEED_MEMORY * self.seconds_per_step + (1 - SPEED_MEMORY) * seconds
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(f"{what.partition(',')[0]}, {self.tokens_per_s:,.0f} tokens/s", refresh=False)
            self.bar.update()
            return
        now = time.monotonic()
        if done <= FIRST_LINES or step == self.steps or now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            eta = timedelta(seconds=round(self.eta_s(step)))
            log(f"step {step}/{self.steps} ({100 * step / self.steps:.1f}%) {what}, {seconds:.2f} s, {self.tokens_per_s:,.0f} tokens/s, ETA {eta}")

    def say(self, message: str) -> None:
        """A line that does not break the bar."""
        if self.quiet:
            return
        if self.bar is not None:
            with tqdm.external_write_mode(file=sys.stderr):
                log(message)
        else:
            log(message)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
