"""The leader's lease: what time it is counted from, and everything that ends it (`pyraftkv.node.lease`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from pyraftkv import Node, errors
from pyraftkv.core import Raft
from pyraftkv.core.messages import HeartbeatResponse
from pyraftkv.core.ready import Tick, TransferLeadership
from pyraftkv.node.lease import ROUNDS_MAX, LeaderLease, boot_clock
from tests.core.machines import ELECTION_TICKS, ack, lead, machine, step, step_all
from tests.node.support import asynchronous, cluster_of, fast, refused, until

SECONDS = 1.0


class Leased:
    """A leader of three, its lease, and a clock that goes by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.applied = 1_000
        self.raft: Raft = lead(machine(lease_reads=True))
        step_all(self.raft, ack(self.raft, 2, 1))
        self.lease = LeaderLease(self.raft, clock=lambda: self.now, seconds=SECONDS, applied=lambda: self.applied)

    def beat(self, *, takes: float = 0.0) -> int:
        """Send a round, in a turn that takes so long; return its number."""
        before = self.lease.now()
        step(self.raft, Tick())
        self.now += takes
        self.lease.sent(before)
        return self.raft.round

    def answer(self, number: int, *, sender: int = 2) -> None:
        """Let a promise upon that round arrive."""
        step(self.raft, HeartbeatResponse(1, sender, 1, number, ELECTION_TICKS))


def test_a_lease_begins_with_a_quorums_promises() -> None:
    """And not before."""
    leased = Leased()
    assert not leased.lease.holds()
    number = leased.beat()
    assert not leased.lease.holds()
    leased.answer(number)
    assert leased.lease.holds()


def test_a_lease_counts_from_when_its_round_left() -> None:
    """1. A round leaves at 0.0 and is answered at 0.9. 2. The promise was given just after 0.0, so it ends at 1.0."""
    leased = Leased()
    number = leased.beat()
    leased.now += 0.9 * SECONDS
    leased.answer(number)
    assert leased.lease.holds()
    leased.now += 0.1 * SECONDS
    assert not leased.lease.holds()


def test_a_pause_while_the_round_is_made_makes_the_lease_shorter() -> None:
    """The time is that from before the turn, whatever happens in it."""
    leased = Leased()
    leased.answer(leased.beat(takes=0.9 * SECONDS))
    assert leased.lease.holds()
    leased.now += 0.1 * SECONDS
    assert not leased.lease.holds()


def test_a_lease_is_over_after_a_pause() -> None:
    """The clock is asked each time, not when a promise arrives; the next round begins another lease."""
    leased = Leased()
    leased.answer(leased.beat())
    leased.now += 60.0
    assert not leased.lease.holds()
    number = leased.beat()
    assert not leased.lease.holds()
    leased.answer(number)
    assert leased.lease.holds()


def test_each_round_prolongs_the_lease_and_a_late_answer_does_not_shorten_it() -> None:
    """The newest round with a quorum's promises counts."""
    leased = Leased()
    numbers = []
    for _ in range(3):
        leased.now += 0.4 * SECONDS
        numbers.append(leased.beat())
    leased.answer(numbers[1])
    leased.answer(numbers[0], sender=3)
    leased.now += 0.5 * SECONDS
    assert leased.lease.holds()
    leased.now += 0.1 * SECONDS
    assert not leased.lease.holds()
    leased.answer(numbers[2], sender=3)
    assert leased.lease.holds()


def test_an_answer_to_an_older_round_does_not_bring_its_time_back() -> None:
    """1. A round of another quorum was forgotten, being older than what holds. 2. Now only that one would count: no."""
    leased = Leased()
    first = leased.beat()
    leased.now += 0.1
    second = leased.beat()
    leased.answer(second)
    assert leased.lease.holds()
    leased.raft._reads._promised = {2: first}
    assert not leased.lease.holds()


def test_there_is_no_lease_for_what_is_not_applied() -> None:
    """What is committed here may have been acknowledged elsewhere; the state that would be read lacks it."""
    leased = Leased()
    leased.answer(leased.beat())
    leased.applied = leased.raft.commit - 1
    assert not leased.lease.holds()
    leased.applied = leased.raft.commit
    assert leased.lease.holds()


def test_a_transfer_ends_the_lease_and_its_failure_does_not_bring_it_back() -> None:
    """`TimeoutNow` may be delivered at any time, and passes whatever is promised after it."""
    leased = Leased()
    leased.answer(leased.beat())
    step(leased.raft, TransferLeadership(2))
    assert not leased.lease.holds()
    for _ in range(30):
        leased.now += 0.1
        leased.answer(leased.beat())
    assert not leased.lease.holds()


