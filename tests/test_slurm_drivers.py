"""What happens to the snakemake that people type, on a real SLURM: its terminal closes, it is killed, its disk is full, somebody else types it too.

Each ends with the bytes of an undisturbed training, or with one sentence that says what to do. They run side by side; each test then
looks at one of them.
"""

import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import Cluster, Driver
from trainings import freeze, history, prepare, states, thaw, train, wait_for_saved_state, weights
from workspace import Workspace

from nanochat.artifacts import exclusive

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]

DISK_MB = 400
GROUP, SECOND = "nanochat-tests", "nanochat-second"
WAITS = "waiting for it to end"
LOCKED = "Directory cannot be locked"


def errors(driver: Driver) -> list[str]:
    """Our sentences among what it said."""
    return re.findall(r"^nanochat: error: (.*)$", driver.said(), flags=re.MULTILINE)


# --- two users ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A second user of this machine, in a group with the first; their home."""
    created = []
    for command, name, known in (("groupadd", GROUP, grp.getgrnam), ("useradd", SECOND, pwd.getpwnam)):
        try:
            known(name)
        except KeyError:
            options = ["--no-create-home", "--gid", GROUP] if command == "useradd" else []
            done = subprocess.run([command, *options, name], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{command}: {done.stderr.strip()}")
            created.append((command.replace("add", "del"), name))
    home = tmp_path_factory.mktemp("home")
    shutil.chown(home, SECOND, GROUP)
    yield home
    for command, name in reversed(created):
        subprocess.run([command, name], capture_output=True)


def as_second_user(cluster: Cluster) -> tuple[str, ...]:
    """Words before a command that let the second user type it: in the cluster's network, with no right of root but to read.

    Where the tests' Python lies in a home that others cannot enter, it could not be started otherwise.
    """
    network = ("nsenter", f"--net={cluster.folder / 'run' / 'network'}") if cluster.has_own_network() else ()
    may_read = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search")
    user = ("setpriv", f"--reuid={SECOND}", f"--regid={GROUP}", "--init-groups", *may_read)
    return (*network, *user, "sh", "-c", 'umask 002; exec "$@"', "sh")


def share(workspace: Workspace) -> None:
    """Let the group write everything that is there, and all that will be."""
    group = grp.getgrnam(GROUP).gr_gid
    for folder, _, files in os.walk(workspace.folder):
        os.chown(folder, -1, group)
        Path(folder).chmod(0o2775)
        for name in files:
            if not (path := Path(folder, name)).is_symlink():
                os.chown(path, -1, group)
                path.chmod(path.stat().st_mode | 0o060)


# --- what is done -------------------------------------------------------------------------------------------------------


def hang_up(driver: Driver, home: Path) -> list[Driver]:
    """The terminal of the driver closes."""
    job = wait_for_saved_state(driver)
    freeze(job)
    driver.process.send_signal(signal.SIGHUP)
    driver.end()
    return [adopt(driver.again(), job)]


def kill(driver: Driver, home: Path) -> list[Driver]:
    """The driver is killed and cannot remove its lock."""
    job = wait_for_saved_state(driver)
    freeze(job)
    driver.process.kill()
    driver.end()
    refused, unlocked = driver.again(), None
    refused.end()
    unlocked = driver.again("--unlock")
    unlocked.wait()
    return [refused, unlocked, adopt(driver.again(), job)]


def adopt(driver: Driver, job: str) -> Driver:
    """Let a job that stands still go on once the driver waits for it, and wait for the driver."""
    try:
        driver.wait_until(lambda: WAITS in driver.said(), "it has seen the job that was left behind")
    finally:
        thaw(job)
    driver.wait()
    return driver


def two_users(driver: Driver, home: Path) -> list[Driver]:
    """The second user types the command beside the first one's, and again when that was killed."""
    job = wait_for_saved_state(driver)
    freeze(job)
    second = {"wrapped": as_second_user(driver.cluster), "HOME": str(home)}
    beside = driver.again(**second)
    beside.end()
    driver.process.kill()
    driver.end()
    unlocked = driver.again("--unlock", **second)
    unlocked.wait()
    return [beside, unlocked, adopt(driver.again(**second), job)]


def fill_the_disk(driver: Driver, home: Path) -> list[Driver]:
    """Somebody fills the file system while the job trains, and makes room again after the driver's end."""
    wait_for_saved_state(driver)
    filler, full = driver.workspace.folder.parent / "filler", True

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while full:
                try:
                    file.write(bytes(1 << 16))
                except OSError:
                    with contextlib.suppress(OSError):
                        file.write(bytes(1))
                    time.sleep(0.001)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        driver.end()
    finally:
        full = False
        thread.join()
        filler.unlink()
    again = driver.again()
    again.wait()
    return [again]


FATES: dict[str, Callable[[Driver, Path], list[Driver]]] = {"hang up": hang_up, "kill": kill, "two users": two_users, "full disk": fill_the_disk}
Fates = dict[str, "Future[tuple[Driver, list[Driver]]]"]


@pytest.fixture(scope="module")
def fates(
    cluster: Cluster, finished: Workspace, trainings: "dict[str, Future[Driver]]", second_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fates]:
    """One training for each fate, all at the same time: the first driver, and those that came after it.

    They begin when the job that is to be preempted has been: SLURM may take a younger one besides.
    """
    folder = tmp_path_factory.mktemp("fates")

    def suffer(name: str) -> tuple[Driver, list[Driver]]:
        trainings["preempt"].exception()
        workspace = prepare(finished, (disk if name == "full disk" else folder) / name.replace(" ", "_"))
        share(workspace)
        words = folder / f"{name} 1.txt"
        driver = train(cluster, workspace, output=words, wrapped=("sh", "-c", 'umask 002; exec "$@"', "sh"), slurm_extra="'--exclude=a100-01'")
        try:
            return driver, FATES[name](driver, second_home)
        finally:
            driver.process.kill()

    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk], check=True)
    try:
        with ThreadPoolExecutor(len(FATES)) as threads:
            yield {name: threads.submit(suffer, name) for name in FATES}
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


