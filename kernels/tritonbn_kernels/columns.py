"""Tiles of rows: how the rows kernels load, store and reduce them.

A row is what follows in memory before the batch moves on: an image, all its channels one after the
other (planes of 7 x 7 or 14 x 14 half values are no multiple of 16 bytes, an image is), or in
channels_last one position with its C channels. A tile holds BLOCK_N rows of BLOCK_W words; its
columns are whole channels of `n_inner` columns each, one in channels_last (BLOCK_S = 1). Values of
a tile are (BLOCK_N, BLOCK_W, PACK): the PACK values of a word along the last axis, so that columns
are the last two axes in one. Each (row, column) of the tile is a slot, which keeps its own sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.activations import activate, passes
from tritonbn_kernels.fusion import pulled_back
from tritonbn_kernels.masks import pack, unpack_bits
from tritonbn_kernels.moments import affine, merge_moments
from tritonbn_kernels.words import fp32_values, opaque


# fmt: off
@triton.jit
def row_offsets(
    rows, last, column, n_columns, row_stride,
    PACK: tl.constexpr, BLOCK_W: tl.constexpr, VECTOR_WORDS: tl.constexpr,
):
    # fmt: on
    """Word offsets and mask of a tile; the multiplications by VECTOR_WORDS show the alignment.

    `column`, `n_columns` and `row_stride` count elements; VECTOR_WORDS divides them, in words.
    """
    words = tl.arange(0, BLOCK_W)
    start = column // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    limit = n_columns // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    stride = row_stride // (PACK * VECTOR_WORDS) * VECTOR_WORDS
    offsets = rows.to(tl.int64)[:, None] * stride + (start + words)[None, :]
    return offsets, (rows < last)[:, None] & (words < limit)[None, :]


# fmt: off
@triton.jit
def hold_rows(
    ptr, first, last, column, n_columns, row_stride,
    PACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    TILES: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """TILES tiles (BLOCK_N, BLOCK_W) of int32 words from row `first`, 0 outside."""
    held = ()
    for tile in tl.static_range(TILES):
        rows = first + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        offsets, mask = row_offsets(
            rows, last, column, n_columns, row_stride, PACK, BLOCK_W, VECTOR_WORDS
        )
        words = tl.load(
            ptr.to(tl.pointer_type(tl.int32)) + offsets,
            mask=mask,
            other=0,
            eviction_policy=EVICTION,
        )
        held = held + (words,)
    return held


# fmt: off
@triton.jit
def put_rows(
    ptr, values, rows, last, column, n_columns, row_stride,
    DTYPE: tl.constexpr, VECTOR_WORDS: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """Store the values of a tile as elements."""
    PACK: tl.constexpr = values.shape[2]
    BLOCK_W: tl.constexpr = values.shape[1]
    # as for words of one element each
    offsets, mask = row_offsets(
        rows, last, column, n_columns, row_stride, 1, BLOCK_W * PACK, VECTOR_WORDS * PACK
    )
    elements = tl.reshape(values, (values.shape[0], BLOCK_W * PACK)).to(DTYPE)
    tl.store(ptr + offsets, elements, mask=mask, eviction_policy=EVICTION)


# fmt: off
@triton.jit
def put_mask(
    mask_ptr, keep, rows, last, column, n_columns, row_length, VECTOR_WORDS: tl.constexpr
):
    # fmt: on
    """Store the bits of a tile: a byte for each access of VECTOR_WORDS words."""
    RUN: tl.constexpr = VECTOR_WORDS * keep.shape[2]
    RUNS: tl.constexpr = keep.shape[1] // VECTOR_WORDS
    byte = pack(tl.reshape(keep, (keep.shape[0], RUNS, RUN)), 2, 0, 1)
    offsets, there = row_offsets(rows, last, column, n_columns, row_length, RUN, RUNS, 1)
    tl.store(mask_ptr + offsets, byte.to(tl.uint8), mask=there)


# fmt: off
@triton.jit
def hold_masks(
    mask_ptr, first, last, column, n_columns, row_length,
    FUSED: tl.constexpr, PACK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    VECTOR_WORDS: tl.constexpr, TILES: tl.constexpr,
):
    # fmt: on
    """TILES tiles of a mask's bytes from row `first`; none if there is no mask."""
    held = ()
    if FUSED[2] == "mask":
        for tile in tl.static_range(TILES):
            rows = first + tile * BLOCK_N + tl.arange(0, BLOCK_N)
            offsets, there = row_offsets(
                rows, last, column, n_columns, row_length,
                PACK * VECTOR_WORDS, BLOCK_W // VECTOR_WORDS, 1,
            )  # fmt: skip
            held = held + (tl.load(mask_ptr + offsets, mask=there, other=0),)
    return held


