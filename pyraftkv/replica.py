"""The replica: everything the members of a cluster must agree on, as a function of the log.

It decodes committed entries and applies them: commands to the store, once each (see `sessions`), the cluster's
identity and members (`roster`), its settings and alarms (`rules`). Two replicas that applied the same entries are
equal, whatever their Python, their slices or their clock: nothing here reads anything but the log.

A long command (a delete of a million keys is one entry) is applied in slices: `apply` returns `BUSY`, and `step` is
called until it returns the effect. Readers see nothing of it before it is complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any, ClassVar, Final
from zlib import crc32

from pyraftkv import codec, errors
from pyraftkv._record import record
from pyraftkv.core import HOLLOW, MEMBERSHIP, Entry, Membership
from pyraftkv.machines import Machines, MachinesRestorer, parts_of
from pyraftkv.protocol import (
    ChangeMembers,
    Decided,
    DecidedCommand,
    Envelope,
    Genesis,
    LeaveJoint,
    Logged,
    Recover,
    RefuseChange,
    RegisterSession,
    StampedChange,
)
from pyraftkv.roster import Roster
from pyraftkv.rules import Rules
from pyraftkv.sessions import EXPIRED, Outcome, Refusal, Sessions, dump, fingerprint_of, session_id_of
from pyraftkv.settings import ChangeAlarm, ChangeSettings, RulesResult
from pyraftkv.statemachine import Operate, Operated
from pyraftkv.store import Restorer, Store, Work
from pyraftkv.store.checks import HASH_MASK
from pyraftkv.store.commands import CheckpointLeases, ExpireLeases, GrantLease, LoggedCommand
from pyraftkv.store.values import LoggedResult

CHECK_ENTRIES = 1024
"""After so many entries members compare their states. The same on all of them."""

CHECKPOINTS_MAX = 8
"""Hashes that are kept for others who come to the same entry later, or sooner."""

TABLES_FACTOR = 0x9E37_79B9_7F4A_7C15
"""Odd: spreads the tables' hash over that of the state."""

SNAPSHOT_VERSION = 10

PIECE_BYTES_MAX = 256 << 10
"""A part of the sessions that is longer is cut into pieces of this length: an outcome may be as long as a request."""

_GOES_ON, _ENDS = b"\0", b"\1"
"""What a piece begins with: whether its part goes on in the next chunk."""


class Busy(Enum):
    """The type of `BUSY`."""

    BUSY = "busy"


BUSY: Final = Busy.BUSY
"""The entry is being applied in slices: call `Replica.step`."""


@record
class Effect:
    """What an entry came to, for whoever waits for it."""

    session: int
    """0 when a session was opened: `sequence` is then its nonce and `outcome` its id."""
    sequence: int
    outcome: Outcome


@record
class MembershipApplied:
    """An entry may have changed who the members are: this is in force from here on."""

    membership: Membership
    effect: Effect | None = None
    """For whoever waits for the command."""


@record
class DecisionApplied:
    """What a leader's decision came to, for the leader that made it."""

    term: int
    number: int
    outcome: Outcome


Consequence = Effect | DecisionApplied | MembershipApplied | None

Finish = Callable[[Outcome], Consequence]
"""Remembers the outcome of a command, and makes of it what is told."""

STALE = Refusal.of(errors.NotApplied("it was decided in another term, by a leader that is none any more"))


@record
class Checkpoint:
    """What the state was as of an entry."""

    index: int
    hash: int


