"""Lease reads under pauses, suspends, drift, restarts and transfers: the hazards of `pyraftkv.node.lease`, acted out.

Every test lets a leader have a lease, lets others elect another leader and change a value, and then asks the first one,
before it can have heard of it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from pyraftkv import errors
from pyraftkv.core import Campaign
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.host import Host
from pyraftkv.sim.run import simulate
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, Workload, with_leases
from tests.sim.test_pitfalls import SECONDS_MAX, node_of, until
from tests.sim.test_simulation import leader_of

LEASED = with_leases(Swarm())
ELECTION_SECONDS = LEASED.config.election_timeout_seconds


def has_lease(host: Host) -> bool:
    """Whether the member there would answer by itself now."""
    return host.member is not None and host.member.freshness.has_lease


async def leased(sim: Simulation) -> tuple[Host, list[Host]]:
    """Wait for a leader that has a lease and a value to read under it; return it and the others."""
    leader = await leader_of(sim)
    await write(leader, "old")
    await until(lambda: has_lease(leader), sim)
    return leader, [host for host in sim.members if host is not leader]


async def write(host: Host, text: str) -> None:
    """Put the value, on one member."""
    await host.run(lambda _: node_of(host).put("x", text, timeout=20))


async def read(host: Host, *, seconds: float = 20.0) -> str:
    """Read the value under the lease, on one member."""
    kv = await host.run(lambda _: node_of(host).get("x", consistency="lease", timeout=seconds))
    assert kv is not None
    return kv.text


def cut(sim: Simulation, host: Host, *others: Host) -> None:
    """Let a member and others be out of each other's sight."""
    for other in others:
        sim.network.links.cut(host.name, other.name)
        sim.network.links.cut(other.name, host.name)


async def succeeded(sim: Simulation, old: Host) -> Host:
    """Wait until somebody else leads, and changes the value; return who."""
    await until(lambda: sim.leader not in (None, old), sim)
    new = sim.leader
    assert new is not None
    await write(new, "new")
    return new


def run(main: Any, *, seed: int = 41, swarm: Swarm = LEASED) -> Any:
    """Run a scenario on three members."""
    print("seed", seed)  # noqa: T201 - shown when the test fails
    with Simulation(seed=seed, swarm=swarm) as sim:
        return sim.run(main, until=SECONDS_MAX)


@pytest.mark.parametrize("sleep", ["pause", "freeze"])
def test_a_leader_that_slept_refuses_its_lease_before_it_hears_of_anything(sleep: str) -> None:
    """1. A leader with a lease is stopped, or sleeps with its whole machine; its monotonic clock stands still then.

    2. The others elect, and write. 3. What it does first when it wakes is to answer a read.
    """

    async def main(sim: Simulation) -> str:
        old, others = await leased(sim)
        getattr(old, sleep)()
        cut(sim, old, *others)
        await succeeded(sim, old)
        assert old.process is not None
        reading = old.process.spawn(node_of(old).get("x", consistency="lease", timeout=30))
        {"pause": old.resume, "freeze": old.thaw}[sleep]()
        await sim.sleep(0.2)
        assert node_of(old).is_leader, "as far as it knows"
        assert not reading.done()
        sim.network.links.heal_all()
        await until(reading.done, sim)
        kv = reading.result()
        assert kv is not None
        return kv.text

    assert run(main) == "new"


def test_a_leader_that_is_paused_while_its_answer_travels_was_right() -> None:
    """1. A leader looks at its clock and at its state, and is stopped before the answer is out.

    2. The others elect, and write. 3. The answer is the old value: it was the value while the call was under way.
    """

    async def main(sim: Simulation) -> list[str]:
        old, _ = await leased(sim)
        kv = sim.recorded(node_of(old), "reader")
        assert old.process is not None
        reading = old.process.spawn(kv.get("x", consistency="lease"))
        await asyncio.sleep(0)
        old.pause()
        new = await succeeded(sim, old)
        found = [await read(new)]
        old.resume()
        await until(reading.done, sim)
        got = reading.result()
        assert got is not None
        return [got.text, *found, await read(old)]

    assert run(main)[-2:] == ["new", "new"]


