"""What watches of every engine have in common: how those who read one are woken."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch
from pyraftkv.watching import EventStream
from tests.node.support import asynchronous, until


def batch(*revisions: int) -> WatchBatch:
    """Return a batch of puts at these revisions."""
    events = [Event(EventType.PUT, KeyValue(b"k", b"%d" % each, each, each, 1)) for each in revisions]
    return WatchBatch(events, revisions[-1])


class Stream(EventStream):
    """Hands out what is laid down."""

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        self.batches_left: list[WatchBatch] = []
        self.passes = 0

    def lay_down(self, *batches: WatchBatch) -> None:
        """Add batches, and wake whoever waits."""
        self.batches_left += batches
        self._wake()

    async def next_batch(self) -> WatchBatch:
        while not self.batches_left:
            self.passes += 1
            await self._woken()
        return self.batches_left.pop(0)

    async def close(self) -> None:
        pass


async def waiting(stream: Stream, passes: int) -> None:
    """Wait until the readers have found nothing so many times."""
    await until(lambda: stream.passes >= passes)


@asynchronous
async def test_each_batch_goes_to_one_of_several_readers() -> None:
    """All are woken, and whoever finds nothing waits again."""
    stream = Stream()
    readers = [asyncio.create_task(stream.next_batch()) for _ in range(3)]
    await waiting(stream, 3)
    stream.lay_down(batch(2))
    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
    await waiting(stream, 5)
    stream.lay_down(batch(3), batch(4))
    taken = await asyncio.gather(*readers)
    assert sorted(each.revision for each in taken) == [2, 3, 4]


@asynchronous
async def test_a_reader_that_is_cancelled_takes_nobody_with_it() -> None:
    """1. Two read one watch, and the second waits for what the first waits for. 2. The first is cancelled.

    3. The second must not be, and still gets what comes; so does whoever asks after it.
    """
    stream = Stream()
    first, second = (asyncio.create_task(stream.next_batch()) for _ in range(2))
    await waiting(stream, 2)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    await waiting(stream, 3)
    assert not second.done()
    stream.lay_down(batch(2))
    assert (await second).revision == 2
    stream.lay_down(batch(3))
    assert (await stream.next_batch()).revision == 3


@asynchronous
async def test_nothing_is_lost_when_a_wait_is_given_up() -> None:
    """A reader that waits with a timeout, again and again, gets every batch."""
    stream = Stream()
    for revision in (2, 3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await stream.next_batch()
        stream.lay_down(batch(revision))
        assert (await stream.next_batch()).revision == revision


@asynchronous
async def test_the_revision_in_the_middle_of_a_batch() -> None:
    """Of the revision that is being read more may follow; when the next event is asked for, the batch is done."""
    stream = Stream()
    stream.lay_down(batch(2, 2, 4))
    events = aiter(stream)
    seen = []
    for _ in range(3):
        await anext(events)
        seen.append(stream.revision)
    assert seen == [1, 1, 3]
    stream.lay_down(batch(7))
    await anext(events)
    assert (stream.revision, repr(stream)) == (6, "<Stream at revision 6>")
