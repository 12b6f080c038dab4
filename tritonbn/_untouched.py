"""A model called for what its calls show, and left as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

# integers of the same size, which tell 0.0 from -0.0
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _tensors_in(value: object, depth: int = 8) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings, nested so deep at most."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(tuple(value.values()), depth)
    elif isinstance(value, tuple | list) and depth:
        for one in value:
            yield from _tensors_in(one, depth - 1)


class _Attributes:
    """What the attributes of a module were, and the containers among them; tensors by identity."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = dict(vars(module))
        self._dicts = {k: dict(v) for k, v in self._values.items() if isinstance(v, dict)}
        self._lists = {k: list(v) for k, v in self._values.items() if type(v) is list}

    def restore(self) -> None:
        own = vars(self._module)
        _put_back(own, self._values)
        for name, values in self._dicts.items():
            _put_back(own[name], values)
        for name, items in self._lists.items():
            if len(own[name]) != len(items) or any(
                a is not b for a, b in zip(own[name], items, strict=True)
            ):
                own[name][:] = items


def _put_back(current: dict[Any, Any], values: dict[Any, Any]) -> None:
    if current.keys() == values.keys() and all(current[k] is v for k, v in values.items()):
        return
    current.clear()
    current.update(values)


def _restore_values(tensor: Tensor, copy: Tensor) -> None:
    if tensor.shape != copy.shape or tensor.dtype is not copy.dtype:
        tensor.data = copy
        return
    bits = _BITS.get(copy.itemsize, copy.dtype)
    if not torch.equal(tensor.detach().view(bits), copy.view(bits)):
        # by data: what autograd has kept of it is valid again
        tensor.data.copy_(copy)


@contextmanager
def _random_states(devices: Iterable[int]) -> Iterator[None]:
    """Python's, numpy's and torch's generators go on afterwards where they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)


@contextmanager
def _without_weight_cache() -> Iterator[None]:
    """autocast keeps no cast weight beyond its use: one made here would be met again later."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def untouched(model: nn.Module, *inputs: object) -> Iterator[None]:
    """Afterwards `model` and `inputs` are, to the bit, what they were before.

    Kept are the values of parameters, buffers, other tensors that modules hold and the tensors in
    `inputs` (copied for the while); the modules' attributes, and the dicts and lists among them;
    the states of the random generators. Compiled modules run eagerly inside.
    """
    attributes = [_Attributes(module) for module in model.modules()]
    tensors = {
        id(tensor): tensor
        for value, depth in ((inputs, 8), *((vars(module), 2) for module in model.modules()))
        for tensor in _tensors_in(value, depth)
        # no other kind is compared and copied so simply
        if tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    }
    copies = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    devices = {tensor.get_device() for tensor in tensors.values() if tensor.is_cuda}
    with ExitStack() as stack:
        stack.enter_context(_random_states(devices))
        stack.enter_context(_without_weight_cache())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for one in attributes:
                one.restore()
            with torch.no_grad():
                for tensor, copy in copies:
                    _restore_values(tensor, copy)
