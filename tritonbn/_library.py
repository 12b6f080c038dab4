"""The operators `tritonbn::batch_norm_forward`, `batch_norm_eval` and `batch_norm_backward`: their
schemas, what they run, and what their results look like to a tracer.

The forward operator declares that it writes the running statistics; the kernels write raw memory,
so that eager version counters stay as torch leaves them. Evaluation has an operator of its own that
writes nothing, lest exported graphs and compilers take the running statistics for written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

import tritonbn_kernels as kernels
from tritonbn_kernels.activation_names import NO_PARAMETER, side_of
from tritonbn_kernels.fused import mask_run
from tritonbn_kernels.geometry import accumulation_dtype
from tritonbn_kernels.layout import empty_like_in_family

__all__ = [
    "Gradients",
    "backward_on_device",
    "backward_op",
    "eval_op",
    "forward_op",
    "library",
    "on_device",
]

_T = TypeVar("_T")
# dx, dgamma, dbeta, dresidual
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

library = torch.library.Library("tritonbn", "DEF")  # type: ignore[no-untyped-call]
# any dense layout will do: without the tag the compiler inserts copies to fixed strides
_TAGS = (torch.Tag.flexible_layout,)
_FUSED = (
    ", str activation='identity', float parameter=0.0, Tensor? residual=None, bool keeps_mask=False"
)
library.define(  # type: ignore[no-untyped-call]
    "batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean,"
    " Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, bool training, float? momentum,"
    " float eps" + _FUSED + ") -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
library.define(  # type: ignore[no-untyped-call]
    "batch_norm_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean,"
    " Tensor running_var, float eps" + _FUSED + ") -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
library.define(  # type: ignore[no-untyped-call]
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor saved, bool training,"
    " bool need_dx, bool need_dgamma, bool need_dbeta, str activation='identity',"
    " float parameter=0.0, Tensor? bias=None, Tensor? residual=None, Tensor? mask=None,"
    " bool need_dresidual=False) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def on_device(x: Tensor, launcher: Callable[..., _T], *arguments: Any) -> _T:
    """`launcher(*arguments)` with the device of `x` current."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return launcher(*arguments)
    return launcher(*arguments)


def _absent(x: Tensor) -> Tensor:
    """What an operator returns where there is nothing: it has to return tensors."""
    return x.new_empty(0)


def _forward_on_device(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str = "identity",
    parameter: float = NO_PARAMETER,
    residual: Tensor | None = None,
    keeps_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    vectors = (weight, bias, running_mean, running_var, num_batches_tracked)
    following = ((activation, parameter), residual, keeps_mask)
    y, saved, mask = on_device(
        x, kernels.fused_forward, x, *vectors, training, momentum, eps, *following
    )
    return y, saved, _absent(x) if mask is None else mask


def _eval_on_device(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    *following: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_forward_on_device` with running statistics."""
    vectors = (weight, bias, running_mean, running_var, None)
    return _forward_on_device(x, *vectors, False, 0.0, eps, *following)


def backward_on_device(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    training: bool,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
    activation: str = "identity",
    parameter: float = NO_PARAMETER,
    *others: Any,
) -> Gradients:
    needs = (need_dx, need_dgamma, need_dbeta)
    following = ((activation, parameter), *others)
    return on_device(x, kernels.fused_backward, dy, x, weight, saved, training, *needs, *following)


def _backward_operator(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The backward operator's body."""
    gradients = backward_on_device(dy, x, *arguments)
    # an operator must not return what it was given: the identity's gradient is dy
    return tuple(
        _absent(x) if one is None else one.clone() if one is dy else one for one in gradients
    )


def _forward_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str = "identity",
    parameter: float = NO_PARAMETER,
    residual: Tensor | None = None,
    keeps_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = x.new_empty((3, x.shape[1]), dtype=accumulation_dtype(x))
    mask = _absent(x)
    if keeps_mask and side_of(activation, residual is not None) == "mask":
        mask = x.new_empty(x.numel() // mask_run(x), dtype=torch.uint8)
    return empty_like_in_family(x), saved, mask


def _eval_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    *following: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_forward_fake` with running statistics."""
    vectors = (weight, bias, running_mean, running_var, None)
    return _forward_fake(x, *vectors, False, 0.0, eps, *following)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    training: bool,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
    activation: str = "identity",
    parameter: float = NO_PARAMETER,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    need_dresidual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = saved.dtype if weight is None else weight.dtype
    vector = x.new_empty(x.shape[1], dtype=dtype)
    dresidual = _absent(x)
    if need_dresidual:
        dresidual = torch.empty_like(dy) if activation == "identity" else empty_like_in_family(x)
    return (
        empty_like_in_family(x) if need_dx else _absent(x),
        torch.empty_like(vector) if need_dgamma else _absent(x),
        torch.empty_like(vector) if need_dbeta else _absent(x),
        dresidual,
    )


for _key in ("CUDA", "CPU"):
    library.impl("batch_norm_forward", _forward_on_device, _key)  # type: ignore[no-untyped-call]
    library.impl("batch_norm_eval", _eval_on_device, _key)  # type: ignore[no-untyped-call]
    library.impl("batch_norm_backward", _backward_operator, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("tritonbn::batch_norm_forward", _forward_fake, lib=library)
torch.library.register_fake("tritonbn::batch_norm_eval", _eval_fake, lib=library)
torch.library.register_fake("tritonbn::batch_norm_backward", _backward_fake, lib=library)

forward_op = torch.ops.tritonbn.batch_norm_forward.default
eval_op = torch.ops.tritonbn.batch_norm_eval.default
backward_op = torch.ops.tritonbn.batch_norm_backward.default
