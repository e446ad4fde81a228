"""Every kind of fault, as the rows of one table: `KINDS`.

A row says what the fault does (`Kind.strike`, in the verbs of a `Grip`, which also undo it), what a target must be able
to do, and what random schedules need to know: whom to aim at, for how long, how badly. Adding a kind is adding a row.

Who is hit stands in `Fault.targets`:

* processes, disks, clocks: the hosts of the first group;
* partitions: a group for each side; who stands on no side sees everyone; a single group is cut off from everybody else;
* links that are bad but whole: both directions between the groups, or all links that end in a single group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from enum import Enum
from itertools import combinations, product

from pyraftkv._record import record
from pyraftkv.sim.faults import Ability, DiskFault, Fault, FaultError, LinkFault
from pyraftkv.sim.holds import Grip, Link

STRIKES = 5
"""How often a restart storm kills within its time, and how often a flapping link goes."""

REORDER_RATE = 0.3
"""The share of messages that others overtake, while they are overtaken at all."""

Strike = Callable[[Grip], None]
Range = tuple[float, float]
"""The least and the most."""


class Aim(Enum):
    """Whom a random schedule aims a kind at."""

    ONE = "one member"
    LEADER = "whoever leads"
    SOME = "any members, from one to all"
    MAJORITY = "a bare majority"
    ALL = "every member"
    SIDES = "two sides, every member on one"
    BRIDGE = "two sides, with one member that stands on neither"
    PAIR = "two members"
    CLIENT = "one client and every member"
    DOOMED = "a member of the minority that may be lost for good"
    OPERATOR = "whomever the operator finds fit"


@record
class Kind:
    """One kind of fault."""

    name: str
    does: str
    """What happens, in words that follow its name."""
    needs: Ability
    strike: Strike
    """What it does; its end is undoing that."""
    aim: Aim
    seconds: Range = (0.0, 0.0)
    """How long it lasts in random schedules."""
    amount: Range = (0.0, 0.0)
    """How bad it is in random schedules; the least is also what a fault without an amount gets."""
    unit: str = ""
    """Of the amount."""
    windows: int = 1
    """It strikes so often within its time, and lets go as often."""
    members_min: int = 1
    """With fewer members it means nothing."""

    @property
    def is_fatal(self) -> bool:
        """Whether its victims may never come back."""
        return self.aim is Aim.DOOMED

    @property
    def is_order(self) -> bool:
        """Whether it is an order to change the members."""
        return self.needs is Ability.MEMBERS

    @property
    def has_sides(self) -> bool:
        """Whether it happens between groups of hosts, and not to each host by itself."""
        return not isinstance(self.strike, _EachHost) and self.strike not in {_ring, _transfer, _compact, _burst}


@record
class Window:
    """One stretch of time in which a fault strikes."""

    begins: float
    ends: float


# --- Processes -----------------------------------------------------------------------------------------------------


class _EachHost:
    """Does something to every host, whoever stands beside it."""

    def __init__(self, verb: Callable[[Grip, str], None]) -> None:
        self._verb = verb

    def __call__(self, grip: Grip) -> None:
        for host in grip.hosts:
            self._verb(grip, host)


def _mid_write(grip: Grip, host: str) -> None:
    grip.power_loss_at(host, max(1, round(grip.amount)))


# --- Partitions ----------------------------------------------------------------------------------------------------


def _sides(grip: Grip) -> list[list[str]]:
    """Return the groups that are named; beside a single one stands everybody else."""
    if len(grip.groups) > 1:
        return grip.groups
    return [grip.hosts, [name for name in grip.everyone if name not in grip.hosts]]


def _partition(grip: Grip) -> None:
    """Cut every side off from every other."""
    for left, right in combinations(_sides(grip), 2):
        grip.separate(left, right)


def _one_way(grip: Grip) -> None:
    """Lose what a side sends to those after it."""
    for left, right in combinations(_sides(grip), 2):
        for source, target in product(left, right):
            grip.cut(source, target)


def _ring(grip: Grip) -> None:
    """Let every member see its two neighbours only: each sees another majority, if there are five."""
    count = len(grip.hosts)
    for (a, left), (b, right) in combinations(enumerate(grip.hosts), 2):
        if b - a not in (1, count - 1):
            grip.separate([left], [right])


def _isolate(grip: Grip, host: str) -> None:
    grip.separate([host], grip.everyone)


def _mute(grip: Grip, host: str) -> None:
    for other in grip.target.members:
        grip.cut(host, other)


def _deafen(grip: Grip, host: str) -> None:
    for other in grip.target.members:
        grip.cut(other, host)


# --- Links ---------------------------------------------------------------------------------------------------------


def _links(grip: Grip) -> Iterator[Link]:
    """Yield both directions of every link that is hit: between the sides, or all that end at a single group."""
    sides = grip.groups if len(grip.groups) > 1 else [grip.hosts, grip.everyone]
    pairs = (pair for left, right in combinations(sides, 2) for pair in product(left, right))
    yield from dict.fromkeys(link for a, b in pairs if a != b for link in ((a, b), (b, a)))


def _bad_links(worse: Callable[[float], LinkFault]) -> Strike:
    """Return what makes links worse, by the fault's amount."""

    def strike(grip: Grip) -> None:
        fault = worse(grip.amount)
        for source, target in _links(grip):
            grip.worsen_link(source, target, fault)

    return strike


