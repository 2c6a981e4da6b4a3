"""The parent of the ranks: starts them, hands signals on, watches their progress, and ends all of them with one exit code.

It imports no torch, so that its first log line appears at once. Unlike torchrun it keeps the exit codes of a stage (2, 75).
What ends a run, each with a sentence in the log:
    every rank has ended with 0, or rank 0 has: it writes the manifest, last of all     0
    a rank has refused the request                                                      2
    a rank has saved and stopped                                                       75    the others are asked to stop too
    no progress for too long                                                           75    the stacks of all threads of all ranks first
    asked to stop in a start-up that hears nothing, for a minute                       75    likewise
    a rank was ended by a signal, or another node is lost                              75
    anything else                                                      its own exit code
"""

import os
import signal
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat.launch.flags import limits_of, read_launch_flags
from nanochat.launch.nodes import Follower, Leader, NodeLostError, Report, Verdict
from nanochat.launch.ranks import Ranks
from nanochat.launch.watch import Pace, Watch, describe
from nanochat.progress import BEFORE_JOINING, STACKS_SIGNAL, START_UP, Place
from nanochat.runtime import log, stop_signals

POLL_S = 0.1
MOST_S = 5 * POLL_S  # that counts between two looks: what is longer, the supervisor was asleep or kept from running itself
SETTLE_S = 1.0  # after a failure: the others may fail of it a moment earlier than its cause is seen
REFUSED_GRACE_S, STOPPED_GRACE_S, DONE_GRACE_S, STUCK_GRACE_S = 5.0, 60.0, 10.0, 5.0
WORTH_SAYING_S = 5.0  # of a start-up phase
STOPPED, REFUSED, INTERRUPTED = 75, 2, 130
GO_ON = "run the same command again to go on"


def supervise(verb: str, arguments: Sequence[str]) -> int:
    """Run `nanochat VERB ARGUMENTS` as ranks; returns the exit code of all of them. Raises UserError or Stopped before they start."""
    flags = read_launch_flags(verb, list(arguments))
    asked = Asked()
    who = f"node {flags.node_rank} of {flags.nodes}: " if flags.nodes > 1 else ""
    log(f"{verb}: {who}starting {flags.ranks} {'process' if flags.ranks == 1 else 'processes'}, supervised by process {os.getpid()}")
    request = [verb, *arguments]
    link = (Follower if flags.node_rank else Leader).meet(flags, request, lambda: bool(asked.numbers))
    ranks = Ranks(request, flags.ranks, link.group)
    asked.ranks = ranks
    for number in asked.numbers:  # came while they were being started
        ranks.send(number)
    try:
        return lead(link, ranks, flags, asked, verb) if isinstance(link, Leader) else follow(link, ranks, flags, asked)
    finally:
        ranks.kill()
        link.close(STOPPED_GRACE_S) if isinstance(link, Leader) else link.close()


class Asked:
    """The signals that ask to stop, handed on to the ranks; Ctrl-Z, which stops them with their supervisor; and SIGUSR2, which asks for their stacks."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.ranks: Ranks | None = None
        self.stacks = False
        signal.signal(STACKS_SIGNAL, self._show)
        for number in stop_signals():
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._pause)

    def _stop(self, number: int, _frame: Any) -> None:
        self.numbers.append(number)
        if self.ranks is not None:
            self.ranks.send(number)

    def _show(self, _number: int, _frame: Any) -> None:
        self.stacks = True

    def show_stacks(self) -> None:
        """Write the stacks to the log, if somebody has asked for them; everything goes on."""
        if self.stacks and self.ranks is not None:
            self.stacks = False
            self.ranks.say_stacks(self.ranks.places())

    def _pause(self, _number: int, _frame: Any) -> None:
        if self.ranks is not None:
            self.ranks.pause(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # goes on below when it is continued
        if self.ranks is not None:
            self.ranks.pause(signal.SIGCONT)


class AwakeClock:
    """Seconds between looks, without those in which this process did not run: a suspended laptop, SIGSTOP, a machine out of breath."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def tick(self) -> float:
        """Wait for the next look; returns the seconds that count."""
        time.sleep(POLL_S)
        now = time.monotonic()
        passed, self.last = now - self.last, now
        return min(passed, MOST_S)


# --- node 0 ----------------------------------------------------------------------------------------------------------


def lead(link: Leader, ranks: Ranks, flags: Namespace, asked: Asked, verb: str) -> int:
    """Watch the ranks of all nodes until the run is at its end; returns its exit code."""
    judge = Judge(Watch(limits_of(flags), Pace(flags.expected_tokens_per_s)), asked, verb)
    clock, is_open = AwakeClock(), False
    verdict: Verdict | None = None
    while verdict is None:
        awake_s = clock.tick()
        asked.show_stacks()
        codes = ranks.codes()  # before the places: what an ended rank has said last counts
        try:
            everything = link.exchange(Report(ranks.places(), codes), awake_s)
        except NodeLostError as lost:
            verdict = Verdict(STOPPED, f"{lost}; {GO_ON}")
            break
        if not is_open and everything.places[0].phase_index >= BEFORE_JOINING:
            is_open = True
            ranks.board.open()
            link.tell(open=True)
        verdict = judge.verdict(everything, awake_s)
    link.tell(end=asdict(verdict))
    return end(ranks, verdict, verb)


