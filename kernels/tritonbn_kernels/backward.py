"""Launchers of the backward pass: sums and input gradient, planned once per kind of call."""

from __future__ import annotations

import torch

from tritonbn_kernels.at_once import BackwardAtOnce, backward_at_once
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
    Ready,
    arrival_counters,
    device_index,
    device_profile,
    note_fallback,
)
from tritonbn_kernels.layout import channel_view
from tritonbn_kernels.one_read import ResidentBackwardStep
from tritonbn_kernels.plan import (
    plan_cache,
    plan_generation,
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
    needs = (need_dx, need_dgamma, need_dbeta)
    return backward_call(dy, x, weight, training, needs)(dy, x, weight, saved, *needs)


def backward_call(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    training: bool,
    needs: tuple[bool, bool, bool],
) -> BackwardCall:
    """The prepared call for arguments of this kind, which may be kept and called again.

    Args: as `batch_norm_backward`, with need_dx, need_dgamma and need_dbeta in `needs`.
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
        needs,
    )
    call: BackwardCall | None = _calls.get(key)
    if call is None:
        call = BackwardCall(dy, x, training, needs)
        remember(_calls, key, call)
    return call


class BackwardCall:
    """A backward call of one kind: what does not change from call to call is planned once."""

    __slots__ = (
        "_copies_dy",
        "_copies_x",
        "_needs",
        "_steps",
        "_training",
        "_view",
    )

    def __init__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        training: bool,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self._training = training
        self._needs = needs
        dense, self._view = readable(x)
        self._copies_x = dense is not x
        grouped = like_grouped(dy, dense, self._view)
        self._copies_dy = grouped is not dy
        self._plan(grouped, dense, one_read=training and needs[0])

    def _plan(self, dy: torch.Tensor, x: torch.Tensor, one_read: bool) -> None:
        """Choose the launches for the readable `x` and a `dy` grouped alike."""
        dy_view = channel_view(dy)
        assert dy_view is not None, (dy.shape, dy.stride())
        geometry = Geometry(
            (dy_view, self._view, output_view(x)),
            x.element_size(),
            (x.data_ptr() | dy.data_ptr()) & 15 == 0,
        )
        need_dx, *need_parameters = self._needs
        sums: SumsStep | ResidentBackwardStep | None = None
        arguments = ResidentBackwardStep.arguments_for(x, geometry) if one_read else None
        if arguments is not None:
            sums = ResidentBackwardStep(x, geometry, arguments)
        elif any(need_parameters) or (self._training and need_dx):
            sums = SumsStep(x, geometry, self._training)
        # in eval dx waits for no sum; in training it can follow where one program owns a channel
        fused = sums is not None and (not self._training or sums.plan.fused)
        input_gradient = None
        if need_dx and not fused:
            input_gradient = InputGradientStep(x, geometry, self._training)
        keeps_sums = self._training and need_dx and not fused
        # at once: another thread may be calling
        self._steps = (sums, fused and need_dx, keeps_sums, input_gradient)

    def __call__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        need_dx: bool,
        need_dgamma: bool,
        need_dbeta: bool,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """`batch_norm_backward` of arguments of this kind."""
        if self._copies_x:
            x = readable(x)[0]
        if self._copies_dy:
            dy = like_grouped(dy, x, self._view)
        dx = torch.empty_like(x) if need_dx else None
        # like a row of saved where there is no weight; both are (C,)
        vector = saved[0] if weight is None else weight
        dgamma = torch.empty_like(vector) if need_dgamma else None
        dbeta = torch.empty_like(vector) if need_dbeta else None
        try:
            self._launch(dy, x, weight, saved, dx, dgamma, dbeta)
        except LaunchRefusedError as error:
            refused = self._steps[0]
            assert refused is not None
            self._plan(dy, x, one_read=False)
            note_fallback(refused.plan, error)
            self._launch(dy, x, weight, saved, dx, dgamma, dbeta)
        return dx, dgamma, dbeta

    def at_once(self) -> BackwardAtOnce | None:
        """This call with nothing left to decide; None where it is more than one launch that makes
        all gradients of a layer with a weight."""
        make_sums, sums_write_dx, keeps_sums, input_gradient = self._steps
        single = sums_write_dx and input_gradient is None and not keeps_sums
        if not (single and make_sums and all(self._needs)) or self._copies_x or self._copies_dy:
            return None
        ready = make_sums.ready()
        return None if ready is None else backward_at_once(ready)

    def _launch(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        dx: torch.Tensor | None,
        dgamma: torch.Tensor | None,
        dbeta: torch.Tensor | None,
    ) -> None:
        make_sums, sums_write_dx, keeps_sums, input_gradient = self._steps
        sums = saved.new_empty((2, self._view.n_channels)) if keeps_sums else None
        if make_sums is not None:
            written = dx if sums_write_dx else None
            make_sums(dy, x, weight, saved, written, dgamma, dbeta, sums)
        if input_gradient is not None:
            input_gradient(dy, x, weight, saved, sums, dx)


class BackwardCalls:
    """The backward passes of one kind of forward call, kept by their own kind."""

    __slots__ = ("_calls", "_dtypes", "_generation", "_last", "_training")

    def __init__(self, dtype: torch.dtype, training: bool) -> None:
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        # of x and saved
        self._dtypes = (dtype, wide)
        self._training = training
        self._generation = plan_generation[0]
        self._calls: dict[object, BackwardCall] = {}
        # the last kind that was made at once, and how
        self._last: tuple[tuple[object, ...], BackwardAtOnce | None] = ((), None)

    def call(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        needs: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """`batch_norm_backward` with these `needs`.

        Raises:
            TypeError: x or saved came back in another dtype than the forward pass saved.
        """
        if weight is None:
            return self._by_steps(dy, x, weight, saved, needs, None)
        # hooks on saved tensors may have made them anew since the forward pass
        dtypes = (x.dtype, saved.dtype, weight.dtype)
        kind = (x.stride(), dy.stride(), dtypes, needs, plan_generation[0])
        known, at_once = self._last
        if at_once is not None and kind == known:
            gradients = at_once(dy, x, weight, saved)
            if gradients is not None:
                return gradients
        return self._by_steps(dy, x, weight, saved, needs, kind)

    def _by_steps(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        saved: torch.Tensor,
        needs: tuple[bool, bool, bool],
        kind: tuple[object, ...] | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """`call`; the next one of this `kind`, if given, is made at once where that is possible."""
        if (x.dtype, saved.dtype) != self._dtypes:
            raise TypeError(f"expected saved dtypes {self._dtypes}, got {(x.dtype, saved.dtype)}")
        if self._generation != plan_generation[0]:
            self._calls.clear()
            self._generation = plan_generation[0]
        aligned = (x.data_ptr() | dy.data_ptr()) & 15 == 0
        key = (x.stride(), dy.stride(), aligned, None if weight is None else weight.dtype, needs)
        call = self._calls.get(key)
        if call is None:
            call = backward_call(dy, x, weight, self._training, needs)
            remember(self._calls, key, call)
        gradients = call(dy, x, weight, saved, *needs)
        if kind is not None and aligned and kind != self._last[0]:
            self._last = (kind, call.at_once())
        return gradients


class SumsStep:
    """One planned launch of the gradients kernel."""

    __slots__ = ("_counters", "_launch", "_partials", "plan")

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
            (
                *(*geometry.sizes(self.plan), self.plan.splits, *geometry.strides(self.plan)),
                view.count,
            ),
            constants,
            self.plan.num_warps,
        )
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
        self._launch((dy, x, weight, saved, dx, dgamma, dbeta, sums, partials, arrivals))

    def ready(self) -> Ready | None:
        """`Launch.ready` after dy, x, weight, saved, dx, dgamma and dbeta; None where a launch
        needs other memory besides."""
        return None if self._partials else self._launch.ready((None, None, None))


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
