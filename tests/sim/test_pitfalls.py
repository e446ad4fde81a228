"""Known bugs of other implementations, as scenarios for a whole cluster, each named after where it was seen.

What one machine can show is in `tests/core/test_pitfalls.py`; here is what needs disks that forget, clocks that stand
still and members that come back. `docs/pitfalls.md` lists all of them, with the mutants by which each was tried.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pyraftkv import errors
from pyraftkv.core.messages import VoteResponse
from pyraftkv.node import Node, NodeConfig
from pyraftkv.protocol import SnapshotChunk
from pyraftkv.sim.check.raft import TermLog
from pyraftkv.sim.disk import SimDisk
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.host import Host
from pyraftkv.sim.links import LinkProfile
from pyraftkv.sim.report import SimReport
from pyraftkv.sim.run import simulate
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import KIB, Swarm, Workload
from pyraftkv.sim.trace import Trace
from tests.sim.test_simulation import leader_of

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)

SMALL = NodeConfig(
    snapshot_log_bytes_min=24 * KIB,
    log_cache_bytes_max=4 * KIB,
    append_bytes_max=1 * KIB,
    apply_backlog_bytes_max=16 * KIB,
    apply_slice_seconds=0.0001,
)

CRAMPED = Swarm(
    config=SMALL,
    segment_bytes_max=8 * KIB,
    workload=Workload(
        clients=2,
        operations_per_second=60.0,
        value_bytes=(64, 512),
        mix={"put": 6.0, "delete": 1.0, "txn": 3.0, "get": 2.0},
    ),
)
"""A snapshot every moment, and little of the log behind it."""

SECONDS_MAX = 60.0
"""Of virtual time: what takes longer never comes."""


async def until(is_so: Callable[[], bool], sim: Simulation) -> None:
    """Wait until something holds; `SECONDS_MAX` ends it otherwise."""
    while not is_so():
        await sim.sleep(0.02)


def node_of(host: Host) -> Node:
    """Return the node that runs there."""
    assert host.node is not None
    return host.node


def is_level(sim: Simulation) -> bool:
    """Whether every member runs, and has applied all of the same log."""
    members = [host.member for host in sim.members if host.member is not None]
    marks = {mark for member in members for mark in (member.raft.last_index, member.replica.applied_index)}
    return len(members) == len(sim.members) and len(marks) == 1


async def contents(sim: Simulation) -> list[object]:
    """Wait until all members are level; return what each of them holds."""

    async def read(host: Host) -> object:
        result = await node_of(host).range(prefix="", consistency="local")
        return result.revision, result.kvs

    await until(lambda: is_level(sim), sim)
    return [await host.run(read) for host in sim.members]


def snapshots_to(trace: Trace, name: str) -> int:
    """Return how many pieces of snapshots reached a member."""
    return sum(
        isinstance(event.detail["what"], SnapshotChunk)
        for event in trace.events({"message"})
        if event.detail["target"] == name and event.detail.get("arrived_at") is not None
    )


# --- Disks that forget ---------------------------------------------------------------------------------------------


async def write(sim: Simulation, count: int, *, size_bytes: int = 16) -> None:
    """Write so often, one after the other."""
    async with sim.client() as kv:
        for number in range(count):
            await kv.put(f"k{number % 5}", bytes(size_bytes), timeout=20)


def take(sim: Simulation, victim: Host, disk: SimDisk) -> None:
    """Let a member that does not run have another disk, and nobody wonder what it starts with."""
    victim.disk = disk
    victim.had_bad_disk = victim.is_rotten = True
    record = sim.invariants.members[victim.name]
    image = sim._image(victim)  # pyright: ignore[reportPrivateUsage] - what a recovery finds there
    assert image is not None
    record.completed, record.term = TermLog(image.snapshot, image.entries), image.hard_state.term
    record.vote = image.hard_state.vote
    record.pending.clear()


def put_back(sim: Simulation, victim: Host, disk: SimDisk) -> None:
    """Let a member lose its power, and find what its disk held long ago."""
    victim.power_loss()
    record = sim.invariants.members[victim.name]
    last_index = record.completed.last_index
    take(sim, victim, disk)
    assert record.completed.last_index < last_index - 10


def test_a_disk_that_lied_stops_nobody_else_and_loses_nothing() -> None:
    """etcd#10166, #16220: a follower's log is shorter than what it acknowledged, and its leader believes otherwise."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        await write(sim, 10)
        victim = next(host for host in sim.members if host is not leader)
        lied_since = victim.disk.durable_copy()
        await write(sim, 20)
        put_back(sim, victim, lied_since)
        victim.start()
        await until(lambda: victim.is_out, sim)
        await write(sim, 5)
        assert sim.leader is leader
        assert {host.name: host.boots for host in sim.members} == {
            host.name: 2 if host is victim else 1 for host in sim.members
        }

    with Simulation(seed=31) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_a_member_of_its_own_acknowledges_nothing_before_its_disk() -> None:
    """etcd#14370: one voter is its own majority, and needs its own disk for it."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        for number in range(20):
            async with sim.client() as kv:
                await kv.put("number", str(number), timeout=20)
                leader.power_loss()
                leader.start()
                got = await kv.get("number", timeout=20)
                assert got is not None
                assert got.text == str(number)

    with Simulation(seed=32, members=1) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_every_start_applies_what_it_has_from_where_its_snapshot_stands() -> None:
    """etcd#13766: a crash between applying and recording that it was; etcd#10063: a page of the log is left out."""
    busy = replace(CRAMPED.workload, operations_per_second=150.0, in_flight=4, mix={"put": 3.0, "txn": 1.0})
    slow = replace(CRAMPED, workload=busy, sync_seconds=(0.002, 0.02), write_bytes_per_second=1e6)
    faults = [
        Fault(0.8, "power_loss_mid_write", ("n1", "n2"), 0.3, 40),
        Fault(1.8, "kill_all", (), 0.1),
        Fault(2.6, "power_loss_all", (), 0.1),
        Fault(3.4, "restart_storm", ("n1",), 2.0),
        Fault(3.6, "power_loss_mid_write", ("n2", "n3"), 0.3, 90),
        Fault(4.8, "kill_all", (), 0.1),
    ]
    report = simulate(33, seconds=8.0, swarm=slow, faults=faults)
    assert report.acknowledged > 100


