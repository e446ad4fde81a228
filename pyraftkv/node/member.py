"""`Member`: a node after its start, with every part wired to the others.

.. code-block:: text

    KV calls ──► writes, reads ──► inbox ──► driver ──► core
                     ▲    ▲                    │ │ └──► transport ──► peers
                     │    │                    │ └────► storage ────► disk
                     │    └── applier ◄────────┘
                     └── effects ┘ └──► watches
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import get_args

from pyraftkv import codec, errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import (
    LEADER,
    NO_NODE,
    Applied,
    Campaign,
    Input,
    InstallSnapshot,
    Membership,
    PeerUnreachable,
    Raft,
    ReadIndex,
    SnapshotMeta,
    SnapshotTaken,
    SoftState,
    Stored,
)
from pyraftkv.core.messages import ForwardedMembership, ForwardedProposals, Message
from pyraftkv.engine import Home
from pyraftkv.log.base import Recovered, Storage
from pyraftkv.node.admission import Admission, ForwardGate, check_size
from pyraftkv.node.applier import Applier
from pyraftkv.node.awakening import Awakening
from pyraftkv.node.bootstrap import GENESIS_TERM
from pyraftkv.node.changes import ChangeDesk, returned_to
from pyraftkv.node.config import NodeConfig, core_config
from pyraftkv.node.decisions import Decisions
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.driver import Driver
from pyraftkv.node.events import EventHub, RoleChanged, SnapshotInstalled, SnapshotWritten
from pyraftkv.node.freshness import Freshness
from pyraftkv.node.guard import Guard
from pyraftkv.node.inbox import Inbox
from pyraftkv.node.leadership import Leadership
from pyraftkv.node.lease import LeaderLease
from pyraftkv.node.lease_desk import LeaseDesk
from pyraftkv.node.peers import Peers
from pyraftkv.node.pledges import Pledges
from pyraftkv.node.reads import LongReads, ReadRounds
from pyraftkv.node.snapshots import SnapshotReceiver, SnapshotSender, SnapshotTaker
from pyraftkv.node.succession import Succession
from pyraftkv.node.upkeep import Upkeep, as_first
from pyraftkv.node.watchdog import Watchdog
from pyraftkv.node.watches import WatchHub
from pyraftkv.node.witness import SingleCopyWatch, WitnessDuty, of_witness
from pyraftkv.protocol import (
    PRIORITY_DEFAULT,
    DecidedCommand,
    LeaseAsk,
    LeaseTold,
    MembersCommand,
    MembersResult,
    Pledge,
    RegisterSession,
    SnapshotAck,
    SnapshotChunk,
    StateHash,
    TransferRequest,
)
from pyraftkv.replica import DecisionApplied, Effect, Replica, ReplicaSnapshot
from pyraftkv.roster import Roster
from pyraftkv.sessions import Outcome
from pyraftkv.settings import RulesCommand
from pyraftkv.statemachine import Operate
from pyraftkv.store.commands import Command
from pyraftkv.store.values import LeaseGranted
from pyraftkv.transport.base import Transport
from pyraftkv.witness import WitnessReplica
from pyraftkv.writes import PendingWrites, SessionKeeper, deadline_of

logger = logging.getLogger("pyraftkv.node")


class Member:
    """Everything that runs between `Node.start` and `Node.close`."""

    def __init__(
        self,
        recovered: Recovered,
        replica: Replica,
        *,
        member_id: int,
        storage: Storage,
        transport: Transport,
        peers: Peers,
        events: EventHub,
        config: NodeConfig,
        rng: random.Random,
        members_changed: Callable[[Roster], object],
        disk: DiskHealth,
        clock: Callable[[], float] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.home = Home()
        self.peers = peers
        self._events = events
        self.config = config
        self._rng = rng
        self.disk = disk
        self._members_changed = members_changed
        self.storage = storage
        self._forward_gate = ForwardGate(loop)
        self.soft_state_changed = asyncio.Event()
        self.inbox = inbox = Inbox(loop)
        witness = isinstance(replica, WitnessReplica)
        floor = replica.floor if isinstance(replica, WitnessReplica) else 0
        self.raft = Raft(core_config(member_id, config, witness=witness), stored=_stored(recovered, floor), rng=rng)
        self.sessions = sessions = SessionKeeper(
            register=self._register, situation=lambda: "no leader answered in time"
        )
        self.writes = PendingWrites(
            loop, send=self._propose, gather=inbox.wake, expired=sessions.expired, retry_seconds=config.retry_seconds
        )
        self.decisions = Decisions(self.raft, loop=loop, feed=inbox.put)
        self.changes = ChangeDesk(self.raft, replica=lambda: self.replica, feed=inbox.put, propose=inbox.propose)
        self.applier = Applier(
            replica, self, loop=loop, read_snapshot=storage.read_snapshot, slice_seconds=config.apply_slice_seconds
        )
        self._wire_reads(clock)
        self.watches = WatchHub(self.replica.store, loop)
        self._wire_guard(storage, transport)
        self.admission = Admission(
            self.raft, applier=self.applier, peers=peers, integrity=self.guard.integrity, disk=disk
        )
        self._wire_snapshots(storage, transport, recovered.snapshot_bytes)
        self._wire_leadership(transport)
        self._wire_upkeep()
        self.leases = LeaseDesk(self, loop=loop, send=transport.send, config=config)
        self._wire_driver(storage, transport)
        if recovered.snapshot is not None and self._goes_first(replica.membership):
            self.inbox.put(Campaign())

    def _wire_driver(self, storage: Storage, transport: Transport) -> None:
        self.driver = Driver(
            self.raft,
            loop=self._loop,
            inbox=self.inbox,
            storage=storage,
            transport=transport,
            applier=self.applier,
            reads=self.reads,
            writes=self.writes,
            snapshots=self.sender,
            lease=self.lease,
            disk=self.disk,
            led=self._led,
            returned=self._returned,
        )

    def _wire_reads(self, clock: Callable[[], float] | None) -> None:
        config, loop, raft, applier = self.config, self._loop, self.raft, self.applier
        self.reads = ReadRounds(
            loop,
            send=self._ask_read_index,
            retry_seconds=config.retry_seconds,
            first_context=self._rng.getrandbits(48),
            applied_index=applier.replica.applied_index,
        )
        self.lease: LeaderLease | None = None
        if config.lease_reads and clock is not None:
            self.lease = LeaderLease(
                raft, clock=clock, seconds=config.lease_seconds, applied=lambda: applier.replica.applied_index
            )
        self.freshness = Freshness(applier, loop=loop, rounds=self.reads, lease=self.lease, deadline=self.deadline)
        self.long_reads = LongReads()

    def _wire_guard(self, storage: Storage, transport: Transport) -> None:
        self.guard = Guard(
            self.raft,
            applier=self.applier,
            storage=storage,
            transport=transport,
            peers=self.peers,
            rng=self._rng,
            emit=self._events.emit,
            decide=self.decide,
            silence=self._silence,
            repaired=self._repaired,
        )

    def _wire_snapshots(self, storage: Storage, transport: Transport, snapshot_bytes: int) -> None:
        send, feed = transport.send, self.inbox.put
        config, raft = self.config, self.raft
        self.duty: WitnessDuty | None = None
        if isinstance(self.replica, WitnessReplica):
            self.duty = WitnessDuty(
                raft,
                replica=lambda: self.replica,
                storage=storage,
                bytes_max=config.witness_log_bytes_max,
                feed=feed,
            )
            config = of_witness(config)
        self.single_copy = SingleCopyWatch(raft, emit=self._events.emit)
        self.taker = SnapshotTaker(storage, config, taken=self._snapshot_taken, last_size_bytes=snapshot_bytes)
        self.sender = SnapshotSender(
            storage,
            config,
            send=send,
            feed=feed,
            is_sound=lambda: self.is_sound,
            is_witness=lambda peer: peer in raft.membership.witnesses,
        )
        self.receiver = SnapshotReceiver(storage, send=send, feed=feed, is_covered=self._is_covered, term=self._term)

    def _wire_leadership(self, transport: Transport) -> None:
        config, loop, raft = self.config, self._loop, self.raft
        self.leadership = Leadership(
            raft,
            loop=loop,
            name=self.peers.name,
            priority=self._priority,
            election_seconds=config.election_timeout_seconds,
            feed=self.inbox.put,
            send=transport.send,
            emit=self._events.emit,
        )
        self.awakening = Awakening(
            raft,
            connected=self.peers.connected,
            heartbeat_seconds=config.heartbeat_seconds,
            rng=self._rng,
            feed=self.inbox.put,
        )
        self.succession = Succession(
            raft, loop=loop, rng=self._rng, honours_leases=config.lease_reads, feed=self.inbox.put
        )
        self.pledges = Pledges(raft, send=transport.send)
        self.watchdog = Watchdog(window_seconds=config.election_timeout_seconds, at=loop.time())

    def _wire_upkeep(self) -> None:
        settings = self.config.settings
        self.upkeep = Upkeep(
            self.raft,
            loop=self._loop,
            replica=lambda: self.replica,
            decide=self.decide,
            offered=lambda: self.peers.feature_level,
            first_settings=as_first(settings) if settings is not None else None,
            emit=self._events.emit,
        )

    def _priority(self, member_id: int) -> int:
        info = self.replica.roster.members.get(member_id)
        return info.priority if info is not None else PRIORITY_DEFAULT

    @property
    def replica(self) -> Replica:
        return self.applier.replica

    @property
    def is_sound(self) -> bool:
        """Whether this member's state is to be believed, as far as anybody knows."""
        return not self.guard.integrity.reason

    def deadline(self, timeout: float | None) -> float:
        """Return when a call that may take ``timeout`` seconds (None: the default) is to be given up.

        Raises: `InvalidRequest` for a NaN: no time is ever past that.
        """
        # By the loop at hand: to ask asyncio for the running one costs a system call on Python 3.11.
        return deadline_of(self._loop.time(), self.config.request_timeout_seconds if timeout is None else timeout)

    # --- Writing ---------------------------------------------------------------------------------------------------

    async def open_session(self, deadline: float) -> int:
        """Register a session through the log and return its id. Raises `NoLeader`, `WriteTimeout`."""
        nonce = self._rng.getrandbits(62)
        payload = codec.encode_logged(RegisterSession(nonce))
        session_id = await self.writes.submit(0, nonce, payload, deadline)
        assert isinstance(session_id, int)
        return session_id

    async def _register(self, deadline: float) -> int:
        try:
            return await self.open_session(deadline)
        except errors.NodeFailed as error:
            raise errors.Closed(f"nothing was written: {error}") from None
        except errors.MaybeApplied as error:
            raise errors.NoLeader(f"nothing was written: {error}") from None

    async def write(self, command: Command | MembersCommand | RulesCommand | Operate, timeout: float | None) -> Outcome:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        deadline = self.deadline(timeout)
        session = await self.sessions.with_room(deadline)
        self.writes.seal()
        sequence, payload = session.encode(command)
        check_size(payload)
        return await self.writes.submit(session.id, sequence, payload, deadline)

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        result = await self.write(command, timeout)
        assert isinstance(result, MembersResult)
        return result

    async def decide(self, command: DecidedCommand) -> Outcome:
        """Do what this member decides as leader, in this term or not at all; return what it came to.

        Raises: what it was refused with; `NoLeader` if this member does not lead; `Overloaded`; `MaybeApplied` if it
        leads no longer.
        """
        return await self.decisions.decide(command)

    def _returned(self, payloads: list[bytes]) -> None:
        """The machine did not take these."""
        self.decisions.returned(payloads)
        self.writes.returned(payloads)
        for payload in payloads:
            owner = returned_to(payload)
            if owner is not None:
                self.writes.declined(*owner)

    def decision_applied(self, decision: DecisionApplied) -> None:
        """What some leader decided by itself is done, or is not to be."""
        self.decisions.applied(decision)

    def _propose(self, session: int, sequence: int, payload: bytes) -> bool:  # noqa: ARG002  (the payload names them)
        if codec.is_members_command(payload):
            return self.changes.offer(payload)
        return self.inbox.propose(payload)

    # --- What the parts tell ---------------------------------------------------------------------------------------

    def received(self, messages: Sequence[PeerMessage]) -> None:
        """Take what a peer sent."""
        inputs: list[Input] = []
        for message in messages:
            if type(message) in _CORE_ALONE:
                inputs.append(message)  # type: ignore[arg-type]
            elif isinstance(message, ForwardedProposals):
                inputs.append(self._forward_gate.passed(message))
            elif isinstance(message, SnapshotAck):
                self.sender.acknowledged(message)
            elif isinstance(message, InstallSnapshot | SnapshotChunk):
                self.receiver.received(message)
            elif isinstance(message, StateHash):
                self.guard.integrity.received(message)
            elif isinstance(message, Pledge):
                self.peers.pledged(message)
            elif isinstance(message, LeaseAsk | LeaseTold):
                self.leases.received(message)
            elif isinstance(message, TransferRequest):
                self.leadership.requested(message)
            elif isinstance(message, ForwardedMembership):
                admitted = self.changes.admit(message)
                inputs += [admitted] if admitted is not None else []
        if inputs:
            self.driver.deliver(*inputs)

    def peer_lost(self, member_id: int) -> None:
        """Messages to a peer were lost."""
        self.inbox.put(PeerUnreachable(member_id))

    def effects_applied(self, effects: list[Effect], applied: Applied) -> None:
        """A slice was applied: resolve who waits for it, wake readers and watchers, tell the core."""
        self.inbox.put(applied, urgent=applied.membership is not None or applied.index < self.raft.commit)
        if applied.membership is not None:
            self._follow(applied.membership)
        resolve = self.writes.resolve
        for effect in effects:
            resolve(effect.session, effect.sequence, effect.outcome)
            if type(effect.outcome) is LeaseGranted:
                self.leases.keeper.granted(effect.outcome.id)
        self.sessions.acknowledge(self.writes)
        self.watches.advance()
        self.freshness.applied(applied.index)
        self.guard.integrity.applied()

    def _follow(self, membership: Membership) -> None:
        """The members may be others from here on.

        1. Of two members the leader removes the other one, which is told so, and stops for good.
        2. The leader's power fails. Its disk has the change, and no commit index that covers it: none was saved since.
        3. It comes back as one of two, and the vote that it needs is nobody's any more.

        So a leader has one more entry saved, an empty one: the commit index goes with it, here and at the others.
        """
        self._members_changed(self.replica.roster)
        if self.raft.role is LEADER:
            self.inbox.propose(b"")
        if self._goes_first(membership):
            self.inbox.put(Campaign())

    def _goes_first(self, membership: Membership) -> bool:
        """Whether nobody is gained by waiting for an election timeout: nobody else votes, or nobody led before."""
        voters = (membership.voters | membership.outgoing) - membership.witnesses
        return voters == frozenset({self.raft.id}) or (
            self.raft.term <= GENESIS_TERM and self.raft.id == min(voters, default=0)
        )

    def replica_restored(self, replica: Replica, snapshot: SnapshotMeta) -> None:
        """The state now comes from a snapshot: writes that it covers are resolved from its sessions."""
        self.guard.integrity.renewed()
        self.watches.replace_store(replica.store)
        for session, sequence in self.writes.under_way():
            outcome = replica.sessions.outcome(session, sequence)
            if outcome is not None:
                self.writes.resolve(session, sequence, outcome)
        self.inbox.put(Applied(snapshot.index, replica.membership))
        self._members_changed(replica.roster)
        self.freshness.applied(snapshot.index)
        self.freshness.compacted()
        self._events.emit(SnapshotInstalled(snapshot.index))

    def _silence(self, reason: str) -> None:
        """Nothing more is answered, and another member is to lead: this member's state is wrong."""
        self.leadership.give_up("quarantine")

        def refused() -> errors.Quarantined:
            return errors.Quarantined(f"this member answers nothing: {reason}")

        self.writes.drop_all(lambda sent: errors.NodeFailed(str(refused())) if sent else refused())
        self.sessions.forget()
        self.freshness.fail_all(refused)
        self.watches.close(refused)
        self.sender.stop_all()

    def _repaired(self, replica: Replica) -> None:
        """The state is another member's, and right."""
        self.watches.replace_store(replica.store)
        self._members_changed(replica.roster)
        if not self.taker.is_running:
            self.taker.start(replica.snapshot())  # what is on the disk may be of the wrong state

    def _led(self, soft: SoftState) -> None:
        """Role, term or leader changed."""
        if soft.role is not LEADER:
            self.sender.stop_all()
        self.decisions.led()
        self.leases.led()
        if soft.leader:
            self.writes.resend()
            self.reads.retry()
        role = soft.role.name.lower().replace("_", "-")
        leader = self.peers.name(soft.leader)
        logger.info("%s in term %d, leader %s", role, soft.term, leader or "unknown")
        self._events.emit(RoleChanged(role, soft.term, soft.leader, leader))
        self.soft_state_changed.set()
        self.leadership.changed()

    def _snapshot_taken(self, taken: SnapshotTaken, size_bytes: int) -> None:
        self.inbox.put(taken)
        self._events.emit(SnapshotWritten(taken.snapshot.index, size_bytes))

    def _is_covered(self, snapshot: SnapshotMeta) -> bool:
        return snapshot.index <= self.raft.commit

    def _term(self) -> int:
        return self.raft.term

    def _ask_read_index(self, context: int) -> None:
        self.inbox.put(ReadIndex(context))

    # --- Running ---------------------------------------------------------------------------------------------------

    @property
    def is_level(self) -> bool:
        """Whether this member follows somebody, and has applied all that it knows to be committed."""
        return self.raft.leader != NO_NODE and 0 < self.raft.commit <= self.replica.applied_index

    async def close(self, error: Callable[[bool], errors.PyraftkvError]) -> None:
        """Stop what runs beside the loops, and fail who still waits."""
        self.applier.close()
        self.leadership.close()
        self.succession.close()
        self.writes.fail_all(error)
        self.decisions.fail_all(error)
        self.sessions.forget()
        self.freshness.fail_all(lambda: error(False))
        self.watches.close(lambda: errors.Closed("the node stopped"))
        await self.guard.close()
        await self.sender.close()
        await self.taker.close()
        await self.sessions.close()
        await self.upkeep.close()
        await self.leases.close()

    async def take_snapshot(self) -> None:
        """Write a snapshot of the present state now, unless one is being written; wait until it is done.

        Raises: `StorageError` if it could not be written, `Closed`.
        """
        await self.applier.between_entries()
        self.guard.integrity.check()
        if not self.taker.is_running:
            self.taker.start(self.replica.snapshot())
        await self.taker.wait()

    async def pin(self) -> ReplicaSnapshot:
        """Return the state as of the entry that was applied last; close it."""
        await self.applier.between_entries()
        return self.replica.snapshot()


_CORE_ALONE = frozenset(get_args(Message)) - {ForwardedMembership, ForwardedProposals, InstallSnapshot}
"""Messages that concern the Raft machine and nobody else: nearly all."""


def _stored(recovered: Recovered, floor: int) -> Stored:
    return Stored(
        hard_state=recovered.hard_state,
        snapshot=recovered.snapshot,
        entries=recovered.entries,
        first_index=recovered.first_index,
        promised=recovered.identity.has_promised,
        floor=floor,
    )
