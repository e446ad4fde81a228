"""The replica: equal logs give equal replicas, whatever their slices; each command counts once."""

from __future__ import annotations

import random

import pytest

from pyraftkv import Compare, CompareResult, CompareTarget, DeleteRange, PutKey, RangeQuery, codec, errors
from pyraftkv.core import HOLLOW, MEMBERSHIP, NORMAL, Entry, EntryKind, Membership
from pyraftkv.core.membership import EXPLICIT, JOINT
from pyraftkv.log.snapshot import CHUNK_BYTES_MAX
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    Decided,
    DecidedCommand,
    Envelope,
    Genesis,
    LeaveJoint,
    MemberInfo,
    MembersCommand,
    MembersResult,
    PromoteMember,
    Recover,
    RefuseChange,
    RegisterSession,
    RemoveMember,
    StampedChange,
    UpdateMember,
)
from pyraftkv.replica import BUSY, STALE, DecisionApplied, Effect, MembershipApplied, Replica, ReplicaRestorer
from pyraftkv.sessions import EXPIRED, Refusal, fingerprint_of
from pyraftkv.settings import (
    Alarm,
    AlarmKind,
    ChangeAlarm,
    ChangeSettings,
    CompactionMode,
    RulesCommand,
    RulesResult,
    Settings,
)
from pyraftkv.store import Work
from pyraftkv.store.commands import Command, Compact, Transaction
from pyraftkv.store.values import CompactResult, DeleteResult, PutResult, RangeResult, TxnResult

GENESIS = Genesis(0xC1, [MemberInfo(1, "n1", "h:1", 11), MemberInfo(2, "n2", "h:2", 22)])


class Log:
    """Numbers entries and applies them to a replica."""

    def __init__(self, replica: Replica | None = None, *, budget: int = 10_000) -> None:
        self.replica = replica or Replica()
        self.entries: list[Entry] = []
        self.budget = budget

    def add(self, payload: bytes, kind: EntryKind = NORMAL) -> object:
        """Append and apply one entry; return what it came to."""
        index = self.replica.applied_index + 1
        entry = Entry(index, 1, payload, kind)
        self.entries.append(entry)
        consequence = self.replica.apply(entry)
        while consequence is BUSY:
            consequence = self.replica.step(self.budget)
        return consequence

    def found(self) -> int:
        """Begin the cluster and open a session; return its id."""
        self.add(codec.encode_logged(GENESIS), MEMBERSHIP)
        effect = self.add(codec.encode_logged(RegisterSession(99)))
        assert isinstance(effect, Effect)
        assert isinstance(effect.outcome, int)
        return effect.outcome

    def change(self, session: int, sequence: int, command: MembersCommand) -> object:
        """Apply a command on the members, as a leader proposes it, and return its outcome."""
        payload = codec.encode_logged(Envelope(session, sequence, 1, command))
        if not self.replica.sessions.is_new(session, sequence):
            effect = self.add(payload)
            assert isinstance(effect, Effect)
            return effect.outcome
        applied = self.add(self.stamped(payload), MEMBERSHIP)
        assert isinstance(applied, MembershipApplied)
        assert applied.membership == self.replica.membership
        assert applied.effect is not None
        return applied.effect.outcome

    def stamped(self, payload: bytes) -> bytes:
        """Return a change of the members with the stamp that a leader puts on it now."""
        return codec.encode_logged(StampedChange(self.replica.roster.last_change, payload))

    def do(self, session: int, sequence: int, command: Command | RulesCommand, acked_below: int = 1) -> object:
        """Apply a command and return its outcome."""
        effect = self.add(codec.encode_logged(Envelope(session, sequence, acked_below, command)))
        assert isinstance(effect, Effect)
        assert (effect.session, effect.sequence) == (session, sequence)
        return effect.outcome


def state_of(replica: Replica) -> tuple[object, ...]:
    """Return everything there is to a replica: its tables, and what can be read of the store at every revision."""
    snapshot = replica.snapshot()
    tables = list(snapshot.tables())
    snapshot.close()
    store = replica.store
    readable = range(max(store.compact_revision, 1), store.published_revision + 1)
    history = [whole(store.read(RangeQuery(b"\0", b"\0", revision=revision))) for revision in readable]
    return tables, replica.applied_index, replica.applied_term, store.compact_revision, history


