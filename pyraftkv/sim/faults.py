"""What can be done to a cluster: `Fault`, the record of one misfortune, and `FaultTarget`, whom it can befall.

A run's faults are a list of records with absolute times. Three rules make such a list shrinkable:

1. A record says all there is to know. What it needs of chance comes from its own `seed`, and from nothing that another
   record draws from, so that a list without one record does what is left exactly as before.
2. Who is hit is named in the record, or found from the state of the cluster when it strikes ("leader").
3. Overlapping faults do not undo each other. A target is told only of the *sum* of what holds at a moment (see
   `pyraftkv.sim.holds`): a link is healed when the last fault that cut it ends.

The same records strike a simulated cluster and one of real processes (`pyraftkv.sim.script`): what a target cannot do
is said by its `abilities`, and a list that needs more is refused before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import Flag, auto
from typing import Any, Literal, Protocol, cast

from pyraftkv import errors
from pyraftkv._record import record

LEADER = "leader"
"""In `Fault.targets`: whoever leads when the fault strikes; if nobody does, a member chosen by the fault's seed."""

BESIDE = "|"
"""In `Fault.targets`: stands between two groups of hosts."""

FAULTS_MAX = 10_000
"""Of one list."""


class FaultError(errors.InvalidRequest):
    """A fault that makes no sense: an unknown kind, targets that do not exist, a time before the start."""


class UnsupportedFault(FaultError):
    """The target has no means to do this."""


