"""The operator: each order comes to what it says, and none to a cluster that cannot go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyraftkv.core.membership import Transition
from pyraftkv.protocol import RemoveMember
from pyraftkv.sim.faults import Fault, Order
from pyraftkv.sim.injector import Injector
from pyraftkv.sim.kinds import KINDS, Kind
from pyraftkv.sim.orders import Operator
from pyraftkv.sim.run import simulate
from pyraftkv.sim.script import parse_script
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, Workload
from tests.sim.machines import Machines
from tests.sim.test_membership import run, voters
from tests.sim.test_pitfalls import SMALL, until
from tests.sim.test_simulation import leader_of

SWARM = Swarm(spares=2, workload=Workload(clients=2, operations_per_second=40.0))


async def carry_out(sim: Simulation, *orders: Order) -> list[str]:
    """Give orders, wait until all is done, and return what was said of each."""
    await leader_of(sim)
    for order in orders:
        sim.operator.take(order)
    await until(lambda: sim.operator.is_idle, sim)
    return [event.detail["text"] for event in sim.trace.events({"order"})]


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ([Order("add", (("n4",),))], {"n1", "n2", "n3", "n4"}),
        ([Order("add", (("n5",),), seed=3), Order("add", seed=5)], {"n1", "n2", "n3", "n4", "n5"}),
        ([Order("remove", (("n2",),))], {"n1", "n3"}),
        ([Order("replace", (("n3",),))], {"n1", "n2", "n3"}),
        ([Order("demote", (("n1",),))], {"n2", "n3"}),
        ([Order("joint", (("n1",), ("n4",)))], {"n2", "n3", "n4"}),
        ([Order("joint", (("n1", "n2"), ("n4", "n5")))], {"n1", "n2", "n3"}),
        ([Order("update", (("n1",),))], {"n1", "n2", "n3"}),
        ([Order("remove", (("n4",),)), Order("return"), Order("promote"), Order("leave")], {"n1", "n2", "n3"}),
    ],
)
def test_orders_come_to_what_they_say(orders: list[Order], expected: set[str]) -> None:
    """To nothing where they make no sense: nobody of that name, no joint configuration, more gone than is safe."""

    async def main(sim: Simulation) -> None:
        said = await carry_out(sim, *orders)
        assert len(said) == len(orders)
        await until(lambda: not sim.invariants.configurations.latest.is_joint, sim)
        await until(lambda: voters(sim) == expected, sim)

    run(main, seed=71)


def test_an_explicit_joint_change_stays_until_it_is_left() -> None:
    """The second order leaves it; and what is settled at the end is left as well."""

    async def main(sim: Simulation) -> None:
        await carry_out(sim, Order("joint_explicit", (("n1",), ("n4",))))
        await sim.sleep(3)
        assert sim.invariants.configurations.latest.is_joint
        assert not await sim.operator.settle()
        await until(lambda: sim.operator.is_idle, sim)
        await until(lambda: voters(sim) == {"n2", "n3", "n4"}, sim)
        while not await sim.operator.settle():
            await sim.sleep(0.2)

    run(main, seed=72)


def test_a_disk_is_lost_only_while_the_others_can_do_without_it() -> None:
    """One of three is away: the operator spares the other two; of one it spares the only one."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        away = next(host for host in sim.members[:3] if host is not leader)
        away.kill()
        (said,) = await carry_out(sim, Order("replace", ((leader.name,),)))
        assert "nobody is dispensable" in said

    async def alone(sim: Simulation) -> None:
        (said,) = await carry_out(sim, Order("replace"))
        assert "nobody is dispensable" in said

    run(main, seed=73)
    run(alone, seed=73, members=1)


def test_a_machine_is_begun_anew_when_its_member_is_gone_for_good() -> None:
    """Not while it votes, not while it is only on its way out of a joint configuration."""

    async def main(sim: Simulation) -> None:
        (said,) = await carry_out(sim, Order("add", (("n1",),)))
        assert "no machine is free" in said
        async with sim.client() as kv:
            await kv.members.change([RemoveMember(1)], transition=Transition.EXPLICIT, timeout=20)
            assert "no machine is free" in (await carry_out(sim, Order("add", (("n1",),))))[-1]
            await kv.members.leave_joint(timeout=20)
        await until(lambda: sim.invariants.is_gone_for_good("n1"), sim)
        await carry_out(sim, Order("add", (("n1",),)))
        await until(lambda: voters(sim) == {"n1", "n2", "n3"}, sim)
        assert sim.invariants.members["n1"].id == 4

    run(main, seed=74)


def test_a_member_that_was_removed_is_started_again_as_it_is() -> None:
    """And ends again, by itself."""

    async def main(sim: Simulation) -> None:
        await carry_out(sim, Order("remove", (("n3",),)))
        gone = sim.hosts["n3"]
        await until(lambda: not gone.is_up, sim)
        boots = gone.boots
        await carry_out(sim, Order("return"))
        assert gone.boots == boots + 1
        await until(lambda: not gone.is_up, sim)

    run(main, seed=75)


def test_every_kind_of_order_can_be_carried_out() -> None:
    """What the table of kinds orders, and what it takes back at the end of a fault, the operator knows."""
    told: list[str] = []
    for kind in KINDS.values():
        if kind.is_order:
            target = Machines()
            injector = Injector(target, [Fault(0.0, kind.name, ("n1", "|", "n2"), kind.seconds[1], seed=5)])
            injector.do(injector.steps[0])
            injector.end_all()
            orders = [call[1] for call in target.calls if isinstance(call[1], Order)]
            assert [order.hosts for order in orders] == [(("n1",), ("n2",))] * len(orders)
            assert len(orders) == (2 if kind.seconds[1] else 1)
            told += [order.what for order in orders]
    assert set(told) == Operator.ORDERS.keys()


def test_a_script_changes_members_in_a_run() -> None:
    """By name, with a joint configuration that is left when the time is up; the run ends with those who are left."""
    script = """
        at 300ms member_add n4
        at 2s for 1s member_joint_explicit n1 | n5
        at 6s member_replace n3
    """
    report = simulate(76, seconds=10.0, swarm=SWARM, faults=parse_script(script))
    assert report.faults == {"member_add": 1, "member_joint_explicit": 1, "member_replace": 1}
    said = [event.detail["text"] for event in report.trace.events({"order"})]
    assert said[1:] == ["joint_explicit n1 | n5: 2 changes: done", "leave n1 | n5: done", "replace n3: n3 is back"]


# --- Every order under every fault -----------------------------------------------------------------------------------

ORDERS = tuple(kind.name for kind in KINDS.values() if kind.is_order)
HARMLESS = ("member_add", "member_promote", "member_update")
"""What takes no vote away: whoever is lost for good may be one too many for anything else."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.is_order], ids=lambda kind: kind.name)
def test_every_order_under_every_fault(kind: Kind) -> None:
    """Orders come thick and fast while one kind of fault strikes; all rules hold, and all comes to rest."""
    swarm = Swarm(
        members=max(3, kind.members_min),
        spares=2,
        config=replace(SMALL, apply_slice_seconds=0.001),
        workload=Workload(clients=2, operations_per_second=10.0, mix={"put": 3.0, "get": 1.0, "txn": 1.0}),
        kinds=(kind.name, *(HARMLESS if kind.is_fatal else ORDERS)),
        faults_per_second=1.2,
        orders_per_second=3.0,
    )
    report = simulate(77, seconds=4.0, swarm=swarm)
    assert sum(report.faults.get(name, 0) for name in ORDERS) >= 3
