"""The BatchNorm layers of a user's model: shapes, dtypes and layouts of one real step."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

import tritonbn
from tritonbn_kernels.activation_names import NO_PARAMETER, activation_of

from .cases import Case
from .fusions import FUSIONS
from .inputs import TORCH_DTYPES

__all__ = ["LayerCall", "ModelError", "cases_of", "layers_of", "layout_name", "load_model"]

SUITE = "model"
_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
# order of the axes in memory by number of axes: as torch makes them, and with the channel last
_ORDERS = {2: ("nc", "nc"), 3: ("ncl", "nlc"), 4: ("nchw", "nhwc"), 5: ("ncdhw", "ndhwc")}

# layers of somebody else's may have an activation of their own
_OURS = (tritonbn.BatchNorm1d, tritonbn.BatchNorm2d, tritonbn.BatchNorm3d)


class ModelError(ValueError):
    """A model that cannot be had or run; the text says why."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a BatchNorm layer in a step.

    Attributes:
        path: of the module in the model, "(model)" for the model itself
        kind: name of its class
        shape: `(N, C, *S)` of its input
        dtype: of its input: key of DTYPES, or torch's name where there is none
        layout: one of LAYOUTS, or "strides (...)" of a view that is dense in none of them
        fusion: key of FUSIONS, or what follows in words where there is none
        training: whether the statistics are those of the batch
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    fusion: str
    training: bool

    @property
    def unmeasured(self) -> str:
        """Why no case stands for this call; empty if one does."""
        if self.dtype not in TORCH_DTYPES:
            return f"dtype {self.dtype}"
        if not any(self.layout in names for names in _ORDERS.values()):
            return f"a view with {self.layout}"
        return "" if self.fusion in FUSIONS else f"followed by {self.fusion}"


