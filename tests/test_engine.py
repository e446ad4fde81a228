"""The `KV` protocol: the same tests on a leader, a follower, a client in memory, one over TCP, and a lone member."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    EventType,
    PutKey,
    RangeQuery,
    SortOrder,
    SortTarget,
    Transaction,
    errors,
)
from pyraftkv.core.membership import AUTO
from pyraftkv.engine import REQUEST_BYTES_MAX, Engine
from pyraftkv.keys import key_range, prefix_end, single_or_range, to_bytes
from pyraftkv.protocol import PromoteMember
from pyraftkv.reading import SCAN_PAGE_MAX
from tests.node.support import FAST, asynchronous, cluster_of, pairs, refused, take

FACES = ["leader", "follower", "client", "tcp-client", "alone"]

faces = pytest.mark.parametrize("face", FACES)


@asynccontextmanager
async def open_face(face: str, path: Path) -> AsyncIterator[Engine]:
    """Run whatever it takes to have this face of the protocol, and return it."""
    if face == "alone":
        async with pyraftkv.open(path, config=FAST) as node:
            yield node
    elif face == "tcp-client":
        async with (
            pyraftkv.open(path, listen="127.0.0.1:0", config=FAST) as node,
            pyraftkv.connect(node.address) as client,
        ):
            yield client
    else:
        async with cluster_of(3) as cluster:
            client = cluster.client()
            yield {"leader": cluster.leader, "follower": cluster.followers[0], "client": client}[face]


@faces
@asynchronous
async def test_put_get_delete(face: str, tmp_path: Path) -> None:
    """What was put is got, with etcd's fields; what was deleted is not; text and bytes are the same thing."""
    async with open_face(face, tmp_path) as kv:
        first = await kv.put("a", "one")
        second = await kv.put(b"a", bytearray(b"two"), prev_kv=True)
        assert second.revision == first.revision + 1
        assert second.prev_kv is not None
        assert second.prev_kv.text == "one"
        got = await kv.get(b"a")
        assert got is not None
        assert (got.key, got.value, got.version) == (b"a", b"two", 2)
        assert (got.create_revision, got.mod_revision, got.lease) == (first.revision, second.revision, 0)
        old = await kv.get("a", revision=first.revision)
        assert old is not None
        assert old.text == "one"
        gone = await kv.delete("a", prev_kv=True)
        assert (gone.deleted, [kv.text for kv in gone.prev_kvs]) == (1, ["two"])
        assert await kv.get("a") is None
        assert (await kv.delete("a")).deleted == 0


@faces
@asynchronous
async def test_range_and_scan(face: str, tmp_path: Path) -> None:
    """A range answers by bounds or prefix, sorted, limited, keys only, counted; a scan pages at one revision."""
    async with open_face(face, tmp_path) as kv:
        for number in range(10):
            await kv.put(f"k/{number}", str(9 - number))
        await kv.put("z", "last")
        result = await kv.range(prefix="k/", limit=3)
        assert ([kv.key for kv in result.kvs], result.more, result.count) == ([b"k/0", b"k/1", b"k/2"], True, 10)
        assert [kv.key for kv in (await kv.range("k/7", "k/9")).kvs] == [b"k/7", b"k/8"]
        assert [kv.key for kv in (await kv.range("k/9")).kvs] == [b"k/9", b"z"]
        assert (await kv.range(count_only=True)).count == 11
        assert {kv.value for kv in (await kv.range(prefix="k/", keys_only=True)).kvs} == {b""}
        by_value = await kv.range(prefix="k/", sort=SortTarget.VALUE, order=SortOrder.DESCEND, limit=2)
        assert [kv.key for kv in by_value.kvs] == [b"k/0", b"k/1"]
        scanned = []
        async for kv_ in kv.scan(prefix="k/", page=3):
            scanned.append(kv_.key)
            await kv.put("k/late", "x")
        assert scanned == [f"k/{number}".encode() for number in range(10)]
        assert [kv_.key async for kv_ in kv.scan("k/8", "z", page=1, consistency="local")] == [
            b"k/8",
            b"k/9",
            b"k/late",
        ]


