"""What may be proposed at all: what a frame can carry, and of what another member forwards what every member can apply.

What is committed has to be applied, by everyone, for ever. So what cannot be is kept out of the log, not of the state.
"""

from __future__ import annotations

import asyncio
import logging

from pyraftkv import codec, errors
from pyraftkv.core import PAYLOAD_BYTES_MAX
from pyraftkv.core.messages import ForwardedProposals
from pyraftkv.protocol import ChangeMembers, Envelope, LeaveJoint, RegisterSession

logger = logging.getLogger("pyraftkv.node")

WARNING_SECONDS = 10.0
"""How long a member says nothing more of peers that forward what cannot be applied."""


def check_size(payload: bytes) -> None:
    """Raise `RequestTooLarge` for a payload that could be logged here and reach no other member."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise errors.RequestTooLarge(f"the encoded command has {len(payload)} bytes, over {PAYLOAD_BYTES_MAX}")


class ForwardGate:
    """What passes of the proposals that other members forward."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next_warning = loop.time()

    def passed(self, message: ForwardedProposals) -> ForwardedProposals:
        """Return the message with what a member may forward: anything else, once committed, would stop every member."""
        payloads = [payload for payload in message.payloads if _is_forwardable(payload)]
        count = len(message.payloads) - len(payloads)
        if count == 0:
            return message
        if self._loop.time() >= self._next_warning:
            self._next_warning = self._loop.time() + WARNING_SECONDS
            logger.warning("%d of member %d's proposals cannot be applied: dropped", count, message.sender)
        return ForwardedProposals(message.to, message.sender, message.term, payloads)


def _is_forwardable(payload: bytes) -> bool:
    """Whether the payload may stand in an entry of its own. Entry 1 is nobody's proposal.

    A change of the members is, as `ForwardedMembership` alone: as an ordinary entry no leader would count it. What a
    leader makes of one, itself makes.
    """
    try:
        logged = codec.decode_logged(payload)
    except errors.UnsupportedFormat:
        return False
    if isinstance(logged, Envelope):
        return not isinstance(logged.command, ChangeMembers | LeaveJoint)
    return isinstance(logged, RegisterSession)
