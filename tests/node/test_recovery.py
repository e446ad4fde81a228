"""Recovery: what one member has becomes another cluster, whole, once, and whatever interrupts it."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from pyraftkv import Node, PutKey, codec, errors
from pyraftkv.core import HOLLOW, MEMBERSHIP, Entry, HardState, Membership, Save, SnapshotMeta
from pyraftkv.log import FileStorage, MemoryStorage
from pyraftkv.log.base import Identity, Recovered, Storage
from pyraftkv.log.segment import BLOCK_BYTES
from pyraftkv.node.applier import ENTRIES_PER_CLOCK_READ
from pyraftkv.node.recovery import Recovery, finish, own_recovery, recover
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    Envelope,
    Genesis,
    MemberInfo,
    Recover,
    RegisterSession,
    RemoveMember,
)
from pyraftkv.replica import BUSY, Replica
from pyraftkv.sim.disk import SimFS
from pyraftkv.store.commands import DeleteRange, PutBatch
from pyraftkv.transport import MemoryNetwork
from tests.log.disks import LoopWorker, blank, fail, heal, until_crash
from tests.node.support import asynchronous, fast, stamped

CLUSTER = 0xC1
MEMBERS = [MemberInfo(id_, name, f"10.0.0.{id_}:2479", 10 * id_) for id_, name in ((1, "a"), (2, "b"), (3, "c"))]
SESSION = 2 ^ 77
KNOWN, LAST = 6, 9
"""The commit index that is on the disk, and the index of the last entry."""


def entries() -> list[Entry]:
    """Entry 1, a session, and seven puts: k3 to k9."""
    puts = [
        Entry(index, 2, codec.encode_logged(Envelope(SESSION, index, 1, PutKey(b"k%d" % index, b"v"))))
        for index in range(3, LAST + 1)
    ]
    return [
        Entry(1, 1, codec.encode_logged(Genesis(CLUSTER, MEMBERS)), MEMBERSHIP),
        Entry(2, 2, codec.encode_logged(RegisterSession(77))),
        *puts,
    ]


async def prepared(storage: Storage, log: list[Entry] | None = None, *, member: int = 1, known: int = KNOWN) -> Storage:
    """Fill a storage with what a member leaves behind, and close it."""
    log = entries() if log is None else log
    await storage.start(failed=pytest.fail)
    await storage.identify(cluster_id=CLUSTER, member_id=member)
    saved = asyncio.get_running_loop().create_future()
    storage.save(Save(1, HardState(term=4, vote=3, commit=known), log, None), saved.set_result)
    await saved
    await storage.close()
    return storage


async def opened(storage: Storage) -> tuple[Recovered, Replica]:
    """Start a storage as a member does, apply what is known to be committed, and close it."""
    recovered = await finish(storage, await storage.start(failed=pytest.fail))
    await storage.close()
    replica = Replica()
    for entry in recovered.entries[: recovered.hard_state.commit]:
        if replica.apply(entry) is BUSY:
            while replica.step(100) is BUSY:
                pass
    return recovered, replica


def keys(replica: Replica) -> list[bytes]:
    """Return the keys that there are."""
    return [b"k%d" % index for index in range(LAST + 1) if replica.store.get(b"k%d" % index) is not None]


ALL_KEYS = [b"k%d" % index for index in range(3, LAST + 1)]


@asynchronous
async def test_what_a_recovery_does_and_says() -> None:
    """It keeps everything, ends everybody else's membership, and says all of it beforehand."""
    storage = await prepared(MemoryStorage(random=Random(1)))
    shown: list[Recovery] = []

    async def agree(plan: Recovery) -> bool:
        shown.append(plan)
        return True

    done = await recover(storage, agree=agree, random=Random(2))
    (plan,) = shown
    assert (plan.is_done, done.is_done, done.is_resumed, done.was_learner) == (False, True, False, False)
    assert (plan.lost_cluster_id, [row.name for row in plan.lost]) == (CLUSTER, ["b", "c"])
    assert (plan.commit_index, plan.last_index, plan.adopted) == (KNOWN, LAST, LAST - KNOWN)
    assert plan.last_term == 2, "of the log, and not the member's own"
    assert (plan.known_revision, plan.revision, plan.keys) == (KNOWN - 1, LAST - 1, len(ALL_KEYS))
    assert (plan.term, plan.member.id, plan.member.name, plan.member.address) == (5, 1, "a", "10.0.0.1:2479")
    recovered, replica = await opened(storage)
    identity = recovered.identity
    assert (identity.cluster_id, identity.member_id) == (plan.cluster_id, 1)
    assert (recovered.hard_state.term, recovered.hard_state.commit) == (5, LAST + 1)
    assert (replica.roster.cluster_id, replica.roster.members) == (plan.cluster_id, {1: plan.member})
    assert replica.membership == Membership(voters=frozenset({1}))
    assert keys(replica) == ALL_KEYS
    assert replica.store.published_revision == LAST - 1