# --- Votes ---------------------------------------------------------------------------------------------------------


def split_votes(seed: int) -> SimReport:
    """Run five members on slow links that time out almost together, and lose their power while they vote."""
    nervous = NodeConfig(tick_seconds=0.01, heartbeat_seconds=0.02, election_timeout_seconds=0.06)
    swarm = Swarm(
        members=5,
        config=nervous,
        latency_seconds=(0.005, 0.03),
        sync_seconds=(0.001, 0.004),
        workload=Workload(clients=1, operations_per_second=20.0, request_seconds=5.0),
    )
    faults = [Fault(at, "isolate_all", (), 0.4) for at in (0.5, 1.5, 2.5, 3.5)]
    for number in range(40):
        victims = (f"n{number % 5 + 1}", f"n{(number + 2) % 5 + 1}")
        faults.append(Fault(0.3 + 0.1 * number, "power_loss", victims, 0.01))
    return simulate(seed, seconds=6.0, swarm=swarm, faults=faults)


@pytest.mark.parametrize("seed", [41, 44])
def test_a_vote_is_given_once_whatever_becomes_of_the_voter(seed: int) -> None:
    """CCF#8094, PySyncObj#201: stepping down within a term, and starts that lost what was not synced, keep votes."""
    report = split_votes(seed)
    refused = sum(
        isinstance(what := event.detail["what"], VoteResponse) and not what.granted and not what.pre
        for event in report.trace.events({"message"})
    )
    assert refused > 0, "votes were split"


def test_a_member_that_comes_back_disturbs_nobody() -> None:
    """etcd#9333: it was alone for long, and would win nothing: the leader and the term stay as they are."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        await write(sim, 3)
        term = node_of(leader).term
        for host in sim.members:
            if host is not leader:
                sim.inject([Fault(0.0, "isolate", (host.name,), 8.0)])
                await sim.sleep(12.0)
                await write(sim, 3)
                assert [node_of(each).term for each in sim.members] == [term] * 3
                assert sim.leader is leader

    with Simulation(seed=37) as sim:
        sim.run(main, until=SECONDS_MAX)


# --- Reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pause_leader", "suspend_leader"])
def test_a_leader_that_slept_reads_nothing_stale(kind: str) -> None:
    """tikv#964, sofa-jraft#34: its clock says that hardly any time has passed; others have elected and written."""

    async def main(sim: Simulation) -> None:
        old = await leader_of(sim)
        async with sim.client() as kv:
            await kv.put("x", "old")
            old.clock.set_rate(0.05)
            sleeps = [Fault(0.0, kind, (old.name,), 8.0), Fault(0.0, "isolate_leader", (old.name,), 9.0)]
            sim.inject(sleeps)
            await until(lambda: sim.leader not in (None, old), sim)
            await kv.put("x", "new", timeout=20)
        assert old.process is not None
        reading = old.process.spawn(node_of(old).get("x", timeout=30))
        await until(lambda: not old.is_paused and not old.is_frozen, sim)
        assert node_of(old).is_leader, "as far as it knows"
        await until(reading.done, sim)
        got = reading.result()
        assert got is not None
        assert got.text == "new"

    with Simulation(seed=38) as sim:
        sim.run(main, until=SECONDS_MAX)