def test_rounds_are_remembered_as_far_as_they_can_matter() -> None:
    """Reads may begin thousands of rounds in a second; one that follows another closely goes by that one's time."""
    leased = Leased()
    for _ in range(20 * ROUNDS_MAX):
        leased.now += SECONDS / ROUNDS_MAX / 10
        number = leased.beat()
        leased.answer(number)
        assert leased.lease.holds()
    assert len(leased.lease._sent) <= ROUNDS_MAX + 1
    leased.now += SECONDS - 2 * SECONDS / ROUNDS_MAX
    assert leased.lease.holds()
    leased.now += 2 * SECONDS / ROUNDS_MAX
    assert not leased.lease.holds()


def test_a_round_that_is_sent_again_keeps_its_time() -> None:
    """A turn that makes no round changes nothing, whenever it is."""
    leased = Leased()
    number = leased.beat()
    leased.now += 0.9 * SECONDS
    leased.lease.sent(leased.lease.now())
    leased.answer(number)
    leased.now += 0.1 * SECONDS
    assert not leased.lease.holds()


# --- Clocks and settings ---------------------------------------------------------------------------------------------


def test_the_clock_counts_suspended_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no clock is known to do so there is none, and so no lease."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0, time.CLOCK_MONOTONIC: 3.0}.get)
        assert read(boot_clock()) == 7.0
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_MONOTONIC: 3.0}.get)
    assert read(boot_clock()) == 3.0
    monkeypatch.setattr(sys, "platform", "win32")
    assert boot_clock() is time.monotonic
    monkeypatch.setattr(sys, "platform", "plan9")
    assert boot_clock() is None


def read(clock: Callable[[], float] | None) -> float:
    """Read a clock that there must be."""
    assert clock is not None
    return clock()


def test_a_lease_is_shorter_than_a_promise_by_a_tick_and_the_drift() -> None:
    """The first tick of a promise may come at once, and its giver's clock may be fast."""
    config = fast(tick_seconds=0.01, election_timeout_seconds=1.0, clock_drift_max=0.2)
    assert config.lease_seconds == pytest.approx(0.99 * 0.8)
    for drift in (-0.1, 1.0):
        with pytest.raises(errors.ConfigurationError, match="clock_drift_max"):
            fast(clock_drift_max=drift).check()


# --- Nodes -----------------------------------------------------------------------------------------------------------


def rounds(node: Node) -> int:
    """Return how many read rounds a node has begun."""
    member = node._member
    assert member is not None
    return member.reads._context


def has_lease(node: Node) -> bool:
    """Whether the node would answer by itself now."""
    member = node._member
    return member is not None and member.freshness.has_lease


async def lease_reads(node: Node, count: int = 5) -> tuple[set[str], int]:
    """Read so often under the lease; return what was read, and how many rounds that took."""
    before = rounds(node)
    found = [await node.get("k", consistency="lease") for _ in range(count)]
    return {kv.text for kv in found if kv is not None}, rounds(node) - before


@asynchronous
async def test_a_leader_answers_under_its_lease_without_a_round() -> None:
    """Others ask it, and without the setting so does the leader itself: never weaker than asked for."""
    async with cluster_of(3, lease_reads=True) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        await leader.put("k", "v")
        await until(lambda: has_lease(leader))
        assert await lease_reads(leader, 1) == ({"v"}, 0)
        assert await lease_reads(follower) == ({"v"}, 5)
        assert not has_lease(follower)
    async with cluster_of(3) as cluster:
        await cluster.leader.put("k", "v")
        assert await lease_reads(cluster.leader) == ({"v"}, 5)


@asynchronous
async def test_a_cluster_that_is_told_not_to_reads_under_no_lease() -> None:
    """From the moment that its leader has applied it; and again when it is told so."""
    async with cluster_of(1, lease_reads=True) as cluster:
        node = cluster.leader
        await node.put("k", "v")
        await until(lambda: has_lease(node))
        await node.settings.change(lease_reads=False)
        assert await lease_reads(node) == ({"v"}, 5)
        await node.settings.change(lease_reads=True)
        assert await lease_reads(node, 1) == ({"v"}, 0)


@asynchronous
async def test_without_a_clock_that_counts_suspended_time_there_is_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such reads cost a round as any other."""
    monkeypatch.setattr("pyraftkv.node.life.boot_clock", lambda: None)
    async with cluster_of(1, lease_reads=True) as cluster:
        await cluster.leader.put("k", "v")
        assert await lease_reads(cluster.leader) == ({"v"}, 5)


@asynchronous
async def test_a_leader_that_is_cut_off_loses_its_lease_and_its_reads_wait() -> None:
    """It reads on under the lease while that lasts; then it asks, and nobody answers."""
    async with cluster_of(3, lease_reads=True) as cluster:
        old = cluster.leader
        await old.put("k", "old")
        await until(lambda: has_lease(old))
        cluster.network.isolate(old.address)
        new = await until(lambda: next((node for node in cluster if node is not old and node.is_leader), None))
        assert not has_lease(old)
        await new.put("k", "new", timeout=20)
        await refused(old.get("k", consistency="lease", timeout=0.2), errors.ReadTimeout)
        cluster.network.heal()
        fresh = await old.get("k", consistency="lease", timeout=20)
        assert fresh is not None
        assert fresh.text == "new"
