"""TLS: who has the right certificate gets in, everybody else is told why not."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pyraftkv.codec import encode_hello
from pyraftkv.core.messages import Heartbeat
from pyraftkv.errors import ConfigurationError, HandshakeRejected
from pyraftkv.transport import TLS, Limits, TcpDialer, TcpTransport
from pyraftkv.transport.framing import KIND_HELLO, KIND_HELLO_ACK, FrameDecoder, frame_header

from .certificates import Authority
from .members import Member, Stream, close, connected, hello, in_loop, introduce, until

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cluster's authority."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Somebody else's authority."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


async def _member(member_id: int, tls: TLS | None) -> Member:
    transport = TcpTransport(listen=f"{HOST}:0", tls=tls, rng=Random(1))
    return await Member(transport, member_id).start()


async def _reason(member: Member, peer: int) -> str:
    await until(lambda: peer in member.transport.rejections)
    return str(member.transport.rejections[peer].reason)


@in_loop
async def test_members_of_one_authority_talk(authority: Authority) -> None:
    """Both ways, and over TLS 1.3 indeed."""
    one = await _member(1, authority.tls("n1", "pyraftkv://prod/n1", cluster="prod"))
    two = await _member(2, authority.tls("n2", "pyraftkv://*/n2", cluster="prod"))
    introduce(one, two)
    await connected(one, two)
    one.transport.send([Heartbeat(2, 1, 5, 0, 0)])
    await until(lambda: two.received)
    assert two.received == [Heartbeat(2, 1, 5, 0, 0)]
    versions = {wire.ssl_object.version() for wire in one.transport._wires}  # type: ignore[union-attr]
    assert versions == {"TLSv1.3"}
    await close(one, two)


@in_loop
async def test_a_member_of_another_authority_is_unauthorized(authority: Authority, stranger: Authority) -> None:
    """Whichever end dials: one cannot verify the other, the other is cut off, and both say "unauthorized"."""
    one, two = await _member(1, authority.tls("n1")), await _member(2, stranger.tls("n2"))
    introduce(one, two)
    assert await _reason(one, 2) == await _reason(two, 1) == "unauthorized"
    assert one.transport.connected == two.transport.connected == frozenset()
    await close(one, two)


@in_loop
async def test_an_early_end_is_explained(authority: Authority, stranger: Authority) -> None:
    """In TLS 1.3 the client's handshake is over before its certificate is refused: the end comes after."""
    one = await _member(1, authority.tls("n1"))
    wrong = replace(stranger.tls("client"), ca=str(authority.path))
    for tls in (wrong, TLS(ca=str(authority.path))):
        with pytest.raises(HandshakeRejected, match="certificate") as caught:
            await TcpDialer(tls=tls)(one.transport.address, hello())
        assert caught.value.reason == "unauthorized"
    await close(one)


@in_loop
@pytest.mark.parametrize(
    "uris", [("pyraftkv://prod/n3",), ("pyraftkv://test/n2",), ("pyraftkv://prod/n22",), ("pyraftkv://prod/",)]
)
async def test_a_certificate_for_somebody_else_is_refused(authority: Authority, uris: tuple[str, ...]) -> None:
    """Signed by the right authority, for another member or another cluster."""
    one = await _member(1, authority.tls("n1", cluster="prod"))
    two = await _member(2, authority.tls("n2", *uris, cluster="prod"))
    introduce(one, two)
    assert await _reason(one, 2) == await _reason(two, 1) == "unauthorized"
    await close(one, two)


@in_loop
async def test_who_dials_checks_who_answers(authority: Authority) -> None:
    """A server with somebody else's certificate is refused by a client, before it can read a call."""
    one = await _member(1, authority.tls("n1", "pyraftkv://prod/n3"))
    with pytest.raises(HandshakeRejected, match="not who it says") as caught:
        await TcpDialer(tls=authority.tls("client"))(one.transport.address, hello())
    assert caught.value.reason == "unauthorized"
    await close(one)


@in_loop
async def test_one_identity_among_several_is_enough(authority: Authority) -> None:
    """And other URIs do not matter; without a cluster of our own any is accepted."""
    one = await _member(1, authority.tls("n1"))
    two = await _member(2, authority.tls("n2", "https://example/n9", "pyraftkv://a/n3", "pyraftkv://b/n2"))
    introduce(one, two)
    await connected(one, two)
    await close(one, two)


@in_loop
async def test_an_identity_can_be_required(authority: Authority) -> None:
    """Then a certificate without one, such as a client's, does not make a member."""
    one = await _member(1, authority.tls("n1", "pyraftkv://*/n1", require_identity=True))
    two = await _member(2, authority.tls("n2"))
    introduce(one, two)
    assert await _reason(one, 2) == "unauthorized"
    client = Stream(await TcpDialer(tls=authority.tls("client"))(one.transport.address, hello()))
    await close(one, two)
    await until(lambda: client.ends)


