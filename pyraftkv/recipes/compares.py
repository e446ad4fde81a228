"""What the transactions of recipes compare."""

from __future__ import annotations

from pyraftkv.store.commands import Compare, CompareResult, CompareTarget


def is_absent(key: bytes) -> Compare:
    """There is no such key."""
    return Compare(CompareTarget.VERSION, CompareResult.EQUAL, key, 0)


def is_created_at(key: bytes, revision: int) -> Compare:
    """It is the key that was created then, and not another one of that name."""
    return Compare(CompareTarget.CREATE, CompareResult.EQUAL, key, revision)


def holds(key: bytes, value: bytes) -> Compare:
    """The key is there, and holds that."""
    return Compare(CompareTarget.VALUE, CompareResult.EQUAL, key, value)


def is_under(key: bytes, lease: int) -> Compare:
    """The key is there, and hangs on that lease."""
    return Compare(CompareTarget.LEASE, CompareResult.EQUAL, key, lease)
