"""Fault scripts: their text, and one script that strikes a simulated cluster and one of real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from pyraftkv import errors
from pyraftkv.kv import KV
from pyraftkv.sim.faults import Fault, FaultError, FaultTarget, UnsupportedFault
from pyraftkv.sim.kinds import KINDS
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.processes import ProcessCluster
from pyraftkv.sim.schedule import random_faults
from pyraftkv.sim.script import ScriptError, format_fault, format_script, parse_script, play
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm
from tests.sim.machines import Machines

# --- The text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("at 3s for 2s partition n1 | n2 n3", Fault(3.0, "partition", ("n1", "|", "n2", "n3"), 2.0)),
        ("at 0.5s kill leader", Fault(0.5, "kill", ("leader",))),
        ("at 500ms for 250ms pause n2", Fault(0.5, "pause", ("n2",), 0.25)),
        ("at 2m reset", Fault(120.0, "reset")),
        ("at 1s for 1s delay n1 | n2 by 0.2 seed 7", Fault(1.0, "delay", ("n1", "|", "n2"), 1.0, 0.2, 7)),
        ("  at 1s jump_wall_clock n1 by -3600  # an hour back", Fault(1.0, "jump_wall_clock", ("n1",), amount=-3600.0)),
    ],
)
def test_a_line_is_a_fault(line: str, fault: Fault) -> None:
    """Each part of a line stands in its field."""
    assert parse_script(line) == [fault]
    assert parse_script(format_fault(fault)) == [fault]


def test_comments_and_empty_lines_are_nothing() -> None:
    """A script may explain itself."""
    assert parse_script("# Nothing\n\n   \n at 1s reset # now\n") == [Fault(1.0, "reset")]
    assert parse_script("") == []


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_can_be_written_and_read(seed: int) -> None:
    """A random schedule of every kind is the same after a trip through its script."""
    swarm = Swarm(kinds=tuple(KINDS), faults_per_second=8.0)
    members = ["n1", "n2", "n3", "n4", "n5"]
    faults = random_faults(Random(seed), swarm, members=members, clients=["c1", "c2"], seconds=30.0)
    assert len({fault.kind for fault in faults}) > 40
    assert parse_script(format_script(faults)) == faults


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kill n1", "a line is"),
        ("at 3s", "a line is"),
        ("at", "one value belongs to 'at'"),
        ("at 1s at 2s kill", "one value belongs to 'at'"),
        ("at 1s kill n1 for", "one value belongs to 'for'"),
        ("at 3 kill n1", "'3' is no time"),
        ("at xs kill n1", "'x' is no number"),
        ("at infs kill n1", "'inf' is no number"),
        ("at -1s kill n1", "'-1s' is before the start"),
        ("at 1s for -1s kill n1", "'-1s' is before the start"),
        ("at 1s delay by fast", "'fast' is no number"),
        ("at 1s rot n1 seed 1.5", "'1.5' is no seed"),
        ("at 1s earthquake", "there is no fault 'earthquake'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, words: str) -> None:
    """The error says which line, why, and repeats it."""
    with pytest.raises(ScriptError) as caught:
        parse_script(f"# first\nat 1s reset\n{line}\n")
    assert str(caught.value).startswith("line 3: ")
    assert words in str(caught.value)
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("name", ["for", "a b", "", "n#1"])
def test_a_name_that_would_be_misread_is_not_written(name: str) -> None:
    """Host names that mean something in a line are refused rather than written."""
    with pytest.raises(FaultError, match="cannot stand in a script"):
        format_fault(Fault(0.0, "kill", (name,)))


# --- Playing -------------------------------------------------------------------------------------------------------


def test_faults_come_at_their_times() -> None:
    """Steps are done at their times from the moment `play` is called, in virtual time here."""

    async def main() -> None:
        target, told = Machines(), []
        loop = asyncio.get_running_loop()
        await asyncio.sleep(7.0)
        start = loop.time()
        faults = parse_script("at 3s for 2s kill n1\nat 4s reset")
        struck = await play(faults, target, tell=lambda step: told.append((step.fault.kind, loop.time() - start)))
        assert struck == {"kill": 1, "reset": 1}
        assert [kind for kind, _ in told] == ["kill", "reset", "kill"]
        assert [at for _, at in told] == pytest.approx([3.0, 4.0, 5.0], abs=0.01)
        assert target.is_well

    SimLoop(Random(1)).run(main(), until=100.0)


def test_a_play_that_is_cut_short_ends_its_faults() -> None:
    """Whoever cancels it in the middle finds nothing wrong with the target."""

    async def main() -> None:
        target = Machines()
        playing = asyncio.create_task(play(parse_script("at 1s for 9s kill n1\nat 2s for 9s isolate n2"), target))
        await asyncio.sleep(3.0)
        assert target.down == {"n1"}
        assert target.cuts != set()
        playing.cancel()
        await asyncio.wait([playing])
        assert target.is_well

    SimLoop(Random(1)).run(main(), until=100.0)


# --- One script, two worlds ----------------------------------------------------------------------------------------

SCRIPT = """
at 0.2s for 1.5s isolate leader      # two go on without it
at 2s   for 1s   kill leader
at 3.2s for 0.8s pause leader        # stopped, not dead
at 3.5s for 0.5s partition_one_way n1 | n2
at 4.2s for 0.4s delay leader by 0.03
at 4.4s for 0.3s corrupt by 0.2
at 4.8s reset
"""
CALL_SECONDS = 0.5
END_SECONDS_MAX = 60.0


@asynccontextmanager
async def counting(kv: KV) -> AsyncIterator[list[int]]:
    """Count up one key while this runs, each step conditional on the last; yield the acknowledged revisions."""
    acknowledged: list[int] = []

    async def count() -> None:
        while True:
            try:
                now = await kv.get("count", timeout=CALL_SECONDS)
                revision, value = (now.mod_revision, int(now.value)) if now else (0, 0)
                put = await kv.put("count", str(value + 1), if_revision=revision, timeout=CALL_SECONDS)
                acknowledged.append(put.revision)
            except (errors.MaybeApplied, errors.Unavailable, errors.RevisionMismatch, errors.KeyExists):
                pass
            await asyncio.sleep(0.02)

    task = asyncio.create_task(count())
    try:
        yield acknowledged
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task


async def ordeal(kv: KV, target: FaultTarget) -> None:
    """Play the script beside a client: nothing that was acknowledged is lost, and the cluster serves at the end."""
    faults = parse_script(SCRIPT)
    async with counting(kv) as acknowledged:
        struck = await play(faults, target)
        assert struck.total() == len(faults)
        during = len(acknowledged)
        async with asyncio.timeout(END_SECONDS_MAX):
            while len(acknowledged) < during + 3:  # noqa: ASYNC110 - what a client does announces no event
                await asyncio.sleep(0.05)
    assert during > 10
    assert len(set(acknowledged)) == len(acknowledged)
    end = await kv.get("count", timeout=END_SECONDS_MAX)
    assert end is not None
    assert int(end.value) == end.version >= len(acknowledged)


def test_the_script_in_the_simulator() -> None:
    """Three simulated members survive the script, with every invariant held."""

    async def main(sim: Simulation) -> None:
        async with sim.client() as kv:
            await kv.put("ready", "yes", timeout=30.0)
            await ordeal(kv, sim.target())

    with Simulation(seed=1) as sim:
        sim.run(main, until=200.0)


def test_the_script_with_real_processes(tmp_path: Path) -> None:
    """Three processes behind proxies survive the same script, by the same judgement."""

    async def main() -> None:
        async with ProcessCluster(tmp_path) as cluster, cluster.client("c1") as kv:
            await kv.put("ready", "yes")
            await ordeal(kv, cluster)
            assert sum(process.starts for process in cluster.processes.values()) == len(cluster.members) + 1

    asyncio.run(main())


def test_a_folder_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one is below the directory of whoever makes the cluster, not below that of its processes."""
    monkeypatch.chdir(tmp_path)
    cluster = ProcessCluster(Path("cluster"))
    assert [process.data_dir for process in cluster.processes.values()] == [
        tmp_path / "cluster" / name for name in cluster.members
    ]


@pytest.mark.parametrize("kind", ["power_loss", "rot", "disk_full", "fast_clock", "lose", "compact"])
def test_what_real_processes_cannot_do_is_said_before_anything_starts(tmp_path: Path, kind: str) -> None:
    """Scripts that need disks, clocks, power or messages are refused, by name, by a cluster that does not run yet."""
    cluster = ProcessCluster(tmp_path)
    faults = parse_script(f"at 0s kill n1\nat 1s {kind} n1")
    with pytest.raises(UnsupportedFault, match=f"{kind} at 1.0 s needs .*, which <ProcessCluster"):
        asyncio.run(play(faults, cluster))
    assert [process.starts for process in cluster.processes.values()] == [0, 0, 0]
