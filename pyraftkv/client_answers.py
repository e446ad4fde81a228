"""What a client makes of answers that are none: which of them send it elsewhere, and what its callers are told."""

from __future__ import annotations

from pyraftkv import errors

DECLINED = {"Closed", "Overloaded", "NoLeader", "Quarantined", "DiskFull"}
"""Answers that say that this member, at least, did not take the write."""

LEAVE_MEMBER = {"Closed", "NodeFailed", "NoState", "Quarantined", "DiskFull"}
"""Answers of a member that goes away, has no state or no room, or is not to be trusted: another may know better."""

ASK_AGAIN = LEAVE_MEMBER | {"Overloaded", "NoLeader", "ReadTimeout", "WriteTimeout"}
"""Answers that say nothing about what was asked: it is asked again until its own deadline."""

RETRY_ELSEWHERE = LEAVE_MEMBER | {"Overloaded", "NoLeader", "WriteTimeout", "ConnectionLost"}
"""Answers that say nothing final about a write that has a session: it is sent again until its own deadline."""


def closed_error(sent: bool) -> errors.PyraftkvError:  # noqa: FBT001
    """Return what a caller gets who waits while the client closes."""
    if sent:
        return errors.ConnectionLost("the client was closed with the write under way")
    return errors.Closed("the client was closed before the write was sent")


def replaced_error(sent: bool) -> errors.PyraftkvError:  # noqa: FBT001
    """Return what a caller gets whose cluster is gone."""
    if sent:
        return errors.SessionExpired("another cluster answers now; the one before may have applied the write")
    return errors.NoLeader("another cluster answers now; the one before was not sent the write")
