"""A store and its twin, side by side: every action is done to both, every answer compared."""

from __future__ import annotations

from random import Random
from typing import Any

from pyraftkv.errors import Closed, Compacted, FutureRevision, InvalidRequest, PyraftkvError, WatchCancelled
from pyraftkv.store import Restorer, Snapshot, Store, Watcher, Work
from pyraftkv.store.commands import Command, Compact, RangeQuery
from pyraftkv.store.values import Event, EventType, KvHash
from tests.store import generators
from tests.store.model import Model, in_range
from tests.store.watching import WatchRules, flags_of


def outcome(action: Any, *args: Any) -> Any:
    """Return what ``action`` returns, or the type of the error it raises."""
    try:
        return action(*args)
    except PyraftkvError as error:
        return type(error)


def finish(result: Any, budget: int = 1) -> Any:
    """Step through a piece of work, if it is one."""
    while isinstance(result, Work):
        done = result.step(budget)
        result = result if done is None else done
    return result


def restore(chunks: list[bytes], **options: Any) -> Store:
    """Build a store from a snapshot's chunks."""
    restorer = Restorer(**options)
    for chunk in chunks:
        restorer.feed(chunk)
    return restorer.finish()


class Follower:
    """A watcher and everything it should see: checks order, uniqueness, atomicity, no gap, prev_kv, is_create."""

    def __init__(self, model: Model, watcher: Watcher, start: int) -> None:
        self.model = model
        self.watcher = watcher
        self.start = start
        self.taken_revision = start - 1
        self.rules = WatchRules(watcher.key, watcher.end, **flags_of(watcher))
        self.cancelled = False

    def expected(self, low: int, high: int) -> list[Event]:
        """Return the events of `(low, high]` that the watch wants."""
        watcher = self.watcher
        return [
            event
            for event in self.model.events
            if low < event.kv.mod_revision <= high
            and in_range(event.kv.key, watcher.key, watcher.end)
            and not (watcher.no_put if event.type is EventType.PUT else watcher.no_delete)
        ]

    def note_cancelled(self, cancelled: WatchCancelled) -> None:
        """Check that the watch had to end, and that nothing is missing before the place to resume at."""
        watcher = self.watcher
        self.cancelled = True
        assert cancelled.resume_revision == watcher.revision + 1 > self.taken_revision
        assert self.expected(self.taken_revision, cancelled.resume_revision - 1) == []
        assert cancelled.resume_revision < cancelled.compact_revision == self.model.compact_revision
        assert outcome(watcher.take, 1) is Closed

    def take(self, events_max: int) -> bool:
        """Take once and check it; tell whether there was something."""
        watcher = self.watcher
        try:
            batch = watcher.take(events_max)
        except WatchCancelled as error:
            self.note_cancelled(error)
            return False
        assert watcher.ready == watcher.has_more
        if batch is None:
            return False
        self.rules.check(batch)
        expected = self.expected(self.taken_revision, batch.revision)
        assert len(batch.events) == len(expected)
        for event, wanted in zip(batch.events, expected, strict=True):
            assert (event.type, event.kv) == (wanted.type, wanted.kv)
            previous = wanted.prev_kv if watcher.prev_kv else None
            if event.prev_kv is None and wanted.kv.mod_revision <= self.model.compact_revision:
                continue  # the revision before it is compacted
            assert event.prev_kv == previous
        assert batch.revision >= self.taken_revision
        whole = [event.kv.mod_revision for event in batch.events]
        assert len(batch.events) <= events_max or whole[events_max] in whole[:events_max]
        self.taken_revision = batch.revision
        assert watcher.revision >= batch.revision
        return True


