"""One-read plans: every vector in one program, every group on the device at once, or no plan."""

import random
from collections import defaultdict
from functools import cache
from math import prod

import pytest

from tritonbn_bench.cases import DTYPES, RESNET50, Layer
from tritonbn_kernels.layout import ChannelView, view_of
from tritonbn_kernels.plan import INTERPRETER, DeviceProfile, pinned_plan, vectors_of
from tritonbn_kernels.residency import (
    MAX_REGISTERS,
    NARROW_IMAGES,
    NARROW_PIECES,
    NARROW_WARPS,
    PIECE_BYTES,
    PIECES,
    NarrowPlan,
    ResidentPlan,
    plan_narrow,
    plan_resident,
)

H200, A100, MIG_SLICE = DeviceProfile(132), DeviceProfile(108), DeviceProfile(16)
# x forward, x and dy backward
STREAMS = {"forward": 1, "backward": 2}
BATCHES = (32, 64, 128, 256)
LAYERS = [
    pytest.param(layer, id=f"c{layer.channels}-{layer.plane[0]}x{layer.plane[1]}")
    for layer in RESNET50
]
of_every_layer = pytest.mark.parametrize("layer", LAYERS)
of_every_batch = pytest.mark.parametrize("batch", BATCHES, ids=lambda n: f"n{n}")
of_every_dtype = pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
of_both_passes = pytest.mark.parametrize("which", list(STREAMS))


def _view(n: int, c: int, *space: int, last: bool = False) -> ChannelView:
    s = prod(space)
    view = view_of((n, c, s), (c * s, 1, c) if last else (c * s, s, 1))
    assert view is not None
    return view


