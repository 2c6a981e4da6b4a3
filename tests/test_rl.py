"""Reinforcement learning without a process of its own: what is drawn, what is learnt from it, what it is measured on."""

import json
import math
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_cases import config as shape
from model_cases import shaken
from test_engine import SPECIAL, ByteTokenizer, Scripted, small_model

from nanochat import config
from nanochat.config import load, validate
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.model.gpt import GPT
from nanochat.plan.estimate import Machine, training_duration
from nanochat.plan.work import Works
from nanochat.rl import objective
from nanochat.rl.answers import Answer, Sampling, draw_answers
from nanochat.rl.objective import Policy, Weighed, advantages, as_rows
from nanochat.rl.plan import plan_rl
from nanochat.rl.problems import Problem
from nanochat.rl.rollouts import Asker, Rollouts, measure
from nanochat.runtime import Runtime
from nanochat.tasks.arithmetic import Arithmetic, LongArithmetic, pair_split
from nanochat.tasks.draw import pass_at
from nanochat.tasks.gsm8k import Gsm8k
from nanochat.train.sizes import shape_of
from nanochat.train.update import build_optimizer, make_update

ROOT = Path(__file__).parent.parent
TOKENIZER = ByteTokenizer()
END = TOKENIZER.special("assistant_end")
SAMPLING = Sampling(samples=6, max_new_tokens=12, temperature=1.0, top_k=0)


class Grader:
    """Problems about bytes: an answer is right if its first token is one of `right`."""

    def __init__(self, right: range) -> None:
        self.right = right

    def grade(self, index: int, answer: str) -> bool:
        return bool(answer) and (answer.encode()[0] + index) % 256 in self.right


class Reader(ByteTokenizer):
    """ByteTokenizer with what reading an answer needs."""

    @property
    def special_tokens(self) -> dict[str, int]:
        return {name: self.special(name) for name in SPECIAL}

    def special(self, name: str) -> int:
        return super().special(name.strip("<|>"))


def problems(count: int, right: range = range(128)) -> list[Problem]:
    return [Problem(Grader(right), index, [256, 10 + index, 20]) for index in range(count)]  # type: ignore[arg-type]


def rollouts(model: GPT, *, count: int = 8, examples: int = 4, rows_at_once: int = 64, sampling: Sampling = SAMPLING, **place: Any) -> Rollouts:
    runtime = Runtime.start(seed=0, device="cpu")
    for key, value in place.items():
        object.__setattr__(runtime, key, value)
    said: list[str] = []
    asker = Asker(Engine(model, TOKENIZER), runtime, rows_at_once, said.append)
    return Rollouts(asker, Reader(), problems(count, **({"right": range(40)} if count == 8 else {})), sampling, examples_per_step=examples, seed=5)  # type: ignore[arg-type]


# --- objective -------------------------------------------------------------------------------------------------------

HAND = [  # two problems with three answers each: tokens drawn (True) and written by the tool (False); the first ends by itself, as does the fifth
    Weighed([3, 4, 5], Answer([6, 7, 8, 60], [True, False, False, True], is_cut=False), 2),
    Weighed([3, 4, 5], Answer([9, 9], [True, True], is_cut=True), -1),
    Weighed([3, 4, 5], Answer([11, 12, 13, 14, 15], [True] * 5, is_cut=True), -1),
    Weighed([21], Answer([22], [True], is_cut=True), 1),
    Weighed([21], Answer([23, 60], [True, True], is_cut=False), 1),
    Weighed([21], Answer([24, 25, 26], [True, True, False], is_cut=True), -2),
]


