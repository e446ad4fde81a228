"""Dialling: connect, say HELLO, and hand back a wire whose other end is known."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable
from typing import Any

from pyraftkv.codec import decode_hello, decode_rejection, encode_hello
from pyraftkv.errors import FrameError, HandshakeRejected
from pyraftkv.futures import fulfil
from pyraftkv.protocol import Hello
from pyraftkv.transport.address import parse_address
from pyraftkv.transport.base import Connection
from pyraftkv.transport.connection import FramedConnection, Wire
from pyraftkv.transport.framing import KIND_HELLO, KIND_HELLO_ACK, KIND_REJECTED, Frame
from pyraftkv.transport.handshake import judge_hello
from pyraftkv.transport.limits import Limits
from pyraftkv.transport.tls import TLS

OVERLOADED = "overloaded"
"""The one refusal that passes by itself: reported to callers as nobody answering."""


class Introduction:
    """The role of a wire that was dialled, until the other end has answered our HELLO."""

    def __init__(self, hello: Hello, *, secure: bool) -> None:
        self.answer: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._secure = secure
        self._wire: Wire | None = None

    def connected(self, wire: Wire) -> None:
        self._wire = wire
        wire.write_frame(KIND_HELLO, encode_hello(self._hello))

    def frame(self, frame: Frame) -> None:
        assert self._wire is not None
        if frame.kind == KIND_HELLO_ACK:
            other = decode_hello(frame.payload)
            self._wire.hold()
            fulfil(self.answer, other)
        elif frame.kind == KIND_REJECTED:
            rejection = decode_rejection(frame.payload)
            self._fail(ConnectionRefusedError(str(rejection)) if rejection.reason == OVERLOADED else rejection)
            self._wire.close()
        else:
            raise FrameError(f"a frame of kind {frame.kind:#x} in answer to a HELLO")

    def flush(self) -> None:
        pass

    def lost(self, error: Exception | None) -> None:
        if isinstance(error, FrameError):
            self._fail(HandshakeRejected(str(error), reason="protocol"))
        elif self._secure:
            # TLS 1.3: our handshake was over before the other end looked at our certificate.
            self._fail(
                HandshakeRejected(
                    "the other end closed before it answered our HELLO: it refuses our certificate, or wants one",
                    reason="unauthorized",
                )
            )
        else:
            self._fail(
                ConnectionResetError(
                    "the other end closed before it answered our HELLO: it may want TLS, or be no member"
                )
            )

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def in_words(error: Exception) -> str:
    """Return why a dial failed, for people: what the system and asyncio raise is often a number, or empty.

    >>> in_words(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 2479)"))
    'Connection refused'
    >>> in_words(TimeoutError())
    'no answer in time'
    """
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:  # names that cannot be resolved have numbers of their own
        return error.strerror
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _tls_options(tls: TLS | None, host: str, limits: Limits) -> dict[str, Any]:
    """Return what `create_connection` is to be told about TLS. Raises `ConfigurationError`."""
    if tls is None:
        return {}
    return {
        "ssl": tls.for_client(),
        "server_hostname": host,
        "ssl_handshake_timeout": limits.handshake_seconds_max,
        "ssl_shutdown_timeout": limits.handshake_seconds_max,
    }


async def dial(
    address: str,
    hello: Hello,
    *,
    tls: TLS | None,
    limits: Limits,
    judge: Callable[[Hello], None],
    connected: Callable[[Wire], None] | None = None,
    lost: Callable[[Wire], None] | None = None,
) -> tuple[Wire, Hello]:
    """Connect to ``address`` (resolved anew) and exchange HELLOs; the wire that comes back is held.

    Args:
        address: Where to.
        hello: What to say.
        tls: How to be safe, or None for plain text.
        limits: The bounds.
        judge: Accepts the other end's HELLO, or raises `HandshakeRejected`.
        connected: Called when the connection stands; not if the dial was cancelled by then.
        lost: Called when the wire is gone.

    Raises:
        HandshakeRejected: One end refused the other.
        OSError: Nobody answers there.
        TimeoutError: Nobody answered in time.
        ConfigurationError: The address or the TLS files cannot work.
    """
    host, port = parse_address(address)
    introduction = Introduction(hello, secure=tls is not None)

    wire = Wire(introduction, connected=introduction.connected, lost=lost)
    accepted = False
    try:
        async with asyncio.timeout(limits.dial_seconds_max):
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: wire, host, port, **_tls_options(tls, host, limits))
            # Not before: when a dial is cancelled here uvloop closes the connection, and never says that it is lost.
            if connected is not None and not wire.is_lost:
                connected(wire)
            other = await introduction.answer
        if tls is not None and other.member_id:
            tls.check_identity(wire.ssl_object, other)
        judge(other)
        accepted = True
    except ssl.SSLCertVerificationError as error:
        raise HandshakeRejected(f"its certificate cannot be trusted: {error}", reason="unauthorized") from error
    except ConnectionResetError as error:
        if tls is None or str(error):
            raise
        raise ConnectionResetError("the other end closed during the TLS handshake: it may not speak TLS") from error
    finally:
        if not accepted:
            introduction.answer.cancel()
            wire.abort()
    return wire, other


class TcpDialer:
    """Opens client connections over TCP: a `Dialer`.

    Args:
        tls: Certificates, or None for plain text.
        limits: The bounds.
    """

    def __init__(self, *, tls: TLS | None = None, limits: Limits | None = None) -> None:
        self._tls = tls
        self._limits = limits or Limits()

    async def __call__(self, address: str, hello: Hello) -> Connection:
        """Connect and exchange HELLOs.

        Raises:
            HandshakeRejected: One end refused the other.
            OSError: Nobody answers, or the member has as many clients as it takes.
            TimeoutError: Nobody answered in time.
            ConfigurationError: The address or the TLS files cannot work.
        """
        wire, other = await dial(
            address, hello, tls=self._tls, limits=self._limits, judge=lambda other: judge_hello(hello, other)
        )
        return FramedConnection(wire, other, self._limits)
