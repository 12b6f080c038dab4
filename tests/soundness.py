"""What every plan must keep, whatever the shape and the device: cover the tensor, fit on the chip,
and never hang."""

from collections import defaultdict
from functools import cache

from tritonbn_kernels.layout import CHANNELS_LAST, ChannelView
from tritonbn_kernels.outlook import Plan
from tritonbn_kernels.plan import DeviceProfile, LaunchPlan, vectors_of
from tritonbn_kernels.residency import PIECE_BYTES, PIECES, ResidentPlan
from tritonbn_kernels.row_plans import (
    HYBRID_PIECES,
    NARROW_PIECES,
    ROW_PIECES,
    RowsPlan,
    plan_one_read,
)

# data registers of a thread that compile without spills, or nearly: 96 of planes, 64 of rows
HELD_WORDS = {ResidentPlan: 96, RowsPlan: 64}


def planned(
    view: ChannelView, itemsize: int, device: DeviceProfile, streams: int
) -> ResidentPlan | RowsPlan | None:
    """The one-read plan of a launch whose tensors all have this view."""
    return plan_one_read((view,) * (streams + 1), itemsize, device, streams)


def assert_allowed(
    plan: Plan, view: ChannelView, itemsize: int, device: DeviceProfile, streams: int
) -> None:
    """Fail unless a launch of this plan, made without pins, covers the tensor, fits on the device,
    holds nothing in vain, and ends.

    Args:
        plan: of one launch
        view: of its tensors
        itemsize: bytes per element
        device: what of the device matters
        streams: tensors read
    """
    if isinstance(plan, LaunchPlan):
        _assert_two_read(plan, view)
        return
    if isinstance(plan, ResidentPlan):
        _assert_planes(plan, view, itemsize)
        assert plan.pieces <= max(PIECES[streams])
        tile = plan.block_c * plan.block_v * plan.vector * itemsize
        assert tile <= PIECE_BYTES * device.tile_scale
        words = plan.block_c * plan.block_v * plan.vector * itemsize // 4 * plan.pieces
    else:
        _assert_rows(plan, view, itemsize)
        assert plan.pieces <= _most_row_pieces(plan, streams)
        words = plan.block_n * plan.block_w * (plan.pieces + plan.stream)
    threads = 32 * plan.num_warps
    assert words * streams <= HELD_WORDS[type(plan)] * threads * device.tile_scale
    groups = plan.blocks(view.n_channels)
    if plan.splits == 1:
        assert plan.programs == groups
        return
    assert device.cooperative
    # all of the grid is on the device at once
    at_once = device.programs(plan.max_registers, plan.num_warps)
    assert plan.splits <= plan.programs == min(groups * plan.splits, at_once)
    # later rounds repeat the first ones
    assert ends(min(groups, 1 + 4 * plan.programs // plan.splits), plan.splits, plan.programs)


def _assert_two_read(plan: LaunchPlan, view: ChannelView) -> None:
    vectors = vectors_of(view, plan.vector)
    assert (plan.splits - 1) * plan.vectors_per_split < vectors
    assert vectors <= plan.splits * plan.vectors_per_split
    assert plan.vectors_per_split % plan.block_v == 0
    assert not plan.fused or plan.splits == 1
    assert plan.grid(view.n_channels) < 2**31
    # a tile beyond Triton's limit of elements cannot be compiled
    assert plan.block_c * plan.block_v * plan.vector <= 2**20
    _assert_powers_of_two(plan.block_c, plan.block_v, plan.vector, plan.num_warps)


def _assert_planes(plan: ResidentPlan, view: ChannelView, itemsize: int) -> None:
    vectors = vectors_of(view, plan.vector)
    assert vectors * plan.vector == view.count
    assert (plan.splits - 1) * plan.vectors_per_split < vectors
    assert vectors <= plan.splits * plan.vectors_per_split
    assert (plan.pieces - 1) * plan.block_v < plan.vectors_per_split
    assert plan.vectors_per_split <= plan.pieces * plan.block_v
    assert plan.vector * itemsize in (4, 8, 16)
    _assert_powers_of_two(plan.block_c, plan.block_v, plan.vector, plan.num_warps)


def _assert_rows(plan: RowsPlan, view: ChannelView, itemsize: int) -> None:
    assert (plan.splits - 1) * plan.rows_per_split < view.n_outer
    assert view.n_outer <= plan.splits * plan.rows_per_split
    assert (plan.pieces - 1) * plan.block_n < plan.rows_per_split
    if not plan.stream:
        assert plan.rows_per_split <= plan.pieces * plan.block_n
    assert (plan.streamed_rows(view.n_outer) > 0) == (plan.stream > 0)
    # whole channels, in at least half of a row's words
    assert plan.block_w * 2 <= plan.block_channels * view.n_inner * itemsize <= plan.block_w * 4
    assert view.n_inner <= plan.block_s < 2 * view.n_inner
    # every block of channels begins at a multiple of an access
    access = 4 * plan.vector_words
    assert access in ((4, 8, 16) if view.family == CHANNELS_LAST else (16,))
    for block in range(plan.blocks(view.n_channels) + 1):
        channel = min(block * plan.block_channels, view.n_channels)
        assert channel * view.n_inner * itemsize % access == 0
    _assert_powers_of_two(plan.block_s, plan.block_n, plan.block_w, plan.num_warps)


def _most_row_pieces(plan: RowsPlan, streams: int) -> int:
    if plan.stream:
        return HYBRID_PIECES[streams]
    return ROW_PIECES[streams] if plan.block_s == 1 else max(NARROW_PIECES[streams])


def _assert_powers_of_two(*sizes: int) -> None:
    for size in sizes:
        assert size > 0 and size & (size - 1) == 0


@cache
def ends(groups: int, members: int, programs: int) -> bool:
    """Whether all programs end, each working on its items in order and waiting for its groups.

    Raises:
        AssertionError: a program owns two items of one group.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    owned = [range(program, groups * members, programs) for program in range(programs)]
    for items in owned:
        mine = [item // members for item in items]
        assert len(set(mine)) == len(mine)
    position = [0] * programs
    awake = list(range(programs))
    while awake:
        program = awake.pop()
        if position[program] == len(owned[program]):
            continue
        group = owned[program][position[program]] // members
        waiting[group].append(program)
        if len(waiting[group]) == members:
            for member in waiting.pop(group):
                position[member] += 1
                awake.append(member)
    return not waiting and all(
        done == len(items) for done, items in zip(position, owned, strict=True)
    )