class Replica:
    """The store, the sessions, who the members are, what rules they have, and machines of the user's.

    Invariant: everything reflects exactly the entries up to `applied_index`, except while `BUSY`, when the store's
    published revision still shows the state before the entry under way.
    """

    def __init__(self, machines: Machines | None = None) -> None:
        self.store = Store()
        self.machines = machines or Machines()
        self.sessions = Sessions()
        self.roster = Roster()
        self.rules = Rules()
        self.applied_index = 0
        self.applied_term = 0
        self.checkpoints: deque[Checkpoint] = deque(maxlen=CHECKPOINTS_MAX)
        """The hashes as of the last entries whose index is a multiple of `CHECK_ENTRIES`, in order."""
        self._under_way: tuple[Entry, Finish, Work[LoggedResult] | Work[int]] | None = None

    @property
    def membership(self) -> Membership:
        """The configuration in force."""
        return self.roster.membership

    def apply(self, entry: Entry) -> Consequence | Busy:
        """Apply the next committed entry.

        Raises:
            UnsupportedFormat: The command is of a newer version; the member must stop rather than skip it.
        """
        assert entry.index == self.applied_index + 1, (entry.index, self.applied_index)
        assert self._under_way is None
        assert entry.kind is not HOLLOW, "who has a state machine needs every payload"
        payload = entry.payload
        consequence: Consequence | Busy = None
        if payload:
            logged = codec.decode_logged(payload)
            consequence = self._handlers[type(logged)](self, entry, logged)
            if consequence is BUSY:
                return BUSY
        elif entry.kind is MEMBERSHIP:
            self.roster.leave(index=entry.index)
            consequence = MembershipApplied(self.membership)
        self._is_applied(entry)
        return consequence

    def step(self, budget: int) -> Consequence | Busy:
        """Go on with the entry under way, touching about `budget` keys."""
        assert self._under_way is not None
        entry, finish, work = self._under_way
        outcome: Outcome | None
        try:
            outcome = work.step(budget)
        except errors.NotApplied as error:
            outcome = Refusal.of(error)
        if outcome is None:
            return BUSY
        self._under_way = None
        consequence = finish(outcome)
        self._is_applied(entry)
        return consequence

    def _is_applied(self, entry: Entry) -> None:
        self.applied_index = entry.index
        self.applied_term = entry.term
        if not entry.index % CHECK_ENTRIES:
            self.checkpoints.append(Checkpoint(entry.index, self.state_hash))

    @property
    def state_hash(self) -> int:
        """The hash of what members must agree on, in 63 bits; the sessions' outcomes are left out. O(members).

        To be asked for between entries. Equal logs give equal ones, whatever became of the replica meanwhile.
        """
        tables = [self.roster.plain(), self.rules.plain(), len(self.sessions), *self.machines.plain()]
        return (self.store.state_hash + crc32(codec.encode_table(tables)) * TABLES_FACTOR) & HASH_MASK

    def hash_at(self, index: int) -> int | None:
        """Return the hash as of an entry, if it is one of the last that are kept."""
        return next((checkpoint.hash for checkpoint in self.checkpoints if checkpoint.index == index), None)

    @property
    def is_busy(self) -> bool:
        return self._under_way is not None

    def _apply_envelope(self, entry: Entry, envelope: Envelope) -> Consequence | Busy:
        sequence = envelope.sequence
        session = self.sessions.use(envelope.session)
        if session is None:
            return Effect(envelope.session, sequence, EXPIRED)
        fingerprint = fingerprint_of(entry.payload)
        known = session.recall(sequence, envelope.acked_below, fingerprint)
        if known is not None:
            return Effect(session.id, sequence, known)
        if isinstance(envelope.command, ChangeMembers | LeaveJoint):
            return None  # No leader vouches for it; its proposer offers it again.

        def finish(outcome: Outcome) -> Effect:
            session.remember(sequence, fingerprint, outcome)
            return Effect(session.id, sequence, outcome)

        return self._carry_out(entry, envelope.command, finish, by_leader=False)

    def _apply_decided(self, entry: Entry, decided: Decided) -> Consequence | Busy:
        """Do what a leader decided, unless another one's term has begun since."""

        def finish(outcome: Outcome) -> DecisionApplied:
            return DecisionApplied(decided.term, decided.number, outcome)

        if decided.term != entry.term:
            return finish(STALE)
        return self._carry_out(entry, decided.command, finish, by_leader=True)

    def _carry_out(
        self, entry: Entry, command: LoggedCommand | DecidedCommand | Operate, finish: Finish, *, by_leader: bool
    ) -> Consequence | Busy:
        try:
            if isinstance(command, Operate):
                return finish(self._operate(command, index=entry.index))
            result = self._do(command, by_leader=by_leader)
        except (errors.NotApplied, errors.MaybeApplied) as error:
            return finish(Refusal.of(error))
        if isinstance(result, Work):
            self._under_way = (entry, finish, result)
            return BUSY
        return finish(result)

    def _do(
        self, command: LoggedCommand | DecidedCommand, *, by_leader: bool
    ) -> LoggedResult | RulesResult | int | Work[LoggedResult] | Work[int]:
        """Apply a command that is met for the first time. Raises `NotApplied`."""
        if isinstance(command, ChangeSettings | ChangeAlarm):
            if by_leader and isinstance(command, ChangeAlarm) and command.is_raised:
                self.machines.weigh()
            return self.rules.decide(command) if by_leader else self.rules.apply(command)
        self.rules.admit(command)
        if isinstance(command, ExpireLeases | CheckpointLeases):
            return self.store.keep_leases(command)
        if isinstance(command, GrantLease):
            command = replace(command, ttl=max(command.ttl, self.rules.settings.lease_ttl_seconds_min))
        return self.store.apply(command)

    def admit(self, command: Operate, *, index: int) -> None:
        """Refuse an operation that alarms stand against. Raises `Corrupt`, `NoSpace`, `UnsupportedFormat`."""
        if not self.rules.is_quiet:
            grows = self.machines.takes_room(command, index=index, revision=self.store.published_revision)
            self.rules.admit(command, grows=grows)

    def _operate(self, command: Operate, *, index: int) -> Operated:
        """Apply an operation to a machine. Raises `Corrupt`, `NoSpace`, what it raises, `UnsupportedFormat`."""
        self.admit(command, index=index)
        revision, is_full = self.store.published_revision, not self.rules.is_quiet
        return self.machines.apply(command, index=index, revision=revision, is_full=is_full)

    def _change_members(self, entry: Entry, stamped: StampedChange) -> Consequence:
        """Change the members, whatever the sessions say: they are asked only what to answer."""
        assert entry.kind is MEMBERSHIP, "what may change the membership is proposed as such: the leader counts it"
        envelope = codec.members_envelope(stamped.change)
        assert envelope is not None, "the codec lets nothing else through"
        assert isinstance(envelope.command, ChangeMembers | LeaveJoint), "as this"
        outcome: Outcome | None
        try:
            outcome = self.roster.follow(stamped, envelope.command, index=entry.index)
        except errors.NotApplied as error:
            outcome = Refusal.of(error)
        if outcome is None:
            return None
        return MembershipApplied(self.membership, self._answer(envelope, fingerprint_of(stamped.change), outcome))

    def _answer(self, envelope: Envelope, fingerprint: int, outcome: Outcome) -> Effect:
        """Remember what a change of the members came to, unless it has come to something already."""
        session = self.sessions.use(envelope.session)
        if session is None:
            return Effect(envelope.session, envelope.sequence, EXPIRED)
        known = session.recall(envelope.sequence, envelope.acked_below, fingerprint)
        if known is None:
            session.remember(envelope.sequence, fingerprint, outcome)
        return Effect(session.id, envelope.sequence, outcome if known is None else known)

    def _open_session(self, entry: Entry, command: RegisterSession) -> Effect:
        session_id = session_id_of(index=entry.index, nonce=command.nonce)
        self.sessions.open(session_id)
        return Effect(0, command.nonce, session_id)

    def _refuse_change(self, entry: Entry, refuse: RefuseChange) -> Effect:
        """Remember a refusal as what a command came to, unless it has come to something already."""
        assert entry.kind is MEMBERSHIP, "a leader takes up no change before its refusals are applied"
        session = self.sessions.use(refuse.session)
        if session is None:
            return Effect(refuse.session, refuse.sequence, EXPIRED)
        outcome = session.recall(refuse.sequence, refuse.acked_below, refuse.fingerprint)
        if outcome is None:
            outcome = Refusal(refuse.name, refuse.message)
            session.remember(refuse.sequence, refuse.fingerprint, outcome)
        return Effect(session.id, refuse.sequence, outcome)

    def _found(self, entry: Entry, genesis: Genesis) -> MembershipApplied:
        assert entry.index == 1, "a cluster begins once"
        self.roster.found(genesis)
        self.roster.last_change = entry.index
        return MembershipApplied(self.membership)

    def _recover(self, entry: Entry, command: Recover) -> MembershipApplied:
        """Begin another cluster with all the keys, sessions and revisions of this one, and one of its members."""
        self.roster.recover(command)
        self.roster.last_change = entry.index
        return MembershipApplied(self.membership)

    _handlers: ClassVar[dict[type[Logged], Callable[[Any, Entry, Any], Consequence | Busy]]] = {
        Envelope: _apply_envelope,
        Decided: _apply_decided,
        RegisterSession: _open_session,
        RefuseChange: _refuse_change,
        StampedChange: _change_members,
        Genesis: _found,
        Recover: _recover,
    }

    # --- Snapshots -------------------------------------------------------------------------------------------------

    def is_worth_a_snapshot(self, *, since: int) -> bool:  # noqa: ARG002  (a witness has more to say)
        """Whether a new snapshot would let go of enough, if there is one at index ``since``."""
        return True

    def restorer(self, *, index: int, term: int) -> ReplicaRestorer:
        """Return what builds another replica of this kind of a snapshot."""
        return ReplicaRestorer(index=index, term=term, machines=self.machines.anew())

    def snapshot(self) -> ReplicaSnapshot:
        """Pin the present state; iterate over the result in slices while further entries apply."""
        assert not self.is_busy, "a snapshot stands between entries"
        return ReplicaSnapshot(self)


