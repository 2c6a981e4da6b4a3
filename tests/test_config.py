"""The experiment schema: what is accepted, and the one sentence that each kind of bad input gets."""

import copy
import re
import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from nanochat import config
from nanochat.data.rows import MixtureOrder
from nanochat.errors import UserError
from nanochat.recipes import RECIPES

EXPERIMENT = {
    "corpora": {"speeches": {"sources": ["presidential_messages"], "sequence_len": 128}},
    "tokenizers": {"small": {"corpus": "speeches", "vocab_size": 512}},
    "runs": {
        "tiny": {
            "corpus": "speeches",
            "tokenizer": "small",
            "recipe": "compact-2026-11",
            "base_train": {"depth": 2, "horizon": {"steps": 4, "batch_tokens": 1024}},
            "chat_sft": {"mixture": [{"task": "arithmetic", "rows": 100}]},
            "evaluate": {"bpb": {}, "arithmetic": {"limit": 5}},
        }
    },
}


def with_value(path: str, value: object) -> dict:
    """EXPERIMENT with the value at a dotted path replaced."""
    content = copy.deepcopy(EXPERIMENT)
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return content


def test_a_complete_experiment_is_accepted() -> None:
    run = config.validate(EXPERIMENT).runs["tiny"]
    assert run.phases == ["base", "sft"]
    assert config.evaluated(run) == [("base", "bpb"), ("base", "arithmetic"), ("sft", "bpb"), ("sft", "arithmetic")]


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("runs.tiny.base_train.dept", 4, ["runs.tiny.base_train.dept", "unknown key"]),
        ("runz", {}, ["runz", "unknown key"]),
        ("runs.tiny.base_train.depth", 0, ["runs.tiny.base_train.depth=0", "greater than or equal to 1"]),
        ("runs.tiny.base_train.wandb", True, ["runs.tiny.base_train.wandb=True: is a section; give its keys, or {}"]),
        ("runs.tiny.base_train.keep", {"last": 2}, ["runs.tiny.base_train.keep.last=2", "every is 0; give every"]),
        ("runs.tiny.base_train.depth", -1, ["runs.tiny.base_train.depth=-1"]),
        ("runs.tiny.base_train.depth", 2.5, ["runs.tiny.base_train.depth=2.5", "integer"]),
        ("runs.tiny.base_train.depth", "4", ["runs.tiny.base_train.depth='4'", "integer"]),
        ("tokenizers.small.vocab_size", 264, ["tokenizers.small.vocab_size=264", "265"]),
        ("tokenizers.small.vocab_size", 1 << 33, ["tokenizers.small.vocab_size=8589934592", "4294967296"]),
        ("runs.tiny.corpus", "none", ["runs.tiny.corpus='none'", "speeches"]),
        ("runs.tiny.tokenizer", "none", ["runs.tiny.tokenizer='none'", "small"]),
        ("runs.tiny.recipe", "none", ["runs.tiny.recipe='none'", "compact-2026-11"]),
        ("tokenizers.small.corpus", "none", ["tokenizers.small.corpus='none'", "speeches"]),
        ("corpora.speeches.sources", ["nowhere"], ["corpora.speeches.sources='nowhere'", "presidential_messages"]),
        ("corpora.speeches.sources", ["presidential_messages"] * 2, ["names a source twice"]),
        ("corpora.speeches.sources", ["mmlu"], ["holds no running text"]),
        ("corpora.speeches.sources", ["news_articles"], ["licence unclear", "accept_unclear_licences"]),
        ("corpora.speeches.sources", [], ["corpora.speeches.sources"]),
        ("runs.tiny.base_train.horizon.batch_tokens", 1000, ["runs.tiny.base_train.horizon.batch_tokens=1000", "not a multiple of 128", "try 1024"]),
        ("runs.tiny.chat_sft.batch_tokens", 130, ["runs.tiny.chat_sft.batch_tokens=130", "try 128"]),
        ("runs.tiny.chat_sft.mixture", [], ["runs.tiny.chat_sft.mixture"]),
        ("runs.tiny.chat_sft.mixture", [{"task": "nope"}], ["runs.tiny.chat_sft.mixture='nope'", "no such task"]),
        (
            "runs.tiny.evaluate.nope",
            {},
            ["runs.tiny.evaluate.nope='nope'", "no such task; choose one of arc_challenge, arc_easy, arithmetic, bpb, commonsense_qa, core, gsm8k"],
        ),
        ("runs.tiny.evaluate.gsm8k", {"split": "dev"}, ["runs.tiny.evaluate.gsm8k", "no split 'dev'"]),
        ("runs.tiny.evaluate.core", {"source": "mmlu"}, ["runs.tiny.evaluate.core.source='mmlu'", "choose one of core_bundle, core_wheels"]),
        ("runs.tiny.evaluate.core", {"tasks": ["arc_esay"]}, ["runs.tiny.evaluate.core.tasks='arc_esay': no task of CORE", "arc_easy, "]),
        (
            "runs.tiny.evaluate.core",
            {"source": "core_wheels", "tasks": ["copa", "winograd"]},
            ["tasks='winograd': source core_wheels does not have it; choose among hellaswag_zeroshot, jeopardy, arc_easy"],
        ),
        ("runs.tiny.evaluate.core", {"limit": 10}, ["runs.tiny.evaluate.core.limit=10: up to 10 other rows", "give 11 or more"]),
        ("runs.tiny.evaluate.core", {"split": "train"}, ["runs.tiny.evaluate.core.split='train'", "leave it out"]),
        ("runs.tiny.evaluate.arc_easy", {"tasks": ["arc_easy"]}, ["runs.tiny.evaluate.arc_easy.tasks=['arc_easy']", "only task core"]),
        ("runs.tiny.chat_sft.mixture", [{"task": "core"}], ["runs.tiny.chat_sft.mixture='core'", "no such task"]),
        ("report.runs", ["other"], ["report.runs='other'", "tiny"]),
        ("sources.mmlu", {"kind": "local", "path": "x"}, ["sources.mmlu", "built-in"]),
        ("sources.wheels", {"kind": "local", "path": "x"}, ["sources.wheels", "resources/wheels/ holds something else"]),
        ("sources.mine", {"kind": "local"}, ["sources.mine", "path"]),
        ("runs", {}, ["runs"]),
        ("runs.bad/name", EXPERIMENT["runs"]["tiny"], ["runs.bad/name"]),
        ("runs.tiny.base_train.optimizer.matrix_lr", -1.0, ["runs.tiny.base_train.optimizer.matrix_lr=-1.0"]),
        ("runs.tiny.base_train.optimizer.matrix_lr", float("inf"), ["runs.tiny.base_train.optimizer.matrix_lr=inf", "finite"]),
        ("runs.tiny.base_train.architecture.head_dim", 33, ["runs.tiny.base_train.architecture.head_dim=33", "odd"]),
        ("runs.tiny.base_train.architecture.width", 100, ["runs.tiny.base_train.architecture.width=100", "try 128"]),
        ("runs.tiny.base_train.architecture.kv_heads", 3, ["runs.tiny.base_train.architecture.kv_heads=3", "2 heads", "[1, 2]"]),
        ("runs.tiny.seed", -1, ["runs.tiny.seed=-1"]),
        ("runs.tiny.seed", 1 << 63, ["runs.tiny.seed=9223372036854775808"]),
        ("runs.tiny.evaluate.bpb.split", "train", ["runs.tiny.evaluate.bpb.split='train'", "leave split out"]),
        ("runs.tiny.evaluate.arc_easy.source", "presidential_messages", ["runs.tiny.evaluate.arc_easy.source='presidential_messages'", "arc_easy_hf"]),
        ("runs.tiny.evaluate.arithmetic.source", "gsm8k", ["runs.tiny.evaluate.arithmetic.source='gsm8k'", "generated"]),
        ("runs.tiny.evaluate.arithmetic.phases", [], ["runs.tiny.evaluate.arithmetic.phases=[]"]),
        ("runs.tiny.evaluate.smoltalk", {}, ["runs.tiny.evaluate.smoltalk", "nobody grades"]),
        ("runs.tiny.chat_sft.mixture", [{"task": "identity", "epochs": 1e300}], ["runs.tiny.chat_sft.mixture.0.epochs=1e+300"]),
        ("runs.tiny.chat_sft.mixture", [{"task": "arithmetic", "rows": 10**12}], ["runs.tiny.chat_sft.mixture.0.rows=1000000000000"]),
        ("runs.report", EXPERIMENT["runs"]["tiny"], ["runs.report", "another name"]),
        ("runs.tiny.evaluate.arithmetic.phases", ["rl"], ["runs.tiny.evaluate.arithmetic.phases=['rl']", "none of them", "base, sft"]),
        ("runs.tiny.evaluate.arithmetic.phases", ["mid", "rl"], ["runs.tiny.evaluate.arithmetic.phases=['mid', 'rl']", "none of them"]),
        ("runs.tiny.base_train.horizon", {"tokens": 1, "steps": 2}, ["runs.tiny.base_train.horizon: steps=2 and tokens=1", "keep one"]),
        ("runs.tiny.base_train.horizon", {"tokens": 9999, "tokens_per_param": 2.0}, ["tokens=9999 and tokens_per_param=2.0", "keep one"]),
        (
            "runs.tiny.base_train.horizon",
            {"tokens": 1023, "batch_tokens": 1024},
            ["runs.tiny.base_train.horizon.tokens=1023: less than one batch of 1024", "give at least 1024"],
        ),
        ("runs.tiny.base_train.horizon", {"tokens": 2000}, ["runs.tiny.base_train.horizon.tokens=2000: less than one batch of 2048"]),
        ("corpora.speeches.shards", 3, ["corpora.speeches.shards=3: none of its sources comes in shards", "leave it out"]),
    ],
)
def test_bad_input_is_named_with_its_key_and_value(path: str, value: object, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.validate(with_value(path, value), "config.yaml")
    for part in ["config.yaml: ", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("runs.tiny.evaluate.arithmetic.phases", ["mid", "sft"]),  # one of them is there
        ("runs.tiny.evaluate.core", {"source": "core_wheels", "limit": 11, "phases": ["base"]}),
        ("runs.tiny.evaluate.core", {"tasks": ["copa", "winogrande"], "limit": 1}),  # these are shown no examples
        ("runs.tiny.base_train.horizon", {"tokens": 1024, "batch_tokens": 1024}),
        ("runs.tiny.base_train.horizon", {"tokens_per_param": 2.0, "batch_tokens": 1024}),
        ("corpora.speeches", {"sources": ["fineweb_edu_100b", "presidential_messages"], "sequence_len": 128, "shards": 3}),
    ],
)
def test_what_stands_beside_bad_input_is_accepted(path: str, value: object) -> None:
    config.validate(with_value(path, value))


