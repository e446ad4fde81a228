"""TCP on loopback: lanes, handshakes, restarts, garbage, limits. Real sockets, ephemeral ports, no sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from random import Random
from typing import Any

import pytest

from pyraftkv.codec import encode_hello, encode_message
from pyraftkv.core.messages import AppendRequest, ForwardedProposals, Heartbeat
from pyraftkv.core.types import Entry
from pyraftkv.errors import ConfigurationError, HandshakeRejected
from pyraftkv.protocol import SnapshotChunk
from pyraftkv.transport import Limits, TcpDialer, TcpTransport
from pyraftkv.transport.framing import (
    HELLO_BYTES_MAX,
    KIND_CLIENT,
    KIND_HELLO,
    KIND_HELLO_ACK,
    KIND_REJECTED,
    FrameDecoder,
    frame_header,
)
from pyraftkv.transport.lanes import Lane

from .members import Member, Stream, close, connected, hello, in_loop, introduce, until

HOST = "127.0.0.1"


def _transport(*, listen: str = f"{HOST}:0", **limits: Any) -> TcpTransport:
    return TcpTransport(listen=listen, rng=Random(1), limits=Limits(**limits))


async def _member(member_id: int, *, limits: dict[str, Any] | None = None, **fields: Any) -> Member:
    return await Member(_transport(**(limits or {})), member_id).start(**fields)


async def _pair(*, limits: dict[str, Any] | None = None) -> tuple[Member, Member]:
    one, two = await _member(1, limits=limits), await _member(2, limits=limits)
    introduce(one, two)
    await connected(one, two)
    return one, two


def _beat(number: int = 0, *, to: int = 2, sender: int = 1) -> Heartbeat:
    return Heartbeat(to, sender, 5, number, 0)


class Raw:
    """A socket that speaks bytes, to be impolite with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = FrameDecoder(payload_bytes_max=1 << 20)

    @classmethod
    async def connect(cls, member: Member) -> Raw:
        """Connect and say nothing."""
        host, port = member.transport.address.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    @classmethod
    async def greeted(cls, member: Member, member_id: int = 0, **fields: Any) -> Raw:
        """Connect, say HELLO and take its answer."""
        raw = await cls.connect(member)
        raw.frame(KIND_HELLO, encode_hello(hello(member_id, **fields)))
        assert await raw.next_kind() == KIND_HELLO_ACK
        return raw

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    def frame(self, kind: int, payload: bytes, *, sender_boot: int = 1, receiver_boot: int = 1) -> None:
        """Send a frame."""
        self.write(frame_header(kind, payload, sender_boot=sender_boot, receiver_boot=receiver_boot) + payload)

    async def next_kind(self) -> int | None:
        """Return the kind of the next frame, or None at the end of the stream."""
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await self._reader.read(4096)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._decoder.feed(data)
        return frame.kind

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


# --- Messages ------------------------------------------------------------------------------------------------------


@in_loop
async def test_messages_of_every_lane_arrive() -> None:
    """Whole and unaltered, in order within their lane."""
    one, two = await _pair()
    appends = [
        AppendRequest(2, 1, 5, 0, 0, [Entry(1, 5, bytes(1_000_000))], 0),
        ForwardedProposals(2, 1, 5, [b"a", b"b"]),
    ]
    chunks = [SnapshotChunk(2, 1, 5, 9, 4, number, bytes(1_000_000), number == 2) for number in range(3)]
    beats = [_beat(1), _beat(2)]
    one.transport.send([chunks[0], beats[0], appends[0], *chunks[1:], appends[1], beats[1]])
    await until(lambda: len(two.received) == 7)
    for kinds, expected in (
        ((Heartbeat,), beats),
        ((AppendRequest, ForwardedProposals), appends),
        ((SnapshotChunk,), chunks),
    ):
        assert [message for message in two.received if isinstance(message, kinds)] == expected
    assert (one.lost, two.lost) == ([], [])
    await close(one, two)


@in_loop
async def test_what_is_sent_together_is_one_write_and_one_receive() -> None:
    """One system call per lane and pass; the handler gets the messages as one batch."""
    one, two = await _pair()
    one.transport.send([_beat(number) for number in range(50)])
    await until(lambda: two.batches)
    assert [len(batch) for batch in two.batches] == [50]
    await close(one, two)


