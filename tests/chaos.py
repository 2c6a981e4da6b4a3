"""kill -9 at random moments, again and again, over base_train, mid_train, chat_sft and chat_rl: whatever finishes in the end has the same bytes.

    make chaos                                   200 kills, a seed of its own
    python tests/chaos.py --kills 50 --seed 7    the same moments as far as the machine's speed allows

Moments are drawn in three ways: anywhere in a run, in its start-up, and while a file is being written (half of it on the disk, a slot deleted
and its successor not yet there). What finishes is compared with a run that was never interrupted and begins again in an empty folder. Trainings
are forked from a server that has imported torch already, so that a start costs what is the project's own.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("base_train", "mid_train", "chat_sft", "chat_rl")
IMPORTED = ("torch", "pydantic", "safetensors", "filelock", "psutil", "tiktoken", "rustbpe", "pyarrow.parquet", "tqdm")
COMPARED = ("model.safetensors", "model.json", "manifest.json", "optimizer.safetensors")
MANNERS = ("anywhere", "start-up", "write")
STARTUP_SHARE, MOST_SHARE = 0.3, 0.8  # of an undisturbed run of these sizes: what its start takes, about; and beyond this it would often have ended


class Server:
    """Starts stages as processes of their own that find torch imported."""

    def __init__(self) -> None:
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a process of several threads cannot be forked
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], env=alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, command: list[str], log: Path) -> int:
        """Fork one stage, its output added to `log`; the number of its process."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, "log": str(log)}).encode() + b"\n")
        self.process.stdin.flush()
        return self._number()

    def ended(self, wait_s: float) -> bool:
        """Whether the stage ends within so many seconds."""
        return bool(select.select([self.process.stdout], [], [], wait_s)[0])

    def code(self) -> int:
        """Its exit code; minus the signal that killed it. Waits for its end."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(os.read(self.process.stdout.fileno(), 64))  # never buffered: `ended` asks the pipe itself

    def close(self) -> None:
        """End the server."""
        self.process.communicate()


def serve() -> None:
    """The server: a fork for each line, its number at once and its exit code when it has ended."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            become(request["command"], request["log"])
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


