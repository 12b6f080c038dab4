"""What a fused call is handed: residuals and dy in any layout, and any subset of the gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

import tritonbn
from tests.checks import EPS, Operands, check_backward, torch_forward, torch_gradients
from tests.fused import (
    GROUPS,
    ONE_READ,
    TWO_READ,
    Family,
    families,
    fused_call,
    judge,
    with_and_without_residual,
)
from tests.held import gradient_of
from tests.inputs import lay_out, values
from tests.tolerances import assert_within, value_budget
from tritonbn._following import Activation
from tritonbn_kernels import pinned_plan, record_launches


def _offset(x: Tensor) -> Tensor:
    """`x` one element after a multiple of 16 bytes."""
    storage = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype, device=x.device)
    dense = storage[1:].view(x.shape)
    dense.copy_(x)
    return dense


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "last": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "expanded": lambda x: lay_out(x, "expanded"),
    "scalar-expanded": lambda x: x.flatten()[:1].view([1] * x.dim()).expand(x.shape),
    "channel-slice": lambda x: lay_out(x, "channel_slice"),
    "space-slice": lambda x: lay_out(x, "space_slice"),
    "every-other-image": lambda x: lay_out(x, "batch_slice"),
    "misaligned": _offset,
}


def _in_turn(kinds: list[tuple[Any, ...]], chosen: list[Family]) -> list[ParameterSet]:
    """Every kind with two families: one whose planes are vectors or words, and one of rows."""
    half = len(chosen) // 2
    return [
        pytest.param(family, *kind, id="-".join(map(str, (family.name, *kind))))
        for index, kind in enumerate(kinds)
        for family in (chosen[index % half], chosen[half + index % half])
    ]


# planes, then rows
FOUR = [TWO_READ[0], ONE_READ[0], TWO_READ[3], ONE_READ[2]]
SIX = [TWO_READ[0], ONE_READ[0], ONE_READ[1], TWO_READ[3], ONE_READ[2], ONE_READ[3]]


# relu keeps a mask in the order of x; silu reads the residual again
@pytest.mark.parametrize(
    ("family", "other", "activation"),
    _in_turn([(other, "relu") for other in OTHERS], SIX)
    + _in_turn([("last", "silu"), ("misaligned", "silu")], FOUR),
)
def test_residual_may_have_any_strides(family: Family, other: str, activation: str) -> None:
    x = family.values(torch.bfloat16)
    call = fused_call(x, activation, OTHERS[other](family.values(torch.bfloat16)))
    with pinned_plan(**family.pins):
        judge(call, gradient_of(x))


@pytest.mark.parametrize(
    ("family", "other", "residual"),
    _in_turn(
        [("last", True), ("expanded", True), ("channel-slice", False), ("misaligned", True)], FOUR
    ),
)
def test_dy_may_have_any_strides(family: Family, other: str, residual: bool) -> None:
    x = family.values(torch.float32)
    call = fused_call(x, "relu", family.values(torch.float32) if residual else None)
    with pinned_plan(**family.pins):
        judge(call, OTHERS[other](family.values(torch.float32)))


@pytest.mark.parametrize("layout", ["channel_slice", "space_slice", "batch_slice", "expanded"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_x_may_have_any_strides(activation: str, layout: str) -> None:
    shape = (4, 8, 4, 6)
    x = lay_out(values(shape, torch.float32), layout)
    judge(fused_call(x, activation, values(shape, torch.float32)), values(shape, torch.float32))
    judge(fused_call(x, activation), values(shape, torch.float32))


def test_residual_is_read_in_place_where_x_would_be() -> None:
    x, residual = (values((4, 8, 4, 4), torch.bfloat16) for _ in range(2))
    with record_launches() as launches:
        judge(fused_call(x, "relu", lay_out(residual, "channel_slice")), gradient_of(x))
    assert len(launches) == 2


@pytest.mark.parametrize(
    ("family", "activation", "wanted"),
    _in_turn(
        [
            *(("relu", wanted) for wanted in ("x", "g", "b", "r", "gb", "xr", "gbr", "xgb", "")),
            *((name, wanted) for name in ("silu", "identity") for wanted in ("x", "r", "gb", "br")),
        ],
        FOUR,
    ),
)
def test_only_the_gradients_asked_for_are_made(
    family: Family, activation: str, wanted: str
) -> None:
    x = family.values(torch.float32)
    call = fused_call(x, activation, family.values(torch.float32))
    with pinned_plan(**family.pins):
        check_backward(
            call,
            gradient_of(x),
            training=True,
            need_dx="x" in wanted,
            need_dgamma="g" in wanted,
            need_dbeta="b" in wanted,
            need_dresidual="r" in wanted,
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("wanted", ["x", "g", "b"])
def test_only_the_gradients_asked_for_are_made_without_a_residual(
    wanted: str, training: bool
) -> None:
    x = TWO_READ[0].values(torch.float32)
    check_backward(
        fused_call(x, "gelu", training=training),
        gradient_of(x),
        training,
        need_dx=wanted == "x",
        need_dgamma=wanted == "g",
        need_dbeta=wanted == "b",
    )


@pytest.mark.parametrize("wanted", ["x", "r", "xr", "g", "b", "gr", "xgbr"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["relu", "silu", None], ids=str)
def test_autograd_asks_for_what_needs_a_gradient(
    activation: Any, training: bool, wanted: str
) -> None:
    call = fused_call(
        values((6, 5, 4, 4), torch.float32),
        activation,
        values((6, 5, 4, 4), torch.float32),
        training,
    )
    dy = gradient_of(call.x)
    given = {"x": call.x, "g": call.gamma, "b": call.beta, "r": call.residual}
    leaves = {
        name: tensor.clone().requires_grad_(name in wanted)
        for name, tensor in given.items()
        if tensor is not None
    }
    y = _public(replace(call, x=leaves["x"]), leaves, training)
    found = torch.autograd.grad(y, [leaves[name] for name in wanted], dy)
    oracle, torchs = call.gradients(dy, training), torch_gradients(call, dy, training)
    for name, gradient in zip(wanted, found, strict=True):
        index = "xgbr".index(name)
        exact, theirs = oracle[index], torchs[index]
        assert exact is not None and theirs is not None
        assert_within(name, gradient, exact, value_budget(exact, theirs, gradient.dtype))


def _public(call: Operands, leaves: dict[str, Tensor], training: bool) -> Tensor:
    mean, var = call.running_mean, call.running_var
    assert mean is not None and var is not None
    return tritonbn.batch_norm(
        leaves["x"],
        mean.clone(),
        var.clone(),
        leaves["g"],
        leaves["b"],
        training,
        0.1,
        EPS,
        residual=leaves["r"],
        activation=call.activation,
    )


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("which", ["residual", "x", "dy"])
def test_negative_bit_is_resolved(which: str, activation: str) -> None:
    # the imaginary part of a conjugate: its memory holds the opposite sign
    def negated(tensor: Tensor) -> Tensor:
        view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
        assert view.is_neg() and torch.equal(view, tensor)
        return view

    x, residual, dy = (values((4, 3, 4, 4), torch.float32) for _ in range(3))
    call = fused_call(x, activation, residual)
    given = {"x": call.x, "g": call.gamma, "b": call.beta, "r": call.residual}
    leaves = {name: t.clone().requires_grad_() for name, t in given.items() if t is not None}
    key = {"residual": "r", "x": "x", "dy": ""}[which]
    if key:
        leaves[key] = negated(leaves[key].detach()).requires_grad_()
    y = _public(call, leaves, True)
    exact_y = call.oracle(True).y
    budget = value_budget(exact_y, torch_forward(call.wide(), True), y.dtype)
    assert_within("y", y, exact_y, budget)
    found = torch.autograd.grad(y, list(leaves.values()), dy if key else negated(dy))
    oracle, torchs = call.gradients(dy, True), torch_gradients(call, dy, True)
    for gradient, exact, theirs in zip(found, oracle, torchs, strict=True):
        assert exact is not None and theirs is not None
        assert_within("gradient", gradient, exact, value_budget(exact, theirs, gradient.dtype))


@with_and_without_residual
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2)], ids=str)
def test_training_step_is_one_launch_and_one(activation: Any, layout: str, residual: bool) -> None:
    x = lay_out(values((4, 8, 4, 4), torch.float32), layout).requires_grad_()
    weight, bias = (torch.rand(8, requires_grad=True, device=x.device) for _ in range(2))
    other = values((4, 8, 4, 4), torch.float32).requires_grad_() if residual else None
    with record_launches() as launches:
        y = tritonbn.batch_norm(
            x, None, None, weight, bias, True, residual=other, activation=activation
        )
        assert len(launches) == 1
        y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    assert len(launches) == 2
    assert y.stride() == x.stride() and x.grad is not None
    assert x.grad.stride() == x.stride()
    assert other is None or other.grad is not None


@families([TWO_READ[1], TWO_READ[2], *ONE_READ, GROUPS[0]])
def test_fused_call_takes_the_launches_of_a_plain_one(family: Family) -> None:
    x = family.values(torch.bfloat16)
    call = fused_call(x, "relu", family.values(torch.bfloat16))
    with family.plan() as launches:
        judge(call, gradient_of(x))
    forward, backward = family.kernels
    assert [launch.kernel for launch in launches] == forward + backward


def test_call_after_one_of_another_kind_is_not_taken_for_it() -> None:
    # calls are planned once per kind: neither activation nor residual nor mask may be forgotten
    x, residual = (values((4, 8, 4, 4), torch.float32) for _ in range(2))
    dy = gradient_of(x)
    kinds: tuple[Activation | None, ...] = (
        None,
        "relu",
        "silu",
        ("leaky_relu", 0.3),
        ("leaky_relu", 0.6),
        "identity",
        "relu",
    )
    for kind in kinds:
        judge(fused_call(x, kind), dy)
        judge(fused_call(x, kind, residual), dy)
    for given in (lay_out(residual, "channels_last"), residual, None):
        judge(fused_call(x, "relu", given), dy)
