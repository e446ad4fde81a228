"""The clients: they ask for everything, at the rate they are told, on the keys they are told, and come to an end."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from pyraftkv.sim.check import check_watches, replay
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import OPERATIONS, Swarm, Workload
from pyraftkv.sim.workload import PREFIX, Source, Watcher

LOAD = Workload(keys=3, mix=dict.fromkeys(OPERATIONS, 1.0))


async def work(sim: Simulation) -> int:
    """Let one source ask for five seconds while a watcher looks on; return the last revision."""
    over, last = [False], [0]
    async with sim.client() as client:
        kv = sim.recorded(client, "tester")
        source = Source(kv, "s", LOAD, rate=50.0, random=Random(1), is_over=lambda: over[0], may_sweep=lambda: True)
        watcher = Watcher(kv, random=Random(2), is_over=lambda: over[0], last_revision=lambda: last[0])
        asking, watching = asyncio.create_task(source.run()), asyncio.create_task(watcher.run())
        await sim.sleep(5.0)
        over[0] = True
        await asking
        last[0] = (await kv.put(f"{PREFIX}end", "")).revision
        await asyncio.wait_for(watching, 5.0)
    return last[0]


def test_a_source_asks_for_everything_and_a_watcher_sees_it_all() -> None:
    """About fifty times a second, each value once; the history is right, and the watch has shown its last event."""
    with Simulation(seed=12, swarm=Swarm(workload=LOAD)) as sim:
        last = sim.run(work, until=60)
        history = sim.history
    kinds = Counter(type(op.request).__name__ for op in history.ops)
    assert set(kinds) >= {"PutKey", "RangeQuery", "DeleteRange", "Transaction"}
    assert 150 < len(history.ops) < 450
    replayed = replay(history)
    assert replayed.verdict.ok, replayed.verdict
    verdict = check_watches(history, replayed)
    assert verdict.ok, verdict
    assert max(each.events[-1].kv.mod_revision for w in history.watches for each in w.deliveries if each.events) == last