def whole(result: RangeResult | Work[RangeResult]) -> RangeResult:
    """Return the result of a read, however long."""
    while isinstance(result, Work):
        result = result.step(10_000) or result
    return result


def test_genesis_names_the_cluster_and_its_members() -> None:
    """Entry 1 sets the cluster's id, its members, and the membership that the core is told of."""
    log = Log()
    applied = log.add(codec.encode_logged(GENESIS), MEMBERSHIP)
    assert isinstance(applied, MembershipApplied)
    assert (applied.membership.voters, applied.membership.learners) == (frozenset({1, 2}), frozenset())
    assert log.replica.roster.cluster_id == 0xC1
    assert log.replica.membership == applied.membership


def test_a_recovery_begins_another_cluster_with_everything_of_this_one() -> None:
    """It has another id and one member, who votes whatever it was before; keys, revisions and sessions go on."""
    log = Log()
    session = log.found()
    done = log.do(session, 1, PutKey(b"k", b"v"))
    survivor = MemberInfo(2, "n2", "h:9", 33)
    applied = log.add(codec.encode_logged(Recover(0xC2, survivor)), MEMBERSHIP)
    assert isinstance(applied, MembershipApplied)
    assert applied.membership == log.replica.membership == Membership(voters=frozenset({2}))
    assert (log.replica.roster.cluster_id, log.replica.roster.members) == (0xC2, {2: survivor})
    assert log.do(session, 1, PutKey(b"k", b"v")) == done
    assert log.replica.store.published_revision == 2


# --- Members -------------------------------------------------------------------------------------------------------

JOINS = ChangeMembers([AddMember("n3", "h:3", 33, learner=True)])


def test_a_change_of_the_members_is_made_once_and_has_one_outcome() -> None:
    """It says who the members are after it, and who was taken in; its second copy says the same."""
    log = Log()
    session = log.found()
    members = [*GENESIS.members, MemberInfo(3, "n3", "h:3", 33)]
    expected = MembersResult(
        0xC1, members, Membership(voters=frozenset({1, 2}), learners=frozenset({3})), added=[3], leader=0
    )
    assert log.change(session, 1, JOINS) == expected
    log.change(session, 2, ChangeMembers([PromoteMember(3)]))
    assert log.change(session, 1, JOINS) == expected
    assert log.replica.membership == Membership(voters=frozenset({1, 2, 3}))
    assert log.replica.roster.next_id == 4


def test_a_refused_change_changes_nothing_and_is_remembered() -> None:
    """The same error for everybody, also after it could be made."""
    log = Log()
    session = log.found()
    promotion = ChangeMembers([PromoteMember(3)])
    refused = log.change(session, 1, promotion)
    assert isinstance(refused, Refusal)
    assert isinstance(refused.error(), errors.MemberNotFound)
    log.change(session, 2, JOINS)
    assert log.change(session, 1, promotion) == refused
    assert log.replica.membership.learners == {3}


def test_an_empty_entry_of_the_membership_leaves_what_is_joint() -> None:
    """The leader proposes it by itself; where there is nothing to leave it changes nothing."""
    log = Log()
    session = log.found()
    log.change(session, 1, ChangeMembers([RemoveMember(2)], transition=JOINT))
    assert log.replica.membership == Membership(frozenset({1}), frozenset({1, 2}), auto_leave=True)
    for _ in range(2):
        assert log.add(b"", MEMBERSHIP) == MembershipApplied(Membership(voters=frozenset({1})))
    assert list(log.replica.roster.members) == [1]


def test_a_decision_is_done_in_the_term_in_which_it_was_made_and_in_no_other() -> None:
    """Of the leader before, which a late message could bring to the one that follows, it does nothing."""
    log = Log()
    session = log.found()
    log.do(session, 1, PutKey(b"k", b"v"))
    late = log.add(codec.encode_logged(Decided(0, 5, Compact(2))))
    assert late == DecisionApplied(0, 5, STALE)
    assert log.replica.store.compact_revision == 0
    assert log.add(codec.encode_logged(Decided(1, 6, Compact(2)))) == DecisionApplied(1, 6, CompactResult(2))
    again = log.add(codec.encode_logged(Decided(1, 7, Compact(2))))
    assert isinstance(again, DecisionApplied)
    assert isinstance(again.outcome, Refusal)
    assert log.replica.store.compact_revision == 2


