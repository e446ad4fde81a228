"""HELLOs are judged: each named reason, and what is remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyraftkv.errors import HandshakeRejected
from pyraftkv.protocol import Hello
from pyraftkv.transport.handshake import BOOT_COUNT_MAX, BOOTS_MAX, PeerGate, can_be_rolled_back, judge_hello

from .members import hello

OWN = hello(1)


def _refused(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(HandshakeRejected) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return str(caught.value.reason)


def test_a_version_in_common_is_needed() -> None:
    """Ranges that touch are enough."""
    own = replace(OWN, version_min=2, version_max=3)
    for low, high in ((1, 2), (3, 9), (1, 9)):
        judge_hello(own, replace(hello(2), version_min=low, version_max=high))
    for low, high in ((1, 1), (4, 5)):
        assert _refused(judge_hello, own, replace(hello(2), version_min=low, version_max=high)) == "protocol"


def test_two_clusters_do_not_talk() -> None:
    """Unless one end does not know its cluster yet."""
    assert _refused(judge_hello, OWN, hello(2, cluster_id=8)) == "wrong-cluster"
    judge_hello(OWN, hello(2, cluster_id=0))
    judge_hello(replace(OWN, cluster_id=0), hello(2, cluster_id=8))


def test_a_boot_count_fits_in_a_frame() -> None:
    """Beyond 32 bits it could not be told from an earlier one."""
    judge_hello(OWN, hello(2, boot_count=BOOT_COUNT_MAX))
    assert _refused(judge_hello, OWN, hello(2, boot_count=BOOT_COUNT_MAX + 1)) == "protocol"


def test_whoever_was_dialled_must_answer() -> None:
    """Another member there, a client there, or ourselves: none of them is who was meant."""
    gate = PeerGate(lambda hello: None)
    gate.admit(OWN, hello(2), expected=2)
    gate.admit(OWN, hello(2))
    assert _refused(gate.admit, OWN, hello(3), expected=2) == "wrong-member"
    assert _refused(gate.admit, OWN, hello(0), expected=2) == "wrong-member"
    assert _refused(gate.admit, OWN, hello(1)) == "wrong-member"
    with pytest.raises(HandshakeRejected, match="answers as we are ourselves"):
        gate.admit(OWN, hello(1), expected=1)


def test_a_directory_that_went_back_in_time_is_refused() -> None:
    """A lower boot count of the same incarnation has forgotten what it promised; a new incarnation has not."""
    gate = PeerGate(lambda hello: None)
    gate.admit(OWN, hello(2, boot_count=5))
    gate.admit(OWN, hello(2, boot_count=5))
    assert _refused(gate.admit, OWN, hello(2, boot_count=4)) == "rolled-back"
    gate.admit(OWN, replace(hello(2, boot_count=1), incarnation=999))
    gate.admit(OWN, hello(2, boot_count=6))


def test_two_lives_of_one_boot_count_are_of_two_copies() -> None:
    """1. A directory is copied while its member does not run. It starts, as life 5.

    2. The copy is put back, and starts as life 5 again. It is another one, whatever it says of its disk.
    """
    gate = PeerGate(lambda hello: None)
    first = hello(2, boot_count=5, life=77, start_term=3, start_index=9)
    gate.admit(OWN, first)
    gate.admit(OWN, first, expected=2)
    with pytest.raises(HandshakeRejected, match="boot count 5 again") as caught:
        gate.admit(OWN, replace(first, life=78))
    assert (caught.value.reason, caught.value.known) == ("rolled-back", (5, 3, 9))
    gate.admit(OWN, hello(2, boot_count=6, life=77))


def test_what_we_are_refused_for_must_be_possible() -> None:
    """Somebody has seen a life as late as ours, or one that had more than our disk at the start."""
    own = hello(1, boot_count=5, start_term=3, start_index=9)
    for boots, term, index, can_be in (
        (4, 3, 10, True),
        (4, 4, 0, True),
        (4, 3, 9, False),
        (4, 2, 10, True),
        (4, 2, 9, False),
        (0, 0, 0, False),
        (5, 0, 0, True),
        (6, 3, 1, True),
    ):
        rejection = HandshakeRejected(reason="rolled-back", known=(boots, term, index))
        assert can_be_rolled_back(own, rejection) is can_be, rejection.known


def test_only_the_latest_life_is_current() -> None:
    """Connections of earlier lives are to be dropped."""
    gate = PeerGate(lambda hello: None)
    assert gate.is_current(hello(2))
    gate.admit(OWN, hello(2))
    gate.admit(OWN, hello(2, boot_count=2))
    assert not gate.is_current(hello(2))
    assert gate.is_current(hello(2, boot_count=2))
    assert not gate.is_current(replace(hello(2, boot_count=2), incarnation=999))


def test_the_handler_has_the_last_word() -> None:
    """And what it refuses is not remembered as seen."""

    def judge(other: Hello) -> None:
        raise HandshakeRejected(reason="unknown-member", peer=other.name)

    gate = PeerGate(judge)
    assert _refused(gate.admit, OWN, hello(2, boot_count=9)) == "unknown-member"
    assert gate.is_current(hello(2, boot_count=1))


def test_the_memory_is_bounded() -> None:
    """The member heard of longest ago is forgotten first."""
    gate = PeerGate(lambda hello: None)
    for member in range(2, BOOTS_MAX + 3):
        gate.admit(OWN, hello(member, boot_count=9))
    gate.admit(OWN, hello(2, boot_count=1))  # forgotten
    assert _refused(gate.admit, OWN, hello(BOOTS_MAX, boot_count=1)) == "rolled-back"
