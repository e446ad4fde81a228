"""What the Raft machine itself costs: no disk, no network, no codec, only machines handing each other records.

    python -m tests.bench.bench_core

First whole clusters in this one thread: committed entries per second of CPU, and messages per entry. Then the life of
an entry on one leader and on one follower alone, in microseconds of CPU per entry.
"""

from __future__ import annotations

import gc
import random
import time

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.messages import AppendRequest, AppendResponse, Message, VoteResponse
from pyraftkv.core.ready import Applied, Campaign, Input, Propose, Ready, Saved
from pyraftkv.core.types import LEADER, Entry, Membership

PAYLOAD = b"x" * 256
ENTRIES = 100_000
BATCHES = (1, 64)


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
        self.inboxes[1].append(Campaign())
        self.run()
        assert self.rafts[1].role is LEADER
        self.messages = 0

    def run(self) -> None:
        """Hand messages round until all is quiet."""
        busy = True
        while busy:
            busy = False
            for node, raft in self.rafts.items():
                inputs = self.inboxes[node]
                if inputs:
                    busy = True
                    self.inboxes[node] = []
                    raft.feed(inputs)
                    ready = raft.ready()
                    self.complete(node, ready)
                    if ready.again:
                        self.complete(node, raft.ready())

    def complete(self, node: int, ready: Ready) -> None:
        """Pretend that the disk and the state machine are done."""
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


def measure_cluster(size: int, batch: int) -> None:
    """Commit and apply `ENTRIES` entries on every member."""
    loop = Loop(size)
    gc.collect()
    begun = time.process_time()
    for _ in range(ENTRIES // batch):
        loop.inboxes[1].append(Propose([PAYLOAD] * batch))
        loop.run()
    seconds = time.process_time() - begun
    count = ENTRIES // batch * batch
    assert loop.rafts[1].applied == count + 1
    print(
        f"{size} members, batch {batch:>2}: {count / seconds:>9,.0f} entries/s   "
        f"{loop.messages / count:5.2f} messages/entry"
    )


def measure_leader(batch: int) -> None:
    """Propose, save, hear both followers, commit, apply: four turns of the leader's loop per batch."""
    raft = make(1, 3)
    raft.feed([Campaign()])
    ready = raft.ready()
    assert ready.save is not None
    raft.feed([Saved(ready.save.number), VoteResponse(1, 2, 1, False, True)])
    assert raft.role is LEADER
    gc.collect()
    begun = time.process_time()
    for _ in range(ENTRIES // batch):
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
    print(f"leader,   batch {batch:>2}: {seconds / (ENTRIES // batch * batch) * 1e6:6.2f} us/entry")


def measure_follower(batch: int) -> None:
    """Append, save, learn the commit index, apply: three turns of the follower's loop per batch."""
    raft = make(1, 3)
    batches = [
        [Entry(first + offset, 1, PAYLOAD) for offset in range(batch)]
        for first in range(1, ENTRIES // batch * batch, batch)
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
    print(f"follower, batch {batch:>2}: {seconds / (ENTRIES // batch * batch) * 1e6:6.2f} us/entry")


def main() -> None:
    """Run all sizes and batches."""
    for size in (3, 5):
        for batch in BATCHES:
            measure_cluster(size, batch)
    for batch in BATCHES:
        measure_leader(batch)
        measure_follower(batch)


if __name__ == "__main__":
    main()
