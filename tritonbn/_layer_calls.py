"""The last call of each layer, ready to be made again.

A layer in a training loop is called with the same parameters and a new input of the same kind.
What checking the arguments and choosing the launches found the last time holds as long as the
tensors are the same objects over the same memory and nobody watches or transforms the call: that
is asked, and nothing else. It spares a small layer several microseconds a call, so this file is
written for speed.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tritonbn_kernels import forward_call, plan_cache

from ._operators import run

__all__ = ["again", "keep"]

_Taken = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]

# by the layer's id, which the weak reference in the entry confirms; emptied whenever plans may
# change. an entry is what `keep` puts there
_last_calls: dict[int, tuple[Any, ...]] = plan_cache()
_STRIDED = torch.strided
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state


def again(layer: nn.Module, x: Tensor) -> Tensor | None:
    """The layer's output if its last call can be made again for `x`, else None.

    What is kept are calls without a residual, and none with one can be made again.
    """
    if torch.compiler.is_compiling():
        return None
    last = _last_calls.get(id(layer))
    if last is None:
        return None
    owner, kind, settings, activation, vectors, memories, device, tracked, prepared = last
    for vector, address, numel, dtype in memories:
        if (
            vector.data_ptr() != address
            or vector.numel() != numel
            or vector.dtype is not dtype
            # at the same address may begin another view
            or not vector.is_contiguous()
        ):
            return None
    own = layer.__dict__
    parameters, buffers = own["_parameters"], own["_buffers"]
    weight, bias, running_mean, running_var = vectors
    if (
        # first what makes a look at the memory of x an error
        type(x) is Tensor
        and not _functorch_active()
        and x.layout is _STRIDED
        and not x.is_neg()
        and x.device == device
        and (x.shape, x.stride(), x.dtype, x.data_ptr() & 15) == kind
        and owner() is layer
        and (own["training"], own["momentum"], own["eps"], own["track_running_stats"]) == settings
        # no entry of a converted layer's dictionary: there the class has it
        and layer.activation == activation
        and parameters.get("weight") is weight
        and parameters.get("bias") is bias
        and buffers.get("running_mean") is running_mean
        and buffers.get("running_var") is running_var
        and buffers.get("num_batches_tracked") is tracked
        and not (running_mean is not None and running_mean.requires_grad)
        and not (running_var is not None and running_var.requires_grad)
        and forward_ad._current_level < 0
        and not _dispatch_modes()
        and _tracing_state() is None
    ):
        bound, kept, gamma, beta = prepared
        return run(bound, kept, x, gamma, beta)
    return None


def keep(
    layer: nn.Module,
    x: Tensor,
    taken: _Taken,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: tuple[str, float],
) -> None:
    """Keep the call that the kernels have just made for a layer, without a residual.

    Args:
        x: the layer's input.
        taken: weight, bias, running_mean, running_var and num_batches_tracked as the kernels took
            them, with `training`, `momentum`, `eps` and `activation`; the layer may own others
            besides, and may have the activation in another form.
    """
    own = layer.__dict__
    # a subclass may have made a property of one
    if not own.keys() >= {"training", "momentum", "eps", "track_running_stats"}:
        return
    parameters, buffers = own["_parameters"], own["_buffers"]
    vectors = (
        parameters.get("weight"),
        parameters.get("bias"),
        buffers.get("running_mean"),
        buffers.get("running_var"),
    )
    # a parametrised layer makes its tensors anew for every call, and a strided one a dense copy
    if any(one is not None and all(one is not held for held in vectors) for one in taken[:4]):
        return
    # the kernels took copies with the sign in memory
    if any(one is not None and one.is_neg() for one in vectors):
        return
    tracked = buffers.get("num_batches_tracked")
    number = id(layer)
    call = forward_call(x, *taken, training, momentum, eps, activation)
    gamma, beta = taken[:2]
    kept = (call, training, eps, None if beta is None else beta.dtype, activation)
    _last_calls[number] = (
        weakref.ref(layer, lambda _: _last_calls.pop(number, None)),
        (x.shape, x.stride(), x.dtype, x.data_ptr() & 15),
        (own["training"], own["momentum"], own["eps"], own["track_running_stats"]),
        layer.activation,
        vectors,
        tuple(
            (one, one.data_ptr(), one.numel(), one.dtype)
            for one in (*vectors, tracked)
            if one is not None
        ),
        x.device,
        tracked,
        (call.bound(*taken, momentum, eps), kept, gamma, beta),
    )
