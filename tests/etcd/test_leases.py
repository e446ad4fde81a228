"""A lease that nobody keeps ends there as here: in its time, in one revision, its keys in their order, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import closing

from pyraftkv.errors import LeaseNotFound
from pyraftkv.store.commands import GrantLease, PutKey
from pyraftkv.store.values import Event, EventType
from tests.etcd.gateway import Gateway, WatchStream
from tests.etcd.members import TTL_MIN_SECONDS
from tests.node.support import asynchronous, cluster_of, refused, take
from tests.store.world import outcome

LEASE = 7
PUTS = [(b"c", LEASE), (b"a", LEASE), (b"stays", 0), (b"b", LEASE), (b"moved", LEASE), (b"moved", 0)]
ENDED = [b"a", b"b", b"c"]
EVENTS = len(PUTS) + len(ENDED)


async def timed(events: Awaitable[list[Event]]) -> tuple[list[Event], float]:
    """Return what is awaited, and when it came."""
    return await events, asyncio.get_running_loop().time()


@asynchronous
async def test_a_lease_that_nobody_keeps(fresh_etcd: int) -> None:
    """Its keys vanish together and not before its time; those that left it stay. Afterwards there is no such lease."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        with closing(Gateway(fresh_etcd)) as etcd, closing(WatchStream(fresh_etcd, b"\0", b"\0")) as stream:
            async with kv.watch(b"\0", b"\0") as watch:
                await watch.synced()
                began = asyncio.get_running_loop().time()
                granted = await kv.leases.grant(TTL_MIN_SECONDS, id=LEASE)
                assert granted == etcd.apply(GrantLease(LEASE, TTL_MIN_SECONDS))
                for key, lease in PUTS:
                    assert await kv.put(key, b"", lease=lease) == etcd.apply(PutKey(key, b"", lease))
                info = await kv.leases.time_to_live(LEASE, keys=True)
                assert (info.granted_ttl, info.keys) == etcd.lease(LEASE) == (TTL_MIN_SECONDS, ENDED)
                (ours, here), (theirs, there) = await asyncio.gather(
                    timed(take(watch, EVENTS)), timed(asyncio.to_thread(stream.take, EVENTS))
                )
            assert ours == theirs
            assert [(event.type, event.kv.key) for event in ours[-3:]] == [(EventType.DELETE, key) for key in ENDED]
            assert min(here, there) - began >= TTL_MIN_SECONDS
            assert outcome(etcd.apply, PutKey(b"a", b"", LEASE)) is LeaseNotFound
            await refused(kv.put("a", "", lease=LEASE), LeaseNotFound)
            assert etcd.leases() == set(await kv.leases.list()) == set()
