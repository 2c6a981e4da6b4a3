"""The training's side: one process for each mirror, started with the training, heard now and then, and not waited for beyond a limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanochat.runtime import environment

PATIENCE_S = 30.0  # after the last update: wandb takes some seconds to close its files
HASTE_S = 3.0  # after a stop or an error: the next attempt writes all of it anew
TICK_S = 0.02
QUIET = {  # nothing is sent anywhere, usage statistics included
    "tensorboard": {},
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"},
    "trackio": {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
}

SENDS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "TRACKIO_BUCKET_ID")  # of the user's environment


class Mirror:
    """The process that writes one mirror. What it complains of is said once; nothing here raises."""

    def __init__(self, kind: str, request: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.kind, self.say = kind, say
        self.process: subprocess.Popen[bytes] | None = None
        self.heard = b""
        extra = {**QUIET[kind], **({"TRACKIO_DIR": str(Path(request["folder"]).absolute() / kind)} if kind == "trackio" else {})}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nanochat.mirror"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(*SENDS, **extra),
                start_new_session=True,  # signals of the training are none of its business: it ends when the pipe closes
            )
            assert self.process.stdin is not None and self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)
            self.process.stdin.write(json.dumps({"kind": kind, **request}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            self._complain(f"its process could not be started ({(error.strerror or str(error)).lower()})")

    def listen(self) -> None:
        """See Mirrors."""
        if self.process is None or self.process.stdout is None:
            return
        with contextlib.suppress(OSError):
            self.heard += self.process.stdout.read() or b""
        if (code := self.process.poll()) is not None:
            with contextlib.suppress(OSError):
                self.heard += self.process.stdout.read() or b""
            self._ended(code)

    def close(self, patience_s: float, beat: Callable[[], None]) -> None:
        """Let it write the rest, for so long at most."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        deadline = time.monotonic() + patience_s
        while self.process is not None and time.monotonic() < deadline:
            self.listen()
            beat()
            time.sleep(TICK_S)
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._complain(f"not done {patience_s:.0f} s after the training, so its last lines may be missing")

    def _ended(self, code: int) -> None:
        sentence = self.heard.decode(errors="replace").strip()
        if sentence or code:
            self._complain(sentence or f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}")
        else:
            self._forget()

    def _complain(self, sentence: str) -> None:
        self._forget()
        self.say(f"{self.kind}: {sentence}; training goes on without it, metrics.jsonl has everything")

    def _forget(self) -> None:
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.process = None


class Mirrors:
    """Every mirror that was asked for: kind -> its own settings. `described`: what they call the run (name, identity, config)."""

    def __init__(self, wanted: Mapping[str, Mapping[str, Any]], folder: Path, described: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.wanted, self.folder, self.described, self.say = wanted, folder, described, say
        self.mirrors: list[Mirror] = []

    def start(self) -> None:
        """Begin to follow the folder's metrics.jsonl, which must exist."""
        request = {**self.described, "folder": str(self.folder)}
        self.mirrors = [Mirror(kind, {**request, "settings": dict(settings)}, self.say) for kind, settings in self.wanted.items()]

    def listen(self) -> None:
        """Say what they have complained of since; costs a few microseconds."""
        for mirror in self.mirrors:
            mirror.listen()

    def close(self, *, finished: bool, beat: Callable[[], None]) -> None:
        """End all of them; who was interrupted has no time to wait."""
        for mirror in self.mirrors:
            mirror.close(PATIENCE_S if finished else HASTE_S, beat)
