"""Normalisation: `y = act(gamma * (x - mean) * inv_std + beta + residual)`, from batch or running
statistics.

Section "Forward" of `kernels/README.md`. One program maps `vectors_per_split` vectors of BLOCK_C
channels; the grid is channel blocks (fastest) times splits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.activations import activate, passes
from tritonbn_kernels.masks import store_keep
from tritonbn_kernels.moments import (
    affine,
    inverse_std,
    load_channels,
    locate_vectors,
    offset_of,
    program_range,
    tile_mask,
    tile_offsets,
    tile_start,
)


# fmt: off
@triton.jit
def normalize_range(
    x_ptr, y_ptr, residual_ptr, mask_ptr,
    mean_hi, mean_lo, scale, beta, offs_c, first, last,
    n_channels, inner_vectors, magic, shift,
    x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
    REVERSED: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """y = act((x - mean) * scale + beta + residual) over vectors [first, last) of offs_c.

    The two words of the mean keep what one would lose where the mean dwarfs the deviation.
    """
    offset = offset_of(beta, mean_lo, scale)
    for step in range(first, last, BLOCK_V):
        offs_v = tile_start(step, first, last, BLOCK_V, REVERSED) + tl.arange(0, BLOCK_V)
        outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, CHANNELS_LAST)
        mask = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, VECTOR)
        x_offsets = tile_offsets(
            outer, column, offs_c, x_stride_outer, x_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        z = affine(x, mean_hi[:, None, None], scale[:, None, None], offset[:, None, None])
        y_offsets = tile_offsets(
            outer, column, offs_c, y_stride_outer, y_stride_channel,
            CHANNELS_LAST, OFFSETS_64, VECTOR,
        )  # fmt: skip
        if residual_ptr is not None:
            # laid out as y
            z += tl.load(residual_ptr + y_offsets, mask=mask, other=0.0).to(ACCUMULATE)
        y = activate(z, ACTIVATION, PARAMETER)
        tl.store(y_ptr + y_offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        if mask_ptr is not None:
            store_keep(
                mask_ptr, passes(z, ACTIVATION), outer, column, offs_c, offs_v, last,
                n_channels, inner_vectors, CHANNELS_LAST, OFFSETS_64, VECTOR, RUN,
            )  # fmt: skip


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split",
    "x_stride_outer", "x_stride_channel", "y_stride_outer", "y_stride_channel",
])
def normalize_kernel(
    x_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr,
    y_ptr, saved_ptr, residual_ptr, mask_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split,
    x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
    eps,
    EPS: tl.constexpr, FROM_RUNNING: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTORS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """Normalise with the statistics in `saved`, or from running statistics, saved on the way."""
    _block, split, first, last, offs_c = program_range(
        n_channels, n_vectors, vectors_per_split, VECTORS_64, BLOCK_C, not FROM_RUNNING
    )
    mask_c = offs_c < n_channels
    if FROM_RUNNING:
        mean_hi = load_channels(running_mean_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
        mean_lo = tl.zeros_like(mean_hi)
        variance = load_channels(running_var_ptr, offs_c, mask_c, 1.0, ACCUMULATE)
        inv_std = inverse_std(variance, eps if EPS is None else EPS)
        if split == 0:
            tl.store(saved_ptr + offs_c, mean_hi, mask=mask_c)
            tl.store(saved_ptr + n_channels + offs_c, mean_lo, mask=mask_c)
            tl.store(saved_ptr + 2 * n_channels + offs_c, inv_std, mask=mask_c)
    else:
        mean_hi = load_channels(saved_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
        mean_lo = load_channels(saved_ptr + n_channels, offs_c, mask_c, 0.0, ACCUMULATE)
        inv_std = load_channels(saved_ptr + 2 * n_channels, offs_c, mask_c, 0.0, ACCUMULATE)
    scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, ACCUMULATE) * inv_std
    beta = load_channels(beta_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
    normalize_range(
        x_ptr, y_ptr, residual_ptr, mask_ptr, mean_hi, mean_lo, scale, beta, offs_c, first, last,
        n_channels, inner_vectors, magic, shift,
        x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
        not FROM_RUNNING, ACTIVATION, PARAMETER, RUN,
        CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
    )  # fmt: skip
