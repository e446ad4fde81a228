"""Members that come and go while something goes wrong: stories that were found by seeds, or seen elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from pyraftkv import errors
from pyraftkv.core.membership import Transition
from pyraftkv.protocol import AddMember, DemoteMember, RemoveMember
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import KIB, Swarm
from tests.sim.test_pitfalls import CRAMPED, SECONDS_MAX, SMALL, node_of, snapshots_to, until, write
from tests.sim.test_simulation import leader_of

SPARE = Swarm(spares=2)


def run(
    main: Callable[[Simulation], Coroutine[Any, Any, None]], *, seed: int, members: int = 3, swarm: Swarm = SPARE
) -> Simulation:
    """Run a story in a cluster with machines to spare; every rule is checked at the end once more."""
    with Simulation(seed=seed, swarm=swarm, members=members) as sim:
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

    run(main, seed=61, members=1, swarm=Swarm(spares=4))


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


def test_everybody_restarts_in_a_joint_configuration() -> None:
    """camunda#61854: it is what it was afterwards, an explicit one too, and can be left."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        async with sim.client() as kv:
            ids = {member.name: member.id for member in await kv.members.list(timeout=20)}
            await kv.members.change([DemoteMember(ids["n1"])], transition=Transition.EXPLICIT)
            sim.inject([Fault(0.0, "power_loss_all", (), 0.5), Fault(1.0, "kill_all", (), 0.1)])
            await sim.sleep(2)
            await write(sim, 3)
            assert sim.invariants.configurations.latest.is_joint
            await kv.members.leave_joint(timeout=20)
            roles = {member.name: member.role for member in await kv.members.list(timeout=20)}
        assert roles == {"n1": "learner", "n2": "voter", "n3": "voter"}

    run(main, seed=65)


# --- Removals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3])
def test_a_leader_is_removed_and_cut_off_with_the_news(members: int) -> None:
    """etcd#10563, etcd#11038: it hands over or steps down; whoever stays goes on, though little gets through."""

    async def remove(sim: Simulation, name: str) -> None:
        async with sim.client() as kv:
            await kv.members.remove(name, timeout=30)

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        await write(sim, 3)
        sim.inject([Fault(0.0, "lose", (), 8.0, 0.4, seed=7)])
        removing = asyncio.get_running_loop().create_task(remove(sim, leader.name))
        await until(lambda: sim.invariants.is_gone(leader.name), sim)
        sim.inject([Fault(0.0, "mute", (leader.name,), 3.0)])
        await removing
        await write(sim, 3)
        await until(lambda: not leader.is_up, sim)
        assert voters(sim) == {host.name for host in sim.members[:members] if host is not leader}

    run(main, seed=66, members=members)


def test_a_removed_member_that_is_started_again_disturbs_nobody() -> None:
    """etcd#9333: it was away when it was removed. It is told, stops for good, and no term is lost."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        gone = next(host for host in sim.members[:3] if host is not leader)
        gone.kill()
        async with sim.client() as kv:
            await kv.members.remove(gone.name, timeout=20)
        await write(sim, 3)
        term = node_of(leader).term
        for _ in range(2):
            gone.start()
            await until(lambda: not gone.is_up, sim)
        sim.inject([Fault(0.0, "isolate", (gone.name,), 6.0)])
        gone.start()
        await sim.sleep(12)
        assert not gone.is_up
        assert [node_of(host).term for host in sim.members[:3] if host is not gone] == [term] * 2
        assert sim.leader is leader

    run(main, seed=67)


def test_a_member_that_was_never_there_is_not_counted_as_active() -> None:
    """It is in the configuration, its machine is not on yet: with it alone beside the leader nothing could go on."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        async with sim.client() as kv:
            ids = {member.name: member.id for member in await kv.members.list(timeout=20)}
            changes = [RemoveMember(ids["n3"]), AddMember("n4", sim.addresses["n4"], 0, learner=False)]
            await kv.members.change(changes, timeout=20)
            leader = await leader_of(sim)
            other = "n1" if leader.name == "n2" else "n2"
            with pytest.raises(errors.QuorumAtRisk):
                await kv.members.demote(other, timeout=20)
            sim.renew("n4").start()
            await until(lambda: votes(sim, "n4"), sim)
            await kv.members.demote(other, timeout=20)
        assert voters(sim) == {leader.name, "n4"}

    run(main, seed=70)


# --- Learners and snapshots ------------------------------------------------------------------------------------------


def test_a_learner_that_lags_is_promoted_when_it_has_caught_up() -> None:
    """etcd#10998: not before, however often it is asked for, and it votes at once when that decides."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        await write(sim, 60, size_bytes=2 * KIB)
        sim.inject([Fault(0.0, "slow_link", ("n4",), 6.0, 20_000)])
        sim.renew("n4").start()
        await until(lambda: sim.invariants.members["n4"].id in sim.invariants.configurations.latest.learners, sim)
        async with sim.client() as kv:
            with pytest.raises(errors.LearnerNotReady):
                await kv.members.promote("n4", timeout=20)
        await until(lambda: votes(sim, "n4"), sim)
        assert sim.invariants.members["n4"].completed.last_index > 50
        leader = await leader_of(sim)
        leader.kill()
        other = next(host for host in sim.members[:3] if host is not leader)
        other.kill()
        leader.start()
        await write(sim, 3)

    sim = run(main, seed=68, swarm=replace(CRAMPED, spares=2, config=replace(SMALL, snapshot_log_bytes_min=16 * KIB)))
    assert snapshots_to(sim.trace, "n4") > 0


def test_a_snapshot_is_sent_across_changes_of_the_members() -> None:
    """openraft#1808: a member that was away for several of them has the last one from the snapshot, and only that."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        away = next(host for host in sim.members[:3] if host is not leader)
        sim.inject([Fault(0.0, "isolate", (away.name,), 14.0)])
        sim.renew("n4").start()
        await until(lambda: votes(sim, "n4"), sim)
        async with sim.client() as kv:
            await kv.members.update("n4", priority=0, timeout=20)
            await kv.members.demote("n4", timeout=20)
        await write(sim, 150, size_bytes=2 * KIB)
        await sim.sleep(14)
        await until(lambda: away.member is not None and is_like(away, leader), sim)

    def is_like(one: Host, other: Host) -> bool:
        assert one.member is not None
        assert other.member is not None
        return one.member.replica.roster.plain() == other.member.replica.roster.plain()

    sim = run(main, seed=69, swarm=replace(CRAMPED, spares=2, config=replace(SMALL, snapshot_log_bytes_min=8 * KIB)))
    assert sum(snapshots_to(sim.trace, name) for name in ("n1", "n2", "n3")) > 0
