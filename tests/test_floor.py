"""Plans move what must be moved: 1R + 1W forward, 2R + 1W backward, and a hybrid plan no more again
than it says, within 2 % and in agreement with the planner's bytes.

Metered in the interpreter, in sectors of 32 bytes; what a compiler makes of it is not covered.
"""

from dataclasses import dataclass, field

import pytest
import torch

import tritonbn_kernels
from tests.inputs import INTERPRETED, lay_out, values
from tritonbn_bench.emulated import TrafficReport, cooperative, traffic_meter
from tritonbn_kernels import pinned_plan, record_launches
from tritonbn_kernels.layout import channel_view
from tritonbn_kernels.outlook import Device, outlook
from tritonbn_kernels.plan import INTERPRETER
from tritonbn_kernels.traffic import floor_bytes

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

TOLERANCE = 0.02
# mode, tensors read, tensor written
PASSES = {
    "forward": ("forward_train", ["x"], "y"),
    "backward": ("backward_train", ["dy", "x"], "dx"),
}


@dataclass(frozen=True)
class Floor:
    """A tensor large enough for a sector more per channel and member to be less than 2 %; the share
    of the last member, or its last tile, is ragged. `rows` are what members share of the tensors
    that a hybrid plan reads."""

    kernels: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    pins: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Random values of this shape in this layout."""
        return lay_out(values(self.shape, dtype), self.layout)

    def again(self, members: int) -> float:
        """Share of the tensors read that is read twice, as members of equal rows hold a part."""
        if not self.rows:
            return 0.0
        share, held = -(-self.rows // members), self.pins["block_n"] * self.pins["pieces"]
        shares = [min(share, self.rows - first) for first in range(0, self.rows, share)]
        return sum(max(rows - held, 0) for rows in shares) / self.rows


ONE_READ = {
    "resident": Floor("resident", (50, 2, 16, 32)),
    "narrow": Floor("rows", (19, 64, 7, 7)),
    "channels-last": Floor("rows", (7, 64, 9, 11), "channels_last"),
    "features": Floor("rows", (700, 96)),
}
# large tiles, for the interpreter takes its time by operations; the last step of each member is
# ragged. a row of 48 values ends with a sector, and so do its blocks of 64 bytes
_HYBRID = {"block_n": 64, "pieces": 2, "stream": 2}
_HYBRID_IMAGES = {"block_n": 8, "pieces": 1, "stream": 2}
HYBRID = {
    "channels-last": Floor("rows", (7, 32, 9, 11), "channels_last", _HYBRID, rows=693),
    "features": Floor("rows", (700, 48), "contiguous", _HYBRID, rows=700),
    "narrow": Floor("rows", (46, 32, 7, 7), "contiguous", _HYBRID_IMAGES, rows=46),
}
of_both_dtypes = pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]
)


def _metered(case: Floor, dtype: torch.dtype) -> dict[str, TrafficReport]:
    """Traffic of one forward and one backward pass in training."""
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    x, dy = (case.values(dtype) for _ in range(2))
    gamma, beta, mean, var = torch.rand(4, x.shape[1])
    with cooperative(7):
        with traffic_meter() as forward:
            _, saved = tritonbn_kernels.batch_norm_forward(
                x, gamma, beta, mean, var, None, True, 0.1, 1e-5
            )
        with traffic_meter() as backward:
            tritonbn_kernels.batch_norm_backward(dy, x, gamma, saved, True, True, True, True)
    return {"forward": forward, "backward": backward}


def _planned(case: Floor, dtype: torch.dtype, mode: str) -> int:
    """Bytes of whole tensors that the plan is expected to move, less the per-channel vectors."""
    x = case.values(dtype)
    view, itemsize, channels = channel_view(x), dtype.itemsize, case.shape[1]
    assert view is not None
    expected = outlook(mode, (view,) * 3, itemsize, Device("interpreter", INTERPRETER, 1.0, 1.0))
    return expected.requested_bytes - floor_bytes(mode, 0, channels, itemsize)


def _assert_moved(
    case: Floor, reports: dict[str, TrafficReport], dtype: torch.dtype, times: float
) -> None:
    """What is read was read so many times, what is written once, and both as was planned."""
    for which, (mode, reads, write) in PASSES.items():
        report = reports[which]
        for name in reads:
            assert report.moved(name) == pytest.approx(times, rel=TOLERANCE)
            assert (report.unread(name), report.bytes_written(name)) == (0, 0)
        assert report.moved(write) == pytest.approx(1, abs=TOLERANCE)
        assert (report.unwritten(write), report.bytes_read(write)) == (0, 0)
        assert report.out_of_bounds == []
        tensor = case.values(dtype).nbytes
        moved = sum(report.moved(name) for name in (*reads, write)) * tensor
        assert moved == pytest.approx(_planned(case, dtype, mode), rel=TOLERANCE)


def _assert_of_one_read(case: Floor, dtype: torch.dtype, members: int) -> None:
    # two groups in flight
    pins = {"resident": 1, "splits": members, "programs": 2 * members, **case.pins}
    with pinned_plan(**pins), record_launches() as records:
        reports = _metered(case, dtype)
        _assert_moved(case, reports, dtype, 1 + case.again(members))
    assert [record.kernel for record in records] == [
        f"{case.kernels}_forward_kernel",
        f"{case.kernels}_backward_kernel",
    ]
    for record in records:
        assert record.constants["GROUPED"] == (members > 1)
        assert record.constants.get("STREAM", 0) == case.pins.get("stream", 0)


@of_both_dtypes
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kernels", ["resident", "narrow", "channels-last"])
def test_one_read_plan_moves_every_value_once(
    kernels: str, members: int, dtype: torch.dtype
) -> None:
    _assert_of_one_read(ONE_READ[kernels], dtype, members)


@pytest.mark.parametrize("kernels", ["resident", "narrow"])
def test_large_group_moves_every_value_once(kernels: str) -> None:
    _assert_of_one_read(ONE_READ[kernels], torch.bfloat16, members=8)


@of_both_dtypes
def test_rows_of_features_are_moved_once(dtype: torch.dtype) -> None:
    _assert_of_one_read(ONE_READ["features"], dtype, members=3)


def test_rows_of_features_are_moved_again_only_in_part() -> None:
    _assert_of_one_read(HYBRID["features"], torch.bfloat16, members=3)


@of_both_dtypes
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kernels", ["channels-last", "narrow"])
def test_hybrid_plan_moves_again_only_what_it_does_not_hold(
    kernels: str, members: int, dtype: torch.dtype
) -> None:
    case = HYBRID[kernels]
    assert 0.4 < case.again(members) < 0.95
    _assert_of_one_read(case, dtype, members)


@pytest.mark.parametrize("kernels", ["resident", "narrow", "channels-last"])
@pytest.mark.parametrize("fused", [0, 1], ids=["split", "fused"])
def test_two_read_plan_reads_twice(kernels: str, fused: int) -> None:
    with pinned_plan(resident=0, fused=fused):
        reports = _metered(ONE_READ[kernels], torch.float32)
        _assert_moved(ONE_READ[kernels], reports, torch.float32, 2)
