"""One-read launches as a layer meets them: counting, strides, alignment, order of programs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tests.checks import EPS, Operands, check_forward, operands
from tests.held import Held, judge, of_every_kernel
from tests.inputs import DEVICE, INTERPRETED, lay_out, values
from tests.tolerances import assert_within, value_budget
from tritonbn_bench.emulated import random_program_order
from tritonbn_kernels import LaunchRecord, pinned_plan, record_launches


@of_every_kernel
@pytest.mark.parametrize("tracked", [0, 3, 2**24 + 1])
def test_momentum_none_is_the_average_of_all_batches(held: Held, tracked: int) -> None:
    call = replace(operands(held.values(torch.float32)), momentum=None)
    with held.plan():
        check_forward(call, training=True, tracked=tracked)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU draws its own order")
@pytest.mark.parametrize(
    ("shape", "pins"),
    [
        pytest.param((4, 3, 8), {"block_c": 1}, id="resident"),
        pytest.param((3, 24, 5), {"block_c": 8}, id="rows"),
    ],
)
def test_program_order_changes_no_bit_and_no_count(
    shape: tuple[int, ...], pins: dict[str, int]
) -> None:
    x, dy = values(shape, torch.float32), values(shape, torch.float32)

    def step() -> list[Tensor]:
        mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
        count = torch.tensor(2)
        y, saved = tritonbn_kernels.batch_norm_forward(
            x, None, None, mean, var, count, True, None, EPS
        )
        gradients = tritonbn_kernels.batch_norm_backward(dy, x, None, saved, True, True, True, True)
        return [y, saved, mean, var, count, *(g for g in gradients if g is not None)]

    with pinned_plan(**pins):
        with record_launches() as launches:
            in_index_order = step()
        assert all(launch.grid[0] == 3 for launch in launches)
        assert int(in_index_order[4]) == 3
        for seed in range(12):
            with random_program_order(seed):
                for result, expected in zip(step(), in_index_order, strict=True):
                    assert torch.equal(result, expected), f"seed {seed}"


def _between(x: Tensor) -> Tensor:
    """`x` as the middle channels of a larger tensor of NaN, at a multiple of 16 bytes."""
    n, c, *space = x.shape
    larger = torch.full((n, c + 16, *space), torch.nan, dtype=x.dtype, device=x.device)
    larger[:, 8:-8] = x
    return larger[:, 8:-8]


STRIDED = [
    pytest.param(_between, id="channels-of-more"),
    pytest.param(lambda x: lay_out(x, "batch_slice"), id="every-other-image"),
    pytest.param(lambda x: lay_out(x, "expanded"), id="one-image-n-times"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", STRIDED)
@pytest.mark.parametrize("which", ["x", "dy", "both"])
@pytest.mark.parametrize(
    ("kernels", "shape"),
    [
        pytest.param("resident", (4, 6, 4, 4), id="resident"),
        pytest.param("rows", (4, 16, 5, 3), id="rows"),
    ],
)
def test_slices_are_read_in_place(
    kernels: str, shape: tuple[int, ...], which: str, make: Any, dtype: torch.dtype
) -> None:
    x, dy = values(shape, dtype), values(shape, dtype)
    call = operands(make(x) if which != "dy" else x)
    with Held(kernels, shape, "strides of x, dy and the outputs differ").plan() as launches:
        judge(call, make(dy) if which != "x" else dy)
    assert len(launches) == 2


@pytest.mark.parametrize("misaligned", ["x", "dy", "both"])
@pytest.mark.parametrize("shape", [(4, 6, 4, 4), (4, 16, 5, 3)], ids=["wide", "rows"])
def test_tensors_off_sixteen_bytes_are_read_twice(
    shape: tuple[int, ...], misaligned: str, launches: list[LaunchRecord]
) -> None:
    dtype = torch.bfloat16

    def off(tensor: Tensor) -> Tensor:
        storage = torch.full((tensor.numel() + 1,), torch.nan, dtype=dtype, device=DEVICE)
        storage[1:] = tensor.flatten()
        return storage[1:].view(shape)

    call, dy = operands(values(shape, dtype)), values(shape, dtype)
    other = replace(call, x=off(call.x)) if misaligned != "dy" else call
    other_dy = off(dy) if misaligned != "x" else dy
    # aligned tensors of the same strides come before and after
    for step in ((call, dy), (other, other_dy), (call, dy)):
        judge(*step)
    kernels = [launch.kernel for launch in launches]
    one = kernels[:2]
    assert all(name.startswith(("resident", "rows")) for name in one)
    two = ["statistics_kernel" if misaligned != "dy" else one[0], "gradients_kernel"]
    assert kernels == [*one, *two, *one]


@pytest.mark.parametrize("shape", [(4, 6, 4, 4), (4, 16, 5, 3)], ids=["wide", "rows"])
def test_training_step_of_a_layer_is_two_launches(
    shape: tuple[int, ...], launches: list[LaunchRecord]
) -> None:
    layer = tritonbn.BatchNorm2d(shape[1]).to(DEVICE)
    for step in range(1, 4):
        x = values(shape, torch.float32).requires_grad_()
        y = layer(x)
        y.backward(values(shape, torch.float32))
        assert len(launches) == 2 * step
        exact = Operands(x.detach(), None, None, None, None).oracle(True).y
        torch_y = functional.batch_norm(x.detach(), None, None, training=True)
        assert_within("y", y, exact, value_budget(exact, torch_y, y.dtype))
    assert layer.num_batches_tracked is not None
    assert int(layer.num_batches_tracked) == 3
