"""`group_barrier` with one fault each, for tests that must find it."""

# jit bodies are untyped by nature
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

import triton
import triton.language as tl

__all__ = [
    "first_member_flips",
    "flips_one_early",
    "flips_one_late",
    "no_block_barrier",
    "relaxed_arrival",
    "removed",
    "waits_for_anyone",
]


@triton.jit
def removed(counter_ptr, member, group_size):
    """No barrier at all."""


@triton.jit
def flips_one_early(counter_ptr, member, group_size):
    """The sign flips when all but one have come."""
    tl.debug_barrier()
    step = tl.where(member == 0, 2147483647 - (group_size - 3), 1)
    before = tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()


@triton.jit
def flips_one_late(counter_ptr, member, group_size):
    """The sign flips one arrival after the last."""
    tl.debug_barrier()
    step = tl.where(member == 0, 2147483647 - (group_size - 1), 1)
    before = tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()


@triton.jit
def waits_for_anyone(counter_ptr, member, group_size):
    """The whole counter is compared, not its sign: any arrival ends the wait."""
    tl.debug_barrier()
    step = tl.where(member == 0, 2147483647 - (group_size - 2), 1)
    before = tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") == before:
        pass
    tl.debug_barrier()


@triton.jit
def first_member_flips(counter_ptr, member, group_size):
    """The sign flips when the first member comes, whoever is missing."""
    tl.debug_barrier()
    step = tl.where(member == 0, -2147483648, 0)
    tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while member > 0 and (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") >= 0):
        pass
    tl.debug_barrier()


@triton.jit
def no_block_barrier(counter_ptr, member, group_size):
    """The stores of other threads are not ordered before the arrival."""
    step = tl.where(member == 0, 2147483647 - (group_size - 2), 1)
    before = tl.atomic_add(counter_ptr, step, sem="release", scope="gpu")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()


@triton.jit
def relaxed_arrival(counter_ptr, member, group_size):
    """The arrival releases nothing."""
    tl.debug_barrier()
    step = tl.where(member == 0, 2147483647 - (group_size - 2), 1)
    before = tl.atomic_add(counter_ptr, step, sem="relaxed", scope="gpu")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") ^ before) >= 0:
        pass
    tl.debug_barrier()
