"""Whose process has ended: a refusal says so once every connection has ended by itself, and nothing else does."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from pyraftkv.transport.departures import Departures, is_refusal
from tests.node.support import asynchronous


class Watched:
    """A `Departures`, and the members that it told of."""

    def __init__(self, *standing: int) -> None:
        self.gone: list[int] = []
        self.departures = Departures(self.gone.append)
        for member in standing:
            self.departures.stands(member)

    def ended(self, member: int, *, by_us: bool = False) -> None:
        """End a connection with a member."""
        self.departures.ended(member, by_us=by_us)

    def refused(self, member: int) -> None:
        """Dial a member in vain."""
        self.departures.refused(member)


def test_who_refuses_after_its_connections_have_ended_is_gone_and_told_of_once() -> None:
    """Three lanes are refused one after the other; later dials are no news either."""
    watched = Watched(2, 3)
    watched.ended(2)
    for _ in range(3):
        watched.refused(2)
    assert watched.gone == [2]


def test_who_comes_back_can_go_again() -> None:
    """What was told is of that life."""
    watched = Watched(2)
    watched.ended(2)
    watched.refused(2)
    watched.departures.stands(2)
    watched.refused(2)
    assert watched.gone == [2]
    watched.ended(2)
    watched.refused(2)
    assert watched.gone == [2, 2]


def test_one_connection_that_stands_speaks_for_the_member() -> None:
    """A proxy in front of it is restarted, and refuses: what the member itself has dialled still stands."""
    watched = Watched(2, 2)
    watched.ended(2)
    watched.refused(2)
    assert watched.gone == []


def test_what_we_ended_ourselves_says_nothing() -> None:
    """If it was the last: the members changed, and nobody is to listen there any more."""
    watched = Watched(2, 3, 3)
    watched.ended(2, by_us=True)
    watched.refused(2)
    assert watched.gone == []
    watched.ended(3, by_us=True)
    watched.ended(3)
    watched.refused(3)
    assert watched.gone == [3]


def test_who_was_never_there_has_not_gone() -> None:
    """It is yet to start."""
    watched = Watched()
    watched.refused(2)
    assert watched.gone == []


def test_what_refuses_at_another_address_says_nothing_of_a_member() -> None:
    """Its connections ended for whatever reason, and now it is said to be somewhere else, where it is yet to come."""
    watched = Watched(2)
    watched.ended(2)
    watched.departures.moved(2)
    watched.refused(2)
    assert watched.gone == []


@asynchronous
async def test_a_name_of_several_addresses_refuses_if_each_of_them_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as localhost: asyncio tries one after the other, and sums up what came of them."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        port = bound.getsockname()[1]

        async def two_addresses(*_: object, **__: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")]

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
        with pytest.raises(OSError, match=r"127\.0\.0\.1.*127\.0\.0\.2") as caught:
            await loop.create_connection(asyncio.Protocol, "localhost", port)
    assert is_refusal(caught.value)


REFUSED = f"[Errno {errno.ECONNREFUSED}] Connect call failed ('127.0.0.1', 7001)"
NO_SUCH_FAMILY = f"[Errno {errno.EADDRNOTAVAIL}] Cannot assign requested address"
SILENT = f"[Errno {errno.EHOSTUNREACH}] Connect call failed ('10.0.0.1', 7001)"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (ConnectionRefusedError("too many connections"), False),
        (OSError(errno.EHOSTUNREACH, "no route"), False),
        (OSError(f"Multiple exceptions: {REFUSED}, {REFUSED}"), True),
        (OSError(f"Multiple exceptions: {NO_SUCH_FAMILY}, {REFUSED}"), True),
        (OSError(f"Multiple exceptions: {REFUSED}, {SILENT}"), False),
        (OSError(f"Multiple exceptions: {NO_SUCH_FAMILY}, {NO_SUCH_FAMILY}"), False),
        (OSError("no reason given"), False),
    ],
)
def test_a_refusal_is_that_nobody_listens_and_nothing_else(error: OSError, *, expected: bool) -> None:
    """A member that says it has no room does listen; where one address is out of reach, somebody may listen there."""
    assert is_refusal(error) is expected
