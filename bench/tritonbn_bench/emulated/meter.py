"""A traffic meter for kernels in the interpreter: bytes and 32-byte sectors by tensor.

Counted per block operation, lanes under the mask only: the logical bytes, and the distinct sectors
that hold them, which is what a GPU moves at best. Stride and waste show as more sectors than bytes,
a second read as twice the bytes. Addresses outside every tensor, which the interpreter reads and
writes without a word, are reported and not performed.

Not covered: caches (a second read that L2 would serve counts), how a compiler cuts a block
operation into instructions, and addresses out of bounds that land in another known tensor, which
count as traffic of that one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from .memory import Access, memory_hook, replaced

__all__ = ["SECTOR_BYTES", "OutOfBounds", "TrafficReport", "traffic_meter"]

SECTOR_BYTES = 32


@dataclass(frozen=True)
class OutOfBounds:
    """A block operation with lanes outside every tensor: in which program of which kernel, load,
    store or atomic, how many lanes, and where the first of them lies."""

    kernel: str
    program: tuple[int, int, int]
    operation: str
    lanes: int
    place: str


@dataclass
class _Count:
    """What went one way, and which bytes of the tensor did."""

    touched: Any
    n_bytes: int = 0
    sectors: int = 0


@dataclass(eq=False)
class _Region:
    """The memory of one tensor, from its first element to its last."""

    # kept alive, so that no other tensor takes its place in memory
    tensor: Tensor
    first: int = field(init=False)
    end: int = field(init=False)
    read: _Count = field(init=False)
    written: _Count = field(init=False)

    def __post_init__(self) -> None:
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        span = sum((size - 1) * stride for size, stride in steps) + 1
        self.first = self.tensor.data_ptr()
        self.end = self.first + span * self.tensor.element_size()
        self.read = _Count(np.zeros(self.end - self.first, dtype=bool))
        self.written = _Count(np.zeros(self.end - self.first, dtype=bool))

    @property
    def tensor_bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def untouched(self, count: _Count) -> int:
        """Elements of which no byte, or not every byte, was touched."""
        itemsize = self.tensor.element_size()
        whole = torch.from_numpy(count.touched.reshape(-1, itemsize).all(axis=1))
        return int((~whole.as_strided(self.tensor.shape, self.tensor.stride())).sum())


class TrafficReport:
    """Traffic so far, by name of tensor; reads and writes apart, atomics as both.

    A name means every tensor that had it: two tensors passed as `x_ptr` in two launches add up.
    Methods raise KeyError for a name that no tensor had.
    """

    def __init__(self) -> None:
        self.out_of_bounds: list[OutOfBounds] = []
        self._regions: dict[str, list[_Region]] = {}

    @property
    def names(self) -> list[str]:
        """All names, those given first, then those of kernel arguments as they came."""
        return list(self._regions)

    def bytes_read(self, name: str) -> int:
        """Logical bytes read: every lane under the mask of every load and atomic."""
        return sum(region.read.n_bytes for region in self._regions[name])

    def bytes_written(self, name: str) -> int:
        """Logical bytes written."""
        return sum(region.written.n_bytes for region in self._regions[name])

    def sectors_read(self, name: str) -> int:
        """32-byte sectors read, those of one block operation counted once."""
        return sum(region.read.sectors for region in self._regions[name])

    def sectors_written(self, name: str) -> int:
        """32-byte sectors written, those of one block operation counted once."""
        return sum(region.written.sectors for region in self._regions[name])

    def sectors(self, name: str) -> int:
        """32-byte sectors read or written."""
        return self.sectors_read(name) + self.sectors_written(name)

    def passes(self, name: str) -> float:
        """How often the tensor was read: bytes read over its bytes."""
        return self.bytes_read(name) / self._tensor_bytes(name)

    def passes_written(self, name: str) -> float:
        """How often the tensor was written: bytes written over its bytes."""
        return self.bytes_written(name) / self._tensor_bytes(name)

    def moved(self, name: str) -> float:
        """Bytes of all sectors read or written over the bytes of the tensor: 1 at the floor."""
        return self.sectors(name) * SECTOR_BYTES / self._tensor_bytes(name)

    def unread(self, name: str) -> int:
        """Elements never read."""
        return sum(region.untouched(region.read) for region in self._regions[name])

    def unwritten(self, name: str) -> int:
        """Elements never written."""
        return sum(region.untouched(region.written) for region in self._regions[name])

    def _tensor_bytes(self, name: str) -> int:
        return sum(region.tensor_bytes for region in self._regions[name])

    def _add(self, name: str, tensor: Tensor) -> None:
        """Know `tensor` from now on, unless its memory is known already."""
        region = _Region(tensor)
        known = (each for regions in self._regions.values() for each in regions)
        if not any(each.first <= region.first and region.end <= each.end for each in known):
            self._regions.setdefault(name, []).append(region)

    def _count(self, access: Access, kernel: str, program: tuple[int, int, int]) -> Any:
        """The lanes of `access` that lie in a tensor, all of them counted."""
        inside = np.zeros(access.addresses.shape, dtype=bool)
        addresses = access.addresses[access.active].astype(np.int64)
        if addresses.size == 0:
            return inside
        found = np.zeros(addresses.shape, dtype=bool)
        for regions in self._regions.values():
            for region in regions:
                mine = (addresses >= region.first) & (addresses + access.itemsize <= region.end)
                mine &= ~found
                if mine.any():
                    found |= mine
                    _add_to_counts(region, addresses[mine], access)
        if not found.all():
            outside = addresses[~found]
            place = self._place(int(outside[0]))
            self.out_of_bounds.append(
                OutOfBounds(kernel, program, access.kind, outside.size, place)
            )
        inside[access.active] = found
        return inside

    def _place(self, address: int) -> str:
        """`address` by the tensor that is nearest to it."""
        distances = [
            (max(region.first - address, address - region.end), name, region)
            for name, regions in self._regions.items()
            for region in regions
        ]
        if not distances:
            return "no tensor is known"
        _, name, region = min(distances, key=lambda entry: entry[0])
        if address < region.first:
            return f"{region.first - address} bytes before {name}"
        return f"{address - region.end} bytes past the end of {name}"


@contextmanager
def traffic_meter(tensors: Mapping[str, Tensor] | None = None) -> Iterator[TrafficReport]:
    """A `TrafficReport` of all kernels launched inside.

    A tensor that is passed to a kernel goes by the name of its argument, less `_ptr`, so that
    outputs and scratch allocated on the way have names too; `tensors` gives names before that.
    Memory under two names counts under the first. Works inside and around `cooperative`.

    Args:
        tensors: names of tensors on the CPU, any strides, not empty.

    Raises:
        ValueError: a tensor that is empty or on another device.
    """
    report = TrafficReport()
    for name, tensor in (tensors or {}).items():
        if tensor.device.type != "cpu" or tensor.numel() == 0:
            raise ValueError(
                f"expected {name} on the CPU and not empty, got {tensor.numel()} elements "
                f"on {tensor.device}"
            )
        report._add(name, tensor)
    builder = interpreter.interpreter_builder
    to_host = interpreter.GridExecutor._init_args_hst
    kernel = [""]

    def init_args_hst(executor: Any, args: Any, kwargs: Any) -> Any:
        args_hst, kwargs_hst = to_host(executor, args, kwargs)
        kernel[0] = executor.fn.__name__
        # extra positional arguments are for the interpreter to refuse
        named = zip(executor.arg_names, args_hst, strict=False)
        for name, value in (*named, *kwargs_hst.items()):
            _add_argument(report, name.removesuffix("_ptr"), value)
        return args_hst, kwargs_hst

    def on_access(access: Access) -> Any:
        inside = report._count(access, kernel[0], builder.grid_idx)
        return access.perform(inside)

    with (
        replaced(interpreter.GridExecutor, _init_args_hst=init_args_hst),
        memory_hook(on_access),
    ):
        yield report


def _add_argument(report: TrafficReport, name: str, value: Any) -> None:
    """Make the tensors in a kernel argument known, those in tuples and descriptors too."""
    if isinstance(value, tuple):
        for part in value:
            _add_argument(report, name, part)
    elif isinstance(value, interpreter.TensorDescriptor):
        _add_argument(report, name, value.base)
    elif isinstance(value, Tensor) and value.numel() > 0:
        report._add(name, value)


def _add_to_counts(region: _Region, addresses: Any, access: Access) -> None:
    sectors = addresses // SECTOR_BYTES
    steps = np.diff(sectors)
    if (steps >= 0).all():
        n_sectors = 1 + int(np.count_nonzero(steps))
    else:
        n_sectors = int(np.unique(sectors).size)
    counts = {"load": (region.read,), "store": (region.written,)}
    for count in counts.get(access.kind, (region.read, region.written)):
        count.n_bytes += addresses.size * access.itemsize
        count.sectors += n_sectors
        for byte in range(access.itemsize):
            count.touched[addresses - region.first + byte] = True
