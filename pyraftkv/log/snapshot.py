"""Snapshot files: a header block, numbered chunks, and a trailer that knows how many there were.

.. code-block:: text

    ┌───────────────────┬───────────────────────────────┬─────┬──────────────────────────────────────────────────┐
    │ header (4 KiB)    │ number │ length │ CRC │ data  │ ... │ 2^32-1 │ 48 │ CRC │ chunks, bytes, SHA-256 of data  │
    └───────────────────┴───────────────────────────────┴─────┴──────────────────────────────────────────────────┘

Rules:

1. A file is written under a temporary name, synced, renamed, and the directory synced. A file that is named like a
   snapshot is whole.
2. Its name alone gives it no meaning: only snapshots that the log names are loaded, and the log names one only after
   1. is done, in one batch with a commit index that covers it.
3. What it replaces is removed only after the log's naming is durable.
4. Every read checks CRC, numbers and trailer; a read from the first chunk checks the SHA-256 too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from struct import Struct
from zlib import crc32

from pyraftkv.core.types import SnapshotMeta
from pyraftkv.errors import SnapshotCorruption
from pyraftkv.log.block import BlockDamaged, pack_block, unpack_block
from pyraftkv.log.fs import FileSystem, join, write_all
from pyraftkv.log.record import pack_membership, unpack_membership

SNAPSHOT_MAGIC = b"PRKVSNAP"
BLOCK_BYTES = 4096
CHUNK_BYTES_MAX = 1 << 20
"""The largest chunk that is written or believed."""
UNSYNCED_BYTES_MAX = 16 << 20
"""Sync after this many bytes, so that the log's own syncs never wait for a whole snapshot to reach the disk."""
TEMPORARY_SUFFIX = ".tmp"
BROKEN_SUFFIX = ".broken"

_FIELDS = Struct("<QQQQQ")
_CHUNK = Struct("<III")
_TRAILER = Struct("<QQ32s")
_TRAILER_NUMBER = 0xFFFFFFFF
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")


def snapshot_name(*, term: int, index: int) -> str:
    """Return a snapshot's file name."""
    return f"{term:016x}-{index:016x}.snap"


def parse_snapshot_name(name: str) -> tuple[int, int] | None:
    """Return the term and index of a snapshot's file name, or None for any other file."""
    match = _NAME.fullmatch(name)
    return (int(match[1], 16), int(match[2], 16)) if match else None