class ReplicaSnapshot:
    """Every table as of one entry: nothing is encoded before it is asked for, and everything is pinned now."""

    def __init__(self, replica: Replica) -> None:
        self.index = replica.applied_index
        self.term = replica.applied_term
        self.membership = replica.membership
        self.cluster_id = replica.roster.cluster_id
        self._header = codec.encode_table([SNAPSHOT_VERSION, replica.roster.plain(), replica.rules.plain()])
        self._sessions = replica.sessions.pin()
        self._machines = replica.machines.pin()
        self._store = replica.store.snapshot()
        self.revision = self._store.revision

    def chunks(self) -> Iterator[bytes]:
        """Yield the tables, then the store: each chunk costs at most a few milliseconds."""
        yield from self.tables()
        yield from self._store

    def tables(self) -> Iterator[bytes]:
        """Yield the header, then the sessions in pieces, whose end is an empty part, then the machines."""
        yield self._header
        for part in dump(self._sessions):
            yield from _pieces(codec.encode_table(part))
        yield from _pieces(codec.encode_table([]))
        yield from parts_of(self._machines)

    def close(self) -> None:
        """Let go of the pinned revision."""
        self._store.close()


def _pieces(part: bytes) -> Iterator[bytes]:
    last = (len(part) - 1) // PIECE_BYTES_MAX * PIECE_BYTES_MAX
    for start in range(0, len(part), PIECE_BYTES_MAX):
        yield (_ENDS if start == last else _GOES_ON) + part[start : start + PIECE_BYTES_MAX]


