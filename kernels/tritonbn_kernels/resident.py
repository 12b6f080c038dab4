"""One read: a channel's data stays in registers between its statistics and its normalisation.

An item is one member of a group: PIECES tiles of a block of channels. `splits` members share the
block's values, meet at a barrier (`barrier.py`) after their partial results, merge all of them in
index order, and finish from registers: 1R + 1W forward, 2R + 1W backward. With one member there is
no barrier and the launch is an ordinary one. The grid is persistent: items are dealt round-robin,
so that no program owns two items of one group while the grid is at least as large as the group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.fusion import backward_vectors
from tritonbn_kernels.group import settle_moments, settle_sums
from tritonbn_kernels.moments import load_channels
from tritonbn_kernels.pieces import (
    held_moments,
    held_sums,
    hold,
    hold_mask,
    input_gradient_pieces,
    normalize_pieces,
)
from tritonbn_kernels.words import opaque


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split", "splits",
    "x_stride_outer", "x_stride_channel", "y_stride_outer", "y_stride_channel",
])
def resident_forward_kernel(
    x_ptr, gamma_ptr, beta_ptr,
    y_ptr, saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, residual_ptr, mask_ptr,
    partials_ptr, arrivals_ptr, barriers_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split, splits,
    x_stride_outer, x_stride_channel, y_stride_outer, y_stride_channel,
    count, eps, momentum,
    CUMULATIVE: tl.constexpr, GROUPED: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, OFFSETS_64: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PIECES: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Statistics, running statistics and y of the items of this program, x read once."""
    items = tl.cdiv(n_channels, BLOCK_C) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item // splits
        member = item - block * splits
        first = member * vectors_per_split
        last = tl.minimum(first + vectors_per_split, n_vectors)
        offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        mask_c = offs_c < n_channels
        held = hold(
            x_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
            x_stride_outer, x_stride_channel, OFFSETS_64, WORDS, BLOCK_V, PIECES,
        )  # fmt: skip
        channel_start = offs_c.to(tl.int64) * x_stride_channel * (WORDS * PACK)
        first_values = load_channels(x_ptr, channel_start, mask_c, 0.0, tl.float32)
        pivot, mean, m2 = held_moments(
            held, first_values, offs_c, first, last, n_channels,
            DTYPE, WORDS, PACK, BLOCK_V, PIECES,
        )  # fmt: skip
        mean_hi, scale, offset = settle_moments(
            pivot, mean, m2, gamma_ptr, beta_ptr,
            saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr,
            partials_ptr, arrivals_ptr, barriers_ptr,
            block, tl.cdiv(n_channels, BLOCK_C), member, offs_c, mask_c,
            n_channels, n_vectors, vectors_per_split, splits, WORDS * PACK, count, eps, momentum,
            CUMULATIVE, GROUPED, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        normalize_pieces(
            y_ptr, residual_ptr, mask_ptr, held, mean_hi, scale, offset,
            offs_c, opaque(first, ASM), last, n_channels, inner_vectors, magic, shift,
            y_stride_outer, y_stride_channel,
            ACTIVATION, PARAMETER, OFFSETS_64, DTYPE, WORDS, PACK, ASM, BLOCK_V, PIECES,
        )  # fmt: skip


# fmt: off
@triton.jit(do_not_specialize=[
    "n_channels", "n_vectors", "inner_vectors", "magic", "shift", "vectors_per_split", "splits",
    "dy_stride_outer", "dy_stride_channel", "x_stride_outer", "x_stride_channel",
    "dx_stride_outer", "dx_stride_channel",
])
def resident_backward_kernel(
    dy_ptr, x_ptr, gamma_ptr, beta_ptr, saved_ptr,
    dx_ptr, dgamma_ptr, dbeta_ptr, side_ptr, dresidual_ptr, partials_ptr, barriers_ptr,
    n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split, splits,
    dy_stride_outer, dy_stride_channel, x_stride_outer, x_stride_channel,
    dx_stride_outer, dx_stride_channel,
    count,
    GROUPED: tl.constexpr,
    ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr, SIDE: tl.constexpr, RESTORES: tl.constexpr,
    OFFSETS_64: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, PACK: tl.constexpr, ASM: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, PIECES: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """dx, dgamma and dbeta (training) of the items of this program, dy and x read once."""
    FUSED: tl.constexpr = (ACTIVATION, PARAMETER, SIDE, RESTORES)
    items = tl.cdiv(n_channels, BLOCK_C) * splits
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item // splits
        member = item - block * splits
        first = member * vectors_per_split
        last = tl.minimum(first + vectors_per_split, n_vectors)
        offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        mask_c = offs_c < n_channels
        held_dy = hold(
            dy_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
            dy_stride_outer, dy_stride_channel, OFFSETS_64, WORDS, BLOCK_V, PIECES,
        )  # fmt: skip
        held_x = hold(
            x_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
            x_stride_outer, x_stride_channel, OFFSETS_64, WORDS, BLOCK_V, PIECES,
        )  # fmt: skip
        held_mask = hold_mask(
            side_ptr, offs_c, first, last, n_channels, inner_vectors, magic, shift,
            FUSED, OFFSETS_64, BLOCK_V, PIECES,
        )  # fmt: skip
        mean_hi, mean_lo, inv_std, scale, offset = backward_vectors(
            saved_ptr, gamma_ptr, beta_ptr, offs_c, mask_c, n_channels, FUSED, tl.float32
        )
        sum_dy, sum_dy_centred = held_sums(
            held_dy, held_x, held_mask, side_ptr, dresidual_ptr, mean_hi, mean_lo, scale, offset,
            offs_c, first, last, n_channels, inner_vectors, magic, shift,
            dx_stride_outer, dx_stride_channel,
            FUSED, OFFSETS_64, DTYPE, WORDS, PACK, ASM, BLOCK_V, PIECES,
        )  # fmt: skip
        mean_dy, slope = settle_sums(
            sum_dy, sum_dy_centred, mean_lo, inv_std, dgamma_ptr, dbeta_ptr,
            partials_ptr, barriers_ptr, block, member, offs_c, n_channels,
            n_channels, splits, count, GROUPED, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        input_gradient_pieces(
            dx_ptr, held_dy, held_x, held_mask, side_ptr, mean_hi, scale, offset, mean_dy, slope,
            offs_c, opaque(first, ASM), last, n_channels, inner_vectors, magic, shift,
            dx_stride_outer, dx_stride_channel,
            FUSED, OFFSETS_64, DTYPE, WORDS, PACK, ASM, BLOCK_V, PIECES,
        )  # fmt: skip
