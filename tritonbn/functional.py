"""`batch_norm` as a function, and which engine runs it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritonbn_kernels.launch import interpreted
from tritonbn_kernels.normalize import normalize_kernel

from . import _layer_calls, _operators
from ._validation import accepts

__all__ = ["Statistics", "backend", "batch_norm", "statistics"]

_KERNEL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTERPRETED = interpreted(normalize_kernel)


class Statistics(NamedTuple):
    """Batch statistics: mean and biased variance `(C,)`, and the number of values per channel."""

    mean: Tensor
    var: Tensor
    # hides tuple.count, which nobody calls on statistics
    count: int  # type: ignore[assignment]


def _route(x: Tensor) -> str:
    """What runs for `x` now: "triton", "interpreter" or "torch". Cheap: called per forward."""
    # the class first: a subclass may override even the look at its dtype
    kind = type(x)
    if kind is not Tensor and kind is not torch.nn.Parameter and not torch.compiler.is_compiling():
        return "torch"
    if x.dtype not in _KERNEL_DTYPES:
        return "torch"
    if x.is_cuda:
        engine = "triton"
    elif _INTERPRETED and x.device.type == "cpu":
        engine = "interpreter"
    else:
        return "torch"
    if (
        x.dim() < 2
        or x.numel() == 0
        or x.layout is not torch.strided
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    ):
        return "torch"
    return engine


def backend(x: Tensor) -> str:
    """The engine that `batch_norm` and the layers would use for `x` at this moment.

    Args:
        x: any tensor.

    Returns:
        "triton" for CUDA and ROCm tensors; "interpreter" for CPU tensors where Triton's interpreter
        is on (TRITON_INTERPRET=1 when tritonbn was imported); "torch", that is torch's own
        batch_norm, for other CPU tensors and for what the kernels leave to torch: empty input,
        fewer than two dimensions, integer and complex dtypes, tensor subclasses, functorch
        transforms, forward-mode AD, jit tracing.

    Raises:
        TypeError: `x` is no tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got {type(x).__name__}")
    return _route(x)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` on Triton kernels: the same arguments, results and errors.

    Args:
        input: `(N, C, *S)`, fp16, bf16, fp32 or fp64, any layout.
        running_mean, running_var: `(C,)`, fp32 or the dtype of `input`; both or neither, and both
            where `training` is False.
        weight, bias: `(C,)`, fp32 or the dtype of `input`, each or None.
        training: normalise with the batch's statistics, else with the running ones.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.

    Returns:
        The shape and dtype of `input`, and its memory format.

    Raises:
        What the installed torch raises, in its order and words.

    Mutates: in training `running_mean` and `running_var` (with the unbiased variance).

    Saved for backward: `input`, `weight` and 12 bytes a channel (24 for fp64).
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    else:
        if _route(input) == "torch" or momentum is None:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None = None,
    layer: nn.Module | None = None,
) -> Tensor:
    """`batch_norm` of an input that `_route` gave to the kernels; counts the batch as well.

    momentum None takes the cumulative average, which needs `num_batches_tracked`. The call is kept
    for `layer`, if one is given.
    """
    if not accepts(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        num_batches_tracked,
    ):
        if num_batches_tracked is not None:
            # a layer counts the batch before it finds fault with it
            num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(num_batches_tracked)
        return F.batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            0.0 if momentum is None else momentum,
            eps,
        )
    # the kernels want dense vectors; asked first, for contiguous() costs a trip through autograd
    if weight is not None and not weight.is_contiguous():
        weight = weight.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    # statistics are written where they lie: a strided view of them through a dense copy
    mean, var = running_mean, running_var
    if mean is not None and not mean.is_contiguous():
        mean = mean.contiguous()
    if var is not None and not var.is_contiguous():
        var = var.contiguous()
    # Triton takes a Python int for an int
    eps = float(eps)
    if momentum is not None:
        momentum = float(momentum)
    y = _operators.batch_norm(
        input, weight, bias, mean, var, num_batches_tracked, training, momentum, eps
    )
    if layer is not None and not _operators.through_dispatcher():
        taken = (weight, bias, mean, var, num_batches_tracked)
        _layer_calls.keep(layer, input, taken, training, momentum, eps)
    if mean is running_mean and var is running_var:
        return y
    if training and mean is not None and var is not None:
        if running_mean is not None and running_var is not None:
            running_mean.copy_(mean)
            running_var.copy_(var)
    return y


def statistics(input: Tensor) -> Statistics:
    """Batch statistics of every channel, in one read of the input. Not differentiable.

    Args:
        input: `(N, C, *S)`, fp16, bf16, fp32 or fp64, not empty, any layout.

    Returns:
        mean, var: `(C,)` fp32 (fp64 for fp64 input), the variance biased.
        count: values per channel.

    Raises:
        TypeError: `input` is no tensor of a floating dtype.
        ValueError: fewer than two dimensions, or no element.
    """
    if not isinstance(input, Tensor) or input.dtype not in _KERNEL_DTYPES:
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(f"expected a tensor of fp16, bf16, fp32 or fp64, got {got}")
    if input.dim() < 2 or input.numel() == 0:
        raise ValueError(
            f"expected a non-empty input of shape (N, C, *S), got {tuple(input.shape)}"
        )
    count = input.numel() // input.shape[1]
    x = input.detach()
    if _route(x) == "torch":
        wide = x.to(torch.float64 if x.dtype is torch.float64 else torch.float32)
        var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
        return Statistics(mean, var, count)
    return Statistics(*_operators.statistics(x), count)
