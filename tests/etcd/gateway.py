"""A thin client of etcd's JSON gateway: our commands and queries go in, our results and errors come out.

The gateway's own notation: bytes in base64, 64-bit integers as strings, and whatever is zero left out.
"""

from __future__ import annotations

import json
import socket
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from pyraftkv import errors
from pyraftkv.store.commands import (
    Command,
    Compact,
    Compare,
    DeleteRange,
    GrantLease,
    Operation,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
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
    TxnResult,
)
from tests.store.model import FIELDS

ANSWER_SECONDS_MAX = 30.0

ERRORS: dict[str, type[errors.PyraftkvError]] = {
    "etcdserver: key is not provided": errors.InvalidRequest,
    "etcdserver: value is provided": errors.InvalidRequest,
    "etcdserver: lease is provided": errors.InvalidRequest,
    "etcdserver: duplicate key given in txn request": errors.DuplicateKey,
    "etcdserver: too many operations in txn request": errors.RequestTooLarge,
    "etcdserver: request is too large": errors.RequestTooLarge,
    "etcdserver: key not found": errors.KeyNotFound,
    "etcdserver: mvcc: required revision has been compacted": errors.Compacted,
    "etcdserver: mvcc: required revision is a future revision": errors.FutureRevision,
    "etcdserver: requested lease not found": errors.LeaseNotFound,
    "etcdserver: lease already exists": errors.LeaseExists,
    "etcdserver: too large lease TTL": errors.InvalidRequest,
}
"""What etcd says, and which of our errors says the same."""


FILTERS = {"no_put": "NOPUT", "no_delete": "NODELETE"}


class GatewayFailed(Exception):
    """etcd said something that no request of ours should bring about."""


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(body: dict[str, Any], name: str) -> bytes:
    return b64decode(body.get(name, ""))


def _int(body: dict[str, Any], name: str) -> int:
    return int(body.get(name, 0))


# --- Ours to etcd's ---------------------------------------------------------------------------------------------------


def _put_body(put: PutKey) -> dict[str, Any]:
    return {
        "key": _text(put.key),
        "value": _text(put.value),
        "lease": put.lease,
        "prev_kv": put.prev_kv,
        "ignore_value": put.ignore_value,
        "ignore_lease": put.ignore_lease,
    }


def _delete_body(delete: DeleteRange) -> dict[str, Any]:
    return {"key": _text(delete.key), "range_end": _text(delete.end), "prev_kv": delete.prev_kv}


def _range_body(query: RangeQuery) -> dict[str, Any]:
    return {
        "key": _text(query.key),
        "range_end": _text(query.end),
        "revision": query.revision,
        "limit": query.limit,
        "sort_target": query.sort_target.name,
        "sort_order": query.sort_order.name,
        "keys_only": query.keys_only,
        "count_only": query.count_only,
        "min_mod_revision": query.min_mod_revision,
        "max_mod_revision": query.max_mod_revision,
        "min_create_revision": query.min_create_revision,
        "max_create_revision": query.max_create_revision,
    }


def _compare_body(compare: Compare) -> dict[str, Any]:
    operand = compare.operand
    return {
        "target": compare.target.name,
        "result": compare.result.name,
        "key": _text(compare.key),
        "range_end": _text(compare.end),
        FIELDS[compare.target]: _text(operand) if isinstance(operand, bytes) else operand,
    }


def _txn_body(txn: Transaction) -> dict[str, Any]:
    return {
        "compare": [_compare_body(compare) for compare in txn.compares],
        "success": [_operation_body(operation) for operation in txn.success],
        "failure": [_operation_body(operation) for operation in txn.failure],
    }


def _operation_body(operation: Operation) -> dict[str, Any]:
    kind = type(operation)
    return {f"request_{_NAMES[kind]}": _BODIES[kind](operation)}


def _compact_body(compact: Compact) -> dict[str, Any]:
    return {"revision": compact.revision}


def _grant_body(grant: GrantLease) -> dict[str, Any]:
    return {"ID": grant.id, "TTL": grant.ttl}


def _revoke_body(revoke: RevokeLease) -> dict[str, Any]:
    return {"ID": revoke.id}


_BODIES: dict[type, Any] = {
    PutKey: _put_body,
    DeleteRange: _delete_body,
    RangeQuery: _range_body,
    Transaction: _txn_body,
    Compact: _compact_body,
    GrantLease: _grant_body,
    RevokeLease: _revoke_body,
}

_NAMES = {PutKey: "put", DeleteRange: "delete_range", RangeQuery: "range", Transaction: "txn"}

_PATHS = {
    PutKey: "/v3/kv/put",
    DeleteRange: "/v3/kv/deleterange",
    RangeQuery: "/v3/kv/range",
    Transaction: "/v3/kv/txn",
    Compact: "/v3/kv/compaction",
    GrantLease: "/v3/lease/grant",
    RevokeLease: "/v3/lease/revoke",
}


# --- etcd's to ours ---------------------------------------------------------------------------------------------------


def _revision(body: dict[str, Any]) -> int:
    return _int(body.get("header", {}), "revision")


def _key_value(body: dict[str, Any]) -> KeyValue:
    return KeyValue(
        _bytes(body, "key"),
        _bytes(body, "value"),
        _int(body, "create_revision"),
        _int(body, "mod_revision"),
        _int(body, "version"),
        _int(body, "lease"),
    )


def _previous(body: dict[str, Any]) -> KeyValue | None:
    return _key_value(body["prev_kv"]) if "prev_kv" in body else None


def _put_result(body: dict[str, Any]) -> PutResult:
    return PutResult(_revision(body), _previous(body))


