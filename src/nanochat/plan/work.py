"""What each kind of job has to do, computed from the experiment alone: parameters, tokens, FLOPs, memory, disk."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from nanochat.config import ChatRl, Experiment, Run, TaskSettings, Tune, resolve_base_train
from nanochat.data.core import CORE
from nanochat.model.config import ModelConfig
from nanochat.plan.estimate import DECODE_S_PER_LAYER, Machine, TrainingWork
from nanochat.plan.texts import OTHER_QUESTION_TOKENS, PACKED, QUESTION_TOKENS, bytes_per_token, core_read, mixture_conversations, mixture_tokens, rows_of
from nanochat.rl.plan import plan_rl
from nanochat.tasks import TASKS
from nanochat.train.memory import Memory, Setting, most_rows, optimizer_bytes, training_memory
from nanochat.train.scaling import TrainingPlan, plan_base_train, plan_tune
from nanochat.train.sizes import model_configs, shape_of

TRAINING = ("base_train", "mid_train", "chat_sft", "chat_rl")
RESUME_SLOTS = 2  # states that a training stage keeps while it runs
INFERENCE_UTILISATION = 0.3  # of the peak, in scoring whole rows; assumption
BPB_ROWS = 4096  # rows of a validation shard that bits per byte reads without a limit; assumption
CHARS_PER_S_TRAINING = 2e7  # of a vocabulary; published: 2e9 characters in 70 to 90 s
JUDGED_CHARS_PER_S_AND_THREAD = 1.5e6  # of filtering text; measured: 1.6e6 to 2.3e6 on busy cores, without `languages`, which takes about 1 ms a document
WRITTEN_CHARS_PER_S = 3e7  # of writing what is left of it; measured: 5e7
PACKED_SHARE = 0.45  # of text in parquet, of its bytes; measured: 0.37, more where documents are short
CHARS_PER_S_AND_THREAD = 2e6  # of encoding and packing; measured: 4e6 on two cores, less with many threads


@dataclass(frozen=True)
class Training:
    """A training stage of a run."""

    model: ModelConfig
    plan: TrainingPlan
    work: TrainingWork
    memory: Memory
    kept_bytes: int  # on disk when it has finished
    resume_bytes: int  # besides, while it runs
    approximate: bool  # whether its tokens are an estimate


class Works:
    """The experiment as work to do, on machines that a profile describes."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.training = cache(self._training)  # asked for again by every later stage and score

    def model(self, run: Run) -> tuple[ModelConfig, ModelConfig]:
        """Shape of a run's model, and of the same architecture at depth 12."""
        vocab_size, corpus = self.experiment.tokenizers[run.tokenizer].vocab_size, self.experiment.corpora[run.corpus]
        return model_configs(resolve_base_train(run.base_train, run.recipe), run.base_train.depth, vocab_size, corpus.sequence_len)

    def _training(self, stage: str, name: str, ranks: int, memory_bytes: int | None) -> Training:
        """A training stage on `ranks` cards (1 for a CPU) of `memory_bytes`. Raises UserError if its batch does not divide."""
        run = self.experiment.runs[name]
        config, reference = self.model(run)
        section: Any = getattr(run, stage)
        setting = Setting.of("cpu" if memory_bytes is None else "cuda", recompute=section.recompute, shards=ranks)
        place: dict[str, Any] = {"ranks": ranks, "most_rows": most_rows(config, memory_bytes, setting)}
        base_place = place if stage == "base_train" else {}
        base = plan_base_train(resolve_base_train(run.base_train, run.recipe), shape_of(config, reference), **base_place)
        if stage == "base_train":
            return _described(section, config, base, setting, read_bytes=base.tokens * _token_bytes(config), keep_optimizer=True)
        if stage == "chat_rl":
            return _reinforced(section, config, base, place, setting)
        rows = mixture_rows(section, config)
        plan = plan_tune(stage, section.model_dump(mode="json"), base.to_dict(), shape_of(config, config), rows=rows, **place)
        conversations = mixture_conversations([*section.mixture, *section.validation])
        return _described(section, config, plan, setting, conversations=conversations, keep_optimizer=stage == "mid_train")

    # --- scores ------------------------------------------------------------------------------------------------------

    def evaluation(self, name: str, task: str) -> tuple[ModelConfig, TaskSettings, int | None, int, int]:
        """(model, settings, rows, tokens read, tokens made one after another) of one score; rows None: not known."""
        run = self.experiment.runs[name]
        config, settings = self.model(run)[0], run.evaluate[task]
        if task == "bpb":
            rows = settings.limit or BPB_ROWS
            return config, settings, rows, rows * config.sequence_len, 0
        if task == CORE:
            rows, read = core_read(settings)
            return config, settings, rows, read, 0
        known = rows_of(task, settings.split, source=settings.source, rows=settings.limit)
        rows = known or 0
        read = rows * QUESTION_TOKENS.get(task, OTHER_QUESTION_TOKENS)
        made = math.ceil(rows / settings.batch_rows) * settings.max_new_tokens if TASKS[task].kind == "generative" else 0
        made += rows * settings.max_new_tokens if settings.samples else 0  # those of one row side by side
        return config, settings, known, read, made


