"""What the codec, the framing and a loopback connection cost. Run: ``python tests/bench/bench_transport.py``.

Figures are the best of several rounds, in microseconds; take ratios on a busy machine.
"""

from __future__ import annotations

import asyncio
import statistics
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from pyraftkv.codec import (
    PeerMessage,
    decode_call,
    decode_logged,
    decode_message,
    decode_reply,
    decode_result,
    encode_call,
    encode_logged,
    encode_message,
    encode_reply,
    encode_result,
)
from pyraftkv.core.messages import AppendRequest, AppendResponse, Heartbeat, HeartbeatResponse
from pyraftkv.core.types import Entry
from pyraftkv.errors import HandshakeRejected
from pyraftkv.protocol import Answer, Envelope, Hello, WatchUpdate, WriteCall
from pyraftkv.store.commands import PutBatch, PutKey
from pyraftkv.store.values import Event, EventType, KeyValue, PutResult, RangeResult, WatchBatch
from pyraftkv.transport import Connection, TcpTransport
from pyraftkv.transport.framing import PEER_FRAME_BYTES_MAX, FrameDecoder, frame_header

ENTRY_COUNT = 64
ENTRY_BYTES = 270


def measure(name: str, call: Callable[[], object], *, per: int = 1, unit: str = "call") -> None:
    """Print the best time of ``call``, divided by ``per``."""
    timer = timeit.Timer(call)
    number = max(1, int(0.02 / max(timer.timeit(3) / 3, 1e-9)))
    best = min(timer.repeat(repeat=15, number=number)) / number * 1e6
    print(f"  {name:<44} {best:9.2f} us" + (f"   {best / per:7.3f} us per {unit}" if per > 1 else ""))


def bench_codec(rng: Random) -> None:
    """Payloads, results, calls and replies."""
    put = PutKey(b"key-0000000001", rng.randbytes(256))
    payload = encode_logged(Envelope(123_456, 678, 670, put))
    print("codec (values of 256 bytes)")
    for count in (1, 64):
        batch = Envelope(123_456, 678, 670, PutBatch((put.key, put.value) * count))
        encoded = encode_logged(batch)
        measure(f"encode_logged({count} puts)", partial(encode_logged, batch), per=count, unit="put")
        measure(f"decode_logged({count} puts)", partial(decode_logged, encoded), per=count, unit="put")
    result = encode_result(PutResult(7))
    measure("encode_result(put)", lambda: encode_result(PutResult(7)))
    measure("decode_result(put)", lambda: decode_result(result))
    call = encode_call(WriteCall(1, payload, 5.0))
    measure("encode_call(write)", lambda: encode_call(WriteCall(1, payload, 5.0)))
    measure("decode_call(write)", lambda: decode_call(call))
    answer = encode_reply(Answer(1, PutResult(7)))
    measure("encode_reply(put)", lambda: encode_reply(Answer(1, PutResult(7))))
    measure("decode_reply(put)", lambda: decode_reply(answer))
    kvs = [KeyValue(b"key-%010d" % i, put.value, i, i, 1) for i in range(1000)]
    ranged = encode_reply(Answer(1, RangeResult(9, kvs, more=False, count=1000)))
    measure(
        "encode_reply(range of 1000)",
        lambda: encode_reply(Answer(1, RangeResult(9, kvs, more=False, count=1000))),
        per=1000,
        unit="key",
    )
    measure("decode_reply(range of 1000)", lambda: decode_reply(ranged), per=1000, unit="key")
    update = WatchUpdate([1], WatchBatch([Event(EventType.PUT, kv) for kv in kvs], 9))
    events = encode_reply(update)
    measure("encode_reply(watch of 1000)", lambda: encode_reply(update), per=1000, unit="event")
    measure("decode_reply(watch of 1000)", lambda: decode_reply(events), per=1000, unit="event")


def bench_messages(rng: Random) -> None:
    """Messages with their frames."""
    print(f"messages ({ENTRY_COUNT} entries of {ENTRY_BYTES} bytes)")
    entries = [Entry(101 + i, 5, rng.randbytes(ENTRY_BYTES)) for i in range(ENTRY_COUNT)]
    request = AppendRequest(2, 1, 5, 100, 5, entries, 99)
    kind, payload = encode_message(request)
    stream = frame_header(kind, payload) + payload
    measure("AppendRequest encode", lambda: encode_message(request), per=ENTRY_COUNT, unit="entry")
    measure("AppendRequest frame", lambda: frame_header(kind, payload) + payload, per=ENTRY_COUNT, unit="entry")
    measure("AppendRequest unframe", lambda: _unframe(stream), per=ENTRY_COUNT, unit="entry")
    measure("AppendRequest decode", lambda: decode_message(kind, payload), per=ENTRY_COUNT, unit="entry")

    def round_trip() -> None:
        kind, payload = encode_message(request)
        for frame_kind, body in _unframe(frame_header(kind, payload) + payload):
            decode_message(frame_kind, body)

    measure("AppendRequest all four", round_trip, per=ENTRY_COUNT, unit="entry")
    response = AppendResponse(1, 2, 5, 164, False, 0, 0)
    number, body = encode_message(response)
    measure("AppendResponse encode", lambda: encode_message(response))
    measure("AppendResponse decode", lambda: decode_message(number, body))
    small = b"".join((frame_header(number, body) + body) for _ in range(100))
    measure("100 small frames unframe", lambda: _unframe(small), per=100, unit="frame")


