"""kill -9 at random moments, again and again, over base_train, mid_train, chat_sft and chat_rl: whatever finishes in the end has the same bytes.

    make chaos                                   200 kills, a seed of its own
    python tests/chaos.py --kills 50 --seed 7    the same moments as far as the machine's speed allows

Moments are drawn in three ways: anywhere in a run, in its start-up, and while a file is being written (half of it on the disk, a slot deleted
and its successor not yet there). What finishes is compared with a run that was never interrupted and begins again in an empty folder. Trainings
find torch imported already (warm.py), so that a start costs what is the project's own.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import warm

STAGES = ("base_train", "mid_train", "chat_sft", "chat_rl")
COMPARED = ("model.safetensors", "model.json", "manifest.json", "optimizer.safetensors")
MANNERS = ("anywhere", "start-up", "write")
STARTUP_SHARE, MOST_SHARE = 0.3, 0.8  # of an undisturbed run of these sizes: what its start takes, about; and beyond this it would often have ended


def start(command: list[str], log: Path) -> warm.Popen:
    """One rank of a training, as torchrun would start it: the process that is killed is the one that writes. Its output is added to `log`."""
    alone = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    with log.open("ab") as said:
        full = [sys.executable, "-m", "nanochat", *command]
        return warm.Popen(full, env=alone, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)


def ends(process: warm.Popen, wait_s: float) -> bool:
    """Whether a training ends within so many seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)
    return process.poll() is not None


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


def undisturbed(command: list[str], out: Path) -> float:
    """Let a stage run to its end; in how many seconds."""
    started, log = time.monotonic(), out.with_suffix(".log")
    code = start(command, log).wait()
    assert code == 0, f"exit code {code}:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}"
    return time.monotonic() - started


def disturbed(command: list[str], out: Path, draws: random.Random, whole_s: float, manner: str) -> bool:
    """Start a stage and kill it at a random moment; whether it was faster and has finished."""
    process = start(command, out.with_suffix(".log"))
    delay = draws.uniform(0, whole_s * (STARTUP_SHARE if manner == "start-up" else MOST_SHARE))
    if not ends(process, delay):
        while manner == "write" and not is_writing(out) and process.poll() is None:
            time.sleep(0.0002)
        if manner == "write":
            ends(process, draws.uniform(0, 0.002))
        process.kill()  # nothing, if it has just ended
    code = process.wait()
    assert code in (0, -signal.SIGKILL), f"exit code {code}, see {out.with_suffix('.log')}"
    return code == 0


def torment(command: Callable[[Path], list[str]], whole: Path, folder: Path, *, kills: int, draws: random.Random, manners: tuple[str, ...] = MANNERS) -> Killed:
    """Kill a stage so many times, comparing what finishes with `whole`, and let the last one finish."""
    done, out, fresh = Killed(), folder / "0", True
    whole_s = undisturbed(command(out), out)
    while True:
        if (out / "manifest.json").exists():
            compare(out, whole)
            done.finished, done.resumed = done.finished + 1, done.resumed + out.with_suffix(".log").read_text(encoding="utf-8").count("resumed at step")
            if done.kills.total() == kills:
                return done
            out, fresh = folder / str(done.finished), True
        started, manner = time.monotonic(), draws.choice(manners)
        if done.kills.total() == kills:
            undisturbed(command(out), out)
        elif disturbed(command(out), out, draws, whole_s, manner):
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
        total = 0
        for place, (stage, (whole, command)) in enumerate(commands.items()):
            kills = (flags.kills - total) // (len(STAGES) - place)
            (folder / stage).mkdir()
            done = torment(command, whole, folder / stage, kills=kills, draws=random.Random(f"{seed} {stage}"))
            total += done.kills.total()
            print(f"{stage}: {done.kills.total()} kills {dict(done.kills)}, last heard in {dict(done.phases)}")
            print(f"{stage}: {done.finished} trainings finished, all with the same bytes; {done.resumed} resumes from a saved state", flush=True)
        print(f"{total} kills: bit-identical")


if __name__ == "__main__":
    main()
