"""Lives for `tests.log.kills`: healthy ones, and those in which something is wrong.

The disk fails, the directory is damaged, or the storage is misused. Each begins on what a healthy member left
(`Ill.before`), after some damage (`DAMAGES`), and goes through a few steps; a step that begins with ``!`` lets system
calls fail from then on (`FAILURES`), and one at the very beginning does so before the start. Together they execute
every line of the log that can be.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, SnapshotMeta
from pyraftkv.errors import Closed, StorageError
from pyraftkv.log import FileStorage, files
from pyraftkv.log.record import DIGEST_BYTES_MIN
from pyraftkv.log.segment import BLOCK_BYTES
from tests.log.failing import GARBLED, GROWING, NOTHING, SHORT, Failure, Failures
from tests.log.model import MEMBERS, Promise, State
from tests.log.scenarios import Scenario, Script

SMALL = BLOCK_BYTES + 200
LARGE = BLOCK_BYTES << 2
TURNS_MAX = 8
"""Turns of the loop without any progress, after which a life goes on without waiting."""
SETTLES_TURNS_MAX = 1_000
"""Turns of the loop after which something has waited for ever."""

FAILURES = {
    "sync": Failure("fdatasync", "*.wal"),
    "sync-once": Failure("fdatasync", "*.wal", times=1),
    "write": Failure("pwrite", "*.wal"),
    "stuck": Failure("pwrite", "*.wal", NOTHING),
    "short": Failure("pwrite", "*.wal", SHORT, times=3),
    "full": Failure("pwrite", "*.wal", GROWING),
    "brimful": Failure("pwrite", "*.wal", errno.ENOSPC),
    "no-next": Failure("pwrite", "*.wal.tmp", errno.ENOSPC, times=2),
    "bad-next": Failure("pwrite", "*.wal.tmp", times=1),
    "no-unlink": Failure("unlink"),
    "no-rename": Failure("replace"),
    "no-names": Failure("fsync", "*/wal"),
    "garbled": Failure("pread", "*.wal", GARBLED),
    "unread": Failure("pread", "*.wal"),
    "pieces": Failure("pread", "*.wal", SHORT, times=1),
    "nothing": Failure("pread", "*.wal", NOTHING, times=1),
    "mark": Failure("pwrite", "*/mark"),
    "no-mark": Failure("open", "*/mark"),
    "identity": Failure("fdatasync", "*/identity.?"),
    "slot": Failure("pread", "*/identity.a"),
    "slots": Failure("pread", "*/identity.?"),
    "no-memory": Failure("pread", "*/identity.a", errno.ENOMEM),
    "snapshot": Failure("pwrite", "*.snap.*.tmp", errno.ENOSPC),
    "unread-snapshot": Failure("pread", "*.snap"),
    "closed-snapshot": Failure("open", "*.snap", errno.EACCES),
    "locked": Failure("flock", code=errno.EWOULDBLOCK),
    "no-locks": Failure("flock", code=errno.ENOLCK),
    "private": Failure("fsync", code=errno.EACCES, times=1),
    "no-above": Failure("fsync", times=1),
    "stranger": Failure("geteuid", "", SHORT),
    "no-copy": Failure("open", "*.torn", errno.ENOSPC),
}


class Over(Exception):
    """A life is given up as it is."""


@contextmanager
def refusal(error: type[Exception]) -> Generator[None]:
    """Something must be refused. As `pytest.raises`, for a process that forks by the thousand and is better small."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"it is no {error.__name__}")


@dataclass(frozen=True)
class Ill:
    """A life in which something is wrong."""

    steps: str
    ends: str = ""
    """How: well, or with an error of this name whose message has this in it."""
    is_refused: bool = False
    """Whether every later start ends like that too; where it does not, it finds all that was promised."""
    before: tuple[str, ...] = ()
    """Healthy lives that lead there."""
    damage: str = ""
    """What befalls the directory after them; names, of `DAMAGES`."""
    segment_bytes_max: int = LARGE
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `FileStorage`, for this life and every later start."""
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Of modules of the log, for this life."""
    inside: str = ""
    """Where in the directory that is looked at the data directory is."""
    is_synced: bool = True
    """Whether syncs are more than nothing."""

    @property
    def is_of_snapshots(self) -> bool:
        """Whether an older snapshot must do."""
        return self.damage in ("mistaken", "trailer", "chunks", "snapshot bytes")

    def fits(self, ended: str) -> bool:
        """Whether this is how it ends: an error's name and message, or nothing."""
        name, _, message = self.ends.partition(": ")
        return ended.partition(": ")[0] == name and message in ended


