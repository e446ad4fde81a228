"""What a transport reports besides messages, each thing once however often it happened: losses and refusals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from pyraftkv.errors import HandshakeRejected

_LOG = logging.getLogger("pyraftkv.transport")

REJECTIONS_MAX = 128
"""Refusals that are remembered; the oldest is forgotten first."""


class Losses:
    """Gathers the members to whom messages were lost, and tells of them in the loop's next pass.

    Not at once: whoever loses a message is in the middle of `send`, and the one to be told may be its caller.

    Args:
        report: Told each member once, in order of their ids.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._members: set[int] = set()

    def add(self, member: int) -> None:
        """Messages to ``member`` were dropped."""
        if not self._members:
            asyncio.get_running_loop().call_soon(self._tell)
        self._members.add(member)

    def _tell(self) -> None:
        members, self._members = self._members, set()
        for member in sorted(members):
            self._report(member)


class Refusals:
    """Remembers which members were refused or refused us, and logs each new reason once."""

    def __init__(self) -> None:
        self._latest: dict[int, HandshakeRejected] = {}

    @property
    def latest(self) -> Mapping[int, HandshakeRejected]:
        """The latest refusal of each member that has not been accepted since."""
        return self._latest

    def add(self, member: int, rejection: HandshakeRejected) -> None:
        """A HELLO with ``member`` was refused, by us or by it."""
        known = self._latest.pop(member, None)
        self._latest[member] = rejection
        if len(self._latest) > REJECTIONS_MAX:
            del self._latest[next(iter(self._latest))]
        if known is None or known.reason != rejection.reason:
            level = logging.INFO if rejection.reason == "joining" else logging.WARNING  # that passes by itself
            _LOG.log(level, "HELLO with member %d was refused (%s): %s", member, rejection.reason, rejection)

    def forget(self, member: int) -> None:
        """That member was accepted, or is none any more."""
        self._latest.pop(member, None)