@record
class Fault:
    """One misfortune. Times are seconds since the start of the run, in the target's own (virtual or real) time."""

    at: float
    """When it begins."""
    kind: str
    """A name in `pyraftkv.sim.kinds.KINDS`."""
    targets: tuple[str, ...] = ()
    """Hosts, `LEADER`, and `BESIDE` between groups; none at all: the leader or a majority if the kind is named after
    them, else every member."""
    seconds: float = 0.0
    """How long it lasts; 0 for what is done in an instant."""
    amount: float = 0.0
    """How bad it is, in the kind's own unit; 0: the kind's default."""
    seed: int = 0
    """Where whatever it leaves to chance comes from."""

    @property
    def ends(self) -> float:
        return self.at + self.seconds

    @property
    def words(self) -> str:
        """What it is, for people: when, what, whom, how badly, for how long.

        >>> Fault(3.5, "delay", ("n1", "n2"), 2.0, amount=0.25).words
        'at 3.5 s: delay n1 n2 by 0.25 for 2 s'
        """
        victims = "".join(f" {name}" for name in self.targets)
        amount = f" by {self.amount:g}" if self.amount else ""
        lasts = f" for {self.seconds:g} s" if self.seconds else ""
        return f"at {self.at:g} s: {self.kind}{victims}{amount}{lasts}"

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The targets, split at `BESIDE`."""
        groups: list[list[str]] = [[]]
        for name in self.targets:
            if name == BESIDE:
                groups.append([])
            else:
                groups[-1].append(name)
        return [tuple(group) for group in groups]


class Ability(Flag):
    """What a target can be asked to do, in the groups in which targets differ."""

    PROCESSES = auto()
    """Kill, stop, start, pause, resume."""
    LINKS = auto()
    """Cut, reset, and streams that are late, slow or corrupted."""
    MESSAGES = auto()
    """Single messages that are lost, doubled or overtaken, below what TCP hides."""
    POWER = auto()
    """Power loss: what was not synced is gone."""
    DISKS = auto()
    CLOCKS = auto()
    CLUSTER = auto()
    """Things a busy operator asks of the cluster itself: transfers, compactions, bursts of writes."""
    MEMBERS = auto()
    """Members that come and go, on machines that can be begun anew."""


@record
class LinkFault:
    """What is wrong with one direction of a link, beyond its usual profile. All zeros: nothing.

    Loss, doubling and reordering act on messages between members (TCP would hide them); delay, bandwidth and
    corruption on the bytes of every stream.
    """

    drop_rate: float = 0.0
    """The share of messages that are lost."""
    duplicate_rate: float = 0.0
    """The share of messages that arrive twice."""
    reorder_rate: float = 0.0
    """The share of messages that others overtake."""
    reorder_seconds: float = 0.0
    """How late those are, at the most."""
    corrupt_rate: float = 0.0
    """The share of pieces of a stream in which a bit flips and no checksum of the network notices."""
    delay_seconds: float = 0.0
    """Added to the latency."""
    bandwidth_bytes: float = 0.0
    """Bytes per second that pass at the most; 0: as many as usual."""

    def __or__(self, other: LinkFault) -> LinkFault:
        """Both at once: the worse of each."""
        bandwidths = [each for each in (self.bandwidth_bytes, other.bandwidth_bytes) if each]
        return LinkFault(
            drop_rate=max(self.drop_rate, other.drop_rate),
            duplicate_rate=max(self.duplicate_rate, other.duplicate_rate),
            reorder_rate=max(self.reorder_rate, other.reorder_rate),
            reorder_seconds=max(self.reorder_seconds, other.reorder_seconds),
            corrupt_rate=max(self.corrupt_rate, other.corrupt_rate),
            delay_seconds=max(self.delay_seconds, other.delay_seconds),
            bandwidth_bytes=min(bandwidths, default=0.0),
        )


SyncFailure = Literal["", "dropped", "kept", "durable"]
"""How a sync fails: not at all; the pages are dropped and marked clean; they stay dirty; they were made durable."""

_SYNC_FAILURES: tuple[SyncFailure, ...] = ("", "durable", "kept", "dropped")
"""From harmless to worst."""


@record
class DiskFault:
    """What is wrong with a disk. The defaults: nothing."""

    slow_factor: float = 1.0
    """Everything takes so many times as long."""
    sync_seconds: float = 0.0
    """Added to every sync."""
    is_full: bool = False
    """Whether nothing more fits (ENOSPC), from this moment on."""
    write_error_rate: float = 0.0
    """The share of writes that fail (EIO)."""
    read_error_rate: float = 0.0
    """The share of reads that fail (EIO)."""
    sync_failure: SyncFailure = ""
    """How every sync fails (EIO)."""
    short_write_rate: float = 0.0
    """The share of writes that take fewer bytes than they were given."""

    def __or__(self, other: DiskFault) -> DiskFault:
        """Both at once: the worse of each."""
        return DiskFault(
            slow_factor=max(self.slow_factor, other.slow_factor),
            sync_seconds=max(self.sync_seconds, other.sync_seconds),
            is_full=self.is_full or other.is_full,
            write_error_rate=max(self.write_error_rate, other.write_error_rate),
            read_error_rate=max(self.read_error_rate, other.read_error_rate),
            sync_failure=max((self.sync_failure, other.sync_failure), key=_SYNC_FAILURES.index),
            short_write_rate=max(self.short_write_rate, other.short_write_rate),
        )


@record
class Order:
    """What an operator is told to do with the members. It takes its time, and may come to nothing."""

    what: str
    """One of the names in `pyraftkv.sim.orders.ORDERS`."""
    hosts: tuple[tuple[str, ...], ...] = ()
    """The machines that it is about, in groups; none: the operator finds some that fit."""
    seed: int = 0
    """Where whatever the operator decides comes from."""


def _cannot(what: str, *args: object) -> UnsupportedFault:
    return UnsupportedFault(f"{what}({', '.join(map(repr, args))})")


class FaultTarget(Protocol):
    """A cluster that faults can befall. No method blocks, and none fails because of the state a host is in.

    Whoever calls keeps account of what holds (`pyraftkv.sim.holds`), so a target hears `pause`, `cut` and `freeze` of
    a host or link at most once before it hears the opposite. What it has to see to itself:

    1. A host that was killed, shut down or lost its power stays down until `start`, whatever supervises it otherwise.
    2. `kill`, `shut_down` and `power_loss` may come for a host that is down. Only the last then does anything: what a
       dead process had written and nobody had synced is lost after all.
    3. A host that cannot start (a wiped or rotten disk) stays down; `start` then does nothing more.
    4. A new life of a host is subject to what still holds: it is born paused on a frozen machine, on a full disk.
    5. A method that needs an `Ability` which the target lacks is never called; those can be inherited from here.
    """

    @property
    def abilities(self) -> Ability: ...

    @property
    def members(self) -> Sequence[str]:
        """The cluster's members, in a fixed order."""
        ...

    @property
    def clients(self) -> Sequence[str]:
        """The hosts of clients, in a fixed order."""
        ...

    def leader(self) -> str | None:
        """Return the member that leads in the highest term, as far as the target can tell."""
        ...

    # --- Processes ---

    def kill(self, host: str) -> None:
        """End its process at once (SIGKILL): what it wrote stays written, and its connections are reset."""
        ...

    def shut_down(self, host: str) -> None:
        """Ask its process to end (SIGTERM): it hands over and goes by itself."""
        ...

    def start(self, host: str) -> None:
        """Start its process again if it does not run."""
        ...

    def pause(self, host: str) -> None:
        """Let its process do nothing (SIGSTOP), until `resume`. Time goes on without it."""
        ...

    def resume(self, host: str) -> None: ...

    # --- Power (`Ability.POWER`) ---

    def power_loss(self, host: str) -> None:
        """End its machine at once: what was not synced is lost or torn, and its connections go silent."""
        raise _cannot("power_loss", host)

    def power_loss_at(self, host: str, operation: int) -> None:
        """The same in the middle of the ``operation``-th disk operation from now, unless `power_loss` comes first."""
        raise _cannot("power_loss_at", host, operation)

    # --- Links, from one host to another, one direction at a time ---

    def cut(self, source: str, target: str) -> None:
        """Let nothing through from ``source`` to ``target``, until `heal`."""
        ...

    def heal(self, source: str, target: str) -> None: ...

    def reset(self, a: str, b: str) -> None:
        """Break every connection between two hosts."""
        ...

    def set_link(self, source: str, target: str, fault: LinkFault) -> None:
        """This is wrong with the link from now on; replaces what was."""
        ...

    # --- Disks (`Ability.DISKS`) ---

    def set_disk(self, host: str, fault: DiskFault) -> None:
        """This is wrong with the disk from now on; replaces what was."""
        raise _cannot("set_disk", host, fault)

    def rot(self, host: str, seed: int) -> None:
        """Flip bits in what is durable there, but not in the last record of the log.

        There rot looks like a torn write, and a member that forgets what it acknowledged is beyond what any majority
        can make good.
        """
        raise _cannot("rot", host, seed)

    def wipe(self, host: str) -> None:
        """End its machine, and lose its disk for good: it stays out."""
        raise _cannot("wipe", host)

    # --- Clocks (`Ability.CLOCKS`) ---

    def jump_clock(self, host: str, seconds: float) -> None:
        """Set its monotonic clock forward."""
        raise _cannot("jump_clock", host, seconds)

    def set_clock_rate(self, host: str, rate: float) -> None:
        """Let its clocks run at this rate; 1.0 is right."""
        raise _cannot("set_clock_rate", host, rate)

    def freeze(self, host: str) -> None:
        """Suspend the whole machine, its monotonic clock too, until `thaw`."""
        raise _cannot("freeze", host)

    def thaw(self, host: str) -> None:
        raise _cannot("thaw", host)

    def jump_wall_clock(self, host: str, seconds: float) -> None:
        """Set its wall clock forth, or back."""
        raise _cannot("jump_wall_clock", host, seconds)

    # --- The cluster (`Ability.CLUSTER`) ---

    def transfer(self, member: str) -> None:
        """Ask the leader to hand over to this member."""
        raise _cannot("transfer", member)

    def compact(self) -> None:
        """Ask the store to forget all history before its present revision."""
        raise _cannot("compact")

    def burst(self, size_bytes: int) -> None:
        """Write this much at once, so that logs are cut and snapshots are taken and sent."""
        raise _cannot("burst", size_bytes)

    # --- The members (`Ability.MEMBERS`) ---

    def operate(self, order: Order) -> None:
        """Tell the operator to change the members."""
        raise _cannot("operate", order)


