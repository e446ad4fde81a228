"""Who the other members are: judges their HELLOs, keeps their names and addresses, knows who answers."""

from __future__ import annotations

from collections.abc import Mapping

from pyraftkv import errors
from pyraftkv.node.bootstrap import first_ids
from pyraftkv.protocol import Hello, MemberInfo


class Peers:
    """The member table as this node uses it, from the list it was started with until the log says better."""

    def __init__(self, own: Hello, members: Mapping[str, str]) -> None:
        self._own = own
        self._listed = dict(members)
        self._names = {id_: name for name, id_ in first_ids(members).items()}
        self._addresses = {id_: members[name] for id_, name in self._names.items()}
        self._table: dict[int, MemberInfo] = {}
        self._connected: set[int] = set()

    @property
    def addresses(self) -> dict[int, str]:
        """Where to dial every other member, by id."""
        return {id_: address for id_, address in self._addresses.items() if id_ != self._own.member_id}

    @property
    def table(self) -> list[MemberInfo]:
        """The first members, in the order that the genesis has them."""
        return [self._table[id_] for id_ in sorted(self._table)]

    @property
    def ids(self) -> list[int]:
        return sorted(self._names)

    def name(self, member_id: int) -> str:
        """Return the member's name; empty for nobody, its number for a stranger."""
        return self._names.get(member_id) or (str(member_id) if member_id else "")

    def address(self, member_id: int) -> str:
        return self._addresses.get(member_id, "")

    def is_connected(self, member_id: int) -> bool:
        return member_id in self._connected or member_id == self._own.member_id

    def adopt(self, own: Hello, table: Mapping[int, MemberInfo]) -> None:
        """The log says who the members are: from here on only their incarnations are let in.

        1. A cluster of a, b and c is restarted, with members= that name a and z by now.
        2. By rank, z would be member 2, which is b: nobody is called by the rank of a list that is no longer his.
        """
        heard = {id_: self._addresses[id_] for id_ in self._connected if id_ in table}
        self._own = own
        self._table = dict(table)
        self._names = {m.id: m.name for m in table.values()}
        self._addresses = {m.id: heard.get(m.id) or self._listed.get(m.name) or m.address for m in table.values()}
        self._connected &= table.keys()

    def judge(self, hello: Hello) -> None:
        """Raise `HandshakeRejected` unless ``hello`` is a member's of this cluster, in the life it joined with."""
        own = self._own
        if hello.cluster_id and own.cluster_id and hello.cluster_id != own.cluster_id:
            raise _rejected(hello, "wrong-cluster", f"cluster {hello.cluster_id:x} is not {own.cluster_id:x}")
        if not self._table:
            return
        known = self._table.get(hello.member_id)
        if known is None:
            raise _rejected(hello, "unknown-member", f"member {hello.member_id} is not in this cluster")
        if known.name != hello.name:
            raise _rejected(hello, "wrong-member", f"member {hello.member_id} is {known.name!r}, not {hello.name!r}")
        if known.incarnation != hello.incarnation:
            raise _rejected(
                hello,
                "wrong-incarnation",
                f"{hello.name!r} comes back with another data directory: "
                "restore the old one, or replace the member; it may have forgotten what it acknowledged",
            )

    def heard(self, hello: Hello) -> bool:
        """Note that a judged peer is there; True when its address is news."""
        self._connected.add(hello.member_id)
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
