"""What is timed, and how long it took; `stopwatch` times it.

Neither torch nor numpy is imported, so that rows and reports are tested anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Samples", "Work", "percentile"]


@dataclass(frozen=True)
class Work:
    """A call to be timed.

    Attributes:
        call: what is timed; gets what `setup` returned
        setup: run untimed before each call; a forward pass in front of a backward pass
        moved_bytes: bytes that the call is expected to move; only the fake stopwatch reads it
        produce: writes the call's main operand anew, as the operator before it does; run untimed
            between `setup` and `call` where caches are to be left so
    """

    call: Callable[[Any], object]
    setup: Callable[[], Any] = lambda: None
    moved_bytes: int = 0
    produce: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Samples:
    """Durations of one call, in ms.

    Attributes:
        device_ms: time on the device, one entry per round, caches in the state `cache`
        wall_ms: host time of a call when calls follow one another, until the device is done
        cache: one of `stopwatch.CACHES`, or "fake"
    """

    device_ms: tuple[float, ...]
    wall_ms: float
    cache: str

    @property
    def median(self) -> float:
        """Median of the device time, in ms."""
        return statistics.median(self.device_ms)

    @property
    def low(self) -> float:
        """20th percentile of the device time, in ms."""
        return percentile(self.device_ms, 20)

    @property
    def high(self) -> float:
        """80th percentile of the device time, in ms."""
        return percentile(self.device_ms, 80)


def percentile(values: Sequence[float], share: float) -> float:
    """The `share`-th percentile of `values`, interpolated linearly between neighbours.

    Args:
        values: at least one number, in any order
        share: 0 to 100

    Raises:
        ValueError: no values, or a share outside 0 to 100
    """
    if not values or not 0 <= share <= 100:
        raise ValueError(f"expected values and a share of 0 to 100, got {len(values)}, {share}")
    ordered = sorted(values)
    position = (len(ordered) - 1) * share / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
