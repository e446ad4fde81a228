"""What the clients of a simulated run do: every kind of operation, at a rate, on few keys, with watches beside.

Clients are of two sorts, as in life: programs of their own, which reach the cluster over the network, and the members'
own programs, which ask the node in their process. Everything goes through `RecordedKV`, so the history knows it.

Arrivals are independent of each other (Poisson), at a fixed rate for all sources together: a cluster that is slow gets
as much to do as one that is fast, up to a bound per source. In some runs they wait for the next beat of a common pulse,
so that many operations meet. Every value is written once, so that whoever reads it
knows which write it comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import ceil
from random import Random
from typing import ClassVar

from pyraftkv import errors
from pyraftkv.engine import Engine
from pyraftkv.kv import Consistency, Watch
from pyraftkv.sim import swarm
from pyraftkv.store.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Operation,
    PutKey,
    RangeQuery,
    SortOrder,
    SortTarget,
)

PREFIX = "k/"
"""Of every key that clients touch."""

OUTSIDE = b"l"
"""The first key beyond."""

KEPT_REVISIONS = 60
"""How far behind the present compactions stay."""

LOCAL_SHARE = 0.2
"""Of the reads: they ask for what the member has, half of them for no less than the source has seen."""

PAUSE_SECONDS = 0.05
"""How long a source waits after a refusal, so that a cluster without a leader is not asked in a circle."""

IMPATIENCE = 0.03
"""The share of operations whose caller may give up before anything else ends them ..."""

PATIENCE_SECONDS = 0.01
"""... after so long, on average."""

SWEPT = "k/s"
"""Of the keys that are filled in to be deleted at once."""

SWEPT_END = b"k/t"

SWEPT_TXNS, SWEPT_TXN_KEYS = 11, 100
"""Put by so many transactions of so many keys each: more than a member deletes without a break (`STEP_KEYS_MAX`), and
more events than wait for a watch (`PENDING_EVENTS_MAX`), or than one that catches up reads at once."""

REREAD_SHARE = 0.2
"""Of the watches: they begin anywhere in the history, and have to catch up."""

WATCH_SECONDS = (2.0, 8.0)
"""How long a watch lives before its reader opens the next one."""

LOOK_SECONDS = 0.25
"""How often the reader of a watch looks whether it is time to stop."""


class Source:
    """One line of operations, one after the other, as a program would make them.

    Args:
        kv: Whom to ask.
        name: Which source this is; makes its values unique.
        load: What to do.
        rate: Operations per second.
        random: What, when and on which key.
        is_over: Whether it is time to stop.
        may_sweep: Whether one more sweep is called for. One costs as much as hundreds of other operations.
    """

    def __init__(
        self,
        kv: Engine,
        name: str,
        load: swarm.Workload,
        *,
        rate: float,
        random: Random,
        is_over: Callable[[], bool],
        may_sweep: Callable[[], bool],
    ) -> None:
        self._kv = kv
        self._name = name
        self._load = load
        self._rate = rate
        self._random = random
        self._is_over = is_over
        self._may_sweep = may_sweep
        self._timeout = load.request_seconds
        self._count = 0
        self._revision = 0
        """The highest that it has heard of."""
        self._mod_revisions: dict[bytes, int] = {}
        """When keys were last changed, as far as it knows: for `if_revision=` that may well hold."""
        self._kinds = list(load.mix)
        self._weights = list(load.mix.values())

    async def run(self) -> None:
        """Ask until it is over."""
        loop, random, pulse = asyncio.get_running_loop(), self._random, self._load.pulse_seconds
        due = loop.time()
        while not self._is_over():
            due = max(due + random.expovariate(self._rate), loop.time() - pulse)
            await asyncio.sleep((ceil(due / pulse) * pulse if pulse else due) - loop.time())
            kind = random.choices(self._kinds, self._weights)[0]
            patience = random.expovariate(1 / PATIENCE_SECONDS) if self._chance(IMPATIENCE) else None
            try:
                async with asyncio.timeout(patience):
                    await self._KINDS[kind](self)
            except TimeoutError:
                continue
            except (errors.KeyExists, errors.RevisionMismatch) as refused:
                self._mod_revisions[refused.key] = refused.mod_revision
            except errors.Compacted as refused:
                self._revision = max(self._revision, refused.compact_revision)
            except errors.FutureRevision:
                self._revision = 0  # another member's present: this one is behind
            except errors.Closed:
                return
            except errors.PyraftkvError:
                await asyncio.sleep(PAUSE_SECONDS)

    # --- What is asked ---------------------------------------------------------------------------------------------

    def _key(self) -> bytes:
        return f"{PREFIX}{self._random.randrange(self._load.keys)}".encode()

    def _value(self) -> bytes:
        self._count += 1
        low, high = self._load.value_bytes
        return f"{self._name}.{self._count}.".encode().ljust(self._random.randint(low, high), b".")

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _freshness(self) -> tuple[Consistency, int]:
        """Choose how fresh a read is to be, and the revision that it must have seen at least."""
        share = self._random.random()
        if share < LOCAL_SHARE:
            return "local", self._revision if share < LOCAL_SHARE / 2 else 0
        return ("lease" if share < LOCAL_SHARE + self._load.lease_share else "linearizable"), 0

    def _seen(self, key: bytes, revision: int, mod_revision: int) -> None:
        self._revision = max(self._revision, revision)
        self._mod_revisions[key] = mod_revision

    async def _put(self) -> None:
        key, known = self._key(), self._mod_revisions
        guard = known[key] if key in known and self._chance(0.25) else None
        result = await self._kv.put(
            key, self._value(), prev_kv=self._chance(0.2), if_revision=guard, timeout=self._timeout
        )
        self._seen(key, result.revision, result.revision)

    async def _create(self) -> None:
        key = self._key()
        result = await self._kv.create(key, self._value(), timeout=self._timeout)
        self._seen(key, result.revision, result.revision)

    async def _get(self) -> None:
        key = self._key()
        then = self._revision - self._random.randrange(20) if self._revision > 20 and self._chance(0.1) else 0
        consistency, at_least = self._freshness()
        kv = await self._kv.get(key, revision=then, consistency=consistency, at_least=at_least, timeout=self._timeout)
        if not then:
            revision = kv.mod_revision if kv is not None else 0
            self._seen(key, revision, revision)

    async def _range(self) -> None:
        random = self._random
        consistency, at_least = self._freshness()
        result = await self._kv.range(
            PREFIX if self._chance(0.8) else self._key(),
            OUTSIDE,
            limit=random.choice([0, 0, 2, 5]),
            sort=random.choice([SortTarget.KEY, SortTarget.MOD, SortTarget.VERSION]),
            order=random.choice([SortOrder.NONE, SortOrder.ASCEND, SortOrder.DESCEND]),
            keys_only=self._chance(0.2),
            count_only=self._chance(0.1),
            consistency=consistency,
            at_least=at_least,
            timeout=self._timeout,
        )
        self._revision = max(self._revision, result.revision)

    async def _delete(self) -> None:
        key, with_previous = self._key(), self._chance(0.3)
        if self._chance(0.1):
            result = await self._kv.delete(key, OUTSIDE, prev_kv=with_previous, timeout=self._timeout)
        else:
            result = await self._kv.delete(key, prev_kv=with_previous, timeout=self._timeout)
        self._seen(key, result.revision, 0)

    async def _txn(self) -> None:
        """Move from one key to another if the first is as it was, and look at both."""
        one, other = self._key(), self._key()
        known = self._mod_revisions.get(one, 0)
        guard = Compare(CompareTarget.MOD, CompareResult.EQUAL, one, known)
        writes: list[Operation] = [PutKey(one, self._value(), prev_kv=self._chance(0.3))]
        if other != one:
            writes.append(DeleteRange(other) if self._chance(0.2) else PutKey(other, self._value()))
        look = RangeQuery(min(one, other), OUTSIDE) if self._chance(0.2) else RangeQuery(one)
        result = await self._kv.txn().when(guard).then(*writes, look).otherwise(look).commit(timeout=self._timeout)
        self._seen(one, result.revision, result.revision if result.succeeded else known)
        if not result.succeeded:
            self._mod_revisions.pop(one, None)

    async def _sweep(self) -> None:
        """Put more keys than a member deletes without a break, and delete them with one command."""
        if not self._may_sweep():
            return
        value = f"{self._name}.{self._count}".encode()
        for first in range(0, SWEPT_TXNS * SWEPT_TXN_KEYS, SWEPT_TXN_KEYS):
            puts = [PutKey(f"{SWEPT}{first + number}".encode(), value) for number in range(SWEPT_TXN_KEYS)]
            await self._kv.txn().then(*puts).commit(timeout=self._timeout)
        result = await self._kv.delete(SWEPT.encode(), SWEPT_END, timeout=self._timeout)
        self._revision = max(self._revision, result.revision)

    async def _compact(self) -> None:
        revision = self._revision - KEPT_REVISIONS
        if revision > 0:
            await self._kv.compact(revision, timeout=self._timeout)

    _KINDS: ClassVar[dict[str, Callable[[Source], Awaitable[None]]]] = {
        "put": _put,
        "create": _create,
        "get": _get,
        "range": _range,
        "delete": _delete,
        "txn": _txn,
        "compact": _compact,
        "sweep": _sweep,
    }


class Watcher:
    """Reads one watch after the other, each beginning where the last one ended, or somewhere before.

    Args:
        kv: Whom to ask.
        random: Which options, and how long each watch lives.
        is_over: Whether it is time to stop: the watch under way is read to `last_revision` then.
        last_revision: The revision of the last write, once it is known; 0 before.
    """

    def __init__(
        self, kv: Engine, *, random: Random, is_over: Callable[[], bool], last_revision: Callable[[], int]
    ) -> None:
        self._kv = kv
        self._random = random
        self._is_over = is_over
        self._last_revision = last_revision
        self._next_revision = 0

    async def run(self) -> None:
        """Watch until it is over and everything was shown."""
        loop, random = asyncio.get_running_loop(), self._random
        while True:
            until = loop.time() + random.uniform(*WATCH_SECONDS)
            try:
                if await self._watch(until):
                    return
            except errors.WatchCancelled as cancelled:
                self._next_revision = max(cancelled.resume_revision, cancelled.compact_revision + 1)
                await asyncio.sleep(PAUSE_SECONDS)
            except errors.Closed:
                return
            except errors.PyraftkvError:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, until: float) -> bool:
        """Read one watch, up to a time; return whether the last revision was shown. Raises what ended the watch."""
        loop, random = asyncio.get_running_loop(), self._random
        start = self._next_revision
        if start and random.random() < REREAD_SHARE:
            start = random.randint(1, start)
        async with self._kv.watch(prefix=PREFIX, start_revision=start, prev_kv=random.random() < 0.3) as watch:
            reading = loop.create_task(self._read(watch))
            try:
                while not reading.done() and (self._is_over() or loop.time() < until):
                    last = self._last_revision()
                    if last and watch.revision >= last:
                        return True
                    await asyncio.wait([reading], timeout=LOOK_SECONDS)
            finally:
                reading.cancel()
                await asyncio.wait([reading])
                error = None if reading.cancelled() else reading.exception()
        if error is not None:
            raise error
        return False

    async def _read(self, watch: Watch) -> None:
        async for batch in watch.batches():
            self._next_revision = batch.revision + 1
