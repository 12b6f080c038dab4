"""One-read plans of planes: which channels stay in registers, and how many programs share one.

Pure Python. With P programs on the device at once and a group of G members: two groups in flight
hide each other's barriers (simulated 96-100 % of the copy speed), one group leaves the memory idle
while it waits (65-78 %), and a group larger than P would wait for ever. Simulated, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonbn_kernels.layout import CHANNELS_FIRST, ChannelView
from tritonbn_kernels.plan import (
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
# pieces of a usual size that a pinned plan may hold: the compiler unrolls them
MOST_PIECES = 32
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
    if not pinned("resident", not is_pinned("fused", "splits")):
        return None
    vectors = vectors_of(view, vector)
    block_c, block_v = _tile(view, itemsize, device, vector)
    num_warps = pinned("num_warps", warps_for(block_c * block_v * vector, itemsize))
    # as many as the launch may have: of these warps, compiled for these registers
    resident = device.programs(MAX_REGISTERS, num_warps)
    splits = pinned("splits", 0)
    if device.cooperative:
        # a larger group would wait for ever
        splits = min(splits, resident)
    if not splits:
        blocks = -(-view.n_channels // block_c)
        chosen = _share(vectors, block_v, blocks, resident, device, streams)
        if chosen is None:
            return None
        splits = chosen
    # equal members: none has a tile more than another
    share = -(-vectors // splits)
    pieces = max(-(-share // block_v), pinned("pieces", 0))
    held = pieces * block_c * block_v * vector * itemsize
    # pinned: the compiler would unroll more, and spill it
    if max(pieces, held // (PIECE_BYTES * device.tile_scale)) > MOST_PIECES:
        return None
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
    others = [-(-vectors // (pieces * block_v)) for pieces in range(PIECES[streams][0] - 1, 0, -1)]
    return enough_members(preferred[0], others, blocks, programs // 2, device)


def enough_members(
    members: int, others: list[int], blocks: int, most: int, device: DeviceProfile
) -> int:
    """`members`, or the first of `others` (smaller items, in order) that fill the device, of at
    most `most`."""
    for more in others:
        if blocks * members >= ITEMS_PER_SM * device.sm_count:
            break
        members = max(members, min(more, most))
    return members
