"""The simulator: an application and its store, under one seed, in virtual time, under every fault."""

from __future__ import annotations

__all__: list[str] = []