def test_the_refusal_or_the_command_whichever_stands_first_counts() -> None:
    """A leader refuses what may stand in the log already, or comes late: it has one outcome all the same."""
    log = Log()
    session = log.found()
    payload = codec.encode_logged(Envelope(session, 1, 1, JOINS))

    def refuse(sequence: int, fingerprint: int = fingerprint_of(payload)) -> object:
        refusal = RefuseChange(session, sequence, 1, fingerprint, "QuorumAtRisk", "too few")
        effect = log.add(codec.encode_logged(refusal), MEMBERSHIP)
        assert isinstance(effect, Effect)
        assert (effect.session, effect.sequence) == (session, sequence)
        return effect.outcome

    refused = refuse(1)
    assert isinstance(refused, Refusal)
    assert isinstance(refused.error(), errors.QuorumAtRisk)
    assert log.change(session, 1, JOINS) == refused == refuse(1)
    assert log.replica.membership.learners == frozenset()
    second = codec.encode_logged(Envelope(session, 2, 1, JOINS))
    made = log.change(session, 2, JOINS)
    assert isinstance(made, MembersResult)
    assert refuse(2, fingerprint_of(second)) == made
    unknown = RefuseChange(session + 1, 1, 1, 0, "QuorumAtRisk", "too few")
    assert log.add(codec.encode_logged(unknown), MEMBERSHIP) == Effect(session + 1, 1, EXPIRED)


def test_a_change_that_no_leader_counted_stops_the_member() -> None:
    """As an ordinary entry it could be under way beside another one, or beside its own refusal."""
    log = Log()
    session = log.found()
    payload = codec.encode_logged(Envelope(session, 1, 1, JOINS))
    with pytest.raises(AssertionError, match="leader counts"):
        log.add(log.stamped(payload))
    with pytest.raises(AssertionError, match="its refusals"):
        log.add(codec.encode_logged(RefuseChange(session, 1, 1, 0, "QuorumAtRisk", "too few")))


def test_a_change_without_a_stamp_changes_nothing_and_has_come_to_nothing() -> None:
    """Who has no sessions cannot tell whether it was made before; it can be made later."""
    log = Log()
    session = log.found()
    payload = codec.encode_logged(Envelope(session, 1, 1, JOINS))
    for kind in (NORMAL, MEMBERSHIP):
        assert log.add(payload, kind) is None
    assert log.replica.membership == Membership(voters=frozenset({1, 2}))
    assert log.replica.sessions.outcome(session, 1) is None
    assert isinstance(log.change(session, 1, JOINS), MembersResult)
    assert log.replica.membership.learners == {3}


def test_a_change_whose_stamp_is_of_another_time_changes_nothing() -> None:
    """Another change was made since it was judged."""
    log = Log()
    session = log.found()
    stale = log.stamped(codec.encode_logged(Envelope(session, 1, 1, ChangeMembers([RemoveMember(2)]))))
    log.change(session, 2, JOINS)
    before = log.replica.roster.plain()
    assert log.add(stale, MEMBERSHIP) is None
    assert log.replica.roster.plain() == before
    assert log.replica.sessions.outcome(session, 1) is None


def test_a_stamped_change_is_made_whatever_the_sessions_say() -> None:
    """A witness has none; the answer alone depends on them."""
    log = Log()
    session = log.found()
    payload = codec.encode_logged(Envelope(session + 1, 1, 1, JOINS))
    applied = log.add(log.stamped(payload), MEMBERSHIP)
    assert applied == MembershipApplied(log.replica.membership, Effect(session + 1, 1, EXPIRED))
    assert log.replica.membership.learners == {3}


