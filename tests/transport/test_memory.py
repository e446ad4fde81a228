"""The network in one process: what arrives, what is refused, and faults on demand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from pyraftkv.core.messages import AppendRequest, Heartbeat, TimeoutNow
from pyraftkv.core.types import Entry
from pyraftkv.errors import ConfigurationError, HandshakeRejected
from pyraftkv.transport import MemoryNetwork, memory

from .members import Member, Stream, close, connected, hello, in_loop, introduce, until


async def _pair(network: MemoryNetwork) -> tuple[Member, Member]:
    one, two = [await Member(network.transport(name), i).start() for i, name in enumerate("ab", 1)]
    introduce(one, two)
    await connected(one, two)
    return one, two


def _beat(number: int = 0) -> Heartbeat:
    return Heartbeat(2, 1, 5, number, 0)


async def _passes(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@in_loop
async def test_messages_arrive_in_the_next_pass_and_together() -> None:
    """Everything that one pass of the loop queued for a member comes in one call."""
    one, two = await _pair(MemoryNetwork())
    messages = [_beat(), AppendRequest(2, 1, 5, 0, 0, [Entry(1, 5, b"x")], 0), TimeoutNow(2, 1, 5)]
    one.transport.send(messages[:2])
    one.transport.send(messages[2:])
    assert two.batches == []
    await _passes()
    assert two.batches == [messages]
    await close(one, two)


@in_loop
async def test_members_share_no_object() -> None:
    """What arrives is equal, and is not the same."""
    one, two = await _pair(MemoryNetwork())
    entry = Entry(1, 5, b"x" * 10)
    one.transport.send([AppendRequest(2, 1, 5, 0, 0, [entry], 0)])
    await _passes()
    (request,) = two.received
    assert isinstance(request, AppendRequest)
    assert request.entries == [entry]
    assert request.entries[0] is not entry
    assert request.entries[0].payload is not entry.payload
    await close(one, two)


@in_loop
async def test_who_stops_listening_is_gone_once_and_who_is_cut_off_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a cut nobody can tell: no refusal comes through."""
    monkeypatch.setattr(memory, "REDIAL_SECONDS", 0.0)
    network = MemoryNetwork()
    one, two = await _pair(network)
    network.cut("a", "b")
    await two.transport.close()
    await _passes(20)
    assert one.gone == []
    network.heal()
    await until(lambda: one.gone)
    await _passes(20)
    assert one.gone == [2]
    await close(one)


@in_loop
async def test_messages_to_strangers_vanish() -> None:
    """Nothing is sent, nobody is told, nothing is raised."""
    one, two = await _pair(MemoryNetwork())
    one.transport.send([Heartbeat(9, 1, 5, 0, 0)])
    await _passes()
    assert (one.lost, two.received) == ([], [])
    await close(one, two)


@in_loop
async def test_a_cut_loses_messages_and_healing_brings_new_ones() -> None:
    """Silently, as a network does; and what is lost stays lost."""
    network = MemoryNetwork()
    one, two = await _pair(network)
    network.cut("a", "b")
    one.transport.send([_beat(1)])
    await _passes()
    network.heal("a", "b")
    one.transport.send([_beat(2)])
    await _passes()
    assert two.received == [_beat(2)]
    await close(one, two)


@in_loop
async def test_a_cut_may_be_one_way() -> None:
    """Asymmetric partitions are the ones that find bugs."""
    network = MemoryNetwork()
    one, two = await _pair(network)
    network.cut("a", "b", both=False)
    one.transport.send([_beat()])
    two.transport.send([Heartbeat(1, 2, 5, 0, 0)])
    await _passes()
    assert (two.received, one.received) == ([], [Heartbeat(1, 2, 5, 0, 0)])
    await close(one, two)


