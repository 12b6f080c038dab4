"""How long a call takes: an interface, the CUDA-event timer with cold caches, a seeded fake.

The statistics here import neither torch nor numpy, so that rows and reports are tested anywhere.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["CudaTimer", "FakeTimer", "Samples", "Timer", "Work", "percentile"]


@dataclass(frozen=True)
class Work:
    """A call to be timed.

    Attributes:
        call: what is timed; gets what `setup` returned
        setup: run untimed before each call; a forward pass in front of a backward pass
        moved_bytes: bytes that the call is expected to move; only the fake timer reads it
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
        device_ms: time on the device, one entry per sample, caches in the state `cache`
        wall_ms: host time of a call when calls follow one another, until the device is done
        cache: "cold" or "fake"
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


class Timer(Protocol):
    """What measures a call: warm-up, then samples."""

    cache: str

    def measure(self, work: Work) -> Samples:
        """Durations of `work.call`."""


class CudaTimer:
    """Device time by CUDA events, caches cold before every sample.

    Before each sample a buffer of max(256 MB, 4 x L2) is read, which leaves clean lines behind: a
    written buffer would be evicted during the sample and charge its write-back to the call. Then
    the device sleeps longer than the host needs to issue the call, so that a slow launch does not
    count as device time. All samples are enqueued before the first is read.

    Args:
        budget_ms: time to spend on the samples of one call
    """

    cache = "cold"

    _WARM_UP = 3
    _WALL_CALLS = 10
    _FEWEST, _MOST = 20, 100
    _SMALLEST_FLUSH = 256 * 1024 * 1024

    def __init__(self, budget_ms: float = 150.0) -> None:
        import torch

        # untyped in torch
        self._cuda: Any = torch.cuda
        self._budget_ms = budget_ms
        l2_bytes: int = torch.cuda.get_device_properties().L2_cache_size
        size = max(self._SMALLEST_FLUSH, 4 * l2_bytes)
        self._flush_buffer = torch.zeros(size // 4, dtype=torch.float32, device="cuda")
        self._cycles_per_ms = self._calibrate_sleep()

    def measure(self, work: Work) -> Samples:
        """Durations of `work.call` after a warm-up, on the current stream."""
        for _ in range(self._WARM_UP):
            work.call(work.setup())
        self._cuda.synchronize()
        wall_ms, issue_ms = self._wall(work)
        head_start = int(self._cycles_per_ms * (0.02 + 2 * issue_ms))
        probe = statistics.median(self._device(work, 3, head_start))
        per_sample = max(probe + wall_ms + 2 * issue_ms, 0.2)
        count = int(min(max(self._budget_ms / per_sample, self._FEWEST), self._MOST))
        return Samples(tuple(self._device(work, count, head_start)), wall_ms, self.cache)

    def _wall(self, work: Work) -> tuple[float, float]:
        """Host ms per call, device work awaited, and ms to issue a call."""
        states = [work.setup() for _ in range(self._WALL_CALLS)]
        self._cuda.synchronize()
        started = time.perf_counter()
        for state in states:
            work.call(state)
        issued = time.perf_counter()
        self._cuda.synchronize()
        ended = time.perf_counter()
        scale = 1e3 / self._WALL_CALLS
        return scale * (ended - started), scale * (issued - started)

    def _device(self, work: Work, count: int, head_start: int) -> list[float]:
        events = []
        for _ in range(count):
            state = work.setup()
            self._flush_buffer.sum()
            self._cuda._sleep(head_start)
            start = self._cuda.Event(enable_timing=True)
            end = self._cuda.Event(enable_timing=True)
            start.record()
            work.call(state)
            end.record()
            events.append((start, end))
        self._cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def _calibrate_sleep(self) -> float:
        """Cycles of the device's sleep per ms."""
        cycles = 2_000_000
        start = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        self._cuda._sleep(cycles)
        start.record()
        self._cuda._sleep(cycles)
        end.record()
        self._cuda.synchronize()
        elapsed: float = start.elapsed_time(end)
        return cycles / max(elapsed, 1e-3)


class FakeTimer:
    """Durations from a model with seeded noise: what the tests of everything but timing run on.

    A call takes `launch_ms` plus its bytes over the bandwidth, times log-normal noise. The call
    itself is not run.

    Args:
        seed: of the noise
        bandwidth_gb_s: bytes that the imaginary device moves, in GB/s (1e9)
        launch_ms: fixed cost per call
        noise: sd of the log of a duration
        count: samples per call
    """

    cache = "fake"

    def __init__(
        self,
        seed: int,
        *,
        bandwidth_gb_s: float = 4000.0,
        launch_ms: float = 0.004,
        noise: float = 0.01,
        count: int = 20,
    ) -> None:
        self._random = random.Random(seed)
        self._bandwidth_gb_s = bandwidth_gb_s
        self._launch_ms = launch_ms
        self._noise = noise
        self._count = count

    def measure(self, work: Work) -> Samples:
        """Durations from the model for `work.moved_bytes`."""
        exact = self._launch_ms + work.moved_bytes / self._bandwidth_gb_s / 1e6
        device = (exact * self._random.lognormvariate(0.0, self._noise) for _ in range(self._count))
        return Samples(tuple(device), exact + 0.01, self.cache)
