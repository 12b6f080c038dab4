"""Every fault of the mutation table is seen by the tier of the static check that should see it, in
words, and the same kernel without it is not.

What compiles runs outside the interpreter, what is counted inside.
"""

# jit bodies are untyped by nature
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.inputs import INTERPRETED
from tests.test_static import run_outside_interpreter
from tritonbn_bench.emulated import traffic_meter
from tritonbn_bench.static import budget
from tritonbn_bench.static.plans import CHANNELS_FIRST, CHANNELS_LAST, Case
from tritonbn_bench.static.suite import in_words
from tritonbn_bench.static.traffic import faults_of, figures_of

COMPILED = [
    ("index that breaks vectorising", r"load x 16 -> 2 bytes$"),
    ("lost divisibility", r"load x 16 -> 2 bytes$"),
    ("odd plane", r"load x 16 -> 2 bytes, .*store y 16 -> 2 bytes$"),
    ("misaligned view", r"load x 16 -> 2 bytes$"),
    ("16 warps", r"load x 16 -> 4 bytes, store y 16 -> 4 bytes$"),
    ("block of 128", r"load x 16 -> 2 bytes, store y 16 -> 2 bytes$"),
    ("double precision", r"fp64 0 -> \d+$"),
    ("cache modifier", r"cache hints of load x: plain -> cg$"),
    ("eviction policy", r"cache hints of store y: L1::evict_first\S* -> plain$"),
    ("huge block", r"spill 0 -> \d+ bytes, stack 0 -> \d+ bytes$"),
    ("few registers", r"spill 0 -> \d+ bytes, stack 0 -> \d+ bytes$"),
    ("another fusion", r"fp_fusion on -> off$"),
]


@cache
def said() -> dict[str, list[str]]:
    """What the budgets say of each planted fault, compiled for sm_90."""
    done = run_outside_interpreter("tests/planted_mutants.py")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "sentence"), COMPILED, ids=[fault for fault, _ in COMPILED])
def test_fault_is_seen_in_what_the_compiler_made(fault: str, sentence: str) -> None:
    (line,) = said()[fault]
    assert line.startswith("forward train of case on sm_90, planted_kernel: ")
    assert re.search(sentence, line), line


@pytest.mark.slow
@pytest.mark.parametrize("nothing", ["nothing", "same launches"])
def test_healthy_kernel_is_not_complained_of(nothing: str) -> None:
    assert said()[nothing] == []


@pytest.mark.slow
def test_extra_launch_is_seen_in_the_launch_plan() -> None:
    lines = said()["extra launch"]
    steps = [line for line in lines if line.startswith("training step")]
    network = "training step of mobilenet_v2 N=32 channels_first bf16"
    assert steps == [
        f"{network} on sm_90: launches 104 -> 208",
        f"{network} fused on sm_90: launches 104 -> 208",
    ]
    rest = [line for line in lines if line not in steps]
    assert len(rest) > 30
    assert all(line.endswith("_kernel #2: not in the budget") for line in rest)


@pytest.mark.slow
def test_wrong_grid_is_seen_in_the_launch_plan() -> None:
    lines = said()["wrong grid"]
    assert len(lines) > 30
    for line in lines:
        found = re.fullmatch(r"\w+ train of .* on sm_90, \w+_kernel: grid (\d+) -> (\d+)", line)
        assert found is not None, line
        assert int(found.group(1)) // 2 == int(found.group(2)), line


@triton.jit
def _centre(x_ptr, y_ptr, space, READS: tl.constexpr, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """y = x - mean(x), a program for each channel of one image."""
    offs = tl.arange(0, BLOCK)
    first = tl.program_id(0) * space
    x = tl.load(x_ptr + first + offs, mask=offs < space, other=0.0).to(tl.float32)
    mean = tl.sum(x) / space
    if READS == 2:
        x = tl.load(x_ptr + first + offs, mask=offs < space, other=0.0).to(tl.float32)
    tl.store(y_ptr + first + offs, (x - mean).to(y_ptr.dtype.element_ty), mask=offs < space - SHORT)


@triton.jit
def _copy_rows(x_ptr, y_ptr, rows, channels, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """y = x of channels_last, rows by channels."""
    row = tl.arange(0, BLOCK_N)[:, None]
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    offs, mask = row * channels + channel, row < rows
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=mask, other=0.0), mask=mask)


def _counted(case: Case, launch: Callable[[Tensor, Tensor], Any]) -> dict[str, float]:
    x, y = torch.zeros(case.shape).to(case.make().dtype), case.make().contiguous()
    with traffic_meter({"x": x, "y": y}) as report:
        launch(x, y)
    return figures_of(report, case, "forward_train", {"y"})


KEY = "interpreter planted | forward train"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")


def _worse(before: dict[str, float], now: dict[str, float]) -> list[str]:
    lines, _ = budget.compare({KEY: before}, {KEY: now}, budget.more_traffic, budget.other_traffic)
    return [in_words(line) for line in lines]


@interpreted
def test_two_passes_over_x_are_seen_as_traffic_alone() -> None:
    case = Case((1, 4, 32, 32), CHANNELS_FIRST, "fp32")

    def reading(times: int) -> dict[str, float]:
        return _counted(case, lambda x, y: _centre[(4,)](x, y, 1024, times, 0, BLOCK=1024))

    once, twice = reading(1), reading(2)
    assert _worse(once, once) == []
    (line,) = _worse(once, twice)
    assert "x moved 1.0 -> 2.0 times" in line
    assert re.search(r"traffic over the floor 0\.99\d* -> 1\.4[89]\d*", line), line


@interpreted
@pytest.mark.parametrize(("dtype", "times"), [("fp32", "8.0"), ("fp16", "16.0"), ("bf16", "16.0")])
def test_walk_by_channel_over_channels_last_is_seen_as_sectors(dtype: str, times: str) -> None:
    case = Case((64, 32), CHANNELS_LAST, dtype)

    def by(channels: int) -> dict[str, float]:
        grid = (32 // channels,)
        return _counted(
            case, lambda x, y: _copy_rows[grid](x, y, 64, 32, BLOCK_N=64, BLOCK_C=channels)
        )

    rows, walk = by(32), by(1)
    assert _worse(rows, rows) == []
    (line,) = _worse(rows, walk)
    assert f"x moved 1.0 -> {times} times, y moved 1.0 -> {times} times" in line


@interpreted
def test_output_that_is_not_written_is_a_fault_whatever_the_budget_says() -> None:
    case = Case((1, 4, 32, 32), CHANNELS_FIRST, "fp32")
    short = _counted(case, lambda x, y: _centre[(4,)](x, y, 1024, 1, 3, BLOCK=1024))
    assert list(faults_of({KEY: short})) == [f"{KEY}: 12 elements of y never written"]


@interpreted
def test_access_outside_every_tensor_is_a_fault_whatever_the_budget_says() -> None:
    case = Case((1, 4, 32, 32), CHANNELS_FIRST, "fp32")
    beyond = _counted(case, lambda x, y: _centre[(5,)](x, y, 1024, 1, 0, BLOCK=1024))
    (line,) = faults_of({KEY: beyond})
    # a plane too far of one tensor or of both: it may lie in the other one
    assert re.fullmatch(rf"{re.escape(KEY)}: [12]\d\d\d accesses outside every tensor", line), line
