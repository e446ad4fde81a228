from __future__ import annotations

from dataclasses import field
from hashlib import blake2b

import pytest

from pyraftkv._record import record
from pyraftkv.core.messages import AppendRequest, Heartbeat, VoteResponse
from pyraftkv.core.types import NORMAL, Entry, Role
from pyraftkv.errors import NotApplied
from pyraftkv.sim.show import cut, printable, show, show_message
from pyraftkv.sim.trace import DIGEST_BYTES, FATES, Trace, hosts_of, line_of, text_of
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import PutResult

HEARTBEAT = Heartbeat(to=2, sender=1, term=3, commit=12, context=1)


@record
class Parcel:
    name: str
    stamps: int = 0
    labels: list[str] = field(default_factory=list)


class Opaque:
    pass


def filled(count: int, *, events_max: int = 1_000) -> Trace:
    """A trace of `count` commits, one a second, on n1 and n2 in turn."""
    trace = Trace(events_max=events_max)
    for number in range(count):
        trace.add(float(number), f"n{number % 2 + 1}", "commit", index=number)
    return trace


def test_a_message_is_one_aligned_line() -> None:
    """When, from where to where, what, and what became of it."""
    trace = Trace()
    request = AppendRequest(2, 1, 3, prev_index=12, prev_term=2, entries=[Entry(3, 13, NORMAL, b"x")] * 3, commit=12)
    trace.add(3.25, "n1", "message", target="n2", what=request, sent_at=3.25, arrived_at=3.2515, fate="delivered")
    trace.add(3.5, "n2", "message", source="n1", target="n2", what=HEARTBEAT, sent_at=3.5, fate="dropped")
    assert list(trace.lines()) == [
        "   3.250000  n1 -> n2      AppendRequest term=3 prev=12@2 entries=3 commit=12        delivered after 1.500 ms",
        "   3.500000  n1 -> n2      Heartbeat term=3 commit=12 context=1                      dropped",
    ]


@pytest.mark.parametrize(
    ("kind", "detail", "expected"),
    [
        ("role", {"role": Role.LEADER, "term": 3}, "role      leader term=3"),
        ("commit", {"index": 12}, "commit    index=12"),
        ("crash", {"how": "power loss"}, "crash     power loss"),
        ("start", {"boot": 2}, "start     boot=2"),
        ("pause", {}, "pause"),
        ("invoke", {"op": 4, "command": PutKey(b"x", b"1")}, "invoke    op=4 put 'x' = '1'"),
        ("return", {"op": 4, "outcome": "ok", "result": None}, "return    op=4 ok"),
        ("return", {"op": 5, "outcome": "ok", "result": PutResult(7)}, "return    op=5 ok ok at revision 7"),
        ("return", {"op": 6, "outcome": "failed", "error": NotApplied("x")}, "return    op=6 failed NotApplied: "),
        ("violation", {"text": "stale\nread"}, "violation stale\\nread"),
    ],
)
def test_every_kind_has_words(kind: str, detail: dict[str, object], expected: str) -> None:
    """Texts stand bare, numbers with their names, and nothing stands for None."""
    assert text_of((0.0, "n1", kind, detail)).startswith(expected)


def test_a_cut_names_both_ends() -> None:
    """What happens between two hosts is found at both of them."""
    trace = Trace()
    trace.add(1.0, "", "cut", source="n1", target="n2")
    assert list(trace.lines(host="n2")) == ["   1.000000  n1 -> n2      cut"]
    assert list(trace.lines(host="n3")) == []
    assert hosts_of(next(trace.events())) == ("n1", "n2")


def test_an_event_is_one_line_whatever_it_says() -> None:
    """Line breaks, controls, separators and lone surrogates are escaped in every value."""
    trace = Trace()
    nasty = "a\nb\r\x00\x1b[31m\u2028\ud800\u202e"
    trace.add(0.0, nasty, "fault", text=nasty, other={nasty: [nasty, nasty.encode("utf-8", "replace")]})
    trace.add(0.0, "n1", "message", target=nasty, what=nasty, fate="dropped")
    assert all(line.isprintable() for line in trace.lines())
    assert r"a\nb\r\x00\x1b[31m\u2028\ud800\u202e" in trace.tail(1)[0]
    assert trace.digest()


