"""What a leader knows of one follower: windows, states, and echoes that must change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv.core.progress import PROBE, REPLICATE, SNAPSHOT, Inflights, Progress, ProgressState


def _progress(*, match: int = 0, next_index: int = 1, messages_max: int = 4, bytes_max: int = 100) -> Progress:
    progress = Progress(
        2, next_index=next_index, active_tick=0, inflights=Inflights(messages_max=messages_max, bytes_max=bytes_max)
    )
    progress.match = progress.acknowledged = match
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


# --- Naive twins -----------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 4), st.integers(1, 60))
def test_a_window_agrees_with_a_list(data: st.DataObject, messages_max: int, bytes_max: int) -> None:
    """Whatever is sent and answered: the window holds what was sent and not freed since."""
    inflights = Inflights(messages_max=messages_max, bytes_max=bytes_max)
    naive: list[tuple[int, int]] = []
    last = 0
    for _ in range(data.draw(st.integers(1, 20))):
        if not inflights.full and data.draw(st.booleans()):
            last += data.draw(st.integers(1, 3))
            size_bytes = data.draw(st.integers(0, 40))
            inflights.add(last_index=last, size_bytes=size_bytes)
            naive.append((last, size_bytes))
        elif data.draw(st.integers(0, 9)) == 0:
            inflights.clear()
            naive = []
        else:
            index = data.draw(st.integers(0, last + 1))
            inflights.free_to(index)
            naive = [message for message in naive if message[0] > index]
        total = sum(size_bytes for _, size_bytes in naive)
        assert (len(inflights), inflights.size_bytes) == (len(naive), total)
        assert inflights.full is (len(naive) >= messages_max or total >= bytes_max)


class NaiveProgress:
    """The same follower, as the history of what was sent to it and heard from it: nothing is kept up to date."""

    def __init__(self, next_index: int, messages_max: int) -> None:
        self.messages_max = messages_max
        self.acked = [0]
        """Every index that was acknowledged since the follower was lost."""
        self.state: ProgressState = PROBE
        self.guess = next_index
        """PROBE, SNAPSHOT: where the next entry would be taken from."""
        self.sent: list[int] = []
        """REPLICATE: the last index of every message with entries since it began."""
        self.freed = 0
        self.answered = True
        """PROBE: whether the last message was answered, or none was sent."""
        self.snapshot = 0
        self.fetching = False
        self.promised = 0

    @property
    def match(self) -> int:
        return max(self.acked)

    @property
    def next(self) -> int:
        return max([self.match, *self.sent]) + 1 if self.state is REPLICATE else max(self.guess, self.match + 1)

    @property
    def inflight(self) -> int:
        return sum(last > self.freed for last in self.sent)

    @property
    def can_send(self) -> bool:
        if self.fetching or self.state is SNAPSHOT:
            return False
        return self.answered if self.state is PROBE else self.inflight < self.messages_max

    def enter(self, state: ProgressState, *, guess: int = 0, answered: bool = True, snapshot: int = 0) -> None:
        """Begin another way of sending."""
        self.state, self.answered, self.snapshot = state, answered, snapshot
        self.guess = guess or self.match + 1
        self.sent, self.freed, self.fetching = [], 0, False


class ProgressTwins:
    """A `Progress` and its twin, taken through what a leader does with them."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        messages_max, next_index = self.draw(st.integers(1, 3)), self.draw(st.integers(1, 12))
        self.naive = NaiveProgress(next_index, messages_max)
        self.real = _progress(next_index=next_index, messages_max=messages_max, bytes_max=1 << 20)
        self.last_index = next_index + 6

    def send(self) -> None:
        """Send what fits, perhaps nothing."""
        if self.real.is_waiting or not self.real.can_send:
            return
        count = self.draw(st.integers(0, max(0, min(3, self.last_index - self.naive.next + 1))))
        self.real.sent_append(count=count, size_bytes=count)
        self.real.sent_commit = min(self.last_index, self.real.next - 1)
        if self.naive.state is PROBE:
            self.naive.answered = False
        elif count:
            self.naive.sent.append(self.naive.next + count - 1)

    def acknowledged(self) -> None:
        """Take an acknowledgement, of something that was sent at some time or of what came with a snapshot."""
        index = self.draw(st.integers(0, self.last_index))
        news = index > self.naive.match
        assert self.real.maybe_update(index) is news
        if news:
            self.naive.answered = True
            if self.naive.state is not REPLICATE:
                self.naive.guess = max(self.naive.guess, index + 1)
        self.naive.acked.append(index)
        self.naive.promised = max(self.naive.promised, index)
        if self.naive.state is REPLICATE:
            self.real.inflights.free_to(index)
            self.naive.freed = max(self.naive.freed, index)
        elif news or index == self.naive.match:
            self.real.become_replicate()
            self.naive.enter(REPLICATE)

    def rejected(self) -> None:
        """Take a rejection: an answer to the last probe, or an echo."""
        rejected, hint = self.draw(st.integers(0, self.last_index)), self.draw(st.integers(0, self.last_index))
        naive = self.naive
        if naive.state is REPLICATE:
            counts = rejected > naive.match
            if counts:
                naive.enter(PROBE)
        else:
            counts = naive.state is PROBE and rejected == naive.next - 1
            if counts:
                naive.guess, naive.answered = max(min(rejected, hint + 1), naive.match + 1), True
        assert self.real.maybe_decrease(rejected=rejected, hint=hint) is counts

    def lost(self) -> None:
        """The transport lost it: it is probed, and nothing that it acknowledged counts."""
        self.real.become_probe()
        self.real.match = 0
        guess = self.naive.match + 1
        self.naive.acked = [0]
        self.naive.enter(PROBE, guess=guess)

    def begin_snapshot(self) -> None:
        """It needs a snapshot."""
        if self.naive.state is PROBE:
            index = self.naive.next + self.draw(st.integers(0, 5))
            self.real.become_snapshot(index)
            self.naive.enter(SNAPSHOT, guess=self.naive.next, snapshot=index)

    def end_snapshot(self) -> None:
        """The snapshot was delivered or given up, or there was none."""
        ok = self.draw(st.booleans())
        self.real.end_snapshot(ok=ok)
        if self.naive.state is SNAPSHOT:
            after = self.naive.snapshot if ok else 0
            self.naive.enter(PROBE, guess=max(self.naive.match, after) + 1, answered=False)

    def fetch(self) -> None:
        """The disk is read for it, or was."""
        self.naive.fetching = not self.naive.fetching
        self.real.fetch = int(self.naive.fetching)

    def compare(self) -> None:
        """Both know the same."""
        real, naive = self.real, self.naive
        real.check()
        assert (real.acknowledged or 0) == naive.promised
        assert (real.state, real.match, real.next) == (naive.state, naive.match, naive.next)
        assert (len(real.inflights), real.pending_snapshot) == (naive.inflight, naive.snapshot)
        assert real.can_send is naive.can_send
        assert real.is_waiting is (naive.fetching or naive.state is SNAPSHOT)


@given(st.data())
def test_a_followers_progress_agrees_with_its_history(data: st.DataObject) -> None:
    """Whatever is sent, answered, echoed and lost: state, marks and window follow from what happened."""
    twins = ProgressTwins(data)
    steps = [
        twins.send,
        twins.send,
        twins.acknowledged,
        twins.rejected,
        twins.lost,
        twins.begin_snapshot,
        twins.end_snapshot,
        twins.fetch,
    ]
    for step in data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=30)):
        step()
        twins.compare()
