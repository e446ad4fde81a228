"""`MemoryStorage`: the contract of `Storage` without a disk."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, Membership, SnapshotMeta
from pyraftkv.errors import Closed, ForeignDataDir, SnapshotCorruption
from pyraftkv.log import MemoryStorage, Storage
from tests.log.test_files import entries, meta, restored, save, take, unexpected

MEMBERS = Membership(voters=frozenset({1}))


def run(coroutine):
    """Run one test's coroutine."""
    return asyncio.run(coroutine)


def test_a_life_in_memory():
    """Start, bind, save, close; start again and find it all."""

    async def main():
        storage: Storage = MemoryStorage(random=Random(1))
        assert storage.kind == "memory"
        assert "closed" in repr(storage)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.identity.boot_count, recovered.identity.cluster_id) == (1, 0)
        assert (recovered.entries, recovered.first_index, recovered.snapshot) == ([], 1, None)
        bound = await storage.identify(cluster_id=9, member_id=3)
        assert await storage.identify(cluster_id=9, member_id=3) == bound
        with pytest.raises(ForeignDataDir):
            await storage.identify(cluster_id=9, member_id=4)
        assert await save(storage, 1, entries(1, 10), state=HardState(2, 1, 0)) == 1
        assert await storage.read_entries(lo=3, hi=5, bytes_max=1 << 20) == entries(3, 2)
        assert await storage.read_entries(lo=3, hi=5, bytes_max=1) == entries(3, 1)
        assert await storage.read_entries(lo=0, hi=5, bytes_max=1) == []
        assert await storage.read_entries(lo=11, hi=15, bytes_max=1) == []
        await storage.close()
        await storage.close()
        recovered = await storage.start(failed=unexpected)
        assert recovered.identity.incarnation == bound.incarnation
        assert (recovered.identity.boot_count, recovered.identity.member_id) == (2, 3)
        assert (recovered.entries, recovered.hard_state) == (entries(1, 10), HardState(2, 1, 0))
        assert (await storage.identify(cluster_id=9, member_id=3, rolled_back=True)).is_rolled_back
        assert (await storage.identify(cluster_id=9, member_id=3)).is_rolled_back
        rebound = await storage.rebind(cluster_id=10, incarnation=99)
        assert (rebound.cluster_id, rebound.member_id, rebound.incarnation) == (10, 3, 99)
        assert not rebound.is_rolled_back
        assert rebound.mark == bound.incarnation
        await storage.close()

    run(main())


def test_a_save_completes_later_and_those_queued_together_complete_together():
    """`then` never runs inside `save`; each listener hears of its last one."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        heard, others = [], []
        for number in range(1, 5):
            storage.save(Save(number, None, entries(number, 1), None), heard.append)
        storage.save(Save(5, None, entries(5, 1), None), others.append)
        storage.save(Save(6, None, entries(6, 1), None), heard.append)
        assert (heard, others) == ([], [])
        await asyncio.sleep(0)
        assert (heard, others) == ([4, 6], [5])
        storage.save(Save(7, None, entries(7, 1), None), heard.append)
        await storage.close()
        assert heard == [4, 6, 7]
        await asyncio.sleep(0)
        assert heard == [4, 6, 7]

    run(main())


def test_a_killed_node_loses_what_had_not_completed():
    """A start without a close takes over; the old life's saves never complete."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 2))
        heard = []
        storage.save(Save(2, HardState(9, 9, 0), entries(3, 2), None), heard.append)
        recovered = await storage.start(failed=unexpected)
        await asyncio.sleep(0)
        assert (recovered.entries, recovered.hard_state, heard) == (entries(1, 2), HardState(), [])
        await storage.close()

    run(main())


def test_an_abandoned_storage_loses_what_is_queued():
    """Nothing is stored any more and nobody is told; the next start finds what had completed."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 2))
        sink = storage.create_snapshot(meta(1))
        await sink.write(b"state")
        storage.save(Save(2, HardState(9, 9, 0), entries(3, 2), None), unexpected)
        storage.abandon()
        storage.save(Save(3, None, entries(5, 2), None), unexpected)
        with pytest.raises(Closed):
            await sink.commit()
        await asyncio.sleep(0)
        storage.abandon()
        await storage.close()
        recovered = await storage.start(failed=unexpected)
        assert (recovered.entries, recovered.hard_state) == (entries(1, 2), HardState())
        assert (recovered.snapshot, storage.snapshot_index) == (None, 0)
        assert await save(storage, 4, entries(3, 1)) == 4
        await storage.close()

    run(main())


def test_an_overwrite_replaces_everything_from_its_index_on():
    """And a gap is our bug."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 9))
        full = storage.log_bytes
        await save(storage, 2, entries(4, 2, term=2))
        assert storage.log_bytes < full
        assert await storage.read_entries(lo=1, hi=99, bytes_max=1 << 20) == entries(1, 3) + entries(4, 2, term=2)
        with pytest.raises(AssertionError, match="gap"):
            storage._store(Save(3, None, entries(7, 1), None))
        await storage.close()

    run(main())


def test_snapshots_purge_what_they_replace():
    """The log stays back to the snapshot before; the data of the newest stays."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 100), state=HardState(1, 1, 100))
        full = storage.log_bytes
        await take(storage, meta(40), [b"a", b"b"])
        assert (storage.first_index, await restored(storage, meta(40))) == (1, [b"a", b"b"])
        assert storage.log_bytes < full
        await take(storage, meta(80), [b"c", b"d", b"e"])
        assert storage.first_index == 41
        assert storage.log_bytes < full // 3
        assert await restored(storage, meta(80), from_chunk=1) == [b"d", b"e"]
        with pytest.raises(SnapshotCorruption):
            await restored(storage, meta(40))
        await take(storage, meta(60), [b"late"])
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (meta(80), entries(81, 20))
        assert recovered.first_index == 41
        await storage.close()

    run(main())


def test_a_received_snapshot_replaces_the_log_once_a_save_names_it():
    """Readable from its commit on, in use from its save on, forgotten by a start in between."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 5))
        at = SnapshotMeta(index=90, term=3, membership=MEMBERS)
        await take(storage, at, [b"leader"], received=True)
        assert await restored(storage, at) == [b"leader"]
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (None, entries(1, 5))
        with pytest.raises(SnapshotCorruption):
            await restored(storage, at)
        await take(storage, at, [b"leader"], received=True)
        await save(storage, 2, entries(91, 1, term=3), snapshot=at, state=HardState(3, 0, 90))
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (at, entries(91, 1, term=3))
        assert storage.first_index == 91
        await storage.close()

    run(main())


def test_a_save_that_names_an_unknown_snapshot_is_our_bug():
    """Its data must be durable first."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        with pytest.raises(AssertionError, match="not committed"):
            storage._store(Save(1, None, [], meta(5)))

    run(main())


def test_an_aborted_snapshot_leaves_nothing():
    """Twice, and after a commit, too."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await save(storage, 1, [Entry(1, 1, b"")])
        sink = storage.create_snapshot(meta(1))
        await sink.write(b"x")
        await sink.abort()
        await sink.abort()
        with pytest.raises(AssertionError):
            await sink.commit()
        with pytest.raises(SnapshotCorruption):
            await restored(storage, meta(1))
        await storage.close()

    run(main())


def test_a_closed_storage_refuses():
    """Calls after `close` say so."""

    async def main():
        storage = MemoryStorage()
        await storage.start(failed=unexpected)
        await storage.close()
        with pytest.raises(Closed):
            storage.save(Save(1, None, [], None), unexpected)
        with pytest.raises(Closed):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)

    run(main())
