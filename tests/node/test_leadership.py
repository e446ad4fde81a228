"""Who leads: handing over on demand, by priority, and because a member loses its time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyraftkv import Node, errors
from pyraftkv.core import LEADER, Raft, TransferLeadership
from pyraftkv.core.messages import HeartbeatResponse, TimeoutNow
from pyraftkv.core.ready import Tick
from pyraftkv.core.types import Membership
from pyraftkv.node import HandoverBegun, leadership
from pyraftkv.node.leadership import LAG_ENTRIES_MAX, SETTLE_SECONDS, Leadership
from pyraftkv.node.member import Member
from pyraftkv.protocol import PRIORITY_DEFAULT, TransferRequest
from tests.core.machines import ELECTION_TICKS, ack, lead, machine, step, step_all
from tests.node.support import asynchronous, cluster_of, refused, until


def member_of(node: Node) -> Member:
    """Return what runs in a node."""
    assert node._member is not None
    return node._member


# --- Transfers, on a cluster -----------------------------------------------------------------------------------------


@asynchronous
async def test_the_leader_hands_over_to_whom_it_is_told() -> None:
    """The call returns when the other one leads; asked again, it has nothing to do."""
    async with cluster_of(3) as cluster:
        old, new = cluster.leader, cluster.followers[1]
        assert await old.transfer_leadership(new.name) == new.name
        assert new.is_leader
        term = new.term
        assert await old.transfer_leadership(new.name) == new.name
        assert await new.transfer_leadership(new.name) == new.name
        assert new.term == term


@asynchronous
async def test_any_member_and_any_client_can_ask_for_it() -> None:
    """A follower passes the wish on, to itself or to somebody else; without a name the best of the others leads."""
    async with cluster_of(3) as cluster:
        one, other = cluster.followers
        assert await one.transfer_leadership(one.name) == one.name
        assert await other.transfer_leadership(one.name) == one.name
        assert await other.transfer_leadership() != one.name
        client = cluster.client()
        assert await client.transfer_leadership(one.name) == one.name
        assert await client.transfer_leadership() != one.name
        await client.put("k", "v")


@asynchronous
async def test_what_cannot_be_done_is_refused() -> None:
    """Nobody of that name; nobody else at all; through a client the errors are the same."""
    async with cluster_of(3) as cluster:
        for kv in (cluster.leader, cluster.followers[0], cluster.client()):
            await refused(kv.transfer_leadership("nobody"), errors.MemberNotFound)
    async with cluster_of(1) as cluster:
        assert await cluster.leader.transfer_leadership("n1") == "n1"
        for kv in (cluster.leader, cluster.client()):
            error = await refused(kv.transfer_leadership(), errors.LeadershipNotTransferred)
            assert error.retryable


@asynchronous
async def test_a_transfer_to_a_member_that_does_not_answer_is_given_up() -> None:
    """After an election timeout, and the leader goes on; asked of a follower, it takes one more to be sure."""
    async with cluster_of(3) as cluster:
        leader, (gone, other) = cluster.leader, cluster.followers
        for node in (leader, other):
            cluster.network.cut(gone.address, node.address)
        await leader.put("k", "v")
        for asked in (leader, other):
            await refused(asked.transfer_leadership(gone.name), errors.LeadershipNotTransferred)
            await leader.put("k", "v", timeout=20)


@asynchronous
async def test_without_a_leader_there_is_nobody_to_ask() -> None:
    """The call waits for one until its deadline."""
    async with cluster_of(3) as cluster:
        survivor = cluster.followers[0]
        for node in list(cluster):
            if node is not survivor:
                await cluster.kill(node)
        await until(lambda: member_of(survivor).raft.leader == 0)
        await refused(survivor.transfer_leadership(timeout=0.1), errors.NoLeader)
        waiting = asyncio.create_task(survivor.transfer_leadership(timeout=20))
        await asyncio.sleep(0)
        await cluster.kill(survivor)
        await refused(waiting, errors.Closed)


@asynchronous
async def test_a_handover_is_told() -> None:
    """To whoever watches over the node, with its reason; closing is one."""
    async with cluster_of(3) as cluster:
        leader, heir = cluster.leader, cluster.followers[0]
        events = leader.events()
        following = asyncio.create_task(first(events, HandoverBegun))
        await asyncio.sleep(0)
        await leader.transfer_leadership(heir.name)
        assert await following == HandoverBegun(member_of(heir).raft.id, heir.name, "asked")
        following = asyncio.create_task(first(heir.events(), HandoverBegun))
        await asyncio.sleep(0)
        del cluster.nodes[heir.name]
        await heir.close()
        assert (await following).reason == "closing"


@asynchronous
async def test_an_operators_priority_moves_the_leadership(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is in the log the leader goes by it, whoever was asked to write it down."""
    monkeypatch.setattr(leadership, "SETTLE_SECONDS", 0.1)
    async with cluster_of(3) as cluster:
        heir = cluster.followers[1]
        await heir.members.update(heir.name, priority=5)
        await until(lambda: heir.is_leader)
        others = [member for member in await heir.members.list() if member.name != heir.name]
        assert {member.priority for member in others} == {PRIORITY_DEFAULT}
        for member in others:
            await heir.members.update(member.id, priority=5 if member is others[0] else 6)
        await until(lambda: cluster.nodes[others[1].name].is_leader)


