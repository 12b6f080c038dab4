"""`batch_norm` as a function, and which engine runs it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from tritonbn_kernels.activation_names import activation_of
from tritonbn_kernels.launch import interpreted
from tritonbn_kernels.normalize import normalize_kernel

from . import _layer_calls, _memory, _operators
from ._following import IDENTITY, Activation, followed
from ._validation import accepts, residual_for

__all__ = ["Statistics", "backend", "batch_norm", "statistics"]

_KERNEL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTERPRETED = interpreted(normalize_kernel)


class Statistics(NamedTuple):
    """Batch statistics: mean and biased variance `(C,)`, and the number of values per channel."""

    mean: Tensor
    var: Tensor
    # hides tuple.count, which nobody calls on statistics
    count: int  # type: ignore[assignment]


def _route(x: Tensor, residual: Tensor | None = None) -> str:
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
    if residual is not None:
        kind = type(residual)
        if kind is not Tensor and kind is not torch.nn.Parameter:
            if not torch.compiler.is_compiling():
                return "torch"
        if residual.layout is not torch.strided:
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
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """`activation(F.batch_norm(input, ...) + residual)` on Triton kernels.

    Without the last two it is `torch.nn.functional.batch_norm`: the same arguments, results and
    errors. TorchScript compiles it as that function, which does not know the last two.

    Args:
        input: `(N, C, *S)`, fp16, bf16, fp32 or fp64, any layout.
        running_mean, running_var: `(C,)`, fp32 or the dtype of `input`; both or neither, and both
            where `training` is False.
        weight, bias: `(C,)`, fp32 or the dtype of `input`, each or None.
        training: normalise with the batch's statistics, else with the running ones.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        residual: added before the activation; the shape and device of `input`, any strides. Of
            another floating dtype it is converted to that of `input`; its gradient is in its own.
        activation: relu, relu6, leaky_relu, elu, hardswish, sigmoid, silu, tanh, gelu, gelu_tanh or
            identity, or a pair of such a name and what torch calls negative_slope (leaky_relu),
            alpha (elu) or approximate (gelu).

    Returns:
        The shape and dtype of `input`, and its memory format.

    Raises:
        TypeError: `residual` is no tensor of a floating dtype, or `activation` is neither a name
            nor a pair.
        ValueError: `residual` has another shape or device, or there is no such activation.
        Of the other arguments what the installed torch raises, in its order and words.

    Mutates: in training `running_mean` and `running_var` (with the unbiased variance).

    Saved for backward: `input`, `weight` and 12 bytes a channel (24 for fp64). With an activation
        `bias` too; but with a residual and relu, relu6 or leaky_relu, in its place, one byte for 16
        bytes of `input` (for each element where `input` is no multiple of 16 bytes), and with a
        residual and another activation `residual`. Never the sum before the activation.
    """
    arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    following = IDENTITY if activation is None else activation_of(activation)
    if residual is not None or activation is not None:
        for one in (input, residual):
            # a graph of torch.fx keeps the call whole
            if isinstance(one, Proxy):
                fused = {"residual": residual, "activation": activation}
                call: Any = one.tracer.create_proxy("call_function", batch_norm, arguments, fused)
                return cast("Tensor", call)
    if residual is not None:
        residual = residual_for(input, residual)
    if _route(input, residual) == "torch" or momentum is None:
        return _by_torch(*arguments, activation=following, residual=residual)
    return _batch_norm(*arguments, activation=following, residual=residual)


def _scripted() -> object:
    """What TorchScript compiles for `batch_norm`: it takes no keyword-only arguments."""
    return F.batch_norm


batch_norm.__prepare_scriptable__ = _scripted  # type: ignore[attr-defined]


def _by_torch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None = None,
    activation: tuple[str, float] = IDENTITY,
    residual: Tensor | None = None,
) -> Tensor:
    """`_batch_norm` composed of torch's functions."""
    if num_batches_tracked is not None:
        # a layer counts the batch before it finds fault with it
        num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(num_batches_tracked)
    # None without a count is an error of the caller, which torch has words for
    share: float = momentum  # type: ignore[assignment]
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training, share, eps)
    return followed(y, activation, residual)


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
    activation: tuple[str, float] = IDENTITY,
    residual: Tensor | None = None,
    layer: nn.Module | None = None,
    memory_efficient: bool | str = False,
) -> Tensor:
    """`batch_norm` of an input that `_route` gave to the kernels; counts the batch as well.

    momentum None takes the cumulative average, which needs `num_batches_tracked`. `activation` and
    `residual` are as `activation_of` and `residual_for` give them. The call is kept for `layer`, if
    one is given, unless its `memory_efficient` means a look at the parameters each time.
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
        return _by_torch(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            num_batches_tracked,
            activation,
            residual,
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
    taken = (weight, bias, mean, var, num_batches_tracked)
    restores = False
    if memory_efficient and layer is not None:
        restores = _memory.restores(
            layer, input, weight, bias, activation, residual, memory_efficient
        )
        layer = None
    y = _operators.batch_norm(
        input, *taken, training, momentum, eps, activation, residual, restores
    )
    if layer is not None and residual is None and not _operators.through_dispatcher():
        _layer_calls.keep(layer, input, taken, training, momentum, eps, activation)
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
