"""Whole models made to use our BatchNorm layers, and back.

A layer changes its class and nothing else: `module.__class__` is assigned, as torch's own lazy
layers do when they materialise. The object stays, so Parameters, buffers, hooks and their order,
training flags, attributes, optimizers, weak references and every place that names the layer stay
as they are without being copied one by one, and the parent does not notice. This is sound because
our classes add no state to torch's but an activation (see `modules._TritonBatchNorm`), without
which a layer is torch's.
"""

import sys
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ._following import follows_nothing
from .modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)

__all__ = ["convert", "revert"]

_Model = TypeVar("_Model", bound=nn.Module)

_OURS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.LazyBatchNorm1d: LazyBatchNorm1d,
    nn.LazyBatchNorm2d: LazyBatchNorm2d,
    nn.LazyBatchNorm3d: LazyBatchNorm3d,
}
_TORCHS: Mapping[type[nn.Module], type[nn.Module]] = {
    ours: torchs for torchs, ours in _OURS.items()
}


def convert(model: _Model) -> _Model:
    """Make every torch BatchNorm layer of `model` one of ours, in place.

    Converted are layers of exactly the classes `torch.nn.BatchNorm1d/2d/3d` and
    `LazyBatchNorm1d/2d/3d`, parametrised ones included, `model` itself too. Left alone are
    subclasses, SyncBatchNorm, quantised layers, a layer whose `forward` was replaced on the
    object, which would go on calling torch's, and one with an attribute `activation` of somebody
    else's, which ours would obey.

    Args:
        model: any module; each layer keeps its identity, Parameters, buffers, hooks and flags.

    Returns:
        `model` itself. `revert` is the exact inverse.

    Mutates: the class of the converted layers. Before torch 2.13 a conversion also drops the
        graphs that torch.compile has made so far, which would not notice it.
    """
    chosen = _layers_of(model, _OURS)
    return _change_classes(model, [one for one in chosen if not _fused(one[1])], _OURS)


def revert(model: _Model) -> _Model:
    """Make every BatchNorm layer of ours in `model` torch's again, in place.

    Args:
        model: any module; layers of exactly our classes change, whether `convert` made them or not.

    Returns:
        `model` itself. `convert` is the exact inverse.

    Raises:
        ValueError: layers with an activation, by their paths, for torch's class has none; nothing
            is changed then.

    Mutates: as `convert`.
    """
    chosen = _layers_of(model, _TORCHS)
    fused = [
        f"{path or 'the model itself'} with {one.activation!r}"
        for path, one in chosen
        if _fused(one)
    ]
    if fused:
        raise ValueError(
            "expected layers without an activation, which torch's classes would lose, got"
            f" {', '.join(fused)}"
        )
    return _change_classes(model, chosen, _TORCHS)


def _layers_of(
    model: nn.Module, counterparts: Mapping[type[nn.Module], type[nn.Module]]
) -> list[tuple[str, nn.Module]]:
    """Path and layer, of those whose class is a key of `counterparts` and whose forward is its."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if type_before_parametrizations(module) in counterparts and "forward" not in vars(module)
    ]


def _fused(layer: nn.Module) -> bool:
    """Whether a layer, of ours or of torch's with a stray attribute, would follow an activation."""
    # a submodule of that name is not here, and our forward does not see it
    return not follows_nothing(vars(layer).get("activation"))


def _change_classes(
    model: _Model,
    chosen: list[tuple[str, nn.Module]],
    counterparts: Mapping[type[nn.Module], type[nn.Module]],
) -> _Model:
    """Give each of the `chosen` layers of `model` the counterpart of its class as its class."""
    for _, module in chosen:
        target = counterparts[type_before_parametrizations(module)]
        found = type(module)
        if found not in counterparts:
            # torch made this class for the parametrised module; deep copies of the module share
            # it, so it is rebuilt on the new base and not changed
            target = type(f"Parametrized{target.__name__}", (target,), dict(vars(found)))
        module.__class__ = target
    # compiled graphs of torch 2.11 do not guard the class of torch's layers, those of 2.13 do
    if chosen and torch.__version__ < "2.13" and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    return model
