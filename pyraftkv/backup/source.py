"""Where the parts of a saved snapshot come from: a replica's pinned state, encoded as it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256

from pyraftkv.core.types import SnapshotMeta
from pyraftkv.protocol import SnapshotPart
from pyraftkv.replica import ReplicaSnapshot

PART_BYTES_MAX = 1 << 20
"""A part ends with the chunk that takes it over this; with that chunk it fits a client's frame."""


class SnapshotSource:
    """A pinned state, handed out part by part. Close it: physical compaction waits until then.

    Args:
        snapshot: What was pinned; it is closed with this.
    """

    def __init__(self, snapshot: ReplicaSnapshot) -> None:
        self._snapshot = snapshot
        self._chunks: Iterator[bytes] = snapshot.chunks()
        self._pending = next(self._chunks)
        self._hash = sha256()
        self.next_number = 0
        """Of the part that `part` returns next."""
        self.is_done = False
        """Whether the last part was handed out."""

    async def part(self, call_id: int = 0) -> SnapshotPart:
        """Return the next part. O(bytes); others have their turn after each chunk."""
        assert not self.is_done, "the last part was handed out"
        chunks: list[bytes] = []
        size_bytes = 0
        while not self.is_done and size_bytes <= PART_BYTES_MAX:
            chunk = self._pending
            chunks.append(chunk)
            size_bytes += len(chunk)
            self._hash.update(chunk)
            following = next(self._chunks, None)
            self.is_done = following is None
            self._pending = following or b""
            await asyncio.sleep(0)
        self.next_number += 1
        snapshot = self._snapshot
        meta = SnapshotMeta(snapshot.index, snapshot.term, snapshot.membership)
        digest = self._hash.digest() if self.is_done else b""
        return SnapshotPart(call_id, snapshot.cluster_id, meta, snapshot.revision, chunks, digest)

    def close(self) -> None:
        """Let go of the state. Idempotent."""
        self.is_done = True
        self._snapshot.close()
