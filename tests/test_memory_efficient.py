"""Layers that keep their output for backward, and not their input."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tritonbn
from tritonbn import _memory
from tritonbn_kernels import record_launches

from .agreement import DEVICE

CHANNELS, SHAPE = 16, (4, 16, 6, 8)
LEAKY = ("leaky_relu", 0.1)
KINDS = [
    pytest.param(activation, dtype, id=f"{activation}-{dtype}")
    for activation in (None, LEAKY, "elu")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    if activation != "elu" or dtype is torch.float32
]
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def _layers(activation: Any, dtype: torch.dtype, training: bool) -> list[tritonbn.BatchNorm2d]:
    """Two layers of the same values, of which the second is memory efficient."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    gamma = 0.5 + 0.4 * torch.rand(CHANNELS, device=DEVICE, dtype=wide)
    # up to the bound
    offsets = torch.linspace(-_memory.MOST_OFFSET, _memory.MOST_OFFSET, CHANNELS, device=DEVICE)
    beta = gamma * offsets.to(wide) * 0.999
    if activation == "elu":
        beta = beta.abs() / 4
    layers = []
    for efficient in (False, True):
        layer = tritonbn.BatchNorm2d(
            CHANNELS, activation=activation, memory_efficient=efficient, device=DEVICE, dtype=wide
        )
        with torch.no_grad():
            layer.weight.copy_(gamma)
            layer.bias.copy_(beta)
            # of the input below
            layer.get_buffer("running_mean").fill_(5)
            layer.get_buffer("running_var").fill_(9)
        layers.append(layer.train(training))
    return layers


def _step(layer: tritonbn.BatchNorm2d, x: Tensor, dy: Tensor) -> tuple[list[Tensor], list[int]]:
    """y and the gradients; addresses of what was saved."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    x = x.clone().requires_grad_()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    gradients = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
    known = {y.data_ptr(): 0, x.data_ptr(): 1}
    return [y.detach(), *gradients], sorted(known[one] for one in saved if one in known)


@train_and_eval
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("activation", "dtype"), KINDS)
def test_gradients_from_the_output_are_those_from_the_input(
    activation: Any, dtype: torch.dtype, layout: torch.memory_format, training: bool
) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(SHAPE, device=DEVICE) + 5).to(dtype).contiguous(memory_format=layout)
    dy = torch.randn_like(x)
    plain, efficient = _layers(activation, dtype, training)
    (y, dx, dgamma, dbeta), kept = _step(plain, x, dy)
    with record_launches() as launches:
        (ours, *gradients), kept_ours = _step(efficient, x, dy)
    assert (kept, kept_ours) == ([1], [0])
    assert [bool(record.constants.get("RESTORES")) for record in launches] == [False, True]
    assert torch.equal(ours, y)
    # what the rounding of y costs xhat, see `_memory.py`; half a unit of the tensor for dx
    unit = torch.finfo(dtype).eps / 2
    count = x.numel() // CHANNELS
    spread = (1 + _memory.MOST_OFFSET**2) ** 0.5
    summand = dy.double().square().mean().sqrt().item()
    allowed = 3 * 0.42 * unit * count**0.5 * spread * summand * (1 if activation != "elu" else 8)
    wide = torch.finfo(dgamma.dtype).eps * count * summand
    assert (gradients[1].double() - dgamma.double()).abs().max().item() <= allowed + wide
    assert (gradients[2].double() - dbeta.double()).abs().max().item() <= wide
    bound = 4 * unit * dx.double().abs().max().item()
    assert (gradients[0].double() - dx.double()).abs().max().item() <= bound


@pytest.mark.parametrize(
    ("gamma", "beta", "channels"),
    [(1.0, 3.001, "3"), (0.0, 0.0, "3"), (float("nan"), 0.0, "3"), (-1.0, -3.5, "3")],
    ids=["far", "zero", "nan", "negative"],
)
def test_channels_out_of_bounds_are_named(gamma: float, beta: float, channels: str) -> None:
    layer = tritonbn.BatchNorm2d(CHANNELS, memory_efficient=True, device=DEVICE)
    x = torch.randn(SHAPE, device=DEVICE, requires_grad=True)
    layer(x)
    with torch.no_grad():
        layer.weight[3], layer.bias[3] = gamma, beta
    with pytest.raises(ValueError, match=rf"got other values in channels {channels};"):
        layer(x)
    layer.memory_efficient = "auto"
    assert _step(layer, x.detach(), torch.ones_like(x))[1] == [1]


def test_a_long_list_of_channels_is_cut() -> None:
    layer = tritonbn.BatchNorm2d(CHANNELS, memory_efficient=True, device=DEVICE)
    torch.nn.init.zeros_(layer.weight)
    with pytest.raises(ValueError, match=r"channels 0, 1, 2, 3, 4, 5, 6, 7 and 8 more;"):
        layer(torch.randn(SHAPE, device=DEVICE))


def test_parameters_are_looked_at_once_while_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    resolved = _memory._resolved

    def looked(*given: Any) -> Tensor:
        looks.append(given)
        return resolved(*given)

    monkeypatch.setattr(_memory, "_resolved", looked)
    layer = tritonbn.BatchNorm2d(CHANNELS, memory_efficient=True, device=DEVICE)
    x = torch.randn(SHAPE, device=DEVICE)
    for _ in range(3):
        layer(x)
    assert len(looks) == 1
    with torch.no_grad():
        layer.weight.mul_(1.5)
        layer(x)
    # nothing is kept there
    assert len(looks) == 1
    layer(x)
    assert len(looks) == 2


def test_a_small_slope_asks_for_a_gamma_that_half_precision_resolves() -> None:
    gamma, beta = torch.full((1,), 1e-3).double(), torch.zeros(1).double()
    assert _memory._resolved(gamma, beta, ("leaky_relu", 0.5), torch.float16).all()
    assert not _memory._resolved(gamma, beta, ("leaky_relu", 0.01), torch.float16).any()
    assert _memory._resolved(gamma, beta, ("leaky_relu", 0.01), torch.bfloat16).all()


@pytest.mark.parametrize(
    ("activation", "dtype", "residual", "message"),
    [
        (LEAKY, torch.float32, True, "no residual"),
        ("elu", torch.bfloat16, False, "fp32 with elu, got torch.bfloat16"),
    ],
    ids=["residual", "elu"],
)
def test_what_cannot_be_undone_raises_or_keeps_the_input(
    activation: Any, dtype: torch.dtype, residual: bool, message: str
) -> None:
    layer = tritonbn.BatchNorm2d(
        CHANNELS, activation=activation, memory_efficient=True, device=DEVICE
    )
    x = torch.randn(SHAPE, device=DEVICE).to(dtype)
    given = (x, x) if residual else (x,)
    with pytest.raises(ValueError, match=message):
        layer(*given)
    with torch.no_grad():
        layer(*given)
    layer.memory_efficient = "auto"
    plain = tritonbn.BatchNorm2d(CHANNELS, activation=activation, device=DEVICE)
    assert torch.equal(layer(*given), plain(*given))


def test_second_derivatives_are_refused() -> None:
    layer = tritonbn.BatchNorm2d(CHANNELS, memory_efficient=True, device=DEVICE)
    x = torch.randn(SHAPE, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="set memory_efficient=False"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_the_kept_output_may_not_be_overwritten() -> None:
    layer = tritonbn.BatchNorm2d(CHANNELS, memory_efficient=True, device=DEVICE)
    x = torch.randn(SHAPE, device=DEVICE, requires_grad=True)
    y = layer(x)
    y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
