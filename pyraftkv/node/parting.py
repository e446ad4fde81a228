"""How a node goes: how long it stays for the others' sake, and what it tells who waits."""

from __future__ import annotations

from pyraftkv import errors

LINGER_TIMEOUTS = 5
"""Election timeouts for which a member that was removed stays, unless it is told to go before.

1. Of two members the leader is removed, and stops. The other one has the change in its log, but the news that it is
   committed were lost.
2. It needs a vote of two to go on, and there is nobody. So who was removed still votes and acknowledges, until the
   others have applied it: then they refuse its HELLO as "removed".
"""


def stopped_error(cause: BaseException | None, *, sent: bool) -> errors.PyraftkvError:
    """Return what a caller gets who waits while the node stops."""
    if not sent:
        return errors.Closed("the node stopped before the request was sent to anybody")
    if cause is None:
        return errors.NodeFailed("the node was closed with the write under way")
    return errors.NodeFailed(f"the node stopped with the write under way: {cause}")