def test_every_change_that_is_made_is_the_last_one_and_no_refused_one_is() -> None:
    """The stamp of the next one names it, on every member alike."""
    log = Log()
    session = log.found()
    roster = log.replica.roster
    assert roster.last_change == 1
    log.change(session, 1, ChangeMembers([RemoveMember(7)]))
    assert roster.last_change == 1
    log.change(session, 2, ChangeMembers([RemoveMember(2)], transition=JOINT))
    assert roster.last_change == log.replica.applied_index
    log.add(b"", MEMBERSHIP)
    assert roster.last_change == log.replica.applied_index
    log.add(b"", MEMBERSHIP)
    assert roster.last_change == log.replica.applied_index - 1
    log.add(codec.encode_logged(Recover(0xC2, GENESIS.members[0])), MEMBERSHIP)
    assert roster.last_change == log.replica.applied_index


def test_a_snapshot_holds_the_members_in_the_middle_of_a_change() -> None:
    """Joint, with ids that were used, and how it began: who starts from it goes on like everybody else."""
    log = Log()
    session = log.found()
    log.change(session, 1, JOINS)
    log.change(session, 2, ChangeMembers([AddMember("n4", "h:4", 44, learner=True), UpdateMember(1, priority=9)]))
    log.change(session, 3, ChangeMembers([RemoveMember(4)]))
    log.change(session, 4, ChangeMembers([RemoveMember(2)], transition=EXPLICIT))
    twin = restored(log.replica)
    assert twin.roster.plain() == log.replica.roster.plain()
    assert twin.roster.genesis == GENESIS
    assert twin.sessions.outcome(session, 1) == log.replica.sessions.outcome(session, 1)
    log.change(session, 5, LeaveJoint())
    twin.apply(log.entries[-1])
    assert twin.membership == log.replica.membership == Membership(voters=frozenset({1}), learners=frozenset({3}))
    assert [twin.roster.is_banned(id_) for id_ in (1, 2, 3, 4, 5)] == [False, True, False, True, False]


def test_a_snapshot_says_who_the_witnesses_are() -> None:
    """Else a leader that started from it would count on data that nobody has."""
    log = Log()
    log.found()
    log.replica.roster.membership = Membership(voters=frozenset({1, 2, 3}), witnesses=frozenset({3}))
    assert restored(log.replica).membership == log.replica.membership


def test_what_has_lost_its_payload_is_never_applied() -> None:
    """Only a witness has such entries, and it sends none of them."""
    with pytest.raises(AssertionError, match="needs every payload"):
        Replica().apply(Entry(1, 1, b"", HOLLOW))


# --- Sessions ------------------------------------------------------------------------------------------------------


def test_a_session_is_named_by_its_entry_and_its_nonce() -> None:
    """Neither another cluster, whose nonces differ, nor another copy of the registration has a session of this id."""
    log = Log()
    log.add(codec.encode_logged(GENESIS), MEMBERSHIP)
    assert log.add(codec.encode_logged(RegisterSession(99))) == Effect(0, 99, 2 ^ 99)
    assert log.add(codec.encode_logged(RegisterSession(99))) == Effect(0, 99, 3 ^ 99)
    assert len(log.replica.sessions) == 2
    assert log.add(b"") is None, "an empty entry is Raft's own"


def test_a_command_that_stands_in_the_log_twice_is_applied_once() -> None:
    """The second copy changes nothing and has the outcome of the first."""
    log = Log()
    session = log.found()
    first = log.do(session, 1, PutKey(b"k", b"v"))
    assert log.do(session, 1, PutKey(b"k", b"v")) == first
    kv = log.replica.store.get(b"k")
    assert kv is not None
    assert kv.version == 1


def test_a_refused_command_is_refused_again_the_same() -> None:
    """What was refused is remembered as well: a retry does not succeed because the state changed meanwhile."""
    log = Log()
    session = log.found()
    refused = log.do(session, 1, PutKey(b"k", b"", ignore_value=True))
    assert isinstance(refused, Refusal)
    assert isinstance(refused.error(), errors.KeyNotFound)
    log.do(session, 2, PutKey(b"k", b"v"))
    assert log.do(session, 1, PutKey(b"k", b"", ignore_value=True)) == refused


