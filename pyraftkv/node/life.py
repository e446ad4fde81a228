"""`Life`: from a directory to a member that runs, and to its end. A node lives once.

.. code-block:: text

                  ┌── its own: the log says who it is ──────────────┐
    storage ──────┼── new: agree with the first members on entry 1 ─┼──► Member, loops ──► closed, removed, failed
                  └── new, join=: ask a cluster to take it in ──────┘

Whatever ends it ends it once and in one order (`_stop_once`): nobody is waited for any more, the loops end, clients go
and look for another member, who waits here is failed, and the disk is closed last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pyraftkv import errors, futures
from pyraftkv.codec import PeerMessage
from pyraftkv.core import LEADER, Save
from pyraftkv.engine import NOT_STARTED
from pyraftkv.log.base import Recovered, Storage
from pyraftkv.machines import Machines
from pyraftkv.node import recovery
from pyraftkv.node.applier import restore
from pyraftkv.node.bootstrap import Bootstrap, first_ids, genesis_entry
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.connections import Connections
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.events import EventHub, NodeStopped, PeerConnected, PeerLost
from pyraftkv.node.identity import draw_life, roster_at_start, whose
from pyraftkv.node.joining import ask_in, become_voter
from pyraftkv.node.lease import boot_clock
from pyraftkv.node.loops import Loops, loops_of
from pyraftkv.node.member import Member
from pyraftkv.node.offers import Offers
from pyraftkv.node.witness import refuse_other_kind, replica_for
from pyraftkv.protocol import GenesisOffer, Hello
from pyraftkv.roster import Roster
from pyraftkv.server import ClientPort
from pyraftkv.transport.base import Connection, Transport
from pyraftkv.transport.handshake import can_be_rolled_back

logger = logging.getLogger("pyraftkv.node")


class Life:
    """The life of one node. The transport's handler, too: what comes finds a member that runs, or one that begins.

    Args:
        name: Its name.
        members: The first members of its cluster, by name.
        join: Addresses of a cluster that is to take it in.
        stays_learner: Whether it never asks for a vote.
        is_witness: Whether it keeps no keys.
        machines: What it has beside the store.
        storage: Its log and its snapshots.
        transport: Reaches the others.
        clients: Serves clients.
        config: Timing and limits.
        rng: The source of everything that is drawn.
        clock: Counts the time for which the machine is suspended; the system's by default.
    """

    def __init__(
        self,
        name: str,
        *,
        members: Mapping[str, str],
        join: Sequence[str],
        stays_learner: bool,
        is_witness: bool,
        machines: Machines,
        storage: Storage,
        transport: Transport,
        clients: ClientPort,
        config: NodeConfig,
        rng: random.Random,
        clock: Callable[[], float] | None,
    ) -> None:
        self._name = name
        self._members = dict(members)
        self._join_addresses = list(join)
        self._stays_learner = stays_learner
        self._is_witness = is_witness
        self._machines = machines
        self._storage = storage
        self._transport = transport
        self._clients = clients
        self._config = config
        self._rng = rng
        self._clock = clock or boot_clock()
        self._disk = DiskHealth(name)
        self._bootstrap: Bootstrap | None = None
        self._offers = Offers(send=transport.send)
        self._starting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self.events = EventHub()
        self.connections: Connections | None = None
        """Set when this node knows what to say of itself."""
        self.member: Member | None = None
        """What runs; still there when it has stopped."""
        self.failed: asyncio.Future[None] | None = None
        """See `Node.failed`."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._stopping is not None

    def present(self) -> Member:
        """Return what runs, be its state right or wrong. Raises `Closed`, `WrongLoop`."""
        if self.member is None or self._stopping is not None:
            raise errors.Closed(f"{self._name} {'is closed' if self._stopping else NOT_STARTED}")
        self.member.home.check()
        return self.member

    # --- The beginning ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the storage, find the other members, and run; see `Node.start`."""
        if self.failed is not None:
            raise errors.Closed(f"{self._name} was started before: open the directory again with another node")
        loop = asyncio.get_running_loop()
        self.failed = loop.create_future()
        self._starting = loop.create_task(self._start(), name=f"pyraftkv-{self._name}-start")
        try:
            await self._starting
        except asyncio.CancelledError as error:
            await self._stop(error)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not our caller was cancelled, but the start: somebody stopped the node, or it stopped itself.
            self.failed.result()
            raise errors.Closed(f"{self._name} was stopped before it had started") from None
        except BaseException as error:
            await self._stop(error)
            raise

    async def _start(self) -> None:
        recovered = await self._storage.start(failed=self._fail, full=self._disk.filled, promised=self._disk.promised)
        if recovered.repaired:
            logger.warning("%s: %s", self._name, recovered.repaired)
        recovered = await recovery.finish(self._storage, recovered)
        if recovered.identity.is_rolled_back:
            raise errors.DataDirRolledBack(
                f"the data directory of {self._name} had less than was acknowledged, and is no member's any more: "
                "`pyraftkv rebuild` makes another member of it"
            )
        await self._join(recovered)

    async def _join(self, recovered: Recovered) -> None:
        """Become somebody: who the directory says, one of the first of a new cluster, or a new one of a running one."""
        identity = recovered.identity
        is_new = recovered.snapshot is None and not recovered.entries and not identity.cluster_id
        is_joining = is_new and bool(self._join_addresses)
        if self._join_addresses and not is_joining:
            logger.info("%s belongs to cluster %x: nobody is asked to take it in", self._name, identity.cluster_id)
        own = 0 if is_joining else identity.member_id or first_ids(self._members).get(self._name, 0)
        hello = Hello(
            identity.cluster_id,
            own,
            self._name,
            identity.incarnation,
            identity.boot_count,
            "",
            witness=self._is_witness,
            machines=self._machines.offer,
            start_term=recovered.hard_state.term,
            start_index=recovered.last_index,
            life=draw_life(self._rng),
        )
        self.connections = Connections(
            hello,
            {} if is_joining else self._members,
            transport=self._transport,
            clients=self._clients,
            election_timeout_seconds=self._config.election_timeout_seconds,
            removed=self._removed,
        )
        if is_new and not is_joining:
            self._bootstrap = Bootstrap(hello, self._members)
        await self._transport.start(hello, self)
        if self._bootstrap is not None:
            self.connections.dial()
            recovered = await self._found(self._bootstrap, recovered)
            self._bootstrap = None
        elif is_joining:
            recovered = await self._ask_in(recovered)
        await self._run(recovered)

    async def _ask_in(self, recovered: Recovered) -> Recovered:
        """Become a learner of a cluster that runs, and bind the directory to that."""
        taken_in = await ask_in(
            self._name,
            incarnation=recovered.identity.incarnation,
            addresses=self._join_addresses,
            transport=self._transport,
            rng=random.Random(self._rng.getrandbits(64)),
            witness=self._is_witness,
        )
        assert self.connections is not None
        self.connections.peers.expect(taken_in.members)
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
        connections = self.connections
        assert connections is not None
        replica = replica_for(recovered, witness=self._is_witness, machines=self._machines)
        if recovered.snapshot is not None:
            replica = await restore(recovered.snapshot, self._storage.read_snapshot(recovered.snapshot), replica)
        roster = roster_at_start(recovered, replica)
        cluster_id, own = whose(self._name, recovered, roster)
        refuse_other_kind(own, roster.membership, witness=self._is_witness)
        names = {member.name for member in roster.members.values()}
        strangers = sorted(self._members.keys() - names - {self._name})  # who joined later is none of the first
        if strangers and names:
            logger.warning(
                "%s: its cluster has the members %s; members= names %s too, in vain",
                self._name,
                sorted(names),
                strangers,
            )
        identity = await self._storage.identify(cluster_id=cluster_id, member_id=own, promises=self._config.lease_reads)
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
        self.member = member = Member(
            recovered,
            replica,
            member_id=identity.member_id,
            storage=self._storage,
            transport=self._transport,
            peers=connections.peers,
            events=self.events,
            config=self._config,
            rng=self._rng,
            members_changed=self._members_changed,
            disk=self._disk,
            clock=self._clock,
        )
        loops: Loops = {**loops_of(member), "offers": partial(self._offers.run, connections.peers, own)}
        if self._join_addresses and not self._stays_learner:
            loops["promotion"] = partial(become_voter, member, self._name)
        for name, loop in loops.items():
            task = asyncio.get_running_loop().create_task(loop(), name=f"pyraftkv-{self._name}-{name}")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)
        # What was known to be committed when the member stopped is history by the time anybody asks for "now".
        await member.applier.applied_to(recovered.hard_state.commit)

    # --- The end ---------------------------------------------------------------------------------------------------

    def _members_changed(self, roster: Roster) -> None:
        """The log says who the members are from here on; if this one is none of them, it goes."""
        connections = self.connections
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
            logger.warning("%s stops: it was removed from its cluster", self._name)
            self._stop_soon(errors.MemberRemoved(f"{self._name} was removed from its cluster"))

    async def close(self) -> None:
        """Leave gracefully; see `Node.close`."""
        member = self.member
        self._check_home()
        try:
            if member is not None and self._stopping is None:
                await self._hand_over(member)
        finally:
            await self._stop(None)  # who cancels a close wants it sooner, not never

    async def kill(self) -> None:
        """Stop at once, as if the process had died."""
        self._check_home()
        self._storage.abandon()
        await self._stop(None)

    def _check_home(self) -> None:
        """Raise `WrongLoop` where what runs could not be waited for."""
        if self.member is not None and not all(task.done() for task in self._tasks):
            self.member.home.check()

    async def _hand_over(self, member: Member) -> None:
        """Let writes finish, then give leadership to the best follower; each as far as its time allows."""
        under_way = member.writes.futures()
        if under_way:
            await asyncio.wait(under_way, timeout=self._config.close_seconds)
        if member.raft.role is not LEADER or len(member.raft.membership.voters) < 2:
            return
        member.leadership.give_up("closing")
        try:
            async with asyncio.timeout(self._config.close_seconds):
                while member.raft.role is LEADER:
                    member.soft_state_changed.clear()
                    await member.soft_state_changed.wait()
        except TimeoutError:
            logger.warning("%s: closed as leader, nobody took over in time", self._name)

    async def _stop(self, cause: BaseException | None) -> None:
        """Stop once; whoever else asks waits for the same stop."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop_once(cause), name="pyraftkv-stop")
        await futures.shared(self._stopping)

    async def _stop_once(self, cause: BaseException | None) -> None:
        if self.connections is not None:
            self.connections.close()
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
            if self.member is not None:
                await self.member.close(lambda sent: _stopped_error(cause, sent=sent))
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
            self.events.emit(NodeStopped(cause))

    async def _remember_that_it_forgot(self) -> None:
        """Note durably that the directory was rolled back: who found it out may not be there at its next start."""
        if self.connections is not None:
            own = self.connections.own
            with contextlib.suppress(errors.StorageError):  # a disk that fails now stops the member as well
                await self._storage.identify(cluster_id=own.cluster_id, member_id=own.member_id, rolled_back=True)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop never ends by itself: a bug, or the disk. The node stops, loudly."""
        error = None if task.cancelled() else task.exception()
        self._fail(error or RuntimeError(f"{task.get_name()} ended"))

    def _fail(self, error: BaseException) -> None:
        if self._stopping is None:
            logger.critical("%s stops: %s", self._name, error, exc_info=error)
            self._stop_soon(error)

    def _stop_soon(self, error: BaseException) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self._stop_once(error), name="pyraftkv-stop")

    # --- For the transport (see `transport.Handler`) ---------------------------------------------------------------

    def peer_hello(self, hello: Hello) -> None:
        """Judge a peer's HELLO. Raises `HandshakeRejected`."""
        connections = self.connections
        assert connections is not None
        connections.judge(hello)
        if self.member is not None:
            connections.peers.judge_memory(hello, self.member.raft.promise_of(hello.member_id))
        if connections.peers.is_another_life(hello):
            self.peer_gone(hello.member_id)
        if self._bootstrap is not None:
            self._bootstrap.heard(hello)
        connections.heard(hello)
        self.events.emit(PeerConnected(hello.member_id, hello.name))
        if hello.cluster_id == 0:
            self._offers.came(hello.member_id)

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        """Take messages from a peer."""
        if self.member is not None:
            self._offers.heard(messages)
            self.member.received(messages)
        elif self._bootstrap is not None:
            for message in messages:
                if isinstance(message, GenesisOffer):
                    self._bootstrap.offered(message)

    def peer_lost(self, member_id: int) -> None:
        """Messages to a peer were lost."""
        assert self.connections is not None
        peers = self.connections.peers
        if peers.lost(member_id):
            self.events.emit(PeerLost(member_id, peers.name(member_id)))
        if self.member is not None:
            self.member.peer_lost(member_id)

    def peer_gone(self, member_id: int) -> None:
        """The process of a peer has ended."""
        if self.member is not None:
            self.member.succession.gone(member_id)

    def peer_refused(self, member_id: int, rejection: errors.HandshakeRejected) -> None:
        """A member refused our HELLO: who was removed, or has forgotten what it promised, has nothing to stay for."""
        assert self.connections is not None
        if rejection.reason == "removed":
            self._removed()
        elif rejection.reason == "rolled-back" and can_be_rolled_back(self.connections.own, rejection):
            self._fail(errors.DataDirRolledBack(f"{self._name} is refused by member {member_id}: {rejection}"))

    def client_connected(self, connection: Connection) -> None:
        """Serve a client, if this member runs."""
        if self.member is None or self._stopping is not None:
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
