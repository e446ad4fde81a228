"""Whose process has ended: told from refused connections alone, never from silence, and with no clock.

When a process dies its kernel ends its connections at once, and refuses new ones. That is news within milliseconds,
where silence takes an election timeout to mean anything. But a connection ends for many reasons, so:

1. A proxy before member 2 is restarted. Our connections to 2 end, and who dials gets refused, by the proxy's machine.
   But 2 has connections to *us*, and they stand. So every one must have ended, of both directions, before a refusal
   means anything.
2. The members change, and we close the connections to an address that is none any more. Nobody listens there. That says
   nothing of anybody, for we ended them ourselves.
3. A member does not run yet when we start, and dials are refused. Nobody who was never there has departed.
4. A member hangs, or its loop is slow, or its machine is cut off. Its kernel keeps its connections: nothing ends.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable

_NOTHING_TRIED = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH})
"""How a connection fails before anybody is asked, as where this host has no IPv6."""


def is_refusal(error: OSError) -> bool:
    """Whether a dial failed because nobody listens there, at any address that its name stands for.

    Of several addresses (``localhost``) asyncio tells in words alone: "Multiple exceptions: [Errno 111] ...".
    """
    numbers = {error.errno} if error.errno is not None else set(map(int, re.findall(r"\[Errno (\d+)\]", str(error))))
    return errno.ECONNREFUSED in numbers and numbers <= _NOTHING_TRIED | {errno.ECONNREFUSED}


class Departures:
    """Counts the connections that stand with each member, and tells once of each that is gone.

    Args:
        gone: Told of a member whose process has ended.
    """

    def __init__(self, gone: Callable[[int], None]) -> None:
        self._gone = gone
        self._standing: Counter[int] = Counter()
        """How many connections there are with each member."""
        self._met: set[int] = set()
        """Members that a connection stood with, and whose next refusal, with none standing, means something."""

    def stands(self, member: int) -> None:
        """A connection with ``member`` stands, in either direction: both HELLOs were accepted."""
        self._standing[member] += 1
        self._met.add(member)

    def ended(self, member: int, *, by_us: bool) -> None:
        """One of them ended; if we did that and it was the last one, no refusal that follows says anything."""
        assert self._standing[member], "what ends has stood"
        self._standing[member] -= 1
        if not self._standing[member]:
            del self._standing[member]
            if by_us:
                self._met.discard(member)

    def moved(self, member: int) -> None:
        """It is dialled elsewhere from now on, or nowhere: what was seen at its old address says nothing of the new."""
        self._met.discard(member)

    def refused(self, member: int) -> None:
        """Nobody listens where ``member`` did."""
        if member in self._met and member not in self._standing:
            self._met.remove(member)
            self._gone(member)
