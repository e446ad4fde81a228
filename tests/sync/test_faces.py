"""The blocking face, from threads, against real nodes on a loop that is in none of them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

import pyraftkv.sync
from pyraftkv import NodeConfig, PutKey, RangeQuery, cluster, engine, errors, kv, sync
from pyraftkv.keys import mod_revision_is
from pyraftkv.replicated import ReplicatedCounter
from pyraftkv.sync.bridge import Face

HERE = {
    sync.KV: kv.KV,
    sync.Readable: kv.Readable,
    sync.Leases: kv.Leases,
    sync.Machine: kv.Machine,
    sync.Members: kv.Members,
    sync.ClusterSettings: kv.ClusterSettings,
    sync.Alarms: kv.Alarms,
    sync.Watch: kv.Watch,
    sync.Stm: kv.Stm,
    sync.View: kv.View,
    sync.Txn: kv.TxnBuilder,
    sync.Cluster: cluster.Cluster,
}
"""Each face, and what it is the face of."""

ELSEWHERE = {(sync.Cluster, "close"), (sync.Cluster, "forget")}
"""Names that stand in a base, or that a blocking program has no use for."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[sync.Cluster]:
    """Three nodes in a thread."""
    with sync.Cluster.in_memory(3, seed=1) as cluster:
        yield cluster


@pytest.fixture
def db(nodes: sync.Cluster) -> sync.KV:
    """The store, empty."""
    client = nodes.client()
    client.delete(prefix="")
    return client


def names(of: type) -> set[str]:
    """Return the public names that a class, or a base of its own, defines."""
    return {name for name in dir(of) if not name.startswith("_")}


@pytest.mark.parametrize(("face", "of"), HERE.items())
def test_every_name_is_there_with_its_parameters(face: type[Face], of: type) -> None:
    """What can be awaited can be called."""
    for name in names(of):
        if (face, name) in ELSEWHERE or not callable(getattr(of, name)):
            assert hasattr(face, name) or (face, name) in ELSEWHERE, name
            continue
        theirs, ours = (inspect.signature(getattr(each, name)).parameters for each in (of, face))
        assert [(each.name, each.kind, each.default) for each in theirs.values() if each.name != "cls"] == [
            (each.name, each.kind, each.default) for each in ours.values() if each.name != "cls"
        ], name


def test_reading_and_writing(db: sync.KV) -> None:
    """As with ``await``, less the ``await``."""
    first = db.put("k/1", "one")
    db.create("k/2", "two")
    with pytest.raises(errors.KeyExists):
        db.create("k/2", "again")
    found = db.get("k/1")
    assert found is not None
    assert found.text == "one"
    assert [each.text for each in db.range(prefix="k/").kvs] == ["one", "two"]
    assert [each.text for each in db.scan(prefix="k/", page=1)] == ["one", "two"]
    assert db.delete("k/2", prev_kv=True).prev_kvs[0].text == "two"
    assert [each.text for each in db.at(first.revision).range(prefix="k/").kvs] == ["one"]
    assert [event.kv.text for event in db.history("k/1")] == ["one"]
    assert [change.key for change in db.diff(first.revision - 1, first.revision)] == [b"k/1"]
    assert db.namespace("k/").get("1") == db.range("k/1", "k/2").kvs[0].__class__(
        b"1", b"one", first.revision, first.revision, 1
    )


def test_transactions(db: sync.KV) -> None:
    """Both kinds: put together by hand, and as a function."""
    result = db.txn().when(mod_revision_is(b"x", 0)).then(PutKey(b"x", b"1")).otherwise(RangeQuery(b"x")).commit()
    assert result.succeeded
    assert not db.txn().when(mod_revision_is(b"x", 0)).then(PutKey(b"x", b"1")).commit().succeeded

    def increment(stm: sync.Stm) -> int:
        kv = stm.get("x")
        count = int(kv.text if kv else "0") + 1
        stm.put("x", str(count))
        return count

    with ThreadPoolExecutor(8) as pool:
        counts = [pool.submit(db.transact, increment, timeout=60) for _ in range(24)]
    assert sorted(each.result() for each in counts) == list(range(2, 26))


def test_a_transaction_of_a_thread_is_a_plain_function(db: sync.KV) -> None:
    """A coroutine that nobody awaits would read and write nothing, and be handed out as the result."""

    async def coroutine(stm: sync.Stm) -> None:
        raise AssertionError("never run")

    with pytest.raises(errors.InvalidRequest, match="plain function"):
        db.transact(coroutine)


