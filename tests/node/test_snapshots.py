"""Snapshots on their way: taken, streamed over a network that loses, resumed with the right sender, given up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from pyraftkv import codec, errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import MEMBERSHIP, Entry, InstallSnapshot, Membership, Save, SnapshotMeta, SnapshotSent
from pyraftkv.log import MemoryStorage
from pyraftkv.log.snapshot import CHUNK_BYTES_MAX
from pyraftkv.node.snapshots import GIVE_UP, SNAPSHOT_BURST_BYTES, SnapshotReceiver, SnapshotSender, SnapshotTaker
from pyraftkv.protocol import Genesis, MemberInfo, SnapshotAck, SnapshotChunk
from pyraftkv.replica import Replica
from pyraftkv.sim.loop import SimLoop
from tests.node.support import asynchronous, fast, refused, until

META = SnapshotMeta(50, 3, Membership(voters=frozenset({1, 2, 3})))
CHUNKS = [b"chunk %d" % number for number in range(20)]


def install(sender: int = 1, term: int = 5, meta: SnapshotMeta = META) -> InstallSnapshot:
    """Return the beginning of a conversation with member 2."""
    return InstallSnapshot(2, sender, term, meta)


def chunk(number: int, *, sender: int = 1, data: bytes = b"", term: int = 5, last: bool = False) -> SnapshotChunk:
    """Return a chunk for member 2."""
    return SnapshotChunk(2, sender, term, META.index, META.term, number, data or CHUNKS[number], last)


async def stored(chunks: list[bytes], meta: SnapshotMeta = META) -> MemoryStorage:
    """Return a storage that has this snapshot."""
    storage = MemoryStorage()
    await storage.start(failed=lambda _: None)
    sink = storage.create_snapshot(meta)
    for data in chunks:
        await sink.write(data)
    await sink.commit()
    return storage


async def chunks_of(storage: MemoryStorage) -> list[bytes]:
    """Return the snapshot that was received."""
    return [data async for data in storage.read_snapshot(META)]


class Pair:
    """A sender (member 1) and a receiver (member 2), and the messages between them."""

    def __init__(self, sending: MemoryStorage, receiving: MemoryStorage, *, loss: float = 0.0, **changes: Any) -> None:
        self.rng = random.Random(1)
        self.loss = loss
        self.chunks_sent = 0
        self.fed: list[object] = []
        self.sent: list[SnapshotSent] = []
        self.term = 5
        self.is_covered = False
        self.is_to_witness = False
        config = fast(**{"retry_seconds": 0.02, **changes})
        self.is_sound = True
        self.sender = SnapshotSender(
            sending,
            config,
            send=self.to_receiver,
            feed=self.sent.append,  # type: ignore[arg-type]
            is_sound=lambda: self.is_sound,
            is_witness=lambda _: self.is_to_witness,
        )
        self.receiver = SnapshotReceiver(
            receiving,
            send=self.to_sender,
            feed=self.fed.append,
            is_covered=lambda _: self.is_covered or bool(self.fed),
            term=lambda: self.term,
        )
        self.running = asyncio.create_task(self.receiver.run())

    def to_receiver(self, messages: list[PeerMessage]) -> None:
        """Carry what the leader says."""
        for message in messages:
            assert isinstance(message, InstallSnapshot | SnapshotChunk)
            self.chunks_sent += isinstance(message, SnapshotChunk)
            if self.rng.random() >= self.loss:
                asyncio.get_running_loop().call_soon(self.receiver.received, message)

    def to_sender(self, messages: list[PeerMessage]) -> None:
        """Carry what the follower says."""
        for message in messages:
            assert isinstance(message, SnapshotAck)
            if self.rng.random() >= self.loss:
                asyncio.get_running_loop().call_soon(self.sender.acknowledged, message)

    async def close(self) -> None:
        """Stop both."""
        await self.sender.close()
        self.running.cancel()
        await asyncio.wait([self.running])


@asynchronous
async def test_a_snapshot_arrives_whole() -> None:
    """Every chunk once, in order; then the receiver's core is told, and the sender's."""
    receiving = await stored([b"old"], SnapshotMeta(1, 1, META.membership))
    pair = Pair(await stored(CHUNKS), receiving)
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert pair.sent == [SnapshotSent(2, True)]
    assert pair.fed == [install()]
    assert pair.chunks_sent == len(CHUNKS)
    assert await chunks_of(receiving) == CHUNKS
    assert (pair.sender._acks, pair.sender._tasks) == ({}, {})
    await pair.close()


@asynchronous
async def test_a_witness_is_sent_the_first_chunk_as_the_last() -> None:
    """There the members stand, and more it does not keep; it has all of it then."""
    receiving = await stored([b"old"], SnapshotMeta(1, 1, META.membership))
    pair = Pair(await stored(CHUNKS), receiving)
    pair.is_to_witness = True
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert pair.sent == [SnapshotSent(2, True)]
    assert pair.fed == [install()]
    assert await chunks_of(receiving) == CHUNKS[:1]
    await pair.close()


@asynchronous
async def test_lost_messages_are_sent_again_from_where_they_are_missing() -> None:
    """A third of everything is lost: it takes longer, not for ever, and what arrives is the snapshot."""
    receiving = await stored([b"old"], SnapshotMeta(1, 1, META.membership))
    pair = Pair(await stored(CHUNKS), receiving, loss=0.3, snapshot_stall_seconds=10.0)
    pair.sender.start(install())
    await until(lambda: pair.sent and pair.fed)
    assert pair.fed[0] == install()
    assert await chunks_of(receiving) == CHUNKS
    await pair.close()


class Slow(Pair):
    """A pair that notes when each chunk leaves."""

    def __init__(self, sending: MemoryStorage, receiving: MemoryStorage, **changes: Any) -> None:
        super().__init__(sending, receiving, **changes)
        self.left: list[tuple[float, int]] = []

    def to_receiver(self, messages: list[PeerMessage]) -> None:
        """Carry what the leader says."""
        now = asyncio.get_running_loop().time()
        self.left += [(now, len(message.data)) for message in messages if isinstance(message, SnapshotChunk)]
        super().to_receiver(messages)


def simulate(main: Coroutine[Any, Any, None]) -> None:
    """Run a test in virtual time."""
    loop = SimLoop(random.Random(1))
    try:
        loop.run(main, until=1e6)
    finally:
        loop.close()


LARGE = [bytes([number]) * (1 << 18) for number in range(16)]
RATE = 1 << 16


def test_a_snapshot_leaves_no_faster_than_it_may() -> None:
    """4 MiB at 64 KiB/s take a minute but for the burst, far longer than a conversation may stall, and arrive whole."""

    async def main() -> None:
        receiving = await stored([b"old"], SnapshotMeta(1, 1, META.membership))
        pair = Slow(await stored(LARGE), receiving, snapshot_bytes_per_second_max=RATE, snapshot_stall_seconds=0.3)
        pair.sender.start(install())
        await until(lambda: pair.sent, seconds=1e4)
        assert (pair.sent, pair.fed) == ([SnapshotSent(2, True)], [install()])
        assert await chunks_of(receiving) == LARGE
        sizes = [size for _, size in pair.left]
        assert sizes == [1 << 18] * len(LARGE), "each once"
        begun, ended = pair.left[0][0], pair.left[-1][0]
        assert ended - begun == pytest.approx((sum(sizes[:-1]) - SNAPSHOT_BURST_BYTES) / RATE, abs=0.1)
        await pair.close()

    simulate(main())


def test_waiting_for_the_rate_is_no_lack_of_progress() -> None:
    """What is lost behind a long wait is sent again, and the conversation is not given up for the wait."""

    async def main() -> None:
        receiving = await stored([b"old"], SnapshotMeta(1, 1, META.membership))
        changes = {"snapshot_bytes_per_second_max": RATE, "snapshot_stall_seconds": 0.3, "loss": 0.2}
        pair = Slow(await stored(LARGE), receiving, **changes)
        pair.sender.start(install())
        await until(lambda: pair.sent, seconds=1e4)
        assert pair.sent == [SnapshotSent(2, True)]
        assert await chunks_of(receiving) == LARGE
        assert len(pair.left) > len(LARGE)
        await pair.close()

    simulate(main())


def test_all_conversations_share_one_rate() -> None:
    """Two followers: each waits for the other, and together they are as fast as one."""

    async def main() -> None:
        pair = Slow(await stored(LARGE), await stored([]), snapshot_bytes_per_second_max=RATE, retry_seconds=1e6)
        pair.receiver.received = lambda _: None  # type: ignore[method-assign]
        for peer in (2, 3):
            pair.sender.start(InstallSnapshot(peer, 1, 5, META))
            await asyncio.sleep(0)
            pair.sender.acknowledged(SnapshotAck(1, peer, META.index, META.term, 0))
        await asyncio.sleep(1000.0)
        begun, ended = pair.left[0][0], pair.left[-1][0]
        sizes = [size for _, size in pair.left]
        assert ended - begun == pytest.approx((sum(sizes[:-1]) - SNAPSHOT_BURST_BYTES) / RATE, abs=0.1)
        await pair.close()

    simulate(main())


@asynchronous
async def test_a_conversation_without_progress_is_given_up() -> None:
    """The core hears that it failed, and decides anew."""
    pair = Pair(await stored(CHUNKS), await stored([]), loss=1.0, snapshot_stall_seconds=0.1)
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert pair.sent == [SnapshotSent(2, False)]
    await pair.close()


@asynchronous
async def test_a_follower_that_has_it_all_says_so() -> None:
    """Nothing is streamed; its core answers for itself."""
    pair = Pair(await stored(CHUNKS), await stored([]))
    pair.is_covered = True
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert (pair.sent, pair.fed, pair.chunks_sent) == ([SnapshotSent(2, False)], [install()], 0)
    await pair.close()


@asynchronous
async def test_a_snapshot_that_is_gone_is_given_up() -> None:
    """It was replaced by a newer one: the core begins again with that."""
    pair = Pair(await stored([b"x"], SnapshotMeta(60, 3, META.membership)), await stored([]))
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert pair.sent == [SnapshotSent(2, False)]
    await pair.close()


@asynchronous
async def test_a_member_whose_state_is_wrong_sends_none() -> None:
    """Its snapshots may be of the wrong state: the core is told that there is none, and nothing leaves."""
    pair = Pair(await stored([b"x"]), await stored([]))
    pair.is_sound = False
    pair.sender.start(install())
    assert pair.sent == [SnapshotSent(2, False)]
    assert not pair.fed
    await pair.close()


@asynchronous
async def test_a_follower_that_cannot_write_gives_up() -> None:
    """Its disk is full: the sender is told at once."""
    receiving = await stored([])
    create = receiving.create_snapshot

    def full(meta: SnapshotMeta, *, received: bool = False) -> Any:
        sink = create(meta, received=received)

        async def write(data: bytes) -> None:
            raise errors.StorageError("no space left")

        sink.write = write  # type: ignore[method-assign]
        return sink

    receiving.create_snapshot = full  # type: ignore[method-assign]
    pair = Pair(await stored(CHUNKS), receiving)
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert (pair.sent, pair.fed) == ([SnapshotSent(2, False)], [])
    await pair.close()


@asynchronous
async def test_a_new_conversation_replaces_the_old_one() -> None:
    """The end of the old one is not reported; stopping and acknowledging what does not run is harmless."""
    pair = Pair(await stored(CHUNKS), await stored([b"old"], SnapshotMeta(1, 1, META.membership)))
    pair.sender.start(install())
    await asyncio.sleep(0)
    pair.sender.start(install())
    await until(lambda: pair.sent)
    assert pair.sent == [SnapshotSent(2, True)]
    pair.sender.stop(9)
    pair.sender.acknowledged(SnapshotAck(1, 9, 1, 1, 1))
    pair.sender.start(install())
    pair.sender.stop_all()
    await pair.close()
    assert len(pair.sent) == 1


class Follower:
    """A receiver, and what it acknowledged."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.acks: list[tuple[int, int]] = []
        self.fed: list[object] = []
        self.term = 5
        self.receiver = SnapshotReceiver(
            storage, send=self.send, feed=self.fed.append, is_covered=lambda _: False, term=lambda: self.term
        )
        self.running = asyncio.create_task(self.receiver.run())

    def send(self, messages: list[PeerMessage]) -> None:
        """Note an acknowledgement."""
        for message in messages:
            assert isinstance(message, SnapshotAck)
            self.acks.append((message.to, message.next_number))

    async def hears(self, *messages: InstallSnapshot | SnapshotChunk) -> None:
        """Take messages, and wait until they are handled."""
        for message in messages:
            self.receiver.received(message)
            for _ in range(5):
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop."""
        self.running.cancel()
        await asyncio.wait([self.running])


@asynchronous
async def test_half_of_one_snapshot_and_half_of_another_is_neither() -> None:
    """1. Leader 1 sends half of its snapshot at index 50 and dies. 2. Leader 3 has one at the same index.

    3. They say the same in different bytes: going on with 3 where 1 had stopped would give a file of two halves.

    (The follower's core may hear of leader 3 later than this does, so the term alone does not tell them apart.)
    """
    storage = await stored([])
    follower = Follower(storage)
    await follower.hears(install(), chunk(0), chunk(1))
    await follower.hears(install(sender=3, term=6))
    assert follower.acks[-1] == (3, 0), "from the beginning"
    others = [b"other 0", b"other 1", b"other 2"]
    for number, data in enumerate(others):
        await follower.hears(chunk(number))  # what leader 1 had sent still arrives
        await follower.hears(chunk(number, sender=3, term=6, data=data, last=number == 2))
    assert await chunks_of(storage) == others
    assert follower.fed == [install(sender=3, term=6)]
    await follower.close()


@asynchronous
async def test_a_conversation_goes_on_where_it_stopped() -> None:
    """The same sender, the same snapshot: the chunks that are there are not asked for; repeated ones are ignored."""
    storage = await stored([])
    follower = Follower(storage)
    await follower.hears(chunk(0), install(), chunk(1), chunk(0), chunk(0), chunk(1), chunk(3))
    assert follower.acks == [(1, 0), (1, 1), (1, 2)]
    await follower.hears(install())
    assert follower.acks[-1] == (1, 2)
    await follower.hears(chunk(2, last=True))
    assert await chunks_of(storage) == CHUNKS[:3]
    await follower.close()


@asynchronous
async def test_a_deposed_leader_does_not_stand_in_the_way() -> None:
    """What it still sends is dropped: the conversation of the present one goes on."""
    storage = await stored([])
    follower = Follower(storage)
    follower.term = 6
    await follower.hears(install(sender=3, term=6), chunk(0, sender=3, term=6))
    await follower.hears(install(sender=1, term=5), chunk(0, sender=1, term=5))
    await follower.hears(chunk(1, sender=3, term=6, last=True))
    assert follower.acks == [(3, 0), (3, 1), (3, 2)]
    assert await chunks_of(storage) == CHUNKS[:2]
    await follower.close()


@asynchronous
@pytest.mark.parametrize("size", [0, CHUNK_BYTES_MAX + 1])
async def test_a_chunk_that_no_snapshot_has_is_refused(size: int) -> None:
    """Empty, or longer than a storage takes: this conversation is over, and the next one finds the receiver well."""
    storage = await stored([])
    follower = Follower(storage)
    bad = SnapshotChunk(2, 1, 5, META.index, META.term, 1, bytes(size), False)
    await follower.hears(install(), chunk(0), bad)
    assert follower.acks == [(1, 0), (1, 1), (1, GIVE_UP)]
    await follower.hears(install(), chunk(0), chunk(1, last=True))
    assert await chunks_of(storage) == CHUNKS[:2]
    assert follower.fed == [install()]
    await follower.close()


def replica_with(entries: int) -> Replica:
    """Return a replica that applied this many entries."""
    replica = Replica()
    replica.apply(Entry(1, 1, codec.encode_logged(Genesis(7, [MemberInfo(1, "n1", "n1", 11)])), MEMBERSHIP))
    for index in range(2, entries + 1):
        replica.apply(Entry(index, 1, b""))
    return replica


class Broken(MemoryStorage):
    """Takes no snapshot, for a reason that nobody thought of."""

    def create_snapshot(self, meta: SnapshotMeta, *, received: bool = False) -> Any:
        raise ZeroDivisionError


@asynchronous
async def test_whatever_keeps_a_snapshot_from_being_written_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """1. It is logged, raised to who waits, and the pinned revision is let go.

    2. The next one is not due at once, however long the log: it would fail ten times a second.
    """
    storage = Broken()
    await storage.start(failed=lambda _: None)
    saved: list[int] = []
    storage.save(Save(1, None, [Entry(1, 1, b"x" * 1000)], None), saved.append)
    await until(lambda: saved)
    taker = SnapshotTaker(storage, fast(snapshot_log_bytes_min=10), taken=lambda *_: None)
    assert taker.is_due(1)
    snapshot = replica_with(1).snapshot()
    taker.start(snapshot)
    await refused(taker.wait(), ZeroDivisionError)
    assert "was given up" in caplog.text
    assert not taker.is_running
    assert not taker.is_due(1)
    assert snapshot._store._closed
    taker._retry_at = asyncio.get_running_loop().time()
    assert taker.is_due(1)
    await taker.close()


@asynchronous
async def test_a_snapshot_is_due_by_the_count_of_entries_too() -> None:
    """However few bytes they are: a start executes them again. Counted from the newest snapshot, not from the first."""
    storage = await stored([b"state"], SnapshotMeta(7, 1, META.membership))
    taker = SnapshotTaker(storage, fast(snapshot_entries_max=5), taken=lambda *_: None)
    assert [index for index in range(7, 16) if taker.is_due(index)] == [13, 14, 15]
    taker.start(replica_with(13).snapshot())
    assert not taker.is_due(30), "one is being written"
    await taker.wait()
    assert not taker.is_due(18)
    assert taker.is_due(19)
    await taker.close()


@asynchronous
async def test_a_start_counts_the_snapshot_that_it_began_with() -> None:
    """A log that is short beside it is no reason for another one, whichever life it was written in."""
    storage = MemoryStorage()
    await storage.start(failed=lambda _: None)
    saved: list[int] = []
    storage.save(Save(1, None, [Entry(1, 1, b"x")], None), saved.append)
    await until(lambda: saved)
    sink = storage.create_snapshot(SnapshotMeta(1, 1, META.membership))
    await sink.write(b"state" * 100)
    await sink.commit()
    recovered = await storage.start(failed=lambda _: None)
    assert recovered.snapshot_bytes == 500
    storage.save(Save(1, None, [Entry(2, 1, b"x" * 100)], None), saved.append)
    await until(lambda: len(saved) == 2)
    for last_size_bytes, is_due in ((0, True), (recovered.snapshot_bytes, False)):
        config = fast(snapshot_log_bytes_min=10)
        taker = SnapshotTaker(storage, config, taken=lambda *_: None, last_size_bytes=last_size_bytes)
        assert taker.is_due(2) is is_due


@asynchronous
async def test_no_two_snapshots_are_written_at_one_index() -> None:
    """A follower may have half of the first, and would get the other half of the second."""
    storage = await stored([b"the first"], SnapshotMeta(3, 1, META.membership))
    taken: list[int] = []
    taker = SnapshotTaker(storage, fast(), taken=lambda one, _: taken.append(one.snapshot.index))
    for entries in (2, 3, 4):
        snapshot = replica_with(entries).snapshot()
        taker.start(snapshot)
        await taker.wait()
        assert snapshot._store._closed
    assert taken == [4]


@asynchronous
async def test_what_is_received_is_bounded() -> None:
    """More than `RECEIVED_MAX` messages at once are lost, as any message may be."""
    follower = Follower(await stored([]))
    for _ in range(200):
        follower.receiver.received(install())
    assert follower.receiver._queue.qsize() == 64
    await follower.close()
