"""What the Raft machine itself costs: no disk, no network, no codec, only machines handing each other records.

    python -m tests.bench.bench_core --runs 5

First whole clusters in this one thread: entries that all members have committed and applied, per second of CPU, and
messages per entry. Then the life of an entry on one leader and on one follower alone, in microseconds of CPU per entry.
Each row is the median of several runs, with the smallest and the largest beside it: the runs go round all rows, so that
a busy minute of the machine spoils one run of each and not all of one.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat
from statistics import median

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.messages import AppendRequest, AppendResponse, Message, VoteResponse
from pyraftkv.core.ready import Applied, Campaign, Input, Propose, Ready, Saved
from pyraftkv.core.types import LEADER, Entry, Membership

PAYLOAD = b"x" * 256
ENTRIES = {1: 10_000, 64: 100_000}
"""How many entries a run takes, by the size of its batches."""


def make(node: int, size: int) -> Raft:
    """Return a member of a cluster of ``size``."""
    membership = Membership(voters=frozenset(range(1, size + 1)))
    return Raft(Config(id=node, pre_vote=False), stored=Stored(membership=membership), rng=random.Random(node))


class Loop:
    """Members that answer each other at once, saves and applies included."""

    def __init__(self, size: int) -> None:
        self.rafts = {node: make(node, size) for node in range(1, size + 1)}
        self.messages = 0
        self.inboxes: dict[int, list[Input]] = {node: [] for node in self.rafts}
        self.again: set[int] = set()
        self.inboxes[1].append(Campaign())
        self.run(iter(()))
        assert self.rafts[1].role is LEADER
        self.messages = 0

    def run(self, proposals: Iterator[Propose]) -> None:
        """Hand messages round until all is quiet, and one more proposal to the leader whenever it commits."""
        busy = True
        while busy:
            busy = False
            for node, raft in self.rafts.items():
                inputs = self.inboxes[node]
                if not inputs and node not in self.again:
                    continue
                busy = True
                self.inboxes[node] = []
                raft.feed(inputs)
                ready = raft.ready()
                self.complete(node, ready)
                if ready.committed and node == 1:
                    self.inboxes[1].extend(islice(proposals, 1))

    def complete(self, node: int, ready: Ready) -> None:
        """Pretend that the disk and the state machine are done."""
        self.again.discard(node)
        if ready.again:
            self.again.add(node)
        self.post(ready.messages)
        if ready.save is not None:
            self.inboxes[node].append(Saved(ready.save.number))
        self.post(ready.messages_after_save)
        if ready.committed:
            self.inboxes[node].append(Applied(ready.committed[-1].index))

    def post(self, messages: list[Message]) -> None:
        """Put messages into their receivers' inboxes."""
        self.messages += len(messages)
        for message in messages:
            self.inboxes[message.to].append(message)


def measure_cluster(size: int, batch: int, *, lone: bool) -> tuple[float, float]:
    """Commit and apply `ENTRIES` on every member; return entries per second, and messages per entry.

    A ``lone`` batch waits until everybody has heard that the one before is committed; else it comes as soon as the
    leader has committed that, and the news rides along with it.
    """
    loop = Loop(size)
    gc.collect()
    begun = time.process_time()
    proposals = repeat(Propose([PAYLOAD] * batch), ENTRIES[batch] // batch)
    for proposal in proposals:
        loop.inboxes[1].append(proposal)
        loop.run(iter(()) if lone else proposals)
    seconds = time.process_time() - begun
    count = ENTRIES[batch] // batch * batch
    assert {raft.applied for raft in loop.rafts.values()} == {count + 1}
    return count / seconds, loop.messages / count


def measure_leader(batch: int) -> float:
    """Propose, save, hear both followers, commit, apply: four turns per batch; return microseconds per entry."""
    raft = make(1, 3)
    raft.feed([Campaign()])
    ready = raft.ready()
    assert ready.save is not None
    raft.feed([Saved(ready.save.number), VoteResponse(1, 2, 1, False, True)])
    assert raft.role is LEADER
    gc.collect()
    begun = time.process_time()
    for _ in range(ENTRIES[batch] // batch):
        raft.feed([Propose([PAYLOAD] * batch)])
        ready = raft.ready()
        assert ready.save is not None
        index = raft.last_index
        answers = [AppendResponse(1, node, 1, index, False, 0, 0) for node in (2, 3)]
        raft.feed([Saved(ready.save.number), *answers])
        ready = raft.ready()
        assert ready.again
        raft.ready()
        raft.feed([Applied(ready.committed[-1].index), *answers])  # The answers to the commit index.
        raft.ready()
    seconds = time.process_time() - begun
    assert raft.applied == raft.last_index
    return seconds / (ENTRIES[batch] // batch * batch) * 1e6


def measure_follower(batch: int) -> float:
    """Append, save, learn the commit index, apply: three turns per batch; return microseconds per entry."""
    raft = make(1, 3)
    batches = [
        [Entry(first + offset, 1, PAYLOAD) for offset in range(batch)]
        for first in range(1, ENTRIES[batch] // batch * batch + 1, batch)
    ]
    gc.collect()
    begun = time.process_time()
    for entries in batches:
        last = entries[-1].index
        prev = last - batch
        raft.feed([AppendRequest(1, 2, 1, prev, 1 if prev else 0, entries, prev)])
        ready = raft.ready()
        assert ready.save is not None
        raft.feed([Saved(ready.save.number), AppendRequest(1, 2, 1, last, 1, [], last)])
        ready = raft.ready()
        raft.feed([Applied(ready.committed[-1].index)])
        raft.ready()
    seconds = time.process_time() - begun
    assert raft.applied == raft.last_index
    return seconds / (ENTRIES[batch] // batch * batch) * 1e6


def spread(values: list[float], unit: str) -> str:
    """Return the median of several runs, and how far they lie apart."""
    digits = 0 if min(values) >= 100 else 2
    return f"{median(values):>9,.{digits}f} {unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main() -> None:
    """Run all sizes and batches, several times."""
    parser = argparse.ArgumentParser(description="The cost of the Raft machine alone.")
    parser.add_argument("--runs", type=int, default=5, help="how often each row is measured")
    runs = parser.parse_args().runs
    clusters = [(size, batch, lone) for size in (3, 5) for batch in ENTRIES for lone in (True, False)]
    alone: dict[str, Callable[[], float]] = {
        f"{name}, batch {batch:>2}": partial(measure, batch)
        for batch in ENTRIES
        for name, measure in (("leader", measure_leader), ("follower", measure_follower))
    }
    rates: dict[tuple[int, int, bool], list[float]] = {row: [] for row in clusters}
    messages: dict[tuple[int, int, bool], float] = {}
    costs: dict[str, list[float]] = {row: [] for row in alone}
    for _ in range(runs):
        for row in clusters:
            size, batch, lone = row
            rate, messages[row] = measure_cluster(size, batch, lone=lone)
            rates[row].append(rate)
        for name, measure_one in alone.items():
            costs[name].append(measure_one())
    for row in clusters:
        size, batch, lone = row
        told = f"{spread(rates[row], 'entries/s')}   {messages[row]:5.2f} messages/entry"
        print(f"{size} members, batch {batch:>2}, {'one at a time' if lone else 'without pause'}: {told}")
    for name, values in costs.items():
        print(f"{name:<19}: {spread(values, 'us/entry')}")


if __name__ == "__main__":
    main()
