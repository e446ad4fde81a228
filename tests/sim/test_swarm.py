from collections import Counter
from dataclasses import fields
from math import inf, nan
from random import Random

import pytest

from pyraftkv import errors
from pyraftkv.node import NodeConfig
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.injector import check_faults
from pyraftkv.sim.kinds import KINDS, Aim
from pyraftkv.sim.schedule import permanent_victims, random_faults
from pyraftkv.sim.swarm import CLIENTS_MAX, OPERATIONS, ROUNDS_MIN, Swarm, Workload, random_swarm
from tests.sim.machines import Machines

SEEDS = range(300)
SECONDS = 30.0


def drawn(seed: int) -> tuple[Swarm, Machines, list[Fault]]:
    """Return what one seed chooses."""
    random = Random(seed)
    swarm = random_swarm(random)
    target = Machines(swarm.members + swarm.spares, clients=swarm.workload.clients)
    faults = random_faults(random, swarm, members=target.members, clients=target.clients, seconds=SECONDS)
    return swarm, target, faults


def test_a_seed_chooses_everything() -> None:
    """The same seed gives the same swarm and the same faults, another seed others."""
    assert [drawn(seed)[0] for seed in range(20)] == [drawn(seed)[0] for seed in range(20)]
    assert [drawn(seed)[2] for seed in range(20)] == [drawn(seed)[2] for seed in range(20)]
    assert drawn(1)[0] != drawn(2)[0]
    assert drawn(1)[2] != drawn(3)[2]


def test_seeds_differ_in_everything() -> None:
    """Over some hundred seeds every setting takes several values, and three members are the most common."""
    swarms = [drawn(seed)[0] for seed in SEEDS]
    constant = {"request_timeout_seconds", "operations_per_second", "client", "witness_log_bytes_max"}
    constant |= {"settings", "repair", "snapshot_entries_max"}
    for part in (lambda swarm: swarm, lambda swarm: swarm.config, lambda swarm: swarm.workload):
        for field in fields(part(swarms[0])):
            values = {repr(getattr(part(swarm), field.name)) for swarm in swarms}
            assert len(values) > 1 or field.name in constant, field.name
    members = Counter(swarm.members for swarm in swarms)
    assert members.keys() == {1, 3, 5}
    assert members[3] > members[5] > members[1] > 0


def test_a_seed_leaves_most_out() -> None:
    """Few kinds in some seeds, many in others, none at all in a few; every kind strikes in some seed."""
    counts = [len(drawn(seed)[0].kinds) for seed in SEEDS]
    assert 0 < sum(count == 0 for count in counts) < len(SEEDS) / 10
    assert sum(0 < count < 8 for count in counts) > 30
    assert sum(count > len(KINDS) / 2 for count in counts) > 30
    assert {fault.kind for seed in SEEDS for fault in drawn(seed)[2]} == set(KINDS)


def test_settings_are_such_that_a_healthy_cluster_elects() -> None:
    """Settings pass their own check, and an election timeout is long against a round of messages and saves."""
    for seed in SEEDS:
        swarm = drawn(seed)[0]
        swarm.config.check()
        round_seconds = 2 * swarm.latency_seconds[1] + 2 * swarm.sync_seconds[1]
        assert swarm.config.election_timeout_seconds >= ROUNDS_MIN * round_seconds - 1e-9


def test_workloads_read_and_write() -> None:
    """Every seed has puts and gets, and each other operation is in some seed and missing in another."""
    mixes = [drawn(seed)[0].workload.mix for seed in SEEDS]
    assert all({"put", "get"} <= mix.keys() <= set(OPERATIONS) for mix in mixes)
    for operation in OPERATIONS[2:]:
        assert 0 < sum(operation in mix for mix in mixes) < len(SEEDS)
    assert all(weight > 0 for mix in mixes for weight in mix.values())


def test_the_number_of_members_can_be_asked_for() -> None:
    """Whoever wants five members gets five, and faults that five can meet."""
    swarms = [random_swarm(Random(seed), members=5) for seed in range(50)]
    assert {swarm.members for swarm in swarms} == {5}
    assert any("partition_ring" in swarm.kinds for swarm in swarms)