@in_loop
async def test_isolation_cuts_one_off_from_all() -> None:
    """And only that one; healing one address undoes its cuts alone, healing all the rest."""
    network = MemoryNetwork()
    members = [await Member(network.transport(name), i).start() for i, name in enumerate("abc", 1)]
    network.isolate("a")
    network.cut("b", "c")
    assert not network.reaches("a", "b")
    assert not network.reaches("c", "a")
    network.heal("a")
    assert network.reaches("a", "b")
    assert not network.reaches("b", "c")
    network.heal()
    assert network.reaches("b", "c")
    await close(*members)


@in_loop
async def test_the_share_that_is_dropped_is_what_was_asked_for() -> None:
    """And the same for the same seed."""

    async def run(seed: int) -> list[int]:
        network = MemoryNetwork(rng=Random(seed))
        one, two = await _pair(network)
        network.drop_rate = 0.3
        for number in range(300):
            one.transport.send([_beat(number)])
        await _passes()
        await close(one, two)
        return [message.commit for message in two.received if isinstance(message, Heartbeat)]

    first = await run(1)
    assert 170 < len(first) < 250
    assert first == await run(1)
    assert first != await run(2)


@in_loop
async def test_latency_delays_and_reorders() -> None:
    """Batches of different passes may overtake each other; none is lost."""
    network = MemoryNetwork(rng=Random(3))
    one, two = await _pair(network)
    network.latency_seconds = (0.1, 0.2)
    for number in range(30):
        one.transport.send([_beat(number)])
        await _passes(1)
        assert number > 0 or two.received == []
    await until(lambda: len(two.received) == 30)
    numbers = [message.commit for message in two.received if isinstance(message, Heartbeat)]
    assert sorted(numbers) == list(range(30))
    assert numbers != list(range(30))
    await close(one, two)


@in_loop
async def test_what_is_under_way_is_lost_with_the_link() -> None:
    """A member that stops does not hear what was sent to its earlier life."""
    network = MemoryNetwork(rng=Random(3))
    one, two = await _pair(network)
    network.latency_seconds = (0.002, 0.002)
    one.transport.send([_beat()])
    await _passes()
    await two.transport.close()
    again = await Member(network.transport("b"), 2).start(boot_count=2)
    await until(lambda: one.transport.connected)
    network.latency_seconds = (0.01, 0.01)  # arrives after everything that was under way before
    one.transport.send([_beat(7)])
    await until(lambda: again.received)
    assert (again.received, two.received) == ([_beat(7)], [])
    assert one.lost == [2]
    await close(one, two, again)


@in_loop
async def test_the_queue_of_a_link_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is dropped, and the peer is lost once."""
    monkeypatch.setattr(memory, "LINK_QUEUE_BYTES_MAX", 100)
    one, two = await _pair(MemoryNetwork())
    one.transport.send([_beat(number) for number in range(10)])
    await _passes()
    assert two.received == [_beat(0), _beat(1), _beat(2)]
    assert one.lost == [2]
    one.transport.send([_beat(11)])
    await _passes()
    assert two.received[-1] == _beat(11)
    await close(one, two)


@in_loop
async def test_an_absent_peer_is_lost_and_found() -> None:
    """Whoever begins to listen is dialled at once."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    one.transport.set_peers({1: "a", 2: "b"})
    one.transport.send([_beat()])
    await _passes()
    assert one.lost == [2]
    two = await Member(network.transport("b"), 2).start()
    await until(lambda: one.transport.connected)
    await close(one, two)


@in_loop
async def test_who_is_no_peer_any_more_is_shut_out() -> None:
    """The link to whoever does not want it breaks: its other end has to say HELLO again, and is told if refused."""
    one, two = await _pair(MemoryNetwork())
    one.refuse = "removed"
    one.transport.set_peers({})
    await until(lambda: two.refused)
    assert {(member, rejection.reason, rejection.is_theirs) for member, rejection in two.refused} == {
        (1, "removed", True)
    }
    assert one.refused == [], "who refuses needs not be told"
    two.transport.send([Heartbeat(1, 2, 5, 0, 0)])
    await _passes()
    assert one.received == []
    one.refuse = ""
    await until(lambda: two.transport.connected == {1})
    await close(one, two)


