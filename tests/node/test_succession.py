"""A leader whose process has ended: who stands, when, how often, and who does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from random import Random
from typing import Any

from pyraftkv.core import Campaign, ForgetLeader, Raft
from pyraftkv.core.messages import Heartbeat, VoteRequest
from pyraftkv.core.types import FOLLOWER, NO_NODE, PRE_CANDIDATE
from pyraftkv.node.succession import AGAIN_SECONDS_MAX, FIRST_SECONDS_MAX, TRIES_MAX, Succession
from pyraftkv.sim.loop import SimLoop
from tests.core.machines import machine, step

LEADER = 2


class Bed:
    """A follower of member 2, in virtual time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seed: int = 1, honours_leases: bool = False) -> None:
        self.loop = loop
        self.raft: Raft = machine(1, 1, pre_vote=True)
        self.stood: list[float] = []
        step(self.raft, Heartbeat(1, LEADER, 1, 0, 0))
        self.succession = Succession(
            self.raft, loop=loop, rng=Random(seed), honours_leases=honours_leases, feed=self._feed
        )
        self._begun = loop.time()

    def _feed(self, given: ForgetLeader | Campaign) -> None:
        if isinstance(given, Campaign):
            self.stood.append(self.loop.time() - self._begun)
        step(self.raft, given)


def simulate(main: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
    """Run a test in virtual time."""
    loop = SimLoop(Random(1))
    try:
        loop.run(main(loop), until=60.0)
    finally:
        loop.close()


def test_it_forgets_the_leader_and_asks_soon_and_a_few_times() -> None:
    """In rehearsals: the term stays. The waits grow; after that the election timeout is its clock."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        bed = Bed(loop)
        bed.succession.gone(LEADER)
        assert bed.raft.leader == NO_NODE
        await asyncio.sleep(10)
        assert len(bed.stood) == TRIES_MAX
        assert 0 <= bed.stood[0] <= FIRST_SECONDS_MAX + 0.001
        waits = [after - before for before, after in pairwise(bed.stood)]
        for number, wait in enumerate(waits):
            longest = AGAIN_SECONDS_MAX * 2**number
            assert longest / 2 <= wait <= longest + 0.001
        assert bed.raft.role is PRE_CANDIDATE
        assert bed.raft.term == 1

    simulate(main)


def test_who_has_forgotten_its_leader_supports_another_one() -> None:
    """A vote that it would refuse, for it heard the leader a moment ago, it gives."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        for is_gone in (False, True):
            bed = Bed(loop)
            if is_gone:
                bed.succession.gone(LEADER)
            ready = step(bed.raft, VoteRequest(1, 3, 2, 2, 1, True, False))
            assert [message.granted for message in ready.messages] == ([True] if is_gone else [])
            bed.succession.close()

    simulate(main)


def test_not_everybody_stands_at_once() -> None:
    """The wait is drawn."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        beds = [Bed(loop, seed=seed) for seed in range(5)]
        for bed in beds:
            bed.succession.gone(LEADER)
        await asyncio.sleep(FIRST_SECONDS_MAX)
        assert len({round(bed.stood[0], 4) for bed in beds}) > 3
        for bed in beds:
            bed.succession.close()

    simulate(main)


def test_a_leader_that_is_heard_again_was_not_gone() -> None:
    """Nobody stands then; and the term has not moved."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        bed = Bed(loop)
        bed.succession.gone(LEADER)
        step(bed.raft, Heartbeat(1, LEADER, 1, 0, 0))
        await asyncio.sleep(10)
        assert bed.stood == []
        assert (bed.raft.role, bed.raft.leader, bed.raft.term) == (FOLLOWER, LEADER, 1)

    simulate(main)


def test_another_member_s_end_is_no_reason() -> None:
    """Whom it does not follow it does not succeed."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        bed = Bed(loop)
        bed.succession.gone(3)
        await asyncio.sleep(10)
        assert bed.stood == []
        assert bed.raft.leader == LEADER

    simulate(main)


def test_who_honours_leases_forgets_nobody() -> None:
    """It has promised to elect no one else for an election timeout, and the leader may read by that."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        bed = Bed(loop, honours_leases=True)
        bed.succession.gone(LEADER)
        await asyncio.sleep(10)
        assert bed.stood == []
        assert bed.raft.leader == LEADER

    simulate(main)


def test_a_member_that_is_closed_stands_no_more() -> None:
    """What it had in mind is called off."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        bed = Bed(loop)
        bed.succession.gone(LEADER)
        bed.succession.close()
        await asyncio.sleep(10)
        assert bed.stood == []

    simulate(main)
