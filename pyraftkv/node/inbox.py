"""The node's inbox: everything that happens to it, gathered until the loop takes it in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pyraftkv.core import Input, Propose


class Inbox:
    """Inputs for the Raft machine, in order; proposals made together become one `Propose`.

    Everything that arrives during one pass of the event loop is taken together: that is where batches come from.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inputs: list[Input] = []
        self._payloads: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._is_urgent = False
        """Whether anything here is worth a pass of its own."""

    def put(self, item: Input, *, urgent: bool = True) -> None:
        """Add one input. One that is not urgent waits for the next that is, a tick at the latest."""
        self._inputs.append(item)
        if urgent:
            self.wake()

    def extend(self, items: Iterable[Input], *, urgent: bool = True) -> None:
        """Add several inputs."""
        self._inputs += items
        if urgent:
            self.wake()

    def propose(self, payload: bytes) -> bool:
        """Add a payload to the batch that is proposed next; it is always taken."""
        self._payloads.append(payload)
        if not self._is_urgent:
            self.wake()
        return True

    @property
    def is_idle(self) -> bool:
        """Whether somebody waits in `filled`, and nothing has come to wake him."""
        return self._waiter is not None and not self._waiter.done()

    def fail(self, error: Exception) -> None:
        """Let `filled` raise."""
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Let `filled` return in the next pass of the event loop, even with nothing in it."""
        self._is_urgent = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():  # `fulfil` written out: once per message
            waiter.set_result(None)

    async def filled(self) -> None:
        """Wait for something urgent, or raise what `fail` was given. All other tasks run first: batches can grow."""
        if self._is_urgent:
            await asyncio.sleep(0)
        else:
            self._waiter = self._loop.create_future()
            await self._waiter
            self._waiter = None
        if self._error is not None:
            raise self._error

    def take(self) -> list[Input]:
        """Return all there is."""
        self._is_urgent = False
        inputs, self._inputs = self._inputs, []
        if self._payloads:
            inputs.append(Propose(self._payloads))
            self._payloads = []
        return inputs
