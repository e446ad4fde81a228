"""TLS between members and from clients: 1.3 only, both ends known by certificates of the cluster's own authority.

A certificate may carry an identity, as a URI among its subject's alternative names:
``pyraftkv://<cluster>/<member>``, where the cluster may be ``*``. When it does, the member's HELLO must come with that
name, and the cluster must be ours. (The web's host names cannot do this: they say where a server runs, not who it is,
and a server does not check its clients' names at all.) `require_identity` refuses peers whose certificate has none:
set it when the same authority also signs certificates of clients, or any of them could pose as a member.

In TLS 1.3 a client's handshake is over before the server has looked at its certificate. A refusal shows as an early
end of the stream, so a connection counts only after the answer to its HELLO, and an end before it is reported
as "unauthorized".
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final, cast

from pyraftkv._record import record
from pyraftkv.errors import ConfigurationError, HandshakeRejected
from pyraftkv.protocol import Hello

_SCHEME: Final = "pyraftkv://"


@record
class TLS:
    """Certificates and rules for a transport or a dialer.

    Files are PEM. They are read at every dial, at the start of a transport, before a handshake when they have changed
    since, and on its `reload_tls`: a certificate is renewed by putting another one in its place.
    """

    ca: str = ""
    """Path of the authority that signs members and clients; the system's authorities are never used."""
    cert: str = ""
    """Path of our certificate, with any intermediates."""
    key: str = ""
    """Path of its private key."""
    cluster: str = ""
    """The cluster's name in certificates' identities; empty accepts any."""
    client_auth: bool = True
    """Whether clients (not members: those always) must show a certificate."""
    require_identity: bool = False
    """Whether members must have an identity in their certificates."""
    check_hostname: bool = True
    """Whether a dialled server's certificate must name the host that was dialled."""
    server_context: ssl.SSLContext | None = None
    """Replaces the context built for accepting: for keys in hardware, other policies."""
    client_context: ssl.SSLContext | None = None
    """Replaces the context built for dialling."""

    def for_server(self) -> ssl.SSLContext:
        """Return the context to accept with. Raises `ConfigurationError`."""
        if self.server_context is not None:
            return self.server_context
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        if not self.cert:
            raise ConfigurationError("a member needs a certificate and a key to listen with TLS")
        # Without client_auth a certificate stays optional here, and the HELLO of a member without one is refused.
        context.verify_mode = ssl.CERT_REQUIRED if self.client_auth else ssl.CERT_OPTIONAL
        context.num_tickets = 0  # a resumed session would outlive its certificate
        return context

    def for_client(self) -> ssl.SSLContext:
        """Return the context to dial with. Raises `ConfigurationError`."""
        if self.client_context is not None:
            return self.client_context
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname
        return context

    def stamp(self) -> list[tuple[int, int, int]]:
        """Return what tells the files that `for_server` reads from those of another time; nothing if it reads none."""
        if self.server_context is not None:
            return []
        found: list[tuple[int, int, int]] = []
        for name in filter(None, (self.ca, self.cert, self.key)):
            try:
                status = Path(name).stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except (OSError, ValueError):
                found.append((0, 0, 0))
        return found

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_verify_locations(cafile=self.ca)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigurationError(f"the authority's file {self.ca!r} cannot be used: {error}") from error
        try:
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ValueError) as error:
            key = repr(self.key) if self.key else "that is in the same file, as none is given"
            raise ConfigurationError(
                f"the certificate {self.cert!r} with the key {key} cannot be used: {error}"
            ) from error
        return context

    def check_identity(self, ssl_object: Any, hello: Hello) -> None:
        """Compare a member's HELLO with its certificate.

        Args:
            ssl_object: The connection's, as asyncio's `get_extra_info("ssl_object")` gives it.
            hello: The member's.

        Raises:
            HandshakeRejected: With reason "unauthorized".
        """
        certificate = cast("dict[str, Any]", ssl_object.getpeercert() or {})
        if not certificate:
            raise _unauthorized(hello, "a member must show a certificate")
        names = cast("list[tuple[str, str]]", certificate.get("subjectAltName", ()))
        identities = [name for kind, name in names if kind == "URI" and name.startswith(_SCHEME)]
        if not identities and self.require_identity:
            raise _unauthorized(hello, "its certificate has no identity")
        if identities and not any(self._names(identity, hello.name) for identity in identities):
            raise _unauthorized(hello, f"its certificate is for {', '.join(identities)}")

    def _names(self, identity: str, member: str) -> bool:
        cluster, _, name = identity.removeprefix(_SCHEME).partition("/")
        return name == member and (cluster == "*" or not self.cluster or cluster == self.cluster)


def _unauthorized(hello: Hello, why: str) -> HandshakeRejected:
    return HandshakeRejected(f"{hello.name} is not who it says: {why}", reason="unauthorized", peer=hello.name)