class ReplicaRestorer:
    """Builds a second replica from a snapshot's chunks; the first one serves until it is swapped in."""

    def __init__(self, *, index: int, term: int, machines: Machines | None = None) -> None:
        self._machines = machines or Machines()
        self._filling: MachinesRestorer = self._machines.restorer()
        self._index = index
        self._term = term
        self._replica: Replica | None = None
        self._part: bytearray | None = bytearray()
        """The pieces so far of a part of the sessions; None behind the last part."""
        self._store = Restorer()

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises `SnapshotCorruption`, `UnsupportedFormat`."""
        if self._replica is None:
            self._replica = self._begin(chunk)
        elif self._part is None and self._filling.is_done:
            self._store.feed(chunk)
        elif self._part is None:
            self._filling.feed(chunk)
        else:
            self._part += memoryview(chunk)[1:]
            if chunk[:1] == _ENDS:
                part = codec.decode_table(bytes(self._part))
                self._replica.sessions.load(part)
                self._part = bytearray() if part else None

    def _begin(self, chunk: bytes) -> Replica:
        table = codec.decode_table(chunk)
        if not table or table[0] != SNAPSHOT_VERSION:
            raise errors.UnsupportedFormat("the snapshot was written by another version")
        replica = Replica(self._machines)
        _, roster, rules = table
        replica.roster = Roster.of_plain(roster)
        replica.rules = Rules.of_plain(rules)
        replica.applied_index = self._index
        replica.applied_term = self._term
        return replica

    def finish(self) -> Replica:
        """Return the restored replica. Raises `SnapshotCorruption` if chunks are missing."""
        if self._replica is None:
            raise errors.SnapshotCorruption("the snapshot is empty")
        self._replica.store = self._store.finish()
        return self._replica
