"""A fused residual and activation keep the error bound: y, running statistics, every gradient.

Every family of plans meets relu, whose derivative backward takes from z or from a mask, and silu,
for which it reads the residual again, in every dtype; every activation meets some of the families.
"""

from dataclasses import replace

import pytest
import torch
from _pytest.mark import ParameterSet

from tests.checks import Operands, check_backward, check_forward_and_mask, operands
from tests.eager import CHOICES
from tests.fused import (
    GROUPS,
    ONE_READ,
    TWO_READ,
    Family,
    clear_of_kinks,
    families,
    fused_call,
    judge,
    with_and_without_residual,
)
from tests.held import gradient_of

RESIDUAL = {False: "alone", True: "residual"}


def _kind(family: Family, dtype: torch.dtype, activation: object, residual: bool) -> ParameterSet:
    words = (family.name, str(dtype).removeprefix("torch."), activation, RESIDUAL[residual])
    return pytest.param(family, dtype, activation, residual, id="-".join(map(str, words)))


KINDS = [
    _kind(family, dtype, activation, residual)
    for family in [*TWO_READ, *ONE_READ]
    for dtype in family.dtypes
    for activation in ("relu", "silu")
    for residual in (False, True)
]
# slow, for their programs take turns
KINDS += [
    _kind(family, dtype, activation, residual)
    for family in GROUPS
    for dtype, activation, residual in (
        (torch.float32, "relu", True),
        (torch.bfloat16, "relu", False),
        (torch.bfloat16, "silu", True),
    )
]
# in rotation, so that each activation meets planes and rows, with a residual and without
_ROTATION = [(family, dtype) for family in [*TWO_READ, *ONE_READ] for dtype in family.dtypes]
KINDS += [
    _kind(*_ROTATION[(7 * index + step + 12 * residual) % len(_ROTATION)], activation, residual)
    for index, activation in enumerate(CHOICES)
    for residual in (False, True)
    for step in (0, 17)
]


@pytest.mark.parametrize(("family", "dtype", "activation", "residual"), KINDS)
def test_training_keeps_the_budget(
    family: Family, dtype: torch.dtype, activation: object, residual: bool
) -> None:
    x = family.values(dtype, ratio=3.0)
    call = fused_call(x, activation, family.values(dtype) if residual else None)
    with family.plan() as launches:
        judge(call, gradient_of(x))
    forward, backward = family.kernels
    assert [launch.kernel for launch in launches] == forward + backward


@with_and_without_residual
@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
@pytest.mark.parametrize(("index", "activation"), list(enumerate(CHOICES)), ids=str)
def test_evaluation_keeps_the_budget(
    index: int, activation: object, half: bool, residual: bool
) -> None:
    # planes and rows in turn: each activation meets both
    family = TWO_READ[0 if half == residual else 2]
    dtype = family.dtypes[1 + index % 2] if half else family.dtypes[3 * (index % 2)]
    x = family.values(dtype, ratio=3.0)
    given = family.values(dtype) if residual else None
    call = fused_call(x, activation, given, training=False)
    with family.plan(training=False):
        judge(call, gradient_of(x), training=False)


of_every_small_family = families([*TWO_READ, *ONE_READ])


@of_every_small_family
def test_residual_far_larger_than_the_rest_keeps_the_budget(family: Family) -> None:
    x = family.values(torch.float32)
    call = fused_call(x, "relu", 1e3 * family.values(torch.float32))
    with family.plan():
        judge(call, gradient_of(x))


@pytest.mark.parametrize(
    ("ratio", "activation", "residual"),
    [pytest.param(1e4, "silu", True, id="1e4"), pytest.param(1e6, "tanh", False, id="1e6")],
)
@of_every_small_family
def test_large_mean_keeps_the_budget(
    family: Family, ratio: float, activation: str, residual: bool
) -> None:
    x = family.values(torch.float32, ratio)
    call = fused_call(x, activation, family.values(torch.float32) if residual else None)
    with family.plan():
        judge(call, gradient_of(x))


@pytest.mark.parametrize(
    ("missing", "residual"), [("gamma", False), ("beta", False), ("gamma beta", True)], ids=str
)
@families([TWO_READ[0], TWO_READ[3], ONE_READ[0], ONE_READ[2]])
def test_missing_parameters_are_one_and_zero(family: Family, missing: str, residual: bool) -> None:
    x = family.values(torch.float32)
    call = fused_call(x, "gelu", family.values(torch.float32) if residual else None)
    if "gamma" in missing:
        call = replace(call, gamma=None)
    if "beta" in missing:
        call = replace(call, beta=None)
    with family.plan():
        judge(call, gradient_of(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@of_every_small_family
def test_residual_alone_needs_no_activation(family: Family, training: bool) -> None:
    x = family.values(family.dtypes[-1])
    # both ways to say it
    activation = "identity" if training else None
    call = fused_call(x, activation, family.values(x.dtype), training)
    with family.plan(training=training):
        saved, mask = check_forward_and_mask(call, training)
        dy = gradient_of(x)
        dresidual = check_backward(call, dy, training, saved=saved, mask=mask)[3]
    assert dresidual is not None and torch.equal(dresidual, dy)


@of_every_small_family
def test_momentum_none_counts_and_averages(family: Family) -> None:
    x = family.values(torch.float32)
    call = replace(fused_call(x, "relu", family.values(torch.float32)), momentum=None)
    with family.plan():
        check_forward_and_mask(call, training=True, tracked=3)


@families([TWO_READ[0], *ONE_READ])
def test_half_parameters_are_widened_first(family: Family) -> None:
    x = family.values(torch.bfloat16)
    call = fused_call(x, "silu", family.values(torch.bfloat16))
    assert call.gamma is not None and call.beta is not None
    call = replace(call, gamma=call.gamma.to(x.dtype), beta=call.beta.to(x.dtype))
    with family.plan():
        judge(call, gradient_of(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_calls_of_these_tests_are_clear_of_kinks(training: bool) -> None:
    x = TWO_READ[0].values(torch.float32)
    plain = operands(x)
    z = plain.oracle(training).y
    residual = torch.zeros_like(x)
    # an element at each kink, but for rounding
    residual[0, :, 0, 0] = -z[0, :, 0, 0].float()
    residual[0, :, 0, 1] = 6 - z[0, :, 0, 1].float()

    def distances(call: Operands) -> list[float]:
        z = replace(call, activation=None).oracle(training).y
        return [float((z - kink).abs().min()) for kink in (0.0, 6.0)]

    call = replace(plain, residual=residual, activation="relu6")
    assert max(distances(call)) < 1e-6
    assert min(distances(clear_of_kinks(call, training))) > 1e-6