def _delete_result(body: dict[str, Any]) -> DeleteResult:
    return DeleteResult(_revision(body), _int(body, "deleted"), list(map(_key_value, body.get("prev_kvs", []))))


def _range_result(body: dict[str, Any]) -> RangeResult:
    kvs = list(map(_key_value, body.get("kvs", [])))
    return RangeResult(_revision(body), kvs, body.get("more", False), _int(body, "count"))


def _txn_result(body: dict[str, Any]) -> TxnResult:
    responses: list[Any] = []
    for response in body.get("responses", []):
        [(name, value)] = response.items()
        responses.append(_RESULTS[name.removeprefix("response_")](value))
    return TxnResult(_revision(body), body.get("succeeded", False), responses)


def _compact_result(body: dict[str, Any]) -> CompactResult:
    return CompactResult(_revision(body))


def _granted(body: dict[str, Any]) -> LeaseGranted:
    return LeaseGranted(_revision(body), _int(body, "ID"), _int(body, "TTL"))


def _revoked(body: dict[str, Any]) -> LeaseRevoked:
    return LeaseRevoked(_revision(body))


_RESULTS: dict[str, Any] = {
    "put": _put_result,
    "delete_range": _delete_result,
    "range": _range_result,
    "txn": _txn_result,
}

_ANSWERS: dict[type, Any] = {
    PutKey: _put_result,
    DeleteRange: _delete_result,
    RangeQuery: _range_result,
    Transaction: _txn_result,
    Compact: _compact_result,
    GrantLease: _granted,
    RevokeLease: _revoked,
}


def _event(body: dict[str, Any]) -> Event:
    return Event(EventType[body.get("type", "PUT")], _key_value(body["kv"]), _previous(body))


# --- The connections --------------------------------------------------------------------------------------------------


class Gateway:
    """One connection to a member, kept open. Not for several threads.

    Args:
        port: Where the member listens for clients, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask, and return the answer as it is. Raises the error that says what etcd says, or `GatewayFailed`."""
        self._connection.request("POST", path, json.dumps(body))
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status == 200:
            return answer
        kind = ERRORS.get(answer["message"])
        if kind is None:
            raise GatewayFailed(f"{path} {body}: {answer}")
        raise kind(answer["message"])

    def apply(self, command: Command) -> Result:
        """Do a command, as `Store.apply` does. Raises as it does."""
        return _ANSWERS[type(command)](self.call(_PATHS[type(command)], _BODIES[type(command)](command)))

    def read(self, query: RangeQuery, *, linearizable: bool = False) -> RangeResult:
        """Answer a query, as `Store.read` does: by default from what this member has. Raises as it does."""
        body = {**_range_body(query), "serializable": not linearizable}
        return _range_result(self.call(_PATHS[RangeQuery], body))

    def version(self) -> tuple[int, ...]:
        """Return what the member runs."""
        return tuple(int(part) for part in self.call("/v3/maintenance/status", {})["version"].split("."))

    def leases(self) -> set[int]:
        """Return which leases there are."""
        return {_int(lease, "ID") for lease in self.call("/v3/lease/leases", {}).get("leases", [])}

    def lease(self, lease: int) -> tuple[int, list[bytes]]:
        """Return what a lease was granted for, in seconds (0: there is none), and its keys."""
        answer = self.call("/v3/lease/timetolive", {"ID": lease, "keys": True})
        return _int(answer, "grantedTTL"), sorted(map(b64decode, answer.get("keys", [])))

    def revision(self) -> int:
        """Return the current revision."""
        return self.read(RangeQuery(b"\0", count_only=True), linearizable=True).revision


class WatchStream:
    """One watch, on a connection of its own.

    Args:
        port: As for `Gateway`.
        key: As `Store.watch` takes it, and ...
        end: ... so is this, and ...
        options: ... so are these.

    Raises: `Compacted` if history begins after the start, `InvalidRequest` if etcd refuses it otherwise.
    """

    def __init__(self, port: int, key: bytes, end: bytes, **options: Any) -> None:
        filters = [wire for name, wire in FILTERS.items() if options.pop(name, False)]
        request = {"key": _text(key), "range_end": _text(end), "filters": filters, **options}
        self._connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
        self._connection.request("POST", "/v3/watch", json.dumps({"create_request": request}))
        self._response: HTTPResponse = self._connection.getresponse()
        self._events: Iterator[Event] = iter(())
        created = self._next()
        assert created.get("created"), created
        if created.get("canceled"):
            self._refused(created)

    def _next(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._response.readline())
        if "result" not in answer:
            raise GatewayFailed(f"a watch ended: {answer}")
        return answer["result"]

    def _refused(self, answer: dict[str, Any]) -> None:
        self.close()
        compact_revision = _int(answer, "compact_revision")
        if compact_revision:
            raise errors.Compacted(compact_revision=compact_revision)
        raise errors.InvalidRequest(answer.get("cancel_reason", ""))

    def take(self, count: int) -> list[Event]:
        """Return the next ``count`` events; fewer if no more come, and then the stream is of no use.

        Raises: `Compacted` if the watch ends for that.
        """
        events: list[Event] = []
        with suppress(TimeoutError):
            while len(events) < count:
                event = next(self._events, None)
                if event is not None:
                    events.append(event)
                    continue
                answer = self._next()
                if answer.get("canceled"):
                    self._refused(answer)
                self._events = map(_event, answer.get("events", []))
        return events

    def close(self) -> None:
        """End the watch. Idempotent."""
        self._response.close()
        self._connection.close()
