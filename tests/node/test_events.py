"""Events reach every subscriber in order, through a bounded queue, and end with the node."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv.node import EventsDropped, NodeStopped, PeerConnected, events
from pyraftkv.node.events import EventHub, NodeEvent
from tests.node.support import asynchronous


async def collect(hub: EventHub) -> list[NodeEvent]:
    """Return everything until the node stops."""
    return [event async for event in hub.subscribe()]


@asynchronous
async def test_every_subscriber_hears_everything_from_its_beginning_on() -> None:
    """In order, whatever it does meanwhile; nothing after `NodeStopped`."""
    hub = EventHub()
    first = asyncio.create_task(collect(hub))
    await asyncio.sleep(0)
    hub.emit(PeerConnected(1, "a"))
    second = asyncio.create_task(collect(hub))
    await asyncio.sleep(0)
    hub.emit(PeerConnected(2, "b"))
    hub.emit(NodeStopped(None))
    hub.emit(PeerConnected(3, "c"))
    assert await first == [PeerConnected(1, "a"), PeerConnected(2, "b"), NodeStopped(None)]
    assert await second == [PeerConnected(2, "b"), NodeStopped(None)]
    assert await collect(hub) == [NodeStopped(None)]
    assert hub._subscriptions == []


@asynchronous
async def test_a_slow_subscriber_loses_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded; what gave way is counted."""
    monkeypatch.setattr(events, "EVENTS_MAX", 3)
    hub = EventHub()
    subscriber = hub.subscribe()
    beginning = asyncio.ensure_future(anext(subscriber))
    await asyncio.sleep(0)
    for number in range(10):
        hub.emit(PeerConnected(number, ""))
    assert await beginning == EventsDropped(7)
    assert [await anext(subscriber) for _ in range(3)] == [PeerConnected(number, "") for number in (7, 8, 9)]
    await subscriber.aclose()  # type: ignore[attr-defined]
    assert hub._subscriptions == []
