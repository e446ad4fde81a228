"""Questions about leases, on every member: renewals and what is left go to the leader, who alone keeps the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from pyraftkv import errors
from pyraftkv.core import LEADER, NO_NODE, Raft
from pyraftkv.futures import fulfil
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.leases import LeaseKeeper
from pyraftkv.node.reads import ReadRounds
from pyraftkv.protocol import DecidedCommand, LeaseAsk, LeaseTold
from pyraftkv.replica import Replica
from pyraftkv.store.commands import LeaseQuery, LeaseVerb
from pyraftkv.store.values import LeaseInfo, LeaseList

ASKS_MAX = 65_536
"""Questions under way, and again so many of other members; one more is refused as `Overloaded`, or not answered."""

ARMING_SECONDS = 0.05
"""How long a new leader is left alone that does not keep the leases yet."""


class Owner(Protocol):
    """What the desk needs of its member."""

    raft: Raft
    reads: ReadRounds

    @property
    def replica(self) -> Replica:
        """What was applied so far."""
        ...

    async def decide(self, command: DecidedCommand) -> object:
        """Do something as leader (`node.decisions`)."""
        ...


class LeaseDesk:
    """Answers what is asked of this member, and what other members pass on to it while it leads.

    Args:
        member: Whose desk it is.
        loop: The event loop of all callers.
        send: Sends messages to other members; they may be lost.
        config: Timing.
    """

    def __init__(
        self,
        member: Owner,
        *,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Sequence[LeaseAsk | LeaseTold]], object],
        config: NodeConfig,
    ) -> None:
        self._raft = member.raft
        self._confirm = member.reads.join
        self._replica: Callable[[], Replica] = lambda: member.replica
        self.keeper = LeaseKeeper(
            member.raft,
            loop=loop,
            replica=self._replica,
            decide=member.decide,
            confirm=self._confirm,
            election_seconds=config.election_timeout_seconds,
            checkpoint_seconds=config.lease_checkpoint_seconds,
            timeout_seconds=config.request_timeout_seconds,
        )
        self._loop = loop
        self._send = send
        self._context = member.reads.first_context
        self._retry_seconds = config.retry_seconds
        self._timeout_seconds = config.request_timeout_seconds
        self._asked: dict[int, asyncio.Future[int | None]] = {}
        """By context; None says: look again who leads."""
        # A dictionary, so that it ends in an order that does not depend on addresses, as that of a set does.
        self._answering: dict[asyncio.Task[None], None] = {}
        self._is_closed = False

    async def ask(self, query: LeaseQuery, deadline: float) -> LeaseInfo | LeaseList:
        """Answer a question as of now. Raises `Unavailable`."""
        lease = query.lease
        if query.verb is LeaseVerb.LIST:
            await self._confirm(deadline)
            return LeaseList(list(self._replica().store.leases))
        if len(self._asked) >= ASKS_MAX:
            raise errors.Overloaded(f"{len(self._asked)} questions about leases are under way already")
        try:
            async with asyncio.timeout_at(deadline):
                seconds = await self._seconds(lease, deadline, renew=query.verb is LeaseVerb.RENEW)
                if query.verb is not LeaseVerb.RENEW:
                    await self._confirm(deadline)  # this member may be behind the one that has answered
        except TimeoutError:
            raise errors.ReadTimeout("no leader that keeps the leases answered before the deadline") from None
        leases = self._replica().store.leases
        if seconds < 0 or (query.verb is not LeaseVerb.RENEW and lease not in leases):
            return LeaseInfo(lease, -1, 0)
        keys = leases.keys(lease) if query.verb is LeaseVerb.KEYS else []
        return LeaseInfo(lease, seconds, leases.ttl(lease), keys)

    async def _seconds(self, lease: int, deadline: float, *, renew: bool) -> int:
        """Ask whoever leads until there is an answer: seconds, or -1 if there is no such lease.

        An answer counts whichever time it was asked for: under load it may take longer than the next attempt.
        """
        raft = self._raft
        self._context = context = self._context + 1
        while True:
            pause_seconds = self._retry_seconds
            if raft.role is LEADER:
                try:
                    return await self._answer(lease, deadline, renew=renew)
                except errors.NoLeader:
                    pause_seconds = ARMING_SECONDS
            seconds = await self._pass_on(lease, context, pause_seconds, renew=renew)
            if seconds is not None:
                return seconds

    async def _answer(self, lease: int, deadline: float, *, renew: bool) -> int:
        if renew:
            return await self.keeper.renew(lease, deadline) or -1
        return await self.keeper.time_to_live(lease, deadline)

    async def _pass_on(self, lease: int, context: int, seconds: float, *, renew: bool) -> int | None:
        """Ask the leader, if that is another one, and wait a little; None if it is to be asked again."""
        if self._is_closed:
            raise errors.Closed("the node stopped")
        raft = self._raft
        future: asyncio.Future[int | None] = self._loop.create_future()
        self._asked[context] = future
        if raft.leader not in (NO_NODE, raft.id):
            self._send([LeaseAsk(raft.leader, raft.id, context, lease, renew)])
        timer = self._loop.call_later(seconds, fulfil, future, None)
        try:
            return await future
        finally:
            timer.cancel()
            del self._asked[context]

    # --- What happens ----------------------------------------------------------------------------------------------

    def received(self, message: LeaseAsk | LeaseTold) -> None:
        """Take a question of another member, or the answer to one of ours."""
        if isinstance(message, LeaseTold):
            future = self._asked.get(message.context)
            if future is not None:
                fulfil(future, message.seconds)
        elif self._raft.role is LEADER and len(self._answering) < ASKS_MAX and not self._is_closed:
            task = self._loop.create_task(self._tell(message), name="pyraftkv-lease-answer")
            self._answering[task] = None
            task.add_done_callback(self._answering.pop)

    async def _tell(self, ask: LeaseAsk) -> None:
        """Answer another member; it asks again if this one cannot say."""
        deadline = self._loop.time() + self._timeout_seconds
        try:
            seconds = await self._answer(ask.lease, deadline, renew=ask.renew)
        except errors.Unavailable:
            return
        self._send([LeaseTold(ask.sender, self._raft.id, ask.context, seconds)])

    def led(self) -> None:
        """Role, term or leader changed: ask again."""
        for future in self._asked.values():
            fulfil(future, None)

    async def close(self) -> None:
        """Let nobody wait any longer."""
        self._is_closed = True
        self.led()
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)
        await self.keeper.close()
