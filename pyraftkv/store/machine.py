"""The store: etcd's data model as a pure machine. Commands and queries in, results and events out.

It knows nothing of Raft, clocks, threads or disks. `apply` is a function of the commands applied before: the same
commands give the same results and the same state everywhere. What may take long is returned as `Work` and goes on in
slices; see `work.py`, and `history.py` for who sees what meanwhile.
"""

from __future__ import annotations

from typing import TypeVar

from pyraftkv.errors import Compacted, FutureRevision, InvalidRequest, NotApplied
from pyraftkv.store.commands import (
    SINGLE_KEY,
    CheckpointLeases,
    Compact,
    DiffQuery,
    ExpireLeases,
    GrantLease,
    LeaseUpkeep,
    LoggedCommand,
    LookQuery,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
)
from pyraftkv.store.hashing import Damage, Patrol, hash_steps
from pyraftkv.store.history import History
from pyraftkv.store.leases import Leases
from pyraftkv.store.pages import PAGE_BYTES_TARGET, RECORD_BYTES, RECORD_BYTES_MAX
from pyraftkv.store.past import diff_steps, versions_steps
from pyraftkv.store.ranges import range_steps
from pyraftkv.store.snapshot import HistoryReader, Snapshot, check_history
from pyraftkv.store.txn import bounded_delete_steps, check_put, do_put, revoke_steps, txn_steps
from pyraftkv.store.validate import Limits, validate, validate_query
from pyraftkv.store.values import (
    CompactResult,
    KeyValue,
    KvHash,
    LeaseGranted,
    LeaseRevoked,
    LoggedResult,
    LookResult,
    PutBatchResult,
    PutResult,
    RangeResult,
)
from pyraftkv.store.watch import ADVANCE_RECORDS_MAX, Watcher, WatchHub
from pyraftkv.store.work import SlicedWork, Steps, Work

T = TypeVar("T")

STEP_KEYS_MAX = 512
"""What touches no more keys than this is done at once; a slice of about half a millisecond."""


