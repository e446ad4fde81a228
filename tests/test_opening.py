"""The short forms: `open` on a data directory, `connect` over TCP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import errors
from pyraftkv.opening import parse_members
from tests.node.support import FAST, asynchronous, refused, until


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_.getsockname()[1] for open_ in sockets]
    for open_ in sockets:
        open_.close()
    return ports


@asynchronous
async def test_a_path_alone_is_a_durable_cluster_of_one(tmp_path: Path) -> None:
    """It needs no address, leads at once, and has everything again after a restart."""
    async with pyraftkv.open(tmp_path / "data", config=FAST) as node:
        for number in range(10):
            result = await node.put(f"k{number}", "v")
        await node.take_snapshot()
        await node.put("after", "v")
    async with pyraftkv.open(tmp_path / "data", config=FAST) as node:
        kept = await node.get("k9", revision=result.revision)
        assert kept is not None
        assert (await node.range()).count == 11
        status = await node.status()
        assert (status.name, status.storage, status.role) == ("default", "files", "leader")
        again = await node.put("k9", "w")
        assert again.revision == result.revision + 2
    await refused(pyraftkv.open(tmp_path / "data", name="other", config=FAST).start(), errors.ForeignDataDir)


@asynchronous
async def test_a_directory_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    """A second node on it is refused; the first goes on."""
    async with pyraftkv.open(tmp_path, config=FAST) as node:
        await refused(pyraftkv.open(tmp_path, config=FAST).start(), errors.DataDirLocked)
        await node.put("k", "v")


@asynchronous
async def test_three_members_over_tcp_with_a_client(tmp_path: Path) -> None:
    """The real thing on loopback: a leader is killed, the client goes on, the member comes back from its files."""
    ports = free_ports(3)
    members = ",".join(f"n{number}=127.0.0.1:{port}" for number, port in enumerate(ports))

    def make(number: int) -> pyraftkv.Node:
        return pyraftkv.open(
            tmp_path / str(number), name=f"n{number}", listen=f"127.0.0.1:{ports[number]}", members=members, config=FAST
        )

    nodes = {number: make(number) for number in range(3)}
    await asyncio.gather(*[node.start() for node in nodes.values()])
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    async with pyraftkv.connect(addresses, timeout=20) as kv:
        await kv.put("n", "0")
        async with kv.watch("n", start_revision=1) as watch:
            seen = []
            (victim,) = await until(lambda: [number for number, node in nodes.items() if node.is_leader])
            await nodes[victim].kill()
            for value in range(1, 6):
                await kv.put("n", str(value))
            async for event in watch:
                seen.append(event.kv.text)
                if len(seen) == 6:
                    break
            assert seen == ["0", "1", "2", "3", "4", "5"]
        nodes[victim] = make(victim)
        await nodes[victim].start()
        kept = await nodes[victim].get("n", timeout=20)
        assert kept is not None
        assert (kept.text, kept.version) == ("5", 6)
        peers = (await kv.status()).peers
        assert [peer.address for peer in peers] == [f"127.0.0.1:{port}" for port in ports]
    await asyncio.gather(*[node.close() for node in nodes.values()])


@asynchronous
async def test_a_member_of_several_that_is_opened_without_an_address_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It can elect nobody and hears nothing of it: the one line in its log is all that tells why."""
    members = {name: f"127.0.0.1:{port}" for name, port in zip("ab", free_ports(2), strict=True)}
    nodes = [
        pyraftkv.open(tmp_path / name, name=name, listen=address, members=members, config=FAST)
        for name, address in members.items()
    ]
    await asyncio.gather(*(node.start() for node in nodes))
    await asyncio.gather(*(node.close() for node in nodes))
    assert "listen=" not in caplog.text
    async with pyraftkv.open(tmp_path / "a", name="a", config=FAST):
        assert f"has other members, at {members['b']}" in caplog.text


@asynchronous
async def test_a_connection_that_nobody_answers() -> None:
    """Calls wait as long as their deadline, then say that nobody could serve them."""
    (port,) = free_ports(1)
    async with pyraftkv.connect(f"127.0.0.1:{port}", timeout=0.2) as kv:
        await refused(kv.get("k"), errors.ReadTimeout)
        await refused(kv.put("k", "v"), errors.NoLeader)


def test_arguments_that_cannot_work(tmp_path: Path) -> None:
    """Members without an address of our own, malformed or double members, nobody to connect to."""
    with pytest.raises(errors.ConfigurationError, match="listen="):
        pyraftkv.open(tmp_path, name="a", members={"a": "h:1", "b": "h:2"})
    for text in ("a", "a=", "=h:1", "a=h:1,a=h:2", ""):
        with pytest.raises(errors.ConfigurationError):
            parse_members(text)
    with pytest.raises(errors.ConfigurationError):
        pyraftkv.connect(" , ")
    assert parse_members("a=h:1, b=[::1]:2") == {"a": "h:1", "b": "[::1]:2"}


