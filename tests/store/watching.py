"""`WatchRules`: what each batch of any watch must be, whoever watches what, where, and over which connection."""

from __future__ import annotations

from pyraftkv.store import Watcher
from pyraftkv.store.values import Event, EventType, WatchBatch
from tests.store.model import in_range


def flags_of(watcher: Watcher) -> dict[str, bool]:
    """Return what a watch leaves out, and what it gives besides: the options that it began with."""
    return {name: getattr(watcher, name) for name in ("prev_kv", "no_put", "no_delete")}


class WatchRules:
    """Checks one watch, batch by batch.

    - *Filter*: only keys and kinds that were asked for.
    - *Ordered*, *unique* and *atomic*: revisions ascend, and none is in two batches.
    - *Bookmarkable*: a batch says up to which revision all was delivered, and nothing older comes after it.
    - *Previous value*: only where it was asked for, of that key, from an earlier revision.
    - *Is-create*: a key begins with version 1, and with its deletion nothing of it is left.

    That it is *reliable* and *resumable*, whoever knows what has happened must see.
    """

    def __init__(
        self, key: bytes, end: bytes, *, prev_kv: bool = False, no_put: bool = False, no_delete: bool = False
    ) -> None:
        self._key = key
        self._end = end
        self._prev_kv = prev_kv
        left_out = {EventType.PUT: no_put, EventType.DELETE: no_delete}
        self._kinds = {kind for kind in EventType if not left_out[kind]}
        self.revision = 0
        """Up to here everything was delivered."""

    def check(self, batch: WatchBatch) -> None:
        """Take the next batch. Raises `AssertionError`."""
        revisions = [event.kv.mod_revision for event in batch.events]
        assert revisions == sorted(revisions)
        assert not revisions or self.revision < revisions[0] <= revisions[-1] <= batch.revision, self.revision
        assert batch.revision >= self.revision
        self.revision = batch.revision
        for event in batch.events:
            self._check_event(event)

    def _check_event(self, event: Event) -> None:
        kv, previous = event.kv, event.prev_kv
        assert in_range(kv.key, self._key, self._end), event
        assert event.type in self._kinds, event
        if event.type is EventType.DELETE:
            assert (kv.value, kv.create_revision, kv.version, kv.lease) == (b"", 0, 0, 0), event
        else:
            assert event.is_create or kv.version > 1, event
            assert kv.create_revision <= kv.mod_revision, event
        if previous is not None:
            assert self._prev_kv, event
            assert previous.key == kv.key, event
            assert previous.mod_revision < kv.mod_revision, event
            assert event.is_create or not kv.version or previous.create_revision == kv.create_revision, event