def test_a_command_of_an_unknown_session_is_never_executed() -> None:
    """It may have been executed before its session was evicted."""
    log = Log()
    log.found()
    assert log.do(77, 1, PutKey(b"k", b"v")) == EXPIRED
    assert log.replica.store.get(b"k") is None


def test_a_long_command_shows_nothing_before_it_is_complete() -> None:
    """A delete of many keys goes on in steps; readers see the state before it until the last one."""
    log = Log()
    session = log.found()
    for number in range(2000):
        log.do(session, number + 1, PutKey(b"k%04d" % number, b"v"), acked_below=number + 1)
    replica = log.replica
    payload = codec.encode_logged(Envelope(session, 3000, 2000, DeleteRange(b"k", b"l")))
    entry = Entry(replica.applied_index + 1, 1, payload)
    assert replica.apply(entry) is BUSY
    steps = 0
    while replica.is_busy:
        assert replica.applied_index == entry.index - 1
        assert replica.store.get(b"k1999") is not None
        consequence = replica.step(100)
        steps += 1
    assert steps > 5
    assert isinstance(consequence, Effect)
    assert isinstance(consequence.outcome, DeleteResult)
    assert consequence.outcome.deleted == 2000
    assert replica.applied_index == entry.index
    assert replica.store.get(b"k1999") is None


def test_a_long_command_that_stands_in_the_log_twice_is_applied_once() -> None:
    """Between its copies the keys are put anew; the second one deletes none of them."""
    log = Log(budget=50)
    session = log.found()
    for number in range(2000):
        log.do(session, number + 1, PutKey(b"k%04d" % number, b"v"), acked_below=number + 1)
    first = log.do(session, 3000, DeleteRange(b"k", b"l"), acked_below=2000)
    assert isinstance(first, DeleteResult)
    assert first.deleted == 2000
    log.do(session, 3001, PutKey(b"k0001", b"again"), acked_below=2000)
    assert log.do(session, 3000, DeleteRange(b"k", b"l"), acked_below=2000) == first
    assert log.replica.store.get(b"k0001") is not None


def test_a_long_command_may_be_refused_in_the_middle() -> None:
    """1. A transaction compares a range of many keys, so it is applied in slices.

    2. Only then it is found to read a revision that does not exist: it is refused, after the first slice.
    3. The refusal is its outcome, like any other; it must not stop the member (and, with it, every other member).
    """
    log = Log(budget=50)
    session = log.found()
    for number in range(2000):
        log.do(session, number + 1, PutKey(b"k%04d" % number, b"v"), acked_below=number + 1)
    everything = Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"k", 1, end=b"l")
    txn = Transaction([everything], [PutKey(b"new", b"v"), RangeQuery(b"k", revision=10**9)], [])
    refused = log.do(session, 5000, txn, acked_below=2000)
    assert isinstance(refused, Refusal)
    assert isinstance(refused.error(), errors.FutureRevision)
    assert log.do(session, 5000, txn, acked_below=2000) == refused
    assert log.replica.store.get(b"new") is None
    assert isinstance(log.do(session, 5001, PutKey(b"a", b"b"), acked_below=2000), PutResult)


def random_command(rng: random.Random) -> Command:
    """Return some command, most of them small."""
    key = b"k%03d" % rng.randrange(900)
    kind = rng.randrange(12)
    if kind < 7:
        return PutKey(key, rng.randbytes(rng.randrange(20)), prev_kv=rng.random() < 0.3)
    if kind == 7:
        return DeleteRange(key, b"k%03d" % rng.randrange(900) if rng.random() < 0.4 else b"")
    if kind == 8:
        return Compact(rng.randrange(1, 300))
    if kind == 9:
        return DeleteRange(b"k", b"l", prev_kv=True) if rng.random() < 0.3 else PutKey(b"", b"refused")
    guard = Compare(CompareTarget.VERSION, CompareResult.GREATER, b"k", 0, end=b"l")
    return Transaction([guard], [PutKey(key, b"then"), DeleteRange(b"k3", b"k4")], [RangeQuery(b"k", b"l", limit=3)])


