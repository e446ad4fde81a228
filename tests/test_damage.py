"""Damaged input, end to end: members as processes, on real files and real sockets.

Whatever stands on a disk or comes over a wire that should not, one of two things happens: it is mended, and the log
says what was mended; or it is refused by a typed error that names the place, with exit status 70 where it is a
member's own directory. In both cases everybody else goes on serving. Nothing is ever skipped in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pyraftkv import codec, errors
from pyraftkv.protocol import Hello
from pyraftkv.transport.dial import TcpDialer
from pyraftkv.transport.framing import (
    HEADER,
    HELLO_BYTES_MAX,
    KIND_CLIENT,
    KIND_HELLO,
    KIND_HELLO_ACK,
    MAGIC,
    PEER_FRAME_BYTES_MAX,
    frame_header,
)
from tests.processes import HEALTH_KEY, READY_SECONDS_MAX, Process, Processes
from tests.wal_surgery import Segment, forget_mark, segments

STORAGE = 70
"""The exit status of a member that cannot use its directory."""

ALIVE_SECONDS = 20.0
DROPPED_SECONDS = 4.0
"""Below every deadline of the transport: what is dropped in this time is dropped for what it is."""

SMALL_SNAPSHOTS = {"snapshot_log_bytes_min": 4096, "segment_bytes_max": 8192}

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes by signal")


@contextlib.asynccontextmanager
async def cluster_with_data(folder: Path, *, writes: int = 20, **options: object) -> AsyncIterator[Processes]:
    """Run three members that hold some keys, each written by a batch of its own."""
    async with Processes(folder, **options) as cluster:  # type: ignore[arg-type]
        async with cluster.connect() as kv:
            await kv.put(HEALTH_KEY, "fine")
            for number in range(writes):
                await kv.put(f"key/{number:04}", "v" * 64)
        yield cluster


async def serves(cluster: Processes, *, without: str) -> None:
    """See that the cluster takes a write and reads it back although one member is away."""
    others = [member for name, member in cluster.members.items() if name != without]
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(member.connect()) for member in others]
        await clients[0].put("still", "serving", timeout=ALIVE_SECONDS)
        for client in clients:
            found = await client.get("still", timeout=ALIVE_SECONDS)
            assert found is not None
            assert found.value == b"serving"


async def serves_until_said(cluster: Processes, words: str, *, without: str) -> None:
    """See that the cluster serves without one member, until one of the others has said these words in its log."""
    others = [member for name, member in cluster.members.items() if name != without]
    async with asyncio.timeout(READY_SECONDS_MAX):
        while not any(words in member.said for member in others):
            await serves(cluster, without=without)


async def same_everywhere(cluster: Processes) -> None:
    """See that every member has the same keys, locally."""
    states = []
    for member in cluster.members.values():
        await member.ready()
        async with member.connect() as kv:
            states.append([kv async for kv in kv.scan(consistency="local")])
    assert states[1] == states[0]
    assert states[2] == states[0]


async def refusal(member: Process) -> str:
    """Start a member that must refuse to run, and return the error that it ends with."""
    member.start()
    assert await member.exit() == STORAGE
    return next(line for line in reversed(member.said.splitlines()) if line.startswith("Error: "))


# --- The log -------------------------------------------------------------------------------------------------------


def cut_short(segment: Segment) -> None:
    """Leave half of the last batch, as a power cut may."""
    segment.truncate((segment.last_batch.start + segment.last_batch.stop) // 2)


def overwrite(segment: Segment) -> None:
    """Put garbage where the last batch was."""
    batch = segment.last_batch
    segment.write(batch.start + 8, os.urandom(len(batch) - 8))


def blank(segment: Segment) -> None:
    """Zero the second half of the last batch: the file's new size was durable, and its content was not."""
    batch = segment.last_batch
    half = (batch.start + batch.stop) // 2
    segment.write(half, bytes(batch.stop - half))