class Store:
    """A versioned key-value store.

    - Changing: `validate`, `apply`, `keep_leases`.
    - Reading: `get`, `read`, `look`, `hash_kv`.
    - Watching: `watch`, `advance`, `distributed_revision`.
    - Upkeep: `compaction`, `patrol`, `snapshot` (and `Restorer`), `check`.
    - Looking: `leases`, `revision`, `published_revision`, `compact_revision`, `compacted_revision`, `key_count`,
      `size_bytes`, `in_use_bytes`, `state_hash`.

    >>> store = Store()
    >>> store.apply(PutKey(b"color", b"red"))
    PutResult(revision=2, prev_kv=None)
    >>> store.apply(PutKey(b"color", b"blue")).revision
    3
    >>> store.get(b"color").value, store.get(b"color", revision=2).value
    (b'blue', b'red')

    Args:
        limits: The bounds of one request; the same on every member.
        step_keys_max: What touches more keys than this is returned as `Work`. Local: it changes no result.
    """

    __slots__ = ("_compaction", "_history", "_hub", "_patrol", "_step_keys_max", "limits")

    def __init__(
        self, *, limits: Limits | None = None, step_keys_max: int = STEP_KEYS_MAX, history: History | None = None
    ) -> None:
        self.limits = limits or Limits()
        assert self.limits.request_bytes_max + RECORD_BYTES <= RECORD_BYTES_MAX - PAGE_BYTES_TARGET
        assert step_keys_max > 0
        self._step_keys_max = step_keys_max
        self._history = history or History()
        self._hub = WatchHub(self._history)
        self._compaction: CompactionWork | None = None
        self._patrol = Patrol(self._history)

    def __repr__(self) -> str:
        return f"<Store {self.key_count} keys at revision {self.revision}, compacted at {self.compact_revision}>"

    @property
    def revision(self) -> int:
        """The revision of the last change, a command under way included. Starts at 1. O(1)."""
        return self._history.current_revision

    @property
    def published_revision(self) -> int:
        """The last complete revision: what readers, watchers and snapshots see. O(1)."""
        return self._history.published_revision

    @property
    def compact_revision(self) -> int:
        """Reads and watches below this revision are refused; 0 if nothing was compacted. O(1)."""
        return self._history.compact_revision

    @property
    def compacted_revision(self) -> int:
        """Up to where the space has been won back; `compaction` takes it to `compact_revision`. O(1)."""
        return self._history.compacted_revision

    @property
    def distributed_revision(self) -> int:
        """Up to where `advance` has come; below `published_revision` it is to be called again. O(1)."""
        return self._hub.distributed_revision

    @property
    def key_count(self) -> int:
        """How many keys exist. O(1)."""
        return self._history.key_count

    @property
    def size_bytes(self) -> int:
        """The bytes of every version, superseded ones that compaction has not removed included. O(1)."""
        return self._history.pages.size_bytes

    @property
    def state_hash(self) -> int:
        """The hash of every key as it is now, with all its fields, of the revisions and the leases: 63 bits. O(1).

        Equal states have equal ones on every member, whatever their slices, batches, snapshots and Pythons.
        """
        return self._history.state_hash()

    @property
    def leases(self) -> Leases:
        """Which leases there are: to be looked at."""
        return self._history.leases

    @property
    def in_use_bytes(self) -> int:
        """Of `size_bytes`, what the keys that exist take: as much is left if all history is compacted. O(1)."""
        return self._history.pages.live_bytes

    # --- Changing --------------------------------------------------------------------------------------------------

    def validate(self, command: LoggedCommand) -> None:
        """Refuse a command that could never be applied, whatever the state: to be called before proposing it.

        Raises:
            InvalidRequest: It is wrong in itself (`DuplicateKey`, `RequestTooLarge` among others).
        """
        validate(command, self.limits)

    def apply(self, command: LoggedCommand) -> LoggedResult | Work[LoggedResult]:
        """Apply a command. O(log n) for a put.

        Returns:
            The result, and the new revision is published; or the `Work` that will lead to it. No other command may
            be applied until that is finished.

        Raises:
            NotApplied: The command was refused and has changed nothing: `InvalidRequest`, `KeyNotFound`,
                `LeaseNotFound`, `LeaseExists`, `Compacted`, `FutureRevision`; `RequestTooLarge` also for what its
                result would hold. The same on every member. Work may raise them, too.
        """
        history = self._history
        assert history.mark is None, "a command is still under way"
        self.validate(command)
        if isinstance(command, PutBatch):
            return self._put_batch(command)
        if isinstance(command, PutKey):
            return self._put(command)
        if isinstance(command, Compact):
            return self._compact(command.revision)
        if isinstance(command, GrantLease):
            return self._grant(command)
        if isinstance(command, RevokeLease):
            return self._start(self._publishing(self._revoke_steps(command.id)))
        bytes_max = self.limits.result_bytes_max
        if isinstance(command, Transaction):
            return self._start(self._publishing(txn_steps(history, command, bytes_max)))
        return self._start(self._publishing(bounded_delete_steps(history, command, bytes_max)))

    def _put(self, put: PutKey) -> PutResult:
        history = self._history
        check_put(history, put)
        result = do_put(history, put)
        history.changes = 0
        history.published_revision = result.revision
        return result

    def _put_batch(self, batch: PutBatch) -> PutBatchResult:
        """Apply plain puts, most of all commands: each is complete, and published, before the next."""
        history, items = self._history, batch.items
        put, revision = history.put, history.published_revision
        for key, value in zip(items[::2], items[1::2], strict=True):
            revision += 1
            put(key, value, 0, revision)
            history.changes = 0
            history.published_revision = revision
        return PutBatchResult(revision, batch.count)

    def _grant(self, grant: GrantLease) -> LeaseGranted:
        ttl = max(grant.ttl, self.limits.lease_ttl_min_seconds)
        self.leases.grant(grant.id, ttl, count_max=self.limits.leases_max)
        return LeaseGranted(self._history.published_revision, grant.id, ttl)

    def _revoke_steps(self, lease: int) -> Steps[LeaseRevoked]:
        self.leases.check(lease)
        return revoke_steps(self._history, lease)

    def keep_leases(self, command: LeaseUpkeep) -> int | Work[int]:
        """Do what a leader decided of leases, as `apply`; return how many there still were."""
        assert self._history.mark is None, "a command is still under way"
        if isinstance(command, ExpireLeases):
            return self._start(self._expire_steps(command.ids))
        return self._checkpoint(command)

    def _expire_steps(self, ids: list[int]) -> Steps[int]:
        """End leases: each is complete, and published, before the next."""
        count = 0
        for lease in ids:
            if lease in self.leases:
                yield from self._publishing(revoke_steps(self._history, lease))
                count += 1
            yield 1
        return count

    def _checkpoint(self, command: CheckpointLeases) -> int:
        leases, items, count = self.leases, command.items, 0
        for lease, left in zip(items[::2], items[1::2], strict=True):
            if lease in leases:
                leases.checkpoint(lease, left)
                count += 1
        return count

    def _publishing(self, steps: Steps[T]) -> Steps[T]:
        """Carry out a command and publish what it did."""
        self._history.begin()
        try:
            result = yield from steps
        except NotApplied:
            self._history.abandon()
            raise
        self._history.publish()
        return result

    def _compact(self, revision: int) -> CompactResult:
        history = self._history
        if revision <= history.compact_revision:
            raise Compacted(
                f"revision {revision} is compacted already, the oldest is {history.compact_revision}",
                compact_revision=history.compact_revision,
            )
        self._refuse_future(revision)
        history.compact_revision = revision
        return CompactResult(history.published_revision)

    def _start(self, steps: Steps[T]) -> T | Work[T]:
        """Do the first slice at once: most work is done with it."""
        work = SlicedWork(steps)
        result = work.step(self._step_keys_max)
        return work if result is None else result

    # --- Reading ---------------------------------------------------------------------------------------------------

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """Return the key as of ``revision`` (0 or less: the latest), or None. O(log n + log versions).

        Raises:
            InvalidRequest: The key is empty.
            Compacted: The revision is gone.
            FutureRevision: The revision does not exist yet.
        """
        if not key:
            raise InvalidRequest("the key is empty")
        at = self._resolve(revision) if revision > 0 else self._history.published_revision
        return self._history.get(key, at)

    def read(self, query: RangeQuery, *, bytes_max: int | None = None) -> RangeResult | Work[RangeResult]:
        """Read a range at one published revision, whatever is applied meanwhile.

        O(log n + keys in the range); with a limit, keys behind it are counted a chunk at a time where possible.

        Args:
            query: What to read.
            bytes_max: Of keys and values: give up as soon as there are more, and not when everything was read.

        Raises:
            InvalidRequest: The key is empty.
            Compacted: The revision is gone.
            FutureRevision: The revision does not exist yet.
            RequestTooLarge: There are more than ``bytes_max``.
        """
        validate_query(query)
        history, at = self._history, self._resolve(query.revision)
        current = history.published_revision
        return self._start(range_steps(history, query, at=at, current=current, bytes_max=bytes_max, record_bytes=0))

    def hash_kv(self, revision: int = 0) -> KvHash | Work[KvHash]:
        """Return the hash of everything up to ``revision`` (0 or less: the latest). O(versions x log versions).

        Raises:
            Compacted: The revision is gone.
            FutureRevision: The revision does not exist yet.
        """
        return self._start(hash_steps(self._history, self._resolve(revision)))

    def look(self, query: LookQuery) -> LookResult | Work[LookResult]:
        """Read the versions of a key, or the difference between two revisions: a page; see `past.py` for the costs.

        Raises:
            InvalidRequest: The key is empty, the revisions do not ascend, or the page is of nothing.
            Compacted: A revision is gone.
            FutureRevision: A revision does not exist yet.
        """
        if not query.key or query.limit < 1:
            raise InvalidRequest("the key is empty" if not query.key else f"a page of {query.limit}")
        if isinstance(query, DiffQuery):
            newer = self._resolve(query.newer)
            if not 0 < query.older <= newer:
                raise InvalidRequest(f"a difference is between two revisions, not {query.older} and {newer}")
            self._resolve(query.older)
            return self._start(diff_steps(self._history, query, newer=newer))
        newest = self._resolve(query.max_revision)
        if query.min_revision > 0:
            self._resolve(query.min_revision)
        return self._start(versions_steps(self._history, query, newest=newest))

    def _resolve(self, revision: int) -> int:
        """Return the revision to read at."""
        history = self._history
        if revision <= 0:
            return history.published_revision
        self._refuse_future(revision)
        if revision < history.compact_revision:
            raise Compacted(
                f"revision {revision} is compacted, the oldest is {history.compact_revision}",
                compact_revision=history.compact_revision,
            )
        return revision

    def _refuse_future(self, revision: int) -> None:
        published_revision = self._history.published_revision
        if revision > published_revision:
            raise FutureRevision(
                f"revision {revision} is not there yet, the current one is {published_revision}",
                revision=published_revision,
            )

    # --- Watching --------------------------------------------------------------------------------------------------

    def watch(
        self,
        key: bytes,
        end: bytes = SINGLE_KEY,
        *,
        start_revision: int = 0,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
    ) -> Watcher:
        """Watch `[key, end)`. O(log n).

        After this, if the watcher is not `synced`, `take` from it until it returns None.

        Args:
            key: As in a query; empty: the smallest key.
            end: As in a query.
            start_revision: The first revision to see; 0: the next one. One in the future is waited for.
            prev_kv: Give each event the key-value before it, if there was one that is not compacted.
            no_put: Leave out puts.
            no_delete: Leave out deletions.

        Raises:
            Compacted: The start is below the compact revision.
            InvalidRequest: A negative start, or an end not above the key.
            Overloaded: There are too many watchers.
        """
        return self._hub.watch(key, end, start_revision, prev_kv=prev_kv, no_put=no_put, no_delete=no_delete)

    def advance(self, records_max: int = ADVANCE_RECORDS_MAX) -> list[Watcher]:
        """Distribute what was published since the last call; to be called after every batch of commands.

        O(1) without watchers. Call again while `distributed_revision` is below `published_revision`.

        Args:
            records_max: Look at no more changes than this.

        Returns:
            The watchers that have something to take now and had nothing before: `take` from each until it is `ready`
            no more, now or later; until then it is not returned again.
        """
        assert records_max > 0, records_max
        return self._hub.advance(records_max)

    # --- Upkeep ----------------------------------------------------------------------------------------------------

    def compaction(self) -> Work[int] | None:
        """Return the work that wins back the space of compacted versions (it returns how many it has removed).

        Returns:
            The work, the same one until it is finished; None if there is nothing to do, or while a snapshot or a
            long read holds a pin, or until `advance` has distributed what is to be removed. A pin that comes later
            holds it up: `step` then does nothing.
        """
        history = self._history
        if history.pins:
            return None
        if self._compaction is None or self._compaction.is_done:
            if history.compacted_revision == history.compact_revision or self._hub.needs(history.compact_revision):
                return None
            self._compaction = CompactionWork(history)
        return self._compaction

    def patrol(self) -> Damage | None:
        """Look at the next page of versions, round and round; return what is damaged there. O(page), half a ms."""
        return self._patrol.step()

    def bump_revision(self, by: int) -> None:
        """Go ``by`` revisions on without a change, and forget all history before that. O(1).

        For a state that is put back: what was written after it was saved is gone, and its revisions must not come again
        with other changes. The state is what it was; it can be read, and watched, from the new revision on.
        (etcd: ``--bump-revision``, ``--mark-compacted``.)
        """
        assert by > 0, by
        assert not self._hub.watchers_count, "a watch would see nothing of it"
        history = self._history
        assert history.mark is None, "a command is still under way"
        history.published_revision += by
        history.compact_revision = history.published_revision

    def snapshot(self) -> Snapshot:
        """Pin the published revision and return a walk over everything up to it. O(pages); close it."""
        return Snapshot(self._history)

    def check(self) -> None:
        """Assert every invariant. O(everything)."""
        check_history(self._history)
        assert self._history.mark is not None or self._history.changes == 0


