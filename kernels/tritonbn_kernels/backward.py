"""Launchers of the backward pass: sums and input gradient, planned once per kind of call."""

from __future__ import annotations

import torch

from tritonbn_kernels.activation_names import side_of
from tritonbn_kernels.at_once import BackwardAtOnce, backward_at_once
from tritonbn_kernels.fused import IDENTITY, UNFUSED, Fused, run_of
from tritonbn_kernels.geometry import (
    Geometry,
    lies_as_output,
    like_grouped,
    output_view,
    readable,
)
from tritonbn_kernels.gradients import gradients_kernel
from tritonbn_kernels.launch import (
    LaunchRefusedError,
    gpu_of,
    note_fallback,
)
from tritonbn_kernels.layout import channel_view
from tritonbn_kernels.one_read import ResidentBackwardStep
from tritonbn_kernels.plan import (
    plan_cache,
    plan_generation,
    remember,
    row_pins,
    row_reads_once,
)
from tritonbn_kernels.plan_file import fused_name, planned_by_file
from tritonbn_kernels.two_read import InputGradientStep, SumsStep

_calls = plan_cache()
# dy, x, weight, bias, saved, mask or residual
Tensors = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor,
    torch.Tensor | None,
]
# dx, dgamma, dbeta, dresidual
Gradients = tuple[
    torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None
]


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
    needs = (need_dx, need_dgamma, need_dbeta, False)
    tensors = (dy, x, weight, None, saved, None)
    return backward_call(dy, x, weight, training, needs)(tensors)[:3]


def fused_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    saved: torch.Tensor,
    training: bool,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
    activation: tuple[str, float] = IDENTITY,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    need_dresidual: bool = False,
) -> Gradients:
    """Gradients of `fused_forward`, those that are asked for.

    Args:
        dy, x, weight, saved, training: as `batch_norm_backward`.
        activation, bias, residual: as given to the forward pass; bias and residual are looked at
            where the derivative is computed anew.
        mask: as the forward pass returned it; replaces bias and residual.

    Returns:
        dx, dgamma, dbeta: as `batch_norm_backward`.
        dresidual: shape and dtype of `x`, strides of `y` (of `dy` for the identity, whose gradient
            it is), or None.
    """
    side = side_of(activation[0], need_dresidual or residual is not None or mask is not None)
    fused = Fused(*activation, side)
    second = {"mask": mask, "residual": residual, "": None}[side]
    if side and second is None:
        raise ValueError(f"expected the {side} of the forward pass, got None")
    needs = (need_dx, need_dgamma, need_dbeta, need_dresidual)
    tensors = (dy, x, weight, bias, saved, second)
    return backward_call(dy, x, weight, training, needs, fused, bias, second)(tensors)


