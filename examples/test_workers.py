"""A pool of workers that share a queue of jobs, and the test that takes them apart: `pytest examples/test_workers.py`.

A job is done by somebody, whoever dies: `LockingQueue` gives it to another worker when the lease of the first one ends.
So it may be done twice, and what it did must bear that. Here a job hands in its result with an operation of a machine
of our own, `Results`, and the first one counts. (With a plain `Queue`, every other seed loses a job.)
"""

import asyncio

import pytest

import pyraftkv
from pyraftkv import MaybeApplied, NotApplied, errors
from pyraftkv.machines import Machine
from pyraftkv.recipes import LockingQueue
from pyraftkv.sim import Host, Trial
from pyraftkv.statemachine import operation, query

JOBS = 8
TTL = 4.0


# --- The application ------------------------------------------------------------------------------------------------


class Results(Machine):
    """What became of each job."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}

    @operation
    def hand_in(self, job: str, result: str) -> bool:
        """Note a result, unless there is one; return whether it is the first."""
        is_first = job not in self.results
        self.results.setdefault(job, result)
        return is_first

    @query
    def everything(self) -> dict[str, str]:
        return self.results

    def rows(self) -> list[tuple[str, str]]:
        return list(self.results.items())

    def load(self, rows: list[tuple[str, str]]) -> None:
        self.results.update(rows)


async def work(db: pyraftkv.Client) -> None:
    """Do one job after the other, for ever."""
    jobs = LockingQueue(db, "jobs", ttl=TTL)
    while True:
        try:
            async with jobs.take() as job:  # the block is cancelled if the lease is lost
                text = job.value.decode()
                await asyncio.sleep(0.5)
                await db.machine("results").call("hand_in", text, text.upper())
        except (NotApplied, MaybeApplied, errors.LeaseLost):
            await asyncio.sleep(0.5)  # somebody does it; or the same one again


# --- Its test -------------------------------------------------------------------------------------------------------


@pytest.mark.raft(seeds=2, faults=["kill", "kill_leader", "suspend"], seconds=10, machines={"results": Results})
def test_every_job_is_done(raft_sim: Trial) -> None:
    """Members and workers are killed and suspended meanwhile. `--raft-seeds=100` does it a hundred times."""

    async def program(host: Host) -> None:
        async with host.client() as db:
            await work(db)

    async def main(sim: Trial) -> None:
        async with sim.client() as db:
            jobs = LockingQueue(db, "jobs", ttl=TTL)
            for number in range(JOBS):
                await jobs.push(f"job {number}", timeout=30)
            await sim.healed()
            while await jobs.count():  # noqa: ASYNC110 - in virtual time a look costs nothing
                await asyncio.sleep(1)
            found = await db.machine("results").query("everything")
            assert found == {f"job {number}": f"JOB {number}" for number in range(JOBS)}

    for name in ("ann", "bob"):
        raft_sim.host(name, program=program)
    raft_sim.run(main)
