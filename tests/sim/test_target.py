"""The simulated cluster as faults see it: every verb does what it says to the machine it names."""

from __future__ import annotations

from collections.abc import Callable

from pyraftkv.sim.faults import Ability, DiskFault, LinkFault
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.target import BURST_PREFIX, SimTarget


def with_target(body: Callable[[Simulation, SimTarget], None]) -> Simulation:
    """Start a cluster, let ``body`` do something to it when it has a leader, and go on for a second."""

    async def main(sim: Simulation) -> None:
        while sim.leader is None:
            await sim.sleep(0.05)
        body(sim, sim.target())
        await sim.sleep(1.0)

    with Simulation(seed=11) as sim:
        sim.run(main, until=30)
        sim.check()
        return sim


def test_it_can_do_everything() -> None:
    """And knows the members, in order, and who leads."""

    def body(sim: Simulation, target: SimTarget) -> None:
        assert target.abilities == ~Ability(0)
        assert list(target.members) == ["n1", "n2", "n3"]
        assert sim.leader is not None
        assert target.leader() == sim.leader.name

    with_target(body)


def test_links_are_cut_spoilt_and_mended() -> None:
    """Streams and whole messages each get their part of what is wrong."""

    def body(sim: Simulation, target: SimTarget) -> None:
        links = sim.network.links
        target.cut("n1", "n2")
        assert (links.reaches("n1", "n2"), links.reaches("n2", "n1")) == (False, True)
        target.heal("n1", "n2")
        assert links.reaches("n1", "n2")
        target.set_link("n1", "n2", LinkFault(delay_seconds=0.5, corrupt_rate=0.1, drop_rate=0.2))
        worse = links.profile("n1", "n2")
        assert worse.latency_seconds[0] >= 0.5
        assert (worse.corrupt_rate, worse.drop_rate) == (0.1, 0.0)
        assert sim.traffic.faults["n1", "n2"].drop_rate == 0.2
        target.set_link("n1", "n2", LinkFault())
        assert links.profile("n1", "n2") == links.default
        assert sim.traffic.faults == {}

    with_target(body)


def test_clocks_jump_drift_and_stand_still() -> None:
    """Each on its own machine only."""

    def body(sim: Simulation, target: SimTarget) -> None:
        clock = sim.hosts["n2"].clock
        before, wall = clock.time(), clock.wall()
        target.jump_clock("n2", 5.0)
        assert clock.time() == before + 5.0
        target.set_clock_rate("n2", 2.0)
        assert clock.rate == 2.0
        target.jump_wall_clock("n2", -100.0)
        assert clock.wall() < wall
        target.freeze("n2")
        assert clock.rate == 0.0
        target.thaw("n2")
        assert sim.hosts["n1"].clock.rate == 1.0

    with_target(body)


def test_a_wiped_member_stays_out_and_the_others_go_on() -> None:
    """Its machine never starts again; a rotten one may."""

    def body(_: Simulation, target: SimTarget) -> None:
        follower = next(name for name in target.members if name != target.leader())
        target.wipe(follower)
        target.start(follower)

    sim = with_target(body)
    assert sum(host.is_out for host in sim.members) == 1
    assert sum(member.is_lost for member in sim.invariants.members.values()) == 1


def test_a_disk_gets_bad_and_good_again() -> None:
    """It is remembered, because a member may fail for it later."""

    def body(sim: Simulation, target: SimTarget) -> None:
        target.set_disk("n1", DiskFault(slow_factor=10.0))
        assert sim.hosts["n1"].disk.fault.slow_factor == 10.0
        target.set_disk("n1", DiskFault())
        assert sim.hosts["n1"].disk.fault.slow_factor == 1.0
        assert sim.hosts["n1"].had_bad_disk

    with_target(body)


def test_leadership_is_handed_over() -> None:
    """To the member that is named."""
    wanted: list[str] = []

    def body(_: Simulation, target: SimTarget) -> None:
        wanted.append(next(name for name in target.members if name != target.leader()))
        target.transfer(wanted[0])

    sim = with_target(body)
    assert len(sim.invariants.leaders) == 2
    assert sim.invariants.members[wanted[0]].id in sim.invariants.leaders.values()


def test_bursts_and_compactions_are_in_the_history() -> None:
    """What an operator writes counts as much as what clients write."""

    def body(_: Simulation, target: SimTarget) -> None:
        target.burst(20_000)
        target.compact()

    sim = with_target(body)
    keys = {getattr(op.request, "key", b"") for op in sim.history.ops}
    assert any(key.startswith(BURST_PREFIX.encode()) for key in keys)
    assert {op.outcome.value for op in sim.history.ops} == {"ok"}


def test_a_burst_that_is_left_out_changes_no_other() -> None:
    """Shrinking leaves faults out, and what is left must be what it was."""

    def one(_: Simulation, target: SimTarget) -> None:
        target._network.loop.call_later(0.5, target.burst, 1)

    def two(sim: Simulation, target: SimTarget) -> None:
        target.burst(1)
        one(sim, target)

    alone, last = [
        [getattr(op.request, "value", b"") for op in with_target(body).history.ops][-1] for body in (one, two)
    ]
    assert alone == last != b""