@in_loop
async def test_sockets_send_at_once_and_notice_who_vanished() -> None:
    """Without these options small frames wait for acknowledgements, and a dead peer for two hours."""
    one, two = await _pair()
    for wire in one.transport._wires:  # type: ignore[union-attr]
        sock = wire._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    await close(one, two)


@in_loop
async def test_a_heartbeat_does_not_wait_behind_a_snapshot() -> None:
    """The bulk lane is full of megabytes that nobody reads; the control lane goes on."""
    one, two = await _pair()
    _hold_inboxes(two, Lane.BULK, one)
    one.transport.send([SnapshotChunk(2, 1, 5, 9, 4, number, bytes(1_000_000), False) for number in range(12)])
    one.transport.send([_beat()])
    await until(lambda: two.received)
    assert two.received == [_beat()]
    await close(one, two)


def _hold_inboxes(receiver: Member, lane: Lane, sender: Member) -> None:
    """Stop reading one lane: pause the wire on which its frames arrive."""
    outlet = sender.transport._peers[receiver.id][lane]  # type: ignore[union-attr]
    assert outlet._wire is not None
    local = outlet._wire._transport.get_extra_info("sockname")  # type: ignore[union-attr]
    for wire in receiver.transport._wires:  # type: ignore[union-attr]
        if wire._transport.get_extra_info("peername") == local:  # type: ignore[union-attr]
            wire.hold()
            return
    raise AssertionError("no such wire")


@in_loop
async def test_a_slow_reader_loses_what_exceeds_the_queue() -> None:
    """The sender's memory is bounded: what does not fit is dropped, and the handler hears that the peer is lost."""
    one, two = await _pair(limits={"lane_queue_bytes_max": dict.fromkeys(Lane, 3_000_000)})
    _hold_inboxes(two, Lane.APPENDS, one)
    message = ForwardedProposals(2, 1, 5, [bytes(1_000_000)])
    for _ in range(20):
        one.transport.send([message])
    await until(lambda: one.lost)
    outlet = one.transport._peers[2][Lane.APPENDS]  # type: ignore[union-attr]
    assert outlet._wire is not None
    assert outlet._wire.queued_bytes <= 3_000_000
    for wire in two.transport._wires:  # type: ignore[union-attr]
        wire.release()
    await until(lambda: outlet._wire is not None and outlet._wire.queued_bytes == 0)
    last = ForwardedProposals(2, 1, 5, [b"last"])
    one.transport.send([last])
    await until(lambda: last in two.received)
    assert 3 < len(two.received) < 20
    await close(one, two)


@in_loop
async def test_a_frame_over_the_bound_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """It would only make the receiver hang up, again and again."""
    one, two = await _pair(limits={"peer_frame_bytes_max": 1000})
    one.transport.send([ForwardedProposals(2, 1, 5, [bytes(1000)])])
    await until(lambda: one.lost)
    assert "over the bound" in caplog.text
    one.transport.send([_beat()])
    await until(lambda: two.received)
    await close(one, two)


@in_loop
async def test_messages_to_strangers_vanish() -> None:
    """Nobody is told of what was never a member."""
    one, two = await _pair()
    one.transport.send([_beat(to=9)])
    one.transport.send([_beat()])
    await until(lambda: two.received)
    assert (one.lost, two.received) == ([], [_beat()])
    await close(one, two)


@in_loop
async def test_an_absent_peer_is_lost_until_it_comes() -> None:
    """Dials go on, with back-off, at whatever the address stands for then."""
    one = await _member(1)
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        port = reserved.getsockname()[1]
        one.transport.set_peers({2: f"{HOST}:{port}"})
        one.transport.send([_beat()])
        await until(lambda: one.lost == [2])
    two = await Member(_transport(listen=f"{HOST}:{port}"), 2).start()
    await until(lambda: one.transport.connected == {2})
    one.transport.send([_beat()])
    await until(lambda: two.received)
    await close(one, two)


@in_loop
async def test_a_peer_that_restarts_is_found_again() -> None:
    """With a higher boot count, and frames that carry it."""
    one, two = await _pair()
    await two.transport.close()
    await until(lambda: one.lost == [2] * len(one.lost) != [])
    again = await Member(_transport(listen=two.transport.address), 2).start(boot_count=2)
    again.transport.set_peers({1: one.transport.address})
    await until(lambda: one.transport.connected == {2} and again.transport.connected == {1})
    one.transport.send([_beat()])
    again.transport.send([_beat(to=1, sender=2)])
    await until(lambda: again.received and one.received)
    assert max(other.boot_count for other in one.hellos) == 2
    await close(one, again)


