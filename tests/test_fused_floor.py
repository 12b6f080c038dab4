"""A fused residual and activation cost their own bytes and no others: with a residual and relu
2R + 1W and a mask forward, 2R + 2W and the mask backward; with an activation alone 1R + 1W and
2R + 1W. Within 2 %, in one launch each.

Tensors are metered in sectors of 32 bytes. The mask is metered in bytes: a strip of 128 bytes of a
row has 8 bytes of mask, so that up to four strips share a sector of it.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from _pytest.mark import MarkDecorator
from torch import Tensor

import tritonbn_kernels
from tests.checks import EPS, MASKED
from tests.inputs import INTERPRETED
from tests.test_floor import HYBRID, ONE_READ, TOLERANCE, Floor, of_both_dtypes
from tritonbn_bench.emulated import TrafficReport, cooperative, traffic_meter
from tritonbn_kernels import pinned_plan, record_launches

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

CASES = {**ONE_READ, **{f"hybrid-{name}": case for name, case in HYBRID.items()}}


def of_every_case(name: str, turns: list[Any]) -> MarkDecorator:
    """Parametrise over all cases, `name` over `turns` in turn: a hybrid case has another than the
    case of the same kernels that holds all."""
    cases = [
        pytest.param(case, turns[place % len(turns)], id=f"{title}-{turns[place % len(turns)]}")
        for place, (title, case) in enumerate(CASES.items())
    ]
    return pytest.mark.parametrize(("case", name), cases)


@dataclass(frozen=True)
class Moved:
    """Traffic of one forward and one backward pass, and the bytes of the mask between them."""

    forward: TrafficReport
    backward: TrafficReport
    mask: Tensor | None


def _metered(case: Floor, dtype: torch.dtype, activation: str, with_residual: bool) -> Moved:
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    x, dy, residual = (case.values(dtype) for _ in range(3))
    gamma, beta, mean, var = torch.rand(4, x.shape[1])
    keeps_mask = with_residual and activation in MASKED
    pair = (activation, 0.0)
    with cooperative(7):
        with traffic_meter() as forward:
            _, saved, mask = tritonbn_kernels.fused_forward(
                x, gamma, beta, mean, var, None, True, 0.1, EPS, activation=pair,
                residual=residual if with_residual else None, keeps_mask=keeps_mask,
            )  # fmt: skip
        with traffic_meter() as backward:
            tritonbn_kernels.fused_backward(
                dy, x, gamma, saved, True, True, True, True, activation=pair,
                bias=None if keeps_mask else beta, mask=mask, need_dresidual=with_residual,
            )  # fmt: skip
    return Moved(forward, backward, mask)


def _assert_read(report: TrafficReport, times: dict[str, float]) -> None:
    for name, expected in times.items():
        assert report.moved(name) == pytest.approx(expected, rel=TOLERANCE), name
        assert (report.unread(name), report.bytes_written(name)) == (0, 0), name


def _assert_written_once(report: TrafficReport, *names: str) -> None:
    for name in names:
        assert report.moved(name) == pytest.approx(1, rel=TOLERANCE), name
        assert (report.unwritten(name), report.bytes_read(name)) == (0, 0), name


def _assert_large(report: TrafficReport, names: set[str], case: Floor, dtype: torch.dtype) -> None:
    """Only these tensors are larger than what is kept per channel and member."""
    tensor = case.values(dtype).nbytes
    assert report.out_of_bounds == []
    large = {
        name
        for name in report.names
        if report.bytes_read(name) + report.bytes_written(name) > tensor // 8
    }
    assert large == names


def _pins(case: Floor, members: int) -> dict[str, int]:
    # two groups in flight
    return {"resident": 1, "splits": members, "programs": 2 * members, **case.pins}


def _kernels(case: Floor) -> list[str]:
    return [f"{case.kernels}_forward_kernel", f"{case.kernels}_backward_kernel"]


@of_both_dtypes
@of_every_case("activation", ["relu", "silu"])
def test_activation_moves_nothing_more(case: Floor, activation: str, dtype: torch.dtype) -> None:
    again = 1 + case.again(3)
    with pinned_plan(**_pins(case, 3)), record_launches() as launches:
        moved = _metered(case, dtype, activation, with_residual=False)
    assert [launch.kernel for launch in launches] == _kernels(case)
    _assert_read(moved.forward, {"x": again})
    _assert_written_once(moved.forward, "y")
    _assert_large(moved.forward, {"x", "y"}, case, dtype)
    _assert_read(moved.backward, {"x": again, "dy": again})
    _assert_written_once(moved.backward, "dx")
    _assert_large(moved.backward, {"x", "dy", "dx"}, case, dtype)


@of_both_dtypes
@of_every_case("members", [1, 3])
def test_residual_and_relu_move_one_tensor_and_a_mask_more(
    case: Floor, members: int, dtype: torch.dtype
) -> None:
    again = 1 + case.again(members)
    with pinned_plan(**_pins(case, members)), record_launches() as launches:
        moved = _metered(case, dtype, "relu", with_residual=True)
    assert [launch.kernel for launch in launches] == _kernels(case)
    tensor, mask = case.values(dtype).nbytes, moved.mask
    assert mask is not None and mask.nbytes == tensor // 16
    # the residual is no part of the statistics: also a hybrid plan reads it once
    _assert_read(moved.forward, {"x": again, "residual": 1})
    _assert_written_once(moved.forward, "y")
    _assert_large(moved.forward, {"x", "residual", "y"}, case, dtype)
    assert (moved.forward.bytes_written("mask"), moved.forward.bytes_read("mask")) == (
        mask.nbytes,
        0,
    )
    _assert_read(moved.backward, {"x": again, "dy": again})
    _assert_written_once(moved.backward, "dx", "dresidual")
    assert moved.backward.bytes_read("side") == pytest.approx(again * mask.nbytes, rel=TOLERANCE)
    assert (moved.backward.unread("side"), moved.backward.bytes_written("side")) == (0, 0)
    _assert_total(moved, tensor, again)


def _assert_total(moved: Moved, tensor: int, again: float) -> None:
    """All whole tensors together, in units of one: what the module's docstring promises."""
    of_mask = 1 / 16
    for report, names, mask, expected in (
        (moved.forward, ("x", "residual", "y"), "mask", 1 + again + 1 + of_mask),
        (moved.backward, ("x", "dy", "dx", "dresidual"), "side", 2 * again + 2 + again * of_mask),
    ):
        bytes_of_mask = report.bytes_read(mask) + report.bytes_written(mask)
        found = sum(report.moved(name) for name in names) + bytes_of_mask / tensor
        assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("resident", 0), ("resident", 1), ("narrow", 0), ("channels-last", 1)],
    ids=["resident-split", "resident-fused", "narrow-split", "channels-last-fused"],
)
def test_two_read_plan_reads_the_residual_once(name: str, fused: int) -> None:
    case = ONE_READ[name]
    with pinned_plan(resident=0, fused=fused):
        moved = _metered(case, torch.float32, "relu", with_residual=True)
    _assert_read(moved.forward, {"x": 2, "residual": 1})
    _assert_written_once(moved.forward, "y")
    _assert_read(moved.backward, {"x": 2, "dy": 2})
    _assert_written_once(moved.backward, "dx", "dresidual")
