"""Random schedules: `random_faults` draws the faults of one run from its swarm.

What every schedule keeps to, so that whatever goes wrong in a run is the cluster's fault and not the schedule's:

1. Nothing is permanent but what `Aim.DOOMED` kinds do, and those befall one fixed minority of the members, each at
   most once. A majority can always start again.
2. Everything else ends by the end of the phase it was drawn for.
3. Every fault has a seed of its own. Leaving one out, or shortening it, changes nothing about the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log
from random import Random

from pyraftkv.sim.faults import BESIDE, FAULTS_MAX, LEADER, Fault
from pyraftkv.sim.kinds import KINDS, Aim, Kind, Range
from pyraftkv.sim.swarm import Swarm

SIDE_CHANCE = 0.5
"""That a partition puts a client on a side, and does not leave it in sight of both."""

DIGITS = 3
"""Times and amounts are round enough to be read: milliseconds, and as many significant digits."""


def random_faults(
    random: Random, swarm: Swarm, *, members: Sequence[str], clients: Sequence[str], seconds: float
) -> list[Fault]:
    """Draw the faults of a phase of so many seconds, in the order of their times.

    Args:
        random: Where they are drawn from; the same state gives the same faults.
        swarm: Which kinds there are, and how many.
        members: Of the cluster, in their order, and the machines to spare behind them.
        clients: Hosts of clients.
        seconds: The length of the phase; it begins at 0.
    """
    first = list(members)[: len(members) - swarm.spares]
    doomed = random.sample(first, (len(first) - 1) // 2)
    orders = [name for name in swarm.kinds if swarm.orders_per_second and KINDS[name].is_order]
    others = [name for name in swarm.kinds if name not in orders]
    faults: list[Fault] = []
    for at in _times(random, swarm.faults_per_second if others else 0.0, seconds):
        kind = KINDS[random.choice(others)]
        if kind.is_fatal:
            if not doomed:
                continue
            targets: tuple[str, ...] = (doomed.pop(),)
        else:
            targets = _targets(random, kind.aim, members, clients)
        faults.append(_drawn(random, at, kind, targets, seconds))
    for at in _times(random, swarm.orders_per_second if orders else 0.0, seconds):
        kind = KINDS[random.choice(orders)]
        faults.append(_drawn(random, at, kind, _targets(random, kind.aim, members, clients), seconds))
    return sorted(faults, key=lambda fault: fault.at)


def _drawn(random: Random, at: float, kind: Kind, targets: tuple[str, ...], seconds: float) -> Fault:
    """Draw what is still open of a fault."""
    lasts = round(min(_spread(random, kind.seconds), seconds - at), DIGITS)
    amount = _significant(_spread(random, kind.amount))
    return Fault(at, kind.name, targets, lasts, amount, random.getrandbits(32))


def permanent_victims(faults: Sequence[Fault]) -> set[str]:
    """Return the members that may be lost for good."""
    return {name for fault in faults if KINDS[fault.kind].is_fatal for name in fault.targets}


def _times(random: Random, rate: float, seconds: float) -> Iterator[float]:
    """Yield when faults begin: independently of each other, so that they come in bursts and leave gaps (Poisson)."""
    at = 0.0
    for _ in range(FAULTS_MAX if rate > 0 else 0):
        at += random.expovariate(rate)
        if at >= seconds - 10**-DIGITS:
            return
        yield round(at, DIGITS)


def _targets(random: Random, aim: Aim, members: Sequence[str], clients: Sequence[str]) -> tuple[str, ...]:
    """Choose whom to hit."""
    count = len(members)
    mixed = random.sample(list(members), count)
    if aim is Aim.LEADER:
        return (LEADER,)
    if aim is Aim.ALL or aim is Aim.OPERATOR:
        return ()
    if aim is Aim.SIDES or aim is Aim.BRIDGE:
        sides = mixed[1:] if aim is Aim.BRIDGE else mixed
        middle = random.randint(1, len(sides) - 1)
        left, right = sides[:middle], sides[middle:]
        for client in clients:
            if random.random() < SIDE_CHANCE:
                random.choice((left, right)).append(client)
        return (*left, BESIDE, *right)
    if aim is Aim.PAIR:
        return (mixed[0], BESIDE, mixed[1])
    if aim is Aim.CLIENT:
        return (random.choice(list(clients)),) if clients else (mixed[0],)
    if aim is Aim.SOME:
        return tuple(mixed[: random.randint(1, count)])
    if aim is Aim.MAJORITY:
        return tuple(mixed[: count // 2 + 1])
    assert aim is Aim.ONE
    return (mixed[0],)


def _spread(random: Random, between: Range) -> float:
    """Draw from a range: by its magnitude where it is positive, so that small values are as likely as large ones."""
    low, high = between
    return exp(random.uniform(log(low), log(high))) if low > 0 else random.uniform(low, high)


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
