import json
import math
import re
from itertools import combinations
from random import Random

import pytest

from pyraftkv.sim.faults import (
    BESIDE,
    FAULTS_MAX,
    LEADER,
    Ability,
    DiskFault,
    Fault,
    FaultError,
    LinkFault,
    UnsupportedFault,
    faults_from_json,
    faults_to_json,
)
from pyraftkv.sim.injector import Injector, check_faults, timeline
from pyraftkv.sim.kinds import KINDS, STRIKES, Aim, kind_named
from pyraftkv.sim.schedule import random_faults
from pyraftkv.sim.script import parse_script
from pyraftkv.sim.swarm import Swarm
from tests.sim.machines import Machines


def struck(*faults: Fault, target: Machines | None = None) -> Machines:
    """Return a target after everything that begins, and before anything that ends."""
    target = target or Machines()
    injector = Injector(target, faults)
    for step in injector.steps:
        if step.begins:
            injector.do(step)
    return target


def run(target: Machines, faults: list[Fault], *, until: float = 1e9) -> Injector:
    """Do every step up to a time."""
    injector = Injector(target, faults)
    for step in injector.steps:
        if step.at <= until:
            injector.do(step)
    return injector


# --- The kinds -----------------------------------------------------------------------------------------------------


def test_there_are_enough_kinds_of_every_sort() -> None:
    """More than twenty-five kinds, and some of each group of abilities."""
    assert len(KINDS) >= 50
    assert [name for name, kind in KINDS.items() if name != kind.name] == []
    for ability in Ability:
        assert any(kind.needs is ability for kind in KINDS.values()), ability


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_does_something_and_undoes_it(name: str) -> None:
    """A fault of each kind reaches the target when it begins, and when it ends nothing temporary is left."""
    target = Machines(5)
    sides = ("n2", BESIDE, "n3") if KINDS[name].has_sides else ("n2",)
    fault = Fault(1.0, name, () if KINDS[name].aim is Aim.ALL else sides, 2.0)
    injector = Injector(target, [fault])
    assert injector.is_quiet
    injector.do(injector.steps[0])
    assert target.calls != []
    for step in injector.steps[1:]:
        injector.do(step)
    assert injector.is_quiet
    assert target.is_well
    assert injector.struck == {name: 1}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_knows_what_it_means_without_targets(name: str) -> None:
    """With nobody named every member is meant; the fault strikes and ends all the same."""
    target = Machines(5)
    run(target, [Fault(0.0, name, (), 1.0)])
    assert target.is_well


@pytest.mark.parametrize(
    ("name", "victims"),
    [
        ("kill_leader", ["n1"]),
        ("pause_leader", ["n1"]),
        ("kill_majority", ["n1", "n2", "n3"]),
        ("kill", ["n1", "n2", "n3", "n4", "n5"]),
    ],
)
def test_a_kind_befalls_whom_it_is_named_after(name: str, victims: list[str]) -> None:
    """Without targets: a fault of the leader that killed everybody would be another fault."""
    target = Machines(5)
    run(target, [Fault(0.0, name, (), 1.0)], until=0.5)
    assert [call[1] for call in target.calls] == victims


def test_an_unknown_kind_is_answered_with_those_like_it() -> None:
    """And with where all stand: there are too many for a message."""
    with pytest.raises(FaultError, match=r"no fault 'kill_leaders', but 'kill_leader'.*--kinds"):
        kind_named("kill_leaders")
    with pytest.raises(FaultError, match="no fault 'x'; `pyraftkv sim --kinds` lists all"):
        kind_named("x")


def test_an_unknown_host_is_answered_with_those_there_are() -> None:
    """Members and clients."""
    with pytest.raises(FaultError, match="no host 'n4'; there are n1, n2, n3"):
        Injector(Machines(), [Fault(0.0, "kill", ("n4",))])


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_needs_its_ability(name: str) -> None:
    """A target that lacks just what the kind needs refuses it before anything happens; one with just that takes it."""
    needs = KINDS[name].needs
    target = Machines(5, abilities=~needs)
    with pytest.raises(UnsupportedFault, match=name):
        Injector(target, [Fault(0.0, "kill" if Ability.LINKS in needs else "reset"), Fault(1.0, name)])
    assert target.calls == []
    run(Machines(5, abilities=needs), [Fault(0.0, name, (), 1.0)])


