"""The key index and the pages together: every key at every revision since the last compaction.

*Published.* A command may be carried out in many slices. Its versions are in the pages and in the index while it
goes on, but their revision is above `published_revision`, and whoever reads asks for the version visible at
`published_revision` or below. Publishing is one assignment. The same rule lets a slow read go on while newer
commands are applied.

*Compacted.* `compact_revision` moves at once: reads below it are refused from then on. The space is won back later,
by `compaction`, which removes, of each key, the versions that nobody may ask for any more. Everything at or above
the compact revision stays, and of what is below it the newest version of each key, unless that is a tombstone. (A
tombstone *at* the compact revision stays: a watch may start there and has to see the deletion; etcd#19179.)

*Pins.* Reads and commands that take several slices, and snapshots, hold a pin. Compaction does not remove anything
while there is one: what they have seen in the index must still be there when they decode it.
"""

from __future__ import annotations

from bisect import bisect_left

from pyraftkv.store.checks import state_hash_of
from pyraftkv.store.keyindex import Chunk, KeyIndex
from pyraftkv.store.leases import Leases
from pyraftkv.store.pages import (
    DEAD,
    RECORD_BYTES,
    SLOT_BITS,
    SLOT_MASK,
    Page,
    Pages,
    revision_at,
    unpack_checked,
    unpack_record,
)
from pyraftkv.store.values import KeyValue
from pyraftkv.store.work import Steps


