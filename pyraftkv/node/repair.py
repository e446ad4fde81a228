"""A member in quarantine takes its state from another member, and answers again.

Its log is right, its state is not. The log leads from any right state to the right one, so:

1. Another member is asked for its state as of now, as a client asks for a backup: linearizable, so that nobody cut off
   answers. First those whose hash was that of the majority.
2. A second replica is built of it. Every check of a snapshot is made, the hash of the state among them.
3. What the log has beyond it is applied, from this member's own log, until the two are at the same entry. Meanwhile the
   wrong one goes on applying: who the members are is known from it, and Raft waits for nobody.
4. They are exchanged, between two entries. This member answers again, and is compared again like any other.
5. A snapshot is taken at once: those on the disk were perhaps made of the wrong state, and a start would bring it back.
   *A crash before that* does bring it back, and the next comparison finds it again.

If what is wrong is the code, and not a moment's accident, it will be wrong again: then this goes round, and every round
is in the log of the node and among its events. Nothing wrong is answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from hashlib import sha256
from random import Random

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.log.base import Storage
from pyraftkv.node.applier import STEP_BUDGET
from pyraftkv.replica import BUSY, Replica, ReplicaRestorer
from pyraftkv.transport.base import Dialer

ASK_SECONDS = 5.0
"""How long another member may take for each part of its state."""

PAUSE_SECONDS = 1.0
"""The pause after everybody was asked in vain."""

REPLAY_BYTES_MAX = 1 << 20
"""Entries read from the log at a time."""

ENTRIES_PER_TURN = 64
"""Entries that are applied before others have their turn on the loop."""


async def fetch_replica(
    address: str, *, like: Replica, cluster_id: int, dialer: Dialer, name: str, rng: Random
) -> Replica:
    """Return a replica of the kind of ``like``, built of another member's present state.

    Raises: `NotApplied` if it cannot say; `SnapshotCorruption`, `TransportError`; `ForeignDataDir` if it is another
    cluster's.
    """
    restorer: ReplicaRestorer | None = None
    digest = sha256()
    async with (
        Client([address], dialer=dialer, name=name, timeout=ASK_SECONDS, rng=rng, discover=False) as client,
        aclosing(client.snapshot_parts("linearizable", None)) as parts,
    ):
        async for part in parts:
            if part.cluster_id != cluster_id:
                raise errors.ForeignDataDir(f"{address} belongs to cluster {part.cluster_id:x}, not {cluster_id:x}")
            restorer = restorer or like.restorer(index=part.meta.index, term=part.meta.term)
            for chunk in part.chunks:
                digest.update(chunk)
                restorer.feed(chunk)
                await asyncio.sleep(0)
            if part.sha256 and part.sha256 != digest.digest():
                raise errors.SnapshotCorruption(f"the state of {address} did not arrive as it was sent")
    if restorer is None:
        raise errors.Unavailable(f"{address} sent nothing")
    return restorer.finish()


async def catch_up(replica: Replica, *, to: Callable[[], int], storage: Storage) -> None:
    """Apply the log's entries to ``replica`` until it is at entry ``to()``, as of the return.

    Raises: `StorageError`; `Unavailable` if the log no longer has the next entry.
    """
    while replica.applied_index < to():
        lo = replica.applied_index + 1
        entries = await storage.read_entries(lo=lo, hi=to() + 1, bytes_max=REPLAY_BYTES_MAX)
        if not entries:
            raise errors.Unavailable(f"entry {lo} is in the log no longer")
        for entry in entries:
            consequence = replica.apply(entry)
            while consequence is BUSY:
                await asyncio.sleep(0)
                consequence = replica.step(STEP_BUDGET)
            if entry.index % ENTRIES_PER_TURN == 0:
                await asyncio.sleep(0)