@in_loop
async def test_peers_may_be_set_before_the_start_and_changed_after_it() -> None:
    """Links to those who are no peers any more are gone at once."""
    network = MemoryNetwork()
    one, two = Member(network.transport("a"), 1), await Member(network.transport("b"), 2).start()
    one.transport.set_peers({1: "a", 2: "b"})
    await one.start()
    await until(lambda: one.transport.connected == {2})
    one.transport.set_peers({2: "elsewhere"})
    assert one.transport.connected == frozenset()
    one.transport.set_peers({})
    one.transport.send([_beat()])
    await _passes()
    assert (one.lost, two.received) == ([], [])
    await close(one, two)


@in_loop
@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"cluster_id": 8}, "wrong-cluster"), ({"version_min": 9, "version_max": 9}, "protocol")],
)
async def test_wrong_hellos_are_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    """Both ends know the reason, and no message passes."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    two = await Member(network.transport("b"), 2).start(**fields)
    introduce(one, two)
    await until(lambda: one.transport.rejections and two.transport.rejections)
    assert one.transport.rejections[2].reason == two.transport.rejections[1].reason == reason
    assert one.transport.connected == frozenset()
    await close(one, two)


@in_loop
async def test_the_handler_may_refuse_and_change_its_mind() -> None:
    """It is asked again and again, and success clears the refusal."""
    network = MemoryNetwork()
    one = Member(network.transport("a"), 1)
    one.refuse = "unknown-member"
    await one.start()
    two = await Member(network.transport("b"), 2).start()
    introduce(one, two)
    await until(lambda: two.transport.rejections)
    assert two.transport.rejections[1].reason == "unknown-member"
    one.refuse = ""
    await connected(one, two)
    assert (one.transport.rejections, two.transport.rejections) == ({}, {})
    await close(one, two)


@in_loop
async def test_another_member_at_the_address_is_refused() -> None:
    """Acks must come from whom they seem to come from."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    three = await Member(network.transport("b"), 3).start()
    one.transport.set_peers({2: "b"})
    await until(lambda: one.transport.rejections)
    assert one.transport.rejections[2].reason == "wrong-member"
    await close(one, three)


@in_loop
async def test_frames_for_an_earlier_life_are_dropped() -> None:
    """The link's boot counts were agreed in the HELLOs; a frame with others is not looked at."""
    one, two = await _pair(MemoryNetwork())
    link = one.transport._links[2]  # type: ignore[union-attr]
    for boots in ((1, 2), (2, 1), (0, 0)):
        link.boots = boots
        one.transport.send([_beat()])
        await _passes()
    assert two.received == []
    link.boots = (1, 1)
    one.transport.send([_beat()])
    await _passes()
    assert two.received == [_beat()]
    await close(one, two)


@in_loop
async def test_identifying_changes_later_hellos() -> None:
    """A member that learns its cluster says so from then on."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start(cluster_id=0)
    two = await Member(network.transport("b"), 2).start()
    one.transport.identify(hello(1))
    introduce(one, two)
    await connected(one, two)
    assert {other.cluster_id for other in two.hellos} == {7}
    assert {other.address for other in two.hellos} == {"a"}
    await close(one, two)


@in_loop
async def test_an_address_has_one_listener() -> None:
    """The second is told so, and closing it does not hurt the first."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    with pytest.raises(ConfigurationError, match="in use"):
        await Member(network.transport("a"), 2).start()
    await one.transport.close()
    two = await Member(network.transport("a"), 2).start()
    await close(one, two)


# --- Clients -------------------------------------------------------------------------------------------------------


async def _client(network: MemoryNetwork, member: Member) -> tuple[Stream, Stream]:
    stream = Stream(await network.dialer()(member.transport.address, hello()))
    await until(lambda: member.clients)
    return stream, Stream(member.clients[-1])