class History:
    """The versioned keys. Writes never fail: whatever can be refused is refused before they begin.

    Invariants: `compacted_revision <= compact_revision <= published_revision`; between commands `changes == 0` and
    every version is published; `key_count` is the sum of the chunks' `live`.
    """

    __slots__ = (
        "changes",
        "compact_revision",
        "compacted_revision",
        "index",
        "key_count",
        "leases",
        "mark",
        "pages",
        "pins",
        "published_revision",
    )

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.pages = Pages()
        self.published_revision = 1
        """The last revision that is complete (etcd starts at 1)."""
        self.compact_revision = 0
        """Reads and watches below are refused; 0: nothing was ever compacted."""
        self.compacted_revision = 0
        """Up to which revision the space has been won back."""
        self.key_count = 0
        """How many keys exist, a command under way included."""
        self.changes = 0
        """How many changes the command under way has made: the next one's `sub`."""
        self.mark: tuple[int, int, int, int] | None = None
        """While a command is under way in slices: the end of what is published; `key_count` and `live_sum` then."""
        self.pins = 0
        self.leases = Leases()
        """What is attached to them is kept here; they come and go with commands of their own."""

    @property
    def current_revision(self) -> int:
        """What a transaction's own reads see: with its first change, the revision that it is making."""
        return self.published_revision + (self.changes > 0)

    def state_hash(self) -> int:
        """Return the hash of the published state; see `checks.py`. O(1)."""
        key_count, live_sum = self.mark[2:] if self.mark is not None else (self.key_count, self.pages.live_sum)
        total = live_sum + self.leases.sum
        return state_hash_of(total, key_count, self.published_revision, self.compact_revision)

    def published_end(self) -> tuple[int, int]:
        """Return the place (page, slot) behind the last published version."""
        return self.mark[:2] if self.mark is not None else self.pages.end()

    def begin(self) -> None:
        """Begin a command that may make several changes, perhaps in slices."""
        assert self.mark is None, "one command at a time"
        assert self.changes == 0
        self.mark = (*self.pages.end(), self.key_count, self.pages.live_sum)
        self.pins += 1

    def publish(self) -> None:
        """The command is complete: show its revision, if it made one, to everybody."""
        assert self.mark is not None
        if self.changes:
            self.published_revision += 1
            if self.pages.order[-1].number != self.mark[0]:
                self.index.settle()
        self.changes = 0
        self.mark = None
        self.pins -= 1

    def abandon(self) -> None:
        """The command was refused, before it changed anything."""
        assert self.mark is not None
        assert not self.changes, "a command may fail only before its first change"
        self.mark = None
        self.pins -= 1

    # --- Writing ---------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, lease: int, revision: int) -> None:
        """Write a version of ``key`` at ``revision``, not published yet. O(log n).

        The hot path of the whole store: the steps that a cleaner division would give to the index and the pages are
        spelled out here (measured by tests/bench/bench_store.py).
        """
        pages = self.pages
        chunk = self.index.chunk_for(key)
        keys = chunk.keys
        at = bisect_left(keys, key)
        is_known = at < len(keys) and keys[at] == key
        if not is_known and key in chunk.fresh:
            at = bisect_left(chunk.loosened(), key)
            is_known = True
        if is_known:
            refs = chunk.refs
            previous = refs[at]
            page = pages.by_number[previous >> SLOT_BITS]
            _, create_revision, version, was_lease, _, jump, _, span, _, was_bytes, check = unpack_checked(
                page.data, page.offsets[previous & SLOT_MASK]
            )
            if lease != was_lease:
                self.leases.move(key, was_lease, lease)
            if version:
                page.stale += 1
                pages.live_sum -= check
                pages.live_bytes -= RECORD_BYTES + len(key) + was_bytes
            else:
                create_revision = revision
                chunk.live += 1
                self.key_count += 1
            jump, span = pages.jump_from(previous, jump, span)
            refs[at] = pages.append(
                key, value, revision, create_revision, version + 1, lease, previous, jump, self.changes, span
            )
        else:
            if lease:
                self.leases.move(key, 0, lease)
            ref = pages.append(key, value, revision, revision, 1, lease, 0, 0, self.changes, 0)
            chunk.live += 1
            self.key_count += 1
            if chunk.insert(at, key, ref):
                self.split(key)
        chunk.newest = revision
        self.changes += 1

    def bury(self, chunk: Chunk, at: int, revision: int) -> bool:
        """Write a tombstone for key ``at`` of ``chunk``, unless there is one. O(1).

        Returns:
            Whether the key existed.
        """
        previous = chunk.refs[at]
        pages = self.pages
        page = pages.by_number[previous >> SLOT_BITS]
        place = page.offsets[previous & SLOT_MASK]
        _, _, version, lease, _, jump, _, span, key_bytes, value_bytes, check = unpack_checked(page.data, place)
        if not version:
            return False
        if lease:
            self.leases.move(chunk.keys[at], lease, 0)
        page.stale += 1
        pages.live_sum -= check
        pages.live_bytes -= RECORD_BYTES + key_bytes + value_bytes
        jump, span = pages.jump_from(previous, jump, span)
        ref = pages.append(chunk.keys[at], b"", revision, 0, 0, 0, previous, jump, self.changes, span)
        pages.by_number[ref >> SLOT_BITS].stale += 1
        chunk.refs[at] = ref
        chunk.live -= 1
        chunk.newest = revision
        self.key_count -= 1
        self.changes += 1
        return True

    def split(self, key: bytes) -> None:
        """Split the overfull chunk of ``key``, which has just been inserted. O(chunk)."""
        newest = self.published_revision + 1
        for chunk in self.index.split(key) or ():
            chunk.live = sum(self._is_live(ref) for ref in chunk.refs)
        # Both halves may hold the version being written; it is of the next revision at the latest.
        at = bisect_left(self.index.uppers, key)
        self.index.chunks[at].newest = newest

    def _is_live(self, ref: int) -> bool:
        place = self.pages.locate(ref)
        assert place is not None, f"the index holds the dead ref {ref:#x}"
        version: int = unpack_record(place[0].data, place[1])[2]
        return version > 0

    # --- Reading ---------------------------------------------------------------------------------------------------

    def get(self, key: bytes, revision: int) -> KeyValue | None:
        """Return the key as of ``revision``, or None. O(log n + log versions)."""
        ref = self.index.find(key)
        if not ref:
            return None
        page = self.pages.by_number[ref >> SLOT_BITS]
        data = page.data
        offset = page.offsets[ref & SLOT_MASK]
        mod_revision, create_revision, version, lease, _, _, _, _, _, value_bytes = unpack_record(data, offset)
        if mod_revision > revision:
            return self.pages.key_value(self.pages.visible(ref, revision))
        if not version:
            return None
        start = offset + RECORD_BYTES + len(key)
        value = bytes(data[start : start + value_bytes])
        return KeyValue(key, value, create_revision, mod_revision, version, lease)

    def before(self, page: Page, offset: int) -> KeyValue | None:
        """Return what the key at a record was in the revision before the record's; None if absent or compacted."""
        mod_revision, _, _, _, previous, _, _, _, _, _ = unpack_record(page.data, offset)
        if mod_revision - 1 < self.compact_revision:
            return None
        return self.pages.key_value(self.pages.visible(previous, mod_revision - 1))

    # --- Compacting ------------------------------------------------------------------------------------------------

    def compaction(self, target: int) -> Steps[int]:
        """Remove what nobody at or above ``target`` can see; return how many versions. O(pages that hold stale ones).

        A page is rewritten in one go between two yields, older pages first, so that the versions left of a key are
        always its newest ones without a gap.
        """
        removed = 0
        for page in [page for page in self.pages.order if page.stale and page.first_revision < target]:
            examined, doomed, emptied = self._examine(page, target)
            if doomed:
                self.pages.rewrite(page, doomed)
                for key in emptied:
                    self.index.remove(key)
                removed += len(doomed)
            yield examined
        self.pages.purge()
        self.compacted_revision = target
        return removed

    def _examine(self, page: Page, target: int) -> tuple[int, set[int], list[bytes]]:
        """Find the slots of a page that nobody at or above ``target`` can see, and the keys that vanish with them."""
        doomed: set[int] = set()
        emptied: list[bytes] = []
        visible: dict[bytes, int] = {}
        data = page.data
        examined = 0
        for slot, offset in enumerate(page.offsets):
            if offset == DEAD:
                continue
            if revision_at(data, offset) >= target:
                break
            examined += 1
            _, _, version, _, _, _, _, _, key_bytes, _ = unpack_record(data, offset)
            key = bytes(data[offset + RECORD_BYTES : offset + RECORD_BYTES + key_bytes])
            ref = page.number << SLOT_BITS | slot
            if not version:
                doomed.add(slot)
                if self.index.find(key) == ref:
                    emptied.append(key)
                continue
            survivor = visible.get(key)
            if survivor is None:
                survivor = visible[key] = self.pages.visible(self.index.find(key), target)
            if survivor != ref:
                doomed.add(slot)
        return max(1, examined), doomed, emptied
