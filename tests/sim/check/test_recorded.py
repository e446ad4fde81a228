from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyraftkv import Cluster, errors
from pyraftkv.engine import Engine
from pyraftkv.sim.check import (
    Finding,
    History,
    Outcome,
    RecordedKV,
    check_linearizable,
    check_revisions,
    check_watches,
    from_lines,
    to_lines,
)
from pyraftkv.sim.loop import SimLoop
from pyraftkv.store.commands import DeleteRange, PutKey, RangeQuery
from tests.sim.check.executions import MUTATORS, WATCH_MUTATORS, lost_answer


class Clock:
    """Counts up."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


async def work(kv: RecordedKV, local: RecordedKV, random: Random, count: int) -> None:
    """Ask for all kinds of things."""
    for number in range(count):
        key, value = f"k{random.randrange(5)}", str(number)
        kind = random.randrange(9)
        try:
            if kind < 2:
                await kv.put(key, value, prev_kv=True)
            elif kind == 2:
                await kv.create(key, value)
            elif kind == 3:
                await kv.put(key, value, if_revision=(await kv.range(key, limit=1)).revision)
            elif kind == 4:
                await kv.delete(prefix=key, prev_kv=True)
            elif kind == 5:
                await kv.get(key)
            elif kind == 6:
                await local.range(prefix="k", consistency="local")
            elif kind == 7:
                branches = [PutKey(b"k1", b"t"), RangeQuery(b"k", b"l")], [DeleteRange(b"k1")]
                await kv.txn().then(*branches[number % 2]).commit()
            else:
                await kv.compact((await local.status()).revision - 3)
        except errors.NotApplied:
            continue


async def watch(kv: RecordedKV, by_batch: bool) -> None:
    """Watch everything until cancelled."""
    async with kv.watch(prefix="k", prev_kv=True, start_revision=int(by_batch)) as changes:
        await changes.synced()
        if by_batch:
            async for _ in changes.batches():
                assert changes.revision
        else:
            async for _ in changes:
                pass


async def recorded(seed: int) -> History:
    """Return the history of a real cluster."""
    history, clock = History(), Clock()
    async with Cluster.in_memory(3, seed=seed) as cluster:
        clients = [RecordedKV(cluster.client(), history, clock=clock, client=f"c{n}") for n in range(3)]
        nodes = [RecordedKV(node, history, clock=clock, client="n", member=node.name) for node in cluster]
        watchers = [(kv, by_batch) for kv in (clients[0], nodes[1]) for by_batch in (True, False)]
        watches = [asyncio.create_task(watch(*each)) for each in watchers]
        await asyncio.gather(*(work(clients[n], nodes[n], Random(seed + n), 40) for n in range(3)))
        for each in watches:
            each.cancel()
        await asyncio.wait(watches)
    return history


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A recorded history, as lines, so that each test spoils its own.

    In virtual time, so that it is the same one every time: in some histories some faults are none that could be seen.
    """
    loop = SimLoop(Random(1))
    try:
        return list(to_lines(loop.run(recorded(1), until=1_000.0)))
    finally:
        loop.close()


@pytest.fixture
def history(lines: list[str]) -> History:
    """A recorded history."""
    return from_lines(lines)


def test_what_a_real_cluster_does_is_right(history: History) -> None:
    """All checkers approve of it, and it is not empty."""
    assert Finding.RIGHT is check_revisions(history).finding, check_revisions(history)
    assert Finding.RIGHT is check_watches(history).finding, check_watches(history)
    assert Finding.RIGHT is check_linearizable(history).finding, check_linearizable(history)
    assert len(history.ops) > 120
    assert sum(len(each.events) for watch in history.watches for each in watch.deliveries) > 50


@pytest.mark.parametrize("mutator", [each for each in MUTATORS if each is not lost_answer])
def test_one_fault_in_it_is_caught(history: History, mutator) -> None:
    """It shows in the answers, or in what watches saw."""
    assert mutator(Random(3), history)
    assert Finding.WRONG is check_watches(history).finding


@pytest.mark.parametrize("mutator", WATCH_MUTATORS)
def test_one_fault_in_a_watch_is_caught(history: History, mutator) -> None:
    """It shows against what was done."""
    history.watches.sort(key=lambda watch: -sum(len(each.events) for each in watch.deliveries))
    assert mutator(Random(3), history)
    assert Finding.WRONG is check_watches(history).finding


async def watched_to_its_end() -> History:
    """Return the history of a watch that was read event by event, until it had shown the last of three."""
    history, clock = History(), Clock()
    async with Cluster.in_memory(1) as cluster:
        kv = RecordedKV(cluster.client(), history, clock=clock, client="a")
        async with kv.watch("x", start_revision=2) as changes:
            for number in range(3):
                await kv.put("x", str(number))
            async for event in changes:
                if event.kv.mod_revision == 4:
                    break
    return history


def test_how_far_a_watch_says_to_have_come_at_its_end_is_written_down() -> None:
    """Its reader goes on from there: what was never shown below, nobody else would miss."""
    loop = SimLoop(Random(1))
    try:
        history = loop.run(watched_to_its_end(), until=1_000.0)
    finally:
        loop.close()
    assert Finding.RIGHT is check_watches(history).finding
    (record,) = history.watches
    *shown, end = record.deliveries
    assert [each.last_revision for each in shown] == [2, 3, 4]
    assert end.revision == 3  # of 4, more might have followed
    record.deliveries = [shown[0], end]
    assert "left out revision 3" in check_watches(history).reason


class Oracle(Engine):
    """Answers with what it is told to."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    async def _answer(self):
        answer = self._answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def write(self, command, timeout):
        return await self._answer()

    async def write_put(self, key, value, timeout):
        return await self._answer()

    async def read(self, query, consistency, timeout, *, at_least=0):
        return await self._answer()

    async def look(self, query, consistency, timeout):
        raise NotImplementedError

    def draw_lease_id(self):
        raise NotImplementedError

    async def ask_leases(self, query, timeout):
        raise NotImplementedError

    def watch_range(self, key, end, **options):
        raise NotImplementedError

    async def status(self, *, timeout=None):
        raise NotImplementedError

    async def change_members(self, command, timeout):
        raise NotImplementedError

    async def member_table(self, timeout):
        raise NotImplementedError

    async def change_rules(self, command, timeout):
        raise NotImplementedError

    async def rules_table(self, timeout):
        raise NotImplementedError

    async def space_won_back(self, revision, timeout):
        raise NotImplementedError

    def snapshot_parts(self, consistency, timeout):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (errors.NoLeader(), Outcome.FAILED),
        (errors.WriteTimeout(), Outcome.UNKNOWN),
        (errors.StorageFailed(), Outcome.UNKNOWN),
        (None, Outcome.UNKNOWN),
    ],
)
def test_every_end_has_its_outcome(answer: object, outcome: Outcome) -> None:
    """Refused is certain; everything else, a caller that gives up too, is not."""
    history, noted = History(), []
    kv = RecordedKV(Oracle(answer), history, clock=Clock(), client="a", noted=noted.append)

    async def ask() -> None:
        with pytest.raises((errors.PyraftkvError, TimeoutError)):
            async with asyncio.timeout(0):
                await kv.put("x", "1")

    asyncio.run(ask())
    (op,) = history.ops
    assert op.outcome is outcome
    assert op.ended is not None
    assert noted == [op, op]
