"""One read of rows: channels_last, and images whose planes are no multiple of 16 bytes.

An item is one member of a group: the share of the rows, times a block of whole channels, that one
program works on. PIECES tiles of it stay in registers between the sums and the end (`columns.py`);
where a share is larger (a hybrid plan, STREAM > 0) the rest is read for the sums, STREAM tiles at a
time, and once more to finish: backwards, from what L2 still holds. Groups and the persistent grid
are those of `resident.py`, the protocol is in `group.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.columns import (
    at_columns,
    channel_moments,
    channel_sum,
    hold_masks,
    hold_rows,
    input_gradient_tiles,
    meet_tiles,
    near_mean,
    normalize_tiles,
)
from tritonbn_kernels.fusion import backward_vectors
from tritonbn_kernels.group import settle_moments, settle_sums
from tritonbn_kernels.streams import (
    stream_input_gradient,
    stream_moments,
    stream_normalize,
    sum_rows,
)
from tritonbn_kernels.words import opaque


@triton.jit
def block_of(item, n_channels, n_rows, n_inner, rows_per_split, splits, block_channels):
    """(block, member, first row, one past the last, first channel, channels) of an item."""
    block = item // splits
    member = item - block * splits
    first = member * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    channel = block * block_channels
    return block, member, first, last, channel, tl.minimum(block_channels, n_channels - channel)


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_rows", "n_inner", "rows_per_split", "splits", "block_channels",
    "x_stride", "y_stride",
])
def rows_forward_kernel(
    x_ptr, gamma_ptr, beta_ptr,
    y_ptr, saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, residual_ptr, mask_ptr,
    partials_ptr, arrivals_ptr, barriers_ptr,
    n_channels, n_rows, n_inner, rows_per_split, splits, block_channels, x_stride, y_stride,
    count, eps, momentum,
    CUMULATIVE: tl.constexpr, GROUPED: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr,
    DTYPE: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PIECES: tl.constexpr, STREAM: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Statistics, running statistics and y of the items of this program."""
    KEPT: tl.constexpr = "evict_first" if STREAM > 0 else ""
    items = tl.cdiv(n_channels, block_channels) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, member, first, last, channel, channels = block_of(
            item, n_channels, n_rows, n_inner, rows_per_split, splits, block_channels
        )
        column, n_columns = channel * n_inner, channels * n_inner
        offs_c = channel + tl.arange(0, BLOCK_C)
        mask_c = offs_c < channel + channels
        held = hold_rows(
            x_ptr, first, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES, KEPT,
        )  # fmt: skip
        pivot = near_mean(held, first, last, DTYPE, BLOCK_N, PIECES)
        mean = tl.zeros((BLOCK_N, BLOCK_W, PACK), tl.float32)
        m2 = tl.zeros((BLOCK_N, BLOCK_W, PACK), tl.float32)
        mean, m2 = meet_tiles(mean, m2, held, pivot, 0, first, last, DTYPE, BLOCK_N, PIECES)
        if STREAM > 0:
            mean, m2 = stream_moments(
                mean, m2, x_ptr, pivot, first, first + PIECES * BLOCK_N, last,
                column, n_columns, x_stride, DTYPE, PACK, VECTOR_WORDS, BLOCK_N, BLOCK_W, STREAM,
            )  # fmt: skip
        pivot, mean, m2 = channel_moments(
            pivot, mean, m2, first, last, n_inner, BLOCK_N, BLOCK_C, BLOCK_S
        )
        mean_hi, scale, offset = settle_moments(
            pivot, mean, m2, gamma_ptr, beta_ptr,
            saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr,
            partials_ptr, arrivals_ptr, barriers_ptr,
            block, tl.cdiv(n_channels, block_channels), member, offs_c, mask_c,
            n_channels, n_rows, rows_per_split, splits, n_inner, count, eps, momentum,
            CUMULATIVE, GROUPED, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        offset = at_columns(offset, n_inner, PACK, BLOCK_S, BLOCK_W)
        scale = at_columns(scale, n_inner, PACK, BLOCK_S, BLOCK_W)
        mean_hi = at_columns(mean_hi, n_inner, PACK, BLOCK_S, BLOCK_W)
        again = opaque(first, ASM)
        if STREAM > 0:
            stream_normalize(
                x_ptr, y_ptr, residual_ptr, mask_ptr, mean_hi, scale, offset,
                again + PIECES * BLOCK_N, last,
                column, n_columns, n_channels * n_inner, x_stride, y_stride,
                ACTIVATION, PARAMETER, DTYPE, PACK, VECTOR_WORDS, BLOCK_N, BLOCK_W, STREAM,
            )  # fmt: skip
        normalize_tiles(
            y_ptr, residual_ptr, mask_ptr, held, mean_hi, scale, offset, again, last,
            column, n_columns, n_channels * n_inner, y_stride,
            ACTIVATION, PARAMETER, DTYPE, ASM, VECTOR_WORDS, BLOCK_N, PIECES, KEPT,
        )  # fmt: skip


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_rows", "n_inner", "rows_per_split", "splits", "block_channels",
    "dy_stride", "x_stride", "dx_stride",
])
def rows_backward_kernel(
    dy_ptr, x_ptr, gamma_ptr, beta_ptr, saved_ptr,
    dx_ptr, dgamma_ptr, dbeta_ptr, side_ptr, dresidual_ptr, partials_ptr, barriers_ptr,
    n_channels, n_rows, n_inner, rows_per_split, splits, block_channels,
    dy_stride, x_stride, dx_stride,
    count,
    GROUPED: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, SIDE: tl.constexpr, RESTORES: tl.constexpr,
    DTYPE: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PIECES: tl.constexpr, STREAM: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """dx, dgamma and dbeta (training) of the items of this program."""
    FUSED: tl.constexpr = (ACTIVATION, PARAMETER, SIDE, RESTORES)
    # else scale and offset are not looked at before the sums
    RECOMPUTES: tl.constexpr = RESTORES or (ACTIVATION != "identity" and SIDE != "mask")
    KEPT: tl.constexpr = "evict_first" if STREAM > 0 else ""
    items = tl.cdiv(n_channels, block_channels) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, member, first, last, channel, channels = block_of(
            item, n_channels, n_rows, n_inner, rows_per_split, splits, block_channels
        )
        column, n_columns = channel * n_inner, channels * n_inner
        offs_c = channel + tl.arange(0, BLOCK_C)
        mask_c = offs_c < channel + channels
        held_dy = hold_rows(
            dy_ptr, first, last, column, n_columns, dy_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES, KEPT,
        )  # fmt: skip
        held_x = hold_rows(
            x_ptr, first, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES, KEPT,
        )  # fmt: skip
        held_mask = hold_masks(
            side_ptr, first, last, column, n_columns, n_channels * n_inner,
            FUSED, PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES,
        )  # fmt: skip
        mean_hi, mean_lo, inv_std, scale, offset = backward_vectors(
            saved_ptr, gamma_ptr, beta_ptr, offs_c, mask_c, n_channels, FUSED, tl.float32
        )
        mean_at = at_columns(mean_hi, n_inner, PACK, BLOCK_S, BLOCK_W)
        scale_at, offset_at = mean_at, mean_at
        if RECOMPUTES:
            scale_at = at_columns(scale, n_inner, PACK, BLOCK_S, BLOCK_W)
            offset_at = at_columns(offset, n_inner, PACK, BLOCK_S, BLOCK_W)
        sum_dy, sum_product = sum_rows(
            held_dy, held_x, held_mask, dy_ptr, x_ptr, side_ptr, dresidual_ptr,
            mean_at, scale_at, offset_at, first, last,
            column, n_columns, n_channels * n_inner, dy_stride, x_stride, dx_stride,
            FUSED, DTYPE, PACK, ASM, VECTOR_WORDS, BLOCK_N, BLOCK_W, PIECES, STREAM,
        )  # fmt: skip
        sum_dy = channel_sum(sum_dy, n_inner, BLOCK_C, BLOCK_S)
        sum_product = channel_sum(sum_product, n_inner, BLOCK_C, BLOCK_S) - mean_lo * sum_dy
        mean_dy, slope = settle_sums(
            sum_dy, sum_product, mean_lo, inv_std, dgamma_ptr, dbeta_ptr,
            partials_ptr, barriers_ptr, block, member, offs_c, channel + channels,
            n_channels, splits, count, GROUPED, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        mean_dy = at_columns(mean_dy, n_inner, PACK, BLOCK_S, BLOCK_W)
        slope = at_columns(slope, n_inner, PACK, BLOCK_S, BLOCK_W)
        scale = at_columns(scale, n_inner, PACK, BLOCK_S, BLOCK_W)
        again = opaque(first, ASM)
        if STREAM > 0:
            stream_input_gradient(
                dy_ptr, x_ptr, dx_ptr, side_ptr, mean_at, scale, offset_at, mean_dy, slope,
                again + PIECES * BLOCK_N, last,
                column, n_columns, n_channels * n_inner, dy_stride, x_stride, dx_stride,
                FUSED, DTYPE, PACK, VECTOR_WORDS, BLOCK_N, BLOCK_W, STREAM,
            )  # fmt: skip
        input_gradient_tiles(
            dx_ptr, held_dy, held_x, held_mask, side_ptr, mean_at, scale, offset_at, mean_dy, slope,
            again, last, column, n_columns, dx_stride,
            FUSED, DTYPE, ASM, VECTOR_WORDS, BLOCK_N, PIECES, KEPT,
        )  # fmt: skip
