from __future__ import annotations

import pytest

from pyraftkv.sim.check import (
    FencedResource,
    Holding,
    LeaseLife,
    StaleToken,
    check_fencing,
    check_leases,
    check_locks,
)


def test_a_fenced_resource_refuses_what_is_older_than_what_it_has_seen() -> None:
    """The highest token wins, whoever comes last; the same one may write again."""
    resource = FencedResource()
    resource.write("a", 7, "one", at=1.0)
    resource.write("a", 7, "two", at=2.0)
    resource.write("b", 9, "three", at=3.0)
    with pytest.raises(StaleToken) as caught:
        resource.write("a", 7, "four", at=4.0)
    assert (caught.value.token, caught.value.highest) == (7, 9)
    assert resource.value == "three"
    assert [write.accepted for write in resource.writes] == [True, True, True, False]
    assert check_fencing(resource.writes).ok


def test_a_resource_that_is_not_fenced_shows_what_goes_wrong() -> None:
    """Who wakes up late overwrites what the next holder wrote."""
    resource = FencedResource(fenced=False)
    resource.write("a", 7, "one", at=1.0)
    resource.write("b", 9, "two", at=2.0)
    resource.write("a", 7, "three", at=3.0)
    assert resource.value == "three"
    verdict = check_fencing(resource.writes)
    assert not verdict.ok
    assert "a wrote 'three' at 3.0000 with token 7, after b had written with token 9" in verdict.reason


def test_two_clients_do_not_write_with_one_token() -> None:
    """A token is of one holder."""
    resource = FencedResource()
    resource.write("a", 7, "one", at=1.0)
    resource.write("b", 7, "two", at=2.0)
    assert "a and b both wrote with token 7" in check_fencing(resource.writes).reason


def test_holdings_may_overlap_in_time() -> None:
    """A lock does not exclude by the clock: a holder that was paused does not know that it has lost it."""
    assert check_locks([Holding(b"l", "a", 5, 0, 1), Holding(b"l", "b", 8, 0, 2), Holding(b"m", "b", 5, 0, 2)]).ok
    assert check_locks([Holding(b"l", "a", 5, 0, 1, released_revision=7), Holding(b"l", "b", 8, 2, 3)]).ok


@pytest.mark.parametrize(
    ("holdings", "reason"),
    [
        ([Holding(b"l", "a", 5, 0, 1), Holding(b"l", "b", 5, 2, 3)], "with the same token"),
        ([Holding(b"l", "a", 9, 0, 1), Holding(b"l", "b", 5, 2, 3)], "b asked after a newer token was out, but got 5"),
        ([Holding(b"l", "a", 5, 0, 1, 9), Holding(b"l", "b", 8, 2, 3)], "before it was given back at 9"),
    ],
)
def test_locks_are_handed_on_in_the_order_of_their_tokens(holdings: list[Holding], reason: str) -> None:
    """A token is given once, in real-time order, and after the one before was given back."""
    verdict = check_locks(holdings)
    assert not verdict.ok
    assert reason in verdict.reason


def test_a_lease_lives_as_long_as_it_was_renewed_for() -> None:
    """From the time the last confirmed renewal was sent, on the fastest clock allowed."""
    assert check_leases(
        [LeaseLife(1, 10.0, [0.0, 5.0], 15.0), LeaseLife(2, 10.0, [0.0]), LeaseLife(3, 1.0, [], 0.0)]
    ).ok
    early = LeaseLife(1, 10.0, [0.0, 5.0], 14.0)
    assert "lease 1 ended at 14.0000, but was renewed at 5.0000 for 10 s" in check_leases([early]).reason
    assert check_leases([early], clock_rate_max=1.2).ok
