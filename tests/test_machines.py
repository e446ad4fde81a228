"""Machines of one's own: applied once and everywhere, refused everywhere, kept in snapshots, at versions all know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Cluster, Node, codec, errors
from pyraftkv.core import MEMBERSHIP, Entry
from pyraftkv.machines import ROWS_PER_CHUNK, Machine, Machines, encode_call, parts_of, versions_of
from pyraftkv.protocol import Decided, Envelope, Genesis, MemberInfo, RegisterSession
from pyraftkv.replica import CHECK_ENTRIES, Effect, Replica
from pyraftkv.sessions import Refusal
from pyraftkv.settings import AlarmKind, ChangeAlarm
from pyraftkv.sim import SimLoop
from pyraftkv.statemachine import (
    CHUNK_BYTES_MAX,
    MACHINES_MAX,
    OPERATION_BYTES_MAX,
    RESULT_BYTES_MAX,
    MachineQuery,
    Operate,
    Operated,
    Operation,
    operation,
    query,
)
from tests.node.support import asynchronous, refused

Scenario = Callable[[Cluster], Coroutine[Any, Any, None]]


class Silent(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise ZeroDivisionError


RAISED: dict[str, BaseException] = {
    "memory": MemoryError(),
    "stack": RecursionError(),
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "silent": Silent(),
    "long name": type("X" * 1_000_000, (Exception,), {})(),
}


class Tally(Machine):
    """Numbers by name, as of release 1."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}

    @operation
    def add(self, name: str, amount: int = 1) -> int:
        """Add to a number."""
        if amount < 0:
            raise ValueError("less is no more")
        self.counts[name] = self.counts.get(name, 0) + amount
        return self.counts[name]  # type: ignore[no-any-return]

    @operation
    def keep(self, name: str, value: Any) -> list[int]:
        """Keep anything; return where it stands in the log, and the store's revision."""
        self.counts[name] = value
        return [self.entry_index, self.store_revision]

    @operation(takes_room=False)
    def drop(self, prefix: str = "") -> int:
        """Forget what begins like this; return how many are left."""
        self.counts = {name: value for name, value in self.counts.items() if not name.startswith(prefix)}
        return len(self.counts)

    @operation
    def blow(self, error: str) -> Any:
        """End as is asked for."""
        if error in RAISED:
            raise RAISED[error]
        return {"long": "x" * (RESULT_BYTES_MAX - 4), "set": {1}}[error]

    @query
    def get(self, name: str) -> Any:
        """Return a number."""
        return self.counts.get(name, 0)

    def rows(self) -> list[Any]:
        return list(self.counts.items())

    def load(self, rows: list[Any]) -> None:
        self.counts.update(rows)


class Tally2(Tally):
    """The same, as of release 2: what is added counts twice."""

    @operation(version=2, name="add")
    def add_twice(self, name: str, amount: int = 1) -> int:
        """Add to a number, twice."""
        return self.add(name, 2 * amount)


class Log:
    """A replica, and what is applied to it."""

    def __init__(self, machines: Machines | None = None) -> None:
        self.replica = Replica(machines if machines is not None else Machines({"tally": Tally}))
        self._sequence = 0
        self._append(codec.encode_logged(Genesis(7, [MemberInfo(1, "a", "a", 1, 1)], [])), kind=MEMBERSHIP)
        effect = self._append(codec.encode_logged(RegisterSession(5)))
        assert isinstance(effect, Effect)
        assert isinstance(effect.outcome, int)
        self.session = effect.outcome

    def _append(self, payload: bytes, **kind: Any) -> Any:
        return self.replica.apply(Entry(self.replica.applied_index + 1, 1, payload, **kind))

    def call(self, name: str, *args: Any, version: int = 1, machine: str = "tally", again: bool = False) -> Any:
        """Append an operation; return what it came to."""
        self._sequence += not again
        command = Operate(machine, version, encode_call(name, args))
        effect = self._append(codec.encode_logged(Envelope(self.session, self._sequence, 1, command)))
        return codec.decode_plain(effect.outcome.result) if isinstance(effect.outcome, Operated) else effect.outcome

    def get(self, name: str) -> Any:
        """Ask the machine."""
        return codec.decode_plain(self.replica.machines.query(MachineQuery("tally", encode_call("get", (name,)))))

    def alarm(self) -> None:
        """Append that the quota is crossed."""
        self._append(codec.encode_logged(Decided(1, 1, ChangeAlarm(AlarmKind.NOSPACE, 1, is_raised=True))))

    def restored(self, machines: Machines) -> Replica:
        """Return another replica, made of a snapshot of this one."""
        snapshot = self.replica.snapshot()
        restorer = Replica(machines).restorer(index=snapshot.index, term=snapshot.term)
        for chunk in snapshot.chunks():
            restorer.feed(chunk)
        snapshot.close()
        return restorer.finish()


