"""The driver: what leaves at once, what waits for which save, and what it does when nothing else happens.

Only the driver's own loop runs here. No tick, which would hide for how long it sleeps, and a disk that completes a save
when it is told to.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from pyraftkv import codec, errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import Entry, HardState
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedProposals,
    Heartbeat,
    Message,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import Save
from pyraftkv.core.types import LEADER
from pyraftkv.log import MemoryStorage
from pyraftkv.log.base import Identity, Recovered
from pyraftkv.node.bootstrap import genesis_entry, genesis_of
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.events import EventHub
from pyraftkv.node.member import Member
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import Hello, RegisterSession
from pyraftkv.replica import Replica
from pyraftkv.transport.base import Transport
from tests.node.support import FAST, asynchronous, refused

PASSES = 50
"""Passes of the event loop after which whatever was going to happen has happened."""

NAMES = {"a": "a", "b": "b", "c": "c"}


class PatientDisk(MemoryStorage):
    """A disk that completes the oldest save when it is told to."""

    def __init__(self) -> None:
        super().__init__(random=random.Random(5))
        self.held: deque[tuple[Save, Callable[[int], None]]] = deque()

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        self.held.append((save, then))

    def complete(self) -> None:
        """Complete one save."""
        save, then = self.held.popleft()
        then(save.number)


class Wire:
    """What a member sends."""

    def __init__(self) -> None:
        self._sent: list[PeerMessage] = []

    def send(self, messages: Sequence[PeerMessage]) -> None:
        self._sent += messages

    def take(self) -> list[PeerMessage]:
        """Return what was sent since the last call."""
        sent, self._sent = self._sent, []
        return sent


class Driven:
    """One member of three, whose driver runs."""

    def __init__(self, member_id: int) -> None:
        hellos = {id_: Hello(0, id_, name, id_, 1, name) for id_, name in enumerate(NAMES, 1)}
        entry, hard_state = genesis_entry(codec.encode_logged(genesis_of(hellos)))
        self.disk = PatientDisk()
        self.wire = Wire()
        self.member = Member(
            _recovered(entry, hard_state, member_id),
            Replica(),
            member_id=member_id,
            storage=self.disk,
            transport=cast(Transport, self.wire),
            peers=Peers(hellos[member_id], NAMES),
            events=EventHub(),
            config=FAST,
            rng=random.Random(member_id),
            members_changed=lambda _: None,
            disk=DiskHealth("a"),
        )

    async def rest(self) -> list[PeerMessage]:
        """Let the loop turn until nothing moves any more; return what was sent meanwhile."""
        for _ in range(PASSES):
            await asyncio.sleep(0)
        return self.wire.take()

    async def after(self, *messages: Message) -> list[PeerMessage]:
        """Let these arrive together; return what was sent then."""
        self.member.received(messages)
        return await self.rest()

    async def after_a_save(self) -> list[PeerMessage]:
        """Complete the oldest save; return what was sent then."""
        self.disk.complete()
        return await self.rest()

    async def lead(self) -> None:
        """Make it the leader of term 2, with the empty entry of its term committed and everywhere."""
        self.member.inbox.wake()  # to apply entry 1: it learns who the members are, and that it goes first
        await self.rest()
        await self.after(VoteResponse(1, 2, 2, True, True))
        assert [type(message) for message in await self.after_a_save()] == [VoteRequest, VoteRequest]
        await self.after(VoteResponse(1, 2, 2, False, True))
        await self.after_a_save()
        await self.after(AppendResponse(1, 2, 2, 2, False, 0, 0), AppendResponse(1, 3, 2, 2, False, 0, 0))
        assert (self.member.raft.role, self.member.raft.commit) == (LEADER, 2)


def _recovered(entry: Entry, hard_state: HardState, member_id: int) -> Recovered:
    identity = Identity(cluster_id=1, member_id=member_id, incarnation=member_id, boot_count=1)
    return Recovered(identity, hard_state, None, [entry], 1)


@asynccontextmanager
async def driven(member_id: int) -> AsyncGenerator[Driven]:
    """Run a member's driver, and nothing beside it."""
    here = Driven(member_id)
    task = asyncio.create_task(here.member.driver.run())
    try:
        yield here
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def appends(messages: list[PeerMessage]) -> list[Any]:
    """Return the append requests."""
    return [message for message in messages if type(message) is AppendRequest]


@asynchronous
async def test_a_commit_is_told_though_nothing_else_happens() -> None:
    """1. The last acknowledgement of a quiet leader commits its last entry. No tick comes, and no proposal.

    2. The machine lets the news wait for entries to ride along with, one pass of the loop. None come.

    3. The driver asks again in that pass, and the followers hear of the commit.
    """
    async with driven(1) as leader:
        await leader.lead()
        leader.member.inbox.propose(codec.encode_logged(RegisterSession(7)))
        assert [request.commit for request in appends(await leader.rest())] == [2, 2]
        await leader.after_a_save()
        sent = await leader.after(AppendResponse(1, 2, 2, 3, False, 0, 0), AppendResponse(1, 3, 2, 3, False, 0, 0))
        assert sent == [CommitNotice(to, 1, 2, 3, 2) for to in (2, 3)]


