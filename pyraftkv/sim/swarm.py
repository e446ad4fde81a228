"""`Swarm`: how one seed's cluster is built, what its clients do, and which misfortunes it may meet.

Swarm testing (Groce et al., 2012): a run that can do everything does everything a little, and long stretches of one
behaviour never happen; so each seed leaves out a random half of what could be. One seed has three members on slow
disks and nothing but power losses, another five with small snapshots, a lossy network and a busy operator.

A swarm says nothing about *when* something happens: see `pyraftkv.sim.schedule`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field, replace
from math import inf, sqrt
from random import Random

from pyraftkv._record import record
from pyraftkv.core.membership import DATA_VOTERS_MIN
from pyraftkv.errors import ConfigurationError
from pyraftkv.log.segment import BLOCK_BYTES, SEGMENT_BYTES_LIMIT
from pyraftkv.node import NodeConfig
from pyraftkv.node.bootstrap import MEMBERS_MAX
from pyraftkv.sim.kinds import KINDS, Range

KIB = 1024
MIB = 1024 * KIB

OPERATIONS = ("put", "get", "range", "delete", "txn", "create", "compact", "sweep")
"""What clients do."""

RARE = {"compact": 0.05, "sweep": 0.02}
"""The weights of what a few times in a run are enough of."""


CLIENTS_MAX = 1000
"""Of a workload, and operations that one of them has under way."""


@record
class Workload:
    """What the clients do."""

    clients: int = 3
    in_flight: int = 2
    """Operations that each client has under way at the same time, at the most."""
    operations_per_second: float = 100.0
    """Of all clients together, as far as the cluster keeps up."""
    pulse_seconds: float = 0.0
    """Operations begin at multiples of this, all that are due together; 0: whenever they are due."""
    keys: int = 10
    """How many different keys they touch."""
    value_bytes: tuple[int, int] = (8, 64)
    """The least and the most that a value holds."""
    mix: dict[str, float] = field(default_factory=lambda: {"put": 4.0, "get": 4.0, "range": 1.0, "txn": 1.0})
    """Operations with their weights."""
    request_seconds: float = 2.0
    """The deadline of an operation."""
    lease_share: float = 0.0
    """Of the reads: they go by the leader's lease, where it has one."""
    tenants: int = 0
    """Of each client's machine: programs that hold leases of the store, with keys under them."""
    callers: int = 0
    """Of each client's machine: programs that call state machines beside the store."""

    def __post_init__(self) -> None:
        """See that clients can do this. Raises `ConfigurationError`."""
        _see(
            self,
            clients=1 <= self.clients <= CLIENTS_MAX,
            in_flight=1 <= self.in_flight <= CLIENTS_MAX,
            operations_per_second=0 < self.operations_per_second < inf,
            pulse_seconds=0 <= self.pulse_seconds < inf,
            keys=self.keys >= 1,
            value_bytes=_is_range(self.value_bytes),
            mix=set(self.mix) <= set(OPERATIONS) and _can_be_drawn(self.mix.values()),
            request_seconds=0 < self.request_seconds < inf,
            lease_share=0 <= self.lease_share <= 1,
            tenants=0 <= self.tenants <= CLIENTS_MAX,
            callers=0 <= self.callers <= CLIENTS_MAX,
        )


@record
class Swarm:
    """The choices of one seed."""

    members: int = 3
    """Of the cluster when it begins."""
    spares: int = 0
    """Machines besides, which may join it."""
    witness: bool = False
    """Whether the last of the first members keeps no state."""
    config: NodeConfig = field(default_factory=NodeConfig)
    segment_bytes_max: int = MIB
    """Of the members' logs."""
    latency_seconds: Range = (0.0002, 0.002)
    """Of every link, one way."""
    bandwidth_bytes: float = 0.0
    """Per second, of every link; 0: no limit."""
    sync_seconds: Range = (0.0005, 0.005)
    read_seconds: Range = (0.00005, 0.0005)
    write_bytes_per_second: float = 100e6
    workload: Workload = field(default_factory=Workload)
    kinds: tuple[str, ...] = ()
    """The kinds of fault that may happen; one that stands there twice does twice as often."""
    faults_per_second: float = 0.0
    orders_per_second: float = 0.0
    """How often an operator is told to change the members, by the kinds that say how."""

    def __post_init__(self) -> None:
        """See that such a cluster can be built. Raises `ConfigurationError`."""
        self.config.check()
        _see(
            self,
            members=1 <= self.members <= MEMBERS_MAX,
            spares=0 <= self.spares <= MEMBERS_MAX,
            witness=not self.witness or self.members > DATA_VOTERS_MIN,
            segment_bytes_max=BLOCK_BYTES < self.segment_bytes_max <= SEGMENT_BYTES_LIMIT // 2,
            latency_seconds=_is_range(self.latency_seconds),
            bandwidth_bytes=0 <= self.bandwidth_bytes < inf,
            sync_seconds=_is_range(self.sync_seconds),
            read_seconds=_is_range(self.read_seconds),
            write_bytes_per_second=self.write_bytes_per_second > 0,
            kinds=set(self.kinds) <= set(KINDS),
            faults_per_second=0 <= self.faults_per_second < inf,
            orders_per_second=0 <= self.orders_per_second < inf,
        )

    @property
    def clock_rates(self) -> Range:
        """Between which rates clocks stay, whatever faults say: leases are right up to a drift, and that is it."""
        if not (self.config.lease_reads or self.workload.tenants):
            return (0.0, inf)
        slowest = sqrt(1 - self.config.clock_drift_max)
        return (slowest, 1 / slowest)


