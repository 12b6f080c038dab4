"""Calls that are one launch with nothing left to decide, for small problems: their host cost is
that of the launch, the allocations and a look at the addresses."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tritonbn_kernels.launch import Ready

# y and saved from x
BoundCall = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# dx, dgamma and dbeta from dy, x, weight, bias and saved; None for tensors that are not aligned
BackwardAtOnce = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
]


def forward_at_once(
    ready: Ready,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    pattern: torch.Tensor,
    otherwise: BoundCall,
) -> BoundCall:
    """A forward pass of one launch.

    Args:
        ready: the launch after x, weight, bias, y and saved.
        weight, bias: not moved from now on.
        pattern: of the shape and dtype of saved.
        otherwise: the same call by another way, for tensors that are not aligned.
    """
    start, rest = ready
    gamma_at = None if weight is None else weight.data_ptr()
    beta_at = None if bias is None else bias.data_ptr()
    if ((gamma_at or 0) | (beta_at or 0)) & 15:
        return otherwise
    empty_like = torch.empty_like

    def call(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, saved = empty_like(x), empty_like(pattern)
        x_at, y_at, saved_at = x.data_ptr(), y.data_ptr(), saved.data_ptr()
        if (x_at | y_at | saved_at) & 15:
            return otherwise(x)
        start((x_at, gamma_at, beta_at, y_at, saved_at, *rest))
        return y, saved

    return call


def backward_at_once(ready: Ready) -> BackwardAtOnce:
    """A backward pass of one launch, for x and dy that are read in place; `ready`: the launch after
    dy, x, weight, bias, saved, dx, dgamma and dbeta."""
    start, rest = ready
    empty_like = torch.empty_like

    def call(
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        saved: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        dx, dgamma, dbeta = empty_like(x), empty_like(weight), empty_like(weight)
        dy_at, x_at, gamma_at = dy.data_ptr(), x.data_ptr(), weight.data_ptr()
        saved_at, dx_at = saved.data_ptr(), dx.data_ptr()
        dgamma_at, dbeta_at = dgamma.data_ptr(), dbeta.data_ptr()
        bits = dy_at | x_at | gamma_at | saved_at | dx_at | dgamma_at | dbeta_at
        beta_at = None
        if bias is not None:
            beta_at = bias.data_ptr()
            bits |= beta_at
        if bits & 15:
            return None
        start((dy_at, x_at, gamma_at, beta_at, saved_at, dx_at, dgamma_at, dbeta_at, *rest))
        return dx, dgamma, dbeta

    return call
