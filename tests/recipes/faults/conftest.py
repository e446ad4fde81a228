"""How long the tests of this folder run."""

from __future__ import annotations

import pytest

from tests.recipes.faults.support import LONG, SHORT, Length


@pytest.fixture
def length(soak: bool) -> Length:
    """Of each scenario."""
    return LONG if soak else SHORT
