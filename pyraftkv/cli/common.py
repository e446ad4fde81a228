"""What every verb shares: exit statuses, defaults, and how to reach the members."""

from __future__ import annotations

import argparse

import pyraftkv
from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.transport import TLS

DONE = 0
NOT_APPLIED = 1
USAGE = 2
UNKNOWN = 3
STORAGE = 70
INTERRUPTED = 130

DEFAULT_ADDRESS = "127.0.0.1:2479"
"""Where `serve` listens and clients look: etcd's 2379, a hundred on, so that both can run on one machine."""

ENDPOINTS_MAX = 64


def listed(endpoints: str) -> list[str]:
    """Split ``--endpoints``. Raises `ConfigurationError`."""
    addresses = list(dict.fromkeys(address.strip() for address in endpoints.split(",") if address.strip()))
    if not 1 <= len(addresses) <= ENDPOINTS_MAX:
        raise errors.ConfigurationError(f"--endpoints names {len(addresses)} addresses, not 1 to {ENDPOINTS_MAX}")
    return addresses


def client(args: argparse.Namespace, address: str | None = None) -> Client:
    """Return a client of the endpoints given, or of exactly one of them."""
    addresses = address or ",".join(listed(args.endpoints))
    return pyraftkv.connect(
        addresses, tls=tls_of(args), timeout=args.timeout, name="pyraftkv-cli", discover=address is None
    )


def tls_of(args: argparse.Namespace) -> TLS | None:
    """Return the certificates given, or None. Raises `ConfigurationError`."""
    if not (args.tls_ca or args.tls_cert or args.tls_key):
        return None
    tls = TLS(ca=args.tls_ca or "", cert=args.tls_cert or "", key=args.tls_key or "")
    tls.for_client()  # files that cannot be used should be told now, and not as nobody's answer
    return tls


def one_line(error: BaseException) -> str:
    """Return an error as one line that names its class."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def exit_status(error: errors.PyraftkvError) -> int:
    """Return what a script is told about an error."""
    if isinstance(error, errors.ConfigurationError | errors.InvalidRequest):
        return USAGE
    if isinstance(error, errors.MaybeApplied):
        return UNKNOWN
    return STORAGE if isinstance(error, errors.StorageError) else NOT_APPLIED
