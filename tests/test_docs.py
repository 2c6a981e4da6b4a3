"""The documentation says what the code says: generated pages are current, links lead somewhere, commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nanochat import config
from nanochat.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_generated_reference_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/reference/generate.py", "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_section_of_the_schema_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/config.md").read_text()
    for section in (config.Experiment, config.Corpus, config.Tokenizer, config.Run, config.BaseTrain, config.Tune, config.TaskSettings, config.Report):
        for field in section.model_fields:
            assert f"| `{field}` |" in page, f"{section.__name__}.{field}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_verbs_targets_and_files_that_exist(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    snakefile = (ROOT / "Snakefile").read_text(encoding="utf-8")
    commands = [line.split("#")[0] for block in re.findall(r"```\n(.*?)```", content, re.DOTALL) for line in block.splitlines()]
    for command in commands:
        if verb := re.match(r"(?:\.venv/bin/)?nanochat (\w+) ", command):
            assert verb.group(1) in VERBS, command
        for file in re.findall(r"--configfile (\S+)|--profile (\S+)", command):
            assert (ROOT / "".join(file)).exists(), command
        if target := re.match(r"snakemake --cores all (\w+)\s*$", command):
            assert f"rule {target.group(1)}:" in snakefile, command
        if rule := re.search(r" -R (\w+)", command):
            assert (ROOT / f"rules/{rule.group(1)}.smk").is_file(), command
    for path in re.findall(r"`((?:src|configs|profiles|rules|tests|docs|\.ci)/[\w./-]+)`", content):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_experiments_are_valid(page: Path) -> None:
    """Each YAML block, on top of config.yaml, is an experiment that the schema accepts."""
    base = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        content = yaml.safe_load(block)
        merged = {key: {**base.get(key, {}), **content.get(key, {})} for key in {*base, *content}}
        config.validate(merged, page.name)


def test_pages_speak_of_no_particular_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(home|root|work|Users)/", page.read_text(encoding="utf-8")), page


def test_every_setting_of_the_clusters_profile_is_explained() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text(encoding="utf-8"))
    page = (ROOT / "docs/how-to/cluster.md").read_text(encoding="utf-8")
    settings = {*profile, *profile["default-resources"]}.union(*profile["set-resources"].values(), profile["set-threads"])
    inside = {"default-resources", "set-resources", "base_train", "mid_train", "chat_sft", "chat_rl"}  # named as what settings stand in, or as training rules
    assert [name for name in sorted(settings - inside) if f"`{name}`" not in page] == []
