"""The barrier among the programs that share a channel.

One int32 counter per group, never reset: the first member adds 2**31 - (size - 1), every other
member 1, so that the sign flips exactly when all have arrived and the low bits are zero again. Any
size may use the counter next. (The flip is the idea of CUDA's grid synchronisation.) All members
must be running at the same time: the launch is cooperative, and no program owns two items of one
group.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_barrier(counter_ptr, member, group_size):
    """Wait until all `group_size` (at least 2) members have come; their stores are then visible.

    The block barrier before the release covers the stores of all threads of this program, which the
    compiler does not order before Triton 3.9; the one after it keeps the other threads from reading
    before the thread that polls has acquired.
    """
    tl.debug_barrier()
    step = tl.where(member == 0, 2147483647 - (group_size - 2), 1)
    before = tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()
