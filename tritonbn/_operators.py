"""Batch Normalization under autograd, by the operators or past them.

Plain eager calls go straight to the launchers. Everything that must see an operator (torch.compile,
torch.export, dispatch modes) goes through the dispatcher, where the same launchers are registered
(`_library.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

import tritonbn_kernels as kernels
from tritonbn_kernels import ForwardCall
from tritonbn_kernels.activation_names import NO_PARAMETER, side_of
from tritonbn_kernels.fused import IDENTITY, Fused

from ._library import (
    Gradients,
    backward_on_device,
    backward_op,
    eval_op,
    forward_op,
    library,
    on_device,
)
from ._second_order import differentiable_backward, restored
from ._validation import needs_gradients

_Tensor = TypeVar("_Tensor", Tensor, Tensor | None)
# weight, bias, running_mean, running_var and num_batches_tracked
_Vectors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# what the backward pass needs besides tensors: the call that ran (None where an operator did),
# training, eps, dtype of the bias, activation
Kept = tuple[ForwardCall | None, bool, float, torch.dtype | None, tuple[str, float]]
# bound once, for every backward pass asks them
_is_grad_enabled = torch.is_grad_enabled
_is_batched = torch._C._functorch.is_batchedtensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes = torch._C._len_torch_dispatch_stack


def through_dispatcher() -> bool:
    """Whether somebody is looking at operators: a compiler, or a dispatch mode."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0


def _saved_besides(
    activation: tuple[str, float],
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """(bias, side) as backward keeps them: the bias where it computes z anew, and of a residual the
    mask, the residual itself, or nothing."""
    fused = Fused(*activation, side_of(activation[0], residual is not None))
    side = {"mask": mask, "residual": residual, "": None}[fused.side]
    return bias if fused.needs_bias else None, side


def _restores(call: ForwardCall | None) -> bool:
    """Whether the call left y for backward in place of x."""
    return call is not None and call.fused.restores


class _BatchNormFunction(torch.autograd.Function):
    """y from x, gamma, beta and residual. Saved: x, gamma, three words a channel; with an
    activation beta, or the mask; the residual where `side_of` says so; never running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        # in one tuple: autograd looks at every argument, at some cost
        rest: tuple[Any, Kept],
    ) -> Tensor:
        bound, kept = rest
        ctx.kept = kept
        y: Tensor
        if residual is None:
            y, saved = bound(x)
            restores = _restores(kept[0])
            if kept[4][0] == "identity" and not restores:
                # three, as ever: each costs a little
                ctx.save_for_backward(x, weight, saved)
            else:
                ctx.save_for_backward(y if restores else x, weight, bias, saved, None)
        else:
            y, saved, mask = bound(x, residual)
            beta, side = _saved_besides(kept[4], bias, residual, mask)
            ctx.strides = (x.stride(), y.stride())
            ctx.save_for_backward(x, weight, beta, saved, side)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, dy), None)


def _gradients(ctx: Any, dy: Tensor) -> Gradients:
    """dx, dgamma, dbeta and dresidual, those that autograd asks for. `ctx.kept` is a `Kept`."""
    tensors = ctx.saved_tensors
    bias = side = None
    if len(tensors) == 3:
        x, weight, saved = tensors
    else:
        x, weight, bias, saved, side = tensors
    if side is not None and side.dtype is torch.uint8:
        x = _as_masked(x, *ctx.strides)
    call, training, eps, bias_dtype, activation = ctx.kept
    needs = ctx.needs_input_grad[:4]
    if (
        _is_grad_enabled()
        # batched, or with a tangent: no memory for a kernel to read
        or forward_ad._current_level >= 0
        or _is_legacy_batched(dy)
        or _is_batched(dy)
    ):
        if _restores(call):
            if _is_grad_enabled():
                raise RuntimeError(
                    "expected no create_graph with memory_efficient, which keeps no input to"
                    " differentiate again, got one: set memory_efficient=False"
                )
            x = restored(x, weight, bias, saved, activation)
        gradients = differentiable_backward(
            dy, x, weight, bias, saved, side, training, eps, activation, needs
        )
    else:
        if dy.is_neg() and not through_dispatcher():
            dy = dy.resolve_neg()
        here = not (x.is_cuda and x.get_device() != torch.cuda.current_device())
        if call is not None and here and not through_dispatcher():
            gradients = call.backward((dy, x, weight, bias, saved, side), needs)
        else:
            gradients = _backward_by_arguments(
                dy, x, weight, bias, saved, side, training, activation, needs
            )
    dx, dgamma, dbeta, dresidual = gradients
    if dbeta is not None and dbeta.dtype is not bias_dtype:
        dbeta = dbeta.to(bias_dtype)
    return dx, dgamma, dbeta, dresidual


def _as_masked(x: Tensor, given: tuple[int, ...], written: tuple[int, ...]) -> Tensor:
    """`x` with the strides that the forward pass was given, else those of the y that it wrote: a
    mask lies in the order of both, and hooks on saved tensors may have laid x out anew."""
    if x.stride() == given:
        return x
    return torch.empty_strided(x.shape, written, dtype=x.dtype, device=x.device).copy_(x)


def _backward_by_arguments(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    side: Tensor | None,
    training: bool,
    activation: tuple[str, float],
    needs: tuple[bool, bool, bool, bool],
) -> Gradients:
    """The operator where somebody looks at operators, else the launchers."""
    is_mask = side is not None and side.dtype is torch.uint8
    sides = (None, side) if is_mask else (side, None)
    if through_dispatcher():
        results = backward_op(
            dy, x, weight, saved, training, *needs[:3], *activation, bias, *sides, needs[3]
        )
        dx, dgamma, dbeta, dresidual = (
            one if needed else None for one, needed in zip(results, needs, strict=True)
        )
        return dx, dgamma, dbeta, dresidual
    x, weight, bias = _positive(x), _positive(weight), _positive(bias)
    return backward_on_device(
        dy, x, weight, saved, training, *needs[:3], *activation, bias, *sides, needs[3]
    )


class _OperatorFunction(torch.autograd.Function):
    """The operators' derivative wherever they are called: compiled, exported, or by their names."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        operator: Any,
        training: bool,
        eps: float,
        # activation and parameter
        activation: tuple[str, float],
        others: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            y, saved, mask = operator(x, weight, bias, *others, *activation, residual, True)
        beta, side = _saved_besides(activation, bias, residual, mask)
        ctx.strides = (x.stride(), y.stride())
        ctx.save_for_backward(x, weight, beta, saved, side)
        ctx.kept = (None, training, eps, None if bias is None else bias.dtype, activation)
        ctx.mark_non_differentiable(saved, mask)
        return y, saved, mask

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, dy), *(None,) * 5)