@pytest.mark.parametrize(
    "members",
    ["a=h:1,b=h:1", "a=nonsense", "a=h:99999", "a b=h:1", {"": "h:1"}, {"a": "h:1", "b": "h:1"}, {"a": "h"}],
)
def test_members_that_cannot_work_are_refused_at_once(members: Any, tmp_path: Path) -> None:
    """Two members at one address would wait for each other for ever."""
    with pytest.raises(errors.ConfigurationError):
        pyraftkv.open(tmp_path / "d", name="a", listen="127.0.0.1:0", members=members)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", ["", "a=b", "a b", "a,b", "a\x1b[31m", "a\x00", "a\x9b"])
def test_a_name_must_fit_into_a_list_of_members(name: str, tmp_path: Path) -> None:
    """Or nobody could ever name it."""
    with pytest.raises(errors.ConfigurationError):
        pyraftkv.open(tmp_path / "d", name=name)


@pytest.mark.parametrize("addresses", ["nonsense", "localhost", "127.0.0.1:99999", "http://127.0.0.1:2379", "", []])
def test_addresses_that_nobody_can_have_are_refused_at_once(addresses: Any) -> None:
    """Not after the deadline of the first call."""
    with pytest.raises(errors.ConfigurationError):
        pyraftkv.connect(addresses)


@pytest.mark.parametrize("addresses", [None, 5, [5], b"127.0.0.1:1"])
def test_addresses_are_text(addresses: Any) -> None:
    """None is what a variable of the environment is that nobody has set."""
    with pytest.raises(errors.ConfigurationError, match="address"):
        pyraftkv.connect(addresses)


@pytest.mark.parametrize("option", [{"timeout": "5"}, {"timeout": None}, {"tls": "cert.pem"}, {"name": 5}])
def test_a_client_is_not_left_to_find_out(option: dict[str, Any]) -> None:
    """It would be connected to nobody, for ever, and say nothing of the reason."""
    with pytest.raises(errors.ConfigurationError, match=next(iter(option))):
        pyraftkv.connect("127.0.0.1:1", **option)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"name": 5}, "name"),
        ({"listen": 2479}, "address"),
        ({"members": ["a=h:1"]}, "members="),
        ({"members": {"a": 5}}, "address"),
        ({"join": 5}, "addresses"),
        ({"tls": True}, "tls="),
        ({"config": {"heartbeat_seconds": 1}}, "config="),
        ({"machines": [dict]}, "machines="),
        ({"machines": {"a": 5}}, "machines="),
        ({"machines": {"a": dict}}, "'version'"),
    ],
)
def test_options_of_the_wrong_type_are_told_by_their_names(option: dict[str, Any], named: str, tmp_path: Path) -> None:
    """When the node is made, not when it has started."""
    with pytest.raises(errors.ConfigurationError, match=named):
        pyraftkv.open(tmp_path / "d", **({"listen": "127.0.0.1:0"} | option))
    assert not (tmp_path / "d").exists()


def test_addresses_may_be_a_list() -> None:
    """What a program has is seldom a string with commas."""
    assert repr(pyraftkv.connect(["127.0.0.1:1", "127.0.0.1:2"])) == "<Client connected to nobody>"


def test_who_joins_says_where_and_begins_nothing(tmp_path: Path) -> None:
    """Not without an address of its own, not beside a list of first members, not at an address that nobody can have."""
    with pytest.raises(errors.ConfigurationError, match="listen="):
        pyraftkv.open(tmp_path / "d", join="127.0.0.1:1")
    with pytest.raises(errors.ConfigurationError, match="learner=True needs join="):
        pyraftkv.open(tmp_path / "d", learner=True)
    with pytest.raises(errors.ConfigurationError, match="one of the two"):
        pyraftkv.open(tmp_path / "d", listen="127.0.0.1:0", join="127.0.0.1:1", members="default=127.0.0.1:2")
    with pytest.raises(errors.ConfigurationError):
        pyraftkv.open(tmp_path / "d", listen="127.0.0.1:0", join=["127.0.0.1:1", "nowhere"])


@pytest.mark.parametrize("join", ["", " , ", [], "127.0.0.1:1", ["127.0.0.1:1", "127.0.0.1:2"]])
def test_who_joins_nobody_is_not_the_first_of_a_new_cluster(join: Any, tmp_path: Path) -> None:
    """1. A script passes a list that is empty by mistake. 2. A cluster of one begins beside the one that runs."""
    with pytest.raises(errors.ConfigurationError, match="no other member"):
        pyraftkv.open(tmp_path / "d", listen="127.0.0.1:1", advertise="127.0.0.1:2", join=join)
    assert not (tmp_path / "d").exists()
