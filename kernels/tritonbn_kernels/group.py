"""What the members of a group do together: publish partial results, wait for one another, merge.

Every member merges all partial results in the same order, so that all of them go on with the same
bits, whoever came first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.barrier import group_barrier
from tritonbn_kernels.gradients import merge_sums, publish_sums
from tritonbn_kernels.statistics import merge_partials, publish_moments


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
