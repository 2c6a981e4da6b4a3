"""Read and validate experiment files; every wrong key is named with its path and value."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nanochat.config.checks import find_problems
from nanochat.config.schema import Experiment
from nanochat.errors import UserError


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    """Plain YAML in which no key stands twice: the second would replace the first, a whole run for example, without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; checked here, before merge keys (<<) are unfolded."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice in one mapping, keep one of them;", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load(path: Path) -> Experiment:
    """Read and validate an experiment file. Raises UserError with the path of every wrong key."""
    return validate(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """The parsed content of an experiment file. Raises UserError if it cannot be read."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an experiment file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


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
    if problem["type"] == "model_type":
        return f"{place}={problem['input']!r}: is a section; give its keys, or {{}} for the defaults of all"
    return f"{place}={problem['input']!r}: {message}"
