"""What machines hold: it counts towards the quota, is the same on every member, and what takes no room passes."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from pyraftkv import Cluster, NodeConfig, Settings, codec, errors
from pyraftkv.machines import ROW_BYTES, Machines
from pyraftkv.sessions import Refusal
from tests.node.support import refused, until
from tests.test_machines import Log, Tally, virtually

QUOTA = 20_000


@pytest.mark.parametrize("seed", range(2))
def test_what_a_machine_holds_is_weighed_and_every_member_says_the_same(seed: int) -> None:
    """It is near what the rows take, while they come and go, and on a member that was restored meanwhile."""
    rng = random.Random(seed)
    first, second = Log(), Log()
    for step in range(2000):
        key, value = str(rng.randrange(2000)), "v" * rng.randrange(400)
        for log in (first, second):
            log.call("drop" if step % 1000 == 500 else "keep", *([key[:1]] if step % 1000 == 500 else [key, value]))
        if step % 700 == 600:
            second.replica = second.restored(Machines({"tally": Tally}))
    machines = first.replica.machines
    tally = machines._slots["tally"].machine  # pyright: ignore[reportPrivateUsage]
    assert isinstance(tally, Tally)
    held = sum(ROW_BYTES + len(codec.encode_plain([name, value])) for name, value in tally.counts.items())
    assert abs(machines.size_bytes - held) < 0.35 * held
    assert second.replica.machines.size_bytes == machines.size_bytes


def test_a_machine_is_weighed_when_it_was_given_an_eighth_of_its_size() -> None:
    """And not for each operation: its rows are many."""
    asked = 0

    class Counted(Tally):
        """One that counts how often its rows are asked for."""

        def rows(self) -> list[Any]:
            nonlocal asked
            asked += 1
            return super().rows()

    log = Log(Machines({"tally": Counted}))
    for number in range(2000):
        log.call("keep", str(number), "v" * 400)
    assert 10 < asked < 30


def test_while_there_is_no_room_what_takes_none_passes() -> None:
    """Or nobody could make some; and what is made smaller is seen at once."""
    log = Log()
    for number in range(100):
        log.call("keep", f"{number}", "v" * 100)
    log.alarm()
    for name, args in (("add", ("x",)), ("none", ()), ("blow", ("exit",)), ("get", ("x",))):
        refusal = log.call(name, *args)
        assert isinstance(refusal, Refusal)
        assert refusal.name == "NoSpace"
    before = log.replica.machines.size_bytes
    assert log.call("drop", "1") == 89
    assert log.replica.machines.size_bytes < before
    assert log.call("drop") == 0
    assert log.replica.machines.size_bytes == 0


def test_a_machine_that_is_smaller_than_it_seems_is_weighed_when_the_alarm_is_raised() -> None:
    """Each operation counts as if it took room: while all are refused, nothing else could tell."""
    log = Log()
    for _ in range(500):
        log.call("add", "x")
    assert log.replica.machines.size_bytes > 500 * ROW_BYTES
    log.alarm()
    assert log.replica.machines.size_bytes < 2 * ROW_BYTES


def test_a_member_without_the_machine_stops_though_there_is_no_room() -> None:
    """It cannot know whether the others let an operation pass."""
    log = Log(Machines({"other": Tally}))
    log.alarm()
    with pytest.raises(errors.UnsupportedFormat, match="tally"):
        log.call("drop")


def test_a_machine_that_cannot_be_weighed_counts_what_it_was_given() -> None:
    """It stops no member."""

    class Shy(Tally):
        """One that does not say what it consists of."""

        def rows(self) -> list[Any]:
            raise ZeroDivisionError

    log = Log(Machines({"tally": Shy}))
    log.call("add", "x")
    log.alarm()
    assert log.replica.machines.size_bytes > ROW_BYTES
    assert log.call("drop") == 0


def test_a_machine_of_bytes_says_how_large_it_is() -> None:
    """Nobody else can; and whoever says it says a number."""
    parts = {
        name: getattr(Tally(), name) for name in ("version", "takes_room", "apply", "query", "snapshot", "restore")
    }
    sized: Any = SimpleNamespace(**parts, size_bytes=7)
    assert Machines({"bytes": lambda: sized}).size_bytes == 0
    for wrong in (None, "7", 7.5, len):
        sized.size_bytes = wrong
        with pytest.raises(errors.ConfigurationError, match="is a number"):
            Machines({"bytes": lambda: sized})


@pytest.mark.parametrize("size_bytes", [-5, "much", float("inf")])
def test_a_size_that_turns_out_to_be_none_harms_nobody(size_bytes: Any) -> None:
    """It is written to every snapshot."""

    class Boasting(Tally):
        """One that says something else once it was used."""

        @property
        def size_bytes(self) -> int:
            return size_bytes if self.counts else 3  # type: ignore[no-any-return]

    log = Log(Machines({"tally": Boasting}))
    assert log.call("add", "x") == 1
    assert log.replica.machines.size_bytes == 0
    assert log.restored(Machines({"tally": Boasting})).machines.size_bytes == 0


@pytest.mark.parametrize("face", ["node", "client"])
def test_machines_count_towards_the_quota(face: str) -> None:
    """Whoever calls is refused as with a put, is shown why, and goes on when there is room again."""

    async def scenario(cluster: Cluster) -> None:
        engine = cluster.leader if face == "node" else cluster.client()
        tally = engine.machine("tally")
        with pytest.raises(errors.NoSpace):  # noqa: PT012 - one of many is refused
            for number in range(1000):
                await tally.call("keep", str(number), "v" * 1000)
                await asyncio.sleep(0.03)  # virtual time
        await refused(engine.put("k", "v"), errors.NoSpace)
        status = await engine.status()
        assert status.db_size_bytes < QUOTA < status.machines_size_bytes
        assert (await tally.query("get", "0")) == "v" * 1000
        await tally.call("drop")
        await asyncio.sleep(0.3)
        assert await engine.alarms.list() == []
        await tally.call("keep", "0", "v")

    virtually(scenario, config=NodeConfig(settings=Settings(quota_bytes=QUOTA)))


def test_what_has_no_room_is_not_written_to_the_log_either() -> None:
    """A member that knows of the alarm, or that its disk is full, refuses before anybody else is asked."""

    async def scenario(cluster: Cluster) -> None:
        leader = cluster.leader
        tally = leader.machine("tally")
        await tally.call("keep", "x", "v" * 2 * QUOTA)
        assert leader._member is not None
        await until(lambda: not leader._member.replica.rules.is_quiet)
        raft, disk = leader._member.raft, leader._member.disk
        before = raft.last_index
        await refused(tally.call("keep", "y", "v"), errors.NoSpace)
        assert raft.last_index == before
        disk.filled(True)
        await refused(tally.call("drop"), errors.DiskFull)
        assert raft.last_index == before
        disk.filled(False)
        await tally.call("drop")

    virtually(scenario, config=NodeConfig(settings=Settings(quota_bytes=QUOTA)))