def test_down_hosts_start_again() -> None:
    """Killed, shut down and unpowered hosts are started at the end, and not before."""
    for name, verb in (("kill", "kill"), ("shut_down", "shut_down"), ("power_loss", "power_loss")):
        target = Machines()
        run(target, [Fault(1.0, name, ("n2",), 2.0)], until=2.9)
        assert target.calls == [(verb, "n2")]
        run(target := Machines(), [Fault(1.0, name, ("n2",), 2.0)])
        assert target.calls == [(verb, "n2"), ("start", "n2")]


def test_a_power_loss_in_mid_write_comes_by_the_end() -> None:
    """The power fails in the middle of that operation, or at the end if the disk was never that busy."""
    target = Machines()
    run(target, [Fault(0.0, "power_loss_mid_write", ("n1",), 1.0, amount=7)])
    assert target.calls == [("power_loss_at", "n1", 7), ("power_loss", "n1"), ("start", "n1")]
    assert ("power_loss_at", "n1", 1) in struck(Fault(0.0, "power_loss_mid_write", ("n1",), 1.0, amount=0.2)).calls


def test_partitions_separate_their_sides_and_nobody_else() -> None:
    """Between groups nothing passes, within them everything; who stands on no side sees everyone."""
    target = struck(Fault(0, "partition", ("n1", "n2", BESIDE, "n3", "n4", "c1"), 1), target=Machines(5))
    apart = {pair for pair in combinations([*target.members, "c1"], 2) if not target.sees(*pair)}
    assert apart == {(a, b) for a in ("n1", "n2") for b in ("n3", "n4", "c1")}
    alone = struck(Fault(0, "partition", ("n1", "c1"), 1))
    assert [pair for pair in combinations(["n1", "n2", "n3", "c1"], 2) if alone.sees(*pair)] == [
        ("n1", "c1"),
        ("n2", "n3"),
    ]
    three = struck(Fault(0, "partition", ("n1", BESIDE, "n2", BESIDE, "n3"), 1))
    assert not any(three.sees(*pair) for pair in combinations(three.members, 2))


def test_one_way_partitions_lose_one_way() -> None:
    """What the first group sends is lost, what it is sent arrives."""
    assert struck(Fault(0, "partition_one_way", ("n1", BESIDE, "n2"), 1)).cuts == {("n1", "n2")}


def test_a_ring_of_five_has_a_majority_around_each() -> None:
    """Each member sees its two neighbours, and nobody else."""
    target = struck(Fault(0, "partition_ring", (), 1), target=Machines(5))
    sees = {a: [b for b in target.members if b != a and target.sees(a, b)] for a in target.members}
    assert sees == {
        "n1": ["n2", "n5"],
        "n2": ["n1", "n3"],
        "n3": ["n2", "n4"],
        "n4": ["n3", "n5"],
        "n5": ["n1", "n4"],
    }


def test_mute_and_deaf_are_opposites() -> None:
    """A mute member is heard by no member and hears all; a deaf one the reverse."""
    assert struck(Fault(0, "mute", ("n1",), 1)).cuts == {("n1", "n2"), ("n1", "n3")}
    assert struck(Fault(0, "deafen", ("n1",), 1)).cuts == {("n2", "n1"), ("n3", "n1")}


def test_isolation_is_from_everyone() -> None:
    """An isolated member reaches no member and no client, in neither direction."""
    others = ("n2", "n3", "c1")
    assert struck(Fault(0, "isolate", ("n1",), 1)).cuts == {
        *((other, "n1") for other in others),
        *(("n1", other) for other in others),
    }


def test_bad_links_are_those_that_end_at_the_hosts_or_run_between_the_groups() -> None:
    """One group means its hosts' links, two groups the links between them, in both directions."""
    bad = LinkFault(delay_seconds=0.2)
    assert struck(Fault(0, "delay", ("n1", BESIDE, "n2"), 1, 0.2)).links == {("n1", "n2"): bad, ("n2", "n1"): bad}
    assert set(struck(Fault(0, "delay", ("n1",), 1, 0.2)).links) == {
        *((other, "n1") for other in ("n2", "n3", "c1")),
        *(("n1", other) for other in ("n2", "n3", "c1")),
    }
    assert len(struck(Fault(0, "delay", (), 1)).links) == 3 * 2 + 3 * 2


