"""What a hybrid plan cannot hold: read for the sums, and once more to finish.

The first pass asks the cache to keep what it reads; the second goes backwards, so that it begins
with what was read last, and lets go of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.columns import (
    add_tiles,
    hold_masks,
    hold_rows,
    input_gradient_tiles,
    meet_tiles,
    normalize_tiles,
)
from tritonbn_kernels.moments import tile_start


# fmt: off
@triton.jit
def stream_moments(
    mean, m2, x_ptr, pivot, first, begin, last, column, n_columns, x_stride,
    DTYPE: tl.constexpr, PACK: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, STREAM: tl.constexpr,
):
    # fmt: on
    """Every slot's moments with the rows [begin, last) too; those from `first` were met before."""
    for start in range(begin, last, STREAM * BLOCK_N):
        tiles = hold_rows(
            x_ptr, start, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_last",
        )  # fmt: skip
        met = ((start - first) // BLOCK_N).to(tl.float32)
        mean, m2 = meet_tiles(mean, m2, tiles, pivot, met, start, last, DTYPE, BLOCK_N, STREAM)
    return mean, m2


# fmt: off
@triton.jit
def stream_normalize(
    x_ptr, y_ptr, residual_ptr, mask_ptr, mean_hi, scale, offset, begin, last,
    column, n_columns, row_length, x_stride, y_stride,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr,
    DTYPE: tl.constexpr, PACK: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, STREAM: tl.constexpr,
):
    # fmt: on
    """Write y of the rows [begin, last), the last first."""
    STEP: tl.constexpr = STREAM * BLOCK_N
    for step in range(begin, last, STEP):
        start = tile_start(step, begin, last, STEP, True)
        tiles = hold_rows(
            x_ptr, start, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_first",
        )  # fmt: skip
        normalize_tiles(
            y_ptr, residual_ptr, mask_ptr, tiles, mean_hi, scale, offset, start, last,
            column, n_columns, row_length, y_stride, ACTIVATION, PARAMETER,
            DTYPE, False, VECTOR_WORDS, BLOCK_N, STREAM, "evict_first",
        )  # fmt: skip


# fmt: off
@triton.jit
def stream_sums(
    sum_dy, sum_product, dy_ptr, x_ptr, side_ptr, dresidual_ptr, mean_hi, scale, offset,
    begin, last, column, n_columns, row_length, dy_stride, x_stride, dx_stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, PACK: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, STREAM: tl.constexpr,
):
    # fmt: on
    """Every slot's sums with the rows [begin, last) too."""
    for start in range(begin, last, STREAM * BLOCK_N):
        dys = hold_rows(
            dy_ptr, start, last, column, n_columns, dy_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_last",
        )  # fmt: skip
        xs = hold_rows(
            x_ptr, start, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_last",
        )  # fmt: skip
        masks = hold_masks(
            side_ptr, start, last, column, n_columns, row_length,
            FUSED, PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM,
        )  # fmt: skip
        sum_dy, sum_product = add_tiles(
            sum_dy, sum_product, dys, xs, masks, side_ptr, dresidual_ptr, mean_hi, scale, offset,
            start, last, column, n_columns, dx_stride,
            FUSED, DTYPE, False, VECTOR_WORDS, BLOCK_N, STREAM, "evict_last",
        )  # fmt: skip
    return sum_dy, sum_product


# fmt: off
@triton.jit
def sum_rows(
    held_dy, held_x, held_mask, dy_ptr, x_ptr, side_ptr, dresidual_ptr, mean_hi, scale, offset,
    first, last, column, n_columns, row_length, dy_stride, x_stride, dx_stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    VECTOR_WORDS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PIECES: tl.constexpr, STREAM: tl.constexpr,
):
    # fmt: on
    """Every slot's sums of the rows [first, last), held or not."""
    SIDE_KEPT: tl.constexpr = "evict_last" if STREAM > 0 else ""
    sum_dy = tl.zeros((BLOCK_N, BLOCK_W, PACK), tl.float32)
    sum_product = tl.zeros((BLOCK_N, BLOCK_W, PACK), tl.float32)
    sum_dy, sum_product = add_tiles(
        sum_dy, sum_product, held_dy, held_x, held_mask, side_ptr, dresidual_ptr,
        mean_hi, scale, offset, first, last, column, n_columns, dx_stride,
        FUSED, DTYPE, ASM and FUSED[0] != "identity", VECTOR_WORDS, BLOCK_N, PIECES, SIDE_KEPT,
    )  # fmt: skip
    if STREAM > 0:
        sum_dy, sum_product = stream_sums(
            sum_dy, sum_product, dy_ptr, x_ptr, side_ptr, dresidual_ptr, mean_hi, scale, offset,
            first + PIECES * BLOCK_N, last,
            column, n_columns, row_length, dy_stride, x_stride, dx_stride,
            FUSED, DTYPE, PACK, VECTOR_WORDS, BLOCK_N, BLOCK_W, STREAM,
        )  # fmt: skip
    return sum_dy, sum_product


# fmt: off
@triton.jit
def stream_input_gradient(
    dy_ptr, x_ptr, dx_ptr, side_ptr, mean_hi, scale, offset, mean_dy, slope, begin, last,
    column, n_columns, row_length, dy_stride, x_stride, dx_stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, PACK: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, STREAM: tl.constexpr,
):
    # fmt: on
    """Write dx of the rows [begin, last), the last first."""
    STEP: tl.constexpr = STREAM * BLOCK_N
    for step in range(begin, last, STEP):
        start = tile_start(step, begin, last, STEP, True)
        dys = hold_rows(
            dy_ptr, start, last, column, n_columns, dy_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_first",
        )  # fmt: skip
        xs = hold_rows(
            x_ptr, start, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM, "evict_first",
        )  # fmt: skip
        masks = hold_masks(
            side_ptr, start, last, column, n_columns, row_length,
            FUSED, PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, STREAM,
        )  # fmt: skip
        input_gradient_tiles(
            dx_ptr, dys, xs, masks, side_ptr, mean_hi, scale, offset, mean_dy, slope, start, last,
            column, n_columns, dx_stride,
            FUSED, DTYPE, False, VECTOR_WORDS, BLOCK_N, STREAM, "evict_first",
        )  # fmt: skip
