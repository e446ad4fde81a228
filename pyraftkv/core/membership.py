"""Changes of the membership: from one configuration to the next, one step at a time (Raft §6, thesis §4).

**Why not at once?** Members learn of a new configuration at different moments. If some still count majorities of
{1, 2, 3} while others count majorities of {1, 2, 3, 4, 5}, then {1, 2} and {3, 4, 5} can elect two leaders in one term
and commit two entries at one index. So every step goes to a configuration whose quorums all intersect with those of
the one before:

- *Simple*: one voter more, or one voter less. Two majorities of sets that differ by one member share a member (thesis
  §4.1). Learners have no vote, so any number of them may come and go.
- *Joint*: any change at all, in two steps. The joint configuration decides only what a majority of the old voters and
  a majority of the new ones decide, so it intersects with either (thesis §4.3)::

            enter                      leave
      old ─────────► old and new ─────────────► new
                     {1,2,3}&{3,4,5}

A member that is demoted by a joint change is still an outgoing voter until that is left: it waits in `learners_next`,
for no one may be voter and learner at once.

**When does a configuration hold?** Here, on every member, when its entry is *applied*; in the paper when it is
appended. So an entry that changes the membership is committed by the configuration before it, and no configuration is
ever taken back. What has to be true instead:

1. *The bug of 2015*, told of configurations that hold when appended. A leader of {1, 2, 3, 4} adds 5, and only 5 hears
   of it. Another one, elected by {2, 3, 4}, removes 1 and commits that with {2, 3}. The first is elected again, by
   {1, 4, 5} of its five, and overwrites what was committed. One step is safe only from a configuration that is itself
   committed (Ongaro, raft-dev, July 2015). A leader therefore changes nothing before it has committed, and here also
   applied, an entry of its own term, and nothing while a change in its log may be unapplied.
2. *Whoever has a change in its log knows that the one before it is committed.* The leader that proposed it had applied
   that one, so every append that carries the later change carries a commit index at or past the earlier one; and a save
   stores that commit index with the entries, so that a crash forgets neither or both.
3. *Nobody campaigns while a change that it knows to be committed is not applied* (etcd#7625, etcd#11284). With rule 2,
   a candidate counts votes by the last change of its log or by the one before that, never by an older one. Say that it
   counts by configuration k, while another counts by k+2. Change k+2 was committed by a quorum of k+1, which shares a
   member with any quorum of k. If that member acknowledged the change first, it refuses a log without it, and who has
   it in its log counts at least by k+1. If it voted first, the change was committed in a later term, and so the other
   campaigns in a later one still.
4. *Applying late costs liveness, never safety.* Between commit and apply nobody who knows of the change campaigns, and
   a leader goes on to count acknowledgements, reads and its quorum by the configuration before.

**How is a joint configuration left?** By an entry of its own: proposed by hand (`EXPLICIT`), or appended by the leader
as soon as it has applied the entering (`auto_leave`), whoever leads then: a new leader that finds itself in a joint
configuration, and none to be left in its log, leaves it. The rule of one change at a time makes that exactly once.
"""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum

from pyraftkv._record import record
from pyraftkv.core.types import NO_NODE, Membership

WITNESSES_MAX = 1
"""Among the voters. Two of three that keep no state would leave one disk with the data, always."""


DATA_VOTERS_MIN = 2
"""Beside a witness: then all data voters together decide without it, whatever it has and does not have.

1. A leads {A, B, W}; W has no room, and keeps the hollow half of A's last entry. A is removed: {B, W} is left.
2. B lacks that entry, so W refuses its vote. W cannot lead B on. No one else votes: nobody leads, ever again.
"""


class ChangeKind(IntEnum):
    """What becomes of one member."""

    ADD_VOTER = 0
    """It votes from then on; a learner is promoted."""
    ADD_LEARNER = 1
    """It receives entries and has no vote; a voter is demoted."""
    REMOVE = 2
    """It is no member any more; nothing happens if it was none."""
    ADD_WITNESS = 3
    """It votes, without a state machine, from then on until it is removed (`witness.py`)."""


ADD_VOTER = ChangeKind.ADD_VOTER
ADD_LEARNER = ChangeKind.ADD_LEARNER
REMOVE = ChangeKind.REMOVE
ADD_WITNESS = ChangeKind.ADD_WITNESS


class Transition(IntEnum):
    """By which way the next configuration is reached."""

    AUTO = 0
    """In one step if at most one voter comes or goes; else through a joint configuration that the leader leaves."""
    JOINT = 1
    """Through a joint configuration that the leader leaves by itself, whatever the change."""
    EXPLICIT = 2
    """Into a joint configuration that stays until it is left by a `MembershipChange` without changes."""


AUTO = Transition.AUTO
JOINT = Transition.JOINT
EXPLICIT = Transition.EXPLICIT


@record
class Change:
    """One member's part in a change."""

    kind: ChangeKind
    node: int


@record
class MembershipChange:
    """What one entry changes: all of it in one step, or through one joint configuration."""

    changes: list[Change] = field(default_factory=list)
    """At most one per member; none leaves the joint configuration."""
    transition: Transition = AUTO

    @property
    def is_leave(self) -> bool:
        """Whether this leaves a joint configuration."""
        return not self.changes


class InvalidChange(ValueError):
    """This change cannot be made to this configuration. The message says why; nothing has changed."""


