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
3. **The last copy but one.** Beside a witness A and B have all the keys, and the witness nothing. B is replaced by C,
   which is not there yet: A and the witness decide that, B is told to go, and then A fails. So nobody who has what the
   witness dropped goes before another one has it; B, if it is lost, has nothing to stay for.
4. **The leader hands over first.** It is removed, and leads on until that is committed; then there is nobody, and the
   clients wait for an election. Who leads next can remove it as well. A witness does not: it could not go on.

A judgement is of its moment, and the command may be in the log already: it came by way of the leader before. So
nobody is told of a refusal. It is logged, as `RefuseChange`, and whichever of the two stands first in the log counts.

What it finds nothing against it stamps (`StampedChange`): without a stamp a command changes nothing. It can, for it
takes up nothing before every change in its log is applied, and every refusal, which are proposed in the same way; so
its sessions know whether this command has come to something. One that has is logged bare, for the sake of the answer:
whoever asks may sit at a member that applied it long ago.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from pyraftkv import codec, errors
from pyraftkv.core import (
    LEADER,
    NO_NODE,
    PAYLOAD_BYTES_MAX,
    Input,
    Membership,
    ProgressState,
    ProposeMembership,
    Raft,
    Status,
    TransferLeadership,
)
from pyraftkv.core.membership import DATA_VOTERS_MIN
from pyraftkv.core.messages import ForwardedMembership
from pyraftkv.protocol import (
    ChangeMembers,
    Envelope,
    LeaveJoint,
    MembersCommand,
    PromoteMember,
    RefuseChange,
    StampedChange,
)
from pyraftkv.replica import Replica
from pyraftkv.sessions import fingerprint_of

logger = logging.getLogger("pyraftkv.node")

READY_LAG_MAX = 256
"""Entries that a learner may lack of what is committed when it is promoted: about what is on its way to it."""


class Verdict(Enum):
    """What becomes of a command."""

    PROPOSE = "propose"
    """The machine takes it, or hands it back."""
    WAIT = "wait"
    """It is offered again a little later: when the change under way is made, or somebody else leads."""
    ANSWERED = "answered"
    """Its answer is on its way to the log: a refusal, or what it came to before."""


PROPOSE, WAIT, ANSWERED = Verdict


class ChangeDesk:
    """Takes changes of the members, of this node's callers and of its peers, and judges them while it leads.

    Args:
        raft: The machine, to be looked at.
        replica: Returns the members and the sessions as of now.
        feed: Takes what the machine is to be told.
        propose: Proposes a payload that is no change itself.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        replica: Callable[[], Replica],
        feed: Callable[[Input], object],
        propose: Callable[[bytes], object],
    ) -> None:
        self._raft = raft
        self._replica = replica
        self._feed = feed
        self._propose = propose

    def offer(self, payload: bytes) -> bool:
        """Take an encoded command of this node; False if it is to be offered again a little later."""
        envelope = codec.members_envelope(payload)
        assert envelope is not None, "only what can be decoded is offered"
        verdict = self._judge(envelope, payload)
        if verdict is PROPOSE:
            self._feed(ProposeMembership(self._stamped(payload), isinstance(envelope.command, LeaveJoint)))
        return verdict is not WAIT

    def admit(self, message: ForwardedMembership) -> ForwardedMembership | None:
        """Return what the machine is to see of a peer's command. Never one that would stop every member."""
        payload = _unjudged(message.payload)
        if payload is None:
            return None
        envelope = codec.members_envelope(payload)
        if envelope is None or message.leave is not isinstance(envelope.command, LeaveJoint):
            logger.warning("a change of the members that member %d forwards cannot be applied: dropped", message.sender)
            return None
        if self._judge(envelope, payload) is not PROPOSE:
            return None
        return replace(message, payload=self._stamped(payload))

    def _stamped(self, payload: bytes) -> bytes:
        """Return a command as this member proposes it: a leader vouches for it, anybody else passes it on."""
        if self._raft.role is not LEADER:
            return payload
        return codec.encode_logged(StampedChange(self._replica().roster.last_change, payload))

    def _judge(self, envelope: Envelope, payload: bytes) -> Verdict:
        """Decide what becomes of a command, and begin what that needs besides."""
        raft, replica, command = self._raft, self._replica(), _command(envelope)
        if raft.role is not LEADER:
            return PROPOSE
        if raft.is_changing_membership:
            return WAIT
        if not replica.sessions.is_new(envelope.session, envelope.sequence):
            self._propose(payload)
            return ANSWERED
        before, after = replica.roster.membership, self._after(command)
        status = raft.status()
        there = {member.id for member in replica.roster.members.values() if member.incarnation}
        active = frozenset(id_ for id_, peer in status.peers.items() if peer.active and id_ in there) | {raft.id}
        complaint = _out_of_turn(command, before) or _unready(command, before, status) or _unwieldy(payload)
        if complaint is None and after is not None and not (isinstance(command, ChangeMembers) and command.force):
            holders, nearly = (self._holders(active, status, lag=lag) for lag in (0, READY_LAG_MAX))
            complaint = _at_risk(before, after, active) or _last_copies(before, after, holders, nearly)
            if complaint is None and _last_copies(before, after, holders, holders):
                return WAIT  # What they lack is on its way.
        if complaint is not None:
            self._feed(ProposeMembership(_refusal(envelope, payload, complaint), before.is_joint))
            return ANSWERED
        if after is None or raft.id in after.voters:
            return PROPOSE  # If it cannot be made, the log says why.
        if not after.voters & before.voters & active - before.witnesses - {raft.id}:
            return PROPOSE  # Nobody could take over.
        if status.transferee == NO_NODE:
            self._feed(TransferLeadership(NO_NODE))
        return WAIT

    def _holders(self, active: frozenset[int], status: Status, *, lag: int) -> frozenset[int]:
        """Return who is there and has what a witness may have dropped, or lacks ``lag`` entries of it at most."""
        floor, peers = self._raft.floor, status.peers
        return frozenset(id_ for id_ in active if id_ == self._raft.id or peers[id_].match + lag >= floor)

    def _after(self, command: MembersCommand) -> Membership | None:
        """Return the configuration that a command leads to from here, or None if it leads nowhere."""
        draft = self._replica().roster.copy()
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


