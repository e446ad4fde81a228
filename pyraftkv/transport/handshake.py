"""Who may talk to whom: the judgement of HELLOs, the same in memory and over TCP.

The first frame each way is a HELLO, and nothing else is looked at before it was judged. A connection is refused for a
named reason; what only the replica knows (who is a member, with which incarnation) its handler judges last.

Stories that the rules are for:

1. A member is restarted on a copy of a directory of another cluster. Its log would poison this one: "wrong-cluster".
2. An address was reassigned, and another member answers there. Acks would count for the wrong one: "wrong-member".
3. A virtual machine is rolled back. Its member comes back with a lower boot count than was seen: it has forgotten
   what it promised, so it is refused as "rolled-back", and stops until it is rebuilt.
4. A member is stopped, its directory copied, and started as life 8. Then the copy is put back, and it starts as life 8
   again. Each life draws a number, so that these are not one: "rolled-back".
5. A copy is put back that was made in the very last life. Its boot count is new. Whoever leads knows what that life
   had promised, and judges what is left of it (`node.peers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyraftkv.errors import HandshakeRejected
from pyraftkv.protocol import Hello

BOOT_COUNT_MAX: Final = (1 << 32) - 1
"""What a frame's header can hold."""

BOOTS_MAX: Final = 1024
"""Members whose boot counts are remembered; the one heard of longest ago is forgotten first."""


def judge_hello(own: Hello, other: Hello) -> None:
    """Check what every connection needs: a version in common and not two different clusters.

    Raises:
        HandshakeRejected: With reason "protocol" or "wrong-cluster".
    """
    if own.version_max < other.version_min or other.version_max < own.version_min:
        raise HandshakeRejected(
            f"versions {other.version_min} to {other.version_max} are offered, "
            f"{own.version_min} to {own.version_max} are spoken here",
            reason="protocol",
            peer=other.name,
        )
    if other.boot_count > BOOT_COUNT_MAX:
        raise HandshakeRejected("a boot count beyond 32 bits", reason="protocol", peer=other.name)
    if own.cluster_id and other.cluster_id and own.cluster_id != other.cluster_id:
        raise HandshakeRejected(
            f"{other.name or 'a client'} belongs to cluster {other.cluster_id:x}, this is {own.cluster_id:x}",
            reason="wrong-cluster",
            peer=other.name,
        )


def rolled_back(hello: Hello, what: str, *, known: tuple[int, int, int]) -> HandshakeRejected:
    """Return the refusal of a member that has less than an earlier life of it had.

    Args:
        hello: Its HELLO.
        what: What it comes with.
        known: See `HandshakeRejected.known`.
    """
    return HandshakeRejected(
        f"{hello.name} comes with {what}: its directory is an older copy, or its disk lost what it had synced; "
        "`pyraftkv rebuild` makes another member of it",
        reason="rolled-back",
        peer=hello.name,
        known=known,
    )


def can_be_rolled_back(own: Hello, rejection: HandshakeRejected) -> bool:
    """Whether what we are refused for can be true: there was a life as late as this one, or one that had more."""
    boot_count, term, index = rejection.known
    return boot_count >= own.boot_count or term > own.start_term or index > own.start_index


def _is_outlived(other: Hello, *, by: Hello) -> bool:
    """Whether a life cannot follow one of the same directory, and is not that one itself."""
    return other.boot_count < by.boot_count or (other.boot_count == by.boot_count and other.life != by.life)


class PeerGate:
    """Judges the HELLOs of peers, and remembers the latest life seen of each.

    Args:
        judge: The handler's own judgement, `Handler.peer_hello`.
    """

    def __init__(self, judge: Callable[[Hello], None]) -> None:
        self._judge = judge
        self._lives: dict[int, Hello] = {}

    def admit(self, own: Hello, other: Hello, *, expected: int | None = None) -> None:
        """Accept a peer's HELLO, or refuse it.

        Args:
            own: Our HELLO.
            other: Theirs.
            expected: The member that was dialled; None when they dialled us.

        Raises:
            HandshakeRejected: Says why.
        """
        judge_hello(own, other)
        is_own = other.member_id == own.member_id
        if is_own or (expected is not None and other.member_id != expected):
            there = "as we are ourselves" if is_own else f"where member {expected} should"
            raise HandshakeRejected(
                f"member {other.member_id} ({other.name}) answers {there}",
                reason="wrong-member",
                peer=other.name,
            )
        known = self._lives.get(other.member_id)
        if known is not None and known.incarnation == other.incarnation and _is_outlived(other, by=known):
            boots = f"boot count {other.boot_count}, after {known.boot_count} was seen"
            again = f"boot count {other.boot_count} again, and it is another life"
            raise rolled_back(
                other,
                boots if other.boot_count < known.boot_count else again,
                known=(known.boot_count, *known.start),
            )
        self._judge(other)
        self._lives.pop(other.member_id, None)
        self._lives[other.member_id] = other
        if len(self._lives) > BOOTS_MAX:
            del self._lives[next(iter(self._lives))]

    def is_current(self, other: Hello) -> bool:
        """Whether no later life of that member has said HELLO since."""
        known = self._lives.get(other.member_id)
        return known is None or (known.incarnation, known.boot_count) == (other.incarnation, other.boot_count)