def _see(choices: Workload | Swarm, **facts: bool) -> None:
    """See that what was chosen can be, field by field. Raises `ConfigurationError`."""
    for name, is_fine in facts.items():
        if not is_fine:
            raise ConfigurationError(f"{name} of a {type(choices).__name__} cannot be {getattr(choices, name)!r}")


def _is_range(bounds: tuple[float, float]) -> bool:
    return len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] < inf


def _can_be_drawn(weights: Collection[float]) -> bool:
    return all(0 <= weight < inf for weight in weights) and 0 < sum(weights) < inf


MEMBERS_CHOICE = (3, 3, 3, 3, 3, 3, 3, 5, 5, 1)
LEASES_SHARE = 0.3
"""Of the seeds: leaders have leases there, and clients read by them."""

ORDER_SHARE = 0.6
"""Of the kinds of order: a seed has them."""

ORDERS_SHARE = 0.25
"""Of the seeds: members come and go there."""

WITNESS_SHARE = 0.15
"""Of the seeds with three members that nobody changes: one of these is a witness."""

TENANTS_SHARE = 0.2
"""Of the seeds: clients hold leases there."""

CALLERS_SHARE = 0.15
"""Of the seeds: clients call state machines there."""

CALM_SHARE = 0.04
"""Of the seeds: nothing goes wrong there, and everything must be perfect."""

BEHIND_SHARE = 0.3
"""Of the seeds: a quarter of all faults leave a member so far behind that it needs a snapshot.

Many rules matter only then, and among sixty kinds it would hardly ever happen twice in a run.
"""

ROUNDS_MIN = 5
"""An election timeout is at least so many rounds of messages and saves: with less, the settings would be wrong."""


def random_swarm(random: Random, *, members: int | None = None, changes_members: bool = True) -> Swarm:
    """Choose everything for one seed; the number of members too, if it is not given.

    Args:
        random: Where everything is drawn from.
        members: How many members.
        changes_members: Whether members may come and go.
    """
    members = random.choice(MEMBERS_CHOICE) if members is None else members
    kinds = random_kinds(random, members)
    fast, late = random.choice([0.0001, 0.0005, 0.002, 0.01]), random.choice([1.5, 4.0])
    quick, slow = random.choice([0.0001, 0.0005, 0.002, 0.008]), random.choice([1.5, 4.0])
    swarm = Swarm(
        members=members,
        config=random_config(random, round_seconds=2 * fast * late + 2 * quick * slow),
        segment_bytes_max=random.choice([8 * KIB, 16 * KIB, 64 * KIB, MIB]),
        latency_seconds=(fast, fast * late),
        bandwidth_bytes=random.choice([0.0, 0.0, 1e6, 12.5e6, 125e6]),
        sync_seconds=(quick, quick * slow),
        read_seconds=(quick / 10, quick),
        write_bytes_per_second=random.choice([20e6, 100e6, 1e9]),
        workload=random_workload(random),
        kinds=kinds,
        faults_per_second=random.choice([0.15, 0.3, 0.5, 1.0]) if kinds else 0.0,
    )
    rate = random.choice([0, 0, MIB, 4 * MIB])  # drawn after all that is older, so that seeds stay what they were
    swarm = replace(swarm, config=replace(swarm.config, snapshot_bytes_per_second_max=rate))
    drift, share = random.choice([0.05, 0.1, 0.3]), random.uniform(0.2, 0.7)
    if random.random() < LEASES_SHARE:
        swarm = with_leases(swarm, drift=drift, share=share)
    config = replace(swarm.config, snapshot_bytes_per_second_max=random.choice([0, 0, 256 * KIB, 4 * MIB]))
    swarm = replace(swarm, config=config)
    if changes_members and random.random() < ORDERS_SHARE:
        swarm = with_orders(swarm, random, random.choice([0.2, 0.4, 0.8]))
    elif changes_members and swarm.members == DATA_VOTERS_MIN + 1 and random.random() < WITNESS_SHARE:
        swarm = replace(swarm, witness=True)
    if random.random() < TENANTS_SHARE:
        swarm = with_tenants(swarm, random.choice([1, 2]), checkpoint_seconds=random.choice([1.0, 3.0, 300.0]))
    if random.random() >= 1 - CALLERS_SHARE:  # drawn last: all other seeds stay what they were
        swarm = with_callers(swarm, random.choice([1, 2]))
    return swarm


