"""The roster: who the members are, as a function of the commands, and what each of them comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv import errors
from pyraftkv.core import Membership
from pyraftkv.core.membership import AUTO, EXPLICIT, JOINT, Transition
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    DemoteMember,
    Genesis,
    LeaveJoint,
    MemberChange,
    MemberInfo,
    PromoteMember,
    Recover,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
)
from pyraftkv.roster import ADDRESS_CHARACTERS_MAX, MEMBERS_MAX, NAME_CHARACTERS_MAX, PRIORITY_MAX, Roster

FIRST = [MemberInfo(number, name, f"h:{number}", number * 11) for number, name in enumerate("abc", start=1)]


def founded() -> Roster:
    """Return the roster of a cluster of a, b and c."""
    roster = Roster()
    roster.found(Genesis(7, list(FIRST)))
    return roster


def change(*changes: MemberChange, transition: Transition = AUTO) -> ChangeMembers:
    """Return a command."""
    return ChangeMembers([*changes], transition)


def refused(roster: Roster, error: type[errors.NotApplied], *changes: MemberChange) -> str:
    """Make changes that must be refused and alter nothing; return the message."""
    before = roster.plain()
    with pytest.raises(error) as caught:
        roster.apply(change(*changes))
    assert roster.plain() == before
    return str(caught.value)


def names(roster: Roster) -> dict[int, str]:
    """Return the names by id."""
    return {id_: member.name for id_, member in roster.members.items()}


# --- Ids and incarnations ------------------------------------------------------------------------------------------


def test_a_cluster_begins_with_voters() -> None:
    """All of the first members vote; the next id is behind theirs; how it began is kept for who comes late."""
    roster = founded()
    assert roster.membership == Membership(voters=frozenset({1, 2, 3}))
    assert (roster.cluster_id, roster.next_id, names(roster)) == (7, 4, {1: "a", 2: "b", 3: "c"})
    assert roster.genesis == Genesis(7, FIRST)


def test_ids_rise_and_are_never_used_again() -> None:
    """Whoever comes after a removed member, under its name even, is another one; the old id is banned."""
    roster = founded()
    roster.apply(change(RemoveMember(3)))
    assert [roster.is_banned(id_) for id_ in (0, 1, 3, 4)] == [False, False, True, False]
    added = roster.apply(change(AddMember("c", "h:3", 34, learner=True)))
    assert added.added == [4]
    roster.apply(change(RemoveMember(4)))
    assert roster.apply(change(AddMember("c", "h:3", 35, learner=True))).added == [5]
    assert [roster.is_banned(id_) for id_ in (3, 4, 5)] == [True, True, False]


def test_the_same_directory_under_the_same_name_is_the_same_member() -> None:
    """It asks again after a crash: it is told its id, and its address is corrected. Nothing else changes."""
    roster = founded()
    first = roster.apply(change(AddMember("d", "h:4", 44, learner=True)))
    again = roster.apply(change(AddMember("d", "h:40", 44, learner=True)))
    assert first.added == again.added == [4]
    assert roster.members[4] == MemberInfo(4, "d", "h:40", 44)
    assert (roster.next_id, roster.membership.learners) == (5, frozenset({4}))
    roster.apply(change(PromoteMember(4)))
    roster.apply(change(AddMember("d", "h:40", 44, learner=True)))
    assert 4 in roster.membership.voters, "who has come to vote stays a voter"


def test_another_directory_under_a_name_that_is_taken_is_refused() -> None:
    """A wiped disk has forgotten what it promised: it is another member, and has to replace the old one."""
    roster = founded()
    assert "another data directory" in refused(roster, errors.MemberExists, AddMember("a", "h:1", 12, learner=True))
    assert "another data directory" in refused(roster, errors.MemberExists, AddMember("a", "h:1", 0, learner=True))


def test_an_expected_member_is_bound_by_who_comes_first() -> None:
    """Added without a directory, it takes incarnation and address of the one that comes; the next is refused."""
    roster = founded()
    roster.apply(change(AddMember("d", "h:4", 0, learner=True)))
    assert roster.apply(change(AddMember("d", "h:4", 0, learner=True))).added == [4], "expected still"
    refused(roster, errors.MemberExists, AddMember("d", "h:5", 0, learner=True))
    assert roster.apply(change(AddMember("d", "h:40", 44, learner=True))).added == [4]
    assert roster.members[4] == MemberInfo(4, "d", "h:40", 44)
    refused(roster, errors.MemberExists, AddMember("d", "h:4", 45, learner=True))


@pytest.mark.parametrize(
    ("newcomer", "words"),
    [
        (AddMember("d", "h:1", 44, learner=True), "has the address"),
        (AddMember("d", "h:4", 22, learner=True), "has this data directory"),
        (UpdateMember(1, name="b"), "a member 'b' already"),
        (UpdateMember(1, address="h:2"), "has the address"),
        (ReplaceMember(1, "b", "h:1", 12), "a member 'b' already"),
    ],
)
def test_what_is_another_member_s_is_refused(newcomer: MemberChange, words: str) -> None:
    """A name, an address and a data directory are one member's alone."""
    assert words in refused(founded(), errors.MemberExists, newcomer)


