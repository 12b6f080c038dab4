"""Which launch does a tensor get: frozen plans from a table, the same for the same input.

Pure Python over sizes and strides. A reduction (statistics, gradients' sums) is planned as

- fused: one program owns a block of channels and walks over it twice, so that statistics and
  normalisation (or sums and input gradient) are one launch; or
- split: `splits` programs share a block of channels, the last to arrive merges their partial
  results in index order, and a pointwise launch follows.

The thresholds are modelled, not measured; each row says on what.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tritonbn_kernels.layout import CHANNELS_FIRST, ChannelView

# bytes of the widest access of one thread
ACCESS_BYTES = 16
# elements of one tile by itemsize. modelled: 32 (16, 8) elements a thread with 4 warps leave
# registers for two accumulators an element without spilling
TILE_ELEMENTS = {2: 4096, 4: 2048, 8: 1024}
# at most so many, and so many a thread, where accesses are scalar: each keeps an address of its
# own. compiled: 16 a thread spill 16 bytes of bf16 and 44 of fp32 on sm_80
SCALAR_ELEMENTS = 1024
THREAD_SCALARS = 8
# registers a thread that a launch may take which asks for no other number: three programs of four
# warps on an SM. compiled: no two-read kernel needs more. without a number ptxas aims at occupancy
# by itself and spills 8 to 32 bytes of fp64 kernels to get there (sm_80, sm_90, sm_100)
REGISTER_CAP = 168
# bytes of one row of a channels-last tile. modelled: four 32-byte sectors, one full DRAM burst pair
ROW_BYTES = 128
# programs in flight per SM that a reduction aims at. modelled: 4 programs of 4 warps at 128
# registers a thread fill an SM
PROGRAMS_PER_SM = 4
# a block of channels goes to one program where the blocks alone fill this share of the programs
# aimed at. modelled: a second launch costs more than the last quarter of the machine gives
FUSED_FILL = 0.75
# and where it is at most this many tiles. modelled: eight tiles take about as long as a launch
FUSED_TILES = 8
# least tiles that a program is worth starting for when a block of channels is split
TILES_PER_SPLIT = 4
# tiles per program of a pointwise launch. modelled: enough to pay for the per-channel loads
POINTWISE_TILES = 4
# share of the L2 cache that serves a second read. modelled: the half that is near
L2_SHARE = 0.5
# beyond this element offset 32-bit addresses overflow
LIMIT_32 = 2**31
# beyond this vector number 32-bit loop bounds may overflow
VECTOR_LIMIT_32 = 2**30


@dataclass(frozen=True)
class DeviceProfile:
    """What of a device decides a plan.

    sm_count: SMs (compute units) that a launch may fill. tile_scale: factor by which tiles grow, 1
    on GPUs. cooperative: whether programs may wait for one another. assembly: whether PTX can be
    inlined. reserved_sms: SMs that one-read plans leave to others, such as collectives. registers,
    warps: of one SM. warp_size: threads of a warp. l2_bytes: of the L2 cache.
    """

    sm_count: int
    tile_scale: int = 1
    cooperative: bool = True
    assembly: bool = True
    reserved_sms: int = 0
    registers: int = 65536
    warps: int = 64
    warp_size: int = 32
    # of an H200 unless somebody says otherwise
    l2_bytes: int = 60 * 10**6

    @property
    def usable_l2(self) -> int:
        """Bytes of L2 that serve a second read."""
        return int(self.l2_bytes * L2_SHARE)

    def programs(self, max_registers: int, num_warps: int) -> int:
        """Programs of `num_warps` warps that are on the device at once."""
        by_registers = self.registers // (max_registers * 32 * num_warps)
        per_sm = max(1, min(by_registers, self.warps // num_warps))
        return max(1, self.sm_count - self.reserved_sms) * per_sm


# few programs, big tiles: a program costs the interpreter about a millisecond whatever its size.
# its programs run one after another, so that none may wait for another
INTERPRETER = DeviceProfile(sm_count=1, tile_scale=8, cooperative=False, assembly=False)


@dataclass(frozen=True)
class LaunchPlan:
    """Shape of one launch over a `ChannelView`.

    A tile is (block_c, block_v, lanes): channels, vectors of each channel, elements of a vector.
    In channels_last a row counts as one vector and lanes is 1. One program works on
    `vectors_per_split` vectors of `block_c` channels; the grid is
    `ceil(n_channels / block_c) * splits` programs, channel blocks fastest.
    """

    fused: bool
    block_c: int
    block_v: int
    vector: int
    splits: int
    vectors_per_split: int
    num_warps: int

    def blocks(self, n_channels: int) -> int:
        """Number of channel blocks."""
        return -(-n_channels // self.block_c)

    def grid(self, n_channels: int) -> int:
        """Number of programs."""
        return self.blocks(n_channels) * self.splits


def power_of_two_at_least(n: int) -> int:
    """Smallest power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


def vectors_of(view: ChannelView, vector: int) -> int:
    """Vectors per channel: rows in channels_last."""
    return view.count // vector if view.family == CHANNELS_FIRST else view.n_outer


