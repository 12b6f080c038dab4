"""Every path of the two-read kernels is reached on small tensors by pinned plans, and is right
there; the one-read kernels are in `test_one_read.py`."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tests.checks import EPS, Operands, check_backward, check_forward, operands, torch_gradients
from tests.inputs import DEVICE, DTYPES, INTERPRETED, Case, parameters, values
from tests.tolerances import assert_within, mean_budget, value_budget
from tritonbn import reference
from tritonbn_bench.emulated import random_program_order

TRAINING = [pytest.param(True, id="train"), pytest.param(False, id="eval")]
VIEWS = parameters(
    [
        Case((6, 5, 7, 9), "contiguous", "378 values in odd planes: vectors of one element"),
        Case((6, 5, 8, 8), "contiguous", "384 values: whole vectors"),
        Case((6, 5, 7, 9), "channels_last", "378 rows of odd length"),
        Case((6, 8, 7, 9), "channels_last", "378 rows of whole vectors"),
    ]
)
# blocks of channels and tiles of which the last is partial, in a program and between programs
TILES = {"fused": 1, "block_c": 2, "block_v": 64}
SPLITS = {"fused": 0, "splits": 3, "block_c": 4, "block_v": 32}
PLANS = [
    pytest.param({"fused": 1, "block_c": 8, "block_v": 512}, id="fused-one-tile"),
    pytest.param(TILES, id="fused-tiles"),
    pytest.param(SPLITS, id="split-3"),
    # more splits than the last arriver merges at a time
    pytest.param({"fused": 0, "splits": 24, "block_c": 8, "block_v": 4}, id="split-24"),
]
BOTH = [pytest.param(TILES, id="fused"), pytest.param(SPLITS, id="split")]
SUBSETS = [
    pytest.param((True, False, False), id="dx"),
    pytest.param((False, True, False), id="dgamma"),
    pytest.param((False, False, True), id="dbeta"),
    pytest.param((True, True, False), id="dx-dgamma"),
    pytest.param((True, False, True), id="dx-dbeta"),
    pytest.param((False, True, True), id="dgamma-dbeta"),
]


def _gradient_of(x: Tensor) -> Tensor:
    """A random dy with the dtype and layout of `x`."""
    return torch.empty_like(x).copy_(values(tuple(x.shape), x.dtype))


def _expected_launches(plan: dict[str, int], training: bool) -> tuple[list[str], list[str]]:
    """Kernels of one forward and of one backward."""
    if not training:
        return ["normalize_kernel"], ["gradients_kernel"]
    if plan["fused"]:
        return ["statistics_kernel"], ["gradients_kernel"]
    return (
        ["statistics_kernel", "normalize_kernel"],
        ["gradients_kernel", "input_gradient_kernel"],
    )


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", VIEWS)
def test_training_is_right_by_every_plan(
    case: Case, plan: dict[str, int], launches: list[Any]
) -> None:
    call = operands(case.tensor(ratio=3.0))
    with tritonbn_kernels.pinned_plan(**plan):
        saved = check_forward(call, training=True)
        check_backward(call, _gradient_of(call.x), training=True, saved=saved)
    forward, backward = ["statistics_kernel"], ["gradients_kernel"]
    if not plan["fused"]:
        forward, backward = [*forward, "normalize_kernel"], [*backward, "input_gradient_kernel"]
    assert [record.kernel for record in launches] == forward + backward
    blocks = -(-case.shape[1] // plan["block_c"])
    for record in launches:
        assert record.constants["BLOCK_C"] == plan["block_c"]
        assert record.constants["BLOCK_V"] == plan["block_v"]
        assert record.grid[0] == blocks * plan.get("splits", 1)


@pytest.mark.parametrize("plan", [PLANS[0], PLANS[2]])
@pytest.mark.parametrize("case", VIEWS)
def test_evaluation_is_right_by_every_plan(
    case: Case, plan: dict[str, int], launches: list[Any]
) -> None:
    call = operands(case.tensor(ratio=3.0))
    with tritonbn_kernels.pinned_plan(**plan):
        saved = check_forward(call, training=False)
        check_backward(call, _gradient_of(call.x), training=False, saved=saved)
    assert [record.kernel for record in launches] == ["normalize_kernel", "gradients_kernel"]


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("need", SUBSETS)
@pytest.mark.parametrize("plan", BOTH)
@pytest.mark.parametrize("case", [VIEWS[1], VIEWS[2]])
def test_only_the_gradients_asked_for_are_made(
    case: Case, plan: dict[str, int], need: tuple[bool, bool, bool], training: bool
) -> None:
    call = operands(case.tensor())
    need_dx, need_dgamma, need_dbeta = need
    with tritonbn_kernels.pinned_plan(**plan):
        check_backward(
            call,
            _gradient_of(call.x),
            training,
            need_dx=need_dx,
            need_dgamma=need_dgamma,
            need_dbeta=need_dbeta,
        )


@pytest.mark.parametrize("case", [VIEWS[0], VIEWS[3]])
def test_eval_input_gradient_alone_needs_no_sums(case: Case, launches: list[Any]) -> None:
    call = operands(case.tensor())
    check_backward(call, _gradient_of(call.x), False, need_dgamma=False, need_dbeta=False)
    assert [record.kernel for record in launches] == ["normalize_kernel", "input_gradient_kernel"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", VIEWS)
def test_batch_statistics_by_every_plan(case: Case, plan: dict[str, int]) -> None:
    x = case.tensor(ratio=100.0)
    with tritonbn_kernels.pinned_plan(**plan):
        mean, var = tritonbn_kernels.batch_statistics(x)
    oracle = reference.forward(x, None, None, None, None, True, 0.1, EPS)
    torch_var, torch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    centred = x.double() - oracle.mean.view(1, -1, 1, 1)
    std = oracle.var.sqrt()
    budget = mean_budget(oracle.mean, torch_mean, mean.dtype, centred, x.dtype, std=std)
    assert_within("mean", mean, oracle.mean, budget)
    budget = mean_budget(oracle.var, torch_var, var.dtype, centred.square(), x.dtype)
    assert_within("var", var, oracle.var, budget)


@pytest.mark.parametrize("momentum", [0.0, -1.2, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("plan", BOTH)
def test_any_momentum_updates_the_running_statistics(plan: dict[str, int], momentum: float) -> None:
    call = replace(operands(values((6, 5, 7, 9), torch.float32)), momentum=momentum)
    with tritonbn_kernels.pinned_plan(**plan):
        check_forward(call, training=True, tracked=3)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_0_and_1_touch_no_bit_of_what_they_keep(momentum: float) -> None:
    x = values((6, 5, 7), torch.float32)
    first, second = (torch.randn(5, device=DEVICE) for _ in range(2)), torch.rand(5, device=DEVICE)
    mean, other = first
    old = mean.clone()
    for buffer in (mean, other):
        tritonbn_kernels.batch_norm_forward(
            x, None, None, buffer, second.clone(), None, True, momentum, EPS
        )
    # 1 forgets whatever was there before; 0 forgets the batch
    assert torch.equal(mean, other if momentum else old)


def test_evaluation_counts_and_updates_nothing() -> None:
    call = operands(values((4, 3, 5), torch.float32))
    check_forward(call, training=False, tracked=7)


@pytest.mark.parametrize("tracked", [0, 1, 9, 2**24 + 1])
@pytest.mark.parametrize("plan", BOTH)
def test_momentum_none_is_the_average_of_all_batches(plan: dict[str, int], tracked: int) -> None:
    call = replace(operands(values((6, 5, 7, 9), torch.float32)), momentum=None)
    with tritonbn_kernels.pinned_plan(**plan):
        check_forward(call, training=True, tracked=tracked)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU draws its own order")
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param({"fused": 1, "block_c": 1, "block_v": 32}, id="fused"),
        pytest.param({"fused": 0, "splits": 2, "block_c": 1, "block_v": 16}, id="split"),
    ],
)
def test_momentum_none_reads_the_count_before_it_is_written(plan: dict[str, int]) -> None:
    x = values((4, 3, 8), torch.float32)
    start = Operands(x, None, None, torch.zeros(3), torch.ones(3), momentum=None)
    with tritonbn_kernels.pinned_plan(**plan):
        check_forward(start, training=True, tracked=2)
        in_index_order = _cumulative_update(start)
        for seed in range(24):
            with random_program_order(seed):
                mean, var, count = _cumulative_update(start)
            assert count.item() == 3
            assert torch.equal(mean, in_index_order[0]), f"seed {seed}"
            assert torch.equal(var, in_index_order[1]), f"seed {seed}"


def _cumulative_update(start: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """Running mean, running variance and count after a third batch."""
    call, count = start.copy(), torch.tensor(2)
    assert call.running_mean is not None and call.running_var is not None
    tritonbn_kernels.batch_norm_forward(
        call.x, None, None, call.running_mean, call.running_var, count, True, None, EPS
    )
    return call.running_mean, call.running_var, count


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [VIEWS[1], VIEWS[2]])
def test_public_function_runs_the_kernels_and_keeps_the_budget(
    case: Case, dtype: torch.dtype, training: bool, launches: list[Any]
) -> None:
    call = operands(case.tensor(dtype))
    ours, torchs = call.copy(), call.wide()
    assert call.gamma is not None and call.beta is not None
    x, gamma, beta = (t.clone().requires_grad_() for t in (call.x, call.gamma, call.beta))
    assert tritonbn.backend(x) != "torch"
    y = tritonbn.batch_norm(x, ours.running_mean, ours.running_var, gamma, beta, training)
    dy = _gradient_of(call.x)
    gradients = torch.autograd.grad(y, (x, gamma, beta), dy)
    kernels = ["statistics_kernel" if training else "normalize_kernel", "gradients_kernel"]
    if training and case.layout == "contiguous" and dtype != torch.float64:
        kernels = ["resident_forward_kernel", "resident_backward_kernel"]
    # rows of five halves hold no whole words
    if training and case.layout == "channels_last" and dtype == torch.float32:
        kernels = ["rows_forward_kernel", "rows_backward_kernel"]
    assert [record.kernel for record in launches] == kernels
    exact = call.oracle(training)
    torch_y = functional.batch_norm(
        torchs.x, torchs.running_mean, torchs.running_var, torchs.gamma, torchs.beta, training
    )
    assert_within("y", y, exact.y, value_budget(exact.y, torch_y, dtype))
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, training)
    torch_dx = torch_gradients(call, dy, training).dx
    assert_within("dx", gradients[0], oracle.dx, value_budget(oracle.dx, torch_dx, dtype))
    # the launcher's own results are judged elsewhere; here they must be what reaches the leaves
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x,
        call.gamma,
        call.beta,
        None if training else call.running_mean,
        None if training else call.running_var,
        None,
        training,
        0.1,
        EPS,
    )
    same = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, training, True, True, True
    )
    for gradient, launcher in zip(gradients, same, strict=True):
        assert launcher is not None
        assert torch.equal(gradient, launcher)


@pytest.mark.parametrize("case", [VIEWS[0], VIEWS[2]])
def test_two_forwards_before_one_backward_keep_their_own_statistics(case: Case) -> None:
    first, second = operands(case.tensor()), operands(case.tensor(ratio=5.0))
    mean, var = torch.zeros(5, device=DEVICE), torch.ones(5, device=DEVICE)
    xs = [call.x.clone().requires_grad_() for call in (first, second)]
    ys = [tritonbn.batch_norm(x, mean, var, training=True) for x in xs]
    dys = [_gradient_of(x) for x in xs]
    gradients = torch.autograd.grad(ys, xs, dys)
    for x, dy, dx in zip(xs, dys, gradients, strict=True):
        call = Operands(x.detach(), None, None, None, None)
        exact = call.oracle(True)
        oracle = reference.backward(dy, call.x, None, exact.mean, exact.inv_std, True)
        torch_dx = torch_gradients(call, dy, True).dx
        assert_within("dx", dx, oracle.dx, value_budget(oracle.dx, torch_dx, dx.dtype))


def test_eval_after_train_uses_what_training_left(launches: list[Any]) -> None:
    layer = tritonbn.BatchNorm2d(5).to(DEVICE)
    for _ in range(3):
        layer(values((4, 5, 6, 3), torch.float32))
    layer.eval()
    assert layer.running_mean is not None and layer.running_var is not None
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = values((2, 5, 6, 3), torch.float32)
    y = layer(x)
    kernels = [*3 * ["resident_forward_kernel"], "normalize_kernel"]
    assert [record.kernel for record in launches] == kernels
    assert torch.equal(layer.running_mean, mean) and torch.equal(layer.running_var, var)
    oracle = reference.forward(x, None, None, mean, var, False, 0.1, EPS).y
    torch_y = functional.batch_norm(x, mean, var)
    assert_within("y", y, oracle, value_budget(oracle, torch_y, x.dtype))
