"""Launchers of the forward pass: statistics and normalisation, planned once per kind of call."""

from __future__ import annotations

import torch

from tritonbn_kernels.geometry import Geometry, accumulation_dtype, output_view, readable
from tritonbn_kernels.launch import (
    Launch,
    LaunchRefusedError,
    arrival_counters,
    device_index,
    device_profile,
    note_fallback,
)
from tritonbn_kernels.normalize import normalize_kernel
from tritonbn_kernels.one_read import ResidentForwardStep
from tritonbn_kernels.plan import (
    pinned_plan,
    plan_cache,
    plan_pointwise,
    plan_reduction,
    remember,
)
from tritonbn_kernels.statistics import statistics_kernel

# splits that the last program of a channel block merges at a time
MERGE_BLOCK = 16

_calls = plan_cache()


def batch_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised `x`, and the statistics that it was normalised with.

    Args:
        x: `(N, C, *S)`, fp16, bf16, fp32 or fp64, not empty, any strides; read in place where its
            layout is one of the two families, made dense first elsewhere.
        weight, bias: `(C,)` contiguous, or None for ones and zeros; any floating dtype.
        running_mean, running_var: `(C,)` contiguous, both or neither; needed unless training.
        num_batches_tracked: int64, 0-dim, or None.
        training: batch statistics (True) or running statistics.
        momentum: weight of this batch in the running statistics; None for the cumulative average,
            one over `num_batches_tracked` after this batch.
        eps: added to the variance.

    Returns:
        y: shape and dtype of `x`, its strides where `x` is dense.
        saved: `(3, C)` fp32 (fp64 for fp64 `x`): mean in two words whose sum it is, and
            1 / sqrt(variance + eps) with the biased variance.

    Mutates: in training `running_mean`, `running_var` (with the unbiased variance) and
        `num_batches_tracked` (plus one), within the launch that makes the statistics.

    Raises:
        ValueError: no running statistics in eval; momentum None without num_batches_tracked.
    """
    key = (
        x.shape,
        x.stride(),
        x.dtype,
        x.get_device(),
        None if weight is None else weight.dtype,
        None if bias is None else bias.dtype,
        None if running_mean is None else running_mean.dtype,
        None if running_var is None else running_var.dtype,
        num_batches_tracked is None,
        x.data_ptr() & 15 == 0,
        training,
        momentum is None,
        (momentum, eps) if x.dtype is torch.float64 else None,
    )
    call = _calls.get(key)
    if call is None:
        if not training and (running_mean is None or running_var is None):
            raise ValueError("expected running_mean and running_var in evaluation, got None")
        cumulative = training and momentum is None and running_mean is not None
        if cumulative and num_batches_tracked is None:
            raise ValueError("expected num_batches_tracked with momentum None, got None")
        call = ForwardCall(x, training, cumulative, momentum, eps)
        remember(_calls, key, call)
    if call.copies:
        x = readable(x)[0]
    y = torch.empty_like(x)
    saved = x.new_empty((3, call.n_channels), dtype=call.saved_dtype)
    if call.statistics is not None:
        tensors = (x, weight, bias, y, saved, running_mean, running_var, num_batches_tracked)
        try:
            call.statistics(*tensors, eps, momentum)
        except LaunchRefusedError as error:
            note_fallback(call.statistics.plan, error)
            with pinned_plan(resident=0):
                call = ForwardCall(x, training, call.cumulative, momentum, eps)
            remember(_calls, key, call)
            assert call.statistics is not None
            call.statistics(*tensors, eps, momentum)
        # the second launch reads what the first has saved
        running_mean = running_var = None
    if call.normalize is not None:
        call.normalize(x, weight, bias, running_mean, running_var, y, saved, eps)
    return y, saved


def batch_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of every channel.

    Args:
        x: as for `batch_norm_forward`.

    Returns:
        mean, var: `(C,)`, fp32 (fp64 for fp64 `x`).
    """
    x, view = readable(x)
    geometry = Geometry((view, view), x.element_size())
    step = StatisticsStep(x, geometry, SAVE_VARIANCE=True)
    saved = x.new_empty((3, view.n_channels), dtype=accumulation_dtype(x))
    step(x, None, None, None, saved, None, None, None, 0.0, 0.0)
    return saved[0] + saved[1], saved[2]