def division_by(divisor: int) -> tuple[int, int]:
    """(magic, shift) with `n * magic >> shift == n // divisor` for 0 <= n < 2**31.

    The round-up method (Granlund and Montgomery 1994): magic = floor(2**shift / divisor) + 1 with
    shift = 31 + ceil(log2(divisor)) errs by less than 1 / divisor below 2**31.
    """
    shift = 31 + (divisor - 1).bit_length()
    return (1 << shift) // divisor + 1, shift


def _tile(
    view: ChannelView, vector: int, itemsize: int, device: DeviceProfile, sides: int
) -> tuple[int, int]:
    """(block_c, block_v) of one tile."""
    # compiled: with a mask or a residual besides dy and x whole ones spill up to 128 bytes (sm_90)
    elements = TILE_ELEMENTS[itemsize] >> sides
    if vector == 1:
        elements = min(elements, SCALAR_ELEMENTS)
    elements *= device.tile_scale
    channels = power_of_two_at_least(view.n_channels)
    if view.family == CHANNELS_FIRST:
        block_v = min(power_of_two_at_least(vectors_of(view, vector)), elements // vector)
        block_c = min(channels, elements // (block_v * vector))
        # small planes: rather more programs of fewer channels than an idle machine
        while block_c > 1 and -(-view.n_channels // block_c) < device.sm_count:
            block_c //= 2
    else:
        block_c = min(channels, ROW_BYTES * device.tile_scale // itemsize)
        block_v = min(power_of_two_at_least(view.n_outer), elements // block_c)
    return block_c, block_v


def warps_for(elements: int, itemsize: int, vector: int = ACCESS_BYTES) -> int:
    """Warps for a tile of so many elements, read `vector` at a time."""
    # 64 bytes a thread are four 16-byte accesses in flight
    by_bytes = elements * itemsize // (32 * 4 * ACCESS_BYTES)
    most = THREAD_SCALARS if vector == 1 else 16
    return max(1, min(4, max(by_bytes, elements // (32 * most))))


def _plan(
    view: ChannelView,
    itemsize: int,
    device: DeviceProfile,
    vector: int,
    pointwise: bool,
    sides: int = 0,
) -> LaunchPlan:
    block_c, block_v = _tile(view, vector, itemsize, device, sides)
    block_c, block_v = pinned("block_c", block_c), pinned("block_v", block_v)
    lanes = vector if view.family == CHANNELS_FIRST else 1
    blocks = -(-view.n_channels // block_c)
    vectors = vectors_of(view, vector)
    tiles = -(-vectors // block_v)
    aim = device.sm_count * PROGRAMS_PER_SM
    if pointwise:
        fused, splits = False, -(-tiles // POINTWISE_TILES)
    else:
        fused = tiles <= FUSED_TILES or blocks >= FUSED_FILL * aim
        splits = max(2, min(-(-aim // blocks), tiles // TILES_PER_SPLIT))
    fused = bool(pinned("fused", fused))
    splits = 1 if fused else pinned("splits", splits)
    # whole tiles for every program, so that only the last one meets a partial tile
    vectors_per_split = -(-tiles // splits) * block_v
    return LaunchPlan(
        fused=fused,
        block_c=block_c,
        block_v=block_v,
        vector=vector,
        splits=-(-vectors // vectors_per_split),
        vectors_per_split=vectors_per_split,
        num_warps=pinned("num_warps", warps_for(block_c * block_v * lanes, itemsize, vector)),
    )


def plan_reduction(
    view: ChannelView, itemsize: int, device: DeviceProfile, vector: int, sides: int = 0
) -> LaunchPlan:
    """The plan of a launch that reduces every channel.

    Args:
        view: layout of the tensor that is read.
        itemsize: bytes per element.
        device: what of the device matters.
        vector: elements of one access, a power of two that divides every run of the tensors read
            and written (`ChannelView.vector`).
        sides: 1 where a mask or a residual is read besides, and tiles are half as large.
    """
    return _plan(view, itemsize, device, vector, pointwise=False, sides=sides)


def plan_pointwise(
    view: ChannelView, itemsize: int, device: DeviceProfile, vector: int
) -> LaunchPlan:
    """The plan of a launch that maps every element; arguments as `plan_reduction`."""
    return _plan(view, itemsize, device, vector, pointwise=True)


PINNABLE = frozenset(
    {
        *("block_c", "block_n", "block_v", "fused", "num_warps", "pieces", "programs"),
        *("resident", "splits", "stream"),
    }
)
_pinned: dict[str, int] = {}
# of the row of a plan file for what is being planned; autograd's threads plan at the same time
_row: ContextVar[Mapping[str, int]] = ContextVar("row", default=MappingProxyType({}))
_caches: list[dict[Any, Any]] = []
# kinds of calls kept before all are forgotten: bounds the memory of a job whose shapes never repeat
_CACHE_LIMIT = 8192


# plans that TRITONBN_PLAN calls by name, each as the fields it pins. hybrid: of the tiles read at a
# time, as many as forward and backward both have registers for
PLAN_NAMES: dict[str, dict[str, int]] = {
    "two_read": {"resident": 0},
    "one_read": {"resident": 1},
    "hybrid": {"resident": 1, "stream": 2},
    "fused": {"resident": 0, "fused": 1},
    "split": {"resident": 0, "fused": 0},
}
# with fewer programs than members a group would wait for ever: a field for tests alone
_FIELDS = sorted(PINNABLE - {"programs"})
_SWITCHES = frozenset({"fused", "resident"})
_POWERS_OF_TWO = frozenset({"block_c", "block_n", "block_v", "num_warps"})
# of one program: 1,024 threads
MOST_WARPS = 32


def pins_from(text: str) -> dict[str, int]:
    """The pins that a text such as `two_read` or `one_read,pieces=4` asks for; none if it is empty.

    Raises:
        ValueError: neither the name of a plan nor `field=n` with a field that can be pinned.
    """
    pins: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        if item in PLAN_NAMES:
            pins.update(PLAN_NAMES[item])
        elif name in _FIELDS and value.isdecimal():
            pins[name] = _checked(name, int(value))
        else:
            raise ValueError(
                f"expected plans of {', '.join(PLAN_NAMES)}, or field=n with fields of "
                f"{', '.join(_FIELDS)}, got {item!r}"
            )
    return pins


def _checked(name: str, value: int) -> int:
    if name in _SWITCHES and value > 1:
        raise ValueError(f"expected {name} to be 0 or 1, got {value}")
    if name not in {*_SWITCHES, "stream"} and value < 1:
        raise ValueError(f"expected {name} to be positive, got {value}")
    if name in _POWERS_OF_TWO and value & (value - 1):
        raise ValueError(f"expected {name} to be a power of two, got {value}")
    if name == "num_warps" and value > MOST_WARPS:
        raise ValueError(f"expected num_warps to be at most {MOST_WARPS}, got {value}")
    return value


@functools.cache
def environment_pins() -> dict[str, int]:
    """The pins of the environment variable TRITONBN_PLAN, read once: a plan must not change amid a
    training. `tritonbn_kernels.clear_cache` lets it be read again.

    Raises:
        ValueError: as `pins_from`.
    """
    try:
        return pins_from(os.environ.get("TRITONBN_PLAN", ""))
    except ValueError as error:
        raise ValueError(f"TRITONBN_PLAN: {error}") from error


def pinned(name: str, free: int) -> int:
    """The pinned value of a field, else `free`; `pinned_plan` precedes the environment, and both
    precede a plan file."""
    if name in _pinned:
        return _pinned[name]
    return {**_row.get(), **environment_pins()}.get(name, free)


def is_pinned(*names: str) -> bool:
    """Whether any of these fields is pinned."""
    return any(name in pins for pins in (_pinned, environment_pins(), _row.get()) for name in names)


@contextmanager
def row_pins(pins: Mapping[str, int]) -> Iterator[None]:
    """Plans made inside by this thread use these fields, unless `pinned_plan` or the environment
    pins any: a row of a plan file was measured as a whole."""
    token = _row.set({} if _pinned or environment_pins() else pins)
    try:
        yield
    finally:
        _row.reset(token)


def row_reads_once() -> bool:
    """Whether the row of a plan file that is in force is of a plan that reads once: where there can
    be none, the table plans, for the row's other fields are of other tiles."""
    return bool(_row.get().get("resident"))


def pinned_by_block(name: str) -> bool:
    """Whether `pinned_plan`, and not the environment, pins this field."""
    return name in _pinned


def plan_cache() -> dict[Any, Any]:
    """A new dictionary for what was derived from plans, emptied when plans may change."""
    cache: dict[Any, Any] = {}
    _caches.append(cache)
    return cache


def remember(cache: dict[Any, Any], key: Any, value: Any) -> None:
    """`cache[key] = value`, emptying a full cache first."""
    if len(cache) >= _CACHE_LIMIT:
        cache.clear()
    cache[key] = value


# one entry, raised whenever plans may have changed: what keeps plans elsewhere compares it
plan_generation = [0]


def clear_plan_caches() -> None:
    """Forget everything derived from plans."""
    plan_generation[0] += 1
    for cache in _caches:
        cache.clear()


@contextmanager
def pinned_plan(**pins: int) -> Iterator[None]:
    """Plans made inside use these fields: block_c, block_v, splits, num_warps; fused (0 or 1) for
    the two-read plans; resident (0 or 1), pieces, programs, block_n (rows of a tile) and stream
    (tiles that a hybrid plan reads at a time, 0 for none) for the one-read plans, which a pinned
    `fused` or `splits` rules out unless resident=1 asks for them.

    For tests, which reach several tiles and splits on small tensors so. Not for several threads.

    Raises:
        ValueError: a field that cannot be pinned.
    """
    if unknown := set(pins) - PINNABLE:
        raise ValueError(f"expected fields of {sorted(PINNABLE)}, got {sorted(unknown)}")
    before = dict(_pinned)
    _pinned.update(pins)
    clear_plan_caches()
    try:
        yield
    finally:
        _pinned.clear()
        _pinned.update(before)
        clear_plan_caches()