class Patient(Script):
    """Lives on a disk that fails; the steps that only such lives have.

    Args:
        path: The data directory.
    """

    def __init__(self, scenario: Scenario, seed: int, path: str) -> None:
        super().__init__(scenario, seed)
        self.path = path
        self.failures = Failures()
        self.failed_with: BaseException | None = None
        self.was_full = False
        self.is_damaged = False
        """Whether an older snapshot than the newest may have to do."""

    def begin(self, steps: str) -> int:
        """Take the steps of the next life; what fails before its first one does so from the start."""
        super().begin(steps)
        while self._steps and self._steps[0].startswith("!"):
            self._arm(self._steps.pop(0))
        return len(self._steps)

    def _arm(self, step: str) -> None:
        self.was_full |= step in ("!full", "!brimful", "!no-next")
        self.is_damaged |= step == "!unread-snapshot"
        self.failures.arm(FAILURES[step[1:]])

    def failed(self, error: BaseException) -> None:
        """The storage says that it has failed: from now on it touches no file of the log, and acknowledges nothing."""
        assert self.failed_with is None, "told twice"
        self.failed_with = error
        self._then = (self.completed, self._log())

    def _log(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(self.path, "wal").glob("*")}

    def promise(self) -> Promise:
        """As it is asked for by `tests.log.sweep`: on a full disk terms and votes do not wait for what is before them.

        A start that cannot read the newest snapshot goes on from the one before: the log is the same in the end.
        """
        promise = super().promise()
        if self.is_damaged:
            promise = replace(promise, snapshot=0)
        if not self.was_full:
            return promise
        early = [
            State(later.term, later.vote, state.commit, state.base, state.base_term, state.entries)
            for number, state in enumerate(promise.states)
            for later in promise.states[number + 1 :]
        ]
        return replace(promise, states=(*early, *promise.states))

    async def ill(self, fs: Any, workers: Any, count: int) -> str:
        """Run a life; return how it ended, empty if it ended well."""
        ended = ""
        try:
            await self.life(fs, workers, count)
        except (StorageError, Closed, Over) as error:
            ended = f"{type(error).__name__}: {error}"
            if self.storage is not None:
                self.storage.abandon()
                await self.storage.close()
            if self.failed_with is not None:
                assert self._then == (self.completed, self._log()), "it went on after it had failed"
        assert not self.failures.mistakes
        assert "fork" in ended or not self.failures.paths, f"open still: {self.failures.paths}"
        return ended

    async def _step(self, storage: FileStorage) -> None:
        if self._steps[0].startswith("!"):
            self._arm(self._steps.pop(0))
        else:
            await super()._step(storage)

    # --- Steps --------------------------------------------------------------------------------------------------------

    async def _tick(self, _storage: FileStorage) -> None:
        await asyncio.sleep(0)

    async def _heal(self, _storage: FileStorage) -> None:
        self.failures.heal()

    async def _over(self, _storage: FileStorage) -> None:
        raise Over

    async def _settle(self, storage: FileStorage) -> None:
        for _ in range(SETTLES_TURNS_MAX):
            if self.completed == len(self.states) - 1:
                return
            await asyncio.sleep(0)
        raise AssertionError("a save is lost")

    async def _wait(self, storage: FileStorage) -> None:
        """As `_settle`, unless it takes for ever; a failure of the storage is raised."""
        for _ in range(TURNS_MAX):
            if self.completed == len(self.states) - 1:
                return
            if self.failed_with is not None:
                raise self.failed_with
            await asyncio.sleep(0)

    async def _commit_all(self, storage: FileStorage) -> None:
        old = self.states[-1]
        self._save(storage, replace(old, commit=old.last))

    async def _snapshot_all(self, storage: FileStorage) -> None:
        commit = self.states[-1].commit
        meta = SnapshotMeta(index=commit, term=self.states[-1].term_at(commit), membership=MEMBERS)
        chunks = [self.random.randbytes(size) for size in self.chunks[1:]]
        self.snapshots.setdefault((meta.term, meta.index), []).append(chunks)
        sink = storage.create_snapshot(meta)
        for chunk in chunks:
            await sink.write(chunk)
        await sink.commit()
        self.snapshot_promised, self.is_damaged = commit, False

    async def _big(self, storage: FileStorage) -> None:
        """An entry that is followed by a digest."""
        old = self.states[-1]
        entry = Entry(old.last + 1, max(old.term, 1), bytes(DIGEST_BYTES_MIN))
        self._save(storage, replace(old, term=entry.term, entries=(*old.entries, entry)), (entry,))

    async def _several(self, storage: FileStorage) -> None:
        """A few entries in one run, of which a reader may want some."""
        old = self.states[-1]
        run = tuple(Entry(old.last + number, max(old.term, 1), b"some") for number in (1, 2, 3))
        self._save(storage, replace(old, term=run[0].term, entries=(*old.entries, *run)), run)

    async def _look(self, storage: FileStorage) -> None:
        assert repr(storage)
        assert storage.kind
        assert storage.log_bytes >= 0

    async def _identify(self, storage: FileStorage) -> None:
        cluster_id, member_id = self.owners[-1]
        await storage.identify(cluster_id=cluster_id, member_id=member_id)

    async def _mistake(self, storage: FileStorage) -> None:
        await storage.identify(cluster_id=self.owners[-1][0], member_id=99)

    async def _promise(self, storage: FileStorage) -> None:
        """Let identity slots be written."""
        await storage.identify(cluster_id=self.owners[-1][0], member_id=1, promises=True)

    async def _read(self, storage: FileStorage) -> None:
        """Read it all, in small pieces and at once."""
        last = self.states[-1].last
        pieces: list[Entry] = []
        while (lo := storage.first_index + len(pieces)) <= last:
            pieces += await storage.read_entries(lo=lo, hi=last + 1, bytes_max=1)
        assert pieces == await storage.read_entries(lo=storage.first_index, hi=last + 1, bytes_max=1 << 30)

    async def _unread(self, storage: FileStorage) -> None:
        """Who reads is told that it does not work; nothing else happens."""
        with refusal(StorageError):
            await storage.read_entries(lo=storage.first_index, hi=self.states[-1].last + 1, bytes_max=1 << 30)

    async def _change_mind(self, storage: FileStorage) -> None:
        reading = asyncio.ensure_future(storage.read_entries(lo=1, hi=2, bytes_max=1))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])

    async def _read_some(self, storage: FileStorage) -> None:
        """Begin to read a snapshot, and leave it at that."""
        self.reading = storage.read_snapshot(self._named())
        await anext(self.reading)

    async def _unread_snapshot(self, storage: FileStorage) -> None:
        with refusal(StorageError):
            await anext(storage.read_snapshot(self._named()))

    def _named(self) -> SnapshotMeta:
        index = self.snapshot_promised
        return SnapshotMeta(index=index, term=self.states[-1].term_at(index), membership=MEMBERS)

    async def _discard(self, storage: FileStorage) -> None:
        """Begin snapshots, and think better of it; one is left to whoever closes the storage."""
        meta = replace(self._named(), index=self.states[-1].commit)
        sink, left = storage.create_snapshot(meta), storage.create_snapshot(meta)
        for _ in range(2):
            if not sink._ended:
                await sink.write(b"some")
            await sink.abort()
        with refusal(StorageError):
            await sink.commit()
        await left.write(b"some more")

    async def _older(self, storage: FileStorage) -> None:
        """Write a snapshot that is not newer than the one in use: it is dropped."""
        sink = storage.create_snapshot(self._named())
        await sink.commit()

    async def _no_snapshot(self, storage: FileStorage) -> None:
        """It cannot be written, and nothing else happens."""
        sink = storage.create_snapshot(replace(self._named(), index=self.states[-1].commit))
        if self.failures:
            with refusal(StorageError):
                await sink.commit()
            return
        await sink.write(b"some")
        self._arm("!snapshot")
        with refusal(StorageError):
            await sink.write(b"more")
        await sink.abort()

    async def _abandon(self, storage: FileStorage) -> None:
        """While a snapshot waits to be named."""
        naming = asyncio.ensure_future(storage.adopt_snapshot(self._named()))
        await asyncio.sleep(0)
        storage.abandon()
        with refusal(Closed):
            await naming
        raise Over

    async def _give_up(self, storage: FileStorage) -> None:
        """Close it, whatever it has not done yet."""
        await storage.close()
        raise Over

    async def _close(self, storage: FileStorage) -> None:
        await storage.close()
        await storage.close()
        with refusal(Closed):
            storage._enqueue(Save(0, None, [], None), lambda _: None)
        await storage.read_entries(lo=1, hi=2, bytes_max=1)

    async def _flood(self, storage: FileStorage) -> None:
        """More saves than may wait."""
        for _ in range(files.QUEUED_SAVES_MAX + 1):
            await self._append(storage)

    async def _fork(self, storage: FileStorage) -> None:
        """What a forked child does; it never closes what it was born with, and this process has other lives to live."""
        files._poison_all()
        files._open_storages.discard(storage)
        await storage.read_entries(lo=1, hi=2, bytes_max=1)


