"""A Triton driver without a device: real host code and a real compiler, launches that do nothing.

Made active, it lets `kernel[grid](...)` run on CPU tensors up to the launch itself: dispatch
specialises on the real addresses, alignments and integers, the compiler makes the real binary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as triton_driver


@dataclass(frozen=True)
class Target:
    """One architecture: what the compiler is told and what launchers read of the device.

    `shared_bytes` is the most shared memory that one program may have, in bytes. `index` is the
    device's number; JITFunction keeps its kernels by it, so every target has its own.
    """

    name: str
    backend: str
    architecture: int | str
    warp_size: int
    index: int
    sm_count: int
    shared_bytes: int
    registers: int

    @property
    def gpu_target(self) -> GPUTarget:
        """The target as Triton names it."""
        return GPUTarget(self.backend, self.architecture, self.warp_size)


# an A100, an H200, a B200 and an MI300X; registers: the most that one thread can address
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 80, 108, 166_912, 255),
        Target("sm_90", "cuda", 90, 32, 90, 132, 232_448, 255),
        Target("sm_100", "cuda", 100, 32, 100, 148, 232_448, 255),
        Target("gfx942", "hip", "gfx942", 64, 42, 304, 65_536, 512),
    )
}


class FakeUtilities:
    """What Triton asks a driver's `utils` for."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.loaded = 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Properties that launchers and Triton read; sizes in bytes."""
        return {
            "max_shared_mem": self._target.shared_bytes,
            "max_num_regs": 65_536,
            "multiprocessor_count": self._target.sm_count,
            "warpSize": self._target.warp_size,
            "sm_clock_rate": 1_000_000,
            "mem_clock_rate": 1_000_000,
            "mem_bus_width": 5120,
        }

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, threads at most); the handles are mere numbers."""
        self.loaded += 1
        return self.loaded, self.loaded, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        """Nothing was loaded."""


class FakeLauncher:
    """The object that Triton calls to launch: it only counts."""

    launches = 0

    def __init__(self, source: object, metadata: object) -> None:
        self.source = source
        self.metadata = metadata

    def __call__(self, *arguments: object) -> None:
        FakeLauncher.launches += 1


class FakeDriver(DriverBase):  # type: ignore[misc]
    """A device of the kind that `target` names; tensors stay on the CPU."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.utils = FakeUtilities(target)
        self.launcher_cls = FakeLauncher

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """No launcher is compiled, so no type has to be named."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """What the compiler compiles for."""
        return self.target.gpu_target

    def get_current_device(self) -> int:
        """The target's own number."""
        return self.target.index

    def set_current_device(self, device: int) -> None:
        """There is one device."""

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """As torch.cuda gives it, for CUDA targets."""
        return divmod(int(self.target.architecture), 10)

    def get_active_torch_device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """There is nothing to time: NotImplementedError."""
        raise NotImplementedError("a driver without a device cannot time anything")


@contextmanager
def active_driver(driver: DriverBase) -> Iterator[DriverBase]:
    """Make `driver` the one that Triton compiles for and launches with, until exit."""
    before = triton_driver._active
    triton_driver.set_active(driver)
    try:
        yield driver
    finally:
        triton_driver._active = before
