"""What a leader knows of one follower: windows, states, and echoes that must change nothing."""

from __future__ import annotations

import pytest

from pyraftkv.core.progress import PROBE, REPLICATE, SNAPSHOT, Inflights, Progress


def _progress(*, match: int = 0, next_index: int = 1, messages_max: int = 4, bytes_max: int = 100) -> Progress:
    progress = Progress(
        2, next_index=next_index, active_tick=0, inflights=Inflights(messages_max=messages_max, bytes_max=bytes_max)
    )
    progress.match = match
    return progress


def test_a_window_is_bounded_in_messages() -> None:
    """The window is full at `messages_max`, and frees whole messages by their last index."""
    inflights = Inflights(messages_max=2, bytes_max=1_000)
    inflights.add(last_index=3, size_bytes=10)
    assert not inflights.full
    inflights.add(last_index=7, size_bytes=20)
    assert inflights.full
    inflights.free_to(6)
    assert (len(inflights), inflights.size_bytes, inflights.full) == (1, 20, False)
    inflights.free_to(7)
    assert (len(inflights), inflights.size_bytes) == (0, 0)


def test_a_window_is_bounded_in_bytes() -> None:
    """The message that crosses the bound goes; the next does not."""
    inflights = Inflights(messages_max=10, bytes_max=100)
    inflights.add(last_index=1, size_bytes=99)
    assert not inflights.full
    inflights.add(last_index=2, size_bytes=99)
    assert inflights.full
    with pytest.raises(AssertionError, match="full"):
        inflights.add(last_index=3, size_bytes=1)


def test_a_probe_is_sent_one_at_a_time() -> None:
    """PROBE sends a message, then waits; `next` does not run ahead."""
    progress = _progress(next_index=5)
    assert progress.can_send
    progress.sent_append(count=3, size_bytes=30)
    assert (progress.next, progress.can_send) == (5, False)
    assert progress.maybe_update(6)
    assert (progress.match, progress.next, progress.can_send) == (6, 7, True)


def test_replication_runs_ahead_as_far_as_the_window() -> None:
    """REPLICATE moves `next` past what was sent."""
    progress = _progress(messages_max=2)
    progress.become_replicate()
    progress.sent_append(count=3, size_bytes=30)
    assert (progress.next, progress.can_send) == (4, True)
    progress.sent_append(count=0, size_bytes=0)
    assert (progress.next, len(progress.inflights)) == (4, 1), "an empty append takes no room"
    progress.sent_append(count=1, size_bytes=10)
    assert not progress.can_send
    progress.inflights.free_to(3)
    assert progress.can_send
    progress.check()


@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_late_ack_changes_nothing(index: int) -> None:
    """`match` only rises."""
    progress = _progress(match=5, next_index=9)
    assert not progress.maybe_update(index)
    assert (progress.match, progress.next) == (5, 9)


def test_an_ack_between_match_and_next_keeps_next() -> None:
    """What was sent optimistically is still on its way."""
    progress = _progress(match=5, next_index=9)
    assert progress.maybe_update(7)
    assert (progress.match, progress.next) == (7, 9)


@pytest.mark.parametrize(("rejected", "hint", "next_index"), [(8, 6, 7), (8, 20, 8), (8, 0, 6), (8, 4, 6), (8, 5, 6)])
def test_a_rejected_probe_moves_next_back_but_not_to_match(rejected: int, hint: int, next_index: int) -> None:
    """`next` falls to the hint, never to `match` or below."""
    progress = _progress(match=5, next_index=9)
    progress.probe_sent = True
    progress.sent_commit = 8
    assert progress.maybe_decrease(rejected=rejected, hint=hint)
    assert (progress.match, progress.next, progress.can_send) == (5, next_index, True)
    progress.check()


@pytest.mark.parametrize("rejected", [3, 5, 7, 9])
def test_an_echo_of_an_older_probe_changes_nothing(rejected: int) -> None:
    """Only the answer to the newest probe counts."""
    progress = _progress(match=5, next_index=9)
    progress.probe_sent = True
    assert not progress.maybe_decrease(rejected=rejected, hint=5)
    assert (progress.next, progress.can_send) == (9, False)


def test_a_rejection_ends_replication_unless_it_is_old() -> None:
    """At or below `match` it answers a message from before; above, something was lost."""
    progress = _progress(match=5)
    progress.become_replicate()
    progress.sent_append(count=4, size_bytes=40)
    assert not progress.maybe_decrease(rejected=5, hint=1)
    assert (progress.state, progress.next) == (REPLICATE, 10)
    assert progress.maybe_decrease(rejected=9, hint=7)
    assert (progress.state, progress.next, len(progress.inflights)) == (PROBE, 6, 0)


@pytest.mark.parametrize(("ok", "next_index"), [(True, 21), (False, 6)])
def test_after_a_snapshot_the_follower_is_probed_once_heard(ok: bool, next_index: int) -> None:
    """Delivered: go on after it. Given up: go on from `match`. Either way wait for a sign of life."""
    progress = _progress(match=5)
    progress.become_snapshot(20)
    assert (progress.state, progress.can_send, progress.is_waiting) == (SNAPSHOT, False, True)
    assert not progress.maybe_decrease(rejected=progress.next - 1, hint=0)
    with pytest.raises(AssertionError, match="snapshot"):
        progress.sent_append(count=1, size_bytes=1)
    progress.end_snapshot(ok=ok)
    assert (progress.state, progress.next, progress.can_send) == (PROBE, next_index, False)
    progress.end_snapshot(ok=not ok)
    assert progress.next == next_index, "a second report means nothing"
    progress.check()


def test_nothing_is_sent_while_the_disk_is_read() -> None:
    """A fetch under way holds entries back in every state."""
    progress = _progress()
    progress.fetch = 1
    assert (progress.can_send, progress.is_waiting) == (False, True)
    progress.become_replicate()
    assert (progress.fetch, progress.can_send) == (0, True)
