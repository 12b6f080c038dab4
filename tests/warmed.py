"""A model warmed up and called outside the interpreter, under a driver without a device.

Run as a script with the number of workers, and "fused" for a model with activations and a residual;
prints one line of JSON.
"""

import json
import os
import sys
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from torch import Tensor, nn

import tritonbn
import tritonbn_kernels
from tritonbn_bench.hostcost import kernels_on_cpu_tensors
from tritonbn_bench.static.driver import TARGETS, FakeDriver, FakeLauncher, active_driver


def figures(report: tritonbn.WarmupReport) -> dict[str, Any]:
    """The numbers of a report, and its text."""
    names = ("engine", "kernels", "compiled", "on_disk", "cache_folder", "cache_bytes", "workers")
    return {name: getattr(report, name) for name in names} | {
        "calls": len(report.calls),
        "longest": report.longest_seconds,
        "seconds": report.seconds,
        "text": str(report),
    }


def main(workers: int) -> None:
    """Warm up, then make the first real step and the first evaluation."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    tritonbn.convert(model)
    x = torch.randn(4, 3, 10, 10)
    found: dict[str, Any] = {"cpu": figures(tritonbn.warmup(model, x))}
    progress: list[tuple[int, int]] = []
    asked: list[str] = []

    def listener(*, src: Any, **event: Any) -> None:
        asked.append(src.name)

    with active_driver(FakeDriver(TARGETS["sm_90"])), kernels_on_cpu_tensors():
        triton.knobs.compilation.listener = listener
        with tritonbn_kernels.record_launches() as records:
            report = tritonbn.warmup(
                model, x, workers=workers, progress=lambda *counts: progress.append(counts)
            )
        found["first"] = figures(report)
        found["progress"] = progress
        found["recorded"] = len(records)
        found["launched"] = FakeLauncher.launches
        found["listener"] = sorted(asked)
        asked.clear()
        model(x).sum().backward()
        with torch.no_grad():
            model.eval()(x)
        found["asked"] = asked
        found["launched_then"] = FakeLauncher.launches
        # every launch has run, none may run again
        count = model[1].num_batches_tracked
        found["again"] = figures(tritonbn.warmup(model.train(), x))
        found["launched_at_last"] = FakeLauncher.launches
        found["same_count"] = count is model[1].num_batches_tracked
    print(json.dumps(found))


class Fused(nn.Module):
    """A layer with an activation, and one with a residual besides: in evaluation it has a mask to
    keep, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.first = tritonbn.BatchNorm2d(8, activation="silu")
        self.second = tritonbn.BatchNorm2d(8, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.second(self.first(y), y)
        return z


def fused(workers: int) -> None:
    """Warm up, then a real step, and evaluations with gradients and without."""
    model, x, asked = Fused(), torch.randn(4, 3, 10, 10), list[str]()

    def listener(*, src: Any, **event: Any) -> None:
        asked.append(src.name)

    with active_driver(FakeDriver(TARGETS["sm_90"])), kernels_on_cpu_tensors():
        triton.knobs.compilation.listener = listener
        report = tritonbn.warmup(model, x, workers=workers)
        compiled, before = len(asked), FakeLauncher.launches
        model(x).sum().backward()
        model.eval()(x)
        with torch.no_grad():
            model(x)
    launched = FakeLauncher.launches - before
    found = {"compiled": compiled, "asked": asked[compiled:], "launched": launched}
    print(json.dumps({**found, "kernels": report.kernels}))


if __name__ == "__main__":
    (fused if "fused" in sys.argv else main)(int(sys.argv[1]))