def sections(section: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section below one, with its path in the file; names are those of EXPERIMENT."""
    names = {"corpora": "speeches", "tokenizers": "small", "runs": "tiny", "evaluate": "arithmetic", "sources": "mine"}
    found = [(path, section)]
    for key, field in section.model_fields.items():
        for inner in [kind for kind in _types(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]:
            name = f".{names[key]}" if key in names else ".0" if key in ("mixture", "validation", "tasks") else ""
            found += sections(inner, f"{path}.{key}{name}".removeprefix("."))
    return found


def _types(annotation: object) -> list[object]:
    """The classes that an annotation is made of."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _types(part))]


INTEGERS = [f"{path}.{key}" for path, section in sections(config.Experiment) for key, field in section.model_fields.items() if int in _types(field.annotation)]


def test_every_section_with_a_count_was_found() -> None:
    assert len(INTEGERS) > 30
    assert {"runs.tiny.seed", "runs.tiny.base_train.schedule.warmup_steps", "runs.tiny.chat_sft.mixture.0.rows"} <= set(INTEGERS)


@pytest.mark.parametrize("path", INTEGERS)
@pytest.mark.parametrize("value", ["3", True, 3.0], ids=repr)
def test_a_whole_number_is_a_whole_number(path: str, value: object) -> None:
    content = copy.deepcopy(EXPERIMENT)
    content["runs"]["tiny"]["mid_train"] = {"mixture": [{"task": "arithmetic"}]}
    content["runs"]["tiny"]["chat_rl"] = {"tasks": [{"task": "arithmetic"}]}
    *parents, last = path.split(".")
    place: Any = content
    for name in parents:
        new: Any = [{"task": "arithmetic"}] if name in ("mixture", "validation", "tasks") else {}
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, new)
    place[last] = value
    with pytest.raises(UserError) as caught:
        config.validate(content, "config.yaml")
    assert f"config.yaml: {path}={value!r}: " in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    content = with_value("runs.tiny.corpus", "none")
    content["runs"]["tiny"]["tokenizer"] = "none"
    with pytest.raises(UserError) as caught:
        config.validate(content)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_no_mapping_is_refused(content: object) -> None:
    with pytest.raises(UserError, match="not a mapping"):
        config.validate(content)


