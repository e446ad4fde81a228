"""The member's side of remote use, spoken to without a `Client`: what is answered, in what portions, or refused."""

from __future__ import annotations

import pytest

from pyraftkv import Node, PutKey, RangeQuery, codec, errors, server
from pyraftkv.protocol import (
    Answer,
    CancelCall,
    Envelope,
    MembersCall,
    MembersResult,
    MembersUpdate,
    OpenSessionCall,
    ReadCall,
    RegisterSession,
    SnapshotCall,
    SnapshotPart,
    StatusCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.store.commands import DeleteRange, SortOrder, SortTarget
from pyraftkv.store.values import DeleteResult, PutResult, RangeResult
from tests.node.support import asynchronous, cluster_of, until
from tests.raw_client import RawClient, error_name, put, raw_client, served


@asynchronous
async def test_a_write_sent_twice_is_applied_once() -> None:
    """On one connection, on two at the same time, or much later: every copy gets the outcome of the first."""
    async with served() as (cluster, node, raw):
        session = await raw.session()
        payload = put(session, 1, b"k")
        raw.send(WriteCall(2, payload, 5.0))
        raw.send(WriteCall(3, payload, 5.0))
        other = await raw_client(cluster, node)
        answers = [await raw.answer(2), await raw.answer(3), await other.ask(WriteCall(4, payload, 5.0))]
        assert [answer.result for answer in answers] == [PutResult(2)] * 3
        kv = await node.get("k")
        assert kv is not None
        assert kv.version == 1


@asynchronous
async def test_a_write_goes_on_when_its_client_comes_back_by_another_connection() -> None:
    """1. A write waits for a quorum. Its client connects anew and sends it again.

    2. Only then the member notices that the first connection is lost, and forgets its calls.
    3. The write must be answered on the second one all the same.
    """
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        raw = await raw_client(cluster, leader)
        session = await raw.session()
        for follower in cluster.followers:
            cluster.network.cut(leader.address, follower.address)
        payload = put(session, 1, b"k")
        raw.send(WriteCall(2, payload, 20.0))
        other = await raw_client(cluster, leader)
        other.send(WriteCall(3, payload, 20.0))
        member = leader._member
        assert member is not None
        await until(lambda: len(leader._clients) == 2 and (session, 1) in member.writes.under_way())
        raw.connection.close()
        await until(lambda: len(leader._clients) == 1)
        cluster.network.heal()
        assert (await other.answer(3)).result == PutResult(2)


@asynchronous
async def test_what_is_no_write_of_a_session_is_refused() -> None:
    """Garbage, a command without a session, what only members may log: nothing of it reaches the log."""
    async with served() as (_, node, raw):
        session = await raw.session()
        last_index = (await node.status()).last_index
        bad = [
            b"\xff\xff",
            codec.encode_logged(RegisterSession(5)),
            put(0, 1, b"k"),
            put(session, 0, b"k"),
            put(session, 1, b""),
        ]
        for number, payload in enumerate(bad, start=10):
            assert error_name(await raw.ask(WriteCall(number, payload, 5.0))) == "InvalidRequest"
        assert (await node.status()).last_index == last_index
        strange = put(999, 1, b"k")
        assert error_name(await raw.ask(WriteCall(20, strange, 5.0))) == "SessionExpired"


@asynchronous
async def test_reads_and_status() -> None:
    """A read is answered as it was asked; a consistency that does not exist is refused."""
    async with served() as (_, node, raw):
        await node.put("a", "1")
        for number, consistency in enumerate(("linearizable", "lease", "local"), start=2):
            answer = await raw.ask(ReadCall(number, RangeQuery(b"a"), consistency, 5.0))
            assert isinstance(answer.result, RangeResult)
            assert [kv.value for kv in answer.result.kvs] == [b"1"]
        assert error_name(await raw.ask(ReadCall(9, RangeQuery(b"a"), "wishful", 5.0))) == "InvalidRequest"
        assert error_name(await raw.ask(ReadCall(10, RangeQuery(b"a", revision=99), "local", 5.0))) == "FutureRevision"
        status = await raw.ask(StatusCall(11))
        assert isinstance(status.result, dict)
        assert status.result["name"] == node.name


@asynchronous
async def test_a_client_is_told_where_the_members_are() -> None:
    """When it connects, and when that changes; it may ask who they are as well."""
    async with served() as (_, node, raw):
        await raw.ask(StatusCall(4))
        told = [reply for reply in raw.replies if isinstance(reply, MembersUpdate)]
        assert [update.addresses for update in told] == [["n1"]]
        await node.members.add("n2", "h:2")
        answer = await raw.ask(MembersCall(5, 10.0))
        assert isinstance(answer.result, MembersResult)
        assert [member.name for member in answer.result.members] == ["n1", "n2"]
        assert answer.result.leader == 1
        told = [reply for reply in raw.replies if isinstance(reply, MembersUpdate)]
        assert [update.addresses for update in told] == [["n1"], ["n1", "h:2"]]


@asynchronous
async def test_a_frame_that_is_no_call_ends_the_connection() -> None:
    """The connection is dropped, the member goes on."""
    async with served() as (_, node, raw):
        raw.connection.send(b"\x00nonsense")
        await raw.wait(lambda: raw.is_closed)
        await node.put("a", "1")


@asynchronous
async def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `CALLS_MAX` calls under way, or two under one id, are `Overloaded`; and so it is with watches.

    But watches leave room for calls: a client that has many could renew no lease.
    """
    monkeypatch.setattr(server, "CALLS_MAX", 2)
    async with served() as (_, _, raw):
        raw.send(WatchCall(2, b"a", b"", 0, False))
        assert error_name(await raw.ask(WatchCall(2, b"a", b"", 0, False))) == "Overloaded"
        raw.send(WatchCall(3, b"a", b"", 0, False))
        assert error_name(await raw.ask(WatchCall(4, b"a", b"", 0, False))) == "Overloaded"
        assert isinstance((await raw.ask(StatusCall(5))).result, dict)
        raw.send(CancelCall(3))
        raw.send(CancelCall(77))
        for number in (6, 7):
            raw.send(ReadCall(number, RangeQuery(b"a"), "local", 60.0, at_least=99))
        assert error_name(await raw.ask(StatusCall(8))) == "Overloaded"
        raw.send(WatchCall(9, b"a", b"", 0, False))
        raw.send(CancelCall(6))
        assert isinstance((await raw.ask(StatusCall(10))).result, dict)
        told = [reply.ids for reply in raw.replies if isinstance(reply, WatchUpdate)]
        assert {2, 9} <= {watch_id for ids in told for watch_id in ids}


@asynchronous
async def test_sessions_of_a_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client cannot evict the sessions of all others; those on other connections still open theirs."""
    monkeypatch.setattr(server, "SESSIONS_PER_CONNECTION_MAX", 2)
    async with served() as (cluster, node, raw):
        ids = {(await raw.ask(OpenSessionCall(number))).result for number in (2, 3)}
        assert len(ids) == 2
        assert error_name(await raw.ask(OpenSessionCall(4))) == "Overloaded"
        assert isinstance(await (await raw_client(cluster, node)).session(), int)


@asynchronous
async def test_a_call_is_not_answered_for_a_cancelled_one_of_the_same_id() -> None:
    """1. A write waits for a quorum. Its client cancels the call, and calls another write by the same id.

    2. The first is applied: that is no answer to the second.
    """
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        raw = await raw_client(cluster, leader)
        session = await raw.session()
        for follower in cluster.followers:
            cluster.network.cut(leader.address, follower.address)
        raw.send(WriteCall(2, put(session, 1, b"a"), 20.0))
        raw.send(CancelCall(2))
        raw.send(WriteCall(2, put(session, 2, b"b"), 20.0))
        member = leader._member
        assert member is not None
        await until(lambda: len(member.writes) == 2)
        cluster.network.heal()
        assert (await raw.answer(2)).result == PutResult(3)


@asynchronous
async def test_a_result_larger_than_a_frame_is_refused_with_advice() -> None:
    """A read is told to ask for less; a write is told that it was applied."""
    async with served() as (_, node, raw):
        for number in range(3):
            await node.put(f"k{number}", b"x" * 1_000_000)
        answer = await raw.ask(ReadCall(2, RangeQuery(b"k", b"l"), "local", 5.0))
        assert answer.error is not None
        assert answer.error[0] == "RequestTooLarge"
        assert "limit=" in answer.error[1]
        assert "scan()" in answer.error[1]
        first = RangeQuery(b"k", b"l", limit=3, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND)
        assert error_name(await raw.ask(ReadCall(5, first, "local", 5.0))) == "RequestTooLarge"
        session = await raw.session()
        delete = codec.encode_logged(Envelope(session, 1, 1, DeleteRange(b"k", b"l", prev_kv=True)))
        answer = await raw.ask(WriteCall(3, delete, 5.0))
        assert error_name(answer) == "MaybeApplied"
        assert (await node.range("k", "l")).count == 0
        plain = codec.encode_logged(Envelope(session, 2, 1, DeleteRange(b"k", b"l")))
        assert isinstance((await raw.ask(WriteCall(4, plain, 5.0))).result, DeleteResult)


@asynchronous
async def test_an_error_that_names_something_long_fits_a_frame() -> None:
    """What is refused is told to be refused, and the connection goes on, whatever the caller's names are."""
    async with served() as (_, _, raw):
        session = await raw.session()
        long = b"\x01" * 1_000_000
        needs_a_key = codec.encode_logged(Envelope(session, 1, 1, PutKey(long, b"", ignore_value=True)))
        refused = (await raw.ask(WriteCall(2, needs_a_key, 5.0))).error
        assert refused is not None
        assert refused[0] == "KeyNotFound"
        assert refused[1].startswith("ignore_value")
        assert refused[1].endswith("which does not exist")
        assert len(refused[1]) < 2 * errors.MESSAGE_CHARACTERS_MAX
        answer = await raw.ask(ReadCall(3, RangeQuery(b"k"), long.decode(), 5.0))
        assert error_name(answer) == "InvalidRequest"
        assert not raw.is_closed


@asynchronous
async def test_many_small_results_of_a_large_total_are_sent_as_the_connection_takes_them() -> None:
    """20 MiB of answers at once do not break a connection that takes 8."""
    async with served() as (_, node, raw):
        await node.put("k", b"x" * 1_000_000)
        for number in range(2, 22):
            raw.send(ReadCall(number, RangeQuery(b"k"), "local", 5.0))
        for number in range(2, 22):
            answer = await raw.answer(number)
            assert isinstance(answer.result, RangeResult)
            assert len(answer.result.kvs[0].value) == 1_000_000
        assert not raw.is_closed


@pytest.mark.parametrize("consistency", ["local", "linearizable"])
@asynchronous
async def test_what_is_read_waits_until_the_client_takes_it(consistency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is asked for at once: a few answers are kept, and made one after the other."""
    monkeypatch.setattr(server, "READS_MAX", 8)
    async with served() as (_, node, raw):
        await node.put("k", b"x" * 1_000_000)
        (client,) = node._clients._clients
        waiting: list[int] = []
        reading: list[int] = []
        send = client._send

        def sent(frame: bytes) -> None:
            send(frame)
            waiting.append(client._waiting_bytes)
            reading.append(client._reading)

        client._send = sent  # type: ignore[method-assign]
        for number in range(2, 42):
            raw.send(ReadCall(number, RangeQuery(b"k"), consistency, 20.0))
        raw.send(CancelCall(40))
        for number in range(2, 40):
            assert (await raw.answer(number)).error is None
        assert max(waiting) < 2_100_000
        assert max(reading) <= (8 if consistency == "linearizable" else 1)
        await until(lambda: not client._calls)
        assert (client._reading, len(client._to_read), len(client._to_answer)) == (0, 0, 0)


@asynchronous
async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for one connection is bounded."""
    monkeypatch.setattr(server, "REPLIES_WAITING_BYTES_MAX", 3_000_000)
    async with served() as (_, node, raw):
        await node.put("k", b"x" * 1_000_000)
        session = await raw.session()
        for number in range(2, 22):
            swap = Envelope(session, number, 1, PutKey(b"k", b"x" * 1_000_000, prev_kv=True))
            raw.send(WriteCall(number, codec.encode_logged(swap), 5.0))
        await raw.wait(lambda: raw.is_closed)
        await until(lambda: len(node._clients) == 0)


def pins_of(node: Node) -> int:
    """Return how many hold compaction up."""
    return node._running().replica.store._history.pins


def snapshot_call(call_id: int, snapshot: int = 7, number: int = 0) -> SnapshotCall:
    """Ask for a part."""
    return SnapshotCall(call_id, snapshot, number, "linearizable", 5.0)


async def part(client: RawClient, call: SnapshotCall) -> SnapshotPart | str:
    """Ask for a part and wait for it, or for the name of the error."""
    client.send(call)

    def found() -> list[SnapshotPart | Answer]:
        return [each for each in client.replies if isinstance(each, SnapshotPart | Answer) and each.id == call.id]

    reply = (await client.wait(found))[0]
    return error_name(reply) if isinstance(reply, Answer) else reply


@asynchronous
async def test_parts_of_a_snapshot_are_given_in_order_and_one_snapshot_at_a_time() -> None:
    """A number that is not the next, another snapshot, one that nobody began: refused."""
    async with served() as (_, node, client):
        for number in range(200):
            await node.put(f"k{number}", b"v" * 16384)
        first = await part(client, snapshot_call(1))
        assert isinstance(first, SnapshotPart)
        assert (first.revision, first.sha256, pins_of(node)) == (201, b"", 1)
        assert await part(client, snapshot_call(2, number=2)) == "Unavailable"
        assert await part(client, snapshot_call(3, number=0)) == "Unavailable"
        assert await part(client, snapshot_call(4, snapshot=8)) == "Overloaded"
        assert await part(client, snapshot_call(5, snapshot=8, number=1)) == "Unavailable"
        await node.put("later", "v")
        number, last = 1, first
        while not last.sha256:
            following = await part(client, snapshot_call(10 + number, number=number))
            assert isinstance(following, SnapshotPart)
            last, number = following, number + 1
        assert (last.revision, last.meta, pins_of(node)) == (201, first.meta, 0)
        assert error_name(await client.ask(SnapshotCall(6, 6, 0, "eventual", 5.0))) == "InvalidRequest"


@asynchronous
@pytest.mark.parametrize("how", ["cancel", "close", "idle"])
async def test_a_snapshot_that_nobody_wants_holds_nothing_up(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction waits for a snapshot; so it ends with its connection, by a cancel, or by silence."""
    if how == "idle":
        monkeypatch.setattr(server, "SNAPSHOT_IDLE_SECONDS", 0.05)
    async with served() as (_, node, client):
        for number in range(100):
            await node.put(f"k{number}", b"v" * 16384)
        await part(client, snapshot_call(1))
        if how == "cancel":
            client.send(CancelCall(7))
        elif how == "close":
            client.connection.close()
        await until(lambda: pins_of(node) == 0, seconds=5.0)
        if how != "close":
            assert await part(client, snapshot_call(2, number=1)) == "Unavailable"


@asynchronous
async def test_a_closing_member_drops_its_clients() -> None:
    """Writes under way are not answered with a failure of the member: the client is to look elsewhere."""
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        raw = await raw_client(cluster, leader)
        session = await raw.session()
        for follower in cluster.followers:
            cluster.network.cut(leader.address, follower.address)
        raw.send(WriteCall(2, put(session, 1, b"k"), 20.0))
        raw.send(WatchCall(3, b"k", b"", 0, False))
        await raw.wait(lambda: raw.updates(3))
        await cluster.kill(leader)
        await raw.wait(lambda: raw.is_closed)
        assert [reply for reply in raw.replies if isinstance(reply, Answer) and reply.id in {2, 3}] == []


@asynchronous
async def test_a_bug_in_a_call_is_no_bug_of_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is none of ours is logged and answered; the connection lives."""
    async with served() as (_, node, raw):

        async def broken(*, timeout: float | None = None) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(node, "status", broken)
        assert error_name(await raw.ask(StatusCall(2))) == "MaybeApplied"
        assert isinstance((await raw.ask(ReadCall(3, RangeQuery(b"a"), "local", 5.0))).result, RangeResult)
        with pytest.raises(errors.PyraftkvError):
            raise errors.from_wire(*(await raw.answer(2)).error)  # type: ignore[misc]