# --- Lists of faults, as text that machines read -------------------------------------------------------------------


def faults_to_json(faults: Iterable[Fault]) -> str:
    """Return a list of faults as JSON, a line for each."""
    lines = (json.dumps(asdict(fault)) for fault in faults)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def faults_from_json(text: str) -> list[Fault]:
    """Read what `faults_to_json` wrote. Raises `FaultError`."""
    try:
        rows: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultError(f"no list of faults: {error}") from error
    if not isinstance(rows, list):
        raise FaultError("no list of faults")
    listed: list[Any] = rows
    if len(listed) > FAULTS_MAX:
        raise FaultError(f"{len(listed)} faults, over {FAULTS_MAX}")
    return [_fault_from_row(row) for row in listed]


_FIELDS: dict[str, tuple[type, ...]] = {
    "at": (int, float),
    "kind": (str,),
    "targets": (list,),
    "seconds": (int, float),
    "amount": (int, float),
    "seed": (int,),
}


def _fault_from_row(row: Any) -> Fault:
    """Raises `FaultError`."""
    if not isinstance(row, dict):
        raise FaultError(f"no fault: {row!r}")
    values = cast(dict[str, Any], row)
    if not {"at", "kind"} <= values.keys() <= _FIELDS.keys():
        raise FaultError(f"not the fields of a fault: {', '.join(values)}")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, _FIELDS[name]):
            raise FaultError(f"{name} of a fault cannot be {value!r}")
    targets = tuple(values.pop("targets", ()))
    if not all(isinstance(name, str) for name in targets):
        raise FaultError(f"targets of a fault are names, not {targets!r}")
    return Fault(**values, targets=targets)
