"""Who holds a cluster down: the account of every fault that has begun and not ended.

Faults overlap. Two partitions may cut the same link, a member may be paused while its whole rack is down, two faults
may slow the same disk. If each undid its own part at its end, the first to end would undo the other's. So every fault
takes *holds* through a `Grip`, `Holds` adds up what is held, and the target is told whenever the sum changes:

* yes-or-no holds (down, paused, cut, frozen) are counted: the target hears of the first and of the end of the last;
* holds with a degree (a bad link, a bad disk) add up to the worse of each; clock rates multiply.

What lasts no time (a reset, a jump of a clock, rot) is done through the same `Grip` and leaves no hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial, reduce
from math import prod
from random import Random
from typing import TypeVar

from pyraftkv.sim.faults import LEADER, DiskFault, Fault, FaultTarget, LinkFault, Order

K = TypeVar("K")
V = TypeVar("V")

Link = tuple[str, str]
"""From one host to another."""


class Holds:
    """Everything that holds a target at the moment, and the one who tells it.

    Invariant: what the target was told is the sum of the holds that were taken and not let go of.
    """

    def __init__(self, target: FaultTarget) -> None:
        self.target = target
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._links: dict[Link, list[LinkFault]] = {}
        self._disks: dict[str, list[DiskFault]] = {}
        self._rates: dict[str, list[float]] = {}

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._counts or self._links or self._disks or self._rates)

    def is_held(self, *key: str) -> bool:
        """Whether this hangs: ("down", host), ("paused", host), ("frozen", host) or ("cut", source, target)."""
        return key in self._counts

    def take(self, key: tuple[str, ...], begin: Callable[[], None], end: Callable[[], None]) -> Callable[[], None]:
        """Count one more hold; return what lets go of it."""
        self._counts[key] += 1
        if self._counts[key] == 1:
            begin()

        def let_go() -> None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                end()

        return let_go

    def link(self, link: Link, fault: LinkFault) -> Callable[[], None]:
        """Make a link worse; return what makes it better again."""
        return _add(
            self._links,
            link,
            fault,
            lambda held: self.target.set_link(*link, reduce(LinkFault.__or__, held, LinkFault())),
        )

    def disk(self, host: str, fault: DiskFault) -> Callable[[], None]:
        """Make a disk worse; return what makes it better again."""
        return _add(
            self._disks,
            host,
            fault,
            lambda held: self.target.set_disk(host, reduce(DiskFault.__or__, held, DiskFault())),
        )

    def rate(self, host: str, rate: float) -> Callable[[], None]:
        """Change the rate of a clock; return what changes it back."""
        return _add(self._rates, host, rate, lambda held: self.target.set_clock_rate(host, prod(held)))


def _add(held: dict[K, list[V]], key: K, value: V, tell: Callable[[list[V]], None]) -> Callable[[], None]:
    """Add a degree to those of one thing, and tell; return what takes it away again, and tells."""
    held.setdefault(key, []).append(value)
    tell(held[key])

    def let_go() -> None:
        left = held[key]
        left.remove(value)
        if not left:
            del held[key]
        tell(left)

    return let_go


class Grip:
    """What one fault has hold of, from its beginning to its end. Every kind of fault is written in these verbs.

    Args:
        holds: The account that it is entered in.
        fault: The fault; its hosts exist.
        amount: How bad it is, in the unit of its kind.
    """

    def __init__(self, holds: Holds, fault: Fault, *, amount: float) -> None:
        self.fault = fault
        self.amount = amount
        self.target = holds.target
        self.random = Random(fault.seed)
        """Whatever the fault leaves to chance; of no other fault's business."""
        self._holds = holds
        self._undo: list[Callable[[], None]] = []
        self.groups = [self._found(group) for group in fault.groups]
        """The hosts that are hit, by group; the first group is every member if the fault names nobody."""

    @property
    def hosts(self) -> list[str]:
        """The hosts of the first group."""
        return self.groups[0]

    @property
    def everyone(self) -> list[str]:
        """Every member and every client."""
        return [*self.target.members, *self.target.clients]

    def release(self) -> None:
        """Let go of everything, the last taken first. Idempotent."""
        while self._undo:
            self._undo.pop()()

    # --- Verbs that hold ---

    def kill(self, host: str) -> None:
        self.target.kill(host)
        self._stay_down(host)

    def shut_down(self, host: str) -> None:
        self.target.shut_down(host)
        self._stay_down(host)

    def power_loss(self, host: str) -> None:
        self.target.power_loss(host)
        self._stay_down(host)

    def power_loss_at(self, host: str, operation: int) -> None:
        """Lose power in the middle of that disk operation; when the fault ends at the latest."""
        self._stay_down(host)
        self.target.power_loss_at(host, operation)
        self._undo.append(partial(self.target.power_loss, host))

    def pause(self, host: str) -> None:
        self._take(("paused", host), partial(self.target.pause, host), partial(self.target.resume, host))

    def freeze(self, host: str) -> None:
        self._take(("frozen", host), partial(self.target.freeze, host), partial(self.target.thaw, host))

    def cut(self, source: str, target: str) -> None:
        """Cut one direction; a host is never cut off from itself."""
        if source != target:
            link = source, target
            self._take(("cut", *link), partial(self.target.cut, *link), partial(self.target.heal, *link))

    def separate(self, left: Iterable[str], right: Iterable[str]) -> None:
        """Cut both directions between every host of one side and every one of the other."""
        right = list(right)
        for a in left:
            for b in right:
                self.cut(a, b)
                self.cut(b, a)

    def worsen_link(self, source: str, target: str, fault: LinkFault) -> None:
        if source != target:
            self._undo.append(self._holds.link((source, target), fault))

    def worsen_disk(self, host: str, fault: DiskFault) -> None:
        self._undo.append(self._holds.disk(host, fault))

    def set_clock_rate(self, host: str, rate: float) -> None:
        self._undo.append(self._holds.rate(host, rate))

    def order(self, what: str, *, then: str = "") -> None:
        """Tell the operator to do something, and something else when the fault ends."""
        hosts = tuple(map(tuple, self.groups)) if self.fault.targets else ()
        self.target.operate(Order(what, hosts, self.fault.seed))
        if then:
            self._undo.append(partial(self.target.operate, Order(then, hosts, self.fault.seed)))

    # --- Within ---

    def _stay_down(self, host: str) -> None:
        self._take(("down", host), _nothing, partial(self.target.start, host))

    def _take(self, key: tuple[str, ...], begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._undo.append(self._holds.take(key, begin, end))

    def _found(self, group: tuple[str, ...]) -> list[str]:
        """Return the hosts that a group names, each once, in its order."""
        if not group:
            return list(self.target.members)
        found = [self._leader() if name == LEADER else name for name in group]
        assert set(found) <= set(self.everyone), found
        return list(dict.fromkeys(found))

    def _leader(self) -> str:
        return self.target.leader() or self.random.choice(self.target.members)


def _nothing() -> None:
    """A host that is to stay down was brought down already."""