@pytest.mark.parametrize("damage", [cut_short, overwrite, blank])
def test_torn_tail_is_mended_and_the_member_rejoins(tmp_path: Path, damage: Callable[[Segment], None]) -> None:
    """What a crash can leave of the last batch is cut off, kept beside the log and told; the leader sends it anew."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            member = cluster["n2"]
            await same_everywhere(cluster)
            cluster.kill()
            segment = segments(member.data_dir)[-1]
            damage(segment)
            forget_mark(member.data_dir)
            for each in cluster.members.values():
                each.start()
            await same_everywhere(cluster)
            assert f"{segment.path.name}: cut " in member.said
            assert f"torn bytes off at offset {segment.last_batch.start}" in member.said
            assert segment.path.with_name(segment.path.name + ".torn").exists()

    asyncio.run(main())


@pytest.mark.parametrize("damage", [cut_short, overwrite])
def test_member_that_forgot_what_it_acknowledged_stops(tmp_path: Path, damage: Callable[[Segment], None]) -> None:
    """A disk that lied takes an acknowledged batch back: the leader knows that it was there, and the others serve."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            await same_everywhere(cluster)
            leader = await cluster.leader()
            term = (await leader.status()).term
            member = next(each for each in cluster.members.values() if each is not leader)
            member.kill()
            damage(segments(member.data_dir)[-1])
            forget_mark(member.data_dir)
            said = await refusal(member)
            assert said.startswith("Error: DataDirRolledBack: ")
            assert "and had acknowledged entries to" in said
            assert "torn bytes off" in member.said
            await serves(cluster, without=member.name)
            assert (await leader.status()).term == term  # nobody had to be elected for that

    asyncio.run(main())


