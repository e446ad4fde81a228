"""A job scheduler, and the test that finds its bug: `pytest -s examples/test_my_app.py`.

Some workers share a job: whoever owns it keeps writing its progress to a database, outside of the store. If the owner
dies, another takes over. The first version of the worker looks right, reviews well and passes every ordinary test. It
is wrong: an owner that is paused for long enough (by a garbage collector, a laptop lid, a busy hypervisor) wakes up and
writes although somebody else owns the job by then. The second version writes with a *fencing token*.
"""

import asyncio
import time
from functools import partial

import pytest

from pyraftkv import KV, Compare, KeyValue, MaybeApplied, NotApplied, PutKey, compare, errors
from pyraftkv.sim import Host, Plan, Trial, search
from pyraftkv.sim.check import FencedResource, StaleToken, check_fencing

OWNER, ALIVE = b"jobs/1/owner", b"jobs/1/alive"
LEASE_SECONDS = 2.0
RENEW_SECONDS = 0.5
WRITE_SECONDS = 0.05


# --- The application: nothing in it knows that it is tested. --------------------------------------------------------


def is_unchanged(key: bytes, seen: KeyValue | None) -> Compare:
    return compare(key, mod_revision=seen.mod_revision if seen else 0)


class Worker:
    """Owns the job from time to time. The revision at which it became the owner is its token."""

    def __init__(self, name: str, kv: KV, database: "Database") -> None:
        self.name = name
        self.kv = kv
        self.database = database

    async def run(self) -> None:
        while True:
            try:
                token = await self.acquire()
                if token:
                    await self.work(token)
            except (NotApplied, MaybeApplied, errors.Unavailable, StaleToken):
                pass  # the store cannot be reached, or the job is somebody else's by now: begin again
            await asyncio.sleep(RENEW_SECONDS)

    async def acquire(self) -> int:
        """Become the owner if there is none, or if it has not renewed for a whole lease; return the token, or 0."""
        owner, alive = await self.kv.get(OWNER), await self.kv.get(ALIVE)
        if owner and owner.text == self.name:
            return owner.mod_revision  # an earlier attempt went through after all
        if owner:
            await asyncio.sleep(LEASE_SECONDS)  # by our own clock; nobody compares clocks with anybody
        # Create if absent, or take over: in one transaction, if neither key has changed since.
        taken = (
            await self.kv.txn()
            .when(is_unchanged(OWNER, owner), is_unchanged(ALIVE, alive))
            .then(PutKey(OWNER, self.name.encode()))
        )
        return taken.revision if taken.succeeded else 0

    async def work(self, token: int) -> None:
        """Write for as long as the ownership is renewed, and in time."""
        step = 0
        while True:
            deadline = time.monotonic() + LEASE_SECONDS  # from before the renewal was sent: on the safe side
            still_ours = compare(OWNER, mod_revision=token)
            renewal = await self.kv.txn().when(still_ours).then(PutKey(ALIVE, self.name.encode()))
            if not renewal.succeeded:
                return
            while time.monotonic() < deadline - LEASE_SECONDS + RENEW_SECONDS:
                step += 1
                await self.database.write(self.name, token, f"step {step}")


# --- Outside of the store: a database, and what it remembers for the test. ------------------------------------------


class Database:
    """Each write travels for a moment. A fenced database remembers the highest token and refuses lower ones."""

    def __init__(self, sim: Trial, *, fenced: bool) -> None:
        self.sim = sim
        self.resource = FencedResource(fenced=fenced)

    async def write(self, name: str, token: int, value: str) -> None:
        await asyncio.sleep(WRITE_SECONDS)
        if not self.resource.writes or token != self.resource.writes[-1].token:
            self.sim.note(f"writes with token {token}")  # a mark in the picture
        self.resource.write(name, token, value, at=self.sim.now())
        self.sim.expect(check_fencing(self.resource.writes[-2:]))  # so that a failing run ends where it fails


# --- The test. ------------------------------------------------------------------------------------------------------


def scenario(sim: Trial, *, fenced: bool) -> None:
    """Three workers on machines of their own. Every pause, crash and partition is the simulator's."""
    database = Database(sim, fenced=fenced)

    async def program(host: Host) -> None:  # what a machine runs each time it starts
        async with host.client() as client:
            name = f"{host.name}/{host.boots}"  # another name in each life
            await Worker(name, sim.recorded(client, host.name), database).run()

    async def main(_: Trial) -> None:
        await asyncio.sleep(35)  # virtual: half a minute of faults, and a moment to recover

    for name in ("worker1", "worker2", "worker3"):
        sim.host(name, program=program)
    sim.run(main)
    assert database.resource.writes, "nobody did anything"
    sim.expect(check_fencing(database.resource.writes))  # no older token after a newer one


FAULTS = ["pause_long", "suspend", "slow_clock", "isolate", "kill", "kill_leader"]  # or "all"


@pytest.mark.raft(seeds=5, faults=FAULTS)
def test_with_fencing(raft_sim: Trial) -> None:
    """This is all there is to it. `pytest --raft-seeds=205` runs more seeds, `--raft-seed=4711` a single one."""
    scenario(raft_sim, fenced=True)


def test_without_fencing_a_seed_breaks_it() -> None:
    """Yours would be like the one above, and red. This page is green, so the failure is what it asks for."""
    found = search(partial(scenario, fenced=False), seeds=range(20), plan=Plan(faults=FAULTS))
    assert found is not None
    print(f"\nseed {found.seed}: {found.error}")
    assert search(partial(scenario, fenced=True), seeds=[found.seed], plan=found.plan) is None
