"""Leases: which there are, for how long they were granted, and which keys vanish with them. No time is kept here.

A member applies the same commands as every other, each at a time of its own; whatever depended on a clock would come
out differently. So the store knows what a lease was granted for and, from time to time, what was left of it (a
*checkpoint*, etcd); when it ends, the leader says so, with a command (`node/leases.py`).

The keys of all leases stand in one sorted list, each behind the eight bytes of its lease: nothing is kept per lease
that the garbage collector would have to walk, the keys of one lease lie side by side in their order, and a lease with a
million keys can be taken apart in slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from struct import Struct
from typing import Protocol, cast

from sortedcontainers import SortedList

from pyraftkv.errors import LeaseExists, LeaseNotFound, RequestTooLarge
from pyraftkv.store.checks import lease_check_of

_LEAD = Struct(">Q")


class _Rows(Protocol):
    """What is used of a sorted list of bytes, which has no types of its own."""

    def add(self, row: bytes) -> None: ...

    def remove(self, row: bytes) -> None: ...

    def irange(
        self, low: bytes, high: bytes | None = None, inclusive: tuple[bool, bool] = (True, True)
    ) -> Iterator[bytes]: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Leases:
    """The leases that were granted and not revoked yet, and the keys attached to them.

    Invariants: what is attached is the newest version of each key that has a lease, a command under way included; every
    lease with keys is there; what is left of a lease is above 0 and at most what it was granted for.
    """

    __slots__ = ("_attached", "_left", "_ttls", "sum")

    def __init__(self) -> None:
        self._ttls: dict[int, int] = {}
        """What each was granted for, in seconds; in the order of the grants."""
        self._left: dict[int, int] = {}
        """What was left of a lease at its checkpoint, in seconds; most have none."""
        self._attached = cast("_Rows", SortedList())
        self.sum = 0
        """Of the checks of every lease, for the hash of the state."""

    def __len__(self) -> int:
        return len(self._ttls)

    def __contains__(self, lease: int) -> bool:
        return lease in self._ttls

    def __iter__(self) -> Iterator[int]:
        return iter(self._ttls)

    # --- Looking ---------------------------------------------------------------------------------------------------

    def ttl(self, lease: int) -> int:
        """Return what a lease was granted for, in seconds; 0 if there is none. O(1)."""
        return self._ttls.get(lease, 0)

    def left(self, lease: int) -> int:
        """Return what was left of a lease at its checkpoint, in seconds; 0 if it has none. O(1)."""
        return self._left.get(lease, 0)

    def keys(self, lease: int, count: int | None = None) -> list[bytes]:
        """Return the keys of a lease in order, at most ``count`` of them. O(log n + keys)."""
        low, high = _LEAD.pack(lease), _LEAD.pack(lease + 1)
        found = self._attached.irange(low, high, inclusive=(True, False))
        return [row[_LEAD.size :] for row in islice(found, count)]

    def rows(self) -> list[tuple[int, int, int]]:
        """Return every lease with what it was granted for and what was left of it, for a snapshot. O(leases)."""
        left = self._left
        return [(lease, ttl, left.get(lease, 0)) for lease, ttl in self._ttls.items()]

    # --- Changing --------------------------------------------------------------------------------------------------

    def check(self, lease: int) -> None:
        """Refuse a lease that is not there. Raises `LeaseNotFound`."""
        if lease not in self._ttls:
            raise LeaseNotFound(f"there is no lease {lease:x}: it expired, was revoked, or was never granted")

    def grant(self, lease: int, ttl: int, *, count_max: int) -> None:
        """Take in a lease. O(1).

        Raises:
            LeaseExists: It is there already.
            RequestTooLarge: There are ``count_max``.
        """
        if lease in self._ttls:
            raise LeaseExists(f"there is a lease {lease:x} already")
        if len(self._ttls) >= count_max:
            raise RequestTooLarge(f"there are {len(self._ttls)} leases, leases_max is {count_max}")
        self.add(lease, ttl, 0)

    def add(self, lease: int, ttl: int, left: int) -> None:
        """Take in a lease that is not there, as it stands in a snapshot. O(1)."""
        self._ttls[lease] = ttl
        self.sum += lease_check_of(lease, ttl, 0)
        self.checkpoint(lease, left)

    def checkpoint(self, lease: int, left: int) -> None:
        """Remember what is left of a lease; nothing, or no less than it was granted for: all of it. O(1)."""
        ttl = self._ttls[lease]
        before = self._left.pop(lease, 0)
        after = left if 0 < left < ttl else 0
        if after:
            self._left[lease] = after
        self.sum += lease_check_of(lease, ttl, after) - lease_check_of(lease, ttl, before)

    def remove(self, lease: int) -> None:
        """Let go of a lease, whose keys are gone. O(1)."""
        self.sum -= lease_check_of(lease, self._ttls.pop(lease), self._left.pop(lease, 0))

    def move(self, key: bytes, before: int, after: int) -> None:
        """A key hangs on another lease, or on none (0). O(log n)."""
        if before:
            self._attached.remove(_LEAD.pack(before) + key)
        if after:
            self._attached.add(_LEAD.pack(after) + key)

    def holds(self, attached: dict[bytes, int]) -> bool:
        """Whether just these keys are attached, each to its lease, and every lease with keys is there. O(n log n)."""
        rows = sorted(_LEAD.pack(lease) + key for key, lease in attached.items())
        is_whole = all(0 < left < self._ttls[lease] for lease, left in self._left.items())
        return is_whole and list(self._attached) == rows and self.are_all_there()

    def are_all_there(self) -> bool:
        """Whether every lease that has keys is there. O(leases with keys x log n)."""
        attached, low = self._attached, _LEAD.pack(0)
        while (row := next(attached.irange(low), None)) is not None:
            (lease,) = _LEAD.unpack_from(row)
            if lease not in self._ttls:
                return False
            low = _LEAD.pack(lease + 1)
        return True
