"""Blocks of calls: order of what is asked of a device, states of the caches, the fake's model."""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch

from tritonbn_bench.stopwatch import (
    CACHES,
    CpuStopwatch,
    CudaStopwatch,
    FakeStopwatch,
    stopwatch_of,
)
from tritonbn_bench.timer import Work


class _StubCuda:
    """What of `torch.cuda` a stopwatch uses, noting the order of what it is asked to do."""

    def __init__(self, elapsed_ms: float) -> None:
        self.log: list[str] = []
        self.sleeps: list[int] = []
        self._elapsed_ms = elapsed_ms

    def get_device_properties(self) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=100 * 2**20)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")
        self.sleeps.append(cycles)

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            elapsed_time=lambda other: self._elapsed_ms,
        )


def _stubbed(monkeypatch: pytest.MonkeyPatch, elapsed_ms: float = 0.5) -> tuple[_StubCuda, Work]:
    stub = _StubCuda(elapsed_ms)

    def zeros(size: int, **_: object) -> SimpleNamespace:
        stub.log.append(f"buffer of {size}")
        return SimpleNamespace(sum=lambda: stub.log.append("flush"))

    monkeypatch.setattr(torch, "cuda", stub)
    monkeypatch.setattr(torch, "zeros", zeros)
    work = Work(
        lambda _: stub.log.append("call"),
        setup=lambda: stub.log.append("setup"),
        produce=lambda: stub.log.append("produce"),
    )
    return stub, work


@pytest.mark.parametrize(
    ("cache", "before"),
    [("cold", ["flush"]), ("hot", []), ("produced", ["flush", "produce"])],
)
def test_every_call_meets_the_caches_it_should_and_has_a_head_start(
    monkeypatch: pytest.MonkeyPatch, cache: str, before: list[str]
) -> None:
    stub, work = _stubbed(monkeypatch)
    stopwatch = stopwatch_of("cuda", cache)
    assert stopwatch.cache == cache
    # 4 x 100 MB of L2 is more than 256 MB; elements of 4 bytes
    assert (f"buffer of {100 * 2**20}" in stub.log) == (cache != "hot")
    calls = stopwatch.calls_for(work)
    stub.log.clear()
    assert stopwatch.block(work, calls) == 0.5
    # nothing waits between the calls of a block
    sample = ["setup", *before, "sleep", "event", "call", "event"]
    assert stub.log == [*sample * calls, "synchronize"]


def test_the_head_start_covers_a_slow_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    stub, _ = _stubbed(monkeypatch, elapsed_ms=1.0)
    stopwatch = CudaStopwatch()
    # by the stub, 2,000,000 cycles last 1 ms
    stopwatch.block(Work(lambda _: time.sleep(0.003)), 1)
    assert stub.sleeps[-1] >= 2_000_000 * 2 * 3


@pytest.mark.parametrize(
    ("elapsed_ms", "calls"),
    [
        pytest.param(0.5, 5, id="the-fewest"),
        pytest.param(0.03, 67, id="two-ms"),
        pytest.param(0.001, 100, id="the-most"),
    ],
)
def test_a_block_lasts_two_ms(
    monkeypatch: pytest.MonkeyPatch, elapsed_ms: float, calls: int
) -> None:
    _, work = _stubbed(monkeypatch, elapsed_ms)
    assert CudaStopwatch().calls_for(work) == calls


def test_a_cpu_times_the_call_and_nothing_before_it() -> None:
    produced: list[int] = []

    def produce() -> None:
        produced.append(1)
        time.sleep(0.002)

    work = Work(lambda _: None, setup=lambda: time.sleep(0.002), produce=produce)
    assert CpuStopwatch("produced").block(work, 3) < 1.0
    assert len(produced) == 3
    assert CpuStopwatch().block(Work(lambda _: time.sleep(0.002)), 3) >= 2.0
    assert CpuStopwatch().wall(Work(lambda _: time.sleep(0.002))) >= 2.0


def test_caches_that_cannot_be_had_are_refused() -> None:
    assert [stopwatch_of("cpu", cache).cache for cache in (None, "hot", "produced")] == [
        *("hot", "hot", "produced"),
    ]
    with pytest.raises(ValueError, match="hot, produced on the CPU, got cold"):
        stopwatch_of("cpu", "cold")
    with pytest.raises(ValueError, match=f"a cache of {', '.join(CACHES)}, got lukewarm"):
        stopwatch_of("cuda", "lukewarm")


def test_the_fake_follows_its_model_and_repeats_itself_from_its_seed() -> None:
    work = Work(lambda _: None, moved_bytes=10**9)
    fakes = [FakeStopwatch(seed, bandwidth_gb_s=1000.0, launch_ms=0.01) for seed in (7, 7, 8)]
    first, again, other = ([fake.block(work, 1) for _ in range(401)] for fake in fakes)
    assert first == again != other
    # the median of n log-normal samples scatters by about 1.25 * noise / sqrt(n)
    assert statistics.median(first) == pytest.approx(1.01, rel=5 * 1.25 * 0.01 / 401**0.5)
    assert 0.0075 < statistics.stdev(first) / 1.01 < 0.0125


@pytest.mark.gpu
@pytest.mark.parametrize("cache", CACHES)
def test_a_large_copy_takes_as_long_as_its_bytes_need(cache: str) -> None:
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    work = Work(lambda _: target.copy_(source))
    stopwatch = CudaStopwatch(cache)
    gb_per_s = 2 * source.numel() * 4 / stopwatch.block(work, stopwatch.calls_for(work)) / 1e6
    # no device moves more than this, and none with this much memory less
    assert 50 < gb_per_s < 30_000