@asynchronous
async def test_the_new_cluster_shares_no_name_with_the_old_one() -> None:
    """Cluster id and incarnation are others, and no two recoveries of equal directories agree in them."""
    found = []
    for seed in (1, 2):
        storage = await prepared(MemoryStorage(random=Random(9)))
        before = (await storage.start(failed=pytest.fail)).identity
        await storage.close()
        done = await recover(storage, random=Random(seed))
        recovered, _ = await opened(storage)
        assert recovered.identity.incarnation == done.member.incarnation != before.incarnation
        found += [recovered.identity.cluster_id, recovered.identity.incarnation]
    assert len({CLUSTER, *found}) == 5


@asynchronous
async def test_everything_in_the_log_is_kept_though_it_was_not_known_to_be_committed() -> None:
    """The commit index on the disk lags behind: what stands after it may have been acknowledged."""
    storage = await prepared(MemoryStorage(), known=2)
    await recover(storage)
    _, replica = await opened(storage)
    assert keys(replica) == ALL_KEYS


@asynchronous
async def test_nothing_is_changed_unless_it_is_agreed_to() -> None:
    """A plan that is declined leaves the directory as it was."""
    storage = await prepared(MemoryStorage())

    async def declined(_: Recovery) -> bool:
        return False

    assert not (await recover(storage, agree=declined)).is_done
    recovered, replica = await opened(storage)
    assert (recovered.identity.cluster_id, recovered.hard_state) == (CLUSTER, HardState(4, 3, KNOWN))
    assert recovered.entries == entries()
    assert len(replica.roster.members) == 3


@asynchronous
async def test_name_and_address_may_change() -> None:
    """The survivor may have moved to another machine."""
    storage = await prepared(MemoryStorage())
    done = await recover(storage, name="z", address="10.9.9.9:1")
    _, replica = await opened(storage)
    assert replica.roster.members == {1: MemberInfo(1, "z", "10.9.9.9:1", done.member.incarnation)}


@asynchronous
async def test_a_recovery_is_done_once() -> None:
    """The same call again changes nothing, and says so; once the cluster has lived on, it is another recovery."""
    storage = await prepared(MemoryStorage())
    first = await recover(storage)
    before, _ = await opened(storage)
    second = await recover(storage, name="other")
    assert (second.is_resumed, second.is_done, second.adopted) == (True, True, 0)
    assert (second.member, second.cluster_id) == (first.member, first.cluster_id)
    assert [row.name for row in second.lost] == ["b", "c"]
    after, _ = await opened(storage)
    assert (after.entries, after.hard_state) == (before.entries, before.hard_state)
    await storage.start(failed=pytest.fail)
    saved = asyncio.get_running_loop().create_future()
    storage.save(Save(1, HardState(6, 1, LAST + 2), [Entry(LAST + 2, 6, b"")], None), saved.set_result)
    await saved
    await storage.close()
    third = await recover(storage)
    assert (third.is_resumed, third.lost, third.lost_cluster_id) == (False, [], first.cluster_id)
    recovered, _ = await opened(storage)
    assert recovered.identity.cluster_id == third.cluster_id != first.cluster_id


