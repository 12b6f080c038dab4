"""Which calls the kernels take. What they do not take is handed to torch, which raises its own
error, or gives the result it gives for such input. What torch does not know is checked here."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonbn_kernels.activation_names import ACTIVATIONS, INVERTIBLE

_PLAIN_TENSORS = frozenset({Tensor, torch.nn.Parameter})


@cache
def eps_zero_in_eval() -> bool:
    """Whether the installed torch allows eps = 0 with running statistics (from 2.13 at the
    latest)."""
    one = torch.ones(1, 1)
    try:
        F.batch_norm(one, one[0], one[0], training=False, eps=0.0)
    except ValueError:
        return False
    return True


def needs_gradients(*tensors: Tensor | None) -> bool:
    """Whether autograd records an operation on these."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def accepts(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None,
) -> bool:
    """Whether the kernels take a call for `x`, which `functional._route` let through."""
    n_channels = x.shape[1]
    # statistics that the caller keeps must be both there; batch statistics need a second value
    if running_mean is None or running_var is None:
        if not training or running_mean is not running_var:
            return False
    elif (
        running_mean.requires_grad
        or running_var.requires_grad
        or running_mean.dtype is not running_var.dtype
    ):
        return False
    if training:
        if x.numel() == n_channels or (momentum is None and num_batches_tracked is None):
            return False
        if not eps > 0.0:
            return False
    elif not eps > 0.0 and not (eps == 0.0 and eps_zero_in_eval()):
        return False
    dtype, device = x.dtype, x.device
    if num_batches_tracked is not None and (
        num_batches_tracked.dtype is not torch.int64
        or num_batches_tracked.numel() != 1
        or num_batches_tracked.device != device
    ):
        return False
    # written out: a generator or a helper would cost every call a microsecond
    for vector in (weight, bias, running_mean, running_var):
        if vector is None:
            continue
        kind = vector.dtype
        if (
            vector.numel() != n_channels
            or vector.dim() != 1
            or (kind is not dtype and (kind is not torch.float32 or dtype is torch.float64))
            or vector.device != device
            or (type(vector) not in _PLAIN_TENSORS and not torch.compiler.is_compiling())
        ):
            return False
    return True


def residual_for(x: Tensor, residual: object) -> Tensor:
    """`residual` in the dtype of `x`, into which autograd converts it and its gradient back.

    Args:
        x: the input of a call, any shape.
        residual: the shape and device of `x`, of any floating dtype, any strides.

    Raises:
        TypeError: no tensor, or not of a floating dtype.
        ValueError: another shape or device.
    """
    if not isinstance(residual, Tensor):
        raise TypeError(f"expected residual as a tensor, got {type(residual).__name__}")
    if not residual.dtype.is_floating_point:
        raise TypeError(f"expected residual of a floating dtype, got {residual.dtype}")
    if residual.shape != x.shape:
        raise ValueError(
            f"expected residual of shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if residual.device != x.device:
        raise ValueError(f"expected residual on {x.device}, got {residual.device}")
    return residual if residual.dtype is x.dtype else residual.to(x.dtype)


def check_memory_efficient(memory_efficient: object, activation: tuple[str, float]) -> None:
    """Raise unless the input of `activation` can be computed from its output where that is asked.

    Args:
        memory_efficient: whether backward is to keep the output in place of the input.
        activation: name and parameter, as `activation_of` gives them.

    Raises:
        TypeError: `memory_efficient` is neither a bool nor "auto".
        ValueError: it is not False and the activation is not invertible.
    """
    if not isinstance(memory_efficient, bool) and memory_efficient != "auto":
        raise TypeError(f"expected memory_efficient as a bool or 'auto', got {memory_efficient!r}")
    name, parameter = activation
    undone = name in INVERTIBLE and (ACTIVATIONS[name] is None or parameter > 0.0)
    if memory_efficient and not undone:
        raise ValueError(
            f"expected memory_efficient={memory_efficient!r} with no activation, or with leaky_relu"
            f" or elu of a positive parameter, which can be inverted; got {name} with {parameter}"
        )
