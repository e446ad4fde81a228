"""Who is let in, under which name, and where it is dialled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyraftkv import errors
from pyraftkv.node.peers import GUESTS_MAX, LEAVING_MAX, Peers
from pyraftkv.protocol import AddMember, ChangeMembers, Genesis, Hello, MemberInfo, Pledge, RemoveMember, UpdateMember
from pyraftkv.roster import Roster

TABLE = {number: MemberInfo(number, name, f"old:{number}", number * 11) for number, name in enumerate("abc", start=1)}
OWN_CLUSTER = 7


def roster(*commands: ChangeMembers) -> Roster:
    """Return the members of `TABLE`, and what ``commands`` made of them."""
    roster = Roster()
    roster.found(Genesis(OWN_CLUSTER, list(TABLE.values())))
    for command in commands:
        roster.apply(command)
    return roster


ADDED = ChangeMembers([AddMember("d", "old:4", 44, learner=True)])
REMOVED = ChangeMembers([RemoveMember(3)])


def hello(number: int, *, cluster_id: int = 7, name: str = "", incarnation: int = 0, address: str = "") -> Hello:
    """Return a member's HELLO."""
    return Hello(cluster_id, number, name or "abc"[number - 1], incarnation or number * 11, 1, address)


def test_before_the_log_says_better_the_list_counts() -> None:
    """Ids are ranks by name, addresses those given; ourselves we do not dial."""
    peers = Peers(hello(2, cluster_id=0), {"c": "h:3", "a": "h:1", "b": "h:2"})
    assert peers.addresses == {1: "h:1", 3: "h:3"}
    assert (peers.ids, peers.name(3), peers.name(9), peers.name(0)) == ([1, 2, 3], "c", "9", "")
    assert (peers.address(1), peers.address(9)) == ("h:1", "")
    peers.judge(hello(3, cluster_id=0))
    peers.judge(hello(3))


def test_the_log_says_who_the_members_are() -> None:
    """A list with other names does not rename or readdress anybody; one with the same name may readdress it."""
    peers = Peers(hello(1), {"a": "h:1", "z": "h:26"})
    peers.adopt(hello(1), roster())
    assert peers.addresses == {2: "old:2", 3: "old:3"}
    assert [peers.name(number) for number in (1, 2, 3)] == ["a", "b", "c"]
    assert peers.roster.members == TABLE
    moved = Peers(hello(1), {"a": "h:1", "c": "new:3"})
    moved.adopt(hello(1), roster())
    assert moved.addresses == {2: "old:2", 3: "new:3"}


def test_clients_are_not_sent_to_a_witness() -> None:
    """It has nothing for them. The other members dial it as anybody else."""
    peers = Peers(hello(1), {"a": "h:1"})
    with_witness = Roster()
    with_witness.found(Genesis(OWN_CLUSTER, list(TABLE.values()), [3]))
    peers.adopt(hello(1), with_witness)
    assert peers.member_addresses(own="here:1") == ["here:1", "old:2"]
    assert peers.addresses == {2: "old:2", 3: "old:3"}


def test_what_a_member_says_of_its_address_counts_most() -> None:
    """News are told, so that it is dialled there; it stays so when the log is read."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2", "c": "h:3"})
    assert peers.heard(hello(2, address="moved:2"))
    assert not peers.heard(hello(2, address="moved:2"))
    assert not peers.heard(hello(3))
    peers.adopt(hello(1), roster())
    assert peers.addresses == {2: "moved:2", 3: "h:3"}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (hello(2, cluster_id=8), "wrong-cluster"),
        (hello(4, cluster_id=0, name="d"), "unknown-member"),
        (hello(2, cluster_id=0, name="d"), "wrong-member"),
        (hello(2, incarnation=5), "wrong-incarnation"),
        (hello(2, cluster_id=0, incarnation=5), "wrong-incarnation"),
    ],
)
def test_who_is_not_let_in(other: Hello, reason: str) -> None:
    """Another cluster, a stranger, another name, another life: each refused by its reason."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), roster())
    peers.judge(hello(2))
    with pytest.raises(errors.HandshakeRejected) as caught:
        peers.judge(other)
    assert (caught.value.reason, caught.value.peer) == (reason, other.name)


