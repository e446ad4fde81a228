"""`Simulation`: a cluster of real members and its clients, in virtual time, under one seed.

.. code-block:: text

    Simulation(seed)
      ├── SimLoop ── SimNetwork ── Links          one world: time, streams, what is wrong with them
      ├── Host n1, n2, n3  (SimDisk, SimClock)    program: Node(ObservedStorage(FileStorage), ObservedTransport(Tcp...))
      ├── Host n4, n5 ...                         machines that may join, if the swarm has any to spare
      ├── Host c1, c2 ...                         programs of clients, or of the user
      ├── Operator                                takes members in and out
      ├── RaftInvariants ── after every pass      what must hold at every moment
      ├── History                                 what clients asked and heard
      └── Trace                                   what happened

Everything random is forked from the seed by name (`Simulation.random`), so that no part shifts another's chances.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.codec import PeerMessage
from pyraftkv.core import Role, Save
from pyraftkv.engine import Engine
from pyraftkv.log import FileStorage
from pyraftkv.log.base import Recovered
from pyraftkv.node import Node
from pyraftkv.node.bootstrap import first_ids
from pyraftkv.sim.check.history import History, Op
from pyraftkv.sim.check.raft import RaftInvariants
from pyraftkv.sim.check.recorded import RecordedKV
from pyraftkv.sim.disk import DiskProfile, SimDisk
from pyraftkv.sim.faults import BESIDE, LEADER, Fault
from pyraftkv.sim.host import Host, Program
from pyraftkv.sim.injector import Injector, Step
from pyraftkv.sim.links import LinkProfile
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.network import SimNetwork
from pyraftkv.sim.observed import ObservedStorage, ObservedTransport, PeerTraffic
from pyraftkv.sim.orders import Operator
from pyraftkv.sim.process import SimProcess
from pyraftkv.sim.report import SimFailure
from pyraftkv.sim.swarm import Swarm
from pyraftkv.sim.target import SimTarget
from pyraftkv.sim.trace import Trace
from pyraftkv.statemachine import Factories
from pyraftkv.transport import TcpDialer, TcpTransport

T = TypeVar("T")

PORT = 2380
DATA_DIR = "/data"

UNUSABLE = (
    errors.WalCorruption,
    errors.SnapshotCorruption,
    errors.ForeignDataDir,
    errors.DataDirRolledBack,
    errors.UnsupportedFormat,
)
"""What says that a directory cannot be started from, now or later; any other error of a disk may pass."""

IMAGE_SECONDS = 10.0
"""How often the bare disks are compared with what the storages claim to have completed."""


class Simulation:
    """A cluster that runs in virtual time: a context manager.

    Args:
        seed: Decides everything.
        swarm: How the cluster is built and what is normal for its links and disks.
        members: How many members, in place of the swarm's number.
        machines: State machines beside the store, by name: what makes each of them.

    >>> async def main(sim: Simulation) -> str:
    ...     async with sim.client() as kv:
    ...         await kv.put("greeting", "hello")
    ...         return (await kv.get("greeting")).text
    >>> with Simulation(seed=1) as sim:
    ...     sim.run(main)
    'hello'
    """

    def __init__(
        self,
        seed: int,
        *,
        swarm: Swarm | None = None,
        members: int | None = None,
        machines: Factories | None = None,
    ) -> None:
        self.seed = seed
        self._machines = machines
        self.swarm = swarm or Swarm()
        self.trace = Trace()
        self.history = History()
        self.loop = SimLoop(self.random("loop"))  # type: ignore[abstract]  # what it lacks it refuses
        self.network = SimNetwork(self.loop, self.random("network"))
        self.network.links.set_default(
            LinkProfile(latency_seconds=self.swarm.latency_seconds, bandwidth_bytes=self.swarm.bandwidth_bytes)
        )
        count = members or self.swarm.members
        self.addresses = {f"n{number}": f"n{number}:{PORT}" for number in range(1, count + self.swarm.spares + 1)}
        """Of the members, and of the machines that may become some, by name."""
        self._founders = dict(list(self.addresses.items())[:count])
        self.witness = list(self._founders)[-1] if self.swarm.witness else ""
        """The machine of the member that keeps no state."""
        self._joining: set[str] = set()
        """The machines that join a cluster, and are not among its first members."""
        ids = first_ids(self._founders)
        self.hosts: dict[str, Host] = {}
        """Every machine, by name."""
        witnesses = {ids[self.witness]} if self.witness else set[int]()
        self.invariants = RaftInvariants(ids, witnesses=witnesses, violated=self.violated)
        self.traffic = PeerTraffic(now=self.now, observer=self, is_up=self._is_up)
        self.messages = 0
        """Messages between members that arrived."""
        self.faults: list[Fault] = []
        self.failure: SimFailure | None = None
        self.embedded: Callable[[Host, Node], Coroutine[Any, Any, None]] | None = None
        """What the members' own programs do beside running their node."""
        self.operator = Operator(self)
        self._seen: dict[str, tuple[object, ...]] = {}
        for name in self.addresses:
            host = self.host(name, program=self._member)
            host.stepped = self._after_pass
            if name not in self._founders:
                self.invariants.newcomer(name)
                host.give_up()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of seed {self.seed}: {list(self.hosts.values())} at {self.now():.3f} s>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process. Idempotent."""
        self.loop.close()

    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.loop.now

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass, in the process that asks."""
        await asyncio.sleep(seconds)

    def random(self, name: str) -> Random:
        """Return the source of randomness of that name; the same one for the same seed, whatever else is drawn."""
        return self.fork(self.seed, name)

    @staticmethod
    def fork(seed: int, name: str) -> Random:
        """Return the source of randomness of a name under a seed."""
        return Random(f"{seed}/{name}")

    # --- Machines --------------------------------------------------------------------------------------------------

    def host(self, name: str, *, program: Program | None = None) -> Host:
        """Make a machine; `run` starts it, or `Host.start` one that was made while the simulation runs.

        Args:
            name: Its name and network address.
            program: What it runs at each start.

        Raises: `InvalidRequest` if it cannot be called so.
        """
        if name in self.hosts:
            raise errors.InvalidRequest(f"there is a host {name!r} already")
        if name in {"", LEADER, BESIDE}:
            raise errors.InvalidRequest(f"no host is called {name!r}: faults mean something else by that")
        swarm = self.swarm
        profile = DiskProfile(
            sync_seconds=swarm.sync_seconds,
            read_seconds=swarm.read_seconds,
            write_bytes_per_second=swarm.write_bytes_per_second,
        )
        host = self.hosts[name] = Host(
            name,
            loop=self.loop,
            trace=self.trace,
            random=self.random(f"host {name}"),
            disk=SimDisk(self.random(f"disk {name}"), profile=profile),
            addresses=list(self.addresses.values()),
            program=program,
            died=self.traffic.forget,
            ended=self.judge,
        )
        return host

    @property
    def members(self) -> list[Host]:
        """The machines on which members live, lived, or may live yet, in order."""
        return [self.hosts[name] for name in self.addresses]

    def renew(self, name: str) -> Host:
        """Make a machine an empty one, which joins the cluster once it is started; return it."""
        self._joining.add(name)
        self.invariants.newcomer(name)
        self.hosts[name].begin_anew()
        return self.hosts[name]

    def _is_up(self, name: str) -> bool:
        """Whether a machine runs: not one of a member that was expected, and removed before it ever came."""
        return name in self.hosts and self.hosts[name].is_up

    def _name_of(self, member_id: int) -> str:
        """Return the machine of a member: of one that has not joined yet, the one at the address that others know."""
        name = self.invariants.name_of(member_id)
        if name is not None:
            return name
        tables = (host.member.replica.roster.members for host in self.members if host.member is not None)
        addresses = (table[member_id].address for table in tables if member_id in table)
        return next(addresses, f"member-{member_id}").partition(":")[0]

    @property
    def leader(self) -> Host | None:
        """The machine whose member leads in the highest term."""
        nodes = [host for host in self.members if host.node is not None and host.node.is_leader]
        return max(nodes, key=lambda host: host.node.term if host.node is not None else 0) if nodes else None

    def client(self, *, name: str = "harness", timeout: float = 5.0) -> Client:
        """Make a client in the process that runs the simulation; enter it to use it."""
        return Client(
            list(self.addresses.values()), dialer=TcpDialer(), name=name, timeout=timeout, rng=self.random(name)
        )

    def recorded(self, engine: Engine, client: str, *, member: str = "") -> RecordedKV:
        """Return ``engine`` with everything that is asked of it written into the history, under that client's name."""
        return RecordedKV(engine, self.history, client=client, clock=self.now, member=member, noted=self._noted)

    def _noted(self, op: Op) -> None:
        host = op.client.partition("/")[0]
        if op.ended is None:
            self.trace.add(self.now(), host, "invoke", op=op.number, command=op.words)
        else:
            detail = {"error": op.error} if op.result is None else {"result": op.result}
            self.trace.add(self.now(), host, "return", op=op.number, outcome=op.outcome.value, **detail)

    async def _member(self, host: Host) -> None:
        """The program of a member's machine."""
        storage = FileStorage(
            DATA_DIR,
            fs=host.files,
            worker=host.worker,
            random=host.fork(),
            segment_bytes_max=self.swarm.segment_bytes_max,
        )
        transport = TcpTransport(listen=self.addresses[host.name], insecure=True, rng=host.fork())
        others = [address for name, address in self.addresses.items() if name != host.name]
        is_joining = host.name in self._joining
        node = Node(
            host.name,
            members={} if is_joining else self._founders,
            join=others if is_joining else [],
            witness=host.name == self.witness and not is_joining,
            machines=self._machines,
            storage=ObservedStorage(storage, name=host.name, observer=self),
            transport=ObservedTransport(
                transport,
                name=host.name,
                name_of=self._name_of,
                traffic=self.traffic,
                sending=self.invariants.sending,
                later=self.loop.call_later,
                random=host.fork(),
            ),
            config=self.swarm.config,
            rng=host.fork(),
            clock=host.clock.boot,
        )
        host.node = node
        async with node:
            assert node.failed is not None
            beside = asyncio.create_task(self.embedded(host, node)) if self.embedded is not None else None
            try:
                await asyncio.wait([node.failed])
            finally:
                if beside is not None:
                    beside.cancel()
                    await asyncio.wait([beside])

    # --- Running ---------------------------------------------------------------------------------------------------

    def run(self, main: Callable[[Simulation], Coroutine[Any, Any, T]], *, until: float = inf) -> T:
        """Start every machine and run ``main`` to its end, outside of all of them.

        Args:
            main: What is to be done; it gets this simulation.
            until: The virtual time at which it must be over, in seconds.

        Raises:
            SimFailure: An invariant broke, a member stopped by a bug, or a callback failed.
            SimTimeout: ``until`` has come.
        """
        for host in self.hosts.values():
            host.start()
        try:
            result = self.loop.run(main(self), until=until)
        except SimFailure:
            raise
        except ExceptionGroup as group:
            first = group.exceptions[0]
            notes = getattr(first, "__notes__", ())
            raise self.failed("no callback fails", ", ".join([repr(first), *notes])) from group
        self.check()
        return result

    def inject(self, faults: Sequence[Fault]) -> Injector:
        """Let these faults happen, at their times from now. Raises `FaultError`."""
        target = self.target()
        injector = Injector(target, faults, tell=self._tell)
        self.faults += faults
        for step in injector.steps:
            self.loop.at(self.now() + step.at, injector.do, step)
        return injector

    def target(self) -> SimTarget:
        """Return the cluster as faults see it."""
        return SimTarget(
            self.hosts,
            list(self.addresses),
            network=self.network,
            traffic=self.traffic,
            invariants=self.invariants,
            trace=self.trace,
            recorded=self.recorded,
            operate=self.operator.take,
            random=self.random,
            clock_rates=self.swarm.clock_rates,
        )

    def _tell(self, step: Step) -> None:
        fault = step.fault
        what = "begins" if step.begins else "ends"
        self.trace.add(self.now(), "", "fault", text=f"{fault.kind} {' '.join(fault.targets)} {what}")

    # --- Judging ---------------------------------------------------------------------------------------------------

    def violated(self, rule: str, text: str, cause: BaseException | None = None) -> None:
        """Note that a rule was broken: the run ends at the end of the pass. The first counts."""
        if self.failure is None:
            self.end_with(self.failed(rule, text)).__cause__ = cause

    def end_with(self, failure: SimFailure) -> SimFailure:
        """End the run at the end of the pass with this, or with what was to end it already; return what does."""
        if self.failure is None:
            self.failure = self.loop.failure = failure
        return self.failure

    def failed(self, rule: str, text: str, ops: Sequence[Op] = ()) -> SimFailure:
        """Return a failure of this run, as of now."""
        self.traffic.forget()
        self.trace.add(
            self.now(),
            "",
            "violation",
            text=f"{rule}: {text}",
            ops=[(op.client.partition("/")[0], op.number) for op in ops] or None,
        )
        return SimFailure(rule, text, seed=self.seed, faults=self.faults, trace=self.trace, ops=ops)

    def check(self) -> None:
        """Raise `SimFailure` if a rule was broken."""
        if self.failure is not None:
            raise self.failure

    def _after_pass(self, process: SimProcess) -> None:
        """Look at a member after a pass of its process."""
        name = process.host_name
        host = self.hosts[name]
        member = host.member
        if host.process is not process or member is None:
            return
        raft = member.raft
        if self.invariants.observe(name, raft):
            replica = member.replica
            if name != self.witness:
                self.invariants.applied(name, replica.applied_index, replica.store.published_revision)
            self.invariants.configured(name, raft.applied, raft.membership)
            self._trace_marks(name, raft.role, raft.term, raft.commit, replica.applied_index)

    def _trace_marks(self, name: str, role: Role, term: int, commit: int, applied: int) -> None:
        before = self._seen.get(name)
        now = self._seen[name] = (role, term, commit, applied)
        if before is None or before[:2] != now[:2]:
            self.trace.add(self.now(), name, "role", role=role.name.lower(), term=term)
        if before is None or before[2] != commit:
            self.trace.add(self.now(), name, "commit", index=commit)
        if before is None or before[3] != applied:
            self.trace.add(self.now(), name, "apply", index=applied)

    def judge(self, host: Host, error: BaseException | None) -> None:
        """Judge a program that ended by itself: only a bad disk may end a member's, or that it was removed.

        Or that its place is taken, on a machine that has lost a disk:

        1. A directory asks to be let in, and waits.
        2. It is lost, and the member that it was expected as is replaced by one of the same name.
        3. The request is granted now, long after who made it. The next directory on that machine is refused, until
           somebody replaces it again.
        """
        if error is None or host.name not in self.addresses:
            if error is not None:
                self.violated("no program fails", f"{host.name}: {error!r}", error)
            return
        if isinstance(error, errors.MemberRemoved) and self.invariants.is_gone(host.name):
            host.held = True
        elif isinstance(error, errors.MemberExists) and host.had_bad_disk:
            host.give_up()
        elif not isinstance(error, errors.StorageError):
            self.violated("no member stops by itself", f"{host.name}: {error!r}", error)
        elif not host.had_bad_disk:
            self.violated("a sound disk never fails", f"{host.name}: {error!r}", error)
        elif isinstance(error, UNUSABLE):
            if not host.is_rotten:
                self.violated("a disk that did not rot can be started from", f"{host.name}: {error!r}", error)
            host.give_up()

    # --- The bare disks --------------------------------------------------------------------------------------------

    def check_images(self) -> None:
        """Recover every member from its bare disk, as after a power loss now, and compare with what it claims."""
        images: dict[str, Recovered | None] = {}
        for host in self.members:
            images[host.name] = None if host.is_out else self._image(host)
        self.invariants.check_images(images)

    def _image(self, host: Host) -> Recovered | None:
        storage = FileStorage(
            DATA_DIR,
            fs=host.disk.durable_copy().mount(),
            random=Random(0),
            segment_bytes_max=self.swarm.segment_bytes_max,
        )
        try:
            return storage._open().recovered  # pyright: ignore[reportPrivateUsage] - recovery alone, without a life
        except errors.StorageError as error:
            if not host.is_rotten:
                self.violated("committed is durable", f"the disk of {host.name} cannot be recovered from: {error}")
            return None

    # --- What the wrappers tell ------------------------------------------------------------------------------------

    def started(self, name: str, recovered: Recovered) -> None:
        """A member opened its storage. Raises `WalCorruption` where rot passed for a torn tail."""
        if not self.invariants.started(name, recovered):
            # durability.md, "Residual risk": rot in the very last batch looks like a write that a crash has torn.
            raise errors.WalCorruption(f"{name}: rot took what was acknowledged", reason="rot in the last batch")
        self._seen.pop(name, None)

    def identified(self, name: str, member_id: int) -> None:
        """A member binds its directory to an id."""
        self.invariants.identified(name, member_id)

    def saving(self, name: str, save: Save) -> None:
        """A member hands a save to its storage."""
        self.invariants.saving(name, save)

    def completed(self, name: str, number: int) -> None:
        """A member's storage has completed saves."""
        self.invariants.completed(name, number)

    def promised(self, name: str, number: int) -> None:
        """A member's storage has made a term and a vote durable, ahead of the saves that wait for room."""
        self.invariants.promised(name, number)

    def arrived(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None:
        """A message between members arrived."""
        self.messages += 1
        now = self.loop.now
        self.trace.add(now, source, "message", target=target, what=message, sent_at=sent_at, arrived_at=now)

    def lost(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None:
        """A message between members never arrived."""
        self.trace.add(self.loop.now, source, "message", target=target, what=message, sent_at=sent_at, fate="dropped")