def _plan(
    view: ChannelView, itemsize: int, device: DeviceProfile, streams: int
) -> ResidentPlan | NarrowPlan | None:
    """The plan that is launched: narrow where planes give no 16-byte vectors, else wide."""
    vector = view.vector(16 // itemsize)
    if vector * itemsize < 16:
        narrow = plan_narrow((view,) * (streams + 1), itemsize, device, streams)
        if narrow is not None:
            return narrow
    return plan_resident(view, itemsize, device, vector, streams)


def _assert_equal_members(total: int, share: int, splits: int, tile: int, pieces: int) -> None:
    """`splits` members of `share` cover `total`, none is empty, and `pieces` tiles hold one."""
    assert (splits - 1) * share < total <= splits * share
    assert (pieces - 1) * tile < share <= pieces * tile


def _assert_wide(plan: ResidentPlan, view: ChannelView, itemsize: int, scale: int) -> None:
    vectors = vectors_of(view, plan.vector)
    assert vectors * plan.vector == view.count
    _assert_equal_members(vectors, plan.vectors_per_split, plan.splits, plan.block_v, plan.pieces)
    assert plan.vector * itemsize in (4, 8, 16)
    assert plan.block_c * plan.block_v * plan.vector * itemsize <= PIECE_BYTES * scale
    for size in (plan.block_c, plan.block_v, plan.vector, plan.num_warps):
        assert size & (size - 1) == 0


def _assert_narrow(plan: NarrowPlan, view: ChannelView, itemsize: int) -> None:
    _assert_equal_members(view.n_outer, plan.rows_per_split, plan.splits, plan.block_n, plan.pieces)
    # whole channels, in at least half of the row's columns
    columns = plan.block_w * 4 // itemsize
    assert columns / 2 <= plan.block_channels * view.n_inner <= columns
    assert view.n_inner <= plan.block_s < 2 * view.n_inner
    # the first column of every block, and the first after the last, at a multiple of 16 bytes
    for block in range(plan.blocks(view.n_channels) + 1):
        channel = min(block * plan.block_channels, view.n_channels)
        assert channel * view.n_inner * itemsize % 16 == 0
    for size in (plan.block_s, plan.block_n, plan.block_w, plan.num_warps):
        assert size & (size - 1) == 0


@cache
def _ends(groups: int, members: int, programs: int) -> bool:
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


def _assert_sound(
    plan: ResidentPlan | NarrowPlan,
    view: ChannelView,
    itemsize: int,
    device: DeviceProfile,
    streams: int,
) -> None:
    """Fail unless the plan covers the tensor, fits on the chip, and cannot hang."""
    if isinstance(plan, ResidentPlan):
        assert plan.pieces <= max(PIECES[streams])
        _assert_wide(plan, view, itemsize, device.tile_scale)
    else:
        assert plan.pieces <= NARROW_PIECES[streams]
        _assert_narrow(plan, view, itemsize)
    groups = plan.blocks(view.n_channels)
    items = groups * plan.splits
    if plan.splits == 1:
        assert plan.programs == items
        return
    assert device.cooperative
    # all of the grid is on the device at once
    resident = device.programs(plan.max_registers, plan.num_warps)
    assert plan.splits <= plan.programs == min(items, resident)
    assert _ends(groups, plan.splits, plan.programs)


@of_both_passes
@of_every_dtype
@of_every_batch
@of_every_layer
def test_resnet_is_read_once_on_an_h200(layer: Layer, batch: int, dtype: str, which: str) -> None:
    view, itemsize = _view(batch, layer.channels, *layer.plane), DTYPES[dtype]
    plan = _plan(view, itemsize, H200, STREAMS[which])
    assert plan is not None
    _assert_sound(plan, view, itemsize, H200, STREAMS[which])
    resident = H200.programs(MAX_REGISTERS, plan.num_warps)
    assert resident == (528 if isinstance(plan, ResidentPlan) else 264)
    if (batch, layer.plane, dtype, which) == (256, (112, 112), "fp32", "backward"):
        # a channel of 25.7 MB: one group in flight
        assert (plan.splits, plan.programs) == (523, 528)
    else:
        assert plan.splits <= resident // 2


@of_both_passes
@of_every_dtype
@of_every_batch
@of_every_layer
def test_every_access_is_sixteen_bytes(layer: Layer, batch: int, dtype: str, which: str) -> None:
    view, itemsize = _view(batch, layer.channels, *layer.plane), DTYPES[dtype]
    plan = _plan(view, itemsize, H200, STREAMS[which])
    if isinstance(plan, ResidentPlan):
        assert plan.vector * itemsize == 16
    else:
        assert layer.plane in ((14, 14), (7, 7))


# (itemsize, channels of 112 x 112 at batch 256, pass) that a device cannot hold
TOO_LARGE = {
    "a100": (A100, {(4, "backward")}),
    "mig-slice": (
        MIG_SLICE,
        {(2, "forward"), (2, "backward"), (4, "forward"), (4, "backward")},
    ),
}


@pytest.mark.parametrize("name", list(TOO_LARGE))
@of_both_passes
@pytest.mark.parametrize("itemsize", [2, 4], ids=["bf16", "fp32"])
def test_channel_larger_than_the_device_is_read_twice(itemsize: int, which: str, name: str) -> None:
    device, refused = TOO_LARGE[name]
    plan = _plan(_view(256, 64, 112, 112), itemsize, device, STREAMS[which])
    assert (plan is None) == ((itemsize, which) in refused)


@pytest.mark.parametrize("device", [A100, MIG_SLICE], ids=["a100", "mig-slice"])
@of_both_passes
@of_every_batch
@of_every_layer
def test_plans_of_smaller_devices_are_sound(
    layer: Layer, batch: int, which: str, device: DeviceProfile
) -> None:
    view, streams = _view(batch, layer.channels, *layer.plane), STREAMS[which]
    for itemsize in (2, 4):
        plan = _plan(view, itemsize, device, streams)
        if plan is not None:
            _assert_sound(plan, view, itemsize, device, streams)
        elif view.n_inner * itemsize % 16 == 0:
            # all programs together cannot hold one channel
            held = max(PIECES[streams]) * PIECE_BYTES * device.programs(MAX_REGISTERS, 4)
            assert view.count * itemsize > held
        else:
            # nor half of them the rows of a block of whole channels
            rows = NARROW_PIECES[streams] * NARROW_IMAGES
            assert view.n_outer > rows * (device.programs(MAX_REGISTERS, NARROW_WARPS) // 2)


def _random_cases() -> list[tuple[ChannelView, int, DeviceProfile, int]]:
    draw = random.Random(7)
    devices = [H200, A100, MIG_SLICE, DeviceProfile(1), INTERPRETER]
    devices += [DeviceProfile(132, cooperative=False), DeviceProfile(132, reserved_sms=131)]
    sizes = [(512, 3000, 64), (64, 70, 60000), (4, 2, 4000000), (4096, 40, 9), (1, 65536, 300)]
    cases = []
    for _ in range(1500):
        view = _view(*(1 + int(limit ** draw.random()) for limit in draw.choice(sizes)))
        cases.append((view, draw.choice([2, 4]), draw.choice(devices), draw.choice([1, 2])))
    return cases


def test_plan_of_any_size_is_sound_on_any_device() -> None:
    kinds = []
    for view, itemsize, device, streams in _random_cases():
        plan = _plan(view, itemsize, device, streams)
        if plan is not None:
            _assert_sound(plan, view, itemsize, device, streams)
        kinds.append((type(plan), plan is not None and plan.splits > 1))
    # the draw reaches wide and narrow plans, with groups and without, and none
    assert len(set(kinds)) == 5


@of_both_passes
def test_other_tensors_are_read_twice(which: str) -> None:
    streams = STREAMS[which]
    wide, rows = _view(32, 64, 28, 28), _view(32, 64, 28, 28, last=True)
    assert _plan(wide, 2, H200, streams) is not None
    # channels last, fp64
    assert _plan(rows, 2, H200, streams) is None
    assert _plan(wide, 8, H200, streams) is None
    # odd planes of two-byte values, images that are no multiple of 16 bytes
    assert _plan(_view(32, 9, 7, 7), 2, H200, streams) is None
    assert _plan(_view(32, 9, 7, 7), 4, H200, streams) is not None
    # channels too long for a row of whole ones: 8 of them would begin at multiples of 16 bytes
    assert _plan(_view(32, 64, 31, 31), 2, H200, streams) is None


def test_narrow_planes_need_images_that_begin_at_sixteen_bytes() -> None:
    shape, dense = (32, 40, 49), (1960, 49, 1)
    for strides, planned in [(dense, True), ((1964, 49, 1), False), ((2000, 50, 1), False)]:
        view, y = view_of(shape, strides), view_of(shape, dense)
        assert view is not None and y is not None
        assert (plan_narrow((view, y), 2, H200, 1) is not None) == planned
        assert (plan_narrow((y, view), 2, H200, 1) is not None) == planned


@of_both_passes
@pytest.mark.parametrize("shape", [(256, 64, 56, 56), (256, 512, 7, 7)], ids=["wide", "rows"])
def test_device_without_cooperative_launches_has_no_groups(
    shape: tuple[int, ...], which: str
) -> None:
    alone = DeviceProfile(132, cooperative=False)
    grouped = _plan(_view(*shape), 2, H200, STREAMS[which])
    assert grouped is not None and grouped.splits > 1
    assert _plan(_view(*shape), 2, alone, STREAMS[which]) is None
    few = _plan(_view(2, *shape[1:]), 2, alone, STREAMS[which])
    assert few is not None and few.splits == 1


@of_both_passes
@pytest.mark.parametrize("shape", [(256, 64, 56, 56), (32, 512, 7, 7)], ids=["wide", "rows"])
def test_one_read_plans_can_be_switched_off(shape: tuple[int, ...], which: str) -> None:
    off = DeviceProfile(132, one_read=False)
    assert _plan(_view(*shape), 2, off, STREAMS[which]) is None
    with pinned_plan(resident=1):
        assert _plan(_view(*shape), 2, off, STREAMS[which]) is not None


def test_reserved_sms_are_left_to_others() -> None:
    shared = DeviceProfile(132, reserved_sms=12)
    for shape, per_sm in (((256, 64, 56, 56), 4), ((256, 512, 7, 7), 2)):
        plan = _plan(_view(*shape), 2, shared, 1)
        assert plan is not None
        assert plan.programs == 120 * per_sm
        assert plan.splits <= plan.programs // 2
    # 523 members need 131 SMs
    assert _plan(_view(256, 64, 112, 112), 4, DeviceProfile(132, reserved_sms=1), 2) is not None
    assert _plan(_view(256, 64, 112, 112), 4, DeviceProfile(132, reserved_sms=2), 2) is None


def test_small_tensor_is_shared_by_enough_programs() -> None:
    # two items of 8 KB for each SM, not one of 32 KB for every other
    plan = _plan(_view(32, 128, 28, 28), 2, H200, 1)
    assert plan is not None
    assert plan.blocks(128) * plan.splits >= 2 * 132
    assert plan.pieces < 4


def test_same_input_same_plan() -> None:
    for shape in ((64, 256, 56, 56), (64, 512, 7, 7)):
        view = _view(*shape)
        assert _plan(view, 2, H200, 2) == _plan(view, 2, H200, 2)


def test_pinned_fields_are_taken_by_wide_plans() -> None:
    view = _view(4, 6, 64)
    pins = {"splits": 3, "pieces": 2, "block_c": 2, "block_v": 16, "programs": 4, "num_warps": 2}
    with pinned_plan(resident=1, **pins):
        plan = plan_resident(view, 4, INTERPRETER, 4, 1)
    # 64 vectors in three members of 22
    assert plan == ResidentPlan(2, 16, 4, 2, 3, 22, 4, 2, MAX_REGISTERS)
    assert plan.in_flight == 4 / 3
    with pinned_plan(resident=1, splits=100):
        plan = plan_resident(view, 4, INTERPRETER, 4, 1)
    # no member is empty
    assert plan is not None and (plan.splits, plan.vectors_per_split) == (64, 1)


def test_pinned_fields_are_taken_by_narrow_plans() -> None:
    view = _view(7, 24, 5, 3)
    pins = {"splits": 3, "pieces": 4, "block_c": 8, "programs": 5, "num_warps": 2}
    with pinned_plan(resident=1, **pins):
        plan = plan_narrow((view, view), 4, INTERPRETER, 1)
    assert plan is not None
    # 7 images in three members of 3
    assert (plan.splits, plan.rows_per_split, plan.block_n) == (3, 3, 4)
    assert (plan.pieces, plan.block_channels, plan.programs, plan.num_warps) == (4, 8, 5, 2)


@pytest.mark.parametrize(
    ("pins", "wide", "rows"),
    [
        pytest.param({"resident": 0}, False, False, id="resident-0"),
        pytest.param({"fused": 1}, False, False, id="fused"),
        pytest.param({"splits": 2}, False, False, id="splits"),
        # tiles of vectors are no tiles of rows
        pytest.param({"block_v": 16}, True, False, id="block_v"),
        pytest.param({"resident": 1, "fused": 1}, True, True, id="resident-1"),
    ],
)
def test_pins_of_two_read_plans_rule_one_read_plans_out(
    pins: dict[str, int], wide: bool, narrow: bool
) -> None:
    view = _view(4, 8, 5, 3)
    with pinned_plan(**pins):
        assert (plan_resident(view, 4, INTERPRETER, 1, 1) is not None) == wide
        assert (plan_narrow((view, view), 4, INTERPRETER, 1) is not None) == narrow
