"""A token bucket: how long to wait, debts, bursts, and clocks that do not move."""

from __future__ import annotations

import random

import pytest

from pyraftkv.node.pace import TokenBucket


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    """It begins full; what is taken beyond that waits until it would be there."""
    bucket = TokenBucket(bytes_per_second=100, burst_bytes=50)
    assert [bucket.take(25, now=0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.25, 0.5]


def test_tokens_come_with_time_but_no_more_than_the_bucket_holds() -> None:
    """An hour of silence is not saved up."""
    bucket = TokenBucket(bytes_per_second=100, burst_bytes=50)
    bucket.take(150, now=0.0)
    assert bucket.take(50, now=0.5) == 0.5
    assert [bucket.take(50, now=3600.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_what_is_larger_than_the_bucket_leaves_all_the_same() -> None:
    """And is paid for afterwards."""
    bucket = TokenBucket(bytes_per_second=100, burst_bytes=10)
    assert bucket.take(1_000, now=0.0) == 0.0
    assert bucket.take(1, now=0.0) == pytest.approx(9.9)


def test_a_clock_that_goes_back_fills_nothing() -> None:
    """Time that passed once does not pass again."""
    bucket = TokenBucket(bytes_per_second=100, burst_bytes=100)
    bucket.take(200, now=10.0)
    assert bucket.take(0, now=9.0) == 1.0
    assert bucket.take(0, now=10.0) == 1.0


def test_without_a_limit_nobody_waits() -> None:
    """0 means none."""
    bucket = TokenBucket(bytes_per_second=0, burst_bytes=0)
    assert bucket.take(1 << 40, now=0.0) == 0.0


def test_no_stretch_of_time_sees_more_than_rate_burst_and_one_item() -> None:
    """Random sizes at random times, each leaving when it may: compared over every stretch."""
    for seed in range(20):
        rng = random.Random(seed)
        rate, burst, largest = rng.randrange(10, 1_000), rng.randrange(0, 500), rng.randrange(1, 300)
        bucket = TokenBucket(bytes_per_second=rate, burst_bytes=burst)
        now, left = 0.0, list[tuple[float, int]]()
        for _ in range(60):
            now += rng.choice((0.0, 0.0, rng.random()))
            size_bytes = rng.randrange(largest + 1)
            left.append((now + bucket.take(size_bytes, now=now), size_bytes))
        assert left == sorted(left, key=lambda item: item[0]), f"seed {seed}: they leave in order"
        for first in range(len(left)):
            total = 0
            for at, size_bytes in left[first:]:
                total += size_bytes
                assert total <= rate * (at - left[first][0]) + burst + largest + 1e-6, f"seed {seed}"
