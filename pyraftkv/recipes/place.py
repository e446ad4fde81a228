"""`Place`: what a recipe has under a lease of its own, or under a `Session` that others share and that goes on.

1. The lease is the place's own. Nobody waits for it: what is written first is sent along with the question for it. What
   is there ends with it, whatever was answered.
2. The lease is a session's. What is written has to be taken back, though nobody answers, or who does it is cancelled:
   the session does it later (`Session.leave_later`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pyraftkv.errors import LeaseExists
from pyraftkv.kv import KV
from pyraftkv.recipes.body import Body, under
from pyraftkv.recipes.session import Session

Step = Callable[[], Awaitable[object]]


class Place:
    """A place of the current task, entered once. The block there is cancelled when the lease is lost.

    Args:
        store: The store; or a `Session`, to have it under.
        ttl: Seconds that a lease of its own lives when nobody renews it.
    """

    def __init__(self, store: KV | Session, *, ttl: float) -> None:
        self._is_shared = isinstance(store, Session)
        self.session = store if isinstance(store, Session) else Session(store, ttl=ttl)
        """Under which it is."""
        self._body: Body | None = None
        self._give_back: Step | None = None
        self._later: Step | None = None

    async def enter(self, write: Step, give_back: Step, *, later: Step | None = None) -> None:
        """Have the lease, and do a write that hangs on it: one round trip. If that fails, nothing is left.

        Args:
            write: Called once more if it came before the lease: it must find that out (`LeaseNotFound`).
            give_back: Takes back what was written, or may have been.
            later: Does that when ``give_back`` could not; itself by default.

        Raises: what ``write`` raises; `LeaseLost`, `NotApplied`, `MaybeApplied`.
        """
        self._give_back, self._later = give_back, later or give_back
        if self._is_shared:
            self._body = self.session.body_here()
            try:
                with under(self.session.lease):
                    await write()
            except BaseException as error:
                await self.leave(type(error))
                raise
            return
        try:
            await self.session.enter_with(write)
        except LeaseExists:  # an id that was drawn twice: what was written hangs on the lease of somebody else
            await give_back()
            raise

    async def leave(self, kind: type[BaseException] | None, *exc: object) -> object:
        """The block has ended: end a lease of its own, or else take back what was written.

        Returns: what ``give_back`` did; None if it was not called. Raises: what it raises; `LeaseLost`.
        """
        session, give_back, later = self.session, self._give_back, self._later
        if not self._is_shared:
            await session.__aexit__(kind, *exc)
            return None
        assert give_back is not None
        assert later is not None
        try:
            # when the lease is lost its end does it, wherever the cluster is
            return None if session.lease.lost.is_set() else await give_back()
        except BaseException:
            session.leave_later(later)
            raise
        finally:
            if self._body is not None:
                self._body.leave(kind)
