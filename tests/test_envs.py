"""pyproject.toml, the lock and the conda file say the same, and what is installed is what they say."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def pyproject() -> list[Requirement]:
    """Requirements of pyproject.toml, those for development included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


def lock() -> dict[str, Version]:
    """Name -> version of envs/lock.txt."""
    lines = [line for line in (ROOT / "envs" / "lock.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    return {canonicalize_name(pin[1]): Version(pin[2]) for pin in pins if pin}


def test_the_lock_holds_a_fitting_version_of_every_requirement() -> None:
    locked = lock()
    for requirement in pyproject():
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_conda_file_asks_for_the_same_as_pyproject() -> None:
    conda = yaml.safe_load((ROOT / "envs" / "nanochat.yaml").read_text(encoding="utf-8"))
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert sorted(map(str, map(Requirement, pip))) == sorted(map(str, pyproject()))
    assert "python >=3.11" in conda["dependencies"]


def test_the_lock_pins_torch_without_a_build() -> None:
    assert lock()["torch"].local is None  # the CPU and the CUDA build are both this version


def test_installed_versions_are_the_locked_ones() -> None:
    installed = {canonicalize_name(name): Version(metadata.version(name)).public for name in (str(r.name) for r in pyproject())}
    locked = {name: lock()[name].public for name in installed}
    assert installed == locked


def test_the_lock_is_closed() -> None:
    """Nothing that is needed here, however indirectly, is missing from the lock: pip has no choice left."""
    locked, missing = lock(), set()
    open_names, seen = [canonicalize_name(requirement.name) for requirement in pyproject()], set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in locked:
            missing.add(name)
            continue
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.append(canonicalize_name(requirement.name))
    assert not {name for name in missing if not name.startswith(("nvidia-", "triton", "cuda-", "setuptools"))}


@pytest.mark.parametrize("name", ["Makefile", ".ci/run"])
def test_make_test_is_what_continuous_integration_runs(name: str) -> None:
    assert "make test" in (ROOT / name).read_text(encoding="utf-8")
