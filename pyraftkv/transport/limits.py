"""Every bound of the TCP transport, with its default."""

from __future__ import annotations

from dataclasses import field

from pyraftkv._record import record
from pyraftkv.transport.framing import CLIENT_FRAME_BYTES_MAX, PEER_FRAME_BYTES_MAX
from pyraftkv.transport.lanes import Lane

_MIB = 1024 * 1024


def _lane_bytes() -> dict[Lane, int]:
    return {Lane.CONTROL: 1 * _MIB, Lane.APPENDS: 32 * _MIB, Lane.BULK: 16 * _MIB}


@record
class Limits:
    """What a transport holds at most, and how long it waits."""

    peer_frame_bytes_max: int = PEER_FRAME_BYTES_MAX
    client_frame_bytes_max: int = CLIENT_FRAME_BYTES_MAX
    lane_queue_bytes_max: dict[Lane, int] = field(default_factory=_lane_bytes)
    """What waits to be sent to one peer on one lane; a message that does not fit is dropped, and the peer is lost."""
    connection_queue_bytes_max: int = 8 * _MIB
    """What waits to be sent to one client; beyond it the client is too slow and is closed."""
    clients_max: int = 1024
    """Client connections; the next one is refused as "overloaded"."""
    handshakes_max: int = 64
    """Connections that have not said HELLO yet, those in TLS's own handshake among them; the next one is closed."""
    greeting_seconds_min: float = 1.0
    """For as long a connection keeps its place among those; then the next one that comes takes it."""
    handshake_seconds_max: float = 5.0
    """From connect to HELLO, and for TLS's own handshake."""
    dial_seconds_max: float = 5.0
    """From the start of a dial to the answer to our HELLO."""
    frame_seconds_max: float = 10.0
    """A frame that has begun must be complete within twice this."""
    backoff_seconds_min: float = 0.05
    backoff_seconds_max: float = 2.0
    """The wait between two dials doubles from the one to the other, each with jitter; a HELLO answered resets it."""
