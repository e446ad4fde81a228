"""Random commands and queries over a handful of keys, so that everything collides with everything."""

from __future__ import annotations

from random import Random

from pyraftkv.store.commands import (
    CheckpointLeases,
    Command,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    ExpireLeases,
    GrantLease,
    LeaseUpkeep,
    Operation,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    SortOrder,
    SortTarget,
    Transaction,
)

KEYS = [b"a", b"aa", b"ab", b"b", b"b\xff", b"b\xff\xff", b"c", b"d", b"e\0", b"\0", b"\xff", b"\xff\xff"]
ENDS = [b"", b"", b"\0", b"b", b"c", b"f", b"\xff", *KEYS]
LEASES = [5, 6, 7]
VALUES = [b"", b"1", b"22", b"v" * 40, b"w" * 150]


def key(rng: Random) -> bytes:
    """Return a key, rarely an empty one."""
    return b"" if rng.random() < 0.01 else rng.choice(KEYS)


def put(rng: Random) -> PutKey:
    """Return a put."""
    ignore_value, ignore_lease = rng.random() < 0.1, rng.random() < 0.1
    return PutKey(
        key(rng),
        b"" if ignore_value else rng.choice(VALUES),
        0 if ignore_lease else rng.choice([0, 0, 0, *LEASES]),
        rng.random() < 0.3,
        ignore_value,
        ignore_lease,
    )


def batch(rng: Random) -> PutBatch:
    """Return some plain puts, often of the same keys."""
    return PutBatch([item for _ in range(rng.randrange(1, 5)) for item in (key(rng), rng.choice(VALUES))])


def delete(rng: Random) -> DeleteRange:
    """Return a delete of a key or a range."""
    return DeleteRange(key(rng), rng.choice(ENDS), rng.random() < 0.5)


def query(rng: Random, revision: int = 0) -> RangeQuery:
    """Return a query with any mixture of options, at ``revision``."""

    def bound() -> int:
        return rng.randrange(1, 40) if rng.random() < 0.15 else 0

    return RangeQuery(
        key(rng),
        rng.choice(ENDS[2:]),
        revision,
        rng.choice([0, 0, 1, 2, 3, -1]),
        rng.choice(list(SortTarget)),
        rng.choice([SortOrder.NONE, *SortOrder]),
        rng.random() < 0.2,
        rng.random() < 0.1,
        bound(),
        bound(),
        bound(),
        bound(),
    )


def compare(rng: Random) -> Compare:
    """Return a comparison."""
    target = rng.choice(list(CompareTarget))
    operand = rng.choice(VALUES) if target is CompareTarget.VALUE else rng.choice([0, 0, 1, 2, 5, 10])
    return Compare(target, rng.choice(list(CompareResult)), key(rng), operand, rng.choice(ENDS))


def transaction(rng: Random, depth: int = 2) -> Transaction:
    """Return a transaction, nested up to ``depth``."""
    return Transaction(
        [compare(rng) for _ in range(rng.choice([0, 1, 2]))],
        [_operation(rng, depth) for _ in range(rng.choice([0, 1, 2, 3, 4]))],
        [_operation(rng, depth) for _ in range(rng.choice([0, 1, 2]))],
    )


def _operation(rng: Random, depth: int) -> Operation:
    chance = rng.random()
    if chance < 0.45:
        return put(rng)
    if chance < 0.6:
        return delete(rng)
    if chance < 0.8 or not depth:
        return query(rng, rng.choice([0, 0, 0, 0, 0, 3, 10, 30, -1]))
    return transaction(rng, depth - 1)


def lease_command(rng: Random) -> GrantLease | RevokeLease:
    """Return the grant or the end of a lease."""
    lease = rng.choice([*LEASES, *LEASES, *LEASES, 8, 0])
    return GrantLease(lease, rng.choice([-1, 0, 1, 2, 3, 600, 10**10])) if rng.random() < 0.6 else RevokeLease(lease)


def lease_upkeep(rng: Random) -> LeaseUpkeep:
    """Return what a leader may decide of some leases, a few of them gone."""
    ids = [rng.choice([*LEASES, 8]) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.5:
        return ExpireLeases(ids)
    return CheckpointLeases([number for lease in ids for number in (lease, rng.choice([0, 1, 2, 3, 400]))])


def command(rng: Random) -> Command:
    """Return a put, a batch of them, a delete, a transaction, or something of leases."""
    chance = rng.random()
    if rng.random() < 0.12:
        return lease_command(rng)
    if chance < 0.5:
        return put(rng) if chance < 0.4 else batch(rng)
    return delete(rng) if chance < 0.7 else transaction(rng)