@dataclass
class Judge:
    """Decides when and how a run is at its end."""

    watch: Watch
    asked: Asked
    verb: str
    failing_s: float = 0.0
    phase: str = START_UP[0]
    phase_s: float = 0.0
    ended: set[int] = field(default_factory=set)

    def verdict(self, report: Report, awake_s: float) -> Verdict | None:
        """The end that all ranks together call for, or None."""
        places = {rank: place for rank, place in report.places.items() if rank not in report.codes}
        if len(report.codes) == len(report.places) and not any(report.codes.values()):
            return Verdict(0)
        if any(report.codes.values()):
            self.failing_s += awake_s
            if places and self.failing_s < SETTLE_S and report.codes.get(0) != REFUSED:
                return None
            return verdict_on({rank: code for rank, code in report.codes.items() if code}, report.places, self.asked.numbers)
        if report.codes.get(0) == 0:
            return Verdict(0, ask=True, grace_s=DONE_GRACE_S)
        self.watch.look(places, awake_s)
        self._say(places, awake_s)
        is_starting = all(place.phase in START_UP for place in places.values())
        if is_starting and self.asked.numbers and self.watch.quiet_s > STOPPED_GRACE_S:
            sentence = f"asked to stop and not heard for {self.watch.quiet_s:.0f} s, {describe(places)}; nothing was trained yet, {GO_ON}"
            return Verdict(STOPPED, sentence, stacks=True)
        if self.watch.is_stuck(places):
            where = describe(places)
            quiet, limit = self.watch.quiet_s, self.watch.limit_s(places)
            sentence = f"no progress for {quiet:.0f} s (limit {limit:.0f} s), {where}; stopped with the stacks of all threads, {GO_ON}"
            return Verdict(STOPPED, sentence, stacks=True, ask=True, grace_s=STUCK_GRACE_S)
        return None

    def _say(self, places: Mapping[int, Place], awake_s: float) -> None:
        """Tell of long phases, of silence, and of a run that is slow."""
        if 0 not in places:
            return
        if places[0].phase != self.phase:
            if self.phase in START_UP and self.phase_s > WORTH_SAYING_S:
                log(f"{self.verb}: {self.phase} took {self.phase_s:.0f} s")
            self.phase, self.phase_s = places[0].phase, 0.0
        self.phase_s += awake_s
        for sentence in (self.watch.waiting(places), self.watch.pace.look(places[0], awake_s)):
            if sentence:
                log(f"{self.verb}: {sentence}")


def verdict_on(failed: Mapping[int, int], places: Mapping[int, Place], asked: Sequence[int]) -> Verdict:
    """How a run ends of which these ranks have ended with these codes, none of them 0."""
    codes = set(failed.values())
    if REFUSED in codes:
        return Verdict(REFUSED, grace_s=0.0 if failed.get(0) == REFUSED else REFUSED_GRACE_S)
    if STOPPED in codes:
        return Verdict(STOPPED, ask=True, grace_s=STOPPED_GRACE_S)
    if any(-number in codes for number in asked) or (INTERRUPTED in codes and asked.count(signal.SIGINT) == 1):
        return Verdict(STOPPED, f"stopped before training went on; {GO_ON}", ask=True, grace_s=STOPPED_GRACE_S)
    killed = {rank: code for rank, code in failed.items() if code < 0}
    if killed:
        rank, code = next(iter(killed.items()))
        why = " (by hand, or for want of memory)" if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Verdict(STOPPED, f"rank {rank} was ended by {name}{why} in {places[rank]}; the last saved state is kept, {GO_ON}")
    return Verdict(next(iter(failed.values())))


# --- the other nodes, and the end ------------------------------------------------------------------------------------


def follow(link: Follower, ranks: Ranks, flags: Namespace, asked: Asked) -> int:
    """Report to node 0 and do what it says; returns the exit code of the run."""
    clock = AwakeClock()
    who = f"node {flags.node_rank}"
    while True:
        awake_s = clock.tick()
        asked.show_stacks()
        codes = ranks.codes()
        try:
            messages = link.exchange(Report(ranks.places(), codes), awake_s)
        except NodeLostError as lost:
            return end(ranks, Verdict(STOPPED, f"{lost}; {GO_ON}"), who)
        for message in messages:
            if "open" in message:
                ranks.board.open()
            if "end" in message:
                return end(ranks, Verdict(**message["end"]), who)


def end(ranks: Ranks, verdict: Verdict, who: str) -> int:
    """Carry out a verdict on the ranks of this machine; returns its exit code."""
    if verdict.sentence:
        log(f"{who}: {verdict.sentence}")
    if verdict.stacks:
        ranks.say_stacks(ranks.places())
    if verdict.ask:
        ranks.send(signal.SIGTERM)
    if not ranks.wait(verdict.grace_s) and verdict.grace_s:
        log(f"{who}: {len(ranks.running())} of {len(ranks.processes)} ranks did not end within {verdict.grace_s:.0f} s and are killed")
    ranks.kill()
    return verdict.code