def test_resets_break_each_connection_once() -> None:
    """Connections are between two hosts, whoever of them dialled."""
    assert struck(Fault(0, "reset", ("n2",))).calls == [
        ("reset", "n1", "n2"),
        ("reset", "n2", "n3"),
        ("reset", "c1", "n2"),
    ]


def test_what_comes_in_bursts_comes_and_goes() -> None:
    """A storm of restarts is so many kills within the fault's time, each followed by a start, the last at its end."""
    steps = timeline([Fault(10.0, "restart_storm", ("n1",), 9.0)])
    assert [(step.at, step.begins) for step in steps] == [(10.0 + n, n % 2 == 0) for n in range(2 * STRIKES)]
    target = Machines()
    run(target, [step.fault for step in steps[:1]])
    assert target.calls == [("kill", "n1"), ("start", "n1")] * STRIKES


def test_the_leader_is_whoever_leads_then() -> None:
    """The leader is looked up when the fault strikes; if nobody leads, the fault's own seed chooses."""
    target = Machines(leading="n2")
    injector = Injector(target, [Fault(0, "pause", (LEADER,), 2), Fault(1, "kill", (LEADER,), 2)])
    injector.do(injector.steps[0])
    target.leading = "n3"
    for step in injector.steps[1:]:
        injector.do(step)
    assert target.calls == [("pause", "n2"), ("kill", "n3"), ("resume", "n2"), ("start", "n3")]
    kills = [Fault(0, "kill", (LEADER,), 1, seed=seed) for seed in range(20)]
    victims = {struck(kill, target=Machines(leading=None)).calls[0][1] for kill in kills}
    assert victims == {"n1", "n2", "n3"}


def test_a_host_that_is_named_twice_is_hit_once() -> None:
    """A leader that is also named by its own name is one victim."""
    assert struck(Fault(0, "kill", ("n1", LEADER), 1)).calls == [("kill", "n1")]


@pytest.mark.parametrize("seconds", [0.7, 1.1, 1.234, 3.3, 4.9])
def test_what_comes_in_bursts_ends_with_its_fault(seconds: float) -> None:
    """The last of several strikes ends at the very end, whatever fractions its time is cut into."""
    fault = Fault(0.1, "flap", ("n1", BESIDE, "n2"), seconds)
    assert timeline([fault])[-1].at == fault.ends


def test_rot_depends_on_its_own_seed_alone() -> None:
    """Where bits flip follows from the fault, whatever else is in the list."""
    rot = Fault(5, "rot", ("n1",), seed=42)
    alone = [call for call in struck(rot).calls if call[0] == "rot"]
    crowd = [Fault(1, "rot", ("n2",), seed=1), Fault(2, "kill", (LEADER,), 1, seed=2), rot]
    assert [call for call in struck(*crowd).calls if call[:2] == ("rot", "n1")] == alone


# --- Faults that overlap -------------------------------------------------------------------------------------------


def test_a_link_heals_when_the_last_cut_of_it_ends() -> None:
    """The first of two partitions to end leaves what the other cuts."""
    faults = [Fault(0, "isolate", ("n1",), 3), Fault(1, "partition", ("n1", BESIDE, "n2"), 4)]
    target = Machines()
    run(target, faults, until=3.5)
    assert target.cuts == {("n1", "n2"), ("n2", "n1")}


def test_a_host_starts_when_nothing_keeps_it_down() -> None:
    """Killed alone and then with all others, a member comes back once, at the later end."""
    target = Machines()
    run(target, [Fault(0, "kill", ("n1",), 5), Fault(1, "power_loss_all", (), 1)])
    assert target.calls[1:4] == [("power_loss", f"n{n}") for n in (1, 2, 3)]
    assert [call for call in target.calls if call[0] == "start"] == [("start", f"n{n}") for n in (3, 2, 1)]