def test_what_the_function_raises_ends_the_transaction(db: sync.KV) -> None:
    """Nothing is written."""

    def fail(stm: sync.Stm) -> None:
        stm.put("x", "1")
        raise LookupError("no")

    with pytest.raises(LookupError):
        db.transact(fail)
    assert db.get("x") is None


def test_a_watch_is_iterated_over(db: sync.KV) -> None:
    """Events in order; it is in place when `synced` returns."""
    with db.watch(prefix="w/") as watch:
        at = watch.synced()
        db.put("w/1", "a")
        db.put("w/2", "b")
        events = iter(watch)
        assert [next(events).kv.text for _ in range(2)] == ["a", "b"]
        assert watch.revision >= at


def test_to_wait_for_a_batch_in_vain_loses_nothing(db: sync.KV) -> None:
    """The call that gave up is still under way, and the next one has what it finds."""
    found, watch = db.get_and_watch(prefix="w/")
    assert found.kvs == []
    with watch:
        batches = watch.batches()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                batches.next(timeout=0.01)
        with pytest.raises(errors.InvalidRequest):
            batches.next(timeout=-1)
        revision = db.put("w/1", "a").revision
        assert [event.kv.mod_revision for event in batches.next(timeout=1e300).events] == [revision]


def test_whoever_iterates_is_at_the_end_when_the_watch_is_closed(db: sync.KV) -> None:
    """From another thread."""
    watch = db.watch(prefix="w/")
    watch.synced()
    seen: list[object] = []
    reader = threading.Thread(target=lambda: seen.extend(watch))
    reader.start()
    db.put("w/1", "a")
    while not seen:
        pass
    watch.close()
    watch.close()
    reader.join(30)
    assert not reader.is_alive()
    assert len(seen) == 1


def test_whoever_waits_for_a_change_at_the_end_of_the_loop_is_told() -> None:
    """By name: the program has ended without closing, say."""
    cluster = sync.Cluster.in_memory(1).start()
    watch = cluster.client().watch(prefix="w/")
    watch.synced()
    batches, told = watch.batches(), Future[BaseException | None]()

    def wait() -> None:
        try:
            batches.next()
        except BaseException as error:  # noqa: BLE001 - it is asserted below
            told.set_result(error)

    threading.Thread(target=wait, daemon=True).start()
    while batches._fetching is None:
        cluster.portal.call(int)
    cluster.portal.close()
    assert isinstance(told.result(30), errors.Closed)


def test_a_watch_of_what_is_compacted_ends_with_its_error(db: sync.KV) -> None:
    """Errors are those of the asynchronous face."""
    revision = db.put("w/1", "a").revision
    db.put("w/1", "b")
    db.compact(revision + 1)
    with db.watch(prefix="w/", start_revision=revision) as watch:
        batches = watch.batches()
        with pytest.raises(errors.WatchCancelled) as caught:
            next(batches)
        assert caught.value.compact_revision == revision + 1


def test_a_view_is_a_mapping_that_is_kept_current(db: sync.KV) -> None:
    """Looked at from one thread while another one changes it."""
    db.put("v/1", "a")
    with db.view(prefix="v/") as view:
        changes = view.changes()
        with pytest.raises(TimeoutError):
            changes.next(timeout=0.01)
        view.at_least(db.put("v/2", "b").revision)
        assert {key: kv.text for key, kv in view.items()} == {b"v/1": "a", b"v/2": "b"}
        assert view["v/2"].text == "b"
        assert changes.next(timeout=30).key == b"v/2"
        db.delete("v/1")
        assert view.wait(lambda view: len(view) == 1 and sorted(view), timeout=30) == [b"v/2"]
        assert view.is_live
    assert not view.is_live


def test_a_lease_is_held_for_a_block(db: sync.KV) -> None:
    """What hangs on it vanishes with it; who lost it is told where the block asks, and where it ends."""
    with db.lease(ttl=30) as lease:
        db.put("k", "v", lease=lease.id)
        lease.check()
        assert db.leases.list() == [lease.id]
        assert db.leases.time_to_live(lease.id, keys=True).keys == [b"k"]
        assert 0 < lease.ttl <= 30
    assert db.get("k") is None
    with pytest.raises(errors.LeaseLost), db.lease(ttl=2) as lease:  # noqa: PT012 - the block is what raises
        db.leases.revoke(lease.id)
        while not lease.is_lost:
            pass
        with pytest.raises(errors.LeaseLost):
            lease.check()


