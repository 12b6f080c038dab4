"""Statistics of samples, the fake timer, and on a GPU the real one."""

import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tritonbn_bench.timer import CudaTimer, FakeTimer, Samples, Work, percentile


@pytest.mark.parametrize("count", [1, 2, 19, 100])
@pytest.mark.parametrize("share", [0, 20, 50, 80, 100])
def test_percentiles_are_those_of_numpy(count: int, share: int) -> None:
    values = [random.Random(count).gauss(0, 1) for _ in range(count)]
    assert percentile(values, share) == pytest.approx(np.percentile(values, share), abs=1e-12)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="share of 0 to 100"):
        percentile([1.0], 101)


def test_one_outlier_moves_neither_median_nor_band() -> None:
    quiet = Samples(tuple([1.0] * 20), 1.0, "fake")
    disturbed = Samples((*[1.0] * 19, 50.0), 1.0, "fake")
    assert (disturbed.low, disturbed.median, disturbed.high) == (quiet.low, quiet.median, 1.0)


def _work(moved_bytes: int) -> Work:
    return Work(lambda _: None, moved_bytes=moved_bytes)


def test_the_fake_timer_repeats_itself_from_its_seed() -> None:
    first, second = FakeTimer(7), FakeTimer(7)
    assert first.measure(_work(10**8)) == second.measure(_work(10**8))
    assert first.measure(_work(10**8)) != FakeTimer(8).measure(_work(10**8))


def test_the_fake_timer_follows_its_model() -> None:
    timer = FakeTimer(0, bandwidth_gb_s=1000.0, launch_ms=0.01, noise=0.02, count=401)
    samples = timer.measure(_work(10**9))
    # the median of n log-normal samples scatters by about 1.25 * noise / sqrt(n)
    assert samples.median == pytest.approx(1.01, rel=5 * 1.25 * 0.02 / 401**0.5)
    spread = statistics.stdev(samples.device_ms) / samples.median
    assert 0.015 < spread < 0.025
    assert samples.low < samples.median < samples.high


class _StubCuda:
    """What of `torch.cuda` the timer uses, noting the order of what it is asked to do."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def get_device_properties(self) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=100 * 2**20)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        return SimpleNamespace(
            record=lambda: self.log.append("event"), elapsed_time=lambda other: 2.0
        )


def test_every_sample_is_cold_and_has_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stub, sizes = _StubCuda(), []

    def zeros(size: int, **_: object) -> SimpleNamespace:
        sizes.append(size)
        return SimpleNamespace(sum=lambda: stub.log.append("flush"))

    monkeypatch.setattr(torch, "cuda", stub)
    monkeypatch.setattr(torch, "zeros", zeros)
    timer = CudaTimer(budget_ms=50.0)
    work = Work(lambda _: stub.log.append("call"), setup=lambda: stub.log.append("setup"))
    samples = timer.measure(work)
    # 4 x 100 MB of L2 is more than 256 MB; elements of 4 bytes
    assert sizes == [100 * 2**20]
    assert samples.device_ms == (2.0,) * len(samples.device_ms)
    assert 20 <= len(samples.device_ms) <= 100
    sample = ["setup", "flush", "sleep", "event", "call", "event"]
    # nothing waits between the samples
    assert stub.log[-1 - len(sample) * len(samples.device_ms) :] == [
        *sample * len(samples.device_ms),
        "synchronize",
    ]


@pytest.mark.gpu
def test_a_large_copy_takes_as_long_as_its_bytes_need() -> None:
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    samples = CudaTimer().measure(Work(lambda _: target.copy_(source)))
    gb_per_s = 2 * source.numel() * 4 / samples.median / 1e6
    assert samples.cache == "cold"
    assert samples.low <= samples.median <= samples.high
    # no device moves more than this, and none with this much memory less
    assert 50 < gb_per_s < 30_000


@pytest.mark.gpu
def test_what_setup_does_is_not_timed() -> None:
    big = torch.randn(2**28, device="cuda")
    small = torch.randn(2**10, device="cuda")
    timer = CudaTimer()
    alone = timer.measure(Work(lambda _: small.mul_(1.0))).median
    after = timer.measure(Work(lambda _: small.mul_(1.0), setup=lambda: big.mul_(1.0))).median
    assert after < 5 * alone + 0.05
