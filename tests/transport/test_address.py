"""Addresses: what is one, and who can reach it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv.errors import ConfigurationError
from pyraftkv.transport.address import format_address, is_loopback, is_unspecified, parse_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:7400", ("localhost", 7400)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("db-1.example.com:80", ("db-1.example.com", 80)),
    ],
)
def test_addresses_are_split_and_joined(address: str, expected: tuple[str, int]) -> None:
    """Names, IPv4, IPv6 in brackets; port 0 is a port."""
    assert parse_address(address) == expected
    assert format_address(*expected) == address


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "localhost",
        ":80",
        "[]:80",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:65536",
        "localhost:" + "9" * 5000,
        "localhost:8\u0660",
        "localhost:\u00b2",
        "::1:80",
        "[localhost]:80",
        "[::1]80",
        "a b:80",
        "a\0b:80",
        "http://localhost:80",
        "user@host:80",
        "a..b:80",
        "x" * 64 + ".example:80",
    ],
)
def test_nonsense_is_refused_by_name(nonsense: str) -> None:
    """As a configuration error, before anything is dialled or bound."""
    with pytest.raises(ConfigurationError):
        parse_address(nonsense)


@pytest.mark.parametrize(
    ("address", "why"),
    [("http://h:80", "no 'http://'"), ("::1:80", "in brackets"), ("user@host:80", "no host has a '@'")],
)
def test_what_is_wrong_with_an_address_is_said(address: str, why: str) -> None:
    """Those who are used to etcd's URLs, or to IPv6 without brackets, learn what to change."""
    with pytest.raises(ConfigurationError, match=why):
        parse_address(address)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    """No other exception comes out."""
    try:
        host, port = parse_address(text)
    except ConfigurationError:
        return
    assert parse_address(format_address(host, port)) == (host, port)


def test_loopback_is_what_only_this_machine_reaches() -> None:
    """A name that is not "localhost" may resolve to anything, so it is not trusted."""
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "")] == [False] * 5


def test_unspecified_is_every_interface() -> None:
    """One can listen there, and nobody can dial it."""
    assert [is_unspecified(host) for host in ("0.0.0.0", "::", "127.0.0.1", "db-1")] == [True, True, False, False]
