"""The gradients by operations that autograd can differentiate again.

What the kernels compute cannot be differentiated; where somebody asks for that (`create_graph`,
batched or tangent gradients) the same gradients are composed here of torch's own operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonbn_kernels.fused import run_of
from tritonbn_kernels.layout import empty_like_in_family

from ._following import followed

__all__ = ["differentiable_backward", "restored"]


def differentiable_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    side: Tensor | None,
    training: bool,
    eps: float,
    activation: tuple[str, float],
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dgamma, dbeta and dresidual, those that `needs` names.

    Args: as the forward pass saved them; `side` is the mask (uint8) or the residual, or None.
    """
    dz = dy
    if activation[0] != "identity":
        if side is not None and side.dtype is torch.uint8:
            keep = _truths(side, x)
            blocked = dy * activation[1] if activation[0] == "leaky_relu" else torch.zeros_like(dy)
            dz = torch.where(keep, dy, blocked)
        else:
            dz = _before_activation(dy, x, weight, bias, saved, side, training, eps, activation)
    dx, dgamma, dbeta = _before_normalisation(dz, x, weight, saved, training, eps, needs[:3])
    return dx, dgamma, dbeta, dz if needs[3] else None


def _truths(mask: Tensor, x: Tensor) -> Tensor:
    """A mask as the kernels keep it, as booleans of the shape of `x`."""
    if mask.numel() < x.numel():
        bits = torch.arange(run_of(x.element_size()), device=mask.device)
        mask = (mask[:, None] >> bits) & 1
    # in the order of the output's memory
    like = empty_like_in_family(x.detach().to("meta"))
    return mask.reshape(-1).bool().as_strided(like.shape, like.stride())


def _before_activation(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    residual: Tensor | None,
    training: bool,
    eps: float,
    activation: tuple[str, float],
) -> Tensor:
    """dy times the derivative of the activation, a function of everything that z is made of."""
    wide, shape = x.to(saved.dtype), [1, -1] + [1] * (x.dim() - 2)
    with torch.enable_grad():
        gamma = None if weight is None else weight.to(saved.dtype)
        beta = None if bias is None else bias.to(saved.dtype)
        if training:
            z = F.batch_norm(wide, None, None, gamma, beta, True, 0.0, eps)
        else:
            mean, inv_std = saved[0] + saved[1], saved[2]
            z = (wide - mean.reshape(shape)) * inv_std.reshape(shape)
            z = z if gamma is None else z * gamma.reshape(shape)
            z = z if beta is None else z + beta.reshape(shape)
        if residual is not None:
            z = z + residual.to(saved.dtype)
        if not z.requires_grad:
            z = z.requires_grad_()
        # of each element by itself, so that dy may be batched
        [slope] = torch.autograd.grad(followed(z, activation, None).sum(), z, create_graph=True)
    return (dy.to(saved.dtype) * slope).to(dy.dtype)


def _before_normalisation(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    training: bool,
    eps: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dgamma and dbeta from the gradient of what was normalised.

    Training takes torch's own operator, whose derivative treats mean and inv_std as functions of
    x; in eval they are constants and the formula is written out.
    """
    mean, inv_std = saved[0] + saved[1], saved[2]
    gamma = None if weight is None else weight.to(saved.dtype)
    if training:
        if gamma is None and needs[2]:
            # without gamma torch's second derivative forgets dbeta
            gamma = torch.ones_like(inv_std)
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, mean, inv_std, True, eps, list(needs)
        )
    else:
        shape = [1, -1] + [1] * (x.dim() - 2)
        others = [dim for dim in range(x.dim()) if dim != 1]
        wide = dy.to(saved.dtype)
        scale = inv_std if gamma is None else gamma * inv_std
        xhat = (x.to(saved.dtype) - mean.reshape(shape)) * inv_std.reshape(shape)
        dx = (wide * scale.reshape(shape)).to(x.dtype)
        dgamma = (wide * xhat).sum(others)
        dbeta = wide.sum(others)
    if weight is not None and needs[1]:
        dgamma = dgamma.to(weight.dtype)
    return (
        dx if needs[0] else None,
        dgamma if needs[1] else None,
        dbeta if needs[2] else None,
    )


def restored(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: tuple[str, float],
) -> Tensor:
    """x from y, for an activation that can be undone: a number, no function of the input."""
    name, parameter = activation
    z = y.to(saved.dtype)
    if name == "leaky_relu":
        z = torch.where(z > 0, z, z / parameter)
    elif name == "elu":
        z = torch.where(z > 0, z, torch.log1p(z.clamp(max=0) / parameter))
    shape = [1, -1] + [1] * (y.dim() - 2)
    scale = saved[2] if weight is None else saved[2] * weight.to(saved.dtype)
    centred = z if bias is None else z - bias.to(saved.dtype).reshape(shape)
    return centred / scale.reshape(shape) + (saved[0] + saved[1]).reshape(shape)
