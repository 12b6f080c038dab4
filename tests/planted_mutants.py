# jit bodies are untyped by nature
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""A healthy kernel and one fault at a time, each judged by the budget that the healthy one keeps.

    python tests/planted_mutants.py

Run outside the interpreter; for sm_90. Prints one line of JSON: for each fault what the tier of the
check that should see it says.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl

from tests.planted_kernels import double_precision, given_hint, lost_hint, narrow_load, sound
from tests.planted_kernels import spilling as holding
from tritonbn_bench.static import TARGETS, FakeDriver, active_driver, budget, examine, launches
from tritonbn_bench.static.suite import in_words
from tritonbn_kernels.launch import Launch

SM_90 = TARGETS["sm_90"]
KEY = "sm_90 case | forward train | planted_kernel"
NETWORK = "mobilenet_v2 N=32 channels_first bf16"


@triton.jit
def planes(x_ptr, y_ptr, hw, BLOCK: tl.constexpr):
    """y = x, a program for each plane of `hw` values."""
    first = tl.program_id(0).to(tl.int64) * hw
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + first + offs, mask=offs < hw, other=0.0)
    tl.store(y_ptr + first + offs, x, mask=offs < hw)


@triton.jit
def hinted(x_ptr, y_ptr, n, CACHE: tl.constexpr, EVICTION: tl.constexpr, BLOCK: tl.constexpr):
    """y = x with what a cache is told."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0, cache_modifier=CACHE)
    tl.store(y_ptr + offs, x, mask=offs < n, eviction_policy=EVICTION)


Compile = Callable[[], Any]


def mutations(x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[Compile, Compile]]:
    """By name of the fault: (compiles the healthy kernel, compiles it with the fault)."""
    n, grid = x.numel(), (16,)

    def block(size: int, **options: int) -> Compile:
        return lambda: sound[grid](x, y, n, BLOCK=size, **options)

    def hint(cache: str, eviction: str) -> Compile:
        return lambda: hinted[grid](x, y, n, CACHE=cache, EVICTION=eviction, BLOCK=4096)

    def held(size: int, **options: int) -> Compile:
        return lambda: holding[grid](x, y, n, BLOCK=size, **options)

    def strided(kernel: Any, stride: int) -> Compile:
        return lambda: kernel[grid](x, y, n, stride, BLOCK=4096)

    def plane(hw: int) -> Compile:
        return lambda: planes[grid](x, y, hw, BLOCK=4096)

    return {
        "index that breaks vectorising": (block(4096), strided(narrow_load, 3)),
        "lost divisibility": (strided(given_hint, 4096), strided(lost_hint, 4096)),
        "odd plane": (plane(3136), plane(3135)),
        "misaligned view": (block(4096), lambda: sound[grid](x[1:], y, n, BLOCK=4096)),
        "16 warps": (block(1024, num_warps=4), block(1024, num_warps=16)),
        "block of 128": (block(1024), block(128)),
        "double precision": (block(4096), lambda: double_precision[grid](x, y, n, BLOCK=4096)),
        "cache modifier": (hint("", ""), hint(".cg", "")),
        "eviction policy": (hint("", "evict_first"), hint("", "")),
        "huge block": (held(4096), held(65536)),
        "few registers": (held(8192), held(8192, maxnreg=24)),
        "another fusion": (block(4096), block(4096, enable_fp_fusion=False)),
        "nothing": (block(4096), block(4096)),
    }


def said_of(healthy: Any, faulty: Any) -> list[str]:
    """What the budgets of compiled kernels and of cache hints say."""
    kept, found = examine(healthy, SM_90), examine(faulty, SM_90)
    worse, _ = budget.compare({KEY: budget.figures_of(kept)}, {KEY: budget.figures_of(found)})
    hints, _ = budget.compare(
        {KEY: budget.hints_kept(kept)},
        {KEY: budget.hints_kept(found)},
        budget.any_change,
        budget.nothing,
    )
    return [in_words(line) for line in (*worse, *hints)]


def launched_twice(launch: Launch, tensors: Any, *floats: float) -> None:
    """`Launch.__call__` as it would be with a launch too many."""
    CALL(launch, tensors, *floats)
    CALL(launch, tensors, *floats)


def with_half_the_grid(launch: Launch, kernel: Any, device: int, programs: int, *rest: Any) -> None:
    """`Launch.__init__` as it would be with half of the programs."""
    INIT(launch, kernel, device, programs // 2, *rest)


CALL, INIT = Launch.__call__, Launch.__init__


def of_launch_plans() -> dict[str, list[str]]:
    """What the budget of launch plans says of one launch too many, and of a wrong grid."""
    healthy = launches.measure([NETWORK])

    def said() -> list[str]:
        found = launches.measure([NETWORK])
        lines, _ = budget.compare(healthy, found, budget.any_change, budget.nothing)
        return [in_words(line) for line in lines]

    found = {"same launches": said()}
    with mock.patch.object(Launch, "__call__", launched_twice):
        found["extra launch"] = said()
    with mock.patch.object(Launch, "__init__", with_half_the_grid):
        found["wrong grid"] = said()
    return found


def main() -> int:
    """Judge every planted fault."""
    # these kernels leave the choice to the compiler, which warns
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    said = of_launch_plans()
    with active_driver(FakeDriver(SM_90)):
        x, y = (torch.empty(2**24, dtype=torch.bfloat16) for _ in range(2))
        for name, (healthy, faulty) in mutations(x, y).items():
            said[name] = said_of(healthy(), faulty())
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
