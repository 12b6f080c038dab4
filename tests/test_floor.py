"""One-read plans move what must be moved: 1R + 1W forward, 2R + 1W backward, within 2 %.

Metered in the interpreter, in sectors of 32 bytes; what a compiler makes of it is not covered.
"""

import pytest
import torch

import tritonbn_kernels
from tests.inputs import INTERPRETED, values
from tritonbn_bench.emulated import TrafficReport, cooperative, traffic_meter
from tritonbn_kernels import pinned_plan, record_launches

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

TOLERANCE = 0.02
# large enough for a sector more per channel and member to be less than 2 %; the share of the last
# member, or its last tile, is ragged
SHAPES = {"resident": (50, 3, 16, 32), "rows": (19, 64, 7, 7)}


def _metered(kernels: str, dtype: torch.dtype) -> tuple[TrafficReport, TrafficReport]:
    """Traffic of one forward and one backward pass in training."""
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    x, dy = (values(SHAPES[kernels], dtype) for _ in range(2))
    gamma, beta, mean, var = torch.rand(4, x.shape[1])
    with cooperative(7):
        with traffic_meter() as forward:
            _, saved = tritonbn_kernels.batch_norm_forward(
                x, gamma, beta, mean, var, None, True, 0.1, 1e-5
            )
        with traffic_meter() as backward:
            tritonbn_kernels.batch_norm_backward(dy, x, gamma, saved, True, True, True, True)
    return forward, backward


@pytest.mark.parametrize("dtype", [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, id="bf16"),
])  # fmt: skip
@pytest.mark.parametrize("members", [1, 2, 3, 8])
@pytest.mark.parametrize("kernels", SHAPES)
def test_one_read_plan_moves_every_value_once(
    kernels: str, members: int, dtype: torch.dtype
) -> None:
    # two groups in flight
    pins = {"splits": members, "programs": 2 * members}
    with pinned_plan(resident=1, **pins), record_launches() as records:
        forward, backward = _metered(kernels, dtype)
    assert [record.kernel for record in records] == [
        f"{kernels}_forward_kernel",
        f"{kernels}_backward_kernel",
    ]
    assert all(record.constants["GROUPED"] == (members > 1) for record in records)
    for report, reads, writes in ((forward, ["x"], ["y"]), (backward, ["dy", "x"], ["dx"])):
        for name in reads:
            assert report.moved(name) == pytest.approx(1, abs=TOLERANCE)
            assert (report.unread(name), report.bytes_written(name)) == (0, 0)
        for name in writes:
            assert report.moved(name) == pytest.approx(1, abs=TOLERANCE)
            assert (report.unwritten(name), report.bytes_read(name)) == (0, 0)
        assert report.out_of_bounds == []


@pytest.mark.parametrize("kernels", SHAPES)
@pytest.mark.parametrize("fused", [0, 1], ids=["split", "fused"])
def test_two_read_plan_reads_twice(kernels: str, fused: int) -> None:
    with pinned_plan(resident=0, fused=fused):
        forward, backward = _metered(kernels, torch.float32)
    for report, reads, write in ((forward, ["x"], "y"), (backward, ["dy", "x"], "dx")):
        for name in reads:
            assert report.moved(name) == pytest.approx(2, abs=2 * TOLERANCE)
        assert report.moved(write) == pytest.approx(1, abs=TOLERANCE)
        assert report.unwritten(write) == 0
        assert report.out_of_bounds == []
