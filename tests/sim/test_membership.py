"""Members that come and go while something goes wrong: stories that were found by seeds, or seen elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv.core.membership import Transition
from pyraftkv.protocol import RemoveMember
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, Workload
from tests.sim.test_pitfalls import SECONDS_MAX, until, write
from tests.sim.test_simulation import leader_of

SPARE = Swarm(spares=2, workload=Workload(clients=2, operations_per_second=40.0))


def run(main, *, seed: int, members: int = 3) -> Simulation:
    """Run a story in a cluster with two machines to spare; every rule is checked at the end once more."""
    with Simulation(seed=seed, swarm=SPARE, members=members) as sim:
        sim.run(main, until=SECONDS_MAX)
        sim.check_images()
        sim.check()
    return sim


def voters(sim: Simulation) -> set[str]:
    """Return the machines whose members vote, as of the last change that anybody has applied."""
    latest = sim.invariants.configurations.latest
    assert not latest.is_joint
    return {name for name, record in sim.invariants.members.items() if record.id in latest.voters}


def votes(sim: Simulation, *names: str) -> bool:
    """Whether these machines' members vote."""
    latest = sim.invariants.configurations.latest
    return all(sim.invariants.members[name].id in latest.voters for name in names)


# --- Coming and going ----------------------------------------------------------------------------------------------


def test_one_grows_to_five_and_back_under_load() -> None:
    """Each machine joins by itself, as a learner that asks for its vote; the first members are removed."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        loading = asyncio.get_running_loop().create_task(write(sim, 60))
        for name in ("n2", "n3", "n4", "n5"):
            sim.renew(name).start()
            await until(lambda name=name: votes(sim, name), sim)
        async with sim.client() as kv:
            for name in ("n1", "n2", "n3", "n4"):
                await kv.members.remove(name, timeout=20)
        assert voters(sim) == {"n5"}
        await loading
        await write(sim, 3)

    swarm = Swarm(spares=4)
    with Simulation(seed=61, swarm=swarm, members=1) as sim:
        sim.run(main, until=SECONDS_MAX)
        sim.check_images()
        sim.check()


def test_a_member_that_took_a_name_over_starts_again() -> None:
    """Its log begins with the first members, one of whom was called so; it is younger than these."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        host = sim.hosts["n1"]
        host.wipe()
        async with sim.client() as kv:
            await kv.members.replace("n1", timeout=20)
        sim.renew("n1").start()
        await until(lambda: host.member is not None and host.member.raft.applied > 3, sim)
        host.kill()
        host.start()
        await until(lambda: host.member is not None and host.member.raft.applied > 3, sim)

    sim = run(main, seed=62)
    assert sim.invariants.members["n1"].id == 4


def test_who_joins_waits_until_a_joint_configuration_is_left() -> None:
    """It is refused as long as that lasts, and asks again."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        async with sim.client() as kv:
            ids = {member.name: member.id for member in await kv.members.list(timeout=20)}
            await kv.members.change([RemoveMember(ids["n3"])], transition=Transition.EXPLICIT)
            sim.renew("n4").start()
            await sim.sleep(3)
            assert sim.invariants.configurations.latest.is_joint
            await kv.members.leave_joint()
            await until(lambda: votes(sim, "n4"), sim)
        assert voters(sim) == {"n1", "n2", "n4"}

    run(main, seed=63)


# --- A leader that is lost in the middle of a joint change -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["kill", "isolate", "pause", "power_loss"])
@pytest.mark.parametrize("transition", [Transition.JOINT, Transition.EXPLICIT])
def test_a_leader_is_lost_between_entering_and_leaving(kind: str, transition: Transition) -> None:
    """Exactly when the first member has entered it. Another leader finishes what it finds, or is told to."""

    async def change(sim: Simulation) -> None:
        async with sim.client() as kv:
            ids = {member.name: member.id for member in await kv.members.list(timeout=20)}
            await kv.members.change([RemoveMember(ids["n1"])], transition=transition, timeout=30)

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        sim.renew("n4").start()
        await until(lambda: votes(sim, "n4"), sim)
        changing = asyncio.get_running_loop().create_task(change(sim))
        while not sim.invariants.configurations.latest.is_joint:
            await sim.sleep(0.0005)
        leader = await leader_of(sim)
        sim.inject([Fault(0.0, kind, (leader.name,), 6.0)])
        await until(lambda: sim.leader not in (None, leader), sim)
        await changing
        if transition is Transition.EXPLICIT:
            assert sim.invariants.configurations.latest.is_joint
            async with sim.client() as kv:
                await kv.members.leave_joint(timeout=20)
        await until(lambda: not sim.invariants.configurations.latest.is_joint, sim)
        await sim.sleep(7)
        await write(sim, 3)
        assert voters(sim) == {"n2", "n3", "n4"}

    run(main, seed=64)
