"""What a member of a running cluster does for one that came late to the first start (`node.bootstrap`).

1. A late member says HELLO. The connection back to it does not stand yet, so what is sent now is lost.
2. It has all the HELLOs that there will be. So the offer is repeated until it speaks as a member, or for as long as it
   may take to connect; a connection that comes later brings another HELLO.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pyraftkv import codec
from pyraftkv.codec import PeerMessage
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import GenesisOffer

OFFER_SECONDS = 0.1
"""How often entry 1 is shown to a member that came late to the first start."""

OFFERS_MAX = 30
"""For how many times, after each of its HELLOs."""


class Offers:
    """Shows entry 1 to listed members that have an empty directory.

    Args:
        send: Sends messages to other members.
    """

    def __init__(self, *, send: Callable[[list[PeerMessage]], None]) -> None:
        self._send = send
        self._newcomers: dict[int, int] = {}
        """Members that said HELLO without a cluster, and how often they are still to be shown entry 1."""
        self._somebody_came = asyncio.Event()

    def came(self, member_id: int) -> None:
        """A member said HELLO without a cluster."""
        self._newcomers[member_id] = OFFERS_MAX
        self._somebody_came.set()

    def heard(self, messages: Sequence[PeerMessage]) -> None:
        """Whoever speaks as a member is one by now."""
        if self._newcomers:
            for message in messages:
                self._newcomers.pop(message.sender, None)

    async def run(self, peers: Peers, own: int) -> None:
        """Offer what `peers` know of the beginning, as member ``own``, until cancelled."""
        while True:
            await self._somebody_came.wait()
            genesis = peers.roster.genesis
            if genesis is not None:
                offer = codec.encode_logged(genesis)
                self._send([GenesisOffer(newcomer, own, offer) for newcomer in self._newcomers])
            self._newcomers = {newcomer: left - 1 for newcomer, left in self._newcomers.items() if left > 1}
            await asyncio.sleep(OFFER_SECONDS)
            if not self._newcomers:
                self._somebody_came.clear()
