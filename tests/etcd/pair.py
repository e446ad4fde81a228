"""A store and a real etcd, side by side: whatever is done to one is done to the other, and every answer compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from pyraftkv.errors import Compacted, InvalidRequest
from pyraftkv.store import Store, Watcher
from pyraftkv.store.commands import (
    FROM_KEY,
    Command,
    Compact,
    Compare,
    CompareTarget,
    DeleteRange,
    GrantLease,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
)
from pyraftkv.store.validate import Limits
from pyraftkv.store.values import Event, EventType
from tests.etcd.differences import as_etcd_says, avoided
from tests.etcd.gateway import Gateway, WatchStream
from tests.etcd.members import TTL_MIN_SECONDS
from tests.store import generators
from tests.store.watching import WatchRules, flags_of
from tests.store.world import finish, outcome

TTL_SECONDS = 1_000_000
"""Nothing ends by itself in a test."""
WATCHES_MAX = 8
RECENT_REVISIONS = 40
"""About as many revisions are left when history is compacted, and the generators speak of the first of them as 1."""

TAILS = (b"", b"", b"/", b"/0", b"/1", b"/10", b"\xff")


def _moved(revision: int, by: int) -> int:
    return revision + by if revision > 0 else revision


def varied(rng: Random, asked: Any, by: int) -> Any:
    """Return what is asked for with its revisions moved on ``by``, and its keys spread over more than they are."""

    def key(raw: bytes) -> bytes:
        return raw + rng.choice(TAILS) if raw not in {b"", FROM_KEY} else raw

    def vary(asked: Any) -> Any:
        if isinstance(asked, PutKey):
            return replace(asked, key=key(asked.key))
        if isinstance(asked, DeleteRange):
            return replace(asked, key=key(asked.key), end=key(asked.end))
        if isinstance(asked, RangeQuery):
            fields = ("revision", "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
            moved = {name: _moved(getattr(asked, name), by) for name in fields}
            return replace(asked, key=key(asked.key), end=key(asked.end), **moved)
        if isinstance(asked, Compare):
            is_revision = asked.target in {CompareTarget.CREATE, CompareTarget.MOD}
            operand = _moved(asked.operand, by) if is_revision else asked.operand  # type: ignore[arg-type]
            return replace(asked, key=key(asked.key), end=key(asked.end), operand=operand)
        if isinstance(asked, GrantLease):
            return replace(asked, ttl=max(asked.ttl, TTL_SECONDS))
        if isinstance(asked, Transaction):
            parts = (asked.compares, asked.success, asked.failure)
            return Transaction(*([vary(each) for each in part] for part in parts))
        return asked

    return vary(asked)


def watch_outcome(action: Callable[[], Any]) -> Any:
    """As `outcome`, but who is refused history that is gone is told where it begins."""
    try:
        return action()
    except Compacted as error:
        return "compacted", error.compact_revision
    except InvalidRequest as error:
        return type(error)


class Watched:
    """One watch on both.

    etcd brings a watch from the past to the present within 100 ms, and a compaction before that ends it. So whoever
    compacts looks at `is_present` first: what has given an event is there.
    """

    def __init__(self, watcher: Watcher, stream: WatchStream, compact_revision: int) -> None:
        self._compact_revision = compact_revision
        self.watcher = watcher
        self.stream = stream
        self.is_present = watcher.synced
        self._rules = WatchRules(watcher.key, watcher.end, **flags_of(watcher))

    def drain(self, met: Counter[str]) -> None:
        """Compare all that has happened since the last time. The store has distributed everything."""
        events: list[Event] = []
        while (batch := self.watcher.take(3)) is not None:
            self._rules.check(batch)
            events += batch.events
        ours = [event for event in events if not self._is_doubtful(event)]
        met["tombstone"] += len(events) - len(ours)
        theirs: list[Event] = []
        while len(theirs) < len(ours) and (taken := self.stream.take(len(ours) - len(theirs))):
            theirs += [event for event in taken if not self._is_doubtful(event)]
        assert ours == theirs, self.watcher
        self.is_present = self.is_present or bool(theirs)

    def _is_doubtful(self, event: Event) -> bool:
        """Tell whether etcd may have lost this one when it compacted."""
        return event.type is EventType.DELETE and event.kv.mod_revision == self._compact_revision

    def close(self) -> None:
        """End both."""
        self.watcher.cancel()
        self.stream.close()


class Pair:
    """See above. etcd goes on from where it was; everything in it is deleted and compacted first.

    Args:
        port: A member of etcd; nobody else may change anything there.
        rng: What chooses.
    """

    def __init__(self, port: int, rng: Random) -> None:
        self.rng = rng
        self.port = port
        self.etcd = Gateway(port)
        limits = Limits(lease_ttl_min_seconds=TTL_MIN_SECONDS)
        self.store = Store(step_keys_max=rng.choice([1, 10, 1000]), limits=limits)
        self.watched: list[Watched] = []
        self.operations = 0
        self.met: Counter[str] = Counter()
        """How often each documented difference was seen."""
        self.answers: Counter[str] = Counter()
        """How many answers there were, by kind of request and answer."""
        self._reset()

    def _reset(self) -> None:
        for lease in self.etcd.leases():
            self.etcd.apply(RevokeLease(lease))
        revision = self.etcd.apply(DeleteRange(FROM_KEY, FROM_KEY)).revision
        if revision > 1:
            outcome(self.etcd.apply, Compact(revision))
            self.store.bump_revision(revision - 1)

    @property
    def base(self) -> int:
        """What the generators call revision 0."""
        return max(0, self.store.revision - RECENT_REVISIONS)

    def compare(self, request: Any, ours: Any, theirs: Any) -> None:
        """Compare two answers, documented differences apart."""
        self.operations += 1
        kind = ours.__name__ if isinstance(ours, type) else "done"
        self.answers[f"{type(request).__name__}: {kind}"] += 1
        said = as_etcd_says(request, ours, theirs, self.met)
        assert said == theirs, f"{request}\n here: {ours}\n etcd: {theirs}"

    def apply(self, command: Command | PutBatch) -> None:
        """Do a command on both, unless a member of etcd might panic."""
        if isinstance(command, PutBatch):
            for key, value in zip(command.items[::2], command.items[1::2], strict=True):
                self.apply(PutKey(key, value))
        elif not avoided(command):
            self.compare(command, outcome(self._apply, command), outcome(self.etcd.apply, command))

    def _apply(self, command: Command) -> Any:
        return finish(self.store.apply(command), self.rng.choice([1, 7, 1000]))

    def read(self, query: RangeQuery) -> None:
        """Ask both."""
        ours = outcome(lambda: finish(self.store.read(query), 5))
        theirs = outcome(lambda: self.etcd.read(query, linearizable=self.rng.random() < 0.1))
        self.compare(query, ours, theirs)

    def look_at_leases(self) -> None:
        """Compare which leases there are, for how long, and which keys hang on them."""
        leases = self.store.leases
        theirs = self.etcd.leases()
        assert set(leases) == theirs, f"here: {set(leases)}, etcd: {theirs}"
        for lease in generators.LEASES:
            self.compare(lease, (leases.ttl(lease), leases.keys(lease)), self.etcd.lease(lease))

    def some_revision(self) -> int:
        """Return a revision that may be the latest, compacted, there or in the future."""
        return self.rng.choice([0, 0, 0, -1, self.base + self.rng.randrange(RECENT_REVISIONS + 2)])

    def compact(self) -> None:
        """Compact both, mostly some way behind the present. Watches have seen everything by then."""
        for watched in self.watched:
            if not watched.is_present:
                self._touch(watched)
        self.drain()
        revision = self.store.revision
        self.apply(Compact(revision - self.rng.choice([0, 1, 2, RECENT_REVISIONS // 2, RECENT_REVISIONS // 2, -1])))
        work = self.store.compaction()
        if work is not None and self.rng.random() < 0.5:
            finish(work)

    def watch(self) -> None:
        """Begin to watch a range on both."""
        rng = self.rng
        if len(self.watched) >= WATCHES_MAX:
            self.unwatch()
        future = self.store.revision + rng.randrange(1, 20)
        start = rng.choice([0, max(0, self.some_revision()), self.store.compact_revision, future])
        key, end = rng.choice([*generators.KEYS, b""]), rng.choice(generators.ENDS)
        flags = {"prev_kv": rng.random() < 0.5, **rng.choice([{}, {"no_put": True}, {"no_delete": True}])}
        self.watch_range(key, end, start, **flags)

    def watch_range(self, key: bytes, end: bytes, start: int, **flags: bool) -> None:
        """Begin to watch this range on both, from there on; or see both refuse to."""
        ours = watch_outcome(lambda: self.store.watch(key, end, start_revision=start, **flags))
        theirs = watch_outcome(lambda: WatchStream(self.port, key, end, start_revision=start, **flags))
        if isinstance(ours, Watcher) and isinstance(theirs, WatchStream):
            self.operations += 1
            self.watched.append(Watched(ours, theirs, self.store.compact_revision))
            return
        if isinstance(theirs, WatchStream):  # it says so a moment later
            theirs = watch_outcome(partial(theirs.take, 1))
        self.compare((key, end, start, self.store), ours, theirs)

    def unwatch(self) -> None:
        """End one of the watches, if there are some, after a last event that it must see."""
        if not self.watched:
            return
        watched = self.watched[self.rng.randrange(len(self.watched))]
        self._touch(watched)
        self.drain()
        self.watched.remove(watched)
        watched.close()

    def _touch(self, watched: Watched) -> None:
        """Bring about an event that this watch must see, whatever it leaves out."""
        self.apply(PutKey(watched.watcher.key, b"touched"))
        self.apply(DeleteRange(watched.watcher.key))

    def drain(self) -> None:
        """Let every watch see everything, on both, and compare."""
        while self.store.distributed_revision != self.store.published_revision:
            self.store.advance()
        for watched in self.watched:
            watched.drain(self.met)
            if self.rng.random() < 0.1:
                self._resume(watched)

    def _resume(self, watched: Watched) -> None:
        """Go on here with another watcher, from where the first one has come to."""
        watcher = watched.watcher
        watcher.cancel()
        start = watcher.revision + 1
        watched.watcher = self.store.watch(watcher.key, watcher.end, start_revision=start, **flags_of(watcher))

    def command(self) -> None:
        """Do a random command."""
        make = self.rng.choice([generators.command, generators.command, generators.transaction, generators.transaction])
        self.apply(varied(self.rng, make(self.rng), self.base))

    def query(self) -> None:
        """Ask something random."""
        query = generators.query(self.rng, self.some_revision() - self.base)
        self.read(varied(self.rng, query, self.base))

    def step(self) -> None:
        """Do one random thing."""
        actions = {
            self.command: 55,
            self.query: 40,
            self.drain: 3,
            self.watch: 2,
            self.compact: 1,
            self.look_at_leases: 1,
        }
        self.rng.choices(list(actions), weights=list(actions.values()))[0]()

    def run(self, operations: int) -> None:
        """Do so many random things, and compare what is left to compare."""
        try:
            while self.operations < operations:
                self.step()
        except BaseException:
            self.hang_up()
            raise
        self.close()

    def close(self) -> None:
        """Compare what is left to compare, and hang up."""
        try:
            for watched in self.watched:
                self._touch(watched)
            self.drain()
            self.read(RangeQuery(FROM_KEY, FROM_KEY))
            self.look_at_leases()
            self.store.check()
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close every connection. Idempotent."""
        for watched in self.watched:
            watched.close()
        self.etcd.close()
