"""Requests and answers in the words that one would use to tell somebody about them."""

from __future__ import annotations

from pyraftkv.errors import MaybeApplied, PyraftkvError
from pyraftkv.sim.show import show
from pyraftkv.store.commands import (
    FROM_KEY,
    Command,
    Compact,
    Compare,
    CompareResult,
    DeleteRange,
    GrantLease,
    Operation,
    PutKey,
    RangeQuery,
    RevokeLease,
)
from pyraftkv.store.values import (
    CompactResult,
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    LeaseGranted,
    LeaseRevoked,
    PutResult,
    RangeResult,
    Result,
)

_SIGNS = {
    CompareResult.EQUAL: "=",
    CompareResult.GREATER: ">",
    CompareResult.LESS: "<",
    CompareResult.NOT_EQUAL: "!=",
}

LISTED_MAX = 8
"""At most this many key-values or responses are told of one answer."""


def span_words(key: bytes, end: bytes) -> str:
    """Say which keys a range holds."""
    if not end:
        return show(key)
    if end == FROM_KEY:
        return "everything" if key == FROM_KEY else f"[{show(key)}, …)"
    return f"[{show(key)}, {show(end)})"


def request_words(request: Command | RangeQuery) -> str:
    """Say what was asked."""
    if isinstance(request, PutKey):
        value = "the same value" if request.ignore_value else show(request.value)
        return f"put {show(request.key)} = {value}{' prev_kv' if request.prev_kv else ''}"
    if isinstance(request, DeleteRange):
        return f"delete {span_words(request.key, request.end)}{' prev_kv' if request.prev_kv else ''}"
    if isinstance(request, RangeQuery):
        return _query_words(request)
    if isinstance(request, Compact):
        return f"compact {request.revision}"
    if isinstance(request, GrantLease):
        return f"grant lease {request.id:x} for {request.ttl} s"
    if isinstance(request, RevokeLease):
        return f"revoke lease {request.id:x}"
    guard = " and ".join(map(_compare_words, request.compares)) or "true"
    words = f"txn if {guard} then {_branch_words(request.success)}"
    return f"{words} else {_branch_words(request.failure)}" if request.failure else words


def _query_words(query: RangeQuery) -> str:
    words = [f"{'range' if query.end else 'get'} {span_words(query.key, query.end)}"]
    if query.revision > 0:
        words.append(f"at revision {query.revision}")
    if query.limit > 0:
        words.append(f"limit {query.limit}")
    words += [option for option in ("keys_only", "count_only") if getattr(query, option)]
    return " ".join(words)


def _compare_words(compare: Compare) -> str:
    what = compare.target.name.lower()
    return f"{what} of {span_words(compare.key, compare.end)} {_SIGNS[compare.result]} {show(compare.operand)}"


def _branch_words(operations: list[Operation]) -> str:
    return "{" + "; ".join(map(request_words, operations)) + "}"


def kv_words(kv: KeyValue | None) -> str:
    """Say what stands at a key."""
    if kv is None:
        return "nothing"
    return f"{show(kv.key)} = {show(kv.value)} (mod {kv.mod_revision}, version {kv.version})"


def event_words(event: Event) -> str:
    """Say what happened to a key."""
    if event.type is EventType.DELETE:
        return f"revision {event.kv.mod_revision}: {show(event.kv.key)} deleted"
    return f"revision {event.kv.mod_revision}: {kv_words(event.kv)}"


def answer_words(result: Result | None, error: PyraftkvError | None) -> str:
    """Say what was answered."""
    if error is not None:
        name = " ".join([type(error).__name__, *(show(getattr(error, each)) for each in error.defaults)])
        return f"{name} (may have happened)" if isinstance(error, MaybeApplied) else name
    if result is None:
        return "no answer"
    return f"{_result_words(result)} at revision {result.revision}"


def _result_words(result: Result) -> str:
    if isinstance(result, PutResult):
        return "ok" if result.prev_kv is None else f"ok, before it {kv_words(result.prev_kv)}"
    if isinstance(result, DeleteResult):
        before = f", before it {_listed(list(map(kv_words, result.prev_kvs)))}" if result.prev_kvs else ""
        return f"{result.deleted} deleted{before}"
    if isinstance(result, RangeResult):
        found = _listed(list(map(kv_words, result.kvs)))
        return found if len(result.kvs) == result.count else f"{found}, count {result.count}"
    if isinstance(result, CompactResult | LeaseGranted | LeaseRevoked):
        return "ok"
    return f"{'then' if result.succeeded else 'else'} {_listed(list(map(_result_words, result.responses)))}"


def _listed(items: list[str]) -> str:
    if not items:
        return "nothing"
    more = [f"… {len(items) - LISTED_MAX} more"] if len(items) > LISTED_MAX else []
    return "; ".join([*items[:LISTED_MAX], *more])
