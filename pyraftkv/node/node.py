"""`Node`: a member of the cluster inside your process, with the `KV` protocol on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from pyraftkv import codec, errors, futures
from pyraftkv.backup import SnapshotSource
from pyraftkv.codec import PeerMessage
from pyraftkv.core import LEADER, Save
from pyraftkv.engine import NOT_STARTED, Engine
from pyraftkv.kv import Consistency, Status
from pyraftkv.log.base import Recovered, Storage
from pyraftkv.machines import Machines
from pyraftkv.node import recovery
from pyraftkv.node.admission import check_size
from pyraftkv.node.applier import restore
from pyraftkv.node.bootstrap import Bootstrap, first_ids, genesis_entry
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.connections import Connections
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.events import EventHub, NodeEvent, NodeStopped, PeerConnected, PeerLost
from pyraftkv.node.identity import draw_life, roster_at_start, whose
from pyraftkv.node.joining import ask_in, become_voter
from pyraftkv.node.lease import boot_clock
from pyraftkv.node.machines import answer
from pyraftkv.node.member import Loops, Member
from pyraftkv.node.offers import Offers
from pyraftkv.node.status import status_of
from pyraftkv.node.watches import NodeWatch
from pyraftkv.node.witness import refuse_other_kind, replica_for
from pyraftkv.protocol import Envelope, GenesisOffer, Hello, MembersCommand, MembersResult, SnapshotPart, WatchCall
from pyraftkv.roster import Roster
from pyraftkv.server import ClientPort
from pyraftkv.sessions import Outcome
from pyraftkv.settings import RulesCommand, RulesResult
from pyraftkv.statemachine import Factories, MachineQuery, Operate, Operated
from pyraftkv.store.commands import Command, LeaseQuery, LookQuery, RangeQuery
from pyraftkv.store.values import KvHash, LeaseAnswer, LookResult, PutResult, RangeResult, Result
from pyraftkv.transport.base import Connection, Transport
from pyraftkv.transport.handshake import can_be_rolled_back

logger = logging.getLogger("pyraftkv.node")


class Node(Engine):
    """One member: an asynchronous context manager that runs while it is entered.

    Args:
        name: This member's name; one of ``members``.
        members: The names and addresses of the cluster's first members. Ignored once the data directory belongs to
            a cluster: the log says who its members are.
        storage: Where the log and the snapshots are kept.
        transport: How messages reach the other members.
        join: Addresses of a cluster that runs, to be taken in there, first as a learner. Nobody is asked any more once
            the data directory belongs to a cluster; but who finds itself a learner asks to be promoted.
        learner: With ``join``: stay a learner.
        witness: Vote and keep no keys (`core.witness`); for life, whatever it joins or begins.
        machines: State machines beside the store, by name: what makes each of them (`machines.Machine`).
        config: Timing and limits.
        rng: The source of election jitter and nonces; give a seeded one for repeatable tests.
        clock: A clock in seconds that counts the time for which the machine is suspended; the system's by default.
    """

    def __init__(
        self,
        name: str,
        *,
        members: Mapping[str, str] | None = None,
        storage: Storage,
        transport: Transport,
        join: Sequence[str] = (),
        learner: bool = False,
        witness: bool = False,
        machines: Factories | None = None,
        config: NodeConfig | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.config = config or NodeConfig()
        self.config.check()
        self._members = dict(members or {})
        self._join_addresses = list(join)
        self._stays_learner = learner
        self._is_witness = witness
        self._machines = Machines(None if witness else machines)
        self._storage = storage
        self._transport = transport
        self._rng = rng or random.Random()
        self._clock = clock or boot_clock()
        self._events = EventHub()
        self._disk = DiskHealth(name)
        self._clients = ClientPort(self)
        self._connections: Connections | None = None
        self._bootstrap: Bootstrap | None = None
        self._member: Member | None = None
        self._offers = Offers(send=transport.send)
        self._starting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None
        """Done when the node has stopped: with the error if it stopped by itself (a disk failed, a bug was met), with
        None if it was closed. None before the start."""

    def __repr__(self) -> str:
        if self._member is None or self._stopping is not None:
            return f"<Node {self.name}: {'closed' if self._stopping else 'starting'}>"
        raft = self._member.raft
        return f"<Node {self.name}: {raft.role.name.lower()} in term {raft.term}, applied {raft.applied}>"

    @property
    def address(self) -> str:
        """Where this member is reached."""
        return self._transport.address

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self._member is not None and self._stopping is None and self._member.raft.role is LEADER

    @property
    def term(self) -> int:
        """The Raft term this member is in; 0 before it runs."""
        return self._member.raft.term if self._member is not None else 0

    # --- Life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
        if self.failed is not None and self.failed.done() and exc[0] is None:
            self.failed.result()

    async def start(self) -> None:
        """Open the storage, find the other members, and run.

        Returns when this member runs (on a first start: when every listed member was heard of); a leader may not be
        elected yet, and calls wait for one.

        Raises:
            StorageError: The data directory cannot be used.
            DataDirRolledBack: It was found out to have less than was acknowledged.
            ConfigurationError: Names or addresses that cannot work.
            MemberExists: Another member of the cluster that it joins has its name or its address.
            MemberRemoved: It was removed while it was away.
            Closed: It was closed meanwhile, or started before: a node lives once, another one takes over its directory.
        """
        if self.failed is not None:
            raise errors.Closed(f"{self.name} was started before: open the directory again with another node")
        loop = asyncio.get_running_loop()
        self.failed = loop.create_future()
        self._starting = loop.create_task(self._start(), name=f"pyraftkv-{self.name}-start")
        try:
            await self._starting
        except asyncio.CancelledError as error:
            await self._stop(error)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not our caller was cancelled, but the start: somebody stopped the node, or it stopped itself.
            self.failed.result()
            raise errors.Closed(f"{self.name} was stopped before it had started") from None
        except BaseException as error:
            await self._stop(error)
            raise

    async def _start(self) -> None:
        recovered = await self._storage.start(
            failed=self._storage_failed, full=self._disk.filled, promised=self._disk.promised
        )
        if recovered.repaired:
            logger.warning("%s: %s", self.name, recovered.repaired)
        recovered = await recovery.finish(self._storage, recovered)
        if recovered.identity.is_rolled_back:
            raise errors.DataDirRolledBack(
                f"the data directory of {self.name} had less than was acknowledged, and is no member's any more: "
                "`pyraftkv rebuild` makes another member of it"
            )
        await self._join(recovered)

    async def _join(self, recovered: Recovered) -> None:
        """Become somebody: who the directory says, one of the first of a new cluster, or a new one of a running one."""
        identity = recovered.identity
        is_new = recovered.snapshot is None and not recovered.entries and not identity.cluster_id
        is_joining = is_new and bool(self._join_addresses)
        if self._join_addresses and not is_joining:
            logger.info("%s belongs to cluster %x: nobody is asked to take it in", self.name, identity.cluster_id)
        own = 0 if is_joining else identity.member_id or first_ids(self._members).get(self.name, 0)
        hello = Hello(
            identity.cluster_id,
            own,
            self.name,
            identity.incarnation,
            identity.boot_count,
            "",
            witness=self._is_witness,
            machines=self._machines.offer,
            start_term=recovered.hard_state.term,
            start_index=recovered.last_index,
            life=draw_life(self._rng),
        )
        self._connections = Connections(
            hello,
            {} if is_joining else self._members,
            transport=self._transport,
            clients=self._clients,
            election_timeout_seconds=self.config.election_timeout_seconds,
            removed=self._removed,
        )
        if is_new and not is_joining:
            self._bootstrap = Bootstrap(hello, self._members)
        await self._transport.start(hello, self)
        if self._bootstrap is not None:
            self._connections.dial()
            recovered = await self._found(self._bootstrap, recovered)
            self._bootstrap = None
        elif is_joining:
            recovered = await self._ask_in(recovered)
        await self._run(recovered)

    async def _ask_in(self, recovered: Recovered) -> Recovered:
        """Become a learner of a cluster that runs, and bind the directory to that."""
        taken_in = await ask_in(
            self.name,
            incarnation=recovered.identity.incarnation,
            addresses=self._join_addresses,
            transport=self._transport,
            rng=random.Random(self._rng.getrandbits(64)),
            witness=self._is_witness,
        )
        assert self._connections is not None
        self._connections.peers.expect(taken_in.members)
        identity = await self._storage.identify(cluster_id=taken_in.cluster_id, member_id=taken_in.added[0])
        return replace(recovered, identity=identity)

    async def _found(self, bootstrap: Bootstrap, recovered: Recovered) -> Recovered:
        """Agree on entry 1 with the other first members and make it durable."""
        payload = await bootstrap.genesis(self._transport.address)
        entry, hard_state = genesis_entry(payload)
        saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._storage.save(Save(0, hard_state, [entry], None), partial(futures.fulfil, saved))
        await saved
        return Recovered(recovered.identity, hard_state, None, [entry], 1)

    async def _run(self, recovered: Recovered) -> None:
        """Bind the directory to its cluster, wire the parts and start the loops."""
        connections = self._connections
        assert connections is not None
        replica = replica_for(recovered, witness=self._is_witness, machines=self._machines)
        if recovered.snapshot is not None:
            replica = await restore(recovered.snapshot, self._storage.read_snapshot(recovered.snapshot), replica)
        roster = roster_at_start(recovered, replica)
        cluster_id, own = whose(self.name, recovered, roster)
        refuse_other_kind(own, roster.membership, witness=self._is_witness)
        names = {member.name for member in roster.members.values()}
        strangers = sorted(self._members.keys() - names - {self.name})  # who joined later is none of the first
        if strangers and names:
            logger.warning(
                "%s: its cluster has the members %s; members= names %s too, in vain",
                self.name,
                sorted(names),
                strangers,
            )
        identity = await self._storage.identify(cluster_id=cluster_id, member_id=own, promises=self.config.lease_reads)
        hello = replace(
            connections.own,
            cluster_id=cluster_id,
            member_id=own,
            incarnation=identity.incarnation,
            boot_count=identity.boot_count,
            address=self._transport.address,
        )
        connections.identify(hello)
        connections.adopt(roster)
        self._member = member = Member(
            recovered,
            replica,
            member_id=identity.member_id,
            storage=self._storage,
            transport=self._transport,
            peers=connections.peers,
            events=self._events,
            config=self.config,
            rng=self._rng,
            members_changed=self._members_changed,
            disk=self._disk,
            clock=self._clock,
        )
        loops: Loops = {**member.loops(), "offers": partial(self._offers.run, connections.peers, own)}
        if self._join_addresses and not self._stays_learner:
            loops["promotion"] = partial(become_voter, member, self.name)
        for name, loop in loops.items():
            task = asyncio.get_running_loop().create_task(loop(), name=f"pyraftkv-{self.name}-{name}")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)
        # What was known to be committed when the member stopped is history by the time anybody asks for "now".
        await member.applied_to(recovered.hard_state.commit)

    def _members_changed(self, roster: Roster) -> None:
        """The log says who the members are from here on; if this one is none of them, it goes."""
        connections = self._connections
        assert connections is not None
        try:
            refuse_other_kind(connections.own.member_id, roster.membership, witness=self._is_witness)
        except errors.ConfigurationError as error:
            self._fail(error)
        else:
            connections.adopt(roster)

    def _removed(self) -> None:
        """Stop, with nothing wrong."""
        if self._stopping is None:
            logger.warning("%s stops: it was removed from its cluster", self.name)
            self._stop_soon(errors.MemberRemoved(f"{self.name} was removed from its cluster"))

    async def close(self) -> None:
        """Leave gracefully: finish writes under way, hand leadership over, then stop. Idempotent.

        Writes that could not finish within ``config.close_seconds`` fail as `MaybeApplied`.
        """
        member = self._member
        self._check_home()
        try:
            if member is not None and self._stopping is None:
                await self._hand_over(member)
        finally:
            await self._stop(None)  # who cancels a close wants it sooner, not never

    async def kill(self) -> None:
        """Stop at once, as if the process had died: nothing is finished and nobody is told. For tests."""
        self._check_home()
        self._storage.abandon()
        await self._stop(None)

    def _check_home(self) -> None:
        """Raise `WrongLoop` where what runs could not be waited for."""
        if self._member is not None and not all(task.done() for task in self._tasks):
            self._member.home.check()

    async def _hand_over(self, member: Member) -> None:
        """Let writes finish, then give leadership to the best follower; each as far as its time allows."""
        under_way = member.writes.futures()
        if under_way:
            await asyncio.wait(under_way, timeout=self.config.close_seconds)
        if member.raft.role is not LEADER or len(member.raft.membership.voters) < 2:
            return
        member.leadership.give_up("closing")
        try:
            async with asyncio.timeout(self.config.close_seconds):
                while member.raft.role is LEADER:
                    member.soft_state_changed.clear()
                    await member.soft_state_changed.wait()
        except TimeoutError:
            logger.warning("%s: closed as leader, nobody took over in time", self.name)

    async def _stop(self, cause: BaseException | None) -> None:
        """Stop once; whoever else asks waits for the same stop."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop_once(cause), name="pyraftkv-stop")
        await futures.shared(self._stopping)

    async def _stop_once(self, cause: BaseException | None) -> None:
        if self._connections is not None:
            self._connections.close()
        for task in self._tasks:
            task.remove_done_callback(self._loop_ended)
        running = [*self._tasks, self._starting] if self._starting is not None else self._tasks
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        try:
            # The clients first: they are to look for another member, not to be told that this one has failed.
            self._clients.close()
            if self._member is not None:
                await self._member.close(lambda sent: _stopped_error(cause, sent=sent))
            if isinstance(cause, errors.DataDirRolledBack):
                await self._remember_that_it_forgot()
            await self._transport.close()
        finally:
            await self._storage.close()
            if self.failed is not None and not self.failed.done():
                if cause is None or isinstance(cause, asyncio.CancelledError):
                    self.failed.set_result(None)
                else:
                    self.failed.set_exception(cause)
                    self.failed.exception()
            self._events.emit(NodeStopped(cause))

    async def _remember_that_it_forgot(self) -> None:
        """Note durably that the directory was rolled back: who found it out may not be there at its next start."""
        if self._connections is not None:
            own = self._connections.own
            with contextlib.suppress(errors.StorageError):  # a disk that fails now stops the member as well
                await self._storage.identify(cluster_id=own.cluster_id, member_id=own.member_id, rolled_back=True)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop never ends by itself: a bug, or the disk. The node stops, loudly."""
        error = None if task.cancelled() else task.exception()
        self._fail(error or RuntimeError(f"{task.get_name()} ended"))

    def _storage_failed(self, error: BaseException) -> None:
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._stopping is None:
            logger.critical("%s stops: %s", self.name, error, exc_info=error)
            self._stop_soon(error)

    def _stop_soon(self, error: BaseException) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self._stop_once(error), name="pyraftkv-stop")

    # --- The KV protocol -------------------------------------------------------------------------------------------

    def _present(self) -> Member:
        """Return what runs, be its state right or wrong. Raises `Closed`, `WrongLoop`."""
        if self._member is None or self._stopping is not None:
            raise errors.Closed(f"{self.name} {'is closed' if self._stopping else NOT_STARTED}")
        self._member.home.check()
        return self._member

    def _running(self) -> Member:
        """Return what runs, with something to answer, to be believed. Raises `Closed`, `Quarantined`, `NoState`."""
        member = self._present()
        member.guard.integrity.check()
        if self._is_witness:
            raise errors.NoState(f"{self.name} is a witness and keeps no keys: ask another member")
        return member

    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        member = self._running()
        member.admit(command)
        return await member.write(command, timeout)  # type: ignore[return-value]

    def write_put(self, key: bytes, value: bytes, timeout: float | None) -> Awaitable[PutResult]:
        """Apply a put without options, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        member = self._running()
        member.admit_put()
        deadline = member.deadline(timeout)
        session = member.sessions.ready
        if session is None:
            return self._write_put_later(member, key, value, deadline)
        return member.writes.put(session, key, value, deadline)

    @staticmethod
    async def _write_put_later(member: Member, key: bytes, value: bytes, deadline: float) -> PutResult:
        session = await member.sessions.with_room(deadline)
        return await member.writes.put(session, key, value, deadline)

    async def read(
        self,
        query: RangeQuery,
        consistency: Consistency,
        timeout: float | None,
        *,
        at_least: int = 0,
        bytes_max: int | None = None,
    ) -> RangeResult:
        """Answer a query. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `RequestTooLarge`, `Unavailable`.

        "lease" is answered as "linearizable" wherever there is no lease: never weaker than asked for.
        """
        member = self._running()
        store = await member.fresh(consistency, timeout, at_least=at_least)
        return await member.long_reads.finished(store.read(query, bytes_max=bytes_max))

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        member = self._running()
        return await member.long_reads.finished((await member.fresh(consistency, timeout)).look(query))

    def draw_lease_id(self) -> int:
        """Return an id for a new lease: above 0, at random."""
        return self._rng.getrandbits(62) + 1

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease, or ask about leases. Raises `Unavailable`."""
        member = self._running()
        return await member.leases.ask(query, member.deadline(timeout))

    def watch_range(
        self, key: bytes, end: bytes, *, start_revision: int, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> NodeWatch:
        """Start a watch. Raises `WatchCancelled`, `Overloaded`, `Closed`."""
        return self.open_watch(WatchCall(0, key, end, start_revision, prev_kv, no_put, no_delete))

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return await self._running().change_members(command, timeout)

    async def operate(self, command: Operate, timeout: float | None) -> Operated:
        """Apply an operation to a machine, exactly once. Raises `OperationRefused`, `NotApplied`, `MaybeApplied`."""
        member = self._running()
        member.admit_operation(command)
        result = await member.write(command, timeout)
        assert isinstance(result, Operated)
        return result

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated:
        """Ask a machine. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
        store, member = await self._running().fresh(consistency, timeout), self._running()
        return answer(query, member.replica.machines, member.peers, revision=store.published_revision)

    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members are, as of now. Raises `Unavailable`."""
        member = self._running()
        await member.reads.join(member.deadline(timeout))
        return replace(member.replica.roster.result(), leader=member.raft.leader)

    async def change_rules(self, command: RulesCommand, timeout: float | None) -> RulesResult:
        """Do a command on settings and alarms, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        result = await self._running().write(command, timeout)
        assert isinstance(result, RulesResult)
        return result

    async def rules_table(self, timeout: float | None) -> RulesResult:
        """Return settings and alarms, as of now. Raises `Unavailable`."""
        member = self._running()
        await member.reads.join(member.deadline(timeout))
        return member.replica.rules.result()

    async def space_won_back(self, revision: int, timeout: float | None) -> None:
        """Wait until this member has removed what was compacted at ``revision``. Raises `Unavailable`."""
        member = self._running()
        await member.compactions.join(revision, member.deadline(timeout))

    async def status(self, *, timeout: float | None = None) -> Status:  # noqa: ARG002  (the answer is always at hand)
        """Return this member's view of itself and of the cluster."""
        member, connections = self._present(), self._connections
        assert connections is not None
        return status_of(member, hello=connections.own, storage=self._storage.kind, alarms=self._local_alarms())

    async def hash_kv(self, revision: int = 0, *, timeout: float | None = None) -> KvHash:  # noqa: ARG002  (as above)
        """Return the hash of this member's history up to ``revision`` (0: its latest), as it is in memory now.

        Members whose `hash_revision` and `compact_revision` are the same have the same (etcd's HashKV). O(versions).

        Raises:
            Compacted: The revision is gone.
            FutureRevision: This member does not have it yet.
        """
        member = self._present()
        return await member.long_reads.finished(member.replica.store.hash_kv(revision))

    def _local_alarms(self) -> list[str]:
        """What is wrong with this member alone, as a status says it."""
        member = self._present()
        return self._disk.alarms + member.guard.alarms + member.single_copy.alarms

    async def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> str:
        """Let the member of that name lead, or the best of the others; return who leads now.

        Nothing happens if it leads already. A leader that hands over takes no writes meanwhile; they wait.

        Raises:
            MemberNotFound: There is no member of that name.
            InvalidRequest: It has no vote.
            LeadershipNotTransferred: It was given up after an election timeout, or there is nobody else.
            NoLeader: There is no leader that could hand over.
        """
        member = self._present()
        peers = member.peers
        ids = {peers.name(id_): id_ for id_ in peers.ids}
        if to is not None and to not in ids:
            raise errors.MemberNotFound(f"there is no member {to!r}")
        target = ids[to] if to is not None else None
        return peers.name(await member.leadership.transfer(target, member.deadline(timeout)))

    def events(self) -> AsyncIterator[NodeEvent]:
        """Yield what happens to this member from now on (see `node.events`), until it stops."""
        return self._events.subscribe()

    async def take_snapshot(self) -> None:
        """Write a snapshot of the present state to the data directory, and drop the log that it replaces."""
        await self._running().take_snapshot()

    async def snapshot_parts(self, consistency: Consistency, timeout: float | None) -> AsyncGenerator[SnapshotPart]:
        """Yield the parts of a snapshot of the present state. Raises `Unavailable`."""
        source = await self.open_snapshot(consistency, timeout)
        try:
            while not source.is_done:
                yield await source.part()
        finally:
            source.close()

    # --- For the server (see `server.Member`) ----------------------------------------------------------------------

    def write_encoded(self, payload: bytes, timeout: float) -> asyncio.Future[Outcome]:
        """Propose a client's encoded command. Raises `InvalidRequest`, `Overloaded`, `Closed`."""
        member = self._running()
        check_size(payload)
        try:
            envelope = codec.decode_logged(payload)
        except errors.PyraftkvError as error:
            raise errors.InvalidRequest(f"the command cannot be read: {error}") from None
        if not isinstance(envelope, Envelope) or envelope.session < 1 or envelope.sequence < 1:
            raise errors.InvalidRequest("the command names no session")
        member.examine(envelope.command)
        return member.writes.submit(envelope.session, envelope.sequence, payload, member.deadline(timeout))

    async def open_session(self, timeout: float) -> int:
        """Register a session for a client and return its id. Raises `NoLeader`, `WriteTimeout`."""
        member = self._running()
        return await member.open_session(member.deadline(timeout))

    async def open_snapshot(self, consistency: Consistency, timeout: float | None) -> SnapshotSource:
        """Pin the state, to be handed out in parts. Raises `Unavailable`."""
        member = self._running()
        if consistency != "local":
            await member.reads.join(member.deadline(timeout))
        return SnapshotSource(await member.pin())

    def open_watch(self, call: WatchCall) -> NodeWatch:
        """Start a watch. Raises `WatchCancelled`, `Overloaded`, `Closed`."""
        return self._running().watches.open(call)

    # --- For the transport (see `transport.Handler`) ---------------------------------------------------------------

    def peer_hello(self, hello: Hello) -> None:
        """Judge a peer's HELLO. Raises `HandshakeRejected`."""
        connections = self._connections
        assert connections is not None
        connections.judge(hello)
        if self._member is not None:
            connections.peers.judge_memory(hello, self._member.raft.promise_of(hello.member_id))
        if connections.peers.is_another_life(hello):
            self.peer_gone(hello.member_id)
        if self._bootstrap is not None:
            self._bootstrap.heard(hello)
        connections.heard(hello)
        self._events.emit(PeerConnected(hello.member_id, hello.name))
        if hello.cluster_id == 0:
            self._offers.came(hello.member_id)

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        """Take messages from a peer."""
        if self._member is not None:
            self._offers.heard(messages)
            self._member.received(messages)
        elif self._bootstrap is not None:
            for message in messages:
                if isinstance(message, GenesisOffer):
                    self._bootstrap.offered(message)

    def peer_lost(self, member_id: int) -> None:
        """Messages to a peer were lost."""
        assert self._connections is not None
        peers = self._connections.peers
        if peers.lost(member_id):
            self._events.emit(PeerLost(member_id, peers.name(member_id)))
        if self._member is not None:
            self._member.peer_lost(member_id)

    def peer_gone(self, member_id: int) -> None:
        """The process of a peer has ended."""
        if self._member is not None:
            self._member.succession.gone(member_id)

    def peer_refused(self, member_id: int, rejection: errors.HandshakeRejected) -> None:
        """A member refused our HELLO: who was removed, or has forgotten what it promised, has nothing to stay for."""
        assert self._connections is not None
        if rejection.reason == "removed":
            self._removed()
        elif rejection.reason == "rolled-back" and can_be_rolled_back(self._connections.own, rejection):
            self._fail(errors.DataDirRolledBack(f"{self.name} is refused by member {member_id}: {rejection}"))

    def client_connected(self, connection: Connection) -> None:
        """Serve a client, if this member runs."""
        if self._member is None or self._stopping is not None:
            connection.close()
        else:
            self._clients.accept(connection)


def _stopped_error(cause: BaseException | None, *, sent: bool) -> errors.PyraftkvError:
    """Return what a caller gets who waits while the node stops."""
    if not sent:
        return errors.Closed("the node stopped before the request was sent to anybody")
    if cause is None:
        return errors.NodeFailed("the node was closed with the write under way")
    return errors.NodeFailed(f"the node stopped with the write under way: {cause}")