@in_loop
async def test_a_peer_that_says_hello_is_dialled_at_once() -> None:
    """Whatever wait between two dials is under way: a member that comes back needs its leader now."""
    patient = {"backoff_seconds_min": 3600.0, "backoff_seconds_max": 3600.0}
    one, two = await _pair(limits=patient)
    await two.transport.close()
    await until(lambda: one.lost == [2] * len(one.lost) != [])
    again = await Member(_transport(listen=two.transport.address), 2).start(boot_count=2)
    again.transport.set_peers({1: one.transport.address})
    await until(lambda: one.transport.connected == {2})
    await close(one, again)


@in_loop
async def test_a_peer_whose_process_ended_is_told_of_once() -> None:
    """Its connections end and new ones are refused; every lane is, and dials go on, but it is news only once."""
    one, two = await _pair(limits={"backoff_seconds_min": 0.001, "backoff_seconds_max": 0.001})
    await two.transport.close()
    await until(lambda: one.gone)
    for _ in range(10):
        await asyncio.sleep(0.002)
    assert one.gone == [2]
    await close(one)


@in_loop
async def test_a_peer_whose_connections_were_reset_is_not_gone() -> None:
    """It still listens: a reset alone may be anybody's doing."""
    one, two = await _pair(limits={"backoff_seconds_min": 0.001, "backoff_seconds_max": 0.001})
    for member in (one, two):
        for wire in list(member.transport._wires):  # type: ignore[union-attr]
            wire._transport.abort()  # type: ignore[union-attr]
    await until(lambda: one.lost and two.lost)
    await connected(one, two)
    assert (one.gone, two.gone) == ([], [])
    await close(one, two)


@in_loop
async def test_a_peer_that_still_sends_is_not_gone() -> None:
    """Something before it refuses, a proxy for one, while what it has dialled itself stands."""
    one = await _member(1, limits={"backoff_seconds_min": 0.001, "backoff_seconds_max": 0.001})
    two = await _member(2)
    introduce(one, two)
    await connected(one, two)
    two.transport._server.close()  # type: ignore[union-attr]
    for outlet in one.transport._peers[2].values():  # type: ignore[union-attr]
        outlet._wire._transport.abort()  # type: ignore[union-attr]
    await until(lambda: one.lost)
    for _ in range(10):
        await asyncio.sleep(0.002)
    assert one.gone == []
    await close(one, two)


@in_loop
async def test_who_is_let_go_is_not_gone() -> None:
    """We end the connections ourselves; that nobody listens at the next address says nothing of the member."""
    one, two = await _pair(limits={"backoff_seconds_min": 0.001, "backoff_seconds_max": 0.001})
    two.transport.set_peers({})
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        one.transport.set_peers({2: f"{HOST}:{reserved.getsockname()[1]}"})
        for _ in range(10):
            await asyncio.sleep(0.002)
    assert one.gone == []
    await close(one, two)


@in_loop
async def test_whose_garbage_we_hang_up_on_is_not_gone() -> None:
    """It was we who ended the connection, whatever its address says after that."""
    one = await _member(1, limits={"backoff_seconds_min": 0.001, "backoff_seconds_max": 0.001})
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        one.transport.set_peers({3: f"{HOST}:{reserved.getsockname()[1]}"})
        raw = await Raw.greeted(one, 3)
        raw.write(bytes(50))
        assert await raw.next_kind() is None
        for _ in range(10):
            await asyncio.sleep(0.002)
    assert one.gone == []
    await raw.close()
    await close(one)


@in_loop
async def test_a_member_s_later_life_ends_its_earlier_connections() -> None:
    """A half-open connection of the dead process must not deliver after the new one spoke."""
    one = await _member(1)
    earlier = await Raw.greeted(one, 2, boot_count=1)
    later = await Raw.greeted(one, 2, boot_count=2)
    assert await earlier.next_kind() is None
    kind, payload = encode_message(_beat(to=1, sender=2))
    later.frame(kind, payload, sender_boot=2)
    await until(lambda: one.received)
    rolled_back = await Raw.connect(one)
    rolled_back.frame(KIND_HELLO, encode_hello(hello(2, boot_count=1)))
    assert await rolled_back.next_kind() == KIND_REJECTED
    assert one.transport.rejections[2].reason == "rolled-back"
    for raw in (earlier, later, rolled_back):
        await raw.close()
    await close(one)


