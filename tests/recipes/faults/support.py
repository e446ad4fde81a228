"""What runs recipes under every kind of fault, and what tells from the store's own order whether they kept their word.

Each program runs on a machine of its own, which is paused, killed and cut off as the members are. Nothing here compares
the times at which two programs believed to hold something: that they overlap is no fault. What counts is what they
*signed*, in transactions with their `guard`, in the order in which the store has done it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pyraftkv import KV, MaybeApplied, NotApplied, PutKey, errors
from pyraftkv.client import Client
from pyraftkv.recipes import Leadership, Lock, ReadLock, Semaphore, WriteLock
from pyraftkv.sim import Host, Plan, Trial
from pyraftkv.sim.check import StaleToken
from pyraftkv.sim.faults import Ability
from pyraftkv.sim.kinds import KINDS
from pyraftkv.sim.trial import ALL_KINDS, attempt
from pyraftkv.statemachine import Factories

TTL = 2.0
SETTLED_SECONDS = 4.0
"""After the last fault, once there is a leader: the end of most leases that nobody holds, and a turn of somebody."""
DEAD_SECONDS_MAX = 4.0
"""Beyond its ttl, a dead program's lease is seen no longer than this in a cluster that works: an election and what it
takes to end a lease. While no member leads, nobody ends it."""
ASK_SECONDS = 2.0
"""How long a program waits for an answer: not for ever, so that some writes are never heard of again."""

TROUBLE = (NotApplied, MaybeApplied, errors.LeaseLost, errors.LockNotAcquired, StaleToken, TimeoutError)
"""What a program of these tests begins anew after."""
ALL = tuple(name for name, kind in KINDS.items() if not kind.is_order)
"""As `ALL_KINDS`, by name."""
CLOCKS = tuple(name for name, kind in KINDS.items() if kind.needs is Ability.CLOCKS)
"""The kinds of faults that make clocks wrong: where it is time that is promised."""

Program = Callable[[str, Client], Awaitable[object]]
Held = Lock | Semaphore | ReadLock | WriteLock | Leadership


class Length(NamedTuple):
    """How long and how often scenarios run."""

    seeds: int
    fault_seconds: float
    faults_per_second: float

    @property
    def halved(self) -> Length:
        """The same with half the seeds: for what takes long, or is held to its word elsewhere, too."""
        return self._replace(seeds=(self.seeds + 1) // 2)


SHORT, LONG = Length(2, 4.0, 1.0), Length(300, 15.0, 0.5)


def trial(
    length: Length,
    scenario: Callable[[Trial], object],
    *,
    machines: Factories | None = None,
    without: Sequence[str] = (),
) -> None:
    """Run a scenario under each seed, with every kind of fault but those. Raises what broke, with the seed."""
    plan = Plan(
        faults=[name for name in ALL if name not in without] if without else ALL_KINDS,
        seconds=length.fault_seconds,
        faults_per_second=length.faults_per_second,
        is_ready=True,  # a cluster whose first members are not all there yet waits for them, whatever befell one
        machines=machines or {},
    )
    for seed in range(1, 1 + length.seeds):
        breakage = attempt(scenario, seed, plan)
        if breakage is not None:
            raise AssertionError(breakage.report()) from breakage.error


def programs(sim: Trial, count: int, program: Program, *, ask_seconds: float = ASK_SECONDS) -> None:
    """Run a program on so many machines, again and again: it has a name of its own in each life of its machine."""

    async def run(host: Host) -> None:
        async with host.client(timeout=ask_seconds) as kv:
            while True:
                with suppress(*TROUBLE):
                    await program(f"{host.name}/{host.boots}", kv)
                await asyncio.sleep(0.15)

    for number in range(count):
        sim.host(f"worker{number}", program=run)


async def faults_pass(sim: Trial, *, seconds: float = SETTLED_SECONDS) -> None:
    """Let the programs run until the faults are over and the cluster answers again, and a while longer."""
    await sim.healed()
    async with sim.client() as kv:
        while True:
            with suppress(errors.Unavailable):
                await revision_of(kv)
                break
    await asyncio.sleep(seconds)


async def revision_of(kv: KV) -> int:
    """Return the revision that the store has now."""
    return (await kv.range("nothing", keys_only=True)).revision


# --- What was signed -----------------------------------------------------------------------------------------------


class Signature(NamedTuple):
    """A holder's word, written while it was one."""

    revision: int
    token: int
    name: str


class Page:
    """What holders sign, each with his guard: as the answers tell, in the order of the store."""

    def __init__(self, sim: Trial) -> None:
        self._sim = sim
        self._signatures: dict[int, Signature] = {}
        self._latest: dict[str, float] = {}
        """When each machine has signed last, in virtual time."""

    async def sign(self, held: Held, name: str, *, times: int = 2) -> None:
        """Sign so many times. Raises what `commit` does: `LeaseLost` if it is no holder any more."""
        for _ in range(times):
            done = await held.commit(PutKey(b"page", name.encode()))
            assert done.revision not in self._signatures
            self._signatures[done.revision] = Signature(done.revision, held.token, name)
            self._latest[name.partition("/")[0]] = self._sim.now()
            await asyncio.sleep(0.15)

    @property
    def signatures(self) -> list[Signature]:
        """In the store's order."""
        return [self._signatures[revision] for revision in sorted(self._signatures)]

    def __iter__(self) -> Iterator[Signature]:
        return iter(self.signatures)

    def check_tokens(self, *, least: int = 2) -> None:
        """Each token is one holder's alone, and there are so many at least."""
        names: dict[int, str] = {}
        for sign in self:
            assert names.setdefault(sign.token, sign.name) == sign.name, f"{sign} has the token of {names[sign.token]}"
        assert len(names) >= least, f"only {len(names)} ever held it"

    def check_alone(self, *, kind: str = "") -> None:
        """Whoever signs (as one of that kind) is the only one: all before him are older, and all after him newer."""
        newest, alone = 0, 0
        for sign in self:
            is_alone = kind in sign.name
            assert sign.token >= (newest if is_alone else alone), f"{sign} after one with a newer token"
            newest = max(newest, sign.token)
            alone = max(alone, sign.token) if is_alone else alone

    def holders_at_once(self) -> int:
        """Return how many held it at the same time, at the most: each from its first signature to its last."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for sign in self:
            first.setdefault(sign.token, sign.revision)
            last[sign.token] = sign.revision
        return max(sum(first[token] <= sign.revision <= last[token] for token in first) for sign in self)

    def check_goes_on(self, names: Iterable[str] = (), *, seconds: float = SETTLED_SECONDS) -> None:
        """Somebody has signed since the faults were over, and every one of these machines has."""
        since = self._sim.now() - seconds
        assert max(self._latest.values(), default=0.0) > since, "nobody holds it any more"
        silent = [name for name in names if self._latest.get(name, 0.0) <= since]
        assert not silent, f"{silent} never came to hold it again"