@pytest.mark.parametrize("seed", range(4))
def test_equal_logs_give_equal_replicas_whatever_the_slices(seed: int) -> None:
    """Large steps, small steps, or a snapshot in the middle: same outcomes, same state, to the byte."""
    rng = random.Random(seed)
    one = Log()
    session = one.found()
    outcomes = []
    for number in range(1, 700):
        if rng.random() < 0.03:
            decided(one, ChangeAlarm(AlarmKind.NOSPACE, rng.randrange(1, 3), is_raised=rng.random() < 0.3))
            decided(one, ChangeSettings(quota_bytes=number))
        sequence = number if rng.random() < 0.9 else rng.randrange(1, number + 1)
        command = random_command(rng) if sequence == number else PutKey(b"again", b"")
        outcomes.append(one.do(session, sequence, command, acked_below=max(1, number - 50)))
    two = Log(budget=7)
    for entry in one.entries:
        if entry.index == 400:
            two = Log(restored(two.replica), budget=3)
        two.add(entry.payload, entry.kind)
    assert any(isinstance(outcome, TxnResult) for outcome in outcomes), "the log is not trivial"
    assert any(isinstance(outcome, Refusal) and outcome.name == "NoSpace" for outcome in outcomes), "in no respect"
    one.replica.store.check()
    two.replica.store.check()
    compacted(one.replica)  # when that is done is each member's own business
    assert state_of(two.replica) == state_of(one.replica)


def compacted(replica: Replica) -> None:
    """Remove what compaction made unreachable."""
    work = replica.store.compaction()
    while work is not None and work.step(1000) is None:
        pass


def restored(replica: Replica) -> Replica:
    """Return the replica that comes out of a snapshot of this one."""
    snapshot = replica.snapshot()
    restorer = ReplicaRestorer(index=snapshot.index, term=snapshot.term)
    for chunk in snapshot.chunks():
        restorer.feed(chunk)
    snapshot.close()
    return restorer.finish()


def test_a_snapshot_holds_the_moment_it_was_taken() -> None:
    """Commands applied while it is walked are not in it; everything before is, sessions and members included."""
    log = Log()
    session = log.found()
    log.do(session, 1, PutKey(b"k", b"before"))
    snapshot = log.replica.snapshot()
    chunks = snapshot.chunks()
    restorer = ReplicaRestorer(index=snapshot.index, term=snapshot.term)
    restorer.feed(next(chunks))
    log.do(session, 2, PutKey(b"k", b"after"))
    for chunk in chunks:
        restorer.feed(chunk)
    snapshot.close()
    replica = restorer.finish()
    kv = replica.store.get(b"k")
    assert kv is not None
    assert kv.text == "before"
    assert (replica.applied_index, replica.roster.cluster_id) == (snapshot.index, 0xC1)
    assert replica.roster.members == log.replica.roster.members
    assert replica.membership == log.replica.membership
    assert replica.sessions.outcome(session, 1) == PutResult(kv.mod_revision)
    assert replica.sessions.outcome(session, 2) is None


def test_a_snapshot_takes_whatever_the_sessions_remember() -> None:
    """1. One session has an outcome of two megabytes, another thousands of small ones, a third none.

    2. No chunk is longer than a storage takes, and the sessions are those of the pinned entry: what is remembered, or
       forgotten, while the chunks are made is not in them.
    """
    log = Log()
    many = log.found()
    one, none = (log.add(codec.encode_logged(RegisterSession(nonce))) for nonce in (1, 2))
    assert isinstance(one, Effect)
    assert isinstance(one.outcome, int)
    assert isinstance(none, Effect)
    log.do(many, 1, PutKey(b"large", b"x" * (2 << 20)))
    log.do(one.outcome, 1, PutKey(b"large", b"y", prev_kv=True))
    for sequence in range(2, 2000):
        log.do(many, sequence, PutKey(b"k%03d" % sequence, b"v"))
    before = log.replica.sessions.pin()
    snapshot = log.replica.snapshot()
    restorer = ReplicaRestorer(index=snapshot.index, term=snapshot.term)
    for number, chunk in enumerate(snapshot.chunks()):
        assert len(chunk) <= CHUNK_BYTES_MAX
        restorer.feed(chunk)
        log.do(one.outcome, number + 2, PutKey(b"more", b"v"), acked_below=number + 2)
    snapshot.close()
    assert restorer.finish().sessions.pin() == before


