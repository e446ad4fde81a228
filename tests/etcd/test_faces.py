"""Every option of etcd can be asked of every face of a cluster, and is answered as etcd does."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from random import Random
from typing import Any

from pyraftkv.engine import Engine
from pyraftkv.errors import PyraftkvError
from pyraftkv.kv import Watch
from pyraftkv.store.commands import (
    Compact,
    DeleteRange,
    GrantLease,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
)
from pyraftkv.store.values import Event
from tests.etcd.differences import as_etcd_says, avoided
from tests.etcd.gateway import Gateway, WatchStream
from tests.etcd.pair import RECENT_REVISIONS, varied
from tests.node.support import asynchronous, cluster_of, until
from tests.store import generators
from tests.store.watching import WatchRules
from tests.store.world import outcome

OPERATIONS = 800
SEED = 7
WATCHED: list[tuple[tuple[bytes, bytes], dict[str, bool]]] = [
    ((b"a", b"c"), {}),
    ((b"b", b""), {"prev_kv": True}),
    ((b"\0", b"\0"), {"no_put": True, "prev_kv": True}),
    ((b"aa", b"c"), {"no_delete": True}),
]


async def ask(kv: Engine, request: Any) -> Any:
    """Ask through the methods and options that an application has; return the answer, or the type of the error."""
    try:
        if isinstance(request, PutKey):
            options = {name: getattr(request, name) for name in ("lease", "prev_kv", "ignore_value", "ignore_lease")}
            return await kv.put(request.key, request.value, **options)
        if isinstance(request, DeleteRange):
            return await kv.delete(request.key, request.end or None, prev_kv=request.prev_kv)
        if isinstance(request, Transaction):
            return await kv.txn().when(*request.compares).then(*request.success).otherwise(*request.failure)
        if isinstance(request, Compact):
            return await kv.compact(request.revision)
        if isinstance(request, GrantLease):
            return await kv.leases.grant(request.ttl, id=request.id)
        if isinstance(request, RevokeLease):
            return await kv.leases.revoke(request.id)
        assert isinstance(request, RangeQuery)
        return await kv.range(
            request.key,
            request.end,
            revision=request.revision,
            limit=request.limit,
            sort=request.sort_target,
            order=request.sort_order,
            keys_only=request.keys_only,
            count_only=request.count_only,
            min_mod_revision=request.min_mod_revision,
            max_mod_revision=request.max_mod_revision,
            min_create_revision=request.min_create_revision,
            max_create_revision=request.max_create_revision,
        )
    except PyraftkvError as error:
        return type(error)


def random_request(rng: Random, revision: int) -> Any:
    """Return a command or a query of a store that is at a revision."""
    base = max(0, revision - RECENT_REVISIONS)
    if rng.random() < 0.02:
        return Compact(revision - rng.choice([0, 1, 10, 20, -1]))
    put, delete, transaction, query = generators.put, generators.delete, generators.transaction, generators.query
    make = rng.choice([put, delete, transaction, query, query, generators.lease_command])
    request = varied(rng, make(rng), base)
    if isinstance(request, RangeQuery):
        request = replace(request, revision=rng.choice([0, 0, -1, revision - 2, revision, revision + 1]))
    return request


def is_askable(request: Any) -> bool:
    """Tell whether both understand the same by it: to the methods, an empty key is the first of all keys."""
    return not avoided(request) and not isinstance(request, PutBatch) and getattr(request, "key", b"k") != b""


async def collect(watch: Watch, events: list[Event], rules: WatchRules) -> None:
    """Keep what a watch gives."""
    async for batch in watch.batches():
        rules.check(batch)
        events += batch.events


async def look_at_leases(kv: Engine, etcd: Gateway) -> None:
    """Compare which leases there are, for how long, and which keys hang on them."""
    assert set(await kv.leases.list()) == etcd.leases()
    for lease in generators.LEASES:
        info = await kv.leases.time_to_live(lease, keys=True)
        assert (info.granted_ttl, info.keys) == etcd.lease(lease)


@asynchronous
async def test_every_face_answers_as_etcd_does(fresh_etcd: int) -> None:
    """Asked through the leader, a follower or a client, in turns: the same answers, revisions, errors and events."""
    rng = Random(SEED)
    met: Counter[str] = Counter()
    revision = 1
    async with cluster_of(3, election_timeout_seconds=1.0) as cluster, AsyncExitStack() as stack:
        etcd = stack.enter_context(closing(Gateway(fresh_etcd)))
        faces = [cluster.leader, *cluster.followers, cluster.client()]
        watched: list[tuple[Watch, list[Event], WatchStream]] = []
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for (key, end), flags in WATCHED:
            watch = await stack.enter_async_context(faces[len(watched)].watch(key, end or None, **flags))
            await watch.synced()
            stream = stack.enter_context(closing(WatchStream(fresh_etcd, key, end, **flags)))
            watched.append((watch, [], stream))
            collecting = collect(watch, watched[-1][1], WatchRules(key, end, **flags))
            stack.callback(tasks.create_task(collecting).cancel)
        last = [PutKey(b"b", b""), DeleteRange(b"b")]  # each watch leaves out one of them at most
        for number in range(OPERATIONS):
            request = random_request(rng, revision) if number < OPERATIONS - 2 else last[number - OPERATIONS]
            if not is_askable(request):
                continue
            call = etcd.read if isinstance(request, RangeQuery) else etcd.apply
            theirs = await asyncio.to_thread(outcome, call, request)
            ours = as_etcd_says(request, await ask(rng.choice(faces), request), theirs, met)
            assert ours == theirs, f"seed {SEED}, operation {number}: {request}"
            revision = getattr(theirs, "revision", revision)
        for _, events, stream in watched:
            await until(lambda events=events: events and events[-1].kv.mod_revision >= revision - 1)
            assert events == await asyncio.to_thread(stream.take, len(events))
        await look_at_leases(rng.choice(faces), etcd)