# --- what has come of it ------------------------------------------------------------------------------------------------


def test_a_closed_terminal_leaves_the_job_and_no_lock(fates: Fates, undisturbed: Workspace) -> None:
    first, (again,) = fates["hang up"].result()
    assert "nanochat: the terminal was closed: jobs in the queue go on; the same command waits for them and keeps what they make" in first.said()
    assert first.process.returncode == 128 + signal.SIGHUP
    assert LOCKED not in again.said() and again.jobs("base_train") == []
    assert states(again.workspace) == ["finished"]
    assert weights(again.workspace) == weights(undisturbed)


def test_a_driver_that_was_killed_leaves_a_lock_that_says_so(fates: Fates, undisturbed: Workspace) -> None:
    _, (refused, _, again) = fates["kill"].result()
    (sentence,) = errors(refused)
    assert re.match(
        r"a snakemake that was killed has left its lock on this folder: process \d+ on \S+ \(root, since .*\); type: snakemake --unlock, ", sentence
    )
    assert "Traceback" not in refused.said() and refused.process.returncode == 1
    assert again.jobs("base_train") == [] and states(again.workspace) == ["finished"]
    assert weights(again.workspace) == weights(undisturbed)


def test_a_second_user_is_told_who_works_in_the_folder(fates: Fates) -> None:
    first, (beside, _, _) = fates["two users"].result()
    (sentence,) = errors(beside)
    assert re.match(r"another snakemake works in this folder: process \d+ on \S+ \(root, since .*\); wait, or ask root to stop it, ", sentence), sentence
    assert f"process {first.process.pid} " in sentence
    assert "Traceback" not in beside.said() and beside.process.returncode == 1


def test_a_second_user_goes_on_where_the_driver_of_the_first_was_killed(fates: Fates, undisturbed: Workspace) -> None:
    first, (_, _, again) = fates["two users"].result()
    (job,) = first.jobs("base_train")
    assert f"job {job} of root (base_train tiny, RUNNING for " in again.said() and f"scancel {job}, by root)" in again.said()
    assert again.jobs("base_train") == [] and states(again.workspace) == ["finished"]
    assert weights(again.workspace) == weights(undisturbed)


def test_a_full_disk_is_said_once_and_what_was_saved_is_gone_on_from(fates: Fates, undisturbed: Workspace) -> None:
    first, (again,) = fates["full disk"].result()
    place = re.escape(str(first.workspace.folder))
    sentence = rf"{place}/\S+: the disk is full \(no space left on device\), no job is started again; free some space, then the same command again: "
    assert re.search(rf"^nanochat: error: {sentence}", first.said(), flags=re.MULTILINE), first.said()[-6000:]
    assert re.match(sentence, errors(first)[-1])
    assert len(first.jobs("base_train")) < 4, "profiles/slurm has 3 retries"
    assert "resumed at step" in history(again.workspace)
    assert weights(again.workspace) == weights(undisturbed)


def test_a_folder_that_a_second_user_cannot_write_is_refused_before_anything_starts(cluster: Cluster, workspace: Workspace, second_home: Path) -> None:
    for arguments in ((), ("--dry-run",)):
        driver = cluster.drive(workspace, "--configfile", "config.yaml", *arguments, wrapped=as_second_user(cluster), HOME=str(second_home))
        assert driver.end() == 2, driver.said()
    assert "Traceback" not in driver.said()
    cure = f"belongs to root, and {SECOND} cannot write it; ask root to type: chmod -R g+rwX {workspace.folder} "
    real, dry = errors(driver)
    assert real.startswith(f".: {cure}") and dry.startswith(f".snakemake/iocache: {cure}"), "a dry run keeps its notes alone"


def test_of_two_who_start_in_the_same_moment_one_goes_on(cluster: Cluster, finished: Workspace, tmp_path: Path) -> None:
    """Neither has seen snakemake's lock of the other; here the test holds ours."""
    workspace = prepare(finished, tmp_path / "workspace")
    with exclusive(workspace.path(".snakemake/driver")):
        driver = train(cluster, workspace)
        assert driver.end() == 2
    (sentence,) = errors(driver)
    assert sentence.startswith("another snakemake has just been started in this folder (") and f"process {os.getpid()} " in sentence
    assert driver.jobs("base_train") == [] and "Traceback" not in driver.said()
