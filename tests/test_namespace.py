"""Namespaces: a part of the store as a store of its own, whatever is asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyraftkv import Compare, CompareResult, CompareTarget, DeleteRange, EventType, PutKey, RangeQuery, errors
from pyraftkv.namespace import Prefix
from pyraftkv.store.commands import FROM_KEY, Compact, Transaction
from tests.node.support import asynchronous, cluster_of, pairs, refused, take
from tests.test_engine import faces, open_face


@faces
@asynchronous
async def test_a_namespace_is_a_store(face: str, tmp_path: Path) -> None:
    """What is put, read, deleted and compared through a namespace has its prefix in the store, and none in answers."""
    async with open_face(face, tmp_path) as kv:
        app = kv.namespace("app/")
        await kv.put("app", "before")
        await kv.put("app/", "the prefix itself")
        await kv.put("app0", "behind")
        first = await app.put("a", "1")
        put = await app.put("a", "2", prev_kv=True)
        assert put.prev_kv is not None
        assert (put.prev_kv.key, put.prev_kv.mod_revision) == (b"a", first.revision)
        inside, outside = await app.get("a"), await kv.get("app/a")
        assert inside is not None
        assert outside is not None
        assert (inside.key, outside.key, inside.value, inside.version) == (b"a", b"app/a", b"2", outside.version)
        await app.put("b", "3")
        everything = await app.range()
        assert ([found.key for found in everything.kvs], everything.count) == ([b"a", b"b"], 2)
        assert [found.key for found in (await app.range("a", "b")).kvs] == [b"a"]
        assert [found.key async for found in app.scan(page=1)] == [b"a", b"b"]
        there = await refused(app.create("a", "x"), errors.KeyExists)
        assert (there.key, there.mod_revision) == (b"a", put.revision)
        await refused(app.put("", "x"), errors.InvalidRequest)
        await refused(app.commit(Transaction(success=[PutKey(b"", b"x")])), errors.InvalidRequest)
        await refused(app.get("", timeout=1.0), errors.InvalidRequest)
        gone = await app.delete(prefix="", prev_kv=True)
        assert (gone.deleted, [found.key for found in gone.prev_kvs]) == (2, [b"a", b"b"])
        assert [found.key for found in (await kv.range()).kvs] == [b"app", b"app/", b"app0"]
        assert app.members is not None
        assert (await app.status()).revision == (await kv.status()).revision


@faces
@asynchronous
async def test_transactions_of_a_namespace(face: str, tmp_path: Path) -> None:
    """Comparisons, operations and the responses of nested transactions are all of the namespace."""
    async with open_face(face, tmp_path) as kv:
        app = kv.namespace("app/")
        await app.put("a", "1")
        await kv.put("b", "elsewhere")
        all_new = Compare(CompareTarget.CREATE, CompareResult.GREATER, b"\0", 1, FROM_KEY)
        nested = Transaction(success=[DeleteRange(b"a", b"b", prev_kv=True), Transaction(success=[RangeQuery(b"a")])])
        result = await app.txn().when(all_new).then(RangeQuery(b"\0", FROM_KEY), nested, PutKey(b"c", b"3"))
        assert result.succeeded
        found, inner, _ = result.responses
        assert [kv_.key for kv_ in found.kvs] == [b"a"]  # type: ignore[union-attr]
        assert [kv_.key for kv_ in inner.responses[0].prev_kvs] == [b"a"]  # type: ignore[union-attr]
        assert [kv_.key for kv_ in (await kv.range()).kvs] == [b"app/c", b"b"]


@faces
@asynchronous
async def test_a_watch_of_a_namespace(face: str, tmp_path: Path) -> None:
    """A watch sees what happens in the namespace, and its keys without the prefix, previous ones too."""
    async with open_face(face, tmp_path) as kv:
        app = kv.namespace("app/")
        await kv.put("app/", "no key of it")
        first = await app.put("a", "1")
        async with app.watch(prefix="", start_revision=1, prev_kv=True) as watch:
            await kv.put("b", "elsewhere")
            await kv.delete("app/a")
            events = await take(watch, 2)
            assert pairs(events)[0] == (b"a", b"1", first.revision)
            assert (events[1].type, events[1].kv.key) == (EventType.DELETE, b"a")
            assert events[1].prev_kv is not None
            assert events[1].prev_kv.key == b"a"
            await app.put("z", "2")
            async for batch in watch.batches():
                assert [event.kv.key for event in batch.events] == [b"z"]
                break
            assert watch.revision >= first.revision + 3
        async with app.watch("a") as watch:
            assert await watch.synced() >= first.revision


@asynchronous
async def test_what_hangs_on_a_lease_in_a_namespace() -> None:
    """Of the keys of a lease a namespace shows its own, and not the key that is its prefix."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        lease = (await kv.leases.grant(100)).id
        for key in ("app", "app/", "app/a", "app0"):
            await kv.put(key, "x", lease=lease)
        assert (await kv.namespace("app/").leases.time_to_live(lease, keys=True)).keys == [b"a"]


@asynchronous
async def test_namespaces_within_namespaces() -> None:
    """A part of a part has both prefixes; one without a prefix is refused; one of bytes at the very end has an end."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        inner = kv.namespace("app/").namespace("jobs/")
        await inner.put("1", "x")
        await inner.namespace("z/").put("2", "y")
        assert [found.key for found in (await kv.range()).kvs] == [b"app/jobs/1", b"app/jobs/z/2"]
        assert [found.key for found in (await inner.range()).kvs] == [b"1", b"z/2"]
        last = kv.namespace(b"\xff")
        await last.put(b"\xff", "end")
        assert [found.key for found in (await last.range()).kvs] == [b"\xff"]
        with pytest.raises(errors.InvalidRequest):
            kv.namespace("")
        with pytest.raises(errors.InvalidRequest):
            inner.namespace("")


def test_what_names_no_key_is_left_alone() -> None:
    """A command without keys is the store's: it is the same one."""
    prefix = Prefix(b"p/")
    command = Compact(7)
    assert prefix.command(command) is command
    assert prefix.interval(b"a", b"") == (b"p/a", b"")
    assert prefix.interval(b"a", b"c") == (b"p/a", b"p/c")
    assert prefix.interval(b"a", FROM_KEY) == (b"p/a", b"p0")
