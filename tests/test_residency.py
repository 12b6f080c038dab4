"""One-read plans: every vector in one program, every group on the device at once, or no plan.

Planes, and what planes and rows share; of rows alone is `test_row_plans.py`.
"""

import random

import pytest

from tests.soundness import assert_allowed, ends, planned
from tritonbn_bench.cases import DTYPES, RESNET50, Layer
from tritonbn_bench.plan_table import view_in
from tritonbn_kernels.layout import ChannelView, view_of
from tritonbn_kernels.plan import INTERPRETER, DeviceProfile, pinned_plan
from tritonbn_kernels.residency import (
    MAX_REGISTERS,
    MOST_PIECES,
    PIECE_BYTES,
    PIECES,
    ResidentPlan,
    plan_resident,
)
from tritonbn_kernels.row_plans import RowsPlan, plan_rows

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
of_both_kinds = pytest.mark.parametrize(
    "shape", [(256, 64, 56, 56), (256, 512, 7, 7)], ids=["wide", "narrow"]
)


def _planes(*shape: int) -> ChannelView:
    """(N, C, *S) as torch makes it."""
    return view_in(shape, "ncl")


@of_both_passes
@of_every_dtype
@of_every_batch
@of_every_layer
def test_resnet_is_read_once_on_an_h200(layer: Layer, batch: int, dtype: str, which: str) -> None:
    view, itemsize = _planes(batch, layer.channels, *layer.plane), DTYPES[dtype]
    plan = planned(view, itemsize, H200, STREAMS[which])
    assert plan is not None
    assert_allowed(plan, view, itemsize, H200, STREAMS[which])
    assert isinstance(plan, ResidentPlan) or plan.streamed_rows(batch) == plan.stream == 0
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
    view, itemsize = _planes(batch, layer.channels, *layer.plane), DTYPES[dtype]
    plan = planned(view, itemsize, H200, STREAMS[which])
    if isinstance(plan, ResidentPlan):
        assert plan.vector * itemsize == 16
    else:
        assert plan is not None and plan.vector_words == 4
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
    plan = planned(_planes(256, 64, 112, 112), itemsize, device, STREAMS[which])
    assert (plan is None) == ((itemsize, which) in refused)


@pytest.mark.parametrize("device", [A100, MIG_SLICE], ids=["a100", "mig-slice"])
@of_both_passes
@of_every_batch
@of_every_layer
def test_plans_of_smaller_devices_are_sound(
    layer: Layer, batch: int, which: str, device: DeviceProfile
) -> None:
    view, streams = _planes(batch, layer.channels, *layer.plane), STREAMS[which]
    for itemsize in (2, 4):
        plan = planned(view, itemsize, device, streams)
        if plan is not None:
            assert_allowed(plan, view, itemsize, device, streams)
        else:
            # planes of whole vectors, and all programs together cannot hold one channel
            assert view.n_inner * itemsize % 16 == 0
            held = max(PIECES[streams]) * PIECE_BYTES * device.programs(MAX_REGISTERS, 4)
            assert view.count * itemsize > held


def _random_cases() -> list[tuple[ChannelView, int, DeviceProfile, int]]:
    draw = random.Random(7)
    devices = [H200, A100, MIG_SLICE, DeviceProfile(1), INTERPRETER]
    devices += [DeviceProfile(132, cooperative=False), DeviceProfile(132, reserved_sms=131)]
    sizes = [(512, 3000, 64), (64, 70, 60000), (4, 2, 4000000), (4096, 40, 9), (1, 65536, 300)]
    cases = []
    for _ in range(1500):
        view = _planes(*(1 + int(limit ** draw.random()) for limit in draw.choice(sizes)))
        cases.append((view, draw.choice([2, 4]), draw.choice(devices), draw.choice([1, 2])))
    return cases


def test_plan_of_any_size_is_sound_on_any_device() -> None:
    kinds = []
    for view, itemsize, device, streams in _random_cases():
        plan = planned(view, itemsize, device, streams)
        if plan is not None:
            assert_allowed(plan, view, itemsize, device, streams)
        hybrid = isinstance(plan, RowsPlan) and plan.stream > 0
        kinds.append((type(plan), plan is not None and plan.splits > 1, hybrid))
    # the draw reaches planes, narrow planes and hybrid plans, with groups and without, and none
    assert len(set(kinds)) == 7


def test_later_rounds_of_a_grid_end_as_its_first_ones_do() -> None:
    draw = random.Random(5)
    for _ in range(200):
        members = draw.randint(2, 12)
        programs = draw.randint(members, 60)
        assert ends(draw.randint(1, 400), members, programs)


@pytest.mark.parametrize(("groups", "members", "programs"), [(2, 3, 2), (5, 8, 7)])
def test_group_larger_than_the_grid_is_found(groups: int, members: int, programs: int) -> None:
    with pytest.raises(AssertionError):
        assert ends(groups, members, programs)


