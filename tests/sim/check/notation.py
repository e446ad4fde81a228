"""Histories as one writes them on a board: an operation a line, its interval, what was asked and what came of it.

.. code-block:: text

    a  0-10   put x 1                -> 2
    b  5-20   get x                  -> x=1@2 at 2
    c  8-     put x 2                -> ?
    d  9-12   put x 3                -> refused
    e  21-22  txn x@2 {put x 9; get y} -> then {2 ...}

`?` is an unknown outcome, an interval without an end never returned. A key-value is `key=value@mod`, with
`/create,version` where those are not `mod` and 1; `-` is nothing. `n1:local` before `get` is a read of a member's own
state. Lines are ordered by their times; a line that begins with `watch` is a watch and what it showed.
"""

from __future__ import annotations

import re

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, NoLeader
from pyraftkv.keys import mod_revision_is
from pyraftkv.sim.check import Delivery, History, Op, Outcome, WatchRecord
from pyraftkv.store.commands import Compact, DeleteRange, PutKey, RangeQuery, Transaction
from pyraftkv.store.values import (
    CompactResult,
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    PutResult,
    RangeResult,
    TxnResult,
)

LINE = re.compile(r"(\w+) +(\d+)-(\d*) +(.+?) +-> +(.+)")
KV = re.compile(r"(\w+)=(\w*)@(\d+)(?:/(\d+),(\d+))?")


def parse(text: str) -> History:
    """Return the history that a text shows."""
    history = History()
    for raw in text.strip().splitlines():
        line = raw.split("#")[0].strip()
        if line.startswith("watch"):
            history.watches.append(watch_of(line))
        elif line:
            history.ops.append(op_of(line))
    history.arrange()
    return history


def op_of(line: str) -> Op:
    """Return the operation of one line."""
    match = LINE.fullmatch(line)
    assert match, line
    client, invoked, returned, words, answer = match.groups()
    member = ""
    if ":local " in words:
        member, words = words.split(":local ")
    request = request_of(words)
    op = Op(0, client, request, float(invoked), 0, "local" if member else "linearizable", member)
    op.returned = float(returned) if returned else None
    errors = {"refused": NoLeader(), "no key": KeyNotFound()}
    if answer == "?":
        return op
    if answer in errors or answer.startswith(("compacted", "future")):
        op.outcome = Outcome.FAILED
        if answer.startswith("compacted"):
            op.error = Compacted(compact_revision=int(answer.split()[1]))
        elif answer.startswith("future"):
            op.error = FutureRevision(revision=int(answer.split()[1]))
        else:
            op.error = errors[answer]
        return op
    op.outcome, op.result = Outcome.OK, result_of(request, answer)
    return op


def request_of(words: str):
    """Return what `put x 1`, `get x`, `range a c at 5`, `delete x`, `compact 5` or `txn x@2 {...} {...}` ask."""
    name, _, rest = words.partition(" ")
    if name == "txn":
        key, then, otherwise = re.fullmatch(r"(\w+@\d+) \{(.*?)\}(?: \{(.*)\})?", rest).groups()
        guard, revision = key.split("@")
        branches = [
            [request_of(each.strip()) for each in part.split(";")] if part else [] for part in (then, otherwise)
        ]
        return Transaction([mod_revision_is(guard.encode(), int(revision))], *branches)
    items = [each.encode() for each in rest.split()]
    if name == "put":
        return PutKey(items[0], b"" if b"same" in items else items[1], 0, b"prev" in items, b"same" in items)
    if name == "get":
        return RangeQuery(items[0], revision=int(items[2]) if b"at" in items else 0)
    if name == "range":
        return RangeQuery(items[0], items[1], int(items[3]) if b"at" in items else 0)
    if name == "delete":
        ends = [each for each in items[1:] if each != b"prev"]
        return DeleteRange(items[0], ends[0] if ends else b"", b"prev" in items)
    assert name == "compact", words
    return Compact(int(rest))


def kvs_of(text: str) -> list[KeyValue]:
    """Return the key-values in `x=1@2 y=3@4/2,2`."""
    found = []
    for key, value, mod, create, version in KV.findall(text):
        found.append(KeyValue(key.encode(), value.encode(), int(create or mod), int(mod), int(version or 1)))
    return found


def result_of(request, answer: str):
    """Return the result in `5`, `5 before x=1@2`, `2 deleted at 5` or `x=1@2 at 5`."""
    if isinstance(request, PutKey):
        kvs = kvs_of(answer)
        return PutResult(int(answer.split(maxsplit=1)[0]), kvs[0] if kvs else None)
    if isinstance(request, Compact):
        return CompactResult(int(answer))
    if isinstance(request, Transaction):
        chosen, inner = re.fullmatch(r"(then|else) \{(.*)\} at \d+", answer).groups()
        branch = request.success if chosen == "then" else request.failure
        parts = [each.strip() for each in inner.split(";")] if inner else []
        responses = [result_of(each, part) for each, part in zip(branch, parts, strict=True)]
        return TxnResult(int(answer.rsplit(maxsplit=1)[-1]), chosen == "then", responses)
    told, _, revision = answer.partition(" before")[0].rpartition(" at ")
    if isinstance(request, DeleteRange):
        return DeleteResult(int(revision), int(told.split()[0]), kvs_of(answer.partition(" before")[2]))
    kvs = kvs_of(told)
    return RangeResult(int(revision), kvs, more=False, count=len(kvs))


def watch_of(line: str) -> WatchRecord:
    """Return the watch in `watch x y from 1 prev: 10 x=1@2 | 12 -x@3 <3 | 15 <9 | 16 placed 9 | 20 resume 10`."""
    head, _, tail = line.partition(":")
    words = head.split()[1:]
    start = int(words[words.index("from") + 1]) if "from" in words else 0
    keys = [each.encode() for each in words if each in words[:2] and each not in ("from", "prev")]
    end = keys[1] if len(keys) > 1 and "from" not in words[:2] else b""
    watch = WatchRecord(0, "w", keys[0], end, start, "prev" in words, "no_put" in words, "no_delete" in words, 0.0, 0)
    for part in tail.split("|"):
        at, _, said = part.strip().partition(" ")
        if said.startswith("resume"):
            watch.resume_revision = int(said.split()[1])
        elif said.startswith("placed"):
            watch.deliveries.append(Delivery(float(at), 0, placed_revision=int(said.split()[1])))
        elif said:
            shown, _, promised = said.partition("<")
            watch.deliveries.append(Delivery(float(at), 0, events_of(shown), int(promised or 0)))
    return watch


def events_of(text: str) -> list[Event]:
    """Return the events in `x=1@2 x=2@3/2,2(x=1@2) -y@4`."""
    events = []
    for word in text.split():
        told, _, before = word.partition("(")
        previous = kvs_of(before)
        if told.startswith("-"):
            key, revision = told[1:].split("@")
            event = Event(EventType.DELETE, KeyValue(key.encode(), b"", 0, int(revision), 0))
        else:
            event = Event(EventType.PUT, kvs_of(told)[0])
        events.append(Event(event.type, event.kv, previous[0] if previous else None))
    return events