@in_loop
async def test_frames_for_an_earlier_life_are_dropped() -> None:
    """Both boot counts must be those of the HELLOs; the connection stays."""
    one = await _member(1)
    raw = await Raw.greeted(one, 2)
    kind, payload = encode_message(_beat(to=1, sender=2))
    for boots in ({"sender_boot": 2}, {"receiver_boot": 2}, {"receiver_boot": 0}):
        raw.frame(kind, payload, **boots)
    raw.frame(*encode_message(_beat(7, to=1, sender=2)))
    await until(lambda: one.received)
    assert one.received == [_beat(7, to=1, sender=2)]
    await raw.close()
    await close(one)


@in_loop
async def test_a_member_speaks_for_itself_and_to_us_only() -> None:
    """A message to somebody else is dropped; one in somebody else's name ends the connection."""
    one = await _member(1)
    raw = await Raw.greeted(one, 2)
    raw.frame(*encode_message(_beat(1, to=3, sender=2)))
    raw.frame(*encode_message(_beat(2, to=1, sender=2)))
    await until(lambda: one.received)
    raw.frame(*encode_message(_beat(3, to=1, sender=3)))
    assert await raw.next_kind() is None
    assert one.received == [_beat(2, to=1, sender=2)]
    await raw.close()
    await close(one)


# --- Peers ---------------------------------------------------------------------------------------------------------


@in_loop
async def test_peers_can_change() -> None:
    """Connections to those who are none any more close; ourselves are never dialled."""
    one, two = await _pair()
    one.transport.set_peers({1: one.transport.address, 2: two.transport.address})
    assert one.transport.connected == {2}
    three = await _member(3)
    one.transport.set_peers({3: three.transport.address})
    await until(lambda: one.transport.connected == {3})
    one.transport.send([_beat(), _beat(to=3)])
    await until(lambda: three.received)
    assert (two.received, one.lost) == ([], [])
    one.transport.set_peers({3: two.transport.address})
    await until(lambda: one.transport.rejections)
    assert one.transport.rejections[3].reason == "wrong-member"
    one.transport.set_peers({})
    assert one.transport.rejections == {}
    await close(one, two, three)  # who is shut out dials again, while it closes


@in_loop
async def test_who_is_no_peer_any_more_is_shut_out() -> None:
    """What it dialled is closed: it has to say HELLO again, and is told if it is refused."""
    one, two = await _pair()
    one.refuse = "removed"
    one.transport.set_peers({})
    await until(lambda: two.refused)
    assert {(member, rejection.reason) for member, rejection in two.refused} == {(1, "removed")}
    assert all(rejection.is_theirs for _, rejection in two.refused)
    assert one.refused == [], "who refuses needs not be told"
    two.transport.send([_beat(to=1, sender=2)])
    await close(two, one)
    assert one.received == []


@in_loop
async def test_peers_may_be_set_before_the_start() -> None:
    """They are dialled from the start on."""
    two = await _member(2)
    one = Member(_transport(), 1)
    one.transport.set_peers({2: two.transport.address})
    await one.start()
    await until(lambda: one.transport.connected == {2})
    await close(one, two)


@in_loop
async def test_an_address_that_makes_no_sense_is_dialled_in_vain() -> None:
    """Addresses come from the log: nothing may be raised for their sake."""
    one = await _member(1)
    one.transport.set_peers({2: "nonsense", 3: f"{HOST}:0"})
    one.transport.send([_beat(), _beat(to=3)])
    await until(lambda: one.lost == [2, 3])
    await close(one)


# --- Handshakes ----------------------------------------------------------------------------------------------------


@in_loop
@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"cluster_id": 8}, "wrong-cluster"), ({"version_min": 9, "version_max": 9}, "protocol")],
)
async def test_wrong_hellos_are_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    """Both ends know why, and no message passes."""
    one, two = await _member(1), await _member(2, **fields)
    introduce(one, two)
    await until(lambda: one.transport.rejections and two.transport.rejections)
    assert one.transport.rejections[2].reason == two.transport.rejections[1].reason == reason
    assert one.transport.connected == frozenset()
    await close(one, two)