def _unframe(stream: bytes) -> list[tuple[int, bytes]]:
    decoder = FrameDecoder(payload_bytes_max=PEER_FRAME_BYTES_MAX)
    decoder.feed(stream)
    frames: list[tuple[int, bytes]] = []
    while (frame := decoder.next_frame()) is not None:
        frames.append((frame.kind, frame.payload))
    return frames


class _Member:
    """A handler that answers heartbeats, or counts what it receives."""

    def __init__(self, transport: TcpTransport, *, answers: bool = False) -> None:
        self.transport = transport
        self.answers = answers
        self.received_count = 0
        self.awaited_count = 0
        self.done: asyncio.Future[None] | None = None

    def peer_hello(self, hello: Hello) -> None:
        """Everybody is welcome."""

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        """Answer, or count."""
        if self.answers:
            self.transport.send([HeartbeatResponse(m.sender, m.to, 1, 0) for m in messages])
        self.received_count += len(messages)
        if self.done is not None and self.received_count >= self.awaited_count and not self.done.done():
            self.done.set_result(None)

    def peer_lost(self, member_id: int) -> None:
        """Nothing to do."""

    def peer_gone(self, member_id: int) -> None:
        """Nothing to do."""

    def peer_refused(self, member_id: int, rejection: HandshakeRejected) -> None:
        """Nothing to do."""

    def client_connected(self, connection: Connection) -> None:
        """There are no clients."""
        connection.close()

    async def receives(self, count: int) -> None:
        """Wait until ``count`` messages have arrived."""
        self.awaited_count, self.done = count, asyncio.get_running_loop().create_future()
        if self.received_count < count:
            await self.done


async def _pair(*, answers: bool) -> tuple[_Member, _Member]:
    members: list[_Member] = []
    for _ in range(2):
        members.append(_Member(TcpTransport(listen="127.0.0.1:0"), answers=answers and bool(members)))
    for number, member in enumerate(members, 1):
        await member.transport.start(Hello(7, number, f"n{number}", number, 1, ""), member)
    addresses = {number: member.transport.address for number, member in enumerate(members, 1)}
    for member in members:
        member.transport.set_peers(addresses)
    while not all(member.transport.connected for member in members):
        await asyncio.sleep(0.01)
    return members[0], members[1]


async def bench_latency(count: int = 3000) -> None:
    """One heartbeat there and its answer back, both ends in this loop."""
    one, two = await _pair(answers=True)
    times: list[float] = []
    loop = asyncio.get_running_loop()
    for number in range(1, count + 1):
        start = loop.time()
        one.transport.send([Heartbeat(2, 1, 1, 0, 0)])
        await one.receives(number)
        times.append((loop.time() - start) * 1e6 / 2)
    cuts = statistics.quantiles(times, n=100)
    print(f"loopback, one way: p50 {cuts[49]:.0f} us, p99 {cuts[98]:.0f} us (both ends in one loop)")
    await one.transport.close()
    await two.transport.close()


async def bench_throughput(count: int = 3000) -> None:
    """AppendRequests of 64 entries as fast as one loop sends and receives them, with back-pressure by counting."""
    one, two = await _pair(answers=False)
    rng = Random(1)
    entries = [Entry(101 + i, 5, rng.randbytes(ENTRY_BYTES)) for i in range(ENTRY_COUNT)]
    request = AppendRequest(2, 1, 5, 100, 5, entries, 99)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(8, count + 1, 8):
        one.transport.send([request] * 8)
        await two.receives(number)
    seconds = loop.time() - start
    print(
        f"loopback throughput: {count / seconds:.0f} AppendRequests/s, {count * ENTRY_COUNT / seconds:.0f} entries/s, "
        f"{seconds / count * 1e6:.0f} us per AppendRequest (both ends in one loop)"
    )
    await one.transport.close()
    await two.transport.close()


def main() -> None:
    """Run everything."""
    rng = Random(1)
    bench_codec(rng)
    bench_messages(rng)
    asyncio.run(bench_latency())
    asyncio.run(bench_throughput())


if __name__ == "__main__":
    main()
