"""A short life of a cluster, made up: what the diagram is tried on. Not a simulation, only its trace.

Three members elect n1, serve writes, lose n1 to a partition and elect n2. n1, cut off and not knowing, answers a read
from what it holds (the bug of the story), n3 loses its power, comes back, and the network heals.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.types import NORMAL, Entry, Role
from pyraftkv.sim.trace import Trace
from pyraftkv.store.commands import PutKey, RangeQuery
from pyraftkv.store.values import KeyValue, PutResult, RangeResult

MEMBERS = ("n1", "n2", "n3")
VIOLATION = (
    "stale read: c2 read 'x' = '<old>' at revision 7 although c1's put of '<new> & \"quoted\"' had returned before"
)

Planned = tuple[float, str, str, dict[str, object]]


class Story:
    """Plans events in any order; `trace` plays them in the order of time."""

    def __init__(self, seed: int, *, operations_per_second: float = 12.0) -> None:
        self.random = Random(seed)
        self.planned: list[Planned] = []
        self.rate = operations_per_second
        self.index = 1
        self.numbers: Iterator[int] = count(1)

    def trace(self) -> Trace:
        trace = Trace()
        for at, host, kind, detail in sorted(self.planned, key=lambda each: each[0]):
            trace.add(at, host, kind, **detail)
        return trace

    def add(self, at: float, host: str, kind: str, **detail: object) -> None:
        self.planned.append((at, host, kind, detail))

    def send(self, at: float, source: str, target: str, what: object, fate: str = "delivered") -> float:
        """Plan a message; return when it arrives."""
        arrived_at = at + self.random.uniform(0.002, 0.012) * (12 if fate == "late" else 1)
        there = None if fate == "dropped" else arrived_at
        self.add(at, source, "message", target=target, what=what, sent_at=at, arrived_at=there, fate=fate)
        return arrived_at

    def elect(self, at: float, leader: str, voters: tuple[str, ...], term: int) -> float:
        """Plan an election; return when it is won."""
        number = int(leader[1])
        self.add(at, leader, "role", role=Role.CANDIDATE, term=term)
        won = at
        for other in voters:
            to = int(other[1])
            asked = self.send(at, leader, other, VoteRequest(to, number, term, self.index, term - 1, False, False))
            self.add(asked, other, "role", role=Role.FOLLOWER, term=term)
            won = max(won, self.send(asked + 0.001, other, leader, VoteResponse(number, to, term, False, True)))
        self.add(won, leader, "role", role=Role.LEADER, term=term)
        return won

    def lead(self, since: float, until: float, leader: str, reached: tuple[str, ...], term: int) -> None:
        """Plan heartbeats and clients' writes while `leader` leads; what it sends to others is dropped."""
        number = int(leader[1])
        others = [name for name in MEMBERS if name != leader]
        at = since
        while at < until:
            for other in others:
                beat = Heartbeat(int(other[1]), number, term, self.index, 0)
                if other not in reached:
                    self.send(at, leader, other, beat, "dropped")
                    continue
                there = self.send(at, leader, other, beat)
                self.send(there + 0.0005, other, leader, HeartbeatResponse(number, int(other[1]), term, 0))
            at += 0.05
        if not reached:
            return
        at = since + 0.02
        while at < until - 0.1:
            self.put(at, leader, reached, term, f"c{self.random.randint(1, 2)}")
            at += self.random.expovariate(self.rate)

    def put(self, at: float, leader: str, reached: tuple[str, ...], term: int, client: str) -> None:
        """Plan a write and its replication."""
        number, op = int(leader[1]), next(self.numbers)
        self.index += 1
        index = self.index
        key, value = f"job/{self.random.randint(1, 9)}".encode(), f"w{op}".encode()
        self.add(at, client, "invoke", op=op, command=PutKey(key, value))
        at += 0.003
        committed = at
        for other in reached:
            to = int(other[1])
            entry = Entry(term, index, NORMAL, value)
            fate = self.random.choices(("delivered", "late", "duplicated", "corrupted"), (60, 1, 1, 1))[0]
            there = self.send(
                at, leader, other, AppendRequest(to, number, term, index - 1, term, [entry], index - 1), fate
            )
            answer = AppendResponse(number, to, term, index, False, 0, 0)
            committed = max(committed, self.send(there + 0.004, other, leader, answer))
            self.add(committed + 0.05, other, "commit", index=index)
        self.add(committed, leader, "commit", index=index)
        self.add(committed, leader, "apply", index=index)
        self.add(committed + 0.004, client, "return", op=op, outcome="ok", result=PutResult(index))


def stale_read(seed: int = 4711, *, operations_per_second: float = 12.0) -> Trace:
    """The story above."""
    story = Story(seed, operations_per_second=operations_per_second)
    for name in MEMBERS:
        story.add(0.0, name, "start", boot=1)
        story.add(0.001, name, "role", role=Role.FOLLOWER, term=0)
    won = story.elect(0.25, "n1", ("n2", "n3"), 1)
    story.lead(won, 2.0, "n1", ("n2", "n3"), 1)
    story.add(1.3, "n3", "disk", what="slow fsync: 80 ms")
    story.add(2.0, "", "fault", text="partition n1 | n2 n3")
    for other in ("n2", "n3"):
        for source, target in (("n1", other), (other, "n1")):
            story.add(2.0, "", "cut", source=source, target=target)
    story.lead(2.02, 4.2, "n1", (), 1)
    won = story.elect(2.45, "n2", ("n3",), 2)
    story.lead(won, 3.1, "n2", ("n3",), 2)
    story.add(3.1, "n3", "crash", how="power loss")
    story.add(3.12, "n2", "clock", what="jumps 0.4 s")
    story.add(3.5, "n3", "start", boot=2)
    story.add(3.502, "n3", "role", role=Role.FOLLOWER, term=2)
    story.lead(3.52, 4.2, "n2", ("n3",), 2)
    story.lead(4.24, 4.6, "n2", ("n1", "n3"), 2)
    story.add(2.6, "n1", "pause")
    story.add(2.95, "n1", "resume")
    story.add(3.72, "c1", "invoke", op=901, command=PutKey(b"x", b'<new> & "quoted"'))
    story.add(3.76, "c1", "return", op=901, outcome="ok", result=PutResult(story.index + 1))
    story.add(3.3, "c2", "invoke", op=902, command=PutKey(b"job/7", b"lost?"))
    story.add(3.85, "c2", "invoke", op=903, command=RangeQuery(b"x"))
    old = RangeResult(7, [KeyValue(b"x", b"<old>", 5, 7, 2)], False, 1)
    story.add(3.87, "c2", "return", op=903, outcome="ok", result=old)
    for other in ("n2", "n3"):
        for source, target in (("n1", other), (other, "n1")):
            story.add(4.2, "", "heal", source=source, target=target)
    story.add(4.23, "n1", "role", role=Role.FOLLOWER, term=2)
    story.add(4.6, "", "violation", text=VIOLATION, ops=[("c1", 901), ("c2", 903)])
    return story.trace()
