"""The loops of a member: what runs as long as it does. None ends by itself; the first one that does ends the node.

Most of them are a part's own. Here are the two that are nobody's: what is looked after ten times a second, and physical
compaction, which is done a little at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

from pyraftkv.node.member import Member

HOUSEKEEPING_SECONDS = 0.1
"""How often deadlines are looked at and lost messages are sent again."""

COMPACTION_BUDGET = 1000
"""Versions that physical compaction touches at a time."""

Loops = dict[str, Callable[[], Coroutine[None, None, None]]]
"""Coroutines that run as long as a node does, by name."""


def loops_of(member: Member) -> Loops:
    """Return the coroutines that make up a running member, by name."""
    return {
        "driver": member.driver.run,
        "ticks": partial(member.driver.tick, member.config.tick_seconds),
        "fetches": member.driver.fetch,
        "applier": member.applier.run,
        "snapshot-receiver": member.receiver.run,
        "housekeeping": partial(_housekeeping, member),
        "compaction": partial(_compact, member),
        **({"repair": member.guard.run} if member.config.repair else {}),
    }


async def _housekeeping(member: Member) -> None:
    """Look after deadlines and the log's size, ten times a second."""
    loop, config = asyncio.get_running_loop(), member.config
    slept_at = loop.time()
    while True:
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
        now = loop.time()
        late_seconds = now - slept_at - HOUSEKEEPING_SECONDS
        reason = member.watchdog.observe(at=now, late_seconds=late_seconds, saving_since=member.driver.saving_since)
        if reason is not None:
            member.leadership.give_up(reason)
        member.leadership.tend()
        member.disk.tend(now, again_seconds=config.election_timeout_seconds, give_up=member.leadership.give_up)
        member.single_copy.tend()
        member.pledges.tend(now)
        if member.duty is not None:
            member.duty.tend()
        else:
            member.awakening.tend(now)
            member.guard.integrity.tend(now)
        if not member.is_sound:
            member.leadership.give_up("quarantine")
        member.writes.scan()
        member.sessions.acknowledge(member.writes)
        member.freshness.scan()
        member.upkeep.tend()
        member.leases.keeper.tend(now, late_seconds=late_seconds)
        if member.is_sound and not member.replica.is_busy and member.applier.is_restored:
            _snapshot_if_due(member)
        slept_at = loop.time()


def _snapshot_if_due(member: Member) -> None:
    replica = member.replica
    if member.taker.is_due(replica.applied_index) and replica.is_worth_a_snapshot(since=member.storage.snapshot_index):
        member.taker.start(replica.snapshot())


async def _compact(member: Member) -> None:
    """Remove what a compaction made unreachable, a little at a time."""
    pause_seconds = HOUSEKEEPING_SECONDS
    while True:
        await asyncio.sleep(pause_seconds)
        # Asked for anew every time: there is none while a snapshot pins what it would remove.
        work = member.replica.store.compaction()
        is_done = work is None or work.step(COMPACTION_BUDGET) is not None
        member.freshness.compacted()
        pause_seconds = HOUSEKEEPING_SECONDS if is_done else 0.0
