"""The first start of a cluster: how members that know only each other's names agree on who they are.

1.  Every listed member starts with an empty directory and mints an incarnation, durably, before it says HELLO.
2.  It waits until every listed member has said HELLO. Now it knows everybody's incarnation, and so do the others:
    the same facts give the same `Genesis` bytes everywhere, cluster id included.
3.  It saves those bytes as entry 1 of term 1, committed, and binds its directory to the cluster.
4.  A member that was late hears from one that is already past step 3, and takes entry 1 from it (`GenesisOffer`),
    if it finds its own incarnation there.

Who lost its disk between 1 and 3 has a new incarnation, is in nobody's genesis, and is refused by name. A directory
that holds entry 1 never bootstraps again, whatever `members=` says by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

from pyraftkv import codec, errors
from pyraftkv.core import MEMBERSHIP, Entry, HardState
from pyraftkv.futures import fulfil
from pyraftkv.node.witness import complaint_of_first
from pyraftkv.protocol import Genesis, GenesisOffer, Hello, MemberInfo

logger = logging.getLogger("pyraftkv.node")

MEMBERS_MAX = 64
"""Members that a cluster may begin with."""

GENESIS_TERM = 1
"""The term of entry 1. Nobody leads in it, so whoever has heard no later one has heard no leader."""

WAIT_LOG_SECONDS = 5.0
"""How often a first start says for whom it waits."""


def first_ids(names: Mapping[str, str]) -> dict[str, int]:
    """Return the ids that the first members have: their rank by name, from 1."""
    return {name: rank for rank, name in enumerate(sorted(names), start=1)}


def genesis_of(hellos: Mapping[int, Hello]) -> Genesis:
    """Return the genesis that follows from everybody's HELLO; equal facts give equal bytes."""
    members = [MemberInfo(h.member_id, h.name, h.address, h.incarnation) for _, h in sorted(hellos.items())]
    facts = codec.encode_table([[m.id, m.name, m.address, m.incarnation] for m in members])
    cluster_id = int.from_bytes(blake2b(facts, digest_size=8, person=b"pyraftkv-cluster").digest()[:7], "big") or 1
    return Genesis(cluster_id, members, sorted(id_ for id_, hello in hellos.items() if hello.witness))


def genesis_entry(payload: bytes) -> tuple[Entry, HardState]:
    """Return entry 1 and the hard state that says it is committed."""
    return Entry(1, GENESIS_TERM, payload, MEMBERSHIP), HardState(term=GENESIS_TERM, commit=1)


class Bootstrap:
    """Waits for the HELLOs of a first start, or for a genesis that somebody already has."""

    def __init__(self, own: Hello, members: Mapping[str, str]) -> None:
        if own.name not in members:
            raise errors.ConfigurationError(f"{own.name!r} is not among the members {sorted(members)}")
        if len(members) > MEMBERS_MAX:
            raise errors.ConfigurationError(f"{len(members)} members, at most {MEMBERS_MAX}")
        self._own = own
        self._ids = first_ids(members)
        self._hellos = {own.member_id: own}
        self._genesis: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._is_ready = False

    @property
    def missing(self) -> list[str]:
        """The names not heard of yet."""
        return [name for name, id_ in self._ids.items() if id_ not in self._hellos]

    def heard(self, hello: Hello) -> None:
        """Take a peer's HELLO. Raises `HandshakeRejected` if it is not one of the listed members."""
        if self._ids.get(hello.name) != hello.member_id:
            raise errors.HandshakeRejected(
                f"{hello.name!r} (id {hello.member_id}) is not among the members of this first start",
                reason="unknown-member",
                peer=hello.name,
            )
        if hello.cluster_id == 0:
            self._hellos[hello.member_id] = hello
            self._consider()

    def offered(self, offer: GenesisOffer) -> None:
        """Take the genesis of a cluster that already runs, if this member is in it."""
        try:
            genesis = codec.decode_logged(offer.payload)
        except errors.PyraftkvError as error:
            logger.warning("%s: entry 1 as member %d has it cannot be read: %s", self._own.name, offer.sender, error)
            return
        if not isinstance(genesis, Genesis):
            return
        own = [m for m in genesis.members if m.id == self._own.member_id and m.incarnation == self._own.incarnation]
        if own:
            fulfil(self._genesis, offer.payload)

    async def genesis(self, address: str) -> bytes:
        """Wait for the genesis and return its bytes, saying now and then for whom.

        Args:
            address: Where this member is reached, as it tells the others.

        Raises: `ConfigurationError` if there are too many witnesses among them.
        """
        own = self._own
        self._hellos[own.member_id] = replace(own, address=address)
        self._is_ready = True
        self._consider()
        while True:
            done, _ = await asyncio.wait([self._genesis], timeout=WAIT_LOG_SECONDS)
            if done:
                return self._genesis.result()
            logger.warning("%s: first start waits for %s", self._own.name, ", ".join(self.missing))

    def _consider(self) -> None:
        if not self._is_ready or self.missing or self._genesis.done():
            return
        genesis = genesis_of(self._hellos)
        complaint = complaint_of_first(genesis.witnesses, len(genesis.members))
        if complaint:
            self._genesis.set_exception(errors.ConfigurationError(complaint))
        else:
            self._genesis.set_result(codec.encode_logged(genesis))
