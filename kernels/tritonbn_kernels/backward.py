"""Launchers of the backward pass: sums and input gradient, planned once per kind of call."""

from __future__ import annotations

import torch

from tritonbn_kernels.geometry import (
    Geometry,
    accumulation_dtype,
    like_grouped,
    output_view,
    readable,
)
from tritonbn_kernels.gradients import gradients_kernel, input_gradient_kernel
from tritonbn_kernels.launch import (
    Launch,
    LaunchRefusedError,
    arrival_counters,
    device_index,
    device_profile,
    note_fallback,
)
from tritonbn_kernels.layout import ChannelView, channel_view
from tritonbn_kernels.one_read import ResidentBackwardStep
from tritonbn_kernels.plan import (
    pinned_plan,
    plan_cache,
    plan_pointwise,
    plan_reduction,
    remember,
)

# splits that the last program of a channel block adds at a time
MERGE_BLOCK = 16

_calls = plan_cache()


def batch_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    saved: torch.Tensor,
    training: bool,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `batch_norm_forward`, those that are asked for.

    Args:
        dy: shape and dtype of `x`, any strides; read in place where it groups its elements as `x`
            does, else copied once.
        x, weight, training: as given to the forward pass.
        saved: `(3, C)` as the forward pass returned it.

    Returns:
        dx: shape, dtype and strides of the forward pass's `y`, or None.
        dgamma, dbeta: `(C,)` in the dtype of `weight`, else of `saved`, or None.
    """
    key = (
        x.shape,
        x.stride(),
        dy.stride(),
        x.dtype,
        x.get_device(),
        (x.data_ptr() | dy.data_ptr()) & 15 == 0,
        None if weight is None else weight.dtype,
        training,
        need_dx,
        need_dgamma,
        need_dbeta,
    )
    call = _calls.get(key)
    if call is None:
        call = BackwardCall(dy, x, training, need_dx, need_dgamma or need_dbeta)
        remember(_calls, key, call)
    if call.copies_x:
        x = readable(x)[0]
    if call.copies_dy:
        dy = like_grouped(dy, x, call.view)
    dx = torch.empty_like(x) if need_dx else None
    # like a row of saved where there is no weight; both are (C,)
    vector = saved[0] if weight is None else weight
    dgamma = torch.empty_like(vector) if need_dgamma else None
    dbeta = torch.empty_like(vector) if need_dbeta else None
    sums = saved.new_empty((2, call.view.n_channels)) if call.keeps_sums else None
    if call.sums is not None:
        written = dx if call.sums_write_dx else None
        try:
            call.sums(dy, x, weight, saved, written, dgamma, dbeta, sums)
        except LaunchRefusedError as error:
            note_fallback(call.sums.plan, error)
            with pinned_plan(resident=0):
                call = BackwardCall(dy, x, training, need_dx, need_dgamma or need_dbeta)
            remember(_calls, key, call)
            assert call.sums is not None
            sums = saved.new_empty((2, call.view.n_channels)) if call.keeps_sums else None
            written = dx if call.sums_write_dx else None
            call.sums(dy, x, weight, saved, written, dgamma, dbeta, sums)
    if call.input_gradient is not None:
        call.input_gradient(dy, x, weight, saved, sums, dx)
    return dx, dgamma, dbeta


class BackwardCall:
    """What does not change between backward calls of one kind: plans, launches, sizes."""

    __slots__ = (
        "copies_dy",
        "copies_x",
        "input_gradient",
        "keeps_sums",
        "sums",
        "sums_write_dx",
        "view",
    )

    def __init__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        training: bool,
        need_dx: bool,
        need_parameters: bool,
    ) -> None:
        dense, view = readable(x)
        self.copies_x = dense is not x
        self.view: ChannelView = view
        grouped = like_grouped(dy, dense, view)
        self.copies_dy = grouped is not dy
        dy_view = channel_view(grouped)
        assert dy_view is not None, (grouped.shape, grouped.stride())
        geometry = Geometry(
            (dy_view, view, output_view(dense)),
            x.element_size(),
            (dense.data_ptr() | grouped.data_ptr()) & 15 == 0,
        )
        self.sums: SumsStep | ResidentBackwardStep | None = None
        one_read = (
            ResidentBackwardStep.arguments_for(dense, geometry) if training and need_dx else None
        )
        if one_read is not None:
            self.sums = ResidentBackwardStep(dense, geometry, one_read)
        elif need_parameters or (training and need_dx):
            self.sums = SumsStep(dense, geometry, training)
        # in eval dx waits for no sum; in training it can follow where one program owns a channel
        fused = self.sums is not None and (not training or self.sums.plan.fused)
        self.sums_write_dx = fused and need_dx
        self.keeps_sums = training and need_dx and not fused
        self.input_gradient: InputGradientStep | None = None
        if need_dx and not fused:
            self.input_gradient = InputGradientStep(dense, geometry, training)


class SumsStep:
    """One planned launch of the gradients kernel."""

    __slots__ = ("_count", "_counters", "_launch", "_partials", "plan")

    def __init__(self, x: torch.Tensor, geometry: Geometry, training: bool) -> None:
        device = device_index(gradients_kernel, x)
        profile = device_profile(gradients_kernel, device)
        view = geometry.first
        self.plan = plan_reduction(view, geometry.itemsize, profile, geometry.vector)
        split = self.plan.splits > 1
        constants = {
            "TRAINING": training,
            "SPLIT": split,
            **geometry.constants(self.plan, accumulation_dtype(x)),
            "BLOCK_K": MERGE_BLOCK,
        }
        self._launch = Launch(
            gradients_kernel,
            device,
            self.plan.grid(view.n_channels),
            (*geometry.sizes(self.plan), self.plan.splits, *geometry.strides(self.plan)),
            constants,
            self.plan.num_warps,
        )
        self._count = float(view.count)
        self._partials = self.plan.splits * 2 * view.n_channels if split else 0
        self._counters = 1 + self.plan.blocks(view.n_channels) if split else 0

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
        partials = arrivals = None
        if self._partials:
            partials = saved.new_empty(self._partials)
            arrivals = arrival_counters(gradients_kernel, x, self._counters)
        self._launch(
            (dy, x, weight, saved, dx, dgamma, dbeta, sums, partials, arrivals), self._count
        )


class InputGradientStep:
    """One planned launch of the input gradient kernel."""

    __slots__ = ("_launch",)

    def __init__(self, x: torch.Tensor, geometry: Geometry, training: bool) -> None:
        device = device_index(input_gradient_kernel, x)
        profile = device_profile(input_gradient_kernel, device)
        view = geometry.first
        plan = plan_pointwise(view, geometry.itemsize, profile, geometry.vector)
        constants = {"TRAINING": training, **geometry.constants(plan, accumulation_dtype(x))}
        del constants["LANES"]
        self._launch = Launch(
            input_gradient_kernel,
            device,
            plan.grid(view.n_channels),
            (*geometry.sizes(plan), *geometry.strides(plan)),
            constants,
            plan.num_warps,
        )

    def __call__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        sums: torch.Tensor | None,
        dx: torch.Tensor | None,
    ) -> None:
        self._launch((dy, x, weight, saved, sums, dx))
