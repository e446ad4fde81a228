"""`Operator`: who takes members in and out of a simulated cluster while everything else goes wrong.

It gets its orders as faults of the recorded list, sits at a machine that is never cut off, and works as a careful
person would. It asks again when it is told to come later or hears nothing, looks at the list of members when it does
not know what became of a request, and gives up after a while. It knows no more than people do, but for two things that
they are told to see to:

1. It removes, demotes and replaces one member after the other, never two at a time; more are taken in meanwhile. The
   cluster's own check is of the moment, and a member whose disk was just lost may still pass for active.
2. A machine is begun anew, or turned off for good, when enough of the others have on disk that its member was removed.
   Of two members the removed one may be all that the other one has to learn it from (etcd#10563).

So whatever the orders, and wherever they are cut short, those who are left can go on by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import Any, ClassVar, Protocol

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.core.membership import Transition
from pyraftkv.kv import Member
from pyraftkv.protocol import AddMember, DemoteMember, MemberChange, PromoteMember, RemoveMember
from pyraftkv.sim.check.raft import RaftInvariants
from pyraftkv.sim.faults import Order
from pyraftkv.sim.host import Host
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.trace import Trace

CALL_SECONDS = 2.0
"""How long the operator waits for an answer."""

PAUSE_SECONDS = 0.5
"""How long it waits before it asks again, or looks again."""

TRIES_MAX = 10
"""How often it asks before it gives up."""

WAITS_MAX = 40
"""How often it looks whether something has come about before it gives up."""

LAG_MAX = 100
"""Entries that a member may lack and still pass for up to date."""

VOTERS_MAX = 7
"""It makes a cluster no larger."""

ANNOUNCED_SHARE = 0.5
"""Of the machines that join: the operator says so before they start; the others ask for themselves."""

OFF_SHARE = 0.5
"""Of the machines whose member was removed: the operator turns them off; the others find out."""

TURN_SHARE = 0.2
"""Of the members that stay in a joint change: they get a vote, or lose it."""

PRIORITIES = (0, 1, 1, 5)
"""What it may say of a member."""


class Site(Protocol):
    """What the operator sees of a simulation."""

    loop: SimLoop
    trace: Trace
    invariants: RaftInvariants
    hosts: dict[str, Host]
    addresses: dict[str, str]

    @property
    def members(self) -> list[Host]: ...
    def now(self) -> float: ...
    def client(self, *, name: str, timeout: float) -> Client: ...
    def renew(self, name: str) -> Host: ...


class Operator:
    """Carries out orders, each in a task of its own.

    Args:
        site: Where.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._desk = asyncio.Lock()
        """Held by what takes members, or their votes, away."""
        self._numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Operator with {len(self._tasks)} orders>"

    @property
    def is_idle(self) -> bool:
        """Whether no order is under way."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return not self._tasks

    def take(self, order: Order) -> None:
        """Begin to carry out an order."""
        number = next(self._numbers)
        task = self._site.loop.harness.spawn(self._carry_out(order, number), name=f"operator-{number}")
        self._tasks.append(task)

    def come_to_an_end(self) -> None:
        """Let go of what has not begun, and try no more of what need not be finished."""
        self._is_over = True

    async def settle(self) -> bool:
        """Finish what is half done: leave joint configurations, let learners vote; return whether nothing is left."""
        if not self.is_idle:
            return False
        async with self._client(0) as kv:
            members = await self._list(kv)
        voters = self._site.invariants.configurations.latest
        if voters.is_joint and not voters.auto_leave:
            self.take(Order("leave"))
        elif any(member.role == "learner" for member in members):
            self.take(Order("promote"))
        return not voters.is_joint and all(member.role == "voter" for member in members) and bool(members)

    def _client(self, number: int) -> Client:
        return self._site.client(name=f"operator-{number}", timeout=CALL_SECONDS)

    async def _carry_out(self, order: Order, number: int) -> None:
        async with self._client(number) as kv:
            said = await self.ORDERS[order.what](self, kv, order, Random(order.seed))
        hosts = " | ".join(" ".join(group) for group in order.hosts)
        self._site.trace.add(self._site.now(), "", "order", text=f"{order.what} {hosts}: {said}")

    # --- Asking ----------------------------------------------------------------------------------------------------

    async def _list(self, kv: Client) -> list[Member]:
        """Return who the members are; nobody if no answer comes."""
        for _ in range(TRIES_MAX):
            try:
                return await kv.members.list()
            except errors.Unavailable:
                await asyncio.sleep(PAUSE_SECONDS)
        return []

    async def _ask(
        self, kv: Client, call: Callable[[], Awaitable[object]], *, is_done: Callable[[Sequence[Member]], bool]
    ) -> str:
        """Ask until it is done or refused; return what came of it: ``done`` or why not."""
        said = "nothing"
        for _ in range(TRIES_MAX):
            try:
                await call()
            except errors.MaybeApplied as error:
                said = repr(error)
                if is_done(await self._list(kv)):
                    return "done"
            except (errors.Unavailable, errors.QuorumAtRisk) as error:
                said = repr(error)
            except errors.NotApplied as error:
                return "done" if is_done(await self._list(kv)) else repr(error)
            else:
                return "done"
            if self._is_over:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        return said

    async def _wait(self, is_so: Callable[[], bool]) -> bool:
        """Wait until something has come about; return whether it has."""
        for _ in range(WAITS_MAX):
            if is_so():
                return True
            await asyncio.sleep(PAUSE_SECONDS)
        return is_so()

    # --- Machines --------------------------------------------------------------------------------------------------

    def _free(self) -> list[str]:
        """Return the machines that may be begun anew."""
        rules = self._site.invariants
        return [
            host.name
            for host in self._site.members
            if (not rules.members[host.name].id and host.is_out) or rules.is_gone_for_good(host.name)
        ]

    def _machines(self, order: Order, random: Random, group: int, most: int) -> list[str]:
        """Return free machines: those that are named, or some."""
        free = self._free()
        if order.hosts:
            named = order.hosts[group] if group < len(order.hosts) else ()
            return [name for name in named if name in free]
        return random.sample(free, min(len(free), random.randint(1, most)))

    @staticmethod
    def _members(order: Order, random: Random, among: Sequence[Member], most: int = 1) -> list[Member]:
        """Return members: those that are named, or some."""
        if order.hosts:
            return [member for member in among if _host_of(member) in order.hosts[0]]
        return random.sample(among, min(len(among), random.randint(1, most)))

    # --- Orders ----------------------------------------------------------------------------------------------------

    async def _add(self, kv: Client, order: Order, random: Random) -> str:
        """Begin a machine anew; it asks to be taken in, or is announced."""
        said: list[str] = []
        for name in self._machines(order, random, 0, 1):
            host, address = self._site.renew(name), self._site.addresses[name]
            if random.random() < ANNOUNCED_SHARE:
                said.append(
                    await self._ask(kv, partial(kv.members.add, name, address), is_done=partial(_has_host, name))
                )
            host.start()
            said.append(f"{name} starts")
        return ", ".join(said) or "no machine is free"

    async def _promote(self, kv: Client, order: Order, random: Random) -> str:
        """Ask that learners vote."""
        learners = [member for member in await self._list(kv) if member.role == "learner"]
        said = [
            await self._ask(kv, partial(kv.members.promote, member.id), is_done=_has(member.id, role="voter"))
            for member in self._members(order, random, learners, len(learners) or 1)
        ]
        return ", ".join(said)

    async def _demote(self, kv: Client, order: Order, random: Random) -> str:
        async with self._desk:
            voters = [member for member in await self._list(kv) if member.role == "voter"]
            if self._is_over or len(voters) < 2:
                return "nobody"
            (member, *_) = self._members(order, random, voters) or [voters[0]]
            return await self._ask(kv, partial(kv.members.demote, member.id), is_done=_has(member.id, role="learner"))

    async def _remove(self, kv: Client, order: Order, random: Random) -> str:
        """Remove a member, and turn its machine off in half of the cases."""
        async with self._desk:
            members = self._members(order, random, await self._list(kv))
            if self._is_over or not members:
                return "nobody"
            (member, *_) = members
            said = await self._ask(kv, partial(kv.members.remove, member.id), is_done=_lacks(member.id))
            host = _host_of(member)
            rules = self._site.invariants
            if (
                said == "done"
                and random.random() < OFF_SHARE
                and await self._wait(lambda: rules.is_gone_for_good(host))
            ):
                self._site.hosts[host].shut_down()
            return f"{host} {said}"

    async def _return(self, kv: Client, order: Order, random: Random) -> str:  # noqa: ARG002
        """Start the machine of a member that was removed, as it is."""
        gone = [host for host in self._site.members if self._site.invariants.is_gone(host.name) and not host.is_up]
        named = [host for host in gone if not order.hosts or host.name in order.hosts[0]]
        for host in random.sample(named, min(1, len(named))):
            host.start()
        return f"of {len(named)}"

    async def _replace(self, kv: Client, order: Order, random: Random) -> str:
        """Lose a member's disk while the others can do without, and begin anew on its machine. Never given up."""
        async with self._desk:
            members = await self._list(kv)
            fit = [member for member in members if self._is_dispensable(member, members)]
            found = self._members(order, random, fit)
            if self._is_over or not found:
                return "nobody is dispensable"
            (member, *_) = found
            name = _host_of(member)
            old = self._site.hosts[name]
            old.wipe()
            self._site.invariants.lost(name)
            said = ""
            while said != "done":
                said = await self._ask(kv, partial(kv.members.replace, member.id), is_done=_lacks(member.id))
            self._site.renew(name).start()
            is_there = await self._wait(lambda: self._is_level(name))
            return f"{name} {'is back' if is_there else 'is late'}"

    def _is_dispensable(self, member: Member, members: Sequence[Member]) -> bool:
        """Whether the others run, are up to date, and can decide without this one."""
        voters = [each for each in members if each.role == "voter"]
        others = [each for each in voters if each.id != member.id and self._is_level(_host_of(each))]
        latest = self._site.invariants.configurations.latest
        return len(others) == len(voters) - 1 and 2 * len(others) > len(voters) and not latest.is_joint

    def _is_level(self, name: str) -> bool:
        """Whether a machine's member runs, votes, and has on its disk what is committed, or nearly."""
        rules, record = self._site.invariants, self._site.invariants.members[name]
        if not self._site.hosts[name].is_up or not rules.configurations.latest.is_voter(record.id):
            return False
        return not record.is_lost and record.completed.last_index + LAG_MAX >= rules.commit

    async def _update(self, kv: Client, order: Order, random: Random) -> str:
        said = "nobody"
        for member in self._members(order, random, await self._list(kv)):
            priority = random.choice(PRIORITIES)
            call = partial(kv.members.update, member.id, priority=priority)
            said = await self._ask(kv, call, is_done=_has(member.id, priority=priority))
        return said

    async def _joint(self, kv: Client, order: Order, random: Random, transition: Transition = Transition.JOINT) -> str:
        """Let some go and others come, and some lose or get their vote, all together."""
        async with self._desk:
            members = await self._list(kv)
            going = self._members(order, random, members, 2) if random.random() < 0.8 or order.hosts else []
            coming = self._machines(order, random, 1, 2)
            room = VOTERS_MAX - len(members) + len(going)
            changes: list[MemberChange] = [RemoveMember(member.id) for member in going]
            if not order.hosts:
                changes += self._turns([member for member in members if member not in going], random)
            if self._is_over or not members:
                return "nobody"
            hosts = [self._site.renew(name) for name in coming[: max(room, 0)]]
            changes += [AddMember(host.name, self._site.addresses[host.name], 0, learner=False) for host in hosts]
            said = await self._ask(
                kv,
                partial(kv.members.change, changes, transition=transition),
                is_done=lambda found: bool(found) and [each.id for each in found] != [each.id for each in members],
            )
            for host in hosts:
                host.start()
            return f"{len(changes)} changes: {said}"

    @staticmethod
    def _turns(members: Sequence[Member], random: Random) -> list[MemberChange]:
        """Return changes that give the vote to some of these, and take it from others."""
        turning = [member for member in members if random.random() < TURN_SHARE]
        return [PromoteMember(member.id) if member.role == "learner" else DemoteMember(member.id) for member in turning]

    async def _joint_explicit(self, kv: Client, order: Order, random: Random) -> str:
        return await self._joint(kv, order, random, Transition.EXPLICIT)

    async def _leave(self, kv: Client, order: Order, random: Random) -> str:  # noqa: ARG002
        """Leave the joint configuration, if there is one, or will be when what was begun is done."""
        history = self._site.invariants.configurations
        async with self._desk:
            return await self._ask(kv, kv.members.leave_joint, is_done=lambda _: not history.latest.is_joint)

    ORDERS: ClassVar[Mapping[str, Callable[[Any, Client, Order, Random], Awaitable[str]]]] = {
        "add": _add,
        "promote": _promote,
        "demote": _demote,
        "remove": _remove,
        "return": _return,
        "replace": _replace,
        "update": _update,
        "joint": _joint,
        "joint_explicit": _joint_explicit,
        "leave": _leave,
    }
    """How each order is carried out, by its name."""


def _host_of(member: Member) -> str:
    return member.address.partition(":")[0]


def _has_host(name: str, members: Sequence[Member]) -> bool:
    return name in map(_host_of, members)


def _has(member_id: int, **said: object) -> Callable[[Sequence[Member]], bool]:
    """Return whether a list has a member of which this is said."""
    return lambda members: any(
        member.id == member_id and all(getattr(member, name) == value for name, value in said.items())
        for member in members
    )


def _lacks(member_id: int) -> Callable[[Sequence[Member]], bool]:
    return lambda members: bool(members) and all(member.id != member_id for member in members)
