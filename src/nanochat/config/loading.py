"""Read and validate experiment files; every wrong key is named with its path and value."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nanochat.config.checks import find_problems
from nanochat.config.schema import Experiment
from nanochat.errors import UserError


def load(path: Path) -> Experiment:
    """Read and validate an experiment file. Raises UserError with the path of every wrong key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(content, str(path))


def validate(content: Any, origin: str = "config") -> Experiment:
    """Validate the parsed content of an experiment file; `origin` names it in errors."""
    if not isinstance(content, dict):
        raise UserError(f"{origin}: empty or not a mapping; it needs corpora:, tokenizers: and runs:")
    experiment = parse_section(Experiment, content, origin)
    if problems := find_problems(experiment):
        raise UserError("\n".join(f"{origin}: {problem}" for problem in problems))
    return experiment


SectionType = TypeVar("SectionType", bound=BaseModel)


def parse_section(section: type[SectionType], content: Any, origin: str) -> SectionType:
    """Validate `content` as `section`. Raises UserError: one line per wrong key, with its path and value."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{origin}: {_explain(problem)}" for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if place else message
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key; check its spelling against docs/reference or config.yaml"
    return f"{place}={problem['input']!r}: {message}"
