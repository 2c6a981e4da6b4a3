"""Every fetched file against its hash, and the repair of what is damaged: exactly that is removed, and the workflow fetches it again."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.artifacts import canonical_json, exclusive, lock_beside, read_json, sha256_file
from nanochat.data.parts import MANIFEST, strays
from nanochat.data.readers_local import local_files
from nanochat.data.sources import WHEELS
from nanochat.data.transfer import Transfer
from nanochat.errors import UserError
from nanochat.inventory.parts import (
    RESOURCES,
    WHEEL_FOLDER,
    Experiments,
    Part,
    Stated,
    in_use,
    is_whole,
    stated_files,
)
from nanochat.inventory.workflow import fetch, fetch_by_hand, require_checkout, require_nobody_works


@dataclass(frozen=True)
class Damage:
    """One file that is not as it should be. `part` is None for a wheel."""

    part: Part | None
    file: Path
    what: str
    is_stray: bool = False  # too much, where others are damaged

    @property
    def sentence(self) -> str:
        """One line."""
        return f"{self.file}: {self.what}"


def what_is_wrong(file: Path, stated: Stated, on_bytes: Callable[[int], object]) -> str | None:
    """Why a file is not the one that is stated; None: it is."""
    if not file.is_file():
        return "missing, though its manifest lists it"
    if (size := file.stat().st_size) != stated.bytes:
        return f"{size:,} bytes, {stated.bytes:,} were fetched"
    try:
        return None if sha256_file(file, on_bytes) == stated.sha256 else "its content has changed (sha256 differs)"
    except OSError as error:
        return f"cannot be read ({(error.strerror or 'no reason given').lower()})"


# --- looking ---------------------------------------------------------------------------------------------------------


def verify(parts: Sequence[Part], *, wheels: bool = True, root: Path = Path()) -> tuple[list[Damage], list[str]]:
    """What is damaged in these parts and, with `wheels`, in resources/wheels; and remarks about parts that were passed over."""
    damages, remarks, work = list[Damage](), list[str](), list[tuple[Part | None, Path, Stated]]()
    for part in parts:
        folder = root / part.name
        if who := in_use(folder):
            remarks.append(f"{part.name}: in use by {who}, not verified")
        elif not is_whole(part, root):
            remarks.append(f"{part.name}: its fetch has not ended; nanochat data fetch goes on with it")
        else:
            try:
                stated = stated_files(part, root)
            except UserError as error:
                damages.append(Damage(part, folder / MANIFEST, str(error).partition("; ")[0].partition(": ")[2]))
                continue
            work += [(part, folder / name, file) for name, file in stated.items()]
            damages += [Damage(part, stray, "not of this part, left by a fetch that was changed or killed", True) for stray in strays(folder, stated)]
    if wheels:
        here = [(root / RESOURCES / WHEEL_FOLDER / wheel.filename, wheel) for wheel in WHEELS.values()]
        work += [(None, file, Stated(wheel.size, wheel.sha256)) for file, wheel in here if file.is_file()]
    transfer = Transfer("verify")
    transfer.expect(sum(stated.bytes for _, _, stated in work), 0)
    with transfer.shown():
        damages += [Damage(part, file, what) for part, file, stated in work if (what := what_is_wrong(file, stated, transfer.add))]
    return sorted(damages, key=lambda damage: damage.file), remarks


# --- mending ---------------------------------------------------------------------------------------------------------


def repair(damages: Sequence[Damage], experiments: Experiments, root: Path = Path()) -> list[str]:
    """Remove what is damaged, fetch it again, and say what became of each part. Raises UserError where something stays damaged.

    Nothing is removed before it is known how it can be fetched again.
    """
    require_checkout(root)
    require_nobody_works("--repair", root)
    parts = sorted({damage.part for damage in damages if damage.part is not None})
    lost = sorted({damage.part for damage in damages if damage.part is not None and not damage.is_stray})
    plan = {part: experiment_for(part, experiments, root) for part in lost}
    sound = [part for part in lost if root / part.manifest not in [damage.file for damage in damages]]
    before = {part: (root / part.manifest).read_bytes() for part in sound}
    for part in parts:
        _remove(part, [damage.file for damage in damages if damage.part == part], anew=part in lost, root=root)
    said = [_remove_wheel(damage.file) for damage in damages if damage.part is None]
    said += [f"{part.name}: removed what was not of it" for part in parts if part not in lost]
    for file in dict.fromkeys(filter(None, plan.values())):
        fetch([part.manifest for part in lost if plan[part] == file], file, root)
    for part in lost:
        if plan[part] is None:
            fetch_by_hand(part.manifest, canonical_json(read_json(root / part.name / "config.json")), root)
    left, remarks = verify(parts, wheels=False, root=root)
    if left or remarks:
        raise UserError("\n".join([*(damage.sentence for damage in left), *remarks]))
    return [*said, *(_outcome(part, before.get(part), (root / part.manifest).read_bytes()) for part in lost)]


def experiment_for(part: Part, experiments: Experiments, root: Path) -> Path | None:
    """The experiment that fetches a part exactly as it was fetched; None: it was fetched by hand. Raises UserError where its source has gone."""
    made_with = root / part.name / "config.json"
    recorded = read_json(made_with) if made_with.is_file() else None
    found = next((file for file in experiments.of(part) if recorded in (None, experiments.fetch_config(part, file))), None)
    if recorded is None and found is None:
        raise UserError(f"{part.name}: what it was fetched with is not known (no config.json), so it stays as it is; give its experiment with --configfile")
    config = experiments.fetch_config(part, found) if found else recorded
    user = config.get("user") if isinstance(config, dict) else None
    if user and user["kind"] == "local":
        local_files(user["path"], part.source)  # raises UserError: what was made from them cannot be made again
    return found


def _remove(part: Part, files: Sequence[Path], *, anew: bool, root: Path) -> None:
    """Delete damaged files, and first the manifest, so that a fetch which is cut off here is seen to be unfinished."""
    with exclusive(root / part.name):
        if anew:
            (root / part.manifest).unlink(missing_ok=True)
        for file in files:
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)


def _remove_wheel(file: Path) -> str:
    with lock_beside(file):
        file.unlink(missing_ok=True)
    return f"{file}: removed; it is downloaded again when a source out of it is fetched"


def _outcome(part: Part, before: bytes | None, after: bytes) -> str:
    if before is None:
        return f"{part.name}: fetched again"
    same = "the same as before: nothing that was made from it is made again"
    return f"{part.name}: fetched again, {same if before == after else 'not the same as before: what was made from it will be made again'}"