@pytest.mark.parametrize(
    "wrong",
    [
        AddMember("", "h:4", 44, learner=True),
        AddMember("d e", "h:4", 44, learner=True),
        AddMember("d" * (NAME_CHARACTERS_MAX + 1), "h:4", 44, learner=True),
        AddMember("d", "", 44, learner=True),
        AddMember("d", "h 4", 44, learner=True),
        AddMember("d", "h:4,h:5", 44, learner=True),
        UpdateMember(1, address="h\0:4"),
        AddMember("d", "h" * (ADDRESS_CHARACTERS_MAX + 1), 44, learner=True),
        UpdateMember(1, name="a=b"),
        UpdateMember(1, name="\udcff"),
        UpdateMember(1, priority=PRIORITY_MAX + 1),
    ],
)
def test_what_cannot_be_a_member_is_refused(wrong: MemberChange) -> None:
    """Names without spaces, addresses that are there, priorities within bounds: the log is where they are checked."""
    refused(founded(), errors.InvalidRequest, wrong)


def test_a_cluster_has_so_many_members_at_most() -> None:
    """One more is refused, learner or not."""
    roster = founded()
    for number in range(4, MEMBERS_MAX + 1):
        roster.apply(change(AddMember(f"m{number}", f"h:{number}", number * 11, learner=True)))
    assert "over" in refused(roster, errors.InvalidRequest, AddMember("more", "h:more", 1, learner=True))


# --- Roles ---------------------------------------------------------------------------------------------------------


def test_a_learner_is_promoted_and_demoted() -> None:
    """And what is the case already is done, not refused: whoever asks again was not heard of, maybe."""
    roster = founded()
    roster.apply(change(AddMember("d", "h:4", 44, learner=True)))
    assert roster.membership == Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4}))
    for _ in range(2):
        roster.apply(change(PromoteMember(4)))
        assert roster.membership == Membership(voters=frozenset({1, 2, 3, 4}))
    for _ in range(2):
        roster.apply(change(DemoteMember(4)))
        assert roster.membership.learners == {4}


@pytest.mark.parametrize("kind", [PromoteMember, DemoteMember, RemoveMember, UpdateMember])
def test_who_is_none_cannot_be_changed(kind: type[PromoteMember]) -> None:
    """Neither a removed member nor one that never was."""
    roster = founded()
    roster.apply(change(RemoveMember(3)))
    for id_ in (3, 9):
        assert f"no member {id_}" in refused(roster, errors.MemberNotFound, kind(id_))
    refused(roster, errors.MemberNotFound, ReplaceMember(3, "c", "h:3", 34))


def test_the_last_voter_stays() -> None:
    """A cluster without a vote could not even take that back."""
    roster = founded()
    roster.apply(change(RemoveMember(3)))
    roster.apply(change(RemoveMember(2)))
    assert "no voter" in refused(roster, errors.InvalidRequest, RemoveMember(1))
    assert "no voter" in refused(roster, errors.InvalidRequest, DemoteMember(1))


def test_what_is_said_of_a_member_can_be_changed_in_parts() -> None:
    """What is not named stays as it is."""
    roster = founded()
    roster.apply(change(UpdateMember(1, name="z")))
    roster.apply(change(UpdateMember(1, address="h:9")))
    roster.apply(change(UpdateMember(1, priority=5)))
    assert roster.members[1] == MemberInfo(1, "z", "h:9", 11, 5)
    assert roster.membership == founded().membership


# --- Several at once -----------------------------------------------------------------------------------------------


def test_a_replacement_is_one_step_and_both_are_members_until_it_is_left() -> None:
    """The new one has the old one's name and address, and a vote; the old one votes until the joint is left."""
    roster = founded()
    result = roster.apply(change(ReplaceMember(3, "c", "h:3", 34)))
    assert result.added == [4]
    assert roster.membership == Membership(voters=frozenset({1, 2, 4}), outgoing=frozenset({1, 2, 3}), auto_leave=True)
    assert names(roster) == {1: "a", 2: "b", 3: "c", 4: "c"}
    assert not roster.is_banned(3)
    refused(roster, errors.MemberNotFound, UpdateMember(3, name="x"))
    roster.leave(index=9)
    assert names(roster) == {1: "a", 2: "b", 4: "c"}
    assert roster.is_banned(3)
    roster.leave(index=9)
    assert roster.membership == Membership(voters=frozenset({1, 2, 4})), "there is nothing to leave any more"


def test_a_learner_is_replaced_by_a_learner() -> None:
    """Nobody comes to vote by the way."""
    roster = founded()
    roster.apply(change(DemoteMember(3)))
    roster.apply(change(ReplaceMember(3, "c", "h:3", 34)))
    assert roster.membership == Membership(voters=frozenset({1, 2}), learners=frozenset({4}))


