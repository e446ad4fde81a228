"""Two members and a witness in virtual time: who is lost, and what the third one is good for then."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv.errors import ConfigurationError
from pyraftkv.node import NodeConfig
from pyraftkv.sim import Simulation, Swarm, simulate
from pyraftkv.sim.swarm import random_swarm
from tests.sim.test_pitfalls import SECONDS_MAX, until, write
from tests.sim.test_simulation import leader_of

SEEDS = [38, 143, 149]
"""Whose third member is a witness."""


def test_a_witness_leads_when_nobody_else_can_and_hands_over() -> None:
    """B is away while A writes, then A dies for good: B gets everything from the witness, and leads."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        sim.hosts["n2"].kill()
        await write(sim, 30)
        sim.hosts["n1"].kill()
        sim.hosts["n2"].start()
        await until(lambda: (node := sim.hosts["n2"].node) is not None and node.is_leader, sim)
        await write(sim, 1)
        member = sim.hosts["n2"].member
        assert member is not None
        assert member.replica.store.published_revision == 32

    with Simulation(seed=81, swarm=Swarm(witness=True)) as sim:
        sim.run(main, until=SECONDS_MAX)
        sim.check_images()
        sim.check()
        assert sim.invariants.leaders[max(sim.invariants.leaders) - 1] == 3
        assert sim.witness == "n3"


def test_a_witness_without_room_acknowledges_all_the_same() -> None:
    """It keeps index and term of what the other one lacks, and that agrees with what everybody has."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        sim.hosts["n2"].kill()
        await write(sim, 30)
        node = sim.hosts["n1"].node
        assert node is not None
        assert (await node.status()).alarms == ["SINGLE_COPY"]
        sim.hosts["n2"].start()
        await asyncio.sleep(5.0)
        assert (await node.status()).alarms == []

    tight = Swarm(witness=True, config=NodeConfig(witness_log_bytes_max=1000))
    with Simulation(seed=82, swarm=tight) as sim:
        sim.run(main, until=SECONDS_MAX)
        sim.check_images()
        sim.check()


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_a_seed_with_a_witness(seed: int) -> None:
    """Whatever befalls it, it comes to a good end, in little time."""
    assert random_swarm(Simulation.fork(seed, "swarm")).witness
    report = simulate(seed, seconds=6.0)
    assert report.acknowledged > 0


def test_a_witness_needs_two_beside_it() -> None:
    """Else it could be of no use."""
    with pytest.raises(ConfigurationError, match="witness"):
        Swarm(members=2, witness=True)