@of_both_passes
def test_other_tensors_are_read_twice(which: str) -> None:
    streams = STREAMS[which]
    wide, rows = _planes(32, 64, 28, 28), view_in((32, 64, 28, 28), "nhwc")
    for view in (wide, rows):
        assert planned(view, 2, H200, streams) is not None
        # fp64
        assert planned(view, 8, H200, streams) is None
    # odd planes of two-byte values, images that are no multiple of 16 bytes
    assert planned(_planes(32, 9, 7, 7), 2, H200, streams) is None
    assert planned(_planes(32, 9, 7, 7), 4, H200, streams) is not None
    # channels too long for a row of whole ones: 8 of them would begin at multiples of 16 bytes
    assert planned(_planes(32, 64, 31, 31), 2, H200, streams) is None


def test_planes_are_not_channels_last() -> None:
    assert plan_resident(view_in((32, 64, 28, 28), "nhwc"), 2, H200, 8, 1) is None


@of_both_passes
@of_both_kinds
def test_device_without_cooperative_launches_has_no_groups(
    shape: tuple[int, ...], which: str
) -> None:
    alone = DeviceProfile(132, cooperative=False)
    grouped = planned(_planes(*shape), 2, H200, STREAMS[which])
    assert grouped is not None and grouped.splits > 1
    assert planned(_planes(*shape), 2, alone, STREAMS[which]) is None
    few = planned(_planes(2, *shape[1:]), 2, alone, STREAMS[which])
    assert few is not None and few.splits == 1


@of_both_passes
@of_both_kinds
def test_one_read_plans_can_be_switched_off(shape: tuple[int, ...], which: str) -> None:
    view, streams = _planes(*shape), STREAMS[which]
    free = planned(view, 2, H200, streams)
    assert free is not None
    with pinned_plan(resident=0):
        assert planned(view, 2, H200, streams) is None
        # the innermost pin counts
        with pinned_plan(resident=1):
            assert planned(view, 2, H200, streams) == free


def test_reserved_sms_are_left_to_others() -> None:
    shared = DeviceProfile(132, reserved_sms=12)
    for shape, per_sm in (((256, 64, 56, 56), 4), ((256, 512, 7, 7), 2)):
        plan = planned(_planes(*shape), 2, shared, 1)
        assert plan is not None
        assert plan.programs == 120 * per_sm
        assert plan.splits <= plan.programs // 2
    # 523 members need 131 SMs
    assert planned(_planes(256, 64, 112, 112), 4, DeviceProfile(132, reserved_sms=1), 2) is not None
    assert planned(_planes(256, 64, 112, 112), 4, DeviceProfile(132, reserved_sms=2), 2) is None


def test_small_tensor_is_shared_by_enough_programs() -> None:
    # two items of 8 KB for each SM, not one of 32 KB for every other
    plan = planned(_planes(32, 128, 28, 28), 2, H200, 1)
    assert plan is not None
    assert plan.blocks(128) * plan.splits >= 2 * 132
    assert plan.pieces < 4


def test_same_input_same_plan() -> None:
    for shape in ((64, 256, 56, 56), (64, 512, 7, 7)):
        view = _planes(*shape)
        assert planned(view, 2, H200, 2) == planned(view, 2, H200, 2)


def test_pinned_fields_are_taken() -> None:
    view = _planes(4, 6, 64)
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


@of_both_passes
@pytest.mark.parametrize("splits", [500, 528, 529, 10**6])
def test_pinned_group_is_no_larger_than_the_device(splits: int, which: str) -> None:
    view = _planes(64, 3, 64, 64)
    with pinned_plan(resident=1, splits=splits):
        plan = plan_resident(view, 4, H200, 4, STREAMS[which])
    assert plan is not None and plan.splits <= min(splits, 528)
    # one group fits, of three: the third waits for its first members
    assert plan.splits <= plan.programs == 528


def test_pinned_pieces_hold_all_vectors_and_are_bounded() -> None:
    # 17 pieces of 512 vectors
    view = _planes(17, 1, 2048)
    for pieces, held in ((1, 17), (17, 17), (20, 20)):
        with pinned_plan(resident=1, splits=1, pieces=pieces):
            plan = plan_resident(view, 4, H200, 4, 1)
        assert plan is not None and plan.pieces == held
    with pinned_plan(resident=1, splits=1):
        for images, fits in ((MOST_PIECES, True), (MOST_PIECES + 1, False)):
            plan = plan_resident(_planes(images, 1, 2048), 4, H200, 4, 1)
            assert (plan is not None) == fits


@pytest.mark.parametrize(
    ("pins", "wide", "narrow"),
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
    view, last = _planes(4, 8, 5, 3), view_in((4, 8, 5, 3), "nhwc")
    with pinned_plan(**pins):
        assert (plan_resident(view, 4, INTERPRETER, 1, 1) is not None) == wide
        assert (plan_rows((view, view), 4, INTERPRETER, 1) is not None) == narrow
        assert (plan_rows((last, last), 4, INTERPRETER, 1) is not None) == narrow


def test_narrow_planes_need_images_that_begin_at_sixteen_bytes() -> None:
    shape, dense = (32, 40, 49), (1960, 49, 1)
    for strides, fits in [(dense, True), ((1964, 49, 1), False), ((2000, 50, 1), False)]:
        view, y = view_of(shape, strides), view_of(shape, dense)
        assert view is not None and y is not None
        assert (plan_rows((view, y), 2, H200, 1) is not None) == fits
        assert (plan_rows((y, view), 2, H200, 1) is not None) == fits
