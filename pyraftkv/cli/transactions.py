"""``txn``: a transaction, read from standard input in the words of etcdctl."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys

from pyraftkv.cli.common import DONE, client
from pyraftkv.cli.printing import emit, emit_json, emit_kv, header_json, kv_json
from pyraftkv.errors import InvalidRequest
from pyraftkv.store.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Operation,
    PutKey,
    RangeQuery,
    Transaction,
)
from pyraftkv.store.values import DeleteResult, PutResult, RangeResult, TxnResult

TXN_HELP = """\
Three parts, with an empty line after each: the comparisons, what to do if all of them hold, what to do otherwise.

    mod("owner") = "0"

    put owner ann

    get owner

A comparison is of value, version (ver), create (c), mod (m) or lease, by =, !=, < or >. An operation is put KEY VALUE,
get KEY [END] or del KEY [END], quoted as in a shell.
"""

PARTS_MAX = 3
TARGETS = {
    **dict.fromkeys(("value", "val"), CompareTarget.VALUE),
    **dict.fromkeys(("version", "ver"), CompareTarget.VERSION),
    **dict.fromkeys(("create", "c"), CompareTarget.CREATE),
    **dict.fromkeys(("mod", "m"), CompareTarget.MOD),
    "lease": CompareTarget.LEASE,
}
RESULTS = {
    "=": CompareResult.EQUAL,
    "!=": CompareResult.NOT_EQUAL,
    "<": CompareResult.LESS,
    ">": CompareResult.GREATER,
}
COMPARISON = re.compile(r"(\w+)\((.+)\)\s*(=|!=|<|>)\s*(.+)")
COUNTS = {"put": (2, 2), "get": (1, 2), "del": (1, 2)}
"""How many words an operation takes, at least and at most."""


async def txn(args: argparse.Namespace) -> int:
    """Do a transaction that stands on standard input."""
    transaction = transaction_of(sys.stdin.buffer.read().decode(errors="surrogateescape"))
    async with client(args) as kv:
        print_txn(await kv.commit(transaction), args.write_out)
    return DONE


def transaction_of(text: str) -> Transaction:
    """Parse a transaction. Raises `InvalidRequest`."""
    parts: list[list[str]] = [[]]
    for line in map(str.strip, text.rstrip().splitlines()):
        if line:
            parts[-1].append(line)
        else:
            parts.append([])
    if len(parts) > PARTS_MAX:
        raise InvalidRequest(
            "a transaction has three parts, with one empty line after each: comparisons, then, otherwise"
        )
    compares, success, failure = parts + [[]] * (PARTS_MAX - len(parts))
    return Transaction(
        [comparison_of(line) for line in compares],
        [operation_of(line) for line in success],
        [operation_of(line) for line in failure],
    )


def comparison_of(line: str) -> Compare:
    """Parse a comparison. Raises `InvalidRequest`."""
    found = COMPARISON.fullmatch(line)
    target = TARGETS.get(found[1]) if found else None
    if found is None or target is None:
        raise InvalidRequest(f'{line!r} is no comparison, such as mod("key") > "0" or value("key") = "text"')
    (key,), (operand,) = words_of(found[2], 1, 1), words_of(found[4], 1, 1)
    if target is CompareTarget.VALUE:
        return Compare(target, RESULTS[found[3]], os.fsencode(key), os.fsencode(operand))
    try:
        number = int(operand, 16 if target is CompareTarget.LEASE else 10)
    except ValueError:
        raise InvalidRequest(f"{line!r}: {operand!r} is no whole number") from None
    return Compare(target, RESULTS[found[3]], os.fsencode(key), number)


def operation_of(line: str) -> Operation:
    """Parse an operation. Raises `InvalidRequest`."""
    verb, _, rest = line.partition(" ")
    if verb not in COUNTS:
        raise InvalidRequest(f"{line!r} is no operation: put KEY VALUE, get KEY [END] or del KEY [END]")
    key, *others = [os.fsencode(word) for word in words_of(rest, *COUNTS[verb])]
    other = others[0] if others else b""
    if verb == "put":
        return PutKey(key, other)
    return RangeQuery(key, other) if verb == "get" else DeleteRange(key, other)


def words_of(text: str, count_min: int, count_max: int) -> list[str]:
    """Split words as a shell does. Raises `InvalidRequest`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(f"{text!r}: {error}") from None
    if not count_min <= len(words) <= count_max:
        raise InvalidRequest(f"{text!r} has {len(words)} words, not {count_min} to {count_max}: quote what has spaces")
    return words


def print_txn(result: TxnResult, style: str) -> None:
    """Print whether the comparisons held, and then what came of each operation."""
    if style == "json":
        rows = [response_json(response) for response in result.responses]
        emit_json({"header": header_json(result.revision), "succeeded": result.succeeded, "responses": rows})
        return
    emit("SUCCESS\n" if result.succeeded else "FAILURE\n")
    for response in result.responses:
        emit("\n")
        if isinstance(response, RangeResult):
            for kv in response.kvs:
                emit_kv(kv)
        else:
            emit("OK\n" if isinstance(response, PutResult) else f"{getattr(response, 'deleted', 0)}\n")


def response_json(response: object) -> dict[str, object]:
    """Return what came of one operation, under etcd's name of it."""
    if isinstance(response, RangeResult):
        return {"response_range": {"kvs": [kv_json(kv) for kv in response.kvs], "count": response.count}}
    return (
        {"response_delete_range": {"deleted": response.deleted}}
        if isinstance(response, DeleteResult)
        else {"response_put": {}}
    )
