"""To whom a node keeps connections while members go: in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from pyraftkv.node.connections import Connections
from pyraftkv.protocol import AddMember, ChangeMembers, RemoveMember
from pyraftkv.server import ClientPort
from pyraftkv.sim.loop import SimLoop
from pyraftkv.transport import MemoryNetwork
from tests.node.test_peers import hello, roster

TIMEOUT_SECONDS = 1.0


class Bed:
    """Member 1 of three, and the changes that it applies."""

    def __init__(self) -> None:
        nobody: Any = None  # no client asks it anything
        self.connections = Connections(
            hello(1),
            {"a": "h:1"},
            transport=MemoryNetwork().transport("h:1"),
            clients=ClientPort(nobody),
            election_timeout_seconds=TIMEOUT_SECONDS,
            removed=pytest.fail,
        )
        self.changes: list[ChangeMembers] = []
        self.apply()

    def apply(self, *changes: ChangeMembers) -> None:
        """Follow the table after these changes too."""
        self.changes += changes
        self.connections.adopt(roster(*self.changes))

    def exchange(self, number: int) -> None:
        """Take one more member in, and out again."""
        self.apply(ChangeMembers([AddMember(f"x{number}", f"x:{number}", 100 + number, learner=True)]))
        self.apply(ChangeMembers([RemoveMember(number)]))

    @property
    def dialled(self) -> list[int]:
        """Return who is dialled."""
        return list(self.connections.peers.addresses)


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    """A loop in virtual time."""
    loop = SimLoop(Random(1))
    yield loop
    loop.close()


def test_each_who_is_removed_is_let_go_in_its_time_however_many_follow(loop: SimLoop) -> None:
    """Members are exchanged one after another, faster than an election timeout: the first of them is not kept for it.

    A change that removes nobody lets nobody stay longer either.
    """

    async def main() -> None:
        bed = Bed()
        step_seconds = TIMEOUT_SECONDS / 4
        for number in range(4, 40):
            bed.exchange(number)
            await asyncio.sleep(step_seconds / 2)
            assert set(range(max(4, number - 3), number + 1)) <= set(bed.dialled), "each is still to hear of it"
            assert len(bed.dialled) <= 2 + 5
            bed.apply()
            await asyncio.sleep(step_seconds / 2)
        await asyncio.sleep(TIMEOUT_SECONDS)
        assert bed.dialled == [2, 3]
        bed.connections.close()

    loop.run(main(), until=60.0)
