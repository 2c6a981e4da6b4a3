"""Watching a training: what is measured, mirrors that change no weight whatever happens to them, and the curves in the terminal."""

import json
import math
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mirrored import KINDS, logged, mirrored
from report_files import attempt, training
from status_files import beat
from test_training import CPU, FixedRows, make_model, make_plan, random_rows, trainer

from nanochat.artifacts import exclusive, write_json
from nanochat.errors import Stopped, UserError
from nanochat.runtime import StopRequest
from nanochat.stages.training import wanted_mirrors
from nanochat.status.look import Line
from nanochat.train import measure
from nanochat.train.counters import Validation
from nanochat.train.loop import Trainer
from nanochat.train.measure import MeasuredOptimizer
from nanochat.train.update import build_optimizer, make_update
from nanochat.watch import command
from nanochat.watch.draw import Look, frame
from nanochat.watch.logs import Log

STEPS = 6
DESCRIBED = {"name": "d2 base_train", "identity": "f", "config": {"depth": 2, "optimizer": {"matrix_lr": 0.02}}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(model: torch.nn.Module) -> bytes:
    """Every weight, as it lies in memory."""
    return b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())


def a_training(folder: Path, **settings) -> tuple[Trainer, torch.nn.Module]:
    """Six updates of a small model, validated after every second."""
    model = make_model(torch.float32)
    settings = {"validate": lambda: Validation(1.5, 3.0), "validate_every": 2, "log_every": 2, "described": DESCRIBED, **settings}
    return trainer(folder, make_plan(steps=STEPS), model, FixedRows(*random_rows()), **settings), model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nobody watches."""
    run, model = a_training(tmp_path_factory.mktemp("plain"), log_every=0)
    run.run()
    return weights(model)


# --- what is measured ------------------------------------------------------------------------------------------------


def test_norms_of_the_groups_are_those_of_gradients_updates_and_weights() -> None:
    model, plan = make_model(), make_plan(grad_clip=0.0)
    optimizer = build_optimizer(model, plan, CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    measured = MeasuredOptimizer(optimizer)
    update = make_update(model, measured, plan, FixedRows(*random_rows()), CPU, 0)
    norms = measured.norms()
    for group, pairs in model.parameter_groups().items():
        if not pairs:
            continue
        change = math.sqrt(sum(float((parameter.detach() - before[name]).square().sum()) for name, parameter in pairs))
        size = math.sqrt(sum(float(parameter.detach().square().sum()) for _, parameter in pairs))
        gradient = math.sqrt(sum(float(parameter.grad.square().sum()) for _, parameter in pairs))
        assert norms[f"update_norm/{group}"] == pytest.approx(change, rel=1e-5) and change > 0
        assert norms[f"weight_norm/{group}"] == pytest.approx(size, rel=1e-5)
        assert norms[f"grad_norm/{group}"] == pytest.approx(gradient, rel=1e-5)
        assert norms[f"update_ratio/{group}"] == pytest.approx(change / size, rel=1e-4)
    shares = [value for name, value in norms.items() if name.startswith("grad_norm/")]
    assert math.sqrt(sum(share**2 for share in shares)) == pytest.approx(update.grad_norm, rel=1e-5)


def test_norms_of_gradients_are_those_before_clipping() -> None:
    model, plan = make_model(), make_plan(grad_clip=1e-3)
    measured = MeasuredOptimizer(build_optimizer(model, plan, CPU))
    update = make_update(model, measured, plan, FixedRows(*random_rows()), CPU, 0)
    shares = [value for name, value in measured.norms().items() if name.startswith("grad_norm/")]
    assert update.grad_norm > 1e-2
    assert math.sqrt(sum(share**2 for share in shares)) == pytest.approx(update.grad_norm, rel=1e-5)


@pytest.mark.parametrize("shape", [(700, 768), (50_000, 9), (1_000_000,)])
def test_update_of_a_large_tensor_is_estimated_from_a_sample_of_all_its_columns(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter, change = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) * torch.linspace(0.1, 2.0, shape[-1])
    kept = measure._sample(parameter).clone()
    assert kept.numel() <= measure.SAMPLED
    parameter += change
    assert float(measure._update_norm([kept], [parameter])) == pytest.approx(float(change.norm()), rel=0.02)


def test_log_says_time_memory_and_norms_and_changes_no_weight(tmp_path: Path, plain: bytes) -> None:
    run, model = a_training(tmp_path, log_every=3)
    run.run()
    assert weights(model) == plain
    lines = [line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert all(0 <= line["data_share"] < 1 and 0 < line["step_s"] < 60 for line in lines)
    assert sum(line["step_s"] for line in lines) == pytest.approx(lines[-1]["elapsed_s"], abs=1e-3)
    assert [line["step"] for line in lines if "update_ratio/matrix" in line] == [1, 3, 6]
    assert all(line["peak_rss_bytes"] > 50e6 for line in lines if "update_ratio/matrix" in line)


# --- mirrors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_mirror_holds_what_metrics_jsonl_holds_and_changes_no_weight(tmp_path: Path, plain: bytes, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    run, model = a_training(tmp_path, mirrors={kind: {}})
    run.run()
    assert weights(model) == plain
    assert f"{kind}:" not in capfd.readouterr().err
    copy, truth = mirrored(kind, tmp_path), logged(tmp_path)
    assert copy.keys() == truth.keys() and (6, "val_bpb") in truth and (6, "update_ratio/matrix") in truth
    assert all(value == pytest.approx(truth[place], rel=1e-6) for place, value in copy.items())


def complaint(kind: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What was said of the mirror: one line."""
    (said,) = [line for line in capfd.readouterr().err.splitlines() if f" {kind}: " in line]
    assert said.endswith("training goes on without it, metrics.jsonl has everything")
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_mirror_whose_folder_cannot_be_made_is_said_once_and_changes_no_weight(
    tmp_path: Path, plain: bytes, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / kind).write_text("a file")
    run, model = a_training(tmp_path, mirrors={kind: {}})
    assert (run.run().step, weights(model)) == (STEPS, plain)
    assert "given up" in complaint(kind, capfd)


