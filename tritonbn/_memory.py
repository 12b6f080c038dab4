"""Backward from the output: when a layer may forget its input.

With an activation that can be undone, x - mean is `(act^-1(y) - beta) / gamma` standard deviations,
and y is kept anyway by what reads it next. So says In-Place Activated BatchNorm (Rota Bulo, Porzi
and Kontschieder 2018), which constrains gamma; here weights are standard ones, and are looked at.

What it costs is the rounding of y: a relative error u of z, that is u (|xhat| + r) of xhat with
r = |beta / gamma|. Errors of rounding are independent and have a root mean square of 0.42 u, so
that the sum for dgamma errs by 1.3 u sqrt(m) sqrt(1 + r^2) rms(dz) at three standard deviations;
sums are allowed 4 u sqrt(m) rms(dz xhat) besides torch's own error. Hence r <= 3. Where y is a
subnormal number its error is absolute, which bounds gamma from below. elu loses in its tail: an
error u of y becomes u exp(-z) of z; it is allowed 64 u at four standard deviations below the mean.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ._validation import needs_gradients

__all__ = ["restores"]

MOST_OFFSET = 3.0
ELU_DEVIATIONS = 4.0
ELU_GROWTH = 64.0
# channels that an error names
_NAMED = 8

_seen: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], list[int]]] = WeakKeyDictionary()


def restores(
    layer: nn.Module,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: tuple[str, float],
    residual: Tensor | None,
    memory_efficient: bool | str,
) -> bool:
    """Whether a call keeps y and not x for its backward pass.

    Looks at gamma and beta on the host, once after each change of them: a device is waited for.

    Args:
        memory_efficient: True, or "auto" to keep x in the calls where y would not do.

    Raises:
        ValueError: with True, a residual, elu of another dtype than fp32, or channels whose gamma
            and beta do not allow it, which it names.
    """
    if not memory_efficient or torch.compiler.is_compiling():
        return False
    if not needs_gradients(x, weight, bias, residual):
        return False
    reason = ""
    if residual is not None:
        reason = "no residual, which z cannot be told from, got one"
    elif activation[0] == "elu" and x.dtype is not torch.float32:
        reason = f"fp32 with elu, got {x.dtype}"
    elif x.is_cuda and torch.cuda.is_current_stream_capturing():
        reason = "no capture of a graph, for gamma and beta are looked at, got one"
    else:
        channels = _out_of_bounds(layer, weight, bias, activation, x.dtype)
        if channels:
            named = ", ".join(str(number) for number in channels[:_NAMED])
            more = f" and {len(channels) - _NAMED} more" if len(channels) > _NAMED else ""
            reason = (
                f"|beta / gamma| of at most {MOST_OFFSET:g} and a gamma that y can resolve in every"
                f" channel, got other values in channels {named}{more}"
            )
    if reason and memory_efficient != "auto":
        raise ValueError(
            f"expected with memory_efficient=True {reason}; memory_efficient='auto' keeps the"
            " input where this is not so"
        )
    return not reason


def _out_of_bounds(
    layer: nn.Module,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: tuple[str, float],
    dtype: torch.dtype,
) -> list[int]:
    """Channels whose xhat y does not tell well enough; remembered while nothing changes."""
    state = (
        activation,
        dtype,
        *((id(one), one.data_ptr(), one._version) for one in (weight, bias) if one is not None),
    )
    known = _seen.get(layer)
    if known is not None and known[0] == state:
        return known[1]
    channels: list[int] = []
    vector = bias if weight is None else weight
    if vector is not None:
        like = vector.detach().double()
        gamma = torch.ones_like(like) if weight is None else like
        beta = torch.zeros_like(like) if bias is None else bias.detach().double()
        fine = _resolved(gamma, beta, activation, dtype)
        channels = torch.nonzero(~fine).flatten().tolist()
    _seen[layer] = (state, channels)
    return channels


def _resolved(
    gamma: Tensor, beta: Tensor, activation: tuple[str, float], dtype: torch.dtype
) -> Tensor:
    """Per channel, whether the bounds above hold; False where anything is NaN."""
    name, parameter = activation
    limits = torch.finfo(dtype)
    size = gamma.abs()
    fine = beta.abs() <= MOST_OFFSET * size
    least_slope = min(1.0, parameter) if name == "leaky_relu" else 1.0
    # half a unit of the subnormal numbers is at most u of gamma
    fine &= size >= limits.smallest_normal / least_slope
    if name == "elu":
        fine &= ELU_DEVIATIONS * size - beta <= math.log(ELU_GROWTH)
    return fine
