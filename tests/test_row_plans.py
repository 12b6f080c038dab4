"""Plans of rows: channels_last, narrow planes, and hybrid plans that hold a part of either.

Pinned ones are in `test_row_pins.py`.
"""

import random
from collections.abc import Iterator
from itertools import product

import pytest

from tests.soundness import assert_allowed, planned
from tritonbn_bench.cases import DTYPES, RESNET50
from tritonbn_bench.networks import EXTREMES, NETWORKS
from tritonbn_bench.plan_table import view_in
from tritonbn_kernels.layout import ChannelView, view_of
from tritonbn_kernels.plan import INTERPRETER, DeviceProfile, pinned_plan
from tritonbn_kernels.residency import ITEMS_PER_SM
from tritonbn_kernels.row_plans import (
    FILL,
    HYBRID_PIECES,
    HYBRID_ROW_BYTES,
    HYBRID_SHARE,
    HYBRID_STREAM,
    MERGE_BYTES,
    NARROW_PIECES,
    PARTIAL_BYTES,
    ROW_BYTES,
    ROW_PIECES,
    TILE_WORDS,
    RowsPlan,
    plan_one_read,
    plan_rows,
)

H200, A100, MIG_SLICE = DeviceProfile(132), DeviceProfile(108), DeviceProfile(16)
DEVICES = (H200, A100, MIG_SLICE)
ALONE = DeviceProfile(132, cooperative=False)
STREAMS = {"forward": 1, "backward": 2}
BATCHES = (32, 64, 128, 256)
of_both_passes = pytest.mark.parametrize("which", list(STREAMS))
of_both_sizes = pytest.mark.parametrize("itemsize", [2, 4], ids=["bf16", "fp32"])
# rows of 32 bytes that one program can hold, forward and backward
HELD_ALONE = {streams: pieces * TILE_WORDS // 8 for streams, pieces in ROW_PIECES.items()}


def _last(*shape: int) -> ChannelView:
    """(N, C, *S) in channels_last."""
    return view_in(shape, "nlc")


def _rows(view: ChannelView, itemsize: int, device: DeviceProfile, streams: int) -> RowsPlan | None:
    return plan_rows((view,) * (streams + 1), itemsize, device, streams)


def _networks() -> Iterator[ChannelView]:
    """Layers of all networks in channels_last, and the extremes."""
    shapes = {
        (batch, layer.channels, *layer.plane)
        for network in NETWORKS.values()
        for layer in network.layers
        for batch in (1, 32, 256)
    }
    shapes |= {(batch, channels, *plane) for batch, channels, plane in EXTREMES.values()}
    yield from (_last(*shape) for shape in sorted(shapes))


def _words(view: ChannelView, itemsize: int, row_bytes: int) -> int:
    """Words of a row of at most so many bytes, as a power of two."""
    words = -(-min(row_bytes, view.n_channels * itemsize) // 4)
    return 1 << (words - 1).bit_length()


def _members_of(view: ChannelView, itemsize: int, streams: int, row_bytes: int) -> tuple[int, int]:
    """(members that hold all rows of this width, most that may merge their partial results)."""
    words = _words(view, itemsize, row_bytes)
    channels = min(view.n_channels, words * 4 // itemsize)
    rows = ROW_PIECES[streams] * (TILE_WORDS // words)
    return -(-view.n_outer // rows), MERGE_BYTES // (PARTIAL_BYTES[streams] * channels)


def _fits(view: ChannelView, itemsize: int, streams: int, row_bytes: int, programs: int) -> bool:
    members, merged = _members_of(view, itemsize, streams, row_bytes)
    return members <= max(1, min(programs // 2, merged))


@of_both_passes
@of_both_sizes
@pytest.mark.parametrize("batch", BATCHES, ids=lambda n: f"n{n}")
def test_widest_rows_whose_groups_fit_and_fill_are_taken(
    batch: int, itemsize: int, which: str
) -> None:
    streams = STREAMS[which]
    for layer in RESNET50:
        view = _last(batch, layer.channels, *layer.plane)
        whole = []
        for row_bytes in ROW_BYTES:
            # a pinned block of channels leaves one width to choose
            with pinned_plan(block_c=row_bytes // itemsize):
                one = _rows(view, itemsize, H200, streams)
            fits = _fits(view, itemsize, streams, row_bytes, 264)
            assert (one is not None and not one.stream) == fits
            if one is not None and fits:
                assert one.block_w == _words(view, itemsize, row_bytes)
                whole.append(one)
        plan = _rows(view, itemsize, H200, streams)
        alone = [one for one in whole if one.splits == 1]
        aim = ITEMS_PER_SM * 132
        if alone:
            full = [one for one in alone if one.programs >= aim]
            assert plan == (full[0] if full else alone[-1])
        elif whole:
            items = [one.blocks(layer.channels) * one.splits for one in whole]
            full = [one for one, count in zip(whole, items, strict=True) if count >= FILL * aim]
            assert plan == (full[0] if full else whole[items.index(max(items))])
        else:
            assert plan is None or plan.stream


@of_both_passes
@of_both_sizes
def test_resnet_is_read_once_in_channels_last_up_to_28_by_28(itemsize: int, which: str) -> None:
    for batch, layer in product((32, 64, 128), RESNET50):
        if layer.plane <= (28, 28):
            view = _last(batch, layer.channels, *layer.plane)
            plan = planned(view, itemsize, H200, STREAMS[which])
            assert isinstance(plan, RowsPlan) and not plan.stream
            assert_allowed(plan, view, itemsize, H200, STREAMS[which])
            assert plan.vector_words == 4


# layers of ResNet-50 in channels_last at batch 256 of which a part is held
HYBRID_FORWARD = {(64, 112), (64, 56), (128, 56), (256, 56)}
HYBRID_BACKWARD = {(64, 56), (128, 56), (256, 56), (128, 28), (256, 28), (512, 28)}
# and that are read twice
TWICE_BACKWARD = {(64, 112)}


@of_both_passes
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_resnet_is_held_in_part_exactly_where_no_width_fits(dtype: str, which: str) -> None:
    streams, itemsize = STREAMS[which], DTYPES[dtype]
    found: dict[str, set[tuple[int, int]]] = {"whole": set(), "hybrid": set(), "twice": set()}
    for layer in RESNET50:
        view = _last(256, layer.channels, *layer.plane)
        plan = _rows(view, itemsize, H200, streams)
        kind = "twice" if plan is None else "hybrid" if plan.stream else "whole"
        found[kind].add((layer.channels, layer.plane[0]))
        fits = any(_fits(view, itemsize, streams, row_bytes, 264) for row_bytes in ROW_BYTES)
        assert fits == (kind == "whole")
        if plan is not None and plan.stream:
            assert_allowed(plan, view, itemsize, H200, streams)
            assert plan.block_w * 4 == HYBRID_ROW_BYTES
            assert (plan.pieces, plan.stream) == (HYBRID_PIECES[streams], HYBRID_STREAM[streams])
    forward = which == "forward"
    assert found["hybrid"] == (HYBRID_FORWARD if forward else HYBRID_BACKWARD)
    assert found["twice"] == (set() if forward else TWICE_BACKWARD)


@of_both_passes
@of_both_sizes
def test_block_that_one_program_can_hold_has_no_barrier(itemsize: int, which: str) -> None:
    streams = STREAMS[which]
    most = HELD_ALONE[streams]
    for device in (*DEVICES, ALONE):
        plan = _rows(_last(most, 4096), itemsize, device, streams)
        assert plan is not None and (plan.splits, plan.stream) == (1, 0)
        assert plan.programs == plan.blocks(4096)
        more = _rows(_last(most + 1, 4096), itemsize, device, streams)
        assert more is None if device is ALONE else more is not None and more.splits > 1


@of_both_passes
@of_both_sizes
def test_two_groups_are_in_flight_wherever_there_are_two(itemsize: int, which: str) -> None:
    reached = set()
    for device, view in product(DEVICES, _networks()):
        plan = _rows(view, itemsize, device, STREAMS[which])
        if plan is not None and plan.blocks(view.n_channels) >= 2:
            assert plan.splits == 1 or plan.programs >= 2 * plan.splits
            reached.add((plan.splits > 1, plan.stream > 0))
    assert {(False, False), (True, False), (True, True)} <= reached


@of_both_passes
@of_both_sizes
def test_members_read_few_partial_results(itemsize: int, which: str) -> None:
    streams, spread = STREAMS[which], 0
    for device, view in product(DEVICES, _networks()):
        plan = _rows(view, itemsize, device, streams)
        if plan is None or plan.splits == 1 or plan.stream:
            continue
        partials = plan.splits * PARTIAL_BYTES[streams] * plan.block_channels
        assert partials <= MERGE_BYTES
        needed, _ = _members_of(view, itemsize, streams, plan.block_channels * itemsize)
        if plan.splits > needed:
            # more members to fill the device: each still has more data than that
            assert partials <= plan.rows_per_split * plan.block_w * 4 * streams
            spread += 1
    assert spread > 20


@of_both_passes
@of_both_sizes
def test_held_and_streamed_rows_are_all_rows(itemsize: int, which: str) -> None:
    hybrid = 0
    for device, view in product(DEVICES, _networks()):
        plan = _rows(view, itemsize, device, STREAMS[which])
        if plan is None:
            continue
        shares = [
            min(plan.rows_per_split, view.n_outer - first)
            for first in range(0, view.n_outer, plan.rows_per_split)
        ]
        assert len(shares) == plan.splits
        held = sum(
            min(min(plan.pieces * plan.block_n, plan.rows_per_split), share) for share in shares
        )
        assert held + plan.streamed_rows(view.n_outer) == view.n_outer
        # nothing is compiled to stream that is not needed
        assert (plan.streamed_rows(view.n_outer) > 0) == (plan.stream > 0)
        hybrid += plan.stream > 0
    assert hybrid > 5


@of_both_passes
@pytest.mark.parametrize("l2_bytes", [0, 60 * 10**6], ids=["no-l2", "l2"])
def test_hybrid_plan_spares_a_share_worth_waiting_for(l2_bytes: int, which: str) -> None:
    device, streams = DeviceProfile(132, l2_bytes=l2_bytes), STREAMS[which]
    # 132 programs, half of the device, share 16 channels of fp32
    held = 132 * HYBRID_PIECES[streams] * 4 * TILE_WORDS * streams
    most = int((held + l2_bytes // 2) / HYBRID_SHARE / (HYBRID_ROW_BYTES * streams))
    plan = _rows(_last(most, 64), 4, device, streams)
    assert plan is not None and (plan.splits, plan.stream) == (132, HYBRID_STREAM[streams])
    assert _rows(_last(most + 1, 64), 4, device, streams) is None
    # a pinned one is taken at its word
    with pinned_plan(stream=1):
        assert _rows(_last(most + 1, 64), 4, device, streams) is not None


# channels_last, narrow planes: too many rows for any width
TOO_MANY = [
    pytest.param(_last(256, 64, 56, 56), id="channels-last"),
    pytest.param(view_in((16384, 512, 7, 7), "nchw"), id="narrow"),
]


@of_both_passes
@pytest.mark.parametrize("view", TOO_MANY)
def test_nothing_is_held_in_part_without_streaming_or_waiting(
    view: ChannelView, which: str
) -> None:
    streams = STREAMS[which]
    plan = _rows(view, 2, H200, streams)
    assert plan is not None and plan.stream > 0 and plan.splits > 1
    assert _rows(view, 2, ALONE, streams) is None
    with pinned_plan(stream=0):
        assert _rows(view, 2, H200, streams) is None
    with pinned_plan(stream=0, resident=1):
        assert _rows(view, 2, H200, streams) is None


@of_both_passes
def test_narrow_planes_beyond_the_grid_are_held_in_part(which: str) -> None:
    streams = STREAMS[which]
    # 7 x 7 of 40 channels in rows of 4 KB, one row a tile
    most = 132 * max(NARROW_PIECES[streams])
    for images, stream in ((most, 0), (most + 1, HYBRID_STREAM[streams])):
        view = view_in((images, 512, 7, 7), "nchw")
        plan = planned(view, 2, H200, streams)
        assert isinstance(plan, RowsPlan)
        assert_allowed(plan, view, 2, H200, streams)
        assert (plan.block_n, plan.stream) == (1, stream)
        assert (plan.streamed_rows(images) > 0) == (stream > 0)
        assert plan.block_channels * 49 * 2 > 0.9 * 4096


def _random_cases() -> list[tuple[ChannelView, int, DeviceProfile, int]]:
    draw = random.Random(11)
    devices = [*DEVICES, DeviceProfile(1), DeviceProfile(2, l2_bytes=0), INTERPRETER, ALONE]
    devices += [DeviceProfile(132, reserved_sms=131)]
    sizes = [(512, 3000, 64), (64, 70, 60000), (4, 5, 4000000), (4096, 40, 9), (1, 65536, 300)]
    cases = []
    for _ in range(1500):
        view = _last(*(1 + int(limit ** draw.random()) for limit in draw.choice(sizes)))
        cases.append((view, draw.choice([2, 4]), draw.choice(devices), draw.choice([1, 2])))
    return cases


def test_plan_of_any_size_is_sound_on_any_device() -> None:
    kinds = set()
    for view, itemsize, device, streams in _random_cases():
        plan = planned(view, itemsize, device, streams)
        if plan is None:
            kinds.add((False, False))
        else:
            assert_allowed(plan, view, itemsize, device, streams)
            kinds.add((plan.splits > 1, isinstance(plan, RowsPlan) and plan.stream > 0))
    # none or without groups, with groups, and hybrid with and without
    assert len(kinds) == 4


@of_both_passes
def test_other_rows_are_read_twice(which: str) -> None:
    streams = STREAMS[which]
    assert _rows(_last(32, 64, 7, 7), 8, H200, streams) is None
    # rows of odd two-byte values share words
    assert _rows(_last(32, 63, 7, 7), 2, H200, streams) is None
    assert _rows(_last(32, 63, 7, 7), 4, H200, streams) is not None
    # row numbers of 32 bits
    assert _rows(_last(2**30, 1), 4, H200, streams) is None


def test_same_input_same_plan() -> None:
    for shape in ((64, 256, 56, 56), (64, 512, 7, 7), (256, 64, 112, 112)):
        assert _rows(_last(*shape), 2, H200, 1) == _rows(_last(*shape), 2, H200, 1) is not None


def test_small_tensor_is_shared_by_enough_programs() -> None:
    view = _last(32, 128, 28, 28)
    plan = _rows(view, 2, H200, 1)
    assert plan is not None
    # without idle SMs, and not of 14 tiles each
    assert plan.blocks(128) * plan.splits >= FILL * ITEMS_PER_SM * 132
    assert plan.pieces < ROW_PIECES[1]


def test_reserved_sms_are_left_to_others() -> None:
    shared = DeviceProfile(132, reserved_sms=12)
    plan = _rows(_last(256, 64, 56, 56), 2, shared, 1)
    assert plan is not None and plan.programs == 240
    assert plan.splits <= plan.programs // 2


# (N, C, H * W) of bf16: planes so small that a row of 4 KB would hold hundreds of channels
SMALL_PLANES = [(512, 512, 4), (1024, 512, 9), (2048, 1024, 3), (4096, 512, 25)]


@pytest.mark.parametrize("streams", [1, 2], ids=["forward", "backward"])
@pytest.mark.parametrize("shape", SMALL_PLANES, ids=str)
def test_members_of_small_planes_merge_few_channels(
    shape: tuple[int, int, int], streams: int
) -> None:
    _, c, s = shape
    view = view_of(shape, (c * s, s, 1))
    assert view is not None
    plan = plan_one_read((view,) * (streams + 1), 2, DeviceProfile(132), streams)
    assert isinstance(plan, RowsPlan)
    assert plan.splits > 1
    assert plan.splits * PARTIAL_BYTES[streams] * plan.block_channels <= MERGE_BYTES