def test_closing_does_not_wait_for_dials_that_were_cancelled_on_uvloop() -> None:
    """It closes the connection of such a dial without ever saying that it is lost."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with asyncio.timeout(10):
            one, two = await _member(1), await _member(2, cluster_id=8)
            introduce(one, two)
            await until(lambda: one.transport.rejections and two.transport.rejections)
            await close(one, two)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(5):
            runner.run(main())


@in_loop
async def test_the_handler_may_refuse_and_change_its_mind(caplog: pytest.LogCaptureFixture) -> None:
    """Dials go on; the refusal is logged once, and is forgotten when it is over."""
    one = Member(_transport(), 1)
    one.refuse = "unknown-member"
    await one.start()
    two = await _member(2)
    two.transport.set_peers({1: one.transport.address})
    with caplog.at_level(logging.WARNING):
        await until(lambda: len(one.hellos) > 8)
    assert len([record for record in caplog.records if "member 1 was refused" in record.message]) == 1
    assert two.transport.rejections[1].reason == "unknown-member"
    one.refuse = ""
    await until(lambda: two.transport.connected == {1})
    assert (one.transport.rejections, two.transport.rejections) == ({}, {})
    await close(one, two)


@in_loop
async def test_the_dialling_end_judges_too() -> None:
    """A handler that refuses whoever answers never gets a lane to it."""
    one, two = Member(_transport(), 1), await _member(2)
    one.refuse = "wrong-incarnation"
    await one.start()
    one.transport.set_peers({2: two.transport.address})
    await until(lambda: one.transport.rejections)
    assert one.transport.rejections[2].reason == "wrong-incarnation"
    assert one.transport.connected == frozenset()
    await close(one, two)


@in_loop
async def test_identifying_changes_later_hellos() -> None:
    """The cluster id became known; an empty address becomes ours."""
    one, two = await _member(1, cluster_id=0), await _member(2)
    one.transport.identify(hello(1))
    introduce(one, two)
    await connected(one, two)
    assert {(other.cluster_id, other.address) for other in two.hellos} == {(7, one.transport.address)}
    await close(one, two)


@in_loop
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(100),
        frame_header(KIND_HELLO, b"garbage") + b"garbage",
        frame_header(KIND_CLIENT, b"") + b"",
        frame_header(KIND_HELLO, bytes(HELLO_BYTES_MAX + 1)),
        frame_header(KIND_HELLO, encode_hello(hello(2)))[:-1] + b"?" + encode_hello(hello(2)),
    ],
)
async def test_whoever_does_not_say_hello_is_hung_up_on(data: bytes) -> None:
    """Text, zeros, garbage, a call before the HELLO, an oversized HELLO, a wrong CRC; others do not notice."""
    one, two = await _pair()
    raw = await Raw.connect(one)
    raw.write(data)
    assert await raw.next_kind() is None
    two.transport.send([_beat(to=1, sender=2)])
    await until(lambda: one.received)
    assert one.lost == two.lost == []
    await raw.close()
    await close(one, two)


@in_loop
async def test_garbage_after_the_hello_ends_that_connection_only() -> None:
    """No frame, an unknown kind, a payload that does not fit its kind, a call; and half a frame."""
    one, two = await _pair()
    for kind, payload in ((None, bytes(50)), (77, b""), (5, b"\xc1"), (KIND_CLIENT, b"")):
        raw = await Raw.greeted(one, 3)
        if kind is None:
            raw.write(payload)
        else:
            raw.frame(kind, payload)
        assert await raw.next_kind() is None
        await raw.close()
    half = await Raw.greeted(one, 3)
    half.write(frame_header(5, bytes(100)) + bytes(50))
    await half.close()
    two.transport.send([_beat(to=1, sender=2)])
    await until(lambda: one.received)
    assert one.received == [_beat(to=1, sender=2)]
    await close(one, two)


@in_loop
async def test_a_frame_over_the_bound_ends_the_connection() -> None:
    """At its header, before any of its payload is there: not only when it takes too long to come."""
    one = await _member(1, limits={"frame_seconds_max": 1000.0})
    for member_id, length in ((2, 8 * 1024 * 1024 + 1), (0, 2 * 1024 * 1024 + 1)):
        raw = await Raw.greeted(one, member_id)
        if not member_id:
            await until(lambda: one.clients)
            Stream(one.clients[0])
        raw.write(frame_header(5, bytes(length)))
        assert await raw.next_kind() is None
        await raw.close()
    await close(one)


@in_loop
async def test_a_hello_must_come_in_time() -> None:
    """Whoever connects and says nothing, or half of it, is hung up on."""
    one = await _member(1, limits={"handshake_seconds_max": 0.05})
    silent, half = await Raw.connect(one), await Raw.connect(one)
    half.write(frame_header(KIND_HELLO, bytes(10)))
    assert await silent.next_kind() is None
    assert await half.next_kind() is None
    greeted = await Raw.greeted(one, 2)
    await silent.close()
    await half.close()
    await greeted.close()
    await close(one)


@in_loop
async def test_a_frame_that_is_never_finished_ends_the_connection() -> None:
    """A slow trickle must not hold a buffer for ever; an idle connection may stay."""
    one = await _member(1, limits={"frame_seconds_max": 0.05})
    idle, stuck = await Raw.greeted(one, 2), await Raw.greeted(one, 3)
    stuck.write(frame_header(5, bytes(100)) + bytes(50))
    assert await stuck.next_kind() is None
    idle.frame(*encode_message(_beat(to=1, sender=2)))
    await until(lambda: one.received)
    await idle.close()
    await stuck.close()
    await close(one)


@in_loop
async def test_connections_without_a_hello_are_bounded() -> None:
    """One more is hung up on; when one has said HELLO there is room again."""
    one = await _member(1, limits={"handshakes_max": 2})
    waiting = [await Raw.connect(one) for _ in range(2)]
    refused = await Raw.connect(one)
    assert await refused.next_kind() is None
    waiting[0].frame(KIND_HELLO, encode_hello(hello(2)))
    assert await waiting[0].next_kind() == KIND_HELLO_ACK
    greeted = await Raw.greeted(one, 3)
    for raw in (*waiting, refused, greeted):
        await raw.close()
    await close(one)


@in_loop
async def test_running_out_of_file_descriptors_does_not_end_the_server() -> None:
    """The loop tells of it and tries again; who was connected stays."""
    one, two = await _pair()
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    late = socket.socket()
    late.setblocking(False)
    resource.setrlimit(resource.RLIMIT_NOFILE, (late.fileno() + 1, hard))
    try:
        host, port = one.transport.address.split(":")
        await asyncio.get_running_loop().sock_connect(late, (host, int(port)))
        await until(lambda: told)
        two.transport.send([_beat(to=1, sender=2)])
        await until(lambda: one.received)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    reader, writer = await asyncio.open_connection(sock=late)
    raw = Raw(reader, writer)
    raw.frame(KIND_HELLO, encode_hello(hello(3)))
    assert await raw.next_kind() == KIND_HELLO_ACK
    await raw.close()
    await close(one, two)


# --- Clients -------------------------------------------------------------------------------------------------------


async def _client(member: Member) -> tuple[Stream, Stream]:
    before = len(member.clients)
    stream = Stream(await TcpDialer()(member.transport.address, hello()))
    await until(lambda: len(member.clients) > before)
    return stream, Stream(member.clients[-1])


@in_loop
async def test_clients_and_members_exchange_frames_in_order() -> None:
    """Both ways, from the HELLOs on; what was sent before `close` arrives."""
    one = await _member(1)
    client, server = await _client(one)
    assert (client.connection.peer.member_id, server.connection.peer.member_id) == (1, 0)
    assert one.transport.client_count == 1
    for number in range(5):
        client.connection.send(b"call %d" % number)
        server.connection.send(b"reply %d" % number)
    await until(lambda: len(server.frames) == len(client.frames) == 5)
    assert server.frames == [b"call %d" % number for number in range(5)]
    assert client.frames == [b"reply %d" % number for number in range(5)]
    client.connection.send(b"last")
    client.connection.close()
    client.connection.send(b"too late")
    await until(lambda: server.ends and client.ends)
    assert (server.frames[5:], client.ends, server.ends) == ([b"last"], [None], [None])
    assert one.transport.client_count == 0
    await close(one)


@in_loop
async def test_frames_wait_for_the_connection_to_be_opened() -> None:
    """Nothing falls into the gap between HELLO and `open`, on either side."""
    one = await _member(1)
    connection = await TcpDialer()(one.transport.address, hello())
    connection.send(b"early")
    await until(lambda: one.clients)
    one.clients[0].send(b"hint")
    await until(lambda: one.clients[0].queued_bytes == 0)
    client, server = Stream(connection), Stream(one.clients[0])
    await until(lambda: server.frames and client.frames)
    assert (server.frames, client.frames) == ([b"early"], [b"hint"])
    await close(one)
    await until(lambda: client.ends)


@in_loop
async def test_a_connection_lost_before_it_was_opened_still_says_so() -> None:
    """`closed` is called exactly once, whenever the end came."""
    one = await _member(1)
    client, _ = await _client(one)
    connection = await TcpDialer()(one.transport.address, hello())
    await until(lambda: len(one.clients) == 2)
    unopened = one.clients[1]
    await close(one)
    late = Stream(unopened)
    await until(lambda: late.ends and client.ends)
    assert (late.ends, client.ends) == ([None], [None])
    stream = Stream(connection)
    await until(lambda: stream.ends)
    await connection.drain()
    assert connection.queued_bytes == 0


@in_loop
async def test_a_client_that_does_not_read_is_closed() -> None:
    """Eight megabytes wait for it, no more."""
    one = await _member(1)
    connection = await TcpDialer()(one.transport.address, hello())  # held: it reads nothing
    await until(lambda: one.clients)
    server = Stream(one.clients[0])
    for _ in range(40):
        server.connection.send(bytes(1024 * 1024))
    await until(lambda: server.ends)
    assert [type(end) for end in server.ends] == [ConnectionAbortedError]
    connection.close()
    await close(one)


@in_loop
async def test_a_patient_writer_drains() -> None:
    """`drain` returns when there is room; nothing is lost however much is sent."""
    one = await _member(1)
    client, server = await _client(one)
    for _ in range(40):
        server.connection.send(bytes(1024 * 1024))
        await server.connection.drain()
    await until(lambda: len(client.frames) == 40)
    assert server.ends == []
    client.connection.close()
    await until(lambda: server.ends)
    await close(one)


@in_loop
async def test_a_frame_of_another_kind_ends_a_client_s_connection() -> None:
    """A client has nothing to say between members."""
    one = await _member(1)
    raw = await Raw.greeted(one)
    server = Stream(one.clients[0])
    raw.frame(*encode_message(_beat(to=1, sender=2)))
    assert await raw.next_kind() is None
    await until(lambda: server.ends)
    assert one.received == []
    await raw.close()
    await close(one)


@in_loop
async def test_clients_are_bounded() -> None:
    """One more is told that nobody serves it now, and may try another member."""
    one = await _member(1, limits={"clients_max": 1})
    client, _ = await _client(one)
    with pytest.raises(ConnectionRefusedError, match="as many clients"):
        await TcpDialer()(one.transport.address, hello())
    client.connection.close()
    await until(lambda: one.transport.client_count == 0)
    await _client(one)
    await close(one)


@in_loop
async def test_clients_learn_why_they_are_refused() -> None:
    """By name; and a client's refusal is not held against a member."""
    one = await _member(1)
    with pytest.raises(HandshakeRejected) as caught:
        await TcpDialer()(one.transport.address, hello(cluster_id=8))
    assert caught.value.reason == "wrong-cluster"
    assert one.transport.rejections == {}
    await close(one)


