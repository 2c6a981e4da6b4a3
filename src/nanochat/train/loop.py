"""The training loop: updates until the plan is done, with validation, samples, log, resume state and a clean stop.

It knows nothing of stages or evaluation: those come in as hooks. Killed anywhere and started again it ends with the
same weights, since all that an update depends on is in the resume state or follows from the step number.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from nanochat import progress
from nanochat.config import OnBadStep
from nanochat.errors import Stopped, UserError
from nanochat.mirror.process import Mirrors
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.runtime import Runtime, StopRequest
from nanochat.train.badsteps import MOST_IN_A_ROW, RowIds, named_rows, rows_of, spike
from nanochat.train.counters import Counters, Scores, Validation
from nanochat.train.fitting import OutOfMemoryError, kept_rows, let_go, with_fewer_rows
from nanochat.train.measure import MeasuredOptimizer, TimedBatches, memory
from nanochat.train.metrics import Heartbeat, MetricsFile, Progress
from nanochat.train.resume import SLOTS, ResumeFolder
from nanochat.train.saving import Saver
from nanochat.train.scaling import TrainingPlan
from nanochat.train.state import own_state, own_weights, restore_model, restore_optimizer
from nanochat.train.tensorfile import TensorFiles
from nanochat.train.update import BadStepError, Batches, MicroLosses, Model, Update, make_update

COLLECT_EVERY = 5000  # updates; Python's collector is off in between, it cost pauses of 0.5 s


@dataclass(frozen=True)
class Settings:
    """When things happen besides updates. Counts are in updates; 0: only at the end."""

    name: str
    validate_every: int
    sample_every: int
    save_every_s: float
    flops_per_token: int
    peak_flops: float | None = None  # of all ranks together; None: not known
    validate_first: bool = False  # before the first update too
    on_bad_step: OnBadStep = field(default_factory=OnBadStep)
    log_every: int = 0  # norms of every group, and memory; 0: never
    mirrors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # kind -> its settings
    described: Mapping[str, Any] = field(default_factory=dict)  # what a mirror calls the run: name, identity, config


class Trainer:
    """One training run on this rank. Every rank builds one and saves its share of the state; rank 0 writes all else."""

    def __init__(
        self,
        model: Model,
        optimizer: MuonAdamW,
        plan: TrainingPlan,
        batches: Batches,
        runtime: Runtime,
        *,
        folder: Path,
        fingerprint: str,
        work: Mapping[str, Any] | None = None,
        settings: Settings,
        stop: StopRequest | None = None,
        validate: Callable[[], Validation | Scores | None] = lambda: None,
        sample: Callable[[Callable[[str], None]], object] = lambda say: None,
        on_save: Callable[[], None] = lambda: None,
        keep: Callable[[Counters], None] = lambda counters: None,
        row_ids: RowIds | None = None,
        facts: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """`validate` is called on every rank and returns the same on each; `sample`, with a way to print, and `keep` on rank 0; `row_ids` names rows;
        `facts` says more of the rows of the last update."""
        self.model, self.optimizer, self.plan, self.runtime = model, optimizer, plan, runtime
        self.batches = TimedBatches(batches)
        self.folder, self.settings, self.stop = folder, settings, stop if stop is not None else StopRequest()
        self.validate, self.sample, self.keep, self.row_ids, self.facts = validate, sample, keep, row_ids, facts
        self.counters = Counters()
        self.progress = Progress(settings.name, steps=plan.steps, batch_tokens=plan.batch_tokens, quiet=not runtime.is_main)
        self.resume = ResumeFolder(folder, fingerprint, self.progress.say, work)
        self.saver = Saver(self.resume, runtime, say=self.progress.say, on_saved=on_save)
        self.metrics: MetricsFile | None = None
        self.heartbeat = Heartbeat(folder) if runtime.is_main else None
        self.saved_at = time.monotonic()
        self.saved_step = -1
        self.spiked: str | None = None  # why the loss of this step is a spike

    def run(self) -> Counters:
        """Train to the end of the plan. Raises Stopped, with the state saved, when asked to stop; for want of time after one update at the soonest."""
        self._load()
        progress.enter("first step", batch_tokens=self.plan.batch_tokens)
        start, steps = self.counters.step, self.plan.steps
        self.progress.begin(start)
        if self.runtime.is_main:
            self.metrics = MetricsFile(self.folder, start, Mirrors(self.settings.mirrors, self.folder, self.settings.described, self.progress.say))
        self._beat("train")
        try:
            if start == 0 and self.settings.validate_first:
                self._validate()
                progress.enter("first step")
            while self.counters.step < steps:
                self._save_or_stop(self.stop.by_signal if self.counters.step == start else bool(self.stop))
                self._update()
                if self.counters.step == start + 1:
                    gc.collect()
                    gc.freeze()
                    gc.disable()
                elif self.counters.step % COLLECT_EVERY == 0:
                    gc.collect()
                self._between_updates()
            if self.counters.val_step != steps:
                self._validate()
            self._finish_saving()
        finally:
            self.saver.close()
            gc.enable()
            gc.unfreeze()
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close(finished=self.counters.step == steps, beat=progress.beat)
        self._beat("write")
        progress.enter("write")
        return self.counters

    # --- one update and what follows it ------------------------------------------------------------------------------

    def _update(self) -> None:
        started = time.monotonic()
        step = self.counters.step
        self.batches.seconds = 0.0
        measured = MeasuredOptimizer(self.optimizer) if self._is_measured(step + 1) else None
        try:
            update = self._update_that_fits(step, cast(MuonAdamW, measured or self.optimizer))
        except BadStepError as error:
            self._pass_over(error, time.monotonic() - started)
            return
        seconds = time.monotonic() - started
        self.counters.add(update, seconds)
        if update.counted:
            self.counters.recent = [*self.counters.recent, update.loss][-self.settings.on_bad_step.history :]
            self.counters.passed_over_in_a_row = 0
        progress.finished_update(self.counters.step, seconds)
        if update.counted:
            what = f"loss {update.loss:.4f}, lr x{update.lr_multiplier:.3f}, grad norm {update.grad_norm:.3f}"
        else:
            what = "skipped: no target to learn from"
        facts = self.facts()
        what = ", ".join([*(f"{name} {value:.4g}" for name, value in facts.items()), what])
        self.progress.update(self.counters.step, seconds, what)
        if self.metrics is not None and (update.counted or facts):
            measurements = {**measured.norms(), **memory(self.runtime.device)} if measured and update.counted else {}
            line = self._line(update, seconds) if update.counted else {"step": self.counters.step}
            self.metrics.write(**line, **facts, **measurements)
        if update.micro is not None and self.spiked:
            self.counters.add_bad("spike")
            self._tell_bad("spike", self.spiked, update.micro, self.counters.step, "ignored")
        self._beat("train")

    def _update_that_fits(self, step: int, optimizer: MuonAdamW) -> Update:
        """Update `step`, with fewer rows at a time from now on wherever memory runs out."""
        while True:
            with contextlib.suppress(OutOfMemoryError):
                return make_update(self.model, optimizer, self.plan, self.batches, self.runtime, step, refuse=self._refuse)
            self.optimizer.zero_grad()
            let_go(self.runtime)
            self.plan = with_fewer_rows(self.plan, step, self.progress.say)
            self.counters.fewer_rows = self.plan.micro_batch_rows
            progress.enter("first step")  # another size is compiled again, which takes as long

    def _refuse(self, loss: float) -> str | None:
        """Why a step with this loss shall not be made; remembers that it is a spike if it is made all the same."""
        self.spiked = spike(loss, self.counters.recent, self.settings.on_bad_step)
        return None if self.settings.on_bad_step.spike == "ignore" else self.spiked

    def _pass_over(self, error: BadStepError, seconds: float) -> None:
        """Do what the policy says about a step that no update was made for: stop, or go on to the next."""
        number, policy = self.counters.step + 1, self.settings.on_bad_step
        if (policy.spike if error.kind == "spike" else policy.non_finite) == "stop":
            rows = self._tell_bad(error.kind, str(error), error.micro, number, "stopped")
            cure = f"set on_bad_step.{error.kind}: skip to go on past these rows, or train from the beginning with lower learning rates"
            raise UserError(f"step {number}: {error}; nothing was updated and {self._kept()}; {cure}\nstep {number}: {rows}")
        self.counters.add_passed_over(error.kind, seconds)
        self._tell_bad(error.kind, str(error), error.micro, number, "skipped")
        progress.finished_update(number, seconds)
        self.progress.update(number, seconds, "skipped")
        if self.counters.passed_over_in_a_row == MOST_IN_A_ROW:
            cure = "this is no accident of one batch: train from the beginning with lower learning rates"
            raise UserError(f"step {number}: {error}; {MOST_IN_A_ROW} steps in a row were skipped and {self._kept()}; {cure}")
        self._beat("train")

    def _kept(self) -> str:
        self._finish_saving()
        return f"the state of step {self.saved_step} is kept in {self.resume.folder}" if self.saved_step >= 0 else "no earlier state was saved"

    def _tell_bad(self, kind: str, why: str, micro: MicroLosses, number: int, action: str) -> str:
        """Write a bad step and its rows into metrics.jsonl and, unless an error will say it, into the log."""
        found = rows_of(micro, self.plan, self.runtime, number - 1, self.row_ids)
        if self.metrics is not None:
            self.metrics.write(step=number, bad_step=kind, why=why, action=action, **found)
        rows = named_rows(found, str(self.folder))
        if action != "stopped":
            self.progress.say(f"step {number}: {why}; {action}; {rows}")
        return rows

    def _is_measured(self, step: int) -> bool:
        every = self.settings.log_every
        return self.metrics is not None and every > 0 and (step == 1 or step % every == 0)

    def _line(self, update: Update, seconds: float) -> dict[str, float]:
        """What metrics.jsonl says of an update."""
        step, tokens_per_s, flops_per_token = self.counters.step, self.plan.batch_tokens / seconds, self.settings.flops_per_token
        line = {
            "step": step,
            "loss": update.loss,
            "smoothed_loss": self.counters.smoothed_loss,
            "lr_multiplier": update.lr_multiplier,
            "grad_norm": update.grad_norm,
            "tokens": step * self.plan.batch_tokens,
            "flops": step * self.plan.batch_tokens * flops_per_token,
            "elapsed_s": round(self.counters.elapsed_s, 3),
            "step_s": round(seconds, 6),
            "data_share": round(self.batches.seconds / seconds, 6),
            "tokens_per_s": round(tokens_per_s, 1),
        }
        if self.settings.peak_flops:
            line["utilisation"] = round(tokens_per_s * flops_per_token / self.settings.peak_flops, 4)
        return line

    def _between_updates(self) -> None:
        step, settings = self.counters.step, self.settings
        if step < self.plan.steps:
            if settings.validate_every and step % settings.validate_every == 0:
                self._validate()
            if settings.sample_every and step % settings.sample_every == 0 and self.runtime.is_main:
                with progress.pause("sample"):
                    self.sample(self.progress.say)
            if self.runtime.is_main:
                self.keep(self.counters)

    def _validate(self) -> None:
        self._beat("validate")
        with progress.pause("validate"):
            validation = self.validate()
        if validation is None:
            return
        if isinstance(validation, Scores):
            if self.metrics is not None:
                self.metrics.write(step=self.counters.step, **validation.values)
            self.progress.say(f"step {self.counters.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in validation.values.items()))
            return
        if not math.isfinite(validation.loss):
            why = "the model itself is broken, which passing over a batch does not cure"
            raise UserError(f"step {self.counters.step}: validation loss is {validation.loss}; {why}; {self._kept()}; train with lower learning rates")
        self.counters.add_validation(validation)
        if self.metrics is not None:
            self.metrics.write(step=self.counters.step, val_bpb=validation.bpb, val_loss=validation.loss)
        self.progress.say(f"step {self.counters.step}: validation {validation.bpb:.4f} bits per byte, loss {validation.loss:.4f}")

    def _beat(self, phase: str) -> None:
        if self.heartbeat is not None:
            step, progress = self.counters.step, self.progress
            speed = {"tokens_per_s": progress.tokens_per_s, "eta_s": progress.eta_s(step)}
            self.heartbeat.beat(phase, step=step, steps=self.plan.steps, bad_steps=self.counters.bad_steps, **speed)

    # --- resume state ------------------------------------------------------------------------------------------------

    def _save_or_stop(self, asked: bool) -> None:
        """Between two updates all ranks agree on what to do: seal the state that they have written, save another one (rank 0 has the clock), stop."""
        due = self.runtime.is_main and self.counters.step > self.saved_step and time.monotonic() - self.saved_at >= self.settings.save_every_s
        stop, save, writing = self.runtime.highest(asked, due and self.counters.step > 0, self.saver.is_writing)
        if self.saver.is_pending and not writing:
            self.saver.seal()
        if stop:
            self.save(in_background=False)
            self.runtime.barrier()
            reason = self.stop.reason or "another rank was asked to"
            raise Stopped(f"stopped ({reason}) at step {self.counters.step} of {self.plan.steps}, state saved; run the same command again to go on")
        if save:
            self.save(in_background=True)

    def save(self, *, in_background: bool) -> None:
        """Save the resume state, each rank its share; in the background training goes on once it has been copied."""
        if self.saved_step == self.counters.step:
            return self._finish_saving()
        self._beat("save")
        with progress.pause("save"):
            tensors = {**own_weights(self.model, self.optimizer), **own_state(self.model, self.optimizer)}
            self.saver.start(asdict(self.counters), tensors, in_background=in_background)
            if not in_background:
                self.saver.finish()
        self.saved_at, self.saved_step = time.monotonic(), self.counters.step
        return None

    def _finish_saving(self) -> None:
        """Wait for what is still being written; a slow disk is no step without progress."""
        if self.saver.is_pending:
            with progress.pause("save"):
                self.saver.finish()

    def _load(self) -> None:
        """Go on from the newest slot, which rank 0 chooses."""
        newest = self.resume.newest() if self.runtime.is_main else None
        [chosen] = self.runtime.highest(1 + SLOTS.index(newest.name) if newest else 0)
        if not chosen:
            return
        slot = newest or self.resume.described(SLOTS[chosen - 1])
        assert slot is not None, "rank 0 has just read it"
        self.resume.last_saved = slot.name
        files = TensorFiles(slot.tensors)
        restore_model(self.model, files)
        restore_optimizer(self.model, self.optimizer, files)
        self.counters = Counters(**slot.counters)
        self.saved_step = self.counters.step
        if rows := self.counters.fewer_rows:
            self.plan = kept_rows(self.plan, rows)
        self.progress.say(f"resumed at step {self.counters.step} of {self.plan.steps}")
