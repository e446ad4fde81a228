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

    def put(self, item: Input) -> None:
        """Add one input."""
        self._inputs.append(item)
        self._wake()

    def extend(self, items: Iterable[Input]) -> None:
        """Add several inputs."""
        self._inputs += items
        self._wake()

    def propose(self, payload: bytes) -> bool:
        """Add a payload to the batch that is proposed next; it is always taken."""
        self._payloads.append(payload)
        self._wake()
        return True

    async def drain(self) -> list[Input]:
        """Wait for something, and return all of it. Gives every other task one turn, so that batches can grow."""
        self._waiter = self._loop.create_future()
        if self._inputs or self._payloads:
            self._wake()
        await self._waiter
        self._waiter = None
        inputs, self._inputs = self._inputs, []
        if self._payloads:
            inputs.append(Propose(self._payloads))
            self._payloads = []
        return inputs

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
