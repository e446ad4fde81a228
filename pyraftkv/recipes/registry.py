"""`Registry`: which services there are, where they are reached, and which of them to ask.

A service is a name, an instance of it a key under a lease: it is there while its program lives, and gone at the latest
when its lease ends. Health is the program's own word, and beyond that the lease.

1. A machine is cut off. Its lease ends, and its block is cancelled: it serves nobody whom the registry does not send.
2. An instance drains: it says that it is not healthy, is asked no more, and ends what it has begun.
3. A value that is no instance stands in the row, put there by hand. It is passed over: one bad key must not blind
   everybody who asks.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self, cast, overload

from pyraftkv._record import record
from pyraftkv.errors import InvalidRequest, Unavailable
from pyraftkv.kv import KV, View
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.party import Presence
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.values import KeyValue

VALUE_BYTES_MAX = 64 * 1024
"""Of one instance, as it is stored."""


@record
class Instance:
    """One instance of a service."""

    id: str
    address: str
    metadata: Mapping[str, str]
    is_healthy: bool
    revision: int
    """When it came: a later one is larger."""


class NoInstance(Unavailable):
    """There is no healthy instance of the service."""


class Registry:
    """The services of a name: ``async with registry.register("web", "10.0.0.7:80"):`` is to be found.

    Args:
        store: The store; or a `Session`, to register several instances under one lease.
        name: Who gives the same name means the same registry.
        ttl: Seconds after which an instance is gone when its program is.
    """

    def __init__(self, store: KV | Session, name: str = "services", *, ttl: float = TTL_DEFAULT) -> None:
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._name = name
        self._ttl = ttl

    def register(
        self, service: str, address: str, *, metadata: Mapping[str, str] | None = None, id: str = ""
    ) -> Registration:
        """Return an instance, to be entered.

        Args:
            service: What it is an instance of. Without ``//``, and not ending in ``/``.
            address: Where it is reached.
            metadata: What else there is to say.
            id: What tells it from other instances; nobody else's by default. Whoever has the same takes its place.
        """
        return Registration(
            self._store, self._row(service), address=address, metadata=metadata or {}, id=id, ttl=self._ttl
        )

    async def resolve(self, service: str, *, unhealthy: bool = False, timeout: float | None = None) -> list[Instance]:
        """Return the instances of a service, the longest there first; all with ``unhealthy``. Raises `Unavailable`."""
        found = await self._kv.range(prefix=self._row(service), timeout=timeout)
        return _instances(found.kvs, self._row(service), unhealthy=unhealthy)

    async def watch(self, service: str, *, timeout: float | None = None) -> Service:
        """Return the instances of a service as a list that is kept current, to be closed. Raises as `KV.view`."""
        row = self._row(service)
        return Service(await self._kv.view(prefix=row, timeout=timeout), row)

    def _row(self, service: str) -> str:
        return inside(f"{self._name}/{service}", "instances/")


class Registration(Presence):
    """An instance while its block runs; made by `Registry.register`."""

    def __init__(
        self, store: KV | Session, row: str, *, address: str, metadata: Mapping[str, str], id: str, ttl: float
    ) -> None:
        self._address = address
        self._metadata = dict(metadata)
        self._is_healthy = True
        super().__init__(store, row, id=id, value=self._packed(), ttl=ttl)

    async def drain(self) -> None:
        """Say that it is not healthy: nobody is to ask it. Raises `LeaseLost`, `NotApplied`, `MaybeApplied`."""
        self._is_healthy = False
        await self.update(self._packed())

    async def recover(self) -> None:
        """Say that it is healthy. Raises `LeaseLost`, `NotApplied`, `MaybeApplied`."""
        self._is_healthy = True
        await self.update(self._packed())

    async def describe(self, metadata: Mapping[str, str]) -> None:
        """Say something else of it. Raises `LeaseLost`, `NotApplied`, `MaybeApplied`."""
        self._metadata = dict(metadata)
        await self.update(self._packed())

    def _packed(self) -> bytes:
        texts = [self._address, *self._metadata, *self._metadata.values()]
        if not self._address or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("an instance has an address, and its metadata are text by text")
        packed = json.dumps({"address": self._address, "metadata": self._metadata, "healthy": self._is_healthy})
        if len(packed) > VALUE_BYTES_MAX:
            raise InvalidRequest(f"an instance of {len(packed)} bytes, over {VALUE_BYTES_MAX}")
        return packed.encode()


class Service(Sequence[Instance]):
    """The healthy instances of a service, as of now: a sequence, and an asynchronous context manager."""

    def __init__(self, view: View, row: str) -> None:
        self._view = view
        self._row = row
        self._name = row.partition("//")[0]
        self._seen_at = -1
        self._seen: list[Instance] = []
        self._turn = 0

    def __repr__(self) -> str:
        return f"<Service {self._name!r}: {len(self)} instances>"

    @property
    def instances(self) -> list[Instance]:
        """Those that are to be asked, the longest there first."""
        if self._seen_at != self._view.revision:
            self._seen_at = self._view.revision
            self._seen = _instances(self._view.values(), self._row, unhealthy=False)
        return self._seen

    def pick(self, key: str = "") -> Instance:
        """Return the instance whose turn it is; with ``key``, the same one for the same key as long as it is there.

        When an instance goes, only what it was picked for goes elsewhere (rendezvous hashing). Raises `NoInstance`.
        """
        instances = self.instances
        if not instances:
            raise NoInstance(f"nobody serves {self._name!r}")
        if key:
            return max(instances, key=lambda each: blake2b(f"{each.id}\0{key}".encode()).digest())
        self._turn += 1
        return instances[(self._turn - 1) % len(instances)]

    async def changes(self) -> AsyncIterator[list[Instance]]:
        """Yield the instances now, then again whenever they are others. Raises what ends the view."""
        before: list[Instance] | None = None
        while True:
            now, at = self.instances, self._seen_at
            if now != before:
                before = now
                yield list(now)
            await self._view.wait(lambda view, at=at: view.revision > at)  # type: ignore[misc]

    async def close(self) -> None:
        """Stop: it stays as it was. Idempotent."""
        await self._view.close()

    def __len__(self) -> int:
        return len(self.instances)

    @overload
    def __getitem__(self, at: int) -> Instance: ...

    @overload
    def __getitem__(self, at: slice) -> list[Instance]: ...

    def __getitem__(self, at: int | slice) -> Instance | list[Instance]:
        """Return one instance, or some of them."""
        return self.instances[at]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _instances(kvs: Iterable[KeyValue], row: str, *, unhealthy: bool) -> list[Instance]:
    found: list[Instance] = []
    for kv in kvs:
        instance = _instance(kv, row)
        if instance is not None and (unhealthy or instance.is_healthy):
            found.append(instance)
    return sorted(found, key=lambda each: each.revision)


def _instance(kv: KeyValue, row: str) -> Instance | None:
    """Return what is stored as an instance; None if it is none."""
    try:
        plain: Any = json.loads(kv.value)
        address, metadata, is_healthy = plain["address"], plain["metadata"], plain["healthy"]
        name = kv.key.decode().removeprefix(row)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(address, str) or not isinstance(metadata, dict):
        return None
    return Instance(name, address, cast("dict[str, str]", metadata), is_healthy is True, kv.create_revision)
