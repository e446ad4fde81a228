"""Live views: what they show is what the store held at their revision, whatever becomes of the watch beneath."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from pyraftkv import Change, errors
from pyraftkv.engine import Engine
from pyraftkv.kv import View
from pyraftkv.sim.simulation import Simulation
from pyraftkv.store.values import KeyValue, RangeResult
from pyraftkv.views import LiveView
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


def contents(view: View) -> dict[str, str]:
    """Return what a view shows, as text."""
    return {key.decode(): kv.text for key, kv in view.items()}


@faces
@asynchronous
async def test_a_view_follows_the_store(face: str, tmp_path: Path) -> None:
    """It begins with what is there, is a mapping in the order of keys, and shows what was written later."""
    async with open_face(face, tmp_path) as kv:
        app = kv.namespace("app/")
        await app.put("b", "2")
        await app.put("a", "1")
        async with await app.view(prefix="") as view:
            assert list(view) == [b"a", b"b"]
            assert (view["a"].text, view[b"b"].text, "c" in view, len(view)) == ("1", "2", False, 2)
            first = view.revision
            put = await app.put("c", "3")
            assert await view.at_least(put.revision) >= put.revision
            assert contents(view) == {"a": "1", "b": "2", "c": "3"}
            assert view["c"].mod_revision == put.revision > first
            gone = await app.delete("a")
            await view.at_least(gone.revision)
            assert "a" not in view
            with pytest.raises(KeyError):
                view["a"]
            elsewhere = await kv.put("other", "x")
            assert await view.at_least(elsewhere.revision, timeout=10.0) >= elsewhere.revision  # nothing came of it
            assert contents(view) == {"b": "2", "c": "3"}
            assert view.is_live
        assert not view.is_live
        assert contents(view) == {"b": "2", "c": "3"}
        await refused(view.at_least(10**6), errors.Closed)


@asynchronous
async def test_waiting_for_what_a_view_shows() -> None:
    """`wait` returns what its predicate does, at once or after a change; a wait that is too long says so."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        async with await kv.view("flag") as view:
            waiting = asyncio.create_task(view.wait(lambda seen: seen.get(b"flag")))
            await asyncio.sleep(0)
            await kv.put("flag", "up")
            assert (await waiting).text == "up"
            assert await view.wait(len) == 1
            await refused(view.wait(lambda seen: len(seen) > 1, timeout=0.05), TimeoutError)
            await refused(view.at_least(view.revision + 1, timeout=0.3), TimeoutError)
            ends = asyncio.create_task(view.wait(lambda seen: len(seen) > 1))
            await asyncio.sleep(0)
            await view.close()
            await refused(ends, errors.Closed)
        assert "ended" in repr(view)


@asynchronous
async def test_changes_of_a_view() -> None:
    """Whoever reads them late gets one for each key, from what was known to what is; what came and went is left out."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        await kv.put("k/a", "1")
        await kv.put("k/b", "1")
        async with await kv.view(prefix="k/") as view:
            changes = view.changes()
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            put = await kv.put("k/c", "1")
            first = await waiting
            assert (first.key, first.is_create) == (b"k/c", True)
            for key in ("k/a", "k/a", "k/flash"):
                put = await kv.put(key, "2")
            await kv.delete("k/flash")
            gone = await kv.delete("k/b")
            await view.at_least(gone.revision)
            found = [await anext(changes), await anext(changes)]
            assert [(change.key, change.is_delete) for change in found] == [(b"k/a", False), (b"k/b", True)]
            assert found[0].before is not None
            assert (found[0].before.text, found[0].after) == ("1", view["k/a"])
            assert put.revision < gone.revision
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            await view.close()
            await refused(waiting, errors.Closed)


@asynchronous
async def test_a_view_has_a_bound() -> None:
    """More keys than it may have are refused when it is opened, and end it when they come later."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        for key in ("k/a", "k/b"):
            await kv.put(key, "1")
        await refused(kv.view(prefix="k/", keys_max=1), errors.RequestTooLarge)
        async with await kv.view(prefix="k/", keys_max=2) as view:
            put = await kv.put("k/c", "1")
            await refused(view.at_least(put.revision + 1), errors.RequestTooLarge)
            assert not view.is_live


