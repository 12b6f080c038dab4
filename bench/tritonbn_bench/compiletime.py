"""What a first step waits for: compile time of ResNet-50's BatchNorm kernels, without a GPU.

Every launch of its training, evaluation and backward passes is compiled under a driver that has no
device, in processes of their own: into an empty cache one after another and several at a time, and
out of the full cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from .cases import RESNET50

LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class CompileTime:
    """One run: times in s, `longest` of one kernel; `loaded` kernels came from the cache."""

    workers: int
    kernels: int
    compiled: int
    loaded: int
    wall: float
    longest: float


def measure(
    target: str, layouts: Sequence[str], layers: int, batch: int, workers: int
) -> CompileTime:
    """Compile for the first `layers` shapes of ResNet-50 in bf16, in this process and its cache.

    Raises:
        RuntimeError: the interpreter is on.
    """
    from tritonbn_kernels import CompileAhead
    from tritonbn_kernels.launch import interpreted
    from tritonbn_kernels.normalize import normalize_kernel

    from .static.driver import TARGETS, FakeDriver, active_driver
    from .static.plans import EPS, Case

    if interpreted(normalize_kernel):
        raise RuntimeError("expected no TRITON_INTERPRET: the interpreter compiles nothing")
    started = time.perf_counter()
    with active_driver(FakeDriver(TARGETS[target])), CompileAhead(workers) as compiler:
        for layer in RESNET50[:layers]:
            gamma, beta, mean, var = (torch.empty(layer.channels) for _ in range(4))
            count = torch.zeros((), dtype=torch.int64)
            for layout in layouts:
                case = Case((batch, layer.channels, *layer.plane), layout, "bf16")
                x, dy = case.make(), case.make()
                compiler.forward(x, gamma, beta, mean, var, count, True, 0.1, EPS)
                compiler.backward(dy, x, gamma, True, (True, True, True))
                compiler.forward(x, gamma, beta, mean, var, None, False, 0.1, EPS)
        compiler.wait()
    wall = time.perf_counter() - started
    compiled = [one.seconds for one in compiler.compiled if not one.on_disk]
    return CompileTime(
        workers=workers,
        kernels=compiler.kernels,
        compiled=len(compiled),
        loaded=len(compiler.compiled) - len(compiled),
        wall=wall,
        longest=max(compiled, default=0.0),
    )


def _measure_elsewhere(cache: str, workers: int, arguments: Sequence[str]) -> CompileTime:
    """`measure` in a new process with its cache in the folder `cache`."""
    done = subprocess.run(
        [sys.executable, "-m", "tritonbn_bench.compiletime", "--run", str(workers), *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"expected figures, got exit code {done.returncode}")
    return CompileTime(**json.loads(done.stdout.splitlines()[-1]))


def _size(folder: str) -> int:
    return sum(
        os.path.getsize(os.path.join(place, name))
        for place, _, names in os.walk(folder)
        for name in names
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; exit code 2 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m tritonbn_bench.compiletime")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="default: both")
    parser.add_argument("--layers", type=int, default=len(RESNET50), help="shapes, from the first")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=1, help="print the quickest of so many")
    parser.add_argument(
        "--run", type=int, metavar="WORKERS", help="one run in this process, as JSON"
    )
    chosen = parser.parse_args(arguments)
    # newer compilers ask for a choice and warn without one
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    layouts = tuple(chosen.layout or LAYOUTS)
    try:
        if chosen.run is not None:
            one = measure(chosen.target, layouts, chosen.layers, chosen.batch, chosen.run)
            print(json.dumps(asdict(one)))
            return 0
        print(_table(chosen, layouts))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _table(chosen: argparse.Namespace, layouts: Sequence[str]) -> str:
    import triton

    passed = [f"--target={chosen.target}", f"--layers={chosen.layers}", f"--batch={chosen.batch}"]
    passed += [f"--layout={layout}" for layout in layouts]
    runs: dict[str, list[CompileTime]] = {"serial": [], "parallel": [], "full cache": []}
    size = 0
    # in turns, so that a disturbance meets all
    for _ in range(chosen.rounds):
        for name, workers in (("serial", 1), ("parallel", chosen.workers)):
            with tempfile.TemporaryDirectory() as cache:
                runs[name].append(_measure_elsewhere(cache, workers, passed))
                if name == "parallel":
                    runs["full cache"].append(_measure_elsewhere(cache, workers, passed))
                    size = _size(cache)
    lines = [
        f"ResNet-50, batch {chosen.batch}, bf16, {' and '.join(layouts)}, {chosen.target},"
        f" triton {triton.__version__}, {os.cpu_count()} CPUs, cache {size / 1e6:.1f} MB",
        f"{'':12}{'workers':>8}{'kernels':>8}{'compiled':>9}{'loaded':>8}{'wall s':>8}"
        f"{'longest s':>11}",
    ]
    for name, found in runs.items():
        best = min(found, key=lambda one: one.wall)
        lines.append(
            f"{name:12}{best.workers:8}{best.kernels:8}{best.compiled:9}{best.loaded:8}"
            f"{best.wall:8.2f}{best.longest:11.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
