"""The history of configurations: what all agree on passes, and each way to disagree has its name."""

from __future__ import annotations

import pytest

from pyraftkv.core import Membership
from pyraftkv.sim.check.configurations import Configurations, can_part, is_quorum


def voters(*ids: int, outgoing: tuple[int, ...] = (), learners: tuple[int, ...] = ()) -> Membership:
    """Return a configuration."""
    return Membership(frozenset(ids), frozenset(outgoing), frozenset(learners))


THREE = voters(1, 2, 3)


class Watched:
    """A history that begins with three voters, and what it complained of."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.history = Configurations(THREE, violated=lambda rule, _: self.broken.append(rule))

    def change(self, index: int, membership: Membership, *, by: str = "a") -> None:
        """Let an entry be committed, and a member apply it."""
        self.history.committed(index)
        self.history.applied(by, index, membership)


@pytest.fixture
def watched() -> Watched:
    """Nothing has changed yet."""
    return Watched()


def test_members_go_through_the_same_configurations_at_their_own_time(watched: Watched) -> None:
    """One is ahead, one behind, one comes by a snapshot and sees only the last."""
    watched.change(5, voters(1, 2, 3, learners=(4,)))
    watched.change(9, voters(1, 2, 3, 4))
    for index, known in ((1, THREE), (4, THREE), (5, voters(1, 2, 3, learners=(4,))), (30, voters(1, 2, 3, 4))):
        watched.history.applied("b", index, known)
    watched.history.applied("c", 12, voters(1, 2, 3, 4))
    watched.history.applied("d", 0, Membership())
    assert watched.broken == []
    assert watched.history.latest == voters(1, 2, 3, 4)


@pytest.mark.parametrize(("index", "known"), [(4, voters(1, 2, 3, 4)), (5, THREE), (8, THREE), (2, voters(1, 2))])
def test_another_configuration_at_the_same_entry(watched: Watched, index: int, known: Membership) -> None:
    """Too early, too late, or one that nobody ever decided on."""
    watched.change(5, voters(1, 2, 3, 4))
    watched.history.applied("b", index, known)
    assert watched.broken == ["one configuration per entry"]


def test_an_id_that_comes_back(watched: Watched) -> None:
    """Once it is gone it is gone; who is on the way out of a joint configuration is not gone yet."""
    watched.change(5, voters(1, 2, outgoing=(1, 2, 3)))
    watched.change(6, THREE)
    watched.change(7, voters(1, 2))
    assert watched.broken == []
    assert watched.history.gone == {3: 7}
    watched.change(8, voters(1, 2, 3))
    assert watched.broken == ["an id is used once"]


def test_steps_that_are_too_wide(watched: Watched) -> None:
    """Two voters at once without a joint configuration between: a majority of each, and nobody in both."""
    watched.change(5, voters(1, 4, 5))
    assert watched.broken == ["consecutive quorums intersect"]


def test_a_change_that_is_found_late(watched: Watched) -> None:
    """Nobody saw it committed until a member behind did; nothing that came after it is judged anew."""
    watched.change(9, voters(1, 2, 3, 4))
    watched.change(5, voters(1, 2, 3, learners=(4,)), by="b")
    watched.change(5, voters(1, 2, 3, learners=(4,)), by="c")
    assert watched.broken == []
    assert watched.history.latest == voters(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        (THREE, voters(1, 2, 3, 4), False),
        (THREE, voters(1, 2), False),
        (THREE, voters(1, 4, 5), True),
        (THREE, voters(1, 2, 3, 4, 5), True),
        (THREE, voters(4, 5, 6, outgoing=(1, 2, 3)), False),
        (voters(4, 5, 6, outgoing=(1, 2, 3)), voters(4, 5, 6), False),
        (voters(1), voters(2), True),
        (voters(1), voters(1, 2), False),
    ],
)
def test_whether_two_configurations_can_part(one: Membership, other: Membership, parts: bool) -> None:
    """One voter more or less never; anything else through a joint configuration alone."""
    assert can_part(one, other) is parts
    assert can_part(other, one) is parts


def test_learners_are_in_no_quorum() -> None:
    """However many of them there are."""
    assert not is_quorum(voters(1, 2, 3, learners=(4, 5)), {1, 4, 5})
    assert is_quorum(voters(1, 2, 3, learners=(4, 5)), {1, 2})
