"""Counters, configurations and limits under every fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import NamedTuple

from pyraftkv import KV, NotApplied, errors
from pyraftkv.recipes import ConfigCenter, Counter, RateLimiter
from pyraftkv.sim import Trial
from tests.recipes.faults.support import (
    CLOCKS,
    DEAD_SECONDS_MAX,
    SETTLED_SECONDS,
    TTL,
    Length,
    faults_pass,
    programs,
    trial,
)

# --- Counters ------------------------------------------------------------------------------------------------------

BASE = 4
"""The number of an addition is a power of this: its digit in the sum says how often it was done."""


def counting(sim: Trial) -> None:
    """Each addition has a digit of its own in the sum."""
    additions = count()
    done: set[int] = set()
    undone: set[int] = set()
    told: list[int] = []
    sums: list[int] = []

    async def program(_: str, kv: KV) -> None:
        counter = Counter(kv, "visits", ttl=TTL)
        while True:
            number = next(additions)
            try:
                told.append(await counter.add(BASE**number))
            except NotApplied:
                undone.add(number)
                raise
            done.add(number)
            await asyncio.sleep(0.3)

    async def main(sim: Trial) -> None:
        await faults_pass(sim)
        for number in range(3):
            sim.hosts[f"worker{number}"].kill()
        await asyncio.sleep(1.0)
        async with sim.client() as kv:
            sums.append(await Counter(kv, "visits").value())

    programs(sim, 3, program)
    sim.run(main)
    digits = [sums[0] // BASE**number % BASE for number in range(next(additions))]
    assert max(digits) == 1, f"an addition was done {max(digits)} times"
    assert all(digits[number] for number in done), "an addition was lost"
    assert not any(digits[number] for number in undone), "an addition was done after all"
    assert len(told) == len(set(told)) > 3, "two were told the same number"


def test_an_addition_is_done_once(length: Length) -> None:
    """If it was acknowledged; once or not at all if nobody knows; and not at all if it was refused."""
    trial(length, counting)


# --- Configurations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """Prices, and what is derived from them."""

    low: int = 1
    high: int = 10
    sum: int = 11


def is_whole(shop: Shop) -> None:
    """Raise `ValueError` for prices that do not fit each other: half of a change."""
    if not (shop.low <= shop.high and shop.sum == shop.low + shop.high):
        raise ValueError(f"no whole: {shop}")


class Seen(NamedTuple):
    """What one program was told when something had changed."""

    revision: int
    before: Shop
    after: Shop


def configuring(sim: Trial) -> None:
    """Three programs change the same configuration, roll it back, and are told of what the others do."""
    seen: list[list[Seen]] = []
    written: dict[int, Shop] = {}
    """What each change that was acknowledged has made of it, by its revision."""
    notes: dict[str, int] = {}
    turns = count(1)
    unknown: set[str] = set()

    async def program(name: str, kv: KV) -> None:
        async with ConfigCenter(kv, "shop", Shop) as config:
            told: list[Seen] = []
            config.on_change(lambda before, after: told.append(Seen(config.revision, before, after)))
            seen.append(told)
            while True:
                turn = next(turns)
                note = f"{name} {turn}"
                unknown.add(note)
                with suppress(errors.Compacted):
                    await write(kv, config, turn, note)
                unknown.discard(note)
                await asyncio.sleep(0.4)

    async def write(kv: KV, config: ConfigCenter[Shop], turn: int, note: str) -> None:
        if turn % 4 == 0 and written:
            back = list(written)[turn * 7 % len(written)]
            revision = await config.rollback(back, note=note)
            assert written.setdefault(revision, written[back]) == written[back]
        else:
            value = Shop(turn, turn + turn % 5, 2 * turn + turn % 5)
            revision = await config.change(low=value.low, high=value.high, sum=value.sum, note=note)
            assert written.setdefault(revision, value) == value
        notes[note] = revision
        now = await config.at_least(revision)
        is_whole(now)

    async def main(sim: Trial) -> None:
        await faults_pass(sim)
        for number in range(3):
            sim.hosts[f"worker{number}"].kill()
        await asyncio.sleep(1.0)
        async with sim.client() as kv:
            await look_back(ConfigCenter(kv, "shop", Shop, validate=is_whole))

    async def look_back(config: ConfigCenter[Shop]) -> None:
        """Compare what programs did and saw with what the store says of it, as far as that is kept."""
        history = [change async for change in config.history()]
        kept = {change.note: change.revision for change in history[1:]}
        assert len(kept) == len(history[1:]), "a change was done twice"
        assert len(notes) > 3
        for note, revision in notes.items():
            assert kept.get(note, revision) == revision
            assert note in kept or revision <= history[0].revision, f"{note} was acknowledged, and is not there"
        values = {change.revision: await config.get(revision=change.revision) for change in history}
        for change in history:
            assert written.get(change.revision, values[change.revision]) == values[change.revision]
        for told in seen:
            assert [each.revision for each in told] == sorted({each.revision for each in told}), "an older one later"
            assert all(former.after == later.before for former, later in pairwise(told))
            for each in told:
                is_whole(each.after)
                assert values.get(each.revision, each.after) == each.after
        for former, change in pairwise(history):
            before, after = values[former.revision], values[change.revision]
            assert set(change.fields) == {
                name for name in ("low", "high", "sum") if getattr(before, name) != getattr(after, name)
            }

    programs(sim, 3, program)
    sim.run(main)


def test_a_configuration_changes_as_a_whole(length: Length) -> None:
    """Nobody sees half of a change, or an older one after a newer; history and rollback agree with what was written."""
    trial(length, configuring)


# --- Limits --------------------------------------------------------------------------------------------------------

PERMITS, PERMIT_SECONDS = 2, 3


def permitting(sim: Trial) -> None:
    """Three want permits all the time."""
    given: list[float] = []

    async def program(_: str, kv: KV) -> None:
        await RateLimiter(kv, "mail", limit=PERMITS, seconds=PERMIT_SECONDS, ttl=TTL).acquire()
        given.append(sim.now())

    programs(sim, 3, program)
    sim.run(lambda sim: faults_pass(sim, seconds=2 * SETTLED_SECONDS))
    late = 0.1 * PERMIT_SECONDS
    for at in range(len(given) - PERMITS):
        passed = given[at + PERMITS] - given[at]
        assert passed >= PERMIT_SECONDS - late, f"{PERMITS + 1} permits within {passed:.2f} s"
    assert given[-1] > sim.now() - PERMIT_SECONDS - TTL - DEAD_SECONDS_MAX, "there are no permits any more"
    assert len(given) > PERMITS


def test_a_rate_limiter_gives_no_more_permits_than_its_limit(length: Length) -> None:
    """In any stretch of its length, but for the tenth that a permit may come late; clocks run as they should here."""
    trial(length, permitting, without=CLOCKS)
