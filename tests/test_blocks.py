"""The guide's blocks: order of their layers, shapes, and which biases they have."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonbn
from tritonbn.blocks import ConvBNAct, SimpleCNN

from .agreement import DEVICE, assert_agreement, kernels_run_on

ACTIVATIONS = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_block_is_convolution_norm_activation(activation: str, launches: list[Any]) -> None:
    block = ConvBNAct(2, 3, activation=activation).to(DEVICE)
    x = torch.randn(2, 2, 4, 5, device=DEVICE)
    assert kernels_run_on(x)
    results: list[tuple[Tensor, ...]] = []
    for width in (torch.float32, torch.float32, torch.float64):
        # the first run is ours, the others torch's layers with the same state
        model = copy.deepcopy(block) if not results else tritonbn.revert(copy.deepcopy(block))
        model.to(width)
        before = len(launches)
        features = model.norm(model.conv(x.to(width)))
        y = model(x.to(width))
        assert torch.equal(y, ACTIVATIONS[activation]()(features))
        assert (len(launches) > before) == (not results)
        gradients = torch.autograd.grad(y.pow(3).sum(), list(model.parameters()))
        results.append((y, torch.cat([gradient.flatten() for gradient in gradients])))
    for name, ours, torchs, oracle in zip(("y", "gradients"), *results, strict=True):
        assert_agreement(name, ours, torchs, oracle)


def test_unknown_activation_is_named_in_the_error() -> None:
    with pytest.raises(
        ValueError, match=r"expected activation to be one of elu, .*, got 'softmax'"
    ):
        ConvBNAct(2, 3, activation="softmax")


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


def test_dropout_comes_after_the_activation() -> None:
    block = ConvBNAct(2, 64, dropout=0.5).to(DEVICE)
    x = torch.randn(2, 2, 6, 7, device=DEVICE)
    y = block(x)
    kept = block.activation(block.norm(block.conv(x)))
    # a zero is dropped or was no activation; all others are scaled by 1 / (1 - p)
    assert torch.equal(y[y != 0], 2.0 * kept[y != 0])
    assert 0.3 < ((y == 0) & (kept != 0)).sum() / (kept != 0).sum() < 0.7
    block.eval()
    assert torch.equal(block(x), block.activation(block.norm(block.conv(x))))


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
