"""Majorities, of one configuration and of two at once (Raft §5.3, §6; thesis §4.3).

A joint configuration decides only what both of its majorities decide. A configuration without voters decides
nothing by itself: it commits every index and wins every vote, so that it drops out of a joint decision. Only the
member whose whole configuration is empty must not take that for a yes, and nothing here gives it one.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from enum import IntEnum

from pyraftkv.core.types import Membership


class VoteResult(IntEnum):
    """How an election stands."""

    PENDING = 0
    """It may still go either way."""
    LOST = 1
    """A majority can no longer be reached."""
    WON = 2


PENDING = VoteResult.PENDING
LOST = VoteResult.LOST
WON = VoteResult.WON


def committed_index(membership: Membership, acked: Mapping[int, int]) -> int:
    """Return the largest number that a quorum has reached.

    Args:
        membership: Whose quorum; both majorities when joint.
        acked: What each member has reached; 0 for those it does not name.
    """
    if not membership.voters:
        return 0
    index = _majority_index(membership.voters, acked)
    if membership.outgoing:
        index = min(index, _majority_index(membership.outgoing, acked))
    return index


def vote_result(membership: Membership, votes: Mapping[int, bool]) -> VoteResult:
    """Return how the election stands, given who has granted or refused so far."""
    if not membership.voters:
        return PENDING
    result = _majority_vote(membership.voters, votes)
    if membership.outgoing:
        outgoing = _majority_vote(membership.outgoing, votes)
        if LOST in (result, outgoing):
            return LOST
        result = min(result, outgoing)
    return result


def has_quorum(membership: Membership, nodes: Container[int]) -> bool:
    """Return whether ``nodes`` hold a quorum."""
    return vote_result(membership, {node: node in nodes for node in membership.voters | membership.outgoing}) is WON


def _majority_index(voters: Collection[int], acked: Mapping[int, int]) -> int:
    ascending = sorted([acked.get(voter, 0) for voter in voters])
    # Of n sorted values, the one at (n - 1) // 2 has a majority at or above it.
    return ascending[(len(ascending) - 1) // 2]


def _majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    needed = len(voters) // 2 + 1
    granted = sum(votes.get(voter, False) for voter in voters)
    if granted >= needed:
        return WON
    open_votes = sum(voter not in votes for voter in voters)
    return PENDING if granted + open_votes >= needed else LOST
