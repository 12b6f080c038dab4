"""Compiling ahead: what a call would launch, compiled before the first call, several at a time.

The calls are made by the launchers that real calls use, on tensors of the kind that real calls get,
so that keys, plans, dtypes and alignments are theirs; `launch.compile_only` keeps them from
running. Each is made anew, for a call that has run before would run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import Context
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs

from tritonbn_kernels.activation_names import side_of
from tritonbn_kernels.backward import BackwardCall
from tritonbn_kernels.forward import ForwardCall
from tritonbn_kernels.fused import IDENTITY, Fused, mask_run
from tritonbn_kernels.geometry import accumulation_dtype
from tritonbn_kernels.launch import compile_only, device_index, interpreted
from tritonbn_kernels.normalize import normalize_kernel

# absent where Triton compiles in the calling thread alone
_AsyncCompileMode: Any = getattr(triton, "AsyncCompileMode", None)


class Compiled(NamedTuple):
    """One kernel that Triton's compiler was asked for: time in s, and whether it lay on disk."""

    name: str
    seconds: float
    on_disk: bool


def _compile_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: tuple[str, float] = IDENTITY,
    residual: torch.Tensor | None = None,
    keeps_mask: bool = False,
) -> list[Any]:
    tensors = (x, weight, bias, running_mean, running_var, num_batches_tracked)
    cumulative = training and momentum is None and running_mean is not None
    fused = Fused(*activation, side_of(activation[0], residual is not None))
    with compile_only() as kernels:
        call = ForwardCall(x, training, cumulative, momentum, eps, fused, residual, keeps_mask)
        call(*tensors, momentum, eps, residual)
    return kernels


def _compile_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    training: bool,
    needs: tuple[bool, ...],
    activation: tuple[str, float] = IDENTITY,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> list[Any]:
    saved = x.new_empty((3, x.shape[1]), dtype=accumulation_dtype(x))
    fused = Fused(*activation, side_of(activation[0], residual is not None))
    side = residual if fused.side == "residual" else None
    if fused.side == "mask":
        side = x.new_empty(x.numel() // mask_run(x), dtype=torch.uint8)
    with compile_only() as kernels:
        call = BackwardCall(dy, x, training, needs, fused, side)
        call((dy, x, weight, bias, saved, side))
    return kernels


class _Workers(ThreadPoolExecutor):
    """Threads that are known as ours, and whose work can be waited for piece by piece."""

    def __init__(self, count: int) -> None:
        super().__init__(count, "tritonbn-compile", _mark_thread)
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self.futures.append(future)
        return future


_thread = threading.local()


def _mark_thread() -> None:
    _thread.is_ours = True


class CompileAhead:
    """Compiles the kernels of calls and launches none; a context for one thread.

    Calls are handed in by `forward` and `backward` with the device of `x` current; compilation
    begins at once in `workers` threads. `wait` gives their results.

    Attributes:
        compiled: what Triton's compiler was asked for, complete after `wait`.
    """

    def __init__(self, workers: int) -> None:
        self.compiled: list[Compiled] = []
        self._workers = _Workers(workers)
        # by device: Triton's mode takes a kernel for the same on every device
        self._modes: dict[int, tuple[Context, Any]] = {}
        self._kernels: dict[int, tuple[torch.device, Any]] = {}
        self._listener: Any = None

    def __enter__(self) -> CompileAhead:
        self._listener = knobs.compilation.listener
        knobs.compilation.listener = self._note
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._leave_modes()
        finally:
            self._workers.shutdown()
            knobs.compilation.listener = self._listener

    def _note(self, **event: Any) -> None:
        if self._listener is not None:
            self._listener(**event)
        # other threads compile for others
        if getattr(_thread, "is_ours", False):
            seconds = event["times"].total / 1e6
            self.compiled.append(Compiled(event["src"].name, seconds, event["cache_hit"]))

    @property
    def kernels(self) -> int:
        """Distinct kernels of the calls so far, compiled before or not."""
        return len(self._kernels)

    @property
    def pending(self) -> int:
        """Kernels that `wait` waits for."""
        return len(self._workers.futures)

    def forward(self, x: torch.Tensor, *arguments: Any) -> None:
        """Compile what `fused_forward(x, *arguments)` would launch; nothing is written."""
        self._add(x, _compile_forward, x, *arguments)

    def backward(self, dy: torch.Tensor, x: torch.Tensor, *arguments: Any) -> None:
        """Compile what a backward pass would launch; `arguments`: weight, training, needs as
        `backward_call` takes them, then activation, bias and residual of the forward pass."""
        self._add(x, _compile_backward, dy, x, *arguments)

    def _add(self, x: torch.Tensor, make: Callable[..., list[Any]], *arguments: Any) -> None:
        if interpreted(normalize_kernel):
            return
        device = device_index(normalize_kernel, x)
        if device not in self._modes:
            self._modes[device] = self._new_mode()
        _thread.is_ours = True
        try:
            kernels = self._modes[device][0].run(make, *arguments)
        finally:
            _thread.is_ours = False
        # None where a hook of Triton's has forbidden it
        for kernel in kernels:
            if kernel is not None:
                self._kernels[id(kernel)] = (x.device, kernel)

    def _new_mode(self) -> tuple[Context, Any]:
        # in a context of its own: what this thread launches besides is none of the mode's business
        context = Context()
        mode = None if _AsyncCompileMode is None else _AsyncCompileMode(self._workers)
        if mode is not None:
            context.run(mode.__enter__)
        return context, mode

    def _leave_modes(self) -> None:
        while self._modes:
            _, (context, mode) = self._modes.popitem()
            if mode is not None:
                context.run(mode.__exit__, None, None, None)

    def wait(self, advance: Callable[[], None] = lambda: None) -> None:
        """Wait until all is compiled, then load it; `advance` is called as each kernel is ready.

        Raises:
            The compiler's error, or Triton's OutOfResources where a kernel does not fit the device.
        """
        for _ in as_completed(self._workers.futures):
            advance()
        self._leave_modes()
        for device, kernel in self._kernels.values():
            loaded = kernel.result() if hasattr(kernel, "result") else kernel
            if device.type == "cuda":
                with torch.cuda.device(device):
                    loaded.run  # noqa: B018
            else:
                loaded.run  # noqa: B018
