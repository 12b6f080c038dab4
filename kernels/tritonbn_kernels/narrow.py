"""One read where planes are narrow: whole channels times images, in full 16-byte vectors.

A plane of 7 x 7 or 14 x 14 half values is no multiple of 16 bytes; an image, all channels in a row,
is. A tile holds BLOCK_N images of BLOCK_K columns, and CHANNELS whole channels of `n_inner` columns
lie in those. Each column keeps the moments of its images (at most PIECES * BLOCK_N), shifted by the
mean of its first two tiles: by its first value alone, an outlier there would cost a dozen times the
rounding. Columns become channels, and channels' results columns again, by a gather.
Items, groups and the barrier are those of `resident.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.barrier import group_barrier
from tritonbn_kernels.gradients import finish_gradients, merge_sums
from tritonbn_kernels.moments import inverse_std, load_channels, merge_moments, two_word_sum
from tritonbn_kernels.statistics import finish_statistics, merge_partials
from tritonbn_kernels.words import opaque, unpack


# fmt: off
@triton.jit
def hold_rows(
    ptr, first, last, column, n_columns, row_stride,
    PACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    PIECES: tl.constexpr,
):
    # fmt: on
    """PIECES tiles (BLOCK_N, BLOCK_W) of int32 words from image `first`, 0 outside.

    `column`, `n_columns` and `row_stride` count elements; VECTOR_WORDS divides them, in words.
    """
    held = ()
    for piece in tl.static_range(PIECES):
        rows = first + piece * BLOCK_N + tl.arange(0, BLOCK_N)
        offsets, mask = row_offsets(
            rows, last, column, n_columns, row_stride, PACK, BLOCK_W, VECTOR_WORDS
        )
        held = held + (tl.load(ptr.to(tl.pointer_type(tl.int32)) + offsets, mask=mask, other=0),)
    return held


# fmt: off
@triton.jit
def row_offsets(
    rows, last, column, n_columns, row_stride,
    PACK: tl.constexpr, BLOCK_W: tl.constexpr, VECTOR_WORDS: tl.constexpr,
):
    # fmt: on
    """Word offsets and mask of a tile; the multiplications by VECTOR_WORDS show the alignment."""
    words = tl.arange(0, BLOCK_W)
    start = column // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    limit = n_columns // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    stride = row_stride // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    offsets = rows.to(tl.int64)[:, None] * stride + (start + words)[None, :]
    return offsets, (rows < last)[:, None] & (words < limit)[None, :]


@triton.jit
def join_columns(parts, PACK: tl.constexpr):
    """Columns (BLOCK_K,) from the values of the even and the odd half words (BLOCK_W,)."""
    if PACK == 1:
        columns = parts[0]
    else:
        pairs = tl.join(parts[0], parts[1])
        columns = tl.reshape(pairs, (pairs.shape[0] * pairs.shape[1],))
    return columns


@triton.jit
def split_columns(columns, PACK: tl.constexpr):
    """The inverse of `join_columns`."""
    if PACK == 1:
        parts = (columns,)
    else:
        even, odd = tl.split(tl.reshape(columns, (columns.shape[0] // 2, 2)))
        parts = (even, odd)
    return parts


@triton.jit
def columns_by_channel(columns, n_inner, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Columns (BLOCK_K,) as (BLOCK_C, BLOCK_S): `n_inner` columns of each channel, then others."""
    offs_c = tl.arange(0, BLOCK_C)
    offs_s = tl.arange(0, BLOCK_S)
    index = offs_c[:, None] * n_inner + offs_s[None, :]
    index = tl.minimum(index, columns.shape[0] - 1)
    flat = tl.gather(columns, tl.reshape(index, (BLOCK_C * BLOCK_S,)), 0)
    return tl.reshape(flat, (BLOCK_C, BLOCK_S))