@faces
@asynchronous
async def test_a_put_keeps_what_it_ignores(face: str, tmp_path: Path) -> None:
    """With `ignore_value` the value stays, with `ignore_lease` the lease; there must be some, and none may be given."""
    async with open_face(face, tmp_path) as kv:
        await refused(kv.put("a", "", ignore_value=True), errors.KeyNotFound)
        await refused(kv.put("a", "1", ignore_lease=True), errors.KeyNotFound)
        first = await kv.put("a", "1")
        await refused(kv.put("a", "2", ignore_value=True), errors.InvalidRequest)
        await refused(kv.put("a", "2", lease=7, ignore_lease=True), errors.InvalidRequest)
        await kv.put("a", "", ignore_value=True)
        await kv.put("a", "", ignore_value=True, if_revision=first.revision + 1)
        kept = await kv.put("a", "3", ignore_lease=True, prev_kv=True)
        assert kept.prev_kv is not None
        assert (kept.prev_kv.text, kept.prev_kv.version) == ("1", 3)


@faces
@asynchronous
async def test_a_range_leaves_out_other_revisions(face: str, tmp_path: Path) -> None:
    """By when a key was changed or created, before the limit; the count counts them all."""
    async with open_face(face, tmp_path) as kv:
        revisions = [(await kv.put(key, "")).revision for key in ["a", "b", "c", "a"]]
        a, b, c, again = revisions

        async def keys(**options: int) -> tuple[list[bytes], bool, int]:
            result = await kv.range(limit=1, **options)
            return [kv.key for kv in result.kvs], result.more, result.count

        assert await keys(min_mod_revision=c) == ([b"a"], True, 3)
        assert await keys(min_mod_revision=again) == ([b"a"], False, 3)
        assert await keys(max_mod_revision=c) == ([b"b"], True, 3)
        assert await keys(min_create_revision=b) == ([b"b"], True, 3)
        assert await keys(max_create_revision=a) == ([b"a"], False, 3)


@faces
@asynchronous
async def test_guarded_writes(face: str, tmp_path: Path) -> None:
    """`create` and `if_revision=` write only where they should, and say what stands there otherwise."""
    async with open_face(face, tmp_path) as kv:
        made = await kv.create("a", "1")
        there = await refused(kv.create("a", "2"), errors.KeyExists)
        assert (there.key, there.mod_revision) == (b"a", made.revision)
        wrong = await refused(kv.put("a", "3", if_revision=made.revision + 7), errors.RevisionMismatch)
        assert (wrong.key, wrong.mod_revision) == (b"a", made.revision)
        absent = await refused(kv.put("b", "3", if_revision=4), errors.RevisionMismatch)
        assert absent.mod_revision == 0
        swapped = await kv.put("a", "4", if_revision=made.revision, prev_kv=True)
        assert swapped.prev_kv is not None
        assert swapped.prev_kv.text == "1"
        await refused(kv.delete("a", if_revision=made.revision), errors.RevisionMismatch)
        assert (await kv.delete("a", if_revision=swapped.revision)).deleted == 1
        await kv.put("a", "5", if_revision=0)


@faces
@asynchronous
async def test_transactions(face: str, tmp_path: Path) -> None:
    """A transaction does one of its branches, all of it at one revision."""
    async with open_face(face, tmp_path) as kv:
        await kv.put("balance", "10")
        guard = Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"balance", b"10")
        txn = (
            kv.txn().when(guard).then(PutKey(b"balance", b"7"), PutKey(b"log", b"-3")).otherwise(RangeQuery(b"balance"))
        )
        done = await txn.commit()
        assert done.succeeded
        both = [await kv.get("balance"), await kv.get("log")]
        assert [kv_.mod_revision for kv_ in both if kv_ is not None] == [done.revision, done.revision]
        again = await txn.commit()
        assert not again.succeeded
        assert again.responses[0].kvs[0].value == b"7"  # type: ignore[union-attr]
        empty = await kv.txn().commit()
        assert (empty.succeeded, empty.responses) == (True, [])
        every = Compare(CompareTarget.VERSION, CompareResult.GREATER, b"a", 0, end=b"m")
        nested = Transaction([every], [DeleteRange(b"a", b"m", prev_kv=True)], [RangeQuery(b"balance")])
        inner = (await kv.txn().then(PutKey(b"z", b""), nested)).responses[1]
        assert inner.succeeded  # type: ignore[union-attr]
        assert [kv_.key for kv_ in inner.responses[0].prev_kvs] == [b"balance", b"log"]  # type: ignore[union-attr]


