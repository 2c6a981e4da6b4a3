"""Supervisors of several machines that act as one: node 0 hears where all ranks are, decides, and all end with the same code.

Each sends lines of JSON over one TCP connection to node 0; a connection that breaks, or says nothing for a minute, is a node lost.
The ranks themselves meet at a free port of node 0 (torch.distributed, env://), which node 0 tells the others.
"""

import contextlib
import hashlib
import json
import select
import socket
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat.errors import Stopped, UserError
from nanochat.progress import Place
from nanochat.runtime import Group, log

SILENT_S = 60.0  # of a node, while this one was running: it is lost
SEND_S = 20.0
KNOCK_S = 0.5
OWN_FLAGS = ("--node-rank", "--ranks", "--threads")  # may differ between nodes


class NodeLostError(Exception):
    """Another node has gone; the message names it."""


@dataclass(frozen=True)
class Verdict:
    """How a run ends, on every node alike."""

    code: int
    sentence: str = ""
    stacks: bool = False  # to be written to the log first
    ask: bool = False  # the ranks to save and stop
    grace_s: float = 0.0  # before they are killed


@dataclass
class Report:
    """What a node tells node 0: where each of its ranks is and which have ended, with what code."""

    places: dict[int, Place] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)

    def pack(self) -> dict[str, Any]:
        """As plain data."""
        return {"places": self.places, "codes": self.codes}

    @classmethod
    def unpack(cls, content: dict[str, Any]) -> "Report":
        """From plain data."""
        codes = {int(rank): code for rank, code in content["codes"].items()}
        return cls({int(rank): Place(*place) for rank, place in content["places"].items()}, codes)


class Line:
    """One connection: messages as lines of JSON."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.connection, self.name = connection, name
        self.connection.settimeout(SEND_S)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.silent_s = b"", 0.0

    def send(self, **message: Any) -> None:
        """Send one message. Raises NodeLostError."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise NodeLostError(f"{self.name} cannot be reached any more ({error.strerror or error})") from None

    def receive(self, awake_s: float) -> Iterator[dict[str, Any]]:
        """Messages that have come. Raises NodeLostError if the connection has ended or is silent for too long."""
        self.silent_s += awake_s
        ended = False
        while not ended and select.select([self.connection], [], [], 0)[0]:
            try:
                piece = self.connection.recv(1 << 16)
            except OSError:
                piece = b""
            ended, self.silent_s = not piece, 0.0
            self.buffer += piece
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            yield json.loads(line)
        if ended and not lines:  # what it said last is heard first
            raise NodeLostError(f"{self.name} is gone")
        if self.silent_s > SILENT_S:
            raise NodeLostError(f"{self.name} has said nothing for {SILENT_S:.0f} s")

    def drain(self, seconds: float) -> None:
        """Read until the other side closes, so that it can read what was sent to it."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0 and select.select([self.connection], [], [], left)[0] and self.connection.recv(1 << 16):
                pass
        except OSError:
            pass
        self.connection.close()


class Leader:
    """Node 0's side, and the only one there is with one node."""

    def __init__(self, flags: Namespace, group: Group, lines: Sequence[Line]) -> None:
        self.group, self.lines = group, lines
        self.reports = {line.name: Report() for line in lines}

    @classmethod
    def meet(cls, flags: Namespace, arguments: Sequence[str], asked: Callable[[], bool]) -> "Leader":
        """Wait for the other nodes and tell each the numbers of its ranks. `asked`: whether to give up."""
        if flags.nodes == 1:
            return cls(flags, Group(0, flags.ranks, 1, "127.0.0.1", free_port() if flags.ranks > 1 else 0), [])
        met: dict[int, tuple[socket.socket, int]] = {}
        patience = Patience(flags.startup_limit, asked)
        with listening(flags.port) as server:
            while len(met) < flags.nodes - 1:
                missing = [str(node) for node in range(1, flags.nodes) if node not in met]
                patience.check(f"nodes {', '.join(missing)} of {flags.nodes} have not come to {flags.rendezvous}")
                knocks = select.select([server], [], [], KNOCK_S)[0]
                for node in [node for node, (connection, _) in met.items() if has_left(connection)]:
                    met.pop(node)[0].close()
                if knocks:
                    hello = cls._hello(server.accept()[0], flags, arguments, met)
                    met |= {hello[0]: hello[1:]} if hello else {}
        counts = [flags.ranks, *(met[node][1] for node in range(1, flags.nodes))]
        port = free_port()
        lines = []
        for node in range(1, flags.nodes):
            lines.append(Line(met[node][0], f"node {node}"))
            try:
                lines[-1].send(start=asdict(Group(sum(counts[:node]), sum(counts), flags.nodes, flags.host, port)))
            except NodeLostError as lost:
                raise Stopped(f"{lost} before training began; run the same command again") from None
        log(f"{flags.nodes} nodes with {' + '.join(map(str, counts))} ranks have met at {flags.rendezvous}")
        return cls(flags, Group(0, sum(counts), flags.nodes, flags.host, port), lines)

    @staticmethod
    def _hello(connection: socket.socket, flags: Namespace, arguments: Sequence[str], met: dict[int, Any]) -> "tuple[int, socket.socket, int] | None":
        """(node, connection, ranks) of one that belongs here; whoever does not is told why and sent away."""
        try:
            connection.settimeout(5.0)
            hello = json.loads(connection.makefile("rb").readline(1 << 16))
            node, ranks, nodes, request = int(hello["node"]), int(hello["ranks"]), int(hello["nodes"]), hello["request"]
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()  # somebody else's
            return None
        wrong = f"--nodes={nodes}: node 0 has {flags.nodes}" if nodes != flags.nodes else ""
        wrong = wrong or (f"--node-rank={node}: taken already" if node in met or not 0 < node < flags.nodes else "")
        wrong = wrong or ("the command differs from that of node 0" if request != fingerprint(arguments) else "")
        if wrong:
            log(f"a node was refused: {wrong}")
            with contextlib.suppress(NodeLostError):
                Line(connection, "it").send(refused=f"{wrong}; give every node the same command but for --node-rank, each another one")
            connection.close()
            return None
        return node, connection, ranks

    def exchange(self, own: Report, awake_s: float) -> Report:
        """What all nodes report; each is told that node 0 is there. Raises NodeLostError."""
        everything = Report(dict(own.places), dict(own.codes))
        for line in self.lines:
            for message in line.receive(awake_s):
                self.reports[line.name] = Report.unpack(message["report"])
            everything.places |= self.reports[line.name].places
            everything.codes |= self.reports[line.name].codes
            line.send(here=True)
        return everything

    def tell(self, **message: Any) -> None:
        """Say something to every node that can still hear."""
        for line in self.lines:
            try:
                line.send(**message)
            except NodeLostError as lost:
                log(str(lost))

    def close(self, seconds: float) -> None:
        """Wait until the others have heard the end."""
        for line in self.lines:
            line.drain(seconds)