def become(command: list[str], log: str) -> None:
    """Be one rank of a training, as torchrun would start it: the process that is killed is the one that writes."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    sys.argv[:] = ["nanochat", *command]
    from nanochat.cli import main

    main(command)
    os._exit(0)


@dataclass
class Killed:
    """What has been done to a stage."""

    kills: Counter[str] = field(default_factory=Counter)  # by the manner in which the moment was drawn
    phases: Counter[str] = field(default_factory=Counter)  # by what the heartbeat said last
    finished: int = 0
    resumed: int = 0


def is_writing(out: Path) -> bool:
    """Whether a file is half written, or a state is being replaced."""
    resume = out / "resume"
    try:
        return any(name.suffix == ".partial" for folder in (out, resume) if folder.is_dir() for name in folder.iterdir())
    except FileNotFoundError:
        return False


def phase_of(out: Path) -> str:
    """What the trainer says it is doing."""
    try:
        return str(json.loads((out / "heartbeat.json").read_text(encoding="utf-8"))["phase"])
    except (FileNotFoundError, ValueError):
        return "start"


def undisturbed(server: Server, command: list[str], out: Path) -> float:
    """Let a stage run to its end; in how many seconds."""
    started, log = time.monotonic(), out.with_suffix(".log")
    server.start(command, log)
    code = server.code()
    assert code == 0, f"exit code {code}:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}"
    return time.monotonic() - started


def disturbed(server: Server, command: list[str], out: Path, draws: random.Random, whole_s: float, manner: str) -> bool:
    """Start a stage and kill it at a random moment; whether it was faster and has finished."""
    pid = server.start(command, out.with_suffix(".log"))
    delay = draws.uniform(0, whole_s * (STARTUP_SHARE if manner == "start-up" else MOST_SHARE))
    if not server.ended(delay):
        while manner == "write" and not is_writing(out) and not server.ended(0):
            time.sleep(0.0002)
        if manner == "write":
            server.ended(draws.uniform(0, 0.002))
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
    code = server.code()
    assert code in (0, -signal.SIGKILL), f"exit code {code}, see {out.with_suffix('.log')}"
    return code == 0


def torment(
    server: Server, command: Callable[[Path], list[str]], whole: Path, folder: Path, *, kills: int, draws: random.Random, manners: tuple[str, ...] = MANNERS
) -> Killed:
    """Kill a stage so many times, comparing what finishes with `whole`, and let the last one finish."""
    done, out, fresh = Killed(), folder / "0", True
    whole_s = undisturbed(server, command(out), out)
    while True:
        if (out / "manifest.json").exists():
            compare(out, whole)
            done.finished, done.resumed = done.finished + 1, done.resumed + out.with_suffix(".log").read_text(encoding="utf-8").count("resumed at step")
            if done.kills.total() == kills:
                return done
            out, fresh = folder / str(done.finished), True
        started, manner = time.monotonic(), draws.choice(manners)
        if done.kills.total() == kills:
            undisturbed(server, command(out), out)
        elif disturbed(server, command(out), out, draws, whole_s, manner):
            whole_s = min(whole_s, time.monotonic() - started) if fresh else whole_s  # other work on the machine only makes it longer
        else:
            done.kills[manner] += 1
            done.phases[phase_of(out)] += 1
            fresh = False


def compare(out: Path, whole: Path) -> None:
    """Fail unless two trainings have made the same."""
    found, expected = ({name: (folder / name).read_bytes() for name in COMPARED if (folder / name).exists()} for folder in (out, whole))
    assert found.keys() == expected.keys(), f"{out}: {sorted(found)} instead of {sorted(expected)}"
    assert not (wrong := [name for name in expected if found[name] != expected[name]]), f"{out}: {wrong} differ from those of {whole}"
    assert losses(out) == losses(whole), f"{out}: other losses were logged"


def losses(out: Path) -> list[float]:
    """Every logged loss."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    """Make the parents once, then kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all stages together (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: a new one, which is printed)")
    flags = parser.parse_args()
    seed = random.randrange(1 << 32) if flags.seed is None else flags.seed
    print(f"seed {seed}", flush=True)
    from training_lab import Lab, guesses, run

    with tempfile.TemporaryDirectory(prefix="nanochat-chaos-") as scratch:
        folder = Path(scratch)
        lab = Lab.make(folder / "lab")
        data, guesser = guesses(folder / "guesses"), folder / "guesser"
        base, mid, sft, rl = (folder / f"whole-{stage}" for stage in STAGES)
        commands: dict[str, tuple[Path, Callable[[Path], list[str]]]] = {
            "base_train": (base, lab.base),
            "mid_train": (mid, lambda out: lab.tune("mid_train", out, base / "manifest.json")),
            "chat_sft": (sft, lambda out: lab.tune("chat_sft", out, mid / "manifest.json")),
            "chat_rl": (rl, lambda out: lab.reinforce(out, guesser / "manifest.json", data)),
        }
        run(lab.base(base))
        run(lab.guesser(guesser, base / "manifest.json", data))
        for whole, command in commands.values():
            run(command(whole))
        server, total = Server(), 0
        for place, (stage, (whole, command)) in enumerate(commands.items()):
            kills = (flags.kills - total) // (len(STAGES) - place)
            (folder / stage).mkdir()
            done = torment(server, command, whole, folder / stage, kills=kills, draws=random.Random(f"{seed} {stage}"))
            total += done.kills.total()
            print(f"{stage}: {done.kills.total()} kills {dict(done.kills)}, last heard in {dict(done.phases)}")
            print(f"{stage}: {done.finished} trainings finished, all with the same bytes; {done.resumed} resumes from a saved state", flush=True)
        server.close()
        print(f"{total} kills: bit-identical")


if __name__ == "__main__":
    serve() if "--serve" in sys.argv[1:] else main()