class CompactionWork(SlicedWork[int]):
    """Removes versions, but waits while anything is pinned."""

    __slots__ = ("_history",)

    def __init__(self, history: History) -> None:
        super().__init__(history.compaction(history.compact_revision))
        self._history = history

    @property
    def is_done(self) -> bool:
        """Whether the result was returned."""
        return self._done

    def step(self, budget: int) -> int | None:
        """Go on, unless something is pinned; returns None then, too."""
        return None if self._history.pins else super().step(budget)


class Restorer:
    """Builds a store from the chunks of a snapshot: `feed` them in order, then `finish`.

    Args:
        limits: As for `Store`.
        step_keys_max: As for `Store`.
    """

    __slots__ = ("_limits", "_reader", "_step_keys_max")

    def __init__(self, *, limits: Limits | None = None, step_keys_max: int = STEP_KEYS_MAX) -> None:
        self._limits = limits
        self._step_keys_max = step_keys_max
        self._reader = HistoryReader()

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; about two milliseconds for one of 256 KiB.

        Raises:
            SnapshotCorruption: This is no snapshot. The restorer is of no use any more.
        """
        self._reader.feed(chunk)

    def finish(self) -> Store:
        """Return the store. Raises `SnapshotCorruption` if the snapshot has not ended."""
        return Store(limits=self._limits, step_keys_max=self._step_keys_max, history=self._reader.finish())