def test_some_seeds_have_tenants_and_clocks_by_which_leases_can_be_judged() -> None:
    """A fifth or so; no clock jumps ahead there, or is farther off than the setting says."""
    tenanted = [swarm for swarm in (drawn(seed)[0] for seed in SEEDS) if swarm.workload.tenants]
    assert len(SEEDS) / 10 < len(tenanted) < len(SEEDS) / 3
    assert not any("jump_clock" in swarm.kinds for swarm in tenanted)
    assert all(swarm.clock_rates[0] > 0.5 for swarm in tenanted)


def test_some_seeds_call_state_machines() -> None:
    """A seventh or so."""
    calling = [seed for seed in SEEDS if drawn(seed)[0].workload.callers]
    assert len(SEEDS) / 20 < len(calling) < len(SEEDS) / 4


# --- Schedules -----------------------------------------------------------------------------------------------------


def crowded(seed: int, *, members: int) -> tuple[Machines, list[Fault]]:
    """Return a schedule of everything, at five faults a second."""
    target = Machines(members, clients=2)
    kinds = tuple(name for name, kind in KINDS.items() if members >= kind.members_min)
    swarm = Swarm(members=members, kinds=kinds, faults_per_second=5.0)
    faults = random_faults(Random(seed), swarm, members=target.members, clients=target.clients, seconds=SECONDS)
    return target, faults


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
def test_a_majority_is_never_lost_for_good(members: int) -> None:
    """Kinds that nobody comes back from befall a minority, each member of it once at most."""
    lost: set[int] = set()
    for seed in range(30):
        _, faults = crowded(seed, members=members)
        fatal = [fault for fault in faults if KINDS[fault.kind].aim is Aim.DOOMED]
        victims = permanent_victims(faults)
        lost.add(len(victims))
        assert len(victims) <= (members - 1) // 2, seed
        assert len(fatal) == len(victims), seed
    assert max(lost) == (members - 1) // 2


@pytest.mark.parametrize("members", [1, 3, 5])
def test_everything_ends_with_its_phase(members: int) -> None:
    """Every fault begins and ends within the phase, in the order of their times, and makes sense for its cluster."""
    for seed in range(30):
        target, faults = crowded(seed, members=members)
        check_faults(faults, target)
        assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
        assert all(fault.at >= 0 and fault.ends <= SECONDS + 1e-9 for fault in faults), seed
        assert 90 < len(faults) < 200, seed


def test_durations_and_amounts_stay_in_their_ranges() -> None:
    """Nothing is longer, or worse, than its kind says; small values are as common as large ones."""
    small = 0
    for seed in range(30):
        for fault in crowded(seed, members=5)[1]:
            kind = KINDS[fault.kind]
            assert fault.seconds <= kind.seconds[1] + 1e-3
            assert kind.amount[0] * 0.99 <= fault.amount <= kind.amount[1] * 1.01 or fault.amount < 0
            small += fault.kind == "slow_link" and fault.amount < 30_000
    assert small > 10


def test_every_fault_has_a_seed_of_its_own() -> None:
    """No two faults share their luck."""
    seeds = [fault.seed for fault in crowded(0, members=5)[1]]
    assert len(set(seeds)) == len(seeds)


def test_partitions_put_every_member_on_a_side() -> None:
    """Both sides have members, nobody is on two, and a bridge is the one member that is on neither."""
    for seed in range(30):
        target, faults = crowded(seed, members=5)
        for fault in faults:
            aim = KINDS[fault.kind].aim
            if aim in {Aim.SIDES, Aim.BRIDGE}:
                left, right = (set(group) for group in fault.groups)
                assert not left & right
                assert left & set(target.members)
                assert right & set(target.members)
                assert len((left | right) & set(target.members)) == (5 if aim is Aim.SIDES else 4)


