"""How fast a core is just now. A shared machine's core has slow stretches of milliseconds, in which
everything takes half as long again; a loop of fixed length beside each block tells them."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Pace"]

# turns of the loop: some 30 us, little beside a block
TURNS = 2000
# a stretch is slow where the loop takes so many times what it takes in a good fifth of looks
SLOW = 1.15
GOOD_SHARE = 5
REMEMBERED = 500
# seconds for which a block is repeated; a core that is slow for longer is taken as it is
PATIENCE = 0.05


class Pace:
    """Repeats what was timed in a slow stretch of the core.

    Whether a block counts is decided by the loop alone, never by the block's own time, so that a
    side which became slower is not timed until it looks fast.

    Args:
        clock: in seconds

    Attributes:
        looks: times of the loop so far, the latest REMEMBERED
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.looks: deque[float] = deque(maxlen=REMEMBERED)

    def steadily(self, timed: Callable[[int], list[float]], calls: int) -> float:
        """Median of a block, in the unit of `timed`.

        Args:
            timed: times so many calls
            calls: of a block
        """
        end = time.monotonic() + PATIENCE
        while True:
            looks, found = [self._look()], []
            # a look in the middle too: a stretch may be shorter than a block
            for share in (calls - calls // 2, calls // 2):
                found += timed(share)
                looks.append(self._look())
            self.looks.extend(looks)
            steady = statistics.median(looks) <= SLOW * self._good()
            if steady or time.monotonic() > end:
                return statistics.median(found)

    def _look(self) -> float:
        started = self._clock()
        for _ in range(TURNS):
            pass
        return self._clock() - started

    def _good(self) -> float:
        return sorted(self.looks)[len(self.looks) // GOOD_SHARE]
