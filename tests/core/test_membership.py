"""Configurations and the steps between them: the rules as a table, and against a twin that knows no sets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv.core.membership import (
    ADD_LEARNER,
    ADD_VOTER,
    ADD_WITNESS,
    AUTO,
    EXPLICIT,
    JOINT,
    REMOVE,
    Change,
    ChangeKind,
    InvalidChange,
    MembershipChange,
    Transition,
    changed,
    check,
    enter_joint,
    leave_joint,
    simple,
)
from pyraftkv.core.types import Membership
from tests.core.cluster import overlap
from tests.core.machines import voters


def _membership(
    now: str,
    outgoing: str = "",
    learners: str = "",
    learners_next: str = "",
    *,
    auto_leave: bool = False,
    witnesses: str = "",
) -> Membership:
    """Return a configuration of members with one digit each."""
    groups = [frozenset(map(int, group)) for group in (now, outgoing, learners, learners_next)]
    return Membership(*groups, auto_leave, frozenset(map(int, witnesses)))


def _change(text: str, transition: Transition = AUTO) -> MembershipChange:
    """Return a change that is written as ``v4 l5 r6 w7``: a voter, a learner, one to remove, a witness."""
    kinds = {"v": ADD_VOTER, "l": ADD_LEARNER, "r": REMOVE, "w": ADD_WITNESS}
    return MembershipChange([Change(kinds[word[0]], int(word[1:])) for word in text.split()], transition)


# --- Simple steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (Membership(), "v1", _membership("1")),
        (voters(1), "v2", voters(1, 2)),
        (voters(1, 2, 3), "r2", voters(1, 3)),
        (voters(1, 2, 3), "r9", voters(1, 2, 3)),
        (voters(1, 2, 3), "v2", voters(1, 2, 3)),
        (voters(1), "l2 l3", _membership("1", learners="23")),
        (_membership("1", learners="23"), "v2", _membership("12", learners="3")),
        (_membership("12", learners="3"), "l2", _membership("1", learners="23")),
        (_membership("12", learners="345"), "r3 r4 r2", _membership("1", learners="5")),
        (_membership("12", learners="3"), "v3 l4 r5", _membership("123", learners="4")),
        (voters(1, 2), "w3", _membership("123", witnesses="3")),
        (_membership("123", witnesses="3"), "w3", _membership("123", witnesses="3")),
        (_membership("123", witnesses="3"), "v4", _membership("1234", witnesses="3")),
        (_membership("123", witnesses="3"), "r3", voters(1, 2)),
        (_membership("1234", witnesses="4"), "r2", _membership("134", witnesses="4")),
    ],
)
def test_one_voter_at_most_comes_or_goes_in_a_simple_step(before: Membership, change: str, after: Membership) -> None:
    """Learners as many as one likes; a learner is promoted and a voter demoted (thesis §4.1, §4.2.1)."""
    assert changed(before, _change(change)) == after
    assert simple(before, _change(change).changes) == after
    check(after)


# --- Joint configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "joint", "after"),
    [
        ("123", "v4 v5", _membership("12345", "123"), voters(1, 2, 3, 4, 5)),
        ("123", "r1 r2", _membership("3", "123"), voters(3)),
        ("123", "v4 r3", _membership("124", "123"), voters(1, 2, 4)),
        ("123", "v4 v5 v6 r1 r2 r3", _membership("456", "123"), voters(4, 5, 6)),
        ("123", "l3 r2", _membership("1", "123", "", "3"), _membership("1", learners="3")),
        ("123", "v4 l3 l5", _membership("124", "123", "5", "3"), _membership("124", learners="35")),
    ],
)
def test_more_go_through_a_joint_configuration(before: str, change: str, joint: Membership, after: Membership) -> None:
    """Left by the leader itself unless it is explicit; who is demoted votes until then (Raft §6, thesis §4.3)."""
    first = _membership(before)
    by_itself = Membership(joint.voters, joint.outgoing, joint.learners, joint.learners_next, auto_leave=True)
    assert changed(first, _change(change)) == by_itself
    assert changed(first, _change(change, JOINT)) == by_itself
    assert changed(first, _change(change, EXPLICIT)) == joint
    assert changed(joint, MembershipChange()) == changed(by_itself, MembershipChange()) == after


def test_a_witness_is_replaced_by_another_through_a_joint_configuration() -> None:
    """There are two of them meanwhile, one on either side."""
    joint = changed(_membership("123", witnesses="3"), _change("r3 w4"))
    assert joint == _membership("124", "123", auto_leave=True, witnesses="34")
    check(joint)
    assert leave_joint(joint) == _membership("124", witnesses="4")


def test_a_single_voter_may_come_through_a_joint_configuration_too() -> None:
    """If it is asked for."""
    assert changed(voters(1), _change("v2", JOINT)) == _membership("12", "1", auto_leave=True)
    assert changed(voters(1), _change("v2", EXPLICIT)) == _membership("12", "1")


def test_learners_pass_through_a_joint_configuration() -> None:
    """They learn in it already, for they have no vote on either side."""
    joint = enter_joint(_membership("12", learners="34"), _change("v3 r4 l5 l1").changes, auto_leave=False)
    assert joint == _membership("23", "12", "5", "1")
    assert leave_joint(joint) == _membership("23", learners="15")


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "change", "complaint"),
    [
        (voters(1), _change(""), "no joint configuration to leave"),
        (voters(1), _change("", EXPLICIT), "no joint configuration to leave"),
        (_membership("12", "1"), _change("v3"), "is joint, and has to be left first"),
        (_membership("12", "1"), _change("r2 v3"), "is joint, and has to be left first"),
        (voters(1), _change("r1"), "no voter would be left"),
        (voters(1, 2), _change("r1 l2"), "no voter would be left"),
        (voters(1, 2), _change("r1 r2", JOINT), "no voter would be left"),
        (_membership("1", learners="2"), _change("l1"), "no voter would be left"),
        (voters(1), _change("v2 l2"), "a member is named twice: [2, 2]"),
        (voters(1, 2), _change("r2 r2", EXPLICIT), "a member is named twice: [2, 2]"),
        (voters(1), _change("v0"), "no member has such an id: 0"),
        (Membership(), _change("l1"), "no voter would be left"),
        (Membership(), _change("v1 v2"), "without voters there is no majority"),
        (_membership("123", witnesses="3"), _change("w4"), "more than one witness: [3, 4]"),
        (_membership("123", witnesses="3"), _change("l3"), "3 is a witness, and stays what it is"),
        (_membership("123", witnesses="3"), _change("v3"), "3 is a witness, and stays what it is"),
        (voters(1, 2, 3), _change("w3"), "3 is no witness, and stays what it is"),
        (_membership("12", learners="3"), _change("w3"), "3 is no witness, and stays what it is"),
        (_membership("123", witnesses="3"), _change("r1"), "a witness needs 2 voters with the data beside it"),
        (_membership("123", witnesses="3"), _change("r1 r2"), "a witness needs 2 voters with the data beside it"),
        (voters(1), _change("w2"), "a witness needs 2 voters with the data beside it"),
    ],
)
def test_what_has_no_next_step_is_refused(before: Membership, change: MembershipChange, complaint: str) -> None:
    """With the reason; the configuration stays as it is."""
    with pytest.raises(InvalidChange, match=re.escape(complaint)):
        changed(before, change)


def test_two_voters_are_too_many_for_one_step() -> None:
    """{1, 2} and {3, 4, 5} would be majorities of {1, 2, 3} and of {1, 2, 3, 4, 5}."""
    with pytest.raises(InvalidChange, match=re.escape("more than one voter changes in one step: [4, 5]")):
        simple(voters(1, 2, 3), _change("v4 v5").changes)
    with pytest.raises(InvalidChange, match="more than one voter"):
        simple(voters(1, 2, 3), _change("v4 r1").changes)
    with pytest.raises(InvalidChange, match="is joint"):
        simple(_membership("12", "1"), _change("v3").changes)


@pytest.mark.parametrize(
    ("membership", "complaint"),
    [
        (_membership("12", learners="2"), "learners with a vote"),
        (_membership("1", "12", learners="2"), "learners with a vote"),
        (_membership("12", "12", learners_next="2"), "without leaving"),
        (_membership("1", "12", learners_next="3"), "without leaving"),
        (_membership("1", auto_leave=True), "joint without outgoing"),
        (_membership("", learners="1"), "none with a vote"),
        (_membership("01"), "no member has such an id"),
        (_membership("12", learners="3", witnesses="3"), "witnesses without a vote"),
        (_membership("1234", witnesses="34"), "more than one witness"),
        (_membership("12", "1234", witnesses="34"), "more than one witness"),
        (_membership("12", witnesses="2"), "too few have the data"),
        (_membership("12", "3", witnesses="3"), "too few have the data"),
    ],
)
def test_the_invariants_are_checked(membership: Membership, complaint: str) -> None:
    """Every one of them."""
    with pytest.raises(AssertionError, match=complaint):
        check(membership)


# --- Against a twin --------------------------------------------------------------------------------------------------

_NODES = range(1, 8)


def _twin(membership: Membership, change: MembershipChange) -> Membership | None:
    """Go member by member: what was it, what will it be, and so where does it stand meanwhile? None: no such step."""
    if not change.changes:
        if not membership.outgoing:
            return None
        learners = [node for node in _NODES if node in membership.learners or node in membership.learners_next]
        witnesses = frozenset(node for node in _NODES if node in membership.voters and node in membership.witnesses)
        return Membership(voters=membership.voters, learners=frozenset(learners), witnesses=witnesses)
    if membership.outgoing:
        return None
    was = {node: "v" if node in membership.voters else "l" if node in membership.learners else "" for node in _NODES}
    words = {ADD_VOTER: "v", ADD_LEARNER: "l", REMOVE: "", ADD_WITNESS: "v"}
    will = was | {each.node: words[each.kind] for each in change.changes}
    once = all([each.node for each in change.changes].count(node) <= 1 for node in _NODES)
    if not once or "v" not in will.values():
        return None
    steps = sum((was[node] == "v") != (will[node] == "v") for node in _NODES)
    joint = change.transition is not AUTO or steps > 1
    if joint and "v" not in was.values():
        return None
    sees = {node for node in _NODES if node in membership.witnesses}
    for each in change.changes:
        if was[each.node] and each.kind is not REMOVE and (each.kind is ADD_WITNESS) != (each.node in sees):
            return None
    coming = sees | {each.node for each in change.changes if each.kind is ADD_WITNESS}
    after = [node for node in _NODES if will[node] == "v" and node in coming]
    if len(after) > 1 or (after and len([node for node in _NODES if will[node] == "v"]) < 3):
        return None
    where: dict[str, set[int]] = {"voters": set(), "outgoing": set(), "learners": set(), "learners_next": set()}
    for node in _NODES:
        if will[node] == "v":
            where["voters"].add(node)
        if joint and was[node] == "v":
            where["outgoing"].add(node)
        if will[node] == "l":
            where["learners_next" if node in where["outgoing"] else "learners"].add(node)
    groups = [frozenset(where[name]) for name in ("voters", "outgoing", "learners", "learners_next")]
    witnesses = frozenset(after) | (sees if joint else frozenset())
    return Membership(*groups, auto_leave=joint and change.transition is not EXPLICIT, witnesses=witnesses)


changes = st.builds(
    MembershipChange,
    st.lists(st.builds(Change, st.sampled_from(ChangeKind), st.sampled_from(_NODES)), max_size=4),
    st.sampled_from(Transition),
)


@given(st.lists(changes, min_size=1, max_size=12))
def test_every_step_is_the_twins_and_its_quorums_overlap_with_those_before(steps: list[MembershipChange]) -> None:
    """From one voter on, as far as the steps lead; what is refused changes nothing."""
    membership = voters(1)
    for step in steps:
        expected = _twin(membership, step)
        try:
            after = changed(membership, step)
        except InvalidChange:
            assert expected is None, f"{step} of {membership} is refused"
            continue
        assert after == expected
        check(after)
        assert overlap(membership, after)
        membership = after


def test_the_twin_of_overlap_finds_what_does_not() -> None:
    """The judge itself is judged: two steps at once need not overlap, and a union of halves would not either."""
    assert not overlap(voters(1, 2, 3), voters(1, 2, 3, 4, 5))
    assert not overlap(voters(1), voters(2))
    assert overlap(voters(1, 2, 3), voters(1, 2, 3, 4))
    assert overlap(voters(1, 2, 3), _membership("45", "123"))
    assert not overlap(voters(1, 2, 3), _membership("345", learners="12"))
