from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.etcd.members import Missing, running


@pytest.fixture(scope="module")
def etcd() -> Iterator[int]:
    """Three members of etcd: the port of their leader. Without an etcd the test is skipped; in CI it fails."""
    try:
        with running() as port:
            yield port
    except Missing as missing:
        if os.environ.get("PYRAFTKV_CI") == "1":
            raise
        pytest.skip(f"{missing}: nothing to compare with")
