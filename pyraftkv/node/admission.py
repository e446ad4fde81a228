"""What may be proposed at all: what a frame can carry, what this member can apply, and of what another member forwards
what every member can.

What is committed has to be applied, by everyone, for ever. So what cannot be is kept out of the log, not of the state.
"""

from __future__ import annotations

import asyncio
import logging

from pyraftkv import codec, errors
from pyraftkv.core import PAYLOAD_BYTES_MAX, Raft
from pyraftkv.core.messages import ForwardedProposals
from pyraftkv.node.applier import Applier
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.integrity import Integrity
from pyraftkv.node.machines import check_operation, examine_operation
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import ChangeMembers, Envelope, LeaveJoint, MembersCommand, RegisterSession
from pyraftkv.settings import RulesCommand
from pyraftkv.statemachine import Operate
from pyraftkv.store.commands import Command, LoggedCommand, PutBatch

logger = logging.getLogger("pyraftkv.node")

APPLY_LAG_ENTRIES_MAX = 5000
"""A member that has more committed entries than this to apply takes no write on: `Overloaded` (etcd does so, too)."""

WARNING_SECONDS = 10.0
"""How long a member says nothing more of peers that forward what cannot be applied."""


def check_size(payload: bytes) -> None:
    """Raise `RequestTooLarge` for a payload that could be logged here and reach no other member."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise errors.RequestTooLarge(f"the encoded command has {len(payload)} bytes, over {PAYLOAD_BYTES_MAX}")


class Admission:
    """What this member takes on of what its callers and its clients ask for.

    Args:
        raft: Its machine, to be looked at.
        applier: Has the state, as far as it goes.
        peers: Say what the other members can apply.
        integrity: Says whether the state is to be believed.
        disk: Says whether there is room.
    """

    def __init__(self, raft: Raft, *, applier: Applier, peers: Peers, integrity: Integrity, disk: DiskHealth) -> None:
        self._raft = raft
        self._applier = applier
        self._peers = peers
        self._integrity = integrity
        self._disk = disk

    def command(self, command: Command) -> None:
        """Refuse a new command that cannot be applied, as far as this member knows. Raises `NotApplied`."""
        self._applier.replica.rules.admit(command)
        self.examine(command)

    def put(self) -> None:
        """As `command`, for a put without options. Raises `NoSpace`, `Corrupt`, `Overloaded`."""
        rules = self._applier.replica.rules
        if not rules.is_quiet:
            rules.admit(_ANY_PUT)
        self._check_itself()

    def operation(self, command: Operate) -> None:
        """As `command`, for an operation of a machine: every member has to know it. Raises `NotApplied`. O(members)."""
        replica = self._applier.replica
        check_operation(command, replica.machines, self._peers)
        replica.admit(command, index=replica.applied_index + 1)
        self.examine(command)

    def examine(self, command: LoggedCommand | MembersCommand | RulesCommand | Operate) -> None:
        """Refuse what is wrong in itself, and everything if this member is too far behind. Raises `NotApplied`.

        Of a client's command nothing more can be said before it is applied, least of all that an alarm stands:

        1. A client's put is proposed and applied. The answer is lost, and the alarm NOSPACE is raised.
        2. The client sends the put again, to another member. That refuses it: "not applied", it says of what was.
        """
        if isinstance(command, Operate):
            examine_operation(command, self._applier.replica.machines)
        elif not isinstance(command, MembersCommand | RulesCommand):
            self._applier.replica.store.validate(command)
        self._check_itself()

    def _check_itself(self) -> None:
        self._integrity.check()
        self._disk.check()
        lag = self._raft.commit - self._applier.replica.applied_index
        if lag > APPLY_LAG_ENTRIES_MAX:
            raise errors.Overloaded(f"this member has {lag} committed entries to apply, over {APPLY_LAG_ENTRIES_MAX}")


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


_ANY_PUT = PutBatch((b"key", b"value"))
"""What stands for every put: an alarm does not look at the key."""
