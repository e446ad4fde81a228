"""Who is let in, under which name, and where it is dialled."""

from __future__ import annotations

import pytest

from pyraftkv import errors
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import Hello, MemberInfo

TABLE = {number: MemberInfo(number, name, f"old:{number}", number * 11) for number, name in enumerate("abc", start=1)}


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
    peers.adopt(hello(1), TABLE)
    assert peers.addresses == {2: "old:2", 3: "old:3"}
    assert [peers.name(number) for number in (1, 2, 3)] == ["a", "b", "c"]
    assert peers.table == list(TABLE.values())
    moved = Peers(hello(1), {"a": "h:1", "c": "new:3"})
    moved.adopt(hello(1), TABLE)
    assert moved.addresses == {2: "old:2", 3: "new:3"}


def test_what_a_member_says_of_its_address_counts_most() -> None:
    """News are told, so that it is dialled there; it stays so when the log is read."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2", "c": "h:3"})
    assert peers.heard(hello(2, address="moved:2"))
    assert not peers.heard(hello(2, address="moved:2"))
    assert not peers.heard(hello(3))
    peers.adopt(hello(1), TABLE)
    assert peers.addresses == {2: "moved:2", 3: "h:3"}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (hello(2, cluster_id=8), "wrong-cluster"),
        (hello(4, name="d"), "unknown-member"),
        (hello(2, name="d"), "wrong-member"),
        (hello(2, incarnation=5), "wrong-incarnation"),
        (hello(2, cluster_id=0, incarnation=5), "wrong-incarnation"),
    ],
)
def test_who_is_not_let_in(other: Hello, reason: str) -> None:
    """Another cluster, a stranger, another name, another life: each refused by its reason."""
    peers = Peers(hello(1), {"a": "h:1"})
    peers.adopt(hello(1), TABLE)
    peers.judge(hello(2))
    with pytest.raises(errors.HandshakeRejected) as caught:
        peers.judge(other)
    assert (caught.value.reason, caught.value.peer) == (reason, other.name)


def test_who_answers_is_known() -> None:
    """A loss is news once."""
    peers = Peers(hello(1), {"a": "h:1", "b": "h:2"})
    assert (peers.is_connected(1), peers.is_connected(2)) == (True, False)
    peers.heard(hello(2))
    assert peers.is_connected(2)
    assert peers.lost(2)
    assert not peers.lost(2)
    assert not peers.is_connected(2)
