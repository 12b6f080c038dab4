"""The oracle against torch in float64 and against numerical derivatives."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.eager import CHOICES, activate
from tests.tolerances import assert_float64_close, assert_within, value_budget
from tritonbn import reference
from tritonbn.reference import BatchNorm1dManual
from tritonbn_kernels.activation_names import ACTIVATIONS

EPS = 1e-5
SHAPES = [
    pytest.param((7, 3), id="n7-c3"),
    pytest.param((4, 3, 5), id="n4-c3-l5"),
    pytest.param((2, 5, 3, 4), id="n2-c5-s3x4"),
    pytest.param((2, 2, 3, 1, 2), id="n2-c2-s3x1x2"),
]
TRAINING = [pytest.param(True, id="train"), pytest.param(False, id="eval")]


def _operands(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, gamma, beta, running_mean, running_var in float64."""
    channels = shape[1]
    x = 2 * torch.randn(shape, dtype=torch.float64) + 1
    gamma, beta, mean = torch.randn(3, channels, dtype=torch.float64)
    return x, gamma, beta, mean, torch.rand(channels, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_torch_in_float64(shape: tuple[int, ...], training: bool) -> None:
    x, gamma, beta, mean, var = _operands(shape)
    ours = reference.forward(x, gamma, beta, mean, var, training, 0.3, EPS)
    torch_mean, torch_var = mean.clone(), var.clone()
    y = functional.batch_norm(x, torch_mean, torch_var, gamma, beta, training, 0.3, EPS)
    assert_float64_close(ours.y, y)
    assert_float64_close(ours.running_mean, torch_mean)
    assert_float64_close(ours.running_var, torch_var)


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_torch_in_float64(shape: tuple[int, ...], training: bool) -> None:
    x, gamma, beta, mean, var = _operands(shape)
    leaves = [tensor.requires_grad_() for tensor in (x, gamma, beta)]
    dy = torch.randn(shape, dtype=torch.float64)
    y = functional.batch_norm(x, mean.clone(), var.clone(), gamma, beta, training, 0.1, EPS)
    expected = torch.autograd.grad(y, leaves, dy)
    with torch.no_grad():
        saved = reference.forward(x, gamma, beta, mean, var, training, 0.1, EPS)
        ours = reference.backward(dy, x, gamma, saved.mean, saved.inv_std, training)
    for gradient, torch_gradient in zip(ours[:3], expected, strict=True):
        assert_float64_close(gradient, torch_gradient)


@pytest.mark.parametrize("training", TRAINING)
def test_forward_has_the_derivative_that_backward_gives(training: bool) -> None:
    x, gamma, beta, mean, var = _operands((3, 2, 4))

    def y_of(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return reference.forward(x, gamma, beta, mean, var, training, 0.1, EPS).y

    leaves = tuple(tensor.requires_grad_() for tensor in (x, gamma, beta))
    assert torch.autograd.gradcheck(y_of, leaves)
    dy = torch.randn(x.shape, dtype=torch.float64)
    expected = torch.autograd.grad(y_of(*leaves), leaves, dy)
    saved = reference.forward(x, gamma, beta, mean, var, training, 0.1, EPS)
    ours = reference.backward(dy, x, gamma, saved.mean, saved.inv_std, training)
    for gradient, derived in zip(ours[:3], expected, strict=True):
        assert_float64_close(gradient, derived)


def test_missing_gamma_and_beta_mean_one_and_zero() -> None:
    x, gamma, beta, mean, var = _operands((4, 3, 2))
    plain = reference.forward(x, None, None, mean, var, True, 0.1, EPS)
    spelled = reference.forward(
        x, torch.ones_like(gamma), torch.zeros_like(beta), mean, var, True, 0.1, EPS
    )
    assert torch.equal(plain.y, spelled.y)
    assert torch.equal(
        reference.backward(x, x, None, plain.mean, plain.inv_std, True).dx,
        reference.backward(x, x, torch.ones_like(gamma), plain.mean, plain.inv_std, True).dx,
    )


def test_half_input_is_widened_before_any_arithmetic() -> None:
    x = torch.randn(6, 3, 2).half()
    half = reference.forward(x, None, None, None, None, True, 0.1, EPS)
    wide = reference.forward(x.double(), None, None, None, None, True, 0.1, EPS)
    assert half.y.dtype == torch.float64
    assert torch.equal(half.y, wide.y)


def test_moments_survive_a_mean_a_hundred_million_times_the_spread() -> None:
    # integers: every x is exact, and so are the expected mean and variance
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64).view(4, 1) + 1e8
    saved = reference.forward(x, None, None, None, None, True, 0.1, EPS)
    assert saved.mean.item() == 1e8 + 0.5
    assert saved.var.item() == 1.25


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, 2.0, -1.2])
def test_any_momentum_weighs_as_in_torch(momentum: float) -> None:
    x, _, _, mean, var = _operands((5, 3))
    ours = reference.forward(x, None, None, mean, var, True, momentum, EPS)
    functional.batch_norm(x, mean, var, None, None, True, momentum, EPS)
    assert_float64_close(ours.running_mean, mean)
    assert_float64_close(ours.running_var, var)


