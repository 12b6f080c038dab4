"""Host cost of one layer: what the CPU spends per call, where no GPU is needed to see it.

    python -m tritonbn_bench.hostcost [--json FILE]

Forward and backward of `tritonbn.BatchNorm2d` on `(2, 2, 1, 1)`, its kernels launched through
Triton's own launcher into a CUDA library that does nothing, beside `torch.nn.BatchNorm2d` on the
CPU in the same process. Blocks of calls take turns in the order ABBA; minimum and median over many
such sweeps in us, and the median of the paired differences. Not in it: what torch's CUDA allocator
and the real driver add, on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

SHAPE = (2, 2, 1, 1)
OURS = "tritonbn forward + backward"
TORCH = "torch forward + backward"


@dataclass(frozen=True)
class Cost:
    """Time of one call in us: the least and the median over the sweeps."""

    name: str
    minimum: float
    median: float


@dataclass(frozen=True)
class HostCost:
    """The whole measurement.

    launches: kernels that one call of ours launched. difference: ours less torch's for forward and
    backward in us, the median over pairs of neighbouring turns.
    """

    torch_version: str
    triton_version: str
    launches_forward: int
    launches_backward: int
    costs: tuple[Cost, ...]
    difference: float

    def cost(self, name: str) -> Cost:
        """The cost called `name`."""
        return next(cost for cost in self.costs if cost.name == name)


@contextmanager
def kernels_on_cpu_tensors() -> Iterator[None]:
    """Send CPU tensors to the kernels, as CUDA tensors are; useful over a stub driver alone.

    By the way that the interpreter's tensors take, so that every check of the route is paid for.
    """
    from tritonbn import functional

    with mock.patch.object(functional, "_INTERPRETED", True):
        yield


def training_step(layer: nn.Module) -> Callable[[], object]:
    """One forward and one backward; gradients are returned, so that none has to be reset."""
    x = torch.randn(SHAPE, requires_grad=True)
    dy = torch.randn(SHAPE)
    wanted = (x, *layer.parameters())

    def step() -> object:
        return torch.autograd.grad(layer(x), wanted, dy)

    return step


class _Empty(torch.autograd.Function):
    """A function of as many arguments as ours that allocates its results and does nothing else."""

    @staticmethod
    def forward(ctx: object, x: Tensor, gamma: Tensor, beta: Tensor, *others: object) -> Tensor:
        saved = torch.empty((3, SHAPE[1]))
        ctx.save_for_backward(x, gamma, saved)  # type: ignore[attr-defined]
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: object, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, _ = ctx.saved_tensors  # type: ignore[attr-defined]
        gradients = (torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma))
        return (*gradients, *(None,) * 6)


def contenders() -> dict[str, Callable[[], object]]:
    """What is timed: the two layers first, then the parts of ours, each inside the one before."""
    import tritonbn
    import tritonbn_kernels

    ours, theirs = tritonbn.BatchNorm2d(SHAPE[1]), nn.BatchNorm2d(SHAPE[1])
    x, dy = torch.randn(SHAPE), torch.randn(SHAPE)
    gamma, beta = ours.weight, ours.bias
    mean, var, count = ours.running_mean, ours.running_var, ours.num_batches_tracked
    saved = torch.zeros((3, SHAPE[1]))
    leaf = x.clone().requires_grad_()

    def forward(layer: nn.Module) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return layer(x)

        return call

    def empty_function() -> object:
        y = _Empty.apply(leaf, gamma, beta, mean, var, count, True, 0.1, 1e-5)  # type: ignore[no-untyped-call]
        return torch.autograd.grad(y, (leaf, gamma, beta), dy)

    def launch_forward() -> object:
        return tritonbn_kernels.batch_norm_forward(
            x, gamma, beta, mean, var, count, True, 0.1, 1e-5
        )

    def launch_backward() -> object:
        return tritonbn_kernels.batch_norm_backward(dy, x, gamma, saved, True, True, True, True)

    return {
        OURS: training_step(ours),
        TORCH: training_step(theirs),
        "tritonbn forward, no grad": forward(ours),
        "torch forward, no grad": forward(theirs),
        "an empty autograd.Function, forward + backward": empty_function,
        "kernels.batch_norm_forward": launch_forward,
        "kernels.batch_norm_backward": launch_backward,
    }


def time_in_turns(
    calls: dict[str, Callable[[], object]], sweeps: int, block: int
) -> dict[str, list[float]]:
    """Times in us of each call: `sweeps` times there and back over all, `block` calls a turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(block):
            call()
    for _ in range(sweeps):
        for name in (*calls, *reversed(calls)):
            call = calls[name]
            # the first of all has also been the last: every turn begins with warm caches
            call()
            start = time.perf_counter_ns()
            for _ in range(block):
                call()
            times[name].append((time.perf_counter_ns() - start) / block / 1e3)
    return times


def measure(sweeps: int = 400, block: int = 20) -> HostCost:
    """Measure on one thread.

    Args:
        sweeps: turns there and back. block: calls a turn; few, so that some turns pass undisturbed.

    Raises:
        RuntimeError: the stub driver cannot be built here, the interpreter is on, or our layer
            launched no kernel.
    """
    import triton
    from triton.runtime import JITFunction

    from tritonbn_kernels.normalize import normalize_kernel

    from .static.stub import stub_driver

    if not isinstance(normalize_kernel, JITFunction):
        raise RuntimeError("expected no TRITON_INTERPRET: the interpreter launches nothing")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with stub_driver() as stub, kernels_on_cpu_tensors():
            calls = contenders()
            counts = []
            for name in (OURS, "tritonbn forward, no grad"):
                # the first call compiles
                calls[name]()
                before = stub.launches
                calls[name]()
                counts.append(stub.launches - before)
            if not counts[1] or counts[0] <= counts[1]:
                raise RuntimeError(f"expected launches forward and backward, got {counts}")
            times = time_in_turns(calls, sweeps, block)
    finally:
        torch.set_num_threads(threads)
    pairs = zip(times[OURS], times[TORCH], strict=True)
    return HostCost(
        torch_version=str(torch.__version__),
        triton_version=str(triton.__version__),
        launches_forward=counts[1],
        launches_backward=counts[0] - counts[1],
        costs=tuple(Cost(name, min(all_), statistics.median(all_)) for name, all_ in times.items()),
        difference=statistics.median(ours - theirs for ours, theirs in pairs),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m tritonbn_bench.hostcost")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--block", type=int, default=20)
    chosen = parser.parse_args(arguments)
    # newer compilers ask for a choice and warn without one
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        result = measure(chosen.sweeps, chosen.block)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"torch {result.torch_version}, triton {result.triton_version}, us a call")
    print(f"{'':50}{'minimum':>9}{'median':>9}")
    for cost in result.costs:
        print(f"{cost.name:50}{cost.minimum:9.2f}{cost.median:9.2f}")
    least = result.cost(OURS).minimum - result.cost(TORCH).minimum
    print(f"{'tritonbn less torch, forward + backward':50}{least:9.2f}{result.difference:9.2f}")
    print(f"launches: {result.launches_forward} forward, {result.launches_backward} backward")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