@in_loop
async def test_clients_and_members_exchange_frames_in_order() -> None:
    """Both ways, from the HELLOs on."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    client, server = await _client(network, one)
    assert (client.connection.peer.member_id, server.connection.peer.member_id) == (1, 0)
    for number in range(5):
        client.connection.send(b"call %d" % number)
        server.connection.send(b"reply %d" % number)
    await _passes()
    assert server.frames == [b"call %d" % number for number in range(5)]
    assert client.frames == [b"reply %d" % number for number in range(5)]
    client.connection.send(b"last")
    client.connection.close()
    client.connection.send(b"too late")
    await _passes()
    assert (server.frames[5:], client.ends, server.ends) == ([b"last"], [None], [None])
    await close(one)


@in_loop
async def test_frames_wait_for_the_connection_to_be_opened() -> None:
    """Nothing falls into the gap between HELLO and `open`."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    connection = await network.dialer()("a", hello())
    connection.send(b"early")
    await _passes()
    server = Stream(one.clients[0])
    await _passes()
    assert server.frames == [b"early"]
    await close(one)
    assert Stream(connection).ends == []
    await _passes()


@in_loop
async def test_a_slow_reader_is_closed_and_a_patient_writer_drains() -> None:
    """Over the bound the connection breaks; `drain` waits for room before that."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    client, server = await _client(network, one)
    for _ in range(20):
        client.connection.send(bytes(1024 * 1024))
        await client.connection.drain()
    assert len(server.frames) >= 19
    connection = await network.dialer()("a", hello())
    for _ in range(9):
        connection.send(bytes(1024 * 1024))
    stream = Stream(connection)
    await _passes()
    assert [type(end) for end in stream.ends] == [ConnectionAbortedError]
    await connection.drain()
    assert connection.queued_bytes == 0
    await close(one)


@in_loop
async def test_a_cut_breaks_a_client_s_connection() -> None:
    """A stream cannot lose a frame, so it ends; a waiting `drain` ends with it."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    client, server = await _client(network, one)
    network.latency_seconds = (0.1, 0.1)
    for _ in range(3):
        client.connection.send(bytes(1024 * 1024))
    waiting = asyncio.create_task(client.connection.drain())
    await _passes()
    network.cut("client", "b")
    assert not waiting.done()
    network.cut("client", "a")
    await waiting
    await until(lambda: client.ends and server.ends)
    assert [type(end) for end in client.ends + server.ends] == [ConnectionResetError] * 2
    with pytest.raises(ConnectionRefusedError):
        await network.dialer()("a", hello())
    await network.dialer("other")("a", hello())
    await close(one)


@in_loop
async def test_a_member_that_stops_closes_its_clients() -> None:
    """And nobody answers there any more."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    client, server = await _client(network, one)
    await one.transport.close()
    await until(lambda: client.ends and server.ends)
    with pytest.raises(ConnectionRefusedError):
        await network.dialer()("a", hello())


@in_loop
async def test_clients_of_another_cluster_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is one more than there may be."""
    network = MemoryNetwork()
    one = await Member(network.transport("a"), 1).start()
    with pytest.raises(HandshakeRejected) as caught:
        await network.dialer()("a", hello(cluster_id=8))
    assert caught.value.reason == "wrong-cluster"
    monkeypatch.setattr(memory, "CLIENTS_MAX", 1)
    stream = Stream(await network.dialer()("a", hello()))
    with pytest.raises(ConnectionRefusedError):
        await network.dialer()("a", hello())
    stream.connection.close()
    await _passes()
    Stream(one.clients[0])
    await until(lambda: stream.ends)
    await network.dialer()("a", replace(hello(), cluster_id=0))
    await close(one)


@in_loop
async def test_states_can_be_seen() -> None:
    """`repr` tells who is connected and what waits."""
    network = MemoryNetwork()
    one, two = await _pair(network)
    client, server = await _client(network, one)
    client.connection.send(b"x")
    assert repr(one.transport) == "<MemoryTransport a, 1 of 1 peers connected>"
    assert repr(client.connection) == "<MemoryConnection to n1, 25 bytes queued>"
    assert repr(server.connection) == "<MemoryConnection to a client, 0 bytes queued>"
    await close(one, two)
