from __future__ import annotations

import pytest

from pyraftkv.sim.check import Finding, check_linearizable
from tests.sim.check.boards import BAD, BAD_FOR_REVISIONS, GOOD, untouched
from tests.sim.check.notation import parse

SEEN_BY_ALL_KEYS_ONLY = {
    "two writes at one revision",
    "writes in the wrong order",
    "a revision that nobody made",
    "a compacted revision is read",
    "an old revision is read at a revision that came after its compaction",
    "a compaction goes back",
    "refused as compacted, which nobody did",
    "refused before it was compacted",
    "refused as from the future, which it is not",
    "a read of the present is refused as compacted",
    "a put is refused as compacted",
    "a transaction is refused for a branch that it does not take",
    "a revision beyond all bounds",
    "an unknown compaction was done and then not",
    "a refusal at the deadline, and the revision is there",
}
"""What does not show on one key by itself."""


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_what_may_happen_has_an_order(name: str, per_key: bool) -> None:
    """The search finds an order for every history that has one, over all keys and for each."""
    verdict = check_linearizable(parse(GOOD[name]), per_key=per_key)
    assert Finding.RIGHT is verdict.finding, verdict


@pytest.mark.parametrize("name", BAD)
def test_what_must_not_happen_has_none(name: str) -> None:
    """The search agrees with the replay on what is wrong, and names operations."""
    verdict = check_linearizable(parse(BAD[name][0]))
    assert Finding.WRONG is verdict.finding
    assert verdict.ops


@pytest.mark.parametrize("name", sorted(set(BAD) - SEEN_BY_ALL_KEYS_ONLY))
def test_a_key_by_itself_shows_what_is_wrong_with_it(name: str) -> None:
    """What is wrong on one key, or on keys that an operation joins, is found without the others."""
    assert Finding.WRONG is check_linearizable(parse(BAD[name][0]), per_key=True).finding


@pytest.mark.parametrize("name", BAD_FOR_REVISIONS)
def test_local_reads_are_not_its_business(name: str) -> None:
    """A read that need not be linearizable is left out."""
    assert Finding.RIGHT is check_linearizable(parse(BAD_FOR_REVISIONS[name][0])).finding


def test_past_its_bound_it_is_undecided() -> None:
    """A search that is cut off approves of nothing."""
    text = "\n".join([f"a 0- put k{i} 1 -> ?" for i in range(12)] + ["b 1-2 get x -> x=1@13 at 13"])
    verdict = check_linearizable(parse(text), states_max=300)
    assert Finding.UNDECIDED is verdict.finding
    assert not verdict.ok


def test_what_others_saw_keeps_unknown_writes_from_being_tried() -> None:
    """Twelve writes that may have happened at any time add nothing to the search once it was seen that they did not."""
    verdict = check_linearizable(parse(untouched(12)))
    assert Finding.RIGHT is verdict.finding
    assert verdict.states <= 12 + 2 + 1 + 12


def test_no_place_is_gone_on_from_twice() -> None:
    """Reads that overlap can be done in 5,040 orders, but there are 128 sets of them."""
    reads = [f"b{i} 0-9 get x -> - at 1" for i in range(7)]
    verdict = check_linearizable(parse("\n".join([*reads, "c 20-21 get x -> x=1@1 at 1"])))
    assert Finding.WRONG is verdict.finding
    assert verdict.states <= 128
