from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.etcd.members import Missing, running


def _members() -> Iterator[int]:
    try:
        with running() as port:
            yield port
    except Missing as missing:
        if os.environ.get("PYRAFTKV_CI") == "1":
            raise
        pytest.skip(f"{missing}: nothing to compare with")


@pytest.fixture(scope="module")
def etcd() -> Iterator[int]:
    """Three members of etcd: the port of their leader. Without an etcd the test is skipped; in CI it fails."""
    yield from _members()


@pytest.fixture
def fresh_etcd() -> Iterator[int]:
    """The same, for one test alone: nothing was ever written there."""
    yield from _members()