@faces
@asynchronous
async def test_compaction(face: str, tmp_path: Path) -> None:
    """After a compaction older revisions are refused, newer ones answered, future ones not there yet."""
    async with open_face(face, tmp_path) as kv:
        for number in range(5):
            result = await kv.put("a", str(number))
        await kv.compact(result.revision - 1)
        gone = await refused(kv.get("a", revision=result.revision - 2), errors.Compacted)
        assert gone.compact_revision == result.revision - 1
        kept = await kv.get("a", revision=result.revision - 1)
        assert kept is not None
        assert kept.text == "3"
        await refused(kv.compact(result.revision - 1), errors.Compacted)
        ahead = await refused(kv.compact(result.revision + 1), errors.FutureRevision)
        assert ahead.revision == result.revision
        ahead = await refused(kv.get("a", revision=result.revision + 1), errors.FutureRevision)
        assert ahead.revision == result.revision


@faces
@asynchronous
async def test_wrong_requests(face: str, tmp_path: Path) -> None:
    """A request that is wrong in itself is refused by type, and nothing of it is done."""
    async with open_face(face, tmp_path) as kv:
        await refused(kv.put("", "x"), errors.InvalidRequest)
        await refused(kv.put("a", 5), errors.InvalidRequest)  # type: ignore[arg-type]
        await refused(kv.put("a", "\ud800"), errors.InvalidRequest)
        await refused(kv.put("a", "x", lease="7"), errors.InvalidRequest)  # type: ignore[arg-type]
        await refused(kv.leases.grant(-1), errors.InvalidRequest)
        await refused(kv.leases.grant(0), errors.InvalidRequest)
        await refused(kv.get(""), errors.InvalidRequest)
        await refused(kv.delete(), errors.InvalidRequest)
        await refused(kv.range("a", prefix="b"), errors.InvalidRequest)
        await refused(kv.delete("a", "b", if_revision=1), errors.InvalidRequest)
        await refused(kv.put("a", "x", timeout=math.nan), errors.InvalidRequest)
        await refused(kv.get("a", consistency="serializable"), errors.InvalidRequest)  # type: ignore[arg-type]
        await refused(kv.get("a", at_least=math.nan), errors.InvalidRequest)  # type: ignore[arg-type]
        await refused(kv.transfer_leadership(""), errors.MemberNotFound)
        await refused(kv.transfer_leadership("n" * 10**7), errors.MemberNotFound)
        await refused(kv.members.remove(True), errors.MemberNotFound)
        await refused(kv.members.change([], transition=AUTO), errors.InvalidRequest)
        await refused(kv.members.change([PromoteMember(1)], transition=7), errors.InvalidRequest)  # type: ignore[arg-type]
        await refused(kv.put("a", b"x" * REQUEST_BYTES_MAX), errors.RequestTooLarge)
        await refused(kv.create("a", b"x" * REQUEST_BYTES_MAX), errors.RequestTooLarge)
        twice = kv.txn().then(PutKey(b"a", b"1"), PutKey(b"a", b"2"))
        await refused(twice.commit(), errors.DuplicateKey)
        await refused(kv.txn().then(*[DeleteRange(b"%d" % n) for n in range(129)]).commit(), errors.InvalidRequest)
        for page in (0, SCAN_PAGE_MAX + 1):
            with pytest.raises(errors.InvalidRequest):
                await anext(kv.scan(page=page))
        with pytest.raises(errors.InvalidRequest):
            kv.watch()
        with pytest.raises(errors.InvalidRequest):
            kv.watch("a", start_revision=-1)
        with pytest.raises(errors.InvalidRequest):
            kv.watch("a", start_revision="1")  # type: ignore[arg-type]
        for wrong in (kv.txn().when("a"), kv.txn().then(PutKey("a", b"1")), kv.txn().then(PutKey(b"a", "1"))):  # type: ignore[arg-type]
            await refused(wrong.commit(), errors.InvalidRequest)
        no_coroutine = await refused(kv.transact(lambda tx: None), errors.InvalidRequest)  # type: ignore[arg-type]
        assert "async function" in str(no_coroutine)
        assert (await kv.range()).count == 0
        biggest = REQUEST_BYTES_MAX - 1
        await kv.put("a", b"x" * biggest)
        got = await kv.get("a")
        assert got is not None
        assert len(got.value) == biggest


