"""`SimTarget`: the simulated cluster as faults see it (`pyraftkv.sim.faults.FaultTarget`)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

from pyraftkv import errors
from pyraftkv.core import TransferLeadership
from pyraftkv.engine import Engine
from pyraftkv.sim.check.raft import RaftInvariants
from pyraftkv.sim.faults import Ability, DiskFault, LinkFault, Order
from pyraftkv.sim.host import Host
from pyraftkv.sim.kinds import Range
from pyraftkv.sim.links import LinkProfile
from pyraftkv.sim.network import SimNetwork
from pyraftkv.sim.observed import PeerTraffic
from pyraftkv.sim.trace import Trace

BURST_VALUE_BYTES = 4096
"""Of each put that makes up a burst."""

BURST_KEYS = 8
"""How many keys a burst writes, over and over."""

BURST_PREFIX = "burst/"
"""Where these are."""


class SimTarget:
    """Does to hosts, links, disks and clocks what faults ask for.

    Args:
        hosts: Every machine, members and clients.
        members: The cluster's members, in their order.
        network: The network between them.
        traffic: Where faults of whole messages go.
        invariants: Told of disks that were damaged behind their member's back.
        trace: Where it is written down.
        operate: Takes orders for the operator.
        recorded: Records what is asked of an engine in the history of the run, under a client's name.
        random: Returns the source of randomness of a name.
        clock_rates: The least and the most of a clock's rate; one beyond is taken for the nearest.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        members: Sequence[str],
        *,
        network: SimNetwork,
        traffic: PeerTraffic,
        invariants: RaftInvariants,
        trace: Trace,
        recorded: Callable[[Engine, str], Engine],
        operate: Callable[[Order], None],
        random: Callable[[str], Random],
        clock_rates: Range = (0.0, inf),
    ) -> None:
        self._hosts = hosts
        self._network = network
        self._traffic = traffic
        self._invariants = invariants
        self._trace = trace
        self._recorded = recorded
        self._operate = operate
        self._random = random
        self._clock_rates = clock_rates
        self.members: Sequence[str] = tuple(members)
        self.clients: Sequence[str] = tuple(name for name in hosts if name not in members)
        self.abilities = ~Ability(0)

    def __repr__(self) -> str:
        return f"<SimTarget of {len(self.members)} members>"

    def _add(self, host: str, kind: str, what: object) -> None:
        self._trace.add(self._network.loop.now, host, kind, what=what)

    def leader(self) -> str | None:
        """Return the member that leads in the highest term, as far as anybody inside knows."""
        nodes = [node for name in self.members if (node := self._hosts[name].node) is not None and node.is_leader]
        return max(nodes, key=lambda node: node.term).name if nodes else None

    # --- Processes and power ---------------------------------------------------------------------------------------

    def kill(self, host: str) -> None:
        self._hosts[host].kill()

    def shut_down(self, host: str) -> None:
        self._hosts[host].shut_down()

    def start(self, host: str) -> None:
        self._hosts[host].start()

    def pause(self, host: str) -> None:
        self._hosts[host].pause()

    def resume(self, host: str) -> None:
        self._hosts[host].resume()

    def power_loss(self, host: str) -> None:
        self._hosts[host].power_loss()

    def power_loss_at(self, host: str, operation: int) -> None:
        self._hosts[host].power_loss_at(operation)

    # --- Links -----------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        self._network.links.cut(source, target)
        self._trace.add(self._network.loop.now, "", "cut", source=source, target=target)

    def heal(self, source: str, target: str) -> None:
        self._network.links.heal(source, target)
        self._trace.add(self._network.loop.now, "", "heal", source=source, target=target)

    def reset(self, a: str, b: str) -> None:
        self._network.links.reset(a, b)

    def set_link(self, source: str, target: str, fault: LinkFault) -> None:
        if fault == LinkFault():
            self._traffic.faults.pop((source, target), None)
        else:
            self._traffic.faults[source, target] = fault
        self._network.links.set_profile(source, target, _worse(self._network.links.default, fault))

    # --- Disks -----------------------------------------------------------------------------------------------------

    def set_disk(self, host: str, fault: DiskFault) -> None:
        self._hosts[host].set_disk(fault)

    def rot(self, host: str, seed: int) -> None:
        machine = self._hosts[host]
        machine.had_bad_disk = machine.is_rotten = True
        self._add(host, "disk", f"rot: {machine.disk.rot(Random(seed))}")
        if host in self.members:
            self._invariants.lost(host)

    def wipe(self, host: str) -> None:
        self._hosts[host].wipe()
        if host in self.members:
            self._invariants.lost(host)

    # --- Clocks ----------------------------------------------------------------------------------------------------

    def jump_clock(self, host: str, seconds: float) -> None:
        self._hosts[host].clock.jump(seconds)
        self._add(host, "clock", f"jumps {seconds:g} s ahead")

    def set_clock_rate(self, host: str, rate: float) -> None:
        slowest, fastest = self._clock_rates
        rate = min(max(rate, slowest), fastest)
        self._hosts[host].clock.set_rate(rate)
        self._add(host, "clock", f"runs at {rate:g}")

    def freeze(self, host: str) -> None:
        self._hosts[host].freeze()

    def thaw(self, host: str) -> None:
        self._hosts[host].thaw()

    def jump_wall_clock(self, host: str, seconds: float) -> None:
        clock = self._hosts[host].clock
        clock.set_wall(clock.wall() + seconds)
        self._add(host, "clock", f"wall clock jumps by {seconds:g} s")

    # --- The cluster -----------------------------------------------------------------------------------------------

    def transfer(self, member: str) -> None:
        leader = self._leading()
        if leader is not None and leader.name != member and leader.member is not None:
            leader.member.inbox.put(TransferLeadership(self._invariants.members[member].id))

    def compact(self) -> None:
        async def compact(kv: Engine) -> None:
            revision = (await kv.range(prefix=BURST_PREFIX, count_only=True)).revision
            await kv.compact(revision)

        self._ask(compact)

    def burst(self, size_bytes: int) -> None:
        # Named by its time, so that a burst that is left out changes no other one.
        value = self._random(f"burst at {self._network.loop.now:.6f}").randbytes(BURST_VALUE_BYTES)

        async def burst(kv: Engine) -> None:
            for number in range(size_bytes // BURST_VALUE_BYTES + 1):
                await kv.put(f"{BURST_PREFIX}{number % BURST_KEYS}", value)

        self._ask(burst)

    def operate(self, order: Order) -> None:
        self._operate(order)

    def _leading(self) -> Host | None:
        name = self.leader()
        return None if name is None else self._hosts[name]

    def _ask(self, question: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
        """Let the leader's process ask something of its own member; what comes of it is of no interest here."""
        leader = self._leading()
        if leader is None or leader.node is None or leader.process is None:
            return
        kv = self._recorded(leader.node, f"operator-{leader.process.name}")

        async def ask() -> None:
            with suppress(errors.PyraftkvError):
                await question(kv)

        leader.process.spawn(ask(), name=f"{leader.name}-operator")


def _worse(profile: LinkProfile, fault: LinkFault) -> LinkProfile | None:
    """Return how a link's streams behave under a fault; None: as usual. Whole messages are `PeerTraffic`'s business."""
    if not (fault.delay_seconds or fault.bandwidth_bytes or fault.corrupt_rate):
        return None
    low, high = profile.latency_seconds
    bandwidths = [each for each in (profile.bandwidth_bytes, fault.bandwidth_bytes) if each]
    return replace(
        profile,
        latency_seconds=(low + fault.delay_seconds, high + fault.delay_seconds),
        bandwidth_bytes=min(bandwidths, default=0.0),
        corrupt_rate=max(profile.corrupt_rate, fault.corrupt_rate),
    )
