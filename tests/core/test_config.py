"""`Config` and `Stored` refuse what cannot work, and say why."""

from __future__ import annotations

import pytest

from pyraftkv.core import Config, Stored
from pyraftkv.core.types import HardState
from tests.core.machines import entries, snapshot


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"id": 0}, ["id"]),
        ({"heartbeat_ticks": 0}, ["heartbeat_ticks"]),
        ({"heartbeat_ticks": 10, "election_ticks": 10}, ["heartbeat_ticks", "election_ticks"]),
        ({"append_bytes_max": 10, "inflight_bytes_max": 9}, ["append_bytes_max", "inflight_bytes_max"]),
        ({"payload_bytes_max": 0}, ["payload_bytes_max"]),
        ({"append_bytes_max": 0}, ["append_bytes_max"]),
        ({"inflight_messages_max": 0}, ["inflight_messages_max"]),
        ({"uncommitted_bytes_max": 0}, ["uncommitted_bytes_max"]),
        ({"forward_bytes_max": 0}, ["forward_bytes_max"]),
        ({"committed_bytes_max": 0}, ["committed_bytes_max"]),
        ({"log_cache_bytes_max": -1}, ["log_cache_bytes_max"]),
        ({"reads_max": 0}, ["reads_max"]),
    ],
)
def test_values_that_cannot_work_are_named(knobs: dict[str, int], named: list[str]) -> None:
    """The message names the value, or both values of a pair that cannot go together."""
    with pytest.raises(ValueError, match=r"must") as caught:
        Config(**{"id": 1, **knobs})
    for name in named:
        assert name in str(caught.value)


def test_the_defaults_work() -> None:
    """Only the id has to be given."""
    assert Config(id=1).election_ticks == 100


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"first_index": 2}, "gap"),
        ({"entries": entries(2, 1)}, "cannot follow"),
        ({"entries": entries(1, 2, 1)}, "cannot follow"),
        ({"snapshot": snapshot(5, 3), "entries": entries(6, 2)}, "cannot follow"),
        ({"entries": entries(1, 1, 3), "hard_state": HardState(2, 0, 0)}, "behind"),
        ({"snapshot": snapshot(5, 3), "hard_state": HardState(2, 0, 0)}, "behind"),
    ],
)
def test_a_stored_state_that_contradicts_itself_is_refused(stored: dict[str, object], reason: str) -> None:
    """Whatever is wrong with the disk is found before it does harm."""
    with pytest.raises(ValueError, match=reason):
        Stored(**{"hard_state": HardState(9, 0, 0), **stored})  # type: ignore[arg-type]