def _recorded(
    operator: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    others: tuple[Any, ...],
    activation: str = "identity",
    parameter: float = NO_PARAMETER,
    residual: Tensor | None = None,
    keeps_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """An operator at autograd's level; `others`: its arguments from the running mean to eps."""
    following = (activation, parameter)
    if needs_gradients(x, weight, bias, residual):
        y, saved, mask = _OperatorFunction.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, residual, operator, training, eps, following, others
        )
    else:
        with torch._C._AutoDispatchBelowAutograd():
            y, saved, mask = operator(x, weight, bias, *others, *following, residual, keeps_mask)
    return y, saved, mask


def _forward_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    own, following = others[:6], others[6:]
    return _recorded(forward_op, x, weight, bias, own[3], own[5], own, *following)


def _eval_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    own, following = others[:3], others[3:]
    return _recorded(eval_op, x, weight, bias, False, own[2], own, *following)


library.impl("batch_norm_forward", _forward_recorded, "Autograd")  # type: ignore[no-untyped-call]
library.impl("batch_norm_eval", _eval_recorded, "Autograd")  # type: ignore[no-untyped-call]

# without the search for dead functorch wrappers, 3 us a call: no transform is active where
# `functional._route` lets a call through
_apply_in_eager: Any = super(torch.autograd.Function, _BatchNormFunction).apply


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
    activation: tuple[str, float] = IDENTITY,
    residual: Tensor | None = None,
    restores: bool = False,
) -> Tensor:
    """`activation(bn(x) + residual)` of checked arguments, recorded by autograd where a gradient is
    needed.

    Args, Mutates: as `tritonbn_kernels.fused_forward`; restores: whether y is kept for backward and
        not x, as `_memory.restores` allows.
    """
    vectors = (weight, bias, running_mean, running_var, num_batches_tracked)
    if through_dispatcher():
        y: Tensor
        # autograd's level asks for the mask
        following = (*activation, residual, False)
        if training:
            y, _, _ = forward_op(x, *vectors, training, momentum, eps, *following)
        else:
            y, _, _ = eval_op(x, *vectors[:4], eps, *following)
        return y
    # kernels read memory as it is; where operators are seen the dispatcher does this
    x, weight, bias = _positive(x), _positive(weight), _positive(bias)
    residual = _positive(residual)
    vectors = (weight, bias, running_mean, running_var, num_batches_tracked)
    # without a residual there is no mask to be kept
    keeps_mask = residual is not None and needs_gradients(x, weight, bias, residual)
    call = on_device(
        x, kernels.forward_call, x, *vectors, training, momentum, eps,
        activation, residual, keeps_mask, restores,
    )  # fmt: skip
    kept = (call, training, eps, None if bias is None else bias.dtype, activation)
    bound = partial(_called, call, vectors, momentum, eps)
    return run(bound, kept, x, weight, bias, residual)


def _positive(tensor: _Tensor) -> _Tensor:
    """`tensor` with its sign in memory: that of the imaginary part of a conjugate is not."""
    return tensor.resolve_neg() if tensor is not None and tensor.is_neg() else tensor


def _called(
    call: ForwardCall,
    vectors: _Vectors,
    momentum: float | None,
    eps: float,
    x: Tensor,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """A prepared call as `ForwardCall.bound` has it, for one time; with a residual the mask too."""
    results = call(x, *vectors, momentum, eps, residual)
    return results[:2] if residual is None else results


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """`tritonbn_kernels.batch_statistics` with the device of `x` current."""
    return on_device(x, kernels.batch_statistics, _positive(x))


def run(
    bound: Callable[..., Any],
    kept: Kept,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
) -> Tensor:
    """A prepared call in plain eager mode, recorded by autograd where a gradient is needed."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return run(bound, kept, x, weight, bias, residual)
    y: Tensor
    if _is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        y = _apply_in_eager(x, weight, bias, residual, (bound, kept))
    elif residual is None:
        y, _ = bound(x)
    else:
        y, _, _ = bound(x, residual)
    return y
