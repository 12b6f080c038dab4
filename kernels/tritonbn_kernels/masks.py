"""One bit an element: where an activation of two slopes handed on what it was given.

A byte of the mask stands for a run of RUN elements, which is 16 bytes of the tensor (8 in half
precision), so that one thread makes a byte of what it holds: 1/16 of the tensor in every dtype.
Kernels that read less at a time, or a tensor that is no multiple of 16 bytes, have a byte for each
element (RUN = 1), which `fused.pack_bytes` packs where the size allows. Bytes lie in the order of
the elements of a dense tensor of the family, whatever the plan, so that the backward pass may have
another one: element e is bit e % RUN of byte e // RUN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.moments import tile_mask, tile_offsets


@triton.jit
def pack(keep, AXIS: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr):
    """Truths along the last but one (AXIS 1) or last (AXIS 2) of three axes as bits of a byte, from
    bit FIRST on, STEP apart; as int32, so that several may be added."""
    bits = FIRST + STEP * tl.arange(0, keep.shape[AXIS])
    bits = bits[None, :, None] if AXIS == 1 else bits[None, None, :]
    return tl.sum(keep.to(tl.int32) << bits, axis=AXIS)


@triton.jit
def unpack_bits(byte, AXIS: tl.constexpr, LENGTH: tl.constexpr, FIRST: tl.constexpr,
                STEP: tl.constexpr):  # fmt: skip
    """What `pack` took, along an axis of LENGTH again; `byte` has two axes."""
    bits = FIRST + STEP * tl.arange(0, LENGTH)
    bits = bits[None, :, None] if AXIS == 1 else bits[None, None, :]
    return ((tl.expand_dims(byte.to(tl.int32), AXIS) >> bits) & 1) != 0


@triton.jit
def _runs_of(offs_c, RUN: tl.constexpr):
    """Numbers of the runs of RUN channels that a block of channels is, (BLOCK_C / RUN,)."""
    return tl.min(tl.reshape(offs_c // RUN, (offs_c.shape[0] // RUN, RUN)), axis=1)


# fmt: off
@triton.jit
def _dense_offsets(
    outer, column, offs_c, n_channels, inner_vectors,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTOR: tl.constexpr,
):
    # fmt: on
    """`tile_offsets` in a dense tensor of the family."""
    if CHANNELS_LAST:
        offsets = tile_offsets(outer, column, offs_c, n_channels, 1, True, OFFSETS_64, 1)
    else:
        offsets = tile_offsets(
            outer, column, offs_c, n_channels * inner_vectors, inner_vectors,
            False, OFFSETS_64, VECTOR,
        )  # fmt: skip
    return offsets


# fmt: off
@triton.jit
def store_keep(
    mask_ptr, keep, outer, column, offs_c, offs_v, last, n_channels, inner_vectors,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTOR: tl.constexpr, RUN: tl.constexpr,
):
    # fmt: on
    """Store the bits of a tile (BLOCK_C, BLOCK_V, LANES); RUN is VECTOR or 1."""
    if RUN == 1:
        offsets = _dense_offsets(
            outer, column, offs_c, n_channels, inner_vectors, CHANNELS_LAST, OFFSETS_64, VECTOR
        )
        there = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, 1)
        tl.store(mask_ptr + offsets, keep.to(tl.uint8), mask=there)
    elif CHANNELS_LAST:
        runs = _runs_of(offs_c, RUN)
        keep = tl.reshape(keep, (runs.shape[0], RUN, offs_v.shape[0]))
        byte = tl.expand_dims(pack(keep, 1, 0, 1), 2)
        offsets = _dense_offsets(
            outer, column, runs, n_channels // RUN, 1, True, OFFSETS_64, 1
        )
        there = tile_mask(runs, offs_v, n_channels // RUN, last, False, 1)
        tl.store(mask_ptr + offsets, byte.to(tl.uint8), mask=there)
    else:
        byte = tl.expand_dims(pack(keep, 2, 0, 1), 2)
        offsets = _dense_offsets(
            outer, column, offs_c, n_channels, inner_vectors, False, OFFSETS_64, 1
        )
        there = tile_mask(offs_c, offs_v, n_channels, last, False, 1)
        tl.store(mask_ptr + offsets, byte.to(tl.uint8), mask=there)


# fmt: off
@triton.jit
def load_keep(
    mask_ptr, outer, column, offs_c, offs_v, last, n_channels, inner_vectors,
    CHANNELS_LAST: tl.constexpr, OFFSETS_64: tl.constexpr, VECTOR: tl.constexpr, RUN: tl.constexpr,
):
    # fmt: on
    """The truths of a tile, as `store_keep` of any plan stored them."""
    # by elements too where a pinned block of channels is less than a run
    if RUN != VECTOR or RUN == 1 or (CHANNELS_LAST and offs_c.shape[0] < RUN):
        elements = _dense_offsets(
            outer, column, offs_c, n_channels, inner_vectors, CHANNELS_LAST, OFFSETS_64, VECTOR
        )
        there = tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST, 1)
        byte = tl.load(mask_ptr + elements // RUN, mask=there, other=0)
        keep = ((byte.to(tl.int32) >> (elements % RUN).to(tl.int32)) & 1) != 0
    elif CHANNELS_LAST:
        runs = _runs_of(offs_c, RUN)
        offsets = _dense_offsets(
            outer, column, runs, n_channels // RUN, 1, True, OFFSETS_64, 1
        )
        there = tile_mask(runs, offs_v, n_channels // RUN, last, False, 1)
        byte = tl.load(mask_ptr + offsets, mask=there, other=0)
        byte = tl.reshape(byte, (byte.shape[0], byte.shape[1]))
        keep = tl.reshape(unpack_bits(byte, 1, RUN, 0, 1), (offs_c.shape[0], offs_v.shape[0], 1))
    else:
        offsets = _dense_offsets(
            outer, column, offs_c, n_channels, inner_vectors, False, OFFSETS_64, 1
        )
        there = tile_mask(offs_c, offs_v, n_channels, last, False, 1)
        byte = tl.load(mask_ptr + offsets, mask=there, other=0)
        keep = unpack_bits(tl.reshape(byte, (byte.shape[0], byte.shape[1])), 2, RUN, 0, 1)
    return keep