def by_hand(model: GPT, temperature: float) -> tuple[dict[str, torch.Tensor], float, int]:
    """Gradients of minus the sum of advantage x log probability, one answer and one token at a time."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for one in HAND:
        ids = one.prompt + one.answer.ids
        logits = model(torch.tensor([ids]))[0] / temperature
        for place, (token, drawn) in enumerate(zip(one.answer.ids, one.answer.drawn, strict=True)):
            if drawn:
                tokens += 1
                total = total - one.weight / 3 * torch.log_softmax(logits[len(one.prompt) + place - 1], dim=-1)[token]
    gradients = torch.autograd.grad(total, list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True)), float(total.detach()), tokens


@pytest.mark.parametrize(("temperature", "rows_of_logits"), [(1.0, 512), (0.7, 512), (1.0, 2)])
def test_gradient_is_the_one_computed_by_hand(temperature: float, rows_of_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end mark (60) is learnt; prompt, padding and what the tool wrote are not; how many logits are held at once changes nothing."""
    monkeypatch.setattr(objective, "chunk_rows", lambda rows, *rest: min(rows, rows_of_logits))
    model = shaken(shape(), torch.float64)
    expected, total, tokens = by_hand(model, temperature)
    model.zero_grad()
    for part in (HAND[:3], HAND[3:]):  # micro-batches add up
        ids, targets = (torch.from_numpy(rows) for rows in as_rows(part, padding=0))
        loss, counted = Policy(model, samples=3, temperature=temperature).loss(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        total, tokens = total - float(loss.detach()), tokens - int(counted)
    assert abs(total) < 1e-9 and tokens == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-8, atol=1e-10), name


def test_advantages_are_rewards_minus_their_mean_times_the_samples() -> None:
    assert advantages([1, 0, 0, 1, 1]) == [2, -3, -3, 2, 2]
    assert advantages([1, 1, 1]) == [0, 0, 0] == advantages([0, 0, 0])


def test_answers_without_advantage_are_left_out_and_a_batch_of_them_changes_nothing() -> None:
    nothing = [Weighed(one.prompt, one.answer, 0) for one in HAND]
    ids, targets = as_rows([*nothing[:3], *HAND[3:]], padding=0)
    assert len(ids) == 3 and ids[:, 0].tolist() == [1, 1, -2]
    ids, targets = as_rows(nothing, padding=0)
    assert len(ids) == 1 and (targets == -1).all()
    model = shaken(shape())
    loss, counted = Policy(model, samples=3, temperature=1.0).loss(torch.from_numpy(ids), torch.from_numpy(targets))
    loss.backward()  # type: ignore[no-untyped-call]
    assert counted == 0 and all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


# --- answers ---------------------------------------------------------------------------------------------------------


def drawn(model: GPT, rows_at_once: int, sampling: Sampling = SAMPLING) -> list[list[Answer]]:
    prompts = [[256, 1], [256, 2, 3], [256, 4], [256, 5, 6, 7]]
    return draw_answers(Engine(model, TOKENIZER), prompts, [f"7/3/{number}" for number in range(4)], sampling, rows_at_once=rows_at_once)


@pytest.mark.parametrize("rows_at_once", [1, 4, 7, 13])
def test_answers_do_not_depend_on_how_many_are_drawn_at_a_time(rows_at_once: int) -> None:
    model = small_model()
    answers = drawn(model, 1000)
    assert drawn(model, rows_at_once) == answers
    assert len({tuple(answer.ids) for group in answers for answer in group}) == 24, "each has randomness of its own"
    assert len({group[0].ids[0] for group in answers}) > 1 and len({answer.ids[0] for answer in answers[0]}) > 1, "from the first token on"


def test_an_end_mark_is_part_of_the_answer_and_what_the_tool_wrote_is_told_apart() -> None:
    python = [TOKENIZER.special("python_start"), *b"6*7", TOKENIZER.special("python_end")]
    output = [TOKENIZER.special("output_start"), *b"42", TOKENIZER.special("output_end")]
    script = [*python, *output, *b"42", END]
    engine = Engine(Scripted(2, script), TOKENIZER)  # type: ignore[arg-type]
    sure = Sampling(samples=1, max_new_tokens=20, temperature=0.001, top_k=0)
    [[whole]] = draw_answers(engine, [[256, 9]], ["k"], sure, rows_at_once=4)
    assert whole.ids == script and not whole.is_cut
    assert [token for token, drawn in zip(whole.ids, whole.drawn, strict=True) if not drawn] == output
    [[cut]] = draw_answers(engine, [[256, 9]], ["k"], Sampling(1, 6, 0.001, 0), rows_at_once=4)
    assert cut.ids == script[:6] and cut.is_cut


