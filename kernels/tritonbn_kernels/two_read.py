"""The steps of the two-read plans: planned launches of the kernels that read x once more to finish.

Each is planned once and launched with the tensors of a call.
"""

from __future__ import annotations

import torch

from tritonbn_kernels.fused import UNFUSED
from tritonbn_kernels.geometry import Geometry, accumulation_dtype
from tritonbn_kernels.gradients import gradients_kernel, input_gradient_kernel
from tritonbn_kernels.launch import (
    Launch,
    Ready,
    arrival_counters,
    device_index,
    device_profile,
)
from tritonbn_kernels.normalize import normalize_kernel
from tritonbn_kernels.plan import plan_pointwise, plan_reduction
from tritonbn_kernels.statistics import statistics_kernel

# splits that the last program of a channel block merges at a time
MERGE_BLOCK = 16


class StatisticsStep:
    """One planned launch of the statistics kernel, normalising too where the plan is fused."""

    __slots__ = ("_counters", "_launch", "_partials", "plan")

    def __init__(self, x: torch.Tensor, geometry: Geometry, **flags: object) -> None:
        device = device_index(statistics_kernel, x)
        profile = device_profile(statistics_kernel, device)
        self.plan = plan_reduction(geometry.first, geometry.itemsize, profile, geometry.vector)
        split = self.plan.splits > 1
        constants = {
            "EPS": None,
            "MOMENTUM": None,
            "CUMULATIVE": False,
            "SAVE_VARIANCE": False,
            "RUN": 0,
            **UNFUSED.constants,
            **flags,
            "NORMALIZE": bool(flags.get("NORMALIZE")) and self.plan.fused,
            "SPLIT": split,
            **geometry.constants(self.plan, accumulation_dtype(x)),
            "BLOCK_K": MERGE_BLOCK,
        }
        n_channels = geometry.first.n_channels
        self._launch = Launch(
            statistics_kernel,
            device,
            self.plan.grid(n_channels),
            (
                *(*geometry.sizes(self.plan), self.plan.splits, *geometry.strides(self.plan)),
                geometry.first.count,
            ),
            constants,
            self.plan.num_warps,
        )
        self._partials = self.plan.splits * 3 * n_channels if split else 0
        waits = split or constants["CUMULATIVE"]
        self._counters = 1 + self.plan.blocks(n_channels) if waits else 0

    def __call__(
        self, tensors: tuple[torch.Tensor | None, ...], eps: float, momentum: float | None
    ) -> None:
        """Launch with x, weight, bias, y, saved, running_mean, running_var, tracked, residual and
        mask."""
        partials = arrivals = None
        if self._counters:
            x, saved = tensors[0], tensors[4]
            assert x is not None and saved is not None
            if self._partials:
                partials = saved.new_empty(self._partials)
            arrivals = arrival_counters(statistics_kernel, x, self._counters)
        self._launch((*tensors, partials, arrivals), eps, 0.0 if momentum is None else momentum)

    def ready(
        self, vectors: tuple[torch.Tensor | None, ...], eps: float, momentum: float | None
    ) -> Ready | None:
        """`Launch.ready` after x, weight, bias, y and saved; None where a launch needs other
        memory besides. `vectors`: running_mean, running_var, tracked, residual and mask."""
        if self._counters:
            return None
        floats = (eps, 0.0 if momentum is None else momentum)
        return self._launch.ready((*vectors, None, None), *floats)


class NormalizeStep:
    """One planned launch of the normalisation kernel."""

    __slots__ = ("_launch",)

    def __init__(self, x: torch.Tensor, geometry: Geometry, **flags: object) -> None:
        device = device_index(normalize_kernel, x)
        profile = device_profile(normalize_kernel, device)
        plan = plan_pointwise(geometry.first, geometry.itemsize, profile, geometry.vector)
        constants = {
            **flags,
            **geometry.constants(plan, accumulation_dtype(x)),
        }
        self._launch = Launch(
            normalize_kernel,
            device,
            plan.grid(geometry.first.n_channels),
            (*geometry.sizes(plan), *geometry.strides(plan)),
            constants,
            plan.num_warps,
        )

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], eps: float) -> None:
        """Launch with x, weight, bias, running_mean, running_var, y, saved, residual and mask."""
        self._launch(tensors, eps)


class SumsStep:
    """One planned launch of the gradients kernel."""

    __slots__ = ("_counters", "_launch", "_partials", "plan")

    def __init__(
        self, x: torch.Tensor, geometry: Geometry, training: bool, flags: dict[str, object]
    ) -> None:
        device = device_index(gradients_kernel, x)
        profile = device_profile(gradients_kernel, device)
        view = geometry.first
        sides = 1 if flags["SIDE"] else 0
        self.plan = plan_reduction(view, geometry.itemsize, profile, geometry.vector, sides)
        split = self.plan.splits > 1
        constants = {
            "TRAINING": training,
            "SPLIT": split,
            **flags,
            **geometry.constants(self.plan, accumulation_dtype(x)),
            "BLOCK_K": MERGE_BLOCK,
        }
        self._launch = Launch(
            gradients_kernel,
            device,
            self.plan.grid(view.n_channels),
            (
                *(*geometry.sizes(self.plan), self.plan.splits, *geometry.strides(self.plan)),
                view.count,
            ),
            constants,
            self.plan.num_warps,
        )
        self._partials = self.plan.splits * 2 * view.n_channels if split else 0
        self._counters = 1 + self.plan.blocks(view.n_channels) if split else 0

    def __call__(self, tensors: tuple[torch.Tensor | None, ...], sums: torch.Tensor | None) -> None:
        """Launch with dy, x, weight, bias, saved, dx, dgamma, dbeta, side and dresidual."""
        partials = arrivals = None
        if self._partials:
            x, saved = tensors[1], tensors[4]
            assert x is not None and saved is not None
            partials = saved.new_empty(self._partials)
            arrivals = arrival_counters(gradients_kernel, x, self._counters)
        self._launch((*tensors, sums, partials, arrivals))

    def ready(self) -> Ready | None:
        """`Launch.ready` after dy, x, weight, bias, saved, dx, dgamma and dbeta; None where a
        launch needs other memory besides."""
        return None if self._partials else self._launch.ready((None,) * 5)


class InputGradientStep:
    """One planned launch of the input gradient kernel."""

    __slots__ = ("_launch",)

    def __init__(
        self, x: torch.Tensor, geometry: Geometry, training: bool, flags: dict[str, object]
    ) -> None:
        device = device_index(input_gradient_kernel, x)
        profile = device_profile(input_gradient_kernel, device)
        view = geometry.first
        plan = plan_pointwise(view, geometry.itemsize, profile, geometry.vector)
        constants = {
            "TRAINING": training,
            **flags,
            **geometry.constants(plan, accumulation_dtype(x)),
        }
        self._launch = Launch(
            input_gradient_kernel,
            device,
            plan.grid(view.n_channels),
            (*geometry.sizes(plan), *geometry.strides(plan)),
            constants,
            plan.num_warps,
        )

    def __call__(self, tensors: tuple[torch.Tensor | None, ...]) -> None:
        """Launch with dy, x, weight, bias, saved, side, sums and dx."""
        self._launch(tensors)
