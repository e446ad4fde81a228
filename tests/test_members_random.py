"""Members come and go at random, in virtual time, while others crash and messages are lost: nothing acknowledged is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from pyraftkv import Cluster, errors
from pyraftkv.client import Client
from pyraftkv.sim import SimLoop
from tests.node.support import fast

STEPS = 20
"""What happens in one run, besides the writes."""

LANES = 3
"""Writers, each with keys of its own: the values of a key rise."""

VERBS = ("add", "add", "remove", "remove", "promote", "demote", "replace", "update")


class World:
    """One cluster, and everything that befalls it."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.db: Client = cluster.client()
        self.random = Random(seed)
        self.acknowledged: dict[str, int] = {}
        self.done: list[str] = []
        self.is_over = False

    async def write(self, lane: int) -> None:
        """Write until it is over; what is acknowledged is noted."""
        count = 0
        while not self.is_over:
            count += 1
            key = f"{lane}/{count % 3}"
            try:
                await self.db.put(key, str(count), timeout=self.random.choice([0.5, 10.0]))
            except (errors.NotApplied, errors.MaybeApplied):
                pass
            else:
                self.acknowledged[key] = count
            await asyncio.sleep(0.005)

    async def bury(self) -> None:
        """Take the nodes that stopped because they were removed out of the cluster; nobody else may stop."""
        while not self.is_over:
            await asyncio.sleep(0.05)
            for name, node in list(self.cluster.nodes.items()):
                if node.failed is not None and node.failed.done():
                    assert isinstance(node.failed.exception(), errors.MemberRemoved), (name, node.failed)
                    del self.cluster.nodes[name]
                    self.cluster.forget(name)

    async def change(self, verb: str) -> None:
        """Change the members. Whatever is refused or lost may be."""
        members = self.db.members
        try:
            names = [member.name for member in await members.list(timeout=3)]
            name = self.random.choice(names)
            if verb == "add" and len(names) < 6:
                await self.cluster.add(learner=self.random.random() < 0.3, timeout=8)
            elif verb == "replace":
                await members.replace(name, name=f"{name}x", address=f"{name}x", timeout=3)
                await members.remove(f"{name}x", timeout=3)  # nobody comes in its place
            elif verb == "update":
                await members.update(name, priority=self.random.randrange(3), timeout=3)
            elif verb != "add":
                await getattr(members, verb)(name, timeout=3)
        except (errors.PyraftkvError, TimeoutError):
            return
        self.done.append(verb)

    async def crash(self) -> None:
        """Kill a node, and start it again after a while, if it is still a member."""
        cluster = self.cluster
        if len(cluster.nodes) < 2:
            return
        name = self.random.choice(list(cluster.nodes))
        await cluster.kill(name)
        await asyncio.sleep(self.random.uniform(0.1, 1.5))
        try:
            await cluster.restart(name)
        except errors.MemberRemoved:
            cluster.forget(name)
        except errors.Closed:
            return  # It was killed again before it had started, and who did that starts it again.

    def disturb(self) -> None:
        """Lose messages, cut somebody off, or heal everything."""
        network, names = self.cluster.network, list(self.cluster.nodes)
        choice = self.random.random()
        if choice < 0.4:
            network.drop_rate = self.random.choice([0.05, 0.3])
        elif choice < 0.7 and len(names) > 1:
            network.cut(*self.random.sample(names, 2), both=self.random.random() < 0.5)
        else:
            self.heal()

    def heal(self) -> None:
        """End every disturbance."""
        self.cluster.network.drop_rate = 0.0
        self.cluster.network.heal()

    async def run(self) -> None:
        """Let everything happen, then heal, and look."""
        always = [asyncio.create_task(work) for work in (*map(self.write, range(LANES)), self.bury())]
        happening: list[asyncio.Task[Any]] = []
        for _ in range(STEPS):
            await asyncio.sleep(self.random.uniform(0.1, 1.0))
            choice = self.random.random()
            work: Coroutine[Any, Any, None] | None = None
            if choice < 0.6:
                work = self.change(self.random.choice(VERBS))
            elif choice < 0.8:
                work = self.crash()
            else:
                self.disturb()
            happening += [asyncio.create_task(work)] if work is not None else []
        self.heal()
        await asyncio.gather(*happening)
        await self.db.put("end", "", timeout=30)
        self.is_over = True
        await asyncio.gather(*always)
        found = {kv.key.decode(): int(kv.text or 0) async for kv in self.db.scan()}
        lost = {key: count for key, count in self.acknowledged.items() if found.get(key, 0) < count}
        assert not lost, (lost, found)
        assert self.done, "nothing was changed"


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_whoever_comes_and_goes_nothing_that_was_acknowledged_is_lost(seed: int) -> None:
    """And nobody stops but who was removed; the cluster goes on with those who are left."""

    async def main() -> None:
        async with Cluster.in_memory(1 + seed % 3, config=fast(), seed=seed) as cluster:
            await World(cluster, seed).run()

    loop = SimLoop(Random(seed))
    try:
        loop.run(main())
    finally:
        loop.close()
