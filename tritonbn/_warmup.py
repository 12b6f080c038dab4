"""The kernels of a model compiled before its first step."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from tritonbn_kernels import CompileAhead
from tritonbn_kernels.activation_names import side_of
from tritonbn_kernels.launch import interpreted
from tritonbn_kernels.normalize import normalize_kernel

from ._following import IDENTITY, followed
from ._library import backward_op, eval_op, forward_op, on_device
from ._progress import Progress, shown
from ._untouched import untouched
from .modules import _TritonBatchNorm

__all__ = ["KernelCall", "WarmupReport", "warmup"]

# more threads than this wait for one another more than they compile
_MOST_WORKERS = 32


class KernelCall(NamedTuple):
    """One kind of call that the model makes.

    operation: "training forward", "training backward", "evaluation forward" or "evaluation
    backward"; shape, stride, dtype, device: of the layer's input, strides in elements.
    """

    operation: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class WarmupReport:
    """What `warmup` found and did; `str` of it is text for people.

    Attributes:
        engine: "triton"; "interpreter" or "torch" where nothing is to be compiled
        layers: BatchNorm layers of tritonbn in the model
        others: BatchNorm layers of other classes, left alone
        calls: distinct kinds of calls of our kernels
        kernels: distinct kernels that the calls launch
        compiled, on_disk: how many of them were compiled and how many Triton found in its cache;
            the rest was in this process already
        seconds: time of the whole, in s
        longest_seconds: of one compilation, in s; those beside it are waited for too
        workers: compilations at a time
        cache_folder, cache_bytes: where Triton keeps what it compiles, for all programs of this
            user, and its size in bytes
    """

    engine: str
    layers: int
    others: int
    calls: tuple[KernelCall, ...]
    kernels: int
    compiled: int
    on_disk: int
    seconds: float
    longest_seconds: float
    workers: int
    cache_folder: str
    cache_bytes: int

    def __str__(self) -> str:
        left = f"; {self.others} of other classes left alone" if self.others else ""
        lines = [f"{self.layers} BatchNorm layers{left}"]
        if self.engine == "torch":
            lines.append("nothing to compile: on this input the layers run torch's own BatchNorm")
            return "\n".join(lines)
        lines[0] += f"; {len(self.calls)} kinds of calls"
        if self.engine == "interpreter":
            lines.append("nothing to compile: Triton's interpreter runs the kernels")
            return "\n".join(lines)
        ready = self.kernels - self.compiled - self.on_disk
        lines += [
            f"{self.kernels} kernels: {self.compiled} compiled, {self.on_disk} found in the cache,"
            f" {ready} in this process already",
            f"{self.seconds:.1f} s with {self.workers} at a time, the longest"
            f" {self.longest_seconds:.1f} s",
            f"cache: {self.cache_folder}, {self.cache_bytes / 1e6:.1f} MB",
        ]
        return "\n".join(lines)


def warmup(
    model: nn.Module,
    sample_input: Any,
    *,
    backward: bool = True,
    evaluation: bool = True,
    workers: int | None = None,
    progress: Progress = None,
) -> WarmupReport:
    """Compile every kernel that the BatchNorm layers of `model` launch for such an input.

    The model is called once, by its training flags and in the caller's autocast and grad mode, to
    see what its layers get. Its BatchNorm is computed by torch in this call: none of our kernels
    runs. Afterwards the first step compiles no kernel. Forward hooks run; a step's memory is used.

    Args:
        model: any module with layers of tritonbn. Of DistributedDataParallel and DataParallel the
            module inside is called.
        sample_input: what the model is called with: a tuple of positional arguments, a mapping of
            keyword arguments, or the one argument. Shapes, layouts, dtypes and devices count.
        backward: compile the backward pass too, for what requires a gradient; not where the caller
            has switched gradients off.
        evaluation: compile the evaluation of every layer that trains in this call too.
        workers: compilations at a time; None for one per CPU of this process.
        progress: a bar on stderr (True), none (False), or a bar on a terminal (None); or a
            function of kernels done and kernels in all.

    Returns:
        What was found and done.

    Raises:
        TypeError: `model` is no module.
        ValueError: no layer of tritonbn, a lazy layer that has seen no input, workers below 1.
        The model's own error where it does not take the input.

    Mutates: nothing of the model, its input or the random generators.
    """
    started = time.perf_counter()
    model = _inner(model)
    ours, others = _layers(model)
    if workers is None:
        workers = min(_usable_cpus(), _MOST_WORKERS)
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    arguments, keywords = _call_of(sample_input)
    gradients = backward and torch.is_grad_enabled()
    with CompileAhead(workers) as compiler:
        with (
            untouched(model, arguments, keywords),
            torch.set_grad_enabled(gradients),
            _Calls(compiler, gradients, evaluation) as seen,
        ):
            model(*arguments, **keywords)
        with shown("compiling", progress, compiler.pending) as advance:
            compiler.wait(advance)
    seconds = [one.seconds for one in compiler.compiled if not one.on_disk]
    folder = str(triton.knobs.cache.dir)
    return WarmupReport(
        engine=_engine(seen.calls),
        layers=ours,
        others=others,
        calls=tuple(seen.calls.values()),
        kernels=compiler.kernels,
        compiled=len(seconds),
        on_disk=len(compiler.compiled) - len(seconds),
        seconds=time.perf_counter() - started,
        longest_seconds=max(seconds, default=0.0),
        workers=workers,
        cache_folder=folder,
        cache_bytes=_size(folder),
    )


def _inner(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, got {type(model).__name__}")
    # its forward prepares a reduction that a backward pass must end
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        inner: nn.Module = model.module
        return inner
    return model


def _layers(model: nn.Module) -> tuple[int, int]:
    """Numbers of BatchNorm layers: ours, and others."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    ours = sum(isinstance(module, _TritonBatchNorm) for module in norms)
    if not ours:
        raise ValueError(
            f"expected a model with layers of tritonbn, got none, and {len(norms)} of other"
            " classes: call tritonbn.convert(model) first"
        )
    for group in (model.named_parameters(), model.named_buffers()):
        for name, tensor in group:
            if is_lazy(tensor):
                raise ValueError(f"expected lazy layers that have seen an input, got {name}")
    return ours, len(norms) - ours


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _call_of(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, tuple):
        return sample, {}
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (sample,), {}