# fmt: off
@triton.jit
def row_side(
    masks, side_ptr, tile: tl.constexpr, first, last, column, n_columns, stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, BLOCK_W: tl.constexpr, PACK: tl.constexpr,
    VECTOR_WORDS: tl.constexpr, BLOCK_N: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """What `pulled_back` takes as its side for the tile from row `first`.

    A residual is read here, each time: held, it would take the registers of a third tensor.
    """
    if FUSED[2] == "mask":
        keep = unpack_bits(masks[tile], 2, VECTOR_WORDS * PACK, 0, 1)
        side = tl.reshape(keep, (BLOCK_N, BLOCK_W, PACK))
    elif FUSED[2] == "residual":
        words = hold_rows(
            side_ptr, first, last, column, n_columns, stride,
            PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, 1, EVICTION,
        )  # fmt: skip
        side = fp32_values(words[0], DTYPE)
    else:
        side = first
    return side


@triton.jit
def by_channel(columns, n_inner, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Columns (BLOCK_W, PACK) as (BLOCK_C, BLOCK_S): the `n_inner` of a channel, then others."""
    flat = tl.reshape(columns, (columns.shape[0] * columns.shape[1],))
    if BLOCK_S > 1:
        index = tl.arange(0, BLOCK_C)[:, None] * n_inner + tl.arange(0, BLOCK_S)[None, :]
        index = tl.minimum(index, flat.shape[0] - 1)
        flat = tl.gather(flat, tl.reshape(index, (BLOCK_C * BLOCK_S,)), 0)
    return tl.reshape(flat, (BLOCK_C, BLOCK_S))


# fmt: off
@triton.jit
def at_columns(
    channels, n_inner, PACK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_W: tl.constexpr,
):
    # fmt: on
    """A per-channel vector (BLOCK_C,) at every column, (BLOCK_W, PACK)."""
    if BLOCK_S > 1:
        index = tl.minimum(tl.arange(0, BLOCK_W * PACK) // n_inner, channels.shape[0] - 1)
        channels = tl.gather(channels, index, 0)
    return tl.reshape(channels, (BLOCK_W, PACK))


# fmt: off
@triton.jit
def near_mean(
    held, first, last, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr
):
    # fmt: on
    """A number amid each column's values, (BLOCK_W, PACK): the mean of its first four tiles.

    Of more than one, for a column of a tile may have one value, and that may be an outlier. Taken
    from the first value on, so that it is exact where all are equal.
    """
    NEAR: tl.constexpr = TILES if TILES < 4 else 4
    offs_n = tl.arange(0, BLOCK_N)[:, None, None]
    shift = tl.sum(tl.where(offs_n == 0, fp32_values(held[0], DTYPE), 0.0), axis=0)
    deviation = tl.zeros((BLOCK_N, shift.shape[0], shift.shape[1]), tl.float32)
    for tile in tl.static_range(NEAR):
        there = first + tile * BLOCK_N + offs_n < last
        deviation += tl.where(there, fp32_values(held[tile], DTYPE) - shift[None, :, :], 0.0)
    return shift + tl.sum(deviation, axis=0) / tl.minimum(last - first, NEAR * BLOCK_N)


# fmt: off
@triton.jit
def meet_tiles(
    mean, m2, tiles, pivot, met, first, last,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, TILES: tl.constexpr,
):
    # fmt: on
    """Welford's update of every slot's moments of `x - pivot` by TILES tiles from row `first`.

    A slot that meets a tile has met all `met` before it: one rank serves them all.
    """
    for tile in tl.static_range(TILES):
        there = (first + tile * BLOCK_N + tl.arange(0, BLOCK_N) < last)[:, None, None]
        x = fp32_values(tiles[tile], DTYPE)
        delta = tl.where(there, (x - pivot[None, :, :]) - mean, 0.0)
        step = delta * (1.0 / (met + (tile + 1)))
        mean += step
        m2 += delta * (delta - step)
    return mean, m2


# fmt: off
@triton.jit
def channel_moments(
    pivot, mean, m2, first, last, n_inner,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """(pivot, mean and M2 of `x - pivot`), each (BLOCK_C,), of slots that met rows [first, last).

    `pivot` is per column, (BLOCK_W, PACK); `mean` and `m2` are per slot.
    """
    met = tl.maximum(last - first - tl.arange(0, BLOCK_N) + (BLOCK_N - 1), 0) // BLOCK_N
    _, mean, m2 = merge_moments(met.to(tl.float32)[:, None, None], mean, m2, 0)
    # one after the other: each may take as many registers as half of what is held
    shift = by_channel(pivot, n_inner, BLOCK_C, BLOCK_S)
    mean = by_channel(mean, n_inner, BLOCK_C, BLOCK_S)
    if BLOCK_S > 1:
        offs_s = tl.arange(0, BLOCK_S)[None, :]
        there = tl.broadcast_to(offs_s < n_inner, (BLOCK_C, BLOCK_S))
        # the middle of the columns' shifts: amid the channel's values
        near = tl.sum(tl.where(offs_s == 0, shift, 0.0), axis=1)
        apart = tl.where(there, shift - near[:, None], 0.0)
        pivot = near + tl.sum(apart, axis=1) / n_inner
        mean = tl.where(there, (shift - pivot[:, None]) + mean, 0.0)
        count = tl.where(there, (last - first).to(tl.float32), 0.0)
        _, mean, between = merge_moments(count, mean, tl.zeros_like(mean), 1)
        m2 = tl.where(there, by_channel(m2, n_inner, BLOCK_C, BLOCK_S), 0.0)
        m2 = between + tl.sum(m2, axis=1)
    else:
        pivot = tl.reshape(shift, (BLOCK_C,))
        mean = tl.reshape(mean, (BLOCK_C,))
        m2 = tl.reshape(m2, (BLOCK_C,))
    return pivot, mean, m2


@triton.jit
def channel_sum(slots, n_inner, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Sums per channel, (BLOCK_C,), of sums per slot."""
    columns = by_channel(tl.sum(slots, axis=0), n_inner, BLOCK_C, BLOCK_S)
    there = tl.arange(0, BLOCK_S)[None, :] < n_inner
    return tl.sum(tl.where(there, columns, 0.0), axis=1)


# fmt: off
@triton.jit
def normalize_tiles(
    y_ptr, residual_ptr, mask_ptr, tiles, mean_hi, scale, offset, first, last,
    column, n_columns, row_length, y_stride,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr,
    DTYPE: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr, BLOCK_N: tl.constexpr,
    TILES: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """Write y of TILES tiles from row `first`, and its mask where there is one; the vectors are per
    column, (BLOCK_W, PACK). `row_length`: elements of a row of a dense tensor."""
    BLOCK_W: tl.constexpr = tiles[0].shape[1]
    PACK: tl.constexpr = mean_hi.shape[1]
    for tile in tl.static_range(TILES):
        rows = first + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        x = fp32_values(opaque(tiles[tile], ASM), DTYPE)
        z = affine(x, mean_hi[None, :, :], scale[None, :, :], offset[None, :, :])
        if residual_ptr is not None:
            # laid out as y; read here, it need not be held
            residual = hold_rows(
                residual_ptr, first + tile * BLOCK_N, last, column, n_columns, y_stride,
                PACK, BLOCK_N, BLOCK_W, VECTOR_WORDS, 1, EVICTION,
            )  # fmt: skip
            z += fp32_values(residual[0], DTYPE)
        if mask_ptr is not None:
            put_mask(
                mask_ptr, passes(z, ACTIVATION), rows, last, column, n_columns, row_length,
                VECTOR_WORDS,
            )  # fmt: skip
        y = activate(z, ACTIVATION, PARAMETER)
        put_rows(
            y_ptr, y, rows, last, column, n_columns, y_stride, DTYPE, VECTOR_WORDS, EVICTION
        )  # fmt: skip


# fmt: off
@triton.jit
def add_tiles(
    sum_dy, sum_product, dys, xs, masks, side_ptr, dresidual_ptr, mean_hi, scale, offset,
    first, last, column, n_columns, dx_stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, TILES: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """Every slot's sums of dz and of dz * (x - mean_hi), with TILES more tiles of both; dz is
    written where it is asked for, as the residual's gradient. EVICTION is of a residual that is
    read, and will be read again.

    dy is 0 outside, and so are the products while mean and z are finite there.
    """
    for tile in tl.static_range(TILES):
        side = row_side(
            masks, side_ptr, tile, first + tile * BLOCK_N, last, column, n_columns, dx_stride,
            FUSED, DTYPE, dys[tile].shape[1], mean_hi.shape[1], VECTOR_WORDS, BLOCK_N, EVICTION,
        )  # fmt: skip
        dz, centred = pulled_back(
            fp32_values(opaque(dys[tile], ASM), DTYPE), fp32_values(opaque(xs[tile], ASM), DTYPE),
            side,
            mean_hi[None, :, :], scale[None, :, :], offset[None, :, :], FUSED,
        )  # fmt: skip
        sum_dy += dz
        sum_product = tl.fma(dz, centred, sum_product)
        if dresidual_ptr is not None:
            rows = opaque(first, ASM) + tile * BLOCK_N + tl.arange(0, BLOCK_N)
            put_rows(
                dresidual_ptr, dz, rows, last, column, n_columns, dx_stride,
                DTYPE, VECTOR_WORDS, "evict_first" if EVICTION != "" else "",
            )  # fmt: skip
    return sum_dy, sum_product


# fmt: off
@triton.jit
def input_gradient_tiles(
    dx_ptr, dys, xs, masks, side_ptr, mean_hi, scale, offset, mean_dy, slope, first, last,
    column, n_columns, dx_stride,
    FUSED: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, VECTOR_WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr, TILES: tl.constexpr, EVICTION: tl.constexpr,
):
    # fmt: on
    """Write dx of TILES tiles from row `first`; the vectors are per column, (BLOCK_W, PACK)."""
    for tile in tl.static_range(TILES):
        rows = first + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        dy = fp32_values(opaque(dys[tile], ASM), DTYPE)
        x = fp32_values(opaque(xs[tile], ASM), DTYPE)
        side = row_side(
            masks, side_ptr, tile, first + tile * BLOCK_N, last, column, n_columns, dx_stride,
            FUSED, DTYPE, dys[tile].shape[1], mean_hi.shape[1], VECTOR_WORDS, BLOCK_N, EVICTION,
        )  # fmt: skip
        dz, centred = pulled_back(
            dy, x, side, mean_hi[None, :, :], scale[None, :, :], offset[None, :, :], FUSED
        )
        bent = centred * slope[None, :, :]
        dx = scale[None, :, :] * ((dz - mean_dy[None, :, :]) - bent)
        put_rows(
            dx_ptr, dx, rows, last, column, n_columns, dx_stride, DTYPE, VECTOR_WORDS, EVICTION
        )  # fmt: skip
