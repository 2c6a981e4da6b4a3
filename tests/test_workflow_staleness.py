"""What reruns after which change: each change that must rerun nothing stands beside one that must rerun something."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from workspace import Workspace

pytestmark = pytest.mark.workflow

Change = Callable[[Workspace], object]

TOKENS = {"tokenize tiny tiny wikipedia_summaries.train", "tokenize tiny tiny wikipedia_summaries.validation"}
BASE = {"base_train tiny", "evaluate tiny base bpb"}
MID = {"mid_train tiny", "evaluate tiny mid bpb"}
SFT_SCORES = {"evaluate tiny sft bpb", "evaluate tiny sft arithmetic", "evaluate tiny sft identity"}
SFT = {"chat_sft tiny", *SFT_SCORES}
REPORT = {"report"}


@dataclass(frozen=True)
class Pair:
    """Two changes of the same kind, one after the other, and what the second one must rerun."""

    name: str
    harmless: Change
    harmful: Change
    stale: set[str]


def setting(*keys: str, to: Any) -> Change:
    """Set one value of the experiment."""

    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return lambda workspace: workspace.configure(change)


def reformat(workspace: Workspace) -> None:
    """The same experiment in another notation: keys in another order, flow style, other spellings of numbers."""

    def reversed_keys(value: Any) -> Any:
        return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    text = yaml.safe_dump(reversed_keys(workspace.experiment()), sort_keys=False, default_flow_style=True, width=60)
    assert "vocab_size: 512" in text
    workspace.path("config.yaml").write_text(text.replace("vocab_size: 512", "vocab_size: 0x200"), encoding="utf-8")


def edit_code(workspace: Workspace) -> None:
    """Comments and whitespace in a rule, a stage and the library."""
    workspace.replace("rules/base_train.smk", " nanochat base_train \\\n", " nanochat   base_train \\\n")
    workspace.append("rules/base_train.smk", "\n# a comment\n")
    workspace.append("src/nanochat/stages/base_train.py", "\n# a comment\n")
    workspace.append("src/nanochat/model/gpt.py", "\nANOTHER = 1\n")


def spell_out_defaults(workspace: Workspace) -> None:
    """Values that are the defaults anyway."""
    setting("runs", "tiny", "seed", to=0)(workspace)
    setting("runs", "tiny", "base_train", "sample_every", to=0)(workspace)
    setting("runs", "tiny", "chat_sft", "lr_fraction", to=1.0)(workspace)


def swap_values(workspace: Workspace) -> None:
    """Exchange two values of base_train, which leaves the set of its values as it was."""
    section = workspace.experiment()["runs"]["tiny"]["base_train"]
    first, second = section["depth"], section["validation_rows"]
    assert first != second
    setting("runs", "tiny", "base_train", "depth", to=second)(workspace)
    setting("runs", "tiny", "base_train", "validation_rows", to=first)(workspace)


def keep_house(workspace: Workspace) -> None:
    """Everything that decides when something is said, saved or measured, or how much memory it takes, and nothing that is learnt."""
    for stage in ("base_train", "mid_train", "chat_sft"):
        for key, value in {"save_every_s": 60, "sample_every": 3, "validate_every": 2, "log_every": 1, "tensorboard": True, "wandb": {}}.items():
            setting("runs", "tiny", stage, key, to=value)(workspace)
    for task in ("bpb", "arithmetic", "identity"):
        setting("runs", "tiny", "evaluate", task, "batch_rows", to=2)(workspace)


def add_schema_field(workspace: Workspace) -> None:
    """A new knob with a neutral default."""
    workspace.replace("src/nanochat/config/schema.py", "class BaseTrain(TrainCommon):\n", "class BaseTrain(TrainCommon):\n    new_knob: float = 0.0\n")


def touch(*patterns: str) -> Change:
    """Give files the time of now and leave their content."""

    def change(workspace: Workspace) -> None:
        for pattern in patterns:
            files = list(workspace.folder.glob(pattern))
            assert files, f"nothing matches {pattern}"
            for file in files:
                os.utime(file)

    return change


def delete(*patterns: str) -> Change:
    """Remove files or folders."""

    def change(workspace: Workspace) -> None:
        for pattern in patterns:
            files = list(workspace.folder.glob(pattern))
            assert files, f"nothing matches {pattern}"
            for file in files:
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()

    return change


def change_manifest(workspace: Workspace) -> None:
    """Give the mid-trained model another identity."""
    workspace.replace("results/tiny/mid_train/manifest.json", '"sha256": "', '"sha256": "0')


def reverse_times(workspace: Workspace) -> None:
    """Everything built gets a time, outputs older than their inputs."""
    files = sorted(
        (file for name in ("resources", "results") for file in workspace.path(name).rglob("*.*") if file.is_file()), key=lambda file: -file.stat().st_mtime
    )
    for second, file in enumerate(files):
        os.utime(file, (1_000_000_000 + second, 1_000_000_000 + second))


def add_run(workspace: Workspace) -> None:
    """A second run beside the first, deeper and without mid-training."""

    def change(content: dict[str, Any]) -> None:
        first = content["runs"]["tiny"]
        deeper = {**first, "base_train": {**first["base_train"], "depth": 2}, "evaluate": {"bpb": first["evaluate"]["bpb"]}}
        del deeper["mid_train"]
        content["runs"]["deeper"] = deeper

    workspace.configure(change)


def define_unused(workspace: Workspace) -> None:
    """A corpus and a tokenizer that no run names."""
    setting("corpora", "unused", to={"sources": ["presidential_messages"], "sequence_len": 64})(workspace)
    setting("tokenizers", "unused", to={"corpus": "unused", "vocab_size": 300})(workspace)


def drop_mid_train(workspace: Workspace) -> None:
    """Without mid-training, fine-tuning starts from the base model."""
    workspace.configure(lambda content: content["runs"]["tiny"].pop("mid_train"))


def set_new_knob(workspace: Workspace) -> None:
    """Use the knob that `add_schema_field` made."""
    setting("runs", "tiny", "base_train", "new_knob", to=0.5)(workspace)


PAIRS = [
    Pair(
        "comment in the config | report title",
        lambda w: w.append("config.yaml", "\n# a comment\n"),
        setting("report", to={"title": "another title"}),
        REPORT,
    ),
    Pair("format of the config | rate of fine-tuning", reformat, setting("runs", "tiny", "chat_sft", "lr_fraction", to=0.5), SFT | REPORT),
    Pair(
        "README | setting of one evaluation",
        lambda w: w.append("README.md", "\nMore.\n"),
        setting("runs", "tiny", "evaluate", "arithmetic", "limit", to=5),
        {"evaluate tiny sft arithmetic"} | REPORT,
    ),
    Pair("code | depth", edit_code, setting("runs", "tiny", "base_train", "depth", to=2), BASE | MID | SFT | REPORT),
    Pair("defaults spelt out | two values swapped", spell_out_defaults, swap_values, BASE | MID | SFT | REPORT),
    Pair("new field of the schema | that field set", add_schema_field, set_new_knob, BASE | MID | SFT | REPORT),
    Pair(
        "touched weights and tokens | lost weights",
        touch("results/tiny/*/model.safetensors", "results/tokens/*/*/tokens.bin"),
        delete("results/tiny/mid_train/model.safetensors"),
        MID | SFT | REPORT,
    ),
    Pair("touched manifests | changed manifest", touch("re*/**/manifest.json"), change_manifest, SFT | {"evaluate tiny mid bpb"} | REPORT),
    Pair("times reversed | deleted score", reverse_times, delete("results/tiny/scores/base/bpb.json"), {"evaluate tiny base bpb"} | REPORT),
    Pair(
        "unused corpus and tokenizer | corpus gets a source",
        define_unused,
        setting("corpora", "tiny", "sources", to=["wikipedia_summaries", "presidential_messages"]),
        {
            *("fetch presidential_messages all", "preflight"),
            "tokenizer tiny",
            *("tokenize tiny tiny presidential_messages.train", "tokenize tiny tiny presidential_messages.validation"),
        }
        | TOKENS
        | BASE
        | MID
        | SFT
        | REPORT,
    ),
    Pair(
        "logs, benchmarks and stories deleted | new run",
        delete("logs", "benchmarks", "results/tiny/*/provenance.json", "results/tiny/*/metrics.jsonl"),
        add_run,
        {"base_train deeper", "chat_sft deeper", "evaluate deeper base bpb", "evaluate deeper sft bpb"} | REPORT,
    ),
    Pair(
        "wheels deleted | new task",
        delete("resources/wheels"),
        setting("runs", "tiny", "evaluate", "simple_spelling", to={"limit": 4}),
        {"fetch word_list all", "preflight", *(f"evaluate tiny {phase} simple_spelling" for phase in ("base", "mid", "sft"))} | REPORT,
    ),
    Pair("tokens deleted | tokens needed", delete("results/tokens/*/*/tokens.bin"), setting("runs", "tiny", "seed", to=1), TOKENS | BASE | MID | SFT | REPORT),
    Pair("text deleted | no mid-training", delete("resources/wikipedia_summaries/all/*.parquet"), drop_mid_train, SFT | REPORT),
    Pair(
        "evaluation order | vocabulary", reformat, setting("tokenizers", "tiny", "vocab_size", to=600), {"tokenizer tiny"} | TOKENS | BASE | MID | SFT | REPORT
    ),
    Pair("housekeeping | rows held out", keep_house, setting("runs", "tiny", "base_train", "validation_rows", to=9), BASE | MID | SFT | REPORT),
    Pair("housekeeping | micro-batch, whose rounding grows", keep_house, setting("runs", "tiny", "mid_train", "micro_batch_rows", to=2), MID | SFT | REPORT),
    Pair(
        "optimizer and shape lost after the end | next stage needs them",
        delete("results/tiny/base_train/optimizer.safetensors", "results/tiny/base_train/model.json"),
        setting("runs", "tiny", "mid_train", "lr_fraction", to=0.5),
        BASE | MID | SFT | REPORT,
    ),
    Pair(
        "optimizer lost after the end | next stage without it",
        delete("results/tiny/mid_train/optimizer.safetensors"),
        setting("runs", "tiny", "chat_sft", "warm_start_optimizer", to=False),
        SFT | REPORT,
    ),
    Pair("nothing | sequence length", lambda _: None, setting("corpora", "tiny", "sequence_len", to=64), TOKENS | BASE | MID | SFT | REPORT),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name.replace(" ", "_"))
def test_a_change_reruns_what_it_must_and_nothing_else(workspace: Workspace, pair: Pair) -> None:
    pair.harmless(workspace)
    assert workspace.plan() == set()
    pair.harmful(workspace)
    assert workspace.plan() == pair.stale


@pytest.mark.parametrize("target", ["all", "tokenizer", "evaluate", "report"])
def test_a_target_without_its_benchmarks_and_logs_is_finished(workspace: Workspace, target: str) -> None:
    delete("benchmarks", "logs")(workspace)
    assert workspace.plan(target) == set()
    delete("results/report/report.html")(workspace)
    assert workspace.plan(target) == (REPORT if target in ("all", "report") else set())


def test_a_copy_with_new_times_reruns_nothing_and_still_notices_changes(finished: Workspace, tmp_path: Any) -> None:
    copied = finished.copy(tmp_path / "copied", keep_times=False)
    assert copied.plan() == set()
    setting("runs", "tiny", "chat_sft", "validation_rows", to=9)(copied)
    assert copied.plan() == SFT | REPORT


def test_another_machine_reruns_nothing_and_still_notices_changes(workspace: Workspace) -> None:
    machine = ("--set-resources", "base_train:gpu=8", "mid_train:runtime=60", "evaluate_task:mem_mb=9000", "--set-threads", "base_train=1", "--cores", "1")
    assert workspace.plan(*machine) == set()
    setting("runs", "tiny", "mid_train", "lr_fraction", to=0.5)(workspace)
    assert workspace.plan(*machine) == MID | SFT | REPORT


def test_a_change_really_rebuilds_only_its_part_and_then_nothing(workspace: Workspace) -> None:
    before = {name: workspace.path(name).read_bytes() for name in ("results/tiny/base_train/manifest.json", "results/tiny/chat_sft/manifest.json")}
    setting("runs", "tiny", "chat_sft", "lr_fraction", to=0.5)(workspace)
    workspace.build()
    after = {name: workspace.path(name).read_bytes() for name in before}
    assert after["results/tiny/base_train/manifest.json"] == before["results/tiny/base_train/manifest.json"]
    assert after["results/tiny/chat_sft/manifest.json"] != before["results/tiny/chat_sft/manifest.json"]
    assert workspace.plan() == set()
