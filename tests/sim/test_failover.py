"""How long a cluster is without a leader when its process dies, and that nothing less than that costs a leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median

from pyraftkv.node import NodeConfig
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm
from tests.sim.test_pitfalls import is_level, node_of, until
from tests.sim.test_simulation import leader_of
from tests.sim.test_watchdog import hold_up

KILLS = 20
MINUTES, MINUTES_SOAK = 1, 60


def test_a_leader_whose_process_dies_is_succeeded_within_half_a_second(report: Callable[[str], None]) -> None:
    """From the kill to a write that a client has acknowledged, with the defaults: an election timeout is no part of it.

    The members' lanes to the dead process break, a dial is refused, somebody stands. Its client dials another member.
    """

    async def main(sim: Simulation) -> list[float]:
        took = []
        async with sim.client(timeout=20) as kv:
            for number in range(KILLS):
                leader = await leader_of(sim)
                await kv.put("round", str(number))
                leader.kill()
                begun = sim.now()
                await kv.put("round", f"{number} again")
                took.append(sim.now() - begun)
                leader.start()
                await until(lambda: is_level(sim), sim)
        return took

    with Simulation(seed=7) as sim:
        took = sim.run(main, until=600)
    report(f"failover of {KILLS} kills in virtual time: median {median(took):.3f} s, longest {max(took):.3f} s")
    assert median(took) < 0.2
    assert max(took) < 0.5


def test_a_leader_that_starts_again_at_once_is_not_waited_for() -> None:
    """Nobody is refused, for the address answers again at once: but who has started leads nobody."""

    async def main(sim: Simulation) -> float:
        leader = await leader_of(sim)
        term = node_of(leader).term
        leader.kill()
        leader.start()
        begun = sim.now()
        while sim.leader is None or node_of(sim.leader).term == term:
            await sim.sleep(0.01)
        return sim.now() - begun

    with Simulation(seed=8) as sim:
        assert sim.run(main, until=60) < 0.5


def test_who_has_never_promised_anything_waits_for_nobody_after_a_start() -> None:
    """The power fails everywhere and comes back. Without leases no member owes a leader of before an election timeout.

    With leases each does, for one that still runs may be reading by its promise.
    """

    async def main(sim: Simulation) -> float:
        await leader_of(sim)
        await until(lambda: is_level(sim), sim)
        for host in sim.members:
            host.power_loss()
        for host in sim.members:
            host.start()
        begun = sim.now()
        while sim.leader is None:
            await sim.sleep(0.01)
        return sim.now() - begun

    def seconds(*, lease_reads: bool) -> float:
        with Simulation(seed=3, swarm=Swarm(config=NodeConfig(lease_reads=lease_reads))) as sim:
            return sim.run(main, until=60)

    assert seconds(lease_reads=False) < 0.6
    assert seconds(lease_reads=True) > 1.0


def test_nothing_less_than_its_end_costs_a_leader(soak: bool, report: Callable[[str], None]) -> None:
    """Processes pause for up to 300 ms, connections break, clients write: not one election.

    The leader's host program holds its loop for 40 ms in every 100, all the while.
    A break is no refusal, a pause ends no connection, and what is late is still within the election timeout.
    """
    minutes = MINUTES_SOAK if soak else MINUTES

    async def main(sim: Simulation) -> tuple[int, int]:
        leader = await leader_of(sim)
        await until(lambda: is_level(sim), sim)
        term = node_of(leader).term
        random, faults, at = sim.random("nuisances"), [], 0.0
        names = [host.name for host in sim.members]
        while at < 60 * minutes:
            at += random.uniform(0.5, 4)
            if random.random() < 0.6:
                faults.append(Fault(at, "pause", (random.choice(names),), random.uniform(0.05, 0.3)))
            else:
                faults.append(Fault(at, random.choice(("reset", "reset_leader")), seed=random.getrandbits(32)))
        sim.inject(faults)
        busy = asyncio.ensure_future(hold_up(sim, leader, stopped=0.04, running=0.06))
        written = 0
        async with sim.client(timeout=20) as kv:
            while sim.now() < 60 * minutes:
                await kv.put("k", str(written))
                written += 1
                await sim.sleep(0.05)
        busy.cancel()
        assert (sim.leader, node_of(leader).term) == (leader, term)
        return written, len(faults)

    with Simulation(seed=9) as sim:
        written, faults = sim.run(main, until=60 * minutes + 60)
    report(f"{minutes} virtual minutes without an election: {faults} pauses and resets, {written} writes")
    assert written > 600 * minutes