class ForwardCall:
    """What does not change between forward calls of one kind: plans, launches, sizes."""

    __slots__ = (
        "copies",
        "cumulative",
        "n_channels",
        "normalize",
        "saved_dtype",
        "statistics",
    )

    def __init__(
        self, x: torch.Tensor, training: bool, cumulative: bool, momentum: float | None, eps: float
    ) -> None:
        dense, view = readable(x)
        self.copies = dense is not x
        self.n_channels = view.n_channels
        self.saved_dtype = accumulation_dtype(x)
        self.cumulative = cumulative
        geometry = Geometry(
            (view, output_view(dense)), x.element_size(), dense.data_ptr() & 15 == 0
        )
        # Triton passes floats as fp32: fp64 takes them as constants
        wide = x.dtype is torch.float64
        scalars = {"EPS": eps if wide else None}
        self.statistics: StatisticsStep | ResidentForwardStep | None = None
        self.normalize: NormalizeStep | None = None
        one_read = ResidentForwardStep.arguments_for(dense, geometry) if training else None
        if one_read is not None:
            self.statistics = ResidentForwardStep(dense, geometry, one_read, cumulative)
        elif training:
            scalars["MOMENTUM"] = momentum if wide else None
            self.statistics = StatisticsStep(
                dense, geometry, CUMULATIVE=cumulative, NORMALIZE=True, **scalars
            )
        if self.statistics is None or not self.statistics.plan.fused:
            self.normalize = NormalizeStep(
                dense, geometry, FROM_RUNNING=not training, EPS=scalars["EPS"]
            )


class StatisticsStep:
    """One planned launch of the statistics kernel, normalising too where the plan is fused."""

    __slots__ = ("_count", "_counters", "_launch", "_partials", "plan")

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
            (*geometry.sizes(self.plan), self.plan.splits, *geometry.strides(self.plan)),
            constants,
            self.plan.num_warps,
        )
        self._count = float(geometry.first.count)
        self._partials = self.plan.splits * 3 * n_channels if split else 0
        waits = split or constants["CUMULATIVE"]
        self._counters = 1 + self.plan.blocks(n_channels) if waits else 0

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
        partials = saved.new_empty(self._partials) if self._partials else None
        arrivals = None
        if self._counters:
            arrivals = arrival_counters(statistics_kernel, x, self._counters)
        self._launch(
            (
                *(x, weight, bias),
                *(y, saved, running_mean, running_var, tracked, partials, arrivals),
            ),
            self._count,
            float(eps),
            0.0 if momentum is None else float(momentum),
        )


class NormalizeStep:
    """One planned launch of the normalisation kernel."""

    __slots__ = ("_launch",)

    def __init__(self, x: torch.Tensor, geometry: Geometry, **flags: object) -> None:
        device = device_index(normalize_kernel, x)
        profile = device_profile(normalize_kernel, device)
        plan = plan_pointwise(geometry.first, geometry.itemsize, profile, geometry.vector)
        constants = {
            "EPS": flags["EPS"],
            "FROM_RUNNING": flags["FROM_RUNNING"],
            **geometry.constants(plan, accumulation_dtype(x)),
        }
        del constants["LANES"]
        self._launch = Launch(
            normalize_kernel,
            device,
            plan.grid(geometry.first.n_channels),
            (*geometry.sizes(plan), *geometry.strides(plan)),
            constants,
            plan.num_warps,
        )

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        y: torch.Tensor,
        saved: torch.Tensor,
        eps: float,
    ) -> None:
        self._launch((x, weight, bias, running_mean, running_var, y, saved), float(eps))
