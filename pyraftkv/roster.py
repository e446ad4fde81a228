"""The members of a cluster as a function of the log: their table, who votes, and which ids were used.

Every member applies the same commands to the same roster, so what a command comes to is the same everywhere, refusals
included. Rules, each with what happens without it:

1. **An id is used once.** Ids rise, and those of removed members are banned: a member that was removed while it was
   down comes back with its log and its votes, and must not be taken for anybody who counts.
2. **An id has one incarnation.** Whoever comes back with an empty disk has forgotten what it acknowledged. If its acks
   counted on, an entry could be "on a quorum" and on a minority of disks. It is replaced, and is another member then.
3. **An incarnation is bound once.** A member can be expected before it has a directory (incarnation 0); who comes
   first under its name binds it, and the next one is refused.
4. **Names and addresses are nobody's else.** Two members under one name could not be told apart by people, two under
   one address would be dialled in turn.
5. **A member stays in the table as long as the configuration names it.** While a joint configuration stands, who is
   on its way out still votes, and must be reached; the one who takes its place may have its name already.
6. **A command is done or refused as a whole.**

The same command may be proposed again under another session (a program that joins was restarted in the middle of it),
so what is the case already is done, not refused: the same name with the same incarnation, a voter that is promoted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

from pyraftkv.core import Membership
from pyraftkv.core.membership import (
    ADD_LEARNER,
    ADD_VOTER,
    ADD_WITNESS,
    REMOVE,
    Change,
    ChangeKind,
    InvalidChange,
    MembershipChange,
    changed,
)
from pyraftkv.errors import InvalidRequest, MemberExists, MemberNotFound
from pyraftkv.protocol import (
    AddMember,
    DemoteMember,
    Genesis,
    LeaveJoint,
    MemberChange,
    MemberInfo,
    MembersCommand,
    MembersResult,
    PromoteMember,
    Recover,
    RemoveMember,
    ReplaceMember,
    StampedChange,
    UpdateMember,
)

MEMBERS_MAX = 64
"""Members of a cluster, learners included."""

NAME_CHARACTERS_MAX = 128
ADDRESS_CHARACTERS_MAX = 256

PRIORITY_MAX = 1000


def complaint_of_name(name: str) -> str:
    """Return what is wrong with a member's name: it could not stand in a list of members. Empty if nothing is."""
    if not isinstance(name, str) or not name or any(map(_is_not_for_names, name)):
        return f"{name!r} is no name: text without spaces and control characters, none of '=,/', and not nothing"
    return f"a name has {NAME_CHARACTERS_MAX} characters at most" if len(name) > NAME_CHARACTERS_MAX else ""


def _is_not_for_names(character: str) -> bool:
    """Whether a name with it would be misread, in a list or in a terminal.

    The same on every version of Python, as `str.isprintable` is not: members judge names when they apply a change.
    """
    if character.isspace() or character in "=,/" or character < " " or "\x7f" <= character < "\xa0":
        return True
    return "\ud800" <= character <= "\udfff"  # what a command line has of bytes that are no UTF-8: it cannot be sent


