"""A model warmed up and called outside the interpreter, under a driver without a device.

Run as a script with the number of workers; prints one line of JSON.
"""

import json
import os
import sys
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from torch import nn

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


if __name__ == "__main__":
    main(int(sys.argv[1]))
