"""Looking at every version that is there: the hash of a history, and a patrol for damage in memory.

`hash_steps` is etcd's HashKV: a hash of everything from the compact revision up to a revision, made of the bytes as
they are now. Members whose compact revision is the same have the same, however far each has got with winning back the
space of what was compacted: what nobody may ask for any more is left out, there or not. (Of a key that is the versions
older than the newest one at the compact revision, and that one, too, if it is a tombstone below it.)

The hash of the state (`checks.py`) is made of what was *written*. A bit that flips in memory afterwards is in no sum
until somebody reads it. So `Patrol` goes round all pages for ever, a page at a time, and compares each record with its
check.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter

from pyraftkv._record import record
from pyraftkv.store.checks import HASH_MASK, check_of
from pyraftkv.store.history import History
from pyraftkv.store.pages import DEAD, RECORD_BYTES, SLOT_BITS, Page, unpack_checked
from pyraftkv.store.values import KvHash
from pyraftkv.store.work import Steps

_number = attrgetter("number")


@record
class Damage:
    """A version in memory that is not what was written."""

    key: bytes
    mod_revision: int

    def __str__(self) -> str:
        return f"the version {self.mod_revision} of the key {self.key!r} is not what was written"


def hash_steps(history: History, at: int) -> Steps[KvHash]:
    """Return the hash of everything up to the revision ``at``, which is published. O(versions x log versions)."""
    current, compact_revision = history.published_revision, history.compact_revision
    history.pins += 1
    try:
        total = 0
        for page in list(history.pages.order):
            if page.first_revision > at:
                break
            for slot, offset in enumerate(page.offsets):
                if offset != DEAD:
                    total += _hash(history, page, slot, at=at, compact_revision=compact_revision)
            yield max(1, len(page.offsets))
    finally:
        history.pins -= 1
    return KvHash(current, at, compact_revision, total & HASH_MASK)


def _hash(history: History, page: Page, slot: int, *, at: int, compact_revision: int) -> int:
    """Return what a version adds to the hash."""
    key, _, check, (mod_revision, version, sub) = _checked(page, page.offsets[slot])
    if mod_revision > at:
        return 0
    if mod_revision < compact_revision:
        pages = history.pages
        if not version or pages.visible(history.index.find(key), compact_revision) != page.number << SLOT_BITS | slot:
            return 0
    return check * (2 * sub + 1)


def _checked(page: Page, offset: int) -> tuple[bytes, int, int, tuple[int, int, int]]:
    """Return a version's key, its check as it was written, and as its bytes are now; revision, version and sub."""
    data = page.data
    mod, create, version, lease, _, _, sub, _, key_bytes, value_bytes, written = unpack_checked(data, offset)
    middle = offset + RECORD_BYTES + key_bytes
    key = bytes(data[middle - key_bytes : middle])
    check = check_of(key, data[middle : middle + value_bytes], mod, create, version, lease)
    return key, written, check, (mod, version, sub)


class Patrol:
    """Goes round the pages, and finds what is not as it was written."""

    __slots__ = ("_after", "_history")

    def __init__(self, history: History) -> None:
        self._history = history
        self._after = 0
        """The number of the page that was looked at last."""

    def step(self) -> Damage | None:
        """Look at the next page; return what is damaged there, if something is. O(page)."""
        order = self._history.pages.order
        at = bisect_right(order, self._after, key=_number)
        page = order[at if at < len(order) else 0]
        self._after = page.number
        for offset in page.offsets:
            if offset != DEAD:
                key, written, found, (mod_revision, _, _) = _checked(page, offset)
                if written != found:
                    return Damage(key, mod_revision)
        return None