class Roster:
    """Who the members are.

    Invariants: the table has a row for exactly the members of `membership`; every id in it is below `next_id`.
    """

    __slots__ = ("cluster_id", "genesis", "last_change", "members", "membership", "next_id")

    def __init__(self) -> None:
        self.cluster_id = 0
        """0 before the cluster is known: nothing was applied yet."""
        self.members: dict[int, MemberInfo] = {}
        """By id, in ascending order."""
        self.membership = Membership()
        self.next_id = 1
        """The lowest id that was never used. Whoever is below it and not in the table was removed."""
        self.genesis: Genesis | None = None
        """How the cluster began, for a first member that comes late."""
        self.last_change = 0
        """The index of the change that was made last; what was refused is none."""

    def check(self) -> None:
        """Assert the invariants."""
        assert self.members.keys() == self.membership.members, (self.members, self.membership)
        assert list(self.members) == sorted(self.members), self.members
        assert max(self.members, default=0) < self.next_id, (self.members, self.next_id)

    def found(self, genesis: Genesis) -> None:
        """Begin a cluster with its first members, all of them voters, and perhaps one of them a witness."""
        self.cluster_id = genesis.cluster_id
        self.members = {member.id: member for member in sorted(genesis.members, key=lambda member: member.id)}
        self.membership = Membership(voters=frozenset(self.members), witnesses=frozenset(genesis.witnesses))
        self.next_id = max(self.members) + 1
        self.genesis = genesis

    def restart(self, genesis: Genesis) -> None:
        """Begin another cluster with other members, over the data of this one; nobody's log begins with it."""
        self.found(genesis)
        self.genesis = None

    def recover(self, command: Recover) -> None:
        """Begin another cluster with one member of this one. Ids rise on: those who are gone stay banned."""
        survivor = command.member
        self.cluster_id = command.cluster_id
        self.members = {survivor.id: survivor}
        self.membership = Membership(voters=frozenset({survivor.id}))
        self.next_id = max(self.next_id, survivor.id + 1)
        self.genesis = None

    def apply(self, command: MembersCommand) -> MembersResult:
        """Do a command, or nothing of it.

        Raises: `InvalidRequest`, `MemberExists`, `MemberNotFound`.
        """
        if isinstance(command, LeaveJoint):
            self._enter(_changed(self.membership, MembershipChange()), self.members)
            return self.result()
        draft = _Draft(self)
        for change in command.changes:
            draft.make(change)
        membership = self.membership
        if draft.steps:
            membership = _changed(membership, MembershipChange(draft.steps, command.transition))
        if len(membership.members) > MEMBERS_MAX:
            raise InvalidRequest(f"{len(membership.members)} members, over {MEMBERS_MAX}")
        self.next_id = draft.next_id
        self._enter(membership, {**self.members, **draft.rows})
        return self.result(draft.added)

    def copy(self) -> Roster:
        """Return another roster that is equal to this one, and changes by itself. O(1): tables are never altered."""
        other = Roster()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def follow(self, stamped: StampedChange, command: MembersCommand, *, index: int) -> MembersResult | None:
        """Do the command of the entry at ``index``; return None if others were faster since a leader stamped it.

        Raises: what `apply` raises.
        """
        if stamped.after != self.last_change:
            return None
        result = self.apply(command)
        self.last_change = index
        return result

    def leave(self, *, index: int) -> None:
        """Leave the joint configuration, which the leader proposes by itself; nothing happens where there is none."""
        if self.membership.is_joint:
            self._enter(_changed(self.membership, MembershipChange()), self.members)
            self.last_change = index

    def _enter(self, membership: Membership, rows: dict[int, MemberInfo]) -> None:
        self.membership = membership
        self.members = {id_: rows[id_] for id_ in sorted(membership.members)}

    def result(self, added: list[int] | None = None) -> MembersResult:
        """Return who the members are now."""
        return MembersResult(self.cluster_id, list(self.members.values()), self.membership, added or [])

    def is_banned(self, member_id: int) -> bool:
        """Whether this was a member's id, and is nobody's any more."""
        return 0 < member_id < self.next_id and member_id not in self.members

    # --- Snapshots ---------------------------------------------------------------------------------------------------

    def plain(self) -> list[Any]:
        """Return everything as plain values; equal rosters have equal ones."""
        m = self.membership
        sets = (m.voters, m.outgoing, m.learners, m.learners_next, m.witnesses)
        return [
            self.cluster_id,
            _rows(self.members.values()),
            [*map(sorted, sets), m.auto_leave],
            self.next_id,
            [_rows(self.genesis.members), self.genesis.witnesses] if self.genesis is not None else [],
            self.last_change,
        ]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Roster:
        """Rebuild what `plain` returned."""
        roster = cls()
        roster.cluster_id, rows, (*sets, auto_leave), roster.next_id, first, roster.last_change = plain
        roster.members = {row[0]: MemberInfo(*row) for row in rows}
        voters, outgoing, learners, learners_next, witnesses = map(frozenset, sets)
        roster.membership = Membership(voters, outgoing, learners, learners_next, auto_leave, witnesses)
        roster.genesis = Genesis(roster.cluster_id, [MemberInfo(*row) for row in first[0]], first[1]) if first else None
        return roster


def _rows(members: Iterable[MemberInfo]) -> list[list[Any]]:
    return [[m.id, m.name, m.address, m.incarnation, m.priority] for m in members]


