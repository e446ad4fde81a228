"""What the simulator's own tests share: a loop, a network and named processes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from pyraftkv.sim.links import Links
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.network import SimNetwork
from pyraftkv.sim.process import SimProcess


class World:
    """A loop and a network; processes by name, one on every host."""

    def __init__(self, *, seed: int) -> None:
        print("seed", seed)  # noqa: T201 - shown when the test fails
        self.loop = SimLoop(Random(seed))
        self.network = SimNetwork(self.loop, Random(seed + 1))

    @property
    def links(self) -> Links:
        """The network's links."""
        return self.network.links

    def process(self, name: str) -> SimProcess:
        """The process on that host, started when it is first asked for."""
        process = self.loop.machines.get(name)
        return process if process is not None else self.loop.process(name)

    async def on(self, name: str, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in a process."""
        return await self.process(name).spawn(coro)

    def run(self, main: Callable[[World], Coroutine[Any, Any, Any]], *, until: float = 1000.0) -> Any:
        """Run ``main`` in the harness, then close the loop."""
        try:
            return self.loop.run(main(self), until=until)
        finally:
            self.loop.close()
