"""Writers that remember what they were told, and a judge who compares it with what is there in the end.

Every write is one that could not happen twice unnoticed: a key that is written once and must then have version 1; two
keys written by one transaction, which must have one revision between them; a key created and then deleted, which must
report exactly one deleted key; a counter that is only ever raised by comparing and setting.

What a writer was told decides what the judge expects:

===============  ====================================================================================
 acknowledged     it is there, once, at the revision that the answer named
 `NotApplied`     it is not there, and never was
 `MaybeApplied`   it is there once, or not at all
===============  ====================================================================================

A watch from the beginning of history runs along, through every reconnection: it must have seen each change once, in
order, and nothing else. And every read of the counter must see at least what was acknowledged before the read began.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import Event, EventType, KeyValue, PutResult

COUNTER = b"counter"
LAST_KEY = b"the end"
"""Put when the load is over: a watch that has seen it has seen everything."""
IMPATIENT_SECONDS = 0.3
"""The deadline of every eighth write: shorter than an election, so that some outcomes stay unknown."""

PATIENT_SECONDS = 60.0
STALLED_SECONDS = 60.0
"""Without one acknowledgement for this long the cluster is not available."""

ACKED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"


@dataclass
class Told:
    """What a writer was told about one write, or pair of writes, of keys that nothing else writes."""

    outcome: str
    revision: int = 0
    deletion: str = ""
    """What was said of deleting the key afterwards; empty when that was not asked."""
    deleted_at: int = 0


@dataclass
class Ledger:
    """What everybody was told."""

    told: dict[tuple[bytes, ...], Told] = field(default_factory=dict)
    raised: Counter[str] = field(default_factory=Counter)
    """Outcomes of raising the counter."""
    floor: int = 0
    """The highest value of the counter that was acknowledged."""
    wrong: list[str] = field(default_factory=list)
    """What must never be seen, seen while the load ran."""

    def __str__(self) -> str:
        outcomes = Counter(each.outcome for each in self.told.values())
        return f"writes: {dict(outcomes)}; counter: {dict(self.raised)}"


class Load:
    """Writers on several clients, until `stop`.

    Args:
        clients: Started; each gets `writers` writers of each kind.
        rng: Chooses deadlines and kinds.
        writers: How many of each kind per client.
        value: What is written, besides the counter.
    """

    def __init__(self, clients: Iterable[Client], rng: Random, *, writers: int = 2, value: bytes = b"v" * 40) -> None:
        self.ledger = Ledger()
        self.events: list[Event] = []
        self.watched_revision = 0
        self._clients = list(clients)
        self._rng = rng
        self._writers = writers
        self._value = value
        self._acked = 0
        self._goals: list[tuple[int, asyncio.Future[None]]] = []
        self._limit = 0
        self._allowed = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write, as far as `allow` allows."""
        for at, client in enumerate(self._clients):
            for number in range(self._writers):
                name = b"%d.%d" % (at, number)
                for writer in (self._write_singles, self._write_pairs, self._write_and_delete):
                    self._tasks.append(asyncio.create_task(self._go_on(writer, client, name)))
            self._tasks.append(asyncio.create_task(self._go_on(self._raise_counter, client, b"")))

    def allow(self, count: int) -> None:
        """Let the writers go on until this many more writes are acknowledged (or a few more than that)."""
        self._limit = max(self._limit, self._acked + count)
        self._allowed.set()

    async def progress(self, count: int) -> None:
        """Wait until this many more writes were acknowledged. Raises `TimeoutError` when nothing moves any more."""
        self.allow(count)
        goal = asyncio.get_running_loop().create_future()
        self._goals.append((self._acked + count, goal))
        done, _ = await asyncio.wait([goal, *self._tasks], timeout=STALLED_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        if goal not in done:
            raise TimeoutError(f"nothing was acknowledged for {STALLED_SECONDS} s; {self.ledger}")

    async def stop(self) -> None:
        """Let every write under way come to its end, and begin no more. Raises what a writer could not cope with."""
        self._stopping = True
        self._allowed.set()
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        """Stop writing at once, whatever is under way. Idempotent; harmless after `stop`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def put_once(self, client: Client, key: bytes, *, timeout: float) -> Told:
        """Put a key that nobody else writes, and note in the ledger what was said of it."""

        async def write() -> int:
            return (await client.put(key, self._value, timeout=timeout)).revision

        return await self._told((key,), write())

    async def watch(self, client: Client) -> None:
        """Gather all events from the beginning of history until `LAST_KEY` is put."""
        async with client.watch(prefix="", start_revision=1) as watch:
            async for event in watch:
                self.events.append(event)
                self.watched_revision = event.kv.mod_revision
                if event.kv.key == LAST_KEY:
                    return

    # --- The writers -----------------------------------------------------------------------------------------------

    async def _go_on(self, writer: Callable[[Client, bytes], Awaitable[None]], client: Client, name: bytes) -> None:
        number = 0
        while not self._stopping:
            if self._acked >= self._limit:
                self._allowed.clear()
                await self._allowed.wait()
            else:
                await writer(client, b"%s.%06d" % (name, number))
                number += 1

    def _deadline(self) -> float:
        return IMPATIENT_SECONDS if self._rng.random() < 1 / 8 else PATIENT_SECONDS

    async def _told(self, keys: tuple[bytes, ...], write: Awaitable[int]) -> Told:
        """Do a write that must not be refused for any reason but availability, and note what came of it."""
        told = self.ledger.told[keys] = Told(UNKNOWN)
        told.outcome, told.revision = await self._outcome(keys, write)
        return told

    async def _outcome(self, keys: object, write: Awaitable[int]) -> tuple[str, int]:
        try:
            revision = await write
        except errors.MaybeApplied:
            return UNKNOWN, 0
        except errors.Unavailable:
            return REFUSED, 0
        except errors.NotApplied as error:
            self.ledger.wrong.append(f"{keys}: a write that nothing stood against was refused: {error!r}")
            return UNKNOWN, 0
        self._acknowledged()
        return ACKED, revision

    def _acknowledged(self) -> None:
        self._acked += 1
        while self._goals and self._goals[0][0] <= self._acked:
            goal = self._goals.pop(0)[1]
            if not goal.done():
                goal.set_result(None)

    async def _write_singles(self, client: Client, name: bytes) -> None:
        """Put a new key, or create it: a second application of either would be seen."""
        key = b"single/" + name

        async def write() -> int:
            do = client.put if self._rng.random() < 1 / 2 else client.create
            return (await do(key, self._value, timeout=self._deadline())).revision

        await self._told((key,), write())

    async def _write_pairs(self, client: Client, name: bytes) -> None:
        """Put two new keys in one transaction, the second one elsewhere in the key space."""
        keys = (b"left/" + name, b"right/" + name)

        async def write() -> int:
            operations = [PutKey(key, self._value) for key in keys]
            result = await client.txn().then(*operations).commit(timeout=self._deadline())
            if not result.succeeded or [type(each) for each in result.responses] != [PutResult, PutResult]:
                self.ledger.wrong.append(f"{keys}: answered with {result}")
            return result.revision

        await self._told(keys, write())

    async def _write_and_delete(self, client: Client, name: bytes) -> None:
        """Put a new key, and delete it when it is known to be there: exactly one key must be reported as deleted."""
        key = b"short/" + name

        async def delete() -> int:
            result = await client.delete(key, timeout=self._deadline())
            if result.deleted != 1:
                self.ledger.wrong.append(f"{key!r}: deleted {result.deleted} times")
            return result.revision

        told = await self.put_once(client, key, timeout=PATIENT_SECONDS)
        if told.outcome == ACKED:
            told.deletion = UNKNOWN
            told.deletion, told.deleted_at = await self._outcome(key, delete())

    async def _raise_counter(self, client: Client, _: bytes) -> None:
        """Raise the counter by one if nobody did so meanwhile; what is read before must be as new as what is known."""
        ledger = self.ledger
        floor = ledger.floor
        try:
            seen = await client.get(COUNTER, timeout=PATIENT_SECONDS)
        except errors.Unavailable:
            return
        value, revision = (int(seen.value), seen.mod_revision) if seen else (0, 0)
        if value < floor:
            ledger.wrong.append(f"stale read: the counter was {value} after {floor} had been acknowledged")
        try:
            await client.put(COUNTER, b"%d" % (value + 1), if_revision=revision, timeout=self._deadline())
        except errors.MaybeApplied:
            ledger.raised[UNKNOWN] += 1
        except errors.Unavailable:
            ledger.raised[REFUSED] += 1
        except errors.RevisionMismatch:
            ledger.raised["late"] += 1
        else:
            ledger.raised[ACKED] += 1
            ledger.floor = max(ledger.floor, value + 1)
            self._acknowledged()


# --- The judge -----------------------------------------------------------------------------------------------------


async def read_all(client: Client, *, local: bool) -> dict[bytes, KeyValue]:
    """Return everything that one member has."""
    consistency = "local" if local else "linearizable"
    return {kv.key: kv async for kv in client.scan(consistency=consistency)}


def judge(ledger: Ledger, state: dict[bytes, KeyValue]) -> list[str]:
    """Compare what was told with what is there; return everything that must not be so."""
    wrong = list(ledger.wrong)
    expected = {COUNTER, LAST_KEY}
    for keys, told in ledger.told.items():
        expected |= {*keys}
        wrong += _judge_one(keys, told, [state.get(key) for key in keys])
    counter = state.get(COUNTER)
    value, version = (int(counter.value), counter.version) if counter else (0, 0)
    acked, unknown = ledger.raised[ACKED], ledger.raised[UNKNOWN]
    if not acked <= value <= acked + unknown:
        wrong.append(f"the counter is {value}: {acked} increments were acknowledged, {unknown} are unknown")
    if value != version:
        wrong.append(f"the counter is {value} after {version} puts")
    wrong += [f"{key!r} is there, and nobody wrote it" for key in state.keys() - expected]
    return wrong


def _judge_one(keys: tuple[bytes, ...], told: Told, found: list[KeyValue | None]) -> list[str]:
    there = [kv for kv in found if kv is not None]
    if len({None if kv is None else kv.mod_revision for kv in found}) > 1:
        return [f"{keys}: half of a transaction is there: {found}"]
    wrong = [f"{kv.key!r} was applied {kv.version} times" for kv in there if kv.version != 1]
    wrong += [
        f"{kv.key!r} was not created by its only put: {kv}" for kv in there if kv.create_revision != kv.mod_revision
    ]
    if told.outcome == REFUSED and there:
        wrong.append(f"{keys}: NotApplied was raised, and it is there: {there}")
    if told.outcome == ACKED and told.deletion in {"", REFUSED}:
        if not there:
            wrong.append(f"{keys}: LOST, acknowledged at revision {told.revision}")
        elif there[0].mod_revision != told.revision:
            wrong.append(f"{keys}: acknowledged at revision {told.revision}, stands at {there[0].mod_revision}")
    if told.deletion == ACKED and there:
        wrong.append(f"{keys}: its deletion at revision {told.deleted_at} is LOST")
    return wrong


def judge_events(ledger: Ledger, events: list[Event], state: dict[bytes, KeyValue]) -> list[str]:
    """Compare a watch over all history with what was told and what is there."""
    wrong = []
    puts: dict[bytes, list[int]] = {}
    deletes: dict[bytes, list[int]] = {}
    last = 0
    for event in events:
        revision = event.kv.mod_revision
        if revision < last:
            wrong.append(f"the watch went back from revision {last} to {revision}")
        last = revision
        (puts if event.type is EventType.PUT else deletes).setdefault(event.kv.key, []).append(revision)
    for keys, told in ledger.told.items():
        for key in keys:
            seen = puts.get(key, [])
            if len(seen) > 1:
                wrong.append(f"{key!r} was put at revisions {seen}")
            if told.outcome == ACKED and seen != [told.revision]:
                wrong.append(f"{key!r} was acknowledged at revision {told.revision}, the watch saw {seen}")
            if told.outcome == REFUSED and seen:
                wrong.append(f"{key!r} was refused, and the watch saw it at {seen}")
            if told.deletion == ACKED and deletes.get(key, []) != [told.deleted_at]:
                wrong.append(f"{key!r} was deleted at {told.deleted_at}, the watch saw {deletes.get(key)}")
            if len(deletes.get(key, [])) > 1:
                wrong.append(f"{key!r} was deleted at revisions {deletes[key]}")
    for key, kv in state.items():
        if puts.get(key, [])[-1:] != [kv.mod_revision]:
            wrong.append(f"{key!r} stands at revision {kv.mod_revision}, the watch saw it last at {puts.get(key)}")
    counted = puts.get(COUNTER, [])
    if COUNTER in state and len(counted) != state[COUNTER].version:
        wrong.append(f"the counter was put {state[COUNTER].version} times, the watch saw {len(counted)}")
    return wrong
