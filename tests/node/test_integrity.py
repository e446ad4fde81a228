"""Comparing: who is wrong by a majority's word says so of itself, and where there is none everybody hears of it."""

from __future__ import annotations

import pytest

from pyraftkv import PutKey, codec, errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import MEMBERSHIP, NORMAL, Entry, Membership
from pyraftkv.node.integrity import PATROL_SECONDS, REPEAT_SECONDS, REPORTS_MAX, Integrity
from pyraftkv.protocol import Genesis, MemberInfo, StateHash
from pyraftkv.replica import CHECK_ENTRIES, CHECKPOINTS_MAX, Replica
from tests.store.test_hashing import flip

GENESIS = Entry(
    1,
    1,
    codec.encode_logged(Genesis(0xC1, [MemberInfo(id_, f"n{id_}", f"h:{id_}", id_) for id_ in (1, 2, 3)])),
    MEMBERSHIP,
)


class Judge:
    """Member 1, with what it says and does."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.replica.apply(GENESIS)
        self.sent: list[PeerMessage] = []
        self.reasons: list[str] = []
        self.splits: list[list[int]] = []
        self.integrity = Integrity(
            1,
            replica=lambda: self.replica,
            send=self.sent.extend,
            quarantined=self.reasons.append,
            split=self.splits.append,
        )

    def apply(self, count: int) -> None:
        """Apply so many empty entries."""
        for _ in range(count):
            self.replica.apply(Entry(self.replica.applied_index + 1, 1, b"", NORMAL))

    def reach(self, index: int = CHECK_ENTRIES) -> int:
        """Come to a checkpoint; return the hash there."""
        self.apply(index - self.replica.applied_index)
        self.integrity.applied()
        found = self.replica.hash_at(index)
        assert found is not None
        return found

    def hear(self, sender: int, hash_: int, index: int = CHECK_ENTRIES) -> None:
        """Take another member's hash."""
        self.integrity.received(StateHash(1, sender, index, hash_))


def test_every_checkpoint_is_told_to_all_others():
    """Each one once, when its entry was applied; and the last one again every ten seconds."""
    judge = Judge()
    judge.apply(CHECK_ENTRIES - 2)
    judge.integrity.applied()
    assert judge.sent == []
    judge.apply(CHECK_ENTRIES + 1)
    judge.integrity.applied()
    judge.integrity.applied()
    told = [(m.to, m.sender, m.index) for m in judge.sent if isinstance(m, StateHash)]
    assert told == [(to, 1, index) for index in (CHECK_ENTRIES, 2 * CHECK_ENTRIES) for to in (2, 3)]

    judge.sent.clear()
    judge.integrity.tend(REPEAT_SECONDS)
    judge.integrity.tend(2 * REPEAT_SECONDS - 0.1)
    last = judge.replica.hash_at(2 * CHECK_ENTRIES)
    assert judge.sent == [StateHash(to, 1, 2 * CHECK_ENTRIES, last) for to in (2, 3)]


def test_a_member_outvoted_is_wrong():
    """Two others agree on another hash: this member is to be trusted no longer, and says so once."""
    judge = Judge()
    own = judge.reach()
    judge.hear(2, own ^ 1)
    assert judge.reasons == []
    judge.hear(3, own ^ 1)
    judge.hear(3, own ^ 1)
    assert judge.reasons == ["2 of 3 members have another state than this one as of entry 1024"]
    assert judge.splits == []
    assert judge.integrity.agreeing() == {2, 3}
    with pytest.raises(errors.Quarantined, match="entry 1024"):
        judge.integrity.check()


def test_who_has_a_majority_is_right():
    """One other is wrong: that is its own affair."""
    judge = Judge()
    own = judge.reach()
    judge.hear(2, own)
    judge.hear(3, own ^ 1)
    judge.integrity.check()
    assert (judge.reasons, judge.splits) == ([], [])
    assert judge.integrity.agreeing() == {1, 2}