def test_answers_are_drawn_again_in_smaller_portions_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    said: list[str] = []
    asker = Asker(Engine(model, TOKENIZER), Runtime.start(seed=0, device="cpu"), 24, said.append)
    keys = [str(number) for number in range(4)]
    expected = asker.ask(problems(4), keys, SAMPLING)
    prefill = asker.engine.prefill

    def short(*prompts: Any, **room: Any) -> Any:
        if asker.rows_at_once > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefill(*prompts, **room)

    monkeypatch.setattr(asker.engine, "prefill", short)
    assert asker.ask(problems(4), keys, SAMPLING) == expected
    assert asker.rows_at_once == 6 and said == [f"out of memory; from now on {rows} answers at a time, which changes none of them" for rows in (12, 6)]
    monkeypatch.setattr(asker.engine, "prefill", lambda *prompts, **room: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asker.ask(problems(4), keys, SAMPLING)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_step_has_its_problems_and_tells_of_its_answers() -> None:
    batches = rollouts(small_model())
    ids, _ = batches.rows(0, range(24))
    facts = batches.facts
    weights = [[one.weight for one in batches.weighed[group : group + 6]] for group in range(0, 24, 6)]
    assert all(sum(group) == 0 for group in weights)
    assert facts["degenerate_groups"] == sum(not any(group) for group in weights) / 4
    assert facts["sequence_tokens"] == sum(len(one.answer.ids) for one in batches.weighed) / 24
    assert 0 < facts["reward"] < 1 and len(ids) == sum(bool(weight) for group in weights for weight in group)
    asked = [{one.prompt[1] for one in batches.weighed}]
    batches.rows(1, [0])
    asked.append({one.prompt[1] for one in batches.weighed})
    assert asked[0] | asked[1] == {10 + number for number in range(8)}, "each problem once in an epoch"
    before = batches.weighed
    assert batches.rows(1, [1]) and batches.weighed is before, "drawn once a step"
    assert rollouts(small_model()).rows(1, [0]) and batches.weighed == before, "a step is the same without those before it"


def test_ranks_share_the_problems_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "all_reduce", lambda self, value, op="sum": value)
    model = small_model()
    whole = rollouts(model)
    whole.rows(2, [0])
    shares = [rollouts(model, rank=rank, world_size=2) for rank in (0, 1)]
    for rank, share in enumerate(shares):
        share.rows(2, [12 * rank])
    assert shares[0].weighed + shares[1].weighed == whole.weighed
    assert [share.facts["reward"] for share in shares] != [0, 0]
    assert sum(share.facts["reward"] for share in shares) == pytest.approx(whole.facts["reward"])


def test_an_update_makes_right_answers_more_probable() -> None:
    """A few real updates with the real optimizer: the reward of the same problems rises."""
    model = small_model()
    sampling = Sampling(samples=16, max_new_tokens=2, temperature=1.0, top_k=0)
    batches = rollouts(model, count=4, examples=4, sampling=sampling)
    settings = {"examples_per_step": 4, "samples": 16, "micro_batch_rows": 16, "epochs": 12, "lr_fraction": 0.5, "warmup_fraction": 0.0}
    settings |= {"warmdown_fraction": 0.0, "final_lr_fraction": 1.0}
    runtime, base = batches.asker.runtime, Works(experiment()).training("base_train", "d2", 1, None).plan.to_dict()
    plan = plan_rl(settings, base, shape_of(model.config, model.config), problems=4, row_tokens=16)
    optimizer = build_optimizer(model, plan, runtime)
    policy, rewards = Policy(model, samples=16, temperature=1.0), []
    for step in range(plan.steps):
        make_update(policy, optimizer, plan, batches, runtime, step)
        rewards.append(batches.facts["reward"])
    assert plan.steps == 12 and sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards


