"""The operators `tritonbn::batch_norm_forward`, `batch_norm_eval` and `batch_norm_backward`, and
autograd.

Plain eager calls go straight to the launchers. Everything that must see an operator (torch.compile,
torch.export, dispatch modes) goes through the dispatcher, where the same launchers are registered.
The forward operator declares that it writes the running statistics; the kernels write raw memory,
so that eager version counters stay as torch leaves them. Evaluation has an operator of its own that
writes nothing, lest exported graphs and compilers take the running statistics for written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

import tritonbn_kernels as kernels
from tritonbn_kernels import BoundCall, ForwardCall
from tritonbn_kernels.geometry import accumulation_dtype
from tritonbn_kernels.layout import empty_like_in_family

_T = TypeVar("_T")
_Tensor = TypeVar("_Tensor", Tensor, Tensor | None)
# weight, bias, running_mean, running_var and num_batches_tracked
_Vectors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# what the backward pass needs besides tensors: the call that ran (None where an operator did),
# training, eps, dtype of the bias
Kept = tuple[ForwardCall | None, bool, float, torch.dtype | None]
# bound once, for every backward pass asks them
_is_grad_enabled = torch.is_grad_enabled
_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes = torch._C._len_torch_dispatch_stack

_library = torch.library.Library("tritonbn", "DEF")  # type: ignore[no-untyped-call]
# any dense layout will do: without the tag the compiler inserts copies to fixed strides
_TAGS = (torch.Tag.flexible_layout,)
_library.define(  # type: ignore[no-untyped-call]
    "batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean,"
    " Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, bool training, float? momentum,"
    " float eps) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(  # type: ignore[no-untyped-call]
    "batch_norm_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean,"
    " Tensor running_var, float eps) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(  # type: ignore[no-untyped-call]
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor saved, bool training,"
    " bool need_dx, bool need_dgamma, bool need_dbeta) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def _on_device(x: Tensor, launcher: Callable[..., _T], *arguments: Any) -> _T:
    """`launcher(*arguments)` with the device of `x` current."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return launcher(*arguments)
    return launcher(*arguments)


def _forward_on_device(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _on_device(x, kernels.batch_norm_forward, x, *arguments)


def _eval_on_device(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`_forward_on_device` with running statistics."""
    return _forward_on_device(x, weight, bias, running_mean, running_var, None, False, 0.0, eps)


def _backward_on_device(
    dy: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return _on_device(x, kernels.batch_norm_backward, dy, x, *arguments)


def _backward_operator(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The backward operator's body: an operator returns tensors, empty where none was asked for."""
    gradients = _backward_on_device(dy, x, *arguments)
    return tuple(x.new_empty(0) if one is None else one for one in gradients)


def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    saved = x.new_empty((3, x.shape[1]), dtype=accumulation_dtype(x))
    return empty_like_in_family(x), saved


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    training: bool,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = saved.dtype if weight is None else weight.dtype
    return (
        empty_like_in_family(x) if need_dx else x.new_empty(0),
        x.new_empty(x.shape[1], dtype=dtype) if need_dgamma else x.new_empty(0),
        x.new_empty(x.shape[1], dtype=dtype) if need_dbeta else x.new_empty(0),
    )


for _key in ("CUDA", "CPU"):
    _library.impl("batch_norm_forward", _forward_on_device, _key)  # type: ignore[no-untyped-call]
    _library.impl("batch_norm_eval", _eval_on_device, _key)  # type: ignore[no-untyped-call]
    _library.impl("batch_norm_backward", _backward_operator, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("tritonbn::batch_norm_forward", _forward_fake, lib=_library)
torch.library.register_fake("tritonbn::batch_norm_eval", _forward_fake, lib=_library)
torch.library.register_fake("tritonbn::batch_norm_backward", _backward_fake, lib=_library)

_forward_op = torch.ops.tritonbn.batch_norm_forward.default
_eval_op = torch.ops.tritonbn.batch_norm_eval.default
_backward_op = torch.ops.tritonbn.batch_norm_backward.default


def through_dispatcher() -> bool:
    """Whether somebody is looking at operators: a compiler, or a dispatch mode."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0


class _BatchNormFunction(torch.autograd.Function):
    """y from x, gamma, beta. Saved: x, gamma, three words a channel; never running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        # in one tuple: autograd looks at every argument, at some cost
        rest: tuple[BoundCall, Kept],
    ) -> Tensor:
        bound, ctx.kept = rest
        y, saved = bound(x)
        ctx.save_for_backward(x, weight, saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, dy), None)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dgamma and dbeta, those that autograd asks for. `ctx.kept` is a `Kept`."""
    x, weight, saved = ctx.saved_tensors
    call, training, eps, bias_dtype = ctx.kept
    needs = ctx.needs_input_grad[:3]
    dx: Tensor | None
    dgamma: Tensor | None
    dbeta: Tensor | None
    if (
        _is_grad_enabled()
        # batched, or with a tangent: no memory for a kernel to read
        or forward_ad._current_level >= 0
        or _is_legacy_batched(dy)
        or _is_batched(dy)
    ):
        dx, dgamma, dbeta = _differentiable_backward(dy, x, weight, saved, training, eps, needs)
    elif through_dispatcher():
        dx, dgamma, dbeta = _backward_op(dy, x, weight, saved, training, *needs)
        dx, dgamma, dbeta = (
            dx if needs[0] else None,
            dgamma if needs[1] else None,
            dbeta if needs[2] else None,
        )
    else:
        if dy.is_neg():
            dy = dy.resolve_neg()
        if call is not None and not (x.is_cuda and x.get_device() != torch.cuda.current_device()):
            dx, dgamma, dbeta = call.backward(dy, x, weight, saved, needs)
        else:
            x, weight = _positive(x), _positive(weight)
            dx, dgamma, dbeta = _backward_on_device(dy, x, weight, saved, training, *needs)
    if dbeta is not None and dbeta.dtype is not bias_dtype:
        dbeta = dbeta.to(bias_dtype)
    return dx, dgamma, dbeta


class _OperatorFunction(torch.autograd.Function):
    """The operators' derivative wherever they are called: compiled, exported, or by their names."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        operator: Any,
        training: bool,
        eps: float,
        others: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, saved = operator(x, weight, bias, *others)
        ctx.save_for_backward(x, weight, saved)
        ctx.kept = (None, training, eps, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(saved)
        return y, saved

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, dy), None, None, None, None)


