"""What a leader decides by itself: proposed once, in its own term, and waited for by the leader that decided.

A client's command belongs to the client, and whoever leads may take it. A decision belongs to the leader that made it,
from what it alone knows: the time, who has asked it what. So it carries the term (`protocol.Decided`), the machine
never forwards it (`ProposeDecided`), and who has been deposed since decides anew or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyraftkv import codec, errors
from pyraftkv.core import LEADER, ProposeDecided, Raft
from pyraftkv.futures import fulfil
from pyraftkv.protocol import Decided, DecidedCommand
from pyraftkv.replica import DecisionApplied
from pyraftkv.sessions import Outcome, Refusal
from pyraftkv.writes import Failure

DECISIONS_MAX = 1024
"""Decisions under way; one more is refused as `Overloaded`."""


class Decisions:
    """Every decision of this leader that is under way, by its number.

    Invariant: while this member leads in a term, only decisions of that term are under way; otherwise none.

    Args:
        raft: The machine, to be looked at.
        loop: The event loop of all callers.
        feed: Takes what the machine is to be told.
    """

    def __init__(
        self, raft: Raft, *, loop: asyncio.AbstractEventLoop, feed: Callable[[ProposeDecided], object]
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._feed = feed
        self._number = 0
        self._pending: dict[int, tuple[int, bytes, asyncio.Future[Outcome]]] = {}
        """The term, the payload and who waits."""

    def __len__(self) -> int:
        return len(self._pending)

    async def decide(self, command: DecidedCommand) -> Outcome:
        """Do ``command``, once and in this term, or not at all; return what it came to.

        Raises: what it was refused with; `NoLeader` (nothing happened); `Overloaded`; `MaybeApplied` if this member was
        deposed before it was committed.
        """
        raft = self._raft
        if raft.role is not LEADER:
            raise errors.NoLeader("another member leads: this one has nothing to decide")
        if len(self._pending) >= DECISIONS_MAX:
            raise errors.Overloaded(f"{len(self._pending)} decisions are under way already")
        self._number = number = self._number + 1
        payload = codec.encode_logged(Decided(raft.term, number, command))
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._pending[number] = raft.term, payload, future
        self._feed(ProposeDecided(raft.term, [payload]))
        try:
            outcome = await future
        finally:
            self._pending.pop(number, None)
        if isinstance(outcome, Refusal):
            raise outcome.error()
        return outcome

    def applied(self, decision: DecisionApplied) -> None:
        """A decision was applied: one of ours, perhaps. O(1)."""
        term, _, future = self._pending.get(decision.number, (0, b"", None))
        if future is not None and term == decision.term:
            fulfil(future, decision.outcome)

    def returned(self, payloads: list[bytes]) -> None:
        """The machine did not take these: nothing happened. O(decisions under way)."""
        unsent = {id(payload) for payload in payloads}
        for _, payload, future in self._pending.values():
            if id(payload) in unsent and not future.done():
                future.set_exception(errors.NoLeader("the leader takes no commands now: it hands over, or is behind"))

    def led(self) -> None:
        """Role, term or leader changed: what was decided in another term is out of our hands."""
        raft = self._raft
        for term, _, future in self._pending.values():
            if (raft.role is not LEADER or term != raft.term) and not future.done():
                future.set_exception(errors.MaybeApplied("another term began before it was committed"))

    def fail_all(self, failure: Failure) -> None:
        """Fail every decision: the node is going away."""
        for _, _, future in self._pending.values():
            if not future.done():
                future.set_exception(failure(True))
