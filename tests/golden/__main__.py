"""``python -m tests.golden``: make the golden directories of this version anew."""

from __future__ import annotations

import asyncio

from pyraftkv import __version__
from tests.golden.making import HERE, make

asyncio.run(make(HERE / __version__))