@pytest.mark.parametrize("within", [True, False])
def test_a_voter_whose_clock_is_fast_is_what_the_bound_is_for(within: bool) -> None:
    """1. The other members' clocks are fast, the leader's is slow, and it cannot hear that they elect another one.

    2. As far apart as the bound says, its lease is over before that. 3. Beyond the bound the read may be stale: that is
    the documented risk, and nothing can tell.
    """
    swarm = with_leases(Swarm(), drift=0.3)
    slowest, fastest = swarm.clock_rates

    async def main(sim: Simulation) -> bool:
        old, others = await leased(sim)
        for host in others:
            host.clock.set_rate(fastest if within else 6.0)
        old.clock.set_rate(slowest if within else 0.5)
        cut(sim, old, *others)
        await succeeded(sim, old)
        return has_lease(old)

    for seed in range(5):
        assert run(main, seed=seed, swarm=swarm) is not within


def test_a_voter_that_starts_again_keeps_the_promise_that_it_forgot() -> None:
    """1. A leader's lease rests on one voter; the third member has not heard of the leader for long.

    2. The voter starts again, out of the leader's sight, and the third asks it for its vote at once.
    """

    async def main(sim: Simulation) -> None:
        old, (voter, third) = await leased(sim)
        cut(sim, third, old)
        await sim.sleep(3 * ELECTION_SECONDS)
        assert has_lease(old)
        voter.kill()
        cut(sim, voter, old)
        voter.start()
        lost = False
        while not lost:
            if third.member is not None:
                third.member.inbox.put(Campaign())
            await sim.sleep(0.02)
            lost = not has_lease(old)
            assert sim.leader is old or lost, "nobody else leads while it has its lease"
        new = await succeeded(sim, old)
        assert not has_lease(old)
        assert await read(new) == "new"

    for seed in range(3):
        run(main, seed=seed)


def test_a_leader_that_hands_over_gives_its_lease_up() -> None:
    """Before anybody can be elected by its wish; and the next leader's lease is its own."""

    async def main(sim: Simulation) -> None:
        old, (heir, _) = await leased(sim)
        handing = asyncio.ensure_future(old.run(lambda _: node_of(old).transfer_leadership(heir.name)))
        while not handing.done():
            await sim.sleep(0.0005)
            assert not (has_lease(old) and has_lease(heir))
            assert sim.leader is old or not has_lease(old)
        await until(lambda: has_lease(heir), sim)
        assert await read(old) == await read(heir) == "old"

    run(main)


def test_a_transfer_that_failed_leaves_no_lease_in_its_term() -> None:
    """1. A leader tells another member to campaign; that is lost, or late. 2. It leads on, without a lease."""

    async def main(sim: Simulation) -> None:
        old, (heir, other) = await leased(sim)
        cut(sim, old, heir)
        with suppress(errors.LeadershipNotTransferred):
            await old.run(lambda _: node_of(old).transfer_leadership(heir.name))
        await sim.sleep(3 * ELECTION_SECONDS)
        assert sim.leader is old
        assert not has_lease(old)
        assert await read(old) == "old"
        await old.run(lambda _: node_of(old).transfer_leadership(other.name))
        await until(lambda: has_lease(other), sim)

    run(main)


BUSY = with_leases(
    Swarm(workload=Workload(keys=1, operations_per_second=60.0, mix={"put": 4.0, "get": 1.0}, request_seconds=0.5))
)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_leader_that_is_cut_off_reads_nothing_that_others_have_changed(seed: int) -> None:
    """It believes to lead for a moment when another one does already, and is asked often just then."""
    simulate(seed, seconds=6.0, swarm=BUSY, faults=[Fault(0.5, "isolate_leader", ("leader",), 2.4)])


def test_runs_with_leases_are_linearizable_whatever_befalls_them() -> None:
    """Pauses, suspends, jumps, drift up to the bound, restarts and transfers, and every read is checked."""
    kinds = ("pause", "pause_leader", "suspend", "suspend_leader", "fast_clock", "slow_clock", "jump_clock")
    more = ("kill_leader", "restart_storm", "transfer", "isolate_leader", "partition")
    for seed in (60, 61):
        swarm = Swarm(
            workload=Workload(keys=2, operations_per_second=60.0, mix={"put": 2.0, "get": 5.0}),
            kinds=(*kinds, *more),
            faults_per_second=1.5,
        )
        simulate(seed, seconds=10.0, swarm=with_leases(swarm, drift=0.2, share=0.7))
