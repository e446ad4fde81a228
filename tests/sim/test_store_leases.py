"""Leases of the store under pauses, partitions and changes of leader: the hazards of `pyraftkv.node.leases`, acted out.

A lease must not end too early, whatever becomes of its leader, and not live for ever once its owner is gone.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pyraftkv import errors
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm
from pyraftkv.store.values import LeaseInfo
from tests.sim.test_leases import cut
from tests.sim.test_pitfalls import node_of, until
from tests.sim.test_simulation import leader_of

SECONDS_MAX = 300.0
CHECKPOINTED = Swarm(config=replace(Swarm().config, lease_checkpoint_seconds=2.0))


def run(main: Any, *, seed: int = 7, swarm: Swarm | None = None) -> Any:
    """Run a scenario on three members."""
    print("seed", seed)  # noqa: T201 - shown when the test fails
    with Simulation(seed=seed, swarm=swarm or Swarm()) as sim:
        return sim.run(main, until=SECONDS_MAX)


async def on(host: Host, call: Any) -> Any:
    """Call something of the node at a member."""
    return await host.run(lambda _: call(node_of(host)))


async def held(host: Host, ttl: float, key: str = "k") -> int:
    """Grant a lease, and put a key under it; return its id."""
    granted = await on(host, lambda node: node.leases.grant(ttl))
    await on(host, lambda node: node.put(key, "v", lease=granted.id))
    lease: int = granted.id
    return lease


async def renew(host: Host, lease: int) -> int:
    """Renew a lease by way of a member."""
    seconds: int = await on(host, lambda node: node.leases.keep_alive(lease, timeout=20))
    return seconds


async def is_there(host: Host, key: str = "k") -> bool:
    """Whether the key is there, as a member has it."""
    return await on(host, lambda node: node.get(key, consistency="local")) is not None


async def gone_at(sim: Simulation, host: Host, key: str = "k") -> float:
    """Wait until the key is gone, and return when that was."""
    while await is_there(host, key):
        await sim.sleep(0.02)
    return sim.now()


async def succeeded(sim: Simulation, old: Host) -> Host:
    """Wait until somebody else leads, and keeps the leases; return who."""
    await until(lambda: sim.leader not in (None, old), sim)
    new = sim.leader
    assert new is not None
    return new


def test_a_lease_ends_after_its_time_and_not_before() -> None:
    """On every member at the same revision; what is left of it is told in whole seconds until then."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        other = next(host for host in sim.members if host is not leader)
        await sim.sleep(1)
        lease = await held(leader, 5)
        granted_at = sim.now()
        await sim.sleep(3)
        info = await on(other, lambda node: node.leases.time_to_live(lease, keys=True))
        assert info in (LeaseInfo(lease, 1, 5, [b"k"]), LeaseInfo(lease, 2, 5, [b"k"]))
        assert await renew(other, lease) == 5  # by way of a follower
        renewed_at = sim.now()
        ended_at = await gone_at(sim, leader)
        assert renewed_at + 4.9 <= ended_at <= renewed_at + 6, (granted_at, renewed_at, ended_at)
        assert await on(leader, lambda node: node.leases.time_to_live(lease)) == LeaseInfo(lease, -1, 0)
        with pytest.raises(errors.LeaseNotFound):
            await renew(leader, lease)
        with pytest.raises(errors.LeaseNotFound):
            await on(other, lambda node: node.put("k", "w", lease=lease))

    run(main)