# --- measure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(k: int, right: int) -> None:
    draws = list(combinations([True] * right + [False] * (5 - right), k))
    assert pass_at(k, 5, right) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_measure_is_the_same_each_time_and_whatever_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    asker = rollouts(model).asker
    held_out = problems(5, range(60))
    found = measure(asker, Reader(), held_out, SAMPLING, seed=1)  # type: ignore[arg-type]
    assert list(found) == [*(f"pass@{k}" for k in range(1, 7)), "validation_sequence_tokens"]
    assert 0 < found["pass@1"] < found["pass@6"] <= 1
    assert measure(asker, Reader(), held_out, SAMPLING, seed=1) == found  # type: ignore[arg-type]
    monkeypatch.setattr(Runtime, "all_reduce", lambda self, value, op="sum": value)
    shares = [measure(rollouts(model, rank=rank, world_size=3).asker, Reader(), held_out, SAMPLING, seed=1) for rank in range(3)]  # type: ignore[arg-type]
    assert math.fsum(share["pass@2"] for share in shares) == pytest.approx(found["pass@2"])


# --- problems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Arithmetic, LongArithmetic])
def test_problems_to_learn_from_to_measure_on_and_of_the_test_share_no_pair(kind: type[Arithmetic]) -> None:
    pairs: dict[str, set[tuple[int, int]]] = {split: set() for split in kind.sources}
    for split, seed in product(pairs, (0, 9)):
        task = kind(split, seed=seed, rows=600)
        for index in range(len(task)):
            _, a, b, _ = task.asked(index)
            pairs[split].add((min(a, b), max(a, b)))
    assert not pairs["rl"] & pairs["validation"] and not pairs["rl"] & pairs["test"] and not pairs["validation"] & pairs["test"]
    assert all(pair_split(*pair) == "train" for split in ("rl", "validation") for pair in pairs[split])
    assert min(map(len, pairs.values())) > 300


def test_gsm8k_holds_a_fixed_sample_of_train_back(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f'{{"question": "q{number}", "answer": "#### {number}"}}\n' for number in range(3000)))
    splits = {split: [row["question"] for row in Gsm8k(split, files=[file], seed=seed).rows] for seed, split in enumerate(("rl", "validation", "train"))}
    assert len(splits["validation"]) == 400 and not set(splits["rl"]) & set(splits["validation"])
    assert set(splits["rl"]) | set(splits["validation"]) == set(splits["train"]) and len(splits["train"]) == 3000
    assert splits["validation"] != splits["train"][-400:]


# --- configuration and plan ------------------------------------------------------------------------------------------

BASE = {"corpus": "text", "tokenizer": "small", "recipe": "compact-2026-11", "base_train": {"depth": 2, "horizon": {"steps": 10, "batch_tokens": 1024}}}


def experiment(**chat_rl: Any) -> Any:
    content: dict[str, Any] = {
        "corpora": {"text": {"sources": ["wikipedia_summaries"], "sequence_len": 256}},
        "tokenizers": {"small": {"corpus": "text", "vocab_size": 4096}},
        "runs": {"d2": {**BASE, "chat_rl": {"tasks": [{"task": "arithmetic", "rows": 320}], **chat_rl}}},
    }
    return validate(content, "config.yaml")


def test_reinforcement_learning_is_a_phase_of_the_runs_that_ask_for_it() -> None:
    assert experiment().runs["d2"].phases == ["base", "rl"]
    assert load(ROOT / "config.yaml").runs["quickstart"].phases == ["base", "mid", "sft"]


