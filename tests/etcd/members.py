"""Three members of a real etcd, as processes on loopback, for as long as a test needs them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.bench.harness import Missing
from tests.bench.peer_etcd import START_SECONDS_MAX, cluster, healthy
from tests.etcd.gateway import Gateway

__all__ = ["TTL_MIN_SECONDS", "Missing", "running"]

MEMORY = Path("/dev/shm")
"""Where there is one, their data is there: what is compared is what they answer, not how their disks are."""

CALM = ("--heartbeat-interval=300", "--election-timeout=3000")
"""No leader is deposed because the machine is busy: a test does one thing at a time, and would take it for an error."""


TTL_MIN_SECONDS = 5
"""No lease is shorter there: one and a half times the election timeout, rounded up."""


@contextmanager
def running() -> Iterator[int]:
    """Start three members, with nothing in them; yield the port of the one that leads. Raises `Missing`."""
    directory = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="pyraftkv-etcd-", dir=directory, ignore_cleanup_errors=True) as path,
        cluster(Path(path), *CALM) as (ports, _),
    ):
        asyncio.run(_all_healthy(ports))
        yield next(filter(_leads, ports))


async def _all_healthy(ports: list[int]) -> None:
    async with asyncio.timeout(START_SECONDS_MAX):
        for port in ports:
            await healthy(port)


def _leads(port: int) -> bool:
    with closing(Gateway(port)) as gateway:
        status = gateway.call("/v3/maintenance/status", {})
        return status["leader"] == status["header"]["member_id"]