def test_degrees_add_up_to_the_worse() -> None:
    """Of two faults of a disk or link the worse of each respect holds; rates of clocks multiply."""
    disks = Machines()
    faults = [
        Fault(0, "slow_syncs", ("n1",), 5, 0.5),
        Fault(1, "slow_syncs", ("n1",), 2, 0.2),
        Fault(1, "syncs_lie", ("n1",), 5),
        Fault(1, "syncs_drop", ("n1",), 2),
    ]
    injector = run(disks, faults, until=2)
    assert disks.disks == {"n1": DiskFault(sync_seconds=0.5, sync_failure="dropped")}
    for step in injector.steps:
        if 2 < step.at <= 3:
            injector.do(step)
    assert disks.disks == {"n1": DiskFault(sync_seconds=0.5, sync_failure="durable")}
    clocks = struck(Fault(0, "fast_clock", ("n1",), 5, 2.0), Fault(0, "slow_clock", ("n1",), 5, 0.25))
    assert clocks.rates == {"n1": 0.5}
    links = [Fault(0, "slow_link", ("n1", BESIDE, "n2"), 5, amount) for amount in (9e3, 5e3, 7e3)]
    assert struck(*links).links["n1", "n2"] == LinkFault(bandwidth_bytes=5e3)


def everything(seed: int, *, seconds: float = 60.0, members: int = 5) -> list[Fault]:
    """Return a schedule of every kind that there is, much at the same time."""
    target = Machines(members, clients=2)
    swarm = Swarm(members=members, kinds=tuple(KINDS), faults_per_second=8.0)
    return random_faults(Random(seed), swarm, members=target.members, clients=target.clients, seconds=seconds)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_overlaps_everything_is_well_at_the_end(seed: int) -> None:
    """Of hundreds of faults at once each ends for itself; when the last has ended nothing holds the target."""
    target = Machines(5, clients=2)
    injector = run(target, everything(seed))
    assert injector.is_quiet
    assert target.is_well
    assert set(injector.struck) == {fault.kind for fault in everything(seed)}


@pytest.mark.parametrize("seed", range(8))
def test_everything_can_be_ended_at_any_time(seed: int) -> None:
    """`end_all` in the middle leaves nothing wrong; no step has any effect after it."""
    target = Machines(5, clients=2)
    injector = run(target, everything(seed), until=Random(seed).uniform(0, 60))
    assert not target.is_well
    injector.end_all()
    assert target.is_well
    before = len(target.calls)
    for step in injector.steps:
        injector.do(step)
    injector.end_all()
    assert len(target.calls) == before
    assert target.is_well


@pytest.mark.parametrize("seed", range(3))
def test_leaving_out_a_fault_changes_no_other(seed: int) -> None:
    """Whatever one fault does alone it also does in the list: the others only add to it."""
    faults = everything(seed, seconds=10)
    for fault in Random(seed).sample(faults, 8):
        alone = struck(fault, target=Machines(5, clients=2))
        without = struck(*(each for each in faults if each is not fault), target=Machines(5, clients=2))
        both = struck(*faults, target=Machines(5, clients=2))
        assert both.cuts == alone.cuts | without.cuts
        assert both.down == alone.down | without.down
        assert both.paused == alone.paused | without.paused
        assert both.lost == alone.lost | without.lost
        assert [call for call in alone.calls if call[0] == "rot" and call not in both.calls] == []


def test_steps_are_told_before_they_are_done() -> None:
    """Whoever listens hears of each step when its effect is not there yet."""
    target, heard = Machines(), []
    injector = Injector(
        target, [Fault(0, "kill", ("n1",), 1)], tell=lambda step: heard.append((step.begins, len(target.calls)))
    )
    for step in injector.steps:
        injector.do(step)
    assert heard == [(True, 0), (False, 1)]


def test_an_end_comes_before_a_beginning_at_the_same_time() -> None:
    """A fault that follows another at once finds the target whole."""
    target = Machines()
    run(target, [Fault(2, "pause", ("n1",), 1), Fault(1, "pause", ("n1",), 1)])
    assert [call[0] for call in target.calls] == ["pause", "resume", "pause", "resume"]


