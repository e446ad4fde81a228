"""Who the other members are: judges their HELLOs, keeps their names and addresses, knows who answers.

The member table is a function of what was applied, and a member may be behind. So who is not in its table is either of
the past or of the future; ids rise and are never used again, and say which:

1. Members 1, 2 and 3 take in 4, which comes to lead. Member 1 was down; its log has the change, but it knows of no
   commit index that covers it. Would it refuse 4 as a stranger, it would never hear of one.
2. So an id that it has not come across yet is let in, as a *guest*: it gets answers, and what it says counts as much
   as the Raft machine's own configuration makes of it.
3. An id below those, and not in the table, was a member's that was removed: it is told so, and stops.

**Who comes back with less than it promised** is found out by its leader, which remembers what the lives of a member
acknowledged (`LeaderRules.promise_of`), and by everybody else by what it said itself (`node.pledges`). A HELLO says
what stood on the disk when the sender's life began, and says the same as long as that lives. It is judged when it is
the first that is heard of that life:

1. A HELLO is under way on one lane, while its sender acknowledges entries on another. When it arrives, more is
   acknowledged than stood on the disk at the start, of course. It is of a life that is known already.
2. A member is killed with acknowledgements under way, and starts again. Those that arrive were durable before they were
   sent, so the new life begins with all of them. What is still on a lane of the old life is dropped with that.
3. A member acknowledges. Its leader loses the lead, wins it again, and knows nothing: of whoever begins in a later term
   than it has acknowledged in nothing would be proven, for another leader may have cut its log off.
4. A copy of a directory is put back, and its boot count was seen already: the transport has refused it before
   (`transport.handshake`). Lives that are compared here had one boot count each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from pyraftkv import errors
from pyraftkv.machines import versions_of
from pyraftkv.node.bootstrap import first_ids
from pyraftkv.protocol import Hello, MemberInfo, Pledge
from pyraftkv.roster import MEMBERS_MAX, Roster
from pyraftkv.transport.handshake import rolled_back

GUESTS_MAX = MEMBERS_MAX
"""Members that are let in before their joining was applied here; one more waits until it was."""

LEAVING_MAX = MEMBERS_MAX
"""Members that were removed and are still dialled; for one more, who was removed first is let go."""


class Peers:
    """The member table as this node uses it, from the list it was started with until the log says better."""

    def __init__(self, own: Hello, members: Mapping[str, str]) -> None:
        self._own = own
        self._listed = dict(members)
        self._names = {id_: name for name, id_ in first_ids(members).items()}
        self._addresses = {id_: members[name] for id_, name in self._names.items()}
        self._roster = Roster()
        self._table: dict[int, MemberInfo] = {}
        self._guests: set[int] = set()
        self._leaving: dict[int, str] = {}
        """The addresses of members that were removed, and are still to hear of it."""
        self._connected: set[int] = set()
        self._boots: dict[int, int] = {}
        """The boot counts that members said HELLO with last."""
        self._pledges: dict[int, tuple[int, int]] = {}
        """The term and the index that members said they have for good."""
        self._levels: dict[int, int] = {}
        """The feature levels that members of the table said they are of, when they said HELLO last."""
        self._machines: dict[int, dict[str, int]] = {}
        """The state machines that they said they have, with versions."""

    @property
    def addresses(self) -> dict[int, str]:
        """Where to dial every other member, guests and those who are leaving, by id."""
        everybody = self._leaving | self._addresses
        return {id_: address for id_, address in everybody.items() if id_ != self._own.member_id}

    def dialled(self, own_address: str) -> dict[int, str]:
        """Return `addresses`, but for whom this member has taken the place of.

        1. Member 3 is rebuilt: member 4, of its name and address. Its log begins with the first members.
        2. So it dials member 3, which is nobody but itself, and refuses itself as the caller and as the one called.
        """
        return {
            id_: address
            for id_, address in self.addresses.items()
            if address != own_address or not (id_ in self._leaving or self._names.get(id_) == self._own.name)
        }

    def member_addresses(self, *, own: str) -> list[str]:
        """Return where clients reach the members, by id; this one at ``own``. A witness has nothing for them."""
        ids = sorted(self._table.keys() - self._roster.membership.witnesses)
        return [own if id_ == self._own.member_id else self._addresses[id_] for id_ in ids]

    def let_go(self, member_id: int) -> None:
        """Who was removed has heard of it by now, or is told when it says HELLO again."""
        self._leaving.pop(member_id, None)

    @property
    def roster(self) -> Roster:
        """The members as of the last `adopt`; an empty one before."""
        return self._roster

    @property
    def ids(self) -> list[int]:
        return sorted(self._names)

    def name(self, member_id: int) -> str:
        """Return the member's name; empty for nobody, its number for a stranger."""
        return self._names.get(member_id) or (str(member_id) if member_id else "")

    def address(self, member_id: int) -> str:
        return self._addresses.get(member_id, "")

    def connected(self) -> set[int]:
        """Return who is there: this member, and whom it has heard of since it last lost messages to them."""
        return self._connected | {self._own.member_id}

    def is_connected(self, member_id: int) -> bool:
        return member_id in self._connected or member_id == self._own.member_id

    @property
    def feature_level(self) -> int:
        """What every member offers; 0 while one of them was never heard of. O(members)."""
        levels = self._levels | {self._own.member_id: self._own.feature_level}
        return min([levels.get(id_, 0) for id_ in self._table], default=0)

    def machine_version(self, name: str) -> int:
        """Return the version of a machine that every member offers that was heard of, if it has a state. O(members)."""
        offers = self._machines | {self._own.member_id: versions_of(self._own.machines)}
        ids = self._table.keys() - self._roster.membership.witnesses
        return min([offers[id_].get(name, 0) if id_ in offers else 1 for id_ in ids], default=0)

    def expect(self, members: Iterable[MemberInfo]) -> None:
        """Dial these, of whom somebody else has told: whoever has just joined knows nobody by itself."""
        for member in members:
            self._guests.add(member.id)
            self._addresses[member.id] = member.address

    def adopt(self, own: Hello, roster: Roster) -> list[int]:
        """The log says who the members are: from here on only their incarnations are let in, and guests.

        Returns whom it has removed: to be dialled until they are `let_go`.

        1. A cluster of a, b and c is restarted, with members= that name a and z by now.
        2. By rank, z would be member 2, which is b: nobody is called by the rank of a list that is no longer his.
        """
        table = roster.members
        self._guests = {id_ for id_ in self._guests if id_ >= roster.next_id}
        guests = {id_: self._addresses[id_] for id_ in self._guests & self._addresses.keys()}
        removed = {id_: self._addresses[id_] for id_ in self._table if roster.is_banned(id_)}
        self._leaving = dict([*self._leaving.items(), *removed.items()][-LEAVING_MAX:])
        self._addresses = {member.id: self._address_of(member) for member in table.values()} | guests
        self._own = own
        self._roster = roster
        self._table = dict(table)
        self._names = {m.id: m.name for m in table.values()}
        self._connected &= self._addresses.keys()
        self._boots = {id_: boots for id_, boots in self._boots.items() if id_ in self._addresses}
        self._pledges = {id_: pledge for id_, pledge in self._pledges.items() if id_ in self._addresses}
        self._levels = {id_: level for id_, level in self._levels.items() if id_ in self._addresses}
        self._machines = {id_: offer for id_, offer in self._machines.items() if id_ in self._addresses}
        return list(removed)

    def _address_of(self, member: MemberInfo) -> str:
        """Return where to dial a member: as the log has it when that is news, else as we were told."""
        before = self._table.get(member.id)
        if before is not None:
            return self._addresses[member.id] if before.address == member.address else member.address
        heard = self._addresses.get(member.id) if member.id in self._connected else None
        return heard or self._listed.get(member.name) or member.address

    def judge(self, hello: Hello) -> None:
        """Raise `HandshakeRejected` unless ``hello`` is a member's of this cluster, in the life it joined with."""
        own = self._own
        if hello.cluster_id and own.cluster_id and hello.cluster_id != own.cluster_id:
            raise _rejected(hello, "wrong-cluster", f"cluster {hello.cluster_id:x} is not {own.cluster_id:x}")
        if not self._table:
            if own.cluster_id:
                self._judge_stranger(hello)
            return
        known = self._table.get(hello.member_id)
        if known is None:
            self._judge_stranger(hello)
            return
        if known.name != hello.name and not hello.cluster_id:
            # Of a first start: its id is the rank of its name. Once it has joined a name is but a label.
            raise _rejected(hello, "wrong-member", f"member {hello.member_id} is {known.name!r}, not {hello.name!r}")
        if known.incarnation != hello.incarnation and (known.incarnation or not hello.cluster_id):
            raise _rejected(
                hello,
                "wrong-incarnation",
                f"{hello.name!r} comes back with another data directory: "
                "restore the old one, or replace the member; it may have forgotten what it acknowledged",
            )

    def _judge_stranger(self, hello: Hello) -> None:
        if self._roster.is_banned(hello.member_id) and hello.cluster_id:
            raise _rejected(hello, "removed", f"member {hello.member_id} ({hello.name}) was removed from this cluster")
        is_welcome = hello.member_id in self._addresses or len(self._guests) < GUESTS_MAX
        if not hello.cluster_id or not is_welcome:
            raise _rejected(hello, "unknown-member", f"member {hello.member_id} is not in this cluster")

    def is_another_life(self, hello: Hello) -> bool:
        """Whether a judged peer has started again since it said HELLO last."""
        return self._boots.get(hello.member_id, hello.boot_count) < hello.boot_count

    def judge_memory(self, hello: Hello, promise: tuple[int, int] | None) -> None:
        """Raise `HandshakeRejected` if a judged peer begins another life with less than earlier ones had promised.

        Args:
            hello: Its HELLO.
            promise: The term and the index that it cannot have forgotten, as far as this member knows as its leader.
        """
        if not self.is_another_life(hello):
            return
        term, index = self._pledges.get(hello.member_id, (0, 0))
        if promise is not None and hello.start < promise:
            self._refuse_forgetful(hello, promise, "had acknowledged")
        elif hello.start_term < term or hello.start_index < index:
            self._refuse_forgetful(hello, (term, index), "has told of committed")

    def _refuse_forgetful(self, hello: Hello, promise: tuple[int, int], how: str) -> NoReturn:
        had, has = (f"entries to {index} in term {term}" for term, index in (promise, hello.start))
        known = (self._boots[hello.member_id], *promise)
        raise rolled_back(hello, f"{has}, and {how} {had}", known=known)

    def pledged(self, pledge: Pledge) -> None:
        """Note what a peer has for good. The network may have turned what it said around."""
        term, index = self._pledges.get(pledge.sender, (0, 0))
        self._pledges[pledge.sender] = (max(term, pledge.term), max(index, pledge.index))

    def heard(self, hello: Hello) -> bool:
        """Note that a judged peer is there; True when its address is news."""
        self._connected.add(hello.member_id)
        self._boots[hello.member_id] = hello.boot_count
        self._levels[hello.member_id] = hello.feature_level
        self._machines[hello.member_id] = versions_of(hello.machines)
        if hello.member_id not in self._names:
            self._guests.add(hello.member_id)
        if hello.address and self._addresses.get(hello.member_id) != hello.address:
            self._addresses[hello.member_id] = hello.address
            return True
        return False

    def lost(self, member_id: int) -> bool:
        """Note that messages to a peer were lost; True when that is news."""
        if member_id in self._connected:
            self._connected.discard(member_id)
            return True
        return False


def _rejected(hello: Hello, reason: str, message: str) -> errors.HandshakeRejected:
    return errors.HandshakeRejected(message, reason=reason, peer=hello.name)
