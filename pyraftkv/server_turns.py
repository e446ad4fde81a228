"""Turns: the calls of one connection are worked on in their order, and only as fast as their client takes the answers.

1. A client asks for three hundred large ranges at once. All of them are read and encoded in one pass of the loop.
2. For seconds nothing else is done: the member is silent, and the others elect another leader.
3. Meanwhile half a gigabyte waits to be sent to that client; and there may be a thousand such clients.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """A line of those that wait until they may go on, first come, first served.

    Whoever had a turn calls `go_on` at its end, and so does what makes `may_go` true.

    Args:
        may_go: Whether somebody may go on now.
    """

    def __init__(self, may_go: Callable[[], bool]) -> None:
        self._may_go = may_go
        self._line: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._line)

    async def come(self) -> None:
        """Wait for a turn; there is no wait where nobody waits and one may go on."""
        if not self._line and self._may_go():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come: it is the next one's
                self.go_on()
            raise

    def go_on(self) -> None:
        """Let the next one go on, if one may. Amortised O(1)."""
        while self._line and self._may_go():
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
