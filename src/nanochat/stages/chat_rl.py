"""Reinforcement learning: the model answers problems, answers are graded, and those better than the others to the same problem become more probable.

reads   --model manifest of the parent stage, --tokenizer the manifest it was trained with, --data manifests of the
        fetched sources that the problems come from (generated problems need none)
writes  beside --manifest: model.safetensors, model.json, samples.json, config.json, provenance.json,
        metrics.jsonl, heartbeat.json; manifest.json last
resumes from resume/ there, as the other stages that train do: killed in any way and started again it ends with the same bytes
by hand: nanochat chat_rl --config '{"tasks": [{"task": "arithmetic", "rows": 1600}], "max_new_tokens": 48}'
         --model results/RUN/chat_sft/manifest.json --tokenizer results/tokenizers/NAME/manifest.json
         --weights OUT/model.safetensors --manifest OUT/manifest.json

It asks split `rl` of its tasks and is measured on split `validation` (pass@1 to pass@n in metrics.jsonl, before the first update too). The test
split is never read. The objective is written down in nanochat.rl.objective.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nanochat import progress
from nanochat.config import ChatRlStage, dump, identity
from nanochat.engine import Engine
from nanochat.model.config import ModelConfig
from nanochat.model.weights import load_model
from nanochat.rl.answers import Sampling
from nanochat.rl.objective import STEP_OF_LENGTH, Policy
from nanochat.rl.plan import plan_rl
from nanochat.rl.problems import Problems, read_problems
from nanochat.rl.rollouts import Asker, Rollouts, measure
from nanochat.runtime import log
from nanochat.stages.common import read_stage_config
from nanochat.stages.samples import Sampler
from nanochat.stages.training import Work, finish, rows_that_fit, session, train
from nanochat.stages.tuning import named_sources, read_parent, tuning_parser
from nanochat.tokenizer import Tokenizer
from nanochat.train.counters import Scores
from nanochat.train.sizes import shape_of
from nanochat.train.update import build_optimizer

STAGE, PHASE = "chat_rl", "rl"


def main(arguments: list[str]) -> None:
    """Train, or go on training."""
    flags = tuning_parser(__doc__, STAGE).parse_args(arguments)
    section = read_stage_config(flags.config, ChatRlStage)
    settings = section.model_dump(mode="json")
    inputs = {"model": flags.model, "tokenizer": flags.tokenizer, **named_sources(flags.data)}
    work = Work(STAGE, flags.weights, flags.manifest, dump(section), identity(settings), inputs)
    tokenizer = Tokenizer.load(flags.tokenizer)
    parent = read_parent(flags.model, tokenizer)
    size = ModelConfig.from_dict(parent["architecture"])
    sampling = Sampling(section.samples, min(section.max_new_tokens, size.sequence_len // 2), section.temperature, section.top_k)
    limits: dict[str, Any] = {"validation_rows": section.validation_rows, "room": size.sequence_len - sampling.max_new_tokens}
    problems = read_problems(settings["tasks"], flags.data, tokenizer, seed=section.seed, **limits)
    row_tokens = row_tokens_of(size, problems, sampling)
    plan_of = partial(plan_rl, settings, parent["training"], shape_of(size, size), problems=len(problems.training), row_tokens=row_tokens)
    plan_of(ranks=flags.ranks)  # refuses what does not divide, before anything is written
    if work.is_finished():
        return

    with session(work, flags, seed=section.seed) as current:
        runtime = current.runtime
        say = log if runtime.is_main else silent
        progress.enter("model")
        model, _ = load_model(flags.model, runtime.device, runtime.dtype)
        most = max(1, rows_that_fit(size, runtime, settings) * size.sequence_len // row_tokens)
        plan = plan_of(ranks=runtime.world_size, most_rows=most)
        optimizer = build_optimizer(model, plan, runtime)
        tell(section, problems, sampling, say)
        if current.compile == "on":
            say("--compile=on asked, not compiled: rows of answers differ in length, and each length would be compiled again")
        current.compile = "off"
        asker = Asker(Engine(model, tokenizer), runtime, section.rollout_rows, say)
        batches = Rollouts(asker, tokenizer, problems.training, sampling, examples_per_step=section.examples_per_step, seed=section.seed)
        scores: dict[str, float] = {}  # the newest

        def validate() -> Scores:
            several = replace(sampling, samples=section.validation_samples)
            scores.update(measure(asker, tokenizer, problems.validation, several, seed=section.seed))
            return Scores(dict(scores))

        sampler, policy = Sampler.chat(model, tokenizer), Policy(model, samples=section.samples, temperature=section.temperature)
        shared: dict[str, Any] = {
            "description": {"phase": PHASE, "tokenizer_sha256": tokenizer.sha256, "training": parent["training"]},
            "sampler": sampler,
        }
        counters = train(current, model, optimizer, plan, batches, settings, validate=validate, policy=policy, **shared)
        counts = counted(problems, plan.steps * section.examples_per_step) | {f"final_{name}": value for name, value in scores.items()}
        finish(current, model, plan, counters, counts=counts, optimizer=None, **shared)


def row_tokens_of(size: ModelConfig, problems: Problems, sampling: Sampling) -> int:
    """Tokens of the longest row that there can be, rounded up as rows are."""
    longest = problems.longest_prompt + sampling.max_new_tokens
    return min(size.sequence_len, -(-longest // STEP_OF_LENGTH) * STEP_OF_LENGTH)


def tell(section: ChatRlStage, problems: Problems, sampling: Sampling, say: Callable[[str], None]) -> None:
    """What is asked, and what of the request is not honoured."""
    say(f"{STAGE}: {len(problems.training):,} problems, {len(problems.validation):,} held out, {sampling.samples} answers to each")
    if problems.too_long:
        say(f"{STAGE}: {problems.too_long:,} problems leave no room for {sampling.max_new_tokens} tokens of answer and are left out")
    if sampling.max_new_tokens < section.max_new_tokens:
        say(f"max_new_tokens={section.max_new_tokens} asked, {sampling.max_new_tokens} used: half of the context of {2 * sampling.max_new_tokens} tokens")


def counted(problems: Problems, asked: int) -> dict[str, Any]:
    """What the manifest says of the problems. `asked`: in all steps."""
    return {
        "problems": len(problems.training),
        "problems_too_long": problems.too_long,
        "validation_problems": len(problems.validation),
        "epochs": round(asked / len(problems.training), 4),
    }


def silent(message: str) -> None:
    """Rank 0 has said it."""