@faces
@asynchronous
async def test_arguments_of_the_wrong_type_are_told_by_their_names(face: str, tmp_path: Path) -> None:
    """Whatever a form or a configuration file has handed on: on a client as on a member, before anything is asked."""
    async with open_face(face, tmp_path) as kv:
        given: Any = kv  # as a program that no type checker has seen
        for wrong in ("5", [], -1, math.inf, math.nan, 10**400):
            for call in (given.put("a", "x", timeout=wrong), given.get("a", timeout=wrong)):
                assert "timeout=" in str(await refused(call, errors.InvalidRequest))
        for name, call in {
            "revision": given.get("a", revision=1.0),
            "at_least": given.get("a", at_least="1"),
            "if_revision": given.put("a", "x", if_revision="1"),
            "limit": given.range(limit="10"),
            "min_mod_revision": given.range(min_mod_revision="1"),
            "sort": given.range(sort="key"),
            "order": given.range(order="descend"),
            "keys_max": given.view(prefix="", keys_max="1"),
            "page": anext(given.scan(page="1")),
            "min_revision": anext(given.history("a", min_revision="1")),
            "older": anext(given.diff("1")),
            "prev_kv": given.put("a", "x", prev_kv="no"),
            "id": given.leases.revoke("x"),
            "transaction": given.transact(None),
        }.items():
            assert name in str(await refused(call, errors.InvalidRequest))
        with pytest.raises(errors.InvalidRequest, match="machine"):
            given.machine(5)
        assert (await kv.range()).count == 0


@faces
@asynchronous
async def test_another_loop_is_refused(face: str, tmp_path: Path) -> None:
    """In another thread a call would race what runs, and never be answered; nothing of it is begun."""
    async with open_face(face, tmp_path) as kv:

        async def elsewhere() -> None:
            await refused(kv.put("a", "x"), errors.WrongLoop)
            await refused(kv.get("a"), errors.WrongLoop)
            await refused(kv.status(), errors.WrongLoop)
            await refused(kv.close(), errors.WrongLoop)
            with pytest.raises(errors.WrongLoop, match=r"pyraftkv\.sync"):
                kv.watch("a")

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert (await kv.range()).count == 0


def test_a_loop_that_stands_still_is_told_apart() -> None:
    """Nothing that was started in it goes on, whatever another loop of the same thread asks."""

    async def begin() -> pyraftkv.Client:
        client = pyraftkv.connect("127.0.0.1:1")
        closed = await refused(client.get("k"), errors.Closed)
        assert "async with" in str(closed)
        client.start()
        return client

    async def go_on(client: pyraftkv.Client) -> None:
        await refused(client.get("k"), errors.WrongLoop)

    with asyncio.Runner() as first:
        client = first.run(begin())
        asyncio.run(go_on(client))
        first.run(client.close())


