"""Leases as their holders have them; what becomes of them under faults is in `tests.sim.test_store_leases`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyraftkv import errors
from pyraftkv.leases import Leasing
from pyraftkv.store.commands import Command, LeaseQuery
from pyraftkv.store.values import LeaseAnswer, LeaseGranted, Result
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


class Failing(Leasing):
    """An engine that grants leases of a short time, and then raises whatever it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.asked = 0
        self._error = error

    async def write(self, command: Command, timeout: float | None) -> Result:
        return LeaseGranted(1, 7, 1)

    def draw_lease_id(self) -> int:
        return 7

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        self.asked += 1
        raise self._error


@pytest.mark.parametrize(
    ("error", "is_asked_again"),
    [
        (errors.ReadTimeout("nobody answers"), True),
        (errors.ConnectionLost("the connection broke"), True),
        (errors.StorageFailed("the disk broke"), True),
        (errors.LeaseNotFound("it is gone"), False),
        (LookupError("a bug"), False),
    ],
    ids=lambda value: type(value).__name__,
)
@asynchronous
async def test_whatever_ends_the_renewals_the_holder_is_told(error: Exception, is_asked_again: bool) -> None:
    """Its block would otherwise go on for ever, as if nothing had happened."""
    engine = Failing(error)
    with pytest.raises(errors.LeaseLost):
        async with engine.lease(ttl=1) as lease, asyncio.timeout(5):
            await lease.lost.wait()
    assert (engine.asked > 1) is is_asked_again


@asynchronous
async def test_a_lease_is_held_by_one_block() -> None:
    """A second one is refused, in the first and after it: nobody would end the renewals of the first."""
    async with cluster_of(1) as cluster:
        lease = cluster.leader.lease(ttl=100)
        async with lease:
            await refused(lease.__aenter__(), errors.InvalidRequest)
            lease.check()
        await refused(lease.__aenter__(), errors.InvalidRequest)
        assert await cluster.leader.leases.list() == []


@faces
@asynchronous
async def test_an_id_that_no_lease_can_have_is_refused(face: str, tmp_path: Path) -> None:
    """Whichever member is asked."""
    async with open_face(face, tmp_path) as kv:
        for lease in (-1, 1 << 63, 1 << 70, "7"):
            await refused(kv.leases.time_to_live(lease), errors.InvalidRequest)  # type: ignore[arg-type]
            await refused(kv.leases.keep_alive(lease), errors.InvalidRequest)  # type: ignore[arg-type]
        assert (await kv.leases.time_to_live((1 << 63) - 1)).ttl == -1