@in_loop
async def test_a_server_that_is_none_of_ours_is_noticed() -> None:
    """One that talks nonsense, one that hangs up, one that says nothing, one that answers with a call."""
    answers: list[bytes | None] = [b"220 mail.example ESMTP\r\n" + bytes(30), b"", None, frame_header(KIND_CLIENT, b"")]
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        await reader.read(10)
        if (answer := answers[len(open_writers) - 1]) is not None:
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
    dialer = TcpDialer()
    with pytest.raises(HandshakeRejected) as caught:
        await dialer(address, hello())
    assert caught.value.reason == "protocol"
    with pytest.raises(ConnectionResetError):
        await dialer(address, hello())
    with pytest.raises(TimeoutError):
        await TcpDialer(limits=Limits(dial_seconds_max=0.1))(address, hello())
    with pytest.raises(HandshakeRejected, match="in answer to a HELLO"):
        await dialer(address, hello())
    server.close()
    for writer in open_writers:
        writer.close()
    with pytest.raises(OSError):
        await dialer(address, hello())
    with pytest.raises(ConfigurationError):
        await dialer("nonsense", hello())


@in_loop
async def test_a_member_that_sends_on_the_wrong_side_of_a_lane_is_dropped() -> None:
    """Lanes are one-way: a frame against their direction ends them, and they are dialled anew."""
    one, two = await _pair()
    outlet = one.transport._peers[2][Lane.CONTROL]  # type: ignore[union-attr]
    assert outlet._wire is not None
    local = outlet._wire._transport.get_extra_info("sockname")  # type: ignore[union-attr]
    for wire in two.transport._wires:  # type: ignore[union-attr]
        if wire._transport.get_extra_info("peername") == local:  # type: ignore[union-attr]
            wire.write_frame(5, b"")
    await until(lambda: one.lost == [2])
    await connected(one, two)
    await close(one, two)