@faces
@asynchronous
async def test_watch(face: str, tmp_path: Path) -> None:
    """A watch gives every change once and in order, from now or from any revision, filtered as asked."""
    async with open_face(face, tmp_path) as kv:
        first = await kv.put("w/a", "1")
        async with kv.watch(prefix="w/") as live, kv.watch("w/a", start_revision=first.revision, prev_kv=True) as all_:
            start = await live.synced(timeout=10)
            assert start >= first.revision
            second = await kv.put("w/a", "2")
            third = await kv.put("w/b", "3")
            await kv.put("other", "-")
            fourth = await kv.delete("w/a")
            assert pairs(await take(live, 3)) == [
                (b"w/a", b"2", second.revision),
                (b"w/b", b"3", third.revision),
                (b"w/a", b"", fourth.revision),
            ]
            events = await take(all_, 3)
            assert [event.kv.mod_revision for event in events] == [first.revision, second.revision, fourth.revision]
            assert [event.prev_kv and event.prev_kv.text for event in events] == [None, "1", "2"]
            assert [event.is_create for event in events] == [True, False, False]
        async with kv.watch(prefix="", start_revision=1, no_put=True) as deletions:
            assert [event.type for event in await take(deletions, 1)] == [EventType.DELETE]
        async with kv.watch("w/a", start_revision=1, no_delete=True) as puts:
            batches = puts.batches()
            values: list[bytes] = []
            while len(values) < 2:
                values += [event.kv.value for event in (await anext(batches)).events]
            assert values == [b"1", b"2"]
            assert puts.revision >= second.revision


@faces
@asynchronous
async def test_watch_of_compacted_history(face: str, tmp_path: Path) -> None:
    """A watch that would need compacted history ends with `WatchCancelled`, which says what is left."""
    async with open_face(face, tmp_path) as kv:
        for number in range(5):
            result = await kv.put("a", str(number))
        await kv.compact(result.revision)

        async def watched() -> None:
            async with kv.watch("a", start_revision=2) as watch:
                await take(watch, 1)

        cancelled = await refused(watched(), errors.WatchCancelled)
        assert (cancelled.resume_revision, cancelled.compact_revision) == (2, result.revision)


@faces
@asynchronous
async def test_closing_a_watch_ends_its_iteration(face: str, tmp_path: Path) -> None:
    """Whoever iterates a watch that is closed gets `Closed`; closing twice is harmless."""
    async with open_face(face, tmp_path) as kv:
        watch = kv.watch("a")
        reader = asyncio.create_task(take(watch, 1))
        await watch.synced(timeout=10)
        await watch.close()
        await watch.close()
        await refused(reader, errors.Closed)
        await refused(watch.synced(), errors.Closed)


@faces
@asynchronous
async def test_status(face: str, tmp_path: Path) -> None:
    """The status names the member, its cluster, its leader, and what it holds."""
    async with open_face(face, tmp_path) as kv:
        written = await kv.put("a", "1")
        status = await kv.status()
        assert status.revision == written.revision
        assert (status.keys, status.compact_revision) == (1, 0)
        assert status.has_quorum
        assert status.cluster_id > 0
        assert status.leader_name == {peer.id: peer.name for peer in status.peers}[status.leader]
        assert status.role in {"leader", "follower"}
        assert status.applied_index <= status.commit_index <= status.last_index
        assert status.db_size_bytes > 0
        assert status.version == pyraftkv.__version__
        assert status.storage in {"memory", "files"}
        assert len(status.peers) in {1, 3}


@faces
@asynchronous
async def test_concurrent_increments(face: str, tmp_path: Path) -> None:
    """Compare-and-swap by many at once loses no increment."""
    async with open_face(face, tmp_path) as kv:
        await kv.put("n", "0")

        async def increment() -> None:
            while True:
                now = await kv.get("n")
                assert now is not None
                try:
                    await kv.put("n", str(int(now.value) + 1), if_revision=now.mod_revision)
                except errors.RevisionMismatch:
                    continue
                return

        await asyncio.gather(*[increment() for _ in range(8)])
        total = await kv.get("n")
        assert total is not None
        assert (total.text, total.version) == ("8", 9)


def test_ranges_are_translated_as_etcd_does() -> None:
    """Prefixes and open ends become etcd's `[key, end)`."""
    assert prefix_end(b"ab") == b"ac"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff\xff") == b"\0"
    assert key_range("", None, None) == (b"\0", b"\0")
    assert key_range(None, None, "") == (b"\0", b"\0")
    assert key_range("a", "b", None) == (b"a", b"b")
    assert single_or_range("a", None, None) == (b"a", b"")
    assert single_or_range(None, "b", None) == (b"\0", b"b")
    assert to_bytes(memoryview(b"x")) == b"x"


