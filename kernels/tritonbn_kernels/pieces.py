"""Pieces of planes: how the resident kernels load, store and reduce what they hold.

A piece is one tile (BLOCK_C, BLOCK_V, WORDS) of 32-bit words, a vector of WORDS words along a
plane; a word has PACK values, which are computed with one after the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.activations import activate, passes
from tritonbn_kernels.fusion import pulled_back
from tritonbn_kernels.masks import pack, unpack_bits
from tritonbn_kernels.moments import affine, locate_vectors, tile_mask, tile_offsets
from tritonbn_kernels.words import interleave, opaque, unpack


# fmt: off
@triton.jit
def hold(
    ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
    stride_outer, stride_channel,
    OFFSETS_64: tl.constexpr, WORDS: tl.constexpr, BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """PIECES tiles (BLOCK_C, BLOCK_V, WORDS) of int32 words from vector `first`, 0 outside."""
    held = ()
    for piece in tl.static_range(PIECES):
        offs_v = first + piece * BLOCK_V + tl.arange(0, BLOCK_V)
        outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, False)
        mask = tile_mask(offs_c, offs_v, n_channels, last, False, WORDS)
        offsets = tile_offsets(
            outer, column, offs_c, stride_outer, stride_channel, False, OFFSETS_64, WORDS
        )
        held = held + (tl.load(ptr.to(tl.pointer_type(tl.int32)) + offsets, mask=mask, other=0),)
    return held


# fmt: off
@triton.jit
def put_tile(
    ptr, values, offs_c, offs_v, last, n_channels, inner_vectors, magic, shift,
    stride_outer, stride_channel, OFFSETS_64: tl.constexpr, VECTOR: tl.constexpr,
):
    # fmt: on
    """Store one tile (BLOCK_C, BLOCK_V, VECTOR) whose vectors are offs_v."""
    outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, False)
    mask = tile_mask(offs_c, offs_v, n_channels, last, False, VECTOR)
    offsets = tile_offsets(
        outer, column, offs_c, stride_outer, stride_channel, False, OFFSETS_64, VECTOR
    )
    tl.store(ptr + offsets, values, mask=mask)


# fmt: off
@triton.jit
def held_moments(
    held, first_values, offs_c, first, last, n_channels,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr,
    BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """(pivot, mean and M2 of `x - pivot`), each (BLOCK_C,), of what is held.

    Sums of d and d^2 about the mean of the first tile. A pivot amid one of at most PIECES tiles is
    within sqrt(PIECES) standard deviations of their mean: the subtraction at the end costs no more
    than that factor squared.
    """
    offs_tile = tl.arange(0, BLOCK_V)
    mask = tile_mask(offs_c, first + offs_tile, n_channels, last, False, WORDS)
    deviation = tl.zeros(held[0].shape, tl.float32)
    for part in tl.static_range(PACK):
        x = unpack(held[0], DTYPE)[part]
        deviation += tl.where(mask, x - first_values[:, None, None], 0.0)
    tile_count = (tl.minimum(last - first, BLOCK_V) * (WORDS * PACK)).to(tl.float32)
    pivot = first_values + tl.sum(tl.sum(deviation, axis=2), axis=1) / tile_count
    sum_d = tl.zeros(held[0].shape, tl.float32)
    sum_dd = tl.zeros(held[0].shape, tl.float32)
    for piece in tl.static_range(PIECES):
        mask = tile_mask(
            offs_c, first + piece * BLOCK_V + offs_tile, n_channels, last, False, WORDS
        )
        for part in tl.static_range(PACK):
            d = tl.where(mask, unpack(held[piece], DTYPE)[part] - pivot[:, None, None], 0.0)
            sum_d += d
            sum_dd = tl.fma(d, d, sum_dd)
    count = ((last - first) * (WORDS * PACK)).to(tl.float32)
    total = tl.sum(tl.sum(sum_d, axis=2), axis=1)
    mean = total / count
    m2 = tl.sum(tl.sum(sum_dd, axis=2), axis=1) - total * mean
    # not maximum(): NaN must stay NaN
    return pivot, mean, tl.where(m2 < 0.0, 0.0, m2)


# fmt: off
@triton.jit
def normalize_pieces(
    y_ptr, residual_ptr, mask_ptr, held, mean_hi, scale, offset,
    offs_c, first, last, n_channels, inner_vectors, magic, shift, y_stride_outer, y_stride_channel,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, OFFSETS_64: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """Write y of what is held, and its mask where there is one."""
    for piece in tl.static_range(PIECES):
        offs_v = first + piece * BLOCK_V + tl.arange(0, BLOCK_V)
        values = unpack(opaque(held[piece], ASM), DTYPE)
        if residual_ptr is not None:
            # laid out as y; read here, it need not be held
            residual = hold(
                residual_ptr, offs_c, first + piece * BLOCK_V, last, n_channels,
                inner_vectors, magic, shift, y_stride_outer, y_stride_channel,
                OFFSETS_64, WORDS, BLOCK_V, 1,
            )  # fmt: skip
            added = unpack(residual[0], DTYPE)
        activated = ()
        keep = tl.zeros(held[0].shape, tl.int32)
        for part in tl.static_range(PACK):
            z = affine(
                values[part],
                mean_hi[:, None, None],
                scale[:, None, None],
                offset[:, None, None],
            )
            if residual_ptr is not None:
                z += added[part]
            if mask_ptr is not None:
                keep |= passes(z, ACTIVATION).to(tl.int32) << part
            activated = activated + (activate(z, ACTIVATION, PARAMETER),)
        put_tile(
            y_ptr, interleave(activated, DTYPE), offs_c, offs_v, last,
            n_channels, inner_vectors, magic, shift, y_stride_outer, y_stride_channel,
            OFFSETS_64, WORDS * PACK,
        )  # fmt: skip
        if mask_ptr is not None:
            # a byte for each vector
            byte = tl.expand_dims(pack(keep, 2, 0, PACK), 2).to(tl.uint8)
            put_tile(
                mask_ptr, byte, offs_c, offs_v, last, n_channels, inner_vectors, magic, shift,
                n_channels * inner_vectors, inner_vectors, OFFSETS_64, 1,
            )  # fmt: skip


# fmt: off
@triton.jit
def hold_mask(
    mask_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
    FUSED: tl.constexpr, OFFSETS_64: tl.constexpr, BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """PIECES tiles (BLOCK_C, BLOCK_V) of a mask, a byte for each vector; none if there is none."""
    held = ()
    if FUSED[2] == "mask":
        for piece in tl.static_range(PIECES):
            offs_v = first + piece * BLOCK_V + tl.arange(0, BLOCK_V)
            outer, column = locate_vectors(offs_v, inner_vectors, magic, shift, False)
            offsets = tile_offsets(
                outer, column, offs_c, n_channels * inner_vectors, inner_vectors,
                False, OFFSETS_64, 1,
            )  # fmt: skip
            there = tile_mask(offs_c, offs_v, n_channels, last, False, 1)
            byte = tl.load(mask_ptr + offsets, mask=there, other=0)
            held = held + (tl.reshape(byte, (byte.shape[0], byte.shape[1])),)
    return held


# fmt: off
@triton.jit
def side_parts(
    held_mask, side_ptr, piece: tl.constexpr, offs_c, first, last, n_channels,
    inner_vectors, magic, shift, stride_outer, stride_channel,
    FUSED: tl.constexpr, OFFSETS_64: tl.constexpr, DTYPE: tl.constexpr,
    WORDS: tl.constexpr, PACK: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """What `pulled_back` takes as its side for the piece from vector `first`, by parts of a word.

    A residual is read here, each time: held, it would take the registers of a third tensor.
    """
    if FUSED[2] == "mask":
        sides = ()
        for part in tl.static_range(PACK):
            sides = sides + (unpack_bits(held_mask[piece], 2, WORDS, part, PACK),)
    elif FUSED[2] == "residual":
        tiles = hold(
            side_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
            stride_outer, stride_channel, OFFSETS_64, WORDS, BLOCK_V, 1,
        )  # fmt: skip
        sides = unpack(tiles[0], DTYPE)
    else:
        sides = (offs_c, offs_c)
    return sides


# fmt: off
@triton.jit
def held_sums(
    held_dy, held_x, held_mask, side_ptr, dresidual_ptr, mean_hi, mean_lo, scale, offset,
    offs_c, first, last, n_channels, inner_vectors, magic, shift,
    dx_stride_outer, dx_stride_channel,
    FUSED: tl.constexpr, OFFSETS_64: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """(sum of dz, sum of dz * (x - mean)), each (BLOCK_C,), of what is held; dz is written where
    it is asked for, as the residual's gradient."""
    sum_dy = tl.zeros(held_dy[0].shape, tl.float32)
    sum_dy_centred = tl.zeros(held_dy[0].shape, tl.float32)
    for piece in tl.static_range(PIECES):
        offs_v = first + piece * BLOCK_V + tl.arange(0, BLOCK_V)
        mask = tile_mask(offs_c, offs_v, n_channels, last, False, WORDS)
        sides = side_parts(
            held_mask, side_ptr, piece, offs_c, first + piece * BLOCK_V, last, n_channels,
            inner_vectors, magic, shift, dx_stride_outer, dx_stride_channel,
            FUSED, OFFSETS_64, DTYPE, WORDS, PACK, BLOCK_V,
        )  # fmt: skip
        # one piece after the other, where there is more to compute than sums
        dys = unpack(opaque(held_dy[piece], ASM and FUSED[0] != "identity"), DTYPE)
        xs = unpack(opaque(held_x[piece], ASM and FUSED[0] != "identity"), DTYPE)
        gradients = ()
        for part in tl.static_range(PACK):
            dz, centred = pulled_back(
                dys[part], xs[part], sides[part],
                mean_hi[:, None, None], scale[:, None, None], offset[:, None, None], FUSED,
            )  # fmt: skip
            gradients = gradients + (dz,)
            centred = tl.where(mask, centred - mean_lo[:, None, None], 0.0)
            sum_dy += dz
            sum_dy_centred = tl.fma(dz, centred, sum_dy_centred)
        if dresidual_ptr is not None:
            put_tile(
                dresidual_ptr, interleave(gradients, DTYPE), offs_c, offs_v, last,
                n_channels, inner_vectors, magic, shift, dx_stride_outer, dx_stride_channel,
                OFFSETS_64, WORDS * PACK,
            )  # fmt: skip
    return (
        tl.sum(tl.sum(sum_dy, axis=2), axis=1),
        tl.sum(tl.sum(sum_dy_centred, axis=2), axis=1),
    )