def virtually(scenario: Scenario, *, members: int = 3, seed: int = 1, **options: Any) -> None:
    """Run a scenario with a cluster that has a tally, in virtual time."""

    async def main() -> None:
        async with Cluster.in_memory(members, seed=seed, machines={"tally": Tally}, **options) as cluster:
            await scenario(cluster)

    loop = SimLoop(random.Random(seed))
    try:
        loop.run(main(), until=1e5)
    finally:
        loop.close()


# --- A replica -----------------------------------------------------------------------------------------------------


def test_an_operation_that_stands_in_the_log_twice_is_applied_once() -> None:
    """Its outcome is the same both times; and it makes no revision."""
    log = Log()
    assert log.call("add", "x", 3) == 3
    assert log.call("add", "x", 3, again=True) == 3
    assert log.get("x") == 3
    assert log.call("keep", "y", None) == [log.replica.applied_index, 1]
    assert log.replica.store.published_revision == 1


def test_what_an_operation_raises_is_its_outcome() -> None:
    """Also when there is none of that name, or it is called with other arguments."""
    log = Log()
    calls: list[tuple[list[Any], str]] = [
        (["add", "x", -1], "ValueError"),
        (["none"], "InvalidRequest"),
        (["add"], "TypeError"),
    ]
    for call, kind in calls:
        refusal = log.call(*call)
        assert isinstance(refusal, Refusal)
        error = refusal.error()
        assert isinstance(error, errors.OperationRefused)
        assert (error.machine, error.error) == ("tally", kind)
        again = log.call(*call, again=True)
        assert (again.name, again.message) == (refusal.name, refusal.message)
    assert log.get("x") == 0


@pytest.mark.parametrize("what", ["memory", "stack", "interrupt"])
def test_short_memory_is_no_outcome(what: str) -> None:
    """It is one member's own matter: that one stops."""
    log = Log()
    with pytest.raises(type(RAISED[what])):
        log.call("blow", what)


@pytest.mark.parametrize("what", ["exit", "cancelled", "silent", "long name"])
def test_an_operation_stops_no_member_whatever_it_raises(what: str) -> None:
    """It would stop all of them, and again whenever they are started."""
    log = Log()
    refusal = log.call("blow", what)
    assert isinstance(refusal, Refusal)
    assert (refusal.name, len(refusal.data["error"]) < 100) == ("OperationRefused", True)
    assert log.call("add", "x") == 1


class Numbers(Tally):
    """A machine that says what is no bytes, and no chunks."""

    def apply(self, operation: Operation) -> bytes:
        super().apply(operation)
        return 1 << 50  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    def rows(self) -> list[Any]:
        raise ZeroDivisionError


def test_a_result_that_is_no_bytes_is_refused() -> None:
    """Of a number `bytes` would make as many zeros as there is no memory for."""
    refusal = Log(Machines({"tally": Numbers})).call("add", "x")
    assert (refusal.name, refusal.data["error"]) == ("OperationRefused", "TypeError")


def test_a_machine_that_cannot_be_pinned_keeps_the_member_running() -> None:
    """Who asks for its chunks is told: no snapshot is written, and that is all."""
    log = Log(Machines({"tally": Numbers}))
    log.call("add", "x")
    snapshot = log.replica.snapshot()
    with pytest.raises(errors.OperationRefused, match="'tally' cannot be saved: ZeroDivisionError"):
        list(snapshot.chunks())