def mixture_rows(section: Tune, config: ModelConfig) -> int:
    """Packed rows of a mixture, estimated."""
    tokens = mixture_tokens(section.mixture, config.vocab_size, config.sequence_len)
    return max(1, math.ceil(tokens / PACKED / config.sequence_len))


def _reinforced(section: ChatRl, config: ModelConfig, base: TrainingPlan, place: Mapping[str, Any], setting: Setting) -> Training:
    """chat_rl: its updates, as any training, and the answers that are drawn for them and for each validation."""
    answer = min(section.max_new_tokens, config.sequence_len // 2)
    questions = [QUESTION_TOKENS.get(item.task, OTHER_QUESTION_TOKENS) for item in section.tasks]
    problems = sum(rows_of(item.task, "rl", source=item.source, rows=item.rows) or 0 for item in section.tasks)
    row_tokens = min(config.sequence_len, max(questions) + answer)
    rates, shape = base.to_dict(), shape_of(config, config)
    plan = plan_rl(section.model_dump(mode="json"), rates, shape, problems=problems, row_tokens=row_tokens, **place)
    training = _described(section, config, plan, setting, conversations=problems, keep_optimizer=False)
    validations = training.work.validations + 1  # before the first update too
    drawn = plan.rows_per_step * plan.steps
    checked = section.validation_rows * section.validation_samples * validations
    columns = [plan.steps * math.ceil(plan.rows_per_step / plan.ranks / section.rollout_rows)]
    columns += [validations * math.ceil(section.validation_rows * section.validation_samples / plan.ranks / section.rollout_rows)]
    sampled, made = (drawn + checked) * answer, sum(columns) * answer
    work = replace(training.work, validations=0, sampled_tokens=sampled, sampled_columns=made, depth=config.depth)
    return replace(training, work=work)


def _token_bytes(config: ModelConfig) -> int:
    return 2 if config.vocab_size <= 1 << 16 else 4


def _described(
    section: Any, config: ModelConfig, plan: TrainingPlan, setting: Setting, *, read_bytes: int = 0, conversations: int = 0, keep_optimizer: bool
) -> Training:
    counts = config.parameter_counts()
    weights, optimizer = 4 * counts["total"], optimizer_bytes(config)
    work = TrainingWork(
        tokens=plan.tokens,
        flops_per_token=config.flops_per_token(),
        width=config.width,
        steps=plan.steps,
        params=counts["total"],
        validations=1 + (plan.steps - 1) // section.validate_every if section.validate_every else 1,
        validation_tokens=section.validation_rows * config.sequence_len,
        read_bytes=read_bytes,
        conversations=conversations,
        state_bytes=weights + optimizer,
        save_every_s=section.save_every_s,
    )
    memory = training_memory(config, plan.micro_batch_rows, replace(setting, accumulates=plan.accumulation > 1))
    on_the_way = (section.keep.last + 1 if section.keep.every else 0) + 2 * section.keep.best  # the most there are at a time (stages/checkpoints.py)
    kept = weights * (1 + on_the_way) + optimizer * keep_optimizer
    return Training(config, plan, work, memory, kept, RESUME_SLOTS * (weights + optimizer), bool(conversations))


def evaluation_s(config: ModelConfig, read: int, made: int, batch_rows: int, machine: Machine) -> float:
    """Seconds of one score: rows read in one pass each, answers made token by token."""
    forward = config.flops_per_token() / 3
    if machine.accelerator is None:
        return machine.start_up_s + (read + made * batch_rows) * forward / machine.published_flops(config.width)
    scoring = read * forward / (machine.accelerator.peak_flops * INFERENCE_UTILISATION)
    return machine.start_up_s + scoring + made * config.depth * DECODE_S_PER_LAYER


def tokenizer_s(chars: float, machine: Machine) -> float:
    """Seconds of training and measuring a vocabulary."""
    return machine.start_up_s + chars / CHARS_PER_S_TRAINING


def judge_s(chars: float, machine: Machine) -> float:
    """Seconds of judging the text of a corpus."""
    return machine.start_up_s + chars / (JUDGED_CHARS_PER_S_AND_THREAD * machine.cores)


def write_text_s(chars: float, machine: Machine) -> float:
    """Seconds of writing what is left of a chunk."""
    return machine.start_up_s + chars / WRITTEN_CHARS_PER_S


def tokenize_s(chars: float, machine: Machine) -> float:
    """Seconds of encoding and packing text."""
    return machine.start_up_s + chars / (CHARS_PER_S_AND_THREAD * machine.cores)


def token_file_bytes(chars: float, vocab_size: int) -> int:
    """Size of the tokens of a text."""
    return round(chars / bytes_per_token(vocab_size)) * (2 if vocab_size <= 1 << 16 else 4)