@asynchronous
async def test_a_snapshot_stands_for_its_part_of_the_log() -> None:
    """What the log no longer has comes from the snapshot, sessions and members included."""
    storage = MemoryStorage()
    await prepared(storage, known=LAST)
    replica = Replica()
    for entry in entries()[:5]:
        replica.apply(entry)
    await storage.start(failed=pytest.fail)
    pinned = replica.snapshot()
    sink = storage.create_snapshot(SnapshotMeta(pinned.index, pinned.term, pinned.membership))
    for chunk in pinned.chunks():
        await sink.write(chunk)
    await sink.commit()
    pinned.close()
    await storage.close()
    done = await recover(storage)
    assert (done.keys, done.revision, done.known_revision) == (len(ALL_KEYS), LAST - 1, LAST - 1)
    assert [row.name for row in done.lost] == ["b", "c"]


@asynchronous
async def test_a_long_command_is_applied_in_slices() -> None:
    """A delete of many keys is one entry; it is read to its end."""
    batches = [
        PutBatch([each for number in range(256) for each in (b"k%d-%d" % (batch, number), b"")]) for batch in range(6)
    ]
    commands = [*batches, DeleteRange(b"k", b"l")]
    log = entries()
    for command in commands:
        index = len(log) + 1
        log.append(Entry(index, 2, codec.encode_logged(Envelope(SESSION, index, 1, command))))
    done = await recover(await prepared(MemoryStorage(), log))
    assert (done.keys, done.last_index) == (0, LAST + len(commands))


# --- Who is refused ------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_witness_is_refused() -> None:
    """Of what it does not have nothing can be made, whoever is lost; its directory stays what it is."""
    log = [*entries()[:2], Entry(3, 2, b"", HOLLOW)]
    storage = await prepared(MemoryStorage(), log, member=3, known=3)
    with pytest.raises(errors.StorageError, match="witness"):
        await recover(storage)


@asynchronous
async def test_a_learner_is_refused_unless_told_otherwise() -> None:
    """It may lack what every voter had."""
    joined = ChangeMembers([AddMember("l", "10.0.0.4:2479", 40, learner=True)])
    log = [*entries()[:2], Entry(3, 2, stamped(1, Envelope(SESSION, 1, 1, joined)), MEMBERSHIP)]
    storage = await prepared(MemoryStorage(), log, member=4, known=3)
    with pytest.raises(errors.StorageError, match="'l' is a learner"):
        await recover(storage)
    done = await recover(storage, from_learner=True)
    assert done.was_learner
    _, replica = await opened(storage)
    assert replica.membership == Membership(voters=frozenset({4}))
    assert (await recover(storage)).is_resumed, "what was agreed to then needs no second word"


@asynchronous
async def test_a_member_that_was_removed_is_refused() -> None:
    """What it has is what was before its cluster went on without it."""
    storage = await prepared(MemoryStorage(), member=9)
    with pytest.raises(errors.StorageError, match="removed"):
        await recover(storage)


def removed_in_the_tail(*, then: int = 0) -> list[Entry]:
    """A log that ends with this member's removal, which may never have been committed, and ``then`` more entries."""
    remove = stamped(1, Envelope(SESSION, LAST + 1, 1, ChangeMembers([RemoveMember(1)])))
    empty = [Entry(LAST + 2 + number, 3, b"") for number in range(then)]
    return [*entries(), Entry(LAST + 1, 3, remove, MEMBERSHIP), *empty]


@asynchronous
async def test_a_removal_that_may_not_have_been_committed_does_not_bind() -> None:
    """It stands in the tail, and the others who could say what became of it are gone."""
    storage = await prepared(MemoryStorage(), removed_in_the_tail())
    done = await recover(storage)
    assert (done.member.name, [row.name for row in done.lost]) == ("a", ["b", "c"])
    with pytest.raises(errors.StorageError, match="removed"):
        await recover(await prepared(MemoryStorage(), removed_in_the_tail(), known=LAST + 1))


