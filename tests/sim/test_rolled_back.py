"""Members that come back with less than they acknowledged: whole nodes in virtual time, on disks of another day."""

from __future__ import annotations

from pyraftkv.node.pledges import PLEDGE_SECONDS
from pyraftkv.sim.disk import SimDisk
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from tests.sim.test_bad_disk import rebuild, votes
from tests.sim.test_full_disk import Writer, everything_is_there
from tests.sim.test_pitfalls import SECONDS_MAX, is_level, node_of, put_back, take, until, write
from tests.sim.test_simulation import leader_of


def end_of(sim: Simulation, host: Host) -> object:
    """Return what the last life of a machine ended with."""
    return [event for event in sim.trace.events({"stop"}) if event.host == host.name][-1].detail["why"]


async def follower_of(sim: Simulation) -> Host:
    """Return a member that follows."""
    leader = await leader_of(sim)
    return next(host for host in sim.members if host is not leader)


def isolate(sim: Simulation, host: Host, *, heal: bool = False) -> None:
    """Cut a machine off from all others, or no longer."""
    act = sim.target().heal if heal else sim.target().cut
    for other in sim.hosts:
        if other != host.name:
            act(other, host.name)
            act(host.name, other)


async def comes_back(sim: Simulation, host: Host, copy: SimDisk) -> None:
    """Start a machine on an older copy of its disk: it stops by name."""
    put_back(sim, host, copy)
    await stops(sim, host)


async def stops(sim: Simulation, host: Host) -> None:
    """Start a machine: it stops by name."""
    host.is_out = False
    host.start()
    await until(lambda: host.is_out, sim)
    assert end_of(sim, host) == "DataDirRolledBack"