@pytest.mark.parametrize("kind", KINDS)
def test_mirror_that_has_no_room_is_said_once_and_changes_no_weight(tmp_path: Path, plain: bytes, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """From the second update on the operating system refuses every byte beyond the 64th of any file, at the library's first call or a later one."""

    def leave_no_room() -> Validation:
        (mirror,) = run.metrics.mirrors.mirrors
        if mirror.process is not None:
            resource.prlimit(mirror.process.pid, resource.RLIMIT_FSIZE, (64, 64))
        return Validation(1.5, 3.0)

    run, model = a_training(tmp_path, mirrors={kind: {}}, validate=leave_no_room)
    assert (run.run().step, weights(model)) == (STEPS, plain)
    said = complaint(kind, capfd)
    assert "given up" in said or "its process ended with" in said or "not done" in said


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_mirror_that_is_not_installed_is_said_once_and_changes_no_weight(tmp_path: Path, plain: bytes, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    if find_spec(kind) is not None:
        pytest.skip(f"{kind} is installed here")
    run, model = a_training(tmp_path, mirrors={kind: {}})
    run.run()
    assert weights(model) == plain
    assert f"not installed, so nothing is copied there; pip install 'nanochat[{kind}]'; training goes on" in complaint(kind, capfd)


@pytest.mark.parametrize("kind", KINDS[:1])
def test_mirror_is_written_while_training_goes_on_and_may_be_killed(tmp_path: Path, plain: bytes, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    def wait_and_kill() -> Validation:
        (mirror,) = run.metrics.mirrors.mirrors
        deadline = time.monotonic() + 60
        while mirror.process is not None and not any(b"grad_norm/matrix" in file.read_bytes() for file in (tmp_path / kind).glob("events*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if mirror.process is not None:
            os.kill(mirror.process.pid, signal.SIGKILL)
            mirror.process.wait()
        return Validation(1.5, 3.0)

    run, model = a_training(tmp_path, mirrors={kind: {}}, validate=wait_and_kill)
    run.run()
    assert weights(model) == plain
    assert "its process ended with signal 9; training goes on without it" in complaint(kind, capfd)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_is_nowhere_logged_twice(tmp_path: Path, plain: bytes, kind: str) -> None:
    """The second attempt goes back further than the first had logged."""
    stop = StopRequest()

    def stop_later() -> Validation:
        stop.reason = "SIGTERM" if run.counters.step == 4 else None
        return Validation(9.0, 9.0)

    run, _ = a_training(tmp_path, mirrors={kind: {}}, validate=stop_later, stop=stop, save_every_s=1e-9)
    with pytest.raises(Stopped):
        run.run()
    first = mirrored(kind, tmp_path) if kind != "wandb" else {}  # haste may have cut it off
    newest = max((tmp_path / "resume").glob("*.json"), key=lambda path: json.loads(path.read_text())["counters"]["step"])
    assert json.loads(newest.read_text())["counters"]["step"] == 4
    newest.unlink()
    again, model = a_training(tmp_path, mirrors={kind: {}})
    again.run()
    assert weights(model) == plain
    copy = mirrored(kind, tmp_path)
    assert copy.keys() == logged(tmp_path).keys()
    assert [copy[step, "val_bpb"] for step in (2, 4, 6)] == [9.0, 1.5, 1.5]
    assert not first or first[4, "val_bpb"] == 9.0


def test_keys_of_the_experiment_ask_for_mirrors() -> None:
    assert wanted_mirrors({"tensorboard": False, "wandb": None, "trackio": None}) == {}
    section = {"tensorboard": True, "wandb": {"project": "p", "entity": None, "tags": []}, "trackio": {"project": "q"}}
    assert wanted_mirrors(section) == {"tensorboard": {}, "wandb": section["wandb"], "trackio": {"project": "q"}}


# --- the terminal ----------------------------------------------------------------------------------------------------


def results(root: Path, runs: tuple[str, ...] = ("d2", "d4"), *, updates: int = 60) -> Path:
    """Finished base trainings whose losses are step + 1 over 2 and 4, with a validation at the end."""
    for run in runs:
        folder = training(root, run, "base", {}).parent
        depth = int(run[1:])
        log_lines(
            folder, [{"step": step, "loss": (step + 1) / depth, "tokens": step * 1000, "elapsed_s": step * 60.0} for step in range(1, updates + 1)], new=True
        )
        log_lines(folder, [{"step": updates, "val_bpb": 1.25, "val_loss": 3.0}])
    return root / "results"


def log_lines(folder: Path, rows: list[dict[str, float]], *, new: bool = False) -> None:
    with (folder / "metrics.jsonl").open("w" if new else "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_watch_draws_curves_and_says_numbers_plainly_into_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["d2", "d4", "--results", str(results(tmp_path)), "--axis", "hours"])
    said = capsys.readouterr().out
    assert "\x1b" not in said and "(hours of training)" in said and "(loss)" in said
    drawn = said[: said.index("state")]
    assert drawn.count("a") > 30 and drawn.count("b") > 15  # one sign for each run, no colours
    rows = {line.split()[1]: line.split() for line in said.splitlines() if line[:2] in ("a ", "b ")}
    assert rows["d2"][2] == "finished" and "30.5000" in rows["d2"] and "15.2500" in rows["d4"] and "1.2500" in rows["d4"]


def test_curve_ends_where_the_log_ends(tmp_path: Path) -> None:
    """The loss falls from 10 to 1: the first column of dots is high, the last is low."""
    log = Log("d2", tmp_path)
    log_lines(tmp_path, [{"step": step, "loss": 10.0 - step} for step in range(10)])
    log.read()
    lines = frame([log], [None], ["loss"], "step", Look(80, 24, colours=False, unicode=True)).splitlines()
    curve = [line.partition("|")[2] for line in lines[1 : next(n for n, line in enumerate(lines) if line.startswith("---"))]]
    drawn = [(row, column) for row, line in enumerate(curve) for column, sign in enumerate(line) if "\u2801" <= sign <= "\u28ff"]
    assert min(drawn)[1] < 5 and max(drawn)[1] > 40 and max(drawn)[0] > min(drawn)[0] + 8


def test_log_is_read_as_it_grows_and_anew_when_it_was_taken_back(tmp_path: Path) -> None:
    log = Log("d2", tmp_path)
    log.read()
    assert log.rows == []
    log_lines(tmp_path, [{"step": 1, "loss": 3.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    log.read()
    assert [row["step"] for row in log.rows] == [1]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 2.0}\n')
    log.read()
    assert log.last("loss") == 2.0 and len(log.rows) == 2
    other = tmp_path / "other"
    other.write_text('{"step": 1, "loss": 3.5}\n')
    other.replace(tmp_path / "metrics.jsonl")
    log.read()
    assert [row["loss"] for row in log.rows] == [3.5]


def test_watch_follows_a_run_until_it_ends(tmp_path: Path) -> None:
    folder = results(tmp_path, ("d2",)) / "d2/base_train"
    (folder / "manifest.json").rename(folder / "later.json")
    now = time.time()
    write_json(folder / "provenance.json", {"stage": "base_train", "attempts": [attempt("running", start=now - 60, heartbeat=now)]})
    beat(folder, 2.0, step=60, steps=120, eta_s=500.0)
    flags = command._flags(["d2", "--results", str(folder.parents[1]), "--every", "0.01", "--metric", "loss", "--metric", "val_bpb"])
    frames = command._frames(flags, [Log("d2", folder)], "base_train", command._no_terminal)
    with exclusive(folder):
        first = next(frames)
        log_lines(folder, [{"step": 61, "loss": 99.0, "tokens": 61_000, "elapsed_s": 3660.0, "utilisation": 0.321}])
        second = next(frames)
    assert "running" in first and "60 of 120 (50.0%)" in first and "8m18s" in first and "30.5000" in first and "(val_bpb)" in first
    assert "99.0000" in second and "32.1%" in second and "running" in second
    (folder / "later.json").rename(folder / "manifest.json")
    assert "finished" in next(frames)
    assert next(frames, None) is None


def test_watch_of_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    folder = str(results(tmp_path))
    for arguments, words in {
        ("d9",): "'d9': no run of this name in .*; there is d2, d4",
        ("d2", "--metric", "lss"): "--metric=lss: not logged by d2; there is loss, tokens",
        ("d2", "--axis", "furlongs"): "--axis: invalid choice",
    }.items():
        with pytest.raises(UserError, match=words):
            command.main([*arguments, "--results", folder])
    with pytest.raises(UserError, match="no run has trained there"):
        command.main(["--results", str(tmp_path / "nowhere")])


def test_stage_that_has_logged_nothing_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["d2", "--stage", "chat_sft", "--results", str(results(tmp_path))])
    assert "loss: nothing is logged yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "headings"), [(100, "run state step loss bpb tokens/s ETA progress"), (64, "run state loss bpb tokens/s ETA"), (40, "run state loss bpb")]
)
def test_narrow_terminal_leaves_columns_out_and_never_the_loss(tmp_path: Path, width: int, headings: str) -> None:
    log = Log("d2", tmp_path)
    log_lines(tmp_path, [{"step": 1, "loss": 3.25}, {"step": 2, "loss": 3.0, "val_bpb": 1.5}])
    log.read()
    line = Line("d2", "base_train", "running", "heartbeat", phase="save", step=2, steps=4000, eta_s=90.0, tokens_per_s=1234.0, age_s=3.0)
    drawn = frame([log], [line], ["loss"], "step", Look(width, 24, colours=False, unicode=True)).splitlines()
    assert max(map(len, drawn)) <= width
    assert drawn[-2].split() == headings.split()
    assert "3.0000" in drawn[-1] and "1.5000" in drawn[-1]


def test_screen_that_knows_ascii_alone_gets_letters(tmp_path: Path) -> None:
    log = Log("d2", results(tmp_path) / "d2/base_train")
    log.read()
    drawn = frame([log], [None], ["loss"], "tokens", Look(100, 30, colours=False, unicode=False))
    assert drawn.isascii() and drawn.count("a") > 30


@pytest.mark.slow
def test_watch_draws_on_a_terminal_and_starts_without_torch(tmp_path: Path) -> None:
    """As a user calls it: the picture, then the end, since nothing trains."""
    folder = results(tmp_path)
    screen, inside = pty.openpty()
    program = "import sys; from nanochat.cli import main\ntry: main(sys.argv[1:])\nfinally: sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", program, "watch", "--results", str(folder)], stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    shown = b""
    while True:
        try:
            piece = os.read(screen, 65_536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(screen)
    assert process.wait(timeout=60) == 0, shown
    assert b"\x1b[36m" in shown and b"\x1b[33m" in shown and "\u2501\u2501".encode() in shown
    assert any("\u2801" <= sign <= "\u28ff" for sign in shown.decode())
    assert b"d4" in shown and b"finished" in shown
