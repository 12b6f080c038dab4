"""Launching a planned kernel again and again at little host cost.

A `Launch` holds one kernel with its grid and compile-time constants. Its first call goes through
Triton's dispatcher, which compiles; later calls go straight to the compiled kernel's own `run`
while every pointer is 16-byte aligned, as at the first call. No argument but a pointer is ever
specialised (the kernels say so), hence dtypes and constants, fixed per `Launch`, and alignment
decide the binary.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.runtime import JITFunction
from triton.runtime import driver as triton_driver

from tritonbn_kernels.plan import INTERPRETER, REGISTER_CAP, DeviceProfile

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


# launches a compiled kernel with its arguments, those that are compile-time constants included
Starter = Callable[[tuple[Any, ...]], None]
# one, and the last of its arguments
Ready = tuple[Starter, tuple[Any, ...]]
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


# what new launches compile in this context instead of running
_compiled_only: ContextVar[list[Any] | None] = ContextVar("compiled_only", default=None)


@contextmanager
def compile_only() -> Iterator[list[Any]]:
    """The first call of a `Launch` in this context compiles, starts nothing and is not recorded;
    the list that is given grows by Triton's kernel object, or its promise of one.

    Calls after the first run as ever: only a `Launch` made for the purpose may be called inside.
    """
    kernels: list[Any] = []
    token = _compiled_only.set(kernels)
    try:
        yield kernels
    finally:
        _compiled_only.reset(token)


class LaunchRefusedError(RuntimeError):
    """The driver would not start a cooperative grid; nothing has run."""


def _starter(compiled: Any, programs: int, stream_of: Any, device: int) -> Starter:
    """`start(arguments)`: launches on the current stream, pointers given as addresses.

    It calls what `compiled.run` calls in the end, with its Python part (1 us) left out, where that
    is known. The C function of Triton's CUDA launcher takes other arguments in every version; of
    the known ones, only a kernel without scratch memory needs nothing of what the Python part does.
    """
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    known = type(run).__name__ == "CudaLauncher" and not (
        run.global_scratch_size or run.profile_scratch_size
    )
    head: tuple[Any, ...]
    if known and triton.__version__.startswith("3.6."):
        launch = run.launch
        head = (function, run.launch_cooperative_grid, run.launch_pdl, None, None, metadata)
        head += (None, None, None)

        def start(arguments: tuple[Any, ...]) -> None:
            launch(programs, 1, 1, stream_of(device), *head, *arguments)

    elif known and triton.__version__.startswith("3.9.") and not run.gsan_enabled:
        launch = run.launch
        head = (function, run.launch_cooperative_grid, run.launch_pdl, metadata)
        head += (None, None, None, None, None, run.arg_annotations, run.kernel_signature)

        def start(arguments: tuple[Any, ...]) -> None:
            launch(programs, 1, 1, stream_of(device), *head, arguments)

    else:

        def start(arguments: tuple[Any, ...]) -> None:
            stream = stream_of(device)
            run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)

    return start


class Launch:
    """A kernel with everything that stays from call to call: device, grid, integers, constants.

    Called with the tensors (or None) and the floats of one call, it launches on the current stream
    of its device, which must be the current device. The kernel's arguments come in that order:
    tensors, integers, floats, constants; of `constants` it takes those in its signature.
    """

    __slots__ = (
        "_compiled",
        "_device",
        "_direct",
        "_integers",
        "_start",
        "_values",
        "constants",
        "grid",
        "kernel",
        "num_warps",
        "options",
    )

    def __init__(
        self,
        kernel: Any,
        device: int,
        programs: int,
        integers: tuple[int, ...],
        constants: dict[str, object],
        num_warps: int,
        options: dict[str, object] | None = None,
    ) -> None:
        self.kernel = kernel
        self.grid = (programs, 1, 1)
        # in the signature's order, in which they are given without their names
        self.constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        self.num_warps = num_warps
        self.options = {**compiler_options(kernel, device), **(options or {})}
        self._device = device
        self._integers = integers
        self._values = tuple(self.constants.values())
        self._compiled: Any = None
        self._start: Starter | None = None
        self._direct = not interpreted(kernel) and not os.environ.get("TRITONBN_PLAIN_LAUNCH")

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], *floats: float) -> None:
        start = self._start
        if start is None:
            compiled = self._first(tensors, floats)
        else:
            compiled = self._compiled
            pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
            bits = 0
            for pointer in pointers:
                if pointer is not None:
                    bits |= pointer
            if bits & _ALIGNMENT_MASK:
                compiled = self._dispatch(tensors, floats)
            else:
                try:
                    start((*pointers, *self._integers, *floats, *self._values))
                except RuntimeError as error:
                    raise self._refusal(error) from error
        if _recorders:
            self._record(compiled)

    def ready(self, tensors: tuple[torch.Tensor | None, ...], *floats: float) -> Ready | None:
        """The launch with its last arguments given, for who makes it without us.

        Args:
            tensors: the last ones of the arguments, not moved from now on.
            floats: as in a call.

        Returns:
            `start` and `rest`: `start((*addresses, *rest))` launches, with the addresses of the
            other tensors, all of them multiples of 16. None before a launch has compiled the
            kernel, and where the driver may refuse one.
        """
        start, compiled = self._start, self._compiled
        addresses = tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)
        unaligned = any(address is not None and address & _ALIGNMENT_MASK for address in addresses)
        if start is None or unaligned or self.options.get("launch_cooperative_grid"):
            return None
        unrecorded = start

        def recorded(arguments: tuple[Any, ...]) -> None:
            unrecorded(arguments)
            if _recorders:
                self._record(compiled)

        return recorded, (*addresses, *self._integers, *floats, *self._values)

    def _first(self, tensors: tuple[torch.Tensor | None, ...], floats: tuple[float, ...]) -> Any:
        compiled = self._dispatch(tensors, floats)
        if _compiled_only.get() is not None:
            return compiled
        unaligned = any(
            tensor.data_ptr() & _ALIGNMENT_MASK for tensor in tensors if tensor is not None
        )
        if self._direct and not unaligned:
            self._compiled = compiled
            stream_of = triton_driver.active.get_current_stream
            # last: another thread takes it for a sign that the rest is there
            self._start = _starter(compiled, self.grid[0], stream_of, self._device)
        return compiled

    def _dispatch(self, tensors: tuple[torch.Tensor | None, ...], floats: tuple[float, ...]) -> Any:
        kernels = _compiled_only.get()
        launch = self.kernel[self.grid] if kernels is None else self._compile
        try:
            compiled = launch(
                *tensors,
                *self._integers,
                *floats,
                **self.constants,
                **self.options,
                num_warps=self.num_warps,
            )
        except RuntimeError as error:
            raise self._refusal(error) from error
        if kernels is not None:
            kernels.append(compiled)
        return compiled

    def _compile(self, *arguments: Any, **constants: Any) -> Any:
        return self.kernel.warmup(*arguments, grid=self.grid, **constants)

    def _refusal(self, error: RuntimeError) -> RuntimeError:
        """What to raise: a `LaunchRefusedError` where the driver refuses a cooperative grid."""
        if self.options.get("launch_cooperative_grid") and "cooperative" in str(error):
            return LaunchRefusedError(str(error))
        return error

    def _record(self, compiled: object | None) -> None:
        if _compiled_only.get() is not None:
            return
        name = self.kernel.fn.__name__
        for records in _recorders:
            records.append(
                LaunchRecord(name, self.grid, self.num_warps, dict(self.constants), compiled)
            )


_profiles: dict[int, DeviceProfile] = {}
_counters: dict[tuple[str, torch.device, int], torch.Tensor] = {}
_fallbacks: list[str] = []


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
        target = triton_driver.active.get_current_target()
        cuda = target.backend == "cuda"
        profile = _profiles[device] = DeviceProfile(
            int(properties["multiprocessor_count"]),
            # how many programs an AMD device holds at once is not known here, nor without a
            # register cap: none waits there
            cooperative=cuda and target.arch >= 80,
            assembly=cuda and target.arch >= 80,
            reserved_sms=int(os.environ.get("TRITONBN_RESERVE_SMS", "0")),
            warp_size=int(target.warp_size),
            l2_bytes=_l2_bytes(device),
        )
    return profile


def gpu_of(kernel: Any, x: torch.Tensor) -> tuple[str, int]:
    """Name and SMs of what runs a kernel on `x`, by which plan files are kept."""
    device = device_index(kernel, x)
    name = torch.cuda.get_device_name(device) if x.is_cuda else "no GPU"
    sms = device_profile(kernel, device).sm_count
    return "interpreter" if interpreted(kernel) else name, sms


def _l2_bytes(device: int) -> int:
    """Size of a device's L2 cache; without a device (a stub driver), that of the profile's own."""
    if not torch.cuda.is_available():
        return DeviceProfile.l2_bytes
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def compiler_options(kernel: Any, device: int) -> dict[str, object]:
    """What every launch is compiled with; the compilers' own defaults differ by version."""
    options: dict[str, object] = {"enable_fp_fusion": True}
    # AMD's compiler knows no such option
    if device_profile(kernel, device).assembly:
        options["maxnreg"] = REGISTER_CAP
    return options


