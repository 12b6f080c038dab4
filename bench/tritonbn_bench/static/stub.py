"""Triton's own CUDA driver over a driver library that does nothing, for measuring host cost."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .driver import active_driver

_SOURCE = Path(__file__).with_name("stub_cuda.c")
LIBRARY = "libcuda.so.1"


def missing_tool() -> str | None:
    """What this machine lacks to build the library and Triton's launcher, None where nothing."""
    if shutil.which("cc") is None:
        return "a C compiler (cc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"Python's headers ({header})"


class StubLibrary:
    """The loaded library; it counts the kernels that are launched into it."""

    def __init__(self, folder: Path) -> None:
        path = folder / LIBRARY
        options = ["-shared", "-fPIC", "-O2", f"-Wl,-soname,{LIBRARY}"]
        subprocess.run(["cc", *options, str(_SOURCE), "-o", str(path)], check=True)
        # found by its name from now on, whoever asks the loader for it
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._library.stub_launches.restype = ctypes.c_uint64

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return int(self._library.stub_launches())


@contextmanager
def stub_driver() -> Iterator[StubLibrary]:
    """Make Triton launch, through its own C launcher, into a library without a device.

    Only what asks torch for a CUDA device is replaced: current device, stream and capability.

    Raises:
        RuntimeError: the machine lacks a C compiler or Python's headers.
    """
    lacking = missing_tool()
    if lacking is not None:
        raise RuntimeError(f"the stub driver needs {lacking}")
    from triton.backends.nvidia.driver import CudaDriver

    before = os.environ.get("TRITON_LIBCUDA_PATH")
    with tempfile.TemporaryDirectory() as folder:
        library = StubLibrary(Path(folder))
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        try:
            driver: Any = CudaDriver()
            driver.get_current_device = lambda: 0
            driver.get_current_stream = lambda device: 0
            driver.get_device_capability = lambda device=0: (9, 0)
            with active_driver(driver):
                yield library
        finally:
            if before is None:
                del os.environ["TRITON_LIBCUDA_PATH"]
            else:
                os.environ["TRITON_LIBCUDA_PATH"] = before
