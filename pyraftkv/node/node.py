"""`Node`: a member of the cluster inside your process, with the `KV` protocol on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self

from pyraftkv import codec, errors
from pyraftkv.backup import SnapshotSource
from pyraftkv.core import LEADER
from pyraftkv.engine import Engine
from pyraftkv.kv import Consistency, Status
from pyraftkv.log.base import Storage
from pyraftkv.machines import Machines
from pyraftkv.node.admission import check_size
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.events import NodeEvent
from pyraftkv.node.life import Life
from pyraftkv.node.machines import answer
from pyraftkv.node.member import Member
from pyraftkv.node.status import status_of
from pyraftkv.node.watches import NodeWatch
from pyraftkv.protocol import Envelope, MembersCommand, MembersResult, SnapshotPart, WatchCall
from pyraftkv.server import ClientPort
from pyraftkv.sessions import Outcome
from pyraftkv.settings import RulesCommand, RulesResult
from pyraftkv.statemachine import Factories, MachineQuery, Operate, Operated
from pyraftkv.store.commands import Command, LeaseQuery, LookQuery, RangeQuery
from pyraftkv.store.values import KvHash, LeaseAnswer, LookResult, PutResult, RangeResult, Result
from pyraftkv.transport.base import Transport


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
        self._is_witness = witness
        self._storage = storage
        self._transport = transport
        self._rng = rng or random.Random()
        self._clients = ClientPort(self)
        self._life = Life(
            name,
            members=members or {},
            join=join,
            stays_learner=learner,
            is_witness=witness,
            machines=Machines(None if witness else machines),
            storage=storage,
            transport=transport,
            clients=self._clients,
            config=self.config,
            rng=self._rng,
            clock=clock,
        )

    def __repr__(self) -> str:
        member, is_over = self._life.member, self._life.is_over
        if member is None or is_over:
            return f"<Node {self.name}: {'closed' if is_over else 'starting'}>"
        raft = member.raft
        return f"<Node {self.name}: {raft.role.name.lower()} in term {raft.term}, applied {raft.applied}>"

    @property
    def failed(self) -> asyncio.Future[None] | None:
        """Done when the node has stopped: with the error if it stopped by itself (a disk failed, a bug was met), with
        None if it was closed. None before the start.
        """
        return self._life.failed

    @property
    def address(self) -> str:
        """Where this member is reached."""
        return self._transport.address

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        member = self._member
        return member is not None and not self._life.is_over and member.raft.role is LEADER

    @property
    def term(self) -> int:
        """The Raft term this member is in; 0 before it runs."""
        return self._member.raft.term if self._member is not None else 0

    @property
    def _member(self) -> Member | None:
        """What runs, or has run; None before."""
        return self._life.member

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
        await self._life.start()

    async def close(self) -> None:
        """Leave gracefully: finish writes under way, hand leadership over, then stop. Idempotent.

        Writes that could not finish within ``config.close_seconds`` fail as `MaybeApplied`.
        """
        await self._life.close()

    async def kill(self) -> None:
        """Stop at once, as if the process had died: nothing is finished and nobody is told. For tests."""
        await self._life.kill()

    # --- The KV protocol -------------------------------------------------------------------------------------------

    def _running(self) -> Member:
        """Return what runs, with something to answer, to be believed. Raises `Closed`, `Quarantined`, `NoState`."""
        member = self._life.present()
        member.guard.integrity.check()
        if self._is_witness:
            raise errors.NoState(f"{self.name} is a witness and keeps no keys: ask another member")
        return member

    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        member = self._running()
        member.admission.command(command)
        return await member.write(command, timeout)  # type: ignore[return-value]

    def write_put(self, key: bytes, value: bytes, timeout: float | None) -> Awaitable[PutResult]:
        """Apply a put without options, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        member = self._running()
        member.admission.put()
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
        store = await member.freshness.store(consistency, timeout, at_least=at_least)
        return await member.long_reads.finished(store.read(query, bytes_max=bytes_max))

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        member = self._running()
        return await member.long_reads.finished((await member.freshness.store(consistency, timeout)).look(query))

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
        member.admission.operation(command)
        result = await member.write(command, timeout)
        assert isinstance(result, Operated)
        return result

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated:
        """Ask a machine. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
        store, member = await self._running().freshness.store(consistency, timeout), self._running()
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
        await member.freshness.compactions.join(revision, member.deadline(timeout))

    async def status(self, *, timeout: float | None = None) -> Status:  # noqa: ARG002  (the answer is always at hand)
        """Return this member's view of itself and of the cluster."""
        member, connections = self._life.present(), self._life.connections
        assert connections is not None
        alarms = member.disk.alarms + member.guard.alarms + member.single_copy.alarms
        return status_of(member, hello=connections.own, storage=self._storage.kind, alarms=alarms)

    async def hash_kv(self, revision: int = 0, *, timeout: float | None = None) -> KvHash:  # noqa: ARG002  (as above)
        """Return the hash of this member's history up to ``revision`` (0: its latest), as it is in memory now.

        Members whose `hash_revision` and `compact_revision` are the same have the same (etcd's HashKV). O(versions).

        Raises:
            Compacted: The revision is gone.
            FutureRevision: This member does not have it yet.
        """
        member = self._life.present()
        return await member.long_reads.finished(member.replica.store.hash_kv(revision))

    async def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> str:
        """Let the member of that name lead, or the best of the others; return who leads now.

        Nothing happens if it leads already. A leader that hands over takes no writes meanwhile; they wait.

        Raises:
            MemberNotFound: There is no member of that name.
            InvalidRequest: It has no vote.
            LeadershipNotTransferred: It was given up after an election timeout, or there is nobody else.
            NoLeader: There is no leader that could hand over.
        """
        member = self._life.present()
        peers = member.peers
        ids = {peers.name(id_): id_ for id_ in peers.ids}
        if to is not None and to not in ids:
            raise errors.MemberNotFound(f"there is no member {to!r}")
        target = ids[to] if to is not None else None
        return peers.name(await member.leadership.transfer(target, member.deadline(timeout)))

    def events(self) -> AsyncIterator[NodeEvent]:
        """Yield what happens to this member from now on (see `node.events`), until it stops."""
        return self._life.events.subscribe()

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
        member.admission.examine(envelope.command)
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
