"""Blocks of calls: what a round times. A block is n calls, its result the median in ms per call."""

from __future__ import annotations

import statistics
import time
from typing import Any, Protocol

from .timer import Work

__all__ = ["CACHES", "CpuStopwatch", "Stopwatch"]

# state of the caches before a call: emptied, left as the call before left them, or as the operator
# that made x leaves them
CACHES = ("cold", "hot", "produced")
BLOCK_MS = 2.0


class Stopwatch(Protocol):
    """Times blocks.

    Attributes:
        cache: one of CACHES
    """

    cache: str

    def calls_for(self, work: Work) -> int:
        """Calls that make a block of at least 2 ms, after a warm-up."""

    def block(self, work: Work, calls: int) -> float:
        """Median of `calls` calls, in ms."""


class CpuStopwatch:
    """Wall time of calls on the CPU, caches as the call before left them."""

    cache = "hot"
    _FEWEST, _MOST = 5, 1000

    def calls_for(self, work: Work) -> int:
        """As `Stopwatch`."""
        for _ in range(3):
            work.call(work.setup())
        probe = max(self.block(work, 5), 1e-4)
        return int(min(max(BLOCK_MS / probe, self._FEWEST), self._MOST))

    def block(self, work: Work, calls: int) -> float:
        """As `Stopwatch`."""
        found: list[float] = []
        for _ in range(calls):
            state: Any = work.setup()
            started = time.perf_counter()
            work.call(state)
            found.append(time.perf_counter() - started)
        return 1e3 * statistics.median(found)
