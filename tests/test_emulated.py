"""The mended interpreter and the random program order, on tiny kernels of their own."""

# jit bodies are untyped by nature
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from tests.inputs import INTERPRETED
from tritonbn_bench.emulated import mend_interpreter, random_program_order

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

PATTERNS = 65536


@triton.jit
def _convert_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    x_tile = tl.load(x_ptr + offs, mask=mask, other=0.0)
    tl.store(y_ptr + offs, x_tile.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _implicit_store_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs))


@triton.jit
def _add_one_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x_tile = tl.load(x_ptr + offs).to(tl.float32)
    tl.store(y_ptr + offs, (x_tile + 1.0).to(tl.bfloat16))


@triton.jit
def _invert_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, 1.0 / tl.load(x_ptr + offs))


@triton.jit
def _argument_kernel(y_ptr, value, CONSTANT: tl.constexpr):
    tl.store(y_ptr, value)
    tl.store(y_ptr + 1, tl.full((), CONSTANT, tl.float64))


@triton.jit
def _sum_loop_kernel(x_ptr, y_ptr, n, STEP: tl.constexpr):
    total = 0.0
    for start in range(0, n, STEP):
        offs = start + tl.arange(0, STEP)
        total += tl.sum(tl.load(x_ptr + offs, mask=offs < n, other=0.0))
    tl.store(y_ptr, total)


@triton.jit
def _tensor_range_kernel(n_ptr, y_ptr):
    count = 0
    for _ in range(tl.load(n_ptr)):
        count += 1
    tl.store(y_ptr, count)


@triton.jit
def _ticket_kernel(counter_ptr, ticket_ptr):
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2)
    program += tl.program_id(2)
    tl.store(ticket_ptr + program, tl.atomic_add(counter_ptr, 1))


