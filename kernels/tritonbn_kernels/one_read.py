"""The steps of the one-read plans: planned launches of the resident kernels.

Each has the call signature of the two-read step in whose place it stands.
"""

from __future__ import annotations

import torch
import triton.language as tl

from tritonbn_kernels.geometry import Geometry
from tritonbn_kernels.launch import (
    Launch,
    arrival_counters,
    barrier_counters,
    device_index,
    device_profile,
)
from tritonbn_kernels.plan import DeviceProfile
from tritonbn_kernels.residency import ResidentPlan, plan_resident
from tritonbn_kernels.resident import resident_backward_kernel, resident_forward_kernel

# members of a group whose partial results are merged at a time
MERGE_BLOCK = 64
_ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


def _constants(
    geometry: Geometry, plan: ResidentPlan, profile: DeviceProfile, x: torch.Tensor
) -> dict[str, object]:
    return {
        "GROUPED": plan.splits > 1,
        "OFFSETS_64": geometry.offsets_64,
        "DTYPE": _ELEMENTS[x.dtype],
        "WORDS": plan.vector * geometry.itemsize // 4,
        "PACK": 4 // geometry.itemsize,
        "ASM": profile.assembly,
        "BLOCK_C": plan.block_c,
        "BLOCK_V": plan.block_v,
        "PIECES": plan.pieces,
        "BLOCK_K": MERGE_BLOCK,
    }


def _options(plan: ResidentPlan, profile: DeviceProfile) -> dict[str, object]:
    options: dict[str, object] = {}
    if profile.assembly:
        # without the cap several of these kernels take 1.45 times the registers
        options["maxnreg"] = plan.max_registers
    if plan.splits > 1:
        options["launch_cooperative_grid"] = True
    return options


class ResidentForwardStep:
    """Statistics and normalisation in one launch that reads x once."""

    __slots__ = ("_count", "_counters", "_launch", "_partials", "plan")

    def __init__(
        self, x: torch.Tensor, geometry: Geometry, plan: ResidentPlan, cumulative: bool
    ) -> None:
        device = device_index(resident_forward_kernel, x)
        profile = device_profile(resident_forward_kernel, device)
        self.plan = plan
        n_channels = geometry.first.n_channels
        self._launch = Launch(
            resident_forward_kernel,
            device,
            plan.programs,
            (*geometry.sizes(plan), plan.splits, *geometry.strides(plan)),
            {"CUMULATIVE": cumulative, **_constants(geometry, plan, profile, x)},
            plan.num_warps,
            _options(plan, profile),
        )
        self._count = float(geometry.first.count)
        self._partials = plan.splits * 3 * n_channels if plan.splits > 1 else 0
        self._counters = 1 if cumulative else 0

    @staticmethod
    def plan_for(x: torch.Tensor, geometry: Geometry) -> ResidentPlan | None:
        """The plan for `x`, or None where it needs two reads."""
        return _plan_for(resident_forward_kernel, x, geometry, streams=1)

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        y: torch.Tensor | None,
        saved: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        tracked: torch.Tensor | None,
        eps: float,
        momentum: float | None,
    ) -> None:
        partials = arrivals = barriers = None
        if self._partials:
            partials = saved.new_empty(self._partials)
            blocks = self.plan.blocks(saved.shape[1])
            barriers = barrier_counters(resident_forward_kernel, x, blocks)
        if self._counters:
            arrivals = arrival_counters(resident_forward_kernel, x, self._counters)
        self._launch(
            (
                *(x, weight, bias, y, saved, running_mean, running_var, tracked),
                *(partials, arrivals, barriers),
            ),
            self._count,
            float(eps),
            0.0 if momentum is None else float(momentum),
        )


class ResidentBackwardStep:
    """All gradients of training in one launch that reads dy and x once."""

    __slots__ = ("_count", "_launch", "_partials", "plan")

    def __init__(self, x: torch.Tensor, geometry: Geometry, plan: ResidentPlan) -> None:
        device = device_index(resident_backward_kernel, x)
        profile = device_profile(resident_backward_kernel, device)
        self.plan = plan
        view = geometry.first
        self._launch = Launch(
            resident_backward_kernel,
            device,
            plan.programs,
            (*geometry.sizes(plan), plan.splits, *geometry.strides(plan)),
            _constants(geometry, plan, profile, x),
            plan.num_warps,
            _options(plan, profile),
        )
        self._count = float(view.count)
        self._partials = plan.splits * 2 * view.n_channels if plan.splits > 1 else 0

    @staticmethod
    def plan_for(x: torch.Tensor, geometry: Geometry) -> ResidentPlan | None:
        """The plan for `x` and its gradient, or None where they need two reads."""
        return _plan_for(resident_backward_kernel, x, geometry, streams=2)

    def __call__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        dx: torch.Tensor | None,
        dgamma: torch.Tensor | None,
        dbeta: torch.Tensor | None,
        sums: torch.Tensor | None,
    ) -> None:
        partials = barriers = None
        if self._partials:
            partials = saved.new_empty(self._partials)
            blocks = self.plan.blocks(saved.shape[1])
            barriers = barrier_counters(resident_backward_kernel, x, blocks)
        self._launch((dy, x, weight, saved, dx, dgamma, dbeta, partials, barriers), self._count)


def _plan_for(
    kernel: object, x: torch.Tensor, geometry: Geometry, streams: int
) -> ResidentPlan | None:
    if not geometry.aligned or x.dtype not in _ELEMENTS:
        return None
    profile = device_profile(kernel, device_index(kernel, x))
    return plan_resident(geometry.first, geometry.itemsize, profile, geometry.vector, streams)
