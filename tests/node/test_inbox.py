"""The inbox: everything that came before a pass of the driver is taken in it, proposals as one."""

from __future__ import annotations

import asyncio

from pyraftkv.core import Input, Propose, Saved, Tick
from pyraftkv.node.inbox import Inbox
from tests.node.support import asynchronous


async def drained(inbox: Inbox) -> list[Input]:
    """Return what the driver would take."""
    await inbox.filled()
    return inbox.take()


@asynchronous
async def test_what_comes_together_is_taken_together() -> None:
    """Inputs in order, then one `Propose` with every payload."""
    inbox = Inbox(asyncio.get_running_loop())
    inbox.put(Saved(1))
    assert inbox.propose(b"a")
    inbox.extend([Tick(), Saved(2)])
    assert inbox.propose(b"b")
    assert await drained(inbox) == [Saved(1), Tick(), Saved(2), Propose([b"a", b"b"])]


@asynchronous
async def test_an_empty_inbox_waits() -> None:
    """Until the first urgent input; what is not urgent waits with it."""
    inbox = Inbox(asyncio.get_running_loop())
    waiting = asyncio.create_task(drained(inbox))
    await asyncio.sleep(0)
    inbox.put(Saved(1), urgent=False)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    inbox.put(Tick())
    inbox.put(Tick())
    assert await waiting == [Saved(1), Tick(), Tick()]
    waiting = asyncio.create_task(drained(inbox))
    await asyncio.sleep(0)
    inbox.wake()
    assert await waiting == []


@asynchronous
async def test_every_other_task_has_its_turn_before_a_batch_is_taken() -> None:
    """So that what they propose in this pass goes with it."""
    inbox = Inbox(asyncio.get_running_loop())
    inbox.propose(b"first")

    async def propose() -> None:
        inbox.propose(b"second")

    other = asyncio.create_task(propose())
    assert await drained(inbox) == [Propose([b"first", b"second"])]
    await other


@asynchronous
async def test_what_is_put_between_filled_and_taken_is_taken() -> None:
    """The batch of puts that is sealed there goes with this pass, and wakes nobody for another."""
    inbox = Inbox(asyncio.get_running_loop())
    inbox.wake()
    await inbox.filled()
    inbox.propose(b"sealed")
    assert inbox.take() == [Propose([b"sealed"])]
    waiting = asyncio.create_task(inbox.filled())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
