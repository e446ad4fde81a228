"""The calls of a client that may be repeated: reads, statuses, sessions. Each waits for its answer, whoever gives it.

A call keeps its id for life. It is sent when a member has room for it, again to the next member when a connection
breaks, and again a little later when a member answers that it cannot say. What it ends with is an answer, or its
deadline.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pyraftkv import codec, errors
from pyraftkv.client_answers import ASK_AGAIN, LEAVE_MEMBER
from pyraftkv.protocol import Answer, Call, CancelCall, OpenSessionCall, ReadCall, SnapshotPart
from pyraftkv.transport.framing import CLIENT_FRAME_BYTES_MAX

ASKS_SENT_MAX = 1024
"""Calls under way on one connection; further ones wait here, and what the member has left is for the watches."""


def frame_of(call: Call) -> bytes:
    """Encode a call. Raises `InvalidRequest`, `RequestTooLarge`: no connection would carry it."""
    frame = codec.encode_call(call)
    if len(frame) > CLIENT_FRAME_BYTES_MAX:
        raise errors.RequestTooLarge(f"a call of {len(frame)} bytes, over {CLIENT_FRAME_BYTES_MAX}")
    return frame


class _Ask:
    """A call that expects one answer and may be asked again."""

    __slots__ = ("besides", "deadline", "frame", "future", "id", "is_due", "leave_upon")

    def __init__(self, call: Call, deadline: float, future: asyncio.Future[Any]) -> None:
        self.id = call.id
        self.frame = frame_of(call)
        self.deadline = deadline
        self.future = future
        self.is_due = False
        """Whether a member answered that it cannot say: it is asked again at the next scan."""
        at_least = call.at_least if isinstance(call, ReadCall) else 0
        self.besides = f", or has no revision {at_least} yet" if at_least else ""
        """What else may be the reason that nobody answers."""
        self.leave_upon = LEAVE_MEMBER | {"Overloaded"} if isinstance(call, OpenSessionCall) else LEAVE_MEMBER
        """Errors upon which to go on with another connection: this one may have had all its sessions."""


class Asks:
    """The calls without an answer yet.

    Args:
        send: Sends a frame; returns False, and keeps nothing, while there is no connection.
        leave: Gives the connection up for one to another member.
    """

    def __init__(self, *, send: Callable[[bytes], bool], leave: Callable[[], None]) -> None:
        self._send = send
        self._leave = leave
        self._asks: dict[int, _Ask] = {}
        self._waiting: OrderedDict[int, _Ask] = OrderedDict()
        """To be sent in this order, as there is room."""
        self._sent: set[int] = set()
        """Sent on this connection, and not answered yet."""

    def __len__(self) -> int:
        return len(self._asks)

    async def ask(self, call: Call, deadline: float) -> Any:
        """Send a call and wait for its answer; a caller who goes away takes it back.

        Raises: `ReadTimeout`, `Closed`, and what the members answer.
        """
        ask = _Ask(call, deadline, asyncio.get_running_loop().create_future())
        self._asks[ask.id] = self._waiting[ask.id] = ask
        self._send_waiting()
        try:
            return await ask.future
        finally:
            if self._asks.pop(ask.id, None) is not None:
                self._waiting.pop(ask.id, None)
                if ask.id in self._sent:
                    self._sent.remove(ask.id)
                    self._send(codec.encode_call(CancelCall(ask.id)))
                    self._send_waiting()

    def connected(self) -> None:
        """Send everything, for a connection is new; what its member could not say waits for the next scan."""
        self._sent.clear()
        self._waiting = OrderedDict((ask.id, ask) for ask in self._asks.values() if not ask.is_due)
        self._send_waiting()

    def scan(self, now: float, situation: Callable[[], str]) -> None:
        """Give up calls past their deadline, and ask again what a member could not say. Call every 100 ms or so."""
        for ask in list(self._asks.values()):
            if now >= ask.deadline and not ask.future.done():
                ask.future.set_exception(errors.ReadTimeout(f"no answer in time: {situation()}{ask.besides}"))
            elif ask.is_due:
                ask.is_due = False
                self._waiting[ask.id] = ask
        self._send_waiting()

    def answered(self, answer: Answer) -> bool:
        """Take the answer to a call; False if it is to none.

        An answer of the member about itself is none to the call, which is asked again.
        """
        ask = self._asks.get(answer.id)
        if ask is None:
            return False
        if answer.error is None:
            self._resolve(ask, answer.result)
        elif answer.error[0] not in ASK_AGAIN:
            self._resolve(ask, error=errors.from_wire(*answer.error))
        else:
            self._sent.discard(ask.id)
            ask.is_due = True
            if answer.error[0] in ask.leave_upon:
                self._leave()
            self._send_waiting()
        return True

    def part_arrived(self, part: SnapshotPart) -> None:
        """Take a part of a snapshot: it answers the call that asked for it."""
        ask = self._asks.get(part.id)
        if ask is not None:
            self._resolve(ask, part)

    def close(self) -> None:
        """Fail every call as `Closed`."""
        for ask in self._asks.values():
            if not ask.future.done():
                ask.future.set_exception(errors.Closed("the client was closed"))
        self._asks.clear()
        self._waiting.clear()

    def _resolve(self, ask: _Ask, result: object = None, *, error: Exception | None = None) -> None:
        """End a call, unless its caller goes away or its deadline was first, and give its room to the next one."""
        del self._asks[ask.id]
        self._sent.discard(ask.id)
        if not ask.future.done():
            if error is None:
                ask.future.set_result(result)
            else:
                ask.future.set_exception(error)
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits, as far as the member takes it: what it refuses would have to come again."""
        while self._waiting and len(self._sent) < ASKS_SENT_MAX:
            ask_id, ask = next(iter(self._waiting.items()))
            if not self._send(ask.frame):
                return
            del self._waiting[ask_id]
            self._sent.add(ask_id)
