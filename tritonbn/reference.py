"""The float64 oracle of Batch Normalization, and the layer of the guide built from its formulas.

Everything here is eager torch and works on any layout of `(N, C, *S)`; nothing reads or writes the
tensors of the caller in place. `kernels/README.md` derives the formulas once; this file is the
plainest form of them and what every kernel is judged by.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["BatchNorm1dManual", "Forward", "Gradients", "backward", "forward"]


class Forward(NamedTuple):
    """Results of `forward`, all float64: `y` of the input's shape, the others `(C,)`.

    `var` is biased, `inv_std` is `1 / sqrt(var + eps)`; in evaluation both describe the running
    statistics. `running_mean` and `running_var` are the updated values, None if none were given.
    """

    y: Tensor
    mean: Tensor
    var: Tensor
    inv_std: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None


class Gradients(NamedTuple):
    """Results of `backward`, float64: `dx` of the shape of x, `dgamma` and `dbeta` `(C,)`."""

    dx: Tensor
    dgamma: Tensor
    dbeta: Tensor


def forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | int | None = None,
) -> Forward:
    """Batch Normalization of `x` in float64, with the running statistics after the call.

    Args:
        x: `(N, C, *S)`, any dtype and strides.
        gamma, beta: `(C,)` or None, meaning 1 and 0.
        running_mean, running_var: `(C,)`, both or none; what evaluation normalises with.
        training: normalise with the statistics of `x` and update the running ones.
        momentum: weight of this batch in the update; None is the cumulative average,
            `1 / (num_batches_tracked + 1)`.
        eps: added to the variance.
        num_batches_tracked: batches seen before this one; read only if `momentum` is None.

    Raises:
        ValueError: evaluation without running statistics, or a cumulative average without a count.
    """
    wide = x.double()
    new_mean, new_var = _wide(running_mean), _wide(running_var)
    if training:
        mean, var = _centred_moments(wide)
        if new_mean is not None and new_var is not None:
            weight = _batch_weight(momentum, num_batches_tracked)
            count = x.numel() // x.shape[1]
            new_mean = (1 - weight) * new_mean + weight * mean
            new_var = (1 - weight) * new_var + weight * var * (count / (count - 1))
    elif new_mean is None or new_var is None:
        raise ValueError("expected running statistics in evaluation, got None")
    else:
        mean, var = new_mean, new_var
    inv_std = (var + eps).rsqrt()
    y = (wide - _per_channel(mean, x)) * _per_channel(inv_std, x)
    if gamma is not None:
        y = y * _per_channel(gamma.double(), x)
    if beta is not None:
        y = y + _per_channel(beta.double(), x)
    return Forward(y, mean, var, inv_std, new_mean, new_var)


def backward(
    dy: Tensor, x: Tensor, gamma: Tensor | None, mean: Tensor, inv_std: Tensor, training: bool
) -> Gradients:
    """Gradients of `forward` in float64.

    `dgamma = sum dy * xhat`, `dbeta = sum dy`, and in training
    `dx = gamma * inv_std * (dy - dbeta / m - xhat * dgamma / m)` with m values per channel; in
    evaluation the statistics are constants and `dx = gamma * inv_std * dy`.

    Args:
        dy: gradient of `y`, shape of `x`, any dtype and strides.
        x: `(N, C, *S)`, the input of `forward`.
        gamma: `(C,)` or None, meaning 1.
        mean, inv_std: `(C,)`, what `forward` normalised with.
        training: whether they came from `x` itself.
    """
    wide_dy = dy.double()
    xhat = (x.double() - _per_channel(mean.double(), x)) * _per_channel(inv_std.double(), x)
    dims = _all_but_channels(x)
    dbeta = wide_dy.sum(dims)
    dgamma = (wide_dy * xhat).sum(dims)
    scale = inv_std.double() if gamma is None else inv_std.double() * gamma.double()
    dx = wide_dy
    if training:
        count = x.numel() // x.shape[1]
        dx = dx - _per_channel(dbeta / count, x) - xhat * _per_channel(dgamma / count, x)
    return Gradients(dx * _per_channel(scale, x), dgamma, dbeta)


class BatchNorm1dManual(nn.Module):
    """Batch Normalization from scratch, as the guide writes it, for `(N, C)` and `(N, C, L)`.

    It differs from `torch.nn.BatchNorm1d` in one thing: the variance that enters `running_var` is
    the biased one, so after m values per channel the batch's share is smaller by `(m - 1) / m`.
    Autograd differentiates the formula.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised batch, dtype and shape of `x`.

        Mutates: `running_mean` and `running_var` in training.

        Raises:
            ValueError: `x` is neither `(N, C)` nor `(N, C, L)`.
        """
        if x.dim() not in (2, 3):
            raise ValueError(f"expected an input of 2 or 3 dimensions, got {x.dim()}")
        if self.training:
            dims = _all_but_channels(x)
            mean = x.mean(dims)
            var = (x - _per_channel(mean, x)).square().mean(dims)
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
                self.running_var.mul_(1 - self.momentum).add_(self.momentum * var)
        else:
            mean, var = self.running_mean, self.running_var
        xhat = (x - _per_channel(mean, x)) / _per_channel(torch.sqrt(var + self.eps), x)
        return _per_channel(self.gamma, x) * xhat + _per_channel(self.beta, x)


def _centred_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel by two passes, the mean's own rounding taken out."""
    dims = _all_but_channels(x)
    first = x.mean(dims)
    centred = x - _per_channel(first, x)
    rest = centred.mean(dims)
    return first + rest, centred.square().mean(dims) - rest.square()


def _batch_weight(momentum: float | None, num_batches_tracked: Tensor | int | None) -> float:
    """Weight of the new batch in the running statistics."""
    if momentum is not None:
        return momentum
    if num_batches_tracked is None:
        raise ValueError("expected num_batches_tracked for a cumulative average, got None")
    return 1.0 / (int(num_batches_tracked) + 1)


def _all_but_channels(x: Tensor) -> list[int]:
    """Every dimension of `(N, C, *S)` but that of the channels."""
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """`(C,)` as a view that broadcasts over `x`, `(1, C, 1, ...)`."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _wide(values: Tensor | None) -> Tensor | None:
    """A float64 copy of `values`, so that a result never aliases the caller's buffer."""
    return None if values is None else values.detach().to(torch.float64, copy=True)
