"""Is a run stuck, or merely slow? Judged from where its ranks are, tick by tick; no process, no clock, no file.

Stuck: no rank has made progress for longer than the phases of the ranks allow. Ranks wait for one another in every step,
so one that stands still stops all; and one that waits for rank 0 to hash or to save is not taken for stuck.
Time counts only while the supervisor itself was running: a suspended machine or job is not a stuck one.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median

from nanochat.progress import PHASES, START_UP, STEP, Limits, Place

FIRST_MINUTES_S = 120.0  # of updates; their median is what later ones are compared with
RECENT_S = 20.0  # of updates, and at least three, before anything is said of their speed
SLOWER_THAN_BEFORE, SLOWER_THAN_EXPECTED = 3.0, 2.0  # times
SAY_AGAIN_S = 600.0
TRAINING = PHASES.index("first step")


@dataclass
class Pace:
    """Seconds per update of rank 0: of the first minutes, of late, and as expected."""

    expected_tokens_per_s: float | None = None
    first: list[float] = field(default_factory=list)
    first_s: float = 0.0
    recent: "deque[tuple[float, float]]" = field(default_factory=deque)  # (seconds per update, seconds in all)
    last: Place | None = None
    waited_s: float = 0.0  # for the update that is being made
    silent_s: float = 0.0  # since something was said
    is_slow: bool = False

    @property
    def step_s(self) -> float:
        """Median of recent updates; 0 before the second."""
        return median(seconds for seconds, _ in self.recent) if self.recent else 0.0

    def look(self, place: Place, awake_s: float) -> str | None:
        """Take notice of where rank 0 is; returns what should be said of its speed."""
        self.silent_s += awake_s
        if place.phase_index < TRAINING:
            return None
        if self.last is None or place.step == self.last.step:
            self.last = place if self.last is None else self.last
            self.waited_s += awake_s if place.phase in (STEP, START_UP[-1]) else 0.0
            return self._say(place, at_least=True) if self.waited_s > 3 * RECENT_S else None
        self.waited_s = 0.0
        if self.last.phase_index > TRAINING:  # the first update warms up kernels and allocators
            self._add(place, self.last)
        self.last = place
        enough = len(self.recent) >= 3 and sum(seconds for _, seconds in self.recent) >= RECENT_S
        return self._say(place) if enough else None

    def _add(self, place: Place, before: Place) -> None:
        spent = place.update_s - before.update_s
        each = spent / (place.step - before.step)
        if self.first_s < FIRST_MINUTES_S or len(self.first) < 3:
            self.first.append(each)
            self.first_s += spent
        self.recent.append((each, spent))
        total = sum(seconds for _, seconds in self.recent)
        while len(self.recent) > 3 and total - self.recent[0][1] >= RECENT_S:
            total -= self.recent.popleft()[1]

    def _say(self, place: Place, at_least: bool = False) -> str | None:
        """The ratio in words, if it is large: when it becomes so, then every ten minutes; and when it is over."""
        now = self.waited_s if at_least else self.step_s
        expected = place.batch_tokens / self.expected_tokens_per_s if self.expected_tokens_per_s and place.batch_tokens else 0.0
        usual = median(self.first) if self.first else 0.0
        found = []
        if expected and now >= SLOWER_THAN_EXPECTED * expected:
            found.append(f"{now / expected:.1f} times slower than the {self.expected_tokens_per_s:,.0f} tokens/s that were expected")
        if usual and now >= SLOWER_THAN_BEFORE * usual:
            found.append(f"{now / usual:.1f} times slower than in its first minutes ({usual:.3g} s a step)")
        if not found:
            back = self.is_slow and not at_least
            self.is_slow = self.is_slow and not back
            return f"no longer slow: {now:.3g} s a step" if back else None
        if self.is_slow and self.silent_s < SAY_AGAIN_S:
            return None
        self.is_slow, self.silent_s = True, 0.0
        what = f"step {place.step + 1} has taken {now:.0f} s so far, at least" if at_least else f"a step takes {now:.3g} s,"
        return f"slow: {what} {' and '.join(found)}; it goes on"


@dataclass
class Watch:
    """All ranks: for how long none has made progress, and what is to be said of it."""

    limits: Limits
    pace: Pace = field(default_factory=Pace)
    quiet_s: float = 0.0
    beats: dict[int, int] = field(default_factory=dict)
    said_s: float = 0.0

    def look(self, places: Mapping[int, Place], awake_s: float) -> None:
        """Take notice of where the ranks are that have not ended, `awake_s` after the last look."""
        beats = {rank: place.beats for rank, place in places.items()}
        self.quiet_s = 0.0 if beats != self.beats else self.quiet_s + awake_s
        self.said_s = 0.0 if not self.quiet_s else self.said_s
        self.beats = beats

    def limit_s(self, places: Mapping[int, Place]) -> float:
        """How long no progress may last now: as long as the most patient phase of any rank allows."""
        return max((self.limits.of(place.phase, self.pace.step_s) for place in places.values()), default=float("inf"))

    def is_stuck(self, places: Mapping[int, Place]) -> bool:
        """Whether it has lasted too long."""
        return self.quiet_s > self.limit_s(places)

    def waiting(self, places: Mapping[int, Place]) -> str | None:
        """A sentence on a silence that is long but allowed, in a minute's distance."""
        limit = self.limit_s(places)
        if not places or self.quiet_s - self.said_s < min(60.0, max(20.0, limit / 4)):
            return None
        self.said_s = self.quiet_s
        end = f"it is ended after {timedelta(seconds=round(limit))}" if limit < float("inf") else "it may last as long as it likes"
        return f"no progress for {self.quiet_s:.0f} s, {describe(places)}; {end}"


def behind(places: Mapping[int, Place]) -> list[int]:
    """The ranks that the others wait for; none if all have come equally far."""
    least = min(place.order for place in places.values())
    found = [rank for rank, place in places.items() if place.order == least]
    return found if len(found) < len(places) else []


def describe(places: Mapping[int, Place]) -> str:
    """Where the ranks are, in words."""
    if len(places) == 1:
        return "; ".join(str(place) for place in places.values())
    late = behind(places)
    if not late:
        return f"no rank is behind: all are in {next(iter(places.values()))}"
    names = ("rank " if len(late) == 1 else "ranks ") + ", ".join(map(str, late))
    return f"{names} of {len(places)} {'is' if len(late) == 1 else 'are'} behind: in {places[late[0]]}"