def test_a_key_that_stands_twice_is_refused_with_its_line_and_anchors_still_merge(tmp_path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("runs:\n  a: {seed: 1}\n  a: {seed: 2}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"experiment.yaml: not valid YAML: key 'a' stands twice .* line 3"):
        config.read_yaml(file)
    file.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {d: {<<: *b, x: 3}}\n", encoding="utf-8")
    assert config.read_yaml(file) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"d": {"x": 3}}}


def test_an_experiment_file_that_cannot_be_opened_is_one_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        config.load(tmp_path)


def test_a_user_source_is_text_and_local(tmp_path) -> None:
    content = with_value("sources", {"mine": {"kind": "local", "path": "texts"}})
    content["corpora"]["speeches"]["sources"] = ["mine"]
    experiment = config.validate(content)
    assert experiment.source("mine").is_text
    assert [chunk.name for chunk in config.corpus_chunks(experiment, "speeches")] == ["mine.train", "mine.validation"]


def test_a_stage_subtree_names_only_what_differs_from_the_defaults() -> None:
    run = config.validate(EXPERIMENT).runs["tiny"]
    assert config.base_train_config(run) == {"depth": 2, "horizon": {"steps": 4, "batch_tokens": 1024}, "recipe": "compact-2026-11"}
    assert config.evaluate_config(run, "arithmetic") == {"task": "arithmetic", "limit": 5}