def test_the_example_goes_on_from_the_quickstart() -> None:
    """Up to chat_sft it is the same run, so that nothing of a finished quickstart is trained again."""
    ours, quickstart = (config.read_yaml(ROOT / name) for name in ("configs/arithmetic_rl.yaml", "config.yaml"))
    runs = [content.pop("runs")["quickstart"] for content in (ours, quickstart)]
    assert runs[0].pop("chat_rl") and [run.pop("evaluate") for run in runs]
    assert runs[0] == runs[1]
    assert all(ours[part] == quickstart[part] for part in ("corpora", "tokenizers"))
    said = " ".join((ROOT / "docs/how-to/reinforcement-learning.md").read_text(encoding="utf-8").split())
    asked = config.read_yaml(ROOT / "configs/arithmetic_rl.yaml")["runs"]["quickstart"]["chat_rl"]
    assert json.dumps(asked)[:-1] in said, "the page gives the same settings"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": []}, "runs.d2.chat_rl.tasks"),
        ({"tasks": [{"task": "mmlu"}]}, "runs.d2.chat_rl.tasks='mmlu': no task of this name has problems to learn from; choose among gsm8k, arithmetic, long"),
        ({"tasks": [{"task": "nope"}]}, "runs.d2.chat_rl.tasks='nope': no task of this name has problems to learn from"),
        (
            {"tasks": [{"task": "gsm8k", "source": "gsm8k"}]},
            "runs.d2.chat_rl.tasks.source='gsm8k': not a source of task gsm8k, split rl; choose one of gsm8k_",
        ),
        ({"samples": 1}, "runs.d2.chat_rl.samples=1"),
        ({"temperature": 0}, "runs.d2.chat_rl.temperature=0"),
        ({"keep": {"best": True}}, "keep.best: the best is the one with the lowest bits per byte"),
        ({"on_bad_step": {"spike": "skip"}}, "on_bad_step.spike=skip: a loss of answers that were drawn rises and falls by itself"),
    ],
)
def test_a_wrong_request_is_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        experiment(**wrong)
    assert sentence in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_step_that_ranks_or_micro_batches_do_not_divide_is_refused_with_what_would() -> None:
    section = {"examples_per_step": 6, "samples": 4, "micro_batch_rows": None, "epochs": 1.0}
    anything: Any = SimpleNamespace()
    with pytest.raises(UserError, match=r"chat_rl.examples_per_step=6: not a multiple of 4 ranks, which share the problems of a step; try 8"):
        plan_rl(section, {}, anything, problems=60, row_tokens=32, ranks=4)
    with pytest.raises(UserError, match=r"chat_rl.micro_batch_rows=7: not a divisor of the 12 answers that a rank draws in a step; try 6"):
        plan_rl({**section, "micro_batch_rows": 7}, {}, anything, problems=60, row_tokens=32, ranks=2)


def test_a_plan_counts_updates_answers_and_validations() -> None:
    asked = {"samples": 8, "examples_per_step": 16, "max_new_tokens": 49, "validate_every": 5, "validation_rows": 32, "rollout_rows": 64}
    work = Works(experiment(**asked)).training("chat_rl", "d2", 1, None).work
    assert work.steps == 20 and work.tokens == 20 * 16 * 8 * 64, "rows of 15 tokens of question and 49 of answer"
    assert work.sampled_tokens == (20 * 16 * 8 + 5 * 32 * 8) * 49, "before the first update and after 5, 10, 15 and 20"
    assert work.sampled_columns == (20 * 2 + 5 * 4) * 49
    cpu = training_duration(work, Machine(None, cores=2))
    twice = training_duration(Works(experiment(**{**asked, "epochs": 2.0})).training("chat_rl", "d2", 1, None).work, Machine(None, cores=2))
    assert cpu.training > 0 and twice.training / cpu.training == pytest.approx(2, rel=0.15)