def _reset(grip: Grip) -> None:
    """Break connections, each pair of hosts once."""
    for pair in dict.fromkeys(tuple(sorted(link)) for link in _links(grip)):
        grip.target.reset(*pair)


# --- Disks and clocks ----------------------------------------------------------------------------------------------


def _bad_disk(worse: Callable[[float], DiskFault]) -> Strike:
    """Return what makes the disk of each host worse, by the fault's amount."""
    return _EachHost(lambda grip, host: grip.worsen_disk(host, worse(grip.amount)))


def _rot(grip: Grip, host: str) -> None:
    grip.target.rot(host, grip.random.getrandbits(32))


def _wipe(grip: Grip, host: str) -> None:
    grip.target.wipe(host)


def _set_rate(grip: Grip, host: str) -> None:
    grip.set_clock_rate(host, grip.amount)


def _jump_clock(grip: Grip, host: str) -> None:
    grip.target.jump_clock(host, grip.amount)


def _jump_wall_clock(grip: Grip, host: str) -> None:
    grip.target.jump_wall_clock(host, grip.amount)


# --- The cluster ---------------------------------------------------------------------------------------------------


def _transfer(grip: Grip) -> None:
    grip.target.transfer(grip.hosts[0])


def _compact(grip: Grip) -> None:
    grip.target.compact()


def _burst(grip: Grip) -> None:
    grip.target.burst(round(grip.amount))


def _leave_behind(grip: Grip, host: str) -> None:
    """Let the others write so much without a member that it needs a snapshot, while its own clients still watch it."""
    grip.separate([host], grip.target.members)
    _burst(grip)


def _order(what: str, *, then: str = "") -> Strike:
    """Return what tells the operator to change the members, and again when the time is up."""
    return lambda grip: grip.order(what, then=then)


# --- The table -----------------------------------------------------------------------------------------------------

_BLINK: Range = (0.05, 0.5)
"""Shorter than an election takes, mostly."""
_SHORT: Range = (0.2, 3.0)
_LONG: Range = (2.0, 8.0)
"""Beyond the election timeout."""
_INSTANT: Range = (0.0, 0.0)

_RATE: Range = (0.02, 0.3)


def _processes() -> Iterator[Kind]:
    """Yield what befalls single processes, all of them at once, and their machines' power."""
    needs = Ability.PROCESSES
    kill, pause, end = _EachHost(Grip.kill), _EachHost(Grip.pause), _EachHost(Grip.shut_down)
    yield Kind(
        "kill", "the process ends at once (SIGKILL), and starts again when the time is up", needs, kill, Aim.ONE, _SHORT
    )
    yield Kind("kill_leader", "the same, of whoever leads", needs, kill, Aim.LEADER, _SHORT)
    yield Kind("kill_majority", "the same, of so many that nothing can be decided", needs, kill, Aim.MAJORITY, _SHORT)
    yield Kind("kill_all", "the same, of every member at once", needs, kill, Aim.ALL, _SHORT)
    yield Kind("restart_storm", "killed and started, five times", needs, kill, Aim.ONE, (1.0, 5.0), windows=STRIKES)
    yield Kind(
        "shut_down",
        "the process is asked to end (SIGTERM), and starts again when the time is up",
        needs,
        end,
        Aim.ONE,
        _SHORT,
    )
    yield Kind("shut_down_leader", "the same, of whoever leads", needs, end, Aim.LEADER, _SHORT)
    yield Kind("pause", "the process does nothing for a moment (SIGSTOP)", needs, pause, Aim.SOME, _BLINK)
    yield Kind("pause_long", "the same, for longer than an election takes", needs, pause, Aim.ONE, _LONG)
    yield Kind("pause_leader", "the same, of whoever leads", needs, pause, Aim.LEADER, _LONG)
    needs, power_loss = Ability.POWER, _EachHost(Grip.power_loss)
    yield Kind(
        "power_loss",
        "the machine goes dark: what was not synced is lost or torn, connections go silent",
        needs,
        power_loss,
        Aim.ONE,
        _SHORT,
    )
    yield Kind("power_loss_leader", "the same, of whoever leads", needs, power_loss, Aim.LEADER, _SHORT)
    yield Kind("power_loss_all", "the same, of every member at once", needs, power_loss, Aim.ALL, _SHORT)
    yield Kind(
        "power_loss_mid_write",
        "the same, in the middle of a later disk operation",
        needs,
        _EachHost(_mid_write),
        Aim.SOME,
        _SHORT,
        (1, 400),
        "operations",
    )


