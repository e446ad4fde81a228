"""`simulate`: everything that one seed stands for, from the choice of the cluster to the last check.

.. code-block:: text

    start ──► safety phase ──────────────► liveness phase ─────────► end phase ──────────► checks
              clients ask, faults strike    all faults end; a core    all members that      history, watches,
              nothing wrong may happen      of a majority must elect, can start again do,   equal stores,
                                            commit and converge       and converge          the bare disks

Invariants hold throughout, after every pass of every member. In the liveness phase members outside of the core stay
down: a cluster must live with a majority, and with any majority. The bounds of both last phases are multiples of the
election timeout, plus what clients and dials may take to try again (`liveness_bound`).

A cluster that does nothing breaks no rule, so answering clients once it has recovered is a rule too (`CALM_SHARE_MIN`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import count
from math import inf
from random import Random
from typing import Any, Self

from pyraftkv import codec, errors
from pyraftkv.engine import Engine
from pyraftkv.node import Node
from pyraftkv.sessions import dump
from pyraftkv.sim.calling import FACTORIES, Caller, Calls, complaints, state_of
from pyraftkv.sim.check.history import Outcome
from pyraftkv.sim.check.revisions import replay
from pyraftkv.sim.check.watches import check_watches
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.host import Host
from pyraftkv.sim.injector import Injector
from pyraftkv.sim.process import SimProcess
from pyraftkv.sim.report import SimReport
from pyraftkv.sim.schedule import random_faults
from pyraftkv.sim.simulation import IMAGE_SECONDS, Simulation
from pyraftkv.sim.swarm import Swarm, random_swarm, with_orders
from pyraftkv.sim.tenancy import TTL_SECONDS, Tenancy, Tenant
from pyraftkv.sim.workload import PREFIX, Source, Watcher
from pyraftkv.store import Work
from pyraftkv.store.commands import FROM_KEY, RangeQuery

SECONDS = 30.0
"""How long a run lasts, the phases after the faults included, as far as they keep to it."""

SAFETY_SHARE = 0.75
"""How much of it is the safety phase."""

START_SECONDS_MAX = 30.0
"""How long the first start of a cluster may take that nothing befalls."""

CALM_SECONDS_MIN = 3.0
"""For so long at least clients go on after a majority has recovered, however long it took."""

CALM_SHARE_MIN = 0.25
"""The share of the operations due in that time that must be answered.

More than the members' own programs ask; not all, for some clients still look for a member that lives.
"""

EMBEDDED_SHARE = 0.2
"""The share of the operations that is asked by the members' own programs."""

SWEEPS_MAX = 2
"""How often a run fills in a thousand keys to delete them at once: every watch of it hears of each of them."""

LEASE_READS_PER_SECOND = 40.0
"""That the leader's own program asks for, where leaders have leases."""

SETTLE_SECONDS = 1.0
"""How long after the faults it is decided who can start again."""

ORDERS_SECONDS_MAX = 60.0
"""How long an operator may need for what it was told before the faults ended: it waits, and asks several times."""

STEP_KEYS = 1_000_000
"""Keys read at a time at the end, when nobody waits."""

POLL_SECONDS = 0.05
"""How often a phase looks whether it has come to its end."""


def liveness_bound(swarm: Swarm) -> float:
    """Return how many virtual seconds a healed majority has to elect, commit and converge.

    Ten election timeouts for elections that are split or begun in vain, and as long as it takes until dials and
    clients that have backed off the longest try again.
    """
    return 10.0 + 10 * swarm.config.election_timeout_seconds


def simulate(
    seed: int,
    *,
    seconds: float = SECONDS,
    swarm: Swarm | None = None,
    faults: Sequence[Fault] | None = None,
    members: int | None = None,
    orders_per_second: float = 0.0,
) -> SimReport:
    """Run one seed to its end.

    Args:
        seed: Decides everything that is not given.
        seconds: How long it lasts, in virtual time.
        swarm: How the cluster is built and used, in place of the seed's choice.
        faults: What befalls it, in place of the seed's choice.
        members: How many members, in place of the seed's choice.
        orders_per_second: How often they are changed, in place of the seed's choice whether they are at all.

    Raises:
        SimFailure: A rule was broken. The same arguments break it again.
        InvalidRequest: A time that cannot be, or faults (`FaultError`).
    """
    with Run(
        seed, seconds=seconds, swarm=swarm, faults=faults, members=members, orders_per_second=orders_per_second
    ) as run:
        return run.run()