class SnapshotWriter:
    """Writes one snapshot file. `write` its chunks, then `finish`; or `abort`. An error aborts it by itself.

    Args:
        directory: Where snapshots live.
        number: Tells the temporary files of snapshots apart that are being written at the same time.
        name: What the file is called, where it is nobody's log that names it: a saved snapshot.
    """

    def __init__(
        self, fs: FileSystem, directory: str, meta: SnapshotMeta, *, cluster_id: int, number: int, name: str = ""
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._path = join(directory, name or snapshot_name(term=meta.term, index=meta.index))
        self._temporary = f"{self._path}.{number}{TEMPORARY_SUFFIX}"
        self._count = 0
        self._bytes = 0
        self._unsynced_bytes = 0
        self._hash = sha256()
        # The two zeros are the store's revision and compact revision, which the log does not know.
        fields = _FIELDS.pack(cluster_id, meta.index, meta.term, 0, 0) + pack_membership(meta.membership)
        self._fd: int | None = fs.open(self._temporary, create=True)
        self._offset = 0
        self._append(pack_block(SNAPSHOT_MAGIC, fields, size=BLOCK_BYTES))

    def _append(self, data: bytes) -> None:
        assert self._fd is not None, "the snapshot is finished or aborted"
        try:
            write_all(self._fs, self._fd, data, self._offset)
            self._offset += len(data)
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= UNSYNCED_BYTES_MAX:
                self._fs.fdatasync(self._fd)
                self._unsynced_bytes = 0
        except OSError:
            self.abort()
            raise

    def write(self, chunk: bytes) -> None:
        """Append a chunk. O(bytes). Raises `OSError`."""
        assert 0 < len(chunk) <= CHUNK_BYTES_MAX, f"a chunk of {len(chunk)} bytes"
        self._append(_frame(self._count, chunk))
        self._hash.update(chunk)
        self._count += 1
        self._bytes += len(chunk)

    @property
    def sha256(self) -> bytes:
        """Of the data of the chunks so far."""
        return self._hash.digest()

    @property
    def size_bytes(self) -> int:
        """How long the file is so far."""
        return self._offset

    def finish(self) -> None:
        """Add the trailer and make file and name durable. Raises `OSError`."""
        self._append(_frame(_TRAILER_NUMBER, _TRAILER.pack(self._count, self._bytes, self.sha256)))
        assert self._fd is not None
        try:
            self._fs.fdatasync(self._fd)
            self._fs.rename(self._temporary, self._path)
            fd, self._fd = self._fd, None
            self._fs.close(fd)
            self._fs.fsync_dir(self._directory)
        except OSError:
            self.abort()
            raise

    def abort(self) -> None:
        """Forget what was written. Idempotent; after `finish` it does nothing. An error leaves the file to `clean`."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            self._fs.close(fd)
            self._fs.unlink(self._temporary)
        except OSError:
            return


def _frame(number: int, data: bytes) -> bytes:
    crc = crc32(data, crc32(number.to_bytes(4, "little") + len(data).to_bytes(4, "little")))
    return _CHUNK.pack(number, len(data), crc) + data


class SnapshotReader:
    """Reads one snapshot file, verifying. `meta` holds what its header says.

    The descriptor stays open until `close`, so that a purge in the meantime takes away the name only.

    Args:
        directory: Where it lies.
        term: With `index`, what its name says; it must say so itself.
        name: What it is called, if its name says neither: a saved snapshot.

    Raises: `SnapshotCorruption` if it is missing or its header is wrong, `UnsupportedFormat`, `OSError`.
    """

    def __init__(self, fs: FileSystem, directory: str, *, term: int = 0, index: int = 0, name: str = "") -> None:
        self._fs = fs
        self.path = join(directory, name or snapshot_name(term=term, index=index))
        self.cluster_id = 0
        """Of the cluster that it was taken in; 0 if that was not known."""
        self.sha256 = b""
        """Of the data of all chunks, once they were read from the first to the last."""
        try:
            self._fd = fs.open(self.path)
        except FileNotFoundError as error:
            raise SnapshotCorruption(f"{self.path} is missing", path=self.path) from error
        try:
            self.meta = self._header(None if name else (term, index))
        except BaseException:
            fs.close(self._fd)
            raise

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return self._fs.size(self._fd)

    def _header(self, expected: tuple[int, int] | None) -> SnapshotMeta:
        block = self._fs.pread(self._fd, BLOCK_BYTES, 0)
        try:
            fields = unpack_block(block, SNAPSHOT_MAGIC, size=BLOCK_BYTES, path=self.path)
        except BlockDamaged as damage:
            raise self._corrupt(0, f"the header is damaged: {damage}") from damage
        self.cluster_id, index, term, _revision, _compact = _FIELDS.unpack_from(fields)
        if expected is not None and (term, index) != expected:
            raise self._corrupt(0, f"it holds index {index} of term {term}")
        return SnapshotMeta(index=index, term=term, membership=unpack_membership(fields[_FIELDS.size :]))

    def _corrupt(self, offset: int, reason: str) -> SnapshotCorruption:
        return SnapshotCorruption(f"{self.path}: {reason}", path=self.path, offset=offset)

    def chunks(self, *, from_chunk: int = 0) -> Iterator[bytes]:
        """Yield the data of the chunks from number ``from_chunk`` on. O(bytes), and O(1) for each chunk skipped.

        Raises: `SnapshotCorruption` at the first byte that is not as it was written, `OSError`.
        """
        offset, number, total = BLOCK_BYTES, 0, 0
        digest = sha256()
        while True:
            head = self._fs.pread(self._fd, _CHUNK.size, offset)
            if len(head) != _CHUNK.size:
                raise self._corrupt(offset, "it ends without a trailer")
            found, length, _crc = _CHUNK.unpack(head)
            if found == _TRAILER_NUMBER:
                break
            if found != number or not 0 < length <= CHUNK_BYTES_MAX:
                raise self._corrupt(offset, f"chunk {found} of {length} bytes where chunk {number} belongs")
            if number >= from_chunk:
                data = self._data(head, length, offset)
                digest.update(data)
                yield data
            offset += _CHUNK.size + length
            number += 1
            total += length
        trailer = self._data(head, _TRAILER.size, offset) if length == _TRAILER.size else b""
        end = offset + _CHUNK.size + length
        expected = _TRAILER.pack(number, total, digest.digest())
        if trailer != expected and (from_chunk <= 0 or trailer[:16] != expected[:16]):
            raise self._corrupt(offset, "its trailer is of other chunks")
        if self._fs.size(self._fd) != end:
            raise self._corrupt(end, "bytes after the trailer")
        self.sha256 = digest.digest() if from_chunk <= 0 else b""

    def _data(self, head: bytes, length: int, offset: int) -> bytes:
        data = self._fs.pread(self._fd, length, offset + _CHUNK.size)
        if len(data) != length or crc32(data, crc32(head[:8])) != _CHUNK.unpack(head)[2]:
            raise self._corrupt(offset, "a chunk's CRC does not match")
        return data

    def verify(self) -> None:
        """Read everything from the disk, and not from the cache. Raises as `chunks`."""
        self._fs.fdatasync(self._fd)
        self._fs.forget_cache(self._fd)
        self._header((self.meta.term, self.meta.index))  # the one that is known came from the cache
        for _ in self.chunks():
            pass

    def close(self) -> None:
        """Release the file."""
        self._fs.close(self._fd)


def clean(fs: FileSystem, directory: str, *, named: list[SnapshotMeta]) -> None:
    """Unlink temporary files of an earlier life, and snapshots that the log does not name, oldest first."""
    kept = {snapshot_name(term=meta.term, index=meta.index) for meta in named}
    for name in fs.listdir(directory):
        if name.endswith(TEMPORARY_SUFFIX) or (parse_snapshot_name(name) is not None and name not in kept):
            fs.unlink(join(directory, name))


def purge(fs: FileSystem, directory: str, *, named: list[SnapshotMeta]) -> None:
    """Unlink the snapshots that the ones in use replaced, oldest first.

    A newer one that the log does not name yet stays: it was received, and the save that names it is on its way.
    """
    kept = {(meta.term, meta.index) for meta in named}
    newest = named[-1].index if named else 0
    names = fs.listdir(directory)
    for name in names:
        if name.endswith(BROKEN_SUFFIX):
            fs.unlink(join(directory, name))
    found = [parsed for name in names if (parsed := parse_snapshot_name(name)) is not None]
    for term, index in sorted(found, key=lambda parsed: parsed[1]):
        if (term, index) not in kept and index < newest:
            fs.unlink(join(directory, snapshot_name(term=term, index=index)))
