"""Accuracy of the launchers against the float64 oracle, within the budgets of `tolerances`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tritonbn_kernels
from tests.checks import EPS, Operands, check_backward, check_forward, operands, torch_gradients
from tests.inputs import (
    CASES,
    DEVICE,
    DTYPES,
    LAYOUT_CASES,
    RATIOS,
    Case,
    lay_out,
    parameters,
    values,
)
from tests.tolerances import (
    assert_within,
    cancelling_budget,
    mean_budget,
    sum_budget,
    value_budget,
)
from tritonbn import reference

TRAINING = [pytest.param(True, id="train"), pytest.param(False, id="eval")]
# one case of each family, for what does not depend on the layout further
FAMILIES = parameters(
    [
        Case((4, 6, 5, 5), "contiguous", "channels first"),
        Case((4, 6, 5, 5), "channels_last", "channels last"),
    ]
)


@pytest.fixture(params=[1, 0], ids=["planned", "two-read"])
def reads(request: pytest.FixtureRequest) -> Iterator[None]:
    """The plans as made, which read channels-first tensors once, and those that read twice."""
    with tritonbn_kernels.pinned_plan(**({} if request.param else {"resident": 0})):
        yield


by_one_read_and_two = pytest.mark.usefixtures("reads")


def _gradient_of(x: Tensor) -> Tensor:
    """A random dy with the dtype and layout of `x`."""
    return torch.empty_like(x).copy_(values(tuple(x.shape), x.dtype))


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", parameters(CASES))
def test_forward_is_exact_in_every_shape_and_dtype(
    case: Case, dtype: torch.dtype, training: bool
) -> None:
    check_forward(operands(case.tensor(dtype)), training)


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", parameters([case for case in CASES if case.count > 2]))
def test_backward_is_exact_in_every_shape_and_dtype(
    case: Case, dtype: torch.dtype, training: bool
) -> None:
    call = operands(case.tensor(dtype))
    check_backward(call, _gradient_of(call.x), training)


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("case", parameters(LAYOUT_CASES))
def test_any_strides_give_the_same_accuracy(case: Case, training: bool) -> None:
    call = operands(case.tensor())
    check_forward(call, training)
    check_backward(call, _gradient_of(call.x), training)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", FAMILIES)
def test_large_mean_stays_within_the_budget(case: Case, ratio: float, dtype: torch.dtype) -> None:
    call = operands(case.tensor(dtype, ratio))
    for training in (True, False):
        check_forward(call, training)
        check_backward(call, _gradient_of(call.x), training)


@by_one_read_and_two
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", FAMILIES)
def test_large_mean_costs_the_output_no_precision(case: Case, ratio: float) -> None:
    # the budget is torch's on the same deviations about zero: a large mean buys nothing
    call = operands(case.tensor(torch.float32, ratio))
    y, _ = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
    )
    oracle = call.oracle(True)
    shape = (1, -1, *[1] * (call.x.dim() - 2))
    centred = (call.x.double() - oracle.mean.view(shape)).float()
    torch_y = functional.batch_norm(centred, None, None, call.gamma, call.beta, True)
    centred_oracle = Operands(centred, call.gamma, call.beta, None, None).oracle(True).y
    budget = value_budget(centred_oracle, torch_y, torch.float32)
    assert_within("y", y, oracle.y, budget)


@by_one_read_and_two
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 3000.0])
@pytest.mark.parametrize("case", FAMILIES)
def test_constant_channel_is_beta(case: Case, constant: float, dtype: torch.dtype) -> None:
    x = case.tensor(dtype)
    x[:, 1::2] = constant
    call = operands(x)
    saved = check_forward(call, training=True)
    check_backward(call, _gradient_of(x), training=True)
    # nothing is left of the deviation, and so nothing for inv_std = 316 to magnify
    assert torch.equal(saved[0, 1::2] + saved[1, 1::2], x[0, 1::2, 0, 0].to(saved.dtype))
    y, _ = tritonbn_kernels.batch_norm_forward(
        x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
    )
    assert call.beta is not None
    beta = call.beta.to(dtype)[1::2].view(1, -1, 1, 1)
    assert torch.equal(y[:, 1::2], beta.expand_as(y[:, 1::2]))


@by_one_read_and_two
@pytest.mark.parametrize("case", FAMILIES)
def test_statistics_survive_a_first_value_far_from_the_rest(case: Case) -> None:
    x = torch.cat([case.tensor() for _ in range(16)])
    x[0, :, 0, 0] = 1e4
    check_forward(operands(x), training=True)


@by_one_read_and_two
@pytest.mark.parametrize("case", FAMILIES)
def test_gradients_survive_a_first_value_far_from_the_rest(case: Case) -> None:
    x = torch.cat([case.tensor() for _ in range(16)])
    x[0, :, 0, 0] = 1e4
    check_backward(operands(x), _gradient_of(x), training=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", FAMILIES)
def test_batch_statistics_are_exact(case: Case, ratio: float, dtype: torch.dtype) -> None:
    x = case.tensor(dtype, ratio)
    mean, var = tritonbn_kernels.batch_statistics(x)
    oracle = Operands(x, None, None, None, None).oracle(True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert mean.dtype == var.dtype == wide
    torch_var, torch_mean = torch.var_mean(x.to(wide), (0, 2, 3), correction=0)
    centred = x.double() - oracle.mean.view(1, -1, 1, 1)
    std = oracle.var.sqrt()
    budget = mean_budget(oracle.mean, torch_mean, wide, centred, dtype, std=std)
    assert_within("mean", mean, oracle.mean, budget)
    budget = mean_budget(oracle.var, torch_var, wide, centred.square(), dtype)
    assert_within("var", var, oracle.var, budget)


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-3, 2.0])
def test_eps_keeps_the_precision_of_the_input(case: Case, eps: float) -> None:
    # a spread of 1e-3 makes eps decide; in fp64 it must not be rounded to fp32 on the way
    x = case.tensor(torch.float64) * 1e-3
    call = Operands(x, None, None, None, None, eps=eps)
    check_forward(call, training=True)
    check_backward(call, _gradient_of(x), training=True)


@by_one_read_and_two
@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("given", ["both", "neither", "gamma", "beta"])
@pytest.mark.parametrize("case", FAMILIES)
def test_any_of_gamma_and_beta_may_be_missing(case: Case, given: str, training: bool) -> None:
    full = operands(case.tensor())
    call = Operands(
        full.x,
        full.gamma if given in ("both", "gamma") else None,
        full.beta if given in ("both", "beta") else None,
        full.running_mean,
        full.running_var,
    )
    check_forward(call, training)
    check_backward(call, _gradient_of(call.x), training)


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize(
    ("x_dtype", "parameter_dtype", "statistics_dtype"),
    [
        pytest.param(torch.bfloat16, torch.bfloat16, torch.bfloat16, id="bf16-all"),
        pytest.param(torch.float16, torch.float16, torch.float16, id="fp16-all"),
        pytest.param(torch.bfloat16, torch.bfloat16, torch.float32, id="bf16-statistics-fp32"),
        pytest.param(torch.float16, torch.float32, torch.float16, id="fp16-parameters-fp32"),
    ],
)
@pytest.mark.parametrize("case", FAMILIES)
def test_parameters_and_statistics_have_dtypes_of_their_own(
    case: Case,
    x_dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    statistics_dtype: torch.dtype,
    training: bool,
) -> None:
    call = operands(case.tensor(x_dtype), parameter_dtype, statistics_dtype)
    check_forward(call, training)
    check_backward(call, _gradient_of(call.x), training)


def _column(shape: tuple[int, ...]) -> Tensor:
    return values((*shape[:2], 1, 1), torch.float32).expand(shape)


def _reversed(shape: tuple[int, ...]) -> Tensor:
    return values(shape[::-1], torch.float32).permute(3, 2, 1, 0)


OTHER_LAYOUTS = [
    pytest.param(lambda shape: lay_out(values(shape, torch.float32), "contiguous"), id="first"),
    pytest.param(lambda shape: lay_out(values(shape, torch.float32), "channels_last"), id="last"),
    pytest.param(lambda shape: lay_out(values(shape, torch.float32), "space_slice"), id="slice"),
    pytest.param(lambda shape: lay_out(values(shape, torch.float32), "expanded"), id="same-image"),
    pytest.param(_column, id="mean-pooled"),
    pytest.param(
        lambda shape: values(shape[::-1], torch.float32).permute(3, 2, 1, 0), id="permuted"
    ),
]


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("make_dy", OTHER_LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "space_slice"])
def test_dy_may_come_in_any_layout(layout: str, make_dy: Any, training: bool) -> None:
    shape = (4, 6, 5, 4)
    call = operands(lay_out(values(shape, torch.float32), layout))
    dx, _, _ = check_backward(call, make_dy(shape), training)
    y, _ = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
    )
    assert dx is not None and dx.stride() == y.stride()


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "space_slice"])
def test_dy_of_stride_0_is_read_as_its_dense_copy(layout: str, training: bool) -> None:
    # to the bit: in training the exact dx is 0, and no budget relative to that means anything
    call = operands(lay_out(values((4, 6, 5, 4), torch.float32), layout))
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, call.running_mean, call.running_var, None, training, 0.1, EPS
    )
    dy = torch.tensor(0.7, device=DEVICE).expand(call.x.shape)
    dense = torch.empty_like(call.x).copy_(dy)
    for strided, expected in zip(
        tritonbn_kernels.batch_norm_backward(
            dy, call.x, call.gamma, saved, training, True, True, True
        ),
        tritonbn_kernels.batch_norm_backward(
            dense, call.x, call.gamma, saved, training, True, True, True
        ),
        strict=True,
    ):
        assert strided is not None and expected is not None
        assert torch.equal(strided, expected)


CANCELLING = [
    pytest.param((2, 4, 1, 1), None, id="two-values"),
    pytest.param((6, 5, 7, 3), 0.7, id="one-dy-for-all"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "constant"), CANCELLING)
def test_input_gradient_that_cancels_leaves_one_rounding(
    shape: tuple[int, ...], constant: float | None, layout: str, dtype: torch.dtype
) -> None:
    call = operands(lay_out(values(shape, dtype), layout))
    dy = values(shape, dtype)
    if constant is not None:
        dy = torch.full_like(dy, constant)
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
    )
    dx, _, _ = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, True, True, False, False
    )
    exact = call.oracle(True)
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, True).dx
    # evaluation with the same statistics is the first of the terms that cancel
    term = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, False).dx
    torch_dx = torch_gradients(call, dy, True).dx
    assert dx is not None
    assert_within("dx", dx, oracle, cancelling_budget(oracle, torch_dx, dtype, term))


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("dtype", DTYPES[1:3])
def test_sums_of_half_gradients_are_as_exact_as_in_fp32(dtype: torch.dtype, training: bool) -> None:
    # dy * (x - mean) passes the 65504 of fp16, and rounded to bf16 would keep 8 bits of each term;
    # torch may do either on a GPU, so the measure is torch on the same values in fp32
    call = operands(64 * values((64, 4, 16), dtype))
    dy = 2e3 * values((64, 4, 16), dtype)
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, call.running_mean, call.running_var, None, training, 0.1, EPS
    )
    _, dgamma, dbeta = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, training, True, True, True
    )
    exact = call.oracle(training)
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, training)
    torchs = torch_gradients(replace(call, x=call.x.float()), dy.float(), training)
    assert dgamma is not None and dbeta is not None
    xhat = (call.x.double() - exact.mean.view(1, -1, 1)) * exact.inv_std.view(1, -1, 1)
    budget = sum_budget(oracle.dgamma, torchs.dgamma, dgamma.dtype, dy.double() * xhat, dtype)
    assert_within("dgamma", dgamma, oracle.dgamma, budget)
    budget = sum_budget(oracle.dbeta, torchs.dbeta, dbeta.dtype, dy.double(), dtype)
    assert_within("dbeta", dbeta, oracle.dbeta, budget)


@by_one_read_and_two
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("case", FAMILIES)
def test_nan_and_infinity_spread_as_in_torch(case: Case, value: float, training: bool) -> None:
    x = case.tensor()
    x[1, 2, 3, 1] = value
    call = operands(case.tensor())
    ours, torchs = call.copy(), call.copy()
    y, saved = tritonbn_kernels.batch_norm_forward(
        x, call.gamma, call.beta, ours.running_mean, ours.running_var, None, training, 0.1, EPS
    )
    leaf = x.clone().requires_grad_()
    torch_y = functional.batch_norm(
        leaf, torchs.running_mean, torchs.running_var, call.gamma, call.beta, training, 0.1, EPS
    )
    dy = _gradient_of(x)
    (torch_dx,) = torch.autograd.grad(torch_y, leaf, dy)
    dx, dgamma, dbeta = tritonbn_kernels.batch_norm_backward(
        dy, x, call.gamma, saved, training, True, True, True
    )
    assert dx is not None and dgamma is not None and dbeta is not None
    assert torch.equal(y.isfinite(), torch_y.isfinite())
    assert torch.equal(dx.isfinite(), torch_dx.isfinite())
    # other channels never see it
    others = torch.arange(6, device=DEVICE) != 2
    assert not dgamma[2].isfinite() and dgamma[others].isfinite().all()
    assert dbeta.isfinite().all()
    assert ours.running_mean is not None and torchs.running_mean is not None
    assert ours.running_var is not None and torchs.running_var is not None
    assert torch.equal(ours.running_mean.isfinite(), torchs.running_mean.isfinite())
    assert torch.equal(ours.running_var.isfinite(), torchs.running_var.isfinite())


@by_one_read_and_two
@pytest.mark.parametrize("case", FAMILIES)
def test_nan_in_dy_stays_in_its_channel(case: Case) -> None:
    call = operands(case.tensor())
    dy = _gradient_of(call.x)
    dy[0, 3, 1, 1] = float("nan")
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
    )
    for gradient in tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, True, True, True, True
    ):
        assert gradient is not None
        by_channel = gradient.transpose(0, 1) if gradient.dim() > 1 else gradient
        assert by_channel[3].isnan().all()
        assert by_channel[torch.arange(6, device=DEVICE) != 3].isfinite().all()
