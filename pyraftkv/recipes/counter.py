"""`Counter`: a number that everybody adds to, each addition once."""

from __future__ import annotations

import asyncio

from pyraftkv.errors import InvalidValue
from pyraftkv.given import whole
from pyraftkv.keys import mod_revision_is
from pyraftkv.kv import KV
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.once import MARK_TTL, Once
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import KeyValue

PAUSE_SECONDS_MAX = 0.1
"""How long is waited, at most, when others add at the same time."""


class Counter:
    """A whole number of any size: ``await Counter(kv, "visits").add(1)`` (kazoo, `Counter`).

    Args:
        kv: The store.
        name: Who gives the same name means the same number.
        default: What it is before anybody has added anything; all give the same.
        ttl: Seconds after which nothing is left of what tells additions apart (see `once`).
    """

    def __init__(self, kv: KV, name: str, *, default: int = 0, ttl: float = MARK_TTL) -> None:
        self._kv = kv
        self._key = inside(name, "number").encode()
        self._default = whole(default, "default")
        self._once = Once(kv, inside(name, "marks/"), ttl=ttl)

    async def value(self, *, timeout: float | None = None) -> int:
        """Return the number, as of now. Raises `Unavailable`, `InvalidValue`."""
        return self._number(await self._kv.get(self._key, timeout=timeout))

    async def add(self, amount: int = 1, *, timeout: float | None = None) -> int:
        """Add to it, once, and return what it is then.

        Raises: `NotApplied`; `MaybeApplied`: it was added once, or not at all; `InvalidValue`.
        """
        whole(amount, "amount")
        pause_seconds = 0.001
        while True:
            found = await self._kv.get(self._key, timeout=timeout)
            number = self._number(found) + amount
            unchanged = mod_revision_is(self._key, found.mod_revision if found else 0)
            if await self._once.commit(PutKey(self._key, b"%d" % number), when=unchanged, timeout=timeout):
                return number
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)

    def _number(self, found: KeyValue | None) -> int:
        if found is None:
            return self._default
        try:
            return int(found.text)
        except ValueError:
            text = f"{self._key!r} holds no whole number"
            raise InvalidValue(text, key=self._key, mod_revision=found.mod_revision) from None
