"""What a storage may hold after a crash: `Driver` runs random lives on a simulated disk and knows what was promised.

The model is a list of the states of the log, one per save, and two marks: how many saves completed, and how many were
asked for. After a crash the storage must hold exactly one of the states between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from pyraftkv._record import record
from pyraftkv.core.ready import Save
from pyraftkv.core.types import MEMBERSHIP, NORMAL, Entry, HardState, Membership, SnapshotMeta
from pyraftkv.log import FileStorage
from pyraftkv.log.base import Recovered
from pyraftkv.log.fs import FileSystem

MEMBERS = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({9}))
SEGMENT_BYTES_MAX = 12 << 10


@record
class State:
    """The log after some save. Entries up to `base` are replaced by a received snapshot."""

    term: int = 0
    vote: int = 0
    commit: int = 0
    base: int = 0
    base_term: int = 0
    entries: tuple[Entry, ...] = ()

    @property
    def last(self) -> int:
        return self.entries[-1].index if self.entries else self.base

    def term_at(self, index: int) -> int:
        return self.base_term if index == self.base else self.entries[index - self.base - 1].term


@record
class Promise:
    """What a start must find, and what it may find."""

    states: tuple[State, ...]
    """The log is exactly one of these: the one that completed last, or one that was asked for since."""
    commit_max: int
    """The highest commit index that was ever asked for."""
    snapshot: int
    """The snapshot in use is not older than this index."""
    boot: int
    """No boot count up to this one may be counted again."""
    incarnation: int
    """What the directory was minted with; 0 while no start has returned."""
    owners: tuple[tuple[int, int], ...]
    """Cluster and member, as they were bound last, or asked for since."""

    def judge(self, recovered: Recovered) -> State:
        """Return the state of the log that was found. Raises `AssertionError` if it may not be there. O(entries)."""
        identity, snapshot, found = recovered.identity, recovered.snapshot, recovered.hard_state
        assert identity.boot_count > self.boot
        assert self.incarnation in (0, identity.mark)
        assert (identity.cluster_id, identity.member_id) in self.owners
        base = snapshot.index if snapshot is not None else 0
        assert base >= self.snapshot
        assert snapshot is None or snapshot.membership == MEMBERS
        last = recovered.entries[-1].index if recovered.entries else base
        assert base <= found.commit <= min(last, self.commit_max)
        possible = [
            known
            for known in self.states
            if (known.term, known.vote) == (found.term, found.vote)
            and known.base <= base
            and known.last == last
            and list(known.entries[max(base - known.base, 0) :]) == recovered.entries
        ]
        assert possible, f"{found} {snapshot} {len(recovered.entries)} entries is none of the possible states"
        return possible[-1]


class Driver:
    """Runs lives of one member on one disk, checking at each start what the one before left."""

    path = "/data"
    segment_bytes_max = SEGMENT_BYTES_MAX
    sizes: tuple[int, ...] = (0, 20, 300, 3000)
    """Of what entries carry."""
    entries_max = 8
    """In one save."""
    chunks: tuple[int, ...] = (1, 700, 5000)
    """Sizes of what snapshots carry."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Of the storage."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.states = [State()]
        self.completed = 0
        self.commit_max = 0
        self.snapshots: dict[tuple[int, int], list[list[bytes]]] = {}
        """Every data that was ever written for a snapshot."""
        self.snapshot_promised = 0
        self.boot_promised = 0
        self.incarnation_promised = 0
        self.owners = [(0, 0)]
        self.storage: FileStorage | None = None
        """What was started last."""
        self.repairs: list[str] = []

    async def life(self, fs: FileSystem, make_worker, steps: int) -> None:
        """Start, check, do ``steps`` random things, close."""
        salts = Random(self.random.random())
        storage = FileStorage(
            self.path,
            fs=fs,
            worker=make_worker,
            random=salts,
            segment_bytes_max=self.segment_bytes_max,
            **self.options,
        )
        recovered = await storage.start(failed=self.failed)
        self.storage = storage
        await self._check(storage, recovered)
        if self.owners == [(0, 0)]:
            self.owners.append((77, 1))
            await storage.identify(cluster_id=77, member_id=1)
            self.owners = self.owners[1:]
        for _ in range(steps):
            await self._step(storage)
        await storage.close()
        assert self.completed == len(self.states) - 1

    def failed(self, error: BaseException) -> None:
        """The storage says that it has failed."""
        raise AssertionError("the storage failed") from error

    def promise(self) -> Promise:
        """Return what a start must find now. O(saves)."""
        return Promise(
            states=tuple(self.states[self.completed :]),
            commit_max=self.commit_max,
            snapshot=self.snapshot_promised,
            boot=self.boot_promised,
            incarnation=self.incarnation_promised,
            owners=tuple(self.owners),
        )

    async def _check(self, storage: FileStorage, recovered) -> None:
        old = self.promise().judge(recovered)
        self.boot_promised, self.incarnation_promised = recovered.identity.boot_count, recovered.identity.mark
        self.owners = [(recovered.identity.cluster_id, recovered.identity.member_id)]
        self.repairs.append(recovered.repaired)
        snapshot, state = recovered.snapshot, recovered.hard_state
        self.snapshot_promised = 0
        if snapshot is not None:
            chunks = [chunk async for chunk in storage.read_snapshot(snapshot)]
            assert chunks in self.snapshots[snapshot.term, snapshot.index]
            self.snapshot_promised = snapshot.index
        last = recovered.entries[-1].index if recovered.entries else self.snapshot_promised
        read = await storage.read_entries(lo=storage.first_index, hi=last + 1, bytes_max=1 << 30)
        assert read == [entry for entry in old.entries if entry.index >= storage.first_index]
        storage._wal.runs.check()
        self.completed = 0
        self.states = [State(old.term, old.vote, state.commit, old.base, old.base_term, old.entries)]

    async def _step(self, storage: FileStorage) -> None:
        kind = self.random.choices(
            (self._append, self._overwrite, self._vote, self._commit, self._snapshot, self._install, self._settle),
            weights=(10, 3, 2, 4, 2, 1, 5),
        )[0]
        await kind(storage)

    def _save(self, storage: FileStorage, state: State, entries=(), snapshot=None) -> None:
        old = self.states[-1]
        self.states.append(state)
        self.commit_max = max(self.commit_max, state.commit)
        hard = HardState(state.term, state.vote, state.commit)
        changed = hard != HardState(old.term, old.vote, old.commit)
        number = len(self.states) - 1

        def then(done: int) -> None:
            self.completed = max(self.completed, done)

        storage.save(Save(number, hard if changed else None, list(entries), snapshot), then)

    async def _append(self, storage: FileStorage) -> None:
        self._write(storage, self.states[-1].last + 1)

    async def _overwrite(self, storage: FileStorage) -> None:
        state = self.states[-1]
        if state.last > state.commit:
            self._write(storage, self.random.randint(state.commit + 1, state.last), term=state.term + 1)

    def _write(self, storage: FileStorage, first: int, term: int = 0) -> None:
        old, random = self.states[-1], self.random
        term = term or max(old.term, 1)
        sizes = [random.choice(self.sizes) for _ in range(random.randint(1, self.entries_max))]
        kind = MEMBERSHIP if random.random() < 0.1 else NORMAL
        entries = tuple(
            Entry(first + i, term, random.choice((b"\0" * size, random.randbytes(size))), kind)
            for i, size in enumerate(sizes)
        )
        kept = old.entries[: first - old.base - 1]
        self._save(storage, State(term, old.vote, old.commit, old.base, old.base_term, kept + entries), entries)

    async def _vote(self, storage: FileStorage) -> None:
        old = self.states[-1]
        vote = self.random.randint(1, 3)
        self._save(storage, State(old.term + 1, vote, old.commit, old.base, old.base_term, old.entries))

    async def _commit(self, storage: FileStorage) -> None:
        old = self.states[-1]
        commit = self.random.randint(old.commit, old.last)
        self._save(storage, State(old.term, old.vote, commit, old.base, old.base_term, old.entries))

    async def _snapshot(self, storage: FileStorage) -> None:
        old = self.states[-1]
        if old.commit > self.snapshot_promised:
            index = self.random.randint(self.snapshot_promised + 1, old.commit)
            meta = SnapshotMeta(index=index, term=old.term_at(index), membership=MEMBERS)
            await self._write_snapshot(storage, meta, received=False)
            self.snapshot_promised = meta.index

    async def _install(self, storage: FileStorage) -> None:
        old = self.states[-1]
        index, term = old.last + self.random.randint(1, 50), max(old.term, 1)
        meta = SnapshotMeta(index=index, term=term, membership=MEMBERS)
        await self._write_snapshot(storage, meta, received=True)
        self._save(storage, State(term, old.vote, index, index, term), snapshot=meta)
        await self._settle(storage)
        self.snapshot_promised = index

    async def _write_snapshot(self, storage: FileStorage, meta: SnapshotMeta, *, received: bool) -> None:
        chunks = [self.random.randbytes(self.random.choice(self.chunks)) for _ in range(self.random.randint(0, 4))]
        self.snapshots.setdefault((meta.term, meta.index), []).append(chunks)
        sink = storage.create_snapshot(meta, received=received)
        for chunk in chunks:
            await sink.write(chunk)
        if self.random.random() < 0.1 and not received:
            await sink.abort()
            sink = storage.create_snapshot(meta)
            for chunk in chunks:
                await sink.write(chunk)
        await sink.commit()

    async def _settle(self, storage: FileStorage) -> None:
        """Wait until everything asked for is durable."""
        number = len(self.states) - 1
        while self.completed < number:  # noqa: ASYNC110 - no event: the loop's turns are the simulation's clock
            await asyncio.sleep(0)  # one turn of the loop at a time: that is where crashes fall