def test_who_joined_later_than_was_applied_here_is_a_guest() -> None:
    """An id that was never seen is let in and answered: it may be the leader that has the news. Not without bound."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), roster())
    guest = hello(4, name="d", address="new:4")
    peers.judge(guest)
    assert peers.heard(guest)
    assert peers.addresses == {2: "old:2", 3: "old:3", 4: "new:4"}
    assert (peers.ids, peers.is_connected(4)) == ([1, 2, 3], True)
    for number in range(5, 4 + GUESTS_MAX):
        peers.heard(hello(number, name="x"))
    with pytest.raises(errors.HandshakeRejected, match="not in this cluster"):
        peers.judge(hello(4 + GUESTS_MAX, name="x"))
    peers.judge(guest)
    peers.adopt(hello(1), roster(ADDED))
    assert (peers.name(4), peers.address(4)) == ("d", "new:4"), "what it said itself counts more"
    with pytest.raises(errors.HandshakeRejected) as caught:
        peers.judge(hello(4, name="d", incarnation=45))
    assert caught.value.reason == "wrong-incarnation"


def test_before_anything_was_applied_every_member_is_a_guest() -> None:
    """Who has just joined knows the cluster and nobody in it."""
    peers = Peers(hello(4, name="d"), {})
    peers.judge(hello(2))
    peers.heard(hello(2, address="h:2"))
    assert peers.addresses == {2: "h:2"}
    for stranger in (hello(2, cluster_id=8), hello(2, cluster_id=0)):  # the id of a first start is but a rank
        with pytest.raises(errors.HandshakeRejected):
            peers.judge(stranger)


def test_who_was_removed_is_told_so() -> None:
    """Its id was used, and is nobody's: that is no stranger's. Nor is it dialled any more."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), roster())
    peers.heard(hello(3))
    assert peers.adopt(hello(1), roster(REMOVED)) == [3]
    assert peers.adopt(hello(1), roster(REMOVED)) == []
    assert peers.addresses == {2: "old:2", 3: "old:3"}, "it is still to hear that it was removed"
    peers.let_go(3)
    assert peers.addresses == {2: "old:2"}
    assert not peers.is_connected(3)
    with pytest.raises(errors.HandshakeRejected) as caught:
        peers.judge(hello(3))
    assert caught.value.reason == "removed"
    peers.judge(hello(4, name="d"))
    peers.heard(hello(4, name="d"))
    peers.adopt(hello(1), roster(REMOVED, ADDED, ChangeMembers([RemoveMember(4)])))
    assert peers.addresses == {2: "old:2"}, "a guest whose removal is applied is none any more"


def test_no_more_than_so_many_are_still_to_hear_that_they_were_removed() -> None:
    """Of more, those are let go who were removed first."""
    peers = Peers(hello(1), {"a": "h:1"})
    changes: list[ChangeMembers] = []
    for number in range(4, 4 + LEAVING_MAX + 3):
        changes.append(ChangeMembers([AddMember(f"x{number}", f"x:{number}", 100 + number, learner=True)]))
        peers.adopt(hello(1), roster(*changes))
        changes.append(ChangeMembers([RemoveMember(number)]))
        peers.adopt(hello(1), roster(*changes))
    assert list(peers.addresses) == [*range(7, 4 + LEAVING_MAX + 3), 2, 3]


def test_who_has_taken_the_place_of_a_member_does_not_dial_it() -> None:
    """Nor when its removal is news. Where a member of another name has our address, something is wrong: that shows."""
    own = hello(4, name="c")
    peers = Peers(own, {})
    peers.adopt(own, roster())
    assert peers.dialled("old:3") == {1: "old:1", 2: "old:2"}
    assert peers.dialled("new:3") == peers.addresses == {1: "old:1", 2: "old:2", 3: "old:3"}
    assert 2 in peers.dialled("old:2")
    peers.adopt(own, roster(ChangeMembers([RemoveMember(3), AddMember("c", "old:3", 44, learner=True)])))
    assert 3 in peers.addresses
    assert peers.dialled("old:3") == {1: "old:1", 2: "old:2"}


def test_a_name_is_a_label() -> None:
    """Who was renamed says its old name until it is started again; its directory is what counts."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), roster(ChangeMembers([UpdateMember(2, name="z")])))
    peers.judge(hello(2))
    assert peers.name(2) == "z"


def test_a_new_address_in_the_log_counts_more_than_what_was_said_before() -> None:
    """And what is said afterwards counts more again."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    peers.adopt(hello(1), roster())
    peers.heard(hello(2, address="moved:2"))
    peers.adopt(hello(1), roster(ADDED))
    assert peers.address(2) == "moved:2"
    peers.adopt(hello(1), roster(ADDED, ChangeMembers([UpdateMember(2, address="log:2")])))
    assert peers.address(2) == "log:2"
    assert peers.heard(hello(2, address="moved:2"))


