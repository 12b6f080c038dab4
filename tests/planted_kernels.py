# jit bodies are untyped by nature
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Kernels with one fault each, judged as ours are; run as a script, outside the interpreter.

    python tests/planted_kernels.py TARGET

Prints one line of JSON: for each kernel what was said against it. `sound` has no fault. Our own
kernels, too, as they would be without the block barrier and with too few registers.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl

from tritonbn_bench.static import TARGETS, FakeDriver, Target, active_driver, budget, examine
from tritonbn_bench.static.accesses import ptx_loose_releases
from tritonbn_bench.static.check import Demand, check, judge
from tritonbn_bench.static.plans import CHANNELS_FIRST, CHANNELS_LAST, Case, planned_launches
from tritonbn_kernels import launch, residency, row_plans

# several programs share a channel, forward and backward: planes, and a hybrid plan of rows
GROUPED = (
    Case((32, 64, 56, 56), CHANNELS_FIRST, "bf16"),
    Case((256, 64, 56, 56), CHANNELS_LAST, "bf16"),
)


@triton.jit
def sound(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y = 2 x, as wide as can be."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs, (2.0 * x).to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit
def narrow_load(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """The index is multiplied by a stride of which nothing is known."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs * stride, mask=offs < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs, (2.0 * x).to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit(do_not_specialize=["stride"])
def lost_hint(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """Rows of whole vectors, which nothing in the index says."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * stride + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + tl.program_id(0) * BLOCK + offs, x, mask=offs < n)


@triton.jit(do_not_specialize=["stride"])
def given_hint(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """The same rows, in units of vectors."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * (stride // 8) * 8 + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + tl.program_id(0) * BLOCK + offs, x, mask=offs < n)


@triton.jit
def narrow_store(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """One place off alignment."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs + 1, (2.0 * x).to(y_ptr.dtype.element_ty), mask=offs < n - 1)


@triton.jit
def one_narrow_pass(x_ptr, y_ptr, n, stride, BLOCK: tl.constexpr):
    """Two passes over x, of which the second lost its width."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mean = tl.sum(tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)) / n
    x = tl.load(x_ptr + offs * stride, mask=offs < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + offs, (x - mean).to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit
def double_precision(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Arithmetic in fp64 on narrower data."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float64)
    # a sum that fp32 could not hold, or the compiler narrows it
    y = (x + 1e-9) * x
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit
def float_atomic(x_ptr, y_ptr, sum_ptr, n, BLOCK: tl.constexpr):
    """A sum whose order nobody knows."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
    tl.atomic_add(sum_ptr, tl.sum(x))
    tl.store(y_ptr + offs, x.to(y_ptr.dtype.element_ty), mask=offs < n)


@triton.jit
def spilling(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """More values alive than a thread has registers: the mean is known when all are loaded."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
    mean = tl.sum(x) / n
    tl.store(y_ptr + offs, (x - mean).to(y_ptr.dtype.element_ty), mask=offs < n)


def launches(
    x: torch.Tensor, y: torch.Tensor, few_registers: dict[str, int]
) -> dict[str, tuple[Callable[[], Any], int]]:
    """By name: a call that compiles the kernel, and its number of warps."""
    n, grid = x.numel(), (16,)
    scalar = torch.zeros(1)
    return {
        "sound": (lambda: sound[grid](x, y, n, BLOCK=4096), 4),
        "narrow_load": (lambda: narrow_load[grid](x, y, n, 3, BLOCK=4096), 4),
        "lost_hint": (lambda: lost_hint[grid](x, y, n, 4096, BLOCK=4096), 4),
        "given_hint": (lambda: given_hint[grid](x, y, n, 4096, BLOCK=4096), 4),
        "narrow_store": (lambda: narrow_store[grid](x, y, n, BLOCK=4096), 4),
        "one_narrow_pass": (lambda: one_narrow_pass[grid](x, y, n, 3, BLOCK=4096), 4),
        "double_precision": (lambda: double_precision[grid](x, y, n, BLOCK=4096), 4),
        "float_atomic": (lambda: float_atomic[grid](x, y, scalar, n, BLOCK=4096), 4),
        "spilling": (lambda: spilling[grid](x, y, n, BLOCK=8192, **few_registers), 4),
    }


def without_barriers(target: Target) -> list[str]:
    """For each of our kernels that meets others, how many releases come too early without them."""
    said = []
    for planned in chain(*(planned_launches(case, target) for case in GROUPED)):
        if planned.record.constants.get("GROUPED"):
            assert planned.record.compiled is not None
            text = planned.record.compiled.asm["ptx"]  # type: ignore[attr-defined]
            loose = ptx_loose_releases(re.sub(r"\bbar\.sync\b.*", "", text))
            said.append(f"{planned.record.kernel} {ptx_loose_releases(text)} -> {loose}")
    return said


def with_few_registers(target: Target) -> list[str]:
    """What a budget says against our kernels, held and two-read, allowed half the registers."""
    before = budget.measure(check([target], GROUPED))
    half = residency.MAX_REGISTERS // 2
    with (
        mock.patch.object(residency, "MAX_REGISTERS", half),
        mock.patch.object(row_plans, "MAX_REGISTERS", half),
        mock.patch.object(launch, "REGISTER_CAP", 40),
    ):
        return budget.compare(before, budget.measure(check([target], GROUPED)))[0]


def main(name: str) -> int:
    """Judge every planted kernel on the target `name`."""
    # these kernels leave the choice to the compiler, which warns
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    target = TARGETS[name]
    # AMD's compiler takes no limit
    few_registers = {"maxnreg": 24} if target.backend == "cuda" else {}
    said: dict[str, list[str]] = {}
    with active_driver(FakeDriver(target)):
        x, y = (torch.empty(2**24, dtype=torch.bfloat16) for _ in range(2))
        demand = Demand(x.numel() * 2, x.numel() * 2, is_double=False)
        for kernel, (call, num_warps) in launches(x, y, few_registers).items():
            said[kernel] = list(judge(examine(call(), target), target, demand, num_warps))
    if target.backend == "cuda":
        said["without_barriers"] = without_barriers(target)
        said["with_few_registers"] = with_few_registers(target)
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