@asynchronous
async def test_a_survivor_does_not_leave_because_it_was_removed_before() -> None:
    """1. Its log says that it was removed, and, many entries later, that the cluster is recovered with it.

    2. It starts, applies the removal in one slice and the recovery in another, and stays.
    """
    storage = await prepared(MemoryStorage(), removed_in_the_tail(then=3 * ENTRIES_PER_CLOCK_READ))
    await recover(storage)
    transport = MemoryNetwork().transport("a")
    async with Node("a", storage=storage, transport=transport, config=fast(apply_slice_seconds=1e-9)) as node:
        await node.put("k", "v")
        assert node._life.connections is not None
        assert node._life.connections._lingering is None
        assert [member.name for member in await node.members.list()] == ["a"]


@asynchronous
async def test_ids_go_on_rising() -> None:
    """Those of the lost members are nobody's any more."""
    storage = await prepared(MemoryStorage())
    await recover(storage)
    transport = MemoryNetwork().transport("a")
    async with Node("a", storage=storage, transport=transport, config=fast()) as node:
        added = await node.members.add("b", "10.0.0.2:2479")
        assert added.id == 4


@asynchronous
async def test_an_empty_directory_is_refused() -> None:
    """There is nothing to recover in one that has only been opened, or that knows no cluster yet."""
    with pytest.raises(errors.StorageError, match="holds nothing"):
        await recover(MemoryStorage())
    storage = MemoryStorage()
    await storage.start(failed=pytest.fail)
    await storage.identify(cluster_id=CLUSTER, member_id=1)
    await storage.close()
    with pytest.raises(errors.StorageError, match="holds nothing"):
        await recover(storage)


@asynchronous
async def test_what_this_version_cannot_apply_is_refused() -> None:
    """Nothing is skipped."""
    storage = await prepared(MemoryStorage(), [*entries(), Entry(LAST + 1, 2, b"\x91\x7f")])
    with pytest.raises(errors.UnsupportedFormat):
        await recover(storage)
    recovered, _ = await opened(storage)
    assert recovered.identity.cluster_id == CLUSTER


@asynchronous
async def test_a_recovery_of_somebody_else_is_not_finished_here() -> None:
    """Who joined the new cluster has the same entry in its log, and its own identity."""
    survivor = MemberInfo(1, "a", "10.0.0.1:2479", 99)
    log = [*entries(), Entry(LAST + 1, 3, codec.encode_logged(Recover(0xC2, survivor)), MEMBERSHIP)]
    storage = await prepared(MemoryStorage(), log, member=4, known=LAST + 1)
    recovered, _ = await opened(storage)
    assert own_recovery(recovered) is None
    assert recovered.identity.cluster_id == CLUSTER


class Cut(MemoryStorage):
    """The power goes between the log and the identity, once."""

    has_power = False

    async def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        if not self.has_power:
            self.has_power = True
            raise errors.StorageFailed("the power went")
        return await super().rebind(cluster_id=cluster_id, incarnation=incarnation)


@asynchronous
async def test_a_start_finishes_what_was_interrupted() -> None:
    """The log says which cluster it is, and the identity follows it, whoever opens the directory next."""
    storage = Cut()
    await prepared(storage)
    with pytest.raises(errors.StorageFailed):
        await recover(storage)
    transport = MemoryNetwork().transport("a")
    async with Node("a", members={"a": "a"}, storage=storage, transport=transport, config=fast()) as node:
        await node.put("k", "v")
        status = await node.status()
    recovered, replica = await opened(storage)
    assert status.cluster_id == recovered.identity.cluster_id == replica.roster.cluster_id != CLUSTER


# --- What interrupts it --------------------------------------------------------------------------------------------


def on_disk(fs: SimFS, workers: object = None) -> FileStorage:
    """Return the storage on a simulated disk."""

    def worker(_name: str) -> LoopWorker:
        return LoopWorker(asyncio.get_running_loop().create_future())

    return FileStorage("/data", fs=fs, worker=workers or worker, random=Random(1), create=False)