def load_model(spec: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and the arguments of one step, as a function of the user makes them.

    Args:
        spec: "package.module:function"; found from the current folder too. The function takes no
            arguments and returns the model and a sample input, or a tuple of inputs.

    Raises:
        ModelError: the spec, the module, the function or what it returns is wrong, or one of them
            raises
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise ModelError(f"expected package.module:function, got {spec!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # as `python -m` has it; the console script has not
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = importlib.import_module(name)
        for part in attribute.split("."):
            made = getattr(made, part)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(f"expected a module {name}, got none of that name") from error
        raise ModelError(f"importing {name} failed: {error}") from error
    except AttributeError as error:
        raise ModelError(f"expected {attribute} in {name}, got none: {error}") from error
    except Exception as error:
        raise ModelError(f"importing {name} failed: {_in_words(error)}") from error
    if not callable(made) or isinstance(made, nn.Module):
        raise ModelError(f"expected {spec} to be a function, got {type(made).__name__}")
    try:
        returned = made()
    except Exception as error:
        raise ModelError(f"{spec} failed: {_in_words(error)}") from error
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not pair or not isinstance(returned[0], nn.Module):
        raise ModelError(
            f"expected {spec} to return (model, sample input or tuple of inputs), got "
            + (
                f"({', '.join(type(item).__name__ for item in returned)})"
                if isinstance(returned, tuple)
                else type(returned).__name__
            )
        )
    model, inputs = returned
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def layers_of(
    model: nn.Module, inputs: Sequence[Any], training: bool = True
) -> tuple[LayerCall, ...]:
    """The calls of BatchNorm layers, torch's and ours, in one forward pass, in order.

    The model keeps its training flags, and its buffers, running statistics among them, keep their
    values; torch's random numbers go on as if nothing had happened. Lazy layers get their sizes. No
    graph is made.

    Args:
        model: run as it is, with what it does about autocast
        inputs: its positional arguments
        training: whether it is run as in training; layers that then stay in eval are left there

    Raises:
        ModelError: the forward pass raises
    """
    calls: list[LayerCall] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            calls.append(_call(path, module, arguments, keywords))

        return hook

    with _left_as_it_was(model), torch.random.fork_rng():
        model.train(training)
        hooks = [
            module.register_forward_pre_hook(note(path or "(model)"), with_kwargs=True)
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm)
        ]
        try:
            with torch.no_grad():
                model(*inputs)
        except Exception as error:
            raise ModelError(f"the model's forward pass failed: {_in_words(error)}") from error
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(calls)


def _modes(call: LayerCall, backward: bool) -> tuple[str, ...]:
    """Modes in which a layer is measured: forward, and in a training step backward too."""
    statistics = "train" if call.training else "eval"
    passes = ("forward", "backward") if backward else ("forward",)
    return tuple(f"{name}_{statistics}" for name in passes)


def cases_of(
    layers: Sequence[LayerCall], origin: str = SUITE, backward: bool = True
) -> tuple[Case, ...]:
    """The distinct BatchNorm calls of a step, each with how many layers make it.

    Calls that no case can stand for (`LayerCall.unmeasured`) are left out.

    Args:
        layers: as `layers_of` returns them
        origin: name of the model
        backward: whether the step has a backward pass
    """
    found: dict[str, Case] = {}
    paths: dict[str, list[str]] = {}
    for call in layers:
        if call.unmeasured:
            continue
        batch, channels, *plane = call.shape
        for mode in _modes(call, backward):
            case = Case(
                mode,
                call.dtype,
                call.layout,
                batch,
                channels,
                tuple(plane),
                SUITE,
                origin,
                fusion=call.fusion,
            )
            # planes of one area are one case: a kernel sees no difference
            paths.setdefault(case.id, []).append(call.path)
            found.setdefault(case.id, case)
    return tuple(
        replace(case, count=len(paths[name]), origin=f"{origin}: {_several(paths[name])}")
        for name, case in found.items()
    )


def _several(paths: Sequence[str]) -> str:
    """Paths in few words: the first three by name."""
    distinct = list(dict.fromkeys(paths))
    more = len(distinct) - 3
    return ", ".join(distinct[:3]) + (f" and {more} more" if more > 0 else "")


def _call(
    path: str, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> LayerCall:
    x = arguments[0] if arguments else keywords["input"]
    ours = isinstance(module, _OURS)
    residual = arguments[1] if len(arguments) > 1 else keywords.get("residual")
    own_statistics = module.running_mean is not None or module.running_var is not None
    return LayerCall(
        path=path,
        kind=type(module).__name__,
        shape=tuple(x.shape),
        dtype=_DTYPES.get(x.dtype, str(x.dtype).removeprefix("torch.")),
        layout=layout_name(x),
        fusion=_fusion(module.activation if ours else None, residual is not None),
        training=module.training or not own_statistics,
    )


def _fusion(activation: Any, residual: bool) -> str:
    """Key of FUSIONS, or words."""
    name, parameter = activation_of(activation)
    for fusion in FUSIONS.values():
        if (fusion.activation, fusion.residual) == (name, residual):
            return fusion.name
    number = "" if parameter == NO_PARAMETER else f"({parameter:g})"
    return f"{'add + ' if residual else ''}{name}{number}"


def layout_name(x: Tensor) -> str:
    """The order of the axes in memory: one of LAYOUTS, or "strides (...)" where none is dense."""
    first, last = _ORDERS.get(x.dim(), ("", ""))
    if first and x.is_contiguous():
        return first
    if last and x.movedim(1, -1).is_contiguous():
        return last
    return f"strides ({', '.join(map(str, x.stride()))})"


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore training flags and buffers afterwards."""
    flags = {module: module.training for module in model.modules()}
    lazy = [module for module in model.modules() if isinstance(module, LazyModuleMixin)]
    # their buffers have no values yet
    known = [buffer for buffer in model.buffers() if not is_lazy(buffer)]
    values = [buffer.detach().clone() for buffer in known]
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        with torch.no_grad():
            for buffer, value in zip(known, values, strict=True):
                buffer.copy_(value)
            for module in lazy:
                if isinstance(module, _BatchNorm) and not is_lazy(module.running_mean):
                    module.reset_running_stats()


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"
