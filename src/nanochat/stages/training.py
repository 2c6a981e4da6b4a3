"""What the stages that train share: the identity of their work, the session (ranks, lock, story), validation, the ending."""

import contextlib
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nanochat import artifacts, kept, progress
from nanochat.config import OnBadStep
from nanochat.errors import Stopped, UserError
from nanochat.eval.bpb import TextLoss, text_loss_of
from nanochat.hardware import peak_flops
from nanochat.launch.flags import limits_of
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.model.weights import DESCRIPTION, WEIGHTS, save_weights
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.rl.objective import Policy
from nanochat.rl.rollouts import Rollouts
from nanochat.runtime import Runtime, StopRequest, log, process_age_s, slurm_job_id
from nanochat.stages.checkpoints import Checkpoints
from nanochat.stages.samples import Sampler
from nanochat.train.acceleration import accelerated, read_ahead
from nanochat.train.batches import ConversationBatches, TextBatches
from nanochat.train.counters import Counters, Scores, Validation
from nanochat.train.host_memory import available_bytes
from nanochat.train.loop import Settings, Trainer
from nanochat.train.memory import Setting, most_rows, training_memory
from nanochat.train.metrics import Heartbeat
from nanochat.train.resume import FOLDER
from nanochat.train.scaling import TrainingPlan
from nanochat.train.state import gathered, named_parameters, own_state
from nanochat.train.tensorfile import write_tensors
from nanochat.train.update import Rows, to_device

OPTIMIZER = "optimizer.safetensors"
WORTH_SAYING_GB = 1.0
VALIDATION_TOKENS = 16_384  # of one forward pass on a GPU; a CPU takes a quarter of it


