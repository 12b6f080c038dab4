"""The guide's blocks: order of their layers, shapes, and which biases they have."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonbn
from tritonbn.blocks import ConvBNAct, SimpleCNN

from .agreement import DEVICE, assert_agreement, kernels_run_on

# as the block takes it, and torch's layer of the same
ACTIVATIONS: dict[str, tuple[Any, nn.Module]] = {
    "elu": ("elu", nn.ELU()),
    "elu-alpha": (("elu", 0.5), nn.ELU(0.5)),
    "gelu": ("gelu", nn.GELU()),
    "gelu-tanh": (("gelu", "tanh"), nn.GELU(approximate="tanh")),
    "hardswish": ("hardswish", nn.Hardswish()),
    "identity": ("identity", nn.Identity()),
    "leaky_relu": ("leaky_relu", nn.LeakyReLU()),
    "leaky_relu-slope": (("leaky_relu", 0.2), nn.LeakyReLU(0.2)),
    "relu": ("relu", nn.ReLU()),
    "relu6": ("relu6", nn.ReLU6()),
    "sigmoid": ("sigmoid", nn.Sigmoid()),
    "silu": ("silu", nn.SiLU()),
    "tanh": ("tanh", nn.Tanh()),
}
fused_and_not = pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])


@fused_and_not
@pytest.mark.parametrize(("activation", "layer"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_block_is_convolution_norm_activation(
    activation: Any, layer: nn.Module, fused: bool, launches: list[Any]
) -> None:
    block = ConvBNAct(2, 3, activation=activation, fused=fused).to(DEVICE)
    torchs = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), layer)
    torchs = torchs.to(DEVICE)
    torchs.load_state_dict(dict(zip(torchs.state_dict(), block.state_dict().values(), strict=True)))
    x = torch.randn(2, 2, 4, 5, device=DEVICE)
    assert kernels_run_on(x)
    results: list[tuple[Tensor, ...]] = []
    for model in (block, torchs, copy.deepcopy(torchs).double()):
        before = len(launches)
        y = model(x.to(next(model.parameters()).dtype))
        assert (len(launches) > before) == (not results)
        gradients = torch.autograd.grad(y.pow(3).sum(), list(model.parameters()))
        results.append((y, torch.cat([gradient.flatten() for gradient in gradients])))
    for name, ours, eager, oracle in zip(("y", "gradients"), *results, strict=True):
        assert_agreement(name, ours, eager, oracle)


@pytest.mark.parametrize("name", ["ConvBNAct", "SimpleCNN"])
def test_fused_and_unfused_are_one_model_from_one_seed(name: str) -> None:
    models: list[nn.Module] = []
    for fused in (True, False):
        torch.manual_seed(7)
        if name == "ConvBNAct":
            models.append(ConvBNAct(2, 3, activation="silu", fused=fused).to(DEVICE))
        else:
            models.append(SimpleCNN(2, 5, widths=(3, 4), hidden=6, fused=fused).to(DEVICE))
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = torch.randn(4, 2, 6, 6, device=DEVICE)
    for model in models:
        model(x)
    # what one learnt the other takes
    models[1].load_state_dict(models[0].state_dict())
    torch.testing.assert_close(models[0].eval()(x), models[1].eval()(x))


@fused_and_not
def test_simple_cnn_has_its_relus_where_it_is_told(fused: bool) -> None:
    model = SimpleCNN(widths=(2, 3), hidden=4, fused=fused)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.ReLU) == (0 if fused else 3)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [norm.activation for norm in norms] == 3 * ["relu" if fused else None]


@fused_and_not
def test_unknown_activation_is_named_in_the_error(fused: bool) -> None:
    with pytest.raises(ValueError, match=r"expected an activation of identity, .*, got 'softmax'"):
        ConvBNAct(2, 3, activation="softmax", fused=fused)


def test_block_has_no_bias_but_beta() -> None:
    names = [name for name, _ in ConvBNAct(2, 3).named_parameters()]
    assert names == ["conv.weight", "norm.weight", "norm.bias"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (6, 7)),
        ({"kernel_size": 1}, (6, 7)),
        ({"kernel_size": 5}, (6, 7)),
        ({"stride": 2}, (3, 4)),
        ({"padding": 0}, (4, 5)),
    ],
    ids=["default", "k1", "k5", "stride", "padding"],
)
def test_block_keeps_height_and_width_unless_told(
    options: dict[str, int], size: tuple[int, int]
) -> None:
    x = torch.randn(2, 2, 6, 7, device=DEVICE)
    y = ConvBNAct(2, 3, **options).to(DEVICE)(x)  # type: ignore[arg-type]
    assert y.shape == (2, 3, *size)


@fused_and_not
def test_dropout_comes_after_the_activation(fused: bool) -> None:
    block = ConvBNAct(2, 64, dropout=0.5, fused=fused).to(DEVICE)
    x = torch.randn(2, 2, 6, 7, device=DEVICE)
    kept = block.norm(block.conv(x)).relu()
    y = block(x)
    # a zero is dropped or was no activation; all others are scaled by 1 / (1 - p)
    assert torch.equal(y[y != 0], 2.0 * kept[y != 0])
    assert 0.3 < ((y == 0) & (kept != 0)).sum() / (kept != 0).sum() < 0.7
    block.eval()
    assert torch.equal(block(x), block.norm(block.conv(x)).relu())


def test_dropout_that_is_no_probability_raises() -> None:
    with pytest.raises(ValueError, match="dropout probability"):
        ConvBNAct(2, 3, dropout=1.5)


def test_simple_cnn_is_the_network_of_the_guide() -> None:
    kinds = [
        (type(module), *(tuple(tensor.shape) for tensor in module.parameters(recurse=False)))
        for module in SimpleCNN().modules()
        if module._parameters
    ]
    assert kinds == [
        (nn.Conv2d, (64, 3, 3, 3)),
        (tritonbn.BatchNorm2d, (64,), (64,)),
        (nn.Conv2d, (128, 64, 3, 3)),
        (tritonbn.BatchNorm2d, (128,), (128,)),
        (nn.Conv2d, (256, 128, 3, 3)),
        (tritonbn.BatchNorm2d, (256,), (256,)),
        (nn.Linear, (128, 256), (128,)),
        (tritonbn.BatchNorm1d, (128,), (128,)),
        (nn.Linear, (10, 128), (10,)),
    ]
    assert sum(isinstance(module, nn.MaxPool2d) for module in SimpleCNN().modules()) == 2


@pytest.mark.parametrize("widths", [(2,), (2, 3), (4, 3, 2)], ids=str)
def test_simple_cnn_takes_widths_channels_and_classes(widths: tuple[int, ...]) -> None:
    model = SimpleCNN(1, 7, widths=widths, hidden=5).to(DEVICE)
    assert model(torch.randn(2, 1, 8, 8, device=DEVICE)).shape == (2, 7)


def test_simple_cnn_without_widths_raises() -> None:
    with pytest.raises(ValueError, match="expected at least one width, got none"):
        SimpleCNN(widths=())
