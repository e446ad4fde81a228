"""A real cluster in virtual time: it works, it survives, it repeats, and what is wrong with it is seen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from pyraftkv import errors
from pyraftkv.core import HardState, Save
from pyraftkv.core.messages import CommitNotice
from pyraftkv.sim.faults import DiskFault, Fault
from pyraftkv.sim.host import Host
from pyraftkv.sim.report import SimFailure
from pyraftkv.sim.run import simulate
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, Workload

QUICK = Swarm(workload=Workload(clients=2, operations_per_second=40.0))


async def greet(sim: Simulation) -> str:
    """Write and read once."""
    async with sim.client() as kv:
        await kv.put("greeting", "hello", timeout=20)
        got = await kv.get("greeting", timeout=20)
        return got.text if got is not None else ""


async def leader_of(sim: Simulation) -> Host:
    """Wait for a leader."""
    while sim.leader is None:
        await sim.sleep(0.05)
    return sim.leader


@pytest.mark.parametrize("members", [1, 3, 5])
def test_a_cluster_elects_and_commits(members: int) -> None:
    """Real nodes, files and streams; the disks hold what was acknowledged."""
    with Simulation(seed=1, members=members) as sim:
        assert sim.run(greet, until=20) == "hello"
        sim.check_images()
        sim.check()
        assert sim.leader is not None
        assert sim.now() < 5


def test_everything_loses_power_and_nothing_is_lost() -> None:
    """What was acknowledged is there when the machines start again."""

    async def main(sim: Simulation) -> str:
        assert await greet(sim) == "hello"
        for host in sim.members:
            host.power_loss()
        for host in sim.members:
            host.start()
        async with sim.client() as kv:
            got = await kv.get("greeting", timeout=20)
            return got.text if got is not None else ""

    with Simulation(seed=2) as sim:
        assert sim.run(main, until=60) == "hello"
        assert [host.boots for host in sim.members] == [2, 2, 2]


def test_what_is_sent_to_a_member_that_never_came_is_lost() -> None:
    """It was expected and removed again, so nobody knows its machine; an answer to it may be on its way still."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        assert leader.node is not None
        leader.node._transport.send([CommitNotice(99, 1, 1, 1, 1)])

    with Simulation(seed=1) as sim:
        sim.run(main, until=20)
        fates = [detail["fate"] for *_, detail in sim.trace.events() if detail.get("target") == "member-99"]
        assert fates == ["dropped"]


def test_users_run_their_own_programs_beside() -> None:
    """Their processes have clients, and can be killed like any other."""
    heard: list[str] = []

    async def program(host: Host) -> None:
        async with host.client() as kv:
            await kv.put(host.name, f"life {host.boots}", timeout=20)
            got = await kv.get(host.name)
            heard.append(got.text if got is not None else "")
        await sim.sleep(100)

    async def main(sim: Simulation) -> None:
        await sim.sleep(3)
        sim.hosts["app"].kill()
        sim.hosts["app"].start()
        await sim.sleep(3)

    with Simulation(seed=3) as sim:
        sim.host("app", program=program)
        sim.run(main, until=60)
    assert heard == ["life 1", "life 2"]


def test_a_member_whose_disk_fails_comes_back() -> None:
    """The node stops itself, its process ends, and a supervisor starts it again when the disk is sound."""

    async def main(sim: Simulation) -> int:
        leader = await leader_of(sim)
        target = sim.target()
        target.set_disk(leader.name, DiskFault(sync_failure="dropped"))
        assert await greet(sim) == "hello"
        target.set_disk(leader.name, DiskFault())
        while leader.member is None or leader.boots == 1:
            await sim.sleep(0.1)
        return leader.boots

    with Simulation(seed=4) as sim:
        assert sim.run(main, until=60) >= 2