def test_no_kinds_no_faults() -> None:
    """A calm seed has an empty list."""
    assert random_faults(Random(1), Swarm(), members=["n1"], clients=[], seconds=60.0) == []


def test_in_some_seeds_members_come_and_go() -> None:
    """A quarter or so: machines to spare, kinds of order, at a rate of their own, and nothing lost for good beside."""
    for seed in SEEDS:
        swarm, _, faults = drawn(seed)
        orders = [fault for fault in faults if KINDS[fault.kind].is_order]
        if not swarm.spares:
            assert orders == []
            assert swarm.orders_per_second == 0
            continue
        assert "member_add" in swarm.kinds
        assert swarm.orders_per_second > 0
        assert permanent_victims(faults) == set()
    counts = Counter(bool(drawn(seed)[0].spares) for seed in SEEDS)
    assert len(SEEDS) / 6 < counts[True] < len(SEEDS) / 3
    assert random_swarm(Random(3), changes_members=False).spares == 0


def test_some_seeds_have_leases_and_clocks_that_keep_to_their_bound() -> None:
    """A third or so; the fastest clock there and the slowest are as far apart as the setting says, and no farther."""
    swarms = [drawn(seed)[0] for seed in SEEDS]
    leased = [swarm for swarm in swarms if swarm.config.lease_reads]
    assert len(SEEDS) / 5 < len(leased) < len(SEEDS) / 2
    for swarm in leased:
        slowest, fastest = swarm.clock_rates
        assert slowest / fastest == pytest.approx(1 - swarm.config.clock_drift_max)
        assert slowest * fastest == pytest.approx(1.0)
        assert swarm.workload.lease_share > 0
    others = [swarm for swarm in swarms if not (swarm.config.lease_reads or swarm.workload.tenants)]
    assert {swarm.clock_rates for swarm in others} == {(0.0, inf)}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("clients", [0, -1, CLIENTS_MAX + 1]),
        ("in_flight", [0, CLIENTS_MAX + 1]),
        ("operations_per_second", [0.0, -1.0, inf, nan]),
        ("pulse_seconds", [-0.1, inf, nan]),
        ("keys", [0]),
        ("value_bytes", [(2, 1), (-1, 1), (1,)]),
        ("mix", [{}, {"put": 0.0}, {"put": -1.0, "get": 2.0}, {"jump": 1.0}, {"put": nan}]),
        ("request_seconds", [0.0, -1.0, inf, nan]),
        ("lease_share", [-0.1, 1.1, nan]),
    ],
)
def test_a_workload_that_cannot_be_is_refused_where_it_is_made(field: str, values: list[object]) -> None:
    """And not at the first operation, nor never."""
    for value in values:
        with pytest.raises(errors.ConfigurationError, match=f"^{field} of a Workload cannot be "):
            Workload(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("members", [0, -1, 1000]),
        ("spares", [-1, 1000]),
        ("segment_bytes_max", [0, 4096, 1 << 40]),
        ("latency_seconds", [(0.2, 0.1), (-1.0, 1.0), (0.0, inf), (nan, nan)]),
        ("bandwidth_bytes", [-1.0, nan]),
        ("sync_seconds", [(0.2, 0.1)]),
        ("read_seconds", [(0.2, 0.1)]),
        ("write_bytes_per_second", [0.0, -1.0, nan]),
        ("kinds", [("earthquake",)]),
        ("faults_per_second", [-1.0, inf, nan]),
        ("orders_per_second", [-1.0, inf, nan]),
    ],
)
def test_a_swarm_that_cannot_be_is_refused_where_it_is_made(field: str, values: list[object]) -> None:
    """And not when the first member starts."""
    for value in values:
        with pytest.raises(errors.ConfigurationError, match=f"^{field} of a Swarm cannot be "):
            Swarm(**{field: value})


def test_the_settings_of_a_swarms_members_are_checked_with_it() -> None:
    """In the words of the settings themselves."""
    with pytest.raises(errors.ConfigurationError, match="clock_drift_max"):
        Swarm(config=NodeConfig(clock_drift_max=1.0))
