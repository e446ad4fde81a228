"""What the leader's node says to a change of the members before it is proposed.

Whether a change can be made at all is a function of the log, and every member says the same of it (see `roster`). Three
things are known to the leader alone, and to it only for the moment: who answers, how far everybody is, and that it is
the leader itself who has to go. So it judges, right before it proposes:

1. **Not ready.** A learner that lacks half of the log is promoted. It counts from then on, and if one of three others
   fails now, nothing is decided until it has all of it.
2. **Quorum at risk** (etcd's strict reconfiguration check). Of three members one is down, and another one is removed by
   mistake. Two are left, of whom one is down: nobody can decide anything any more, nor take it back. One that is
   expected, and was never there, is as good as down: a leader takes it for active at first, and it needs a majority
   to become somebody.
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
        command = _command(payload)
        assert command is not None, "only what can be decoded is offered"
        verdict = self._judge(command, payload)
        if verdict is PROPOSE:
            self._feed(ProposeMembership(payload, isinstance(command, LeaveJoint)))
        return verdict is not WAIT

    def admits(self, message: ForwardedMembership) -> bool:
        """Whether the machine is to see a peer's command. Never one that would stop every member, once committed."""
        command = _command(message.payload)
        if command is None or message.leave is not isinstance(command, LeaveJoint):
            logger.warning("a change of the members that member %d forwards cannot be applied: dropped", message.sender)
            return False
        return self._judge(command, message.payload) is PROPOSE

    def _judge(self, command: MembersCommand, payload: bytes) -> Verdict:
        """Decide what becomes of a command, and begin what that needs besides."""
        raft, before = self._raft, self._roster().membership
        if raft.role is not LEADER or raft.is_changing_membership:
            return PROPOSE  # Another one leads, or the machine hands it back until the change under way is made.
        status = raft.status()
        there = {member.id for member in self._roster().members.values() if member.incarnation}
        active = frozenset(id_ for id_, peer in status.peers.items() if peer.active and id_ in there) | {raft.id}
        after = self._after(command)
        complaint = _out_of_turn(command, before) or _unready(command, before, status)
        if complaint is None and after is not None:
            complaint = _at_risk(command, before, after, active)
        if complaint is not None:
            self._propose(_refusal(payload, complaint))
            return REFUSED
        if after is None or raft.id in after.voters or not after.voters & before.voters & active - {raft.id}:
            return PROPOSE  # If it cannot be made, the log says why.
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


def _out_of_turn(command: MembersCommand, before: Membership) -> errors.PyraftkvError | None:
    """Return the complaint about what would wait in vain: nobody leaves an explicit joint configuration by itself."""
    if isinstance(command, LeaveJoint) and not before.is_joint:
        return errors.InvalidRequest("there is no joint configuration to leave")
    if isinstance(command, ChangeMembers) and before.is_joint and not before.auto_leave:
        return errors.Unavailable("the configuration is joint, and has to be left first")
    return None


def _unready(command: MembersCommand, before: Membership, status: Status) -> errors.PyraftkvError | None:
    """Return the complaint about a learner that is promoted before it has caught up."""
    for change in command.changes if isinstance(command, ChangeMembers) else ():
        if isinstance(change, PromoteMember) and change.id in before.learners:
            peer = status.peers.get(change.id)
            match = peer.match if peer is not None and peer.active and peer.state is ProgressState.REPLICATE else 0
            if not match or match + READY_LAG_MAX < status.commit:
                return errors.LearnerNotReady(f"learner {change.id} has {match} entries of {status.commit}")
    return None


def _at_risk(
    command: MembersCommand, before: Membership, after: Membership, active: frozenset[int]
) -> errors.PyraftkvError | None:
    """Return the complaint about a change that leaves too few active voters to decide anything."""
    count, voters = len(after.voters & active), len(after.voters)
    is_forced = isinstance(command, ChangeMembers) and command.force
    if is_forced or after.voters == before.voters or count >= voters // 2 + 1:
        return None
    return errors.QuorumAtRisk(f"of {voters} voters after this, {count} would be active; force=True does it anyway")


def _refusal(payload: bytes, complaint: errors.PyraftkvError) -> bytes:
    """Return the encoded refusal of an encoded command."""
    envelope = codec.decode_logged(payload)
    assert isinstance(envelope, Envelope), "it was decoded before"
    name, message, _ = errors.to_wire(complaint)
    return codec.encode_logged(
        RefuseChange(envelope.session, envelope.sequence, envelope.acked_below, fingerprint_of(payload), name, message)
    )


def _command(payload: bytes) -> MembersCommand | None:
    """Return what an encoded change of the members holds; None if it is none."""
    try:
        envelope = codec.decode_logged(payload)
    except errors.UnsupportedFormat:
        return None
    if not isinstance(envelope, Envelope) or not isinstance(envelope.command, ChangeMembers | LeaveJoint):
        return None
    return envelope.command
