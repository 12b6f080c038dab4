"""Derivatives through a fused activation and residual, by finite differences and at the edges."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import tritonbn
from tests.agreement import kernels_run_on
from tests.checks import EPS
from tests.eager import CHOICES, activate
from tests.fused import (
    GROUPS,
    KINKS,
    ONE_READ,
    TWO_READ,
    Family,
    fused_call,
    in_turn,
)
from tests.held import gradient_of
from tests.inputs import DEVICE, values
from tritonbn_kernels import LaunchRecord
from tritonbn_kernels.activation_names import activation_of

# more than a step of the finite differences, which is 1e-6, moves z
CLEARANCE = 1e-3


def _leaves(activation: Any, residual: bool, training: bool, channels: int = 2) -> list[Tensor]:
    """x, weight, bias and residual in fp64, z on both sides of every kink and at none."""
    while True:
        x = torch.randn(3, channels, dtype=torch.float64, device=DEVICE)
        weight, bias = 2 + torch.rand(2, channels, dtype=torch.float64, device=DEVICE)
        leaves = [x, weight, bias, *([2 * torch.randn_like(x)] if residual else [])]
        z = _normalise(training, None, channels)(*leaves)
        kinks = KINKS.get(activation_of(activation)[0], ())
        if all((z - kink).abs().min() > CLEARANCE for kink in kinks):
            return [leaf.requires_grad_() for leaf in leaves]


def _normalise(training: bool, activation: Any, channels: int = 2) -> Callable[..., Tensor]:
    """The public function of the leaves, with running statistics of its own."""
    mean = torch.linspace(-1, 1, channels, dtype=torch.float64, device=DEVICE)
    var = torch.linspace(0.5, 2, channels, dtype=torch.float64, device=DEVICE)

    def of(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return tritonbn.batch_norm(
            x, mean.clone(), var.clone(), weight, bias, training, 0.1, 1e-3,
            residual=residual, activation=activation,
        )  # fmt: skip

    return of


# the formulas are the same in evaluation: one of each kind
@pytest.mark.parametrize(
    ("activation", "residual", "training"),
    [(activation, place % 2 == 0, True) for place, activation in enumerate(CHOICES)]
    + [("relu", True, True), ("silu", True, False), ("relu", True, False), ("silu", False, False)],
    ids=str,
)
def test_first_derivatives_are_the_finite_differences(
    activation: Any, residual: bool, training: bool, launches: list[LaunchRecord]
) -> None:
    leaves = _leaves(activation, residual, training)
    assert kernels_run_on(leaves[0])
    launches.clear()
    assert gradcheck(_normalise(training, activation), leaves)
    assert len(launches) > 2


@pytest.mark.parametrize(
    ("activation", "residual", "training"),
    [
        pytest.param("silu", True, True, id="silu-residual-train"),
        pytest.param("silu", False, False, id="silu-alone-eval"),
        pytest.param("relu", False, True, id="relu-alone-train"),
        pytest.param("relu", True, True, id="relu-residual-train"),
        pytest.param("relu", True, False, id="relu-residual-eval"),
        pytest.param(None, True, True, id="None-residual-train"),
    ],
)
def test_second_derivatives_are_the_finite_differences(
    activation: Any, residual: bool, training: bool
) -> None:
    # of one channel: every derivative of the gradients is taken, many times as many
    leaves = _leaves(activation, residual, training, channels=1)
    assert kernels_run_on(leaves[0])
    assert gradgradcheck(_normalise(training, activation, 1), leaves)


def _step(
    family: Family, x: Tensor, residual: Tensor | None, dy: Tensor, activation: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """y, and the gradients of x, weight, bias and residual: ours, then eager torch's."""
    weight, bias = torch.rand(2, x.shape[1], device=DEVICE) + 0.5
    given = [x, weight, bias, *([] if residual is None else [residual])]
    found = []
    run: Any
    for run in (tritonbn.batch_norm, _eager):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        more = {"residual": leaves[3]} if len(leaves) == 4 else {}
        y = run(leaves[0], None, None, *leaves[1:3], True, 0.1, EPS, activation=activation, **more)
        found.append((y.detach(), list(torch.autograd.grad(y, leaves, dy))))
    (y, ours), (_, torchs) = found
    return y, ours, torchs


def _eager(*arguments: Any, activation: Any, residual: Tensor | None = None) -> Tensor:
    y: Tensor = torch.nn.functional.batch_norm(*arguments)
    return activate(y if residual is None else y + residual, activation)


SOME_FAMILIES = [TWO_READ[0], TWO_READ[3], ONE_READ[0], ONE_READ[2], GROUPS[1]]


@in_turn(
    "family activation value residual",
    [(family, name) for family in SOME_FAMILIES for name in ("relu", "relu6", "hardswish")],
    [(math.inf, True), (math.nan, False), (math.inf, False), (math.nan, True)],
)
def test_infinite_dy_is_nothing_where_the_activation_is_off(
    family: Family, activation: str, value: float, residual: bool
) -> None:
    x = family.values(torch.float32)
    call = fused_call(x, activation, 3 * family.values(torch.float32) if residual else None)
    assert call.beta is not None
    # one channel is off throughout; its dy counts for nothing
    call.beta[1] = -30.0
    dy = gradient_of(x)
    dy[:, 1] = value
    leaves = [x.clone().requires_grad_()]
    if call.residual is not None:
        leaves.append(call.residual.clone().requires_grad_())
    with family.plan():
        y = tritonbn.batch_norm(
            leaves[0], None, None, call.gamma, call.beta, True, 0.1, EPS,
            residual=leaves[1] if residual else None, activation=activation,
        )  # fmt: skip
        gradients = torch.autograd.grad(y, leaves, dy)
    assert (y[:, 1] == 0).all()
    for gradient in gradients:
        assert (gradient[:, 1] == 0).all()
        assert gradient.isfinite().all()


WHERE = [("x", False), ("x", True), ("residual", True), ("dy", False), ("dy", True)]


@in_turn(
    "family where residual activation",
    [(family, *where) for family in SOME_FAMILIES for where in WHERE],
    ["relu", "silu"],
)
def test_nan_stays_in_its_channel(
    family: Family, where: str, residual: bool, activation: str
) -> None:
    tensors = {name: family.values(torch.float32) for name in ("x", "residual", "dy")}
    other = tensors["residual"] + 3
    tensors[where][-1, 2].flatten()[-1] = math.nan
    given = tensors["residual"] if residual else None
    if where != "residual" and residual:
        given = other
    with family.plan():
        y, ours, torchs = _step(family, tensors["x"], given, tensors["dy"], activation)
    others = torch.arange(y.shape[1], device=DEVICE) != 2
    assert y[:, 2].isnan().any() == (where != "dy")
    assert y[:, others].isfinite().all()
    for gradient, theirs in zip(ours, torchs, strict=True):
        by_channel = gradient.transpose(0, 1) if gradient.dim() > 1 else gradient
        assert by_channel[others].isfinite().all()
        assert torch.equal(gradient.isnan().any(), theirs.isnan().any())


def test_gradient_of_a_sum_of_two_uses_is_the_sum() -> None:
    # the input is the residual as well, as in a block without a projection
    x = values((4, 3, 4, 4), torch.float64)
    results = []
    run: Any
    for run in (tritonbn.batch_norm, _eager):
        leaf = x.clone().requires_grad_()
        y = run(leaf, None, None, None, None, True, 0.1, EPS, residual=leaf, activation="silu")
        results.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    torch.testing.assert_close(*results)
