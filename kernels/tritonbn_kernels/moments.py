"""Device mathematics that more than one kernel needs: tile addresses, moments, arrivals.

Derivations are in `kernels/README.md`. Everything here is inlined by the compiler; nothing is
launched by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_vectors(offs_v, inner_vectors, magic, shift, CHANNELS_LAST: tl.constexpr):
    """Split vector numbers `(BLOCK_V,)` within a channel into (plane, column within the plane).

    The division is a multiplication by `magic / 2**shift`, exact below 2**31; 64-bit vector
    numbers are divided as they are. In channels_last a vector number is a row.
    """
    if CHANNELS_LAST:
        outer = offs_v
        column = tl.zeros_like(offs_v)
    elif offs_v.dtype == tl.int64:
        outer = offs_v // inner_vectors
        column = offs_v - outer * inner_vectors
    else:
        outer = ((offs_v.to(tl.int64) * magic) >> shift).to(tl.int32)
        column = offs_v - outer * inner_vectors
    return outer, column


@triton.jit
def tile_offsets(
    outer,
    column,
    offs_c,
    stride_outer,
    stride_channel,
    CHANNELS_LAST: tl.constexpr,
    OFFSETS_64: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Element offsets of a tile, shape (BLOCK_C, BLOCK_V, LANES).

    Strides come in units of VECTOR elements, so that the multiplication shows the compiler the
    alignment that 16-byte accesses need. LANES is VECTOR in channels_first, where a vector runs
    along a plane, and 1 in channels_last, where it runs along the channels.
    """
    if OFFSETS_64:
        outer = outer.to(tl.int64)
        offs_c = offs_c.to(tl.int64)
    if CHANNELS_LAST:
        offsets = (outer * stride_outer * VECTOR)[None, :, None] + offs_c[:, None, None]
    else:
        in_plane = (outer * stride_outer + column) * VECTOR
        in_channel = offs_c * stride_channel * VECTOR
        lanes = tl.arange(0, VECTOR)
        offsets = in_channel[:, None, None] + in_plane[None, :, None] + lanes[None, None, :]
    return offsets


@triton.jit
def tile_mask(offs_c, offs_v, n_channels, last, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr):
    """Which elements of a tile exist, shape (BLOCK_C, BLOCK_V, 1)."""
    if CHANNELS_LAST:
        # n_channels is a multiple of VECTOR here: said so that masks keep whole vectors together
        n_channels = n_channels // VECTOR * VECTOR
    return (offs_c < n_channels)[:, None, None] & (offs_v < last)[None, :, None]


@triton.jit
def program_range(
    n_channels,
    n_vectors,
    vectors_per_split,
    VECTORS_64: tl.constexpr,
    BLOCK_C: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """(channel block, split, first vector, one past the last, channel numbers) of this program.

    With REVERSED the first programs take the last part: what an earlier launch read last is still
    in the cache.
    """
    program = tl.program_id(0)
    if REVERSED:
        program = tl.num_programs(0) - 1 - program
    n_blocks = tl.cdiv(n_channels, BLOCK_C)
    block = program % n_blocks
    split = program // n_blocks
    if VECTORS_64:
        split = split.to(tl.int64)
    first = split * vectors_per_split
    last = tl.minimum(first + vectors_per_split, n_vectors)
    offs_c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    return block, split, first, last, offs_c


@triton.jit
def tile_start(step, first, last, BLOCK_V: tl.constexpr, REVERSED: tl.constexpr):
    """First vector of the tile that a loop over range(first, last, BLOCK_V) visits at `step`; with
    REVERSED the last tile comes first."""
    if REVERSED:
        start = first + ((tl.cdiv(last - first, BLOCK_V) - 1) * BLOCK_V - (step - first))
    else:
        start = step
    return start


@triton.jit
def split_sizes(offs_k, splits, n_vectors, vectors_per_split):
    """Vectors that each split holds; 0 for numbers past the last split."""
    first = offs_k.to(tl.int64) * vectors_per_split
    sizes = tl.minimum(n_vectors - first, vectors_per_split)
    return tl.where(offs_k < splits, sizes, 0)


@triton.jit
def merge_moments(count, mean, m2, AXIS: tl.constexpr):
    """Moments of the union of disjoint sets along AXIS (Chan, Golub and LeVeque 1979, for k sets).

    Args: numbers of values, means, and sums of squared deviations from those means, of one shape.
    An empty set (count 0) adds nothing. The order of summation is fixed by the shape alone.
    """
    total = tl.sum(count, axis=AXIS)
    union_mean = tl.sum(count * mean, axis=AXIS) / tl.maximum(total, 1.0)
    delta = mean - tl.expand_dims(union_mean, AXIS)
    union_m2 = tl.sum(m2 + count * delta * delta, axis=AXIS)
    return total, union_mean, union_m2


@triton.jit
def combine_moments(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Moments of the union of two sets; the first may be empty, elementwise over any shape."""
    total = count_a + count_b
    share = count_b / tl.maximum(total, 1.0)
    delta = mean_b - mean_a
    return total, mean_a + delta * share, m2_a + m2_b + delta * delta * count_a * share


@triton.jit
def two_word_sum(a, b):
    """`a + b` as (rounded sum, its rounding error): Knuth's TwoSum, exact in any order."""
    total = a + b
    from_b = total - a
    error = (a - (total - from_b)) + (b - from_b)
    return total, error


@triton.jit
def inverse_std(variance, eps):
    """1 / sqrt(variance + eps), correctly rounded in both steps (fp32 or fp64)."""
    if variance.dtype == tl.float64:
        result = 1.0 / tl.sqrt(variance + eps)
    else:
        result = tl.div_rn(tl.full(variance.shape, 1.0, tl.float32), tl.sqrt_rn(variance + eps))
    return result


@triton.jit
def affine(x, mean_hi, scale, offset):
    """`(x - mean_hi) * scale + offset`, the multiplication and addition in one rounding.

    Every kernel that normalises, or asks what was normalised, has this from here: the backward pass
    of an activation must see the sign that the forward pass saw. The second word of the mean is in
    the offset (`offset_of`).
    """
    return scaled(x - mean_hi, scale, offset)


@triton.jit
def scaled(centred, scale, offset):
    """`affine` of what is centred already."""
    return tl.fma(
        centred, tl.broadcast_to(scale, centred.shape), tl.broadcast_to(offset, centred.shape)
    )


@triton.jit
def offset_of(beta, mean_lo, scale):
    """What `affine` adds: beta, and the second word of the mean; in one rounding, as there."""
    return tl.fma(-mean_lo, scale, beta)


@triton.jit
def load_channels(ptr, offs_c, mask_c, DEFAULT: tl.constexpr, ACCUMULATE: tl.constexpr):
    """A per-channel vector as ACCUMULATE, or DEFAULT everywhere where the pointer is None."""
    if ptr is None:
        values = tl.full(offs_c.shape, DEFAULT, ACCUMULATE)
    else:
        values = tl.load(ptr + offs_c, mask=mask_c, other=DEFAULT).to(ACCUMULATE)
    return values


@triton.jit
def arrive_last(arrivals_ptr, expected):
    """Whether this program is the last of `expected` to arrive; the counter returns to zero.

    The block barrier makes the stores of all threads of this program happen before the atomic that
    one thread performs: the compiler puts none there before Triton 3.9.
    """
    tl.debug_barrier()
    ticket = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu")
    is_last = ticket == expected - 1
    if is_last:
        tl.atomic_xchg(arrivals_ptr, 0, sem="relaxed", scope="gpu")
    tl.debug_barrier()
    return is_last
