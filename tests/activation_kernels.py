# jit bodies are untyped by nature
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Kernels that do nothing but an activation; run as a script, what the compiler makes of them.

    python tests/activation_kernels.py

Prints one line of JSON, outside the interpreter: `fp64` has the double-precision instructions by
target and dtype, all activations and derivatives in one kernel; `vector instructions` has, by
activation, those that it adds to a copy of fp32 on gfx942.
"""

import json
import os
import re
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from tritonbn_bench.static import TARGETS, FakeDriver, active_driver, examine
from tritonbn_kernels.activation_names import ACTIVATIONS
from tritonbn_kernels.activations import activate, expm1_below_zero, gradient_through

__all__ = ["activation_kernel", "expm1_kernel"]


@triton.jit
def activation_kernel(
    z_ptr, y_ptr, slope_ptr, n, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y = act(z), and slope = act'(z) where it is asked for."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, activate(z, ACTIVATION, PARAMETER), mask=offs < n)
    if slope_ptr is not None:
        slope = gradient_through(tl.full(z.shape, 1.0, z.dtype), z, ACTIVATION, PARAMETER)
        tl.store(slope_ptr + offs, slope, mask=offs < n)


@triton.jit
def expm1_kernel(z_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y = expm1(z), z <= 0."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, expm1_below_zero(z), mask=offs < n)


@triton.constexpr_function
def _name_of(names, index):
    # an element of a tuple of strings is no constexpr on Triton 3.6
    return names[index]


@triton.jit
def _all_kernel(z_ptr, y_ptr, n, NAMES: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + offs)
    for index in tl.static_range(COUNT):
        tl.store(y_ptr + 2 * index * n + offs, activate(z, _name_of(NAMES, index), 0.3))
        slope = gradient_through(tl.full(z.shape, 1.0, z.dtype), z, _name_of(NAMES, index), 0.3)
        tl.store(y_ptr + (2 * index + 1) * n + offs, slope)


def _double_precision(name: str, dtype: torch.dtype) -> int:
    """Instructions in double precision among all activations of `dtype` on the target `name`."""
    names, target = tuple(ACTIVATIONS), TARGETS[name]
    with active_driver(FakeDriver(target)):
        z, y = torch.empty(1024, dtype=dtype), torch.empty(1024 * 2 * len(names), dtype=dtype)
        compiled = _all_kernel[(1,)](
            z, y, 64, NAMES=names, COUNT=len(names), BLOCK=target.warp_size, num_warps=1
        )
    return examine(compiled, target).fp64


def _vector_instructions(name: str) -> int:
    """Vector instructions of a kernel of the activation `name` on fp32, one value a thread."""
    with active_driver(FakeDriver(TARGETS["gfx942"])):
        z, y = torch.empty(1024), torch.empty(1024)
        compiled: Any = activation_kernel[(16,)](
            z, y, None, 1024, ACTIVATION=name, PARAMETER=0.3, BLOCK=64, num_warps=1
        )
    return len(re.findall(r"^\s+v_", compiled.asm["amdgcn"], re.MULTILINE))


def main() -> int:
    """Compile and count."""
    # these kernels leave the choice to the compiler, which warns
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    copied = _vector_instructions("identity")
    said = {
        "fp64": {
            f"{target} {dtype}": _double_precision(target, dtype)
            for target in ("sm_90", "gfx942")
            for dtype in (torch.float32, torch.float64)
        },
        "vector instructions": {name: _vector_instructions(name) - copied for name in ACTIVATIONS},
    }
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
