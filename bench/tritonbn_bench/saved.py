"""What a training step keeps for its backward pass, and what it launches, as torch itself tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks

__all__ = ["operators_of", "saved_bytes"]

# of the graphs that autograd makes of torch's own layers
_NODES = tuple(
    f"{name}Backward"
    for name in ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNorm", "Relu")
)


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


def operators_of(result: Tensor) -> int:
    """torch's operators of BatchNorm and ReLU behind a result and in its backward pass.

    Counted are nodes of the graph: a dispatch mode would change what runs.
    """
    waiting = [result.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return 2 * sum(node.name().startswith(_NODES) for node in seen)