def test_an_expected_member_may_have_come_already() -> None:
    """Its directory was bound by an entry that is not applied here yet; without a cluster it is not that member."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), roster(ChangeMembers([AddMember("d", "old:4", 0, learner=True)])))
    peers.judge(hello(4, name="d"))
    with pytest.raises(errors.HandshakeRejected):
        peers.judge(hello(4, cluster_id=0, name="d"))


def test_who_answers_is_known() -> None:
    """A loss is news once."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    assert (peers.is_connected(1), peers.is_connected(2)) == (True, False)
    peers.heard(hello(2))
    assert peers.is_connected(2)
    assert peers.lost(2)
    assert not peers.lost(2)
    assert not peers.is_connected(2)


def life(boot_count: int, *, term: int, index: int) -> Hello:
    """Return a HELLO of member 2, of a life that began with that."""
    return replace(hello(2), boot_count=boot_count, start_term=term, start_index=index)


def refusal(peers: Peers, said: Hello, promise: tuple[int, int] | None) -> errors.HandshakeRejected | None:
    """Return why a member is not let in; None if it is."""
    peers.judge(said)
    try:
        peers.judge_memory(said, promise)
    except errors.HandshakeRejected as rejection:
        return rejection
    return None


@pytest.mark.parametrize(
    ("term", "index", "let_in"),
    [(3, 9, True), (3, 8, False), (3, 0, False), (2, 9, False), (2, 99, False), (4, 0, True), (4, 9, True)],
)
def test_another_life_has_what_was_promised_before_it(term: int, index: int, let_in: bool) -> None:
    """An earlier term, or a shorter log in the same one, has forgotten; a later term proves nothing."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    peers.adopt(hello(1), roster())
    peers.heard(life(1, term=0, index=0))
    said = life(2, term=term, index=index)
    for _ in range(2):
        rejection = refusal(peers, said, (3, 9))
        assert (rejection is None) is let_in
        if rejection is not None:
            assert (rejection.reason, rejection.known) == ("rolled-back", (1, 3, 9))
            has, had = f"entries to {index} in term {term}", "entries to 9 in term 3"
            assert f"comes with {has}, and had acknowledged {had}" in str(rejection)
    assert refusal(peers, said, None) is None, "of whom nothing is known, nothing is said"


def test_one_life_may_promise_more_than_it_began_with() -> None:
    """Its HELLO arrives on another lane, when it has acknowledged entries; or this member has never heard of it."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    peers.adopt(hello(1), roster())
    peers.heard(life(1, term=1, index=1))
    assert refusal(peers, life(1, term=1, index=1), (3, 9)) is None
    stranger = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    stranger.adopt(hello(1), roster())
    assert refusal(stranger, life(2, term=1, index=1), (3, 9)) is None


@pytest.mark.parametrize(
    ("term", "index", "let_in"),
    [(3, 9, True), (4, 9, True), (3, 10, True), (2, 9, False), (2, 99, False), (9, 8, False)],
)
def test_another_life_has_what_its_member_has_told_of(term: int, index: int, let_in: bool) -> None:
    """What is committed stays, whatever the term; what was told late is told no less."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    peers.adopt(hello(1), roster())
    peers.heard(life(1, term=0, index=0))
    for told in ((2, 9), (3, 7), (3, 9), (1, 2)):
        peers.pledged(Pledge(1, 2, *told))
    assert refusal(peers, life(1, term=0, index=0), None) is None
    peers.adopt(hello(1), roster(ADDED))
    rejection = refusal(peers, life(2, term=term, index=index), None)
    assert (rejection is None) is let_in
    if rejection is not None:
        assert (rejection.reason, rejection.known) == ("rolled-back", (1, 3, 9))
        assert "and has told of committed entries to 9 in term 3" in str(rejection)
    assert refusal(peers, replace(life(2, term=0, index=0), member_id=3, name="c", incarnation=33), None) is None


def test_what_a_member_has_told_is_forgotten_with_it() -> None:
    """Ids are never used again; nothing is to be kept for those who were removed."""
    peers = Peers(hello(1), {"a": "h:1", "c": "h:3"})
    peers.adopt(hello(1), roster())
    peers.pledged(Pledge(1, 3, 3, 9))
    peers.adopt(hello(1), roster(REMOVED))
    peers.adopt(hello(1), roster(REMOVED))
    assert not peers._pledges
