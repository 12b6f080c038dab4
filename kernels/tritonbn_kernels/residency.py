"""One-read plans: which channels stay in registers, and how many programs share one.

Pure Python. With P programs on the device at once and a group of G members: two groups in flight
hide each other's barriers (simulated 96-100 % of the copy speed), one group leaves the memory idle
while it waits (65-78 %), and a group larger than P would wait for ever. Simulated, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tritonbn_kernels.layout import CHANNELS_FIRST, ChannelView
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    DeviceProfile,
    is_pinned,
    pinned,
    power_of_two_at_least,
    vectors_of,
    warps_for,
)

# bytes of one piece: four 16-byte accesses of each of 128 threads
PIECE_BYTES = 8192
# pieces of each tensor that one program may hold, in order of preference. compiled, not timed:
# 4 (2 + 2 backward) need no stack on sm_90, 6 (3 + 3) up to 100 bytes on Triton 3.9
PIECES = {1: (4, 6), 2: (2, 3)}
# registers a thread: four programs of four warps on an SM
MAX_REGISTERS = 128
# the narrow tile: 4 KB rows, one 16-byte access of each thread of eight warps
NARROW_WORDS = 1024
NARROW_WARPS = 8
NARROW_IMAGES = 2
# pieces of two images that one program may hold of each tensor. compiled, not timed
NARROW_PIECES = {1: 6, 2: 3}
# share of a row that whole channels must fill
NARROW_FILL = 0.5
# items per SM below which smaller items are tried, so that no SM waits idle
ITEMS_PER_SM = 2


@dataclass(frozen=True)
class ResidentPlan:
    """Shape of one one-read launch.

    An item is `pieces` tiles (block_c, block_v, vector) of a block of channels; `splits` items, the
    members of a group, share a block, `vectors_per_split` vectors each. `programs` is the grid.
    """

    block_c: int
    block_v: int
    vector: int
    pieces: int
    splits: int
    vectors_per_split: int
    programs: int
    num_warps: int
    max_registers: int

    # as in a fused two-read plan no second launch follows
    fused = True

    def blocks(self, n_channels: int) -> int:
        """Number of channel blocks, that is of groups."""
        return -(-n_channels // self.block_c)

    @property
    def in_flight(self) -> float:
        """Groups that the grid works on at once."""
        return self.programs / self.splits


def plan_resident(
    view: ChannelView, itemsize: int, device: DeviceProfile, vector: int, streams: int
) -> ResidentPlan | None:
    """The one-read plan of a channels-first tensor, or None where two reads are needed.

    Args:
        view: layout of the tensors, which group their elements alike.
        itemsize: bytes per element.
        device: what of the device matters.
        vector: elements of one access.
        streams: tensors held, 1 forward (x) and 2 backward (x, dy).
    """
    word = vector * itemsize // 4
    if view.family != CHANNELS_FIRST or itemsize not in (2, 4) or word == 0:
        return None
    if not pinned("resident", device.one_read and not is_pinned("fused", "splits")):
        return None
    vectors = vectors_of(view, vector)
    block_c, block_v = _tile(view, itemsize, device, vector)
    num_warps = pinned("num_warps", warps_for(block_c * block_v * vector, itemsize))
    # as many as the launch may have: of these warps, compiled for these registers
    resident = device.programs(MAX_REGISTERS, num_warps)
    splits = pinned("splits", 0)
    pieces = pinned("pieces", 0)
    if not splits:
        blocks = -(-view.n_channels // block_c)
        chosen = _share(vectors, block_v, blocks, resident, device, streams)
        if chosen is None:
            return None
        splits = chosen
    # equal members: none has a tile more than another
    share = -(-vectors // splits)
    pieces = pieces or -(-share // block_v)
    share = max(share, 1)
    splits = -(-vectors // share)
    items = splits * -(-view.n_channels // block_c)
    programs = items if splits == 1 else min(items, resident)
    return ResidentPlan(
        block_c=block_c,
        block_v=block_v,
        vector=vector,
        pieces=pieces,
        splits=splits,
        vectors_per_split=share,
        programs=pinned("programs", programs),
        num_warps=num_warps,
        max_registers=MAX_REGISTERS,
    )


def plan_one_read(
    views: tuple[ChannelView, ...], itemsize: int, device: DeviceProfile, streams: int
) -> ResidentPlan | NarrowPlan | None:
    """The plan that reads once: wide where planes hold whole 16-byte vectors, else narrow, else
    wide with shorter vectors; None where two reads are needed. Arguments as `plan_resident`."""
    vector = min(view.vector(ACCESS_BYTES // itemsize) for view in views)
    if vector * itemsize < ACCESS_BYTES:
        narrow = plan_narrow(views, itemsize, device, streams)
        if narrow is not None:
            return narrow
    return plan_resident(views[0], itemsize, device, vector, streams)


def _tile(view: ChannelView, itemsize: int, device: DeviceProfile, vector: int) -> tuple[int, int]:
    """(block_c, block_v) of one piece: one channel, or several whole ones where they are small."""
    elements = PIECE_BYTES * device.tile_scale // itemsize
    block_v = min(power_of_two_at_least(vectors_of(view, vector)), elements // vector)
    block_c = min(power_of_two_at_least(view.n_channels), elements // (block_v * vector))
    while block_c > 1 and -(-view.n_channels // block_c) < ITEMS_PER_SM * device.sm_count:
        block_c //= 2
    return pinned("block_c", block_c), pinned("block_v", block_v)


def _share(
    vectors: int, block_v: int, blocks: int, programs: int, device: DeviceProfile, streams: int
) -> int | None:
    """Members per group, or None where no grid can hold a channel."""
    most = max(PIECES[streams])
    if vectors <= most * block_v:
        return 1
    if not device.cooperative:
        return None
    preferred = [
        members
        for pieces in PIECES[streams]
        if (members := -(-vectors // (pieces * block_v))) <= programs // 2
    ]
    if not preferred:
        # the fewest members that there can be: one group in flight, or none
        members = -(-vectors // (most * block_v))
        return members if members <= programs else None
    return _enough_items(
        preferred[0],
        [-(-vectors // (pieces * block_v)) for pieces in range(PIECES[streams][0] - 1, 0, -1)],
        blocks,
        programs,
        device,
    )


def _enough_items(
    members: int, others: list[int], blocks: int, programs: int, device: DeviceProfile
) -> int:
    """`members`, or the first of `others` (smaller items, in order) that fill the device."""
    for more in others:
        if blocks * members >= ITEMS_PER_SM * device.sm_count:
            break
        members = min(more, programs // 2)
    return members


@dataclass(frozen=True)
class NarrowPlan:
    """Shape of one launch over whole channels times images.

    An item is `pieces` tiles of `block_n` images by `block_w` words, in which `block_channels`
    channels lie; `splits` items share them, `rows_per_split` images each.
    """

    block_channels: int
    block_s: int
    block_n: int
    block_w: int
    pieces: int
    splits: int
    rows_per_split: int
    programs: int
    num_warps: int
    max_registers: int

    # as in a fused two-read plan no second launch follows
    fused = True

    def blocks(self, n_channels: int) -> int:
        """Number of channel blocks, that is of groups."""
        return -(-n_channels // self.block_channels)


def plan_narrow(
    views: tuple[ChannelView, ...], itemsize: int, device: DeviceProfile, streams: int
) -> NarrowPlan | None:
    """The plan for images whose channels follow one another and begin at multiples of 16 bytes, or
    None; arguments as `plan_resident`."""
    view = views[0]
    if view.family != CHANNELS_FIRST or itemsize not in (2, 4):
        return None
    if not pinned("resident", device.one_read and not is_pinned("fused", "splits", "block_v")):
        return None
    vector = ACCESS_BYTES // itemsize
    image = view.n_channels * view.n_inner
    for one in views:
        if one.stride_channel != one.n_inner and one.n_channels > 1:
            return None
        if image % vector or (one.n_outer > 1 and one.stride_outer % vector):
            return None
    columns = NARROW_WORDS * 4 // itemsize
    if image <= columns:
        block_channels, columns = view.n_channels, power_of_two_at_least(image)
    else:
        # so many channels begin at a multiple of 16 bytes again
        together = vector // gcd(vector, view.n_inner)
        block_channels = columns // (view.n_inner * together) * together
    if block_channels * view.n_inner < NARROW_FILL * columns:
        return None
    block_channels = pinned("block_c", block_channels)
    block_n = NARROW_IMAGES * device.tile_scale
    rows = view.n_outer
    blocks = -(-view.n_channels // block_channels)
    num_warps = pinned("num_warps", NARROW_WARPS)
    programs = device.programs(MAX_REGISTERS, num_warps)
    most = NARROW_PIECES[streams]
    splits = pinned("splits", 0)
    if not splits:
        splits = -(-rows // (most * block_n))
        if splits > 1 and (not device.cooperative or splits > programs // 2):
            return None
        if device.cooperative:
            smaller = [-(-rows // (pieces * block_n)) for pieces in range(most - 1, 0, -1)]
            splits = _enough_items(splits, smaller, blocks, programs, device)
    share = -(-rows // splits)
    splits = -(-rows // share)
    items = splits * blocks
    return NarrowPlan(
        block_channels=block_channels,
        block_s=power_of_two_at_least(view.n_inner),
        block_n=min(block_n, power_of_two_at_least(share)),
        block_w=max(columns * itemsize // 4, 1),
        pieces=pinned("pieces", -(-share // min(block_n, power_of_two_at_least(share)))),
        splits=splits,
        rows_per_split=share,
        programs=pinned("programs", items if splits == 1 else min(items, programs)),
        num_warps=num_warps,
        max_registers=MAX_REGISTERS,
    )
