"""What a training step keeps for its backward pass, and what it launches, as torch itself tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["operators_of", "saved_bytes"]

_ACTIVATIONS = {"relu", "relu_", "threshold_backward"}


def saved_bytes(forward: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes of the storages that autograd keeps after a forward pass, each counted once.

    Args:
        forward: makes the graph
        network: its parameters and buffers are there anyway and left out
    """
    owned = [*network.parameters(), *network.buffers()]
    left_out = {tensor.untyped_storage()._cdata for tensor in owned}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in left_out:
            # held, so that no other storage takes its place
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operators of BatchNorm and ReLU."""

    count: int = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        space, _, name = function._schema.name.partition("::")
        if space == "aten" and ("batch_norm" in name or name in _ACTIVATIONS):
            self.count += 1
        return function(*arguments, **(keywords or {}))


def operators_of(forward: Callable[[], Tensor]) -> int:
    """Operators of torch for BatchNorm and ReLU in a forward and backward pass."""
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        torch.autograd.backward(forward())
    return int(counter.count)