# --- Listening -----------------------------------------------------------------------------------------------------


@in_loop
async def test_an_ephemeral_port_becomes_real() -> None:
    """In the address, and in an advertised one with port 0."""
    one = Member(TcpTransport(listen=f"{HOST}:0", advertise="localhost:0"), 1)
    assert one.transport.address == "localhost:0"
    await one.start()
    host, port = one.transport.address.split(":")
    assert host == "localhost"
    assert int(port) > 0
    assert repr(one.transport) == f"<TcpTransport localhost:{port}, 0 peers, 0 clients>"
    client, server = await _client(one)
    assert repr(client.connection) == "<FramedConnection to n1, 0 bytes queued>"
    await close(one)
    assert repr(server.connection) == "<FramedConnection to a client, lost>"
    await until(lambda: client.ends)


@in_loop
async def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    """At once and with the address, not somewhere in a log."""
    one = await _member(1)
    with pytest.raises(ConfigurationError, match=one.transport.address):
        await Member(_transport(listen=one.transport.address), 2).start()
    await close(one)


@in_loop
async def test_closing_without_a_start_is_fine() -> None:
    """And sending then goes nowhere."""
    one = Member(_transport(), 1)
    one.transport.send([_beat()])
    await close(one)
    one.transport.set_peers({2: f"{HOST}:1"})
    one.transport.send([_beat()])