# --- Messages that overtake each other -----------------------------------------------------------------------------


def test_messages_in_any_order_move_nothing_back() -> None:
    """etcd#1207, openraft#1501: late appends cut off nothing, late answers move no progress back."""
    faults = [
        Fault(0.2, "reorder", ("n1", "n2", "n3"), 5.0, 0.2),
        Fault(0.2, "duplicate", ("n1", "n2", "n3"), 5.0, 0.3),
        Fault(1.5, "lose", ("n1", "n2", "n3"), 3.0, 0.1),
        Fault(2.0, "kill_leader", ("leader",), 0.5),
        Fault(4.0, "pause_leader", ("leader",), 2.0),
    ]
    report = simulate(39, seconds=8.0, swarm=CRAMPED, faults=faults)
    assert report.acknowledged > 100


# --- Links that are slow -------------------------------------------------------------------------------------------


def test_reads_do_not_keep_a_follower_behind_whose_link_is_slow() -> None:
    """Its link carries what it lacks in five seconds, and heartbeats beside it: each answer sent all of it again."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        late = next(host for host in sim.members if host is not leader)
        cut = sim.inject([Fault(0.0, "isolate", (late.name,), 60.0)])
        await write(sim, 64, size_bytes=16 * KIB)
        sim.network.links.set_profile(leader.name, late.name, LinkProfile(bandwidth_bytes=200 * KIB))
        cut.end_all()

        async def read(host: Host) -> None:
            while True:
                await node_of(host).get("k0", timeout=20)

        assert leader.process is not None
        reading = leader.process.spawn(read(leader))
        healed_at = sim.now()
        await until(lambda: is_level(sim), sim)
        assert sim.now() - healed_at < 10.0
        reading.cancel()

    with Simulation(seed=40) as sim:
        sim.run(main, until=SECONDS_MAX)


# --- Snapshots -----------------------------------------------------------------------------------------------------


def test_entries_that_conflict_with_a_snapshot_go() -> None:
    """hashicorp#704: a deposed leader has other entries at the snapshot's index and beyond it."""

    async def put(host: Host) -> None:
        with suppress(errors.PyraftkvError):
            await node_of(host).put("lost", b"", timeout=3)

    async def flood(host: Host) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(200):  # each in a pass of its own, so that each is an entry
                group.create_task(put(host))
                await sim.sleep(0.003)

    async def main(sim: Simulation) -> Host:
        old = await leader_of(sim)
        await old.run(lambda host: node_of(host).put("first", b""))
        before = old.member.raft.last_index if old.member is not None else 0
        # What was sent to it meanwhile is lost: the first append would cut the tail off before the snapshot comes.
        sim.inject([Fault(0.0, "isolate_leader", (old.name,), 12.0), Fault(11.9, "reset", (old.name,))])
        await sim.sleep(0.01)
        flooding = asyncio.get_running_loop().create_task(old.run(flood))
        await until(lambda: sim.leader not in (None, old), sim)
        assert old.member is not None
        assert old.member.raft.last_index >= before + 150
        await write(sim, 40, size_bytes=2 * KIB)
        assert sim.invariants.commit < old.member.raft.last_index
        await flooding
        held = await contents(sim)
        assert held == [held[0]] * 3
        return old

    with Simulation(seed=40, swarm=CRAMPED) as sim:
        old = sim.run(main, until=SECONDS_MAX)
        assert snapshots_to(sim.trace, old.name) > 0
        sim.check_images()
        sim.check()


@pytest.mark.parametrize("compacts", [False, True], ids=["whole", "compacted"])
def test_a_watch_goes_on_over_a_snapshot_or_says_that_it_cannot(compacts: bool) -> None:
    """etcd#15271, #20221, #8411: its member is brought up to date by a snapshot: no step back, no gap, no repeat."""
    faults = [
        Fault(0.5, "isolate", ("n1",), 4.3),
        *[Fault(3.4, "compact")] * compacts,
        Fault(3.6, "burst", (), 0.0, 60_000),
    ]
    report = simulate(41, seconds=8.0, swarm=CRAMPED, faults=faults)
    assert snapshots_to(report.trace, "n1") > 0
    assert report.watched > 100


# --- The page ------------------------------------------------------------------------------------------------------


def test_the_page_names_what_is_there() -> None:
    """docs/pitfalls.md: every test and every mutant of it exists, and every scenario here stands there."""
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z][a-z0-9_-]+)`", page))
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TEST.findall(path.read_text("utf-8"))}
    mutants = {path.stem for path in (ROOT / "tests" / "mutants" / "patches").glob("*.patch")}
    assert named - tests - mutants == set()
    scenarios = set(TEST.findall(Path(__file__).read_text("utf-8"))) - {"test_the_page_names_what_is_there"}
    assert scenarios - named == set()