def test_housekeeping_is_handed_on_and_is_no_part_of_what_a_stage_is() -> None:
    content = with_value("runs.tiny.base_train.save_every_s", 60.0)
    content["runs"]["tiny"]["base_train"] |= {"sample_every": 3, "validate_every": 7, "validation_rows": 9, "micro_batch_rows": 4}
    content["runs"]["tiny"]["base_train"] |= {"log_every": 5, "tensorboard": True, "wandb": {}, "trackio": {"project": "p"}}
    content["runs"]["tiny"]["evaluate"]["arithmetic"]["batch_rows"] = 3
    run = config.validate(content).runs["tiny"]
    plain = config.validate(EXPERIMENT).runs["tiny"]
    received = config.base_train_config(run)
    assert (received["save_every_s"], received["sample_every"], received["validate_every"]) == (60.0, 3, 7)
    assert (received["log_every"], received["tensorboard"], received["wandb"], received["trackio"]) == (5, True, {}, {"project": "p"})
    assert config.identity(received) == {**config.base_train_config(plain), "validation_rows": 9, "micro_batch_rows": 4}
    assert config.evaluate_config(run, "arithmetic")["batch_rows"] == 3
    assert config.identity(config.evaluate_config(run, "arithmetic")) == config.evaluate_config(plain, "arithmetic")
    assert set(config.HOUSEKEEPING) <= {*config.BaseTrain.model_fields, *config.TaskSettings.model_fields}


