"""The activations as torch has them: what ours are judged by."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tritonbn_kernels.activation_names import ACTIVATIONS, activation_of

__all__ = ["CHOICES", "TORCHS", "activate"]

# name -> torch's own, with the parameter of `activation_of`
TORCHS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda z, _: z * 1.0,
    "relu": lambda z, _: functional.relu(z),
    "relu6": lambda z, _: functional.relu6(z),
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "hardswish": lambda z, _: functional.hardswish(z),
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "silu": lambda z, _: functional.silu(z),
    "tanh": lambda z, _: torch.tanh(z),
    "gelu": lambda z, _: functional.gelu(z),
    "gelu_tanh": lambda z, _: functional.gelu(z, approximate="tanh"),
}
# every name, and parameters that are not the default
CHOICES = [*ACTIVATIONS, ("leaky_relu", -0.3), ("elu", 0.37), ("gelu", "none"), None]


def activate(z: Tensor, activation: object) -> Tensor:
    """act(z) by eager torch in the dtype of z; `activation` is what `activation_of` takes."""
    if activation is None:
        return z
    name, parameter = activation_of(activation)
    return TORCHS[name](z, parameter)
