"""Launching a planned kernel again and again at little host cost.

A `Launch` holds one kernel with its grid and compile-time constants. Its first call goes through
Triton's dispatcher, which compiles; later calls go straight to the compiled kernel's own `run`
while every pointer is 16-byte aligned, as at the first call. No argument but a pointer is ever
specialised (the kernels say so), hence dtypes and constants, fixed per `Launch`, and alignment
decide the binary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime import JITFunction
from triton.runtime import driver as triton_driver

from tritonbn_kernels.plan import INTERPRETER, DeviceProfile

_ALIGNMENT_MASK = 15
# counters that a launch may need: one a channel block, one for the launch
_LEAST_COUNTERS = 1024


@dataclass(frozen=True)
class LaunchRecord:
    """One launch as it happened; `compiled` is Triton's kernel object, None in the interpreter."""

    kernel: str
    grid: tuple[int, ...]
    num_warps: int
    constants: dict[str, object]
    compiled: object | None


_recorders: list[list[LaunchRecord]] = []


@contextmanager
def record_launches() -> Iterator[list[LaunchRecord]]:
    """A list that grows by one `LaunchRecord` per kernel launch, from every thread, until exit."""
    records: list[LaunchRecord] = []
    _recorders.append(records)
    try:
        yield records
    finally:
        # by identity: two empty lists are equal
        _recorders[:] = [other for other in _recorders if other is not records]


class Launch:
    """A kernel with its device, grid, constants and warps; called with the run-time arguments in
    order, launches on the current stream of that device, which must be the current device."""

    __slots__ = (
        "_compiled",
        "_device",
        "_direct",
        "_values",
        "constants",
        "grid",
        "kernel",
        "num_warps",
    )

    def __init__(
        self,
        kernel: Any,
        device: int,
        programs: int,
        constants: dict[str, object],
        num_warps: int,
    ) -> None:
        self.kernel = kernel
        self.grid = (programs, 1, 1)
        self._device = device
        self.constants = constants
        self.num_warps = num_warps
        self._values = tuple(constants.values())
        self._compiled: Any = None
        self._direct = not interpreted(kernel) and not os.environ.get("TRITONBN_PLAIN_LAUNCH")

    def __call__(self, *arguments: Any) -> None:
        compiled = self._compiled
        if compiled is None:
            self._first(arguments)
        else:
            bits = 0
            raw: list[Any] = []
            for argument in arguments:
                if type(argument) in _PLAIN:
                    raw.append(argument)
                else:
                    pointer = argument.data_ptr()
                    bits |= pointer
                    raw.append(pointer)
            if bits & _ALIGNMENT_MASK:
                self._dispatch(arguments)
            else:
                compiled.run(
                    *self.grid,
                    triton_driver.active.get_current_stream(self._device),
                    compiled.function,
                    compiled.packed_metadata,
                    None,
                    None,
                    None,
                    *raw,
                    *self._values,
                )
        if _recorders:
            self._record(compiled or self._compiled)

    def _first(self, arguments: tuple[Any, ...]) -> None:
        compiled = self._dispatch(arguments)
        aligned = all(
            argument.data_ptr() & _ALIGNMENT_MASK == 0
            for argument in arguments
            if type(argument) not in _PLAIN
        )
        if self._direct and aligned:
            self._compiled = compiled

    def _dispatch(self, arguments: tuple[Any, ...]) -> Any:
        return self.kernel[self.grid](*arguments, **self.constants, num_warps=self.num_warps)

    def _record(self, compiled: object | None) -> None:
        name = self.kernel.fn.__name__
        for records in _recorders:
            records.append(
                LaunchRecord(name, self.grid, self.num_warps, dict(self.constants), compiled)
            )


_PLAIN = frozenset({int, float, bool, type(None)})

_profiles: dict[int, DeviceProfile] = {}
_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs this kernel."""
    return not isinstance(kernel, JITFunction)


def device_index(kernel: Any, x: torch.Tensor) -> int:
    """Index of the device of `x`: 0 in the interpreter, and for CPU tensors otherwise (a stub
    driver) the driver's current device."""
    if interpreted(kernel):
        return 0
    index = x.get_device()
    return index if index >= 0 else int(triton_driver.active.get_current_device())


def device_profile(kernel: Any, device: int) -> DeviceProfile:
    """What of a device decides plans; the interpreter has a profile of its own."""
    if interpreted(kernel):
        return INTERPRETER
    profile = _profiles.get(device)
    if profile is None:
        properties = triton_driver.active.utils.get_device_properties(device)
        profile = _profiles[device] = DeviceProfile(int(properties["multiprocessor_count"]))
    return profile


def arrival_counters(kernel: Any, x: torch.Tensor, count: int) -> torch.Tensor:
    """At least `count` int32 zeros that every launch leaves at zero again, one set per stream.

    Under graph capture they are new, so that a replay shares none with eager work.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=x.device)
    stream = 0
    if not interpreted(kernel):
        stream = triton_driver.active.get_current_stream(device_index(kernel, x))
    counters = _counters.get((x.device, stream))
    if counters is None or counters.numel() < count:
        size = max(count, _LEAST_COUNTERS)
        counters = torch.zeros(size, dtype=torch.int32, device=x.device)
        _counters[(x.device, stream)] = counters
    return counters


def forget_devices() -> None:
    """Drop device profiles and counters: another driver may be active from now on."""
    _profiles.clear()
    _counters.clear()