@pytest.mark.parametrize("face", ["alone", "tcp-client"])
@asynchronous
async def test_writes_made_together_are_done_in_the_order_of_the_calls(face: str, tmp_path: Path) -> None:
    """Whether they travel in one batch or alone: whatever comes between seals the batch before it."""
    async with open_face(face, tmp_path) as kv:
        opened = await kv.put("a", "0")
        first, second, third, fourth = await asyncio.gather(
            kv.put("a", "1"),
            kv.put("a", "2", prev_kv=True),
            kv.put("a", "3"),
            kv.txn().then(PutKey(b"a", b"4")).commit(),
        )
        revisions = [result.revision - opened.revision for result in (first, second, third, fourth)]
        assert revisions == [1, 2, 3, 4]
        assert second.prev_kv is not None
        assert second.prev_kv.text == "1"


class Stubborn(bytes):
    """Bytes that stay what they are when they are converted."""

    def __bytes__(self) -> Stubborn:
        return self


@faces
@asynchronous
async def test_bytes_of_other_classes_are_bytes(face: str, tmp_path: Path) -> None:
    """The codec takes nothing else: what it refused would end the put, those beside it, and the member."""
    assert type(to_bytes(Stubborn(b"x"))) is bytes
    async with open_face(face, tmp_path) as kv:
        first, second = await asyncio.gather(kv.put("a", "1"), kv.put(Stubborn(b"b"), Stubborn(b"2")))
        assert second.revision == first.revision + 1
        assert (await kv.range()).count == 2


# --- The store as it was, and a read that a watch goes on from ------------------------------------------------------


@faces
@asynchronous
async def test_the_store_as_it_was(face: str, tmp_path: Path) -> None:
    """What is read at a revision is what was there then, page by page too; another revision is refused."""
    async with open_face(face, tmp_path) as kv:
        await kv.put("a", "1")
        await kv.put("b", "2")
        then = (await kv.put("c", "3")).revision
        await kv.delete(prefix="")
        await kv.put("a", "9")
        past = kv.at(then)
        got = await past.get("a")
        assert got is not None
        assert got.text == "1"
        found = await past.range()
        assert ([kv_.text for kv_ in found.kvs], found.revision) == (["1", "2", "3"], then)
        assert [kv_.text async for kv_ in past.scan(page=1)] == ["1", "2", "3"]
        assert [kv_.text for kv_ in (await kv.namespace("b").at(then).range()).kvs] == []
        await refused(past.get("a", revision=then - 1), errors.InvalidRequest)
        await refused(kv.at(then + 100).get("a"), errors.FutureRevision)
        await kv.compact(then + 1)
        gone = await refused(past.get("a"), errors.Compacted)
        assert gone.compact_revision == then + 1
        for wrong in (0, -1, True):
            with pytest.raises(errors.InvalidRequest):
                kv.at(wrong)


@faces
@asynchronous
async def test_get_and_watch(face: str, tmp_path: Path) -> None:
    """The watch goes on where the read ended, although others write between its pages."""
    async with open_face(face, tmp_path) as kv:
        await kv.put("k/a", "1")
        await kv.put("k/b", "2")
        found, watch = await kv.get_and_watch(prefix="k/", prev_kv=True)
        async with watch:
            assert [kv_.text for kv_ in found.kvs] == ["1", "2"]
            put = await kv.put("k/a", "3")
            await kv.put("l", "elsewhere")
            await kv.delete("k/b")
            events = await take(watch, 2)
        assert found.revision == put.revision - 1
        assert [(event.type, event.kv.key) for event in events] == [(EventType.PUT, b"k/a"), (EventType.DELETE, b"k/b")]
        assert events[0].prev_kv is not None
        nothing, watch = await kv.get_and_watch("z")
        async with watch:
            await kv.put("z", "x")
            assert [event.kv.text for event in await take(watch, 1)] == ["x"]
        assert (nothing.kvs, nothing.count) == ([], 0)