class Run:
    """One run of one seed: a context manager. See `simulate` for the arguments."""

    def __init__(
        self,
        seed: int,
        *,
        seconds: float = SECONDS,
        swarm: Swarm | None = None,
        faults: Sequence[Fault] | None = None,
        members: int | None = None,
        orders_per_second: float = 0.0,
    ) -> None:
        if not 0 <= seconds < inf:
            raise errors.InvalidRequest(f"a run does not last {seconds} s")
        forks = Simulation.fork
        self.swarm = swarm or random_swarm(forks(seed, "swarm"), members=members)
        if orders_per_second:
            self.swarm = with_orders(self.swarm, forks(seed, "orders"), orders_per_second)
        self.sim = Simulation(seed, swarm=self.swarm, machines=FACTORIES if self.swarm.workload.callers else None)
        self.seconds = seconds
        self.safety_seconds = seconds * SAFETY_SHARE
        load = self.swarm.workload
        self.clients = [self.sim.host(f"c{number}", program=self._client) for number in range(1, load.clients + 1)]
        self.sim.embedded = self._embedded
        self.tenancy = Tenancy(
            self.sim.history,
            now=self.sim.now,
            at=self.sim.loop.at,
            slowest=self.swarm.clock_rates[0],
            violated=self.sim.violated,
        )
        self.calls = Calls()
        self.faults = (
            random_faults(
                forks(seed, "faults"),
                self.swarm,
                members=list(self.sim.addresses),
                clients=[host.name for host in self.clients],
                seconds=self.safety_seconds,
            )
            if faults is None
            else list(faults)
        )
        self.liveness_seconds = 0.0
        self._injector: Injector | None = None
        self._stopping = False
        self._last_revision = 0
        self._sweeps = 0
        self._busy: list[tuple[SimProcess, asyncio.Task[None]]] = []
        """Sources and watchers that may not have come to their end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sim.close()

    def run(self) -> SimReport:
        """Go through all phases. Raises `SimFailure`."""
        began = time.perf_counter()
        self.sim.run(self._phases)
        self._check_history()
        return self._report(time.perf_counter() - began)

    # --- Clients ---------------------------------------------------------------------------------------------------

    async def _client(self, host: Host) -> None:
        """The program of a client's machine."""
        load = self.swarm.workload
        rate = load.operations_per_second * (1 - EMBEDDED_SHARE) / (load.clients * load.in_flight)
        life = f"{host.name}/{host.boots}"
        async with host.client(timeout=load.request_seconds) as client, asyncio.TaskGroup() as group:
            for number in range(load.in_flight):
                name = f"{life}.{number}"
                self._ask(group, self.sim.recorded(client, name), name, host, rate)
            self._watch(group, self.sim.recorded(client, life), host)
            for number in range(load.tenants):
                name = f"{life}.e{number}"
                self._begin(group, host, self._tenant(self.sim.recorded(client, name), name, host).run())
            for number in range(load.callers):
                self._begin(group, host, self._caller(client, f"{life}.m{number}", host).run())
        await asyncio.Event().wait()  # its part is over, but a program that ends would be started again

    def _tenant(self, kv: Engine, name: str, host: Host) -> Tenant:
        load = self.swarm.workload
        return Tenant(
            kv,
            name,
            prefix=PREFIX,
            keys=load.keys,
            random=host.fork(),
            tenancy=self.tenancy,
            timeout=load.request_seconds,
            is_over=lambda: self._stopping,
        )

    def _caller(self, kv: Engine, name: str, host: Host) -> Caller:
        return Caller(
            kv,
            name,
            random=host.fork(),
            calls=self.calls,
            timeout=self.swarm.workload.request_seconds,
            is_over=lambda: self._stopping,
        )

    async def _embedded(self, host: Host, node: Node) -> None:
        """What a member's own program asks of its node. A witness has nothing to say."""
        if host.name == self.sim.witness:
            return
        load = self.swarm.workload
        rate = load.operations_per_second * EMBEDDED_SHARE / len(self.sim.addresses)
        life = f"{host.name}/{host.boots}"
        kv = self.sim.recorded(node, life, member=life)
        async with asyncio.TaskGroup() as group:
            self._ask(group, kv, life, host, rate)
            if load.lease_share:
                self._begin(group, host, self._read_by_lease(node, kv, host.fork()))
            if host.name == next(iter(self.sim.addresses)):
                self._watch(group, kv, host)

    async def _read_by_lease(self, node: Node, kv: Engine, random: Random) -> None:
        """Ask a member often while it believes to lead: a lease that is kept too long is so for a moment."""
        load = self.swarm.workload
        while not self._stopping:
            await asyncio.sleep(random.expovariate(LEASE_READS_PER_SECOND))
            if node.is_leader:
                key = f"{PREFIX}{random.randrange(load.keys)}"
                with suppress(errors.PyraftkvError):
                    await kv.get(key, consistency="lease", timeout=load.request_seconds)

    def _may_sweep(self) -> bool:
        self._sweeps += 1
        return self._sweeps <= SWEEPS_MAX

    def _ask(self, group: asyncio.TaskGroup, kv: Engine, name: str, host: Host, rate: float) -> None:
        load = self.swarm.workload
        source = Source(
            kv, name, load, rate=rate, random=host.fork(), is_over=lambda: self._stopping, may_sweep=self._may_sweep
        )
        self._begin(group, host, source.run())

    def _watch(self, group: asyncio.TaskGroup, kv: Engine, host: Host) -> None:
        watcher = Watcher(
            kv, random=host.fork(), is_over=lambda: self._stopping, last_revision=lambda: self._last_revision
        )
        self._begin(group, host, watcher.run())

    def _begin(self, group: asyncio.TaskGroup, host: Host, work: Coroutine[Any, Any, None]) -> None:
        assert host.process is not None
        self._busy.append((host.process, group.create_task(work)))

    def _is_busy(self) -> bool:
        """Whether anybody has something to come to an end with; programs of members that were removed have not."""
        self._busy = [(process, task) for process, task in self._busy if process.alive and not task.done()]
        rules = self.sim.invariants
        return any(
            process.host_name not in rules.members or rules.is_current(process.host_name) for process, _ in self._busy
        )

    # --- Phases ----------------------------------------------------------------------------------------------------

    async def _phases(self, sim: Simulation) -> None:
        await self._until(lambda: sim.leader is not None, START_SECONDS_MAX, "the first start elects a leader")
        ends_at = sim.now() + self.seconds
        looking = asyncio.get_running_loop().create_task(self._look_at_disks())
        self._injector = sim.inject(self.faults)
        await asyncio.sleep(self.safety_seconds)
        async with sim.client(timeout=1.0) as client:
            kv = sim.recorded(client, "harness")
            others = await self._heal(kv)
            await self._stay_calm(max(ends_at - sim.now(), CALM_SECONDS_MIN))
            await self._end(kv, others)
        looking.cancel()
        sim.check_images()

    async def _stay_calm(self, seconds: float) -> None:
        """See that clients are answered while nothing befalls them."""
        before = self._acknowledged()
        await asyncio.sleep(seconds)
        answered, due = self._acknowledged() - before, self.swarm.workload.operations_per_second * seconds
        if answered < CALM_SHARE_MIN * due:
            raise self.sim.failed(
                "traffic", f"{answered} of {due:.0f} operations were answered in {seconds:.1f} s of calm"
            )

    async def _until(self, is_so: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something holds, for so many seconds at the most. Raises `SimFailure`."""
        gives_up_at = self.sim.now() + seconds
        while not is_so():
            if self.sim.now() >= gives_up_at:
                raise self.sim.failed("liveness", f"not within {seconds:g} s: {what}; {self.sim.members}")
            await asyncio.sleep(POLL_SECONDS)

    async def _look_at_disks(self) -> None:
        while True:
            await asyncio.sleep(IMAGE_SECONDS)
            self.sim.check_images()

    async def _heal(self, kv: Engine) -> list[Host]:
        """End every fault, and see a random majority recover without the others; return these."""
        assert self._injector is not None
        sim = self.sim
        self._injector.end_all()
        sim.operator.come_to_an_end()
        sim.trace.add(sim.now(), "", "fault", text="all faults end")
        bound = liveness_bound(self.swarm)
        if self.swarm.spares:
            await self._settle(bound)
        began = sim.now()
        await asyncio.sleep(SETTLE_SECONDS)
        usable = self._usable()
        sound = [host for host in usable if not host.is_rotten]
        random = Simulation.fork(sim.seed, "core")
        majority = len(sim.invariants.configurations.latest.voters) // 2 + 1
        if len(sound) < majority:
            raise sim.failed("liveness", f"{len(sound)} members can still start, and a majority is {majority}")
        core = random.sample(sound, majority)
        others = [host for host in usable if host not in core]
        for host in others:
            host.kill()
        names = sorted(host.name for host in core)
        revision = await self._write(kv, bound, f"{names} commit")
        await self._until(lambda: _have_applied(self._with_state(core), revision), bound, f"{names} converge")
        self.liveness_seconds = sim.now() - began
        if self.liveness_seconds > bound:
            raise sim.failed("liveness", f"{names} took {self.liveness_seconds:.1f} s, over {bound:g}")
        return others

    async def _settle(self, bound: float) -> None:
        """See the members come to rest: orders are done, nobody is left between two configurations, learners vote.

        Only then is it known of whom a majority has to recover. Who was removed is started again, as it is.
        """
        sim = self.sim
        rules = sim.invariants
        await self._until(lambda: sim.operator.is_idle, ORDERS_SECONDS_MAX, "the operator's orders are done")
        gives_up_at = sim.now() + bound
        while not (await sim.operator.settle() and self._are_of_one_mind()):
            if sim.now() >= gives_up_at:
                raise sim.failed(
                    "liveness",
                    f"not within {bound:g} s: the members settle at {rules.configurations.latest}; {sim.members}",
                )
            await asyncio.sleep(POLL_SECONDS)
        for host in sim.members:
            if rules.is_gone(host.name):
                host.start()

    def _are_of_one_mind(self) -> bool:
        """Whether every member runs, goes by the same configuration, and nobody is on the way in."""
        rules = self.sim.invariants
        members = [host.member for host in self._usable()]
        latest = rules.configurations.latest
        is_joining = any(not host.is_out and not rules.members[host.name].id for host in self.sim.members)
        return not is_joining and all(member is not None and member.raft.membership == latest for member in members)

    def _usable(self) -> list[Host]:
        """Return the members that can still start. Whether a rotten disk can be started from shows in the start."""
        return [host for host in self.sim.members if not host.is_out and self.sim.invariants.is_current(host.name)]

    def _with_state(self, hosts: Sequence[Host]) -> list[Host]:
        """Return those on which more lives than a witness."""
        return [host for host in hosts if host.name != self.sim.witness]

    async def _write(self, kv: Engine, seconds: float, what: str) -> int:
        """Write once, however often it takes; return the revision. Raises `SimFailure`."""
        gives_up_at = self.sim.now() + seconds
        for number in count():
            try:
                # Another value each time: one whose outcome is unknown may still come.
                return (await kv.put(f"{PREFIX}alive", f"{self.sim.now():.6f}.{number}")).revision
            except errors.PyraftkvError as error:
                if self.sim.now() >= gives_up_at:
                    raise self.sim.failed("liveness", f"not within {seconds:g} s: {what}; last {error!r}") from None
                await asyncio.sleep(POLL_SECONDS)
        raise AssertionError

    async def _end(self, kv: Engine, others: Sequence[Host]) -> None:
        """Start everybody who can, let the clients come to an end, and see that all members are equal."""
        sim, bound = self.sim, liveness_bound(self.swarm)
        for host in others:
            host.start()
        self._stopping = True
        self._last_revision = revision = await self._write(kv, bound, "the last write is committed")
        with_state = self._with_state
        await self._until(
            lambda: _have_applied(with_state(self._usable()), revision), bound, "every member has the last write"
        )
        await self._until(lambda: not self._is_busy(), bound, "clients end, and watches show the last write")
        if self.swarm.workload.tenants:
            ttl_seconds = max(TTL_SECONDS) / self.swarm.clock_rates[0]
            hosts = with_state(self._usable())
            await self._until(lambda: _have_no_leases(hosts), bound + ttl_seconds, "leases that nobody renews end")
        await self._until(lambda: _are_level(self._usable()), bound, "every member has applied the same log")
        first, *rest = with_state(self._usable())
        facts = _facts(first)
        for host in rest:
            if _facts(host) != facts:
                raise sim.failed("equal replicas", f"{host.name} differs from {first.name} at the same entry")
        assert first.member is not None
        for complaint in complaints(self.calls, first.member.replica.machines):
            raise sim.failed("machines", complaint)

    # --- The end ---------------------------------------------------------------------------------------------------

    def _check_history(self) -> None:
        history = self.sim.history
        forgotten = [op for op in history.ops if isinstance(op.error, errors.SessionExpired)]
        if forgotten:
            # Far fewer sessions and outcomes are kept than there is room for (`sessions`): nobody may have lost his.
            raise self.sim.failed("no session expires", "although there is room for all of them", forgotten)
        replayed = replay(history)
        for what, verdict in (
            ("linearizable", replayed.verdict),
            ("watches", check_watches(history, replayed)),
        ):
            if not verdict.ok:
                raise self.sim.failed(f"{what}: {verdict.finding.value}", verdict.reason, verdict.ops)

    def _acknowledged(self) -> int:
        return sum(op.outcome is Outcome.OK for op in self.sim.history.ops)

    def _report(self, real_seconds: float) -> SimReport:
        sim = self.sim
        assert self._injector is not None
        sim.traffic.forget()
        return SimReport(
            seed=sim.seed,
            members=self.swarm.members,
            virtual_seconds=sim.now(),
            real_seconds=real_seconds,
            operations=len(sim.history.ops),
            acknowledged=self._acknowledged(),
            watched=sum(len(each.events) for watch in sim.history.watches for each in watch.deliveries),
            messages=sim.messages,
            passes=sim.loop.passes_count,
            leaders=len(sim.invariants.leaders),
            faults=dict(sorted(self._injector.struck.items())),
            liveness_seconds=self.liveness_seconds,
            trace=sim.trace,
        )


def _have_applied(hosts: Sequence[Host], revision: int) -> bool:
    """Whether each of these members runs and shows at least that revision."""
    stores = [host.member.replica.store for host in hosts if host.member is not None]
    return len(stores) == len(hosts) and all(store.published_revision >= revision for store in stores)


def _have_no_leases(hosts: Sequence[Host]) -> bool:
    """Whether each of these members runs and has no lease any more."""
    stores = [host.member.replica.store for host in hosts if host.member is not None]
    return len(stores) == len(hosts) and not any(len(store.leases) for store in stores)


def _are_level(hosts: Sequence[Host]) -> bool:
    """Whether each of these members has applied all of the same log."""
    members = [host.member for host in hosts if host.member is not None]
    marks = {mark for member in members for mark in (member.raft.last_index, member.replica.applied_index)}
    return len(members) == len(hosts) and len(marks) == 1


def _facts(host: Host) -> list[object]:
    """Return what a member's replica says, in a form that two members share if they agree."""
    assert host.member is not None
    replica = host.member.replica
    store = replica.store
    answer = store.read(RangeQuery(b"\0", FROM_KEY))
    while isinstance(answer, Work):
        answer = answer.step(STEP_KEYS) or answer
    sessions = [codec.encode_table(part) for part in dump(replica.sessions.pin())]
    rows, machines = store.leases.rows(), state_of(replica.machines)
    return [replica.roster.plain(), store.compact_revision, answer, rows, sessions, machines]
