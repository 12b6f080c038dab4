"""What Batch Normalization promises by its formula, whatever computes it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tests.checks import EPS, Operands, operands, torch_gradients
from tests.inputs import DEVICE, DTYPES, LAYOUT_CASES, Case, lay_out, parameters, values
from tests.tolerances import (
    assert_float64_close,
    assert_within,
    mean_budget,
    sum_budget,
    value_budget,
)
from tritonbn import reference
from tritonbn.reference import BatchNorm1dManual

CASES = [
    Case((6, 5, 7, 9), "contiguous", "channels first"),
    Case((6, 5, 7, 9), "channels_last", "channels last"),
    Case((24, 6), "contiguous", "rows"),
]
VIEWS = parameters(CASES)
TRAINING = [pytest.param(True, id="train"), pytest.param(False, id="eval")]


def _forward(call: Operands, training: bool = True) -> tuple[Tensor, Tensor]:
    """y and saved statistics, the running statistics left alone."""
    mean, var = (None, None) if training else (call.running_mean, call.running_var)
    return tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, mean, var, None, training, 0.1, call.eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", VIEWS)
def test_the_identity_can_be_recovered(case: Case, dtype: torch.dtype) -> None:
    # gamma = sqrt(var + eps) and beta = mean undo the normalisation
    x = case.tensor(dtype, ratio=2.0)
    mean, var = tritonbn_kernels.batch_statistics(x)
    call = Operands(x, (var + EPS).sqrt(), mean, None, None)
    y, _ = _forward(call)
    torch_y = functional.batch_norm(x, None, None, call.gamma, call.beta, True, 0.1, EPS)
    assert_within("y", y, x.double(), value_budget(x.double(), torch_y, dtype))


@pytest.mark.parametrize("case", VIEWS)
def test_input_gradient_is_orthogonal_to_one_and_nearly_to_xhat(case: Case) -> None:
    # sum dx = 0; sum dx * xhat = gamma * inv_std * dgamma * eps / (var + eps), 0 but for eps
    call = operands(case.tensor(ratio=1.0))
    dy = values(case.shape, torch.float32)
    _, saved = _forward(call)
    dx, _, _ = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, True, True, False, False
    )
    assert dx is not None and call.gamma is not None
    exact = call.oracle(True)
    dgamma = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, True).dgamma
    dims = [dim for dim in range(call.x.dim()) if dim != 1]
    shape = (1, -1, *[1] * (call.x.dim() - 2))
    xhat = (call.x.double() - exact.mean.view(shape)) * exact.inv_std.view(shape)
    torch_dx = torch_gradients(call, dy, True).dx.double()
    total = dx.double().sum(dims)
    budget = sum_budget(total * 0, torch_dx.sum(dims), dx.dtype, dx.double(), call.x.dtype)
    assert_within("sum dx", total, total * 0, budget)
    expected = call.gamma.double() * exact.inv_std * dgamma * EPS * exact.inv_std.square()
    terms = dx.double() * xhat
    torch_total = (torch_dx * xhat).sum(dims)
    budget = sum_budget(expected, torch_total, dx.dtype, terms, call.x.dtype)
    assert_within("sum dx * xhat", terms.sum(dims), expected, budget)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_evaluation_of_a_sample_is_bitwise_independent_of_its_batch(
    layout: str, dtype: torch.dtype
) -> None:
    call = operands(lay_out(values((7, 5, 4, 6), dtype), layout))
    together, _ = _forward(call, training=False)
    for size in (1, 2, 3):
        for start in range(0, 7 - size):
            part = call.x[start : start + size]
            alone, _ = _forward(
                Operands(part, call.gamma, call.beta, call.running_mean, call.running_var),
                training=False,
            )
            assert torch.equal(alone, together[start : start + size])


@pytest.mark.parametrize("shape", [(32, 6), (5, 6, 7)], ids=["n32-c6", "n5-c6-l7"])
def test_manual_layer_agrees_but_for_the_biased_running_variance(shape: tuple[int, ...]) -> None:
    ours, manual = tritonbn.BatchNorm1d(6).to(DEVICE), BatchNorm1dManual(6).to(DEVICE)
    with torch.no_grad():
        for parameter, theirs in ((ours.weight, manual.gamma), (ours.bias, manual.beta)):
            parameter.copy_(torch.randn(6) + 1)
            theirs.copy_(parameter)
    x = (values(shape, torch.float32) + 1).requires_grad_()
    assert tritonbn.backend(x) != "torch"
    dy = values(shape, torch.float32)
    call = Operands(x.detach(), manual.gamma.detach(), manual.beta.detach(), None, None)
    exact = call.oracle(True)
    y, theirs = ours(x), manual(x)
    assert_within("y", y, exact.y, value_budget(exact.y, theirs, x.dtype))
    (dx,) = torch.autograd.grad(y, x, dy)
    (their_dx,) = torch.autograd.grad(theirs, x, dy)
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, True)
    assert_within("dx", dx, oracle.dx, value_budget(oracle.dx, their_dx, x.dtype))
    assert ours.running_mean is not None
    centred = x.detach().double() - exact.mean.view(1, -1, *[1] * (x.dim() - 2))
    std = exact.var.sqrt()
    mean = 0.1 * exact.mean
    budget = mean_budget(mean, manual.running_mean, x.dtype, 0.1 * centred, x.dtype, std=std)
    assert_within("running_mean", ours.running_mean, mean, budget)


def test_running_variance_differs_from_the_manual_one_by_n_over_n_minus_1() -> None:
    # in float64, where nothing but the factor is left to see
    ours, manual = tritonbn.BatchNorm1d(6).double(), BatchNorm1dManual(6).double()
    ours, manual = ours.to(DEVICE), manual.to(DEVICE)
    x = values((32, 6), torch.float64)
    ours(x), manual(x)
    assert ours.running_var is not None
    assert_float64_close(ours.running_var - 0.9, (manual.running_var - 0.9) * 32 / 31)


@pytest.mark.parametrize("power", [-12, -3, 5, 12])
@pytest.mark.parametrize("case", VIEWS)
def test_scaling_by_a_power_of_two_changes_no_bit(case: Case, power: int) -> None:
    # every operation commutes with it, if eps is scaled by its square
    call = operands(case.tensor(ratio=1.0))
    y, saved = _forward(call)
    scaled = Operands(call.x * 2.0**power, call.gamma, call.beta, None, None, eps=EPS * 4.0**power)
    scaled_y, scaled_saved = _forward(scaled)
    assert torch.equal(scaled_y, y)
    assert torch.equal(scaled_saved[:2] * 2.0**-power, saved[:2])
    assert torch.equal(scaled_saved[2] * 2.0**power, saved[2])


@pytest.mark.parametrize("shift", [2.0**6, -(2.0**12), 2.0**18])
@pytest.mark.parametrize("case", VIEWS)
def test_shifting_the_input_shifts_only_the_mean(case: Case, shift: float) -> None:
    # steps of 1/16 make the shifted values exact
    x = (case.tensor() * 16).round() / 16
    call, moved = operands(x), operands(x + shift)
    assert torch.equal(moved.x.double(), x.double() + shift)
    y, _ = _forward(Operands(moved.x, call.gamma, call.beta, None, None))
    oracle = call.oracle(True)
    torch_y = functional.batch_norm(x, None, None, call.gamma, call.beta, True, 0.1, EPS)
    assert_within("y", y, oracle.y, value_budget(oracle.y, torch_y, x.dtype))
    mean, var = tritonbn_kernels.batch_statistics(moved.x)
    centred = x.double() - oracle.mean.view(1, -1, *[1] * (x.dim() - 2))
    dims = [dim for dim in range(x.dim()) if dim != 1]
    torch_var, torch_mean = torch.var_mean(moved.x, dims, correction=0)
    std = oracle.var.sqrt()
    budget = mean_budget(oracle.mean + shift, torch_mean, x.dtype, centred, x.dtype, std=std)
    assert_within("mean", mean, oracle.mean + shift, budget)
    budget = mean_budget(oracle.var, torch_var, x.dtype, centred.square(), x.dtype)
    assert_within("var", var, oracle.var, budget)


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("case", VIEWS)
def test_backward_is_linear_in_dy(case: Case, training: bool) -> None:
    call = operands(case.tensor())
    _, saved = _forward(call, training)
    dy = torch.empty_like(call.x).copy_(values(case.shape, torch.float32))
    once = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, training, True, True, True
    )
    four_times = tritonbn_kernels.batch_norm_backward(
        4 * dy, call.x, call.gamma, saved, training, True, True, True
    )
    for gradient, larger in zip(once, four_times, strict=True):
        assert gradient is not None and larger is not None
        assert torch.equal(4 * gradient, larger)


@pytest.mark.parametrize("case", parameters([*CASES, LAYOUT_CASES[0]]))
def test_channels_do_not_see_one_another(case: Case) -> None:
    call = operands(case.tensor())
    order = torch.arange(case.shape[1] - 1, -1, -1, device=DEVICE)
    assert call.gamma is not None and call.beta is not None
    turned = Operands(
        lay_out(call.x[:, order], case.layout), call.gamma[order], call.beta[order], None, None
    )
    y, saved = _forward(call)
    turned_y, turned_saved = _forward(turned)
    assert torch.equal(turned_y, y[:, order])
    assert torch.equal(turned_saved, saved[:, order])