@in_loop
async def test_closing_in_the_middle_of_dials_leaves_nothing_behind() -> None:
    """Dials under way, connections half greeted: all gone when `close` returns."""
    one, two = await _member(1), await _member(2)
    introduce(one, two)
    raw = await Raw.connect(one)
    for _ in range(3):
        await asyncio.sleep(0)
    await close(one, two)
    assert one.transport._wires == {}  # type: ignore[union-attr]
    assert await raw.next_kind() is None
    await raw.close()


@in_loop
async def test_connections_are_closed_in_the_order_in_which_they_came() -> None:
    """Not in that of their addresses: in a simulation the same seed would else be two runs."""
    one = await _member(1)
    raws = [await Raw.greeted(one) for _ in range(20)]
    came = [raw._writer.get_extra_info("sockname") for raw in raws]
    wires = list(one.transport._wires)  # type: ignore[union-attr]
    assert [wire._transport.get_extra_info("peername") for wire in wires] == came  # type: ignore[union-attr]
    await close(one)
    for raw in raws:
        await raw.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "db-1.example:7400"])
def test_plain_text_stays_on_this_machine(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unless one insists, and then loudly."""
    with pytest.raises(ConfigurationError, match="without TLS"):
        TcpTransport(listen=listen, advertise="db-1.example:7400")
    assert caplog.text == ""
    TcpTransport(listen=listen, advertise="db-1.example:7400", insecure=True)
    assert "without TLS" in caplog.text


@pytest.mark.parametrize("advertise", ["0.0.0.0:1", "[::]:1", "nonsense"])
def test_an_address_that_nobody_can_dial_is_not_advertised(advertise: str) -> None:
    """Peers would try it for ever."""
    with pytest.raises(ConfigurationError):
        TcpTransport(listen=f"{HOST}:0", advertise=advertise)
    with pytest.raises(ConfigurationError):
        TcpTransport(listen="0.0.0.0:0", insecure=True)
