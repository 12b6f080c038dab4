"""Bytes that each family of plans moves, counted in Triton's interpreter: a second read shows.

Sectors of 32 bytes of every large tensor, in units of the tensor: 1 is the floor. Must run in a
process with TRITON_INTERPRET=1, apart from what compiles. Counts are those of the kernel's own
accesses; they do not depend on the version of Triton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

import tritonbn_kernels
from tritonbn_kernels.activation_names import activation_of, side_of
from tritonbn_kernels.traffic import floor_bytes

from ..emulated import TrafficReport, cooperative, mend_interpreter, traffic_meter
from ..emulated.meter import SECTOR_BYTES
from .budget import Numbers
from .plans import CHANNELS_FIRST, CHANNELS_LAST, EPS, Case, is_chosen

__all__ = ["PLACE", "PLANS", "Plan", "faults_of", "figures_of", "measure"]

# stands where the other budgets name a target
PLACE = "interpreter"
SEED = 7
# of two groups in flight
GROUPS = 2
# a tensor with less than this share of the traffic of x holds sums, not data
SMALL = 0.05


@dataclass(frozen=True)
class Plan:
    """A plan forced on a tensor large enough for a sector more per channel to be no matter.

    pins: of `pinned_plan`; members: programs that share a channel in a one-read plan.
    """

    name: str
    case: Case
    pins: Mapping[str, int] = field(default_factory=dict)
    members: int = 0

    @property
    def all_pins(self) -> dict[str, int]:
        """`pins` with those of a one-read plan of so many members."""
        if not self.members:
            return dict(self.pins)
        held = {"resident": 1, "splits": self.members, "programs": GROUPS * self.members}
        return {**held, **self.pins}

    @property
    def title(self) -> str:
        """Identifies the plan in tables."""
        return f"{self.name}, {self.case.name}"


_PLANES = ((50, 2, 16, 32), CHANNELS_FIRST)
_NARROW = ((19, 64, 7, 7), CHANNELS_FIRST)
_ROWS = ((7, 64, 9, 11), CHANNELS_LAST)
_HYBRID = ((7, 32, 9, 11), CHANNELS_LAST)
_ADD_RELU: dict[str, Any] = {"activation": "relu", "residual": True}
_SPLIT, _TWICE = {"resident": 0, "fused": 0}, {"resident": 0, "fused": 1}
_STREAMED = {"block_n": 64, "pieces": 2, "stream": 2}
_STREAMED_IMAGES = {"block_n": 8, "pieces": 1, "stream": 2}
PLANS = (
    Plan("planes", Case(*_PLANES, "bf16"), members=3),
    Plan("planes, alone", Case(*_PLANES, "fp32"), members=1),
    Plan("planes", Case(*_PLANES, "bf16", activation="silu"), members=3),
    Plan("planes", Case(*_PLANES, "bf16", **_ADD_RELU), members=3),
    Plan("narrow", Case(*_NARROW, "bf16"), members=3),
    Plan("narrow", Case(*_NARROW, "fp32", **_ADD_RELU), members=1),
    Plan("rows", Case(*_ROWS, "bf16"), members=3),
    Plan("rows, alone", Case(*_ROWS, "fp32"), members=1),
    Plan("rows", Case(*_ROWS, "bf16", activation="silu", residual=True), members=3),
    Plan("rows", Case(*_ROWS, "bf16", **_ADD_RELU), members=3),
    Plan("features", Case((700, 96), CHANNELS_LAST, "bf16"), members=3),
    Plan("hybrid", Case(*_HYBRID, "bf16"), _STREAMED, members=3),
    Plan("hybrid", Case(*_HYBRID, "bf16", **_ADD_RELU), _STREAMED, members=3),
    Plan("hybrid", Case((46, 32, 7, 7), CHANNELS_FIRST, "bf16"), _STREAMED_IMAGES, members=3),
    Plan("two reads, one launch", Case(*_PLANES, "bf16"), _TWICE),
    Plan("two reads, one launch", Case(*_ROWS, "bf16"), _TWICE),
    Plan("two reads, two launches", Case(*_PLANES, "bf16"), _SPLIT),
    Plan("two reads, two launches", Case(*_ROWS, "fp32", **_ADD_RELU), _SPLIT),
)


def _metered(plan: Plan) -> Iterator[tuple[str, TrafficReport, set[str]]]:
    """(mode, traffic, tensors that must be written whole) of both passes of training."""
    case = plan.case
    x, dy, residual = (case.make().zero_() for _ in range(3))
    gamma, beta, mean, var = torch.ones(4, case.shape[1])
    activation = activation_of(case.activation)
    with (
        tritonbn_kernels.pinned_plan(**plan.all_pins),
        cooperative(SEED),
    ):
        with traffic_meter() as forward:
            _, saved, mask = tritonbn_kernels.fused_forward(
                x, gamma, beta, mean, var, None, True, 0.1, EPS, activation,
                residual if case.residual else None, True,
            )  # fmt: skip
        yield "forward_train", forward, {"y"} | ({"mask"} if mask is not None else set())
        side = side_of(case.activation or "identity", case.residual)
        with traffic_meter() as backward:
            tritonbn_kernels.fused_backward(
                dy, x, gamma, saved, True, True, True, True, activation, beta,
                residual if side == "residual" else None, mask, case.residual,
            )  # fmt: skip
        yield "backward_train", backward, {"dx"} | ({"dresidual"} if side else set())


def figures_of(report: TrafficReport, case: Case, mode: str, outputs: set[str]) -> Numbers:
    """What the budget keeps of one pass.

    By tensor of data the times it was moved, all of them together over the floor, elements of
    `outputs` never written, lanes outside every tensor.
    """
    data = {
        name: report.sectors(name) * SECTOR_BYTES
        for name in report.names
        if report.sectors(name) * SECTOR_BYTES > SMALL * case.tensor_bytes
    }
    least = floor_bytes(
        mode,
        prod(case.shape),
        case.shape[1],
        case.itemsize,
        residual=case.residual,
        activation=case.activation or "identity",
    )
    every = sum(report.sectors(name) for name in report.names) * SECTOR_BYTES
    found: Numbers = {f"moved {name}": round(report.moved(name), 4) for name in sorted(data)}
    found["all over floor"] = round(every / least, 4)
    for name in sorted(outputs):
        # an output that no kernel was given is not written at all
        missing = report.unwritten(name) if name in report.names else 1
        if missing:
            found[f"unwritten {name}"] = missing
    if report.out_of_bounds:
        found["out of bounds"] = sum(access.lanes for access in report.out_of_bounds)
    return found


def faults_of(measured: Mapping[str, Numbers]) -> Iterator[str]:
    """Lines on what no budget allows: memory that is not written, or not ours."""
    for key, figures in measured.items():
        for name, value in figures.items():
            if name.startswith("unwritten"):
                yield f"{key}: {value} elements of {name.split()[1]} never written"
            elif name == "out of bounds":
                yield f"{key}: {value} accesses outside every tensor"


def measure(only: Sequence[str] = ()) -> dict[str, Numbers]:
    """Figures by `interpreter case | pass` of the plans that `plans.is_chosen`.

    Raises:
        RuntimeError: TRITON_INTERPRET was not set when the kernels were imported.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("expected TRITON_INTERPRET=1: traffic is counted in the interpreter")
    mend_interpreter()
    measured = {}
    for plan in PLANS:
        if is_chosen(plan.title, only):
            for mode, report, outputs in _metered(plan):
                key = f"{PLACE} {plan.title} | {mode.replace('_', ' ')}"
                measured[key] = figures_of(report, plan.case, mode, outputs)
    return measured
