"""The guard: what a member does when states differ, its own from the others' or nobody's from anybody's.

`integrity` says what is wrong, `repair` how a state is taken from another member. Here is what follows from the one and
leads to the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from pyraftkv import errors
from pyraftkv.core import LEADER, Raft
from pyraftkv.log.base import Storage
from pyraftkv.node.applier import Applier
from pyraftkv.node.events import MemberQuarantined, MemberRepaired, NodeEvent
from pyraftkv.node.integrity import Integrity
from pyraftkv.node.peers import Peers
from pyraftkv.node.repair import PAUSE_SECONDS, catch_up, fetch_replica
from pyraftkv.protocol import DecidedCommand
from pyraftkv.replica import Replica
from pyraftkv.settings import AlarmKind, ChangeAlarm
from pyraftkv.transport.base import Transport

logger = logging.getLogger("pyraftkv.node")


class Guard:
    """Watches over one member's state.

    Args:
        raft: Its machine.
        applier: Has the state.
        storage: Has the log.
        transport: Reaches the other members, as a member and as a client.
        peers: Who they are.
        rng: For the client's pauses.
        emit: Tells whoever watches over the node.
        decide: Does something as leader (`Member.decide`).
        silence: Fails whatever waits for an answer of this member.
        repaired: Is told when the state is another one.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        applier: Applier,
        storage: Storage,
        transport: Transport,
        peers: Peers,
        rng: Random,
        emit: Callable[[NodeEvent], None],
        decide: Callable[[DecidedCommand], Awaitable[Any]],
        silence: Callable[[str], None],
        repaired: Callable[[Replica], None],
    ) -> None:
        self._raft = raft
        self._applier = applier
        self._storage = storage
        self._transport = transport
        self._peers = peers
        self._rng = rng
        self._emit = emit
        self._decide = decide
        self._silence = silence
        self._repaired = repaired
        self._wanted = asyncio.Event()
        self._alarming: asyncio.Task[None] | None = None
        self.integrity = Integrity(
            raft.id,
            replica=lambda: applier.replica,
            send=transport.send,
            quarantined=self._quarantined,
            split=self._raise_corrupt,
        )

    @property
    def alarms(self) -> list[str]:
        """What is wrong with this member alone, as a status says it."""
        reason = self.integrity.reason
        return [f"CORRUPT: {reason}; this member answers nothing until it is repaired"] if reason else []

    async def close(self) -> None:
        """Give up an alarm under way."""
        if self._alarming is not None:
            self._alarming.cancel()
            await asyncio.wait([self._alarming])

    # --- This member is wrong --------------------------------------------------------------------------------------

    def _quarantined(self, reason: str) -> None:
        logger.critical("%s is in quarantine: %s", self._peers.name(self._raft.id), reason)
        self._emit(MemberQuarantined(reason))
        self._silence(reason)
        self._wanted.set()

    async def run(self) -> None:
        """Repair this member whenever it is in quarantine, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self.integrity.reason:
                await self._try_all()
                if self.integrity.reason:
                    await asyncio.sleep(PAUSE_SECONDS)

    async def _try_all(self) -> None:
        """Ask one member after the other, until there is nothing to repair any more."""
        own = self._peers.name(self._raft.id)
        for member in self._sources():
            address = self._peers.address(member)
            try:
                replica = await fetch_replica(
                    address,
                    like=self._applier.replica,
                    cluster_id=self._applier.replica.roster.cluster_id,
                    dialer=self._transport.dialer(),
                    name=own,
                    rng=Random(self._rng.getrandbits(64)),
                )
                await self._adopt(replica)
            except (errors.NotApplied, errors.StorageError, errors.TransportError) as error:
                logger.warning("%s is not repaired from %s: %s", own, address, error)
            if not self.integrity.reason:
                return

    def _sources(self) -> list[int]:
        """Return the other members, those first that are known to be right."""
        membership, right = self._applier.replica.membership, self.integrity.agreeing()
        others = membership.members - membership.witnesses - {self._raft.id}
        return sorted(others, key=lambda member: (member not in right, member))

    async def _adopt(self, replica: Replica) -> None:
        """Bring another member's state to the present, and go on with it. Raises `StorageError`, `NotApplied`."""
        applier = self._applier
        while True:
            await applier.applied_to(replica.applied_index)
            await applier.between_entries()
            await catch_up(replica, to=lambda: applier.replica.applied_index, storage=self._storage)
            if not self.integrity.reason:
                return  # the leader's snapshot was faster
            present = applier.replica
            if applier.is_restored and not present.is_busy and present.applied_index == replica.applied_index:
                break
        applier.adopt(replica)
        self.integrity.renewed()
        self._repaired(replica)
        self._emit(MemberRepaired(replica.applied_index))
        logger.warning("%s is repaired as of entry %d", self._peers.name(self._raft.id), replica.applied_index)
        self.integrity.applied()

    # --- Nobody knows who is wrong ---------------------------------------------------------------------------------

    def _raise_corrupt(self, members: list[int]) -> None:
        """Let nobody change anything, if that is for this member to say."""
        is_known = self._alarming is not None or self._applier.replica.rules.has(AlarmKind.CORRUPT)
        if self._raft.role is LEADER and not is_known:
            loop = asyncio.get_running_loop()
            self._alarming = loop.create_task(self._decide_corrupt(members), name="pyraftkv-alarm")

    async def _decide_corrupt(self, members: list[int]) -> None:
        try:
            for member in members:
                await self._decide(ChangeAlarm(AlarmKind.CORRUPT, member, is_raised=True))
        except (errors.NotApplied, errors.MaybeApplied) as error:
            logger.warning("the alarm CORRUPT was not raised yet: %s", error)
        finally:
            self._alarming = None
