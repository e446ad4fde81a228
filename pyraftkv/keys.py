"""Keys and ranges of keys as callers give them, and as the store takes them (etcd's ``[key, end)``)."""

from __future__ import annotations

from pyraftkv import errors
from pyraftkv.kv import Bytes
from pyraftkv.store.commands import FROM_KEY, SINGLE_KEY, Compare, CompareResult, CompareTarget


def to_bytes(value: Bytes) -> bytes:
    """Return ``value`` as bytes; text is encoded as UTF-8. Raises `InvalidRequest` for anything else.

    Bytes and nothing derived from them, whatever a class overrides: the codec would refuse it, and a batch with it.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return str.encode(value)
        except UnicodeEncodeError as error:
            raise errors.InvalidRequest(f"text that is no UTF-8: {error}") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(memoryview(value))
    raise errors.InvalidRequest(f"keys and values are str or bytes, not {type(value).__name__}")


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key that is past every key with ``prefix`` (etcd's `GetPrefixRangeEnd`)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else FROM_KEY


def key_range(start: Bytes | None, end: Bytes | None, prefix: Bytes | None) -> tuple[bytes, bytes]:
    """Translate `start, end=` or `prefix=` into etcd's `[key, end)`; no end means everything from ``start`` on."""
    if prefix is not None:
        if start or end is not None:
            raise errors.InvalidRequest("give either prefix= or a start and end, not both")
        raw = to_bytes(prefix)
        return raw or b"\0", prefix_end(raw)
    first = to_bytes(start or b"") or b"\0"
    return first, FROM_KEY if end is None else to_bytes(end)


def single_or_range(key: Bytes | None, end: Bytes | None, prefix: Bytes | None) -> tuple[bytes, bytes]:
    """As `key_range`, but a key without an end is that key alone."""
    if prefix is None and end is None:
        if key is None:
            raise errors.InvalidRequest("give a key or prefix=")
        return key_of(key), SINGLE_KEY
    return key_range(key, end, prefix)


def key_of(key: Bytes) -> bytes:
    """Return ``key`` as bytes. Raises `InvalidRequest` for an empty one."""
    raw = to_bytes(key)
    if not raw:
        raise errors.InvalidRequest("a key must not be empty")
    return raw


def compare(
    key: Bytes,
    *,
    value: Bytes | None = None,
    version: int | None = None,
    create_revision: int | None = None,
    mod_revision: int | None = None,
    lease: int | None = None,
    result: CompareResult = CompareResult.EQUAL,
    end: Bytes | None = None,
    prefix: bool = False,
) -> Compare:
    """Return a comparison for a transaction's `when`; one thing of the key is compared, and named as in `KeyValue`.

    >>> compare("ann", mod_revision=7)
    Compare(target=<CompareTarget.MOD: 2>, result=<CompareResult.EQUAL: 0>, key=b'ann', operand=7, end=b'')

    Args:
        key: Of a key that does not exist all numbers are 0, and no comparison of its value holds.
        value: What it holds.
        version: How many puts it has had since it was created; 0: it does not exist.
        create_revision: When it was created.
        mod_revision: When it was last changed.
        lease: The id of the lease that it hangs on.
        result: How it must compare.
        end: Every key from ``key`` up to, not including, this one must satisfy it.
        prefix: Every key that begins with ``key`` must satisfy it.

    Raises:
        InvalidRequest: Nothing was named to be compared, or more than one thing; a key that is none.
    """
    operands: dict[CompareTarget, int | bytes | None] = {
        CompareTarget.VALUE: None if value is None else to_bytes(value),
        CompareTarget.VERSION: version,
        CompareTarget.CREATE: create_revision,
        CompareTarget.MOD: mod_revision,
        CompareTarget.LEASE: lease,
    }
    given = [(target, operand) for target, operand in operands.items() if operand is not None]
    if len(given) != 1:
        raise errors.InvalidRequest(f"a comparison is of one thing of a key, not of {len(given)}")
    start, until = key_range(None, end, key) if prefix else single_or_range(key, end, None)
    ((target, operand),) = given
    return Compare(target, result, start, operand, until)


def mod_revision_is(key: bytes, revision: int) -> Compare:
    """Compare that the key was last changed at ``revision`` (0: does not exist)."""
    return Compare(CompareTarget.MOD, CompareResult.EQUAL, key, revision)