class Follower:
    """The side of every other node."""

    def __init__(self, line: Line, group: Group) -> None:
        self.line, self.group = line, group

    @classmethod
    def meet(cls, flags: Namespace, arguments: Sequence[str], asked: Callable[[], bool]) -> "Follower":
        """Knock at node 0 until it opens."""
        hello = {"node": flags.node_rank, "ranks": flags.ranks, "nodes": flags.nodes, "request": fingerprint(arguments)}
        patience = Patience(flags.startup_limit, asked)
        while True:
            patience.check(f"node 0 has not answered at {flags.rendezvous}")
            try:
                line = Line(socket.create_connection((flags.host, flags.port), timeout=5.0), "node 0")
                line.send(**hello)
                break
            except (OSError, NodeLostError):
                time.sleep(KNOCK_S)
        while True:
            patience.check(f"node 0 at {flags.rendezvous} waits for other nodes")
            try:
                for message in line.receive(0.0):
                    if refused := message.get("refused"):
                        raise UserError(refused)
                    return cls(line, Group(**message["start"]))
            except NodeLostError as lost:
                raise Stopped(f"{lost} before all nodes had met; run the same command again") from None
            time.sleep(KNOCK_S / 5)

    def exchange(self, own: Report, awake_s: float) -> list[dict[str, Any]]:
        """Report to node 0; returns what it has said. Raises NodeLostError."""
        messages = list(self.line.receive(awake_s))
        if not any("end" in message for message in messages):
            self.line.send(report=own.pack())
        return messages

    def close(self) -> None:
        """Leave."""
        self.line.connection.close()


class Patience:
    """Waiting for other nodes: said after ten seconds, then every minute, and given up with exit code 75 at the limit."""

    def __init__(self, limit_s: float, asked: Callable[[], bool]) -> None:
        self.limit_s, self.asked, self.began, self.said = limit_s, asked, time.monotonic(), 0.0

    def check(self, what: str) -> None:
        """Raises Stopped if it lasts too long or the process was asked to stop."""
        waited = time.monotonic() - self.began
        if self.asked():
            raise Stopped("stopped before all nodes had met; run the same command again")
        if self.limit_s and waited > self.limit_s:
            raise Stopped(f"{what} for {waited:.0f} s; check that every node was started and can reach node 0, and run the same command again")
        if waited - self.said > (60.0 if self.said else 10.0):
            self.said = waited
            log(f"{what} for {waited:.0f} s")


def has_left(connection: socket.socket) -> bool:
    """Whether the other side of a connection, from which nothing is expected, has closed it."""
    try:
        return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def listening(port: int) -> socket.socket:
    """Listen at a port, on every address: a host's own name may lead to its loopback. Raises UserError if it is in use."""
    try:
        return socket.create_server(("", port), backlog=64)
    except OSError as error:
        raise UserError(f"--rendezvous: port {port} of this machine cannot be used ({error.strerror}); give another one") from None


def fingerprint(arguments: Sequence[str]) -> str:
    """The request as all nodes must share it."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in OWN_FLAGS:
            kept.append(argument)
        skip = not skip and argument in OWN_FLAGS
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
