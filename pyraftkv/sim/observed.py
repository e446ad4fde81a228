"""A member's storage and transport with somebody looking on: nothing is changed, and everything that passes is told.

The product has no hooks for this. A node takes its storage and its transport as arguments, and is given these:

.. code-block:: text

    Node ── save ────► ObservedStorage ── save ────► FileStorage        saving, completed  ─┐
         ◄─ then ─────                 ◄─ then ─────                                        ├─► RaftInvariants
    Node ── send ────► ObservedTransport ── send ──► TcpTransport       sending            ─┘
         ◄─ receive ──                   ◄─ receive                     left, arrived ────────► PeerTraffic ─► trace
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from random import Random
from typing import Protocol

from pyraftkv.codec import PeerMessage
from pyraftkv.core import Entry, Save, SnapshotMeta
from pyraftkv.log.base import Identity, Recovered, SnapshotSink, Storage, nothing
from pyraftkv.protocol import Hello
from pyraftkv.sim.faults import LinkFault
from pyraftkv.transport.base import Connection, Dialer, Handler, Transport
from pyraftkv.transport.lanes import LANE_OF

IN_FLIGHT_MAX = 4096
"""Messages of one lane on their way whose fate is not known; of older ones it is said that they were lost."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls something in so many seconds."""

_CLEAN = LinkFault()


class StorageObserver(Protocol):
    """Who is told what a member's storage does."""

    def started(self, name: str, recovered: Recovered) -> object: ...
    def identified(self, name: str, member_id: int) -> None: ...
    def saving(self, name: str, save: Save) -> None: ...
    def completed(self, name: str, number: int) -> None: ...
    def promised(self, name: str, number: int) -> None: ...


class ObservedStorage:
    """A `Storage` that tells what it is given and when that is done.

    Args:
        storage: The real one.
        name: Whose it is.
        observer: Who is told, before the storage hears of a save and before the node hears of its completion.
    """

    def __init__(self, storage: Storage, *, name: str, observer: StorageObserver) -> None:
        self._storage = storage
        self._name = name
        self._observer = observer
        self._listener: Callable[[int], None] | None = None
        self._wrapper: Callable[[int], None] = self._observer_only

    def __repr__(self) -> str:
        return f"<ObservedStorage {self._storage!r}>"

    @property
    def kind(self) -> str:
        return self._storage.kind

    @property
    def first_index(self) -> int:
        return self._storage.first_index

    @property
    def snapshot_index(self) -> int:
        return self._storage.snapshot_index

    @property
    def log_bytes(self) -> int:
        return self._storage.log_bytes

    async def start(
        self,
        *,
        failed: Callable[[BaseException], None],
        full: Callable[[bool], None] = nothing,
        promised: Callable[[int], None] = nothing,
    ) -> Recovered:
        def promised_observed(number: int) -> None:
            self._observer.promised(self._name, number)
            promised(number)

        recovered = await self._storage.start(failed=failed, full=full, promised=promised_observed)
        self._observer.started(self._name, recovered)
        return recovered

    async def identify(
        self, *, cluster_id: int, member_id: int, promises: bool = False, rolled_back: bool = False
    ) -> Identity:
        self._observer.identified(self._name, member_id)
        return await self._storage.identify(
            cluster_id=cluster_id, member_id=member_id, promises=promises, rolled_back=rolled_back
        )

    async def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        return await self._storage.rebind(cluster_id=cluster_id, incarnation=incarnation)

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        self._observer.saving(self._name, save)
        if then != self._listener:  # One wrapper per listener: a completion may stand for the earlier ones of the same.
            self._listener = then
            self._wrapper = self._wrap(then)
        self._storage.save(save, self._wrapper)

    def _wrap(self, then: Callable[[int], None]) -> Callable[[int], None]:
        def completed(number: int) -> None:
            self._observer_only(number)
            then(number)

        return completed

    def _observer_only(self, number: int) -> None:
        self._observer.completed(self._name, number)

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        return await self._storage.read_entries(lo=lo, hi=hi, bytes_max=bytes_max)

    def create_snapshot(self, meta: SnapshotMeta, *, received: bool = False) -> SnapshotSink:
        return self._storage.create_snapshot(meta, received=received)

    def read_snapshot(self, meta: SnapshotMeta, *, from_chunk: int = 0) -> AsyncIterator[bytes]:
        return self._storage.read_snapshot(meta, from_chunk=from_chunk)

    def abandon(self) -> None:
        self._storage.abandon()

    async def close(self) -> None:
        await self._storage.close()