def changed(membership: Membership, change: MembershipChange) -> Membership:
    """Return the configuration that follows. The same on every member: a pure function of its arguments. O(members).

    Raises:
        InvalidChange: There is no such step from here.
    """
    if change.is_leave:
        return leave_joint(membership)
    if change.transition is AUTO and len(_voters_after(membership, change.changes) ^ membership.voters) <= 1:
        return simple(membership, change.changes)
    return enter_joint(membership, change.changes, auto_leave=change.transition is not EXPLICIT)


def simple(membership: Membership, changes: list[Change]) -> Membership:
    """Return the configuration after ``changes`` in one step (thesis §4.1).

    Raises:
        InvalidChange: The configuration is joint, more than one voter would come or go, none would be left, or a
            member is named twice.
    """
    _refuse_joint(membership)
    voters = _voters_after(membership, changes)
    coming_or_going = voters ^ membership.voters
    if len(coming_or_going) > 1:
        raise InvalidChange(f"more than one voter changes in one step: {sorted(coming_or_going)}")
    learners = _learners_after(membership, changes)
    witnesses = _witnesses_after(membership, changes, voters)
    return _checked(Membership(voters=voters, learners=learners, witnesses=witnesses))


def enter_joint(membership: Membership, changes: list[Change], *, auto_leave: bool) -> Membership:
    """Return the joint configuration of the old voters and the new ones (Raft §6, thesis §4.3).

    Raises:
        InvalidChange: The configuration is joint already, has no voters or would have none, or a member is named
            twice.
    """
    _refuse_joint(membership)
    outgoing = membership.voters
    if not outgoing:
        raise InvalidChange("without voters there is no majority to agree with")
    voters = _voters_after(membership, changes)
    learners = _learners_after(membership, changes)
    witnesses = _witnesses_after(membership, changes, voters)
    return _checked(
        Membership(
            voters=voters,
            outgoing=outgoing,
            learners=learners - outgoing,
            learners_next=learners & outgoing,
            auto_leave=auto_leave,
            witnesses=witnesses | membership.witnesses,
        )
    )


def leave_joint(membership: Membership) -> Membership:
    """Return the configuration of the new voters alone; demoted ones are learners from now on.

    Raises:
        InvalidChange: The configuration is not joint.
    """
    if not membership.is_joint:
        raise InvalidChange("there is no joint configuration to leave")
    voters, learners = membership.voters, membership.learners | membership.learners_next
    return _checked(Membership(voters=voters, learners=learners, witnesses=membership.witnesses & voters))


def check(membership: Membership) -> None:
    """Assert the invariants of `Membership`."""
    voters, outgoing = membership.voters, membership.outgoing
    learners, learners_next = membership.learners, membership.learners_next
    assert not learners & (voters | outgoing), f"learners with a vote: {membership}"
    assert learners_next <= outgoing - voters, f"waiting to become learners, without leaving: {membership}"
    assert outgoing or not (learners_next or membership.auto_leave), f"joint without outgoing voters: {membership}"
    assert voters or not membership.members, f"members, and none with a vote: {membership}"
    assert membership.witnesses <= voters | outgoing, f"witnesses without a vote: {membership}"
    for half in filter(None, (voters, outgoing)):
        assert len(half & membership.witnesses) <= WITNESSES_MAX, f"more than one witness: {membership}"
        data_voters = half - membership.witnesses
        assert data_voters == half or len(data_voters) >= DATA_VOTERS_MIN, f"too few have the data: {membership}"
    assert min(membership.members, default=1) > NO_NODE, f"no member has such an id: {membership}"


def _refuse_joint(membership: Membership) -> None:
    if membership.is_joint:
        raise InvalidChange("the configuration is joint, and has to be left first")


def _voters_after(membership: Membership, changes: list[Change]) -> frozenset[int]:
    named = [change.node for change in changes]
    if len(set(named)) < len(named):
        raise InvalidChange(f"a member is named twice: {sorted(named)}")
    if min(named, default=1) <= NO_NODE:
        raise InvalidChange(f"no member has such an id: {min(named)}")
    kinds = {ADD_VOTER, ADD_WITNESS}
    voters = (membership.voters - set(named)) | {change.node for change in changes if change.kind in kinds}
    if not voters:
        raise InvalidChange("no voter would be left")
    return voters


def _learners_after(membership: Membership, changes: list[Change]) -> frozenset[int]:
    named = {change.node for change in changes}
    return (membership.learners - named) | {change.node for change in changes if change.kind is ADD_LEARNER}


def _witnesses_after(membership: Membership, changes: list[Change], voters: frozenset[int]) -> frozenset[int]:
    """Return the witnesses among ``voters``. A member is one from the first day to the last, or never."""
    for change in changes:
        is_known, is_witness = change.node in membership.members, change.node in membership.witnesses
        if change.kind is not REMOVE and is_known and is_witness is not (change.kind is ADD_WITNESS):
            raise InvalidChange(f"{change.node} is {'a' if is_witness else 'no'} witness, and stays what it is")
    witnesses = voters & (membership.witnesses | {change.node for change in changes if change.kind is ADD_WITNESS})
    if len(witnesses) > WITNESSES_MAX:
        raise InvalidChange(f"more than one witness: {sorted(witnesses)}")
    if witnesses and len(voters - witnesses) < DATA_VOTERS_MIN:
        raise InvalidChange(f"a witness needs {DATA_VOTERS_MIN} voters with the data beside it")
    return witnesses


def _checked(membership: Membership) -> Membership:
    check(membership)
    return membership
