"""Losses and refusals are told once, however often they happen."""

from __future__ import annotations

import asyncio
import logging

import pytest

from pyraftkv.errors import HandshakeRejected
from pyraftkv.transport.reports import REJECTIONS_MAX, Losses, Refusals

from .members import in_loop


@in_loop
async def test_losses_are_told_in_the_next_pass_and_once() -> None:
    """Never from within `send`; in order of ids; and again when they happen again."""
    told: list[int] = []
    losses = Losses(told.append)
    for member in (3, 2, 3):
        losses.add(member)
    assert told == []
    await asyncio.sleep(0)
    assert told == [2, 3]
    losses.add(3)
    await asyncio.sleep(0)
    assert told == [2, 3, 3]


def test_a_refusal_is_logged_once_per_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A member that knocks every two seconds must not fill the log."""
    refusals = Refusals()
    with caplog.at_level(logging.WARNING, logger="pyraftkv.transport"):
        for reason in ("protocol", "protocol", "wrong-cluster", "wrong-cluster"):
            refusals.add(2, HandshakeRejected("no", reason=reason))
    assert [record.getMessage() for record in caplog.records] == [
        "HELLO with member 2 was refused (protocol): no",
        "HELLO with member 2 was refused (wrong-cluster): no",
    ]
    assert {member: error.reason for member, error in refusals.latest.items()} == {2: "wrong-cluster"}
    refusals.forget(2)
    assert refusals.latest == {}


def test_refusals_are_bounded() -> None:
    """The oldest is forgotten first."""
    refusals = Refusals()
    for member in range(1, REJECTIONS_MAX + 2):
        refusals.add(member, HandshakeRejected(reason="protocol"))
    assert set(refusals.latest) == set(range(2, REJECTIONS_MAX + 2))
