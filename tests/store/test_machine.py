from __future__ import annotations

import pytest

from tests.store.world import World


@pytest.mark.usefixtures("tiny_bounds")
@pytest.mark.parametrize("seed", range(60))
def test_store_equals_its_twin(seed):
    """Whatever is asked in whatever order and slices, the store answers as the plainest implementation does."""
    world = World(seed)
    for _ in range(300):
        world.step()
    world.close()
