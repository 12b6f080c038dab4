"""The SM clock of a GPU and what holds it down, asked between blocks through nvidia-ml-py.

Without that package nothing is asked: starting nvidia-smi takes longer than a block.
"""

from __future__ import annotations

from typing import Any

from .judge.rounds import Clock, no_clock

__all__ = ["REASONS", "clock_of"]

# bits of the driver's mask that stand for a clock held down, in its words
REASONS = {
    0x04: "sw power cap",
    0x08: "hw slowdown",
    0x10: "sync boost",
    0x20: "sw thermal slowdown",
    0x40: "hw thermal slowdown",
    0x80: "hw power brake slowdown",
}


def clock_of(device: str) -> Clock:
    """The clock of a device; one that knows nothing for a CPU, or where the driver does not tell.

    Args:
        device: "cuda" for the current one, or "cpu"
    """
    if device != "cuda":
        return no_clock
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return no_clock
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(_uuid())
        clock = _clock(nvml, handle)
        # what it cannot tell now it never can, as on a slice of a GPU
        clock()
    except nvml.NVMLError:
        return no_clock
    return clock


def _clock(nvml: Any, handle: Any) -> Clock:
    # named anew in version 12.535; the old name went in 13
    reasons_of = getattr(
        nvml,
        "nvmlDeviceGetCurrentClocksEventReasons",
        getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None),
    )

    def clock() -> tuple[float | None, tuple[str, ...]]:
        mhz = float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        mask = reasons_of(handle) if reasons_of else 0
        return mhz, tuple(name for bit, name in REASONS.items() if mask & bit)

    return clock


def _uuid() -> str:
    """What the driver calls the current device, whatever CUDA_VISIBLE_DEVICES numbers it."""
    import torch

    uuid = str(torch.cuda.get_device_properties().uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