def test_momentum_none_is_the_average_of_all_batches() -> None:
    layer = nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    mean, var = torch.zeros(2, 3, dtype=torch.float64)
    for count in range(4):
        x = torch.randn(5, 3, dtype=torch.float64)
        layer(x)
        step = reference.forward(x, None, None, mean, var, True, None, EPS, count)
        assert step.running_mean is not None and step.running_var is not None
        mean, var = step.running_mean, step.running_var
    assert_float64_close(layer.running_mean, mean)
    assert_float64_close(layer.running_var, var)


def test_momentum_none_needs_a_count() -> None:
    x, _, _, mean, var = _operands((5, 3))
    with pytest.raises(ValueError, match="expected num_batches_tracked"):
        reference.forward(x, None, None, mean, var, True, None, EPS)


def test_evaluation_needs_running_statistics() -> None:
    with pytest.raises(ValueError, match="expected running statistics"):
        reference.forward(torch.randn(4, 3), None, None, None, None, False, 0.1, EPS)


@pytest.mark.parametrize("training", TRAINING)
def test_oracle_mutates_nothing_and_aliases_nothing(training: bool) -> None:
    operands = _operands((5, 3))
    copies = [tensor.clone() for tensor in operands]
    x, gamma, beta, mean, var = operands
    result = reference.forward(x, gamma, beta, mean, var, training, 0.5, EPS)
    for tensor in result:
        assert tensor is not None
        tensor.fill_(7.0)
    for tensor, copy in zip(operands, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("shape", [(6, 3), (3, 3, 4)], ids=["n6-c3", "n3-c3-l4"])
def test_manual_layer_has_the_right_derivative(shape: tuple[int, ...]) -> None:
    layer = BatchNorm1dManual(3).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer.eval()
    assert torch.autograd.gradcheck(layer, (x,))


def test_manual_layer_is_torch_but_for_the_biased_running_variance() -> None:
    ours, torchs = BatchNorm1dManual(4).double(), nn.BatchNorm1d(4, dtype=torch.float64)
    x = torch.randn(6, 4, 3, dtype=torch.float64) * 3 + 2
    assert_float64_close(ours(x), torchs(x))
    assert_float64_close(ours.running_mean, torchs.running_mean)
    assert torchs.running_var is not None
    # 0.9 is what is left of the initial variance; 18 values per channel
    assert_float64_close((ours.running_var - 0.9) * 18 / 17, torchs.running_var - 0.9)


def test_manual_layer_evaluates_with_its_running_statistics() -> None:
    layer = BatchNorm1dManual(3)
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, -2.0, 0.5]))
        layer.beta.copy_(torch.tensor([0.0, 1.0, 3.0]))
    layer(torch.randn(8, 3) * 2 + 1)
    layer.eval()
    x = torch.randn(5, 3)
    before = layer.running_mean.clone()
    y = layer(x)
    stats = (layer.running_mean, layer.running_var)
    with torch.no_grad():
        oracle = reference.forward(x, layer.gamma, layer.beta, *stats, False, 0.1, layer.eps).y
        torch_y = functional.batch_norm(x, *stats, layer.gamma, layer.beta)
    assert_within("y", y, oracle, value_budget(oracle, torch_y, torch.float32))
    assert torch.equal(layer.running_mean, before)


def test_manual_layer_names_the_dimensions_it_takes() -> None:
    with pytest.raises(ValueError, match="expected an input of 2 or 3 dimensions, got 4"):
        BatchNorm1dManual(3)(torch.randn(2, 3, 4, 5))


