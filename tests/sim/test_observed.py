"""Looking on: nothing is changed, everything is told, and faults befall whole messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from pyraftkv.codec import PeerMessage
from pyraftkv.core import Entry, HardState, Save
from pyraftkv.core.messages import Heartbeat
from pyraftkv.errors import HandshakeRejected
from pyraftkv.log import MemoryStorage
from pyraftkv.log.base import Recovered
from pyraftkv.protocol import Hello
from pyraftkv.sim.faults import LinkFault
from pyraftkv.sim.observed import IN_FLIGHT_MAX, ObservedStorage, ObservedTransport, PeerTraffic
from pyraftkv.transport import MemoryNetwork
from pyraftkv.transport.base import Connection
from tests.node.support import asynchronous

NAMES = {1: "a", 2: "b"}


def term_of(message: PeerMessage) -> int:
    """Return what tells one of these tests' messages from another."""
    assert isinstance(message, Heartbeat)
    return message.term


class Notes:
    """What the observers were told, in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, name: str, recovered: Recovered) -> None:
        self.lines.append(f"{name} started at {recovered.hard_state.term}")

    def identified(self, name: str, member_id: int) -> None:
        self.lines.append(f"{name} is {member_id}")

    def saving(self, name: str, save: Save) -> None:
        self.lines.append(f"{name} saves {save.number}")

    def completed(self, name: str, number: int) -> None:
        self.lines.append(f"{name} has saved {number}")

    def promised(self, name: str, number: int) -> None:
        self.lines.append(f"{name} has promised {number}")

    def arrived(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None:
        self.lines.append(f"{source}->{target} {term_of(message)} of {sent_at}")

    def lost(self, source: str, target: str, message: PeerMessage, *, sent_at: float) -> None:
        self.lines.append(f"{source}->{target} {term_of(message)} of {sent_at} lost")


@asynchronous
async def test_a_storage_tells_before_it_does_and_before_it_answers() -> None:
    """What is saved is told before the real storage has it, its completion before the node hears of it."""
    notes = Notes()
    storage = ObservedStorage(MemoryStorage(random=Random(1)), name="a", observer=notes)
    await storage.start(failed=lambda _: None)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def then(number: int) -> None:
        notes.lines.append(f"told {number}")
        if number == 2:
            done.set_result(None)

    storage.save(Save(1, HardState(3, 1, 0), [Entry(1, 3, b"x")], None), then)
    storage.save(Save(2, None, [Entry(2, 3, b"y")], None), then)
    await done
    assert notes.lines[:3] == ["a started at 0", "a saves 1", "a saves 2"]
    assert notes.lines[-2:] == ["a has saved 2", "told 2"]
    assert [e.index for e in await storage.read_entries(lo=1, hi=3, bytes_max=100)] == [1, 2]
    await storage.close()


class Receiver:
    """A member that takes everything."""

    def __init__(self) -> None:
        self.terms: list[int] = []

    def peer_hello(self, hello: Hello) -> None:
        pass

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        self.terms += [term_of(message) for message in messages]

    def peer_lost(self, member_id: int) -> None:
        pass

    def peer_gone(self, member_id: int) -> None:
        pass

    def peer_refused(self, member_id: int, rejection: HandshakeRejected) -> None:
        pass

    def client_connected(self, connection: Connection) -> None:
        connection.close()


class Pair:
    """Two observed transports in a network in memory; what is held back waits for `release`."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.traffic = PeerTraffic(now=lambda: 7.0, observer=self.notes)
        self.sending: list[int] = []
        self.held: list[tuple[float, object]] = []
        network = MemoryNetwork(rng=Random(1))
        self.receivers = {1: Receiver(), 2: Receiver()}
        self.transports = {
            number: ObservedTransport(
                network.transport(name),
                name=name,
                name_of=NAMES.__getitem__,
                traffic=self.traffic,
                sending=lambda _, messages: self.sending.extend(term_of(message) for message in messages),
                later=lambda seconds, callback: self.held.append((seconds, callback)),
                random=Random(number),
            )
            for number, name in NAMES.items()
        }

    async def start(self) -> None:
        for number, transport in self.transports.items():
            await transport.start(Hello(5, number, NAMES[number], number, 1, NAMES[number]), self.receivers[number])
        for transport in self.transports.values():
            transport.set_peers(NAMES)
        for _ in range(20):
            await asyncio.sleep(0)

    async def send(self, *terms: int) -> list[int]:
        """Send a message of each of these terms from 1 to 2; return what has arrived."""
        self.transports[1].send([Heartbeat(2, 1, term, 0, 0) for term in terms])
        for _ in range(20):
            await asyncio.sleep(0)
        arrived, self.receivers[2].terms = self.receivers[2].terms, []
        return arrived

    async def close(self) -> None:
        for transport in self.transports.values():
            await transport.close()


@asynchronous
async def test_messages_are_followed_from_end_to_end() -> None:
    """Everything that is sent is told before it leaves, and again as it arrives."""
    pair = Pair()
    await pair.start()
    assert await pair.send(1, 2) == [1, 2]
    assert pair.sending == [1, 2]
    assert pair.notes.lines == ["a->b 1 of 7.0", "a->b 2 of 7.0"]
    await pair.close()


@asynchronous
async def test_faults_drop_double_and_hold_back_whole_messages() -> None:
    """As their rates say; what is held back leaves when its time has come."""
    pair = Pair()
    await pair.start()
    link = ("a", "b")
    pair.traffic.faults[link] = LinkFault(drop_rate=1.0)
    assert await pair.send(1) == []
    assert pair.notes.lines == ["a->b 1 of 7.0 lost"]
    pair.traffic.faults[link] = LinkFault(reorder_rate=1.0, reorder_seconds=0.5)
    assert await pair.send(2) == []
    pair.traffic.faults[link] = LinkFault(duplicate_rate=1.0)
    assert await pair.send(3) == [3]
    del pair.traffic.faults[link]
    (seconds, late), (_, twin) = pair.held
    assert 0 < seconds <= 0.5
    for callback in (late, twin):
        callback()  # type: ignore[operator]
    assert await pair.send(4) == [2, 3, 4]
    assert pair.sending == [1, 2, 3, 4]
    await pair.close()


def test_what_a_later_message_overtook_was_lost() -> None:
    """A lane is a stream; at the end, and beyond a bound, what is still under way counts as lost too."""
    notes = Notes()
    traffic = PeerTraffic(now=lambda: 1.0, observer=notes)
    sent = [Heartbeat(2, 1, term, 0, 0) for term in range(4)]
    for message in sent:
        traffic.left("a", "b", message)
    traffic.arrived("a", "b", Heartbeat(2, 1, 2, 0, 0))
    assert notes.lines == ["a->b 0 of 1.0 lost", "a->b 1 of 1.0 lost", "a->b 2 of 1.0"]
    traffic.forget()
    assert notes.lines[3:] == ["a->b 3 of 1.0 lost"]
    for _ in range(IN_FLIGHT_MAX + 1):
        traffic.left("a", "b", sent[0])
    assert len(notes.lines) == 5
