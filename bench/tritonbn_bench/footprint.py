"""Memory of one call: its peak on a GPU, and what its forward pass keeps for the backward pass."""

from __future__ import annotations

import torch
from torch import nn

from .inputs import Inputs
from .providers import Prepared
from .results import PEAK, SAVED
from .saved import saved_bytes
from .timer import Work

__all__ = ["PEAK", "SAVED", "kept_bytes", "peak_bytes"]


def peak_bytes(work: Work) -> int:
    """Bytes that torch's allocator hands out at most during a call on the current GPU, less those
    that it had handed out before: results and temporaries, without operands."""
    state = work.setup()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work.call(state)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kept_bytes(prepared: Prepared, inputs: Inputs) -> int | None:
    """Bytes that a call's forward pass keeps for its backward pass, x among them where it is kept,
    parameters and statistics not; None where nothing is to follow."""
    if prepared.graph is None:
        return None
    owner = nn.Module()
    for name in ("gamma", "beta", "running_mean", "running_var"):
        owner.register_buffer(name, getattr(inputs, name))
    return saved_bytes(prepared.graph, owner)
