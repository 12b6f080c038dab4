"""The residual of a call: which tensors it may be, and what becomes of its gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonbn

from .agreement import DEVICE, kernels_run_on

SHAPE = (2, 3, 4, 5)


def call(x: Tensor, residual: Any, activation: Any = "relu") -> Tensor:
    return tritonbn.batch_norm(
        x, None, None, training=True, residual=residual, activation=activation
    )


def composed(x: Tensor, residual: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, training=True) + residual)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (lambda: [0.0], TypeError, "expected residual as a tensor, got list"),
    "number": (lambda: 1.0, TypeError, "expected residual as a tensor, got float"),
    "integer": (
        lambda: torch.ones(SHAPE, dtype=torch.int64, device=DEVICE),
        TypeError,
        "expected residual of a floating dtype, got torch.int64",
    ),
    "complex": (
        lambda: torch.ones(SHAPE, dtype=torch.complex64, device=DEVICE),
        TypeError,
        "expected residual of a floating dtype, got torch.complex64",
    ),
    "channels": (
        lambda: torch.ones(2, 1, 4, 5, device=DEVICE),
        ValueError,
        r"expected residual of shape \(2, 3, 4, 5\), got \(2, 1, 4, 5\)",
    ),
    "dimensions": (
        lambda: torch.ones(4, 5, device=DEVICE),
        ValueError,
        r"expected residual of shape \(2, 3, 4, 5\), got \(4, 5\)",
    ),
    "device": (
        lambda: torch.ones(SHAPE, device="meta"),
        ValueError,
        f"expected residual on {DEVICE.type}.*, got meta",
    ),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD.values(), ids=BAD)
def test_what_is_no_residual_is_named_before_anything_is_written(
    make: Callable[[], Any], error: type[Exception], words: str
) -> None:
    x, layer = torch.randn(SHAPE, device=DEVICE), tritonbn.BatchNorm2d(3, device=DEVICE)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(error, match=words):
        call(x, make())
    with pytest.raises(error, match=words):
        layer(x, make())
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_activation_that_is_none_is_named_by_the_function() -> None:
    x = torch.randn(SHAPE, device=DEVICE)
    with pytest.raises(ValueError, match=r"expected an activation of .*, got 'softmax'"):
        call(x, None, "softmax")


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "channels_last": lambda: torch.randn(SHAPE).to(memory_format=torch.channels_last),
    "expanded_batch": lambda: torch.randn(1, 3, 4, 5).expand(SHAPE),
    "expanded_scalar": lambda: torch.randn(()).expand(SHAPE),
    "expanded_channels": lambda: torch.randn(2, 1, 4, 5).expand(SHAPE),
    "slice": lambda: torch.randn(2, 3, 4, 10)[..., ::2],
    "transposed": lambda: torch.randn(2, 3, 5, 4).transpose(2, 3),
    "misaligned": lambda: torch.randn(121)[1:].view(SHAPE),
}


@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_residual_of_any_strides_is_added_and_gets_its_gradient(
    layout: str, x_layout: str, launches: list[Any]
) -> None:
    x, source = torch.randn(SHAPE, device=DEVICE), LAYOUTS[layout]().to(DEVICE)
    if x_layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    assert kernels_run_on(x)
    dy, results = torch.randn(SHAPE, device=DEVICE), []
    for function in (call, composed):
        leaves = [x.clone().requires_grad_(), source.detach().requires_grad_()]
        y = function(*leaves)
        assert launches
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)
    assert results[0][0].stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_residual_of_another_dtype_gets_its_gradient_in_its_own(dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE, device=DEVICE).bfloat16()
    residual = torch.randn(SHAPE, device=DEVICE).to(dtype).requires_grad_()
    y = call(x, residual)
    assert y.dtype is torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().sum(), residual)
    assert gradient.dtype is dtype
    # converted first: the same as adding it in the dtype of the input
    assert torch.equal(y, call(x, residual.bfloat16()))
    assert torch.equal(gradient, (y > 0).to(dtype))


def test_the_input_may_be_its_own_residual() -> None:
    results = []
    for function in (call, composed):
        torch.manual_seed(3)
        x = torch.randn(SHAPE, device=DEVICE).requires_grad_()
        y = function(x, x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_a_residual_alone_may_require_a_gradient(launches: list[Any]) -> None:
    x = torch.randn(SHAPE, device=DEVICE)
    residual = torch.randn(SHAPE, device=DEVICE).requires_grad_()
    y = call(x, residual, "silu")
    assert launches
    (gradient,) = torch.autograd.grad(y.sum(), residual)
    z = F.batch_norm(x, None, None, training=True) + residual
    (expected,) = torch.autograd.grad(F.silu(z).sum(), residual)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("activation", [None, "identity"])
def test_a_residual_needs_no_activation(activation: Any) -> None:
    x, residual = torch.randn(SHAPE, device=DEVICE), torch.randn(SHAPE, device=DEVICE)
    expected = F.batch_norm(x, None, None, training=True) + residual
    torch.testing.assert_close(call(x, residual, activation), expected)


def test_a_subclass_as_residual_goes_to_torch(launches: list[Any]) -> None:
    class Named(Tensor):
        pass

    x = torch.randn(SHAPE, device=DEVICE)
    residual = torch.randn(SHAPE, device=DEVICE)
    y = call(x, residual.as_subclass(Named))
    assert isinstance(y, Named) and launches == []
    assert torch.equal(y.as_subclass(Tensor), composed(x, residual))
