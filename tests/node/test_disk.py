"""What a member does about its disk: what it refuses, whom it tells, when it hands over."""

from __future__ import annotations

import pytest

from pyraftkv import errors
from pyraftkv.core.messages import AppendRequest, AppendResponse, VoteRequest, VoteResponse
from pyraftkv.core.types import Entry
from pyraftkv.node.disk import DISK_FULL, SLOW_SAVE_SECONDS, WARNING_SECONDS, DiskHealth
from pyraftkv.store.commands import PutKey
from tests.node.support import asynchronous
from tests.node.test_driver import driven


def test_a_full_disk_refuses_writes_until_it_has_room() -> None:
    """Writes are refused as not applied, the alarm stands, and both end by themselves."""
    disk = DiskHealth("n1")
    disk.check()
    disk.filled(True)
    assert disk.alarms == [DISK_FULL]
    with pytest.raises(errors.DiskFull, match="n1") as caught:
        disk.check()
    assert isinstance(caught.value, errors.NotApplied)
    assert caught.value.retryable
    disk.filled(False)
    disk.check()
    assert disk.alarms == []


def test_a_full_disk_hands_over_at_once_and_then_again() -> None:
    """Not with every look, and not when it has room."""
    disk = DiskHealth("n1")
    reasons: list[str] = []

    def tend(now: float) -> None:
        disk.tend(now, again_seconds=1.0, give_up=reasons.append)

    tend(5.0)
    disk.filled(True)
    tend(6.0)
    tend(6.5)
    assert reasons == ["disk full"]
    tend(7.0)
    disk.filled(False)
    tend(9.0)
    assert reasons == ["disk full"] * 2
    disk.filled(True)
    tend(9.1)
    assert reasons == ["disk full"] * 3


def test_slow_saves_are_counted_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """Every one counts; what is said of them is bounded."""
    disk = DiskHealth("n1")
    disk.saved(SLOW_SAVE_SECONDS, now=1.0)
    assert (disk.slow_saves, caplog.text) == (0, "")
    for number in range(5):
        disk.saved(2 * SLOW_SAVE_SECONDS, now=2.0 + number)
    assert (disk.slow_saves, caplog.text.count("a save took 2.0 s")) == (5, 1)
    disk.saved(3.0, now=2.0 + WARNING_SECONDS)
    assert "6 were slow so far" in caplog.text


@asynchronous
async def test_a_vote_that_is_durable_leaves_before_what_acknowledges_entries() -> None:
    """The disk is full: an append waits, a vote of a later term does not, and is given once."""
    async with driven(2) as follower:
        assert await follower.after(AppendRequest(2, 1, 2, 1, 1, [Entry(2, 2, b"")], 1)) == []
        assert await follower.after(VoteRequest(2, 3, 4, 9, 9, False, True)) == []
        numbers = [save.number for save, _ in follower.disk.held]
        assert len(numbers) == 2
        follower.member.disk.promised(numbers[0])
        assert await follower.rest() == []
        follower.member.disk.promised(numbers[1])
        assert await follower.rest() == [VoteResponse(3, 2, 4, False, True)]
        assert await follower.after_a_save() == [AppendResponse(1, 2, 2, 2, False, 0, 0)]
        assert await follower.after_a_save() == []


@asynchronous
async def test_a_member_whose_disk_is_full_takes_no_writes() -> None:
    """Neither its own nor clients'; with room again it does."""
    async with driven(2) as follower:
        member = follower.member
        member.disk.filled(True)
        for admit in (member.admission.put, lambda: member.admission.command(PutKey(b"k", b"v"))):
            with pytest.raises(errors.DiskFull):
                admit()
        member.disk.filled(False)
        member.admission.put()


@asynchronous
async def test_saves_are_timed() -> None:
    """A save that is slow is noticed when it is done."""
    async with driven(2) as follower:
        loop = follower.member.driver._loop
        await follower.after(AppendRequest(2, 1, 2, 1, 1, [Entry(2, 2, b"")], 1))
        follower.member.driver._saves[0] = (follower.member.driver._saves[0][0], loop.time() - 3.0)
        await follower.after_a_save()
        assert follower.member.disk.slow_saves == 1