async def first(events: Any, kind: type) -> Any:
    """Return the first event of a kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


# --- Priorities and the watchdog, on one member ----------------------------------------------------------------------


class Led:
    """The leader of three to five members, with its priorities and a loop whose time goes by hand."""

    def __init__(self, *, size: int = 3, **priorities: int) -> None:
        self.now = 0.0
        self.raft: Raft = lead(machine(size=size))
        step_all(self.raft, *[ack(self.raft, node, 1) for node in sorted(self.raft.membership.voters - {1})])
        self.priorities = {int(name[1:]): value for name, value in priorities.items()}
        self.fed: list[TransferLeadership] = []
        self.sent: list[Any] = []
        self.events: list[Any] = []
        self.leadership = Leadership(
            self.raft,
            loop=self,  # type: ignore[arg-type]  # it is only asked for the time
            name=lambda id_: f"n{id_}",
            priority=lambda id_: self.priorities.get(id_, PRIORITY_DEFAULT),
            election_seconds=1.0,
            feed=self.fed.append,
            send=self.sent.extend,
            emit=self.events.append,
        )

    def time(self) -> float:
        """The loop's time."""
        return self.now

    def tend(self, *, after: float = 0.0) -> list[int]:
        """Look after so many seconds; return to whom it hands over."""
        self.now += after
        before = len(self.fed)
        self.leadership.tend()
        return [command.to for command in self.fed[before:]]


def test_a_leader_hands_over_to_the_highest_priority() -> None:
    """Not to an equal one, and not if it has the highest itself. Who says nothing has priority 1."""
    assert Led(n2=1, n3=5).tend(after=SETTLE_SECONDS) == [3]
    assert Led(n2=2, n3=1).tend(after=SETTLE_SECONDS) == [2]
    assert Led(n1=5, n3=5).tend(after=SETTLE_SECONDS) == []
    assert Led(n3=0).tend(after=SETTLE_SECONDS) == []
    assert Led(n1=0).tend(after=SETTLE_SECONDS) == [2]
    assert Led().tend(after=SETTLE_SECONDS) == []


def test_a_leader_leads_for_a_while_before_it_hands_over_to_a_priority() -> None:
    """Who handed over for its slowness does not get it back at once, and a failed attempt is not repeated at once."""
    led = Led(n3=5)
    assert led.tend(after=SETTLE_SECONDS - 1) == []
    led.leadership.changed()
    assert led.tend(after=SETTLE_SECONDS - 1) == []
    assert led.tend(after=1) == [3]
    assert led.tend(after=SETTLE_SECONDS - 1) == []
    assert led.tend(after=1) == [3]


def test_only_a_leader_hands_over() -> None:
    """Whatever its priorities."""
    led = Led(n3=5)
    step_all(led.raft, *[Tick()] * (ELECTION_TICKS + 1))
    assert led.raft.role is not LEADER
    assert led.tend(after=SETTLE_SECONDS) == []
    led.leadership.give_up("disk")
    led.leadership.requested(TransferRequest(1, 2, 3))
    assert (led.fed, led.events) == ([], [])


def test_a_priority_waits_until_its_member_has_caught_up() -> None:
    """Writes wait while a transfer's target catches up, so it must not lack much; nor may it be silent."""
    led = Led(n3=5)
    led.raft._log.append_payloads(term=1, payloads=[b""] * (LAG_ENTRIES_MAX + 1))
    assert led.leadership.successor() == 3
    assert led.tend(after=SETTLE_SECONDS) == []
    step_all(led.raft, ack(led.raft, 2, led.raft.last_index))
    assert led.leadership.successor() == 2
    assert led.tend(after=SETTLE_SECONDS) == []
    step_all(led.raft, ack(led.raft, 3, 2))
    assert led.tend(after=SETTLE_SECONDS) == [3]
    for _ in range(ELECTION_TICKS):
        step_all(led.raft, Tick(), HeartbeatResponse(1, 2, 1, 0))
    assert led.tend(after=SETTLE_SECONDS) == []


def test_the_successor_has_the_highest_priority_then_the_longest_log_then_the_smallest_id() -> None:
    """Voters that answer alone; nobody, if nobody does."""
    led = Led(size=5)
    assert led.leadership.successor() == 2
    led.raft._log.append_payloads(term=1, payloads=[b""])
    step_all(led.raft, ack(led.raft, 4, 2))
    assert led.leadership.successor() == 4
    led.priorities = {5: 2}
    assert led.leadership.successor() == 5
    led.raft.membership = Membership(voters=frozenset({1, 2}), learners=frozenset({3, 4, 5}))
    assert led.leadership.successor() == 2
    led.raft.membership = Membership(voters=frozenset({1}))
    assert led.leadership.successor() == 0
    led.leadership.give_up("disk")
    assert led.fed == []


def test_a_wish_that_cannot_be_met_is_dropped() -> None:
    """A follower may know less than its leader, or ask for who leads already."""
    led = Led()
    for target in (1, 9):
        led.leadership.requested(TransferRequest(1, 2, target))
    assert led.fed == []
    led.leadership.requested(TransferRequest(1, 2, 3))
    led.leadership.requested(TransferRequest(1, 3, 0))
    assert led.fed == [TransferLeadership(3), TransferLeadership(2)]


def test_a_learner_cannot_lead() -> None:
    """It is refused at once, wherever it is asked for."""

    async def ask() -> None:
        led = Led()
        led.raft.membership = Membership(voters=frozenset({1, 2}), learners=frozenset({3}))
        await refused(led.leadership.transfer(3, 5.0), errors.InvalidRequest)

    asyncio.run(ask())


def test_a_member_that_loses_its_time_hands_over() -> None:
    """With the reason in the event."""
    led = Led(n3=5)
    led.leadership.give_up("event loop")
    assert led.fed == [TransferLeadership(3)]
    assert led.events == [HandoverBegun(3, "n3", "event loop")]
    assert [message.to for message in step(led.raft, *led.fed).messages if type(message) is TimeoutNow] == [3]
