"""The applier: in order, in slices, snapshots in their place, and nothing reported before it is so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pyraftkv import codec, errors
from pyraftkv.core import MEMBERSHIP, Applied, Entry, Membership, SnapshotMeta
from pyraftkv.node.applier import Applier
from pyraftkv.protocol import AddMember, ChangeMembers, Envelope, Genesis, MemberInfo, MembersResult, RegisterSession
from pyraftkv.replica import DecisionApplied, Effect, Replica
from pyraftkv.store.commands import Command, DeleteRange, PutBatch, PutKey
from tests.node.support import asynchronous, refused, stamped, until


class Owner:
    """Notes what the applier tells."""

    def __init__(self, replica: Replica | None = None, *, slice_seconds: float = 10.0) -> None:
        self.effects: list[Effect] = []
        self.decisions: list[DecisionApplied] = []
        self.applied: list[Applied] = []
        self.restored: list[SnapshotMeta] = []
        self.chunks: list[bytes] = []
        self.asked: list[SnapshotMeta] = []
        self.purged: list[SnapshotMeta] = []
        self.may_read = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.applier = Applier(
            replica or Replica(), self, loop=loop, read_snapshot=self.read_snapshot, slice_seconds=slice_seconds
        )
        self.running = asyncio.create_task(self.applier.run())

    def effects_applied(self, effects: list[Effect], applied: Applied) -> None:
        assert applied.index == self.applier.replica.applied_index
        self.effects += effects
        self.applied.append(applied)

    def decision_applied(self, decision: DecisionApplied) -> None:
        self.decisions.append(decision)

    def replica_restored(self, replica: Replica, snapshot: SnapshotMeta) -> None:
        assert self.applier.replica is replica
        self.restored.append(snapshot)

    async def read_snapshot(self, meta: SnapshotMeta) -> AsyncIterator[bytes]:
        self.asked.append(meta)
        await self.may_read.wait()
        if meta in self.purged:
            raise errors.SnapshotCorruption("missing")
        for chunk in self.chunks:
            yield chunk

    async def close(self) -> None:
        """Stop."""
        self.running.cancel()
        await asyncio.wait([self.running])


def entries(first: int, *commands: Command, session: int = 7) -> list[Entry]:
    """Return entries with these commands, each its index for a sequence number."""
    return [
        Entry(index, 1, codec.encode_logged(Envelope(session, index, index, command)))
        for index, command in enumerate(commands, start=first)
    ]


def beginning() -> list[Entry]:
    """Return entry 1, and one that opens session 7."""
    genesis = codec.encode_logged(Genesis(7, [MemberInfo(1, "n1", "n1", 11)]))
    return [Entry(1, 1, genesis, MEMBERSHIP), Entry(2, 1, codec.encode_logged(RegisterSession(5)))]


@asynchronous
async def test_the_first_slice_runs_at_once() -> None:
    """What is short is applied before `submit` returns; a membership is told with it."""
    owner = Owner()
    assert owner.applier.is_idle
    owner.applier.submit(None, beginning())
    assert owner.effects == [Effect(0, 5, 7)]
    assert owner.applied == [Applied(2, Membership(voters=frozenset({1})))]
    owner.applier.submit(None, entries(3, *[PutKey(b"k", b"v")] * 100))
    assert owner.applied[-1] == Applied(102, None)
    assert owner.applier.is_idle
    await owner.close()


@asynchronous
async def test_of_several_changes_in_a_slice_the_last_is_in_force() -> None:
    """The machine is told of one configuration, with the last index; each of the commands has its own outcome."""
    owner = Owner()
    added = [ChangeMembers([AddMember(f"n{number}", f"h:{number}", number, learner=True)]) for number in (2, 3)]
    changes = [
        Entry(index, 1, stamped(after, Envelope(7, index, 1, command)), MEMBERSHIP)
        for after, index, command in zip((1, 3), (3, 4), added, strict=True)
    ]
    owner.applier.submit(None, [*beginning(), *changes, *entries(5, PutKey(b"k", b"v"))])
    assert owner.applied == [Applied(5, Membership(voters=frozenset({1}), learners=frozenset({2, 3})))]
    outcomes = [effect.outcome for effect in owner.effects[1:3]]
    assert [outcome.added for outcome in outcomes if isinstance(outcome, MembersResult)] == [[2], [3]]
    await owner.close()


@asynchronous
async def test_a_slice_ends_when_its_time_is_up() -> None:
    """The rest follows in later passes, in order, also what was submitted meanwhile."""
    owner = Owner(slice_seconds=0.0)
    owner.applier.submit(None, beginning())
    owner.applier.submit(None, entries(3, *[PutKey(b"k", b"v")] * 97))
    owner.applier.submit(None, entries(100, *[PutKey(b"k", b"v")] * 3))
    first = owner.applied[-1].index
    assert 2 < first < 102
    owner.applier.submit(None, entries(103, PutKey(b"k", b"v")))
    assert not owner.applier.is_idle
    await until(lambda: owner.applier.is_idle)
    assert [effect.sequence for effect in owner.effects] == [5, *range(3, 104)]
    indexes = [applied.index for applied in owner.applied]
    assert indexes == sorted(indexes)
    assert len(indexes) > 3
    await owner.close()


@asynchronous
async def test_time_is_looked_at_by_weight_too() -> None:
    """32 small commands are little work; 32 batches of 256 puts would hold the loop for a tenth of a second."""
    owner = Owner(slice_seconds=0.0)
    owner.applier.submit(None, beginning())
    batch = PutBatch((b"k" * 50, b"v" * 50) * 100)
    owner.applier.submit(None, entries(3, *[batch] * 20))
    assert owner.applied[-1].index == 4
    await until(lambda: owner.applier.is_idle)
    assert owner.applier.replica.store.revision == 2001
    await owner.close()


@asynchronous
async def test_a_long_command_is_applied_over_many_passes() -> None:
    """Until it is complete the applied index stands before it; then what follows is applied."""
    owner = Owner(slice_seconds=0.0)
    owner.applier.submit(None, beginning())
    owner.applier.submit(None, entries(3, *[PutKey(b"k%04d" % number, b"v") for number in range(3000)]))
    await until(lambda: owner.applier.is_idle)
    owner.applier.submit(None, entries(3003, DeleteRange(b"k", b"l"), PutKey(b"after", b"v")))
    assert owner.applier.replica.is_busy
    assert owner.applied[-1].index == 3002
    await until(lambda: owner.applier.is_idle)
    assert owner.applied[-1].index == 3004
    assert owner.applier.replica.store.key_count == 1
    await owner.close()


@asynchronous
async def test_a_snapshot_is_restored_in_its_place() -> None:
    """Entries before it are applied to the old replica, those after it to the new one; nothing overtakes it."""
    source = Owner()
    source.applier.submit(None, beginning())
    source.applier.submit(None, entries(3, PutKey(b"a", b"1"), PutKey(b"b", b"2")))
    snapshot = source.applier.replica.snapshot()
    owner = Owner()
    owner.chunks = list(snapshot.chunks())
    snapshot.close()
    meta = SnapshotMeta(4, 1, Membership(voters=frozenset({1})))
    owner.applier.submit(None, beginning())
    owner.applier.submit(meta, entries(5, PutKey(b"c", b"3")))
    assert owner.applied[-1].index == 2
    await until(lambda: not owner.applier.is_restored)
    owner.applier.submit(None, entries(6, PutKey(b"d", b"4")))
    assert owner.applied[-1].index == 2, "nothing overtakes it"
    owner.may_read.set()
    await until(lambda: owner.applier.is_idle)
    assert owner.restored == [meta]
    assert owner.applied[-1].index == 6
    assert owner.applier.replica.store.key_count == 4
    await source.close()
    await owner.close()


@asynchronous
async def test_the_newest_snapshot_takes_the_place_of_all_that_is_queued() -> None:
    """1. A snapshot is being loaded, slowly, and entries and two newer ones queue up behind it.

    2. The newest one purges the data of those before it: the first cannot be read to its end, the second not at all.
    3. Neither is missed: the newest says everything that they said.
    """
    source = Owner()
    source.applier.submit(None, beginning())
    source.applier.submit(None, entries(3, PutKey(b"a", b"1")))
    snapshot = source.applier.replica.snapshot()
    owner = Owner()
    owner.chunks = list(snapshot.chunks())
    snapshot.close()
    first, second, newest = (SnapshotMeta(index, 1, Membership(voters=frozenset({1}))) for index in (1, 2, 3))
    owner.applier.submit(first, entries(2, PutKey(b"never", b"applied")))
    await until(lambda: owner.asked)
    owner.applier.submit(second, [])
    owner.applier.submit(newest, entries(4, PutKey(b"b", b"2")))
    owner.purged = [first, second]
    assert not owner.applier.is_restored
    owner.may_read.set()
    await until(lambda: owner.applier.is_idle)
    assert owner.asked == [first, newest]
    assert owner.restored == [newest]
    assert owner.applied == [Applied(4, None)]
    assert owner.applier.replica.store.key_count == 2
    await source.close()
    await owner.close()


@asynchronous
async def test_a_snapshot_that_is_overtaken_is_not_swapped_in() -> None:
    """It was read to its end before anything purged it, and says less than the one that is queued."""
    source = Owner()
    source.applier.submit(None, beginning())
    snapshot = source.applier.replica.snapshot()
    owner = Owner()
    owner.chunks = list(snapshot.chunks())
    snapshot.close()
    first, newest = (SnapshotMeta(index, 1, Membership(voters=frozenset({1}))) for index in (1, 2))
    owner.applier.submit(first, [])
    await until(lambda: owner.asked)
    owner.applier.submit(newest, [])
    owner.may_read.set()
    await until(lambda: owner.applier.is_idle)
    assert owner.restored == [newest]
    await source.close()
    await owner.close()


@asynchronous
async def test_a_corrupt_snapshot_ends_the_loop() -> None:
    """And with it the node: there is no state to go on from."""
    owner = Owner()
    owner.may_read.set()
    owner.applier.submit(SnapshotMeta(4, 1, Membership(voters=frozenset({1}))), [])
    await refused(owner.running, errors.SnapshotCorruption)


@asynchronous
async def test_who_waits_for_an_entry_is_woken_when_it_is_applied_or_will_not_be() -> None:
    """Between two entries there is always a state: none before the first one, and none while one is being applied."""
    owner = Owner()
    reached = asyncio.create_task(owner.applier.applied_to(2))
    between = asyncio.create_task(owner.applier.between_entries())
    late = asyncio.create_task(owner.applier.applied_to(3))
    await asyncio.sleep(0)
    owner.applier.submit(None, beginning())
    await asyncio.gather(reached, between)
    assert not late.done()
    owner.applier.close()
    await refused(late, errors.Closed)
    await owner.applier.applied_to(2)
    await refused(owner.applier.applied_to(3), errors.Closed)
    await owner.close()