# fmt: off
@triton.jit
def input_gradient_pieces(
    dx_ptr, held_dy, held_x, held_mask, side_ptr, mean_hi, scale, offset, mean_dy, slope,
    offs_c, first, last, n_channels, inner_vectors, magic, shift,
    dx_stride_outer, dx_stride_channel,
    FUSED: tl.constexpr, OFFSETS_64: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    BLOCK_V: tl.constexpr, PIECES: tl.constexpr,
):
    # fmt: on
    """Write dx of what is held."""
    for piece in tl.static_range(PIECES):
        offs_v = first + piece * BLOCK_V + tl.arange(0, BLOCK_V)
        dys = unpack(opaque(held_dy[piece], ASM), DTYPE)
        xs = unpack(opaque(held_x[piece], ASM), DTYPE)
        sides = side_parts(
            held_mask, side_ptr, piece, offs_c, first + piece * BLOCK_V, last, n_channels,
            inner_vectors, magic, shift, dx_stride_outer, dx_stride_channel,
            FUSED, OFFSETS_64, DTYPE, WORDS, PACK, BLOCK_V,
        )  # fmt: skip
        gradients = ()
        for part in tl.static_range(PACK):
            dz, centred = pulled_back(
                dys[part], xs[part], sides[part],
                mean_hi[:, None, None], scale[:, None, None], offset[:, None, None], FUSED,
            )  # fmt: skip
            bent = centred * slope[:, None, None]
            rest = (dz - mean_dy[:, None, None]) - bent
            gradients = gradients + (scale[:, None, None] * rest,)
        put_tile(
            dx_ptr, interleave(gradients, DTYPE), offs_c, offs_v, last,
            n_channels, inner_vectors, magic, shift, dx_stride_outer, dx_stride_channel,
            OFFSETS_64, WORDS * PACK,
        )  # fmt: skip
