"""Shared futures: whoever gives up waiting for one is neither its end nor heard of again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyraftkv.futures import shared
from tests.node.support import asynchronous


def reports() -> list[dict[str, Any]]:
    """What the loop's exception handler is told from now on."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


@asynchronous
async def test_everybody_who_waits_is_told() -> None:
    """All get the result, or the error; who comes later gets it at once."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = [asyncio.create_task(shared(future)) for _ in range(3)]
    await asyncio.sleep(0)
    future.set_result(7)
    assert await asyncio.gather(*waiting, shared(future)) == [7, 7, 7, 7]
    failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = [asyncio.create_task(shared(failed)) for _ in range(2)]
    await asyncio.sleep(0)
    failed.set_exception(KeyError("gone"))
    assert [repr(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == ["KeyError('gone')"] * 2
    with pytest.raises(KeyError):
        await shared(failed)


@asynchronous
async def test_who_is_cancelled_cancels_nobody_else_s_future() -> None:
    """The future goes on, and holds nothing of who left."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    leaving, staying = (asyncio.create_task(shared(future)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert not future.done()
    future.set_result(7)
    assert await staying == 7


@asynchronous
async def test_an_error_that_others_handle_is_reported_by_nobody() -> None:
    """The loop hears nothing of the failure of what somebody no longer waits for."""
    told = reports()
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    leaving, staying = (asyncio.create_task(shared(future)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    future.set_exception(KeyError("gone"))
    with pytest.raises(KeyError):
        await staying
    assert told == []


@asynchronous
async def test_a_future_that_is_cancelled_cancels_who_waits() -> None:
    """As an awaited future does."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(shared(future))
    await asyncio.sleep(0)
    future.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
