"""What leaders do for their cluster, over leaders that die and leaders that change: quota, alarms, compaction."""

from __future__ import annotations

import asyncio
from typing import Any

from pyraftkv import errors
from pyraftkv.kv import KV
from pyraftkv.node import NodeConfig
from pyraftkv.settings import AlarmKind, CompactionMode, Settings
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import KIB, Swarm
from tests.sim.test_pitfalls import SECONDS_MAX, until
from tests.sim.test_simulation import leader_of

PERIOD_SECONDS = 6


def run(main: Any, settings: Settings, *, seed: int) -> Any:
    """Run a scenario on three members of a cluster with these settings."""
    print("seed", seed)  # noqa: T201 - shown when the test fails
    with Simulation(seed=seed, swarm=Swarm(config=NodeConfig(settings=settings))) as sim:
        return sim.run(main, until=SECONDS_MAX)


async def put_fails(kv: KV) -> bool:
    """Put; return whether there was no room. Nobody may be told that it is unknown, or that it is full by halves."""
    try:
        await kv.put("k", b"v" * KIB, timeout=20)
    except errors.NoSpace:
        return True
    return False


def test_an_alarm_outlives_the_leader_that_raised_it_and_is_cleared_by_another() -> None:
    """1. A leader raises NOSPACE and loses power. 2. The next one refuses puts as well, with the alarm in its log.

    3. There is room again. 4. The new leader clears the alarm, the old one comes back, and knows of it.
    """

    async def main(sim: Simulation) -> list[AlarmKind]:
        old = await leader_of(sim)
        async with sim.client() as kv:
            while not await put_fails(kv):
                await sim.sleep(0.01)
            old.power_loss()
            await until(lambda: sim.leader not in (None, old), sim)
            assert await put_fails(kv)
            assert [alarm.kind for alarm in await kv.alarms.list(timeout=20)] == [AlarmKind.NOSPACE]
            deleted = await kv.delete("k", timeout=20)
            await kv.compact(deleted.revision, timeout=20)
            while await put_fails(kv):
                await sim.sleep(0.05)
            old.start()
            await until(lambda: old.member is not None and old.member.replica.store.revision > 2, sim)
            assert old.member is not None
            await until(lambda: old.member is not None and old.member.replica.rules.is_quiet, sim)
            return [alarm.kind for alarm in await kv.alarms.list(timeout=20)]

    assert run(main, Settings(quota_bytes=32 * KIB, compaction_mode=CompactionMode.OFF), seed=3) == []


def test_history_is_compacted_although_no_leader_lasts_a_period() -> None:
    """Every member has taken notes; and nobody compacts what is not a period old."""

    async def main(sim: Simulation) -> int:
        await leader_of(sim)
        revisions: list[tuple[float, int]] = []
        async with sim.client() as kv:

            async def write() -> None:
                while True:
                    revisions.append((sim.now(), (await kv.put("k", "v", timeout=20)).revision))
                    await sim.sleep(0.1)

            writing = asyncio.create_task(write())
            for _ in range(10):
                await sim.sleep(2.0)
                await kv.transfer_leadership(timeout=20)
                status = await kv.status()
                old = [revision for at, revision in revisions if at <= sim.now() - PERIOD_SECONDS]
                assert status.compact_revision <= max(old, default=0) + 1
            writing.cancel()
            return status.compact_revision

    assert run(main, Settings(compaction_seconds=PERIOD_SECONDS), seed=4) > 50
