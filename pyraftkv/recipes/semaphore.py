"""`Semaphore`: a number of holders at a time, first come, first served."""

from __future__ import annotations

from pyraftkv.errors import InvalidRequest, KeyExists
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.holding import Holding
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.session import TTL_DEFAULT, Session


class Semaphore(Holding):
    """So many holders at a time: ``async with Semaphore(kv, "gpu", limit=3)``. See `Holding` for how it ends.

    The limit is kept in the store by the first one who comes; who gives another one is refused (kazoo, `Semaphore`).

    Args:
        store: The store; or a `Session`.
        name: Who gives the same name means the same semaphore.
        limit: How many may hold it, 1 at least.
        ttl: Seconds after which a place is free when its holder is gone.
        timeout: Seconds to wait for other holders; None: as long as it takes, 0: not at all.
        value: What `contenders` shows of this one.
    """

    def __init__(
        self,
        store: KV | Session,
        name: str,
        *,
        limit: int,
        ttl: float = TTL_DEFAULT,
        timeout: float | None = None,
        value: Bytes = b"",
    ) -> None:
        super().__init__(store, name, ttl=ttl, timeout=timeout, value=value)
        if type(limit) is not int or limit < 1:
            raise InvalidRequest(f"limit= is how many may hold it, 1 at least: not {limit!r}")
        self._seats = limit

    async def _acquire(self) -> None:
        """Raises `InvalidRequest` if the semaphore has another limit."""
        key, limit = inside(self.name, "limit"), str(self._seats)
        found = await self._kv.get(key)
        if found is None:
            try:
                await self._kv.create(key, limit)
            except KeyExists:
                found = await self._kv.get(key)
        if found is not None and found.value != limit.encode():
            text = found.value.decode(errors="replace")
            raise InvalidRequest(f"{self.name!r} is a semaphore for {text} holders, not for {limit}")
        await super()._acquire()