def _partitions() -> Iterator[Kind]:
    """Yield what closes links between hosts."""
    needs = Ability.LINKS
    isolate, mute, deafen = _EachHost(_isolate), _EachHost(_mute), _EachHost(_deafen)
    yield Kind("partition", "nothing passes between two sides", needs, _partition, Aim.SIDES, _LONG, members_min=2)
    yield Kind(
        "partition_one_way",
        "nothing passes from one side to the other; the way back is open",
        needs,
        _one_way,
        Aim.SIDES,
        _LONG,
        members_min=2,
    )
    yield Kind(
        "partition_partial",
        "two members do not hear each other, and hear all others",
        needs,
        _partition,
        Aim.PAIR,
        _LONG,
        members_min=3,
    )
    yield Kind(
        "partition_bridge",
        "nothing passes between two sides but through one member that hears both",
        needs,
        _partition,
        Aim.BRIDGE,
        _LONG,
        members_min=3,
    )
    yield Kind(
        "partition_ring", "every member hears its two neighbours only", needs, _ring, Aim.ALL, _LONG, members_min=4
    )
    yield Kind("isolate", "nothing passes to the host or from it", needs, isolate, Aim.ONE, _LONG)
    yield Kind("isolate_leader", "the same, for whoever leads", needs, isolate, Aim.LEADER, _LONG)
    yield Kind("isolate_all", "the same, for every member: nobody hears anybody", needs, isolate, Aim.ALL, _SHORT)
    yield Kind(
        "mute", "the host hears the members, and they do not hear it", needs, mute, Aim.ONE, _LONG, members_min=2
    )
    yield Kind("mute_leader", "the same, for whoever leads", needs, mute, Aim.LEADER, _LONG, members_min=2)
    yield Kind(
        "deafen", "the members hear the host, and it does not hear them", needs, deafen, Aim.ONE, _LONG, members_min=2
    )
    yield Kind("deafen_leader", "the same, for whoever leads", needs, deafen, Aim.LEADER, _LONG, members_min=2)
    yield Kind("cut_client", "nothing passes between a client and the members", needs, _partition, Aim.CLIENT, _LONG)
    yield Kind(
        "flap",
        "two hosts are parted and joined, five times",
        needs,
        _partition,
        Aim.PAIR,
        (1.0, 6.0),
        windows=STRIKES,
        members_min=2,
    )


