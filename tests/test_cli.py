"""The command line: verbs, exit codes, one sentence for bad input; and the process around it: signals, clock, devices."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import pytest
import warm
from workspace import REPOSITORY

from nanochat import cli, runtime
from nanochat.errors import Stopped, UserError


def exit_code(monkeypatch: pytest.MonkeyPatch, raised: BaseException | None) -> int | str | None:
    """Exit code of a verb whose main raises `raised`."""
    module = ModuleType("a_verb")

    def main(_arguments: list[str]) -> None:
        if raised is not None:
            raise raised

    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_verb", module)
    monkeypatch.setitem(cli.VERBS, "verb", ("a_verb", "for this test"))
    try:
        cli.main(["verb"])
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (None, 0),
        (UserError("depth=0: must be positive"), 2),
        (Stopped("stopped at step 3"), 75),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.bin"), 2),
        (PermissionError(errno.EROFS, os.strerror(errno.EROFS), "results/x.bin"), 2),
        (MemoryError(), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 2),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_end_has_its_exit_code(monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, code: int) -> None:
    assert exit_code(monkeypatch, raised) == code


def test_a_defect_is_not_disguised_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(monkeypatch, ZeroDivisionError())
    with pytest.raises(RuntimeError, match="shapes"):
        exit_code(monkeypatch, RuntimeError("shapes do not fit"))


def test_an_unknown_verb_is_one_sentence() -> None:
    done = subprocess.run([sys.executable, "-m", "nanochat", "pretrain"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nanochat: error: 'pretrain': no such verb; choose one of ")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_in_the_place_of_a_file_is_one_sentence(tmp_path) -> None:
    flags = ["--config", str(tmp_path), "--model", "m", "--tokenizer", "t", "--score", "s"]
    done = subprocess.run([sys.executable, "-m", "nanochat", "evaluate", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nanochat: error: {tmp_path}: is a directory; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    done = warm.run([sys.executable, "-m", "nanochat", verb, "--help"], timeout=60)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_becomes_a_stop_request(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        request = runtime.StopRequest.install()
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert request.reason == number.name
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_used_up_time_budget_becomes_a_stop_request() -> None:
    request = runtime.StopRequest(time.monotonic() + 0.05)
    assert not request
    time.sleep(0.06)
    assert request
    assert request.reason == "time limit"


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (("RANK", "4"), ("LOCAL_RANK", "4"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--ranks=8: this job sees 4 GPUs and each rank needs one; give --ranks 4"):
        runtime.Runtime.start(device="cuda")


def test_more_threads_than_cores_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: before)
    try:
        runtime.Runtime.start(device="cpu", threads=before)
        assert "cores" not in capsys.readouterr().err
        runtime.Runtime.start(device="cpu", threads=before + 1)
        assert f"threads={before + 1}: there are {before} CPU cores here" in capsys.readouterr().err
    finally:
        torch.set_num_threads(before)


def test_an_absent_device_is_refused_with_those_that_are_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device that should be absent")
    with pytest.raises(UserError, match=r"device=cuda: not available here; choose one of .*cpu"):
        runtime.Runtime.start(device="cuda")
    with pytest.raises(UserError, match="device=tpu"):
        runtime.Runtime.start(device="tpu")


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, runtime.OPENMP_SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_set_how(own: dict[str, str], expected: str) -> None:
    code = "import os, nanochat.runtime as r; r.let_threads_sleep(); print(os.environ.get('GOMP_SPINCOUNT'))"
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env={**free, **own}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


SPEAKERS = [
    "plan --configfile tests/tiny.yaml --json",
    "preflight --configfile tests/tiny.yaml --json",
    "status --json",
    "runs --json",
    "data list --json",
    "--help",
]


@pytest.mark.parametrize("verb", SPEAKERS)
def test_a_reader_that_leaves_ends_no_verb_with_a_traceback(verb: str) -> None:
    speaker = [sys.executable, "-m", "nanochat", *verb.split()]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = warm.run(speaker, modules=warm.SNAKEMAKE, stdout=closed, cwd=REPOSITORY, timeout=60)
    assert (done.returncode, done.stderr) == (cli.EXIT_NOBODY_READS, "")