@dataclass(frozen=True)
class Work:
    """Identity of what a stage is about to do: its resolved config and its inputs decide the bytes of its outputs."""

    stage: str
    weights: Path
    manifest: Path
    subtree: dict[str, Any]  # as received
    config: dict[str, Any]  # resolved, without housekeeping
    inputs: dict[str, Path]  # name -> manifest

    def __post_init__(self) -> None:
        if self.weights.parent != self.manifest.parent or self.weights.name != WEIGHTS or self.manifest.name != "manifest.json":
            raise UserError(f"--weights={self.weights} --manifest={self.manifest}: give {WEIGHTS} and manifest.json of one folder")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.manifest.parent

    @property
    def identity(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"stage": self.stage, "config": self.config, "inputs": self.inputs}

    @cached_property
    def input_hashes(self) -> dict[str, str]:
        """sha256 of every input manifest."""
        return {name: artifacts.sha256_file(path) for name, path in self.inputs.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Stamp of the resume state. Without on_bad_step, which decides nothing until a bad step is met: resume.py looks at it."""
        config = {key: value for key, value in self.config.items() if key != "on_bad_step"}
        return artifacts.fingerprint({"stage": self.stage, "config": config}, self.input_hashes)

    def is_finished(self) -> bool:
        """Whether this very work is finished already, all files in place or taken back from where they were kept; says so."""
        if self._is_complete():
            said = f"{self.manifest} is complete for this config and these inputs, nothing to do; delete {self.folder} to train again"
        elif (problem := kept.take_back(self.manifest, stage=self.stage, config=self.config, inputs=self.input_hashes)) is None:
            said = f"finished before for this config and these inputs, taken back from {self.folder / kept.FOLDER}; delete {self.folder} to train again"
        else:
            if problem:
                log(f"{problem}; training again")
            return False
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)  # left behind if the stage was killed in its last moment
        log(f"{self.stage}: {said}")
        return True

    def _is_complete(self) -> bool:
        if not self.manifest.is_file():
            return False
        try:
            manifest = artifacts.read_manifest(self.manifest, stage=self.stage)
            artifacts.read_manifest(self.manifest, files=manifest["outputs"])  # the optional ones too
        except UserError as problem:
            log(f"{problem}; training again")
            return False
        return bool(manifest["config"] == self.config and manifest["inputs"] == self.input_hashes)


@dataclass
class Session:
    """A stage that is running on this rank."""

    work: Work
    runtime: Runtime
    stop: StopRequest
    story: artifacts.Provenance | None  # rank 0
    started: float
    compile: str = "off"  # auto, on or off


@contextlib.contextmanager
def session(work: Work, flags: Namespace, *, seed: int) -> Iterator[Session]:
    """Join the other ranks, lock the folder, open the story of this attempt, and close all of it whatever happens."""
    started = time.monotonic()
    progress.watch_alone(limits_of(flags))
    progress.enter("join")
    stop = StopRequest.install(flags.max_seconds)
    share = max(1, (os.cpu_count() or 1) // flags.ranks) if flags.ranks > 1 else None  # torch would give every rank all cores
    runtime = Runtime.start(seed=seed, device=flags.device, threads=flags.threads or share)
    with contextlib.ExitStack() as closing:
        closing.callback(runtime.stop)
        progress.enter("data")
        story = None
        if runtime.is_main:
            closing.enter_context(artifacts.exclusive(work.folder, slurm_job_id()))
            work.manifest.unlink(missing_ok=True)  # of other work: it must not stand beside new weights
            kept.discard(work.manifest)
            artifacts.write_json(work.folder / "config.json", work.subtree)
            story = artifacts.Provenance(work.folder, work.stage, job=slurm_job_id(), **runtime.facts)
        state = "failed"
        try:
            yield Session(work, runtime, stop, story, started, flags.compile)
            state = "finished"
        except Stopped:
            state = "stopped"
            raise
        finally:
            if story is not None and story.attempt["state"] == "running":
                with contextlib.suppress(OSError):  # a full disk is reported by what met it first
                    story.finish(state, **spent(runtime, started))


def spent(runtime: Runtime, started: float) -> dict[str, Any]:
    """GPU-hours of this attempt; nothing without a GPU."""
    return {"gpu_hours": (time.monotonic() - started) / 3600 * runtime.world_size} if runtime.device.type == "cuda" else {}


def stop_now(stop: StopRequest) -> None:
    """Raise Stopped if the process was asked to end while there is nothing to save yet; a used up budget waits for the first update."""
    if stop.by_signal:
        raise Stopped(f"stopped ({stop.reason}) before training went on; run the same command again")


def verify_files(current: Session, manifests: Sequence[Path], name: str) -> None:
    """Compare file `name` beside each manifest with its sha256 before anything is learnt from it: flipped bytes would not show in the loss.

    Rank 0 reads, with the threads of all ranks: 0.4 GB/s each on the slowest machine met. The others watch the file system, since tens of
    gigabytes may take longer than a collective may wait.
    """
    runtime, stop, done = current.runtime, current.stop, current.work.folder / FOLDER / f"{name}.verified"

    def going_on(count: int = 0) -> None:
        stop_now(stop)
        progress.beat()

    if runtime.is_main:
        done.unlink(missing_ok=True)
    runtime.barrier()
    if runtime.is_main:
        started, size = time.monotonic(), sum((path.parent / name).stat().st_size for path in manifests) / 1e9
        workers = min(len(manifests), runtime.facts["threads"] * runtime.world_size)
        Heartbeat(current.work.folder).beat("verify")
        if size > WORTH_SAYING_GB:
            log(f"{current.work.stage}: comparing {size:.1f} GB of {name} in {len(manifests)} files with their sha256, {workers} at a time")
        with ThreadPoolExecutor(workers) as pool:  # hashing releases Python's lock
            for _ in pool.map(lambda path: artifacts.verified_file(path, name, going_on), manifests):
                pass
        if size > WORTH_SAYING_GB:
            log(f"{current.work.stage}: all as their manifests say, {time.monotonic() - started:.1f} s")
        artifacts.write_text(done, "")
    while not done.is_file():
        stop_now(stop)
        time.sleep(0.2)


# --- model -----------------------------------------------------------------------------------------------------------


def rows_that_fit(config: ModelConfig, runtime: Runtime, section: Mapping[str, Any]) -> int:
    """The most rows at a time, by the memory of the GPU or by what is available here; the same on all ranks."""
    memory = runtime.facts.get("device_memory_bytes")
    if runtime.device.type == "cpu":
        memory = available_bytes() // runtime.ranks_per_node
    setting = Setting.of(runtime.device.type, recompute=section["recompute"], shards=runtime.world_size)  # type: ignore[arg-type]
    if memory is not None and (needed := training_memory(config, 1, setting).total) > memory:
        cure = "take a smaller model" if section["recompute"] == "blocks" else "take recompute: blocks or a smaller model"
        log(f"about {needed / 1e9:.1f} GB of memory are needed with one row at a time and {memory / 1e9:.1f} GB are free, so this will hardly work; {cure}")
    return -runtime.highest(-most_rows(config, memory, setting))[0]


# --- validation ------------------------------------------------------------------------------------------------------


def validation_hook(
    model: GPT, runtime: Runtime, pairs: Callable[[Sequence[int]], tuple[Rows, Rows]], rows: int, token_bytes: Any
) -> Callable[[], Validation | None]:
    """Score rows 0..rows-1 of `pairs`, shared among the ranks; None if there is no text among their targets."""
    sizes = torch.from_numpy(token_bytes).to(runtime.device).long()
    most = VALIDATION_TOKENS // (1 if runtime.device.type == "cuda" else 4)
    batch_rows = max(1, most // model.config.sequence_len)

    def validate() -> Validation | None:
        total = TextLoss()
        mine = range(runtime.rank, rows, runtime.world_size)
        for start in progress.each(range(0, len(mine), batch_rows)):
            ids, targets = (to_device(part, runtime) for part in pairs(mine[start : start + batch_rows]))
            total += text_loss_of(model, ids, targets, sizes)
        sums = torch.tensor([total.nats, total.text_bytes, total.tokens], dtype=torch.float64, device="cuda" if runtime.device.type == "cuda" else "cpu")
        nats, text_bytes, tokens = runtime.all_reduce(sums).tolist()
        whole = TextLoss(nats, int(text_bytes), int(tokens))
        return None if whole.bpb is None else Validation(bpb=whole.bpb, loss=nats / tokens)

    return validate


# --- training and its end --------------------------------------------------------------------------------------------


def train(
    current: Session,
    model: GPT,
    optimizer: MuonAdamW,
    plan: TrainingPlan,
    batches: TextBatches | ConversationBatches | Rollouts,
    section: Mapping[str, Any],
    *,
    description: Mapping[str, Any],
    validate: Callable[[], Validation | Scores | None],
    sampler: Sampler,
    policy: Policy | None = None,
) -> Counters:
    """Run the loop with the stage's settings. `description`: what the model.json of a model that is kept on the way says besides.

    `policy`: what learns in place of the model, from rows that are drawn from the model as it is at each step.
    """
    work, runtime = current.work, current.runtime
    counts = model.config.parameter_counts()
    if runtime.is_main:
        log(
            f"{work.stage}: {counts['total']:,} parameters, {plan.steps} steps of {plan.batch_tokens:,} tokens = {plan.tokens:,} tokens, "
            f"{plan.accumulation} x {plan.micro_batch_rows} rows x {plan.ranks} ranks on {runtime.facts.get('device_name', runtime.device.type)}; "
            f"started up in {process_age_s():.1f} s"
        )
    checkpoints = Checkpoints(work.folder, section["keep"], model, work.identity, description) if runtime.is_main else None
    learner = accelerated(model, runtime, section, compile_=current.compile)
    trainer = Trainer(
        *(policy or learner, optimizer, plan, batches if policy else read_ahead(batches, runtime, plan.steps), runtime),
        folder=work.folder,
        fingerprint=work.fingerprint,
        work={"stage": work.stage, "config": work.config, "inputs": work.input_hashes},
        settings=settings_of(current, model, section),
        stop=current.stop,
        validate=validate,
        sample=sampler.show,
        on_save=current.story.beat if current.story is not None else lambda: None,
        row_ids=None if isinstance(batches, Rollouts) else batches.row_ids,
        facts=(lambda: batches.facts) if isinstance(batches, Rollouts) else dict,
        keep=checkpoints.look if checkpoints is not None else lambda counters: None,
    )
    try:
        return trainer.run()
    finally:
        if checkpoints is not None:
            checkpoints.close()


def settings_of(current: Session, model: GPT, section: Mapping[str, Any]) -> Settings:
    """What the loop is told by the stage's config."""
    work, runtime = current.work, current.runtime
    return Settings(
        name=work.stage,
        validate_every=section["validate_every"],
        validate_first=work.stage == "chat_rl",
        sample_every=section["sample_every"],
        save_every_s=section["save_every_s"],
        flops_per_token=model.config.flops_per_token(),
        on_bad_step=OnBadStep(**section["on_bad_step"]),
        peak_flops=None if (peak := peak_flops(runtime.facts.get("device_name"))) is None else peak * runtime.world_size,
        log_every=section["log_every"],
        mirrors=wanted_mirrors(section),
        described={"name": f"{work.folder.absolute().parent.name} {work.stage}", "identity": work.fingerprint, "config": work.config},
    )


def wanted_mirrors(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Kind -> settings of the mirrors that a stage's section asks for."""
    asked = {"tensorboard": {} if section["tensorboard"] else None, "wandb": section["wandb"], "trackio": section["trackio"]}
    return {kind: dict(settings) for kind, settings in asked.items() if settings is not None}


def finish(
    current: Session,
    model: GPT,
    plan: TrainingPlan,
    counters: Counters,
    *,
    description: Mapping[str, Any],
    counts: Mapping[str, Any],
    sampler: Sampler,
    optimizer: MuonAdamW | None,
) -> None:
    """Write the outputs, the manifest last; then the resume state is no longer needed. `optimizer`: kept for a warm start, or not."""
    state = gathered(own_state(model, optimizer), named_parameters(model), current.runtime) if optimizer is not None else {}
    if current.story is None:
        return
    work, folder = current.work, current.work.folder
    outputs = [WEIGHTS, DESCRIPTION, *([OPTIMIZER] if state else [])]
    save_weights(model, work.weights)
    artifacts.write_json(folder / DESCRIPTION, {"architecture": model.config.to_dict(), "step": counters.step, **description})
    if state:
        write_tensors(folder / OPTIMIZER, state)
    else:
        (folder / OPTIMIZER).unlink(missing_ok=True)
    artifacts.write_json(folder / "samples.json", sampler.show(log))
    sizes = model.config.parameter_counts()
    results = {
        "parameters": sizes["total"],
        "scaling_parameters": sizes["scaling"],
        "flops_per_token": model.config.flops_per_token(),
        "steps": counters.step,
        "batch_tokens": plan.batch_tokens,
        "tokens": plan.tokens,
        "flops": plan.tokens * model.config.flops_per_token(),
        "counted_tokens": counters.counted_tokens,
        "skipped_steps": counters.skipped_steps,
        "first_loss": counters.first_loss,
        "final_loss": counters.final_loss,
        "final_val_bpb": counters.val_bpb,
        "final_val_loss": counters.val_loss,
        **counts,
        **counters.bad_steps,
    }
    artifacts.write_manifest(work.manifest, **work.identity, outputs=outputs, optional=[OPTIMIZER], counts=results)
    speed = plan.batch_tokens * counters.step / counters.elapsed_s if counters.elapsed_s else 0.0
    current.story.finish(steps=counters.step, tokens=plan.tokens, training_s=counters.elapsed_s, tokens_per_s=speed, **spent(current.runtime, current.started))
    if problem := kept.keep(work.manifest):
        log(f"{work.stage}: {problem}")
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    Heartbeat(folder).beat("done", step=counters.step, steps=plan.steps)
    log(f"{work.stage}: finished, {work.manifest}")
