"""Clocks that drift, jump and stand still, and never go back."""

from __future__ import annotations

import math
from random import Random

from pyraftkv.sim.clock import WALL_EPOCH, SimClock


class Now:
    """The world's time, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_fresh_clock_shows_the_worlds_time() -> None:
    """To the last bit, and the wall clock the epoch."""
    world = Now()
    clock = SimClock(world)
    world.now = 12.34
    assert clock.time() == 12.34
    assert clock.wall() == WALL_EPOCH + 12.34


def test_a_clock_drifts_from_where_it_stands() -> None:
    """A new rate does not change what was, and the wall clock drifts along."""
    world = Now()
    clock = SimClock(world)
    world.now = 10.0
    clock.set_rate(1.5)
    assert clock.time() == 10.0
    world.now = 12.0
    assert clock.time() == 13.0
    assert clock.wall() == WALL_EPOCH + 13.0
    assert clock.rate == 1.5


def test_a_clock_jumps_forward() -> None:
    """Both clocks do."""
    clock = SimClock(Now())
    clock.jump(3.0)
    assert clock.time() == 3.0
    assert clock.wall() == WALL_EPOCH + 3.0


def test_a_frozen_clock_stands_still_and_its_wall_clock_goes_on() -> None:
    """What is ahead of it never comes; thawed, it goes on from there."""
    world = Now()
    clock = SimClock(world)
    world.now = 5.0
    clock.freeze()
    clock.freeze()
    world.now = 9.0
    assert (clock.time(), clock.rate, clock.wall()) == (5.0, 0.0, WALL_EPOCH + 9.0)
    assert clock.when(5.1) == math.inf
    assert clock.when(4.0) == 9.0
    clock.thaw()
    clock.thaw()
    world.now = 10.0
    assert (clock.time(), clock.wall()) == (6.0, WALL_EPOCH + 10.0)


def test_the_boot_clock_counts_suspended_time() -> None:
    """It is the monotonic one but for that, drifts and jumps with it, and stands still for nobody."""
    world = Now()
    clock = SimClock(world)
    world.now = 5.0
    assert clock.boot() == clock.time() == 5.0
    clock.freeze()
    world.now = 8.0
    assert (clock.time(), clock.boot()) == (5.0, 8.0)
    clock.set_rate(2.0)
    world.now = 9.0
    assert (clock.time(), clock.boot()) == (5.0, 10.0)
    clock.thaw()
    assert (clock.time(), clock.boot()) == (5.0, 10.0)
    world.now = 10.0
    clock.jump(1.0)
    assert (clock.time(), clock.boot()) == (8.0, 13.0)
    clock.freeze()
    world.now = 11.0
    assert clock.boot() == 15.0


def test_a_frozen_clock_can_be_changed() -> None:
    """It jumps at once and takes up its new rate when it is thawed."""
    world = Now()
    clock = SimClock(world)
    clock.freeze()
    clock.set_rate(2.0)
    clock.jump(1.0)
    world.now = 4.0
    assert clock.time() == 1.0
    clock.thaw()
    world.now = 5.0
    assert clock.time() == 3.0


def test_the_wall_clock_is_set_at_will() -> None:
    """Back too; the monotonic clock does not care."""
    world = Now()
    clock = SimClock(world)
    world.now = 7.0
    clock.set_wall(100.0)
    world.now = 8.0
    assert (clock.time(), clock.wall()) == (8.0, 101.0)


def test_changes_are_told() -> None:
    """Every change of the monotonic clock, once, and none of the wall clock."""
    clock = SimClock(Now())
    told: list[str] = []
    clock.changed.append(lambda: told.append("changed"))
    for change in (lambda: clock.set_rate(1.1), lambda: clock.jump(1.0), clock.freeze, clock.thaw):
        change()
    clock.set_wall(0.0)
    assert told == ["changed"] * 4


def test_a_clock_never_goes_back() -> None:
    """Whatever is done to it, and `when` is the inverse of `time` within a nanosecond."""
    for seed in range(30):
        print("seed", seed)  # noqa: T201 - shown when the test fails
        random, world = Random(seed), Now()
        clock = SimClock(world)
        last = clock.time()
        for _ in range(300):
            world.now += random.choice((0.0, 1e-6, 0.1, 1000.0)) * random.random()
            random.choice(
                (
                    lambda: clock.set_rate(random.uniform(0.5, 2.0)),  # noqa: B023 - called at once
                    lambda: clock.jump(random.random()),  # noqa: B023
                    clock.freeze,
                    clock.thaw,
                )
            )()
            assert clock.time() >= last
            last = clock.time()
            if clock.rate:
                ahead = last + random.random()
                assert abs(clock.at(clock.when(ahead)) - ahead) < 1e-9
