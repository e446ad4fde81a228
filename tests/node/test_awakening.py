"""After a start: who stands early, and who does not."""

from __future__ import annotations

from random import Random

import pytest

from pyraftkv.core import Campaign, Raft
from pyraftkv.core.messages import Heartbeat
from pyraftkv.core.types import PRE_CANDIDATE, Membership
from pyraftkv.node.awakening import HEARTBEATS_WAITED, Awakening
from tests.core.machines import machine, step, voters

HEARTBEAT_SECONDS = 0.1
EARLIEST = HEARTBEATS_WAITED * HEARTBEAT_SECONDS
LATEST = 2 * EARLIEST


class Bed:
    """A member that has just started, with those it is connected to."""

    def __init__(self, *connected: int, membership: Membership | None = None, seed: int = 1) -> None:
        self.raft: Raft = machine(1, 1, pre_vote=True, membership=membership)
        self.connected = {1, *connected}
        self.stood: list[float] = []
        self._now = 0.0
        self._awakening = Awakening(
            self.raft,
            connected=lambda: self.connected,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            rng=Random(seed),
            feed=self._stand,
        )

    def _stand(self, campaign: Campaign) -> None:
        self.stood.append(self._now)
        step(self.raft, campaign)

    def pass_time(self, until: float) -> None:
        """Let the member look after itself every few milliseconds."""
        while self._now < until:
            self._awakening.tend(self._now)
            self._now += 0.005


def test_with_a_quorum_and_no_leader_it_stands_soon_and_once() -> None:
    """It rehearses, and after that the election timeout is its clock."""
    bed = Bed(2)
    bed.pass_time(5.0)
    assert len(bed.stood) == 1
    assert EARLIEST <= bed.stood[0] <= LATEST + 0.01
    assert bed.raft.role is PRE_CANDIDATE
    assert bed.raft.term == 1


def test_not_everybody_stands_at_once() -> None:
    """The wait is drawn."""
    beds = [Bed(2, seed=seed) for seed in range(5)]
    for bed in beds:
        bed.pass_time(1.0)
    assert len({bed.stood[0] for bed in beds}) > 3


@pytest.mark.parametrize(
    ("connected", "membership"),
    [
        ((), voters(1, 2, 3)),
        ((4,), voters(1, 2, 3)),
        ((2,), Membership(voters=frozenset({1, 2}), outgoing=frozenset({1, 3, 4}))),
    ],
)
def test_without_a_quorum_it_waits(connected: tuple[int, ...], membership: Membership) -> None:
    """Of both configurations, if there are two. The time counts from when there is one."""
    bed = Bed(*connected, membership=membership)
    bed.pass_time(5.0)
    assert bed.stood == []
    bed.connected |= {2, 3}
    bed.pass_time(6.0)
    assert 5.0 + EARLIEST <= bed.stood[0] <= 5.0 + LATEST + 0.01


def test_a_quorum_that_goes_again_starts_the_wait_anew() -> None:
    """Who has lost its connections hears of no leader."""
    bed = Bed(2)
    bed.pass_time(EARLIEST / 2)
    bed.connected.discard(2)
    bed.pass_time(1.0)
    bed.connected.add(2)
    bed.pass_time(2.0)
    assert bed.stood[0] >= 1.0 + EARLIEST


def test_who_has_heard_of_a_leader_never_stands_early() -> None:
    """Not even when that leader is gone: then it is as if it had always been there."""
    bed = Bed(2, 3)
    step(bed.raft, Heartbeat(1, 2, 1, 0, 0))
    bed.pass_time(0.1)
    bed.raft.leader = 0
    bed.pass_time(5.0)
    assert bed.stood == []
