"""Quorums: the fast functions against naive ones, and joint decisions."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv.core.quorum import LOST, PENDING, WON, VoteResult, committed_index, has_quorum, vote_result
from pyraftkv.core.types import Membership

nodes = st.integers(1, 9)
groups = st.frozensets(nodes, max_size=7)
joint = st.builds(Membership, voters=groups.filter(bool), outgoing=groups, learners=st.just(frozenset[int]()))


def _majorities(voters: frozenset[int]) -> list[frozenset[int]]:
    """Return every smallest majority, by listing them."""
    return [frozenset(chosen) for chosen in combinations(sorted(voters), len(voters) // 2 + 1)] if voters else []


def _has_quorum(membership: Membership, chosen: frozenset[int]) -> bool:
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return all(any(majority <= chosen for majority in _majorities(half)) for half in halves)


@given(joint, st.dictionaries(nodes, st.integers(0, 20)))
def test_the_committed_index_is_the_largest_that_a_quorum_reached(
    membership: Membership, acked: dict[int, int]
) -> None:
    """Joint or not, compared with trying every index."""
    reached = [
        index
        for index in range(21)
        if _has_quorum(membership, frozenset(n for n in nodes_of(membership) if acked.get(n, 0) >= index))
    ]
    assert committed_index(membership, acked) == max(reached)


def nodes_of(membership: Membership) -> frozenset[int]:
    """Return everyone with a vote."""
    return membership.voters | membership.outgoing


@given(joint, st.dictionaries(nodes, st.booleans()))
def test_an_election_is_won_or_lost_when_nobody_left_can_change_it(
    membership: Membership, votes: dict[int, bool]
) -> None:
    """Compared with every way in which the missing votes may fall (two of them suffice: all yes, all no)."""
    yes = frozenset(node for node, granted in votes.items() if granted)
    silent = nodes_of(membership) - votes.keys()
    if _has_quorum(membership, yes):
        expected = WON
    elif _has_quorum(membership, yes | silent):
        expected = PENDING
    else:
        expected = LOST
    assert vote_result(membership, votes) is expected


@given(joint, groups)
def test_has_quorum_agrees_with_listing_the_majorities(membership: Membership, chosen: frozenset[int]) -> None:
    """A set of nodes holds a quorum or not; there is no pending."""
    assert has_quorum(membership, chosen) == _has_quorum(membership, chosen)


def test_an_empty_configuration_decides_nothing() -> None:
    """No voters: nothing commits, nobody wins, and nothing is a quorum."""
    nobody = Membership()
    assert committed_index(nobody, {1: 5}) == 0
    assert vote_result(nobody, {1: True}) is PENDING
    assert not has_quorum(nobody, {1, 2, 3})


@pytest.mark.parametrize(
    ("votes", "result"),
    [
        ({1: True, 2: True}, PENDING),
        ({1: True, 2: True, 4: True, 5: True}, WON),
        ({1: True, 2: True, 3: True, 4: False, 5: False}, LOST),
        ({4: True, 5: True, 6: True}, PENDING),
        ({1: False, 2: False, 4: True, 5: True}, LOST),
    ],
)
def test_a_joint_election_needs_both_majorities(votes: dict[int, bool], result: VoteResult) -> None:
    """Thesis §4.3: agreement requires separate majorities from both the old and new configurations."""
    membership = Membership(voters=frozenset({4, 5, 6}), outgoing=frozenset({1, 2, 3}))
    assert vote_result(membership, votes) is result


def test_learners_count_in_no_quorum() -> None:
    """A learner's ack and vote change nothing."""
    membership = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4, 5}))
    assert committed_index(membership, {1: 7, 4: 7, 5: 7}) == 0
    assert vote_result(membership, {1: True, 4: True, 5: True}) is PENDING