@in_loop
async def test_clients_may_be_let_in_without_a_certificate_but_not_members(authority: Authority) -> None:
    """`client_auth=False` is for clients: a HELLO as a member still needs one."""
    one = await _member(1, authority.tls("n1", client_auth=False))
    dialer = TcpDialer(tls=TLS(ca=str(authority.path)))
    client = Stream(await dialer(one.transport.address, hello()))
    await until(lambda: one.clients)
    server = Stream(one.clients[0])
    client.connection.send(b"call")
    await until(lambda: server.frames)
    with pytest.raises(HandshakeRejected, match="must show a certificate") as caught:
        await dialer(one.transport.address, hello(2))
    assert caught.value.reason == "unauthorized"
    await close(one)
    await until(lambda: client.ends)


@in_loop
async def test_the_host_s_name_is_checked(authority: Authority) -> None:
    """A certificate for another host is refused by who dials, unless that was switched off."""
    one = await _member(1, authority.tls("n1", host="10.9.9.9"))
    tls = authority.tls("client")
    with pytest.raises(HandshakeRejected, match="cannot be trusted") as caught:
        await TcpDialer(tls=tls)(one.transport.address, hello())
    assert caught.value.reason == "unauthorized"
    client = Stream(await TcpDialer(tls=replace(tls, check_hostname=False))(one.transport.address, hello()))
    await close(one)
    await until(lambda: client.ends)


@in_loop
async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    """On both ends."""
    one, two = await _member(1, authority.tls("n1")), await _member(2, authority.tls("n2", days=-1))
    introduce(one, two)
    assert await _reason(one, 2) == await _reason(two, 1) == "unauthorized"
    await close(one, two)


@in_loop
async def test_plain_text_on_a_tls_port_goes_nowhere(authority: Authority) -> None:
    """And TLS on a plain port neither; neither end is hurt."""
    secure, plain = await _member(1, authority.tls("n1")), await _member(2, None)
    with pytest.raises(OSError, match="it may want TLS"):
        await TcpDialer()(secure.transport.address, hello())
    with pytest.raises(OSError, match="it may not speak TLS"):
        await TcpDialer(tls=authority.tls("client"))(plain.transport.address, hello())
    client = Stream(await TcpDialer(tls=authority.tls("client"))(secure.transport.address, hello()))
    await close(secure, plain)
    await until(lambda: client.ends)


@in_loop
async def test_older_versions_of_tls_are_refused(authority: Authority) -> None:
    """1.3 only, on both ends."""
    one = await _member(1, authority.tls("n1"))
    context = authority.tls("client").for_client()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((OSError, HandshakeRejected)):
        await TcpDialer(tls=TLS(client_context=context))(one.transport.address, hello())
    await close(one)


@in_loop
async def test_contexts_can_be_brought_along(authority: Authority) -> None:
    """The escape hatch: keys in hardware, other policies."""
    settings = authority.tls("n1")
    tls = TLS(server_context=settings.for_server(), client_context=settings.for_client())
    one = await _member(1, tls)
    client = Stream(await TcpDialer(tls=tls)(one.transport.address, hello()))
    await close(one)
    await until(lambda: client.ends)


@in_loop
async def test_files_are_read_anew_at_every_dial(authority: Authority) -> None:
    """A rotated certificate is used from the next dial on; half-rotated files are an error, not an outage."""
    one = await _member(1, authority.tls("n1"))
    tls = authority.tls("rotated")
    client = Stream(await TcpDialer(tls=tls)(one.transport.address, hello()))
    stale, _ = authority.issue("stale")
    with pytest.raises(ConfigurationError, match=stale):
        await TcpDialer(tls=replace(tls, cert=stale))(one.transport.address, hello())
    authority.issue("rotated")
    again = Stream(await TcpDialer(tls=tls)(one.transport.address, hello()))
    await close(one)
    await until(lambda: client.ends and again.ends)


@in_loop
async def test_a_member_s_certificate_can_be_rotated(authority: Authority) -> None:
    """New connections get the new one, standing ones live on, and files that do not fit change nothing."""
    tls = authority.tls("n1", host="10.9.9.9")
    transport = TcpTransport(listen=f"{HOST}:0", tls=tls)
    one = await Member(transport, 1).start()
    before = Stream(
        await TcpDialer(tls=replace(authority.tls("client"), check_hostname=False))(transport.address, hello())
    )
    dialer = TcpDialer(tls=authority.tls("client"))
    with pytest.raises(HandshakeRejected):
        await dialer(transport.address, hello())
    _, wrong_key = authority.issue("wrong")
    _rename(wrong_key, tls.key)
    with pytest.raises(ConfigurationError):
        transport.reload_tls()
    with pytest.raises(HandshakeRejected, match="cannot be trusted"):
        await dialer(transport.address, hello())
    authority.issue("n1")  # over the same paths, for the right host
    transport.reload_tls()
    after = Stream(await dialer(transport.address, hello()))
    assert (before.ends, after.ends) == ([], [])
    await close(one)
    await until(lambda: before.ends and after.ends)


