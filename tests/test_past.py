"""Time travel: the versions of a key and the difference between two revisions, on every face."""

from __future__ import annotations

from pathlib import Path

from pyraftkv import EventType, errors
from pyraftkv.engine import Engine
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


async def told(kv: Engine, key: str, **options: object) -> list[tuple[bytes | None, int]]:
    """Return value and revision of each version; None where the key was deleted."""
    return [
        (event.kv.value if event.type is EventType.PUT else None, event.kv.mod_revision)
        async for event in kv.history(key, **options)  # type: ignore[arg-type]
    ]


@faces
@asynchronous
async def test_the_history_of_a_key(face: str, tmp_path: Path) -> None:
    """Every version comes once, in pages of any size, from either end; deletions are marked."""
    async with open_face(face, tmp_path) as kv:
        first = (await kv.put("a", "1")).revision
        await kv.put("b", "elsewhere")
        await kv.put("a", "2")
        await kv.delete("a")
        await kv.put("a", "3")
        await kv.put("a", "4")
        whole = [(b"1", first), (b"2", first + 2), (None, first + 3), (b"3", first + 4), (b"4", first + 5)]
        for page in (1, 2, 1000):
            assert await told(kv, "a", page=page) == whole
            assert await told(kv, "a", page=page, newest_first=True) == whole[::-1]
        assert await told(kv, "a", min_revision=first + 1, max_revision=first + 3) == whole[1:3]
        assert await told(kv, "nothing") == []
        await kv.compact(first + 4)
        assert await told(kv, "a", page=1) == whole[3:]
        assert [event.kv.key async for event in kv.history("b")] == [b"b"]
        await refused(told(kv, "a", min_revision=first), errors.Compacted)
        await refused(told(kv, "a", max_revision=first + 99), errors.FutureRevision)
        await refused(told(kv, ""), errors.InvalidRequest)


@faces
@asynchronous
async def test_the_difference_between_revisions(face: str, tmp_path: Path) -> None:
    """What was created, changed and deleted comes with both values; what came and went does not; pages hide nothing."""
    async with open_face(face, tmp_path) as kv:
        app = kv.namespace("app/")
        await app.put("kept", "same")
        await app.put("changed", "old")
        older = (await app.put("deleted", "gone")).revision
        await app.put("flash", "x")
        await app.delete("flash")
        await app.put("changed", "new")
        await app.delete("deleted")
        await kv.put("other", "x")
        newer = (await app.put("created", "fresh")).revision
        await app.put("later", "x")
        for page in (1, 1000):
            found = [
                (change.key, change.before and change.before.value, change.after and change.after.value)
                async for change in app.diff(older, newer, page=page)
            ]
            assert found == [(b"changed", b"old", b"new"), (b"deleted", b"gone", None), (b"created", None, b"fresh")]
        assert [change.key async for change in kv.diff(older, newer, prefix="o")] == [b"other"]
        assert [change.is_create async for change in kv.diff(older, prefix="app/l")] == [True]
        assert [change async for change in kv.diff(newer, newer)] == []
        await kv.compact(newer)
        await refused(_all(kv, older), errors.Compacted)
        await refused(_all(kv, newer + 99), errors.InvalidRequest)
        assert [change.key for change in await _all(kv, newer)] == [b"app/later"]


async def _all(kv: Engine, older: int) -> list:
    return [change async for change in kv.diff(older)]


@asynchronous
async def test_history_goes_on_with_another_member() -> None:
    """A client whose member dies in the middle of a history reads on with another one, and misses nothing."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        for number in range(30):
            await kv.put("a", str(number))
            await kv.put(f"k/{number}", "x")
        seen = []
        async for event in kv.history("a", page=7, timeout=20.0):
            seen.append(event.kv.text)
            if len(seen) == 10:
                await cluster.kill(cluster.leader)
                await cluster.wait_for_leader()
        assert seen == [str(number) for number in range(30)]
        keys = [change.key async for change in kv.diff(1, prefix="k/", page=4, timeout=20.0)]
        assert keys == [f"k/{number}".encode() for number in range(30)]