def test_a_command_is_done_or_refused_as_a_whole() -> None:
    """One change of several that cannot be made undoes the others, the ids that they took too."""
    roster = founded()
    refused(
        roster,
        errors.MemberNotFound,
        AddMember("d", "h:4", 44, learner=True),
        UpdateMember(1, name="z"),
        RemoveMember(9),
    )
    roster.apply(change(RemoveMember(3), AddMember("c", "h:3", 34, learner=True)))
    assert names(roster) == {1: "a", 2: "b", 4: "c"}, "what one change frees the next may take"


def test_an_explicit_joint_configuration_stays_until_it_is_left() -> None:
    """Nothing else can be changed meanwhile, but for what is said of a member."""
    roster = founded()
    roster.apply(change(DemoteMember(3), transition=EXPLICIT))
    assert roster.membership == Membership(
        voters=frozenset({1, 2}), outgoing=frozenset({1, 2, 3}), learners_next=frozenset({3})
    )
    assert "joint" in refused(roster, errors.InvalidRequest, RemoveMember(2))
    roster.apply(change(UpdateMember(3, priority=0)))
    roster.apply(LeaveJoint())
    assert roster.membership == Membership(voters=frozenset({1, 2}), learners=frozenset({3}))
    with pytest.raises(errors.InvalidRequest, match="no joint"):
        roster.apply(LeaveJoint())
    roster.apply(change(PromoteMember(3), transition=JOINT))
    assert roster.membership.auto_leave


def test_a_recovery_leaves_one_member_and_bans_the_others() -> None:
    """Ids rise on; a late first member of the cluster before is offered nothing any more."""
    roster = founded()
    roster.apply(change(AddMember("d", "h:4", 44, learner=True)))
    survivor = MemberInfo(2, "b", "h:2", 99)
    roster.recover(Recover(8, survivor))
    assert (roster.cluster_id, roster.members, roster.next_id) == (8, {2: survivor}, 5)
    assert roster.membership == Membership(voters=frozenset({2}))
    assert [roster.is_banned(id_) for id_ in (1, 2, 3, 4)] == [True, False, True, True]
    assert roster.genesis is None


def test_a_cluster_that_is_begun_again_has_no_entry_to_offer() -> None:
    """Other members, and no log that begins with them: a late one gets everything, or was restored as well."""
    roster = founded()
    members = [MemberInfo(1, "x", "h:7", 70), MemberInfo(2, "y", "h:8", 80)]
    roster.restart(Genesis(9, members))
    roster.check()
    assert (roster.cluster_id, list(roster.members.values()), roster.next_id) == (9, members, 3)
    assert roster.membership == Membership(voters=frozenset({1, 2}))
    assert roster.genesis is None


# --- Everything together -------------------------------------------------------------------------------------------

ids = st.integers(1, 8)
labels = st.sampled_from([*"abcdefg"])
addresses = st.sampled_from([f"h:{number}" for number in range(1, 8)])
incarnations = st.sampled_from([0, *[number * 11 for number in range(1, 8)]])
changes = st.one_of(
    st.builds(AddMember, labels, addresses, incarnations, st.booleans()),
    st.builds(PromoteMember, ids),
    st.builds(DemoteMember, ids),
    st.builds(RemoveMember, ids),
    st.builds(UpdateMember, ids, st.none() | labels, st.none() | addresses, st.none() | st.integers(0, 9)),
    st.builds(ReplaceMember, ids, labels, addresses, incarnations),
)
commands = st.one_of(
    st.builds(ChangeMembers, st.lists(changes, min_size=1, max_size=3), st.sampled_from(Transition)),
    st.just(LeaveJoint()),
    st.none(),
)
"""None is the empty entry by which the leader leaves a joint configuration."""


@given(st.lists(commands, max_size=25))
def test_whatever_is_done_its_invariants_hold(history: list[ChangeMembers | LeaveJoint | None]) -> None:
    """A refusal changes nothing, ids are used once, nobody shares anything with who stays, and a copy is no alias."""
    roster = founded()
    gone: set[int] = set()
    for command in history:
        before, twin = roster.plain(), roster.copy()
        present = set(roster.members)
        try:
            if command is None:
                roster.leave(index=9)
            else:
                roster.apply(command)
        except errors.NotApplied:
            assert roster.plain() == before
        assert twin.plain() == before
        roster.check()
        gone |= present - set(roster.members)
        assert not gone & set(roster.members), "an id came back"
        assert all(map(roster.is_banned, gone))
        membership = roster.membership
        staying = [roster.members[id_] for id_ in membership.voters | membership.learners | membership.learners_next]
        for kept in ([m.name for m in staying], [m.address for m in staying], [m.incarnation for m in staying]):
            shown = [value for value in kept if value]
            assert len(shown) == len(set(shown)), kept
        assert Roster.of_plain(roster.plain()).plain() == roster.plain()
