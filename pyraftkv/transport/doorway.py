"""The doorway: what was accepted and has not said HELLO, its TLS handshake included. It has so many places.

1. Somebody opens ten thousand connections and says nothing on them. 2. asyncio begins a TLS handshake on each, and
tells nobody before it is over. 3. Each costs a third of a megabyte and a descriptor for as long as it may take, until
the log can open no segment. So connections are accepted in plain text, counted, and only then shake hands.

4. Somebody keeps all the places with connections that say nothing, and opens new ones as they end: nobody else comes
in. So whoever comes to a full doorway takes the place of the one that has stood there longest, if that is a second or
more. One who is honest has gone on by then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

from pyraftkv.transport.connection import Wire
from pyraftkv.transport.limits import Limits

_LOG = logging.getLogger("pyraftkv.transport")


class Doorway:
    """Who has not said HELLO yet, in the order in which they came.

    Args:
        limits: How many, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places: dict[object, tuple[float, Callable[[], object]]] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, visitor: object, turn_away: Callable[[], object]) -> bool:
        """Take a place, and return whether there was one; ``turn_away`` ends it where another one needs the place.

        Who has one already has it for as long again: it comes from its TLS handshake, and is to say HELLO.
        """
        self._places.pop(visitor, None)
        now = asyncio.get_running_loop().time()
        if len(self._places) >= self._limits.handshakes_max:
            oldest, (since, turn_oldest_away) = next(iter(self._places.items()))
            if now - since < self._limits.greeting_seconds_min:
                return False
            del self._places[oldest]
            turn_oldest_away()
        self._places[visitor] = now, turn_away
        return True

    def leave(self, visitor: object) -> None:
        """It has said HELLO, or is gone. Idempotent."""
        self._places.pop(visitor, None)

    def secured(self, make: Callable[[], Wire], context: Callable[[], ssl.SSLContext]) -> asyncio.BaseProtocol:
        """Return the protocol of a connection that was accepted, which becomes a wire after its TLS handshake."""
        return _Accepted(lambda connection: self._secure(connection, make(), context))

    def _secure(self, connection: socket.socket, wire: Wire, context: Callable[[], ssl.SSLContext]) -> None:
        if self._is_closed or not self.enter(wire, partial(_end, connection)):
            connection.close()
            return
        task = asyncio.create_task(self._shake_hands(connection, wire, context()), name="pyraftkv-handshake")
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, wire: Wire, context: ssl.SSLContext) -> None:
        seconds = self._limits.handshake_seconds_max
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: wire, connection, ssl=context, ssl_handshake_timeout=seconds, ssl_shutdown_timeout=seconds
            )
        except OSError as error:  # what TLS refuses, and time, are some of these
            self.leave(wire)
            _LOG.debug("a connection ended before its HELLO: %s", error)

    async def close(self) -> None:
        """Turn everybody away, and wait for the ends of their handshakes. Idempotent; nobody enters any more."""
        self._is_closed = True
        for _, turn_away in list(self._places.values()):
            turn_away()
        if self._handshakes:
            await asyncio.wait(self._handshakes)
        self._places.clear()


def _end(connection: socket.socket) -> None:
    """Let a handshake fail, whether it has begun or is about to."""
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)


class _Accepted(asyncio.Protocol):
    """Lets go of a connection before anything is read: what comes first belongs to the handshake.

    1. asyncio can be told to read nothing yet, and to begin TLS on a connection that stands. 2. uvloop begins to read
    all the same, and what it has read is lost. So another connection is made of the same socket.
    """

    def __init__(self, accepted: Callable[[socket.socket], None]) -> None:
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        try:
            connection: socket.socket = transport.get_extra_info("socket").dup()
        except OSError as error:
            _LOG.warning("a connection was accepted, and there is no descriptor for it: %s", error)
        else:
            self._accepted(connection)
        cast("asyncio.Transport", transport).abort()
