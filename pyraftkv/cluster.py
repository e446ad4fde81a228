"""`Cluster`: several real nodes in one process, to try things and to test with.

The nodes talk through an in-memory network that encodes and decodes every message, and keep their logs in memory: no
ports, no disk, and otherwise the same code as in production.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Self

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.log import MemoryStorage
from pyraftkv.node import Node, NodeConfig
from pyraftkv.roster import MEMBERS_MAX
from pyraftkv.statemachine import Factories
from pyraftkv.transport import MemoryNetwork

LEADER_POLL_SECONDS = 0.01


class Cluster:
    """Nodes ``n1``, ``n2`` ... of one cluster: an asynchronous context manager.

    Invariant: a name is either in `nodes` (running) or has only its storage (killed), from which `restart` revives it.
    """

    def __init__(
        self,
        names: list[str],
        *,
        config: NodeConfig | None = None,
        seed: int | None = None,
        witness: str = "",
        machines: Factories | None = None,
    ) -> None:
        self._rng = random.Random(seed)
        self._config = config
        self.machines: Factories = machines or {}
        """What makes the state machines of nodes that are started from now on."""
        self._members = {name: name for name in names}
        self._storages = {name: MemoryStorage(random=self._own_rng()) for name in names}
        self._joining: dict[str, bool] = {}
        """The nodes that joined later, and whether each of them stays a learner."""
        self._witnesses = {witness} - {""}
        self._clients: list[Client] = []
        self.network = MemoryNetwork(rng=self._own_rng())
        """The network between the nodes, where messages can be cut off, lost or delayed."""
        self.nodes: dict[str, Node] = {}
        """The nodes that run, by name."""

    @classmethod
    def in_memory(
        cls,
        size: int = 3,
        *,
        config: NodeConfig | None = None,
        seed: int | None = None,
        witness: bool = False,
        machines: Factories | None = None,
    ) -> Cluster:
        """Make a cluster of ``size`` nodes, the last of them a witness or not; it starts when it is entered."""
        if type(size) is not int or not 1 <= size <= MEMBERS_MAX:
            raise errors.ConfigurationError(f"a cluster has 1 to {MEMBERS_MAX} members, not {size!r}")
        names = [f"n{number}" for number in range(1, size + 1)]
        return cls(names, config=config, seed=seed, witness=names[-1] if witness else "", machines=machines)

    def __repr__(self) -> str:
        return f"<Cluster {list(self.nodes.values())}>"

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    async def __aenter__(self) -> Self:
        if self.nodes:
            raise errors.InvalidRequest(f"{self!r} runs already")
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._members:
                    group.create_task(self._start(name))
            await self.wait_for_leader()
        except ExceptionGroup as group:  # what one cannot be started with, the others cannot either
            await self.close()
            raise group.exceptions[0] from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def leader(self) -> Node:
        """The running node that leads in the highest term. Raises `NoLeader`."""
        leaders = [node for node in self.nodes.values() if node.is_leader]
        if not leaders:
            raise errors.NoLeader("no node leads at the moment")
        return max(leaders, key=lambda node: node.term)

    @property
    def followers(self) -> list[Node]:
        """The running nodes that do not lead."""
        leader = self.leader
        return [node for node in self.nodes.values() if node is not leader]

    async def wait_for_leader(self, *, timeout: float = 10.0) -> Node:
        """Wait until somebody leads. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return self.leader
                except errors.NoLeader:
                    await asyncio.sleep(LEADER_POLL_SECONDS)

    def client(self) -> Client:
        """Return a connected client, which finds the nodes that run. It closes with the cluster.

        Raises: `Closed` before the cluster is entered and after it is left.
        """
        if not self.nodes and not self._clients:
            raise errors.Closed("the cluster does not run: enter it with 'async with'")
        client = Client(list(self._members.values()), dialer=self.network.dialer(), rng=self._own_rng())
        client.start()
        self._clients.append(client)
        return client

    async def add(self, name: str = "", *, learner: bool = False, witness: bool = False, timeout: float = 30.0) -> Node:
        """Let another node join the running cluster, and wait until it votes (or is a learner); return it.

        Raises: `ConfigurationError` for a name that is there already; `TimeoutError`; what any read may raise.
        """
        name = name or f"n{1 + max([int(n[1:]) for n in self._members if n[1:].isdecimal()], default=0)}"
        if name in self._members:
            raise errors.ConfigurationError(f"there is a node {name!r} already")
        self._members[name] = name
        self._storages[name] = MemoryStorage(random=self._own_rng())
        self._joining[name] = learner
        self._witnesses |= {name} if witness else set()
        async with asyncio.timeout(timeout):
            node = await self._start(name)
            while witness:
                if (await node.status()).role != "learner":  # it has applied its own joining
                    return node
                await asyncio.sleep(LEADER_POLL_SECONDS)
            await node.members.list()  # linearizable: it has applied its own joining
            while True:
                if learner or (await node.status()).role != "learner":
                    return node
                await asyncio.sleep(LEADER_POLL_SECONDS)

    async def remove(self, node: Node | str, *, force: bool = False) -> None:
        """Take a node out of the cluster, for ever, and stop it.

        Raises: `QuorumAtRisk` unless ``force``; what any write may raise.
        """
        name = self._name(node)
        await self.client().members.remove(name, force=force)
        if name in self.nodes:
            await self.nodes.pop(name).kill()
        self.forget(name)

    def forget(self, name: str) -> None:
        """Let go of what a node had saved that does not run, and is no member any more.

        Raises: `ConfigurationError` if it runs, or was never there.
        """
        if self._name(name) in self.nodes:
            raise errors.ConfigurationError(f"{name} runs")
        del self._members[name], self._storages[name]

    def _name(self, node: Node | str) -> str:
        name = node if isinstance(node, str) else node.name
        if name not in self._members:
            raise errors.ConfigurationError(f"{name!r} is none of {sorted(self._members)}")
        return name

    async def kill(self, node: Node | str) -> None:
        """Stop a node at once, as if its process had died. What it had saved stays, for `restart`."""
        name = self._name(node)
        if name not in self.nodes:
            raise errors.ConfigurationError(f"{name} does not run")
        await self.nodes.pop(name).kill()

    async def restart(self, node: Node | str) -> Node:
        """Start a killed node again from what it had saved; return what runs now."""
        name = self._name(node)
        if name in self.nodes:
            raise errors.ConfigurationError(f"{name} runs already")
        return await self._start(name)

    async def close(self) -> None:
        """Stop every client and node. Idempotent."""
        clients, self._clients = self._clients, []
        for client in clients:
            await client.close()
        nodes, self.nodes = list(self.nodes.values()), {}
        await asyncio.gather(*(node.kill() for node in nodes))

    def _own_rng(self) -> random.Random:
        """Return a source of randomness for one part, so that no part shifts another's."""
        return random.Random(self._rng.getrandbits(64))

    async def _start(self, name: str) -> Node:
        node = Node(
            name,
            members={} if name in self._joining else self._members,
            join=[address for other, address in self._members.items() if other != name]
            if name in self._joining
            else [],
            learner=self._joining.get(name, False),
            witness=name in self._witnesses,
            machines=self.machines,
            storage=self._storages[name],
            transport=self.network.transport(self._members[name]),
            config=self._config,
            rng=self._own_rng(),
        )
        self.nodes[name] = node
        try:
            await node.start()
        except BaseException:
            if self.nodes.get(name) is node:
                del self.nodes[name]
            raise
        return node
