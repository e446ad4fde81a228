"""What the Raft machine itself costs: no disk, no network, no codec, only machines handing each other records.

    python -m tests.bench.bench_core

Prints, for clusters of three and five and for batches of 1 and 64 proposals: committed entries per second of CPU, all
members in this one thread; the leader's and one follower's own microseconds per entry (some 0.5 us of clock reading per
turn included); messages per entry.
"""

from __future__ import annotations

import gc
import random
import time

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.messages import Message
from pyraftkv.core.ready import Applied, Campaign, Input, Propose, Ready, Saved
from pyraftkv.core.types import LEADER, Membership

PAYLOAD = b"x" * 256
ENTRIES = 100_000


class Loop:
    """Members that answer each other at once, saves and applies included."""

    def __init__(self, size: int) -> None:
        membership = Membership(voters=frozenset(range(1, size + 1)))
        self.rafts = {
            node: Raft(Config(id=node, pre_vote=False), stored=Stored(membership=membership), rng=random.Random(node))
            for node in range(1, size + 1)
        }
        self.seconds = dict.fromkeys(self.rafts, 0.0)
        self.messages = 0
        self.inboxes: dict[int, list[Input]] = {node: [] for node in self.rafts}
        self.inboxes[1].append(Campaign())
        self.run()
        assert self.rafts[1].role is LEADER

    def run(self) -> None:
        """Hand messages round until all is quiet."""
        busy = True
        while busy:
            busy = False
            for node in self.rafts:
                if self.inboxes[node]:
                    busy = True
                    self.turn(node)

    def turn(self, node: int) -> None:
        """Give one member what it has received, and do at once all that it asks for."""
        inputs, self.inboxes[node] = self.inboxes[node], []
        raft = self.rafts[node]
        begun = time.thread_time()
        raft.feed(inputs)
        ready = raft.ready()
        self.seconds[node] += time.thread_time() - begun
        self.post(ready.messages)
        self.complete(node, ready)

    def complete(self, node: int, ready: Ready) -> None:
        """Pretend that the disk and the state machine are done."""
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


def measure(size: int, batch: int) -> None:
    """Commit `ENTRIES` entries in batches and print what it took."""
    loop = Loop(size)
    loop.seconds = dict.fromkeys(loop.rafts, 0.0)
    loop.messages = 0
    gc.collect()
    begun = time.thread_time()
    for _ in range(ENTRIES // batch):
        loop.inboxes[1].append(Propose([PAYLOAD] * batch))
        loop.run()
    seconds = time.thread_time() - begun
    count = ENTRIES // batch * batch
    assert loop.rafts[1].applied == count + 1
    print(
        f"{size} members, batch {batch:>2}: {count / seconds:>9,.0f} entries/s   "
        f"leader {loop.seconds[1] / count * 1e6:5.2f} us/entry   "
        f"follower {loop.seconds[2] / count * 1e6:5.2f} us/entry   "
        f"{loop.messages / count:5.2f} messages/entry"
    )


def main() -> None:
    """Run all sizes and batches."""
    for size in (3, 5):
        for batch in (1, 64):
            measure(size, batch)


if __name__ == "__main__":
    main()
