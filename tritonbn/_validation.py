"""Which calls the kernels take. What they do not take is handed to torch, which raises its own
error, or gives the result it gives for such input."""

from __future__ import annotations

from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


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


def _vector_fits(vector: Tensor | None, x: Tensor, n_channels: int) -> bool:
    if vector is None:
        return True
    dtype = vector.dtype
    return (
        vector.numel() == n_channels
        and (dtype is x.dtype or (dtype is torch.float32 and x.dtype is not torch.float64))
        and vector.device == x.device
        and (type(vector) in _PLAIN_TENSORS or torch.compiler.is_compiling())
    )


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
    shape = x.shape
    n_channels = shape[1]
    # batch statistics need a second value; statistics that the caller keeps must be both there
    if training:
        if shape[0] == 1 and prod(shape[2:]) == 1:
            return False
        if (running_mean is None) is not (running_var is None):
            return False
        if momentum is None and num_batches_tracked is None:
            return False
    elif running_mean is None or running_var is None:
        return False
    if not eps > 0.0 and not (eps == 0.0 and not training and eps_zero_in_eval()):
        return False
    if running_mean is not None and running_var is not None:
        if running_mean.requires_grad or running_var.requires_grad:
            return False
        if running_mean.dtype is not running_var.dtype:
            return False
    return (
        _vector_fits(weight, x, n_channels)
        and _vector_fits(bias, x, n_channels)
        and _vector_fits(running_mean, x, n_channels)
        and _vector_fits(running_var, x, n_channels)
    )