class TrafficObserver(Protocol):
    """Who is told what became of the messages between members."""

    def arrived(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None: ...
    def lost(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None: ...


class PeerTraffic:
    """Follows every message between members from one transport to the other.

    A lane is a stream, so messages arrive in the order in which they left: what an arriving one has overtaken was lost
    with its connection.

    Args:
        now: The time, for the observer.
        observer: Who is told.
        is_up: Whether anybody lives on that machine: else nothing can leave for it.
    """

    def __init__(
        self, *, now: Callable[[], float], observer: TrafficObserver, is_up: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._now = now
        self._is_up = is_up
        self._observer = observer
        self._under_way: dict[tuple[str, str, int], deque[tuple[float, PeerMessage]]] = {}
        self.faults: dict[tuple[str, str], LinkFault] = {}
        """What befalls whole messages, by source and target."""

    def left(self, source: str, target: str, message: PeerMessage) -> None:
        """A message was handed to the transport of ``source``."""
        if not self._is_up(target):
            self.dropped(source, target, message)
            return
        key = (source, target, LANE_OF[type(message)])
        lane = self._under_way.get(key)
        if lane is None:
            lane = self._under_way[key] = deque()
        elif len(lane) >= IN_FLIGHT_MAX:
            self._lose(source, target, lane)
        lane.append((self._now(), message))

    def arrived(self, source: str, target: str, message: PeerMessage) -> None:
        """A message came out of the transport of ``target``."""
        lane = self._under_way.get((source, target, LANE_OF[type(message)]))
        while lane:
            if lane[0][1] == message:
                self._observer.arrived(source, target, message, sent_at=lane.popleft()[0])
                return
            self._lose(source, target, lane)

    def dropped(self, source: str, target: str, message: PeerMessage) -> None:
        """A message never left."""
        self._observer.lost(source, target, message, sent_at=self._now())

    def forget(self, host: str = "") -> None:
        """Call everything lost that is still under way; with ``host``, on its way there."""
        for (source, target, _), lane in self._under_way.items():
            while lane and host in ("", target):
                self._lose(source, target, lane)

    def _lose(self, source: str, target: str, lane: deque[tuple[float, PeerMessage]]) -> None:
        sent_at, message = lane.popleft()
        self._observer.lost(source, target, message, sent_at=sent_at)


class ObservedTransport:
    """A `Transport` that tells what passes through it, and in which faults befall whole messages.

    Args:
        transport: The real one.
        name: Whose it is.
        name_of: Returns a member's name by its id.
        traffic: Follows the messages.
        sending: Told of every batch, before anything leaves.
        later: For what is held back.
        random: Whom a fault befalls.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        name: str,
        name_of: Callable[[int], str],
        traffic: PeerTraffic,
        sending: Callable[[str, Sequence[PeerMessage]], None],
        later: Later,
        random: Random,
    ) -> None:
        self._transport = transport
        self._name = name
        self._name_of = name_of
        self._traffic = traffic
        self._sending = sending
        self._later = later
        self._random = random
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<ObservedTransport {self._transport!r}>"

    @property
    def address(self) -> str:
        return self._transport.address

    async def start(self, hello: Hello, handler: Handler) -> None:
        await self._transport.start(hello, _ObservedHandler(handler, self._arrived))

    def identify(self, hello: Hello) -> None:
        self._transport.identify(hello)

    def set_peers(self, peers: Mapping[int, str]) -> None:
        self._transport.set_peers(peers)

    def dialer(self) -> Dialer:
        return self._transport.dialer()

    def send(self, messages: Sequence[PeerMessage]) -> None:
        self._sending(self._name, messages)
        if self._traffic.faults:
            messages = self._befall(messages)
        self._pass_on(messages)

    async def close(self) -> None:
        self._is_closed = True
        await self._transport.close()

    def _arrived(self, messages: Sequence[PeerMessage]) -> None:
        for message in messages:
            self._traffic.arrived(self._name_of(message.sender), self._name, message)

    def _pass_on(self, messages: Sequence[PeerMessage]) -> None:
        if self._is_closed:
            return
        name_of, left = self._name_of, self._traffic.left
        for message in messages:
            left(self._name, name_of(message.to), message)
        self._transport.send(messages)

    def _befall(self, messages: Sequence[PeerMessage]) -> list[PeerMessage]:
        """Drop, double and hold back, as the faults say; return what leaves now."""
        now: list[PeerMessage] = []
        draw = self._random.random
        for message in messages:
            target = self._name_of(message.to)
            fault = self._traffic.faults.get((self._name, target), _CLEAN)
            if fault is _CLEAN:
                now.append(message)
                continue
            if draw() < fault.drop_rate:
                self._traffic.dropped(self._name, target, message)
                continue
            if draw() < fault.duplicate_rate:
                self._hold_back(message, fault.reorder_seconds * draw())
            if draw() < fault.reorder_rate:
                self._hold_back(message, fault.reorder_seconds * draw())
            else:
                now.append(message)
        return now

    def _hold_back(self, message: PeerMessage, seconds: float) -> None:
        self._later(seconds, lambda: self._pass_on([message]))


class _ObservedHandler:
    """A node, as a transport sees it, with somebody looking on."""

    def __init__(self, handler: Handler, arrived: Callable[[Sequence[PeerMessage]], None]) -> None:
        self._receive = handler.receive
        self._arrived = arrived
        self.peer_hello = handler.peer_hello
        self.peer_lost = handler.peer_lost
        self.peer_gone = handler.peer_gone
        self.peer_refused = handler.peer_refused
        self._handler = handler

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        self._arrived(messages)
        self._receive(messages)

    def client_connected(self, connection: Connection) -> None:
        self._handler.client_connected(connection)