@asynchronous
async def test_a_message_waits_for_its_own_save() -> None:
    """Two appends, two saves under way: each acknowledgement leaves when its save is done, not with an earlier one."""
    async with driven(2) as follower:
        first, second = Entry(2, 2, b""), Entry(3, 2, b"")
        assert await follower.after(AppendRequest(2, 1, 2, 1, 1, [first], 1)) == []
        assert await follower.after(AppendRequest(2, 1, 2, 2, 2, [second], 1)) == []
        assert len(follower.disk.held) == 2
        assert await follower.after_a_save() == [AppendResponse(1, 2, 2, 2, False, 0, 0)]
        assert await follower.after_a_save() == [AppendResponse(1, 2, 2, 3, False, 0, 0)]


@asynchronous
async def test_a_read_joins_no_round_that_has_left() -> None:
    """A read that begins after its machine was fed needs a round of its own: the first may be confirmed already."""
    async with driven(1) as leader:
        await leader.lead()
        deadline = asyncio.get_running_loop().time() + 60
        reads = [leader.member.reads.join(deadline)]
        sent = await leader.rest()
        reads.append(leader.member.reads.join(deadline))
        sent += await leader.rest()
        assert len({message.context for message in sent if type(message) is Heartbeat}) == 2
        leader.member.reads.fail_all(lambda: errors.Closed("the test ends"))
        for read in reads:
            await refused(read, errors.Closed)


@asynchronous
async def test_a_leader_counts_its_own_save_at_once() -> None:
    """When the last acknowledgement that a commit waits for is that of its own disk, it waits for no tick."""
    async with driven(1) as leader:
        await leader.lead()
        leader.member.inbox.propose(codec.encode_logged(RegisterSession(7)))
        await leader.rest()
        await leader.after(AppendResponse(1, 2, 2, 3, False, 0, 0))
        assert leader.member.raft.commit == 2
        sent = await leader.after_a_save()
        assert sent == [CommitNotice(2, 1, 2, 3, 2)]


@asynchronous
async def test_what_comes_alone_has_its_turn_at_once() -> None:
    """An append is on its way to the disk in the pass in which it came; one that nobody expects costs no pass more."""
    async with driven(2) as follower:
        await follower.rest()
        follower.member.received([AppendRequest(2, 1, 2, 1, 1, [Entry(2, 2, b"")], 1)])
        assert len(follower.disk.held) == 1


@asynchronous
async def test_what_comes_beside_a_proposal_joins_it() -> None:
    """Whoever proposes in this pass is waited for: one save, one message for each follower."""
    async with driven(1) as leader:
        await leader.lead()
        await leader.rest()
        payloads = [codec.encode_logged(RegisterSession(nonce)) for nonce in (7, 8)]
        leader.member.inbox.propose(payloads[0])
        leader.member.received([AppendResponse(1, 2, 2, 2, False, 0, 0)])
        assert leader.wire.take() == []
        leader.member.inbox.propose(payloads[1])
        assert [[entry.payload for entry in request.entries] for request in appends(await leader.rest())] == [
            payloads,
            payloads,
        ]


@asynchronous
async def test_an_error_in_a_turn_ends_the_driver_and_not_who_delivered() -> None:
    """1. A transport hands a message over. 2. What comes of it fails: a bug, or the disk.

    3. asyncio would close the transport's connection and go on. The driver's task ends instead, and so does the node.
    """

    def broken(save: Save, then: Callable[[int], None]) -> None:
        raise errors.StorageFailed("the disk is gone")

    here = Driven(2)
    task = asyncio.create_task(here.member.driver.run())
    await here.rest()
    here.disk.save = broken  # type: ignore[method-assign]
    here.member.received([AppendRequest(2, 1, 2, 1, 1, [Entry(2, 2, b"")], 1)])
    await refused(task, errors.StorageFailed)
    here.member.received([Heartbeat(2, 1, 2, 1, 0)])  # late, to a node that stops: nothing happens any more
    assert here.wire.take() == []


@asynchronous
async def test_a_turn_is_never_taken_inside_another() -> None:
    """A disk that completes a save while it is handed over: the news is input of the next turn."""
    async with driven(1) as leader:
        await leader.lead()
        leader.disk.save = lambda save, then: then(save.number)  # type: ignore[method-assign]
        before = leader.member.raft.last_index
        leader.member.received([ForwardedProposals(1, 2, 2, [codec.encode_logged(RegisterSession(7))])])
        assert leader.member.raft.status().saved == before, "not counted yet"
        await leader.rest()
        assert leader.member.raft.status().saved == before + 1
