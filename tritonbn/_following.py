"""What may follow the normalisation, residual and activation, by torch's own functions and layers.

The kernels do both in the launch that normalises; this is what runs where they do not, and what a
block without fused layers is built of.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritonbn_kernels.fused import IDENTITY

__all__ = ["IDENTITY", "Activation", "activation_layer", "followed", "follows_nothing"]

# as users give it; `tritonbn_kernels.activation_names.activation_of` reads it
Activation = str | tuple[str, float] | tuple[str, str]

_FUNCTIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda z, _: z,
    "relu": lambda z, _: F.relu(z),
    "relu6": lambda z, _: F.relu6(z),
    "leaky_relu": lambda z, negative_slope: F.leaky_relu(z, negative_slope),
    "elu": lambda z, alpha: F.elu(z, alpha),
    "hardswish": lambda z, _: F.hardswish(z),
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "silu": lambda z, _: F.silu(z),
    "tanh": lambda z, _: torch.tanh(z),
    "gelu": lambda z, _: F.gelu(z),
    "gelu_tanh": lambda z, _: F.gelu(z, approximate="tanh"),
}
_LAYERS: Mapping[str, Callable[[float], nn.Module]] = {
    "identity": lambda _: nn.Identity(),
    # BatchNorm's backward needs its input and not its output, which may be overwritten
    "relu": lambda _: nn.ReLU(inplace=True),
    "relu6": lambda _: nn.ReLU6(),
    "leaky_relu": lambda negative_slope: nn.LeakyReLU(negative_slope),
    "elu": lambda alpha: nn.ELU(alpha),
    "hardswish": lambda _: nn.Hardswish(),
    "sigmoid": lambda _: nn.Sigmoid(),
    "silu": lambda _: nn.SiLU(),
    "tanh": lambda _: nn.Tanh(),
    "gelu": lambda _: nn.GELU(),
    "gelu_tanh": lambda _: nn.GELU(approximate="tanh"),
}


def follows_nothing(activation: object) -> bool:
    """Whether an activation, as users give it, changes nothing."""
    return activation is None or (isinstance(activation, str) and activation == "identity")


def followed(y: Tensor, activation: tuple[str, float], residual: Tensor | None) -> Tensor:
    """activation(y + residual), each step rounded to the dtype of `y`.

    Args:
        y: what BatchNorm gave, any shape.
        activation: name and parameter, as `activation_of` gives them.
        residual: the shape and dtype of `y`, or None.
    """
    name, parameter = activation
    if residual is not None:
        y = y + residual
    return _FUNCTIONS[name](y, parameter)


def activation_layer(activation: tuple[str, float]) -> nn.Module:
    """torch's layer of an activation, given as `activation_of` gives it."""
    name, parameter = activation
    return _LAYERS[name](parameter)