RESIDUAL = [pytest.param(True, id="residual"), pytest.param(False, id="alone")]


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("with_residual", RESIDUAL)
@pytest.mark.parametrize("activation", CHOICES, ids=str)
def test_fused_forward_and_backward_are_torch_in_float64(
    activation: object, with_residual: bool, training: bool
) -> None:
    x, gamma, beta, mean, var = _operands((5, 3, 4, 2))
    leaves = [x, gamma, beta, *([torch.randn_like(x)] if with_residual else [])]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    dy = torch.randn_like(x)
    z = functional.batch_norm(x, mean.clone(), var.clone(), gamma, beta, training, 0.1, EPS)
    y = activate(z + leaves[3] if with_residual else z, activation)
    expected = torch.autograd.grad(y, leaves, dy)
    after: dict[str, Any] = {
        "residual": leaves[3] if with_residual else None,
        "activation": activation,
    }
    with torch.no_grad():
        ours = reference.forward(x, gamma, beta, mean, var, training, 0.1, EPS, **after)
        gradients = reference.backward(
            dy, x, gamma, ours.mean, ours.inv_std, training, beta=beta, **after
        )
    assert_float64_close(ours.y, y)
    assert (gradients.dresidual is not None) == with_residual
    for gradient, torch_gradient in zip(gradients, expected, strict=False):
        assert_float64_close(gradient, torch_gradient)


def _slope(z: Tensor, activation: object, dy: float = 1.0) -> Tensor:
    """The derivative as `backward` takes it, times dy: that of the residual z of a zero x."""
    zeros, one = torch.zeros_like(z).view(-1, 1), torch.ones(1, dtype=z.dtype)
    gradients = reference.backward(
        zeros + dy, zeros, None, 0 * one, one, False,
        residual=z.view(-1, 1), activation=activation,
    )  # fmt: skip
    assert gradients.dresidual is not None
    return gradients.dresidual.flatten()


# value and derivative at 0, 3, 6, -3 and NaN: those of torch's scalar code
KINKS: dict[str, tuple[list[float], list[float]]] = {
    "relu": ([0, 3, 6, 0, math.nan], [0, 1, 1, 0, 1]),
    "relu6": ([0, 3, 6, 0, math.nan], [0, 1, 0, 0, 1]),
    "leaky_relu": ([0, 3, 6, -0.03, math.nan], [0.01, 1, 1, 0.01, 0.01]),
    "hardswish": ([0, 3, 6, 0, math.nan], [0.5, 1, 1, 0, 1]),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_and_nan_are_those_of_torchs_scalar_code(name: str) -> None:
    z = torch.tensor([0.0, 3.0, 6.0, -3.0, math.nan], dtype=torch.float64)
    values, slopes = (torch.tensor(row, dtype=torch.float64) for row in KINKS[name])
    zero = torch.zeros(5, 1, dtype=torch.float64)
    y = reference.forward(
        zero, None, None, zero[0], zero[0] + 1, False, 0.1, EPS,
        residual=z.view(-1, 1), activation=name,
    ).y  # fmt: skip
    torch.testing.assert_close(y.flatten(), values, equal_nan=True)
    assert torch.equal(_slope(z, name), slopes)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_torchs_where_values_are_huge_or_tiny(name: str) -> None:
    z = torch.tensor([-1e30, -50.0, -8.0, -1e-9, 1e-9, 8.0, 50.0, 1e30], dtype=torch.float64)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(activate(leaf, name).sum(), leaf)
    # torch's gelu_tanh multiplies infinity by 0
    assert_float64_close(_slope(z, name), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("name", ["relu", "relu6", "hardswish"])
@pytest.mark.parametrize("dy", [math.inf, math.nan])
def test_what_is_switched_off_passes_no_infinity(name: str, dy: float) -> None:
    leaf = torch.tensor([-4.0, 1.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(activate(leaf, name), leaf, torch.full_like(leaf, dy))
    assert expected[0] == 0 and not expected[1].isfinite()
    torch.testing.assert_close(_slope(leaf.detach(), name, dy), expected, equal_nan=True)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_fused_oracle_mutates_nothing_and_aliases_nothing(activation: object) -> None:
    x, gamma, beta, mean, var = _operands((5, 3))
    residual, dy = torch.randn_like(x), torch.randn_like(x)
    given = [x, dy, residual, gamma, beta]
    copies = [tensor.clone() for tensor in given]
    after: dict[str, Any] = {"residual": residual, "activation": activation}
    saved = reference.forward(x, gamma, beta, mean, var, True, 0.5, EPS, **after)
    gradients = reference.backward(
        dy, x, gamma, saved.mean, saved.inv_std, True, beta=beta, **after
    )
    for tensor in (saved.y, *gradients):
        assert tensor is not None
        tensor.fill_(7.0)
    for tensor, copy in zip(given, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_unknown_activation_is_refused() -> None:
    x, gamma, beta, mean, var = _operands((5, 3))
    with pytest.raises(ValueError, match="got 'swish'"):
        reference.forward(x, gamma, beta, mean, var, True, 0.1, EPS, activation="swish")
    with pytest.raises(ValueError, match="got 'swish'"):
        reference.backward(x, x, gamma, mean, var, True, activation="swish")
