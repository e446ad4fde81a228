"""Locks and leases: what they promise, and the resource that makes the promise hold.

A lock in a distributed system does not exclude anybody. A holder may be paused for a minute; its lease runs out, the
next one gets the lock, and then the first one wakes up and goes on as if nothing had happened, for nothing has told
it yet. No clock mends that (Kleppmann, "How to do distributed locking", 2016). What a lock does give is a *fencing
token*, a number that is higher for each holder than for those before, here the revision at which the lock was taken.
The resource that is written to remembers the highest token it has seen and refuses every lower one.

So nothing here compares the times at which two clients believed to hold a lock: that they overlap is no fault.

- `check_fencing`: nothing with an older token was accepted after something with a newer one, and no two clients wrote
  with the same token.
- `check_locks`: a token belongs to one holding; who asked after another had got the lock gets a higher token; and who
  has given it back did so before the next token.
- `check_leases`: no lease ended sooner after its last confirmed renewal than its lifetime, on the fastest clock
  allowed. The renewal counts from when it was *sent*: whoever keeps it can know no later moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from pyraftkv._record import record
from pyraftkv.sim.check.verdict import Finding, Verdict, right

WRITES_MAX = 1_000_000
"""Writes that one resource remembers."""


class StaleToken(Exception):
    """The resource has seen a newer token than this one: the lock is somebody else's by now.

    Args:
        token: What came with the write.
        highest: The newest that was seen.
    """

    def __init__(self, token: int, highest: int) -> None:
        super().__init__(f"token {token} is older than {highest}")
        self.token = token
        self.highest = highest


@record
class FencedWrite:
    """One attempt to write to a resource."""

    client: str
    token: int
    value: object
    at: float
    """In seconds."""
    accepted: bool


class FencedResource:
    """Something outside of the store that is written to by whoever holds a lock: a file server, a payment service.

    Args:
        fenced: Whether it checks tokens. One that does not shows what happens without: see `check_fencing`.

    >>> resource = FencedResource()
    >>> resource.write("alice", 7, "a", at=1.0)
    >>> resource.write("bob", 9, "b", at=2.0)
    >>> resource.write("alice", 7, "c", at=3.0)
    Traceback (most recent call last):
    pyraftkv.sim.check.fencing.StaleToken: token 7 is older than 9
    """

    def __init__(self, *, fenced: bool = True) -> None:
        self._fenced = fenced
        self.highest = 0
        """The highest token that was accepted."""
        self.writes: list[FencedWrite] = []
        """Every attempt, in the order they came."""

    def __repr__(self) -> str:
        return f"<FencedResource at token {self.highest}, {len(self.writes)} writes>"

    @property
    def value(self) -> object:
        """What was written last, None if nothing was."""
        return next((write.value for write in reversed(self.writes) if write.accepted), None)

    def write(self, client: str, token: int, value: object, *, at: float) -> None:
        """Write, with the token of the lock. Raises `StaleToken` if a newer one was seen."""
        assert len(self.writes) < WRITES_MAX, "more writes than WRITES_MAX"
        accepted = token >= self.highest or not self._fenced
        self.writes.append(FencedWrite(client, token, value, at, accepted))
        if not accepted:
            raise StaleToken(token, self.highest)
        self.highest = max(self.highest, token)


@record
class Holding:
    """One time that a client got a lock."""

    lock: bytes
    client: str
    token: int
    """The revision at which it got it."""
    asked: float
    """When it asked for it, in seconds."""
    acquired: float
    """When it was told that it has it, in seconds."""
    released_revision: int = 0
    """The revision at which it gave it back, or lost it, if it is known; else 0."""


@record
class LeaseLife:
    """What became of one lease."""

    lease: int
    ttl_seconds: float
    renewed: list[float]
    """When the grant and each renewal that was confirmed were sent, in seconds."""
    ended: float | None = None
    """When it was first seen to have run out, in seconds; None if it never did, or was revoked on demand."""


def check_fencing(writes: Iterable[FencedWrite]) -> Verdict:
    """Check the writes that a resource accepted, in their order."""
    newest: FencedWrite | None = None
    holders: dict[int, FencedWrite] = {}
    for write in writes:
        if not write.accepted:
            continue
        other = holders.setdefault(write.token, write)
        if other.client != write.client:
            return _wrong(f"{other.client} and {write.client} both wrote with token {write.token}")
        if newest is not None and write.token < newest.token:
            return _wrong(
                f"{write.client} wrote {write.value!r} at {write.at:.4f} with token {write.token}, after "
                f"{newest.client} had written with token {newest.token} at {newest.at:.4f}"
            )
        newest = write
    return right()


def check_locks(holdings: Iterable[Holding]) -> Verdict:
    """Check that locks were handed on as their tokens say. O(n log n)."""
    locks: dict[bytes, list[Holding]] = {}
    for holding in holdings:
        locks.setdefault(holding.lock, []).append(holding)
    for lock, held in locks.items():
        held.sort(key=lambda each: each.token)
        earliest_acquired = float("inf")
        for earlier, later in pairwise(held):
            names = f"lock {lock!r}: {earlier.client} with token {earlier.token} and {later.client}"
            if earlier.token == later.token:
                return _wrong(f"{names} got it with the same token")
            if earlier.released_revision > later.token:
                released = earlier.released_revision
                return _wrong(f"{names}, who got it at {later.token} before it was given back at {released}")
        for holding in reversed(held):
            if earliest_acquired < holding.asked:
                token = holding.token
                return _wrong(f"lock {lock!r}: {holding.client} asked after a newer token was out, but got {token}")
            earliest_acquired = min(earliest_acquired, holding.acquired)
    return right()


def check_leases(leases: Iterable[LeaseLife], *, clock_rate_max: float = 1.0) -> Verdict:
    """Check that no lease ran out early.

    Args:
        leases: What became of them.
        clock_rate_max: How fast the fastest clock of a member may go, against the one that took the times.
    """
    for life in leases:
        if life.ended is None or not life.renewed:
            continue
        until = max(life.renewed) + life.ttl_seconds / clock_rate_max
        if life.ended < until:
            return _wrong(
                f"lease {life.lease} ended at {life.ended:.4f}, but was renewed at {max(life.renewed):.4f} "
                f"for {life.ttl_seconds:g} s"
            )
    return right()


def _wrong(reason: str) -> Verdict:
    return Verdict(Finding.WRONG, reason)
