"""Launchers of the forward pass: statistics and normalisation, planned once per kind of call."""

from __future__ import annotations

import torch

from tritonbn_kernels.activation_names import side_of
from tritonbn_kernels.at_once import BoundCall, forward_at_once
from tritonbn_kernels.backward import BackwardCalls
from tritonbn_kernels.fused import (
    IDENTITY,
    UNFUSED,
    Fused,
    mask_run,
    pack_bytes,
)
from tritonbn_kernels.geometry import (
    Geometry,
    accumulation_dtype,
    lies_as_output,
    output_view,
    readable,
)
from tritonbn_kernels.launch import (
    LaunchRefusedError,
    gpu_of,
    note_fallback,
)
from tritonbn_kernels.layout import CHANNELS_LAST
from tritonbn_kernels.normalize import normalize_kernel
from tritonbn_kernels.one_read import ResidentForwardStep
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    pinned,
    plan_cache,
    remember,
    row_pins,
    row_reads_once,
)
from tritonbn_kernels.plan_file import fused_name, planned_by_file
from tritonbn_kernels.two_read import NormalizeStep, StatisticsStep

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
    y, saved, _ = fused_forward(
        x, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps
    )
    return y, saved


def fused_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: tuple[str, float] = IDENTITY,
    residual: torch.Tensor | None = None,
    keeps_mask: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`batch_norm_forward` and what follows it: `y = activation(bn(x) + residual)`.

    Args:
        activation: as `activation_names.activation_of` returns it.
        residual: shape and dtype of `x`, any strides; read in place where it lies as `y` does, else
            copied once.
        keeps_mask: whether a backward pass will ask for the mask.

    Returns:
        y, saved: as `batch_norm_forward`.
        mask: uint8, one bit an element of `x` that says whether the activation handed it on: a byte
            for each 16 bytes of x, where elements come in such runs, else a byte for each element.
            None unless `keeps_mask`, a residual, and relu, relu6 or leaky_relu come together.

    Mutates, Raises: as `batch_norm_forward`.
    """
    # Triton takes a Python int for an int
    eps = float(eps)
    momentum = None if momentum is None else float(momentum)
    vectors = (weight, bias, running_mean, running_var, num_batches_tracked)
    call = forward_call(
        x, *vectors, training, momentum, eps, activation, residual, keeps_mask=keeps_mask
    )
    return call(x, *vectors, momentum, eps, residual)


def forward_call(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: tuple[str, float] = IDENTITY,
    residual: torch.Tensor | None = None,
    keeps_mask: bool = False,
    restores: bool = False,
) -> ForwardCall:
    """The prepared call for arguments of this kind, which may be kept and called again with
    arguments of the same shapes, strides, dtypes, device and 16-byte alignment of `x` and
    `residual`.

    Args, Raises: as `fused_forward`; restores: whether the backward pass of this call will be given
        y for x, which needs an activation that can be undone (`activations.restored`) and no
        residual.
    """
    side = side_of(activation[0], residual is not None)
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
        activation,
        None if residual is None else (residual.stride(), residual.data_ptr() & 15 == 0),
        keeps_mask and side == "mask",
        restores,
    )
    call: ForwardCall | None = _calls.get(key)
    if call is None:
        if not training and (running_mean is None or running_var is None):
            raise ValueError("expected running_mean and running_var in evaluation, got None")
        cumulative = training and momentum is None and running_mean is not None
        if cumulative and num_batches_tracked is None:
            raise ValueError("expected num_batches_tracked with momentum None, got None")
        fused = Fused(*activation, side, restores)
        call = ForwardCall(x, training, cumulative, momentum, eps, fused, residual, keeps_mask)
        remember(_calls, key, call)
    return call


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
    step((x, None, None, None, saved, *(None,) * 5), 0.0, 0.0)
    return saved[0] + saved[1], saved[2]


class ForwardCall:
    """A forward call of one kind: what does not change from call to call is planned once."""

    __slots__ = (
        "_aligned",
        "_beside",
        "_copies",
        "_copies_residual",
        "_cumulative",
        "_mask_run",
        "_saved",
        "_steps",
        "backward",
        "fused",
        "training",
    )

    def __init__(
        self,
        x: torch.Tensor,
        training: bool,
        cumulative: bool,
        momentum: float | None,
        eps: float,
        fused: Fused = UNFUSED,
        residual: torch.Tensor | None = None,
        keeps_mask: bool = False,
    ) -> None:
        self.training = training
        self.fused = fused
        self._cumulative = cumulative
        # elements to a byte of the mask, 0 without one
        self._mask_run = mask_run(x) if keeps_mask and fused.side == "mask" else 0
        self._beside = residual is not None
        self._aligned = residual is None or residual.data_ptr() & 15 == 0
        # `fused_backward` of calls of this kind
        self.backward = BackwardCalls(x.dtype, training, fused).call
        dense, view = readable(x)
        self._copies = dense is not x
        self._copies_residual = residual is not None and not lies_as_output(residual, dense)
        # a pattern for empty_like, half a microsecond quicker than a shape and a dtype
        self._saved = x.new_empty((3, view.n_channels), dtype=accumulation_dtype(x))
        self._steps = self._plan(dense, momentum, eps, one_read=training)

    def _plan(
        self, x: torch.Tensor, momentum: float | None, eps: float, one_read: bool
    ) -> tuple[StatisticsStep | ResidentForwardStep | None, NormalizeStep | None, int]:
        """The launches for the readable `x`, and the elements to a byte of the mask that they
        write."""
        view = readable(x)[1]
        aligned = x.data_ptr() & 15 == 0 and self._aligned
        geometry = Geometry((view, output_view(x)), x.element_size(), aligned)
        with planned_by_file(
            "forward_train" if self.training else "forward_eval",
            geometry.views,
            geometry.itemsize,
            fused_name(self.fused.activation, self._beside),
            lambda: gpu_of(normalize_kernel, x),
        ):
            return self._planned(x, geometry, momentum, eps, one_read)

    def _planned(
        self,
        x: torch.Tensor,
        geometry: Geometry,
        momentum: float | None,
        eps: float,
        one_read: bool,
    ) -> tuple[StatisticsStep | ResidentForwardStep | None, NormalizeStep | None, int]:
        """`_plan` by what is pinned or in the table."""
        stored_run = self._mask_run
        arguments = None
        if one_read:
            arguments = ResidentForwardStep.arguments_for(x, geometry, self._mask_run)
        if arguments is not None:
            step = ResidentForwardStep(x, geometry, arguments, self._cumulative, self.fused)
            return step, None, stored_run
        if row_reads_once():
            with row_pins({}):
                return self._planned(x, geometry, momentum, eps, one_read)
        last = geometry.first.family == CHANNELS_LAST
        narrow = last and pinned("block_c", ACCESS_BYTES) < self._mask_run
        if stored_run and (geometry.vector != stored_run or narrow):
            # these kernels make whole runs of their own accesses, or else bytes
            stored_run = 1
        # Triton passes floats as fp32: fp64 takes them as constants
        wide = x.dtype is torch.float64
        eps_constant = eps if wide else None
        statistics = normalize = None
        if self.training:
            statistics = StatisticsStep(
                x,
                geometry,
                CUMULATIVE=self._cumulative,
                NORMALIZE=True,
                EPS=eps_constant,
                MOMENTUM=momentum if wide else None,
                RUN=stored_run,
                **self.fused.constants,
            )
        if statistics is None or not statistics.plan.fused:
            normalize = NormalizeStep(
                x,
                geometry,
                FROM_RUNNING=not self.training,
                EPS=eps_constant,
                RUN=stored_run,
                **self.fused.constants,
            )
        return statistics, normalize, stored_run

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        num_batches_tracked: torch.Tensor | None,
        momentum: float | None,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`fused_forward` of arguments of this kind."""
        if self._copies:
            x = readable(x)[0]
        if residual is not None and self._copies_residual:
            residual = torch.empty_like(x).copy_(residual)
        y = torch.empty_like(x)
        saved = torch.empty_like(self._saved)
        # at once: another thread may be planning anew
        statistics, normalize, stored_run = self._steps
        mask = _new_mask(x, stored_run)
        if statistics is not None:
            vectors = (running_mean, running_var, num_batches_tracked)
            tensors = (x, weight, bias, y, saved, *vectors, residual, mask)
            try:
                statistics(tensors, eps, momentum)
            except LaunchRefusedError as error:
                refused = statistics.plan
                self._steps = self._plan(x, momentum, eps, one_read=False)
                note_fallback(refused, error)
                statistics, normalize, stored_run = self._steps
                assert statistics is not None
                mask = _new_mask(x, stored_run)
                statistics((*tensors[:-1], mask), eps, momentum)
            # the second launch reads what the first has saved
            running_mean = running_var = None
        if normalize is not None:
            normalize((x, weight, bias, running_mean, running_var, y, saved, residual, mask), eps)
        if mask is not None and stored_run != self._mask_run:
            mask = pack_bytes(mask, self._mask_run)
        return y, saved, mask

    def bound(
        self,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        num_batches_tracked: torch.Tensor | None,
        momentum: float | None,
        eps: float,
    ) -> BoundCall:
        """This call as a function of `x`, for vectors that are neither changed nor moved, and
        without a residual."""
        vectors = (weight, bias, running_mean, running_var, num_batches_tracked)

        def by_steps(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self(x, *vectors, momentum, eps)[:2]

        statistics, normalize, _ = self._steps
        if statistics is None or normalize is not None or self._copies:
            return by_steps
        ready = statistics.ready((*vectors[2:], None, None), eps, momentum)
        if ready is None:
            return by_steps
        return forward_at_once(ready, weight, bias, self._saved, by_steps)


def _new_mask(x: torch.Tensor, run: int) -> torch.Tensor | None:
    """Memory for a mask of `run` elements a byte, None for 0."""
    return x.new_empty(x.numel() // run, dtype=torch.uint8) if run else None