# --- Nonsense ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(0, "earthquake"),
        Fault(0, "kill", ("n9",)),
        Fault(-1, "kill"),
        Fault(0, "kill", (), -1),
        Fault(float("nan"), "kill"),
        Fault(0, "partition_ring"),
    ],
)
def test_nonsense_is_refused_before_anything_happens(fault: Fault) -> None:
    """Unknown kinds and hosts, impossible times and too few members are found while the list is read."""
    target = Machines()
    with pytest.raises(FaultError, match=fault.kind):
        Injector(target, [Fault(0, "kill"), fault])
    assert target.calls == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kill n1 | n2", "it has no sides: leave out '|'"),
        ("compact |", "it has no sides: leave out '|'"),
        ("partition n1 |", "nobody stands on one of its sides"),
        ("delay | n1", "nobody stands on one of its sides"),
        ("partition n1 n2 | n3 n1", "n1 stands on two of its sides"),
        ("member_joint n1 | n1", "n1 stands on two of its sides"),
    ],
)
def test_sides_that_say_nothing_are_refused(line: str, words: str) -> None:
    """What stands behind a `|` would else be left alone, and nobody told."""
    with pytest.raises(FaultError, match=re.escape(words)):
        check_faults(parse_script(f"at 1s {line}"), Machines(3))


def test_sides_that_say_something_are_not() -> None:
    """More than two of them, none named, and members that only come or only go."""
    lines = ["partition n1 | n2 | n3", "partition n1 n1", "reset n1 | n2", "member_joint n1 |", "member_joint | n4"]
    check_faults(parse_script("\n".join(f"at 1s {line}" for line in lines)), Machines(4))


def test_a_list_has_a_bound() -> None:
    """More faults than anyone means are refused, in memory and as JSON."""
    faults = [Fault(0, "reset")] * (FAULTS_MAX + 1)
    with pytest.raises(FaultError, match="over 10000"):
        Injector(Machines(), faults)
    with pytest.raises(FaultError, match="over 10000"):
        faults_from_json(faults_to_json(faults))


@pytest.mark.parametrize("seed", range(5))
def test_lists_survive_json(seed: int) -> None:
    """What is written is read as the same list, to the last digit."""
    faults = everything(seed)
    assert faults_from_json(faults_to_json(faults)) == faults
    assert len(json.loads(faults_to_json(faults))) == len(faults)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[{}]",
        '[{"at": 1}]',
        '[{"at": "1", "kind": "kill"}]',
        '[{"at": true, "kind": "kill"}]',
        '[{"at": 1, "kind": "kill", "targets": [1]}]',
        '[{"at": 1, "kind": "kill", "targets": "n1"}]',
        '[{"at": 1, "kind": "kill", "how": 2}]',
    ],
)
def test_what_is_no_list_of_faults_is_refused(text: str) -> None:
    """Broken JSON, other JSON, and fields that are missing, strange or of another type."""
    with pytest.raises(FaultError):
        faults_from_json(text)


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("delay", -5.0),
        ("delay", math.nan),
        ("burst", math.inf),
        ("fast_clock", -1.0),
        ("slow_clock", 1e300),
        ("jump_clock", -5.0),
        ("power_loss_mid_write", -4.0),
        ("lose", 7.0),
        ("kill", math.nan),
        ("kill", 5.0),
    ],
)
def test_an_amount_that_cannot_be_is_refused(kind: str, amount: float) -> None:
    """Before anything happens, and not by what it does to a clock in the middle of the run."""
    target = Machines()
    with pytest.raises(FaultError, match="amount"):
        Injector(target, [Fault(0.0, "kill"), Fault(1.0, kind, ("n1",), 1.0, amount)])
    assert target.calls == []


@pytest.mark.parametrize("at", [-1.0, math.inf, math.nan])
def test_a_time_that_never_comes_is_refused(at: float) -> None:
    """Of its beginning, and of its end."""
    for fault in (Fault(at, "kill", ("n1",)), Fault(1.0, "kill", ("n1",), at)):
        with pytest.raises(FaultError, match="is no time"):
            Injector(Machines(), [fault])


def test_a_list_that_is_nested_too_deep_is_no_list_of_faults() -> None:
    """Python's reader of JSON gives up in its own way."""
    with pytest.raises(FaultError, match="no list of faults"):
        faults_from_json("[" * 100_000)
