"""Blocks of calls: what a round times. A block is n calls, its result the median in ms per call.

Neither torch nor numpy is imported before a GPU is timed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .pace import Pace
from .timer import Work

__all__ = [
    "CACHES",
    "CpuStopwatch",
    "CudaStopwatch",
    "FakeStopwatch",
    "Stopwatch",
    "stopwatch_of",
]

# state of the caches before a call: emptied, left as the call before left them, or emptied and
# then filled by whoever makes the call's main operand
CACHES = ("cold", "hot", "produced")
BLOCK_MS = 2.0
_WARM_UP, _WALL_CALLS = 3, 10


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

    def wall(self, work: Work) -> float:
        """Host time of a call in ms where calls follow one another, until the device is done."""


def stopwatch_of(device: str, cache: str | None = None, *, shared: bool = False) -> Stopwatch:
    """The stopwatch of a device.

    Args:
        device: "cuda" or "cpu"
        cache: one of CACHES; None for cold caches on a GPU and hot ones on a CPU
        shared: of a CPU, as `CpuStopwatch` takes it

    Raises:
        ValueError: there is no such state of the caches, or not on this device
    """
    if cache not in (None, *CACHES):
        raise ValueError(f"expected a cache of {', '.join(CACHES)}, got {cache}")
    if device == "cuda":
        return CudaStopwatch(cache or "cold")
    if cache == "cold":
        raise ValueError("expected a cache of hot, produced on the CPU, got cold")
    return CpuStopwatch(cache or "hot", shared=shared)


class CpuStopwatch:
    """Time of calls on the CPU, caches as the call before left them.

    Args:
        cache: "hot", or "produced"
        shared: time of the processor rather than of the wall, and blocks repeated that fell into a
            slow stretch of the core: for one thread on a machine that others use too
    """

    _FEWEST, _MOST = 5, 1000

    def __init__(self, cache: str = "hot", *, shared: bool = False) -> None:
        self.cache = cache
        self._clock = time.process_time if shared else time.perf_counter
        self.pace = Pace(self._clock) if shared else None

    def calls_for(self, work: Work) -> int:
        """As `Stopwatch`."""
        for _ in range(_WARM_UP):
            work.call(work.setup())
        return _calls(self.block(work, 5), self._FEWEST, self._MOST)

    def block(self, work: Work, calls: int) -> float:
        """As `Stopwatch`."""
        if self.pace is None:
            return statistics.median(self._timed(work, calls))
        return self.pace.steadily(lambda some: self._timed(work, some), calls)

    def wall(self, work: Work) -> float:
        """As `Stopwatch`."""
        return _issued(work, lambda: None)[1]

    def _timed(self, work: Work, calls: int) -> list[float]:
        """Ms of each of so many calls."""
        found: list[float] = []
        for _ in range(calls):
            state: Any = work.setup()
            if self.cache == "produced":
                work.produce()
            started = self._clock()
            work.call(state)
            found.append(1e3 * (self._clock() - started))
        return found


class CudaStopwatch:
    """Device time of calls by CUDA events, on the current stream of the current device.

    Unless caches are to stay hot, a buffer of max(256 MB, 4 x L2) is read before each call, which
    leaves clean lines behind: a written buffer would be evicted during the call and charge its
    write-back to it. Then the device sleeps longer than the host needs to issue the call, so that
    a slow launch does not count as device time. All calls of a block are enqueued before the first
    is read.

    Args:
        cache: one of CACHES
    """

    # beyond the most, the untimed part rules the block and its median gains nothing
    _FEWEST, _MOST = 5, 100
    _SMALLEST_FLUSH = 256 * 1024 * 1024

    def __init__(self, cache: str = "cold") -> None:
        import torch

        # untyped in torch
        self._cuda: Any = torch.cuda
        self.cache = cache
        self._issue_ms: WeakKeyDictionary[Work, float] = WeakKeyDictionary()
        if cache != "hot":
            l2_bytes: int = torch.cuda.get_device_properties().L2_cache_size
            size = max(self._SMALLEST_FLUSH, 4 * l2_bytes)
            self._flush_buffer = torch.zeros(size // 4, dtype=torch.float32, device="cuda")
        self._cycles_per_ms = self._calibrate_sleep()

    def calls_for(self, work: Work) -> int:
        """As `Stopwatch`."""
        for _ in range(_WARM_UP):
            work.call(work.setup())
        return _calls(self.block(work, 5), self._FEWEST, self._MOST)

    def block(self, work: Work, calls: int) -> float:
        """As `Stopwatch`."""
        issue_ms = self._issue_ms.get(work)
        if issue_ms is None:
            issue_ms, _ = _issued(work, self._cuda.synchronize)
            self._issue_ms[work] = issue_ms
        head_start = int(self._cycles_per_ms * (0.02 + 2 * issue_ms))
        events = []
        for _ in range(calls):
            state = work.setup()
            self.flush()
            if self.cache == "produced":
                work.produce()
            self._cuda._sleep(head_start)
            start = self._cuda.Event(enable_timing=True)
            end = self._cuda.Event(enable_timing=True)
            start.record()
            work.call(state)
            end.record()
            events.append((start, end))
        self._cuda.synchronize()
        found: list[float] = [start.elapsed_time(end) for start, end in events]
        return statistics.median(found)

    def wall(self, work: Work) -> float:
        """As `Stopwatch`."""
        return _issued(work, self._cuda.synchronize)[1]

    def flush(self) -> None:
        """Leave nothing of what was computed in the caches, unless they are to stay hot."""
        if self.cache != "hot":
            self._flush_buffer.sum()

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


class FakeStopwatch:
    """Durations from a model with seeded noise: what the tests of everything but timing run on.

    A call takes `launch_ms` plus its bytes over the bandwidth, times log-normal noise. The call
    itself is not run.

    Args:
        seed: of the noise
        bandwidth_gb_s: bytes that the imaginary device moves, in GB/s (1e9)
        launch_ms: fixed cost per call
        noise: sd of the log of a block's median
    """

    cache = "fake"

    def __init__(
        self,
        seed: int,
        *,
        bandwidth_gb_s: float = 4000.0,
        launch_ms: float = 0.004,
        noise: float = 0.01,
    ) -> None:
        self._random = random.Random(seed)
        self._bandwidth_gb_s = bandwidth_gb_s
        self._launch_ms = launch_ms
        self._noise = noise

    def calls_for(self, work: Work) -> int:
        """As `Stopwatch`."""
        return _calls(self.exact(work), 1, 1000)

    def block(self, work: Work, calls: int) -> float:
        """As `Stopwatch`, from the model for `work.moved_bytes`."""
        return self.exact(work) * self._random.lognormvariate(0.0, self._noise)

    def wall(self, work: Work) -> float:
        """As `Stopwatch`: the host adds 10 us to a call of the model."""
        return self.exact(work) + 0.01

    def exact(self, work: Work) -> float:
        """The model's time of a call in ms, without noise."""
        return self._launch_ms + work.moved_bytes / self._bandwidth_gb_s / 1e6


def _calls(probe_ms: float, fewest: int, most: int) -> int:
    """Calls of `probe_ms` each that last BLOCK_MS together."""
    return min(max(-int(-BLOCK_MS // max(probe_ms, 1e-4)), fewest), most)


def _issued(work: Work, synchronize: Callable[[], object]) -> tuple[float, float]:
    """Host ms to issue a call, and host ms per call with the device's work awaited."""
    states = [work.setup() for _ in range(_WALL_CALLS)]
    synchronize()
    started = time.perf_counter()
    for state in states:
        work.call(state)
    issued = time.perf_counter()
    synchronize()
    ended = time.perf_counter()
    return 1e3 * (issued - started) / _WALL_CALLS, 1e3 * (ended - started) / _WALL_CALLS