@pytest.mark.parametrize("seed", [0, 2, 7])
def test_a_member_that_is_behind_tells_of_a_lease_what_its_leader_knows(seed: int) -> None:
    """The leader says what is left of it, the member itself what it was granted for: of one state."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        await sim.sleep(1)
        followers = [host for host in sim.members if host is not leader]
        for _ in range(30):
            granted = await on(leader, lambda node: node.leases.grant(100))
            for host in followers:
                info = await on(host, lambda node, lease=granted.id: node.leases.time_to_live(lease))
                assert info.granted_ttl == 100

    run(main, seed=seed)


def test_a_new_leader_gives_every_lease_its_full_time() -> None:
    """1. A leader renews a lease, and dies. 2. The next one cannot know when that was. 3. Nor may it never end."""

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        lease = await held(old, 6)
        await sim.sleep(5)
        await renew(old, lease)
        renewed_at = sim.now()
        old.kill()
        new = await succeeded(sim, old)
        led_at = sim.now()
        ended_at = await gone_at(sim, new)
        assert renewed_at + 6 <= ended_at
        assert led_at + 6 <= ended_at <= led_at + 9

    run(main)


def test_a_leader_that_was_deposed_ends_no_lease() -> None:
    """1. A leader is stopped for longer than a lease lives. 2. The others elect another one, which renews it.

    3. The old one goes on: the lease is over by its clock, and it still believes that it leads (etcd#15247).
    """

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        others = [host for host in sim.members if host is not old]
        lease = await held(old, 4)
        old.pause()
        new = await succeeded(sim, old)
        for _ in range(4):
            await sim.sleep(2)
            assert await renew(new, lease) == 4
        old.resume()
        for _ in range(3):
            await sim.sleep(1.5)
            assert await renew(new, lease) == 4
            assert all([await is_there(host) for host in others])

    run(main)


def test_a_leader_that_is_cut_off_renews_nothing() -> None:
    """It may say neither that a lease lives on nor what is left of it: another one decides by now."""

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        others = [host for host in sim.members if host is not old]
        lease = await held(old, 30)
        cut(sim, old, *others)
        for call in (
            lambda node: node.leases.keep_alive(lease, timeout=3),
            lambda node: node.leases.time_to_live(lease, timeout=3),
        ):
            with pytest.raises(errors.Unavailable):
                await on(old, call)
        sim.network.links.heal_all()
        assert await renew(old, lease) == 30

    run(main)


def test_a_stall_of_the_leader_ends_no_lease_whose_renewal_is_on_its_way() -> None:
    """1. A lease is over by the clock when the loop goes on after a stall. 2. Its renewal came in time, and waits."""

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        other = next(host for host in sim.members if host is not old)
        await sim.sleep(1)
        lease = await held(old, 2)
        await sim.sleep(1.8)
        old.pause()
        assert other.process is not None
        renewing = other.process.spawn(node_of(other).leases.keep_alive(lease, timeout=20))
        await sim.sleep(0.6)  # less than it takes to elect another one
        old.resume()
        await until(renewing.done, sim)
        assert renewing.result() == 2
        assert await is_there(old)

    run(main)


def test_leaders_that_come_and_go_do_not_keep_a_lease_alive() -> None:
    """1. Its owner is gone. 2. Each new leader would give it its full time again, were nothing written down."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        lease = await held(leader, 20)
        granted_at = sim.now()
        for _ in range(4):
            await sim.sleep(5)
            leader = sim.leader or await leader_of(sim)
            if not await is_there(leader):
                break
            await on(leader, lambda node: node.transfer_leadership())
        ended_at = await gone_at(sim, await leader_of(sim))
        assert granted_at + 20 <= ended_at <= granted_at + 20 + 4 * 4, lease

    run(main, swarm=CHECKPOINTED)


def test_a_checkpoint_does_not_cut_a_renewal_short() -> None:
    """1. What is left of a lease is written down. 2. It is renewed. 3. The leader dies: the next one has the log."""

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        lease = await held(old, 20)
        await until(lambda: node_of(old)._running().replica.store.leases.left(lease) in range(1, 12), sim)
        assert await renew(old, lease) == 20
        renewed_at = sim.now()
        old.kill()
        new = await succeeded(sim, old)
        assert await gone_at(sim, new) >= renewed_at + 20

    run(main, swarm=CHECKPOINTED)


def test_a_renewal_that_was_given_up_leaves_no_error_behind_that_nobody_handles() -> None:
    """1. A leader is cut off, and a renewal has it take a checkpoint back. 2. The renewal gives up in time.

    3. The leader steps down: what it decided fails, and nobody is left to hear that. Yet it is no error that
    nobody handled, as which asyncio would report it, and fail the simulation.
    """

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        lease = await held(old, 20)
        node = node_of(old)
        await until(lambda: node._running().replica.store.leases.left(lease) > 0, sim)
        cut(sim, old, *[host for host in sim.members if host is not old])
        with pytest.raises(errors.ReadTimeout):
            await on(old, lambda node: node.leases.keep_alive(lease, timeout=0.1))
        assert node.is_leader
        assert len(node._running().decisions) == 1
        await until(lambda: not node.is_leader, sim)
        sim.network.links.heal_all()
        assert await renew(old, lease) == 20

    run(main, swarm=CHECKPOINTED)


def test_a_held_lease_is_renewed_over_changes_of_leader() -> None:
    """Its owner notices nothing; at the end of the block it is revoked at once."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        host = next(each for each in sim.members if each is not leader)

        async def hold(node: Any) -> None:
            async with node.lease(ttl=6) as lease:
                await node.put("k", "v", lease=lease.id)
                await asyncio.sleep(30)
                lease.check()

        assert host.process is not None
        holding = host.process.spawn(hold(node_of(host)))
        for _ in range(2):
            await sim.sleep(8)
            assert await is_there(host)
            current = await leader_of(sim)
            if current is not host:
                await on(current, lambda node: node.transfer_leadership(node_of(host).name))
        await until(holding.done, sim)
        holding.result()
        assert not await is_there(host)

    run(main)


def test_who_holds_a_lease_knows_first_that_it_is_lost() -> None:
    """Cut off from everybody, it says so before the others let anybody else have what was held under it."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        host = next(each for each in sim.members if each is not leader)
        others = [each for each in sim.members if each is not host]
        lost: list[float] = []

        async def hold(node: Any) -> None:
            async with node.lease(ttl=4) as lease:
                await node.put("k", "v", lease=lease.id)
                await lease.lost.wait()
                lost.append(sim.now())

        assert host.process is not None
        holding = host.process.spawn(hold(node_of(host)))
        await sim.sleep(6)
        cut(sim, host, *others)
        ended_at = await gone_at(sim, leader)
        await until(holding.done, sim)
        assert isinstance(holding.exception(), errors.LeaseLost)
        assert lost[0] <= ended_at

    run(main)


def test_an_answer_that_takes_longer_than_the_next_attempt_counts() -> None:
    """Else nobody would be answered just when there is much to do: each attempt would be too late for its answer."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        other = next(host for host in sim.members if host is not leader)
        lease = await held(leader, 60)
        assert await renew(other, lease) == 60

    config = replace(Swarm().config, retry_seconds=0.8, election_timeout_seconds=5.0)
    run(main, swarm=Swarm(config=config, latency_seconds=(0.3, 0.3)))


def test_many_leases_end_together_and_nothing_waits_for_them() -> None:
    """In batches, each one's keys at a revision of its own; puts go through meanwhile."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        count = 600

        async def grant(node: Any) -> None:
            ids = [(await node.leases.grant(5)).id for _ in range(count)]
            await asyncio.gather(*[node.put(f"k{i}", "v", lease=lease) for i, lease in enumerate(ids)])

        await on(leader, grant)
        store = node_of(leader)._running().replica.store
        assert len(store.leases) == count
        while len(store.leases) == count:
            await sim.sleep(0.05)
        began_at = sim.now()
        while len(store.leases):
            asked_at = sim.now()
            await on(leader, lambda node: node.put("other", "v"))
            assert sim.now() - asked_at < 1
        assert sim.now() - began_at < 10
        assert store.key_count == 1

    run(main)
