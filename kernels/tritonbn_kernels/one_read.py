"""The steps of the one-read plans: planned launches of the resident kernels.

Each has the call signature of the two-read step in whose place it stands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from tritonbn_kernels.fused import UNFUSED, Fused, run_of
from tritonbn_kernels.geometry import Geometry
from tritonbn_kernels.launch import (
    Launch,
    Ready,
    arrival_counters,
    barrier_counters,
    device_index,
    device_profile,
    interpreted,
)
from tritonbn_kernels.plan import DeviceProfile, pinned_by_block, power_of_two_at_least
from tritonbn_kernels.residency import ResidentPlan
from tritonbn_kernels.resident import resident_backward_kernel, resident_forward_kernel
from tritonbn_kernels.row_plans import RowsPlan, plan_one_read
from tritonbn_kernels.rows import rows_backward_kernel, rows_forward_kernel

# partial results that a program holds while it merges: channels times members, and members. so many
# are on their way from L2 at a time
_MERGE_VALUES = 1024
_MERGE_MEMBERS = 128
_ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


class _Arguments(NamedTuple):
    """What tells a launch over planes from one over rows: kernel, plan, integers, constants."""

    kernel: Any
    plan: ResidentPlan | RowsPlan
    integers: tuple[int, ...]
    constants: dict[str, object]


def _arguments(
    planes: Any, rows: Any, x: torch.Tensor, geometry: Geometry, streams: int, mask_run: int
) -> _Arguments | None:
    """The one-read launch for `x`, or None where it needs two reads; `mask_run`: elements to a byte
    of a mask that it reads or writes, 0 without one."""
    if not geometry.aligned or x.dtype not in _ELEMENTS:
        return None
    profile = device_profile(planes, device_index(planes, x))
    plan = plan_one_read(geometry.views, geometry.itemsize, profile, streams)
    # programs that are not all running would wait for ever; in the interpreter only tests, which
    # pin by a block, bring a schedule that lets them run
    together = profile.cooperative or (interpreted(planes) and pinned_by_block("splits"))
    if plan is not None and plan.splits > 1 and not together:
        return None
    if plan is not None and mask_run and not _masks_by(mask_run, plan, geometry.itemsize):
        return None
    if isinstance(plan, RowsPlan):
        return _rows_arguments(rows, plan, geometry, profile, x)
    return None if plan is None else _planes_arguments(planes, plan, geometry, profile, x)


def _masks_by(mask_run: int, plan: ResidentPlan | RowsPlan, itemsize: int) -> bool:
    """Whether an access of the plan is one byte of a mask: the kernels know no other masks."""
    rows = isinstance(plan, RowsPlan)
    vector = plan.vector_words * 4 // itemsize if rows else plan.vector
    return mask_run == vector == run_of(itemsize)


def _shared(
    geometry: Geometry,
    plan: ResidentPlan | RowsPlan,
    profile: DeviceProfile,
    x: torch.Tensor,
    block_c: int,
) -> dict[str, object]:
    return {
        "BLOCK_C": block_c,
        "GROUPED": plan.splits > 1,
        "DTYPE": _ELEMENTS[x.dtype],
        "PACK": 4 // geometry.itemsize,
        "ASM": profile.assembly,
        "PIECES": plan.pieces,
        "BLOCK_K": max(1, min(_MERGE_MEMBERS, _MERGE_VALUES // block_c)),
    }


def _planes_arguments(
    kernel: Any, plan: ResidentPlan, geometry: Geometry, profile: DeviceProfile, x: torch.Tensor
) -> _Arguments:
    constants = {
        **_shared(geometry, plan, profile, x, plan.block_c),
        "OFFSETS_64": geometry.offsets_64,
        "WORDS": plan.vector * geometry.itemsize // 4,
        "BLOCK_V": plan.block_v,
    }
    integers = (*geometry.sizes(plan), plan.splits, *geometry.strides(plan))
    return _Arguments(kernel, plan, integers, constants)


def _rows_arguments(
    kernel: Any, plan: RowsPlan, geometry: Geometry, profile: DeviceProfile, x: torch.Tensor
) -> _Arguments:
    view = geometry.first
    constants = {
        **_shared(geometry, plan, profile, x, power_of_two_at_least(plan.block_channels)),
        "VECTOR_WORDS": plan.vector_words,
        "BLOCK_S": plan.block_s,
        "BLOCK_N": plan.block_n,
        "BLOCK_W": plan.block_w,
        "STREAM": plan.stream,
    }
    integers = (
        *(view.n_channels, view.n_outer, view.n_inner),
        *(plan.rows_per_split, plan.splits, plan.block_channels),
        *(one.stride_outer for one in geometry.views),
    )
    return _Arguments(kernel, plan, integers, constants)


def _launch(arguments: _Arguments, x: torch.Tensor, **flags: object) -> Launch:
    device = device_index(arguments.kernel, x)
    options: dict[str, object] = {}
    if device_profile(arguments.kernel, device).assembly:
        # without the cap several of these kernels take 1.45 times the registers
        options["maxnreg"] = arguments.plan.max_registers
    if arguments.plan.splits > 1:
        options["launch_cooperative_grid"] = True
    return Launch(
        arguments.kernel,
        device,
        arguments.plan.programs,
        arguments.integers,
        {**arguments.constants, **flags},
        arguments.plan.num_warps,
        options,
    )


class ResidentForwardStep:
    """Statistics and normalisation in one launch that reads x once."""

    __slots__ = ("_count", "_counters", "_kernel", "_launch", "_partials", "plan")

    def __init__(
        self,
        x: torch.Tensor,
        geometry: Geometry,
        arguments: _Arguments,
        cumulative: bool,
        fused: Fused = UNFUSED,
    ) -> None:
        self.plan = arguments.plan
        self._kernel = arguments.kernel
        self._launch = _launch(arguments, x, CUMULATIVE=cumulative, **fused.constants)
        n_channels = geometry.first.n_channels
        self._count = float(geometry.first.count)
        self._partials = self.plan.splits * 3 * n_channels if self.plan.splits > 1 else 0
        self._counters = 1 if cumulative else 0

    @staticmethod
    def arguments_for(x: torch.Tensor, geometry: Geometry, mask_run: int = 0) -> _Arguments | None:
        """The launch for `x`, or None where it needs two reads."""
        kernels = (resident_forward_kernel, rows_forward_kernel)
        return _arguments(*kernels, x, geometry, 1, mask_run)

    def __call__(
        self, tensors: tuple[torch.Tensor | None, ...], eps: float, momentum: float | None
    ) -> None:
        """Launch with x, weight, bias, y, saved, running_mean, running_var, tracked, residual and
        mask."""
        partials = arrivals = barriers = None
        if self._partials or self._counters:
            x, saved = tensors[0], tensors[4]
            assert x is not None and saved is not None
            if self._partials:
                partials = saved.new_empty(self._partials)
                blocks = self.plan.blocks(saved.shape[1])
                barriers = barrier_counters(self._kernel, x, blocks)
            if self._counters:
                arrivals = arrival_counters(self._kernel, x, self._counters)
        self._launch(
            (*tensors, partials, arrivals, barriers),
            self._count,
            eps,
            0.0 if momentum is None else momentum,
        )

    def ready(
        self, vectors: tuple[torch.Tensor | None, ...], eps: float, momentum: float | None
    ) -> Ready | None:
        """As `StatisticsStep.ready`."""
        if self._partials or self._counters:
            return None
        floats = (self._count, eps, 0.0 if momentum is None else momentum)
        return self._launch.ready((*vectors, None, None, None), *floats)


class ResidentBackwardStep:
    """All gradients of training in one launch that reads dy and x once."""

    __slots__ = ("_count", "_kernel", "_launch", "_partials", "plan")

    def __init__(
        self, x: torch.Tensor, geometry: Geometry, arguments: _Arguments, fused: Fused = UNFUSED
    ) -> None:
        self.plan = arguments.plan
        self._kernel = arguments.kernel
        self._launch = _launch(arguments, x, **fused.constants)
        view = geometry.first
        self._count = float(view.count)
        self._partials = self.plan.splits * 2 * view.n_channels if self.plan.splits > 1 else 0

    @staticmethod
    def arguments_for(x: torch.Tensor, geometry: Geometry, mask_run: int = 0) -> _Arguments | None:
        """The launch for `x` and its gradient, or None where they need two reads."""
        kernels = (resident_backward_kernel, rows_backward_kernel)
        return _arguments(*kernels, x, geometry, 2, mask_run)

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], sums: torch.Tensor | None) -> None:
        """As `SumsStep`, but that no sums are left for another launch."""
        partials = barriers = None
        if self._partials:
            x, saved = tensors[1], tensors[4]
            assert x is not None and saved is not None
            partials = saved.new_empty(self._partials)
            blocks = self.plan.blocks(saved.shape[1])
            barriers = barrier_counters(self._kernel, x, blocks)
        self._launch((*tensors, partials, barriers), self._count)

    def ready(self) -> Ready | None:
        """As `SumsStep.ready`."""
        return None if self._partials else self._launch.ready((None,) * 4, self._count)
