"""Batch statistics: mean, variance, running statistics; fused with normalisation where one program
owns its channels.

Section "Statistics" of `kernels/README.md`. Each slot of a tile runs Welford's update over the
tiles of its program, on values shifted by the mean of the first tile; slots, then programs, are
merged by Chan's formula in index order. Never E[x^2] - E[x]^2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.moments import (
    arrive_last,
    combine_moments,
    inverse_std,
    load_channels,
    locate_vectors,
    merge_moments,
    program_range,
    split_sizes,
    tile_mask,
    tile_offsets,
    two_word_sum,
)
from tritonbn_kernels.normalize import normalize_range


# fmt: off
@triton.jit
def load_tile(
    x_ptr, start, offs_c, last, n_channels, inner_vectors, magic, shift,
    stride_outer, stride_channel,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, ACCUMULATE: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """(values, mask) of the tile that begins at vector `start`, zero outside."""
    offs_v = start + tl.arange(0, BLOCK_V)
    outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, CHANNELS_LAST)
    mask = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, VECTOR)
    offsets = tile_offsets(
        outer, column, offs_c, stride_outer, stride_channel, CHANNELS_LAST, OFFSETS_64, VECTOR
    )
    return tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACCUMULATE), mask


# fmt: off
@triton.jit
def range_moments(
    x_ptr, first_values, offs_c, first, last,
    n_channels, inner_vectors, magic, shift, stride_outer, stride_channel,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, ACCUMULATE: tl.constexpr,
    VECTOR: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """(pivot, mean and M2 of `x - pivot`), each (BLOCK_C,), over vectors [first, last) of offs_c.

    The pivot is the mean of the first tile, as far as fp32 tells: amid the values even if the
    first of them is an outlier, and equal to them where all are equal.
    """
    x, mask = load_tile(
        x_ptr, first, offs_c, last, n_channels, inner_vectors, magic, shift,
        stride_outer, stride_channel, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
    )  # fmt: skip
    deviation = tl.where(mask, x - first_values[:, None, None], 0.0)
    tile_count = (tl.minimum(last - first, BLOCK_V) * LANES).to(ACCUMULATE)
    pivot = first_values + tl.sum(tl.sum(deviation, axis=2), axis=1) / tile_count
    mean = tl.where(mask, x - pivot[:, None, None], 0.0)
    m2 = tl.zeros((BLOCK_C, BLOCK_V, LANES), ACCUMULATE)
    rank = tl.full((), 1.0, ACCUMULATE)
    for start in range(first + BLOCK_V, last, BLOCK_V):
        x, mask = load_tile(
            x_ptr, start, offs_c, last, n_channels, inner_vectors, magic, shift,
            stride_outer, stride_channel, CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
        )  # fmt: skip
        # a slot that meets a tile has met all before it: one rank serves them all
        rank += 1.0
        delta = tl.where(mask, (x - pivot[:, None, None]) - mean, 0.0)
        step = delta * (1.0 / rank)
        mean += step
        m2 += delta * (delta - step)
    met = tl.maximum((last - first - tl.arange(0, BLOCK_V) + BLOCK_V - 1) // BLOCK_V, 0)
    count = tl.broadcast_to(met.to(ACCUMULATE)[None, :, None], (BLOCK_C, BLOCK_V, LANES))
    count, mean, m2 = merge_moments(count, mean, m2, 2)
    count, mean, m2 = merge_moments(count, mean, m2, 1)
    return pivot, mean, m2


# fmt: off
@triton.jit
def publish_moments(
    partials_ptr, split, offs_c, mask_c, n_channels, pivot, mean, m2
):
    # fmt: on
    """Store the moments of one split in partials (splits, 3, C): mean in two words, M2."""
    partial = partials_ptr + split.to(tl.int64) * 3 * n_channels
    mean_hi, mean_lo = two_word_sum(pivot, mean)
    tl.store(partial + offs_c, mean_hi, mask=mask_c)
    tl.store(partial + n_channels + offs_c, mean_lo, mask=mask_c)
    tl.store(partial + 2 * n_channels + offs_c, m2, mask=mask_c)


# fmt: off
@triton.jit
def merge_partials(
    partials_ptr, offs_c, mask_c, n_channels, n_vectors, vectors_per_split, splits, lanes,
    ACCUMULATE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """(pivot, mean, M2) of all splits from what `publish_moments` stored, in an order that the plan
    fixes; a vector has `lanes` values. The first split's mean is the pivot.

    Reduced after the loop: loads need not wait for one another, and Triton 3.6 fails on a reduction
    whose result a loop carries.
    """
    count = tl.zeros((1, BLOCK_K), ACCUMULATE)
    mean = tl.zeros((BLOCK_C, BLOCK_K), ACCUMULATE)
    m2 = tl.zeros((BLOCK_C, BLOCK_K), ACCUMULATE)
    # from L2, here and below: other programs wrote these
    pivot = tl.load(partials_ptr + offs_c, mask=mask_c, other=0.0, cache_modifier=".cg")
    for start in range(0, splits, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        sizes = split_sizes(offs_k, splits, n_vectors, vectors_per_split) * lanes
        mask = mask_c[:, None] & (offs_k < splits)[None, :]
        ptrs = partials_ptr + (offs_k * 3 * n_channels)[None, :] + offs_c[:, None]
        hi = tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg")
        lo = tl.load(ptrs + n_channels, mask=mask, other=0.0, cache_modifier=".cg")
        m2_k = tl.load(ptrs + 2 * n_channels, mask=mask, other=0.0, cache_modifier=".cg")
        # an absent split has count 0, and its mean must not be far away: 0 * inf is NaN
        mean_k = tl.where(mask, (hi - pivot[:, None]) + lo, 0.0)
        count, mean, m2 = combine_moments(
            count, mean, m2, sizes.to(ACCUMULATE)[None, :], mean_k, m2_k
        )
    _, mean, m2 = merge_moments(count, mean, m2, 1)
    return pivot, mean, m2


# fmt: off
@triton.jit
def running_factor(
    tracked_ptr, momentum,
    MOMENTUM: tl.constexpr, CUMULATIVE: tl.constexpr, ACCUMULATE: tl.constexpr,
):
    # fmt: on
    """Weight of this batch in the running statistics: momentum, or one over the batches so far."""
    if CUMULATIVE:
        factor = 1.0 / (tl.load(tracked_ptr) + 1).to(ACCUMULATE)
    elif MOMENTUM is None:
        factor = momentum
    else:
        factor = tl.full((), MOMENTUM, ACCUMULATE)
    return factor


@triton.jit
def update_running(ptr, offs_c, mask_c, value, factor, ACCUMULATE: tl.constexpr):
    """running <- (1 - factor) * running + factor * value, in place; exact for factor 0 and 1."""
    old = tl.load(ptr + offs_c, mask=mask_c, other=0.0).to(ACCUMULATE)
    new = (1.0 - factor) * old + factor * value
    tl.store(ptr + offs_c, new.to(ptr.dtype.element_ty), mask=mask_c)


@triton.jit
def count_batch(tracked_ptr, arrivals_ptr, block, n_blocks, CUMULATIVE: tl.constexpr):
    """num_batches_tracked += 1, once per launch; with CUMULATIVE after every block has read it."""
    if CUMULATIVE:
        if arrive_last(arrivals_ptr, n_blocks):
            tl.store(tracked_ptr, tl.load(tracked_ptr) + 1)
    else:
        if block == 0:
            tl.store(tracked_ptr, tl.load(tracked_ptr) + 1)


# fmt: off
@triton.jit
def finish_statistics(
    pivot, mean, m2, block, offs_c, mask_c, saved_ptr,
    running_mean_ptr, running_var_ptr, tracked_ptr, arrivals_ptr,
    n_channels, n_blocks, count, eps, momentum,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, CUMULATIVE: tl.constexpr,
    SAVE_VARIANCE: tl.constexpr, ACCUMULATE: tl.constexpr,
):
    # fmt: on
    """Store mean (two words) and inv_std, or the variance; update the running statistics."""
    mean_hi, mean_lo = two_word_sum(pivot, mean)
    variance = m2 / count
    inv_std = inverse_std(variance, eps if EPS is None else EPS)
    tl.store(saved_ptr + offs_c, mean_hi, mask=mask_c)
    tl.store(saved_ptr + n_channels + offs_c, mean_lo, mask=mask_c)
    spread = variance if SAVE_VARIANCE else inv_std
    tl.store(saved_ptr + 2 * n_channels + offs_c, spread, mask=mask_c)
    if running_mean_ptr is not None:
        factor = running_factor(tracked_ptr, momentum, MOMENTUM, CUMULATIVE, ACCUMULATE)
        update_running(running_mean_ptr, offs_c, mask_c, mean_hi + mean_lo, factor, ACCUMULATE)
        # unbiased, as torch keeps it
        update_running(running_var_ptr, offs_c, mask_c, m2 / (count - 1.0), factor, ACCUMULATE)
    if tracked_ptr is not None:
        count_batch(tracked_ptr, arrivals_ptr, block, n_blocks, CUMULATIVE)
    return mean_hi, mean_lo, inv_std


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split", "splits",
    "x_stride_outer", "x_stride_channel", "y_stride_outer", "y_stride_channel", "count",
])
def statistics_kernel(
    x_ptr, gamma_ptr, beta_ptr,
    y_ptr, saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, residual_ptr, mask_ptr,
    partials_ptr, arrivals_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split, splits,
    x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
    count, eps, momentum,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr, CUMULATIVE: tl.constexpr,
    SAVE_VARIANCE: tl.constexpr, NORMALIZE: tl.constexpr, SPLIT: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, RUN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTORS_64: tl.constexpr,
    ACCUMULATE: tl.constexpr, VECTOR: tl.constexpr, LANES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Statistics of BLOCK_C channels over one split of their values, finished by the last split.

    With NORMALIZE (one split only) the program then walks over its channels again and writes y.
    """
    block, split, first, last, offs_c = program_range(
        n_channels, n_vectors, vectors_per_split, VECTORS_64, BLOCK_C, False
    )
    mask_c = offs_c < n_channels
    # an integer up to here: a float argument would be fp32 even for fp64 data
    count = count.to(ACCUMULATE)
    first_offsets = offs_c if CHANNELS_LAST else offs_c * (x_stride_channel * VECTOR)
    if OFFSETS_64 and not CHANNELS_LAST:
        first_offsets = offs_c.to(tl.int64) * x_stride_channel * VECTOR
    first_values = load_channels(x_ptr, first_offsets, mask_c, 0.0, ACCUMULATE)
    pivot, mean, m2 = range_moments(
        x_ptr, first_values, offs_c, first, last,
        n_channels, inner_vectors, magic, shift, x_stride_outer, x_stride_channel,
        CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, LANES, BLOCK_C, BLOCK_V,
    )  # fmt: skip
    if SPLIT:
        publish_moments(partials_ptr, split, offs_c, mask_c, n_channels, pivot, mean, m2)
        # arrivals[0] counts blocks, arrivals[1 + block] the splits of a block
        if arrive_last(arrivals_ptr + 1 + block, splits):
            pivot, mean, m2 = merge_partials(
                partials_ptr, offs_c, mask_c, n_channels, n_vectors, vectors_per_split, splits,
                LANES, ACCUMULATE, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            finish_statistics(
                pivot, mean, m2, block, offs_c, mask_c, saved_ptr,
                running_mean_ptr, running_var_ptr, tracked_ptr, arrivals_ptr,
                n_channels, tl.cdiv(n_channels, BLOCK_C), count, eps, momentum,
                EPS, MOMENTUM, CUMULATIVE, SAVE_VARIANCE, ACCUMULATE,
            )  # fmt: skip
    else:
        mean_hi, mean_lo, inv_std = finish_statistics(
            pivot, mean, m2, block, offs_c, mask_c, saved_ptr,
            running_mean_ptr, running_var_ptr, tracked_ptr, arrivals_ptr,
            n_channels, tl.cdiv(n_channels, BLOCK_C), count, eps, momentum,
            EPS, MOMENTUM, CUMULATIVE, SAVE_VARIANCE, ACCUMULATE,
        )  # fmt: skip
        if NORMALIZE:
            scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, ACCUMULATE) * inv_std
            beta = load_channels(beta_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
            normalize_range(
                x_ptr, y_ptr, residual_ptr, mask_ptr,
                mean_hi, mean_lo, scale, beta, offs_c, first, last,
                n_channels, inner_vectors, magic, shift,
                x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
                True, ACTIVATION, PARAMETER, RUN,
                CHANNELS_LAST, OFFSETS_64, ACCUMULATE, VECTOR, BLOCK_V,
            )  # fmt: skip