def _convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`, by a kernel."""
    y = torch.empty(x.shape, dtype=dtype)
    _convert_kernel[(triton.cdiv(x.numel(), PATTERNS),)](x, y, x.numel(), BLOCK=PATTERNS)
    return y


def _fp32(bits: Tensor) -> Tensor:
    """The fp32 values with these int64 bit patterns."""
    return bits.to(torch.int32).view(torch.float32)


def _assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal to the bit, but for which of the NaNs a NaN is."""
    assert torch.equal(found.isnan(), expected.isnan())
    where = ~expected.isnan()
    assert torch.equal(found[where].view(torch.int16), expected[where].view(torch.int16))


def _low_halves() -> list[Any]:
    """What is rounded away: every class of it, by its 16 bits."""
    return [
        pytest.param(0x0000, id="exact"),
        pytest.param(0x0001, id="smallest-rest"),
        pytest.param(0x7FFF, id="just-below-half"),
        pytest.param(0x8000, id="half-to-even"),
        pytest.param(0x8001, id="just-above-half"),
        pytest.param(0xFFFF, id="largest-rest"),
    ]


@pytest.mark.parametrize("low", _low_halves())
def test_fp32_to_bf16_rounds_to_nearest_even_for_every_upper_half(low: int) -> None:
    # all signs, exponents (zero, denormal, infinite, NaN) and kept mantissas, in one grid
    x = _fp32(torch.arange(PATTERNS) * PATTERNS + low)
    _assert_same_bits(_convert(x, torch.bfloat16), x.bfloat16())


def test_every_bf16_pattern_survives_a_load_to_fp32_and_a_store_back() -> None:
    x = torch.arange(PATTERNS).to(torch.int16).view(torch.bfloat16)
    wide = _convert(x, torch.float32)
    torch.testing.assert_close(wide, x.float(), rtol=0, atol=0, equal_nan=True)
    _assert_same_bits(_convert(wide, torch.bfloat16), x)


def test_store_that_casts_by_itself_rounds_too() -> None:
    x = torch.randn(1024)
    y = torch.empty(1024, dtype=torch.bfloat16)
    _implicit_store_kernel[(1,)](x, y, BLOCK=1024)
    _assert_same_bits(y, x.bfloat16())


def test_bf16_arithmetic_in_fp32_is_rounded_once() -> None:
    x = torch.randn(1024).bfloat16()
    y = torch.empty_like(x)
    _add_one_kernel[(1,)](x, y, BLOCK=1024)
    _assert_same_bits(y, (x.float() + 1).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["fp16", "fp64"])
def test_other_conversions_stay_as_shipped(dtype: torch.dtype) -> None:
    x = torch.randn(4096)
    assert torch.equal(_convert(x, dtype), x.to(dtype))


def test_shipped_conversion_would_truncate(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _fp32(torch.tensor([0x3F80FFFF]))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", _shipped("_cast_as_shipped"))
    assert _convert(x, torch.bfloat16).item() != x.bfloat16().item()


def _shipped(name: str) -> Any:
    """What the mend replaced."""
    from tritonbn_bench.emulated import interpreter as mended

    return getattr(mended, name)


def test_float_argument_arrives_in_fp32_and_a_constant_does_not() -> None:
    y = torch.empty(2, dtype=torch.float64)
    _argument_kernel[(1,)](y, 0.1, CONSTANT=0.1)
    assert y.tolist() == [torch.tensor(0.1).item(), 0.1]


@pytest.mark.parametrize("n", [1, 17, 64])
def test_run_time_size_bounds_a_loop(n: int) -> None:
    x, y = torch.ones(n), torch.empty(1)
    _sum_loop_kernel[(1,)](x, y, n, STEP=16)
    assert y.item() == n


def test_loaded_value_bounds_a_loop() -> None:
    y = torch.empty(1, dtype=torch.int32)
    _tensor_range_kernel[(1,)](torch.tensor([5], dtype=torch.int32), y)
    assert y.item() == 5


def test_kernels_divide_by_zero_in_silence_and_callers_do_not() -> None:
    x, y = torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.empty(4)
    _invert_kernel[(1,)](x, y, BLOCK=4)
    assert y.tolist() == [1.0, -1.0, math.inf, 0.5]
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        np.ones(1) / np.zeros(1)


def test_mending_twice_changes_nothing() -> None:
    def mended() -> list[Any]:
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        return [
            builder.cast_impl,
            executor.__call__,
            interpreter._patch_lang_tensor,
            interpreter._implicit_cvt,
            interpreter._patch_lang,
        ]

    before = mended()
    mend_interpreter()
    assert mended() == before


def _tickets(grid: tuple[int, ...]) -> list[int]:
    """For each program of `grid`, how many ran before it."""
    size = torch.Size(grid).numel()
    tickets = torch.empty(size, dtype=torch.int32)
    _ticket_kernel[grid](torch.zeros(1, dtype=torch.int32), tickets)
    return tickets.tolist()


@pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 2, 3)], ids=["1d", "2d", "3d"])
def test_random_order_runs_every_program_once(grid: tuple[int, ...]) -> None:
    with random_program_order(7):
        tickets = _tickets(grid)
    assert tickets != sorted(tickets)
    assert sorted(tickets) == list(range(len(tickets)))


def test_same_seed_gives_the_same_order() -> None:
    def two_launches(seed: int) -> list[list[int]]:
        with random_program_order(seed):
            return [_tickets((8,)), _tickets((8,))]

    first = two_launches(1)
    assert first == two_launches(1)
    assert first != two_launches(2)
    assert first[0] != first[1]


def test_seeds_reach_every_order_of_three_programs() -> None:
    orders = set()
    for seed in range(60):
        with random_program_order(seed):
            orders.add(tuple(_tickets((3,))))
    assert orders == set(itertools.permutations(range(3)))


def test_index_order_returns_after_the_context_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), random_program_order(3):
        _tickets((8,))
        raise ZeroDivisionError
    assert _tickets((8,)) == list(range(8))