def with_orders(swarm: Swarm, random: Random, orders_per_second: float) -> Swarm:
    """Return the swarm with machines to spare, and with orders for an operator to change the members.

    Nothing is lost for good there but by the operator, who knows when a disk can be spared.
    """
    lasting = tuple(name for name in swarm.kinds if not (KINDS[name].is_fatal or KINDS[name].is_order))
    orders = [kind.name for kind in KINDS.values() if kind.is_order]
    chosen = [name for name in orders[1:] if random.random() < ORDER_SHARE]
    return replace(
        swarm,
        spares=random.choice([1, 2, 2, 3]),
        kinds=(*lasting, *orders[:1], *chosen),
        orders_per_second=orders_per_second,
        faults_per_second=swarm.faults_per_second if lasting else 0.0,
    )


def with_leases(swarm: Swarm, *, drift: float = 0.1, share: float = 0.5) -> Swarm:
    """Return the swarm with leases for its leaders, a bound of clock drift, and a share of reads that go by them."""
    return replace(
        swarm,
        config=replace(swarm.config, lease_reads=True, clock_drift_max=drift),
        workload=replace(swarm.workload, lease_share=share),
    )


def with_tenants(swarm: Swarm, tenants: int, *, checkpoint_seconds: float) -> Swarm:
    """Return the swarm with so many holders of leases per client, and how often what is left of leases is written down.

    No clock jumps ahead there: a leader whose clock says that the time is up has to believe it.
    """
    return replace(
        swarm,
        config=replace(swarm.config, lease_checkpoint_seconds=checkpoint_seconds),
        workload=replace(swarm.workload, tenants=tenants),
        kinds=tuple(name for name in swarm.kinds if name != "jump_clock"),
    )


def with_callers(swarm: Swarm, callers: int) -> Swarm:
    """Return the swarm with state machines beside the store, and so many programs per client that call them."""
    return replace(swarm, workload=replace(swarm.workload, callers=callers))


def random_kinds(random: Random, members: int) -> tuple[str, ...]:
    """Choose what may go wrong: each kind with the same random chance, so that some seeds have few and others many."""
    fit = [
        kind for kind in KINDS.values() if members >= (3 if kind.is_fatal else kind.members_min) and not kind.is_order
    ]
    if random.random() < CALM_SHARE:
        return ()
    chance = random.choice([0.08, 0.25, 0.5, 0.75])
    kinds = tuple(kind.name for kind in fit if random.random() < chance) or (random.choice(fit).name,)
    if members >= KINDS["left_behind"].members_min and random.random() < BEHIND_SHARE:
        kinds += ("left_behind",) * (1 + len(kinds) // 3)  # as often as it stands there
    return kinds


def random_config(random: Random, *, round_seconds: float) -> NodeConfig:
    """Choose the members' settings: valid ones, with small limits more often than anyone would deploy them.

    Args:
        random: Where they are drawn from.
        round_seconds: How long a message, its save and the answer to it may take when nothing is wrong.
    """
    tick_seconds = random.choice([0.01, 0.02, 0.025, 0.05])
    heartbeat_seconds = tick_seconds * random.choice([2, 4, 10])
    config = NodeConfig(
        tick_seconds=tick_seconds,
        heartbeat_seconds=heartbeat_seconds,
        election_timeout_seconds=max(heartbeat_seconds * random.choice([4, 6, 10]), ROUNDS_MIN * round_seconds),
        retry_seconds=random.choice([0.2, 0.5, 1.0]),
        # Computing takes no virtual time: only with none to spare does applying ever stop for others.
        apply_slice_seconds=random.choice([0.0, 0.0, 0.001]),
        apply_backlog_bytes_max=random.choice([16 * KIB, 16 * MIB]),
        snapshot_log_bytes_min=random.choice([2 * KIB, 8 * KIB, 32 * KIB, 64 * MIB]),
        snapshot_chunks_in_flight_max=random.choice([1, 2, 4]),
        snapshot_stall_seconds=random.choice([1.0, 3.0, 10.0]),
        close_seconds=random.choice([0.2, 2.0]),
        append_bytes_max=random.choice([1 * KIB, 16 * KIB, MIB]),
        uncommitted_bytes_max=random.choice([256 * KIB, 64 * MIB]),
        log_cache_bytes_max=random.choice([4 * KIB, 64 * KIB, 8 * MIB]),
    )
    config.check()
    return config


def random_workload(random: Random) -> Workload:
    """Choose what clients do: few keys for contention or many for spread, and any operations besides puts and gets."""
    mix = {"put": random.uniform(1.0, 5.0), "get": random.uniform(1.0, 5.0)}
    for operation in OPERATIONS[2:]:
        if random.random() < 0.6:
            mix[operation] = RARE.get(operation) or random.uniform(0.2, 2.0)
    return Workload(
        clients=random.randint(2, 5),
        in_flight=random.choice([1, 2, 4]),
        operations_per_second=random.choice([20.0, 40.0, 80.0]),
        pulse_seconds=random.choice([0.0, 0.05, 0.1]),
        keys=random.choice([1, 3, 10, 30]),
        value_bytes=random.choice([(0, 16), (8, 64), (16, 512), (16, 4 * KIB)]),
        mix=mix,
        request_seconds=random.choice([0.5, 2.0, 5.0]),
    )
