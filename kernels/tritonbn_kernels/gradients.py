"""Gradients: `dgamma = sum dz * xhat`, `dbeta = sum dz`, and in training
`dx = gamma * inv_std * (dz - dbeta / m - xhat * dgamma / m)`; in eval `dx = gamma * inv_std * dz`.
dz is dy, or the gradient before a fused activation and residual (`fusion.py`).

Section "Backward" of `kernels/README.md`. Sums run per slot of a tile in fp32 (fp64 for fp64) and
are merged over slots, then programs, in index order; products are never rounded to half precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.fusion import backward_vectors, pulled_back
from tritonbn_kernels.masks import load_keep
from tritonbn_kernels.moments import (
    arrive_last,
    load_channels,
    locate_vectors,
    program_range,
    tile_mask,
    tile_offsets,
    tile_start,
)


# fmt: off
@triton.jit
def side_tile(
    side_ptr, dx_offsets, mask, outer, column, offs_c, offs_v, last, n_channels, inner_vectors,
    FUSED: tl.constexpr, RUN: tl.constexpr, CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr,
):
    # fmt: on
    """A tile of what `pulled_back` takes as its side: the residual, laid out as dx, or the mask."""
    if FUSED[2] == "residual":
        side = tl.load(side_ptr + dx_offsets, mask=mask, other=0.0).to(ACCUMULATE)
    elif FUSED[2] == "mask":
        side = load_keep(
            side_ptr, outer, column, offs_c, offs_v, last, n_channels, inner_vectors,
            CHANNELS_LAST, OFFSETS_64, VECTOR, RUN,
        )  # fmt: skip
    else:
        side = mask
    return side


# fmt: off
@triton.jit
def range_sums(
    dy_ptr, x_ptr, dx_ptr, side_ptr, dresidual_ptr, mean_hi, mean_lo, scale, offset,
    offs_c, first, last, n_channels, inner_vectors, magic, shift,
    dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
    dx_stride_outer, dx_stride_channel,
    STREAM_DX: tl.constexpr, FUSED: tl.constexpr, RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    VECTOR: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """(sum of dz, sum of dz * (x - mean)), each (BLOCK_C,), over vectors [first, last) of offs_c.

    Where asked for also writes dz, the residual's gradient; with STREAM_DX (eval) dx = scale * dz,
    which waits for no sum.
    """
    sum_dy = tl.zeros((BLOCK_C, BLOCK_V, LANES), ACCUMULATE)
    sum_dy_centred = tl.zeros((BLOCK_C, BLOCK_V, LANES), ACCUMULATE)
    for start in range(first, last, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, CHANNELS_LAST)
        mask = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, VECTOR)
        dy_offsets = tile_offsets(
            outer, column, offs_c, dy_stride_outer, dy_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        x_offsets = tile_offsets(
            outer, column, offs_c, x_stride_outer, x_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        dy = tl.load(dy_ptr + dy_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        dx_offsets = tile_offsets(
            outer, column, offs_c, dx_stride_outer, dx_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        side = side_tile(
            side_ptr, dx_offsets, mask, outer, column, offs_c, offs_v, last, n_channels,
            inner_vectors, FUSED, RUN, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR,
        )  # fmt: skip
        dz, centred = pulled_back(
            dy, x, side, mean_hi[:, None, None], scale[:, None, None], offset[:, None, None], FUSED
        )
        centred = tl.where(mask, centred - mean_lo[:, None, None], 0.0)
        sum_dy += dz
        sum_dy_centred = tl.fma(dz, centred, sum_dy_centred)
        if dresidual_ptr is not None:
            element = dresidual_ptr.dtype.element_ty
            tl.store(dresidual_ptr + dx_offsets, dz.to(element), mask=mask)
        if STREAM_DX:
            dx = scale[:, None, None] * dz
            tl.store(dx_ptr + dx_offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    return (
        tl.sum(tl.sum(sum_dy, axis=2), axis=1),
        tl.sum(tl.sum(sum_dy_centred, axis=2), axis=1),
    )


# fmt: off
@triton.jit
def input_gradient_range(
    dy_ptr, x_ptr, dx_ptr, side_ptr, mean_hi, mean_lo, scale, offset, mean_dy, slope,
    offs_c, first, last, n_channels, inner_vectors, magic, shift,
    dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
    dx_stride_outer, dx_stride_channel,
    TRAINING: tl.constexpr, FUSED: tl.constexpr, RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """dx = scale * (dz - mean_dy - (x - mean) * slope), in eval scale * dz, over [first, last)."""
    # in eval x is read for the activation alone
    READS_X: tl.constexpr = TRAINING or (FUSED[0] != "identity" and FUSED[2] != "mask")
    # the second word of the mean, times the slope, joins the mean of dy
    mean_dy -= mean_lo * slope
    for step in range(first, last, BLOCK_V):
        # training reads for the second time: backwards, from what the cache still holds
        offs_v = tile_start(step, first, last, BLOCK_V, TRAINING) + tl.arange(0, BLOCK_V)
        outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, CHANNELS_LAST)
        mask = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, VECTOR)
        dy_offsets = tile_offsets(
            outer, column, offs_c, dy_stride_outer, dy_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        gradient = tl.load(dy_ptr + dy_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        dx_offsets = tile_offsets(
            outer, column, offs_c, dx_stride_outer, dx_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        side = side_tile(
            side_ptr, dx_offsets, mask, outer, column, offs_c, offs_v, last, n_channels,
            inner_vectors, FUSED, RUN, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR,
        )  # fmt: skip
        # without x only a mask, or nothing, is looked at
        x = gradient
        if READS_X:
            x_offsets = tile_offsets(
                outer, column, offs_c, x_stride_outer, x_stride_channel,
                CHANNELS_LAST, OFFSETS_64, VECTOR,
            )  # fmt: skip
            x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        gradient, centred = pulled_back(
            gradient, x, side,
            mean_hi[:, None, None], scale[:, None, None], offset[:, None, None], FUSED,
        )  # fmt: skip
        if TRAINING:
            bent = centred * slope[:, None, None]
            gradient = (gradient - mean_dy[:, None, None]) - bent
        dx = scale[:, None, None] * gradient
        tl.store(dx_ptr + dx_offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


# fmt: off
@triton.jit
def publish_sums(partials_ptr, split, offs_c, mask_c, n_channels, sum_dy, sum_dy_centred):
    # fmt: on
    """Store the sums of one split in partials (splits, 2, C)."""
    partial = partials_ptr + split.to(tl.int64) * 2 * n_channels
    tl.store(partial + offs_c, sum_dy, mask=mask_c)
    tl.store(partial + n_channels + offs_c, sum_dy_centred, mask=mask_c)


# fmt: off
@triton.jit
def merge_sums(
    partials_ptr, offs_c, mask_c, n_channels, splits,
    ACCUMULATE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Both sums over all splits as `publish_sums` stored them, in an order that the plan fixes.

    Added up after the loop: Triton 3.6 fails on a reduction whose result a loop carries.
    """
    sum_dy = tl.zeros((BLOCK_C, BLOCK_K), ACCUMULATE)
    sum_dy_centred = tl.zeros((BLOCK_C, BLOCK_K), ACCUMULATE)
    for start in range(0, splits, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask = mask_c[:, None] & (offs_k < splits)[None, :]
        ptrs = partials_ptr + (offs_k * 2 * n_channels)[None, :] + offs_c[:, None]
        # from L2: other programs wrote these
        sum_dy += tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg")
        sum_dy_centred += tl.load(ptrs + n_channels, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(sum_dy, axis=1), tl.sum(sum_dy_centred, axis=1)


# fmt: off
@triton.jit
def finish_gradients(
    sum_dy, sum_dy_centred, inv_std, offs_c, mask_c, dgamma_ptr, dbeta_ptr, sums_ptr,
    n_channels, count,
):
    # fmt: on
    """Store dgamma and dbeta where asked for; return and store what the input gradient needs."""
    dgamma = sum_dy_centred * inv_std
    if dgamma_ptr is not None:
        tl.store(dgamma_ptr + offs_c, dgamma.to(dgamma_ptr.dtype.element_ty), mask=mask_c)
    if dbeta_ptr is not None:
        tl.store(dbeta_ptr + offs_c, sum_dy.to(dbeta_ptr.dtype.element_ty), mask=mask_c)
    mean_dy = sum_dy / count
    slope = dgamma / count * inv_std
    if sums_ptr is not None:
        tl.store(sums_ptr + offs_c, mean_dy, mask=mask_c)
        tl.store(sums_ptr + n_channels + offs_c, slope, mask=mask_c)
    return mean_dy, slope


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split", "splits",
    "dy_stride_outer", "dy_stride_channel", "x_stride_outer", "x_stride_channel",
    "dx_stride_outer", "dx_stride_channel", "count",
])
def gradients_kernel(
    dy_ptr, x_ptr, gamma_ptr, beta_ptr, saved_ptr,
    dx_ptr, dgamma_ptr, dbeta_ptr, side_ptr, dresidual_ptr, sums_ptr, partials_ptr, arrivals_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split, splits,
    dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
    dx_stride_outer, dx_stride_channel,
    count,
    TRAINING: tl.constexpr, SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, SIDE: tl.constexpr, RESTORES: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTORS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Sums over one split of BLOCK_C channels, finished by the last split; dx too where it can be.

    Where dx_ptr is given: in eval dx is written on the way; in training (one split only) the
    program walks over its channels again. sums_ptr (2, C) keeps what a later launch needs for dx.
    """
    block, split, first, last, offs_c = program_range(
        n_channels, n_vectors, vectors_per_split, VECTORS_64, BLOCK_C, False
    )
    mask_c = offs_c < n_channels
    FUSED: tl.constexpr = (ACTIVATION, PARAMETER, SIDE, RESTORES)
    # an integer up to here: a float argument would be fp32 even for fp64 data
    count = count.to(ACCUMULATE)
    mean_hi, mean_lo, inv_std, scale, offset = backward_vectors(
        saved_ptr, gamma_ptr, beta_ptr, offs_c, mask_c, n_channels, FUSED, ACCUMULATE
    )
    sum_dy, sum_dy_centred = range_sums(
        dy_ptr, x_ptr, dx_ptr, side_ptr, dresidual_ptr, mean_hi, mean_lo, scale, offset,
        offs_c, first, last, n_channels, inner_vectors, magic, shift,
        dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
        dx_stride_outer, dx_stride_channel,
        dx_ptr is not None and not TRAINING, FUSED, RUN, CHANNELS_LAST, OFFSETS_64, ACCUMULATE,
        VECTOR, LANES, BLOCK_C, BLOCK_V,
    )  # fmt: skip
    if SPLIT:
        publish_sums(partials_ptr, split, offs_c, mask_c, n_channels, sum_dy, sum_dy_centred)
        if arrive_last(arrivals_ptr + 1 + block, splits):
            sum_dy, sum_dy_centred = merge_sums(
                partials_ptr, offs_c, mask_c, n_channels, splits, ACCUMULATE, BLOCK_C, BLOCK_K
            )
            finish_gradients(
                sum_dy, sum_dy_centred, inv_std, offs_c, mask_c,
                dgamma_ptr, dbeta_ptr, sums_ptr, n_channels, count,
            )  # fmt: skip
    else:
        mean_dy, slope = finish_gradients(
            sum_dy, sum_dy_centred, inv_std, offs_c, mask_c,
            dgamma_ptr, dbeta_ptr, sums_ptr, n_channels, count,
        )  # fmt: skip
        if TRAINING and dx_ptr is not None:
            input_gradient_range(
                dy_ptr, x_ptr, dx_ptr, side_ptr, mean_hi, mean_lo, scale, offset, mean_dy, slope,
                offs_c, first, last, n_channels, inner_vectors, magic, shift,
                dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
                dx_stride_outer, dx_stride_channel,
                True, FUSED, RUN, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
            )  # fmt: skip


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split",
    "dy_stride_outer", "dy_stride_channel", "x_stride_outer", "x_stride_channel",
    "dx_stride_outer", "dx_stride_channel",
])
def input_gradient_kernel(
    dy_ptr, x_ptr, gamma_ptr, beta_ptr, saved_ptr, side_ptr, sums_ptr,
    dx_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split,
    dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
    dx_stride_outer, dx_stride_channel,
    TRAINING: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, SIDE: tl.constexpr, RESTORES: tl.constexpr,
    RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTORS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """dx over one split of BLOCK_C channels from sums made earlier; in eval from dy, and from x
    where an activation needs it."""
    FUSED: tl.constexpr = (ACTIVATION, PARAMETER, SIDE, RESTORES)
    _block, _split, first, last, offs_c = program_range(
        n_channels, n_vectors, vectors_per_split, VECTORS_64, BLOCK_C, TRAINING
    )
    mask_c = offs_c < n_channels
    mean_hi, mean_lo, _, scale, offset = backward_vectors(
        saved_ptr, gamma_ptr, beta_ptr, offs_c, mask_c, n_channels, FUSED, ACCUMULATE
    )
    if TRAINING:
        mean_dy = load_channels(sums_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
        slope = load_channels(sums_ptr + n_channels, offs_c, mask_c, 0.0, ACCUMULATE)
    else:
        mean_dy = tl.zeros_like(scale)
        slope = tl.zeros_like(scale)
    input_gradient_range(
        dy_ptr, x_ptr, dx_ptr, side_ptr, mean_hi, mean_lo, scale, offset, mean_dy, slope,
        offs_c, first, last, n_channels, inner_vectors, magic, shift,
        dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
        dx_stride_outer, dx_stride_channel,
        TRAINING, FUSED, RUN, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
    )  # fmt: skip