def _recorded(
    operator: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    others: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """An operator at autograd's level."""
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        y, saved = _OperatorFunction.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, operator, training, eps, others
        )
    else:
        with torch._C._AutoDispatchBelowAutograd():
            y, saved = operator(x, weight, bias, *others)
    return y, saved


def _forward_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    return _recorded(_forward_op, x, weight, bias, others[3], others[5], others)


def _eval_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    return _recorded(_eval_op, x, weight, bias, False, others[2], others)


_library.impl("batch_norm_forward", _forward_recorded, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("batch_norm_eval", _eval_recorded, "Autograd")  # type: ignore[no-untyped-call]

# without the search for dead functorch wrappers, 3 us a call: no transform is active where
# `functional._route` lets a call through
_apply_in_eager: Any = super(torch.autograd.Function, _BatchNormFunction).apply


def _differentiable_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    training: bool,
    eps: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by operations that autograd can differentiate again.

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


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """Batch Normalization of checked arguments, recorded by autograd where a gradient is needed.

    Args, Mutates: as `tritonbn_kernels.batch_norm_forward`.
    """
    tensors = (x, weight, bias, running_mean, running_var, num_batches_tracked)
    if through_dispatcher():
        y: Tensor
        if training:
            y, _ = _forward_op(*tensors, training, momentum, eps)
        else:
            y, _ = _eval_op(*tensors[:5], eps)
        return y
    # kernels read memory as it is; where operators are seen the dispatcher does this
    x, weight, bias = _positive(x), _positive(weight), _positive(bias)
    vectors = (weight, bias, running_mean, running_var, num_batches_tracked)
    call = _on_device(x, kernels.forward_call, x, *vectors, training, momentum, eps)
    kept = (call, training, eps, None if bias is None else bias.dtype)
    return run(partial(_called, call, vectors, momentum, eps), kept, x, weight, bias)


def _positive(tensor: _Tensor) -> _Tensor:
    """`tensor` with its sign in memory: that of the imaginary part of a conjugate is not."""
    return tensor.resolve_neg() if tensor is not None and tensor.is_neg() else tensor


def _called(
    call: ForwardCall,
    vectors: _Vectors,
    momentum: float | None,
    eps: float,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """A prepared call as `ForwardCall.bound` has it, for one time."""
    return call(x, *vectors, momentum, eps)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """`tritonbn_kernels.batch_statistics` with the device of `x` current."""
    return _on_device(x, kernels.batch_statistics, _positive(x))


def run(
    bound: BoundCall, kept: Kept, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """A prepared call in plain eager mode, recorded by autograd where a gradient is needed."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return run(bound, kept, x, weight, bias)
    y: Tensor
    if _is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    ):
        y = _apply_in_eager(x, weight, bias, (bound, kept))
    else:
        y, _ = bound(x)
    return y