@pytest.mark.parametrize("what", ["long", "set"])
def test_a_result_that_cannot_be_told_says_that_it_was_applied(what: str) -> None:
    """It is too long, or no plain value."""
    assert isinstance(Log().call("blow", what).error(), errors.MaybeApplied)


def test_a_member_stops_at_what_it_does_not_know() -> None:
    """A newer version than its own, or a machine that it does not have; in the log and in a snapshot."""
    new = Log(Machines({"tally": Tally2}))
    assert new.call("add", "x", 1, version=1) == 1
    assert new.restored(Machines({"tally": Tally})).machines.plain() == new.replica.machines.plain()
    assert new.call("add", "x", 1, version=2) == 3
    for machines in (Machines({"tally": Tally}), Machines()):
        with pytest.raises(errors.UnsupportedFormat, match="tally"):
            new.restored(machines)
        with pytest.raises(errors.UnsupportedFormat, match="tally"):
            Log(machines).call("add", "x", version=2)


def test_a_snapshot_has_every_machine() -> None:
    """In chunks that are not too long, whatever is applied while they are taken, and however deep a value is."""
    log = Log()
    deep: Any = 1
    for _ in range(7):
        deep = [deep]
    log.call("keep", "deep", deep)
    for number in range(2 * ROWS_PER_CHUNK):
        log.call("keep", str(number), "v" * (CHUNK_BYTES_MAX // 64))
    snapshot = log.replica.snapshot()
    log.call("add", "later")
    restorer = Replica(Machines({"tally": Tally})).restorer(index=snapshot.index, term=snapshot.term)
    chunks = list(snapshot.chunks())
    for chunk in chunks:
        restorer.feed(chunk)
    replica = restorer.finish()
    tally = replica.machines._slots["tally"].machine  # pyright: ignore[reportPrivateUsage]
    assert isinstance(tally, Tally)
    assert (tally.counts["deep"], len(tally.counts)) == (deep, 2 * ROWS_PER_CHUNK + 1)
    assert len(chunks) > 8
    assert max(map(len, chunks)) <= CHUNK_BYTES_MAX + 1
    assert log.restored(Machines({"tally": Tally})).state_hash == log.replica.state_hash


@pytest.mark.parametrize("length", [1, OPERATION_BYTES_MAX, 4 * CHUNK_BYTES_MAX])
def test_a_row_of_any_length_has_its_place_in_a_snapshot(length: int) -> None:
    """What grew over years is no reason to write no snapshot any more."""
    log = Log()
    log.call("keep", "before", 1)
    tally = log.replica.machines._slots["tally"].machine  # pyright: ignore[reportPrivateUsage]
    assert isinstance(tally, Tally)
    tally.counts["long"] = "v" * length  # pyright: ignore[reportArgumentType]
    log.call("keep", "behind", 2)
    assert max(map(len, log.replica.snapshot().chunks())) <= CHUNK_BYTES_MAX + 1
    restored = log.restored(Machines({"tally": Tally})).machines._slots["tally"].machine  # pyright: ignore[reportPrivateUsage]
    assert isinstance(restored, Tally)
    assert restored.counts == tally.counts


def test_a_tool_keeps_machines_that_it_does_not_know() -> None:
    """And passes their operations over."""
    log = Log()
    log.call("add", "x", 3)
    kept = log.restored(Machines(keeps_all=True))
    assert list(parts_of(kept.machines.pin())) == list(parts_of(log.replica.machines.pin()))
    command = Operate("tally", 9, encode_call("add", ("x", 3)))
    assert Machines(keeps_all=True).apply(command, index=5, revision=4) == Operated(4, b"")


def test_a_part_that_no_machine_can_read_is_corruption() -> None:
    """It says so, and does not end as a bug."""
    log = Log()
    log.call("add", "x", 3)
    restorer = Machines({"tally": Tally}).restorer()
    restorer.feed(next(parts_of(log.replica.machines.pin())))
    with pytest.raises(errors.SnapshotCorruption, match="a machine"):
        restorer.feed(b"\0\xc1")


def test_the_state_hash_tells_machines_apart() -> None:
    """What an operation came to counts, and that it was applied; a machine that was never used does not."""
    first, second = Log(), Log(Machines({"tally": Tally, "other": Tally}))
    assert first.replica.state_hash == second.replica.state_hash
    first.call("add", "x", 1)
    second.call("add", "x", 2)
    assert first.replica.state_hash != second.replica.state_hash


def test_limits_have_names() -> None:
    """What is over one cannot be encoded, or configured."""
    with pytest.raises(errors.InvalidRequest):
        codec.encode_logged(Envelope(1, 1, 1, Operate("tally", 1, b"x" * (OPERATION_BYTES_MAX + 1))))
    for command in (Operate("tally", 0, b""), Operate("", 1, b""), Operate("no=1", 1, b"")):
        with pytest.raises(errors.InvalidRequest):
            codec.encode_logged(Envelope(1, 1, 1, command))
    with pytest.raises(errors.ConfigurationError):
        Machines(dict.fromkeys(map(str, range(MACHINES_MAX + 1)), Tally))
    with pytest.raises(errors.ConfigurationError):
        Machines({"a b": Tally})
    with pytest.raises(ValueError, match="from 1 on"):
        operation(version=0)


def test_a_machine_without_a_snapshot_is_refused_when_it_is_made() -> None:
    """Not by its first snapshot, which comes with the first million entries."""

    class Forgetful(Machine):
        @operation
        def add(self) -> int:
            return 1

        def rows(self) -> list[Any]:
            return []

    with pytest.raises(errors.ConfigurationError, match=r"'forgetful', a Forgetful, has no 'load'"):
        Machines({"forgetful": Forgetful})


def test_a_machine_that_cannot_be_saved_is_named() -> None:
    """Or its owner would look for it in a traceback of the snapshot's writer."""

    class Heap(Tally):
        def rows(self) -> list[Any]:
            return [{"a", "set"}]

    log = Log(Machines({"tally": Heap}))
    log.call("add", "x", 1)
    with pytest.raises(errors.OperationRefused, match="the machine 'tally' cannot be saved: TypeError"):
        log.restored(Machines({"tally": Heap}))


def test_what_would_never_be_called_is_no_machine() -> None:
    """A coroutine, and a method in the place of an operation: where the class stands, not at the first call."""
    with pytest.raises(TypeError, match=r"Awaits\.add cannot be a coroutine"):

        class Awaits(Machine):
            @operation
            async def add(self) -> int:
                return 1

    with pytest.raises(TypeError, match=r"Another\.add takes the place of an operation"):

        class Another(Tally):
            def add(self, name: str, amount: int) -> int:  # type: ignore[override]
                return 0


def test_who_takes_an_operation_for_a_query_is_told() -> None:
    """And the other way round."""
    log = Log()
    assert "it is a query" in str(log.call("get", "x"))
    with pytest.raises(errors.OperationRefused, match="it is an operation"):
        log.replica.machines.query(MachineQuery("tally", encode_call("add", ("x", 1))))


def test_what_a_hello_says_of_machines_is_read_with_care() -> None:
    """Whoever is at the other end has written it."""
    assert versions_of(Machines({"b": Tally2, "a": Tally}).offer) == {"a": 1, "b": 2}
    assert versions_of("") == {}
    assert versions_of("a=x,b,=,c=-1,d=3") == {"d": 3}


# --- A cluster -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_machine_is_called_through_every_face() -> None:
    """A leader, a follower, a client, and a namespace; with reads of both kinds."""
    async with Cluster.in_memory(3, machines={"tally": Tally}) as cluster:
        follower, client = cluster.followers[0], cluster.client()
        for count, face in enumerate((cluster.leader, follower, client, client.namespace("app/")), start=1):
            tally = face.machine("tally")
            assert await tally.call("add", "x") == count
            assert await tally.query("get", "x") == count
            assert await tally.query("get", "x", consistency="local") <= count
            assert await tally.version() == 1
            error = await refused(tally.call("add", "x", -1), errors.OperationRefused)
            assert error.error == "ValueError"
            error = await refused(tally.query("nothing"), errors.OperationRefused)
            assert error.error == "InvalidRequest"
            await refused(tally.call("add", "x", version=2), errors.InvalidRequest)
            await refused(face.machine("none").call("add", "x"), errors.InvalidRequest)
            await refused(tally.call("add", {"a", "set"}), errors.InvalidRequest)
        put = await client.put("k", "v")
        operated = await client.machine("tally").apply(encode_call("add", ("x",)))
        assert operated.revision == put.revision


def test_a_member_gets_its_machines_of_a_snapshot() -> None:
    """When it starts again, and when it joins."""

    async def scenario(cluster: Cluster) -> None:
        node = cluster.followers[0]
        assert await node.machine("tally").call("add", "x", 7) == 7
        for each in cluster:
            await each.take_snapshot()
        await cluster.kill(node)
        node = await cluster.restart(node.name)
        assert await node.machine("tally").query("get", "x", consistency="local") == 7
        joined = await cluster.add()
        assert await joined.machine("tally").query("get", "x") == 7
        assert await joined.machine("tally").call("add", "x") == 8

    virtually(scenario)


def test_operations_are_proposed_at_a_version_that_all_members_know() -> None:
    """A cluster is upgraded member by member, and is used meanwhile."""

    async def scenario(cluster: Cluster) -> None:
        client = cluster.client()
        assert await client.machine("tally").call("add", "x") == 1
        cluster.machines = {"tally": Tally2}
        for name in ("n1", "n2"):
            await cluster.kill(name)
            await cluster.restart(name)
            await asyncio.sleep(5)
        tally = cluster.nodes["n1"].machine("tally")
        assert await tally.version() == 1
        await refused(tally.call("add", "x", version=2), errors.InvalidRequest)
        assert await tally.call("add", "x") == 2
        await cluster.kill("n3")
        await cluster.restart("n3")
        await asyncio.sleep(5)
        assert await tally.version() == 2
        assert await tally.call("add", "x") == 4
        assert await client.machine("tally").call("add", "x", version=1) == 5

    virtually(scenario)


def test_a_member_without_the_machine_is_not_stopped() -> None:
    """It said in its HELLO what it has: nothing is proposed that it could not apply."""

    async def scenario(cluster: Cluster) -> None:
        cluster.machines = {}
        await cluster.kill("n3")
        await cluster.restart("n3")
        await asyncio.sleep(5)
        await refused(cluster.nodes["n1"].machine("tally").call("add", "x"), errors.Unavailable)
        assert set(cluster.nodes) == {"n1", "n2", "n3"}
        await cluster.nodes["n3"].put("k", "v")

    virtually(scenario)


def test_a_member_of_an_older_release_stops_and_says_so() -> None:
    """It came back too late: what is committed already it cannot skip."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.kill("n3")
        cluster.machines = {"tally": Tally2}
        for name in ("n1", "n2"):
            await cluster.kill(name)
            await cluster.restart(name)
        await cluster.wait_for_leader()
        await cluster.nodes["n1"].machine("tally").call("add", "x", version=1)
        cluster.nodes["n1"]._member.replica.machines._slots["tally"].version = 2  # type: ignore[union-attr]  # pyright: ignore[reportPrivateUsage]
        assert await cluster.nodes["n1"].machine("tally").call("add", "x", version=2) == 3
        cluster.machines = {"tally": Tally}
        node = None
        try:
            node = await cluster.restart("n3")
            assert node.failed is not None
            with pytest.raises(errors.UnsupportedFormat, match="start it with the newer one"):
                await node.failed
        finally:
            cluster.nodes.pop("n3", None)

    virtually(scenario)


def test_a_witness_has_no_machines() -> None:
    """It passes their entries over, and nobody waits for what it does not offer."""

    async def scenario(cluster: Cluster) -> None:
        tally = cluster.client().machine("tally")
        assert [await tally.call("add", "x") for _ in range(3)] == [1, 2, 3]
        await refused(cluster.nodes["n3"].machine("tally").query("get", "x"), errors.NoState)

    virtually(scenario, witness=True)


def test_a_client_cannot_stop_a_member() -> None:
    """It asks for what no member knows, in bytes of its own making: nobody proposes that."""

    async def scenario(cluster: Cluster) -> None:
        client = cluster.client()
        for machine, version in (("tally", 2), ("none", 1)):
            command = Operate(machine, version, encode_call("add", ("x",)))
            await refused(client.operate(command, 2.0), errors.MaybeApplied)
        assert set(cluster.nodes) == {"n1", "n2", "n3"}
        assert await client.machine("tally").call("add", "x") == 1

    virtually(scenario)


def test_a_member_whose_machine_differs_is_repaired() -> None:
    """An operation that reads what differs is the user's bug; the hash finds it, and another member has the state."""

    async def scenario(cluster: Cluster) -> None:
        tally = cluster.client().machine("tally")
        assert await tally.call("add", "x") == 1
        node = cluster.nodes["n2"]
        _tally_of(node).counts["x"] = 100
        for _ in range(CHECK_ENTRIES + 10):
            await tally.call("add", "x")
        async with asyncio.timeout(60):
            while _tally_of(node).counts["x"] >= CHECK_ENTRIES + 50:  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.1)
        assert await tally.call("add", "x") == CHECK_ENTRIES + 12
        assert await node.machine("tally").query("get", "x") == CHECK_ENTRIES + 12

    virtually(scenario)


def _tally_of(node: Node) -> Tally:
    assert node._member is not None  # pyright: ignore[reportPrivateUsage]
    machine = node._member.replica.machines._slots["tally"].machine  # pyright: ignore[reportPrivateUsage]
    assert isinstance(machine, Tally)
    return machine


@pytest.mark.parametrize("seed", range(3))
def test_operations_are_applied_once_under_faults(seed: int) -> None:
    """Members die and come back: what was acknowledged is there once, the rest at most once.

    Where messages get lost, too, and disks and clocks are bad, machines are called in random runs (`tests.sim`).
    """

    async def scenario(cluster: Cluster) -> None:
        rng = random.Random(seed)
        acknowledged = unknown = 0

        async def caller() -> None:
            nonlocal acknowledged, unknown
            tally = cluster.client().machine("tally")
            for _ in range(40):
                try:
                    await tally.call("add", "x", timeout=3.0)
                    acknowledged += 1
                except errors.MaybeApplied:
                    unknown += 1
                except errors.NotApplied:
                    pass
                await asyncio.sleep(rng.random())

        async def faults() -> None:
            for _ in range(8):
                name = rng.choice(sorted(cluster.nodes))
                await asyncio.sleep(2 * rng.random())
                if rng.random() < 0.5:
                    await cluster.nodes[name].take_snapshot()
                await cluster.kill(name)
                await asyncio.sleep(2 * rng.random())
                await cluster.restart(name)

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(caller())
            group.create_task(faults())
        await cluster.wait_for_leader()
        counts = [await node.machine("tally").query("get", "x") for node in cluster]
        assert len(set(counts)) == 1, f"seed {seed}: {counts}"
        assert acknowledged <= counts[0] <= acknowledged + unknown, f"seed {seed}"
        assert acknowledged > 60, f"seed {seed}"

    virtually(scenario, seed=seed)


@asynchronous
async def test_a_saved_snapshot_keeps_machines_that_the_tool_does_not_know(tmp_path: Path) -> None:
    """`restore_snapshot` is told of no machine, and the new cluster has it all the same."""
    async with pyraftkv.open(tmp_path / "a", machines={"tally": Tally}) as node:
        await node.machine("tally").call("add", "x", 9)
        await node.snapshot(tmp_path / "saved")
    await pyraftkv.restore_snapshot(tmp_path / "saved", tmp_path / "b")
    async with pyraftkv.open(tmp_path / "b", machines={"tally": Tally}) as node:
        assert await node.machine("tally").query("get", "x") == 9
    await pyraftkv.recover(tmp_path / "b")
    async with pyraftkv.open(tmp_path / "b", machines={"tally": Tally}) as node:
        assert await node.machine("tally").call("add", "x") == 10