def _bad_networks() -> Iterator[Kind]:
    """Yield what befalls links that stay open."""
    needs = Ability.LINKS
    yield Kind("reset", "connections break; new ones can be made", needs, _reset, Aim.ALL)
    yield Kind("reset_leader", "the same, for whoever leads", needs, _reset, Aim.LEADER)
    late = _bad_links(lambda seconds: LinkFault(delay_seconds=seconds))
    yield Kind("delay", "everything that passes takes longer", needs, late, Aim.SOME, _LONG, (0.02, 0.5), "seconds")
    slow = _bad_links(lambda rate: LinkFault(bandwidth_bytes=rate))
    yield Kind(
        "slow_link", "little passes at a time", needs, slow, Aim.ONE, _LONG, (5_000, 200_000), "bytes per second"
    )
    noisy = _bad_links(lambda rate: LinkFault(corrupt_rate=rate))
    yield Kind(
        "corrupt",
        "bits flip on the way, and no checksum of the network notices",
        needs,
        noisy,
        Aim.SOME,
        _SHORT,
        (0.005, 0.05),
        "share of pieces",
    )
    needs, share = Ability.MESSAGES, "share of messages"
    lossy = _bad_links(lambda rate: LinkFault(drop_rate=rate))
    yield Kind("lose", "messages between members are lost", needs, lossy, Aim.SOME, _LONG, _RATE, share, members_min=2)
    double = _bad_links(lambda rate: LinkFault(duplicate_rate=rate))
    yield Kind(
        "duplicate",
        "messages between members arrive twice",
        needs,
        double,
        Aim.SOME,
        _LONG,
        _RATE,
        share,
        members_min=2,
    )
    mixed = _bad_links(lambda seconds: LinkFault(reorder_rate=REORDER_RATE, reorder_seconds=seconds))
    yield Kind(
        "reorder",
        "messages between members overtake each other",
        needs,
        mixed,
        Aim.SOME,
        _LONG,
        (0.02, 0.5),
        "seconds",
        members_min=2,
    )


def _disks() -> Iterator[Kind]:
    """Yield what befalls disks."""
    needs = Ability.DISKS
    slow = _bad_disk(lambda factor: DiskFault(slow_factor=factor))
    yield Kind("slow_disk", "everything takes the disk longer", needs, slow, Aim.SOME, _LONG, (2.0, 20.0), "times")
    late = _bad_disk(lambda seconds: DiskFault(sync_seconds=seconds))
    yield Kind("slow_syncs", "syncs take longer", needs, late, Aim.SOME, _LONG, (0.05, 1.5), "seconds")
    yield Kind(
        "disk_full",
        "nothing more fits on the disk (ENOSPC)",
        needs,
        _bad_disk(lambda _: DiskFault(is_full=True)),
        Aim.ONE,
        _SHORT,
    )
    bad_writes = _bad_disk(lambda rate: DiskFault(write_error_rate=rate))
    yield Kind("write_errors", "writes fail (EIO)", needs, bad_writes, Aim.ONE, _SHORT, (0.02, 1.0), "share of writes")
    bad_reads = _bad_disk(lambda rate: DiskFault(read_error_rate=rate))
    yield Kind("read_errors", "reads fail (EIO)", needs, bad_reads, Aim.ONE, _SHORT, (0.02, 1.0), "share of reads")
    yield Kind(
        "syncs_drop",
        "syncs fail (EIO), and what should be synced is forgotten",
        needs,
        _bad_disk(lambda _: DiskFault(sync_failure="dropped")),
        Aim.ONE,
        _BLINK,
    )
    yield Kind(
        "syncs_keep",
        "syncs fail (EIO), and what should be synced may be yet",
        needs,
        _bad_disk(lambda _: DiskFault(sync_failure="kept")),
        Aim.ONE,
        _BLINK,
    )
    yield Kind(
        "syncs_lie",
        "syncs fail (EIO), and were done",
        needs,
        _bad_disk(lambda _: DiskFault(sync_failure="durable")),
        Aim.ONE,
        _BLINK,
    )
    short = _bad_disk(lambda rate: DiskFault(short_write_rate=rate))
    yield Kind(
        "short_writes",
        "writes take fewer bytes than they were given",
        needs,
        short,
        Aim.SOME,
        _LONG,
        (0.1, 0.9),
        "share of writes",
    )
    yield Kind("rot", "bits flip in what the disk holds", needs, _EachHost(_rot), Aim.DOOMED)
    yield Kind("wipe", "the disk is lost, and the host stays down", needs, _EachHost(_wipe), Aim.DOOMED)


def _clocks() -> Iterator[Kind]:
    """Yield what befalls clocks. Raft's safety rests on none of them."""
    needs, rate = Ability.CLOCKS, _EachHost(_set_rate)
    yield Kind(
        "jump_clock",
        "the monotonic clock jumps ahead",
        needs,
        _EachHost(_jump_clock),
        Aim.SOME,
        _INSTANT,
        (0.5, 30.0),
        "seconds",
    )
    yield Kind("fast_clock", "the clocks run fast", needs, rate, Aim.SOME, _LONG, (1.2, 3.0), "times")
    yield Kind("slow_clock", "the clocks run slow", needs, rate, Aim.SOME, _LONG, (0.3, 0.9), "times")
    yield Kind("suspend", "the machine sleeps, its monotonic clock too", needs, _EachHost(Grip.freeze), Aim.ONE, _LONG)
    yield Kind("suspend_leader", "the same, of whoever leads", needs, _EachHost(Grip.freeze), Aim.LEADER, _LONG)
    yield Kind(
        "jump_wall_clock",
        "the wall clock jumps",
        needs,
        _EachHost(_jump_wall_clock),
        Aim.SOME,
        _INSTANT,
        (-86_400, 86_400),
        "seconds",
    )