class _Draft:
    """A command under way: its changes are made here, one after the other, and taken over all together."""

    def __init__(self, roster: Roster) -> None:
        membership = roster.membership
        self._voters = set(membership.voters)
        self._witnesses = membership.witnesses
        self.rows = {
            id_: row
            for id_, row in roster.members.items()
            if id_ in membership.voters or id_ in membership.learners or id_ in membership.learners_next
        }
        """Those who stay, as they are after the changes so far."""
        self.next_id = roster.next_id
        self.steps: list[Change] = []
        self.added: list[int] = []

    def make(self, change: MemberChange) -> None:
        """Make the next change."""
        self._makers[type(change)](self, change)

    def _add(self, change: AddMember) -> None:
        known = next((row for row in self.rows.values() if row.name == change.name), None)
        if change.learner and change.witness:
            raise InvalidRequest("a witness votes from the first day: it has nothing to catch up with")
        if known is None:
            self._take_in(change, ADD_LEARNER if change.learner else ADD_WITNESS if change.witness else ADD_VOTER)
            return
        if change.witness is not self._is_witness(known.id):
            raise InvalidRequest(
                f"the member {known.name!r} is {'no' if change.witness else 'a'} witness, and stays so"
            )
        is_expected = known.incarnation == 0
        if known.incarnation != change.incarnation and not is_expected:
            raise MemberExists(
                f"there is a member {known.name!r} already, with another data directory: "
                "if that one is lost, rebuild or replace the member"
            )
        if change.incarnation == 0 and known.address != change.address:
            raise MemberExists(f"the member {known.name!r} is expected at {known.address} already")
        self._put(replace(known, address=change.address, incarnation=change.incarnation))
        self.added.append(known.id)

    def _is_witness(self, member_id: int) -> bool:
        taken_in = any(step.node == member_id and step.kind is ADD_WITNESS for step in self.steps)
        return member_id in self._witnesses or taken_in

    def _take_in(self, change: AddMember | ReplaceMember, kind: ChangeKind) -> None:
        new = MemberInfo(self.next_id, change.name, change.address, change.incarnation)
        self.next_id += 1
        self._put(new)
        self._step(new.id, kind)
        self.added.append(new.id)

    def _promote(self, change: PromoteMember) -> None:
        self._known(change.id)
        if change.id not in self._voters:
            self._step(change.id, ADD_VOTER)

    def _demote(self, change: DemoteMember) -> None:
        self._known(change.id)
        if change.id in self._voters:
            self._step(change.id, ADD_LEARNER)

    def _remove(self, change: RemoveMember) -> None:
        self._known(change.id)
        del self.rows[change.id]
        self._step(change.id, REMOVE)

    def _replace(self, change: ReplaceMember) -> None:
        old = self._known(change.id).id
        kind = ADD_WITNESS if self._is_witness(old) else ADD_VOTER if old in self._voters else ADD_LEARNER
        self._remove(RemoveMember(old))
        self._take_in(change, kind)

    def _update(self, change: UpdateMember) -> None:
        known = self._known(change.id)
        if change.priority is not None and not 0 <= change.priority <= PRIORITY_MAX:
            raise InvalidRequest(f"a priority is between 0 and {PRIORITY_MAX}, not {change.priority}")
        name = known.name if change.name is None else change.name
        address = known.address if change.address is None else change.address
        priority = known.priority if change.priority is None else change.priority
        self._put(replace(known, name=name, address=address, priority=priority))

    _makers: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        AddMember: _add,
        PromoteMember: _promote,
        DemoteMember: _demote,
        RemoveMember: _remove,
        ReplaceMember: _replace,
        UpdateMember: _update,
    }

    def _known(self, member_id: int) -> MemberInfo:
        known = self.rows.get(member_id)
        if known is None:
            raise MemberNotFound(f"there is no member {member_id}")
        return known

    def _put(self, row: MemberInfo) -> None:
        """Take a row, if it can be told apart from all others."""
        complaint = complaint_of_name(row.name)
        if complaint:
            raise InvalidRequest(complaint)
        if not row.address or len(row.address) > ADDRESS_CHARACTERS_MAX:
            raise InvalidRequest(f"an address has 1 to {ADDRESS_CHARACTERS_MAX} characters")
        if any(character <= " " or character in ",=\x7f" for character in row.address):
            raise InvalidRequest(f"{row.address!r} is no address: no spaces, none of '=,', and nothing invisible")
        for other in self.rows.values():
            if other.id == row.id:
                continue
            if other.name == row.name:
                raise MemberExists(f"there is a member {row.name!r} already")
            if other.address == row.address:
                raise MemberExists(f"{other.name!r} has the address {row.address} already")
            if row.incarnation and other.incarnation == row.incarnation:
                raise MemberExists(f"{other.name!r} has this data directory already")
        self.rows[row.id] = row

    def _step(self, member_id: int, kind: ChangeKind) -> None:
        self.steps.append(Change(kind, member_id))
        self._voters -= {member_id}
        self._voters |= {member_id} if kind in (ADD_VOTER, ADD_WITNESS) else set()


def _changed(membership: Membership, change: MembershipChange) -> Membership:
    try:
        return changed(membership, change)
    except InvalidChange as error:
        raise InvalidRequest(str(error)) from None
