"""Which finished models there are below results/, and which tokenizer belongs to one. Without torch, so that mistakes show at once."""

from pathlib import Path

from nanochat.artifacts import OTHER_EXPERIMENT, build_command, read_json, read_manifest
from nanochat.config import PHASES, STAGE_OF_PHASE
from nanochat.errors import UserError

BUILT = ("base", "mid", "sft")  # phases that the workflow can build


def finished_phases(results: Path, run: str) -> list[str]:
    """Phases of a run whose weights are complete, in order."""
    folders = {phase: results / run / STAGE_OF_PHASE[phase] for phase in PHASES}
    return [phase for phase, folder in folders.items() if (folder / "manifest.json").is_file() and (folder / "model.safetensors").is_file()]


def finished_runs(results: Path) -> list[str]:
    """Runs that have a finished phase."""
    folders = sorted(folder.name for folder in results.iterdir() if folder.is_dir()) if results.is_dir() else []
    return [run for run in folders if finished_phases(results, run)]


def choose_run(results: Path, run: str | None) -> str:
    """The run asked for, or the only one."""
    runs = finished_runs(results)
    if run in runs:
        return str(run)
    if not runs:
        raise UserError(f"{results}: no trained model here; train one with: make run (or give its folder with --results)")
    if run is not None:
        cure = f"{build_command(f'results/{run}/base_train/model.safetensors')} ({OTHER_EXPERIMENT})"
        raise UserError(f"--run={run}: no trained model of this name; choose one of {', '.join(runs)}, or train it: {cure}")
    if len(runs) > 1:
        raise UserError(f"--run: several runs are trained; choose one of {', '.join(runs)}")
    return runs[0]


def choose_phase(results: Path, run: str, phase: str | None) -> str:
    """The phase asked for, or the last one that is finished."""
    phases = finished_phases(results, run)
    if phase is None:
        return phases[-1]
    if phase not in phases:
        command = build_command(f"results/{run}/{STAGE_OF_PHASE[phase]}/model.safetensors")
        cure = f"build it: {command} ({OTHER_EXPERIMENT})" if phase in BUILT else "the workflow does not build it"
        raise UserError(f"-i {phase}: run {run} has no such phase yet, only {', '.join(phases)}; {cure}")
    return phase


def model_manifest(results: Path, run: str, phase: str) -> Path:
    """Manifest of one phase of a run."""
    return results / run / STAGE_OF_PHASE[phase] / "manifest.json"


def tokenizer_of(results: Path, model: Path) -> Path:
    """Manifest of the tokenizer that a model was trained with, found by its sha256."""
    wanted = read_json(model.parent / "model.json")["tokenizer_sha256"]
    found = sorted(results.glob("tokenizers/*/manifest.json"))
    for path in found:
        if read_manifest(path)["outputs"].get("tokenizer.json", {}).get("sha256") == wanted:
            return path
    names = ", ".join(path.parent.name for path in found) or "none"
    cure = f"build it: {build_command('tokenizer')} ({OTHER_EXPERIMENT})"
    raise UserError(f"{results / 'tokenizers'}: the tokenizer of {model} is not there (found: {names}); {cure}")