ONE = ("append settle vote append settle",)
MANY = (" ".join(["append settle"] * 6),)
TWO = ("append settle commit_all snapshot_all append settle commit_all snapshot_all append settle",)
FAR = ("append settle commit_all snapshot_all" + " append settle" * 5,)
RECEIVED = ("append settle install append settle",)
PIECES = {"wal.READ_BYTES_MAX": 100, "files.BATCH_BYTES_MAX": 1, "snapshot.UNSYNCED_BYTES_MAX": 1}
NO_ROOM = {"wal.GROWTH_FACTOR": 0, "files.FULL_RETRY_SECONDS": 0}
NO_RESERVE = {"reserve_bytes": 0}
STRICT = {"strict_tail": True}
FAILED, CORRUPT = "StorageFailed: ", "WalCorruption: "


def refused(damage: str, ends: str, *, before: tuple[str, ...] = ONE, **settings: Any) -> Ill:
    """A directory that no start opens, for a reason that it says each time."""
    return Ill("", ends, is_refused=True, before=before, damage=damage, **settings)


UNUSUAL = (
    Ill("look append several vote settle big settle identify read change_mind append commit settle", bounds=PIECES),
    Ill("append settle commit_all", before=ONE),
    Ill("append settle commit_all snapshot_all", inside="/above/data"),
    Ill("promise append settle close", "Closed: the storage is closed", is_synced=False),
    Ill("mistake", "ForeignDataDir: ", before=ONE),
    Ill("fork", FAILED + "the storage was opened before a fork", before=ONE),
    Ill("append settle flood wait", FAILED, bounds={"files.QUEUED_SAVES_MAX": 2}),
    Ill("append settle commit_all older discard", before=TWO, bounds=PIECES),
    Ill("commit_all snapshot_all append settle commit_all snapshot_all read_some", before=TWO, segment_bytes_max=SMALL),
    Ill("commit_all snapshot_all abandon", "Over", before=ONE),
)
FAILING = (
    Ill("append settle !sync append tick append tick tick append wait", FAILED, before=ONE),
    Ill("append settle !sync append vote wait", FAILED, bounds=PIECES),
    Ill("append settle !sync-once vote tick vote tick tick over", "Over"),
    Ill("append settle !write append wait", FAILED),
    Ill("append settle !stuck append wait", FAILED),
    Ill("append settle !short append settle"),
    Ill("append settle commit_all !sync snapshot_all", FAILED),
    Ill("append settle commit_all !sync"),
    Ill("!identity append settle", FAILED, before=ONE),
    Ill("append settle append settle !no-names append wait append wait", FAILED, segment_bytes_max=SMALL),
    Ill("append settle append settle !bad-next append wait append wait", FAILED, segment_bytes_max=SMALL),
    Ill("append settle !identity promise", FAILED),
    Ill("append settle !identity rebind", FAILED),
    Ill("append settle !mark append settle append settle"),
    Ill("!no-mark append settle", before=ONE),
    Ill("append settle !garbled unread !unread unread"),
    Ill("append settle commit_all snapshot_all !unread-snapshot unread_snapshot"),
    Ill("append settle commit_all no_snapshot !no-unlink no_snapshot"),
    Ill("append settle commit_all !no-rename no_snapshot"),
    Ill("!no-unlink commit_all snapshot_all", before=TWO, segment_bytes_max=SMALL),
    Ill("!locked", "DataDirLocked: ", before=ONE),
    Ill("!no-locks", FAILED, before=ONE),
    Ill("!private append settle"),
    Ill("!no-above", FAILED, before=()),
    Ill("!stranger", "ForeignDataDir: ", before=ONE),
    Ill("!slot append settle", before=ONE),
    Ill("!slots", FAILED, before=ONE),
    Ill("!no-memory", FAILED, before=ONE),
    Ill("!unread-snapshot append settle", before=TWO),
    Ill("!closed-snapshot", FAILED, before=TWO),
    Ill("!pieces append settle", before=ONE),
    Ill("!nothing", CORRUPT, before=ONE),
    Ill("", CORRUPT, before=ONE, bounds={"recovery.SEGMENT_BYTES_LIMIT": 10}),
    Ill("!no-copy append settle", before=ONE, damage="torn"),
)
FULL = (
    Ill("append settle !full append append vote tick tick tick tick tick heal settle", bounds=NO_ROOM),
    Ill("append settle !full append append overwrite tick tick vote wait heal settle", bounds=NO_ROOM),
    Ill("append settle !brimful append vote wait heal settle", bounds=NO_ROOM),
    Ill("append settle !brimful append wait heal append settle", bounds=NO_ROOM, options=NO_RESERVE),
    Ill("append settle !full append wait !write vote wait wait", FAILED, bounds=NO_ROOM),
    Ill("append settle !full append wait vote abandon", "Over", bounds=NO_ROOM),
    Ill("append settle !full append give_up", "Over", bounds=NO_ROOM),
    Ill("append settle !no-next append wait append settle", bounds=NO_ROOM, segment_bytes_max=SMALL),
    Ill("append settle !no-unlink !no-next append wait append settle", bounds=NO_ROOM, segment_bytes_max=SMALL),
    Ill("append settle append !brimful append wait heal append settle", bounds=NO_ROOM, segment_bytes_max=SMALL),
)
DAMAGED = (
    Ill("append settle", before=ONE, damage="garbled"),
    Ill("append settle", before=ONE, damage="wrong digest"),
    Ill("append settle", before=ONE, damage="long commit"),
    Ill("append settle", before=ONE, damage="other commit"),
    Ill("append settle", before=ONE, damage="sealed"),
    Ill("append settle", before=TWO, damage="mistaken"),
    Ill("append settle", before=TWO, damage="trailer"),
    Ill("append settle", before=TWO, damage="chunks"),
    Ill("append settle commit_all snapshot_all", before=TWO, damage="snapshot bytes"),
    Ill("append settle", before=ONE, damage="slot"),
    Ill("append settle", before=("append settle", "append settle"), damage="newest slot"),
    Ill("append settle", before=ONE, damage="slot of another"),
    Ill("append settle", before=ONE, damage="leftovers"),
    Ill("append settle", before=ONE, damage="open to all"),
)
REFUSED = (
    Ill("", "StorageError: ", is_refused=True, options={"create": False}),
    refused("torn", CORRUPT + "an unfinished batch, or one that is damaged", options=STRICT),
    refused("sealed", CORRUPT + "it ends with a seal", options=STRICT),
    refused("no table", CORRUPT + "0 entries"),
    refused("wrong table", CORRUPT + "can no longer be read"),
    refused("gap", CORRUPT + "1 entries from index 1000"),
    refused("went back", CORRUPT + "the hard state went back"),
    refused("beyond its end", CORRUPT + "it ends before its own commit index"),
    refused("nonsense", CORRUPT + "makes no sense"),
    refused("unknown", "UnsupportedFormat: "),
    refused("later", CORRUPT + "damage before a later batch"),
    refused("after the seal", CORRUPT + "bytes after the seal"),
    refused("no segments", CORRUPT + "the log is gone"),
    refused("last batch", CORRUPT + "was durable, and the log ends"),
    refused("no seal", CORRUPT + "it ends without a seal", before=MANY, segment_bytes_max=SMALL),
    refused("no opening", CORRUPT + "the opening batch is missing"),
    refused("opening", CORRUPT + "damage in the opening batch"),
    refused("header", CORRUPT + "the header is damaged"),
    refused("algorithm", CORRUPT + "the header is damaged"),
    refused("incarnation", "ForeignDataDir: "),
    refused("member", "ForeignDataDir: "),
    refused("chain", CORRUPT + "it does not continue the segment", before=MANY, segment_bytes_max=SMALL),
    refused("renamed", CORRUPT + "its name and its header differ"),
    refused("hole", CORRUPT + "before it is missing", before=MANY, segment_bytes_max=SMALL),
    refused("sealed damage", CORRUPT + "damage in a sealed segment", before=MANY, segment_bytes_max=SMALL),
    refused("first segments", CORRUPT + "it does not continue its snapshot", before=FAR, segment_bytes_max=SMALL),
    refused("no snapshots", "SnapshotCorruption: ", before=RECEIVED),
    refused("newer", "UnsupportedFormat: "),
    refused("both slots", CORRUPT + "neither identity slot"),
)
HEALTHY = (
    Ill("append settle"),
    Ill("append settle overwrite settle vote settle", before=("append settle",)),
    Ill("append settle commit snapshot append settle", segment_bytes_max=SMALL),
    Ill("commit append settle snapshot append settle", before=TWO[:1], segment_bytes_max=SMALL),
    Ill("append settle install append settle"),
    Ill("append settle", before=RECEIVED),
    Ill("append settle rebind"),
    Ill("append settle", before=("append settle rebind",)),
    Ill("append settle", before=ONE, damage="torn"),
)
ILLS = (*HEALTHY, *UNUSUAL, *FAILING, *FULL, *DAMAGED, *REFUSED)
