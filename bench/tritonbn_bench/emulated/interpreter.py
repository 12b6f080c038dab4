"""Triton's interpreter with its faults mended, and its programs in a random order.

Faults of the interpreter as shipped (seen on triton 3.6.0 and 3.9.0):

- fp32 -> bf16 truncates, while the hardware rounds to nearest even; bf16 -> fp32 is right but slow.
- on 3.6 with numpy >= 2.4 a tensor is no index: `range(n)` with a run-time `n` raises TypeError.
- a float argument stays a Python float of 64 bits, while a launch passes it as fp32.
- a sum along any axis but the last adds one value after the other, while a GPU adds in a tree: the
  error of a long sum is then the interpreter's own.
- numpy warns of overflow, division by zero and invalid operations, masked lanes included, where the
  hardware follows IEEE 754 in silence.

It also spends two thirds of its time on patching `triton.language` again at every call of a device
function, and on checking every integer operation for an overflow that small tensors cannot reach.

The interpreter runs the programs of a grid one after another, always in index order. A kernel whose
last arriver finishes the work, or whose programs read what one of them overwrites, is tested by
`random_program_order`.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["mend_interpreter", "random_program_order"]

_cast_as_shipped = interpreter.InterpreterBuilder.cast_impl
_patch_tensor_as_shipped = interpreter._patch_lang_tensor
_convert_argument_as_shipped = interpreter._implicit_cvt
_patch_lang_as_shipped = interpreter._patch_lang
_sum_as_shipped = interpreter.ReduceOps.sum
_launch_as_shipped = interpreter.GridExecutor.__call__


def mend_interpreter() -> None:
    """Replace the interpreter's bf16 conversions, tensor index and float arguments by right ones,
    silence numpy inside kernels, and leave out the work that a test does not need; idempotent.

    Mutates: functions of `triton.runtime.interpreter` and its builder's options, for the rest of
    the process. Kernels on a GPU are not touched.
    """
    interpreter.InterpreterBuilder.cast_impl = _cast
    interpreter._patch_lang_tensor = _patch_tensor
    interpreter._implicit_cvt = _convert_argument
    interpreter.ReduceOps.sum = _sum
    interpreter.GridExecutor.__call__ = _launch
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@contextmanager
def random_program_order(seed: int) -> Iterator[None]:
    """Run the programs of every grid launched inside in a random order drawn from `seed`.

    Each launch draws an order of its own; every program still runs exactly once. Without effect on
    kernels that run on a GPU.
    """
    builder = interpreter.interpreter_builder
    shipped_dim, shipped_idx = builder.set_grid_dim, builder.set_grid_idx
    generator = random.Random(seed)
    pending: list[tuple[int, int, int]] = []

    def set_grid_dim(nx: int, ny: int, nz: int) -> None:
        shipped_dim(nx, ny, nz)
        pending[:] = itertools.product(range(nx), range(ny), range(nz))
        generator.shuffle(pending)

    def set_grid_idx(x: int, y: int, z: int) -> None:
        # the interpreter asks for (x, y, z) in index order; which program answers is ours to say
        shipped_idx(*pending.pop())

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx = shipped_dim, shipped_idx


def _cast(builder: Any, src: Any, dst_type: Any) -> Any:
    """The builder's `cast_impl`, with conversions between fp32 and bf16 done on the bits."""
    src_element, dst_element = src.dtype.scalar, dst_type.scalar
    if src_element == tl.float32 and dst_element == tl.bfloat16:
        return interpreter.TensorHandle(_to_bf16_bits(src.data), tl.bfloat16)
    if src_element == tl.bfloat16 and dst_element == tl.float32:
        bits = src.data.astype(np.uint32) << np.uint32(16)
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)
    return _cast_as_shipped(builder, src, dst_type)


def _to_bf16_bits(values: Any) -> Any:
    """Bit patterns, uint16, of fp32 `values` rounded to nearest even; a NaN stays a (quiet) NaN."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _sum(reduction: Any, values: Any) -> Any:
    """`ReduceOps.sum` with the axis moved last, where numpy adds in pairs."""
    if reduction.axis is None:
        return _sum_as_shipped(reduction, values)
    data = np.ascontiguousarray(np.moveaxis(values.handle.data, reduction.axis, -1))
    total = np.sum(data, axis=-1)
    if reduction.keep_dims:
        total = np.expand_dims(total, reduction.axis)
    return reduction.to_tensor(total, values.dtype)


def _launch(executor: Any, *args: Any, **kwargs: Any) -> None:
    """`GridExecutor.__call__` without numpy's floating-point warnings, and with `triton.language`
    patched once a launch for each module of device functions."""
    scopes: dict[int, Any] = {}

    def patch_lang(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module not in scopes:
            scopes[module] = _patch_lang_as_shipped(fn)
        return scopes[module]

    interpreter._patch_lang = patch_lang
    try:
        with np.errstate(all="ignore"):
            _launch_as_shipped(executor, *args, **kwargs)
    finally:
        interpreter._patch_lang = _patch_lang_as_shipped


def _convert_argument(argument: Any) -> Any:
    """`_implicit_cvt`, then a float rounded to the fp32 scalar that a kernel on a GPU receives."""
    converted = _convert_argument_as_shipped(argument)
    if isinstance(converted, float):
        handle = interpreter.TensorHandle(np.array([converted], dtype=np.float32), tl.float32)
        converted = tl.tensor(handle, tl.float32)
    return converted


def _patch_tensor(tensor: Any, scope: Any) -> None:
    """`_patch_lang_tensor`, then an index that takes the one element of a tensor of any rank."""
    _patch_tensor_as_shipped(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