@in_loop
async def test_a_renewed_certificate_is_taken_up_by_itself(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """A member runs for longer than a certificate; what is half renewed changes nothing, and is told once."""
    tls = authority.tls("n1", days=-1)
    one = await _member(1, tls)
    dialer = TcpDialer(tls=authority.tls("client"))
    with pytest.raises(HandshakeRejected, match="expired"):
        await dialer(one.transport.address, hello())
    cert, key = authority.issue("renewed")
    _rename(cert, tls.cert)
    for _ in range(2):
        with pytest.raises(HandshakeRejected, match="expired"):
            await dialer(one.transport.address, hello())
    assert caplog.text.count("cannot be used") == 1
    _rename(key, tls.key)
    stream = Stream(await dialer(one.transport.address, hello()))
    await close(one)
    await until(lambda: stream.ends)


def _rename(source: str, target: str) -> None:
    Path(source).rename(target)


@in_loop
async def test_a_tls_handshake_must_come_in_time(authority: Authority) -> None:
    """Whoever connects and does not begin one is hung up on."""
    limits = Limits(handshake_seconds_max=0.05)
    one = Member(TcpTransport(listen=f"{HOST}:0", tls=authority.tls("n1"), limits=limits), 1)
    await one.start()
    reader, writer = await asyncio.open_connection(HOST, int(one.transport.address.split(":")[1]))
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await close(one)


@in_loop
async def test_a_session_is_not_resumed(authority: Authority) -> None:
    """A ticket would let a revoked certificate in again."""
    one = await _member(1, authority.tls("n1"))
    context = authority.tls("client").for_client()
    port = int(one.transport.address.split(":")[1])
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=HOST)
    payload = encode_hello(hello())
    writer.write(frame_header(KIND_HELLO, payload) + payload)
    decoder = FrameDecoder(payload_bytes_max=10_000)
    while (frame := decoder.next_frame()) is None:
        decoder.feed(await reader.read(4096))
    assert frame.kind == KIND_HELLO_ACK
    ssl_object = writer.get_extra_info("ssl_object")
    assert not (ssl_object.session and ssl_object.session.has_ticket)
    writer.close()
    await close(one)


def test_settings_that_cannot_work_are_told_at_once(authority: Authority, tmp_path: Path) -> None:
    """Missing files, files that are none, a server without a certificate, a key that does not fit."""
    good = authority.tls("good")
    other_key = authority.issue("other")[1]
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for tls, why in (
        (replace(good, ca=str(tmp_path / "missing.pem")), "authority"),
        (replace(good, ca=str(nonsense)), "authority"),
        (replace(good, ca=""), "authority"),
        (replace(good, cert=str(nonsense)), "certificate .*nonsense.pem"),
        (replace(good, key=other_key), "with the key"),
        (replace(good, key=""), "as none is given"),
        (replace(good, cert="", key=""), "needs a certificate"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            tls.for_server()


@pytest.fixture
def by_the_page(tmp_path: Path) -> Callable[[str], TLS]:
    """Certificates made by the commands of the operations page, on this machine in place of three."""
    if sys.platform == "win32" or shutil.which("openssl") is None:
        pytest.skip("the page's commands are for a POSIX shell with OpenSSL")
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith("OpenSSL 3"):
        pytest.skip(f"the page says OpenSSL 3, and here is {version}")
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    commands = page.partition("## Certificates")[2].partition("```sh\n")[2].partition("```")[0]
    here = re.sub(r"\b[abc]=10\.0\.0\.(\d)", rf"n\1={HOST}", commands)
    subprocess.run(["bash", "-euc", here], cwd=tmp_path, capture_output=True, check=True)
    return lambda name: TLS(ca=f"{tmp_path}/ca.pem", cert=f"{tmp_path}/{name}.pem", key=f"{tmp_path}/{name}.key")


@in_loop
async def test_the_certificates_of_the_operations_page_will_do(by_the_page: Callable[[str], TLS]) -> None:
    """Two members know each other by them, and take a client."""
    one = await _member(1, replace(by_the_page("n1"), require_identity=True))
    two = await _member(2, replace(by_the_page("n2"), require_identity=True))
    introduce(one, two)
    await connected(one, two)
    client = Stream(await TcpDialer(tls=by_the_page("client"))(one.transport.address, hello()))
    await close(one, two)
    await until(lambda: client.ends)


def test_what_the_contexts_insist_on(authority: Authority) -> None:
    """Certificates from both ends, strictly checked, against nothing but the cluster's authority."""
    server, client = authority.tls("n1").for_server(), authority.tls("n1").for_client()
    for context in (server, client):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert [dict(part[0] for part in ca["subject"])["commonName"] for ca in context.get_ca_certs()] == ["ca"]
    assert server.num_tickets == 0
    assert client.check_hostname