def _requests() -> Iterator[Kind]:
    """Yield what a busy operator asks of the cluster at a bad moment."""
    needs = Ability.CLUSTER
    yield Kind("transfer", "the leader is asked to hand over", needs, _transfer, Aim.ONE, members_min=2)
    yield Kind("compact", "history is compacted", needs, _compact, Aim.ALL)
    much: Range = (50_000, 300_000)
    yield Kind("burst", "much is written at once", needs, _burst, Aim.ALL, _INSTANT, much, "bytes")
    needs |= Ability.LINKS
    behind, does = _EachHost(_leave_behind), "no other member sees the host, and much is written without it"
    yield Kind("left_behind", does, needs, behind, Aim.ONE, _LONG, much, "bytes", members_min=3)


def _orders() -> Iterator[Kind]:
    """Yield what an operator does to the members, while everything else goes wrong."""
    needs, some = Ability.MEMBERS, Aim.OPERATOR
    yield Kind("member_add", "a machine joins: a learner, until it has caught up", needs, _order("add"), some)
    yield Kind("member_promote", "learners are to vote, however far they are", needs, _order("promote"), some)
    yield Kind(
        "member_demote",
        "a voter becomes a learner until the time is up",
        needs,
        _order("demote", then="promote"),
        some,
        _LONG,
    )
    yield Kind("member_remove", "a member is removed", needs, _order("remove"), some)
    yield Kind("member_remove_leader", "the same, of whoever leads", needs, _order("remove"), Aim.LEADER)
    yield Kind("member_return", "a member that was removed is started again", needs, _order("return"), some)
    yield Kind(
        "member_replace", "a member's disk is lost, and a new member begins there", needs, _order("replace"), some
    )
    yield Kind("member_update", "a member is to lead rather, or rather not", needs, _order("update"), some)
    yield Kind("member_joint", "several members change together", needs, _order("joint"), some)
    yield Kind(
        "member_joint_explicit",
        "the same, and both configurations count until the time is up",
        needs,
        _order("joint_explicit", then="leave"),
        some,
        _LONG,
    )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for rows in (_processes, _partitions, _bad_networks, _disks, _clocks, _requests, _orders)
    for kind in rows()
}
"""Every kind of fault by its name."""


def kind_of(fault: Fault) -> Kind:
    """Return a fault's row. Raises `FaultError`."""
    return kind_named(fault.kind)


def kind_named(name: str) -> Kind:
    """Return a row. Raises `FaultError`, with the names that are nearest.

    >>> kind_named("puase")
    Traceback (most recent call last):
    pyraftkv.sim.faults.FaultError: there is no fault 'puase', but 'pause'; `pyraftkv sim --kinds` lists all
    """
    if name not in KINDS:
        near = ", ".join(map(repr, get_close_matches(name, KINDS)))
        raise FaultError(
            f"there is no fault {name!r}{f', but {near}' if near else ''}; `pyraftkv sim --kinds` lists all"
        )
    return KINDS[name]


def kinds_table() -> list[list[str]]:
    """Return every kind as a row for people: its name, what happens, its amount, and what a target must be able to do.

    The amount is the one that a fault gets which names none, and its unit.
    """
    rows: list[list[str]] = []
    for kind in KINDS.values():
        amount = f"{kind.amount[0]:g} {kind.unit}" if kind.unit else ""
        needs = str(kind.needs.name).lower().replace("|", ", ")  # which would part the columns of a table
        rows.append([kind.name, kind.does, amount, needs])
    return rows


def windows(fault: Fault) -> Iterator[Window]:
    """Yield when a fault strikes: once, or several times in its time, with as long breaks in between."""
    count = kind_of(fault).windows
    share = fault.seconds / (2 * count - 1)
    for number in range(count):
        begins = fault.at + 2 * number * share
        yield Window(begins, fault.ends if number == count - 1 else begins + share)