def _engine(calls: Mapping[Any, KernelCall]) -> str:
    if not calls:
        return "torch"
    return "interpreter" if interpreted(normalize_kernel) else "triton"


def _size(folder: str) -> int:
    """Bytes of the files in `folder`; another process may be writing there."""
    total = 0
    for path in Path(folder).rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes the calls of our operators: their kernels are compiled, torch computes the results."""

    def __init__(self, compiler: CompileAhead, gradients: bool, evaluation: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[object, KernelCall] = {}
        self._compiler = compiler
        self._gradients = gradients
        self._evaluation = evaluation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in (forward_op, eval_op, backward_op):
            return func(*args, **(kwargs or {}))
        # by the names of the operator's arguments: evaluation lacks some that training has
        named = {one.name: one.default_value for one in func._schema.arguments}
        named |= dict(zip(named, args, strict=False)) | (kwargs or {})
        with torch.no_grad():
            if func is backward_op:
                self._backward_of(named)
                return tuple(one.zero_() for one in _results(func, named))
            y, *others = _results(func, named)
            self._forward(named, y)
            return (y, *(one.zero_() for one in others))

    def _forward(self, named: dict[str, Any], y: Tensor) -> None:
        """Compile for a forward call, and let torch compute its result into `y`."""
        x, weight, bias = named["x"], named["weight"], named["bias"]
        mean, var, eps = named["running_mean"], named["running_var"], named["eps"]
        training, momentum = named.get("training", False), named.get("momentum", 0.0)
        vectors = (weight, bias, mean, var, named.get("num_batches_tracked"))
        activation, residual = (named["activation"], named["parameter"]), named["residual"]
        needs = tuple(one is not None and one.requires_grad for one in (x, weight, bias, residual))
        recorded = self._gradients and any(needs)
        masks = recorded and side_of(activation[0], residual is not None) == "mask"
        self._compile_forward(x, *vectors, training, momentum, eps, activation, residual, masks)
        if training and self._evaluation and mean is not None:
            # a layer hands over no count in evaluation
            vectors = (*vectors[:4], None)
            constants = (momentum, eps, activation, residual)
            # with or without gradients: a mask is kept for the former alone
            for masked in sorted({False, masks}):
                self._compile_forward(x, *vectors, False, *constants, masked)
        if recorded:
            fused = (activation, bias, residual)
            dy = torch.empty_like(y)
            self._backward(dy, x, weight, training, (True, *needs[1:]), *fused)
            # x may be the model's input; or what a reentrant checkpoint made without a graph
            if not needs[0]:
                self._backward(dy, x, weight, training, needs, *fused)
        with torch.autocast(x.device.type, enabled=False):
            if training:
                mean = var = None
            z = F.batch_norm(x, mean, var, weight, bias, training, 0.0, eps)
            y.copy_(followed(z, activation, residual))

    def _compile_forward(self, x: Tensor, *others: Any) -> None:
        *vectors, training, momentum, eps, activation, residual, masks = others
        constants = (momentum, eps) if x.dtype is torch.float64 else momentum is None
        following = (activation, _laid_out(residual), masks)
        if self._is_new("forward", x, training, *map(_kind, vectors), constants, following):
            on_device(x, self._compiler.forward, x, *others)

    def _backward_of(self, named: dict[str, Any]) -> None:
        """Compile for a backward pass within the model's forward pass."""
        # with a mask it has been compiled for the forward call, which had the residual
        if named["mask"] is not None:
            return
        dy, x, weight, training = (named[name] for name in ("dy", "x", "weight", "training"))
        needs = tuple(named[f"need_{name}"] for name in ("dx", "dgamma", "dbeta", "dresidual"))
        activation = (named["activation"], named["parameter"])
        self._backward(dy, x, weight, training, needs, activation, named["bias"], named["residual"])

    def _backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        training: bool,
        needs: tuple[bool, ...],
        activation: tuple[str, float],
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> None:
        # what follows nothing reads no bias
        beta = None if activation == IDENTITY else _kind(bias)
        following = (needs, activation, beta, _laid_out(residual))
        if self._is_new("backward", x, training, _kind(dy), dy.stride(), _kind(weight), following):
            arguments = (weight, training, needs, activation, bias, residual)
            on_device(x, self._compiler.backward, dy, x, *arguments)

    def _is_new(self, direction: str, x: Tensor, training: bool, *rest: object) -> bool:
        operation = f"{'training' if training else 'evaluation'} {direction}"
        call = KernelCall(operation, tuple(x.shape), x.stride(), x.dtype, x.device)
        key = (call, _kind(x), rest)
        if key in self.calls:
            return False
        self.calls[key] = call
        return True


def _results(func: Any, named: dict[str, Any]) -> list[Tensor]:
    """Memory for what an operator returns, by its fake version."""
    # a function of shapes, strides and dtypes, which tensors without memory have
    arguments = {
        name: torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")
        if isinstance(one, Tensor)
        else one
        for name, one in named.items()
    }
    device = named["x"].device
    return [torch.empty_like(one, device=device) for one in func(**arguments)]


def _laid_out(residual: Tensor | None) -> object:
    """What of a residual decides a kernel."""
    return None if residual is None else (_kind(residual), residual.stride())


def _kind(vector: Tensor | None) -> object:
    """What of a tensor decides a kernel: its dtype, and whether it begins at 16 bytes."""
    return None if vector is None else (vector.dtype, vector.data_ptr() & 15 == 0)
