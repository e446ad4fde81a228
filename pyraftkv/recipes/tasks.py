"""`singleton` and `leader_only`: work that one program of many does, and another one goes on with when that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pyraftkv.errors import Closed, InvalidRequest, LeaseLost, MaybeApplied, Unavailable
from pyraftkv.given import seconds
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.election import Election, Leadership
from pyraftkv.recipes.session import TTL_DEFAULT

T = TypeVar("T")

PAUSE_SECONDS = 1.0
"""How long a candidate that the cluster does not answer waits before it stands again."""


async def singleton(
    kv: KV, name: str, work: Callable[[Leadership], Awaitable[T]], *, ttl: float = TTL_DEFAULT, value: Bytes = b""
) -> T:
    """Run ``work`` in one program at a time, and return what it returns.

    Call it in all of them: one does the work. When that one is lost, its work is cancelled, and it stands again as a
    candidate while another one begins. What the work raises ends it here, and lets another one begin; `LeaseLost` only
    means to begin anew.

    Args:
        kv: The store.
        name: Of the election that decides.
        work: Is given the leadership under which it runs; its `token` fences, its `commit` writes.
        ttl: Seconds after which another program goes on.
        value: What the others see of this one while it leads.
    """
    while True:
        try:
            async with Election(kv, name, ttl=ttl).campaign(value) as leadership:
                asked = work(leadership)
                if not isinstance(asked, Awaitable):
                    raise InvalidRequest("work= is an async function, which is given the leadership")
                return await asked
        except LeaseLost:
            continue


async def leader_only(
    kv: KV,
    name: str,
    work: Callable[[Leadership], Awaitable[object]],
    *,
    every: float,
    ttl: float = TTL_DEFAULT,
    value: Bytes = b"",
) -> None:
    """Call ``work`` every so many seconds in one program at a time, for ever.

    While the cluster does not answer, or does not say what became of a write, nobody calls it. Whoever takes over
    begins with a call. Raises what ``work`` raises otherwise, and `Closed` when the store was closed.

    Args:
        kv: The store.
        name: Of the election that decides.
        work: As for `singleton`.
        every: Seconds from the beginning of one call to that of the next; a longer call is followed at once.
        ttl: Seconds after which another program goes on.
        value: What the others see of this one while it leads.
    """
    if seconds(every, "every") is None:
        raise InvalidRequest("every= is a number of seconds: `singleton` does the work once")

    async def repeat(leadership: Leadership) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + every
            await work(leadership)
            await asyncio.sleep(max(0.0, due - loop.time()))

    while True:
        try:
            await singleton(kv, name, repeat, ttl=ttl, value=value)
        except Closed:
            raise
        except (Unavailable, MaybeApplied):
            await asyncio.sleep(PAUSE_SECONDS)