def test_events_can_be_picked() -> None:
    """By kind, by host, and from the end."""
    trace = filled(4)
    trace.add(9.0, "n2", "pause")
    assert [event.at for event in trace.events({"commit"}, host="n2")] == [1.0, 3.0]
    assert [event.kind for event in trace.events({"pause"})] == ["pause"]
    assert trace.tail(1) == ["   9.000000  n2            pause"]
    assert trace.tail(0) == []
    assert len(trace.tail(100)) == len(trace) == 5


def test_the_digest_is_the_hash_of_the_lines() -> None:
    """Whoever has the lines can check the digest; asking for it changes nothing."""
    trace = filled(2_500, events_max=2_500)
    expected = blake2b("".join(f"{line}\n" for line in trace.lines()).encode(), digest_size=DIGEST_BYTES).hexdigest()
    assert trace.digest() == expected
    assert trace.digest() == expected


def test_the_digest_does_not_depend_on_when_it_is_asked_for() -> None:
    """It is the same when it was asked for in the middle, and when the trace forgot its beginning."""
    asked, small = Trace(), Trace(events_max=10)
    for number in range(95):
        for trace in (asked, small):
            trace.add(float(number), f"n{number % 2 + 1}", "commit", index=number)
        if number % 7 == 0:
            asked.digest()
    assert asked.digest() == small.digest() == filled(95).digest()


def test_the_digest_tells_runs_apart() -> None:
    """One event more, less or other is another run."""
    other = filled(10)
    other.add(10.0, "n1", "commit", index=11)
    assert len({filled(9).digest(), filled(10).digest(), filled(11).digest(), other.digest()}) == 4


def test_a_full_trace_forgets_its_oldest_half() -> None:
    """Memory is bounded, and the latest events are there."""
    trace = filled(25, events_max=10)
    assert (len(trace), trace.forgotten) == (10, 15)
    assert [event.at for event in trace.events()] == [float(at) for at in range(15, 25)]
    assert repr(trace) == "<Trace events=10 forgotten=15>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (0.1 + 0.2, "0.3"),
        (True, "True"),
        (b"\x00<'", '"\\x00<\'"'),
        (b"x" * 40, f"'{'x' * 32}'… (40 bytes)"),
        (Role.CANDIDATE, "candidate"),
        ({"b", "a", "c"}, "{a, b, c}"),
        ([1, 2], "[1, 2]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, … (9)]"),
        ({"b": 1, "a": b"2"}, "{b: 1, a: '2'}"),
        (Parcel("p"), "Parcel(name=p)"),
        (Parcel("p", 2, ["q"]), "Parcel(name=p stamps=2 labels=[q])"),
        (ValueError("no\n"), "ValueError: no\\n"),
        (Opaque(), "Opaque"),
        ("x" * 3_000, "x" * 1_999 + "…"),
    ],
)
def test_values_are_shown_by_what_they_are(value: object, expected: str) -> None:
    """Never by their address, their hash or the order of a set; long ones are cut, defaults left out."""
    assert show(value) == expected


def test_messages_are_shown_without_payloads() -> None:
    """Sender and addressee stand in another column; words are taken as they are."""
    assert show_message(HEARTBEAT) == "Heartbeat term=3 commit=12 context=1"
    assert show_message(VoteResponse(2, 1, 3, False, True)) == "VoteResponse term=3 granted"
    assert show_message("Snapshot piece\t3") == "Snapshot piece\\t3"
    assert show_message(Parcel("p")) == "Parcel(name=p)"


def test_small_helpers() -> None:
    """`cut` keeps the length, `printable` the text."""
    assert [cut("abcd", length_max=4), cut("abcde", length_max=4)] == ["abcd", "abc…"]
    assert printable("é → ×") == "é → ×"
    assert FATES[0] == "delivered"
    assert line_of((3.25, "n1", "commit", {"index": 12})) == "   3.250000  n1            commit    index=12"
