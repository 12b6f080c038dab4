"""What a fused call keeps for its backward pass, as autograd's hooks see it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonbn
from tests.checks import Operands, torch_forward, torch_gradients
from tests.inputs import DEVICE, lay_out, values
from tests.tolerances import assert_within, value_budget

SHAPE = (4, 16, 8, 8)
# of the statistics: two words of the mean, and inv_std, in fp32
STATISTICS = 12
LAYOUTS = ["contiguous", "channels_last"]
SMOOTH = ["silu", "gelu", "gelu_tanh", "tanh", "sigmoid", "elu", "hardswish"]
MASKED = ["relu", "relu6", "leaky_relu"]


def _kept(
    dtype: torch.dtype, layout: str, activation: Any, residual: bool, training: bool = True
) -> tuple[Counter[str], int]:
    """The operands that were saved, by name and how often, and bytes of all else."""
    x = lay_out(values(SHAPE, dtype), layout).requires_grad_()
    other = lay_out(values(SHAPE, dtype), layout).requires_grad_() if residual else None
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    mean, var, weight, bias = torch.rand(4, SHAPE[1], dtype=wide, device=DEVICE)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    named = {"x": x, "residual": other, "weight": weight, "bias": bias}
    places = {t.data_ptr(): name for name, t in named.items() if t is not None}
    saved: dict[int, Tensor] = {}
    names: Counter[str] = Counter()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() in places:
            names[places[tensor.data_ptr()]] += 1
        else:
            saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = tritonbn.batch_norm(
            x, mean, var, weight, bias, training, residual=other, activation=activation
        )
    assert y.requires_grad
    return names, sum(t.untyped_storage().nbytes() for t in saved.values())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [*MASKED, *SMOOTH])
def test_activation_alone_keeps_the_bias_and_no_tensor(
    activation: str, layout: str, training: bool
) -> None:
    names, rest = _kept(torch.bfloat16, layout, activation, False, training)
    assert names == {"x": 1, "weight": 1, "bias": 1}
    assert rest == STATISTICS * SHAPE[1]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("activation", MASKED)
def test_residual_and_relu_keep_a_bit_an_element(
    activation: str, dtype: torch.dtype, layout: str, training: bool
) -> None:
    names, rest = _kept(dtype, layout, activation, True, training)
    assert names == {"x": 1, "weight": 1}
    # a byte for each 16 bytes of x
    mask = torch.Size(SHAPE).numel() * dtype.itemsize // 16
    assert rest == STATISTICS * SHAPE[1] + mask


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", SMOOTH)
def test_residual_and_a_smooth_activation_keep_the_residual(
    activation: str, layout: str, training: bool
) -> None:
    names, rest = _kept(torch.bfloat16, layout, activation, True, training)
    assert names == {"x": 1, "residual": 1, "weight": 1, "bias": 1}
    assert rest == STATISTICS * SHAPE[1]


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ["identity", None], ids=str)
def test_identity_keeps_what_a_plain_call_keeps(activation: Any, residual: bool) -> None:
    names, rest = _kept(torch.bfloat16, "contiguous", activation, residual)
    assert names == {"x": 1, "weight": 1}
    assert rest == STATISTICS * SHAPE[1]


def test_statistics_of_fp64_are_kept_in_fp64() -> None:
    names, rest = _kept(torch.float64, "contiguous", "gelu", False)
    assert names == {"x": 1, "weight": 1, "bias": 1}
    assert rest == 2 * STATISTICS * SHAPE[1]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_nothing_is_kept_without_gradients(activation: str) -> None:
    x, residual = (values(SHAPE, torch.float32) for _ in range(2))
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        y = tritonbn.batch_norm(
            x, None, None, training=True, residual=residual, activation=activation
        )
    assert saved == [] and not y.requires_grad
    call = Operands(x, None, None, None, None, residual=residual, activation=activation)
    exact = call.oracle(True).y
    assert_within("y", y, exact, value_budget(exact, torch_forward(call, True), y.dtype))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_frozen_parameters_still_pass_a_gradient_to_the_residual(activation: str) -> None:
    x, residual = (values(SHAPE, torch.float32) for _ in range(2))
    residual.requires_grad_()
    y = tritonbn.batch_norm(x, None, None, training=True, residual=residual, activation=activation)
    y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    call = Operands(x, None, None, None, None, residual=residual.detach(), activation=activation)
    exact = call.gradients(torch.ones_like(x), True).dresidual
    theirs = torch_gradients(call, torch.ones_like(x), True).dresidual
    assert exact is not None and theirs is not None and residual.grad is not None
    assert_within("dresidual", residual.grad, exact, value_budget(exact, theirs, x.dtype))


@pytest.mark.parametrize("written", ["x", "residual", "bias"])
def test_operand_written_in_place_before_backward_is_an_error(written: str) -> None:
    given = {name: values(SHAPE, torch.float32) for name in ("x", "residual")}
    given["bias"] = torch.rand(SHAPE[1], device=DEVICE)
    leaf = given["x"].clone().requires_grad_()
    operands = {**given, "x": leaf * 1.0}
    y = tritonbn.batch_norm(
        operands["x"], None, None, None, operands["bias"], True,
        residual=operands["residual"], activation="silu",
    )  # fmt: skip
    operands[written].detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()  # type: ignore[no-untyped-call]


def test_residual_may_be_written_where_only_its_mask_is_kept() -> None:
    x, residual = (values(SHAPE, torch.float32) for _ in range(2))
    leaf = x.clone().requires_grad_()
    y = tritonbn.batch_norm(leaf, None, None, training=True, residual=residual, activation="relu")
    before = residual.clone()
    residual.zero_()
    y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    call = Operands(x, None, None, None, None, residual=before, activation="relu")
    exact = call.gradients(torch.ones_like(x), True).dx
    theirs = torch_gradients(call, torch.ones_like(x), True).dx
    assert leaf.grad is not None
    assert_within("dx", leaf.grad, exact, value_budget(exact, theirs, x.dtype))