def test_damage_in_the_last_batch_is_refused_where_the_mark_knows_of_it(tmp_path: Path) -> None:
    """A process was killed, and its last batch rots: that is no crash's work, and says what is lost."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            member = cluster["n2"]
            await same_everywhere(cluster)  # it is not killed between a sync and the mark that tells of it
            member.kill()
            segment = segments(member.data_dir)[-1]
            overwrite(segment)
            said = await refusal(member)
            assert said.startswith("Error: WalCorruption: ")
            assert "was durable, and the log ends with batch" in said
            await serves(cluster, without="n2")

    asyncio.run(main())


def test_flipped_bit_in_the_middle_of_the_log_is_refused_by_its_place(tmp_path: Path) -> None:
    """A bit that rotted is no torn tail: the member does not run and names the place; put back, all is well again."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            member = cluster["n2"]
            member.kill()
            segment = segments(member.data_dir)[-1]
            batch = segment.batches[len(segment.batches) // 2]
            at = (batch.start + batch.stop) // 2
            segment.flip_bit(at)
            said = await refusal(member)
            assert said.startswith("Error: WalCorruption: ")
            assert segment.path.name in said
            assert f"offset {batch.start}" in said
            assert "damage before a later batch" in said
            await serves(cluster, without="n2")
            assert await refusal(member) == said  # it refused, and changed nothing
            segment.flip_bit(at)
            member.start()
            await same_everywhere(cluster)

    asyncio.run(main())


def test_missing_segment_is_refused_by_name(tmp_path: Path) -> None:
    """A segment that somebody removed from the middle leaves a gap, which is named; put back, the member is well."""

    async def main() -> None:
        settings = {"segment_bytes_max": 8192}
        async with cluster_with_data(tmp_path, writes=200, settings=settings) as cluster:
            member = cluster["n3"]
            member.kill()
            parts = segments(member.data_dir)
            assert len(parts) > 3
            for victim, reason in ((parts[1], "before it is missing"), (parts[0], "first entries are gone")):
                aside = tmp_path / victim.path.name
                shutil.move(victim.path, aside)
                said = await refusal(member)
                assert said.startswith("Error: WalCorruption: ")
                assert reason in said
                shutil.move(aside, victim.path)
            await serves(cluster, without="n3")
            member.start()
            await same_everywhere(cluster)

    asyncio.run(main())


def test_missing_or_damaged_snapshots(tmp_path: Path) -> None:
    """Without its newest snapshot a member starts from the one before, and says so; without any it refuses."""

    async def main() -> None:
        async with cluster_with_data(tmp_path, writes=300, settings=SMALL_SNAPSHOTS) as cluster:
            member = cluster["n1"]
            member.kill()
            newer = max((member.data_dir / "snap").glob("*.snap"))
            newer.unlink()
            member.start()
            await same_everywhere(cluster)
            assert "passed over a damaged snapshot" in member.said
            assert newer.name in member.said
            member.kill()
            for path in (member.data_dir / "snap").glob("*.snap"):
                damage = bytearray(path.read_bytes())
                damage[len(damage) // 2] ^= 1
                path.write_bytes(damage)
            said = await refusal(member)
            assert said.startswith("Error: SnapshotCorruption: ")
            assert ".snap" in said
            await serves(cluster, without="n1")

    asyncio.run(main())


# --- Whose directory -----------------------------------------------------------------------------------------------


def test_foreign_data_directory_is_refused(tmp_path: Path) -> None:
    """A member neither runs on another member's directory nor with a segment from one."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            member, other = cluster["n2"], cluster["n3"]
            member.kill()
            other.kill()
            own = tmp_path / "own"
            shutil.move(member.data_dir, own)
            shutil.copytree(other.data_dir, member.data_dir)
            said = await refusal(member)
            assert said.startswith("Error: ForeignDataDir: ")
            assert "belongs to member 3" in said
            shutil.rmtree(member.data_dir)
            shutil.copytree(own, member.data_dir)
            shutil.rmtree(member.data_dir / "wal")
            shutil.copytree(other.data_dir / "wal", member.data_dir / "wal")
            assert (await refusal(member)).startswith("Error: ForeignDataDir: ")
            shutil.rmtree(member.data_dir)
            shutil.move(own, member.data_dir)
            other.start()
            member.start()
            await same_everywhere(cluster)

    asyncio.run(main())


def test_wiped_directory_is_not_let_in(tmp_path: Path) -> None:
    """A member that lost its disk may have forgotten what it acknowledged: the others refuse it, and say why."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            member = cluster["n2"]
            member.kill()
            aside = tmp_path / "aside"
            shutil.move(member.data_dir, aside)
            member.start()
            await serves_until_said(cluster, "(wrong-incarnation)", without="n2")
            member.check()
            with contextlib.suppress(errors.Unavailable):
                async with member.connect(timeout=0.5) as kv:
                    raise AssertionError(f"it answers: {await kv.status()}")
            member.kill()
            shutil.rmtree(member.data_dir)
            shutil.move(aside, member.data_dir)
            member.start()
            await same_everywhere(cluster)

    asyncio.run(main())


def test_second_process_on_one_directory_is_refused(tmp_path: Path) -> None:
    """Two processes never write one log: the second one ends, and the first one does not notice."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            first = cluster["n1"]
            second = first.twin()
            said = await refusal(second)
            assert said.startswith("Error: DataDirLocked: ")
            assert str(first.data_dir) in said
            first.check()
            await same_everywhere(cluster)

    asyncio.run(main())


# --- The wire ------------------------------------------------------------------------------------------------------

HELLO = Hello(0, 0, "stranger", 0, 0, "")


def hello_frame(hello: Hello = HELLO) -> bytes:
    """Return a HELLO as it travels."""
    payload = codec.encode_hello(hello)
    return frame_header(KIND_HELLO, payload) + payload


def oversized(kind: int) -> bytes:
    """Return the beginning of a frame that claims 1 GiB, with what follows of it."""
    return HEADER.pack(MAGIC, 1, kind, 0, 0, 1 << 30, 0, 0) + bytes(4) + bytes(64 * 1024)


def damaged(frame: bytes) -> bytes:
    """Return a frame with one bit of its payload flipped."""
    return frame[:-1] + bytes([frame[-1] ^ 1])


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(194),
    "zeros": bytes(4096),
    "noise": bytes(range(256)) * 64,
    "oversized HELLO": oversized(KIND_HELLO),
    "HELLO just over its bound": HEADER.pack(MAGIC, 1, KIND_HELLO, 0, 0, HELLO_BYTES_MAX + 1, 0, 0) + bytes(4),
    "damaged HELLO": damaged(hello_frame()),
    "HELLO of garbage": frame_header(KIND_HELLO, b"\xff" * 64) + b"\xff" * 64,
    "call before HELLO": frame_header(KIND_CLIENT, b"x") + b"x",
    "oversized call": hello_frame() + oversized(KIND_CLIENT),
    "call of garbage": hello_frame() + frame_header(KIND_CLIENT, b"\xff" * 64) + b"\xff" * 64,
    "empty call": hello_frame() + frame_header(KIND_CLIENT, b""),
    "damaged call": hello_frame() + damaged(frame_header(KIND_CLIENT, b"xyz") + b"xyz"),
    "peer frame over its bound": HEADER.pack(MAGIC, 1, 1, 0, 0, PEER_FRAME_BYTES_MAX + 1, 0, 0) + bytes(4),
}


async def until_closed(address: str, data: bytes) -> bytes:
    """Send bytes, and return what came back until the other end closed."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            while piece := await reader.read(65536):
                received += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return received


def test_garbage_closes_its_connection_and_nothing_else(tmp_path: Path) -> None:
    """Whatever a stranger sends to a member's port, that connection is dropped, and the member goes on."""

    async def main() -> None:
        async with cluster_with_data(tmp_path) as cluster:
            leader = await cluster.leader()
            async with cluster.connect() as kv:
                for name, data in GARBAGE.items():
                    async with asyncio.timeout(DROPPED_SECONDS):
                        received = await until_closed(leader.address, data)
                    is_welcome = data.startswith(hello_frame())
                    assert (received[3:4] == bytes([KIND_HELLO_ACK])) is is_welcome, name
                    await kv.put("after", name, timeout=ALIVE_SECONDS)
            assert (await cluster.leader()).name == leader.name
            await same_everywhere(cluster)
            for member in cluster.members.values():
                assert "Traceback" not in member.said

    asyncio.run(main())


def test_slow_strangers_are_dropped_while_others_are_served(tmp_path: Path) -> None:
    """Connections that say half a HELLO, or a byte of it now and then, or nothing, end after five seconds."""

    async def main() -> None:
        hello = hello_frame()

        async def drip(address: str) -> None:
            host, port = address.rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            closed = asyncio.create_task(reader.read())
            try:
                for byte in hello[:-1]:
                    writer.write(bytes([byte]))
                    await asyncio.wait([closed], timeout=0.3)
                    if closed.done():
                        break
                with contextlib.suppress(ConnectionError):
                    assert await closed == b""
            finally:
                closed.cancel()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

        async with cluster_with_data(tmp_path) as cluster, cluster.connect() as kv:
            address = cluster["n1"].address
            async with asyncio.timeout(ALIVE_SECONDS), asyncio.TaskGroup() as group:
                for data in [b"", hello[:1], hello[:20], hello[:-1]] * 3:
                    group.create_task(until_closed(address, data))
                slow = [group.create_task(drip(address)) for _ in range(5)]
                while not all(task.done() for task in slow):
                    await kv.put("meanwhile", "served", timeout=ALIVE_SECONDS)
            await same_everywhere(cluster)

    asyncio.run(main())


# --- Another cluster -----------------------------------------------------------------------------------------------


def test_members_of_another_cluster_are_refused_for_that_reason(tmp_path: Path) -> None:
    """A member that listens where one of another cluster did joins nothing; that one comes back elsewhere by itself."""

    async def main() -> None:
        alone = Processes(tmp_path / "theirs", names=["n3"])
        async with cluster_with_data(tmp_path / "ours") as ours, alone as theirs:
            lost, stranger = ours["n3"], theirs["n3"]
            lost.kill()
            stranger.kill()
            lost.address, stranger.address = stranger.address, lost.address
            stranger.start()
            await stranger.ready()
            await serves_until_said(ours, "(wrong-cluster)", without="n3")
            lost.start()  # tells the others where it listens now
            await same_everywhere(ours)
            async with stranger.connect() as kv:
                assert await kv.get("key/0000") is None
                own = await kv.status()
            assert own.cluster_id != (await lost.status()).cluster_id
            with pytest.raises(errors.HandshakeRejected) as caught:
                await TcpDialer()(lost.address, replace(HELLO, cluster_id=own.cluster_id))
            assert caught.value.reason == "wrong-cluster"

    asyncio.run(main())
