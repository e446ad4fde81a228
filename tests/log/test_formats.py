"""docs/formats.md, read by hand: a reader that shares no code with the writer finds every byte where the page says."""

from __future__ import annotations

import asyncio
import hashlib
from random import Random
from struct import unpack_from
from zlib import crc32

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import MEMBERSHIP, Entry, HardState, Membership, SnapshotMeta
from pyraftkv.log import FileStorage
from pyraftkv.sim.disk import SimFS
from tests.log.disks import LoopWorker, blank

META = SnapshotMeta(
    index=2,
    term=3,
    membership=Membership(
        frozenset({1, 2}), frozenset({2, 4}), frozenset({7}), frozenset({4}), auto_leave=True, witnesses=frozenset({2})
    ),
)


@pytest.fixture(scope="module")
def fs() -> SimFS:
    """A directory with one of everything."""
    made = blank()

    async def main():
        def worker(_name):
            return LoopWorker(asyncio.get_running_loop().create_future())

        storage = FileStorage("/data", fs=made, worker=worker, random=Random(7))
        await storage.start(failed=pytest.fail)
        await storage.identify(cluster_id=0x11, member_id=0x22)
        entries = [Entry(1, 3, b"one"), Entry(2, 3, b""), Entry(3, 3, b"conf", MEMBERSHIP), Entry(4, 3, bytes(9000))]
        done = asyncio.get_running_loop().create_future()
        storage.save(Save(1, HardState(term=3, vote=9, commit=0), entries, None), lambda _: None)
        storage.save(Save(2, HardState(term=3, vote=9, commit=2), [], None), done.set_result)
        await done
        sink = storage.create_snapshot(META)
        await sink.write(b"first")
        await sink.write(b"second")
        await sink.commit()
        await storage.close()

    asyncio.run(main())
    return made


def block(data: bytes, magic: bytes) -> None:
    """Check a header block's frame."""
    assert data[:12] == magic + b"\1\0\0\0"
    assert unpack_from("<I", data, len(data) - 4)[0] == crc32(data[:-4])


def test_identity_slots(fs):
    """The newer slot has the boot and the binding."""
    slots = [bytes(fs.disk.file(f"/data/identity.{name}")) for name in "ab"]
    for data in slots:
        assert len(data) == 512
        block(data, b"PRKVIDEN")
    # minted twice, counted once, bound twice
    fields = sorted(unpack_from("<QQQQQ", data, 12) for data in slots)
    assert [(generation, cluster, member, boots) for generation, cluster, member, _, boots in fields] == [
        (4, 0x11, 0x22, 1),
        (5, 0x11, 0x22, 1),
    ]


def records(data: bytes, salt: int) -> list[tuple]:
    """Read a segment's records as the page describes them, checking every CRC and the chain."""
    found, offset, chain, count, previous = [], 4096, 0, 0, 0
    while any(data[offset : offset + 40]):
        magic, length, crc = unpack_from("<4sII", data, offset)
        type_, flags, group, batch, index, term = unpack_from("<BBHQQQ", data, offset + 12)
        end = offset + 40 + -(-length // 8) * 8
        assert magic == b"\xd7WAL"
        assert crc == crc32(data[offset + 12 : end], crc32(data[offset : offset + 8], salt))
        payload = data[offset + 40 : offset + 40 + length]
        assert not any(data[offset + 40 + length : end])
        assert group == 0
        if type_ == 4:
            assert unpack_from("<IIQ", payload) == (count, chain, previous)
            count, previous = -1, offset
        chain = crc32(data[offset : offset + 40], chain)
        count += 1
        found.append((type_, flags, batch, index, term, payload))
        offset = end
    assert not any(data[offset:]), "behind the last batch there is room, and nothing else"
    assert len(data) >= offset + (64 << 10)
    return found


def test_a_segment(fs):
    """Header, opening batch, entries in runs, hard state, snapshot."""
    (name,) = fs.listdir("/data/wal")
    assert name == "0000000000000000-0000000000000001.wal"
    data = bytes(fs.disk.file(f"/data/wal/{name}"))
    block(data[:4096], b"PRKVSEGM")
    algorithm, salt, *fields = unpack_from("<BxxxIQQQQQQI", data, 12)
    incarnation = unpack_from("<Q", fs.disk.file("/data/identity.a"), 36)[0]
    assert (algorithm, fields) == (1, [0, 0, incarnation, 0, 1, 0, 0])
    first = b"\2\0\0\0\3\0\0\0\0\0\0\0one"
    large = b"\1\0\0\0" + (9000).to_bytes(4, "little") + bytes(9000)
    membership = b"\2\0\2\0\1\0\1\0\1\0\1" + b"".join(id_.to_bytes(8, "little") for id_ in (1, 2, 2, 4, 7, 4, 2))
    found = records(data, salt)
    assert [record for record in found if record[0] != 4] == [
        (2, 0, 1, 0, 0, bytes(8)),
        (1, 0x00, 2, 1, 3, first),
        (1, 0x01, 2, 3, 3, b"\1\0\0\0\4\0\0\0conf"),
        (1, 0x20, 2, 4, 3, large + hashlib.blake2b(large, digest_size=8).digest()),
        (2, 0, 2, 0, 3, (9).to_bytes(8, "little")),
        (3, 0, 3, 2, 3, membership),
        (2, 0, 3, 2, 3, (9).to_bytes(8, "little")),
    ]
    assert [record[2:4] for record in found if record[0] == 4] == [(1, 0), (2, 4), (3, 4)]


def test_the_mark(fs):
    """It says where the last batch ends."""
    data = bytes(fs.disk.file("/data/mark"))
    (name,) = fs.listdir("/data/wal")
    segment = bytes(fs.disk.file(f"/data/wal/{name}"))
    incarnation = unpack_from("<Q", fs.disk.file("/data/identity.a"), 36)[0]
    assert len(data) == 64
    block(data, b"PRKVMARK")
    assert unpack_from("<QQQQQ", data, 12) == (incarnation, 0, -(-len(segment.rstrip(b"\0")) // 8) * 8, 3, 4)


def test_a_snapshot(fs):
    """Header, chunks, trailer."""
    (name,) = fs.listdir("/data/snap")
    assert name == "0000000000000003-0000000000000002.snap"
    data = bytes(fs.disk.file(f"/data/snap/{name}"))
    block(data[:4096], b"PRKVSNAP")
    assert unpack_from("<QQQQQHHHHHB7Q", data, 12) == (0x11, 2, 3, 0, 0, 2, 2, 1, 1, 1, 1, 1, 2, 2, 4, 7, 4, 2)
    trailer = (2).to_bytes(8, "little") + (11).to_bytes(8, "little") + hashlib.sha256(b"firstsecond").digest()
    offset = 4096
    for number, expected in ((0, b"first"), (1, b"second"), (0xFFFFFFFF, trailer)):
        found, length, crc = unpack_from("<III", data, offset)
        chunk = data[offset + 12 : offset + 12 + length]
        assert (found, chunk) == (number, expected)
        assert crc == crc32(data[offset : offset + 8] + chunk)
        offset += 12 + length
    assert offset == len(data)