def _at_risk(before: Membership, after: Membership, active: frozenset[int]) -> errors.PyraftkvError | None:
    """Return the complaint about a change that leaves too few active voters to decide anything."""
    count, voters = len(after.voters & active), len(after.voters)
    if after.voters == before.voters or count >= voters // 2 + 1:
        return None
    return errors.QuorumAtRisk(f"of {voters} voters after this, {count} would be active; force=True does it anyway")


def _last_copies(
    before: Membership, after: Membership, holders: frozenset[int], coming: frozenset[int]
) -> errors.PyraftkvError | None:
    """Return the complaint about a change that leaves one of two disks with what the witness has dropped."""
    had, has = len(holders & before.voters - before.witnesses), len(coming & after.voters - after.witnesses)
    if not after.voters & after.witnesses or has >= min(had, DATA_VOTERS_MIN):
        return None
    return errors.QuorumAtRisk(
        f"of {had} voters that have what the witness has dropped, {has} would be left; "
        "add who is to have it first, or force=True does it anyway"
    )


def _unwieldy(payload: bytes) -> errors.PyraftkvError | None:
    """Return the complaint about a command that no message could carry with a stamp on it."""
    bytes_max = PAYLOAD_BYTES_MAX - codec.STAMP_BYTES_MAX
    if len(payload) <= bytes_max:
        return None
    return errors.RequestTooLarge(f"the encoded change has {len(payload)} bytes, over {bytes_max}")


def _refusal(envelope: Envelope, payload: bytes, complaint: errors.PyraftkvError) -> bytes:
    """Return the encoded refusal of an encoded command."""
    name, message, _ = errors.to_wire(complaint)
    return codec.encode_logged(
        RefuseChange(envelope.session, envelope.sequence, envelope.acked_below, fingerprint_of(payload), name, message)
    )


def _command(envelope: Envelope) -> MembersCommand:
    assert isinstance(envelope.command, ChangeMembers | LeaveJoint), "that is what comes here"
    return envelope.command


def _unjudged(payload: bytes) -> bytes | None:
    """Return a change of the members as its proposer made it; None for a refusal, which was of its moment.

    Its sender judged it when it led, and now that this one leads it is judged anew.
    """
    try:
        logged = codec.decode_judged(payload)
    except errors.UnsupportedFormat:
        return payload
    if logged is None:
        return payload
    return logged.change if isinstance(logged, StampedChange) else None


def returned_to(payload: bytes) -> tuple[int, int] | None:
    """Return whose command the machine hands back, judged, by session and sequence; None for any other payload."""
    logged = codec.decode_judged(payload)
    if logged is None:
        return None
    if isinstance(logged, RefuseChange):
        return logged.session, logged.sequence
    envelope = codec.members_envelope(logged.change)
    assert envelope is not None, "it was stamped here"
    return envelope.session, envelope.sequence