@triton.jit
def channels_by_column(channels, n_inner, BLOCK_K: tl.constexpr, PACK: tl.constexpr):
    """A per-channel vector (BLOCK_C,) at every column, taken apart as the words are."""
    index = tl.minimum(tl.arange(0, BLOCK_K) // n_inner, channels.shape[0] - 1)
    return split_columns(tl.gather(channels, index, 0), PACK)


# fmt: off
@triton.jit
def column_moments(
    held, first, last, n_inner,
    DTYPE: tl.constexpr, PACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """(pivot, mean and M2 of `x - pivot`), each (BLOCK_C,), of what is held."""
    rows = (last - first).to(tl.float32)
    firsts = ()
    means = ()
    squares = ()
    for part in tl.static_range(PACK):
        at_first = (tl.arange(0, BLOCK_N) == 0)[:, None]
        shift = tl.sum(tl.where(at_first, unpack(held[0], DTYPE)[part], 0.0), axis=0)
        near = tl.zeros((BLOCK_W,), tl.float32)
        for piece in tl.static_range(PIECES if PIECES < 2 else 2):
            there = (first + piece * BLOCK_N + tl.arange(0, BLOCK_N) < last)[:, None]
            d = tl.where(there, unpack(held[piece], DTYPE)[part] - shift[None, :], 0.0)
            near += tl.sum(d, axis=0)
        shift += near / tl.minimum(rows, 2.0 * BLOCK_N)
        sum_d = tl.zeros((BLOCK_W,), tl.float32)
        sum_dd = tl.zeros((BLOCK_W,), tl.float32)
        for piece in tl.static_range(PIECES):
            there = (first + piece * BLOCK_N + tl.arange(0, BLOCK_N) < last)[:, None]
            d = tl.where(there, unpack(held[piece], DTYPE)[part] - shift[None, :], 0.0)
            sum_d += tl.sum(d, axis=0)
            sum_dd += tl.sum(d * d, axis=0)
        mean = sum_d / rows
        m2 = sum_dd - sum_d * mean
        firsts = firsts + (shift,)
        means = means + (mean,)
        # not maximum(): NaN must stay NaN
        squares = squares + (tl.where(m2 < 0.0, 0.0, m2),)
    # one after the other: each takes as many registers as half of what is held
    shift = columns_by_channel(join_columns(firsts, PACK), n_inner, BLOCK_C, BLOCK_S)
    there = tl.broadcast_to((tl.arange(0, BLOCK_S) < n_inner)[None, :], (BLOCK_C, BLOCK_S))
    # the middle of the columns' shifts: amid the channel's values
    near = tl.sum(tl.where(tl.arange(0, BLOCK_S)[None, :] == 0, shift, 0.0), axis=1)
    apart = tl.where(there, shift - near[:, None], 0.0)
    pivot = near + tl.sum(apart, axis=1) / n_inner
    mean = columns_by_channel(join_columns(means, PACK), n_inner, BLOCK_C, BLOCK_S)
    mean = tl.where(there, (shift - pivot[:, None]) + mean, 0.0)
    count = tl.where(there, rows, 0.0)
    count, mean, between = merge_moments(count, mean, tl.zeros_like(mean), 1)
    m2 = columns_by_channel(join_columns(squares, PACK), n_inner, BLOCK_C, BLOCK_S)
    m2 = between + tl.sum(tl.where(there, m2, 0.0), axis=1)
    return pivot, mean, m2


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_rows", "n_inner", "rows_per_split", "splits", "block_channels",
    "x_stride", "y_stride",
])
def narrow_forward_kernel(
    x_ptr, gamma_ptr, beta_ptr,
    y_ptr, saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr,
    partials_ptr, arrivals_ptr, barriers_ptr,
    n_channels, n_rows, n_inner, rows_per_split, splits, block_channels, x_stride, y_stride,
    count, eps, momentum,
    CUMULATIVE: tl.constexpr, GROUPED: tl.constexpr,
    DTYPE: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PIECES: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Statistics, running statistics and y of the items of this program, x read once."""
    items = tl.cdiv(n_channels, block_channels) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item // splits
        member = item - block * splits
        first = member * rows_per_split
        last = tl.minimum(first + rows_per_split, n_rows)
        channel = block * block_channels
        column = channel * n_inner
        n_columns = tl.minimum(block_channels, n_channels - channel) * n_inner
        offs_c = channel + tl.arange(0, BLOCK_C)
        mask_c = offs_c < tl.minimum(channel + block_channels, n_channels)
        held = hold_rows(
            x_ptr, first, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES,
        )  # fmt: skip
        pivot, mean, m2 = column_moments(
            held, first, last, n_inner, DTYPE, PACK, BLOCK_N, BLOCK_W, BLOCK_C, BLOCK_S, PIECES
        )
        if GROUPED:
            partial = partials_ptr + member.to(tl.int64) * 3 * n_channels
            mean_hi, mean_lo = two_word_sum(pivot, mean)
            tl.store(partial + offs_c, mean_hi, mask=mask_c)
            tl.store(partial + n_channels + offs_c, mean_lo, mask=mask_c)
            tl.store(partial + 2 * n_channels + offs_c, m2, mask=mask_c)
            group_barrier(barriers_ptr + block, member, splits)
            pivot, mean, m2 = merge_partials(
                partials_ptr, offs_c, mask_c, n_channels, n_rows, rows_per_split, splits,
                tl.float32, n_inner, BLOCK_C, BLOCK_K,
            )  # fmt: skip
        if member == 0:
            finish_statistics(
                pivot, mean, m2, block, offs_c, mask_c, saved_ptr,
                running_mean_ptr, running_var_ptr, tracked_ptr, arrivals_ptr,
                n_channels, tl.cdiv(n_channels, block_channels), count, eps, momentum,
                None, None, CUMULATIVE, False, tl.float32,
            )  # fmt: skip
        mean_hi, mean_lo = two_word_sum(pivot, mean)
        scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, tl.float32)
        scale = scale * inverse_std(m2 / count, eps)
        # the second word of the mean, times the scale, joins the offset
        offset = load_channels(beta_ptr, offs_c, mask_c, 0.0, tl.float32) - mean_lo * scale
        hi_at = channels_by_column(mean_hi, n_inner, BLOCK_W * PACK, PACK)
        scale_at = channels_by_column(scale, n_inner, BLOCK_W * PACK, PACK)
        offset_at = channels_by_column(offset, n_inner, BLOCK_W * PACK, PACK)
        again = opaque(first, ASM)
        for piece in tl.static_range(PIECES):
            rows = again + piece * BLOCK_N + tl.arange(0, BLOCK_N)
            values = unpack(opaque(held[piece], ASM), DTYPE)
            normalized = ()
            for part in tl.static_range(PACK):
                y = tl.fma(
                    values[part] - hi_at[part][None, :],
                    tl.broadcast_to(scale_at[part][None, :], values[part].shape),
                    tl.broadcast_to(offset_at[part][None, :], values[part].shape),
                )
                normalized = normalized + (y,)
            put_rows(
                y_ptr, normalized, rows, last, column, n_columns, y_stride,
                DTYPE, PACK, BLOCK_W, VECTOR_WORDS,
            )  # fmt: skip


# fmt: off
@triton.jit
def put_rows(
    ptr, values, rows, last, column, n_columns, row_stride,
    DTYPE: tl.constexpr, PACK: tl.constexpr, BLOCK_W: tl.constexpr, VECTOR_WORDS: tl.constexpr,
):
    # fmt: on
    """Store a tile (BLOCK_N, BLOCK_W) of word values as elements."""
    if PACK == 1:
        merged = values[0]
    else:
        pairs = tl.join(values[0], values[1])
        merged = tl.reshape(pairs, (pairs.shape[0], pairs.shape[1] * pairs.shape[2]))
    # as for words of one element each
    offsets, mask = row_offsets(
        rows, last, column, n_columns, row_stride, 1, BLOCK_W * PACK, VECTOR_WORDS * PACK
    )
    tl.store(ptr + offsets, merged.to(DTYPE), mask=mask)


# fmt: off
@triton.jit
def column_sums(
    held_dy, held_x, mean_hi, mean_lo, n_inner,
    DTYPE: tl.constexpr, PACK: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """(sum of dy, sum of dy * (x - mean)), each (BLOCK_C,); dy is 0 outside."""
    hi_at = channels_by_column(mean_hi, n_inner, BLOCK_W * PACK, PACK)
    sums = ()
    products = ()
    for part in tl.static_range(PACK):
        sum_dy = tl.zeros((BLOCK_W,), tl.float32)
        sum_product = tl.zeros((BLOCK_W,), tl.float32)
        for piece in tl.static_range(PIECES):
            dy = unpack(held_dy[piece], DTYPE)[part]
            x = unpack(held_x[piece], DTYPE)[part]
            sum_dy += tl.sum(dy, axis=0)
            sum_product += tl.sum(dy * (x - hi_at[part][None, :]), axis=0)
        sums = sums + (sum_dy,)
        products = products + (sum_product,)
    there = (tl.arange(0, BLOCK_S) < n_inner)[None, :]
    dy_of = columns_by_channel(join_columns(sums, PACK), n_inner, BLOCK_C, BLOCK_S)
    product_of = columns_by_channel(join_columns(products, PACK), n_inner, BLOCK_C, BLOCK_S)
    sum_dy = tl.sum(tl.where(there, dy_of, 0.0), axis=1)
    sum_product = tl.sum(tl.where(there, product_of, 0.0), axis=1)
    return sum_dy, sum_product - mean_lo * sum_dy


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_rows", "n_inner", "rows_per_split", "splits", "block_channels",
    "dy_stride", "x_stride", "dx_stride",
])
def narrow_backward_kernel(
    dy_ptr, x_ptr, gamma_ptr, saved_ptr,
    dx_ptr, dgamma_ptr, dbeta_ptr, partials_ptr, barriers_ptr,
    n_channels, n_rows, n_inner, rows_per_split, splits, block_channels,
    dy_stride, x_stride, dx_stride,
    count,
    GROUPED: tl.constexpr,
    DTYPE: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    PIECES: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """dx, dgamma and dbeta (training) of the items of this program, dy and x read once."""
    items = tl.cdiv(n_channels, block_channels) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item // splits
        member = item - block * splits
        first = member * rows_per_split
        last = tl.minimum(first + rows_per_split, n_rows)
        channel = block * block_channels
        column = channel * n_inner
        n_columns = tl.minimum(block_channels, n_channels - channel) * n_inner
        offs_c = channel + tl.arange(0, BLOCK_C)
        end_c = tl.minimum(channel + block_channels, n_channels)
        mask_c = offs_c < end_c
        held_dy = hold_rows(
            dy_ptr, first, last, column, n_columns, dy_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES,
        )  # fmt: skip
        held_x = hold_rows(
            x_ptr, first, last, column, n_columns, x_stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, PIECES,
        )  # fmt: skip
        mean_hi = load_channels(saved_ptr, offs_c, mask_c, 0.0, tl.float32)
        mean_lo = load_channels(saved_ptr + n_channels, offs_c, mask_c, 0.0, tl.float32)
        inv_std = load_channels(saved_ptr + 2 * n_channels, offs_c, mask_c, 0.0, tl.float32)
        scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, tl.float32) * inv_std
        sum_dy, sum_dy_centred = column_sums(
            held_dy, held_x, mean_hi, mean_lo, n_inner,
            DTYPE, PACK, BLOCK_W, BLOCK_C, BLOCK_S, PIECES,
        )  # fmt: skip
        if GROUPED:
            partial = partials_ptr + member.to(tl.int64) * 2 * n_channels
            tl.store(partial + offs_c, sum_dy, mask=mask_c)
            tl.store(partial + n_channels + offs_c, sum_dy_centred, mask=mask_c)
            group_barrier(barriers_ptr + block, member, splits)
            sum_dy, sum_dy_centred = merge_sums(
                partials_ptr, offs_c, mask_c, n_channels, splits, tl.float32, BLOCK_C, BLOCK_K
            )
        # one member writes the parameters' gradients
        mask_writer = offs_c < tl.where(member == 0, end_c, 0)
        mean_dy, slope = finish_gradients(
            sum_dy, sum_dy_centred, inv_std, offs_c, mask_writer,
            dgamma_ptr, dbeta_ptr, None, n_channels, count,
        )  # fmt: skip
        hi_at = channels_by_column(mean_hi, n_inner, BLOCK_W * PACK, PACK)
        scale_at = channels_by_column(scale, n_inner, BLOCK_W * PACK, PACK)
        slope_at = channels_by_column(slope, n_inner, BLOCK_W * PACK, PACK)
        mean_at = channels_by_column(mean_dy - mean_lo * slope, n_inner, BLOCK_W * PACK, PACK)
        again = opaque(first, ASM)
        for piece in tl.static_range(PIECES):
            rows = again + piece * BLOCK_N + tl.arange(0, BLOCK_N)
            dys = unpack(opaque(held_dy[piece], ASM), DTYPE)
            xs = unpack(opaque(held_x[piece], ASM), DTYPE)
            gradients = ()
            for part in tl.static_range(PACK):
                bent = (xs[part] - hi_at[part][None, :]) * slope_at[part][None, :]
                rest = (dys[part] - mean_at[part][None, :]) - bent
                gradients = gradients + (scale_at[part][None, :] * rest,)
            put_rows(
                dx_ptr, gradients, rows, last, column, n_columns, dx_stride,
                DTYPE, PACK, BLOCK_W, VECTOR_WORDS,
            )  # fmt: skip