def test_a_subtree_is_read_back_as_it_was() -> None:
    run = config.validate(EXPERIMENT).runs["tiny"]
    section = config.parse_section(config.BaseTrainStage, config.base_train_config(run), "--config")
    assert config.dump(section) == config.base_train_config(run)


def test_a_recipe_that_does_not_exist_is_one_sentence_in_the_stage_too() -> None:
    with pytest.raises(UserError, match="recipe='nope': not defined; choose one of classic"):
        config.resolve_base_train(config.BaseTrain(depth=1), "nope")


def test_overrides_win_over_the_recipe_and_the_rest_follows_it() -> None:
    run = config.validate(with_value("runs.tiny.base_train.optimizer", {"matrix_lr": 0.5})).runs["tiny"]
    resolved = config.resolve_base_train(run.base_train, run.recipe)
    assert resolved["optimizer"]["matrix_lr"] == 0.5
    assert resolved["optimizer"]["head_lr"] == RECIPES["compact-2026-11"]["optimizer"]["head_lr"]
    assert resolved["horizon"]["steps"] == 4


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_recipe_gives_every_key_a_valid_value(recipe: str) -> None:
    sections = {"architecture": config.Architecture, "optimizer": config.Optimizer, "schedule": config.Schedule, "horizon": config.Horizon}
    optional = {"architecture": {"width"}, "horizon": {"steps", "tokens"}}
    assert set(RECIPES[recipe]) == set(sections)
    for part, section in sections.items():
        parsed = config.parse_section(section, RECIPES[recipe][part], recipe)
        missing = {name for name, value in parsed if value is None} - optional.get(part, set())
        assert not missing, f"{recipe}.{part} has no value for {missing}"


def test_choices_equal_the_registries() -> None:
    """config may not import model; its Literals must still name exactly what the registries offer."""
    from typing import get_args

    from nanochat.model.attention import ATTENTION

    choices = get_args(get_args(config.Architecture.model_fields["attention"].annotation)[0])
    assert set(choices) == set(ATTENTION)


def test_sharded_sources_are_cut_into_chunks_and_the_validation_shard_stands_apart() -> None:
    content = with_value("corpora.speeches", {"sources": ["fineweb_edu_100b"], "sequence_len": 128, "shards": 33, "chunk_shards": 16})
    experiment = config.validate(content)
    names = [chunk.name for chunk in config.corpus_chunks(experiment, "speeches")]
    assert names == [f"fineweb_edu_100b.train-{index:03d}" for index in range(3)] + ["fineweb_edu_100b.validation"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"shards": 16}, None),
        ({"shards": 33}, None),
        ({"shards": 20}, "corpora.other.shards=20: another corpus reads more of fineweb_edu_100b, in chunks of 16; take a multiple of 16"),
        ({"shards": 16, "chunk_shards": 8}, "corpora.other.chunk_shards=8: corpora.speeches cuts fineweb_edu_100b into chunks of 16"),
    ],
)
def test_corpora_that_share_shards_share_their_chunks(other: dict, words: str | None) -> None:
    """Else the smaller corpus would silently be given the chunks of the larger one."""
    content = with_value("corpora.speeches", {"sources": ["fineweb_edu_100b"], "sequence_len": 128, "shards": 33})
    content["corpora"]["other"] = {**content["corpora"]["speeches"], **other}
    if words is None:
        config.validate(content)
        return
    with pytest.raises(UserError, match=words):
        config.validate(content)


def test_importing_the_schema_loads_no_heavy_library() -> None:
    code = "import sys, nanochat.config; print(sorted({'torch','numpy','pyarrow','datasets','pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- prepared text ---------------------------------------------------------------------------------------------------


def prepared(**filters: Any) -> config.Experiment:
    """The small experiment with filters, evaluating two tasks."""
    content = copy.deepcopy(EXPERIMENT)
    content["corpora"]["speeches"]["prepare"] = filters
    content["runs"]["tiny"]["evaluate"] = {"bpb": {}, "arc_easy": {}, "mmlu": {"split": "validation"}}
    return config.validate(content)


