"""What a check found: one line for people, one object for programs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. Only a problem stops anybody."""

    name: str
    state: State
    detail: str  # what was found
    cure: str = ""  # what to do or to type

    @property
    def sentence(self) -> str:
        """Name, finding and cure."""
        return f"{self.name}: {self.detail}{f'; {self.cure}' if self.cure else ''}"

    @property
    def line(self) -> str:
        """The sentence behind its state, in columns."""
        return f"{self.state:<11} {self.sentence}"


def ok(name: str, detail: str) -> Check:
    """Nothing to do."""
    return Check(name, "ok", detail)


def warning(name: str, detail: str, cure: str = "") -> Check:
    """Worth knowing; nothing dies of it."""
    return Check(name, "warning", detail, cure)


def problem(name: str, detail: str, cure: str = "") -> Check:
    """A stage would die of it."""
    return Check(name, "problem", detail, cure)


def not_checked(name: str, why: str) -> Check:
    """Could not be looked at here."""
    return Check(name, "not checked", why)


def problems(checks: Iterable[Check]) -> list[Check]:
    """Those that have to be mended first."""
    return [check for check in checks if check.state == "problem"]


def summary(checks: list[Check]) -> str:
    """How many of each state, in one line."""
    counts = {state: sum(check.state == state for check in checks) for state in ("ok", "warning", "problem", "not checked")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def as_json(checks: list[Check]) -> dict[str, Any]:
    """All checks as plain data; `state` of the whole is the worst of them, ok or problem."""
    return {"state": "problem" if problems(checks) else "ok", "checks": [asdict(check) for check in checks]}
