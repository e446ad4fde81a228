"""The latest of each key: what it is comes, what it was may be left out, and how much was is said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyraftkv import LatestWatch, errors, latest
from pyraftkv.latest import Latest
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


@faces
@asynchronous
async def test_what_a_busy_reader_has_missed(face: str, tmp_path: Path) -> None:
    """Each key comes once, with its last state and the number of changes left out, in the order of the last changes."""
    async with open_face(face, tmp_path) as kv:
        first = (await kv.put("k/a", "0")).revision
        async with LatestWatch(kv.watch(prefix="k/", start_revision=1)) as watch:
            batches = watch.batches()
            begun = await anext(batches)
            assert [(each.key, each.skipped) for each in begun.changes] == [(b"k/a", 0)]
            for number in range(5):
                await kv.put("k/a", str(number))
                await kv.put("k/b", str(number))
            gone = await kv.delete("k/b")
            async with kv.watch(prefix="k/", start_revision=gone.revision) as other:
                await anext(aiter(other))  # by now the one beneath has it, too
            seen: dict[bytes, Latest] = {}
            changes = 1
            while watch.revision < gone.revision:
                batch = await anext(batches)
                revisions = [each.revision for each in batch.changes]
                assert revisions == sorted(revisions)
                assert len({each.key for each in batch.changes}) == len(batch.changes)
                seen |= {each.key: each for each in batch.changes}
                changes += sum(1 + each.skipped for each in batch.changes)
            assert changes == 12
            assert seen[b"k/b"].kv is None
            assert seen[b"k/b"].revision == gone.revision == first + 11
            a = seen[b"k/a"].kv
            assert a is not None
            assert a.text == "4"


@asynchronous
async def test_a_slow_reader_holds_up_nobody_and_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bounds in keys or bytes nothing is read ahead; when the reader comes back everything still comes."""
    monkeypatch.setattr(latest, "LATEST_BYTES_MAX", 5000)
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        for size, keys in ((1, 200), (1000, 30)):
            async with LatestWatch(kv.watch(prefix="k/"), keys_max=10) as watch:
                batches = watch.batches()
                waiting = asyncio.ensure_future(anext(batches))
                await asyncio.sleep(0)
                for number in range(keys):
                    put = await kv.put(f"k/{number:03}", bytes(size))
                await asyncio.sleep(0)
                assert len(watch._waiting) <= 30
                found = [each.key for each in (await waiting).changes]
                while watch.revision < put.revision:
                    batch = await anext(batches)
                    assert batch.revision <= put.revision
                    found += [each.key for each in batch.changes]
                assert found == [f"k/{number:03}".encode() for number in range(keys)]


@asynchronous
async def test_hot_keys_take_no_room() -> None:
    """A reader that looks once finds one change of a key that was written a thousand times."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        async with LatestWatch(kv.watch("hot")) as watch:
            batches = watch.batches()
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            await kv.put("hot", "0")
            first = await waiting
            puts = [kv.put("hot", str(number)) for number in range(1, 1000)]
            await asyncio.gather(*puts)
            last = await kv.put("hot", "end")
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(watch._waiting) == 1
            batch = await anext(batches)
            assert [(each.skipped, each.revision) for each in batch.changes] == [(999, last.revision)]
            assert first.changes[0].skipped == 0


@asynchronous
async def test_how_it_ends() -> None:
    """What ends the watch beneath ends it, after what was read; closing it closes that; both say so to a reader."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        put = await kv.put("a", "1")
        watch = LatestWatch(kv.watch("a", start_revision=1))
        changes = aiter(watch)
        found = await anext(changes)
        assert (found.key, found.revision) == (b"a", put.revision)
        await kv.close()
        await refused(anext(changes), errors.Closed)
        await watch.close()
        await watch.close()


@asynchronous
async def test_a_leader_change_is_neither_left_out_nor_counted_twice() -> None:
    """1. A client's watch is read ahead. 2. Its member, the leader, dies: the watch goes on with another one.

    3. What was read before must not come again as a change, nor as one that was skipped; nothing may be missing.
    """
    async with cluster_of(3) as cluster, cluster.client() as kv:
        first = (await kv.put("k/0", "begin")).revision
        async with LatestWatch(kv.watch(prefix="k/", start_revision=first)) as watch:
            batches = watch.batches()
            assert [each.key for each in (await anext(batches)).changes] == [b"k/0"]
            for number in range(20):
                await kv.put(f"k/{number % 4}", str(number))
            await cluster.kill(cluster.leader)
            for number in range(20, 40):
                last = await kv.put(f"k/{number % 4}", str(number), timeout=20)
            changes, seen = 0, {}
            while watch.revision < last.revision:
                async with asyncio.timeout(20):
                    batch = await anext(batches)
                changes += sum(1 + each.skipped for each in batch.changes)
                seen |= {each.key: each for each in batch.changes}
            assert changes == 40
            found = {key: each.kv.text for key, each in seen.items() if each.kv is not None}
            assert found == {b"k/%d" % number: str(36 + number) for number in range(4)}


@asynchronous
async def test_compaction_overtakes_a_reader_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The reader is busy, what waits for it has reached its bound, and nothing is read ahead.

    2. The watch beneath falls behind, and what it should read next is compacted.
    3. What was read is handed out first; then the end says from where to resume: where the last batch ended.
    """
    monkeypatch.setattr("pyraftkv.store.watch.PENDING_EVENTS_MAX", 2)
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        async with LatestWatch(kv.watch(prefix="k/"), keys_max=1) as watch:
            batches = watch.batches()
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            for number in range(20):
                last = await kv.put(f"k/{number}", "v")
            await kv.compact(last.revision)
            batch = await waiting
            found = [each.key for each in batch.changes]
            while watch.revision < watch._read_revision:
                found += [each.key for each in (await anext(batches)).changes]
            with pytest.raises(errors.WatchCancelled) as ended:
                await anext(batches)
            assert found == [b"k/%d" % number for number in range(len(found))]
            assert 0 < len(found) < 20
            assert ended.value.resume_revision == watch.revision + 1
            assert ended.value.compact_revision == last.revision


@asynchronous
async def test_what_is_read_ahead_outlives_a_reader_that_gives_up_waiting() -> None:
    """A reader that waits with a timeout asks anew: the change that it was too early for still comes, once."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        async with LatestWatch(kv.watch("k")) as watch:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(watch.batches())
            put = await kv.put("k", "1")
            batches = watch.batches()
            batch = await anext(batches)
            assert [(each.revision, each.skipped) for each in batch.changes] == [(put.revision, 0)]
