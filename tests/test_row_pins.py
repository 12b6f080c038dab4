"""Pinned plans of rows: every field is taken, and none makes a plan that hangs or loses rows."""

from math import prod
from typing import Any

import pytest
import torch

from tritonbn_bench.plan_table import view_in
from tritonbn_kernels import one_read
from tritonbn_kernels.geometry import Geometry
from tritonbn_kernels.layout import ChannelView
from tritonbn_kernels.plan import INTERPRETER, DeviceProfile, pinned_plan
from tritonbn_kernels.residency import MOST_PIECES
from tritonbn_kernels.row_plans import RowsPlan, plan_rows

H200, ALONE = DeviceProfile(132), DeviceProfile(132, cooperative=False)
STREAMS = {"forward": 1, "backward": 2}
of_both_passes = pytest.mark.parametrize("which", list(STREAMS))


def _last(*shape: int) -> ChannelView:
    """(N, C, *S) in channels_last."""
    return view_in(shape, "nlc")


def _rows(view: ChannelView, itemsize: int, device: DeviceProfile, streams: int) -> RowsPlan | None:
    return plan_rows((view,) * (streams + 1), itemsize, device, streams)


def test_pinned_fields_are_taken() -> None:
    view = view_in((7, 24, 5, 3), "nchw")
    pins = {"splits": 3, "pieces": 4, "block_c": 8, "programs": 5, "num_warps": 2}
    with pinned_plan(resident=1, **pins):
        plan = _rows(view, 4, INTERPRETER, 1)
    assert plan is not None
    # 7 images in three members of 3
    assert (plan.splits, plan.rows_per_split, plan.block_n) == (3, 3, 4)
    assert (plan.pieces, plan.block_channels, plan.programs, plan.num_warps) == (4, 8, 5, 2)
    assert plan.stream == 0


def test_pinned_fields_are_taken_by_hybrid_plans() -> None:
    pins = {"splits": 3, "pieces": 2, "block_n": 8, "block_c": 16, "stream": 1, "programs": 4}
    for view in (_last(100, 48), view_in((100, 48, 3), "ncl")):
        with pinned_plan(resident=1, **pins):
            plan = _rows(view, 4, INTERPRETER, 2)
        assert plan is not None
        assert (plan.splits, plan.rows_per_split, plan.programs) == (3, 34, 4)
        assert (plan.pieces, plan.block_n, plan.block_channels, plan.stream) == (2, 8, 16, 1)
        # members of 34, 34 and 32 rows, of which two tiles of 8 are held
        assert plan.streamed_rows(100) == 18 + 18 + 16


@of_both_passes
@pytest.mark.parametrize("stream", [0, 2], ids=["whole", "hybrid"])
@pytest.mark.parametrize("splits", [200, 264, 265, 10**6])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(_last(5000, 64), id="channels-last"),
        pytest.param(view_in((5000, 64, 3), "ncl"), id="narrow"),
    ],
)
def test_pinned_group_is_no_larger_than_the_device(
    view: ChannelView, splits: int, stream: int, which: str
) -> None:
    with pinned_plan(resident=1, splits=splits, stream=stream):
        plan = _rows(view, 4, H200, STREAMS[which])
    assert plan is not None and plan.splits <= min(splits, 264)
    assert plan.splits <= plan.programs
    assert plan.programs <= H200.programs(plan.max_registers, plan.num_warps)


@pytest.mark.parametrize("layout", ["nlc", "ncl"], ids=["channels-last", "narrow"])
def test_pinned_pieces_lose_no_rows(layout: str) -> None:
    # 4 tiles of 8 rows and one of 2
    view = view_in((34, 16, 1 if layout == "nlc" else 3), layout)
    for pieces, held in ((1, 5), (5, 5), (9, 9)):
        with pinned_plan(resident=1, splits=1, block_n=8, pieces=pieces):
            plan = _rows(view, 4, INTERPRETER, 1)
        assert plan is not None and (plan.pieces, plan.streamed_rows(34)) == (held, 0)
    # what streaming leaves to be held is no more than there is
    for pieces, held, streamed in ((1, 1, 26), (4, 4, 2), (5, 5, 0), (9, 5, 0)):
        with pinned_plan(resident=1, splits=1, block_n=8, pieces=pieces, stream=2):
            plan = _rows(view, 4, INTERPRETER, 1)
        assert plan is not None and (plan.pieces, plan.streamed_rows(34)) == (held, streamed)