def test_a_corpus_is_held_against_what_its_runs_evaluate_or_against_what_is_named() -> None:
    assert config.evaluation_rows(prepared(min_chars=9), "speeches") == []
    everything = prepared(decontaminate=True)
    assert config.evaluation_rows(everything, "speeches") == [("arc_easy", "test"), ("mmlu", "validation")]
    received = config.prepare_config(everything, "speeches")
    assert received["evaluations"] == ["arc_easy/test", "mmlu/validation"] and received["decontaminate"] is True
    named = prepared(decontaminate=True, decontaminate_against=["mmlu", "gsm8k"])
    assert config.evaluation_rows(named, "speeches") == [("gsm8k", "test"), ("mmlu", "validation")]


def test_core_asks_for_every_task_of_its_sources() -> None:
    assert config.task_sources("core", "test", None) == ["core_bundle"]
    assert config.task_sources("core", "test", "core_wheels_bigbench") == ["core_wheels", "core_bigbench"]
    assert len(config.task_rows("core", "test", None)) == 22
    rows = config.task_rows("core", "test", "core_wheels_bigbench")
    assert len(rows) == 20 and ("core_wheels", "boolq") in rows and ("core_bigbench", "bigbench_operators") in rows
    content = copy.deepcopy(EXPERIMENT)
    content["runs"]["tiny"]["evaluate"] = {"core": {"source": "core_wheels"}}
    content["corpora"]["speeches"]["prepare"] = {"decontaminate": True}
    experiment = config.validate(content)
    assert config.evaluation_rows(experiment, "speeches") == sorted(config.task_rows("core", "test", "core_wheels"))
    assert config.evaluation_rows(prepared(decontaminate=True, decontaminate_against=["core"]), "speeches") == sorted(config.task_rows("core", "test", None))
    assert config.evaluate_config(experiment.runs["tiny"], "core") == {"task": "core", "source": "core_wheels"}
    assert config.evaluated_rows(experiment, "speeches") == [("core", label, "core_wheels") for _, label in config.task_rows("core", "test", "core_wheels")]


def test_what_is_evaluated_is_looked_for_in_the_corpus_and_in_the_mixtures_of_the_run() -> None:
    content = copy.deepcopy(EXPERIMENT)
    content["runs"]["other"] = content["runs"]["tiny"] | {"evaluate": {"gsm8k": {}}}
    content["runs"]["tiny"] |= {"seed": 3, "evaluate": {"arc_easy": {}}, "mid_train": {"mixture": [{"task": "identity", "rows": 50}]}}
    experiment = config.validate(content)
    assert config.overlap_texts(experiment) == {
        "speeches": ["tiny", "other"],
        "tiny.mid_train": ["tiny"],
        "tiny.chat_sft": ["tiny"],
        "other.chat_sft": ["other"],
    }
    assert config.contamination_config(experiment, "speeches") == {"evaluations": [{"task": "arc_easy"}, {"task": "gsm8k"}]}
    mixture = config.tune_config(experiment.runs["tiny"], "mid_train")["mixture"]
    assert config.contamination_config(experiment, "tiny.mid_train") == {"evaluations": [{"task": "arc_easy"}], "mixture": mixture, "seed": 3}
    content["report"] = {"runs": ["other"]}
    assert config.overlap_texts(config.validate(content)) == {"speeches": ["other"], "other.chat_sft": ["other"]}