def backward_call(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    training: bool,
    needs: tuple[bool, ...],
    fused: Fused = UNFUSED,
    bias: torch.Tensor | None = None,
    side: torch.Tensor | None = None,
) -> BackwardCall:
    """The prepared call for arguments of this kind, which may be kept and called again.

    Args: as `fused_backward`, with need_dx, need_dgamma, need_dbeta and need_dresidual in `needs`,
        the last of which may be left out, and mask or residual as `side`.
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
        fused,
        None if bias is None else bias.dtype,
        None if side is None else (side.shape, side.stride(), side.data_ptr() & 15 == 0),
    )
    call: BackwardCall | None = _calls.get(key)
    if call is None:
        call = BackwardCall(dy, x, training, needs, fused, side)
        remember(_calls, key, call)
    return call


class BackwardCall:
    """A backward call of one kind: what does not change from call to call is planned once."""

    __slots__ = (
        "_copies_dy",
        "_copies_side",
        "_copies_x",
        "_fused",
        "_mask_run",
        "_needs",
        "_side_aligned",
        "_steps",
        "_training",
        "_view",
    )

    def __init__(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        training: bool,
        needs: tuple[bool, ...],
        fused: Fused = UNFUSED,
        side: torch.Tensor | None = None,
    ) -> None:
        self._training = training
        self._needs = (*needs, False)[:4]
        self._fused = fused
        self._mask_run = 0
        if fused.side == "mask":
            assert side is not None
            runs = side.numel() < x.numel()
            self._mask_run = run_of(x.element_size()) if runs else 1
        self._side_aligned = side is None or side.data_ptr() & 15 == 0
        dense, self._view = readable(x)
        self._copies_x = dense is not x
        grouped = like_grouped(dy, dense, self._view)
        self._copies_dy = grouped is not dy
        residual = side if fused.side == "residual" else None
        self._copies_side = residual is not None and not lies_as_output(residual, dense)
        self._plan(grouped, dense, one_read=training and needs[0])

    def _plan(self, dy: torch.Tensor, x: torch.Tensor, one_read: bool) -> None:
        """Choose the launches for the readable `x` and a `dy` grouped alike."""
        dy_view = channel_view(dy)
        assert dy_view is not None, (dy.shape, dy.stride())
        geometry = Geometry(
            (dy_view, self._view, output_view(x)),
            x.element_size(),
            (x.data_ptr() | dy.data_ptr()) & 15 == 0 and self._side_aligned,
        )
        with planned_by_file(
            "backward_train" if self._training else "backward_eval",
            geometry.views,
            geometry.itemsize,
            fused_name(self._fused.activation, bool(self._fused.side)),
            lambda: gpu_of(gradients_kernel, x),
        ):
            self._choose(x, geometry, one_read)

    def _choose(self, x: torch.Tensor, geometry: Geometry, one_read: bool) -> None:
        """`_plan` by what is pinned or in the table."""
        arguments = None
        if one_read:
            arguments = ResidentBackwardStep.arguments_for(x, geometry, self._mask_run)
        if arguments is None and row_reads_once():
            with row_pins({}):
                return self._choose(x, geometry, one_read)
        need_dx, *need_others = self._needs
        if self._fused.activation == "identity":
            # the residual's gradient is dy itself
            need_others.pop()
        flags = {**self._fused.constants, "RUN": self._mask_run}
        sums: SumsStep | ResidentBackwardStep | None = None
        if arguments is not None:
            sums = ResidentBackwardStep(x, geometry, arguments, self._fused)
        elif any(need_others) or (self._training and need_dx):
            sums = SumsStep(x, geometry, self._training, flags)
        # in eval dx waits for no sum; in training it can follow where one program owns a channel
        fused = sums is not None and (not self._training or sums.plan.fused)
        input_gradient = None
        if need_dx and not fused:
            input_gradient = InputGradientStep(x, geometry, self._training, flags)
        keeps_sums = self._training and need_dx and not fused
        # at once: another thread may be calling
        self._steps = (sums, fused and need_dx, keeps_sums, input_gradient)

    def __call__(self, tensors: Tensors) -> Gradients:
        """`fused_backward` of arguments of this kind: dy, x, weight, bias, saved, and the mask or
        the residual."""
        dy, x, weight, bias, saved, side = tensors
        need_dx, need_dgamma, need_dbeta, need_dresidual = self._needs
        given_dy = dy
        if self._copies_x:
            x = readable(x)[0]
        if self._copies_dy:
            dy = like_grouped(dy, x, self._view)
        if side is not None and self._copies_side:
            side = torch.empty_like(x).copy_(side)
        dx = torch.empty_like(x) if need_dx else None
        # like a row of saved where there is no weight; both are (C,)
        vector = saved[0] if weight is None else weight
        dgamma = torch.empty_like(vector) if need_dgamma else None
        dbeta = torch.empty_like(vector) if need_dbeta else None
        dresidual = None
        if need_dresidual and self._fused.activation != "identity":
            dresidual = torch.empty_like(x)
        if not self._fused.needs_bias:
            bias = None
        given = (dy, x, weight, bias, saved, dx, dgamma, dbeta, side, dresidual)
        try:
            self._launch(given)
        except LaunchRefusedError as error:
            refused = self._steps[0]
            assert refused is not None
            self._plan(dy, x, one_read=False)
            note_fallback(refused.plan, error)
            self._launch(given)
        if need_dresidual and dresidual is None:
            dresidual = given_dy
        return dx, dgamma, dbeta, dresidual

    def at_once(self) -> BackwardAtOnce | None:
        """This call with nothing left to decide; None where it is more than one launch that makes
        all gradients of a layer with a weight."""
        make_sums, sums_write_dx, keeps_sums, input_gradient = self._steps
        single = sums_write_dx and input_gradient is None and not keeps_sums
        copies = self._copies_x or self._copies_dy
        plain = self._needs == (True, True, True, False) and not self._fused.side
        if not (single and make_sums and plain) or copies:
            return None
        ready = make_sums.ready()
        return None if ready is None else backward_at_once(ready)

    def _launch(self, tensors: tuple[torch.Tensor | None, ...]) -> None:
        """Launch with dy, x, weight, bias, saved, dx, dgamma, dbeta, side and dresidual."""
        make_sums, sums_write_dx, keeps_sums, input_gradient = self._steps
        dy, x, weight, bias, saved, dx, *parameters, side, dresidual = tensors
        assert saved is not None
        sums = saved.new_empty((2, self._view.n_channels)) if keeps_sums else None
        if make_sums is not None:
            written = dx if sums_write_dx else None
            given = (dy, x, weight, bias, saved, written, *parameters, side, dresidual)
            make_sums(given, sums)
        if input_gradient is not None:
            input_gradient((dy, x, weight, bias, saved, side, sums, dx))


class BackwardCalls:
    """The backward passes of one kind of forward call, kept by their own kind."""

    __slots__ = ("_calls", "_dtypes", "_fused", "_generation", "_last", "_training")

    def __init__(self, dtype: torch.dtype, training: bool, fused: Fused = UNFUSED) -> None:
        self._fused = fused
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        # of x and saved
        self._dtypes = (dtype, wide)
        self._training = training
        self._generation = plan_generation[0]
        self._calls: dict[object, BackwardCall] = {}
        # the last kind that was made at once, and how
        self._last: tuple[tuple[object, ...], BackwardAtOnce | None] = ((), None)

    def call(self, tensors: Tensors, needs: tuple[bool, bool, bool, bool]) -> Gradients:
        """`fused_backward` of `tensors` with these `needs`.

        Raises:
            TypeError: x or saved came back in another dtype than the forward pass saved.
        """
        dy, x, weight, bias, saved, side = tensors
        if weight is None or side is not None:
            return self._by_steps(tensors, needs, None)
        # hooks on saved tensors may have made them anew since the forward pass
        dtypes = (x.dtype, saved.dtype, weight.dtype, bias if bias is None else bias.dtype)
        kind = (x.stride(), dy.stride(), dtypes, needs, plan_generation[0])
        known, at_once = self._last
        if at_once is not None and kind == known:
            gradients = at_once(dy, x, weight, bias, saved)
            if gradients is not None:
                return (*gradients, None)
        return self._by_steps(tensors, needs, kind)

    def _by_steps(
        self,
        tensors: Tensors,
        needs: tuple[bool, bool, bool, bool],
        kind: tuple[object, ...] | None,
    ) -> Gradients:
        """`call`; the next one of this `kind`, if given, is made at once where that is possible."""
        dy, x, weight, bias, saved, side = tensors
        if (x.dtype, saved.dtype) != self._dtypes:
            raise TypeError(f"expected saved dtypes {self._dtypes}, got {(x.dtype, saved.dtype)}")
        if self._generation != plan_generation[0]:
            self._calls.clear()
            self._generation = plan_generation[0]
        aligned = (x.data_ptr() | dy.data_ptr()) & 15 == 0
        key = (
            x.stride(),
            dy.stride(),
            aligned,
            needs,
            *(None if one is None else one.dtype for one in (weight, bias)),
            None if side is None else (side.shape, side.stride(), side.data_ptr() & 15 == 0),
        )
        call = self._calls.get(key)
        if call is None:
            call = backward_call(dy, x, weight, self._training, needs, self._fused, bias, side)
            remember(self._calls, key, call)
        gradients = call(tensors)
        if kind is not None and aligned and kind != self._last[0]:
            self._last = (kind, call.at_once())
        return gradients