def note_fallback(plan: object, error: Exception) -> None:
    """Keep and warn of a one-read plan that gave way to two reads."""
    text = f"{plan} was refused ({error}); two-read kernels run instead"
    _fallbacks.append(text)
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def fallbacks() -> list[str]:
    """One line for each one-read plan that the driver refused in this process."""
    return list(_fallbacks)


def arrival_counters(kernel: Any, x: torch.Tensor, count: int) -> torch.Tensor:
    """At least `count` int32 zeros that every launch leaves at zero again, one set per stream.

    Under graph capture they are new, so that a replay shares none with eager work.
    """
    return _stream_counters("arrivals", kernel, x, count)


def barrier_counters(kernel: Any, x: torch.Tensor, count: int) -> torch.Tensor:
    """At least `count` int32 counters of group barriers, which need no value to begin with but the
    low 31 bits zero, as every launch leaves them; otherwise as `arrival_counters`."""
    return _stream_counters("barriers", kernel, x, count)


def _zeros_outside_pools(size: int, x: torch.Tensor) -> torch.Tensor:
    """int32 zeros on the device of `x`, in no memory pool that this thread may have entered.

    The warm-up of a compiler's graph trees runs eagerly inside the graph's pool, which it takes
    for its own afterwards; what lives on must come from elsewhere. Pools are entered by thread.
    """
    if x.device.type != "cuda":
        return torch.zeros(size, dtype=torch.int32, device=x.device)
    stream = torch.cuda.current_stream(x.device)
    made: list[torch.Tensor] = []

    def make() -> None:
        with torch.cuda.stream(stream):
            made.append(torch.zeros(size, dtype=torch.int32, device=x.device))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _stream_counters(name: str, kernel: Any, x: torch.Tensor, count: int) -> torch.Tensor:
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=x.device)
    stream = 0
    if not interpreted(kernel):
        stream = triton_driver.active.get_current_stream(device_index(kernel, x))
    counters = _counters.get((name, x.device, stream))
    if counters is None or counters.numel() < count:
        size = max(count, _LEAST_COUNTERS)
        counters = _zeros_outside_pools(size, x)
        _counters[(name, x.device, stream)] = counters
    return counters


def forget_devices() -> None:
    """Drop device profiles and counters: another driver may be active from now on."""
    _profiles.clear()
    _counters.clear()