def test_a_member_that_stops_on_a_sound_disk_is_a_failure() -> None:
    """Nobody stops by himself without a reason."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        assert leader.member is not None
        leader.member.inbox.put(HardState())  # type: ignore[arg-type]
        await sim.sleep(1)

    with Simulation(seed=5) as sim, pytest.raises(SimFailure, match="no member stops by itself") as caught:
        sim.run(main, until=20)
    assert "seed 5" in str(caught.value)
    assert "--seed 5" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "is_rotten", "comes_to"),
    [
        (errors.StorageFailed(), False, (False, False)),
        (errors.StorageError("a read failed"), False, (False, False)),
        (errors.SnapshotCorruption(), True, (True, False)),
        (errors.WalCorruption(), False, (True, True)),
        (errors.DataDirRolledBack(), True, (True, False)),
        (errors.DataDirRolledBack(), False, (True, True)),
        (AssertionError("a bug"), True, (False, True)),
    ],
)
def test_what_the_end_of_a_member_means(error: Exception, is_rotten: bool, comes_to: tuple[bool, bool]) -> None:
    """On a bad disk: an error that may pass means nothing, damage is for good and needs rot, a bug is a bug."""
    failed: list[bool] = []

    async def main(sim: Simulation) -> None:
        host = sim.hosts["n2"]
        host.had_bad_disk, host.is_rotten = True, is_rotten
        sim.judge(host, error)
        failed.append(host.is_out)

    with Simulation(seed=13) as sim:
        if comes_to[1]:
            with pytest.raises(SimFailure):
                sim.run(main)
        else:
            sim.run(main)
    assert failed == [comes_to[0]]


def test_what_is_broken_ends_the_run() -> None:
    """At the end of the pass in which it is seen, with the trace up to there."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        sim.saving(leader.name, Save(10**6, HardState(1, 1, 0), [], None))
        await sim.sleep(100)

    with Simulation(seed=6) as sim, pytest.raises(SimFailure) as caught:
        sim.run(main, until=200)
    assert caught.value.rule == "monotone marks"
    assert sim.now() < 5
    assert caught.value.trace.tail(1)[0].split()[1] == "violation"


def test_an_error_of_the_program_under_test_reaches_the_caller() -> None:
    """As it is."""

    async def main(_: Simulation) -> None:
        raise errors.KeyNotFound("mine")

    with Simulation(seed=7) as sim, pytest.raises(errors.KeyNotFound, match="mine"):
        sim.run(main)


def test_a_failed_callback_says_whose_it_was() -> None:
    """A seed's one line is what people see first: the error alone has sent them looking in the wrong place."""

    async def fail() -> None:
        raise ValueError("unasked")

    async def main(sim: Simulation) -> None:
        task = asyncio.create_task(fail(), name="the culprit")
        await sim.sleep(1)
        del task

    with (
        Simulation(seed=8) as sim,
        pytest.raises(SimFailure, match=r"ValueError\('unasked'\), in .*, the culprit") as caught,
    ):
        sim.run(main)
    assert caught.value.rule == "no callback fails"


FAULTS = [
    Fault(0.5, "kill_leader", ("leader",), 1.0, seed=1),
    Fault(1.0, "lose", ("n1", "n2"), 1.5, 0.2, seed=2),
    Fault(2.0, "power_loss_all", (), 0.5, seed=3),
    Fault(2.5, "slow_disk", ("n3",), 1.0, 5.0, seed=4),
    Fault(2.6, "rot", ("n2",), seed=5),
]


def run_faulty() -> str:
    """Run a few seconds with one of everything; return the digest of the trace."""
    report = simulate(8, seconds=5.0, swarm=QUICK, faults=FAULTS)
    assert report.faults == {"kill_leader": 1, "lose": 1, "power_loss_all": 1, "rot": 1, "slow_disk": 1}
    assert report.liveness_seconds > 0
    assert report.acknowledged > 50
    assert "seed 8: ok: 3 members" in str(report)
    return report.digest


def test_a_run_repeats_itself_elsewhere() -> None:
    """In a fresh interpreter with another hash seed the same things happen at the same times."""
    source = "from tests.sim.test_simulation import run_faulty; print(run_faulty())"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.split()[-1] == run_faulty()


def test_a_cluster_that_does_nothing_fails() -> None:
    """It breaks no other rule: nobody reaches it."""
    cut = [Fault(0.0, "isolate_all", (), 3.0, seed=number) for number in range(2)]
    quiet = Swarm(workload=Workload(clients=1, operations_per_second=200.0, mix={"compact": 1.0}))
    with pytest.raises(SimFailure, match="traffic"):
        simulate(9, seconds=4.0, swarm=quiet, faults=cut)
