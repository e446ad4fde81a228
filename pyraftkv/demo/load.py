"""Loading a tree into a cluster while its leader dies, and remembering what was acknowledged.

Every key is put exactly once, so whatever happens its version must be 1. When the tree is loaded and time is left,
its smaller files are loaded again below another prefix: ``1/os.py``, then ``2/os.py``.

What an outcome means (see `errors`):

* acknowledged: it must be there, on every member, for ever;
* `NotApplied`: it never happened, so putting the key again is no duplicate;
* `MaybeApplied`: it may be there or not, once. Such keys are counted apart and never put again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.demo.tree import Piece
from pyraftkv.kv import KV

LOADERS = 32
"""Puts under way at a time."""

IN_FLIGHT_BYTES_MAX = 4 * 1024 * 1024
"""Values under way at a time; a member drops a client that has more than 8 MiB to send."""

BYTES_PER_SECOND_MAX = 16_000_000
"""The pace. Three members keep all of it in memory, on one machine, and read it again at the end."""

AGAIN_BYTES_MAX = 64 * 1024
"""Larger files are loaded in the first round only: they would fill the memory and say nothing new."""

PUT_SECONDS = 20.0
"""The deadline of a put: far longer than it takes to elect a leader."""

RETRY_SECONDS = 0.05
RETRIES_MAX = 400


@record
class Written:
    """One key that was put."""

    piece: Piece
    size: int
    digest: bytes
    """Of the bytes that were put: the file may change under our hands."""


def digest(value: bytes) -> bytes:
    """Return what tells one value from another."""
    return blake2b(value, digest_size=16).digest()


class Loader:
    """Puts a tree, round after round, until it is told to stop.

    Args:
        kv: Where to.
        pieces: The tree.
        loop: Whose clock it uses.
    """

    def __init__(self, kv: KV, pieces: Sequence[Piece], *, loop: asyncio.AbstractEventLoop) -> None:
        self._kv = kv
        self._pieces = pieces
        self._loop = loop
        self._keys = self._rounds()
        self._room = asyncio.Condition()
        self._in_flight_bytes = 0
        self._paced_until = loop.time()
        self._is_stopping = False
        self._last_ack = loop.time()
        self._killed_at: float | None = None
        self.round = 1
        self.round_pieces = len(pieces)
        """How many puts this round has, and of them begun:"""
        self.round_begun = 0
        self.acknowledged: dict[bytes, Written] = {}
        self.unknown: dict[bytes, Written] = {}
        """Keys whose put may have happened."""
        self.unreadable: set[bytes] = set()
        """Files that could not be read when their turn came."""
        self.outage_seconds = 0.0
        """The longest time without an acknowledgement since `killed`."""
        self.seconds = 0.0
        """How long it loaded."""
        self.recovered = asyncio.Event()
        """Set by the first acknowledgement of a put begun after `killed`."""
        self.tree_loaded = asyncio.Event()
        """Set when the first round is over."""

    async def run(self) -> None:
        """Load until `stop`. Raises what a put raised that cannot be right."""
        begun = self._last_ack = self._paced_until = self._loop.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(LOADERS):
                group.create_task(self._load())
        self.seconds = self._loop.time() - begun

    def stop(self) -> None:
        """Begin nothing new; `run` returns when what is under way is done."""
        self._is_stopping = True

    def killed(self) -> None:
        """The leader was killed just now: begin to measure the outage."""
        self._killed_at = self._last_ack = self._loop.time()

    def _rounds(self) -> Iterator[tuple[bytes, Piece]]:
        pieces = self._pieces
        again = [piece for piece in pieces if piece.size <= AGAIN_BYTES_MAX] or pieces
        while True:
            self.round_pieces = len(pieces)
            for self.round_begun, piece in enumerate(pieces):
                yield b"%d/%s" % (self.round, piece.name), piece
            self.tree_loaded.set()
            self.round += 1
            pieces = again

    async def _load(self) -> None:
        while not self._is_stopping:
            key, piece = next(self._keys)
            try:
                value = piece.read()
            except OSError:
                self.unreadable.add(piece.name)
                await asyncio.sleep(0)
                continue
            await self._pace(len(value))
            await self._reserve(len(value))
            try:
                await self._put(key, value, Written(piece, len(value), digest(value)))
            finally:
                await self._reserve(-len(value))

    async def _put(self, key: bytes, value: bytes, written: Written) -> None:
        for _ in range(RETRIES_MAX):
            begun = self._loop.time()
            try:
                await self._kv.put(key, value, timeout=PUT_SECONDS)
            except errors.MaybeApplied:
                self.unknown[key] = written
                return
            except errors.Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.acknowledged[key] = written
                self._acknowledge(begun)
                return
        raise errors.Unavailable(f"{key!r} could not be put in {RETRIES_MAX} attempts")

    def _acknowledge(self, begun: float) -> None:
        now = self._loop.time()
        if self._killed_at is not None:
            self.outage_seconds = max(self.outage_seconds, now - self._last_ack)
            if begun >= self._killed_at:
                self.recovered.set()
        self._last_ack = now

    async def _pace(self, size: int) -> None:
        now = self._loop.time()
        self._paced_until = max(self._paced_until, now) + size / BYTES_PER_SECOND_MAX
        if self._paced_until > now:
            await asyncio.sleep(self._paced_until - now)

    async def _reserve(self, size: int) -> None:
        """Wait until ``size`` more bytes may be under way; give them back with a negative size."""
        async with self._room:
            if size > 0:
                await self._room.wait_for(lambda: self._in_flight_bytes + size <= IN_FLIGHT_BYTES_MAX)
            self._in_flight_bytes += size
            if size < 0:
                self._room.notify_all()