def test_a_member_on_an_older_disk_stops_and_stays_away() -> None:
    """1. A follower's disk is copied; it goes on, and acknowledges what else only its leader has.

    2. It loses its power, and the copy is put back. It starts with a boot count that is new to everybody. It is
       refused, and stops by name: it votes for nobody.
    3. Its leader dies, who knew. It is started again, and remembers.
    4. Rebuilt, it is another member, and counts. Nothing is lost.
    """

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        leader = sim.leader
        assert leader is not None
        writer = Writer(sim)
        await writer.more(5)
        await until(lambda: is_level(sim), sim)
        copy = victim.disk.durable_copy()
        third = next(host for host in sim.members if host not in (leader, victim))
        third.kill()
        await writer.more(20)
        await comes_back(sim, victim, copy)
        boots = victim.boots
        third.start()
        await writer.more(5)
        leader.kill()
        await stops(sim, victim)
        assert victim.boots == boots + 1
        leader.start()
        await writer.more(5)
        await rebuild(sim, victim)
        await until(lambda: votes(victim), sim)
        third.kill()
        await writer.more(5)
        third.start()
        await everything_is_there(sim, writer)

    with Simulation(seed=71) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_a_boot_count_that_was_seen_gives_an_older_disk_away() -> None:
    """It is copied while its member is down, and put back after one more life: of two, neither is let in as the other.

    Nobody needs to know what either of them promised.
    """

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        await write(sim, 5)
        await until(lambda: is_level(sim), sim)
        victim.kill()
        copy = victim.disk.durable_copy()
        victim.start()
        await write(sim, 20)
        await until(lambda: is_level(sim), sim)
        await comes_back(sim, victim, copy)

    with Simulation(seed=71) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_a_leader_that_comes_back_on_an_older_disk_is_found_out_by_the_next() -> None:
    """It had voted for itself in a term that its disk has never heard of, and answered whoever leads now."""

    async def main(sim: Simulation) -> None:
        victim = await leader_of(sim)
        writer = Writer(sim)
        await writer.more(5)
        copy = victim.disk.durable_copy()
        await writer.more(20)
        term = node_of(victim).term
        victim.kill()
        await until(lambda: sim.leader not in (None, victim), sim)
        victim.start()
        await until(lambda: is_level(sim) and node_of(victim).term > term, sim)
        await comes_back(sim, victim, copy)
        await writer.more(5)

    with Simulation(seed=72) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_the_right_disk_can_be_put_in_its_place() -> None:
    """Nobody has let the older one in, so nobody takes the right one for another copy: it has kept every promise."""

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        writer = Writer(sim)
        await writer.more(5)
        copy = victim.disk.durable_copy()
        await writer.more(20)
        await sim.sleep(PLEDGE_SECONDS + 0.5)
        right = victim.disk
        await comes_back(sim, victim, copy)
        take(sim, victim, right)
        victim.is_out = False
        victim.start()
        await until(lambda: is_level(sim), sim)
        await everything_is_there(sim, writer)

    with Simulation(seed=76) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_whoever_heard_a_member_knows_it_when_its_leader_is_gone() -> None:
    """1. An entry is on two disks of three, its leader's and that of a member, and acknowledged.

    2. The leader dies. That member comes back on an older disk, and the third one, that lacks the entry, wants to lead.
    3. It does not: it has heard from the member itself of much that is missing, and takes no vote of it.
    """

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        leader = sim.leader
        assert leader is not None
        third = next(host for host in sim.members if host not in (leader, victim))
        await write(sim, 5)
        copy = victim.disk.durable_copy()
        await write(sim, 20)
        await sim.sleep(PLEDGE_SECONDS + 0.5)
        isolate(sim, third)
        writer = Writer(sim)
        await writer.more(5)
        writer.task.cancel()
        victim.power_loss()
        leader.kill()
        isolate(sim, third, heal=True)
        await comes_back(sim, victim, copy)
        await sim.sleep(5.0)
        assert sim.leader is None
        leader.start()
        await rebuild(sim, victim)
        await everything_is_there(sim, writer)

    with Simulation(seed=75) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_whoever_led_a_member_knows_it_when_it_leads_no_more() -> None:
    """1. One of three is down. The other two have writes, of which the follower has told nobody else yet.

    2. That follower loses its power, and its disk had lied: they are not there. Its leader steps down.
    3. Both come back. They could elect a leader that lacks the writes, did who has led them not refuse the one.
    """

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        leader = sim.leader
        assert leader is not None
        third = next(host for host in sim.members if host not in (leader, victim))
        writer = Writer(sim)
        await writer.more(5)
        await until(lambda: is_level(sim), sim)
        third.kill()
        copy = victim.disk.durable_copy()
        await writer.more(20)
        put_back(sim, victim, copy)
        await until(lambda: sim.leader is None, sim)
        victim.start()
        await sim.sleep(2.0)
        assert victim.is_out
        assert end_of(sim, victim) == "DataDirRolledBack"
        third.start()
        await rebuild(sim, victim)
        await everything_is_there(sim, writer)

    with Simulation(seed=77) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_when_everybody_was_started_anew_nobody_knows() -> None:
    """The limit: nobody is there any more who heard of what is missing. The member is taken for one that was slow."""

    async def main(sim: Simulation) -> None:
        victim = await follower_of(sim)
        leader = sim.leader
        assert leader is not None
        writer = Writer(sim)
        await writer.more(5)
        copy = victim.disk.durable_copy()
        await writer.more(20)
        await until(lambda: is_level(sim), sim)
        put_back(sim, victim, copy)
        for host in sim.members:
            if host is not victim:
                host.power_loss()
                host.start()
        await until(lambda: sim.leader is not None, sim)
        victim.start()
        await until(lambda: is_level(sim), sim)
        assert not victim.is_out
        await everything_is_there(sim, writer)

    with Simulation(seed=73) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_no_other_loss_of_power_or_leader_is_taken_for_one() -> None:
    """Members lose their power, leaders are killed and started in the middle of writes: nobody is refused."""

    async def main(sim: Simulation) -> None:
        writer = Writer(sim)
        for number in range(12):
            leader = await leader_of(sim)
            await writer.more(3)
            victim = leader if number % 3 == 0 else sim.members[number % len(sim.members)]
            if number % 2:
                victim.power_loss()
            else:
                victim.kill()
            victim.start()
        await everything_is_there(sim, writer)

    with Simulation(seed=74) as sim:
        sim.run(main, until=SECONDS_MAX)
