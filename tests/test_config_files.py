"""The experiments that come with the project, the profiles, and the promises that their comments make."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat import config
from nanochat.data.sources import SOURCES
from nanochat.train.memory import most_rows
from nanochat.train.scaling import plan_base_train
from nanochat.train.sizes import model_configs, shape_of

ROOT = Path(__file__).parent.parent
EXPERIMENTS = [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]
PROFILES = sorted((ROOT / "profiles").glob("*/profile.yaml"))
MACHINE_WORDS = {"gpu", "gpus", "mem_mb", "runtime", "partition", "slurm_partition", "slurm_account", "account", "executor", "cores", "threads"}


def every_key(value: Any) -> set[str]:
    """Keys of a nested value."""
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in every_key(inner)}
    return {key for inner in value for key in every_key(inner)} if isinstance(value, list) else set()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_is_valid_and_names_no_machine(path: Path) -> None:
    experiment = config.load(path)
    assert experiment.runs
    assert not every_key(yaml.safe_load(path.read_text(encoding="utf-8"))) & MACHINE_WORDS


@pytest.mark.parametrize("path", [ROOT / "config.yaml", ROOT / "configs" / "laptop.yaml", ROOT / "tests" / "tiny.yaml"], ids=lambda path: path.name)
def test_an_experiment_for_the_cpu_needs_no_hub(path: Path) -> None:
    experiment = config.load(path)
    sources = {source for corpus in experiment.corpora.values() for source in corpus.sources}
    for run in experiment.runs.values():
        uses = [(item.task, item.split, item.source) for tune in (run.mid_train, run.chat_sft) if tune for item in tune.mixture]
        uses += [(task, settings.split, settings.source) for task, settings in run.evaluate.items()]
        sources |= {source for task, split, source in uses for source in config.task_sources(task, split, source)}
    assert {SOURCES[name].kind for name in sources} == {"wheel"}


def test_the_speedrun_is_the_model_that_its_comment_promises() -> None:
    experiment = config.load(ROOT / "configs" / "speedrun.yaml")
    run = experiment.runs["d20"]
    resolved = config.resolve_base_train(run.base_train, run.recipe)
    width, vocab, depth = resolved["depth"] * resolved["architecture"]["aspect_ratio"], experiment.tokenizers[run.tokenizer].vocab_size, resolved["depth"]
    params = 2 * vocab * width + depth * 12 * width * width
    steps = round(params * resolved["horizon"]["tokens_per_param"] / resolved["horizon"]["batch_tokens"])
    assert (params, steps, steps * resolved["horizon"]["batch_tokens"]) == (560_988_160, 21_400, 11_219_763_200)
    shard_chars, chars_per_token = 250e6, 4.8
    assert experiment.corpora[run.corpus].shards * shard_chars > params * 20 * chars_per_token  # type: ignore[operator]


@pytest.mark.parametrize(("name", "run"), [("speedrun", "d20"), ("gpt2", "d24")])
def test_micro_batches_for_gpus_fit_by_our_own_estimate(name: str, run: str) -> None:
    """Out of memory after hours in a queue is the dearest way to learn that they do not; twice the rows would not fit."""
    experiment = config.load(ROOT / "configs" / f"{name}.yaml")
    section = experiment.runs[run].base_train
    resolved = config.resolve_base_train(section, experiment.runs[run].recipe)
    vocab_size = experiment.tokenizers[experiment.runs[run].tokenizer].vocab_size
    own, reference = model_configs(resolved, section.depth, vocab_size, experiment.corpora[experiment.runs[run].corpus].sequence_len)
    plan = plan_base_train({**resolved, "micro_batch_rows": None}, shape_of(own, reference), ranks=8, most_rows=most_rows(own, 80 << 30))
    assert section.micro_batch_rows == plan.micro_batch_rows


def test_asking_for_more_shards_changes_no_chunk_that_is_there() -> None:
    """Each chunk's fetch config is a tracked parameter: were it to name the total, 24 GB would be fetched again."""
    content = yaml.safe_load((ROOT / "configs" / "speedrun.yaml").read_text(encoding="utf-8"))

    def fetch_configs(shards: int) -> dict[str, dict[str, Any]]:
        content["corpora"]["fineweb_edu"]["shards"] = shards
        experiment = config.validate(content)
        parts = [chunk.part for chunk in config.corpus_chunks(experiment, "fineweb_edu")]
        return {part: config.fetch_config(experiment, "fineweb_edu_100b", part) for part in parts}

    few, many, odd = fetch_configs(240), fetch_configs(300), fetch_configs(250)
    assert few.items() < many.items()
    assert {part for part in few if few[part] != odd[part]} == set()
    assert (odd["train-015"]["shards"], many["train-015"]["shards"]) == (250, 256)


def test_a_profile_holds_no_value_of_an_experiment() -> None:
    experiment_words = set(config.Run.model_fields) | set(config.BaseTrain.model_fields) | set(config.Tune.model_fields) | set(config.Corpus.model_fields)
    stages = {"base_train", "mid_train", "chat_sft", "chat_rl"}  # rule names
    for path in PROFILES:
        assert not every_key(yaml.safe_load(path.read_text(encoding="utf-8"))) & (experiment_words - stages), path


def test_the_default_profile_is_neutral() -> None:
    """It lies on top of every other profile, key by key: an executor or a default here would defeat them."""
    content = yaml.safe_load((ROOT / "profiles" / "default" / "profile.yaml").read_text(encoding="utf-8"))
    assert set(content) == {"rerun-triggers", "rerun-incomplete", "show-failed-logs", "logger"}
    assert content["rerun-triggers"] == ["mtime", "params", "input"]


def test_retries_stand_in_profiles_and_never_in_a_rule() -> None:
    for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]:
        assert "retries" not in path.read_text(encoding="utf-8"), path
    assert yaml.safe_load((ROOT / "profiles" / "slurm" / "profile.yaml").read_text(encoding="utf-8"))["retries"] == 3


def test_profile_slurm_is_found_by_its_short_name() -> None:
    assert (ROOT / "slurm" / "profile.yaml").samefile(ROOT / "profiles" / "slurm" / "profile.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_a_profile_names_rules_and_experiments_that_exist(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rules = {
        line.split()[1].rstrip(":") for file in (ROOT / "rules").glob("*.smk") for line in file.read_text(encoding="utf-8").splitlines() if line[:5] == "rule "
    }
    named = {rule for key in ("set-resources", "set-threads") for rule in content.get(key, {})}
    assert named <= rules
    assert (ROOT / content.get("configfile", "config.yaml")).is_file()
