"""Commands, messages and results to and from bytes. The one room that knows msgpack.

.. code-block:: text

    messages   what members say to each other, HELLO, membership          garbage -> FrameError
    logged     what an entry's payload holds                              garbage -> UnsupportedFormat
    results    what commands come to, and the tables of a snapshot        garbage -> UnsupportedFormat, StorageError
    plain      what operations on machines take and return                garbage -> InvalidRequest
    client     what clients ask and members answer                        garbage -> FrameError
    _wire      the bricks: bounded msgpack, runs, columns, tables of fields

Every byte of it is described in docs/protocol.md.
"""

from __future__ import annotations

from pyraftkv.codec import _wire
from pyraftkv.codec._wire import pack_run
from pyraftkv.codec.client import decode_call, decode_reply, encode_call, encode_reply
from pyraftkv.codec.logged import (
    LEASES_PER_DECISION_MAX,
    PUT_BATCH_MAX,
    STAMP_BYTES_MAX,
    TRANSACTION_DEPTH_MAX,
    decode_judged,
    decode_logged,
    encode_logged,
    is_members_command,
    members_envelope,
)
from pyraftkv.codec.messages import (
    PeerMessage,
    decode_hello,
    decode_membership,
    decode_message,
    decode_rejection,
    encode_hello,
    encode_membership,
    encode_message,
    encode_rejection,
)
from pyraftkv.codec.plain import decode_plain, decode_rows, encode_plain
from pyraftkv.codec.results import Outcome, decode_result, decode_table, encode_result, encode_table
from pyraftkv.errors import FrameError

__all__ = [
    "LEASES_PER_DECISION_MAX",
    "PUT_BATCH_MAX",
    "STAMP_BYTES_MAX",
    "TRANSACTION_DEPTH_MAX",
    "Outcome",
    "PeerMessage",
    "decode_call",
    "decode_hello",
    "decode_judged",
    "decode_logged",
    "decode_membership",
    "decode_message",
    "decode_plain",
    "decode_rejection",
    "decode_reply",
    "decode_result",
    "decode_rows",
    "decode_table",
    "encode_call",
    "encode_hello",
    "encode_logged",
    "encode_membership",
    "encode_message",
    "encode_plain",
    "encode_rejection",
    "encode_reply",
    "encode_result",
    "encode_table",
    "is_members_command",
    "members_envelope",
    "pack_run",
    "unpack_run",
]


def unpack_run(data: bytes, offset: int = 0) -> tuple[list[bytes], int]:
    """Read the payloads that `pack_run` laid out at ``offset``, and where they end. O(bytes).

    Raises:
        FrameError: The run is cut short or does not fit.
    """
    try:
        return _wire.unpack_run(data, offset)
    except _wire.Malformed as error:
        raise FrameError(str(error)) from None
