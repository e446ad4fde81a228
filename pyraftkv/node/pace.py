"""How fast bytes may leave: a token bucket that goes by the time it is told.

Tokens are bytes. They come at a steady rate, as many as the bucket holds and no more; what leaves takes its size out.
The bucket may go into debt: what is larger than the bucket could never leave otherwise. Whoever takes from a bucket in
debt is told how long to wait until that is paid off. So those who share a bucket leave in the order in which they
took, and a burst is never larger than the bucket and one item.
"""

from __future__ import annotations

import math


class TokenBucket:
    """Spends at most so many bytes per second, over any time longer than it takes to fill.

    Args:
        bytes_per_second: How fast tokens come; 0 for no limit at all.
        burst_bytes: How many it holds; it begins full.
    """

    def __init__(self, *, bytes_per_second: int, burst_bytes: int) -> None:
        assert bytes_per_second >= 0, bytes_per_second
        self._bytes_per_second = bytes_per_second
        self._burst_bytes = burst_bytes
        self._tokens = float(burst_bytes)
        self._filled_at = -math.inf

    def take(self, size_bytes: int, *, now: float) -> float:
        """Take ``size_bytes`` out, at the time ``now``; return how many seconds to wait before they may leave."""
        rate = self._bytes_per_second
        if not rate:
            return 0.0
        passed = max(0.0, now - self._filled_at)
        self._filled_at = max(self._filled_at, now)
        self._tokens = min(self._tokens + passed * rate, self._burst_bytes)
        wait = max(0.0, -self._tokens / rate)
        self._tokens -= size_bytes
        return wait
