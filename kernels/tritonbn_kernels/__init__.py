"""Batch Normalization in Triton: the kernels and their launchers.

The ground floor of tritonbn. It knows tensors, layouts and plans, but no autograd and no modules;
which device runs what is decided a floor above.
"""

from tritonbn_kernels.ahead import CompileAhead
from tritonbn_kernels.at_once import BoundCall
from tritonbn_kernels.backward import batch_norm_backward, fused_backward
from tritonbn_kernels.forward import (
    ForwardCall,
    batch_norm_forward,
    batch_statistics,
    forward_call,
    fused_forward,
)
from tritonbn_kernels.launch import LaunchRecord, fallbacks, forget_devices, record_launches
from tritonbn_kernels.plan import clear_plan_caches, environment_pins, pinned_plan, plan_cache
from tritonbn_kernels.plan_file import environment_file

__all__ = [
    "BoundCall",
    "CompileAhead",
    "ForwardCall",
    "LaunchRecord",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_statistics",
    "clear_cache",
    "fallbacks",
    "forward_call",
    "fused_backward",
    "fused_forward",
    "pinned_plan",
    "plan_cache",
    "record_launches",
]


def clear_cache() -> None:
    """Forget plans, compiled launches, device properties and what the environment asked for, as
    after another driver was set."""
    environment_pins.cache_clear()
    environment_file.cache_clear()
    clear_plan_caches()
    forget_devices()
