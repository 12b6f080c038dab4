"""The float64 oracle of Batch Normalization, and the layer of the guide built from its formulas.

Everything here is eager torch and works on any layout of `(N, C, *S)`; nothing reads or writes the
tensors of the caller in place. `kernels/README.md` derives the formulas once; this file is the
plainest form of them and what every kernel is judged by.

With a residual and an activation, `y = act(z)` with `z = bn(x) + residual`. An activation is what
`activation_of` takes: None, a name, or a name with its parameter. At its kinks it has the value and
the derivative of torch's scalar and CUDA code, and so for NaN; see `activations.py`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tritonbn_kernels.activation_names import activation_of

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
    """Results of `backward`, float64: `dx` of the shape of x, `dgamma` and `dbeta` `(C,)`.

    `dresidual` has the shape of x, and is None where there was no residual.
    """

    dx: Tensor
    dgamma: Tensor
    dbeta: Tensor
    dresidual: Tensor | None = None


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
    *,
    residual: Tensor | None = None,
    activation: object = None,
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
        residual: shape of `x`, any dtype and strides; added before the activation.
        activation: of the sum; None is the identity.

    Raises:
        TypeError, ValueError: no such activation, see `activation_of`.
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
    xhat = (wide - _per_channel(mean, x)) * _per_channel(inv_std, x)
    name, parameter = activation_of(activation)
    y = _VALUES[name](_before_activation(xhat, gamma, beta, residual), parameter)
    return Forward(y, mean, var, inv_std, new_mean, new_var)


def backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    training: bool,
    *,
    beta: Tensor | None = None,
    residual: Tensor | None = None,
    activation: object = None,
) -> Gradients:
    """Gradients of `forward` in float64.

    With `g = dy * act'(z)`, which is `dresidual`: `dgamma = sum g * xhat`, `dbeta = sum g`, and in
    training `dx = gamma * inv_std * (g - dbeta / m - xhat * dgamma / m)` with m values per channel;
    in evaluation the statistics are constants and `dx = gamma * inv_std * g`.

    Args:
        dy: gradient of `y`, shape of `x`, any dtype and strides.
        x: `(N, C, *S)`, the input of `forward`.
        gamma: `(C,)` or None, meaning 1.
        mean, inv_std: `(C,)`, what `forward` normalised with.
        training: whether they came from `x` itself.
        beta, residual, activation: as for `forward`; without an activation neither value matters,
            only whether there is a residual.

    Raises:
        TypeError, ValueError: no such activation, see `activation_of`.
    """
    xhat = (x.double() - _per_channel(mean.double(), x)) * _per_channel(inv_std.double(), x)
    z = _before_activation(xhat, gamma, beta, residual)
    g = _through_activation(dy.to(torch.float64, copy=True), z, *activation_of(activation))
    dims = _all_but_channels(x)
    dbeta = g.sum(dims)
    dgamma = (g * xhat).sum(dims)
    scale = inv_std.double() if gamma is None else inv_std.double() * gamma.double()
    dx = g
    if training:
        count = x.numel() // x.shape[1]
        dx = dx - _per_channel(dbeta / count, x) - xhat * _per_channel(dgamma / count, x)
    dresidual = None if residual is None else g
    return Gradients(dx * _per_channel(scale, x), dgamma, dbeta, dresidual)


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


def _before_activation(
    xhat: Tensor, gamma: Tensor | None, beta: Tensor | None, residual: Tensor | None
) -> Tensor:
    """`z = gamma * xhat + beta + residual`, float64."""
    z = xhat
    if gamma is not None:
        z = z * _per_channel(gamma.double(), xhat)
    if beta is not None:
        z = z + _per_channel(beta.double(), xhat)
    return z if residual is None else z + residual.double()


def _through_activation(dy: Tensor, z: Tensor, name: str, parameter: float) -> Tensor:
    """`dy * act'(z)`."""
    if name == "identity":
        return dy
    slope = _SLOPES[name](z, parameter)
    # torch selects where others multiply: what was switched off stays off if dy is infinite
    return dy.masked_fill(slope == 0.0, 0.0) * slope if name in _SWITCHES else dy * slope


def _normal(z: Tensor) -> Tensor:
    """The standard normal distribution; erfc keeps the digits of its lower tail."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * z)


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _gelu_tanh_exponent(z: Tensor) -> Tensor:
    """w with `0.5 * (1 + tanh(w / 2)) = sigmoid(w)`, the factor of `gelu_tanh`."""
    return math.sqrt(8 / math.pi) * (z + 0.044715 * z**3)


def _sigmoid_slope(z: Tensor) -> Tensor:
    """`s * (1 - s)` without the cancellation of `1 - s`."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    w = _gelu_tanh_exponent(z)
    # bounded, or huge z would be infinity times the slope 0
    square = z.square().clamp(max=1e4)
    rise = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * square)
    return torch.sigmoid(w) + z * _sigmoid_slope(w) * rise


# switched off where the derivative is 0
_SWITCHES = frozenset({"relu", "relu6", "hardswish"})
_VALUES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda z, _: z,
    "relu": lambda z, _: torch.where(z <= 0, 0.0, z),
    "relu6": lambda z, _: torch.where(z <= 0, 0.0, torch.where(z >= 6, 6.0, z)),
    "leaky_relu": lambda z, slope: torch.where(z > 0, z, slope * z),
    "elu": lambda z, alpha: torch.where(z <= 0, alpha * torch.expm1(z.clamp(max=0)), z),
    "hardswish": lambda z, _: z * (z + 3).clamp(0, 6) / 6,
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "silu": lambda z, _: z * torch.sigmoid(z),
    "tanh": lambda z, _: torch.tanh(z),
    "gelu": lambda z, _: z * _normal(z),
    "gelu_tanh": lambda z, _: z * torch.sigmoid(_gelu_tanh_exponent(z)),
}
_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: torch.ones_like(z).masked_fill(z <= 0, 0.0),
    "relu6": lambda z, _: torch.ones_like(z).masked_fill((z <= 0) | (z >= 6), 0.0),
    "leaky_relu": lambda z, slope: torch.full_like(z, slope).masked_fill(z > 0, 1.0),
    "elu": lambda z, alpha: torch.where(z <= 0, alpha * torch.exp(z), 1.0),
    "hardswish": lambda z, _: torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0)),
    "sigmoid": lambda z, _: _sigmoid_slope(z),
    "silu": lambda z, _: torch.sigmoid(z) + z * _sigmoid_slope(z),
    "tanh": lambda z, _: 4 * _sigmoid_slope(2 * z),
    "gelu": lambda z, _: _normal(z) + z * _normal_density(z),
    "gelu_tanh": lambda z, _: _gelu_tanh_slope(z),
}


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
