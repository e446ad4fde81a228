"""The past in the simulator: what was is told alike while leaders change, members are restored, and history goes.

One client writes, and knows what it wrote; others ask `at`, `history` and `diff`, of any member, about any revision.
An answer is what was then, or, where that is compacted, `Compacted`: never something else, and never a part of it.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from pyraftkv import Client, errors
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.simulation import Simulation
from tests.sim.test_pitfalls import CRAMPED, snapshots_to
from tests.sim.test_simulation import leader_of

STEPS = 200
SECONDS_MAX = 400.0
"""Of virtual time."""

FAULTS = [
    Fault(0.5, "power_loss", ("n1",), 4.0),
    Fault(5.0, "kill_leader", (), 0.5),
    Fault(7.0, "isolate_leader", (), 1.5),
    Fault(9.5, "power_loss_all", (), 0.2),
    Fault(12.0, "power_loss", ("n2",), 4.0),
]
"""Members fall behind further than the log goes back, and are brought up to date by snapshots."""


class Past:
    """What was written, and what must be answered about it."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.changes: list[tuple[int, bytes, bytes | None]] = []
        """Revision, key and value; None: it was deleted."""
        self.last = 1
        self.compacted = 0
        self.answers = {"told": 0, "compacted": 0}

    def then(self, revision: int) -> dict[bytes, bytes]:
        """Return what was there at a revision."""
        state: dict[bytes, bytes] = {}
        for at, key, value in self.changes:
            if at <= revision:
                state.pop(key, None)
                if value is not None:
                    state[key] = value
        return state

    async def write(self, kv: Client) -> None:
        """Change a key."""
        key, value = self.rng.choice([b"a", b"b", b"c", b"d"]), self.rng.randbytes(self.rng.choice([10, 100, 40_000]))
        if self.rng.random() < 0.3:
            deleted = await kv.delete(key)
            if deleted.deleted:
                self.changes.append((deleted.revision, key, None))
            self.last = deleted.revision
        else:
            self.last = (await kv.put(key, value)).revision
            self.changes.append((self.last, key, value))

    async def compact(self, kv: Client) -> None:
        """Give up some of the past."""
        self.compacted = self.rng.randint(self.compacted + 1, self.last)
        await kv.compact(self.compacted)

    async def ask(self, kv: Client) -> None:
        """Ask about revisions, some of which may be gone."""
        older = self.rng.randint(max(1, self.compacted - 5), self.last)
        newer = self.rng.randint(older, self.last)
        key = self.rng.choice([b"a", b"b", b"c", b"d"])
        then = self.then(older)
        await self._told(older, self._state(kv, older), then)
        versions = [(at, value) for at, of, value in self.changes if of == key and older <= at <= newer]
        await self._told(older, self._versions(kv, key, older, newer), versions)
        changed = {of: (then.get(of), self.then(newer).get(of)) for at, of, _ in self.changes if older < at <= newer}
        differing = {of: both for of, both in changed.items() if both != (None, None)}
        await self._told(older, self._differences(kv, older, newer), differing)

    async def _told(self, older: int, asked: Any, expected: object) -> None:
        try:
            answer = await asked
        except errors.Compacted:
            assert older < self.compacted, f"revision {older} is there, from {self.compacted} on"
            self.answers["compacted"] += 1
        else:
            assert older >= self.compacted, f"revision {older} is compacted, up to {self.compacted}"
            assert answer == expected
            self.answers["told"] += 1

    async def _state(self, kv: Client, revision: int) -> dict[bytes, bytes]:
        result = await kv.at(revision).range(prefix="")
        return {each.key: each.value for each in result.kvs}

    async def _versions(self, kv: Client, key: bytes, low: int, high: int) -> list[tuple[int, bytes | None]]:
        events = kv.history(key, min_revision=low, max_revision=high, page=self.rng.randint(1, 5))
        return [(each.kv.mod_revision, each.kv.value if each.kv.version else None) async for each in events]

    async def _differences(self, kv: Client, older: int, newer: int) -> dict[bytes, tuple[bytes | None, bytes | None]]:
        changes = kv.diff(older, newer, page=self.rng.randint(1, 3))
        return {
            each.key: (each.before and each.before.value, each.after and each.after.value) async for each in changes
        }


@pytest.mark.parametrize("seed", [71, 72])
def test_the_past_is_what_it_was_or_compacted(seed: int) -> None:
    """Whoever is asked, and however that member came by it: from the log, or from a snapshot."""

    async def main(sim: Simulation) -> Past:
        await leader_of(sim)
        sim.inject(FAULTS)
        past = Past(sim.random("past"))
        async with (
            sim.client(timeout=60.0) as writer,
            sim.client(name="n1's", timeout=60.0) as one,
            sim.client(name="n2's", timeout=60.0) as other,
        ):
            for step in range(STEPS):
                await past.write(writer)
                if step % 40 == 39:
                    await past.compact(writer)
                if step % 4 == 3:
                    await past.ask(one if step % 8 < 4 else other)
                await sim.sleep(0.05)
        return past

    print("seed", seed)  # noqa: T201 - shown when the test fails
    with Simulation(seed=seed, swarm=CRAMPED) as sim:
        past = sim.run(main, until=SECONDS_MAX)
        assert past.answers["told"] > 100
        assert past.answers["compacted"] > 5
        assert snapshots_to(sim.trace, "n1") + snapshots_to(sim.trace, "n2") > 0