def test_a_snapshot_that_cannot_be_read_is_refused() -> None:
    """Nothing, something else, or a newer version: a typed error, and no replica."""
    with pytest.raises(errors.SnapshotCorruption):
        ReplicaRestorer(index=1, term=1).finish()
    with pytest.raises(errors.StorageError):
        ReplicaRestorer(index=1, term=1).feed(b"\xc1")
    for table in ([], [99, 1, [], []]):
        with pytest.raises(errors.UnsupportedFormat):
            ReplicaRestorer(index=1, term=1).feed(codec.encode_table(table))
    log = Log()
    log.found()
    snapshot = log.replica.snapshot()
    restorer = ReplicaRestorer(index=2, term=1)
    restorer.feed(next(snapshot.chunks()))
    snapshot.close()
    with pytest.raises(errors.SnapshotCorruption):
        restorer.finish()


def test_a_command_of_a_newer_version_stops_the_member() -> None:
    """It must not be skipped: the others may know what it does."""
    with pytest.raises(errors.UnsupportedFormat):
        Log().add(b"\xfe\xfe\xfe")


# --- Settings and alarms -------------------------------------------------------------------------------------------


def decided(log: Log, command: DecidedCommand, *, term: int = 1) -> object:
    """Apply what a leader decided in ``term``; return its outcome."""
    applied = log.add(codec.encode_logged(Decided(term, 1, command)))
    assert isinstance(applied, DecisionApplied)
    return applied.outcome


def test_an_alarm_refuses_the_same_commands_on_every_member_and_changes_nothing() -> None:
    """What is refused is remembered as refused, so a retry after the alarm is cleared is refused, too."""
    log = Log()
    session = log.found()
    decided(log, ChangeAlarm(AlarmKind.NOSPACE, 2, is_raised=True))
    refusal = log.do(session, 1, PutKey(b"k", b"v"))
    assert isinstance(refusal, Refusal)
    assert (refusal.name, log.replica.store.revision) == ("NoSpace", 1)
    assert log.do(session, 2, DeleteRange(b"k")) == DeleteResult(1, 0)
    cleared = log.do(session, 3, ChangeAlarm(AlarmKind.NONE, 0))
    assert cleared == RulesResult(Settings(), [], [Alarm(AlarmKind.NOSPACE, 2)])
    assert log.do(session, 1, PutKey(b"k", b"v")) == refusal
    assert log.do(session, 4, PutKey(b"k", b"v")) == PutResult(2)


def test_who_is_no_leader_raises_no_alarm_and_no_level() -> None:
    """Nor does a leader of a term that is over."""
    log = Log()
    session = log.found()
    raising = ChangeAlarm(AlarmKind.CORRUPT, 1, is_raised=True)
    for sequence, command in enumerate((raising, ChangeSettings(feature_level=1)), start=1):
        refusal = log.do(session, sequence, command)
        assert isinstance(refusal, Refusal)
        assert refusal.name == "InvalidRequest"
    assert isinstance(decided(log, raising, term=7), Refusal)
    assert log.replica.rules.is_quiet


def test_a_level_that_a_member_does_not_know_stops_it() -> None:
    """Before it applies anything that it might not understand."""
    log = Log()
    with pytest.raises(errors.UnsupportedFormat):
        decided(log, ChangeSettings(feature_level=99))


def test_a_snapshot_holds_settings_and_alarms() -> None:
    """A member that starts from one refuses what the others refuse."""
    log = Log()
    session = log.found()
    log.do(session, 1, ChangeSettings(quota_bytes=4711, compaction_mode=CompactionMode.OFF))
    decided(log, ChangeAlarm(AlarmKind.NOSPACE, 2, is_raised=True))
    other = Log(restored(log.replica))
    assert other.replica.rules.result() == log.replica.rules.result()
    put = PutKey(b"k", b"v")
    assert other.do(session, 2, put) == log.do(session, 2, put)
    assert state_of(other.replica) == state_of(log.replica)