class World:
    """A store with tiny slices and its twin, with followers, snapshots and a compaction under way."""

    def __init__(self, seed: int | Random) -> None:
        self.rng = seed if isinstance(seed, Random) else Random(seed)
        self.store = Store(step_keys_max=self.rng.choice([1, 2, 100]))
        self.model = Model()
        self.followers: list[Follower] = []
        self.ready: set[Watcher] = set()
        self.snapshots: list[tuple[Snapshot, Any, list[bytes], int, int]] = []
        self.reads: list[tuple[Work[Any], Any]] = []
        self.compaction: Work[int] | None = None

    def apply(self, command: Command) -> None:
        """Apply to both; while slices go on, readers see the state before."""
        before, hash_before = self.model.revision, self.store.state_hash
        result = outcome(self.store.apply, command)
        expected = outcome(self.model.apply, command)
        while isinstance(result, Work):
            assert self.store.published_revision == before
            assert self.store.state_hash == hash_before
            assert outcome(self.store.get, b"a") == self.model.states[before].get(b"a")
            self.advance()
            if self.rng.random() < 0.05:
                self.open_snapshot(before)
            if self.compaction is not None:
                assert self.compaction.step(1) is None, "a command under way pins"
            done = outcome(result.step, self.rng.choice([1, 3, 1000]))
            result = result if done is None else done
        assert result == expected, command
        assert self.store.published_revision == self.store.revision == self.model.revision
        assert self.store.key_count == len(self.model.states[self.model.revision])
        assert self.store.state_hash == self.model.state_hash(self.model.revision)
        self.compare_leases(self.store)

    def keep_leases(self) -> None:
        """Let leases expire, or write down what is left of them; each is gone whole before the next one goes."""
        command = generators.lease_upkeep(self.rng)
        before = self.model.revision
        result: Any = self.store.keep_leases(command)
        expected = self.model.keep_leases(command)
        while isinstance(result, Work):
            revision = self.store.published_revision
            assert before <= revision <= self.model.revision
            assert outcome(self.store.get, b"a") == self.model.states[revision].get(b"a")
            done = result.step(self.rng.choice([1, 3, 1000]))
            result = result if done is None else done
        assert result == expected, command
        assert self.store.published_revision == self.store.revision == self.model.revision
        assert self.store.state_hash == self.model.state_hash(self.model.revision)
        self.compare_leases(self.store)

    def compare_leases(self, store: Store) -> None:
        """Compare which leases there are, and their keys."""
        leases = store.leases
        assert {lease: (leases.ttl(lease), leases.left(lease)) for lease in leases} == self.model.leases
        for lease in generators.LEASES:
            assert leases.keys(lease) == self.model.attached(lease)

    def read(self, query: RangeQuery) -> None:
        """Read from both; now and then leave the store's reading under way."""
        expected = outcome(self.model.read, query)
        result = outcome(self.store.read, query)
        if isinstance(result, Work) and self.rng.random() < 0.5:
            self.reads.append((result, expected))
            return
        assert finish(result) == expected, query

    def hash_kv(self) -> None:
        """Hash the history up to some revision, or leave that under way."""
        model, revision = self.model, self.some_revision()
        at = revision if revision > 0 else model.revision
        result = outcome(self.store.hash_kv, revision)
        if not model.compact_revision <= at <= model.revision:
            assert result is (Compacted if at < model.compact_revision else FutureRevision)
            return
        expected = KvHash(model.revision, at, model.compact_revision, model.kv_hash(at))
        if isinstance(result, Work) and self.rng.random() < 0.5:
            self.reads.append((result, expected))
            return
        assert finish(result) == expected

    def continue_reads(self) -> None:
        """Finish the readings that were left under way."""
        for work, expected in self.reads:
            assert finish(work) == expected
        self.reads.clear()

    def some_revision(self) -> int:
        """Return a revision that may be compacted, there or in the future."""
        return self.rng.randrange(-1, self.model.revision + 2)

    def compact(self) -> None:
        """Compact both, mostly near the present."""
        self.apply(Compact(self.model.revision - self.rng.choice([0, 1, 2, 5, 10, -1])))

    def step_compaction(self) -> None:
        """Go on removing what was compacted."""
        if self.compaction is None:
            self.compaction = self.store.compaction()
        if self.compaction is not None and self.compaction.step(self.rng.choice([1, 5, 1000])) is not None:
            self.compaction = None

    def watch(self) -> None:
        """Begin to follow a range."""
        rng = self.rng
        start = rng.choice([0, 0, 1, self.some_revision(), self.model.revision + rng.randrange(5)])
        key, end = rng.choice([*generators.KEYS, b""]), rng.choice(generators.ENDS)
        flags = {name: rng.random() < 0.3 for name in ("prev_kv", "no_put", "no_delete")}
        watcher = outcome(lambda: self.store.watch(key, end, start_revision=start, **flags))
        if start < 0 or (end not in {b"", b"\0"} and (key or b"\0") >= end):
            assert watcher is InvalidRequest
            return
        if 0 < start < self.model.compact_revision:
            assert watcher is Compacted
            return
        self.followers.append(Follower(self.model, watcher, start or self.model.revision + 1))
        if not watcher.synced:
            self.ready.add(watcher)

    def advance(self) -> None:
        """Distribute; whoever is returned was not known to have something."""
        for watcher in self.store.advance(self.rng.choice([1, 2, 1000])):
            assert watcher not in self.ready
            self.ready.add(watcher)

    def take(self) -> None:
        """Let some of the followers that have something take it."""
        for follower in self.followers:
            if follower.watcher in self.ready and self.rng.random() < 0.5:
                while follower.take(self.rng.choice([1, 2, 1000])) and self.rng.random() >= 0.2:
                    pass
                if follower.cancelled or not follower.watcher.ready:
                    self.ready.discard(follower.watcher)
            elif not follower.cancelled and self.rng.random() < 0.01:
                follower.watcher.cancel()
                follower.cancelled = True
                self.ready.discard(follower.watcher)
        self.followers = [follower for follower in self.followers if not follower.cancelled]

    def drain(self) -> None:
        """Bring every follower to the present and check that it has seen all."""
        while True:
            self.advance()
            if self.store.distributed_revision == self.store.published_revision:
                break
        for follower in self.followers:
            if follower.watcher in self.ready:
                while follower.take(3):
                    pass
            if not follower.cancelled:
                assert follower.watcher.synced
                assert follower.expected(follower.taken_revision, self.model.revision) == []
                assert follower.watcher.revision == max(self.model.revision, follower.start - 1)
        self.ready.clear()
        self.followers = [follower for follower in self.followers if not follower.cancelled]

    def open_snapshot(self, revision: int) -> None:
        """Pin a snapshot, to be walked while other things happen."""
        snapshot = self.store.snapshot()
        assert snapshot.revision == revision
        self.snapshots.append((snapshot, iter(snapshot), [], revision, self.model.compact_revision))

    def walk_snapshots(self) -> None:
        """Read on in the snapshots; restore and compare those that are complete."""
        for entry in list(self.snapshots):
            snapshot, chunks, read, revision, compact_revision = entry
            chunk = next(chunks, None)
            if chunk is not None:
                read.append(chunk)
                continue
            snapshot.close()
            self.snapshots.remove(entry)
            twin = restore(read, step_keys_max=10**6)
            twin.check()
            assert (twin.revision, twin.compact_revision) == (revision, compact_revision)
            self.compare(twin, revision, compact_revision)
            finish(twin.compaction())
            twin.check()
            self.compare(twin, revision, compact_revision)

    def compare(self, store: Store, revision: int, compact_revision: int) -> None:
        """Compare every readable revision, the whole history of events, and the hash of it."""
        for _ in store._history.pages.order:
            assert store.patrol() is None
        everything = RangeQuery(b"\0", b"\0")
        for at in range(max(1, compact_revision), revision + 1):
            query = RangeQuery(b"\0", b"\0", at)
            state = self.model.states[at]
            assert finish(store.read(query)).kvs == [state[key] for key in sorted(state)]
        assert finish(store.read(everything)).count == len(self.model.states[revision]) == store.key_count
        start = max(1, compact_revision)
        watcher = store.watch(b"\0", b"\0", start_revision=start)
        events: list[Event] = []
        while (batch := watcher.take()) is not None:
            events += batch.events
        watcher.cancel()
        wanted = [(e.type, e.kv) for e in self.model.events if start <= e.kv.mod_revision <= revision]
        assert [(event.type, event.kv) for event in events] == wanted

    def step(self) -> None:
        """Do one random thing."""
        rng = self.rng
        actions = {
            lambda: self.apply(generators.command(rng)): 40,
            lambda: self.read(generators.query(rng, rng.choice([0, self.some_revision()]))): 20,
            self.watch: 6,
            self.keep_leases: 2,
            self.advance: 10,
            self.take: 10,
            self.step_compaction: 10,
            self.compact: 2,
            self.continue_reads: 2,
            self.hash_kv: 2,
            lambda: self.open_snapshot(self.model.revision): 1,
            self.walk_snapshots: 6,
        }
        rng.choices(list(actions), weights=list(actions.values()))[0]()

    def close(self) -> None:
        """Finish everything and compare it all."""
        self.store.check()
        self.drain()
        self.continue_reads()
        while self.snapshots:
            self.walk_snapshots()
        while self.compaction is not None or self.store.compaction() is not None:
            self.step_compaction()
        self.store.check()
        self.compare(self.store, self.model.revision, self.model.compact_revision)
