"""`Connections`: to whom a node keeps connections, from its first HELLO until it goes.

They follow the member table, a little late on two sides:

1. Who was removed is dialled for one election timeout more: it hears that its removal is committed from nobody else.
   Each has a timeout of its own: were it one for all, that begins anew with each change, then while members are
   exchanged one after another nobody would ever be let go.
2. And who was removed itself stays for a while, for the others' sake (`LINGER_TIMEOUTS`). Should the log say further on
   that it is a member after all, for a recovery has made a cluster of it, it stays for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from pyraftkv import errors
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import Hello
from pyraftkv.roster import Roster
from pyraftkv.server import ClientPort
from pyraftkv.transport.base import Transport

logger = logging.getLogger("pyraftkv.node")

LINGER_TIMEOUTS = 5
"""Election timeouts for which a member that was removed stays, unless it is told to go before.

1. Of two members the leader is removed, and stops. The other one has the change in its log, but the news that it is
   committed were lost.
2. It needs a vote of two to go on, and there is nobody. So who was removed still votes and acknowledges, until the
   others have applied it: then they refuse its HELLO as "removed".
"""


class Connections:
    """Who this node says it is, who the others are, and the connections to them.

    Args:
        own: What this node says of itself; `identify` says more.
        members: The first members, by name: who is dialled until the log says better.
        transport: It dials the others.
        clients: They are told where else they are served.
        election_timeout_seconds: The measure of how long who leaves is waited for.
        removed: Called when this node was removed and has stayed long enough.
    """

    def __init__(
        self,
        own: Hello,
        members: Mapping[str, str],
        *,
        transport: Transport,
        clients: ClientPort,
        election_timeout_seconds: float,
        removed: Callable[[], None],
    ) -> None:
        self.own = own
        self.peers = Peers(own, members)
        self._transport = transport
        self._clients = clients
        self._timeout = election_timeout_seconds
        self._removed = removed
        self._parting: dict[int, asyncio.TimerHandle] = {}
        """For each member that was removed, and is still to hear of it."""
        self._lingering: asyncio.TimerHandle | None = None
        """Set while this node is removed, and stays for the others' sake."""

    def dial(self) -> None:
        """Keep connections to those that are known by now."""
        self._transport.set_peers(self.peers.dialled(self._transport.address))

    def identify(self, own: Hello) -> None:
        """Say from now on who this node has turned out to be."""
        self.own = own
        self._transport.identify(own)

    def adopt(self, roster: Roster) -> None:
        """Follow the member table; see the top."""
        for id_ in self.peers.adopt(self.own, roster):
            self._call_off(self._parting.get(id_))
            self._parting[id_] = asyncio.get_running_loop().call_later(self._timeout, self._let_go, id_)
        self._keep()
        is_banned = roster.is_banned(self.own.member_id)
        if is_banned and self._lingering is None:
            logger.info("%s was removed from its cluster", self.own.name)
            self._lingering = asyncio.get_running_loop().call_later(LINGER_TIMEOUTS * self._timeout, self._removed)
        elif not is_banned:
            self._call_off(self._lingering)
            self._lingering = None

    def judge(self, hello: Hello) -> None:
        """Raise `HandshakeRejected` unless a HELLO is one of a member of this cluster, in the life it joined with."""
        if not self.own.member_id:
            raise errors.HandshakeRejected(
                f"{self.own.name!r} has not been taken in yet", reason="joining", peer=hello.name
            )
        self.peers.judge(hello)

    def heard(self, hello: Hello) -> None:
        """A member is there, perhaps at a new address."""
        if self.peers.heard(hello):
            self._keep()

    def close(self) -> None:
        """Wait for nobody any more. The connections are the transport's to close."""
        for timer in self._parting.values():
            timer.cancel()
        self._call_off(self._lingering)

    def _let_go(self, member_id: int) -> None:
        del self._parting[member_id]
        self.peers.let_go(member_id)
        self._keep()

    def _keep(self) -> None:
        """Say who is to be dialled, and by whom clients are served."""
        self.dial()
        self._clients.tell(self.peers.member_addresses(own=self._transport.address))

    @staticmethod
    def _call_off(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
