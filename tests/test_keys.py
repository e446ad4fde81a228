"""Keys and comparisons as callers give them."""

from __future__ import annotations

from typing import Any

import pytest

import pyraftkv
from pyraftkv import Compare, CompareResult, CompareTarget, PutKey, compare
from pyraftkv.errors import InvalidRequest
from tests.node.support import asynchronous


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": "v"}, Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"k", b"v")),
        ({"version": 0}, Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"k", 0)),
        ({"create_revision": 5}, Compare(CompareTarget.CREATE, CompareResult.EQUAL, b"k", 5)),
        (
            {"mod_revision": 7, "result": CompareResult.LESS},
            Compare(CompareTarget.MOD, CompareResult.LESS, b"k", 7),
        ),
        ({"lease": 9, "end": "m"}, Compare(CompareTarget.LEASE, CompareResult.EQUAL, b"k", 9, b"m")),
        ({"version": 0, "prefix": True}, Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"k", 0, b"l")),
    ],
)
def test_a_comparison_has_the_names_of_a_key_value(given: dict[str, Any], expected: Compare) -> None:
    """Each is the target of etcd's that it names; equality unless told otherwise, of one key or of many."""
    assert compare("k", **given) == expected


@pytest.mark.parametrize("given", [{}, {"version": 1, "value": b"v"}, {"version": 0, "end": "z", "prefix": True}])
def test_a_comparison_of_nothing_or_of_two_things_is_refused(given: dict[str, Any]) -> None:
    """It would be another one than was meant."""
    with pytest.raises(InvalidRequest):
        compare("k", **given)


@asynchronous
async def test_a_transaction_is_done_if_its_comparisons_hold() -> None:
    """What was made stands in a transaction as it is."""
    async with pyraftkv.Cluster.in_memory(1) as cluster:
        db = cluster.client()
        put = await db.put("k", "v")
        for mod_revision, succeeded in [(put.revision, True), (put.revision, False)]:
            done = await db.txn().when(compare("k", mod_revision=mod_revision)).then(PutKey(b"k", b"w"))
            assert done.succeeded is succeeded