def test_what_is_heard_too_early_is_kept():
    """The others are ahead: their hashes wait for the entry to be applied here."""
    judge = Judge()
    for sender in (2, 3):
        judge.hear(sender, 77)
    assert judge.reasons == []
    judge.reach()
    assert len(judge.reasons) == 1


def test_nobody_knows_who_is_right():
    """Three hashes: no majority is possible any more; who was not heard of could still make one."""
    judge = Judge()
    own = judge.reach()
    judge.hear(2, own ^ 1)
    assert judge.splits == []
    judge.hear(3, own ^ 2)
    assert (judge.reasons, judge.splits) == ([], [[1, 2, 3]])


def test_two_that_differ_are_split():
    """Of two members neither has a majority; a witness keeps no state, and so has no word."""
    judge = Judge()
    judge.replica.roster.membership = Membership(voters=frozenset({1, 2, 3}), witnesses=frozenset({3}))
    own = judge.reach()
    judge.hear(3, own)
    judge.hear(2, own ^ 1)
    assert judge.splits == [[1, 2]]
    assert not [message for message in judge.sent if message.to == 3]


def test_a_witness_keeps_out_of_it():
    """It keeps no state: it tells nothing, and is not wrong."""
    judge = Judge()
    judge.replica.roster.membership = Membership(voters=frozenset({1, 2, 3}), witnesses=frozenset({1}))
    own = judge.reach()
    for sender in (2, 3):
        judge.hear(sender, own ^ 1)
    judge.integrity.tend(REPEAT_SECONDS)
    assert (judge.sent, judge.reasons, judge.splits) == ([], [], [])


def test_a_learner_is_wrong_by_the_voters_word_and_nobody_by_a_learners():
    """Learners compare themselves with the voters, and do not count."""
    judge = Judge()
    judge.replica.roster.membership = Membership(voters=frozenset({2}), learners=frozenset({1, 3, 4, 5}))
    own = judge.reach()
    for learner in (3, 4, 5):
        judge.hear(learner, own ^ 1)
    assert judge.reasons == []
    judge.hear(2, own ^ 1)
    assert len(judge.reasons) == 1


def test_damage_in_memory_needs_no_other_member():
    """The patrol finds a bit that flipped."""
    judge = Judge()
    judge.replica.store.apply(PutKey(b"k", b"value"))
    judge.integrity.tend(PATROL_SECONDS)
    assert judge.reasons == []
    flip(judge.replica.store, b"k")
    judge.integrity.tend(1.9 * PATROL_SECONDS)
    assert judge.reasons == [], "it has not looked"
    judge.integrity.tend(2 * PATROL_SECONDS)
    assert judge.reasons == ["its memory is damaged: the version 2 of the key b'k' is not what was written"]


def test_a_state_that_is_another_one_is_told_and_judged_anew():
    """After a repair the member is one like any other."""
    judge = Judge()
    own = judge.reach()
    for sender in (2, 3):
        judge.hear(sender, own ^ 1)
    judge.sent.clear()
    judge.integrity.renewed()
    judge.integrity.check()
    judge.integrity.applied()
    assert len(judge.sent) == 2
    assert len(judge.reasons) == 2


def test_what_is_kept_is_bounded():
    """Hashes of others are kept for the newest indexes alone, this member's own as well; odd indexes are nobody's."""
    judge = Judge()
    for number in range(1, 3 * REPORTS_MAX):
        judge.hear(2, 5, index=number * CHECK_ENTRIES)
        judge.hear(2, 5, index=number * CHECK_ENTRIES + 1)
    assert len(judge.integrity._reports) == REPORTS_MAX
    assert max(judge.integrity._reports) == (3 * REPORTS_MAX - 1) * CHECK_ENTRIES
    judge.reach((CHECKPOINTS_MAX + 2) * CHECK_ENTRIES)
    assert [point.index // CHECK_ENTRIES for point in judge.replica.checkpoints] == [*range(3, CHECKPOINTS_MAX + 3)]