def test_filters_that_are_off_are_not_dumped_and_other_stages_know_nothing_of_them() -> None:
    plain, filtered = config.validate(EXPERIMENT), prepared(min_chars=9, near_permutations=128)
    chunks = [{"chunk": chunk.name, "split": chunk.split} for chunk in config.corpus_chunks(filtered, "speeches")]
    assert config.prepare_config(filtered, "speeches") == {"chunks": chunks, "min_chars": 9}
    for experiment in (plain, filtered):
        assert config.corpus_chunks(experiment, "speeches") == config.corpus_chunks(plain, "speeches")
        for chunk in config.corpus_chunks(experiment, "speeches"):
            assert config.tokenize_config(experiment, "speeches", chunk) == config.tokenize_config(plain, "speeches", chunk)
    assert config.base_train_config(filtered.runs["tiny"]) == config.base_train_config(plain.runs["tiny"])


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({}, "corpora.speeches.prepare: asks for nothing; give languages"),
        ({"min_chars": 9, "max_chars": 3}, "max_chars=3: below min_chars=9"),
        ({"decontaminate_against": ["mmlu"], "min_chars": 1}, "decontaminate is off"),
        ({"decontaminate": True, "decontaminate_against": ["quiz"]}, "decontaminate_against='quiz': no such task"),
        ({"languages": ["English"]}, "corpora.speeches.prepare.languages.0='English'"),
        ({"deduplicate": "fuzzy"}, "corpora.speeches.prepare.deduplicate='fuzzy'"),
    ],
)
def test_filters_that_make_no_sense_are_one_sentence(filters: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        prepared(**filters)


def test_decontamination_without_evaluations_is_refused() -> None:
    content = copy.deepcopy(EXPERIMENT)
    content["corpora"]["speeches"]["prepare"] = {"decontaminate": True}
    content["runs"]["tiny"]["evaluate"] = {"bpb": {}}
    with pytest.raises(UserError, match="no run on this corpus evaluates a task that has rows"):
        config.validate(content)


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_weights_beside_the_sources_or_in_their_place_are_the_same_and_a_plain_list_has_none() -> None:
    short = config.validate(with_value("corpora.speeches.sources", {"presidential_messages": 3, "fables": 1}))
    content = with_value("corpora.speeches.sources", ["presidential_messages", "fables"])
    plain = config.validate(content)
    content["corpora"]["speeches"]["weights"] = {"fables": 1, "presidential_messages": 3}
    assert config.validate(content) == short
    assert config.dump(plain.corpora["speeches"]) == {"sources": ["presidential_messages", "fables"], "sequence_len": 128}
    assert config.corpus_chunks(short, "speeches") == config.corpus_chunks(plain, "speeches")
    before = config.base_train_config(plain.runs["tiny"])
    assert config.base_train_config(plain.runs["tiny"], plain.corpora["speeches"].weights) == before
    after = config.base_train_config(short.runs["tiny"], short.corpora["speeches"].weights)
    assert after == {**before, "weights": {"fables": 1.0, "presidential_messages": 3.0}}


def test_weights_are_in_the_resolved_configuration_only_where_they_are_given() -> None:
    """Saved states are stamped with it: a key that all had would throw them away."""
    section = {"recipe": "compact-2026-11", "depth": 2}
    assert "weights" not in config.resolve_base_train(config.BaseTrainStage(**section), "compact-2026-11")
    assert config.resolve_base_train(config.BaseTrainStage(**section, weights={"a": 1}), "compact-2026-11")["weights"] == {"a": 1.0}


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ({"sources": {"fables": 0}}, "corpora.speeches.weights.fables=0"),
        ({"sources": {"fables": "much"}}, "corpora.speeches.weights.fables='much'"),
        ({"sources": {"fables": MixtureOrder.BLOCK, "boolq_text": 1}}, f"weights.boolq_text=1: less than one row in {MixtureOrder.BLOCK:,}"),
        ({"sources": {}}, "corpora.speeches.sources=[]"),
        ({"sources": ["fables"], "weights": {"fable": 1}}, "weights: 'fable': no source has this name"),
        ({"sources": ["fables", "boolq_text"], "weights": {"fables": 1}}, "weights: 'boolq_text': this source has none"),
        ({"sources": {"fables": 1}, "weights": {"fables": 1}}, "weights stand beside sources and in it"),
        ({"sources": {"nope": 1}}, "corpora.speeches.sources='nope': not defined"),
    ],
)
def test_weights_that_make_no_sense_are_one_sentence(corpus: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        config.validate(with_value("corpora.speeches", {"sequence_len": 128, **corpus}))
