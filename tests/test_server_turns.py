"""Turns: in their order, one after the other, and none is lost with who is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv.server_turns import Turns


@pytest.mark.parametrize("cancelled", ["nobody", "one that waits", "one whose turn has come"])
def test_turns_come_in_their_order(cancelled: str) -> None:
    """Whoever is cancelled is passed over, or passes his turn on."""

    async def main() -> None:
        is_open = True
        turns = Turns(lambda: is_open)
        order: list[int] = []

        async def one(number: int) -> None:
            await turns.come()
            order.append(number)
            turns.go_on()

        await one(0)
        is_open = False
        tasks = [asyncio.create_task(one(number)) for number in range(1, 5)]
        await asyncio.sleep(0)
        turns.go_on()
        assert (order, len(turns)) == ([0], 4)
        if cancelled == "one that waits":
            tasks[1].cancel()
            await asyncio.sleep(0)
        is_open = True
        turns.go_on()
        if cancelled == "one whose turn has come":
            tasks[0].cancel()
        await one(5)
        await asyncio.wait(tasks)
        left = {"one that waits": [1, 3, 4], "one whose turn has come": [2, 3, 4]}.get(cancelled, [1, 2, 3, 4])
        assert [number for number in order if number in {1, 2, 3, 4}] == left
        assert len(turns) == 0

    asyncio.run(main())
