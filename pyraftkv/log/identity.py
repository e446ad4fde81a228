"""Whose directory this is: two CRC'd slots, written in turn, so that one survives whatever happens to the other.

Each write goes to the slot that does not hold the newest record, and is synced before anything relies on it. The boot
count is what an answer to an earlier life of this member is told apart by, so it must never repeat:

1. Slots hold boots 5 and 6. The slot with 6 rots.
2. The next start finds 5 only, and would count 6 again.
3. An answer that a peer sent to the first boot 6 would be taken by the second.

So a start that finds one of the slots unreadable counts two boots instead of one.

That no life of the directory has ever promised a leader anything is written down, not that one has: of what was written
before that was known, a start must assume the worse.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from struct import Struct

from pyraftkv._record import record
from pyraftkv.errors import ForeignDataDir, StorageFailed
from pyraftkv.log.base import Identity
from pyraftkv.log.block import BlockDamaged, pack_block, unpack_block
from pyraftkv.log.fs import FileSystem, is_unreadable, join, write_all

IDENTITY_MAGIC = b"PRKVIDEN"
SLOT_BYTES = 512
SLOT_NAMES = ("identity.a", "identity.b")

_FIELDS = Struct("<QQQQQQQQ")


@record
class _Slot:
    generation: int
    """Counts the writes, over both slots; the higher one is the newer."""
    identity: Identity


class IdentityFile:
    """The two slots of one data directory.

    Args:
        directory: The data directory.
    """

    def __init__(self, fs: FileSystem, directory: str) -> None:
        self._fs = fs
        self._directory = directory
        self._generation = 0
        self._newest = 1
        self._boots = 1
        self.identity: Identity | None = None
        """The newest record on disk; None before `load` found or `mint` wrote one."""
        self.unreadable: list[str] = []
        """The slots that `load` found missing or damaged."""
        self._read_error: OSError | None = None

    def load(self) -> bool:
        """Read both slots and keep the newer valid one. Return whether there is one.

        One that the disk cannot read is like one that is damaged, as long as the other serves.

        Raises: `UnsupportedFormat`, `OSError`.
        """
        slots = [self._read(name) for name in SLOT_NAMES]
        for number, slot in enumerate(slots):
            if slot is None:
                self._boots = 2
                self.unreadable.append(SLOT_NAMES[number])
            elif slot.generation > self._generation:
                self._generation, self._newest, self.identity = slot.generation, number, slot.identity
        if self.identity is None and self._read_error is not None:
            raise self._read_error
        return self.identity is not None

    def mint(self, random: Random) -> None:
        """Make a new identity, bound to nothing, that has never started."""
        self._boots = 1
        identity = Identity(cluster_id=0, member_id=0, incarnation=random.getrandbits(63) | 1, boot_count=0)
        self._write_both(identity)

    def count_boot(self) -> Identity:
        """Count this start, durably."""
        old = self._known()
        identity = replace(old, boot_count=old.boot_count + self._boots)
        self._write(identity)
        return identity

    def bind(self, *, cluster_id: int, member_id: int, promises: bool = False, rolled_back: bool = False) -> Identity:
        """Bind the directory to a cluster and a member, in both slots, so that no single one can forget it.

        And, if it ``promises``, that it may have promised a leader to elect nobody else; and that it was found to be
        ``rolled_back``.

        Raises: `ForeignDataDir` if it is bound to another, `OSError`.
        """
        old = self._known()
        identity = replace(
            old,
            cluster_id=cluster_id,
            member_id=member_id,
            has_promised=old.has_promised or promises,
            is_rolled_back=old.is_rolled_back or rolled_back,
        )
        if identity == old:
            return old
        if old.cluster_id not in (0, cluster_id) or old.member_id not in (0, member_id):
            raise ForeignDataDir(
                f"{self._directory} belongs to member {old.member_id} of cluster {old.cluster_id:x}, "
                f"not to member {member_id} of cluster {cluster_id:x}"
            )
        self._write_both(identity)
        return identity

    def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        """Bind the directory to another cluster and mint another incarnation, in both slots. Raises `OSError`.

        Nobody there was promised anything: it is not rolled back any more.
        """
        old = self._known()
        identity = replace(old, cluster_id=cluster_id, incarnation=incarnation, origin=old.mark, is_rolled_back=False)
        self._write_both(identity)
        return identity

    def _known(self) -> Identity:
        if self.identity is None:
            raise StorageFailed(f"{self._directory}: neither identity slot can be read")
        return self.identity

    def _read(self, name: str) -> _Slot | None:
        if name not in self._fs.listdir(self._directory):
            return None
        path = join(self._directory, name)
        fd = self._fs.open(path)
        try:
            self._fs.fdatasync(fd)
            self._fs.forget_cache(fd)
            block = self._block(fd)
        finally:
            self._fs.close(fd)
        try:
            fields = unpack_block(block, IDENTITY_MAGIC, size=SLOT_BYTES, path=path)
        except BlockDamaged:
            return None
        generation, cluster_id, member_id, incarnation, boot_count, origin, is_unpromised, is_rolled_back = (
            _FIELDS.unpack_from(fields)
        )
        identity = Identity(
            cluster_id, member_id, incarnation, boot_count, origin, not is_unpromised, bool(is_rolled_back)
        )
        return _Slot(generation, identity)

    def _block(self, fd: int) -> bytes:
        """Return a slot's bytes; none if the disk cannot read them."""
        try:
            return self._fs.pread(fd, SLOT_BYTES, 0)
        except OSError as error:
            if not is_unreadable(error):
                raise
            self._read_error = error
            return b""

    def _write_both(self, identity: Identity) -> None:
        self._write(identity)
        self._write(identity)

    def _write(self, identity: Identity) -> None:
        """Write the slot that is not the newest."""
        generation, number = self._generation + 1, 1 - self._newest
        fields = _FIELDS.pack(
            generation,
            identity.cluster_id,
            identity.member_id,
            identity.incarnation,
            identity.boot_count,
            identity.origin,
            not identity.has_promised,
            identity.is_rolled_back,
        )
        name = SLOT_NAMES[number]
        exists = name in self._fs.listdir(self._directory)
        fd = self._fs.open(join(self._directory, name), create=not exists)
        try:
            write_all(self._fs, fd, pack_block(IDENTITY_MAGIC, fields, size=SLOT_BYTES), 0)
            self._fs.fdatasync(fd)
        finally:
            self._fs.close(fd)
        if not exists:
            self._fs.fsync_dir(self._directory)
        self._generation, self._newest, self.identity = generation, number, identity