def test_pinned_pieces_are_bounded() -> None:
    for rows, fits in ((8 * MOST_PIECES, True), (8 * MOST_PIECES + 1, False)):
        with pinned_plan(resident=1, splits=1, block_n=8):
            assert (_rows(_last(rows, 16), 4, INTERPRETER, 1) is not None) == fits


@pytest.mark.parametrize(
    ("view", "blocks"),
    [
        # (pinned block of channels of bf16, whether it begins at multiples of 16 bytes)
        pytest.param(_last(4, 64, 5, 5), [(8, True), (4, False), (2, False)], id="channels-last"),
        pytest.param(view_in((4, 16, 7, 7), "nchw"), [(8, True), (3, False)], id="narrow"),
    ],
)
def test_pinned_block_of_channels_begins_at_an_access(
    view: ChannelView, blocks: list[tuple[int, bool]]
) -> None:
    for block_c, taken in blocks:
        with pinned_plan(resident=1, block_c=block_c):
            assert (_rows(view, 2, INTERPRETER, 1) is not None) == taken
    with pinned_plan(resident=1, block_c=100):
        plan = _rows(view, 2, INTERPRETER, 1)
    # no more channels than there are
    assert plan is not None and plan.block_channels == view.n_channels


@of_both_passes
def test_pinned_rows_are_no_longer_than_a_tile(which: str) -> None:
    for view in (_last(4, 8192), view_in((4, 512, 16, 1), "nchw")):
        with pinned_plan(resident=1, block_c=view.n_channels):
            assert _rows(view, 4, H200, STREAMS[which]) is None
            assert _rows(view, 4, INTERPRETER, STREAMS[which]) is not None


@pytest.mark.parametrize("device", [INTERPRETER, ALONE], ids=["interpreter", "alone"])
@pytest.mark.parametrize("channels", [16, 64], ids=["one-block", "blocks"])
def test_pinned_hybrid_plan_waits_for_nobody_where_none_may(
    channels: int, device: DeviceProfile
) -> None:
    with pinned_plan(resident=1, stream=2):
        plan = _rows(_last(20000, channels), 4, device, 1)
    assert plan is not None and plan.splits == 1 and plan.stream == 2
    assert plan.streamed_rows(20000) > 0


@of_both_passes
@pytest.mark.parametrize("shape", [(6, 8, 8, 8), (6, 16, 7, 7)], ids=["wide", "narrow"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pinned_group_is_launched_only_where_programs_run_together(
    layout: str, shape: tuple[int, ...], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Any = {
        "forward": one_read.ResidentForwardStep,
        "backward": one_read.ResidentBackwardStep,
    }[which]
    x = torch.empty(prod(shape), dtype=torch.bfloat16).view(shape)
    geometry = Geometry((view_in(shape, layout),) * (1 + STREAMS[which]), 2)

    def arguments(splits: int, cooperative: bool, interpreted: bool) -> Any:
        profile = DeviceProfile(132, cooperative=cooperative)
        monkeypatch.setattr(one_read, "device_profile", lambda kernel, device: profile)
        monkeypatch.setattr(one_read, "interpreted", lambda kernel: interpreted)
        with pinned_plan(resident=1, splits=splits):
            return step.arguments_for(x, geometry)

    assert arguments(3, cooperative=False, interpreted=False) is None
    assert arguments(1, cooperative=False, interpreted=False).plan.splits == 1
    assert arguments(3, cooperative=True, interpreted=False).plan.splits == 3
    # schedules of the interpreter let them wait
    assert arguments(3, cooperative=False, interpreted=True).plan.splits == 3
