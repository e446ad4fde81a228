"""What a leader decides by itself: done once, in its term, and known to nobody else."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import errors
from pyraftkv.codec import encode_logged
from pyraftkv.core import TransferLeadership
from pyraftkv.core.messages import ForwardedProposals
from pyraftkv.node import decisions
from pyraftkv.node.node import Node
from pyraftkv.protocol import Decided, DecidedCommand
from pyraftkv.sessions import Outcome
from pyraftkv.store.commands import Compact
from pyraftkv.store.values import CompactResult
from tests.node.support import asynchronous, caught_up, cluster_of, refused, until


async def decide(node: Node, command: DecidedCommand) -> Outcome:
    """Let a member decide, as what runs inside it does."""
    return await node._running().decide(command)


@asynchronous
async def test_a_decision_is_applied_by_every_member_and_answered_to_its_maker() -> None:
    """Without a session."""
    async with cluster_of(3) as cluster:
        await cluster.leader.put("k", "v")
        assert await decide(cluster.leader, Compact(2)) == CompactResult(2)
        await refused(decide(cluster.leader, Compact(2)), errors.Compacted)
        await caught_up(*cluster)
        assert {(await node.status()).compact_revision for node in cluster} == {2}


@asynchronous
async def test_who_does_not_lead_decides_nothing_and_passes_nothing_on() -> None:
    """Nor does a leader take the decision of somebody else."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        await leader.put("k", "v")
        await refused(decide(follower, Compact(2)), errors.NoLeader)
        to, sender = (await leader.status()).member_id, (await follower.status()).member_id
        payload = encode_logged(Decided(leader.term, 1, Compact(2)))
        leader._life.receive([ForwardedProposals(to, sender, leader.term, [payload])])
        await leader.put("k", "w")
        assert (await leader.status()).compact_revision == 0


@asynchronous
async def test_a_leader_that_hands_over_or_is_deposed_says_so() -> None:
    """What was not taken did not happen; what was under way may have."""
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        await leader.put("k", "v")
        member = leader._running()
        others = [node.name for node in cluster.followers]
        for name in others:
            cluster.network.isolate(name)
        under_way = asyncio.create_task(decide(leader, Compact(2)))
        await until(lambda: len(member.decisions) == 1)
        await refused(under_way, errors.MaybeApplied)  # CheckQuorum: it leads nobody any more
        for name in others:
            cluster.network.heal(name)
        new = await cluster.wait_for_leader()
        member = new._running()
        follower = next(id_ for id_ in member.raft.membership.voters if id_ != member.raft.id)
        member.inbox.put(TransferLeadership(follower))
        await refused(decide(new, Compact(2)), errors.NoLeader)
        assert not len(member.decisions)


@asynchronous
async def test_decisions_are_bounded_and_end_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(decisions, "DECISIONS_MAX", 1)
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        first = asyncio.create_task(decide(leader, Compact(1)))
        await asyncio.sleep(0)
        await refused(decide(leader, Compact(1)), errors.Overloaded)
        await leader.kill()
        await refused(first, errors.MaybeApplied)
