"""Addresses: "host:port" and "[v6]:port", and whether one is loopback."""

from __future__ import annotations

import ipaddress

from pyraftkv.errors import ConfigurationError

PORT_MAX = 65535


def parse_address(address: str) -> tuple[str, int]:
    """Split an address into host and port; port 0 asks for an ephemeral one.

    >>> parse_address("db-1.example:7400")
    ('db-1.example', 7400)
    >>> parse_address("[::1]:0")
    ('::1', 0)

    Raises:
        ConfigurationError: It is neither ``host:port`` nor ``[v6 address]:port``.
    """
    if not isinstance(address, str):
        raise ConfigurationError(f"an address is text, 'host:port', not {address!r}")
    if "://" in address:
        raise ConfigurationError(f"{address!r} is not an address: 'host:port' has no 'http://' or the like before it")
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    is_number = port.isascii() and port.isdecimal() and len(port) <= len(str(PORT_MAX))
    if not colon or not host or not is_number or int(port) > PORT_MAX:
        raise ConfigurationError(f"{address!r} is not an address: expected 'host:port' or '[v6 address]:port'")
    if bracketed is not (":" in host):
        raise ConfigurationError(f"{address!r} is not an address: an IPv6 address stands in brackets, and only that")
    if wrong := next((c for c in host if c.isspace() or not c.isprintable() or c in "/[]@"), None):
        raise ConfigurationError(f"{address!r} is not an address: no host has a {wrong!r} in its name")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigurationError(f"{address!r} is not an address: {error}") from error
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Join a host and a port to an address.

    >>> format_address("::1", 7400)
    '[::1]:7400'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(host: str) -> bool:
    """Whether that host means "every interface": one can listen there, and nobody can dial it.

    >>> is_unspecified("0.0.0.0"), is_unspecified("::"), is_unspecified("db-1")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