@asynchronous
async def test_a_view_that_has_ended_stays_as_it_was() -> None:
    """What is too much may be found by who waits, while the watch goes on: it changes nothing any more."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        await kv.put("k/a", "1")
        async with await kv.view(prefix="k/", keys_max=1) as view:
            assert isinstance(view, LiveView)
            kvs = [KeyValue(key, b"1", 2, 2, 1) for key in (b"k/a", b"k/b")]
            with pytest.raises(errors.RequestTooLarge):
                view._replace(RangeResult(2, kvs, more=False, count=2))
            await kv.delete("k/a")
            assert view._task is not None
            await asyncio.wait([view._task], timeout=5)
            assert contents(view) == {"k/a": "1", "k/b": "1"}
            await refused(view.at_least(100), errors.RequestTooLarge)


@asynchronous
async def test_a_view_ends_with_its_node() -> None:
    """When the node that it asks is closed the view says so, and keeps what it had."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        put = await kv.put("a", "1")
        view = await kv.view("a")
        await kv.close()
        await refused(view.at_least(put.revision + 1), errors.Closed)
        assert contents(view) == {"a": "1"}
        await view.close()


@asynchronous
async def test_a_view_outlives_compaction() -> None:
    """A view whose own revision was compacted while nothing happened to it still finds out how new it is."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        await kv.put("k/a", "1")
        async with await kv.view(prefix="k/") as view:
            for _ in range(5):
                put = await kv.put("other", "x")
            await kv.compact(put.revision)
            assert await view.at_least(put.revision, timeout=10.0) == put.revision
            assert contents(view) == {"k/a": "1"}


@asynchronous
async def test_a_watch_that_ends_is_begun_again() -> None:
    """A view whose watch was cancelled reads everything again, and tells its readers the difference."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        for key in "abc":
            await kv.put(f"k/{key}", "1")
        async with await kv.view(prefix="k/") as view:
            changes = view.changes()
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            member = kv._member
            assert member is not None
            (watch,) = member.watches._watches.values()
            member.watches.forget(watch)  # nothing reaches it any more
            await kv.put("k/a", "2")
            await kv.delete("k/b")
            put = await kv.put("k/d", "2")
            watch.end(errors.WatchCancelled("lagging", resume_revision=2, compact_revision=3))
            await view.at_least(put.revision, timeout=10.0)
            assert contents(view) == {"k/a": "2", "k/c": "1", "k/d": "2"}
            found: list[Change] = [await waiting, await anext(changes), await anext(changes)]
            assert {(change.key, change.is_create, change.is_delete) for change in found} == {
                (b"k/a", False, False),
                (b"k/b", False, True),
                (b"k/d", True, False),
            }
            await changes.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_views_under_faults(seed: int) -> None:
    """While members lose power and history is compacted, every state that a view shows is one that the store had."""

    async def write(kv: Engine, rng: random.Random, states: dict[int, dict[str, str]]) -> None:
        for number in range(150):
            key = f"k/{rng.randrange(8)}"
            try:
                if rng.random() < 0.3:
                    await kv.delete(key, timeout=20)
                elif rng.random() < 0.1:
                    await kv.compact((await kv.status()).revision, timeout=20)
                else:
                    await kv.put(key, str(number), timeout=20)
            except (errors.NotApplied, errors.MaybeApplied):
                continue
            found = await kv.range(prefix="k/", timeout=20)
            states[found.revision] = {each.key.decode(): each.text for each in found.kvs}
            await asyncio.sleep(0.05)

    async def main(sim: Simulation) -> None:
        rng = random.Random(seed)
        states: dict[int, dict[str, str]] = {}
        async with sim.client() as kv, sim.client() as other:
            await kv.put("k/0", "first", timeout=20)
            async with await kv.view(prefix="k/", timeout=20) as view:
                writing = asyncio.create_task(write(other, rng, states))
                seen: dict[int, dict[str, str]] = {}
                while not writing.done():
                    seen[view.revision] = contents(view)
                    if rng.random() < 0.01:
                        host = rng.choice(sim.members)
                        host.power_loss()
                        host.start()
                    await asyncio.sleep(0.02)
                await writing
                last = max(states)
                await view.at_least(last, timeout=60)
                seen[view.revision] = contents(view)
                assert contents(view) == states[last], seed
        common = seen.keys() & states.keys()
        assert len(common) > 20, (seed, len(common))
        assert {at: seen[at] for at in common} == {at: states[at] for at in common}, seed

    with Simulation(seed=seed) as sim:
        sim.run(main, until=300)
