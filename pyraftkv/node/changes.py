"""What the leader's node says to a change of the members before it is proposed.

Whether a change can be made at all is a function of the log, and every member says the same of it (see `roster`). Three
things are known to the leader alone, and to it only for the moment: who answers, how far everybody is, and that it is
the leader itself who has to go. So it judges, right before it proposes:

1. **Not ready.** A learner that lacks half of the log is promoted. It counts from then on, and if one of three others
   fails now, nothing is decided until it has all of it.
2. **Quorum at risk** (etcd's strict reconfiguration check). Of three members one is down, and another one is removed by
   mistake. Two are left, of whom one is down: nobody can decide anything any more, nor take it back.
3. **The leader hands over first.** It is removed, and leads on until that is committed; then there is nobody, and the
   clients wait for an election. Who leads next can remove it as well.

A judgement is of its moment, and the command may be in the log already: it came by way of the leader before. So
nobody is told of a refusal. It is logged, as `RefuseChange`, and whichever of the two stands first in the log counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum

from pyraftkv import codec, errors
from pyraftkv.core import (
    LEADER,
    NO_NODE,
    Input,
    Membership,
    ProgressState,
    ProposeMembership,
    Raft,
    Status,
    TransferLeadership,
)
from pyraftkv.core.messages import ForwardedMembership
from pyraftkv.protocol import ChangeMembers, Envelope, LeaveJoint, MembersCommand, PromoteMember, RefuseChange
from pyraftkv.roster import Roster
from pyraftkv.sessions import fingerprint_of

logger = logging.getLogger("pyraftkv.node")

READY_LAG_MAX = 256
"""Entries that a learner may lack of what is committed when it is promoted: about what is on its way to it."""


class Verdict(Enum):
    """What becomes of a command."""

    PROPOSE = "propose"
    """The machine takes it, or hands it back."""
    WAIT = "wait"
    """It is offered again when somebody else leads."""
    REFUSED = "refused"
    """The refusal is on its way to the log."""


PROPOSE, WAIT, REFUSED = Verdict


class ChangeDesk:
    """Takes changes of the members, of this node's callers and of its peers, and judges them while it leads.

    Args:
        raft: The machine, to be looked at.
        roster: Returns the members as of now.
        feed: Takes what the machine is to be told.
        propose: Proposes a payload that is no change itself.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        roster: Callable[[], Roster],
        feed: Callable[[Input], object],
        propose: Callable[[bytes], object],
    ) -> None:
        self._raft = raft
        self._roster = roster
        self._feed = feed
        self._propose = propose

    def offer(self, payload: bytes) -> bool:
        """Take an encoded command of this node; False if it is to be offered again a little later."""
        envelope = _envelope(payload)
        assert envelope is not None, "only what can be decoded is offered"
        verdict = self._judge(envelope, payload)
        if verdict is PROPOSE:
            self._feed(ProposeMembership(payload, isinstance(envelope.command, LeaveJoint)))
        return verdict is not WAIT

    def admits(self, message: ForwardedMembership) -> bool:
        """Whether the machine is to see a peer's command. Never one that would stop every member, once committed."""
        envelope = _envelope(message.payload)
        if envelope is None or message.leave is not isinstance(envelope.command, LeaveJoint):
            logger.warning("a change of the members that member %d forwards cannot be applied: dropped", message.sender)
            return False
        return self._judge(envelope, message.payload) is PROPOSE

    def _judge(self, envelope: Envelope, payload: bytes) -> Verdict:
        """Decide what becomes of a command, and begin what that needs besides."""
        raft, command = self._raft, envelope.command
        if raft.role is not LEADER or raft.is_changing_membership or not isinstance(command, ChangeMembers):
            return PROPOSE  # Another one leads, or the machine hands it back until the change under way is made.
        after = self._after(command)
        if after is None:
            return PROPOSE  # It cannot be made, and the log says why.
        status = raft.status()
        active = frozenset(id_ for id_, peer in status.peers.items() if peer.active) | {raft.id}
        complaint = _unready(command, self._roster().membership, status) or _at_risk(
            command, self._roster().membership, after, active
        )
        if complaint is not None:
            self._propose(codec.encode_logged(_refusal(envelope, payload, complaint)))
            return REFUSED
        heirs = after.voters & self._roster().membership.voters & active - {raft.id}
        if raft.id in after.voters or not heirs:
            return PROPOSE
        if status.transferee == NO_NODE:
            self._feed(TransferLeadership(NO_NODE))
        return WAIT

    def _after(self, command: MembersCommand) -> Membership | None:
        """Return the configuration that a command leads to from here, or None if it leads nowhere."""
        draft = self._roster().copy()
        try:
            draft.apply(command)
        except errors.NotApplied:
            return None
        return draft.membership


def _unready(command: ChangeMembers, membership: Membership, status: Status) -> errors.PyraftkvError | None:
    """Return the complaint about a learner that is promoted before it has caught up."""
    for change in command.changes:
        if isinstance(change, PromoteMember) and change.id in membership.learners:
            peer = status.peers.get(change.id)
            match = peer.match if peer is not None and peer.active and peer.state is ProgressState.REPLICATE else 0
            if not match or match + READY_LAG_MAX < status.commit:
                return errors.LearnerNotReady(f"learner {change.id} has {match} entries of {status.commit}")
    return None


def _at_risk(
    command: ChangeMembers, before: Membership, after: Membership, active: frozenset[int]
) -> errors.PyraftkvError | None:
    """Return the complaint about a change that leaves too few active voters to decide anything."""
    count, voters = len(after.voters & active), len(after.voters)
    if command.force or after.voters == before.voters or count >= voters // 2 + 1:
        return None
    return errors.QuorumAtRisk(f"of {voters} voters after this, {count} would be active; force=True does it anyway")


def _refusal(envelope: Envelope, payload: bytes, complaint: errors.PyraftkvError) -> RefuseChange:
    name, message, _ = errors.to_wire(complaint)
    return RefuseChange(
        envelope.session, envelope.sequence, envelope.acked_below, fingerprint_of(payload), name, message
    )


def _envelope(payload: bytes) -> Envelope | None:
    """Return the command in an encoded change of the members; None if it is none."""
    try:
        envelope = codec.decode_logged(payload)
    except errors.UnsupportedFormat:
        return None
    if not isinstance(envelope, Envelope) or not isinstance(envelope.command, ChangeMembers | LeaveJoint):
        return None
    return envelope
