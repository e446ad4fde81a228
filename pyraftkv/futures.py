"""To wait for a future that others wait for too.

Whoever awaits a future owns it: a wait that is cancelled cancels what it waits for. `asyncio.shield` prevents that, and
until Python 3.13 that is all it does:

1. Two writes share the attempt to open a session. One is called off, and with it its shield.
2. The attempt fails. The other write is told, and answers for it.
3. From Python 3.14 on the shield that was left behind reports the same failure to the loop's exception handler: an
   error that was handled stands in the log as one that was not.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def shared(future: asyncio.Future[T]) -> T:
    """Wait for a future that is somebody else's, and return or raise what it comes to.

    A wait that is cancelled leaves the future alone, and nothing of itself on it. Whoever made the future sees to an
    exception that nobody waited for.
    """
    if not future.done():
        await asyncio.wait([future])
    return future.result()


def fulfil(future: asyncio.Future[T], result: T) -> None:
    """Give a future its result, unless who waited for it has left, and it was cancelled; or it has failed."""
    if not future.done():
        future.set_result(result)
