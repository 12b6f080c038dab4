"""What the members of a group do together: publish partial results, wait for one another, merge,
and settle what the rest of their work needs.

Every member merges all partial results in the same order, so that all of them go on with the same
bits, whoever came first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.barrier import group_barrier
from tritonbn_kernels.gradients import finish_gradients, merge_sums, publish_sums
from tritonbn_kernels.moments import inverse_std, load_channels, offset_of, two_word_sum
from tritonbn_kernels.statistics import finish_statistics, merge_partials, publish_moments


# fmt: off
@triton.jit
def agree_on_moments(
    pivot, mean, m2, partials_ptr, barrier_ptr, member, offs_c, mask_c,
    n_channels, n_vectors, vectors_per_split, splits, lanes,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """(pivot, mean, M2) of the group's channels, each (BLOCK_C,), from those of its members."""
    publish_moments(partials_ptr, member, offs_c, mask_c, n_channels, pivot, mean, m2)
    group_barrier(barrier_ptr, member, splits)
    return merge_partials(
        partials_ptr, offs_c, mask_c, n_channels, n_vectors, vectors_per_split, splits, lanes,
        tl.float32, BLOCK_C, BLOCK_K,
    )  # fmt: skip


# fmt: off
@triton.jit
def agree_on_sums(
    sum_dy, sum_dy_centred, partials_ptr, barrier_ptr, member, offs_c, mask_c, n_channels, splits,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """Both sums over the group's channels, each (BLOCK_C,), from those of its members."""
    publish_sums(partials_ptr, member, offs_c, mask_c, n_channels, sum_dy, sum_dy_centred)
    group_barrier(barrier_ptr, member, splits)
    return merge_sums(
        partials_ptr, offs_c, mask_c, n_channels, splits, tl.float32, BLOCK_C, BLOCK_K
    )


# fmt: off
@triton.jit
def settle_moments(
    pivot, mean, m2, gamma_ptr, beta_ptr, saved_ptr, running_mean_ptr, running_var_ptr, tracked_ptr,
    partials_ptr, arrivals_ptr, barriers_ptr, block, n_blocks, member, offs_c, mask_c,
    n_channels, n_vectors, vectors_per_split, splits, lanes, count, eps, momentum,
    CUMULATIVE: tl.constexpr, GROUPED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """(mean_hi, scale, offset) of `affine`, each (BLOCK_C,), from the moments of one member; the
    first member of a group stores statistics and running statistics."""
    if GROUPED:
        pivot, mean, m2 = agree_on_moments(
            pivot, mean, m2, partials_ptr, barriers_ptr + block, member, offs_c, mask_c,
            n_channels, n_vectors, vectors_per_split, splits, lanes, BLOCK_C, BLOCK_K,
        )  # fmt: skip
    if member == 0:
        finish_statistics(
            pivot, mean, m2, block, offs_c, mask_c, saved_ptr,
            running_mean_ptr, running_var_ptr, tracked_ptr, arrivals_ptr,
            n_channels, n_blocks, count, eps, momentum,
            None, None, CUMULATIVE, False, tl.float32,
        )  # fmt: skip
    mean_hi, mean_lo = two_word_sum(pivot, mean)
    inv_std = inverse_std(m2 / count, eps)
    scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, tl.float32) * inv_std
    beta = load_channels(beta_ptr, offs_c, mask_c, 0.0, tl.float32)
    return mean_hi, scale, offset_of(beta, mean_lo, scale)


# fmt: off
@triton.jit
def settle_sums(
    sum_dy, sum_dy_centred, mean_lo, inv_std, dgamma_ptr, dbeta_ptr, partials_ptr, barriers_ptr,
    block, member, offs_c, end_c, n_channels, splits, count,
    GROUPED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    # fmt: on
    """(mean_dy, slope) of `dx = scale * (dz - mean_dy - (x - mean_hi) * slope)`, each (BLOCK_C,),
    from the sums of one member; the first member of a group stores dgamma and dbeta.

    `end_c`: one past the last channel of the block.
    """
    if GROUPED:
        sum_dy, sum_dy_centred = agree_on_sums(
            sum_dy, sum_dy_centred, partials_ptr, barriers_ptr + block, member,
            offs_c, offs_c < end_c, n_channels, splits, BLOCK_C, BLOCK_K,
        )  # fmt: skip
    mask_writer = offs_c < tl.where(member == 0, end_c, 0)
    mean_dy, slope = finish_gradients(
        sum_dy, sum_dy_centred, inv_std, offs_c, mask_writer,
        dgamma_ptr, dbeta_ptr, None, n_channels, count,
    )  # fmt: skip
    # the second word of the mean, times the slope, joins the mean of dy
    return mean_dy - mean_lo * slope, slope
