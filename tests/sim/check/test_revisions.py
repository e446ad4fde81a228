from __future__ import annotations

import pytest

from pyraftkv.sim.check import Finding, check_revisions, replay
from tests.sim.check.boards import BAD, BAD_FOR_REVISIONS, GOOD, untouched
from tests.sim.check.notation import parse

ALL_BAD = BAD | BAD_FOR_REVISIONS


@pytest.mark.parametrize("name", GOOD)
def test_what_may_happen_is_right(name: str) -> None:
    """Every history that one order explains passes."""
    verdict = check_revisions(parse(GOOD[name]))
    assert Finding.RIGHT is verdict.finding, verdict


@pytest.mark.parametrize("name", ALL_BAD)
def test_what_must_not_happen_is_told_in_words(name: str) -> None:
    """Every history that no order explains fails, and the verdict says what is wrong and names operations."""
    text, reason = ALL_BAD[name]
    verdict = check_revisions(parse(text))
    assert Finding.WRONG is verdict.finding
    assert reason in verdict.reason
    if reason != "nobody in the history can have made revision 3" or "?" in text:
        assert verdict.ops


def test_the_replay_knows_who_made_what() -> None:
    """Acknowledged and unknown writes are put at the revisions that they made."""
    replayed = replay(parse(GOOD["which unknown write it was shows much later"]))
    assert {revision: op.client for revision, op in replayed.makers.items()} == {2: "b", 3: "d", 4: "d"}
    assert {key: kv.value for key, kv in replayed.model.kvs.items()} == {b"y": b"1", b"z": b"2"}


MANY_UNKNOWN = "\n".join(
    [f"a 0- put k{i} 1 -> ?" for i in range(12)] + ["b 1-2 put x 1 -> 13", "b 3-4 get x -> - at 13"]
)


def test_past_its_bound_it_is_undecided() -> None:
    """A search that is cut off approves of nothing."""
    verdict = check_revisions(parse(MANY_UNKNOWN), states_max=500)
    assert Finding.UNDECIDED is verdict.finding
    assert not verdict.ok
    assert "more than 500" in verdict.reason


def test_what_is_played_again_counts_towards_the_bound() -> None:
    """Few ways to try, but each shows to be wrong only after hundreds of revisions."""
    lines = [f"a 0- put k{i} 1 -> ?" for i in range(6)]
    lines += [f"b {i}-{i} put x {i} -> {i + i // 200 + 3}" for i in range(600)]
    text = "\n".join([*lines, "b 700-701 delete a z -> 9 deleted at 605"])
    verdict = check_revisions(parse(text))
    assert Finding.WRONG is verdict.finding, verdict
    assert verdict.states > 300
    verdict = check_revisions(parse(text), states_max=300)
    assert Finding.UNDECIDED is verdict.finding


def test_what_others_saw_leaves_one_way_to_account_for_unknown_writes() -> None:
    """Each candidate is looked at once for each revision, not each together with each."""
    verdict = check_revisions(parse(untouched(12)))
    assert Finding.RIGHT is verdict.finding
    assert verdict.states <= 2 * 14


def test_a_verdict_prints_with_its_operations() -> None:
    """What is printed is enough to see what happened."""
    verdict = check_revisions(parse(BAD["a stale read"][0]))
    assert str(verdict).splitlines() == [
        "wrong: #2 saw revision 2, but #1, which had ended before it began, made revision 3",
        "    #1 a [2.0000–3.0000] put 'x' = '2' -> ok at revision 3",
        "    #2 b [4.0000–5.0000] get 'x' -> 'x' = '1' (mod 2, version 1) at revision 2",
    ]