def test_a_machine_of_ones_own_is_called() -> None:
    """Exactly once for each call, whichever thread makes it."""
    with sync.Cluster.in_memory(3, seed=4, machines={"hits": ReplicatedCounter.machine}) as cluster:
        hits = cluster.client().machine("hits")
        with ThreadPoolExecutor(4) as pool:
            for call in [pool.submit(hits.call, "add", 2) for _ in range(10)]:
                call.result()
        assert hits.query("get") == 20


def test_what_stands_beside_the_store(nodes: sync.Cluster, db: sync.KV) -> None:
    """Members, settings, alarms, the status."""
    assert [member.name for member in db.members.list()] == ["n1", "n2", "n3"]
    assert db.alarms.list() == []
    assert db.settings.get() == db.settings.change(if_version=db.settings.get().version)
    assert db.status().has_quorum
    follower = nodes.followers[0]
    assert follower.transfer_leadership(follower.name) == follower.name
    assert nodes.leader.name == follower.name


def test_a_cluster_loses_a_node_and_gets_it_back() -> None:
    """The pictures of the README, without an ``await``."""
    with sync.Cluster.in_memory(3, seed=2) as cluster:
        db = cluster.client()
        db.put("greeting", "hello")
        killed = cluster.leader
        cluster.kill(killed)
        assert killed.name not in cluster.nodes
        found = db.get("greeting")
        assert found is not None
        assert found.text == "hello"
        assert cluster.restart(killed).name == killed.name
        cluster.add("n4")
        cluster.remove("n4")
        assert sorted(cluster.nodes) == ["n1", "n2", "n3"]


def test_a_node_keeps_what_it_was_told(tmp_path: Path) -> None:
    """And its directory is free as soon as it is closed."""
    for run in range(2):
        node = sync.open(tmp_path)
        with node:
            assert node.is_leader or node.put("here", "I am")
            assert node.put("k", str(run)).revision > 1 + run
            assert node.name == "default"
            events = node.events()
            with pytest.raises(TimeoutError):
                events.next(timeout=0.01)
            node.take_snapshot()
            assert "SnapshotWritten" in str(events.next(timeout=30))
        with pytest.raises(errors.Closed):
            node.get("k")
        node.close()
        with pytest.raises(errors.Closed, match="started before"):
            node.start()


def test_a_client_over_tcp(tmp_path: Path) -> None:
    """Two threads with a loop each, in one process."""
    with (
        sync.open(tmp_path, name="a", listen="127.0.0.1:0") as node,
        sync.connect(node.address) as client,
    ):
        client.put("k", "v")
        found = node.get("k")
        assert found is not None
        assert found.text == "v"


def test_what_does_not_run_says_so(tmp_path: Path) -> None:
    """Before it is entered; and who fails to start leaves no thread behind."""
    node = sync.open(tmp_path)
    with pytest.raises(errors.Closed, match="does not run"):
        node.get("k")
    node.close()
    with sync.open(tmp_path), pytest.raises(errors.DataDirLocked):
        sync.open(tmp_path).start()
    with pytest.raises(errors.ConfigurationError):
        sync.connect("nowhere")
    assert [thread.name for thread in threading.enumerate() if thread.name == "pyraftkv-open"] == []


def test_a_node_that_stops_by_itself_says_why(tmp_path: Path) -> None:
    """`wait` raises what it stopped with."""
    node = sync.open(tmp_path).start()
    with pytest.raises(TimeoutError):
        node.wait(timeout=0.01)
    target: Any = node.target
    node.portal.call(lambda: target._life._fail(errors.StorageFailed("the disk is gone")))
    for end in (lambda: node.wait(timeout=30), node.close):
        with pytest.raises(errors.StorageFailed, match="the disk is gone"):
            end()
    node.close()


BUSY_SECONDS = 3.0


def test_a_busy_program_causes_no_election() -> None:
    """The nodes' thread has its turn every few milliseconds, whatever the other ones compute."""
    config = NodeConfig(election_timeout_seconds=BUSY_SECONDS / 2)
    with sync.Cluster.in_memory(3, config=config, seed=3) as cluster:
        term = cluster.leader.term
        end = perf_counter() + BUSY_SECONDS
        while perf_counter() < end:
            sum(range(1000))
        assert {node.term for node in cluster.nodes.values()} == {term}


def test_the_face_is_of_the_engine() -> None:
    """Whatever `Engine` has for applications has a blocking twin."""
    assert names(kv.KV) <= names(sync.KV)
    assert issubclass(engine.Engine, engine.Reader)
    assert pyraftkv.sync is sync
