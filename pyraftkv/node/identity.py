"""Whose directory a node has opened, and who the members were as far back as it can tell.

What a directory says of itself is older than its log: the log's last entries, and whether they are committed, are known
only when they are applied. So the table that a node starts with may be behind, never wrong: `Peers` knows what to make
of members that it does not have yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from random import Random, SystemRandom

from pyraftkv import codec, errors
from pyraftkv.core import MEMBERSHIP
from pyraftkv.log.base import Recovered
from pyraftkv.node.recovery import own_recovery
from pyraftkv.protocol import ChangeMembers, Genesis, UpdateMember
from pyraftkv.replica import Replica
from pyraftkv.roster import Roster

LIFE_BITS = 63
"""Of the number that each life draws (`Hello.life`): as many as a natural has on the wire."""


def roster_at_start(recovered: Recovered, replica: Replica) -> Roster:
    """Return the members as of the snapshot, the first entry, or a recovery; an empty roster if there is neither."""
    roster = replica.roster.copy()
    if recovered.snapshot is None and recovered.entries:
        genesis = codec.decode_logged(recovered.entries[0].payload)
        assert isinstance(genesis, Genesis), "every log begins with it"
        roster.found(genesis)
    begun = own_recovery(recovered)
    if begun is not None:
        roster.recover(begun)
    return roster


def whose(name: str, recovered: Recovered, roster: Roster) -> tuple[int, int]:
    """Return cluster and member id of the directory that ``name`` was given.

    1. Member 1, called "a", is replaced by member 4 of the same name, which begins with a log from entry 1 on.
    2. Member 4 starts again. All it knows is who the first members were, and one of these is called "a", too.
    3. It is younger than what it knows of, so what it knows does not say what it is called.

    Raises: `ForeignDataDir` if that is another member's; `MemberRemoved`.
    """
    identity = recovered.identity
    if roster.is_banned(identity.member_id):
        raise errors.MemberRemoved(f"{name} was removed from its cluster")
    ids = {member.name: member.id for member in roster.members.values()}
    own = identity.member_id or ids.get(name, 0)
    known = roster.members.get(own)
    is_younger = own >= roster.next_id or name not in ids
    is_ours = name in {known.name, *_names_given(own, recovered)} if known is not None else is_younger
    if not own or not is_ours:
        owner = f"member {own}, {known.name!r}" if known is not None else f"one of {sorted(ids)}"
        raise errors.ForeignDataDir(f"the directory belongs to {owner}, not to {name!r}")
    return identity.cluster_id or roster.cluster_id, own


def draw_life(rng: Random) -> int:
    """Return a number for this life: from a copy, so that what comes of a seed does not depend on it, if one can be."""
    draws = rng if isinstance(rng, SystemRandom) else copy(rng)
    return draws.getrandbits(LIFE_BITS)


def _names_given(member_id: int, recovered: Recovered) -> Iterator[str]:
    """Yield the names that the log gives to a member after what its table is from."""
    for entry in recovered.entries:
        if entry.kind is MEMBERSHIP and entry.payload:
            envelope = codec.members_envelope(entry.payload)
            if envelope is not None and isinstance(envelope.command, ChangeMembers):
                for change in envelope.command.changes:
                    if isinstance(change, UpdateMember) and change.id == member_id and change.name is not None:
                        yield change.name