async def directory() -> SimFS:
    """Return a disk with a member's directory."""
    fs = blank(Random(3))
    fs.make_dir("/data")
    fs.fsync_dir("/")
    storage = on_disk(fs)
    storage._create = True
    await prepared(storage)
    return fs


def is_old(recovered: Recovered) -> bool:
    """Whether this is the old directory; it is the new cluster's otherwise. Anything between is an error."""
    identity = recovered.identity
    if recovered.entries == entries():
        assert (identity.cluster_id, identity.origin) == (CLUSTER, 0)
        assert (recovered.hard_state.term, recovered.hard_state.commit) == (4, KNOWN)
        return True
    command = codec.decode_logged(recovered.entries[LAST].payload)
    assert isinstance(command, Recover)
    assert recovered.entries[:LAST] == entries()
    assert recovered.hard_state == HardState(5, 1, LAST + 1)
    assert (identity.cluster_id, identity.incarnation) == (command.cluster_id, command.member.incarnation)
    assert (identity.member_id, command.member.id) == (1, 1)
    return False


@pytest.mark.parametrize("ends", ["power_loss_at", "kill_at"])
@asynchronous
async def test_interrupted_anywhere_it_leaves_the_old_directory_or_the_new_cluster(ends: str) -> None:
    """Before each operation on the disk the recovery dies. A start finds one of the two, and so does the next try."""
    whole = await directory()
    count = whole.disk.operations
    await recover(on_disk(whole), random=Random(2))
    count = whole.disk.operations - count
    old = 0
    for point in range(1, count + 1):
        for started in (False, True):
            fs = await directory()
            getattr(fs.disk, ends)(point, lambda: None)
            await until_crash(lambda workers, fs=fs: recover(on_disk(fs, workers), random=Random(2)))
            fs.disk.spare()
            if started:
                recovered, _ = await opened(on_disk(fs.disk.mount()))
                old += is_old(recovered)
            done = await recover(on_disk(fs.disk.mount()), random=Random(point))
            assert done.is_done
            recovered, replica = await opened(on_disk(fs.disk.mount()))
            assert not is_old(recovered), f"died before operation {point}"
            assert (replica.roster.cluster_id, keys(replica)) == (done.cluster_id, ALL_KEYS)
    assert 0 < old < count, "both were met"


@asynchronous
async def test_a_disk_that_refuses_is_told_and_the_recovery_goes_on_later() -> None:
    """An error of the disk, when the log is written and when the identity is, ends the recovery as a storage error."""
    for path in ("wal", "identity"):
        fs = await directory()

        async def agree(_: Recovery, fs: SimFS = fs, path: str = path) -> bool:
            fail(fs, lambda operation, of: errno.EIO if operation == "fdatasync" and path in of else 0)
            return True

        with pytest.raises(errors.StorageFailed):
            await recover(on_disk(fs), agree=agree)
        heal(fs)
        done = await recover(on_disk(fs))
        recovered, replica = await opened(on_disk(fs))
        assert not is_old(recovered)
        assert (replica.roster.cluster_id, keys(replica)) == (done.cluster_id, ALL_KEYS)


@asynchronous
async def test_a_damaged_directory_is_refused_with_its_place() -> None:
    """Nothing is skipped, and nothing is changed: the next one who looks finds the same damage."""
    fs = await directory()
    (name,) = [name for name in fs.listdir("/data/wal") if name.endswith(".wal")]
    data = bytearray(fs.disk.file(f"/data/wal/{name}"))
    data[BLOCK_BYTES + 60] ^= 1
    fs.disk.damage(f"/data/wal/{name}", data)
    for _ in range(2):
        with pytest.raises(errors.WalCorruption) as caught:
            await recover(on_disk(fs))
        assert caught.value.segment == name
    assert fs.disk.file(f"/data/wal/{name}") == bytes(data)
