"""Moving messages between members and clients: the contract, an in-memory network, TCP with TLS.

.. code-block:: text

    base        the contract: Transport, Connection, Handler, Dialer
    framing     bytes <-> frames, sans-IO            lanes      which stream a message takes
    handshake   who may talk to whom                 memory     the network inside one process
    tcp         members and clients over TCP         dial, peer, connection, tls, address, limits: its parts
"""

from __future__ import annotations

from pyraftkv.transport.base import Connection, Dialer, Handler, Transport
from pyraftkv.transport.dial import TcpDialer
from pyraftkv.transport.limits import Limits
from pyraftkv.transport.memory import MemoryNetwork, MemoryTransport
from pyraftkv.transport.tcp import TcpTransport
from pyraftkv.transport.tls import TLS

__all__ = [
    "TLS",
    "Connection",
    "Dialer",
    "Handler",
    "Limits",
    "MemoryNetwork",
    "MemoryTransport",
    "TcpDialer",
    "TcpTransport",
    "Transport",
]
